"""Settings that a configuration asks for and that nothing would come of: they are refused.

What counts as asked for is a value that differs from the default, so that a configuration that was
written out whole, with every default, can be read again.

One part is left alone: how the steps of `[base]` are made where there are none. `steps = 0` says
itself that nothing of it is used, and turning it on and off must not take the recipe away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from subnet.errors import InputError
from subnet.training.config import TrainingConfig, TranslationConfig


@dataclass(frozen=True)
class _Rule:
    """Keys of one table that do nothing under a condition.

    Attributes:
        table: Its name.
        keys: Which of its keys.
        idle: Whether they do nothing.
        decides: The setting that makes it so, `table.key`.
        fix: A value of it with which they act, or other settings to take.
    """

    table: str
    keys: tuple[str, ...]
    idle: Callable[[TrainingConfig], bool]
    decides: str
    fix: str


_SIZES = ("layers", "width", "heads", "feed_forward", "initializer_range")
_EPISODES = ("support", "query", "inner_steps", "inner_rate")

#: In this order they are looked through; keys that one rule refuses are named together.
_RULES = (
    _Rule("data", ("path",), lambda c: c.data.source != "files", "data.source", "'files'"),
    _Rule(
        "data",
        ("kinds", "max_concepts_per_kind"),
        lambda c: c.data.source != "cldr",
        "data.source",
        "'cldr'",
    ),
    # Of translation, files that have no split of their own are split by these shares.
    _Rule(
        "data",
        ("test_share", "validation_share"),
        lambda c: c.data.source != "cldr" and c.task != "translation",
        "data.source",
        "'cldr'",
    ),
    _Rule("model", ("kind",), lambda c: c.task != "translation", "task", "'translation'"),
    _Rule("model", ("kind", *_SIZES), lambda c: bool(c.model.name), "model.name", "''"),
    _Rule(
        "model",
        ("initializer_range",),
        lambda c: c.task == "translation" and c.model.kind == "encoder-decoder",
        "model.kind",
        "'decoder'",
    ),
    _Rule(
        "base",
        ("method", *_EPISODES, "conflict_every", "conflict_examples"),
        lambda c: not c.base.steps,
        "base.steps",
        "1 or more",
    ),
    _Rule(
        "base",
        ("conflict_examples",),
        lambda c: not c.base.conflict_every,
        "base.conflict_every",
        "1 or more",
    ),
    _Rule(
        "training",
        ("conflict_examples",),
        lambda c: not c.training.conflict_every,
        "training.conflict_every",
        "1 or more",
    ),
    # It trains twice, from the same start: there is no one course of steps to compare along.
    _Rule(
        "training",
        ("conflict_every",),
        lambda c: c.subnetworks.method == "sparse",
        "subnetworks.method",
        "'none', 'static' or 'dynamic'",
    ),
    _Rule("base", _EPISODES, lambda c: c.base.method != "meta", "base.method", "'meta'"),
    _Rule(
        "base",
        ("batch_size",),
        lambda c: bool(c.base.steps) and c.base.method == "meta",
        "base.method",
        "base.support and base.query: a step has so many examples of each language",
    ),
    _Rule(
        "adaptation",
        ("rank", "alpha_over_rank", "targets", "dropout"),
        lambda c: c.adaptation.tuning != "lora",
        "adaptation.tuning",
        "'lora'",
    ),
    _Rule(
        "adaptation",
        ("partial", "shared_layers"),
        lambda c: "partial" not in c.adaptation.sharings,
        "adaptation.sharing",
        "'partial'",
    ),
    _Rule(
        "adaptation",
        ("shared_layers",),
        lambda c: c.adaptation.partial != "lower_layers",
        "adaptation.partial",
        "'lower_layers'",
    ),
    # A model that writes has no head beside it.
    _Rule(
        "adaptation",
        ("head",),
        lambda c: c.task == "translation",
        "task",
        "'sequence-classification' or 'token-classification'",
    ),
    # Masks are of the stages: an adapter beside them is trained without, and is no second one.
    _Rule(
        "sequence",
        ("replicates",),
        lambda c: c.subnetworks.in_stages != "none" and set(c.adaptation.sharings) == {"none"},
        "subnetworks.method",
        "'none'",
    ),
    _Rule(
        "subnetworks",
        ("during",),
        lambda c: c.subnetworks.method not in ("static", "dynamic"),
        "subnetworks.method",
        "'static' or 'dynamic'",
    ),
    _Rule("subnetworks", ("during",), lambda c: not c.base.steps, "base.steps", "1 or more"),
    _Rule(
        "subnetworks",
        ("density",),
        lambda c: c.subnetworks.method not in ("dynamic", "sparse"),
        "subnetworks.method",
        "'dynamic' or 'sparse'",
    ),
    _Rule(
        "subnetworks",
        ("every", "score", "smoothing"),
        lambda c: c.subnetworks.method != "dynamic",
        "subnetworks.method",
        "'dynamic'",
    ),
    _Rule(
        "subnetworks",
        ("forward",),
        lambda c: c.subnetworks.method not in ("static", "dynamic"),
        "subnetworks.method",
        "'static' or 'dynamic'",
    ),
    _Rule(
        "translation",
        tuple(TranslationConfig.model_fields),
        lambda c: c.task != "translation",
        "task",
        "'translation'",
    ),
    _Rule(
        "translation",
        ("temperature",),
        lambda c: not c.translation.alignment,
        "translation.alignment",
        "true",
    ),
)


def check_settings_act(config: TrainingConfig) -> None:
    """Refuse values, other than the defaults, of settings that have no effect in this run.

    Raises:
        InputError: Says which, what makes them so, and what to do.
    """
    for rule in _RULES:
        if not rule.idle(config):
            continue
        part = getattr(config, rule.table)
        asked = {
            f"{rule.table}.{key}": getattr(part, key)
            for key in rule.keys
            if getattr(part, key) != type(part).model_fields[key].default
        }
        if not asked:
            continue
        given = " and ".join(f"{name} is {_shown(value)}" for name, value in asked.items())
        one = len(asked) == 1
        setting = config
        for name in rule.decides.split("."):
            setting = getattr(setting, name)
        remedy = (
            f"set {rule.fix}"
            if rule.fix.startswith(f"{rule.table}.")
            else f"let {rule.decides} be {rule.fix}"
        )
        raise InputError(
            f"{given}, which {'has' if one else 'have'} no effect: {rule.decides} is "
            f"{_shown(setting)}",
            fix=f"leave {'it' if one else 'them'} out, or {remedy}",
        )


def _shown(value: Any) -> str:
    """A value as TOML has it, but for the quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(list(value) if isinstance(value, tuple) else value)
