"""Parts of training against a second way of doing the same."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from babel.lists import format_list

from subnet.errors import InputError
from subnet.training import Recipe, build_tokenizer, load_data, resolve_languages
from subnet.training._batches import draw_batches
from subnet.training._trainer import fit
from subnet.training.slots import load_slots
from subnet.training.tasks import SequenceClassification, TokenClassification
from subnet.training.tasks.tagging import span_f1, spans

TAGS = ("O", "B-x", "I-x", "B-y")


def encoder(kind, labels, seed=0):
    torch.manual_seed(seed)
    settings = transformers.BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=48, num_labels=labels, pad_token_id=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
    )  # fmt: skip
    return kind(settings)


def texts(n, seed=0):
    rng = random.Random(seed)
    return [
        {
            "id": str(i),
            "language": "de",
            "text": "".join(rng.choices("abcdé猫", k=rng.randint(1, 20))),
            "label": rng.choice("pq"),
        }
        for i in range(n)
    ]


def tagged(n, seed=0):
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        tokens = [
            "".join(rng.choices("abé", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 6))
        ]
        rows.append({"id": str(i), "tokens": tokens, "tags": [rng.choice(TAGS) for _ in tokens]})
    return rows


@pytest.mark.parametrize("schedule", ["linear", "constant_with_warmup"])
def test_fit_is_adamw_on_the_drawn_batches(tmp_path, schedule):
    recipe = Recipe(
        steps=6, batch_size=4, learning_rate=1e-2, schedule=schedule, warmup=0.5,
        weight_decay=0.1, max_grad_norm=0.5,
    )  # fmt: skip
    task = SequenceClassification(build_tokenizer(48), ("p", "q"), 48)
    features = task.encode(texts(10))
    model, other = (encoder(transformers.BertForSequenceClassification, 2) for _ in range(2))
    fit(model, features, recipe, collate=task.collate, seed=3, folder=tmp_path)

    decays = [n for n, p in other.named_parameters() if p.ndim > 1]
    groups = [
        {"params": [p for n, p in other.named_parameters() if n in decays], "weight_decay": 0.1},
        {"params": [p for n, p in other.named_parameters() if n not in decays], "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    lengths = [len(entry["input_ids"]) for entry in features]
    drawn = draw_batches(lengths, steps=6, batch_size=4, seed=3)
    for step, places in enumerate(drawn):
        rate = step / 3 if step < 3 else (1 - (step - 3) / 3 if schedule == "linear" else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * rate
        losses = [  # one example at a time, unpadded
            other(
                input_ids=torch.tensor([features[place]["input_ids"]]),
                labels=torch.tensor([features[place]["labels"]]),
            ).loss
            for place in places
        ]
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    for (name, found), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        if name.endswith("key.bias"):
            continue  # softmax does not see it: its gradient is rounding alone, which Adam scales
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(("n", "size"), [(10, 4), (64, 4), (37, 8), (3, 8), (322, 32)])
def test_batches_go_through_epoch_after_epoch(n, size):
    rng = random.Random(0)
    lengths = [rng.randint(3, 40) for _ in range(n)]
    steps = 5 * n // size + 3
    drawn = draw_batches(lengths, steps=steps, batch_size=size, seed=1)
    assert [len(batch) for batch in drawn] == [size] * steps
    counts = Counter(place for batch in drawn for place in batch)
    assert max(counts.values()) - min(counts[place] for place in range(n)) <= 1
    for number, batch in enumerate(drawn):
        ends = (number + 1) * size // n > number * size // n and (number + 1) * size % n
        assert (
            n < size or ends or len(set(batch)) == size
        )  # twice only where an epoch ends within it
    # Of similar length: less is padded than in batches as they come.
    if n >= 4 * size:
        waste = sum(max(lengths[i] for i in batch) * size for batch in drawn)
        shuffled = [i for batch in drawn for i in rng.sample(batch, size)]
        rng.shuffle(shuffled)
        chunks = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        assert waste < sum(max(lengths[i] for i in chunk) * size for chunk in chunks)
    assert draw_batches(lengths, steps=steps, batch_size=size, seed=1) == drawn
    assert draw_batches(lengths, steps=steps, batch_size=size, seed=2) != drawn


def test_nothing_to_draw_from_is_said():
    with pytest.raises(InputError, match="no example to train on"):
        draw_batches([], steps=1, batch_size=2, seed=0)


def conll_spans(tags):
    """By the rules of conlleval: where a chunk ends and starts between two tags."""
    found, begun = set(), None
    before = ("O", "")
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        ends = before[0] != "O" and (prefix in ("B", "O") or kind != before[1])
        starts = prefix != "O" and (prefix == "B" or before[0] == "O" or kind != before[1])
        if ends and begun is not None:
            found.add((begun, place, before[1]))
        if starts:
            begun = place
        before = (prefix, kind)
    return found


def test_spans_are_those_of_conlleval():
    rng = random.Random(0)
    tags = ["O", "B-x", "I-x", "B-y", "I-y"]
    right = wanted_n = found_n = 0
    pairs = [
        [[rng.choice(tags) for _ in range(length)] for _ in range(2)]
        for length in (1, 2, 3, 5, 8)
        for _ in range(60)
    ]
    for one, other in pairs:
        assert set(spans(one)) == conll_spans(one)
        right += len(conll_spans(one) & conll_spans(other))
        wanted_n, found_n = wanted_n + len(conll_spans(one)), found_n + len(conll_spans(other))
    precision, recall = right / found_n, right / wanted_n
    f1 = span_f1([one for one, _ in pairs], [other for _, other in pairs])
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert span_f1([["B-x"]], [["B-x"]]) == 1.0
    assert span_f1([["O"]], [["O"]]) == 0.0


def test_tags_are_scored_as_word_by_word():
    tokenizer = build_tokenizer(12)
    rows = [*tagged(12), {"id": "cut", "tokens": ["abcdef"] * 4, "tags": ["B-x"] * 4}]
    rows.append({"id": "hole", "tokens": ["a", "", "b"], "tags": ["O", "B-x", "B-y"]})
    task = TokenClassification(tokenizer, TAGS, 12, rows)
    model = encoder(transformers.BertForTokenClassification, len(TAGS)).eval()
    outcome = task.evaluate(model, rows, batch_size=5)
    for place, row in enumerate(rows):
        ids, first = [1], []
        for token in row["tokens"]:
            part = tokenizer(token, add_special_tokens=False)["input_ids"]
            first.append(len(ids) if part and len(ids) < 11 else None)
            ids += part
        with torch.no_grad():
            logits = model(torch.tensor([[*ids[:11], 2]])).logits[0].double()
        answered = [None if at is None else TAGS[int(logits[at].argmax())] for at in first]
        assert outcome.outputs[place] == [tag or "" for tag in answered], row
        right = np.mean([a == b for a, b in zip(answered, row["tags"], strict=True)])
        assert outcome.items["accuracy"][place] == pytest.approx(right)
        losses = [
            -float(logits[at].log_softmax(-1)[TAGS.index(tag)])
            for at, tag in zip(first, row["tags"], strict=True)
            if at is not None
        ]
        assert outcome.items["loss"][place] == pytest.approx(np.mean(losses), rel=1e-5)
    shares = {
        tag: np.mean([row["tags"].count(tag) / len(row["tags"]) for row in rows]) for tag in TAGS
    }
    assert task.metrics["accuracy"].chance == pytest.approx(max(shares.values()))


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_results_do_not_depend_on_the_size_of_a_batch(kind):
    tokenizer = build_tokenizer(48)
    if kind == "sequence":
        task, rows = SequenceClassification(tokenizer, ("p", "q"), 48), texts(11)
        model = encoder(transformers.BertForSequenceClassification, 2)
    else:
        task, rows = TokenClassification(tokenizer, TAGS, 48), tagged(11)
        model = encoder(transformers.BertForTokenClassification, len(TAGS))
    first, *others = (task.evaluate(model, rows, batch_size=size) for size in (1, 4, 99))
    assert model.training  # left as it was
    for other in others:
        assert other.outputs == first.outputs
        for name, values in first.items.items():
            np.testing.assert_allclose(other.items[name], values, rtol=1e-5)


def test_lists_of_terms_say_what_the_terms_say_and_tags_cover_them():
    languages = resolve_languages(["de", "th", "ja", "ar", "my"])
    data = load_data(
        languages, kinds=("territory", "currency", "language"), max_concepts_per_kind=12,
        test_share=0.3, validation_share=0.1, max_bytes=158, seed=0,
    )  # fmt: skip
    rows = load_slots(data, "test", seed=0)
    names = {(e.language, e.concept): (e.text, e.label) for e in data.test}
    locales = {entry.label: entry.locale for entry in languages}
    firsts = {tuple(row["concept"].split("+")) for row in rows}
    assert {concept for chosen in firsts for concept in chosen} == {e.concept for e in data.test}

    def bare(text):
        return re.sub(r"\s", "", text)

    for row in rows:
        terms = [names[row["language"], concept] for concept in row["concept"].split("+")]
        phrase = format_list([text for text, _ in terms], locale=locales[row["language"]])
        assert "".join(row["tokens"]) == bare(phrase)
        found = [
            ("".join(row["tokens"][start:end]), kind) for start, end, kind in spans(row["tags"])
        ]
        assert found == [(bare(text), label) for text, label in terms]
    by_language = {
        label: [r["concept"] for r in rows if r["language"] == label] for label in locales
    }
    assert len({tuple(concepts) for concepts in by_language.values()}) == 1
    thai = [row for row in rows if row["language"] == "th"]
    assert np.mean([len(row["tokens"]) for row in thai]) > 6  # letters stand alone
