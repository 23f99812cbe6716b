"""Held-out examples of every language, and what a model makes of each of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet.errors import InputError, MissingInputError
from subnet.inputs import Example, by_language, content, draw_alike
from subnet.validation._subjects import stated

if TYPE_CHECKING:
    from torch import nn

    from subnet.checkpoint import Checkpoint
    from subnet.subnetwork import Subnetwork


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Examples of several languages, those of one language together.

    Attributes:
        examples: The examples.
        source: File that they are from, None where they were given.
        warnings: What a reader must know about them.
    """

    examples: tuple[Example, ...]
    source: Path | None
    warnings: tuple[str, ...] = ()

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Labels, each once."""
        return tuple(dict.fromkeys(str(example["language"]) for example in self.examples))

    @cached_property
    def places(self) -> dict[str, NDArray[np.int64]]:
        """Language to the positions of its examples."""
        names = np.array([str(example["language"]) for example in self.examples])
        return {label: np.flatnonzero(names == label) for label in self.languages}

    def of(self, language: str) -> HeldOut | None:
        """The examples of one language; None where there are none."""
        places = self.places.get(language)
        if places is None:
            return None
        return HeldOut(tuple(self.examples[i] for i in places), self.source)

    @cached_property
    def concepts(self) -> tuple[str, ...] | None:
        """What each example says in its language; None unless all languages say the same things."""
        keys = [example.get("concept") for example in self.examples]
        if any(key is None for key in keys):
            return None
        names = [str(key) for key in keys]
        said = [[names[i] for i in places] for places in self.places.values()]
        alike = all(len(set(each)) == len(each) and set(each) == set(said[0]) for each in said)
        return tuple(names) if alike else None


def held_out(
    checkpoint: Checkpoint | None,
    data: Iterable[Example] | None,
    first: Sequence[str],
    n_examples: int,
    seed: int,
) -> HeldOut:
    """At most n examples of each language: the given ones, else those of `test.jsonl`.

    Which are drawn depends on the seed and on what the example says, not on the language, so that
    of parallel examples the same concepts are drawn in every language.

    Args:
        checkpoint: Where the test examples are; None for a live model.
        data: Examples with their `language`.
        first: Languages that stand first, in this order; the others follow as the data have them.
        n_examples: Most examples of a language.
        seed: Seed of the draw.

    Raises:
        MissingInputError: There are no examples.
        InputError: An example names no language.
    """
    source = None
    if data is None:
        source, data = _test_examples(checkpoint)
    parts = by_language(data, source)
    labels = [*(label for label in first if label in parts)]
    if not labels:
        raise MissingInputError(
            f"no example is of a language that has a mask ({', '.join(first)})",
            path=source,
            expected=f"examples of them beside those of {', '.join(sorted(parts))}"
            if parts
            else "examples",
        )
    labels += [label for label in parts if label not in labels]
    chosen = [draw_alike(parts[label], n_examples, seed) for label in labels]
    warnings = _seen_in_training(checkpoint, parts)
    return HeldOut(tuple(e for mine in chosen for e in mine), source, warnings)


def refuse_what_found_it(subnetwork: Subnetwork, examples: HeldOut) -> None:
    """Refuse examples that the mask itself was found on, as far as it says which those were.

    Raises:
        InputError: They are the same.
    """
    digest = stated(subnetwork, "examples_sha256")
    places = examples.places.get(subnetwork.language)
    if digest is None or places is None:
        return
    own = [examples.examples[i] for i in places]
    texts = (list(map(content, own)), sorted(map(content, own)))
    digests = {hashlib.sha256("\n".join(text).encode()).hexdigest() for text in texts}
    if digest in digests:
        raise InputError(
            f"the mask of {subnetwork.language} was found on these very {len(own)} examples",
            path=examples.source,
            expected="other examples than those that the search looked at",
        )


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model makes of each example.

    Attributes:
        loss: [n] in nats.
        correct: [n] share of the example's labels that are predicted; NaN for other tasks than
            classification.
    """

    loss: NDArray[np.float64]
    correct: NDArray[np.float64]


class Batches:
    """Examples as a model takes them: those of one length together, so that nothing is padded.

    Attributes:
        labelled: [n] whether an example has a label that a loss is taken of.
    """

    def __init__(
        self, examples: HeldOut, model: nn.Module, folders: Sequence[Path], batch_size: int
    ) -> None:
        from subnet.inputs.encoding import encode_examples, make_batches
        from subnet.model import find_task

        rows, _ = encode_examples(examples.examples, model, folders, examples.source)
        self.labelled = np.array([_has_label(row["labels"], find_task(model)) for row in rows])
        lengths = [(len(row["input_ids"]), _n_labels(row)) for row in rows]
        # The order in which batches are made of them; equal lengths stay in order.
        self._order = np.array(sorted(range(len(rows)), key=lengths.__getitem__), dtype=np.int64)
        self._batches, _ = make_batches(
            [rows[i] for i in self._order], model, folders, batch_size, examples.source
        )

    def score(self, model: nn.Module) -> Scores:
        """Run a model on all of them, in `eval()` mode and without gradients."""
        import torch

        from subnet.model import evaluation_mode, example_losses, find_task

        losses: list[NDArray[np.float64]] = []
        correct: list[NDArray[np.float64]] = []
        task = find_task(model)
        seen: list[Any] = []
        hook = model.register_forward_hook(lambda _, __, output: seen.append(output.logits))
        try:
            with evaluation_mode(model), torch.no_grad():
                for batch in self._batches:
                    losses.append(example_losses(model, batch).double().cpu().numpy())
                    correct.append(_correct(seen.pop(), batch["labels"], task, model))
        finally:
            hook.remove()
        back = np.argsort(self._order)
        return Scores(np.concatenate(losses)[back], np.concatenate(correct)[back])


def _has_label(labels: Any, task: str) -> bool:
    from subnet.model.evaluation import IGNORED

    wanted = np.atleast_1d(np.asarray(labels))
    if task == "causal-lm":
        wanted = wanted[1:]  # nothing predicts the first token
    return bool((wanted != IGNORED).any())


def _n_labels(row: Example) -> int:
    labels = row["labels"]
    return len(labels) if hasattr(labels, "__len__") else 0


def _correct(logits: Any, labels: Any, task: str, model: Any) -> NDArray[np.float64]:
    """[n]: share of an example's labels that are the most likely ones."""
    import torch

    from subnet.model.evaluation import IGNORED

    kind = getattr(model.config, "problem_type", None) or "single_label_classification"
    classifies = task == "token-classification" or (
        task == "sequence-classification" and kind == "single_label_classification"
    )
    n = len(labels)
    if not classifies or logits.shape[-1] < 2 or torch.is_floating_point(labels):
        return np.full(n, math.nan)
    wanted = labels.to(logits.device).reshape(n, -1)
    counted = wanted != IGNORED
    hits = (logits.argmax(dim=-1).reshape(n, -1) == wanted) & counted
    share = hits.sum(dim=1).double() / counted.sum(dim=1).double()
    # A model that gives no numbers predicts nothing.
    finite = logits.reshape(n, -1).isfinite().all(dim=1)
    return np.where(finite.cpu().numpy(), share.cpu().numpy(), math.nan)


def _test_examples(checkpoint: Checkpoint | None) -> tuple[Path, Iterable[Example]]:
    if checkpoint is None:
        raise MissingInputError("a live model comes without examples", fix="give data=")
    entry = next((e for e in checkpoint.entries if e.kind == "test_examples"), None)
    if entry is None:
        trained = checkpoint.holds("train_examples")
        raise MissingInputError(
            "has no test.jsonl"
            + (", and what a model was trained on proves nothing" if trained else ""),
            path=checkpoint.path,
            expected="examples that neither training nor the search has seen",
            fix="put test.jsonl there, or give data=",
        )
    return entry.path, checkpoint.examples("test")


def _seen_in_training(
    checkpoint: Checkpoint | None, by_language: Mapping[str, Sequence[Example]]
) -> tuple[str, ...]:
    """One line per language some of whose examples training has seen."""
    if checkpoint is None or not checkpoint.holds("train_examples"):
        return ()
    seen: dict[str, set[str]] = {}
    for example in checkpoint.examples("train"):
        seen.setdefault(example["language"], set()).add(content(example))
    lines = []
    for label, examples in by_language.items():
        known = seen.get(label, set())
        n = sum(content(example) in known for example in examples)
        if n:
            lines.append(
                f"{n} of {len(examples)} examples of {label} are training examples: what the model "
                "loses there need not be what it loses on new ones"
            )
    return tuple(lines)
