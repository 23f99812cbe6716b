"""The subnetwork of each language, by any method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from subnet._tables import MAIN_RUN
from subnet.errors import InputError
from subnet.subnetwork.settings import (
    METHODS,
    AttributionSettings,
    DataSettings,
    DirectionSettings,
    HeadPruningSettings,
    ImportanceSettings,
    LapeSettings,
    MagnitudeSettings,
    MethodSettings,
    RandomSettings,
    resolve_settings,
)

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint, Update
    from subnet.subnetwork.collection import Subnetworks
    from subnet.subnetwork.sources import Progress


def extract(
    source: Checkpoint | Update | Iterable[Update],
    *,
    method: str = "magnitude",
    density: float | None = None,
    data: Iterable[Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Subnetworks:
    """Find the subnetwork of each language.

    Each method has its settings, which are validated and recorded in every mask; what a method
    computes, and whose it is, stands with them:

    - `magnitude` (`MagnitudeSettings`): the weights that training changed most; looks at no data.
    - `fisher`, `taylor`, `wanda` (`FisherSettings`, `TaylorSettings`, `WandaSettings`): the weights
      of most squared gradient, |gradient × weight|, |weight| · ‖input‖.
    - `lape` (`LapeSettings`): the feed-forward neurons that fire for few languages.
    - `head-pruning` (`HeadPruningSettings`): the attention heads that are left when the least
      important were pruned, on held-out data.
    - `attribution` (`AttributionSettings`): the attention heads or FFN neurons to which captum
      attributes most of the loss.
    - `directions` (`DirectionSettings`): the singular directions of ΔW that a language uses alone
      or shares; looks at no data.
    - `random` (`RandomSettings`): weights drawn at random, the control; looks at no data.

    Weights are selected exactly: k = round(density · N), half to even; ties go to the earlier
    parameter name, then index. A weight whose value is exactly zero is never selected: where that
    leaves fewer than k, `settings["zeros_left_out"]` says how many are missing. Methods that look
    at data run each language's own model on its examples, in `eval()` mode, and never on test
    examples.

    Args:
        source: A checkpoint (its `updates`, else its `steps`); by magnitude also one update, or
            several.
        method: One of those above.
        density: Share to select, 0 < density ≤ 1; each method has its own default.
        data: Examples to look at, by default the checkpoint's `train.jsonl` (for head pruning its
            `validation.jsonl`, where there is one). Each has a `language` and, by the model's
            task, `text` and `label`; `tokens` and `tags`; `text` (or `source` and `target`, of
            which the target is predicted) for causal models; `text` and `target` for
            sequence-to-sequence ones. Or `input_ids` and `labels` as the model takes them.
        progress: Called before each language's model with its name, how many are done, and how
            many there are; by methods that look at data.
        **settings: Further settings of the method.

    Returns:
        One subnetwork per update, in their order; by magnitude with the signs of ΔW.

    Raises:
        InputError: A setting is out of range or does not belong to the method, what is ranked holds
            NaN or infinity (names the tensor) or is zero everywhere, nothing would be selected, or
            an example is not usable or a test example.
        MissingInputError: There is no update, or no example of a language.

    Example:
        >>> subnets = extract(open_checkpoint("checkpoint/"), density=0.05)  # doctest: +SKIP
        >>> subnets["de"].density  # doctest: +SKIP
        0.05
    """
    given = settings if density is None else {"density": density, **settings}
    return _extract(source, resolve_settings(method, given), data, progress)


def extract_halves(
    checkpoint: Checkpoint,
    *,
    method: str,
    density: float | None = None,
    data: Iterable[Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> tuple[Subnetworks, Subnetworks]:
    """Find the subnetworks twice, on two disjoint halves of each language's examples.

    How much the two masks of one language share is what the draw of examples allows: the ceiling of
    what two languages can share. The halves are drawn by `seed`; texts that stand twice go into one
    half. `n_examples` applies to each half, so with twice as many examples in the data the masks
    rest on as many as that of `extract`.

    Args:
        checkpoint: As of `extract`, also for the other arguments.
        method: One that looks at data.
        density: Share to select.
        data: Examples.
        progress: See `extract`; the halves are counted apart.
        **settings: Further settings of the method.

    Returns:
        Masks of the first and of the second half, of the runs `half-1` and `half-2` (of a further
        run, `<run>-half-1` and `<run>-half-2`), with `settings["half"]`.

    Raises:
        InputError: As `extract`; the method looks at no data; or a language has less than two
            different examples.
        MissingInputError: As `extract`.

    Example:
        >>> one, other = extract_halves(checkpoint, method="fisher")  # doctest: +SKIP
        >>> measure_overlap([*one, *other]).replicates  # doctest: +SKIP
    """
    from subnet.inputs import Half
    from subnet.subnetwork.collection import Subnetworks

    given = settings if density is None else {"density": density, **settings}
    resolved = resolve_settings(method, given)
    if not isinstance(resolved, DataSettings):
        raise InputError(
            f"halves are asked for by the method {method!r}, which looks at no data",
            expected=" or ".join(
                repr(name) for name, kind in METHODS.items() if issubclass(kind, DataSettings)
            ),
        )
    examples = None if data is None else list(data)
    found = []
    for number in (1, 2):
        half = Half(examples, number, resolved.seed)
        masks = _extract(checkpoint, resolved, half, progress)
        found.append(Subnetworks(replace(mask, run=_run(mask.run, number)) for mask in masks))
    return found[0], found[1]


def _run(run: str, half: int) -> str:
    return f"half-{half}" if run == MAIN_RUN else f"{run}-half-{half}"


def _extract(
    source: Any, settings: MethodSettings, data: Any, progress: Progress | None
) -> Subnetworks:
    """Only the method's own module is loaded."""
    if isinstance(settings, MagnitudeSettings):
        from subnet.subnetwork.magnitude import extract_by_magnitude

        _refuse_data(settings, data)
        return extract_by_magnitude(source, settings)
    if isinstance(settings, ImportanceSettings):
        from subnet.subnetwork.importance import extract_by_importance

        return extract_by_importance(source, settings, data, progress=progress)
    if isinstance(settings, LapeSettings):
        from subnet.subnetwork.lape import extract_by_activation

        return extract_by_activation(source, settings, data, progress=progress)
    if isinstance(settings, RandomSettings):
        from subnet.subnetwork.random_masks import extract_at_random

        _refuse_data(settings, data)
        return extract_at_random(source, settings)
    if isinstance(settings, HeadPruningSettings):
        from subnet.subnetwork.head_pruning import extract_by_head_pruning

        return extract_by_head_pruning(source, settings, data, progress=progress)
    if isinstance(settings, AttributionSettings):
        from subnet.subnetwork.attribution import extract_by_attribution

        return extract_by_attribution(source, settings, data, progress=progress)
    if isinstance(settings, DirectionSettings):
        from subnet.subnetwork.directions import extract_directions

        _refuse_data(settings, data)
        return extract_directions(source, settings)
    raise TypeError(f"{type(settings).__name__} has no extractor")


def _refuse_data(settings: MethodSettings, data: Any) -> None:
    if data is not None:
        raise InputError(
            f"data is given for the method {settings.method!r}",
            fix="it takes what training changed, and looks at no data",
        )
