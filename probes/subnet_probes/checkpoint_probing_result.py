"""What probing a checkpoint came to: tables, what was not possible, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from subnet._files import new_directory
from subnet._tables import Provenance, write_csv
from subnet.report import Missing

if TYPE_CHECKING:
    import pandas as pd

    from subnet.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class CheckpointProbing:
    """What the representations of a checkpoint's models encode, and how they moved.

    `stage` is the number of the stage of training after which the model is looked at, as in tables
    of scores; 0 is the base, and of a language's own adapter it is empty.

    Attributes:
        checkpoint: What was probed.
        probes: `run, stage, trained_language, model` (`base`, `stage` or `adapter`), the columns of
            `Probing.frame` (`task` is `language`, `label` or `tag`) and `subnetwork`: `""` of the
            whole model, `removed` of the model without the language's own subnetwork.
        transfer: `run, stage` and the columns of `Transfer.frame`, of the base and the last stage.
        similarity: `run, stage` and the other columns of `language_similarity`, of the same two.
        drift: Rows of `drift`, each stage against the one before it that was looked at (`since`).
        units: `run, stage, model, task, language, mask_language` and the columns of
            `unit_agreement`: neurons and heads that tell a language from the others at the base
            (`rank_model_units`), beside the masks of that language and of the others. `layer` is
            the mask's name of it (`layers.3.neurons`).
        missing: What was not possible, and what it wants.
        warnings: What a reader must know before believing the numbers, one line each.
        provenance: Settings, seed, versions.
        inputs: File read to its SHA-256.
    """

    checkpoint: Checkpoint
    probes: pd.DataFrame | None
    transfer: pd.DataFrame | None
    similarity: pd.DataFrame | None
    drift: pd.DataFrame | None
    units: pd.DataFrame | None
    missing: tuple[Missing, ...]
    warnings: tuple[str, ...]
    provenance: Provenance
    inputs: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        rows = [f"{name} {len(frame)} rows" for name, frame in self.tables().items()]
        lacking = f"; not possible: {', '.join(m.analysis for m in self.missing)}"
        return (
            f"CheckpointProbing({self.checkpoint.name}: {', '.join(rows)}"
            f"{lacking if self.missing else ''})"
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """File name, without `.csv`, to the table; those that there are."""
        named = {
            "probes": self.probes,
            "probe_transfer": self.transfer,
            "representation_similarity": self.similarity,
            "drift": self.drift,
            "probe_units": self.units,
        }
        return {name: frame for name, frame in named.items() if frame is not None}

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write the tables as CSV, and `run.json`; complete or not at all.

        Args:
            directory: A new directory, outside the checkpoint.
            overwrite: Replace one that was written before.

        Raises:
            OutputError: The directory is taken, or cannot be written.
        """
        from subnet.analysis import write_run_record

        outside = self.checkpoint.directories
        with new_directory(directory, overwrite=overwrite, outside=outside) as building:
            for name, frame in self.tables().items():
                write_csv(frame, building / f"{name}.csv")
            missing = [
                {"analysis": entry.analysis, "reason": entry.reason, "fix": entry.fix}
                for entry in self.missing
            ]
            settings = {
                **self.provenance.settings,
                "missing": missing,
                "warnings": list(self.warnings),
            }
            write_run_record(building, "probe", settings, self.inputs, seed=self.provenance.seed)
