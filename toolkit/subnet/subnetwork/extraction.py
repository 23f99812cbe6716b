"""The subnetwork of each language, by any method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError
from subnet.subnetwork.settings import (
    ImportanceSettings,
    MagnitudeSettings,
    MethodSettings,
    resolve_settings,
)

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint, Update
    from subnet.subnetwork.collection import Subnetworks


def extract(
    source: Checkpoint | Update | Iterable[Update],
    *,
    method: str = "magnitude",
    density: float | None = None,
    data: Iterable[Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Subnetworks:
    """Find the subnetwork of each language.

    Each method has its settings, which are validated and recorded in every mask; what a method
    computes, and whose it is, stands with them:

    - `magnitude` (`MagnitudeSettings`): the weights that training changed most; looks at no data.
    - `fisher`, `taylor`, `wanda` (`FisherSettings`, `TaylorSettings`, `WandaSettings`): the weights
      of most squared gradient, |gradient × weight|, |weight| · ‖input‖.

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
        data: Examples to look at, by default the checkpoint's `train.jsonl`. Each has a `language`
            and a `text` with its `label` (`target` for sequence-to-sequence models, nothing for
            causal ones), or `input_ids` and `labels` as the model takes them.
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
    return _extract(source, resolve_settings(method, given), data)


def _extract(source: Any, settings: MethodSettings, data: Any) -> Subnetworks:
    """Only the method's own module is loaded."""
    if isinstance(settings, MagnitudeSettings):
        from subnet.subnetwork.magnitude import extract_by_magnitude

        _refuse_data(settings, data)
        return extract_by_magnitude(source, settings)
    if isinstance(settings, ImportanceSettings):
        from subnet.subnetwork.importance import extract_by_importance

        return extract_by_importance(source, settings, data)
    raise TypeError(f"{type(settings).__name__} has no extractor")


def _refuse_data(settings: MethodSettings, data: Any) -> None:
    if data is not None:
        raise InputError(
            f"data is given for the method {settings.method!r}",
            fix="it takes what training changed and looks at no data",
        )
