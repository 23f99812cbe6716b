"""Influence the slow, obvious way: one backward pass per example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import model_makers as makers
from subnet.model import example_losses

ABOUT = ("id", "language", "concept", "stage")


def gradients(
    model: Any,
    rows: Sequence[dict[str, Any]],
    collate: Callable[..., Any],
    names: Sequence[str],
    loss_fn: Callable[..., Any] = example_losses,
) -> dict[str, torch.Tensor]:
    """Name to [n, *shape]: gradient of each example, alone in its batch."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in found)
    for row in rows:
        batch = collate([{k: v for k, v in row.items() if k not in ABOUT}])
        parameters = [model.get_parameter(name) for name in names]
        loss = loss_fn(model, batch).sum()
        for name, value in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            found[name].append(value)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(before[name])
    return {name: torch.stack(values) for name, values in found.items()}


def flat(blocks: dict[str, torch.Tensor]) -> torch.Tensor:
    """[n, P]."""
    return torch.cat([block.flatten(1) for block in blocks.values()], dim=1)


def adapted(name: str) -> Any:
    """The model as its maker gives it, of a PEFT model only the factors taking gradients."""
    model = makers.make(name)
    if hasattr(model, "peft_config"):
        for path, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in path)
    return model


def rows_of(name: str, lengths: Sequence[int], seed: int, languages: str = "") -> list[Any]:
    """Examples with an id and, where given, a language from each letter in turn."""
    rows = makers.examples(name, tuple(lengths), seed)
    for i, row in enumerate(rows):
        row["id"] = f"{seed}-{i}"
        if languages:
            row["language"] = languages[i % len(languages)]
    return rows


def collator(name: str, **options: Any) -> Callable[..., Any]:
    """Of `model_makers`, for rows that say something of themselves."""
    return makers.collate_for(name, **options)


TRAIN, TEST = (6, 3, 4, 6, 2, 5, 3), (4, 6, 3, 5)
TASKS = ("bert", "bert_tagger", "gpt2", "mt5")


def data(name):
    return rows_of(name, TRAIN, 1, "ab"), rows_of(name, TEST, 2, "ba")


def oracle_sides(model, name, parameters):
    train, test = data(name)
    collate = makers.collate_for(name)
    return tuple(
        flat(gradients(model, rows, collate, parameters)).double().numpy() for rows in (train, test)
    )


def cosine_of(g, q):
    return (q / np.linalg.norm(q, axis=1)[:, None]) @ (g / np.linalg.norm(g, axis=1)[:, None]).T


def mean_by_language(scores, train, test, found):
    of_train = np.array([row["language"] for row in train])
    of_test = np.array([row["language"] for row in test])
    return [
        [scores[np.ix_(of_test == a, of_train == b)].mean() for b in found.train["language"]]
        for a in found.test["language"]
    ]


def joined(batches):
    """Batches of blocks as one."""
    batches = list(batches)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def products(queries, train, preconditioner=None, *, cosine=False):
    """[m, n]: of (preconditioned) blocks of queries with those of training examples."""
    left, right = joined(queries), joined(train)
    left = left if preconditioner is None else preconditioner.precondition(left)
    h = torch.cat([left[name].flatten(1) for name in right], dim=1)
    g = flat(right).to(h)
    if cosine:
        h, g = (rows / rows.norm(dim=1, keepdim=True) for rows in (h, g))
    return h @ g.T
