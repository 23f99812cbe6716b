"""Probing as a part of `subnet.analyze`: when it is affordable, and what it passes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from subnet.analysis import Addition
from subnet.errors import SubnetError
from subnet.report import Missing
from subnet_probes._checkpoint_models import LIMIT, n_weights, plan_models
from subnet_probes._probe_cost import LIMIT as PROBE_LIMIT
from subnet_probes._probe_cost import cost_of_one
from subnet_probes.checkpoint_probing import probe_checkpoint
from subnet_probes.checkpoint_probing_settings import CheckpointProbingSettings
from subnet_probes.probe_settings import ProbeSettings
from subnet_probes.report import report_sections
from subnet_probes.report_numbers import BIBTEX, METHODS, key_numbers, summary

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint
    from subnet.forgetting import Forgetting
    from subnet_probes.checkpoint_probing_result import CheckpointProbing

#: Called with the name of the present step, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

#: Operations of probes that are made unasked: about a minute's, where theirs are ten minutes'.
_PROBE_LIMIT = PROBE_LIMIT / 10
#: Orders that show chance: enough for its mean, not for p-values, which `subnet probe` has.
_SHUFFLES = 5
#: Folds of a probe that is made unasked.
_FOLDS = 3


@dataclass(frozen=True)
class ProbeExtension:
    """What `subnet analyze` hands to `subnet.analyze(..., extensions=[...])`.

    Without being asked it probes where that takes about a minute: all that `probe_checkpoint` does,
    with fewer folds and shuffles and without codelengths. Where it is asked for, it probes whatever
    it takes.

    Attributes:
        wanted: True to probe whatever it costs, False not to, None where it is cheap.
        seed: Seed of everything random.
        progress: Called with the name of the step, how much is done and how much there is.
    """

    wanted: bool | None = None
    seed: int = 0
    progress: Progress | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Name of the step, and the key in `summary.json` and `run.json`."""
        return "probes"

    def __call__(self, checkpoint: Checkpoint, forgetting: Forgetting | None) -> Addition:
        """Probe a checkpoint and write the sections.

        Raises:
            SubnetError: It was asked for and is not possible.
        """
        if self.wanted is False:
            return Addition()
        settings = CheckpointProbingSettings(
            probe=ProbeSettings(mdl=False, folds=_FOLDS), n_shuffles=_SHUFFLES, seed=self.seed
        )
        if self.wanted:
            settings = replace(settings, probe=None)
        try:
            minutes = probing_minutes(checkpoint, settings) if self.wanted is None else 0.0
            if minutes > 1:
                return _missing(
                    f"probing takes about {math.ceil(minutes)} minutes", "ask for it with --probes"
                )
            probing = probe_checkpoint(checkpoint, settings=settings, progress=self.progress)
        except SubnetError as error:
            if self.wanted:
                raise
            wants = f"add {error.expected}" if error.expected else "see the data"
            return _missing(
                f"representations could not be probed ({error.found})", error.fix or wants
            )
        return addition(probing, forgetting)


def addition(probing: CheckpointProbing, forgetting: Forgetting | None = None) -> Addition:
    """Everything that a probed checkpoint adds to an analysis.

    Args:
        probing: From `probe_checkpoint`.
        forgetting: What was lost, to stand beside it.
    """
    numbers = summary(probing)
    named = {"similarity": probing.similarity, "transfer": probing.transfer}
    return Addition(
        sections=report_sections(probing, forgetting),
        tables=probing.tables(),
        representations={
            name: frame
            for name, frame in named.items()
            if frame is not None and (frame["stage"].astype(float) == 0).any()
        },
        summary=numbers,
        key_numbers=key_numbers(numbers),
        missing=[replace(entry, analysis=f"probes: {entry.analysis}") for entry in probing.missing],
        warnings=probing.warnings,
        methods=METHODS,
        bibtex=BIBTEX,
        provenance=probing.provenance,
        inputs=probing.inputs,
    )


def probing_minutes(checkpoint: Checkpoint, settings: CheckpointProbingSettings) -> float:
    """About how long probing a checkpoint takes, judged by counts; nothing is loaded.

    Forward passes and probes are each counted in the minutes of their limits, and added.

    Raises:
        SubnetError: There is no model, or there are no examples.
    """
    counts: dict[str, int] = {}
    labels = set()
    for example in checkpoint.examples(settings.split):
        counts[example["language"]] = counts.get(example["language"], 0) + 1
        labels.add(example.get("label"))
    most = settings.examples or max(counts.values(), default=0)
    counts = {language: min(count, most) for language, count in counts.items()}
    points = plan_models(checkpoint, settings, counts).points
    every = sum(counts.values())
    rows = sum(every if point.whole else counts[point.trained] for point in points)
    width, layers = _shape(checkpoint)
    probe = settings.probe or ProbeSettings()
    n, k = max(counts.values(), default=0), len(labels - {None})
    ends = sum(point.end for point in points)
    of_labels = sum(len(counts) if point.end else 1 for point in points)
    # A transfer is a probe per language and end, of a middle layer and the last.
    cost = layers * of_labels * cost_of_one(n, width, k, probe)
    cost += layers * ends * cost_of_one(every, width, len(counts), probe)
    cost += 2 * ends * len(counts) * cost_of_one(n, width, k, probe)
    return rows * n_weights(checkpoint) / LIMIT + cost / _PROBE_LIMIT


def _shape(checkpoint: Checkpoint) -> tuple[int, int]:
    """(width, number of layers with the embeddings) as the base's configuration says."""
    from transformers import AutoConfig

    folder = next((entry.path for entry in checkpoint.entries if entry.kind == "base"), None)
    if folder is None or not (folder / "config.json").is_file():
        return 768, 13
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    text = config.get_text_config()
    return int(getattr(text, "hidden_size", 768)), int(getattr(text, "num_hidden_layers", 12)) + 1


def _missing(reason: str, fix: str) -> Addition:
    return Addition(missing=[Missing("probes", reason, fix)])
