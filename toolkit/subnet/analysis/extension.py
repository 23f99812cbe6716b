"""What another package adds to an analysis: tables, predictors, sections of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd

from subnet._tables import Provenance
from subnet.checkpoint import Checkpoint
from subnet.forgetting import Forgetting
from subnet.report import Missing, Section


@dataclass(frozen=True)
class Addition:
    """What an extension found in a checkpoint; every part may be empty.

    Attributes:
        sections: Sections of the report; they stand after influence and before the relation.
        tables: Further tables, saved as `tables/<name>.csv`.
        representations: Predictors of the relation, as `subnet.relate` takes them.
        summary: What `summary.json` says under the name of the extension.
        key_numbers: Lines for the terminal and the head of the page.
        missing: What was not possible, and what it wants.
        warnings: What a reader must know.
        methods: Sentences of the methods paragraph.
        bibtex: References that they cite.
        provenance: Settings, seed and versions; None where nothing was computed.
        inputs: File read to its SHA-256.
    """

    sections: Sequence[Section] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    representations: Mapping[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    summary: Mapping[str, Any] = field(default_factory=dict)
    key_numbers: Sequence[str] = ()
    missing: Sequence[Missing] = ()
    warnings: Sequence[str] = ()
    methods: str = ""
    bibtex: str = ""
    provenance: Provenance | None = None
    inputs: Mapping[str, str] = field(default_factory=dict, repr=False)


class Extension(Protocol):
    """Called between forgetting and relation: what it finds may explain what was forgotten."""

    @property
    def name(self) -> str:
        """Name of the step, and the key in `summary.json` and `run.json`."""

    def __call__(self, checkpoint: Checkpoint, forgetting: Forgetting | None) -> Addition:
        """What this checkpoint gives.

        Args:
            checkpoint: What is analysed.
            forgetting: What was lost; None without scores.
        """
