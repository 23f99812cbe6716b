"""Subnetworks from what training changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError, MissingInputError, NotComparableError
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.selection import Selection, top_k

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint, Update

#: How weights can be ranked.
METHODS = ("magnitude", "fisher", "taylor", "wanda")

#: How the order among equal magnitudes is settled, as written into every mask.
TIES = "parameter name (sorted), then row-major index"


@dataclass(frozen=True)
class MagnitudeSettings:
    """What a mask by magnitude of ΔW depends on.

    Attributes:
        density: Share of the weights to select, 0 < density ≤ 1. The default, 5 %, is of the size
            that lottery-ticket sparse fine-tuning selects (Ansell et al. 2022).
        scope: `"global"` ranks all weights of the model together, so modules differ in density;
            `"module"` selects the same share of each parameter.
        parameters: `"linear"`: the weight matrices of layers; `"all"`: also what else was trained
            (biases, embeddings, saved heads) as far as the base has it.
    """

    density: float = 0.05
    scope: str = "global"
    parameters: str = "linear"

    def __post_init__(self) -> None:
        check_density(self.density)
        one_of("scope", self.scope, ("global", "module"))
        one_of("parameters", self.parameters, ("linear", "all"))


def extract(
    source: Checkpoint | Update | Iterable[Update],
    *,
    method: str = "magnitude",
    density: float = 0.05,
    scope: str = "global",
    parameters: str = "linear",
    data: Iterable[Mapping[str, Any]] | None = None,
    labels: str | None = None,
    model: str | None = None,
    n_examples: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Subnetworks:
    """Find the subnetwork of each language.

    `magnitude`: the k weights of largest |ΔW| (for full fine-tuning |θ − θ₀|, the selection of
    LT-SFT; Ansell et al. 2022, ACL 2022.acl-long.125), with k = round(density · N), half to even,
    over all N weights or per parameter. Exact: ties go to the earlier parameter name, then index.
    A weight that training left exactly as it was is never selected; where fewer than k changed, the
    mask holds those that did, and `settings["unchanged_left_out"]` says how many are missing.

    ΔW is formed for one parameter at a time, three times over. Memory is the packed bits and, of
    LoRA, the largest ΔW; of fine-tuned weights, a block of rows.

    `fisher`, `taylor` and `wanda` run a language's model on its examples, never on test examples:
    the mean of squared gradients, the mean of |gradient × weight|, and |weight| · ‖input‖. What
    each computes, and whose it is, stands with `FisherSettings`, `TaylorSettings` and
    `WandaSettings`. Their masks are over the same weights as those by magnitude.

    Args:
        source: A checkpoint (its `updates`, else its `steps`); by magnitude also one update, or
            several.
        method: `"magnitude"`, `"fisher"`, `"taylor"` or `"wanda"`.
        density: Share of the weights to select, 0 < density ≤ 1.
        scope: `"global"`, `"module"` or (not by magnitude) `"row"`; see the settings.
        parameters: `"linear"`, or by magnitude `"all"`; see `MagnitudeSettings`.
        data: Examples by which weights are ranked, by default the checkpoint's `train.jsonl`. Each
            has a `language` and a `text` with its `label` (`target` for sequence-to-sequence
            models, nothing for causal ones), or `input_ids` and `labels` as the model takes them.
        labels: `fisher` only: `"true"` (default) or `"model"`, the expectation over the model's own
            label distribution.
        model: `"trained"` (default) or `"base"`; see `ImportanceSettings`.
        n_examples: Most examples of a language, 1024 by default.
        batch_size: Examples per pass, 16 by default.
        seed: Seed of the draw of examples, 0 by default.

    Returns:
        One subnetwork per update, in their order; by magnitude with the signs of ΔW.

    Raises:
        InputError: A setting is out of range or does not belong to the method, what weights are
            ranked by holds NaN or infinity (names the tensor) or is zero everywhere, the density
            selects no weight at all, or an example is not usable or a test example.
        MissingInputError: There is no update, or no example of a language.

    Example:
        >>> subnets = extract(open_checkpoint("checkpoint/"), density=0.05)  # doctest: +SKIP
        >>> subnets["de"].density  # doctest: +SKIP
        0.05
    """
    one_of("method", method, METHODS)
    given = {
        "labels": labels, "model": model, "n_examples": n_examples, "batch_size": batch_size,
        "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if method != "magnitude":
        return _by_importance(source, method, density, scope, parameters, data, given)
    foreign = [*given, *(["data"] if data is not None else [])]
    if foreign:
        raise InputError(
            f"{foreign[0]} is given for the method 'magnitude'",
            expected="density, scope and parameters",
            fix="it takes what training changed and looks at no data",
        )
    settings = MagnitudeSettings(density, scope, parameters)
    updates = updates_of(source)
    refuse_repeats(updates)
    return Subnetworks(_by_magnitude(update, settings) for update in updates)


def _by_importance(
    source: Checkpoint | Update | Iterable[Update],
    method: str,
    density: float,
    scope: str,
    parameters: str,
    data: Iterable[Mapping[str, Any]] | None,
    given: Mapping[str, Any],
) -> Subnetworks:
    from subnet.checkpoint import Checkpoint
    from subnet.subnetwork.importance import SETTINGS, extract_by_importance

    kind = SETTINGS[method]
    known = [entry.name for entry in fields(kind)]
    foreign = next((name for name in given if name not in known), None)
    if foreign is not None:
        raise InputError(
            f"{foreign} is given for the method {method!r}", expected=f"some of {', '.join(known)}"
        )
    if parameters != "linear":
        raise InputError(
            f"parameters is {parameters!r} for the method {method!r}", expected="'linear'"
        )
    settings = kind(density=density, scope=scope, **given)
    if not isinstance(source, Checkpoint):
        raise InputError(
            f"the method {method!r} is given {type(source).__name__}",
            expected="a checkpoint, which has the model and the examples",
            fix="open_checkpoint(path)",
        )
    return extract_by_importance(source, settings, data)


def _by_magnitude(update: Update, settings: MagnitudeSettings) -> Subnetwork:
    shapes, left_out = _parameters(update, settings.parameters)
    size = sum(math.prod(shape) for shape in shapes.values())
    language = update.language.label
    if settings.scope == "global":
        wanted = round(settings.density * size)
        found = [_select(update, shapes, wanted)]
    else:
        ks = {name: round(settings.density * math.prod(shape)) for name, shape in shapes.items()}
        wanted = sum(ks.values())
        found = [_select(update, {name: shapes[name]}, ks[name]) for name in shapes]
    if wanted == 0:
        raise InputError(
            f"density {settings.density:g} selects none of the {size} weights of {language}",
            path=update.source,
            fix="take a larger one",
        )
    if sum(selection.n_zero for selection in found) == size:
        raise InputError(
            f"the update of {language} is zero everywhere",
            path=update.source,
            expected="weights that training changed",
            fix="was the adapter saved before training?",
        )
    count = sum(selection.count for selection in found)
    recorded: dict[str, Any] = {
        **asdict(settings),
        "update": update.kind,
        "ties": TIES,
        "k": wanted,
        "unchanged_left_out": wanted - count,
    }
    if settings.scope == "global":
        recorded["threshold"] = found[0].threshold
    if left_out:
        recorded["parameters_left_out"] = left_out
    if hasattr(update, "stage"):
        recorded["stage"] = update.stage
    return Subnetwork(
        language=language,
        bits={name: bits for selection in found for name, bits in selection.bits.items()},
        shapes=shapes,
        base=update.base,
        run=update.run,
        signs={name: signs for selection in found for name, signs in selection.signs.items()},
        method="magnitude",
        settings=recorded,
    )


def _select(update: Update, shapes: Mapping[str, tuple[int, ...]], k: int) -> Selection:
    return top_k(update.blocks, shapes, k, skip_zeros=True, source=update.source)


def _parameters(update: Update, which: str) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """(name to shape, what was trained but has no counterpart in the base to differ from)."""
    shapes = {name: tuple(update.shapes[name]) for name in sorted(update.shapes)}
    left_out: list[str] = []
    if which == "all":
        for name in update.apart:
            try:
                shapes[name] = tuple(update.dense(name).shape)
            except (MissingInputError, NotComparableError):
                left_out.append(name)
    return dict(sorted(shapes.items())), sorted(left_out)


def updates_of(source: Checkpoint | Update | Iterable[Update]) -> Sequence[Update]:
    """The updates that a source stands for, at least one."""
    from subnet.checkpoint import Checkpoint, Update

    if isinstance(source, Checkpoint):
        updates: Sequence[Update] = source.updates or source.steps
        if not updates:
            raise MissingInputError(
                "holds no update to extract a subnetwork from",
                path=source.path,
                expected="adapters/<language>/ or stages/<number>-<language>/ with a PEFT adapter "
                "or fine-tuned weights",
            )
        return updates
    updates = [source] if isinstance(source, Update) else list(source)
    if not updates:
        raise MissingInputError("there is no update to extract a subnetwork from")
    return updates


def refuse_repeats(updates: Sequence[Update]) -> None:
    """Refuse before the long work what `Subnetworks` would refuse after it."""
    seen: set[tuple[str, str]] = set()
    for update in updates:
        key = (update.language.label, update.run)
        if key in seen:
            raise InputError(
                f"{key[0]} has two updates in the run {key[1]}",
                path=update.source,
                expected="one per language and run",
                fix="extract them apart",
            )
        seen.add(key)


def check_density(density: object) -> None:
    """Refuse what is no share of the weights."""
    if isinstance(density, bool) or not isinstance(density, int | float):
        raise InputError(f"density is {density!r}", expected="a number, 0 < density <= 1")
    if not 0 < density <= 1:
        raise InputError(
            f"density is {density}", expected="0 < density <= 1", fix="0.05 selects 5 %"
        )


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse a setting that is none of its known values."""
    if value not in known:
        raise InputError(f"{name} is {value!r}", expected=" or ".join(map(repr, known)))
