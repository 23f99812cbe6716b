"""What each row of representations is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError
from subnet_probes._encoding import Encoded, Example, name_of
from subnet_probes.representation import COLUMNS, WORD_COLUMNS, frame_of

if TYPE_CHECKING:
    import pandas as pd


def items_of(
    examples: Sequence[Example], rows: Sequence[Encoded], *, by_word: bool
) -> pd.DataFrame:
    """What each row is of.

    Raises:
        InputError: An example has not one tag per word, or no word has a token.
    """
    known: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    words: dict[str, list[Any]] = {name: [] for name in WORD_COLUMNS}
    for number, (example, row) in enumerate(zip(examples, rows, strict=True)):
        own = {name: example.get(name) for name in COLUMNS}
        if own["id"] is None:
            own["id"] = number
        own["label"] = _plain(example.get("label", example.get("labels")))
        for values, name in ((known[name], name) for name in COLUMNS):
            values.extend([own[name]] * (len(row.numbers) if by_word else 1))
        if not by_word:
            continue
        tokens, tags = (_listed(example, name) for name in ("tokens", "tags"))
        if tags and len(tags) != len(tokens):
            raise InputError(
                f"{name_of(example, number)} has {len(tokens)} tokens and {len(tags)} tags",
                expected="one tag per token",
            )
        for position in row.numbers:
            words["sentence"].append(number)
            words["position"].append(position)
            words["word"].append(tokens[position] if position < len(tokens) else None)
            words["tag"].append(tags[position] if tags else None)
    n = len(known["id"])
    if not n:
        raise InputError("no word has a token", expected="'tokens' that the tokenizer knows")
    return frame_of(known | (words if by_word else {}), n)


def _plain(label: Any) -> Any:
    """A label of the example; of labels per token there is none."""
    if hasattr(label, "item") and not getattr(label, "shape", ()):
        label = label.item()  # a number of NumPy's or torch's
    return label if isinstance(label, str | int | float) else None


def _listed(example: Example, name: str) -> Sequence[Any]:
    value = example.get(name)
    return [] if value is None or isinstance(value, str) else list(value)


def n_words_of(example: Example) -> int:
    """Number of words of an example."""
    tokens = _listed(example, "tokens")
    return len(tokens) or len({w for w in _listed(example, "word_ids") if w is not None})
