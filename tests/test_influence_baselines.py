"""BM25, embeddings and chance against loops and other libraries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from model_makers import ARCHITECTURES, collate_for, examples, make
from subnet.errors import InputError
from subnet.influence._tokens import split_words
from subnet.influence.baselines import bm25, cosine_scores, embedding_similarity, random_scores

TRAIN = [
    "der rote Hund bellt laut",
    "ein Haus am See und noch ein Haus",
    "the red dog",
    "日本語の文章",
    "",
    "der Hund der Hunde",
]
TEST = ["roter Hund", "ein rotes Haus ein", "日本", "nichts davon", "", "der der Hund"]


def bm25_by_loop(
    train: Sequence[Sequence[str]], test: Sequence[Sequence[str]], k1: float, b: float
) -> NDArray[np.float64]:
    """The formula of the docstring, written out."""
    mean = sum(map(len, train)) / len(train)
    holding = Counter(token for document in train for token in set(document))
    scores = np.zeros((len(test), len(train)))
    for i, query in enumerate(test):
        for j, document in enumerate(train):
            for token in query:
                f = document.count(token)
                idf = math.log(1 + (len(train) - holding[token] + 0.5) / (holding[token] + 0.5))
                length = len(document) / mean
                scores[i, j] += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * length)) if f else 0.0
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0), (0.0, 1.0)])
def test_bm25_is_its_formula(k1: float, b: float) -> None:
    expected = bm25_by_loop(
        [split_words(text) for text in TRAIN], [split_words(text) for text in TEST], k1, b
    )
    found = bm25(TRAIN, TEST, k1=k1, b=b)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-12)
    assert found.scores.shape == (len(TEST), len(TRAIN))
    assert found.provenance.method == "bm25"
    assert found.provenance.settings["k1"] == k1
    assert found.provenance.settings["b"] == b
    assert found.provenance.settings["tokens"] == "words"


def test_bm25_is_that_of_bm25s() -> None:
    bm25s = pytest.importorskip("bm25s")
    documents = [split_words(text) or ["(empty)"] for text in TRAIN]
    other = bm25s.BM25(k1=1.5, b=0.75, method="lucene", dtype="float64")
    other.index(documents, show_progress=False)
    found = bm25(documents, [split_words(TEST[0]), split_words(TEST[1])])
    for row, text in zip(found.scores, TEST, strict=False):
        # Lucene leaves out the constant factor k1 + 1.
        np.testing.assert_allclose(row, 2.5 * other.get_scores(split_words(text)), rtol=1e-6)


def test_a_case_by_hand() -> None:
    """Two documents of equal length; "a" is in one of them, once: idf = ln(1 + 1.5/1.5) = ln 2."""
    found = bm25([["a", "b"], ["c", "d"]], [["a"], ["a", "a"], ["e"]]).scores
    np.testing.assert_allclose(found, [[math.log(2), 0], [2 * math.log(2), 0], [0, 0]])


def test_model_tokens_count_as_they_are() -> None:
    ids = [[5, 6, 7], [7, 8]]
    words = [["five", "six", "seven"], ["seven", "eight"]]
    found = bm25(ids, [[7, 5]])
    np.testing.assert_array_equal(found.scores, bm25(words, [["seven", "five"]]).scores)
    assert found.provenance.settings["tokens"] == "given"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Der Hund, der HUND!", ["der", "hund", "der", "hund"]),
        # vowel signs are marks and no letters, and belong to the word all the same
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("भाषा-विज्ञान", ["भाषा", "विज्ञान"]),
        ("العَرَبِيَّة هنا", ["العَرَبِيَّة", "هنا"]),
        ("தமிழ் 12", ["தமிழ்", "12"]),
        ("東京都", ["東京", "京都"]),
        ("東", ["東"]),
        ("ภาษา", ["ภา", "าษ", "ษา"]),
        ("AI技術と人", ["ai", "技術", "術と", "と人"]),
        # full-width letters and half-width kana are the same characters
        ("ＡＢＣ ｶﾅ", ["abc", "カナ"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("… !?", []),
    ],
)
def test_words_of_every_script(text: str, tokens: list[str]) -> None:
    assert split_words(text) == tokens


def test_characters_are_framed_grams() -> None:
    found = bm25(["ab"], ["ab", "abx", "b"], tokens="characters", n=3).scores
    # " ab ": " ab", "ab "; " abx ": " ab", "abx", "bx "; " b ": " b "
    assert found[0, 0] > found[1, 0] > 0 == found[2, 0]
    settings = bm25(["ab"], ["ab"], tokens="characters", n=2).provenance.settings
    assert settings["tokens"] == "characters"
    assert settings["n"] == 2


def test_a_tokeniser_of_ones_own() -> None:
    found = bm25(["a-b", "c-d"], ["b-a"], tokens=lambda text: text.split("-"))
    np.testing.assert_array_equal(found.scores, bm25([["a", "b"], ["c", "d"]], [["b", "a"]]).scores)


def test_nothing_to_find() -> None:
    assert not bm25(["", "!"], ["", "a"]).scores.any()


def embedding_by_loop(
    model: Any, rows: list[dict[str, Any]], layer: int, encode: Callable[..., Any]
) -> NDArray[np.float64]:
    """One unpadded example after the other."""
    found = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        states = encode(input_ids=ids, output_hidden_states=True)
        hidden = getattr(states, "encoder_hidden_states", None) or states.hidden_states
        found.append(hidden[layer][0].mean(dim=0).detach().numpy())
    return np.stack(found)


@pytest.mark.parametrize(
    ("name", "left"),
    [(name, False) for name in ARCHITECTURES]
    + [(name, True) for name, entry in ARCHITECTURES.items() if entry[1] == "causal"],
)
def test_embeddings_are_those_of_a_loop_over_unpadded_examples(name: str, left: bool) -> None:
    model = make(name)
    train, test = examples(name, (6, 3, 4, 2)), examples(name, (5, 2, 7), seed=1)
    for row in (*train, *test):
        row["language"] = "de"
    kwargs = (
        {"decoder_input_ids": torch.tensor([[0, 5]])} if "seq2seq" in ARCHITECTURES[name] else {}
    )
    n_blocks = 1 if name in ("llama", "m2m") else 2
    for layer in range(n_blocks + 1):
        found = embedding_similarity(
            model, train, test, collate_for(name, extra=2, left=left), layer=layer, batch_size=3
        )
        with torch.no_grad():
            vectors = [
                embedding_by_loop(model, rows, layer, lambda **k: model(**k, **kwargs))
                for rows in (test, train)
            ]
        unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
        np.testing.assert_allclose(found.scores, unit[0] @ unit[1].T, rtol=1e-9, atol=1e-12)
        assert found.provenance.settings["layer"] == layer
    assert not model.training
    middle = embedding_similarity(model, train, test, collate_for(name)).provenance
    assert middle.settings["layer"] == n_blocks // 2


def test_embeddings_do_not_depend_on_dropout_or_the_batch_size() -> None:
    model = make("bert")
    model.train()
    rows = examples("bert", (6, 3, 4, 2))
    found = [
        embedding_similarity(model, rows, rows, collate_for("bert"), batch_size=size).scores
        for size in (1, 3, 4)
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-10)
    np.testing.assert_allclose(found[0].diagonal(), 1)
    assert model.training


def test_random_scores_are_seeded_and_of_both_signs() -> None:
    first, second = random_scores(40, 50, seed=1), random_scores(40, 50, seed=2)
    np.testing.assert_array_equal(first.scores, random_scores(40, 50, seed=1).scores)
    assert (first.scores != second.scores).all()
    assert abs((first.scores > 0).mean() - 0.5) < 0.05
    assert first.provenance.seed == 1


class TestBadInput:
    def test_bm25(self) -> None:
        with pytest.raises(InputError, match="0 training and 1 test examples"):
            bm25([], ["a"])
        with pytest.raises(InputError, match=r"b is 1\.5 and k1 is 1\.5"):
            bm25(["a"], ["a"], b=1.5)
        with pytest.raises(InputError, match="tokens is 'syllables'; expected 'words'"):
            bm25(["a"], ["a"], tokens="syllables")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="n is 0"):
            bm25(["a"], ["a"], tokens="characters", n=0)

    def test_embeddings(self) -> None:
        model, rows = make("bert"), examples("bert")
        with pytest.raises(InputError, match=r"layer is 3; expected 0 \(the embeddings\) to 2"):
            embedding_similarity(model, rows, rows, collate_for("bert"), layer=3)
        with pytest.raises(InputError, match="the test dataset has no examples"):
            embedding_similarity(model, rows, [], collate_for("bert"))
        with pytest.raises(InputError, match="batch_size is 0"):
            embedding_similarity(model, rows, rows, collate_for("bert"), batch_size=0)
        with pytest.raises(InputError, match="Linear is no transformers model"):
            embedding_similarity(nn.Linear(1, 1), rows, rows, collate_for("bert"))

        def unmask(given: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            batch = collate_for("bert")(given)
            batch["attention_mask"][1] = 0
            return batch

        with pytest.raises(InputError, match="train example 1 has no token"):
            embedding_similarity(model, rows, rows, unmask)
        with pytest.raises(InputError, match="collate_fn made 2 rows of 3 examples"):
            embedding_similarity(model, rows, rows, lambda given: collate_for("bert")(given[:2]))

    def test_embeddings_without_a_direction(self) -> None:
        with pytest.raises(InputError, match="the embedding of train example 1 has norm 0"):
            cosine_scores([[1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])

    def test_random_scores(self) -> None:
        with pytest.raises(InputError, match="0 training"):
            random_scores(3, 0, seed=0)


def test_a_model_without_a_head() -> None:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    rows = examples("bert")
    found = embedding_similarity(model, rows, rows, collate_for("bert"), layer=2)
    vectors = embedding_by_loop(model, rows, 2, model)
    np.testing.assert_allclose(found.scores, cosine_scores(vectors, vectors), rtol=1e-5)
