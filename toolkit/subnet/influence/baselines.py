"""Scores that need no gradient, to stand beside every method: shared words, embeddings, chance.

A published leaderboard has BM25 ahead of plain gradient cosine, so a method that does not beat
these three has shown nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subnet._tables import Provenance, provenance
from subnet.errors import InputError
from subnet.influence._tokens import tokeniser

if TYPE_CHECKING:
    from torch import Tensor, nn

    from subnet.model.evaluation import Collate, Dataset

#: An example as BM25 sees it: a text, or the tokens that it was cut into.
Document = str | Sequence[Hashable]

#: Columns of a dataset that describe an example and do not go into the model.
_DESCRIPTIONS = ("id", "language", "concept", "stage")


@dataclass(frozen=True, eq=False)
class BaselineScores:
    """Scores of a baseline.

    Attributes:
        scores: [n_test, n_train]; larger is more alike, and no score claims a sign of influence
            (`random_scores` has both signs so that the shares of both are defined).
        provenance: The baseline's name and every setting that its scores depend on.
    """

    scores: NDArray[np.float64]
    provenance: Provenance


def bm25(
    train: Sequence[Document],
    test: Sequence[Document],
    *,
    tokens: Literal["words", "characters"] | Callable[[str], Sequence[Hashable]] = "words",
    n: int = 3,
    k1: float = 1.5,
    b: float = 0.75,
) -> BaselineScores:
    """Okapi BM25 of every training example (document) for every test example (query).

    score(q, d) = Σ over the tokens w of q of idf(w) · f(w, d) (k1 + 1) / (f(w, d) + k1 (1 − b +
    b |d| / mean |d|)), idf(w) = ln(1 + (N − n_w + ½) / (n_w + ½)), which is never negative
    (Robertson and Zaragoza 2009; the idf as in Lucene). A token that stands twice in the query
    counts twice; one that no training example has counts nothing.

    Args:
        train: [n_train] training examples, as texts or cut into tokens already (model tokens, say).
        test: [n_test] test examples, of the same kind.
        tokens: How texts are cut. `"words"`: runs of letters, marks and digits, normalised (NFKC)
            and without case; runs in scripts that put no spaces between words (Thai, Lao, Khmer,
            Burmese, kana, Han) become overlapping pairs of characters, as word boundaries there
            are not to be seen. `"characters"`: overlapping n-grams of characters in every script,
            each word framed by spaces. Or a function from a text to its tokens.
        n: Length of the n-grams of `"characters"`.
        k1: Saturation of a token's frequency, at least 0.
        b: How much the length of a training example counts, 0 to 1.

    Returns:
        Scores [n_test, n_train], 0 where nothing is shared.

    Raises:
        InputError: There are no examples, or a setting is out of range.

    Example:
        >>> bm25(["der rote Hund", "ein Haus"], ["roter Hund"]).scores.round(2)
        array([[0.64, 0.  ]])
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import CountVectorizer

    if not len(train) or not len(test):
        raise InputError(f"{len(train)} training and {len(test)} test examples", expected="some")
    if not 0 <= b <= 1 or not k1 >= 0:
        raise InputError(f"b is {b} and k1 is {k1}", expected="0 <= b <= 1 and k1 >= 0")
    cut = tokeniser(tokens, n)
    documents = [_numbered(cut, document) for document in train]
    queries = [_numbered(cut, document) for document in test]
    lengths = np.array([len(document) for document in documents], dtype=np.float64)
    n_train = len(documents)
    scores = np.zeros((len(queries), n_train))
    if lengths.any():
        # Tokens stay as they are: a list is counted, not cut again.
        counter = CountVectorizer(analyzer=list, dtype=np.float64)
        counts = sparse.coo_array(counter.fit_transform(documents))  # [n_train, vocabulary]
        holding = np.bincount(counts.col, minlength=counts.shape[1])  # n_w
        idf = np.log1p((n_train - holding + 0.5) / (holding + 0.5))
        norms = k1 * (1 - b + b * lengths / lengths.mean())
        saturated = counts.data * (k1 + 1) / (counts.data + norms[counts.row])
        weights = sparse.csr_array(
            (saturated * idf[counts.col], (counts.row, counts.col)), shape=counts.shape
        )
        scores = np.asarray((sparse.csr_array(counter.transform(queries)) @ weights.T).todense())
    cutting = tokens if isinstance(tokens, str) else getattr(tokens, "__name__", repr(tokens))
    settings = {
        "k1": k1,
        "b": b,
        "idf": "ln(1 + (N - n + 0.5) / (n + 0.5))",
        "tokens": cutting if any(isinstance(each, str) for each in (*train, *test)) else "given",
        **({"n": n} if cutting == "characters" else {}),
    }
    return BaselineScores(scores, provenance("bm25", settings, libraries=("scikit-learn",)))


def embedding_similarity(
    model: nn.Module,
    train: Dataset,
    test: Dataset,
    collate_fn: Collate,
    *,
    layer: int | None = None,
    batch_size: int = 16,
) -> BaselineScores:
    """Cosine between mean-pooled hidden states of the model.

    An example's embedding is the mean of one layer's hidden states over its own tokens, padding
    left out; of an encoder-decoder model, those of the encoder. One forward pass of the model
    without its head over both datasets, in `eval()` mode.

    Args:
        model: A transformers model, PEFT or not. Its mode is restored afterwards.
        train: [n_train] examples; their `id`, `language`, `concept` and `stage` are not
            collated.
        test: [n_test] examples.
        collate_fn: Makes a padded batch with an `attention_mask` of a list of examples.
        layer: Which hidden states: 0 for the embeddings, k for the output of block k; the middle
            block (half of all, rounded down) by default.
        batch_size: Examples per forward pass.

    Returns:
        Scores [n_test, n_train] in [−1, 1].

    Raises:
        InputError: The model gives no hidden states or has no such layer, or an example has no
            token.
    """
    import torch

    from subnet.model import evaluation_mode, find_task

    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}", expected="1 or more")
    encoder = _encoder(model)
    try:
        decoder = find_task(model) == "causal-lm"
    except InputError:  # a model without a head
        decoder = False
    embeddings: list[NDArray[np.float64]] = []
    layers: set[int] = set()
    with evaluation_mode(model), torch.no_grad():
        for name, dataset in (("train", train), ("test", test)):
            pooled = []
            for start, batch in _batches(dataset, collate_fn, batch_size, name):
                values, used = _pooled(encoder, batch, layer, name, start, decoder=decoder)
                layers.add(used)
                pooled.append(values.double().cpu().numpy())
            embeddings.append(np.concatenate(pooled))
    settings = {"layer": layers.pop(), "pooling": "mean over the tokens", "batch_size": batch_size}
    return BaselineScores(
        cosine_scores(embeddings[1], embeddings[0]),
        provenance("embedding", settings, libraries=("torch", "transformers")),
    )


def cosine_scores(test: ArrayLike, train: ArrayLike) -> NDArray[np.float64]:
    """Cosine of every pair of embeddings, whatever made them.

    Args:
        test: [n_test, d].
        train: [n_train, d].

    Returns:
        [n_test, n_train].

    Raises:
        InputError: An embedding is zero or not finite, so that it has no direction.
    """
    units = []
    for name, given in (("test", test), ("train", train)):
        values = np.asarray(given, dtype=np.float64)
        norms = np.linalg.norm(values, axis=-1, keepdims=True)
        bad = np.flatnonzero(~(norms > 0) | ~np.isfinite(norms))
        if len(bad):
            raise InputError(
                f"the embedding of {name} example {bad[0]} has norm {norms.flat[bad[0]]}",
                expected="a vector with a direction",
            )
        units.append(values / norms)
    return np.asarray(units[0] @ units[1].T)


def random_scores(n_test: int, n_train: int, *, seed: int) -> BaselineScores:
    """Independent standard normal scores: what a method must beat.

    Args:
        n_test: Number of test examples.
        n_train: Number of training examples.
        seed: Seed of the draws.
    """
    if n_test < 1 or n_train < 1:
        raise InputError(f"{n_train} training and {n_test} test examples", expected="some")
    scores = np.random.default_rng(seed).standard_normal((n_test, n_train))
    return BaselineScores(scores, provenance("random", {"distribution": "normal"}, seed=seed))


def _numbered(cut: Callable[[str], Sequence[Hashable]], document: Document) -> list[Hashable]:
    return list(cut(document) if isinstance(document, str) else document)


def _encoder(model: nn.Module) -> Any:
    """The part of a transformers model that makes hidden states, adapters included."""
    unwrap = getattr(model, "get_base_model", None)
    base: Any = unwrap() if callable(unwrap) else model
    config = getattr(base, "config", None)
    if config is None or not hasattr(base, "base_model"):
        raise InputError(
            f"{type(model).__name__} is no transformers model",
            expected="one that gives hidden states",
            fix="make embeddings yourself and give them to cosine_scores",
        )
    return base.get_encoder() if getattr(config, "is_encoder_decoder", False) else base.base_model


def _batches(
    dataset: Dataset, collate_fn: Collate, batch_size: int, name: str
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number of the first example of each batch, and the batch."""
    if len(dataset) == 0:
        raise InputError(f"the {name} dataset has no examples")
    for start in range(0, len(dataset), batch_size):
        rows = [dict(dataset[i]) for i in range(start, min(start + batch_size, len(dataset)))]
        for row, column in ((row, column) for row in rows for column in _DESCRIPTIONS):
            row.pop(column, None)
        batch = collate_fn(rows)
        if len(batch["input_ids"]) != len(rows):
            raise InputError(
                f"collate_fn made {len(batch['input_ids'])} rows of {len(rows)} examples",
                expected="one row per example",
            )
        yield start, batch


def _pooled(
    encoder: Any,
    batch: Mapping[str, Any],
    layer: int | None,
    name: str,
    start: int,
    *,
    decoder: bool,
) -> tuple[Tensor, int]:
    """Mean hidden states [n, d] of a batch, and the layer that they are of."""
    import torch

    device = next(encoder.parameters()).device
    taken = inspect.signature(encoder.forward).parameters
    inputs = {
        key: value.to(device)
        for key, value in batch.items()
        if key in taken and not key.startswith(("labels", "decoder_"))
    }
    ids = inputs["input_ids"]
    mask = inputs.setdefault("attention_mask", torch.ones_like(ids))
    if decoder and "position_ids" in taken and not bool(mask[:, 0].all()):
        # Padding on the left: positions count from the first token, not from the edge.
        inputs.setdefault("position_ids", (mask.long().cumsum(dim=1) - 1).clamp(min=0))
    states = encoder(**inputs, output_hidden_states=True).hidden_states
    used = (len(states) - 1) // 2 if layer is None else layer
    if not 0 <= used < len(states):
        raise InputError(
            f"layer is {layer}", expected=f"0 (the embeddings) to {len(states) - 1}, the last block"
        )
    counted = mask.sum(dim=1)
    if not bool((counted > 0).all()):
        raise InputError(f"{name} example {start + int(counted.argmin())} has no token")
    hidden = states[used].to(torch.promote_types(states[used].dtype, torch.float32))
    # Zeros times NaN are NaN: what stands at padding is replaced, not multiplied.
    own = hidden.masked_fill(mask[..., None] == 0, 0.0)
    return own.sum(dim=1) / counted[:, None], used
