"""How a checkpoint is probed: which analyses, at which models and layers, on which examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from subnet.errors import InputError
from subnet_probes.probe_settings import ProbeSettings, check_jobs

#: What can be asked for, in the order in which it is computed.
ANALYSES = ("language", "labels", "tokens", "transfer", "similarity", "drift", "units")
#: Which stages of training are looked at, where they are not listed.
STAGES = ("auto", "all", "ends")
#: Files of examples.
SPLITS = ("test", "validation", "train")


@dataclass(frozen=True, kw_only=True)
class CheckpointProbingSettings:
    """How a checkpoint is probed.

    Attributes:
        analyses: Some of `language` (identity), `labels` (of sentences), `tokens` (labels of
            words), `transfer` (of label probes between languages), `similarity` (of languages on
            parallel examples), `drift` (from stage to stage), `units` (neurons and heads that tell
            languages apart, beside the checkpoint's masks of them).
        layers: As of `representations`: all by default.
        pair_layers: Layers of what is computed of pairs of languages, transfer and similarity. By
            default transfer is of a middle layer and the last, and similarity of all layers where
            that is affordable, else of the same two.
        pool: What a sentence's row is; as of `representations`.
        stages: Which stages of training: `"all"`; `"ends"`, the base and the last; numbers, 0 being
            the base; `"auto"`: all where that takes about a minute, else the ends and, of each
            language's own stage, its own examples.
        split: Which file of examples: `test`, `validation` or `train`.
        examples: Most examples of a language, of the same concepts in all; 0 for all.
        probe: Splits, baselines, codelengths. By default those of `ProbeSettings`; where they would
            take longer than about ten minutes, one held-out fold of at most 2000 items and no
            codelengths, of which a warning tells.
        measures: Measures of similarity, of `MEASURES`.
        n_shuffles: Random orders that show the chance level of similarity and drift.
        subnetwork: Whether labels are also probed on each language's model without its own
            subnetwork: True for the masks of the checkpoint, or a directory of masks, which then
            are those of `units`, too.
        store: A folder that hidden states are streamed to, and opened from where they are there.
        batch_size: Examples per forward pass.
        n_jobs: Processes that fit probes at a time, −1 for one per core. By default one, or one per
            core where the probes take one core more than about half a minute. No number depends
            on it.
        seed: Seed of everything random.

    Raises:
        InputError: A setting is out of range.
    """

    analyses: Sequence[str] = ANALYSES
    layers: str | int | Sequence[str | int] = "all"
    pair_layers: str | int | Sequence[str | int] | None = None
    pool: str = "mean"
    stages: str | Sequence[int] = "auto"
    split: str = "test"
    examples: int = 500
    probe: ProbeSettings | None = None
    measures: Sequence[str] = ("cka", "retrieval")
    n_shuffles: int = 20
    subnetwork: bool | str | Path = False
    store: str | Path | None = None
    batch_size: int = 32
    n_jobs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.analyses or isinstance(self.analyses, str):
            raise InputError(
                f"analyses is {self.analyses!r}", expected=f"some of {', '.join(ANALYSES)}"
            )
        pools = ("mean", "first", "last")
        for name, value, known in (
            *(("analysis", analysis, ANALYSES) for analysis in self.analyses),
            ("pool", self.pool, pools),
            ("split", self.split, SPLITS),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}", expected=f"one of {', '.join(known)}")
        for name, least in (("examples", 0), ("n_shuffles", 0), ("batch_size", 1), ("seed", 0)):
            number: Any = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise InputError(f"{name} is {number!r}", expected=f"{least} or more")
        check_jobs(self.n_jobs)
        listed = not isinstance(self.stages, str)
        if (not listed and self.stages not in STAGES) or (listed and not self.stages):
            raise InputError(
                f"stages is {self.stages!r}", expected="auto, all, ends, or numbers of stages"
            )

    def wants(self, *analyses: str) -> bool:
        """Whether any of these is asked for."""
        return any(analysis in self.analyses for analysis in analyses)

    def record(self) -> Mapping[str, Any]:
        """As plain types, without places on this machine."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("subnetwork", "store"):
            if isinstance(values[name], str | Path):
                values[name] = Path(values[name]).name
        values["probe"] = None if self.probe is None else asdict(self.probe)
        for name in ("analyses", "layers", "pair_layers", "stages", "measures"):
            plain = values[name] is None or isinstance(values[name], str | int)
            values[name] = values[name] if plain else list(values[name])
        return values
