"""`TracIn` against captum's own `TracInCP`, on the cases that captum tests it with."""

from __future__ import annotations

import io
import itertools
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

captum_tracin = pytest.importorskip("captum.influence._core.tracincp")

from captum.influence import DataInfluence, TracInCP, TracInCPFast  # noqa: E402
from captum.influence._utils.common import KMostInfluentialResults  # noqa: E402

from subnet.errors import InputError  # noqa: E402
from subnet.influence.tracin import TracIn  # noqa: E402

# What captum's own sample-wise mode says of every batch that it is given.
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor .:UserWarning")

N_TRAIN, N_TEST, N_CHECKPOINTS = 11, 4, 3


class Dense(nn.Module):
    """Two layers with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(5, 4)
        self.linear2 = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(torch.tanh(self.linear1(x)))


class TwoInputs(Dense):
    """Takes its input in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(10, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(self.before(torch.cat([x, y], dim=1)))


class Convolutions(nn.Module):
    """The engine has no rule for the convolution, and has one for the layer after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2, padding=1)
        self.linear = nn.Linear(2 * 6 * 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.conv(x[:, None, :, None])).mean(dim=3).flatten(1))


class Words(nn.Module):
    """Embedding, norm and a linear layer over tokens of which the mean is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.norm = nn.LayerNorm(6)
        self.linear = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.norm(self.embedding(ids))).mean(dim=1)


class Tied(nn.Module):
    """The output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.out = nn.Linear(6, 9, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embedding(ids).mean(dim=1))[:, :3]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dense": Dense, "two_inputs": TwoInputs, "convolutions": Convolutions, "words": Words,
    "tied": Tied,
}  # fmt: skip


class World:
    """A model, checkpoints at different rates, training and test data."""

    def __init__(self, folder: Path, name: str = "dense", seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = MODELS[name]().double()
        self.paths = []
        for number, rate in enumerate([0.1, 0.7, 0.03][:N_CHECKPOINTS]):
            for parameter in self.model.parameters():
                parameter.data.normal_(0, 0.8)
            self.paths.append(str(folder / f"checkpoint-{number}.pt"))
            torch.save({"weights": self.model.state_dict(), "rate": rate}, self.paths[-1])
        n = N_TRAIN + N_TEST
        if name in ("words", "tied"):
            inputs: tuple[Tensor, ...] = (torch.randint(0, 9, (n, 4)),)
        else:
            inputs = tuple(torch.randn(n, 5).double() for _ in range(1 + (name == "two_inputs")))
        labels = torch.randn(n, 3).double()
        self.train = TensorDataset(*(x[:N_TRAIN] for x in inputs), labels[:N_TRAIN])
        self.test = (*(x[N_TRAIN:] for x in inputs), labels[N_TRAIN:])
        self.loads = 0

    def load(self, model: nn.Module, path: str) -> float:
        self.loads += 1
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["weights"])
        return float(saved["rate"])

    def make(self, kind: Any, reduction: str = "none", **settings: Any) -> Any:
        settings = {"batch_size": 4, "loss_fn": nn.MSELoss(reduction=reduction), **settings}
        if reduction != "none":
            settings.setdefault("sample_wise_grads_per_batch", True)
        return kind(self.model, self.train, self.paths, self.load, **settings)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_it_is_one_of_captums_and_has_its_signatures(world: World) -> None:
    import inspect

    tracin = world.make(TracIn)
    assert isinstance(tracin, DataInfluence)
    assert tracin.get_name() == "TracIn"
    for name in ("__init__", "influence", "self_influence", "compute_intermediate_quantities"):
        assert inspect.signature(getattr(TracIn, name)) == inspect.signature(
            getattr(TracInCP, name)
        )


@pytest.mark.parametrize("aggregate", [False, True])
@pytest.mark.parametrize("name", list(MODELS))
def test_scores_are_captums(tmp_path: Path, name: str, aggregate: bool) -> None:
    world = World(tmp_path, name)
    ours = world.make(TracIn).influence(world.test, aggregate=aggregate)
    close(ours, world.make(TracInCP).influence(world.test, aggregate=aggregate))
    assert ours.shape == (1 if aggregate else N_TEST, N_TRAIN)
    assert ours.abs().min() > 0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", ["dense", "two_inputs", "convolutions"])
def test_reduced_losses_are_captums_sample_wise_mode(
    tmp_path: Path, name: str, reduction: str
) -> None:
    world = World(tmp_path, name)
    ours = world.make(TracIn, reduction).influence(world.test)
    close(ours, world.make(TracInCP, reduction).influence(world.test))
    # ... and the mean over n examples of o values each is 1/o of the sum per example
    whole = world.make(TracIn).influence(world.test)
    close(ours, whole / (9 if reduction == "mean" else 1))


def test_embeddings_and_norms_count_in_sample_wise_mode_too(tmp_path: Path) -> None:
    world = World(tmp_path, "words")
    right = world.make(TracInCP).influence(world.test)
    close(world.make(TracIn, "sum").influence(world.test), right)
    # captum's own leaves the embedding and the norm out: not an accident of this comparison
    theirs = world.make(TracInCP, "sum").influence(world.test)
    assert (theirs - right).abs().max() > 0.01 * right.abs().max()


def test_the_bias_counts_where_captums_fast_variant_drops_it(world: World) -> None:
    fast = TracInCPFast(
        world.model, world.model.linear2, world.train, world.paths, world.load,
        nn.MSELoss(reduction="sum"), 4,
    ).influence(world.test)  # fmt: skip
    ours = world.make(TracIn, layers=["linear2"]).influence(world.test)
    close(ours, world.make(TracInCP, layers=["linear2"]).influence(world.test))
    assert not torch.allclose(ours, fast)
    bias = torch.zeros_like(ours)
    for path in world.paths:
        rate = world.load(world.model, path)
        rows = []
        for batch in (world.test, world.train.tensors):
            output = world.model(batch[0])
            rows.append(2 * (output - batch[1]))
        bias += rate * rows[0] @ rows[1].T
    torch.testing.assert_close(ours - fast, bias.detach())


@pytest.mark.parametrize("layers", [["linear1"], ["linear2", "linear1"]])
def test_layers_are_captums(world: World, layers: list[str]) -> None:
    ours = world.make(TracIn, layers=layers)
    theirs = world.make(TracInCP, layers=layers)
    close(ours.influence(world.test), theirs.influence(world.test))
    close(
        ours.compute_intermediate_quantities(world.test),
        theirs.compute_intermediate_quantities(world.test),
    )


@pytest.mark.parametrize("proponents", [True, False])
@pytest.mark.parametrize("k", [1, 5, N_TRAIN, N_TRAIN + 5])
@pytest.mark.parametrize("aggregate", [False, True])
def test_most_influential_are_captums(
    world: World, k: int, proponents: bool, aggregate: bool
) -> None:
    ours = world.make(TracIn).influence(world.test, k=k, proponents=proponents, aggregate=aggregate)
    theirs = world.make(TracInCP).influence(
        world.test, k=k, proponents=proponents, aggregate=aggregate
    )
    assert isinstance(ours, KMostInfluentialResults)
    assert torch.equal(ours.indices, theirs.indices)
    close(ours.influence_scores, theirs.influence_scores)
    assert ours.indices.shape == (1 if aggregate else N_TEST, min(k, N_TRAIN))


@pytest.mark.parametrize("by_checkpoints", [True, False])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_self_influence_is_the_diagonal(world: World, reduction: str, by_checkpoints: bool) -> None:
    tracin = world.make(TracIn, reduction)
    ours = tracin.self_influence(outer_loop_by_checkpoints=by_checkpoints)
    close(ours, world.make(TracInCP, reduction).self_influence())
    close(ours, tracin.influence(world.train[:]).diagonal())
    single = tracin.self_influence(world.train[:])
    close(tracin.self_influence(DataLoader(world.train, 3)), single)


@pytest.mark.parametrize("name", ["dense", "words", "tied"])
def test_intermediate_quantities_are_captums(tmp_path: Path, name: str) -> None:
    world = World(tmp_path, name)
    ours, theirs = world.make(TracIn), world.make(TracInCP)
    close(
        ours.compute_intermediate_quantities(world.test),
        theirs.compute_intermediate_quantities(world.test),
    )
    loader = DataLoader(world.train, 4)
    rows = ours.compute_intermediate_quantities(loader)
    close(ours.compute_intermediate_quantities(loader, aggregate=True), rows.sum(0, keepdim=True))


@pytest.mark.parametrize("name", ["dense", "words", "tied"])
def test_layers_that_the_engine_knows_need_no_pass_of_their_own(tmp_path: Path, name: str) -> None:
    tracin = World(tmp_path, name).make(TracIn)
    assert tracin._split(tracin._parameter_names())[1] == []


def test_scores_do_not_depend_on_the_batch_size_or_the_loader(world: World) -> None:
    expected = world.make(TracInCP).influence(world.test)
    for size in (1, 3, N_TRAIN):
        close(world.make(TracIn, batch_size=size).influence(world.test), expected)
    given = world.make(TracIn)
    given.train_dataloader = DataLoader(world.train, 5)
    close(given.influence(DataLoader(TensorDataset(*world.test), 3)), expected)


def test_a_shuffling_loader_does_not_mix_examples_between_checkpoints(world: World) -> None:
    """Its order is another in every pass, so all checkpoints have to see one pass."""
    expected = world.make(TracIn).influence(world.test)
    tracin = world.make(TracIn)
    tracin.train_dataloader = DataLoader(
        world.train, 4, shuffle=True, generator=torch.Generator().manual_seed(3)
    )
    found = tracin.influence(world.test)
    assert not torch.allclose(found, expected)
    torch.testing.assert_close(found.sort(dim=1).values, expected.sort(dim=1).values)
    best = tracin.influence(world.test, k=2).influence_scores
    torch.testing.assert_close(best, expected.sort(dim=1, descending=True).values[:, :2])


def test_the_rate_that_the_loader_returns_is_used(world: World) -> None:
    expected = world.make(TracIn).influence(world.test)
    tracin = world.make(TracIn)
    tracin.checkpoints_load_func = lambda model, path: 10 * world.load(model, path)
    close(tracin.influence(world.test), 10 * expected)
    # ... and of single checkpoints: the sum of three, each with a rate of its own
    parts = []
    for path in world.paths:
        tracin = world.make(TracIn)
        tracin.checkpoints = [path]
        parts.append(tracin.influence(world.test))
    close(parts[0] + parts[1] + parts[2], expected)


def test_checkpoints_are_loaded_once_per_dataset(world: World) -> None:
    world.make(TracIn, batch_size=1).influence(world.test)
    assert world.loads == N_CHECKPOINTS
    world.loads = 0
    world.make(TracInCP, batch_size=1).influence(world.test)
    assert world.loads == N_CHECKPOINTS * (1 + N_TRAIN)


def test_a_directory_of_state_dicts_is_read_by_captums_loader(tmp_path: Path) -> None:
    world = World(tmp_path)
    folder = tmp_path / "plain"
    folder.mkdir()
    for number, path in enumerate(world.paths):
        torch.save(torch.load(path)["weights"], folder / f"checkpoint-{number}.pt")
    settings = {"loss_fn": nn.MSELoss(reduction="none"), "batch_size": 4}
    ours = TracIn(world.model, world.train, str(folder), **settings)
    theirs = TracInCP(world.model, world.train, str(folder), **settings)
    close(ours.influence(world.test), theirs.influence(world.test))


def test_another_loss_for_the_test_examples(world: World) -> None:
    def one_output(output: Tensor, labels: Tensor) -> Tensor:
        return output[:, 1] * labels[:, 0]

    with pytest.warns(UserWarning, match="per-example"):
        ours = world.make(TracIn, test_loss_fn=one_output)
    with pytest.warns(UserWarning, match="per-example"):
        theirs = world.make(TracInCP, test_loss_fn=one_output)
    close(ours.influence(world.test), theirs.influence(world.test))
    # captum refuses a sum on one side and a mean on the other; their factor is known
    mixed = world.make(TracIn, "sum", test_loss_fn=nn.MSELoss(reduction="mean"))
    close(mixed.influence(world.test), world.make(TracIn).influence(world.test) / 3)


def test_without_a_loss_the_outputs_are_summed(world: World) -> None:
    ours = world.make(TracIn, loss_fn=None).influence(world.test)
    close(ours, world.make(TracInCP, loss_fn=None).influence(world.test))


def test_cross_entropy_over_classes(world: World) -> None:
    labels = torch.arange(N_TRAIN) % 3
    world.train = TensorDataset(world.train.tensors[0], labels)
    world.test = (world.test[0], torch.tensor([2, 0, 1, 1]))
    each = nn.CrossEntropyLoss(reduction="none")
    theirs = world.make(TracInCP, loss_fn=each).influence(world.test)
    close(world.make(TracIn, loss_fn=each).influence(world.test), theirs)
    mean = nn.CrossEntropyLoss(reduction="mean")
    close(world.make(TracIn, "mean", loss_fn=mean).influence(world.test), theirs)


def test_a_regression_through_the_origin_has_its_closed_form(tmp_path: Path) -> None:
    """y = w x with labels x: score(i, j) = Σ_c 2 x_i² (w_c − 1) · 2 x_j² (w_c − 1)."""
    weights = [0.4379, 0.1653, 0.5132, 0.3651, 0.9992]
    net = nn.Linear(1, 1, bias=False).double()
    for number, weight in enumerate(weights):
        torch.save({"weight": torch.tensor([[weight]]).double()}, tmp_path / f"c-{number}.pt")
    x = torch.arange(1.0, 17.0).double()[:, None]
    for reduction, sample_wise in itertools.product(["none", "sum", "mean"], [False, True]):
        if (reduction == "none") is sample_wise:
            continue
        tracin = TracIn(
            net, TensorDataset(x, x), str(tmp_path), loss_fn=nn.MSELoss(reduction=reduction),
            batch_size=4, sample_wise_grads_per_batch=sample_wise,
        )  # fmt: skip
        scores = tracin.influence((x, x))
        factor = sum(4 * (weight - 1) ** 2 for weight in weights)
        torch.testing.assert_close(scores, factor * (x**2) @ (x**2).T)
        assert (tracin.influence((x, x), k=16).indices[:, 0] == 15).all()


def test_orthogonal_inputs_influence_only_themselves(tmp_path: Path) -> None:
    net = nn.Linear(7, 1, bias=False).double()
    for number in range(3):
        torch.manual_seed(number)
        torch.save({"weight": torch.rand(1, 7).double()}, tmp_path / f"c-{number}.pt")
    x, y = torch.eye(7).double(), torch.zeros(7, 1).double()
    tracin = TracIn(
        net, TensorDataset(x, y), str(tmp_path), loss_fn=nn.MSELoss(reduction="none"), batch_size=3
    )
    scores = tracin.influence((x, y))
    assert torch.equal(scores, scores.diagonal().diag())
    assert torch.equal(tracin.influence((x, y), k=1).indices[:, 0], torch.arange(7))


@pytest.mark.parametrize(
    "mode", ["self", "self by checkpoints", "scores", "proponents", "opponents"]
)
def test_progress_is_shown(world: World, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    tracin = world.make(TracIn)
    if mode.startswith("self"):
        tracin.self_influence(show_progress=True, outer_loop_by_checkpoints="by" in mode)
        expected = "to compute self influence. Processing batch: 100%"
    elif mode == "scores":
        tracin.influence(world.test, show_progress=True)
        expected = "to compute influence for training batches: 100%"
    else:
        tracin.influence(world.test, k=2, proponents=mode == "proponents", show_progress=True)
        expected = f"computation for getting {mode}. Processing training batches: 100%"
    assert f"Using TracIn {expected}" in stream.getvalue() or re.search(
        f"Using TracIn .*{re.escape(expected)}", stream.getvalue()
    )


def test_one_backward_pass_per_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """captum's default makes one per example."""
    passes = []
    original = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    world.make(TracIn).influence(world.test)
    assert len(passes) == N_CHECKPOINTS * (1 + 3)
    passes.clear()
    world.make(TracInCP).influence(world.test)
    assert len(passes) == N_CHECKPOINTS * (N_TEST + N_TRAIN)


def test_frozen_parameters_are_left_out_and_nothing_is_changed(world: World) -> None:
    expected = world.make(TracIn, layers=["linear2"]).influence(world.test)
    world.model.linear1.requires_grad_(False)
    world.model.train()
    close(world.make(TracIn).influence(world.test), expected)
    assert world.model.training
    assert not world.model.linear1.weight.requires_grad
    assert world.model.linear2.weight.requires_grad
    assert all(p.grad is None for p in world.model.parameters())


def test_dropout_is_off(tmp_path: Path) -> None:
    world = World(tmp_path)
    expected = world.make(TracIn).influence(world.test)
    plain = world.model
    plain.train()
    forward = plain.forward
    plain.dropout = nn.Dropout(0.5)
    plain.forward = lambda x: forward(plain.dropout(x))  # type: ignore[method-assign]
    close(world.make(TracIn).influence(world.test), expected)


class TestBadInput:
    def test_a_frozen_model(self, world: World) -> None:
        world.model.requires_grad_(False)
        with pytest.raises(InputError, match="Dense is frozen: no parameter requires a gradient"):
            world.make(TracIn).influence(world.test)

    def test_no_checkpoints(self, world: World, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(ValueError, match="Invalid checkpoints provided for TracIn class"):
            TracIn(world.model, world.train, str(empty), loss_fn=nn.MSELoss(reduction="none"))

    def test_no_inputs(self, world: World) -> None:
        with pytest.raises(AssertionError, match="required"):
            world.make(TracIn).influence(None)

    def test_a_loss_of_the_wrong_kind(self, world: World) -> None:
        with pytest.raises(AssertionError, match='must be "none"'):
            world.make(TracIn, loss_fn=nn.MSELoss(reduction="mean"))
        with pytest.raises(AssertionError, match='must be "sum" or "mean"'):
            world.make(TracIn, sample_wise_grads_per_batch=True)

        def each(output: Tensor, labels: Tensor) -> Tensor:
            return (output - labels).square().sum(dim=1)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tracin = world.make(TracIn, loss_fn=each, sample_wise_grads_per_batch=True)
        with pytest.raises(InputError, match=r"loss_fn gave \[4\]; expected one number"):
            tracin.influence(world.test)

    def test_captum_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import importlib

        for name in list(sys.modules):
            if name.split(".")[0] == "captum":
                monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "captum", None)
        monkeypatch.delitem(sys.modules, "subnet.influence.tracin")
        with pytest.raises(LookupError, match=r"captum cannot be imported .* pip install captum"):
            importlib.import_module("subnet.influence.tracin")
