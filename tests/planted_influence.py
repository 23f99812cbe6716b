"""A small multilingual world whose influential examples are known, and models trained in it.

An example is a language's own mark and words, which are the same in every language; the first word
tells the label. Some training labels are wrong. For every test example there is one of another
language in the training data that says the same: either a duplicate, as names are that have no
mark, or a translation, which differs in its mark.

Run by itself it prints how well methods and baselines find both.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from subnet.influence import attribute, self_influence
from subnet.influence.baselines import embedding_similarity, random_scores
from subnet.influence.planting import mislabelled_auroc, plant_mislabelled

N_LABELS, N_WORDS, LENGTH = 3, 24, 8
_MARKS = {"de": 1, "hi": 2, "sw": 3}
_NO_MARK, _FIRST_WORD = 0, 4


@dataclass(frozen=True, eq=False)
class World:
    """Examples, which labels are wrong, who says the same, a trained model and its path.

    Attributes:
        train, test: Examples with `input_ids`, `labels`, `language`.
        mislabelled: [n_train].
        same: [n_test] number of the training example that says the same as each test example.
        model: After training.
        checkpoints: State after each third of the training, with the learning rates summed.
    """

    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    mislabelled: NDArray[np.bool_]
    same: NDArray[np.intp]
    model: Any
    checkpoints: list[tuple[dict[str, Tensor], float]]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = torch.tensor([row["input_ids"] for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class BagOfWords(torch.nn.Module):
    """Logistic regression on counts of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = torch.nn.Linear(_FIRST_WORD + N_WORDS, N_LABELS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        counts = torch.zeros(len(input_ids), _FIRST_WORD + N_WORDS)
        return self.classifier(counts.scatter_add(1, input_ids, attention_mask.float()))


def losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of each example, of either model."""
    found = model(batch["input_ids"], attention_mask=batch["attention_mask"])
    logits = found if isinstance(found, Tensor) else found.logits
    return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=_FIRST_WORD + N_WORDS, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=16,
        num_labels=N_LABELS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


@functools.cache
def train_world(
    seed: int,
    kind: Literal["duplicates", "translations"] = "duplicates",
    maker: Callable[[], Any] = bert,
    *,
    n_train: int = 300,
    n_test: int = 20,
    steps: int = 150,
) -> World:
    """Make the data and train a model on them."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, N_WORDS, (n_train, LENGTH))
    labels = words[:, 0] % N_LABELS
    languages = rng.choice(list(_MARKS), n_train)
    paired = rng.permutation(n_train)[:n_test]
    given, wrong = plant_mislabelled(labels, share=0.1, n_labels=N_LABELS, seed=seed)
    given[paired], wrong[paired] = labels[paired], False
    marks = np.array([_MARKS[name] for name in languages])
    others = {"de": "hi", "hi": "sw", "sw": "de"}
    elsewhere = [others[languages[i]] for i in paired]
    marked = np.array([_MARKS[name] for name in elsewhere])
    if kind == "duplicates":
        marks[paired] = marked[:] = _NO_MARK
    train = [_example(*each) for each in zip(marks, words, given, languages, strict=True)]
    test = [
        _example(*e) for e in zip(marked, words[paired], labels[paired], elsewhere, strict=True)
    ]
    torch.manual_seed(seed)
    model = maker()
    rate, checkpoints = 3e-3, []
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        losses(model, collate([train[i] for i in rng.integers(n_train, size=32)])).mean().backward()
        optimizer.step()
        if (step + 1) % (steps // 3) == 0:
            state = {name: value.clone() for name, value in model.state_dict().items()}
            checkpoints.append((state, rate * steps / 3))
    return World(train, test, wrong, paired, model.eval(), checkpoints)


def self_influence_of(world: World) -> NDArray[np.float64]:
    """Squared gradient norms over the checkpoints, weighted by their learning rates."""
    return self_influence(
        world.model, world.train, checkpoints=world.checkpoints, collate_fn=collate,
        batch_size=60, loss_fn=losses,
    )  # fmt: skip


def ranks_of_the_same(world: World, method: str) -> NDArray[np.intp]:
    """Rank [n_test], from 0, of the training example that says the same."""
    found = attribute(
        world.model, world.train, world.test, method=method, checkpoints=world.checkpoints,
        collate_fn=collate, batch_size=60, loss_fn=losses,
    )  # fmt: skip
    return ranks_in(found.scores, world)


def ranks_in(scores: NDArray[np.float64], world: World) -> NDArray[np.intp]:
    own = scores[np.arange(len(world.test)), world.same]
    return np.asarray((scores > own[:, None]).sum(axis=1))


def _example(mark: int, words: NDArray[Any], label: int, language: str) -> dict[str, Any]:
    ids = [int(mark), *(_FIRST_WORD + words).tolist()]
    return {"input_ids": ids, "labels": int(label), "language": str(language)}


def main() -> None:
    """Print what is found over three seeds."""
    for seed in range(3):
        world = train_world(seed)
        found = mislabelled_auroc(self_influence_of(world), world.mislabelled)
        print(f"seed {seed}: AUROC of self-influence {found.auroc:.3f} "  # noqa: T201
              f"[{found.ci_low:.3f}, {found.ci_high:.3f}]")  # fmt: skip
        for kind, maker in itertools.product(("duplicates", "translations"), (bert, BagOfWords)):
            world = train_world(seed, kind, maker)
            ranks = {name: ranks_of_the_same(world, name) for name in ("tracin", "cosine")}
            if maker is bert:
                scored = embedding_similarity(
                    world.model, world.train, world.test, collate, layer=2
                )
                ranks["embedding"] = ranks_in(scored.scores, world)
            chance = random_scores(len(world.test), len(world.train), seed=seed).scores
            ranks["random"] = ranks_in(chance, world)
            first = ", ".join(f"{name} {np.mean(r == 0):.2f}" for name, r in ranks.items())
            print(f"  {kind} first, {maker.__name__}: {first}")  # noqa: T201


if __name__ == "__main__":
    main()
