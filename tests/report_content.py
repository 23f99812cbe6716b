"""Made-up results of plausible shape, for the tests of figures and report."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from subnet._tables import table
from subnet.influence.graph import influence_graph
from subnet.language import parse_language
from subnet.report import (
    Found,
    Method,
    Missing,
    ReportContent,
    Skipped,
    confounds_section,
    influence_section,
    render_report,
    standard_sections,
    validation_section,
)

#: The languages of MASSIVE.
ALL = (
    "en", "de", "fr", "ru", "ar", "hi", "zh-CN", "sw", "fi", "tr", "th", "ko", "af", "am", "az",
    "bn", "cy", "da", "el", "es", "fa", "he", "hu", "hy", "id", "is", "it", "ja", "jv", "ka", "km",
    "kn", "lv", "ml", "mn", "ms", "my", "nb", "nl", "pl", "pt", "ro", "sl", "sq", "sv", "ta", "te",
    "fil", "ur", "vi", "zh-TW", "ca",
)  # fmt: skip

#: Labels that users do use, and some that nobody should: the tag says what each one is.
AWKWARD = {
    "de": "<script>alert(1)</script>",
    "fr": "fr_$x_1$ & co",
    "ar": "العربية",
    "hi": "हिन्दी",
    "zh-CN": "中文（简体）",
    "th": "ภาษาไทย",
    "he": "עברית",
    "ta": "தமிழ்",
    "my": "မြန်မာ",
    "am": "አማርኛ",
    "km": "ខ្មែរ",
    "sw": "_swahili",
}

FAMILIES = {
    "Indo-European": "en de fr ru hi af bn cy da el es fa hy is it lv nb nl pl pt ro sl sq sv ur",
    "Afro-Asiatic": "ar am he",
    "Sino-Tibetan": "zh-CN zh-TW my",
    "Turkic": "tr az",
    "Uralic": "fi hu",
    "Dravidian": "kn ml ta te",
    "Austronesian": "id jv ms fil",
}

METRICS = {"loss": False, "accuracy": True}
MEASURES = ("jaccard", "cosine")


def languages_table(n: int, *, awkward: bool = False) -> pd.DataFrame:
    family = {tag: name for name, tags in FAMILIES.items() for tag in tags.split()}
    rng = np.random.default_rng(5)
    rows = []
    for position, tag in enumerate(ALL[:n], start=1):
        language = parse_language(AWKWARD.get(tag, tag) if awkward else tag, tag=tag)
        latin = bool(language.is_latin)
        rows.append(
            {
                "language": language.label,
                "tag": language.tag,
                "script": language.script,
                "family": family.get(tag, ""),
                "name": language.name,
                "script_name": language.script_name,
                "train_examples": int(rng.integers(900, 1101)),
                "test_examples": 240,
                "bytes_per_character": (1.04 if latin else 2.4) + 0.3 * rng.random(),
                "truncated_share": 0.0 if latin else 0.03 * rng.random(),
                "position": position,
            }
        )
    return pd.DataFrame(rows)


def tables(n: int = 12, *, awkward: bool = False, seed: int = 0) -> dict[str, pd.DataFrame]:
    """All tables of one analysis of n languages, in which overlap lowers the effect on others."""
    rng = np.random.default_rng(seed)
    languages = languages_table(n, awkward=awkward)
    labels = list(languages["language"])
    script = languages["script"].to_numpy()
    related = 0.6 * (script[:, None] == script[None]) + 0.4 * rng.random((n, n))
    related = (related + related.T) / 2
    overlap = _overlap(labels, related, rng)
    scores, effects = _scores(labels, related, rng)
    return {
        "languages": languages,
        "overlap": overlap,
        "scores": scores,
        "effects": effects,
        "forgetting": _forgetting(labels, rng),
        "groups": _groups(languages, rng),
        "relation": _relation(n),
    }


def _overlap(labels: list[str], related: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    places = [("all", "")] + [("layer", str(layer)) for layer in range(6)]
    rows = []
    for i, a in enumerate(labels):
        for j, b in enumerate(labels[:i] + labels[i : i + (i < 3)]):
            for measure, nulls in (
                ("jaccard", ("element", "structure")),
                ("cosine", ("rotation",)),
            ):
                for level, module in places:
                    depth = int(module or 3)
                    value = 0.06 + 0.12 * related[i, j] + 0.01 * depth + 0.01 * rng.random()
                    value += 0.2 * (a == b)
                    rows.extend(
                        {
                            "run": "main|replicate" if a == b else "main",
                            "source": "masks" if measure == "jaccard" else "updates",
                            "language_a": b,
                            "language_b": a,
                            "level": level,
                            "module": module,
                            "measure": measure,
                            "value": value,
                            "expected": 0.026 if null == "element" else 0.055,
                            "null": null,
                            "z": (value - 0.055) / 0.01,
                            "p_value": math.exp(-abs(value - 0.055) * 60),
                            "q_value": math.exp(-abs(value - 0.055) * 55),
                            "comparison": "replicate" if a == b else "between",
                            "n_a": 5000,
                            "n_b": 5000,
                            "reason": "",
                        }
                        for null in nulls
                    )
    return table("overlap", rows)


def _scores(
    labels: list[str], related: np.ndarray, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    n = len(labels)
    scores: list[dict[str, Any]] = []
    effects: list[dict[str, Any]] = []
    for metric, start, sign in (("loss", 1.4, -1.0), ("accuracy", 0.45, 1.0)):
        value = start + 0.1 * rng.standard_normal(n)
        for stage in range(n + 1):
            if stage:
                change = 0.02 - 0.08 * related[stage - 1] + 0.02 * rng.standard_normal(n)
                change[stage - 1] = 0.2
                value = value + sign * change * (1.0 if metric == "loss" else 0.35)
            for j, label in enumerate(labels):
                row = {
                    "run": "main",
                    "stage": stage,
                    "trained_language": labels[stage - 1] if stage else "",
                    "language": label,
                    "metric": metric,
                    "stderr": 0.02,
                }
                missing = stage == 2 and j == 3
                scores.append(row | {"value": math.nan if missing else value[j]})
                if stage:
                    reason = "no score after stage 2" if missing else ""
                    effects.append(
                        row | {"value": math.nan if missing else change[j], "reason": reason}
                    )
    return table("scores", scores), table("effects", effects)


def _forgetting(labels: list[str], rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for metric in METRICS:
        for measure in (
            "forgetting", "forgetting_since_turn", "loss_since_start", "backward_transfer",
        ):  # fmt: skip
            for label in labels:
                last = label == labels[-1] and "turn" in measure
                rows.append(
                    {
                        "run": "main",
                        "language": label,
                        "metric": metric,
                        "measure": measure,
                        "value": math.nan if last else 0.1 + 0.08 * rng.standard_normal(),
                        "stderr": math.nan if last else 0.03,
                        "reason": "trained at the last stage" if last else "",
                    }
                )
            rows.append(rows[-2] | {"language": "", "value": 0.1, "stderr": 0.01})
    return table("forgetting", rows)


def _groups(languages: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    latin = languages["script"].map({"Latn": "Latin script"}).fillna("other")
    family = languages["family"].where(languages["family"] != "")
    rows = []
    for grouping, of in (
        ("latin", latin),
        ("script", languages["script_name"]),
        ("family", family),
    ):
        for group, members in of.groupby(of):
            for metric in METRICS:
                for role, measure in (
                    ("donor", "immediate_effect"),
                    ("receiver", "immediate_effect"),
                    ("receiver", "forgetting_since_turn"),
                ):
                    one = len(members) < 2
                    value = 0.05 * rng.standard_normal()
                    rows.append(
                        {
                            "grouping": grouping,
                            "group": group,
                            "role": role,
                            "metric": metric,
                            "measure": measure,
                            "value": value,
                            "ci_low": math.nan if one else value - 0.04,
                            "ci_high": math.nan if one else value + 0.04,
                            "p_value": math.nan if one else rng.random(),
                            "n": len(members),
                            "reason": "the group has one language only" if one else "",
                        }
                    )
    return table("groups", rows)


def _relation(n: int) -> pd.DataFrame:
    rows = []
    for measure, estimate, p in (("jaccard", -0.41, 0.004), ("cosine", -0.22, 0.18)):
        for method in ("mrqap_dsp", "qap"):
            rows.append(
                {
                    "outcome": "immediate_effect (loss)",
                    "predictor": "masks" if measure == "jaccard" else "updates",
                    "measure": measure,
                    "module": "",
                    "controls": "same script, same family, position" if method != "qap" else "",
                    "method": method,
                    "estimate": estimate,
                    "ci_low": estimate - 0.17,
                    "ci_high": estimate + 0.17,
                    "statistic": estimate * 8,
                    "p_value": p,
                    "q_value": min(1.0, p * 2),
                    "n_languages": n,
                    "n_permutations": 9999,
                    "testable": True,
                    "reason": "",
                }
            )
    return table("relation", rows)


def validation_tables(labels: list[str], seed: int = 0) -> dict[str, pd.DataFrame]:
    """An ablation, its verdicts and a sweep, in the columns that the toolkit writes."""
    rng = np.random.default_rng(seed)
    cells = [
        {
            "run": "main", "mask_language": mask, "test_language": test, "condition": condition,
            "loss": 1.0, "accuracy": 0.5, "change": rng.normal(0.5 * (mask == test), 0.1), "n": 32,
        }
        for mask in labels
        for test in labels
        for condition in ("whole", "removed", "kept", "random_removed", "random_kept")
    ]  # fmt: skip
    verdicts = [
        {
            "run": "main", "language": x, "own": 0.5, "others": 0.1, "random_own": 0.02,
            "random_others": 0.01, "value": rng.normal(0.4, 0.1), "ci_low": 0.2, "ci_high": 0.6,
            "p_value": 0.01, "q_value": 0.02, "testable": True, "specific": place % 2 == 0,
            "n": 32, "n_random": 20, "reason": "",
        }
        for place, x in enumerate(labels)
    ]  # fmt: skip
    overall = [{"run": "main", "value": 0.4, "p_value": 0.001, "n_languages": len(labels)}]
    sweep = [
        {
            "run": "main", "language": x, "density": density, "condition": condition,
            "change": (1 - density) * scale + rng.normal(0, 0.02), "recovered": density,
        }
        for x in labels
        for density in (0.0, 0.01, 0.05, 0.2, 1.0)
        for condition, scale in (("kept", 0.3), ("random_kept", 0.6))
    ]  # fmt: skip
    frames = {"ablation": cells, "specificity": verdicts, "overall": overall, "sweep": sweep}
    return {name: pd.DataFrame(rows) for name, rows in frames.items()}


def influence_tables(labels: list[str], seed: int = 0) -> dict[str, pd.DataFrame]:
    """An influence table, in which own examples help most, and a comparison of subnetworks."""
    rng = np.random.default_rng(seed)
    chance = 1 / len(labels)
    rows = []
    for measure in ("mean", "share_top_positive", "share_bottom_negative"):
        for test in labels:
            for train in labels:
                expected = 0.1 if measure == "mean" else chance
                value = max(0.0, rng.normal(expected, 0.3 * chance)) + 0.3 * (train == test)
                near = rng.random() < 0.9 and train != test
                rows.append(
                    {
                        "run": "main", "train_language": train, "test_language": test,
                        "checkpoint": f"{len(labels)} checkpoints", "method": "tracin",
                        "subnetwork": "", "measure": measure, "value": value,
                        "ci_low": value - 0.4 * chance, "ci_high": value + 0.4 * chance, "n": 32,
                        "reason": "", "expected": expected, "p_value": 0.4 if near else 0.001,
                        "q_value": 0.6 if near else 0.01, "m": 10, "n_concepts": 32,
                        "translations": "keep", "n_translations": 4 * (train != test),
                    }
                )  # fmt: skip
    compared = [
        {
            "run": "main", "checkpoint": "", "method": "tracin", "comparison": comparison,
            "measure": measure, "test_language": test, "value": 0.12, "ci_low": 0.05,
            "ci_high": 0.19, "p_value": 0.002, "q_value": 0.01, "smallest_p": 0.0002, "own": 0.4,
            "control": 0.28, "expected": 0.0, "n": 32, "n_controls": 1, "m": 10,
            "translations": "keep", "reason": "",
        }
        for comparison in ("own - full", "own - other", "own - random")
        for measure in ("share_top_positive", "share_bottom_negative")
        for test in (*labels, "all")
    ]  # fmt: skip
    return {
        "influence": table("influence", rows),
        "comparison": pd.DataFrame(compared),
    }


def graph(overlap: pd.DataFrame, *, share: float = 0.15) -> nx.Graph:
    """Languages with the largest overlaps joined."""
    rows = overlap[(overlap["measure"] == "jaccard") & (overlap["level"] == "all")]
    rows = rows[(rows["null"] == "structure") & (rows["comparison"] == "between")]
    found: nx.Graph = nx.Graph()
    found.add_nodes_from(dict.fromkeys([*rows["language_a"], *rows["language_b"]]))
    for row in rows.nlargest(int(share * len(rows)) + 1, "value").itertuples():
        found.add_edge(row.language_a, row.language_b, value=row.value)
    return found


SENTENCES = {
    "associated": (
        "The more the parameters that training one language changed overlap with those that "
        "another uses (jaccard), the more that other language lost: standardised slope −0.41 "
        "[−0.58, −0.24], p = 0.004 (q = 0.008), 12 languages, 132 pairs, MRQAP with "
        "double semi-partialing given same script and position of donor. As expected."
    ),
    "not associated": (
        "No association was found between the overlap of the parameters that two languages use "
        "(jaccard) and what a language lost when another was trained: standardised slope −0.04 "
        "[−0.21, 0.13], p = 0.61."
    ),
    "not testable": (
        "Whether the overlap of the parameters that two languages use (jaccard) goes with what a "
        "language loses when another is trained cannot be tested on these data (4 languages)."
    ),
    "files missing": (
        "Whether sharing goes with forgetting cannot be answered from these files: there is no "
        "score of every language after every stage (scores.csv)."
    ),
}


@functools.cache
def page(n: int) -> str:
    """The rendered report about n languages with awkward labels, made once for all tests."""
    return render_report(content(n, awkward=True))


@dataclass(frozen=True)
class Headline:
    state: str
    sentence: str
    row: dict[str, Any] | None = None


def content(
    n: int = 12, *, state: str = "associated", awkward: bool = False, name: str = "demo"
) -> ReportContent:
    """A whole report about n languages."""
    found = tables(n, awkward=awkward)
    labels = list(found["languages"]["language"])
    overlap = found["overlap"]
    row: dict[str, Any] | None = dict(found["relation"].iloc[0])
    if state == "files missing":
        row = None
    elif state == "not associated":
        row |= {
            "estimate": -0.04,
            "ci_low": -0.21,
            "ci_high": 0.13,
            "p_value": 0.61,
            "q_value": 0.8,
        }
    elif state == "not testable":
        row |= dict.fromkeys(("ci_low", "ci_high", "p_value", "q_value"), math.nan)
        row |= {"n_languages": 4, "n_permutations": 0}
    headline = Headline(state, SENTENCES[state], row)
    sections = standard_sections(
        languages=found["languages"],
        scores=found["scores"],
        effects=found["effects"],
        forgetting=found["forgetting"],
        groups=found["groups"],
        overlaps={
            "masks": overlap[overlap["source"] == "masks"],
            "updates": overlap[overlap["source"] == "updates"],
        },
        graph=graph(overlap),
        relation=None if state == "files missing" else found["relation"],
        headline=headline,
        missing={"relation": "There are no scores over stages; add scores.csv."},
        relation_caveats=("An association does not show that sharing causes loss.",),
    )
    validation = validation_section(**validation_tables(labels), languages=found["languages"])
    moved = influence_tables(labels)
    influence = influence_section(
        **moved, languages=found["languages"],
        graph=influence_graph(moved["influence"], "share_top_positive"),
    )  # fmt: skip
    return ReportContent(
        name=name,
        headline=headline,
        key_numbers=("Mean Jaccard between languages 0.14, by chance 0.055, same language 0.39.",),
        warnings=(
            "en and de began from the same random A: part of their overlap is the initialisation.",
            "There is one order of training only.",
        ),
        confounds=confounds_section(found["languages"], found["scores"]),
        found=[
            Found("base", "Hugging Face model (bert, 3 layers)", "base"),
            Found("scores", "long table, 2 metrics", "scores.csv", "main"),
            *(
                Found("adapter", "PEFT adapter (LoRA, rank 8)", f"adapters/{label}", "main", label)
                for label in labels
            ),
            *(
                Found("stage", "PEFT adapter (LoRA, rank 8)", f"stages/{s:02}-{x}", "main", x, s)
                for s, x in enumerate(labels, start=1)
            ),
        ],
        skipped=(Skipped("old/model.bin", "is a pickle", "save it again as safetensors"),),
        missing=(Missing("probing", "No probes were trained.", "Ask for them."),),
        sections=(*sections[:-1], validation, influence, sections[-1]),
        method=Method(
            paragraph="Subnetworks are the 5 % of weights that changed most. Overlap is compared "
            "with a null model that permutes rows and columns.",
            bibtex="@article{dekker2007,\n  author = {Dekker, D. and Krackhardt, D. and Snijders, "
            "T.},\n  title = {Sensitivity of {MRQAP} Tests to Collinearity},\n  year = {2007}\n}",
            settings={"method": "magnitude", "density": 0.05, "relation": {"metric": "loss"}},
            versions={"python": "3.11.2", "numpy": "2.4.0"},
            seeds={"permutations": 0},
            inputs={f"adapters/{x}/adapter_model.safetensors": "ab" * 32 for x in labels},
        ),
    )
