"""What attribution on a directory came to: tables, graphs, texts, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from subnet._files import new_directory
from subnet._tables import Provenance, write_csv
from subnet.analysis._attribution_examples import shown
from subnet.overlap import write_graph

if TYPE_CHECKING:
    import networkx as nx

    from subnet.checkpoint import Checkpoint
    from subnet.influence import Influence

#: Name in the column `subnetwork` where every test item is scored within its own language's.
OWN = "own"
#: Measures that know chance, and so make a graph.
GRAPHS = ("share_top_positive", "share_bottom_negative")


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of one run, through the full model or each item's own subnetwork.

    Attributes:
        run: The run.
        subnetwork: `""`, or `OWN`.
        influence: The scores.
        examples: `"train"` and `"test"` to the examples, in the order of the scores.
    """

    run: str
    subnetwork: str
    influence: Influence
    examples: Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, eq=False)
class Attribution:
    """What influence came to.

    Attributes:
        scored: Every set of scores.
        frame: The table `influence` of all of them.
        comparison: `compare_subnetworks` of each run; None without masks at example level.
        warnings: What a reader must know.
        provenance: Settings, seed and versions, every checkpoint with its rate among them.
        inputs: File read to its SHA-256.
    """

    scored: tuple[Scored, ...]
    frame: pd.DataFrame
    comparison: pd.DataFrame | None
    warnings: tuple[str, ...]
    provenance: Provenance
    inputs: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """The table (a copy of `frame`)."""
        return self.frame.copy()

    @property
    def full(self) -> pd.DataFrame:
        """Rows of the full model in the first run."""
        first = self.frame.iloc[0]
        rows: pd.DataFrame = self.frame[
            (self.frame["subnetwork"] == first["subnetwork"]) & (self.frame["run"] == first["run"])
        ]
        return rows

    def graphs(self) -> dict[str, nx.DiGraph[str]]:
        """Languages that help, or harm, more than chance; none without a level of chance."""
        from subnet.influence.graph import influence_graph

        known = set(self.full["measure"])
        return {
            measure: influence_graph(self.full, measure) for measure in GRAPHS if measure in known
        }

    def top(self, k: int) -> pd.DataFrame | None:
        """The k most helpful and most harmful training examples of each test example, with texts.

        Only what helps is helpful: scores of another sign are left out.
        """
        parts = []
        for scored in self.scored:
            if scored.influence.level != "example":
                continue
            for role, sign in (("helpful", 1), ("harmful", -1)):
                rows = scored.influence.top(k, opponents=sign < 0)
                rows = rows[sign * rows["score"] > 0].assign(role=role)
                for side in ("test", "train"):
                    about = getattr(scored.influence, side)["id"]
                    for column, said in _said(scored.examples[side]).items():
                        rows[f"{side}_{column}"] = rows[side].map(
                            dict(zip(about, said, strict=True))
                        )
                parts.append(rows.assign(run=scored.run, subnetwork=scored.subnetwork))
        if not parts:
            return None
        found = pd.concat(parts, ignore_index=True)
        first = [
            "run", "subnetwork", "test", "test_language", "test_text", "test_label", "role", "rank",
            "train", "train_language", "train_text", "train_label", "score",
        ]  # fmt: skip
        return found[first + [c for c in found.columns if c not in first]]


def write_attribution(
    found: Attribution, directory: Path, checkpoint: Checkpoint, *, overwrite: bool = False
) -> None:
    """Write `influence.csv`, `top.csv`, `comparison.csv`, scores, graphs and `run.json`.

    Scores are in `scores/`, of several runs or of subnetworks in folders by their names. In a run
    of many processes all call it, and the first one writes.

    Args:
        found: What to write.
        directory: A new directory.
        checkpoint: What it was computed from.
        overwrite: Replace one that was written before.

    Raises:
        OutputError: The directory is taken, or cannot be written.
    """
    from subnet.influence import _processes

    _processes.together(_write)(found, directory, checkpoint, overwrite)


def _write(found: Attribution, directory: Path, checkpoint: Checkpoint, overwrite: bool) -> None:
    from subnet.analysis.output import write_run_record
    from subnet.influence import _processes

    if not _processes.is_first():
        return
    outside = checkpoint.directories
    with new_directory(directory, overwrite=overwrite, outside=outside) as building:
        write_csv(found.frame, building / "influence.csv")
        top = found.top(int(found.provenance.settings["top"]))
        if top is not None:
            write_csv(top, building / "top.csv")
        if found.comparison is not None:
            write_csv(found.comparison, building / "comparison.csv")
        several = len({scored.run for scored in found.scored}) > 1
        for scored in found.scored:
            name = "-".join(filter(None, (scored.run if several else "", scored.subnetwork)))
            if scored.influence.level == "example":
                # Alone in its folder, else beside the others.
                place = building / "scores"
                place = place / (name or "full") if len(found.scored) > 1 else place
                scored.influence.save(place)
        for measure, graph in found.graphs().items():
            write_graph(graph, building, measure)
        settings = found.provenance.settings
        write_run_record(
            building, "attribute", {"method": found.provenance.method, **settings}, found.inputs,
            seed=found.provenance.seed,
        )  # fmt: skip


def _said(examples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What examples say, and what is to be predicted of them."""
    labels = [e.get("label", e.get("tags", e.get("target", ""))) for e in examples]
    plain = [" ".join(map(str, x)) if isinstance(x, list) else x for x in labels]
    return {"text": [shown(example) for example in examples], "label": plain}
