"""Hidden states of tokens made into one row per sentence or word; padding never counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: How a sentence becomes one row; `"token"`: one row per word.
POOLS = ("mean", "first", "last", "token")
#: How the tokens of a word become one row.
SUBTOKENS = ("first", "mean", "last")


def pool_sentences(hidden: Tensor, counted: Tensor, pool: str) -> Tensor:
    """[n, t, d] to [n, d].

    Args:
        hidden: Hidden states.
        counted: [n, t] booleans, at least one true in each row. What is not counted may hold
            anything, NaN too.
        pool: `"mean"`, or the `"first"` or `"last"` counted token.
    """
    wide = _wide(hidden)
    if pool == "mean":
        total = wide.masked_fill(~counted[..., None], 0).sum(dim=1)
        return total / counted.sum(dim=1, keepdim=True).to(total.dtype)
    order = torch.arange(counted.shape[1], device=counted.device)
    if pool == "first":
        places = order.where(counted, counted.shape[1]).amin(dim=1)
    else:
        places = order.where(counted, -1).amax(dim=1)
    return wide[torch.arange(len(wide), device=wide.device), places]


def pool_words(hidden: Tensor, words: Sequence[Sequence[Sequence[int]]], subtokens: str) -> Tensor:
    """[n, t, d] to [w, d], w words of all sentences, in order.

    Args:
        hidden: Hidden states.
        words: Of each sentence, the positions of the tokens of each word.
        subtokens: `"first"` or `"last"` token of a word, or their `"mean"`.
    """
    wide = _wide(hidden)
    rows, places, owners = [], [], []
    n_words = 0
    for row, sentence in enumerate(words):
        for tokens in sentence:
            chosen = {"first": tokens[:1], "last": tokens[-1:], "mean": tokens}[subtokens]
            rows += [row] * len(chosen)
            places += list(chosen)
            owners += [n_words] * len(chosen)
            n_words += 1
    picked = wide[rows, places]
    owner = torch.tensor(owners, device=wide.device)
    total = wide.new_zeros(n_words, wide.shape[-1]).index_add_(0, owner, picked)
    return total / torch.bincount(owner, minlength=n_words)[:, None].to(total.dtype)


def _wide(hidden: Tensor) -> Tensor:
    """Single precision at least: sums of half precision lose digits."""
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))
