"""Every method of `attribute` against loops and dense matrices, on trained models."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

import influence_oracles as oracles
import model_makers as makers
from checkpoint_makers import bert, lora, qwen3, save_adapter, train_with_trainer
from influence_oracles import cosine_of, flat, gradients, mean_by_language
from subnet.errors import InputError, MissingInputError
from subnet.influence import (
    Projection,
    attribute,
    bm25,
    embedding_similarity,
    find_method,
    margins_and_doubt,
    negative_margins,
    restrict_to,
    self_influence,
    track,
)
from subnet.influence.preconditioned import AdamSettings
from subnet.influence.projection import packed_signs
from subnet.model import example_losses, find_units
from subnet.subnetwork import subnetwork_of_units

GRADIENTS = ("tracin", "cosine", "final", "adam", "less", "kfac", "ekfac", "datainf", "trak")
BASELINES = ("bm25", "embedding", "random")
#: So that the small data has an inverse everywhere, and what is not the default is reached.
SETTINGS: dict[str, dict[str, Any]] = {
    "trak": {"dimension": 3, "ridge": 0.1},
    "less": {"similarity": "cosine"},
    "kfac": {"damping_scale": 0.3},
    "datainf": {"damping_scale": 0.2},
}


@dataclass(frozen=True, eq=False)
class World:
    """A LoRA that was trained, its two checkpoints with their rates, and examples."""

    name: str
    model: Any
    folders: tuple[Path, ...]
    rates: tuple[float, ...]
    checkpoints: Any
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]

    @property
    def options(self):
        return {
            "collate_fn": makers.collate_for(self.name),
            "checkpoints": self.checkpoints,
            "batch_size": 4,
        }

    @functools.cached_property
    def names(self):
        return list(track(self.model).shapes)

    @contextlib.contextmanager
    def at(self, folder):
        """The model with a checkpoint's adapter."""
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        set_peft_model_state_dict(self.model, load_file(folder / "adapter_model.safetensors"))
        yield self.model
        self.model.load_state_dict(before)

    def sides(self, folder, loss_fn=example_losses):
        """Gradients of test and training examples at a checkpoint, by a loop."""
        collate = makers.collate_for(self.name)
        with self.at(folder) as model:
            return tuple(
                gradients(model, rows, collate, self.names, loss_fn)
                for rows in (self.test, self.train)
            )


@functools.cache
def trained(name, folder):
    train = oracles.rows_of(name, [2 + i % 5 for i in range(14)], 1, "abc")
    test = oracles.rows_of(name, [2 + i % 4 for i in range(5)], 2, "cab")
    if name == "bert_lora":  # by Trainer itself
        model = lora(bert(), 1, target_modules=r".*encoder\.layer.*(query|output\.dense)")
        train_with_trainer(model.train(), folder, ("de",), steps=4)
        folders = (folder / "checkpoint-2", folder / "checkpoint-4")
        # learning rate 1e-2, linear to 0 in four steps
        rates, checkpoints = (1e-2 * (1 + 3 / 4), 1e-2 * (2 / 4 + 1 / 4)), list(folders)
    else:
        model = lora(qwen3(), 1, target_modules=r".*(q_proj|down_proj)")
        folders, rates = (folder / "one", folder / "two"), (0.02, 0.007)
        by_hand(model, train, folders)
        checkpoints = list(zip(folders, rates, strict=True))
    return World(name, model.double().eval(), folders, rates, checkpoints, train, test)


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    return lambda name: trained(name, folder)


@pytest.fixture(params=["bert_lora", "qwen3_lora"])
def world(request, worlds):
    return worlds(request.param)


@pytest.fixture
def bert_world(worlds):
    return worlds("bert_lora")


def by_hand(model, rows, folders):
    """Two checkpoints of AdamW with one group, whose order is that of the parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    collate = makers.collate_for("qwen3_lora")
    plain = [{k: v for k, v in row.items() if k not in oracles.ABOUT} for row in rows]
    for folder in folders:
        for start in (0, 7):
            optimizer.zero_grad()
            example_losses(model, collate(plain[start : start + 7])).mean().backward()
            optimizer.step()
        save_adapter(model, folder)
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    model.zero_grad()


def close(found, expected, rtol=1e-6):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * abs(expected).max())


def run(world, method, **more):
    return attribute(
        world.model, world.train, world.test, method=method,
        **world.options, **SETTINGS.get(method, {}), **more,
    )  # fmt: skip


# --- each method by a loop -----------------------------------------------------------------------


def by_checkpoint(world, of):
    """Σ_c η_c of(test blocks, training blocks, folder), and Σ_c η_c."""
    parts = [
        rate * of(*world.sides(folder), folder)
        for folder, rate in zip(world.folders, world.rates, strict=True)
    ]
    return sum(parts), sum(world.rates)


def moments_of(world, folder):
    """Name to (m, v) from the optimizer's file: by shape and by a replay, not by its order."""
    state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    names = [n for n, p in world.model.named_parameters() if "lora_" in n]
    # LoRA's factors are one group: no biases, no norms.
    return {name: (state[i]["exp_avg"].double(), state[i]["exp_avg_sq"].double(), state[i]["step"])
            for i, name in enumerate(names)}  # fmt: skip


def numpy(blocks):
    return flat(blocks).double().numpy()


def test_adam_is_a_product_in_the_metric_of_the_optimizers_file(world):
    def of(h, g, folder):
        moments = moments_of(world, folder)
        scaled = {
            name: block / ((v / (1 - 0.999 ** float(t))).sqrt() + 1e-8)
            for name, block in h.items()
            for _, v, t in [moments[name]]
        }
        return numpy(scaled) @ numpy(g).T

    expected, _ = by_checkpoint(world, of)
    close(run(world, "adam").scores, expected)


def less_steps(g, moments):
    return {
        name: (0.9 * m + 0.1 * block) / (0.999 * v + 0.001 * block**2 + 1e-8).sqrt()
        for name, block in g.items()
        for m, v, _ in [moments[name]]
    }


def test_less_compares_with_the_step_that_adam_would_take(world):
    def of(h, g, folder):
        return cosine_of(numpy(less_steps(g, moments_of(world, folder))), numpy(h))

    def product(h, g, folder):
        return numpy(h) @ numpy(less_steps(g, moments_of(world, folder))).T

    expected, weight = by_checkpoint(world, of)
    close(run(world, "less").scores, expected / weight)
    dot = attribute(
        world.model, world.train, world.test, method="less", similarity="dot", **world.options
    )
    close(dot.scores, by_checkpoint(world, product)[0])


def factors_by_loop(world, folder):
    """Module to the inputs and output gradients of each training example, alone in its batch."""
    found: dict[str, list[Any]] = {}
    with world.at(folder) as model:
        collate = makers.collate_for(world.name)
        for row in world.train:
            seen: dict[str, Any] = {}

            def note(name, seen=seen):
                def hook(module, given, output):
                    output.retain_grad()
                    seen[name] = given[0], output

                return hook

            handles = [
                module.register_forward_hook(note(name))
                for name, module in model.named_modules()
                if f"{name}.weight" in world.names
            ]
            batch = collate([{k: v for k, v in row.items() if k not in oracles.ABOUT}])
            example_losses(model, batch).sum().backward()
            for handle in handles:
                handle.remove()
            for name, (x, y) in seen.items():
                found.setdefault(name, []).append((x.detach()[0].numpy(), y.grad[0].numpy()))
        model.zero_grad()
    return found


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_kronecker_factored_curvature_is_that_of_a_dense_matrix(world, method):
    damping_scale = {"kfac": 0.3, "ekfac": 0.1}[method]
    modules = {"bert_lora": "*layer.1.attention", "qwen3_lora": "*layers.1.mlp"}[world.name]

    chosen = track(world.model, modules).shapes

    def of(h, g, folder):
        total = 0.0
        for name, examples in factors_by_loop(world, folder).items():
            if f"{name}.weight" not in chosen:
                continue
            active = [(a, d) for x, delta in examples for a, d in zip(x, delta, strict=True)
                      if d.any()]  # fmt: skip
            inner = sum(np.outer(a, a) for a, _ in active) / len(active)
            outer = sum(np.outer(d, d) for _, d in active) / len(active)
            if method == "kfac":
                matrix = np.kron(outer, inner) * len(active) / len(examples)
            else:
                basis = np.kron(np.linalg.eigh(outer)[1], np.linalg.eigh(inner)[1])
                each = np.stack([(delta.T @ x).ravel() for x, delta in examples])
                matrix = basis @ np.diag(((each @ basis) ** 2).mean(0)) @ basis.T
            damping = damping_scale * np.trace(matrix) / len(matrix)
            left, right = (side[f"{name}.weight"].flatten(1).double().numpy() for side in (h, g))
            total = total + left @ np.linalg.solve(matrix + damping * np.eye(len(matrix)), right.T)
        return total

    expected, _ = by_checkpoint(world, of)
    found = run(world, method, modules=modules)
    close(found.scores, expected, rtol=1e-5)
    recorded = found.provenance.settings["method_settings"]
    assert [made["method"] for made in recorded] == [method] * 2
    assert recorded[0]["damping_scale"] == damping_scale
    assert recorded[0]["damping_by_module"] != recorded[1]["damping_by_module"]


def test_datainf_is_the_mean_of_dense_inverses(world):
    def of(h, g, folder):
        total = 0.0
        for name in g:
            rows, left = (side[name].flatten(1).double().numpy() for side in (g, h))
            damping = 0.2 * (rows**2).mean()
            inverses = [np.eye(rows.shape[1]) / damping
                        - np.outer(r, r) / (damping * (damping + r @ r)) for r in rows]  # fmt: skip
            total = total + left @ (sum(inverses) / len(rows)) @ rows.T
        return total

    expected, _ = by_checkpoint(world, of)
    close(run(world, "datainf").scores, expected)


def test_trak_is_the_formula_on_margins_with_all_checkpoints_alike(world):
    kernels, doubts = [], []
    collate = makers.collate_for(world.name)
    for folder in world.folders:
        h, g = world.sides(folder, negative_margins)
        features = []
        for blocks in (h, g):
            parts = []
            for name, block in blocks.items():
                width = block[0].numel()
                bits = np.unpackbits(packed_signs(name, 5, 0, 3, width), axis=1, bitorder="little")
                signs = bits[:, :width].astype(float) * 2 - 1
                parts.append(block.flatten(1).double().numpy() @ signs.T / np.sqrt(3))
            features.append(sum(parts))
        left, right = features
        square = right.T @ right
        square += 0.1 * np.trace(square) / 3 * np.eye(3)
        kernels.append(left @ np.linalg.inv(square) @ right.T)
        with world.at(folder) as model, torch.no_grad():
            rows = [{k: v for k, v in row.items() if k not in oracles.ABOUT} for row in world.train]
            doubts.append([float(margins_and_doubt(model, collate([row]))[1]) for row in rows])
    expected = np.mean(kernels, axis=0) * np.mean(doubts, axis=0)
    found = run(world, "trak", seed=5)
    close(found.scores, expected, rtol=1e-5)
    recorded = found.provenance.settings
    assert recorded["loss"] == "negative margins"
    assert [p["learning_rate"] for p in recorded["checkpoints"]] == [1.0, 1.0]
    assert recorded["method_settings"][0]["projection"] == Projection(dimension=3, seed=5).to_dict()
    assert recorded["method_settings"][0]["n_features"] == 3


def test_trak_takes_a_dimension_that_the_data_carry_and_records_it(bert_world):
    found = attribute(
        bert_world.model, bert_world.train, bert_world.test, method="trak", **bert_world.options
    )
    assert found.provenance.settings["method_settings"][0]["projection"]["dimension"] == 2
    assert np.linalg.matrix_rank(found.scores) <= 5


def test_trak_needs_no_learning_rate(bert_world, tmp_path):
    with bert_world.at(bert_world.folders[0]) as model:
        save_adapter(model, tmp_path / "a")
        options = {**bert_world.options, "checkpoints": tmp_path / "a"}
        one = attribute(model, bert_world.train, bert_world.test, method="trak", **options)
    options["checkpoints"] = (bert_world.folders[0], 0.3)
    close(one.scores, attribute(bert_world.model, bert_world.train, bert_world.test, method="trak",
                                **options).scores)  # fmt: skip
    with pytest.raises(InputError, match="learning rate is unknown"):
        attribute(bert_world.model, bert_world.train, bert_world.test, method="datainf",
                  **{**options, "checkpoints": tmp_path / "a"})  # fmt: skip


# --- all methods alike ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*GRADIENTS, *BASELINES])
def test_language_level_is_the_mean_of_the_example_level(world, method):
    scores = run(world, method).scores
    found = run(world, method, level="language")
    close(found.scores, np.array(mean_by_language(scores, world.train, world.test, found)), 1e-6)
    assert found.languages().shape[0] == 9


@pytest.mark.parametrize("method", GRADIENTS)
def test_self_influence_is_the_diagonal(bert_world, method):
    options = {**bert_world.options, **SETTINGS.get(method, {}), "method": method}
    expected = attribute(
        bert_world.model, bert_world.train, bert_world.train, **options
    ).scores.diagonal()
    close(self_influence(bert_world.model, bert_world.train, **options), expected)


@pytest.mark.parametrize("method", GRADIENTS)
def test_scores_do_not_depend_on_batches_or_padding(bert_world, method):
    scores = run(bert_world, method).scores
    options = {
        **bert_world.options, "batch_size": 14,
        "collate_fn": makers.collate_for(bert_world.name, extra=3),
        **SETTINGS.get(method, {}),
    }  # fmt: skip
    again = attribute(
        bert_world.model, bert_world.train, bert_world.test, method=method, **options
    ).scores
    close(again, scores, rtol=1e-6)


def test_bilinear_methods_sum_gradients_and_keep_none():
    by_sums = {name for name in GRADIENTS if find_method(name).by_sums}
    assert by_sums == {"tracin", "cosine", "final", "adam", "kfac", "ekfac", "datainf"}


@pytest.mark.parametrize("method", ["tracin", "datainf", "ekfac", "adam", "trak"])
def test_by_stage_an_example_meets_its_own_checkpoints_alone(bert_world, method):
    """What is fitted, is fitted on the stage's own examples."""
    stages = {"a": (bert_world.folders[0], 0.5), "b": [(bert_world.folders[1], 0.3)],
              "c": (bert_world.folders[0], 0.2)}  # fmt: skip
    settings = {**SETTINGS.get(method, {}), **({"dimension": 1} if method == "trak" else {})}
    options = {**bert_world.options, "method": method, **settings}
    found = attribute(
        bert_world.model, bert_world.train, bert_world.test, **{**options, "checkpoints": stages}
    )
    for language, entry in stages.items():
        own = [i for i, row in enumerate(bert_world.train) if row["language"] == language]
        alone = attribute(
            bert_world.model, [bert_world.train[i] for i in own], bert_world.test,
            **{**options, "checkpoints": entry},
        )  # fmt: skip
        close(found.scores[:, own], alone.scores)


def test_labels_of_the_model_give_the_fisher_information(bert_world):
    options = {**bert_world.options, "method": "ekfac", "labels": "model"}
    one = attribute(bert_world.model, bert_world.train, bert_world.test, seed=1, **options)
    other = attribute(
        bert_world.model, bert_world.train, bert_world.test, seed=1, **{**options, "batch_size": 3}
    )
    close(one.scores, other.scores)
    assert one.provenance.settings["method_settings"][0]["labels"] == "model"
    assert one.provenance.settings["method_settings"][0]["seed"] == 1
    drawn = attribute(bert_world.model, bert_world.train, bert_world.test, seed=2, **options)
    assert not np.allclose(drawn.scores, one.scores, rtol=1e-3)


def test_momentum_gives_no_step_outside_of_a_subnetwork(bert_world):
    """Of units: rows and columns of the factors. Less' own momentum has to be masked too."""
    mask = unit_mask(bert_world.model)
    options = {**bert_world.options, "subnetwork": mask}
    found = attribute(bert_world.model, bert_world.train, bert_world.test, method="less", **options)

    restriction = restrict_to(bert_world.model, mask)

    def of(h, g, folder):
        moments = moments_of(bert_world, folder)
        names = list(restriction.tracked.shapes)
        g, h = ({name: side[name] for name in names} for side in (g, h))
        steps = restriction.restrict(less_steps(restriction.restrict(g), moments))
        return cosine_of(numpy(steps), numpy(restriction.restrict(h)))

    expected, weight = by_checkpoint(bert_world, of)
    close(found.scores, expected / weight)
    for method in ("adam", "datainf", "trak"):
        masked = attribute(bert_world.model, bert_world.train, bert_world.test, method=method,
                           **{**options, **SETTINGS.get(method, {})})  # fmt: skip
        assert np.isfinite(masked.scores).all()
        assert not np.allclose(masked.scores, run(bert_world, method).scores, rtol=1e-2)
    with pytest.raises(InputError, match=r"a subnetwork is given for the method 'ekfac'.*datainf"):
        attribute(bert_world.model, bert_world.train, bert_world.test, method="ekfac", **options)


def unit_mask(model):
    units = find_units(model)
    return subnetwork_of_units(
        np.arange(units.n_heads) % 3 == 0, units, "head", language="de", base="tiny"
    )


# --- baselines -----------------------------------------------------------------------------------


def test_baselines_are_the_functions_of_their_names(bert_world):
    found = run(bert_world, "bm25")
    tokens = [[row["input_ids"] for row in rows] for rows in (bert_world.train, bert_world.test)]
    np.testing.assert_array_equal(found.scores, bm25(*tokens).scores)
    assert found.provenance.settings["column"] == "input_ids"
    words = [[{**row, "text": f"{'xyz'[i % 3]} wort"} for i, row in enumerate(rows)]
             for rows in (bert_world.train, bert_world.test)]  # fmt: skip
    collate = makers.collate_for(bert_world.name)
    texts = attribute(bert_world.model, *words, method="bm25", collate_fn=collate, k1=2.0)
    plain = [[row["text"] for row in rows] for rows in words]
    np.testing.assert_array_equal(texts.scores, bm25(*plain, k1=2.0).scores)
    assert (texts.provenance.settings["column"], texts.provenance.settings["k1"]) == ("text", 2.0)

    found = run(bert_world, "embedding", layer=1)
    with bert_world.at(bert_world.folders[-1]) as model:  # the last checkpoint
        expected = embedding_similarity(
            model, bert_world.train, bert_world.test, makers.collate_for(bert_world.name), layer=1
        )
    close(found.scores, expected.scores)
    now = attribute(
        bert_world.model, bert_world.train, bert_world.test,
        method="embedding", layer=0, collate_fn=collate,
    )  # fmt: skip
    assert now.provenance.settings["checkpoints"][0]["checkpoint"] == "the model as given"

    one, two = run(bert_world, "random", seed=1), run(bert_world, "random", seed=2)
    assert not np.allclose(one.scores, two.scores)
    np.testing.assert_array_equal(one.scores, run(bert_world, "random", seed=1).scores)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("ekfac", {"dampening": 1}, r"'ekfac'; expected some of labels, .*; did you mean damping"),
        ("tracin", {"damping": 1}, "damping is given for the method 'tracin'; expected no sett"),
        ("tracin", {"collate": 1}, "collate is given for .*did you mean collate_fn"),
        ("ekfac", {"method_": "kfac"}, "method_ is given"),
        ("kfac", {"damping": -1}, "damping is -1"),
        ("kfac", {"damping": "much"}, "damping is 'much'; expected a number"),
        ("kfac", {"labels": "all"}, "labels is 'all'; expected 'true' or 'model'"),
        ("datainf", {"damping": 0}, "damping is 0; expected a positive number"),
        ("datainf", {"layer": "block"}, "layer is 'block'"),
        ("less", {"similarity": "sum"}, "similarity is 'sum'; expected 'cosine' or 'dot'"),
        ("trak", {"dimension": 0}, "dimension is 0; expected a whole number, 1 or more"),
        ("trak", {"ridge": True}, "ridge is True"),
        ("trak", {"dimension": 100}, "products of 14 training examples' 100 features have no inv"),
        ("trak", {"loss_fn": example_losses}, "loss_fn is given for the method 'trak'"),
        ("trak", {"projection": 4}, "projection is given for the method 'trak'"),
        ("bm25", {"tokens": "bytes"}, "tokens is 'bytes'"),
        ("bm25", {"b": 2}, "b is 2"),
        ("bm25", {"column": "words"}, "training example 0 .*has no 'words'"),
        ("embedding", {"layer": -1}, "layer is -1"),
        ("embedding", {"layer": 9}, "layer is 9; expected 0"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(bert_world, method, given, message):
    with pytest.raises(InputError, match=message):
        attribute(
            bert_world.model,
            bert_world.train,
            bert_world.test,
            method=method,
            **{**bert_world.options, **given},
        )


def test_moments_that_are_not_there_are_asked_for(bert_world, tmp_path):
    save_adapter(bert_world.model, tmp_path / "a")
    options = {**bert_world.options, "method": "adam"}
    with pytest.raises(MissingInputError, match=r"a: has no state of the optimizer.*optimizer\.pt"):
        attribute(bert_world.model, bert_world.train, bert_world.test,
                  **{**options, "checkpoints": (tmp_path / "a", 1.0)})  # fmt: skip
    given = {**options, "checkpoints": None}
    with pytest.raises(InputError, match="the model as given has no state of the optimizer"):
        attribute(bert_world.model, bert_world.train, bert_world.test, **given)
    told = attribute(
        bert_world.model, bert_world.train, bert_world.test, moments=bert_world.folders[1], **given
    )
    assert told.provenance.settings["method_settings"][0]["moments"] == "optimizer.pt"
    assert AdamSettings().moments is None
    # A model that was loaded for inference, whose parameters take no gradients.
    tracked = track(bert_world.model)
    before = {n: p.requires_grad for n, p in bert_world.model.named_parameters()}
    bert_world.model.requires_grad_(False)
    try:
        frozen = attribute(bert_world.model, bert_world.train, bert_world.test, modules=tracked,
                           moments=bert_world.folders[1], **given)  # fmt: skip
    finally:
        for name, parameter in bert_world.model.named_parameters():
            parameter.requires_grad_(before[name])
    close(frozen.scores, told.scores)


def test_a_model_without_tokens_has_no_text_to_compare():
    model = torch.nn.Linear(3, 2)
    rows = [(torch.ones(3), torch.tensor(0))] * 3
    with pytest.raises(InputError, match="training examples have neither text nor input_ids"):
        attribute(model, rows, rows, method="bm25", loss_fn=example_losses)


def test_methods_are_found_by_name():
    assert {*GRADIENTS, *BASELINES} <= {find_method(n).name for n in (*GRADIENTS, *BASELINES)}
    with pytest.raises(InputError, match="method is 'ek-fac'; expected one of adam, bm25"):
        find_method("ek-fac")
