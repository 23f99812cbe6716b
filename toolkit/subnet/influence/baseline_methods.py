"""The baselines that need no gradient, as `attribute` knows them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from subnet.errors import InputError
from subnet.influence._blocks import check_choice, check_number, check_whole
from subnet.influence._examples import Examples
from subnet.influence.baselines import Document, bm25, embedding_similarity, random_scores
from subnet.influence.methods import DataMethod, DataSituation, register_method

_Found = tuple[NDArray[Any], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Bm25Settings:
    """Okapi BM25 on the examples' texts or tokens (`subnet.influence.bm25`).

    Attributes:
        column: What of an example is compared; None takes its `text` where it has one, else its
            `input_ids` without padding. Lists are tokens, texts are cut.
        tokens: How texts are cut: `"words"` or `"characters"`.
        n: Length of the n-grams of `"characters"`.
        k1: Saturation of a token's frequency.
        b: How much the length of a training example counts, 0 to 1.
    """

    column: str | None = None
    tokens: str = "words"
    n: int = 3
    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        check_choice("tokens", self.tokens, ("words", "characters"))
        check_whole("n", self.n, 1)
        for name in ("k1", "b"):
            check_number(name, getattr(self, name))
        if self.b > 1:
            raise InputError(f"b is {self.b}", expected="a number, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """Cosine between mean-pooled hidden states (`subnet.influence.embedding_similarity`).

    Attributes:
        layer: Which hidden states: 0 for the embeddings, k for the output of block k; None takes
            the middle block.
    """

    layer: int | None = None

    def __post_init__(self) -> None:
        if self.layer is not None:
            check_whole("layer", self.layer, 0)


@dataclass(frozen=True)
class _Rows:
    """What the model takes of each example."""

    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> Any:
        return self.examples.row(index)


def _bm25(given: DataSituation) -> _Found:
    settings: Bm25Settings = given.settings
    column = settings.column or _column(given.train)
    train, test = (_documents(side, column) for side in (given.train, given.test))
    options: dict[str, Any] = asdict(settings)
    del options["column"]
    found = bm25(train, test, **options)
    return found.scores, {**found.provenance.settings, "column": column}


def _embedding(given: DataSituation) -> _Found:
    found = embedding_similarity(
        given.model,
        _Rows(given.train),
        _Rows(given.test),
        given.train.collate,
        layer=given.settings.layer,
        batch_size=given.batch_size,
    )
    return found.scores, found.provenance.settings


def _random(given: DataSituation) -> _Found:
    found = random_scores(len(given.test), len(given.train), seed=given.seed)
    return found.scores, found.provenance.settings


def _column(examples: Examples) -> str:
    row = examples.dataset[0]
    known = [name for name in ("text", "input_ids") if isinstance(row, Mapping) and name in row]
    if not known:
        raise InputError(
            f"the {examples.role} examples have neither text nor input_ids",
            expected="texts or tokens to compare",
            fix="say which column holds them: column=",
        )
    return known[0]


def _documents(examples: Examples, column: str) -> list[Document]:
    found: list[Document] = []
    for index in range(len(examples)):
        row = examples.dataset[index]
        if not isinstance(row, Mapping) or column not in row:
            raise InputError(f"{examples.name(index)} has no {column!r}")
        value = row[column]
        if isinstance(value, str):
            found.append(value)
            continue
        tokens: Sequence[Hashable] = _listed(value)
        if column == "input_ids" and "attention_mask" in row:
            kept = _listed(row["attention_mask"])
            tokens = [token for token, keep in zip(tokens, kept, strict=True) if keep]
        found.append(tokens)
    return found


def _listed(value: Any) -> list[Any]:
    return value.tolist() if hasattr(value, "tolist") else list(value)


register_method(
    DataMethod(
        "bm25",
        _bm25,
        settings=Bm25Settings,
        summary="Words or characters that texts share; no gradients.",
    )
)
register_method(
    DataMethod(
        "embedding",
        _embedding,
        settings=EmbeddingSettings,
        uses_model=True,
        summary="Cosines of mean hidden states; no gradients.",
    )
)
register_method(DataMethod("random", _random, summary="Chance."))
