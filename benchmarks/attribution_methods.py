"""Which method of attribution foretells what happens without some of the training examples?

    subnet demo demo                                     # the base model and the data
    python benchmarks/attribution_methods.py demo        # about a quarter of an hour on one core
    python benchmarks/attribution_methods.py demo --quick

Every training takes the demo's base and gives it a LoRA on examples that the base has not seen (the
demo's validation examples). One of them, on all of these, is attributed by every method. The others
are what the methods are judged by:

- Linear datamodelling score: trained on random halves, the losses of the test examples are ranked
  by the summed scores of the half (Park et al. 2023).
- Leaving out one language after the other.
- Planted: a tenth of the labels wrong, found by self-influence; exact duplicates and translations
  of test examples among the training examples, ranked by the scores.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from subnet.influence import (
    attribute,
    compare_methods,
    leave_one_language_out,
    mislabelled_auroc,
    plant_mislabelled,
    retrain_on_subsets,
    retrain_without_languages,
    self_influence,
)
from subnet.model import load_model, per_example_loss

#: Label to method and settings.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "tracin": ("tracin", {}),
    "cosine": ("cosine", {}),
    "final": ("final", {}),
    "adam": ("adam", {}),
    "less": ("less", {}),
    "less, dot": ("less", {"similarity": "dot"}),
    "kfac": ("kfac", {}),
    "ekfac": ("ekfac", {}),
    "datainf": ("datainf", {}),
    "trak": ("trak", {}),
    "bm25, words": ("bm25", {"column": "text"}),
    "bm25, characters": ("bm25", {"column": "text", "tokens": "characters"}),
    "embedding": ("embedding", {}),
    "random": ("random", {}),
}
GRADIENTS = [name for name, (method, _) in METHODS.items() if method not in
             ("bm25", "embedding", "random")]  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much is trained."""

    languages: int = 6
    train: int = 60  # of each language
    test: int = 12  # of each language
    steps: int = 45
    learning_rate: float = 1e-3
    saves: int = 3
    subsets: int = 40
    seeds: int = 2  # of every part that is trained on
    planted: int = 20  # duplicates, and as many translations
    worlds: int = 3  # with planted examples


class Laboratory:
    """The base model and its data, and trainings of a LoRA on some of them."""

    def __init__(self, demo: Path, sizes: Sizes) -> None:
        from transformers import AutoTokenizer, DataCollatorWithPadding

        self.sizes = sizes
        self.base = load_model(demo / "base")
        self.tokenizer = AutoTokenizer.from_pretrained(demo / "base")
        self.collate = DataCollatorWithPadding(self.tokenizer)
        new = rows_of(demo / "validation.jsonl")
        languages = list(dict.fromkeys(row["language"] for row in new))[: sizes.languages]
        self.train = self.encoded(sample(new, languages, sizes.train))
        unseen = rows_of(demo / "test.jsonl")
        self.test = self.encoded(sample(unseen, languages, sizes.test))
        self.unseen = self.encoded([row for row in unseen if row["language"] in languages])

    def encoded(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows as the model takes them, with what they are."""
        ids = self.tokenizer([row["text"] for row in rows], truncation=True)["input_ids"]
        kinds = self.base.config.label2id
        encoded = [
            {**row, "input_ids": tokens, "labels": kinds[row["label"]]}
            for row, tokens in zip(rows, ids, strict=True)
        ]
        return [{key: row[key] for key in row if key != "label"} for row in encoded]

    def trained(self, rows: Sequence[dict[str, Any]], seed: int, folder: Path) -> Any:
        """A LoRA after its training on the rows, with checkpoints in the folder."""
        from peft import LoraConfig, get_peft_model
        from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

        set_seed(seed)
        model = get_peft_model(
            copy.deepcopy(self.base),
            LoraConfig(
                r=8,
                lora_alpha=16,
                target_modules=r".*\.encoder\.layer\..*\.(query|key|value|dense)",
            ),
        )
        saving = self.sizes.steps // self.sizes.saves
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(folder), max_steps=self.sizes.steps, save_steps=saving,
                save_strategy="steps" if folder.name == "whole" else "no", logging_steps=1,
                per_device_train_batch_size=32, learning_rate=self.sizes.learning_rate,
                lr_scheduler_type="constant",
                report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
                seed=seed, label_names=["labels"],
            ),
            train_dataset=[{"input_ids": r["input_ids"], "labels": r["labels"]} for r in rows],
            data_collator=self.collate,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return model.eval()

    def retrain(self, indices: np.ndarray, seed: int) -> np.ndarray:
        """Loss of every test example after training on some of the training examples."""
        with tempfile.TemporaryDirectory() as scratch:
            model = self.trained([self.train[i] for i in indices], seed, Path(scratch) / "part")
        return self.losses(model)

    def losses(self, model: Any) -> np.ndarray:
        """Loss of every test example."""
        rows = [{"input_ids": r["input_ids"], "labels": r["labels"]} for r in self.test]
        return per_example_loss(model, rows, self.collate, batch_size=64).loss

    def scores(
        self,
        model: Any,
        folder: Path,
        train: Sequence[Any],
        test: Sequence[Any],
        names: Sequence[str],
    ) -> dict[str, np.ndarray]:
        """Scores of each method, which are [n_test, n_train]."""
        found = {}
        for name in names:
            method, settings = METHODS[name]
            start = time.perf_counter()
            found[name] = attribute(
                model, train, test, method=method, checkpoints=folder, collate_fn=self.collate,
                batch_size=32, **settings,
            ).scores  # fmt: skip
            say(f"  {name}: {time.perf_counter() - start:.1f} s")
        return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sample(
    rows: Sequence[dict[str, Any]], languages: Sequence[str], n: int
) -> list[dict[str, Any]]:
    """The same n concepts, drawn at random, in every language."""
    known = sorted({row["concept"] for row in rows})
    drawn = set(np.random.default_rng(0).permutation(known)[:n].tolist())
    return [row for row in rows if row["language"] in languages and row["concept"] in drawn]


def datamodelling(lab: Laboratory, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """Linear datamodelling score of each method."""
    retrained = retrain_on_subsets(
        lab.retrain, len(lab.train), n_subsets=lab.sizes.subsets, seeds_per_subset=lab.sizes.seeds
    )
    say(f"{lab.sizes.subsets} subsets done")
    return compare_methods(scores, retrained, reference="random").set_index("method")


def removal(lab: Laboratory, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """Rank correlation with the effect of leaving a language out, by method."""
    of_train, of_test = ([row["language"] for row in rows] for rows in (lab.train, lab.test))
    retrained = retrain_without_languages(lab.retrain, of_train, n_seeds=lab.sizes.seeds)
    say("languages done")
    rows = []
    for name, each in scores.items():
        found = leave_one_language_out(each, retrained, of_test).correlations
        rows.append({"method": name, **{
            f"{row.pairs}": f"{row.value:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}] (p = "
            f"{row.p_value:.3f})" for row in found.itertuples()
        }})  # fmt: skip
    return pd.DataFrame(rows).set_index("method")


def planted(lab: Laboratory, scratch: Path) -> pd.DataFrame:
    """AUROC of wrong labels by self-influence; ranks of duplicates and translations."""
    n_labels = len(lab.base.config.label2id)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in METHODS}
    for seed in range(lab.sizes.worlds):
        rng = np.random.default_rng(seed)
        labels = [row["labels"] for row in lab.train]
        given, wrong = plant_mislabelled(labels, share=0.1, n_labels=n_labels, seed=seed)
        train = [{**row, "labels": int(y)} for row, y in zip(lab.train, given, strict=True)]
        items = [lab.test[i] for i in rng.permutation(len(lab.test))[: 2 * lab.sizes.planted]]
        copied, translated = items[: len(items) // 2], items[len(items) // 2 :]
        added = [{**row, "id": f"copy of {row['id']}"} for row in copied]
        for row in translated:
            others = [
                other for other in lab.unseen
                if other["concept"] == row["concept"] and other["text"] != row["text"]
            ]  # fmt: skip
            added.append(others[rng.integers(len(others))])
        everyone = [*train, *added]
        folder = scratch / f"planted-{seed}" / "whole"
        model = lab.trained(everyone, seed, folder)
        is_wrong = np.concatenate([wrong, np.zeros(len(added), dtype=bool)])
        for name, each in lab.scores(model, folder, everyone, items, list(METHODS)).items():
            own = each[np.arange(len(items)), len(train) + np.arange(len(items))]
            # Ties count half.
            above = (each > own[:, None]).sum(1) + ((each == own[:, None]).sum(1) - 1) / 2
            for kind, part in (
                ("duplicate", slice(0, len(copied))), ("translation", slice(len(copied), None)),
            ):  # fmt: skip
                found[name].setdefault(f"{kind} first", []).append(float((above[part] < 1).mean()))
                found[name].setdefault(f"{kind}, median rank", []).append(
                    float(np.median(above[part])) + 1
                )
        for name in GRADIENTS:
            method, settings = METHODS[name]
            own = self_influence(
                model, everyone, method=method, checkpoints=folder, collate_fn=lab.collate,
                batch_size=32, **settings,
            )  # fmt: skip
            if np.ptp(own) > 1e-6:  # a cosine with itself is 1
                auroc = mislabelled_auroc(own, is_wrong).auroc
                found[name].setdefault("wrong labels, AUROC", []).append(auroc)
        say(f"planted, seed {seed} done")
    return pd.DataFrame(
        [{"method": name, **{what: _mean(values) for what, values in row.items()}}
         for name, row in found.items()]
    ).set_index("method")  # fmt: skip


def _mean(values: Sequence[float]) -> str:
    spread = f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def markdown(table: pd.DataFrame) -> str:
    """A table with its index as first column."""
    heads = [str(table.index.name), *map(str, table.columns)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in table.iterrows():
        cells = ["–" if isinstance(v, float) and np.isnan(v) else str(v) for v in row]
        lines.append("| " + " | ".join([str(name), *cells]) + " |")
    return "\n".join(lines)


def say(text: str) -> None:
    """Tell on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Train, attribute, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="a folder that `subnet demo` wrote")
    parser.add_argument("--subsets", type=int, default=Sizes.subsets)
    parser.add_argument("--seeds", type=int, default=Sizes.seeds)
    parser.add_argument("--quick", action="store_true", help="minutes: few trainings, no findings")
    given = parser.parse_args()
    sizes = Sizes(subsets=given.subsets, seeds=given.seeds)
    if given.quick:
        sizes = Sizes(
            languages=4,
            train=20,
            test=6,
            steps=20,
            saves=2,
            subsets=6,
            seeds=1,
            planted=6,
            worlds=1,
        )

    from transformers.utils import logging

    from subnet.training._quiet import undisturbed

    logging.disable_progress_bar()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, undisturbed():
        lab = Laboratory(given.demo, sizes)
        folder = Path(scratch) / "whole"
        model = lab.trained(lab.train, 0, folder)
        before, after = lab.losses(lab.base).mean(), lab.losses(model).mean()
        scores = lab.scores(model, folder, lab.train, lab.test, list(METHODS))
        lds = datamodelling(lab, scores)
        languages = removal(lab, scores)
        plants = planted(lab, Path(scratch))
    print(
        f"{len(lab.train)} training and {len(lab.test)} test examples in {sizes.languages} "
        f"languages, {sizes.saves} checkpoints; mean test loss {before:.3f} before and {after:.3f} "
        f"after training on all; {sizes.subsets} random halves × {sizes.seeds} seeds; torch "
        f"{torch.__version__}; {(time.perf_counter() - start) / 60:.0f} minutes\n"
    )
    reliability = lds["reliability"].iloc[0]
    print(
        f"Linear datamodelling score (a perfect prediction would reach about {reliability:.2f}):\n"
    )
    shown = pd.DataFrame({
        "LDS": [f"{r.value:.3f} [{r.ci_low:.3f}, {r.ci_high:.3f}]" for r in lds.itertuples()],
        "above random": [f"{r.difference:.3f} [{r.difference_low:.3f}, {r.difference_high:.3f}]"
                         for r in lds.itertuples()],
    }, index=lds.index)  # fmt: skip
    print(markdown(shown.join(languages.add_prefix("leaving languages out: "))) + "\n")
    print(f"Planted, mean over {sizes.worlds} trainings (smallest–largest):\n")
    print(markdown(plants))


if __name__ == "__main__":
    main()
