"""What an analysis leaves on disk: the page, the tables, the graphs, and how they were made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import pandas as pd

from subnet._files import RUN_FILE, new_directory, sha256, write_json
from subnet._tables import versions, write_csv
from subnet._version import __version__
from subnet.analysis.methods import BIBTEX, methods_paragraph
from subnet.overlap import write_graph
from subnet.report import (
    Found,
    Method,
    ReportContent,
    Skipped,
    confounds_section,
    influence_section,
    render_report,
    standard_sections,
    validation_section,
)

if TYPE_CHECKING:
    from subnet.analysis.pipeline import Analysis
    from subnet.checkpoint import Checkpoint

#: Distributions whose versions are recorded.
LIBRARIES = (
    "torch", "transformers", "peft", "accelerate", "numpy", "scipy", "pandas", "networkx",
    "matplotlib", "safetensors", "langcodes", "babel",
)  # fmt: skip

#: Measures drawn as graphs, by the overlap that holds them.
_GRAPHS = {
    "masks": ("jaccard", "containment"),
    "updates": ("cosine", "subspace_similarity"),
}


def save(analysis: Analysis, directory: Path, *, overwrite: bool) -> Path:
    """Write everything into a directory that appears when it is complete."""
    inputs = inputs_of(analysis.checkpoint)
    if analysis.influence is not None:
        inputs |= analysis.influence.inputs
    for addition in analysis.additions.values():
        inputs |= addition.inputs
    if analysis.masks is not None:
        inputs |= {f"masks: {name}": sha for name, sha in inputs_of(analysis.masks).items()}
    content = report_content(analysis, inputs)
    outside = analysis.checkpoint.directories
    with new_directory(directory, overwrite=overwrite, outside=outside) as building:
        for folder in ("tables", "graphs", "figures"):
            (building / folder).mkdir()
        (building / "report.html").write_text(render_report(content), encoding="utf-8")
        write_json(building / "summary.json", summary(analysis))
        write_run_record(
            building,
            "analyze",
            _settings(analysis),
            analysis.checkpoint,
            seed=analysis.provenance.seed,
            method=content.method,
        )
        for name, frame in analysis.tables.items():
            write_csv(frame, building / "tables" / f"{name}.csv")
        for name, graph in _graphs(analysis).items():
            write_graph(graph, building / "graphs", name)
        if analysis.influence is not None:
            for measure, directed in analysis.influence.graphs().items():
                write_graph(directed, building / "graphs", f"influence-{measure}")
        for section in content.sections:
            for figure in section.figures:
                path = building / "figures" / f"{figure.name}.svg"
                path.write_text(figure.svg, encoding="utf-8")
    return directory


def summary(analysis: Analysis) -> dict[str, Any]:
    """Content of `summary.json`; its keys are documented in `docs/outputs.md`."""
    headline = analysis.headline
    inventory = analysis.checkpoint.to_dict()
    return {
        "format": 1,
        "name": analysis.checkpoint.name,
        "headline": {
            "state": headline.state,
            "sentence": headline.sentence,
            "row": None if headline.row is None else dict(headline.row),
        },
        "languages": inventory["languages"],
        "runs": inventory["runs"],
        "overlap": _overlap_numbers(analysis),
        "ablation": _ablation_numbers(analysis),
        "influence": _influence_numbers(analysis),
        "forgetting": _forgetting_numbers(analysis),
        "extensions": {name: dict(one.summary) for name, one in analysis.additions.items()},
        "key_numbers": key_numbers(analysis),
        "warnings": list(analysis.warnings),
        "missing": [
            {"analysis": entry.analysis, "reason": entry.reason, "fix": entry.fix}
            for entry in analysis.missing
        ],
        "recognised": inventory["recognised"],
        "skipped": inventory["skipped"],
    }


def key_numbers(analysis: Analysis) -> list[str]:
    """The main numbers, a line each, for the terminal and the head of the page."""
    checkpoint = analysis.checkpoint
    scripts = {language.script for language in checkpoint.languages if language.script}
    languages = f"{len(checkpoint.languages)} language{'s' * (len(checkpoint.languages) != 1)}"
    lines = [f"{languages} in {len(scripts)} script{'s' * (len(scripts) != 1)}"]
    names = {
        "masks": ("jaccard", "Jaccard of the masks"),
        "updates": ("cosine", "cosine of the updates"),
    }
    for name, (measure, words) in names.items():
        numbers = _overlap_numbers(analysis).get(name, {}).get(measure)
        if numbers:
            line = f"{words}: {numbers['mean']:.3f} on average, by chance {numbers['floor']:.3f}"
            if math.isfinite(numbers["ceiling"]):
                other = "half" if analysis.overlaps[name].ceiling_kind == "half" else "seed"
                line += f", same language from another {other} {numbers['ceiling']:.3f}"
            exceeding = f"{numbers['exceeding']} of {numbers['tested']} pairs exceed chance"
            lines.append(f"{line}; {exceeding} (q < .05)")
    tried = _ablation_numbers(analysis)
    if tried["testable"]:
        lines.append(
            f"without its subnetwork a language loses more than the others do, beyond random masks:"
            f" {len(tried['specific'])} of {tried['testable']} languages (q < .05)"
        )
    helpful = _influence_numbers(analysis)["measures"].get("share_top_positive")
    if helpful:
        lines.append(
            f"share of the most helpful training examples that are in-language: "
            f"{helpful['own']:.3f} on average, by chance {helpful['expected']:.3f}; it exceeds "
            f"chance for {len(helpful['exceeding'])} languages (q < .05)"
        )
    for run, metrics in _forgetting_numbers(analysis).items():
        for metric, measures in metrics.items():
            parts = [
                f"{label} {_signed(value['value'])}" + _plus_minus(value["stderr"])
                for measure, label in _SHOWN_MEASURES.items()
                if (value := measures.get(measure)) and math.isfinite(value["value"])
            ]
            if parts:
                of_run = "" if len(_forgetting_numbers(analysis)) == 1 else f" ({run})"
                lines.append(f"{metric}{of_run}: {', '.join(parts)}")
    return [*lines, *(line for one in analysis.additions.values() for line in one.key_numbers)]


_SHOWN_MEASURES = {
    "own_gain": "improved on the own turn",
    "immediate_effect": "by another's turn",
    "loss_since_start": "lost since the start",
    "forgetting_since_turn": "forgotten since the turn",
}


def report_content(analysis: Analysis, inputs: Mapping[str, str]) -> ReportContent:
    """The page's content."""
    checkpoint, tables = analysis.checkpoint, analysis.tables
    forgetting, relation = analysis.forgetting, analysis.relation
    overlaps = {name: overlap.to_frame() for name, overlap in analysis.overlaps.items()}
    metric = analysis.provenance.settings["metric"]
    sections = standard_sections(
        languages=tables["languages"],
        scores=tables.get("scores"),
        effects=tables.get("effects"),
        forgetting=tables.get("forgetting"),
        groups=tables.get("groups"),
        overlaps=overlaps,
        graph=next(iter(_graphs(analysis).values()), None),
        relation=tables.get("relation"),
        headline=analysis.headline,
        metric=metric,
        higher_is_better={}
        if forgetting is None
        else {name: entry.higher_is_better for name, entry in forgetting.metrics.items()},
        missing={entry.analysis: f"{entry.reason}: {entry.fix}" for entry in analysis.missing},
        relation_caveats=() if relation is None else (*relation.caveats, *relation.notes),
        seed=analysis.provenance.seed or 0,
    )
    tried, swept = analysis.ablation, analysis.sweep
    validation = validation_section(
        None if tried is None else tried.frame,
        None if tried is None else tried.specificity,
        None if tried is None else tried.overall,
        None if swept is None else swept.frame,
        languages=tables["languages"],
        missing=next(
            (f"{e.reason}: {e.fix}." for e in analysis.missing if e.analysis == "ablation"), ""
        ).capitalize(),
    )
    moved = analysis.influence
    influence = influence_section(
        None if moved is None else moved.frame,
        None if moved is None else moved.comparison,
        graph=None if moved is None else moved.graphs().get("share_top_positive"),
        languages=tables["languages"],
        missing=next(
            (f"{e.reason}: {e.fix}." for e in analysis.missing if e.analysis == "influence"), ""
        ).capitalize(),
        seed=analysis.provenance.seed or 0,
    )
    added = [section for one in analysis.additions.values() for section in one.sections]
    # After the overlap that it speaks for, before what rests on all of them.
    sections = (*sections[:-1], validation, influence, *added, sections[-1])
    return ReportContent(
        name=checkpoint.name,
        headline=analysis.headline,
        key_numbers=key_numbers(analysis),
        warnings=analysis.warnings,
        confounds=confounds_section(tables["languages"], tables.get("scores")),
        found=[
            Found(
                what=entry.kind.replace("_", " "),
                recognised_as=entry.recognised_as,
                where=checkpoint.relative(entry.path),
                run=entry.run,
                language="" if entry.language is None else entry.language.label,
                stage=entry.stage,
            )
            for entry in checkpoint.entries
        ],
        skipped=[
            Skipped(checkpoint.relative(entry.path), entry.reason, entry.fix)
            for entry in checkpoint.skipped
        ],
        missing=analysis.missing,
        sections=[*sections, *analysis.sections],
        method=Method(
            paragraph=methods_paragraph(analysis),
            bibtex=BIBTEX + "".join(one.bibtex for one in analysis.additions.values()),
            settings=_settings(analysis),
            versions=_versions(analysis),
            seeds={"analysis": analysis.provenance.seed or 0},
            inputs=inputs,
        ),
    )


def write_run_record(
    directory: Path,
    command: str,
    settings: Mapping[str, Any],
    source: Checkpoint | Mapping[str, str],
    *,
    seed: int | None = None,
    method: Method | None = None,
) -> None:
    """Write `run.json`: how a directory was made, and from what.

    Args:
        directory: Where to write it.
        command: What made the directory.
        settings: Every setting that the content depends on.
        source: The checkpoint that was read, or the SHA-256 of each file by its name.
        seed: Seed of the random parts.
        method: The method as the report states it, with the inputs already hashed.
    """
    if method is not None:
        inputs = dict(method.inputs)
    else:
        inputs = dict(source) if isinstance(source, Mapping) else inputs_of(source)
    record = {
        "format": 1,
        "tool": "subnet-toolkit",
        "version": __version__,
        "command": command,
        "seed": seed,
        "settings": dict(settings),
        "versions": versions(*LIBRARIES),
        "inputs": inputs,
    }
    if method is not None:
        record |= {"methods": method.paragraph, "bibtex": method.bibtex}
    write_json(directory / RUN_FILE, record)


def inputs_of(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of every file that an analysis reads, by its path in the checkpoint."""
    return {checkpoint.relative(path): sha256(path) for path in checkpoint.read_files()}


def _settings(analysis: Analysis) -> dict[str, Any]:
    """Every setting that a number depends on, by room."""
    found: dict[str, Any] = {"analyze": dict(analysis.provenance.settings)}
    if analysis.subnetworks:
        first = analysis.subnetworks[0]
        found["subnetworks"] = {"method": first.method, **first.settings}
    for name, overlap in analysis.overlaps.items():
        found[f"overlap of {name.replace('_', ' ')}"] = dict(overlap.provenance.settings)
    if analysis.ablation is not None:
        found["ablation"] = dict(analysis.ablation.provenance.settings)
    if analysis.sweep is not None:
        found["sweep"] = dict(analysis.sweep.provenance.settings)
    if analysis.influence is not None:
        found["influence"] = dict(analysis.influence.provenance.settings)
    if analysis.forgetting is not None:
        found["forgetting"] = dict(analysis.forgetting.provenance.settings)
    for name, addition in analysis.additions.items():
        if addition.provenance is not None:
            found[name] = dict(addition.provenance.settings)
    if analysis.relation is not None:
        found["relation"] = dict(analysis.relation.provenance.settings)
    return found


def _versions(analysis: Analysis) -> dict[str, str]:
    """Versions of the libraries of the analysis and of its extensions."""
    found = dict(analysis.provenance.versions)
    for addition in analysis.additions.values():
        found |= {} if addition.provenance is None else addition.provenance.versions
    return found


def _graphs(analysis: Analysis) -> dict[str, nx.Graph[str]]:
    return {
        measure: analysis.overlaps[name].graph(
            measure,
            families=analysis.checkpoint.families,
            seed=analysis.provenance.seed or 0,
        )
        for name, measures in _GRAPHS.items()
        if name in analysis.overlaps
        for measure in measures
    }


def _influence_numbers(analysis: Analysis) -> dict[str, Any]:
    """Over the languages of the first run: how much of what helps, and harms, is in-language."""
    found: dict[str, Any] = {"method": None, "languages": 0, "measures": {}}
    if analysis.influence is None:
        return found
    rows = analysis.influence.full
    own = rows[rows["train_language"] == rows["test_language"]]
    found |= {"method": str(rows["method"].iloc[0]), "languages": len(set(own["test_language"]))}
    for measure, part in own.groupby("measure", sort=False):
        numbers: dict[str, Any] = {"own": float(part["value"].mean())}
        if "expected" in part:
            above = (part["q_value"] < 0.05) & (part["value"] > part["expected"])
            numbers |= {
                "expected": float(part["expected"].mean()),
                "exceeding": [str(x) for x in part.loc[above, "test_language"]],
            }
        found["measures"][str(measure)] = numbers
    return found


def _overlap_numbers(analysis: Analysis) -> dict[str, dict[str, dict[str, float]]]:
    """Per comparison and measure: mean over the pairs of one run, floor, how many exceed chance.

    The run is `main`, or the first; the ceiling compares runs.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, overlap in analysis.overlaps.items():
        for measure in overlap.measures:
            pairs = overlap.pairs(measure)
            exceeding = (pairs["q_value"] < 0.05) & (pairs["z"] > 0)
            found.setdefault(name, {})[measure] = {
                "mean": float(pairs["value"].mean()),
                "floor": overlap.floor(measure),
                "ceiling": overlap.ceiling(measure),
                "pairs": len(pairs),
                "tested": int(pairs["p_value"].notna().sum()),
                "exceeding": int(exceeding.sum()),
            }
    return found


def _ablation_numbers(analysis: Analysis) -> dict[str, Any]:
    """How many languages could be tested, for which the finding is specific, and over all."""
    if analysis.ablation is None:
        return {"testable": 0, "specific": [], "value": math.nan, "p_value": math.nan}
    rows = analysis.ablation.specificity
    overall = analysis.ablation.overall.to_dict("records")
    first = overall[0] if overall else {}
    return {
        "testable": int(rows["testable"].astype(bool).sum()),
        "specific": [str(x) for x in rows.loc[rows["specific"].astype(bool), "language"]],
        "value": float(first.get("value", math.nan)),
        "p_value": float(first.get("p_value", math.nan)),
    }


def _forgetting_numbers(
    analysis: Analysis,
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Per run, metric and measure: mean over languages and its standard error."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    if analysis.forgetting is None:
        return found
    frame: pd.DataFrame = analysis.forgetting.frame
    plain = ~frame["measure"].str.contains("_relative")
    for row in frame[(frame["language"] == "") & plain].to_dict("records"):
        metrics = found.setdefault(row["run"], {}).setdefault(row["metric"], {})
        metrics[row["measure"]] = {"value": float(row["value"]), "stderr": float(row["stderr"])}
    return found


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _plus_minus(stderr: float) -> str:
    return f" ± {stderr:.3f}" if math.isfinite(stderr) else ""
