"""What influence costs, in operations counted on both sides with one attention implementation."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from checkpoint_makers import lora, move
from subnet.influence import attribute, track

WIDTH, N_TRAIN, N_TEST = 96, 24, 8


def encoder(tokens=64):
    """Width 96, as the demo's; attention by matrix products, which the counter sees."""
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=tokens, num_labels=5,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    move(model, 1, size=0.05)
    return model


def adapted(tokens=64):
    return lora(encoder(tokens), 2, r=8, target_modules=r".*encoder.*(query|key|value|dense)")


def rows(n, seed, tokens=64, languages="ab"):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(5, 300, (tokens,), generator=generator),
            "attention_mask": torch.ones(tokens, dtype=torch.long),
            "labels": int(torch.randint(0, 5, (), generator=generator)),
            "language": languages[i * len(languages) // n],
        }
        for i in range(n)
    ]


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def training(model, examples, size=8):
    """One forward and backward pass over the examples in batches, gradients accumulated."""
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        batch = {
            key: torch.stack([torch.as_tensor(row[key]) for row in part])
            for key in ("input_ids", "attention_mask", "labels")
        }
        model(**batch).loss.backward()


def test_lora_scores_cost_a_training_pass_and_the_product():
    model, train, test = adapted(), rows(N_TRAIN, 1), rows(N_TEST, 2)
    n_parameters = track(model).n_parameters
    pass_ = flops(lambda: training(model, [*train, *test]))
    own = flops(lambda: attribute(model, train, test, batch_size=8))
    product = 2 * N_TRAIN * N_TEST * n_parameters
    assert own <= 1.03 * pass_ + product
    assert own > 0.9 * pass_ + product  # the counter saw the work
    # An engine that makes the gradients of examples beside those it accumulates fails here.
    beside = pass_ + 2 * (N_TRAIN + N_TEST) * 64 * n_parameters
    assert beside > 1.03 * pass_
    for method in ("cosine", "final"):
        assert flops(lambda m=method: attribute(model, train, test, batch_size=8, method=m)) == own


def test_all_linear_layers_cost_no_more_than_a_training_step_and_the_product():
    model, train, test = encoder(), rows(N_TRAIN, 1), rows(N_TEST, 2)
    tracked = track(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tracked.shapes)
    pass_ = flops(lambda: training(model, [*train, *test]))
    own = flops(lambda: attribute(model, train, test, modules="linear", batch_size=8))
    assert own <= pass_ + 2 * N_TRAIN * N_TEST * tracked.n_parameters


@pytest.mark.parametrize("modules", [None, "linear"])
def test_language_level_is_one_pass_and_a_product_of_block_sums(modules):
    model = adapted() if modules is None else encoder()
    train, test = rows(28, 1), rows(24, 2)
    tracked = track(model, modules)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tracked.shapes)
    pass_ = flops(lambda: training(model, [*train, *test]))
    own = flops(
        lambda: attribute(
            model, train, test, modules=modules, batch_size=8, level="language", method="tracin"
        )
    )
    blocks = (2 * 10) * (2 * 10)  # two languages of ten blocks on either side
    assert own <= pass_ + 2 * blocks * tracked.n_parameters


@pytest.mark.parametrize(("modules", "tokens"), [(None, 256), ("linear", 256), ("linear", 32)])
def test_cosine_of_languages_takes_at_most_two_fifths_more_than_a_pass(modules, tokens):
    model = adapted(tokens) if modules is None else encoder(tokens)
    train, test = rows(8, 1, tokens), rows(8, 2, tokens)
    tracked = track(model, modules)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tracked.shapes)
    pass_ = flops(lambda: training(model, [*train, *test]))
    own = flops(
        lambda: attribute(
            model, train, test, modules=modules, batch_size=8, level="language", method="cosine"
        )
    )
    assert own <= 1.4 * pass_ + 2 * 64 * tracked.n_parameters  # eight blocks on either side


def test_no_examples_gradients_are_held_at_language_level(monkeypatch):
    """Gradients of single examples are never made for the mean of a bilinear score."""
    from subnet.influence import Collected

    def refuse(self):
        raise AssertionError("gradients of examples were made")

    monkeypatch.setattr(Collected, "gradients", refuse)
    model, train, test = adapted(), rows(12, 1), rows(12, 2)
    for method in ("tracin", "final", "cosine"):
        attribute(model, train, test, batch_size=8, level="language", method=method)


def test_training_gradients_stream_past_and_test_gradients_are_kept(monkeypatch):
    """No more than one batch of training gradients is alive at a time."""
    import weakref

    from subnet.influence import Collected

    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    original = Collected.gradients

    def watched(self):
        nonlocal most
        blocks = original(self)
        alive.append(weakref.ref(next(iter(blocks.values()))))
        most = max(most, sum(reference() is not None for reference in alive))
        return blocks

    monkeypatch.setattr(Collected, "gradients", watched)
    model, train, test = adapted(), rows(24, 1), rows(8, 2)
    attribute(model, train, test, batch_size=4)
    assert len(alive) == 8
    assert most <= 2  # the one just made, and the last one while it is made
