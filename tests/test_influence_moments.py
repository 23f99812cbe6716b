"""Adam's moments of real optimizer files under the right names, and the steps they stand for."""

from __future__ import annotations

import functools
import itertools
import re

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

from checkpoint_makers import Rows, bert, lora, qwen3, train_with_trainer
from influence_oracles import products
from subnet.errors import FileFormatError, InputError, MissingInputError, UnsafeFileError
from subnet.influence.collecting import collect
from subnet.influence.moments import Adam, Less, Moment, Moments, read_moments
from subnet.influence.tracking import track
from subnet.model import example_losses


@functools.cache
def trained(kind, folder):
    """A model that Trainer trained, its last checkpoint, and the live optimizer's state by name."""
    if kind == "lora":
        model = lora(bert(), 1, bias="lora_only", modules_to_save=["classifier"])
    else:
        model = bert()
    model.train()
    trainer = train_with_trainer(model, folder, ("de",), steps=2)
    live = {
        name: trainer.optimizer.state[parameter]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return model, folder / "checkpoint-2", live


@pytest.fixture(scope="module", params=["full", "lora"])
def run(request, tmp_path_factory):
    return trained(request.param, tmp_path_factory.mktemp(request.param))


def test_moments_of_a_trainer_file_are_those_of_the_live_optimizer(run):
    model, checkpoint, live = run
    moments = read_moments(checkpoint, model)
    assert moments.order == "trainer"
    assert moments.of.keys() == live.keys()
    assert any("bias" in name for name in live)
    assert not moments.without
    for name, state in live.items():
        found = moments[name]
        assert torch.equal(found.mean, state["exp_avg"]), name
        assert torch.equal(found.square, state["exp_avg_sq"]), name
        assert (found.step, found.betas, found.epsilon) == (2, (0.9, 0.999), 1e-8)


def test_the_order_of_the_model_would_swap_moments_of_equal_shape(run):
    # What the test above guards against: by the model's order shapes agree and values do not.
    _, checkpoint, live = run
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    naive = dict(zip(live, (state[i]["exp_avg"] for i in range(len(live))), strict=True))
    same_shape = {n for n in live if naive[n].shape == live[n]["exp_avg"].shape}
    swapped = [n for n in same_shape if not torch.equal(naive[n], live[n]["exp_avg"])]
    assert len(swapped) >= 2, "the model does not tell the two orders apart"


def adamw(model, groups=None, *, kind=torch.optim.AdamW, steps=1, **options):
    """An optimizer after some steps on random gradients, a different one for every weight."""
    optimizer = kind(groups or model.parameters(), lr=0.01, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))


def assert_moments(found, model, optimizer):
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        assert torch.equal(found[name].mean, state["exp_avg"]), name
        assert torch.equal(found[name].square, state["exp_avg_sq"]), name


@pytest.mark.parametrize("wrapper", ["", "_fsdp_wrapped_module.", "module._orig_mod."])
def test_moments_keyed_by_name_are_read_by_name(tmp_path, wrapper):
    # accelerate writes what this function returns as optimizer.bin for FSDP with a full state.
    model = small()
    optimizer = adamw(model)
    state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(cpu_offload=True))
    names = list(state["state"])[::-1]  # in an order of its own
    renamed = {
        "state": {f"{wrapper}{name}": state["state"][name] for name in names},
        "param_groups": [
            {**group, "params": [f"{wrapper}{n}" for n in reversed(group["params"])]}
            for group in state["param_groups"]
        ],
    }
    torch.save(renamed, tmp_path / "optimizer.bin")
    found = read_moments(tmp_path, model)
    assert found.order == "names"
    assert_moments(found, model, optimizer)


def test_one_group_is_the_order_of_the_parameters(tmp_path):
    model = small()
    optimizer = adamw(model)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    found = read_moments(tmp_path / "optimizer.pt", model)
    assert found.order == "parameters"
    assert_moments(found, model, optimizer)


def test_groups_of_former_trainers_are_recognised_by_their_counts(tmp_path):
    # They gave weight decay to norms other than nn.LayerNorm; Qwen's are RMSNorm.
    model = qwen3()
    decayed = [p for n, p in model.named_parameters() if "bias" not in n]
    others = [p for n, p in model.named_parameters() if "bias" in n]
    optimizer = adamw(model, [{"params": decayed}, {"params": others, "weight_decay": 0.0}])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    found = read_moments(tmp_path, model)
    assert found.order == "trainer-4"
    assert_moments(found, model, optimizer)


class GateLayerNorm(nn.Linear):
    """By its type a norm to former Trainers, by its name none to the present one."""


def test_two_orders_that_fit_and_differ_are_refused(tmp_path):
    model = nn.ModuleDict(
        {"layernorm_mix": nn.Linear(3, 3, bias=False), "gate": GateLayerNorm(3, 3, bias=False)}
    )
    one, other = list(model.parameters())
    optimizer = adamw(model, [{"params": [one]}, {"params": [other]}])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match="fits the orders trainer and trainer-4-norms"):
        read_moments(tmp_path, model)


def test_a_parameter_without_a_gradient_has_no_moments(tmp_path):
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    for name, parameter in model.named_parameters():
        parameter.grad = torch.ones_like(parameter) if not name.startswith("2.") else None
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    moments = read_moments(tmp_path, model)
    assert moments.without == ("2.weight", "2.bias")
    with pytest.raises(MissingInputError, match=r"no moments of 2\.weight: it never had a grad"):
        Adam(moments).precondition({"2.weight": torch.ones(1, 3, 3)})
    with pytest.raises(MissingInputError, match=r"no moments of other: it was not trained"):
        Adam(moments).precondition({"other": torch.ones(1, 3, 3)})


def test_a_model_loaded_for_inference_takes_the_names_of_what_was_trained(tmp_path):
    model = small()
    model[0].requires_grad_(False)
    optimizer = adamw(model, [p for p in model.parameters() if p.requires_grad])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter of Sequential requires a gradient"):
        read_moments(tmp_path, model)
    found = read_moments(tmp_path, model, trained=names)
    assert found.of.keys() == names
    for name in names:
        assert torch.equal(found[name].mean, optimizer.state[model.get_parameter(name)]["exp_avg"])
    with pytest.raises(InputError, match="has no parameter nowhere"):
        read_moments(tmp_path, model, trained=["nowhere"])


# --- what the moments are used for -----------------------------------------------------------


def one_parameter(optimizer, parameter):
    """Moments of an optimizer with one parameter w, as a file of it would give them."""
    state, group = optimizer.state[parameter], optimizer.param_groups[0]
    moment = Moment(
        state["exp_avg"].clone(), state["exp_avg_sq"].clone(), int(state["step"]),
        group["betas"], group["eps"],
    )  # fmt: skip
    return Moments({"w": moment}, path=None, order="names")


def steps_of(kind, betas, epsilon, gradients):
    """The parameter's change by the last gradient over −lr; moments before and after it."""
    parameter = nn.Parameter(torch.zeros(gradients.shape[1:], dtype=torch.float64))
    optimizer = kind([parameter], lr=0.5, betas=betas, eps=epsilon, weight_decay=0.0)
    for gradient in gradients:
        before = parameter.detach().clone()
        moments = one_parameter(optimizer, parameter) if optimizer.state[parameter] else None
        parameter.grad = gradient.clone()
        optimizer.step()
    return (parameter.detach() - before) / -0.5, moments, one_parameter(optimizer, parameter)


@pytest.fixture
def gradients():
    return torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_less_points_where_adamw_would_step(gradients):
    # With ε = 0 nothing but the bias corrections stands between the two, and they are one factor.
    step, before, _ = steps_of(torch.optim.AdamW, (0.8, 0.95), 0.0, gradients)
    (less,) = Less(before).transform({"w": gradients[-1:]})["w"]
    correction = (1 - 0.95**5) ** 0.5 / (1 - 0.8**5)
    torch.testing.assert_close(step, correction * less, rtol=1e-12, atol=0)


def test_less_keeps_epsilon_under_the_root(gradients):
    _, before, after = steps_of(torch.optim.AdamW, (0.8, 0.95), 0.3, gradients)
    (less,) = Less(before).transform({"w": gradients[-1:]})["w"]
    expected = after["w"].mean / (after["w"].square + 0.3).sqrt()  # torch's own moments
    torch.testing.assert_close(less, expected, rtol=1e-12, atol=0)


def test_adam_is_the_metric_in_which_adam_steps(gradients):
    # Without momentum a step of Adam is the preconditioned gradient itself.
    step, _, after = steps_of(torch.optim.Adam, (0.0, 0.95), 0.3, gradients)
    (found,) = Adam(after).precondition({"w": gradients[-1:]})["w"]
    torch.testing.assert_close(found, step, rtol=1e-12, atol=0)


def test_adam_is_bilinear_and_symmetric_and_less_is_not(gradients):
    _, _, moments = steps_of(torch.optim.Adam, (0.9, 0.95), 1e-8, gradients)
    h, g = {"w": gradients[:2]}, {"w": gradients[2:]}
    forward = products([h], [g], Adam(moments))
    torch.testing.assert_close(forward, products([g], [h], Adam(moments)).T, rtol=1e-12, atol=0)
    doubled = products([h], [{"w": 2 * g["w"]}], Adam(moments))
    torch.testing.assert_close(doubled, 2 * forward, rtol=1e-12, atol=0)
    less = Less(moments)
    one = products([h], [less.transform(g)])
    two = products([h], [less.transform({"w": 2 * g["w"]})])
    assert not torch.allclose(two, 2 * one, rtol=0.1)
    assert not torch.allclose(two - one, one, rtol=0.1)


def test_scores_equal_a_loop_over_pairs(gradients):
    _, _, moments = steps_of(torch.optim.Adam, (0.9, 0.95), 1e-8, gradients)
    m, v = moments["w"].mean, moments["w"].square
    queries, train = gradients[:2], gradients[2:]
    adam = [[(h * g / ((v / (1 - 0.95**5)).sqrt() + 1e-8)).sum() for g in train] for h in queries]
    found = products([{"w": queries}], [{"w": train[:1]}, {"w": train[1:]}], Adam(moments))
    torch.testing.assert_close(found, torch.tensor(adam).double(), rtol=1e-12, atol=0)
    steps = [(0.9 * m + 0.1 * g) / (0.95 * v + 0.05 * g**2 + 1e-8).sqrt() for g in train]
    less = [[(h * s).sum() / (h.norm() * s.norm()) for s in steps] for h in queries]
    made = Less(moments).transform({"w": train})
    found = products([{"w": queries}], [made], cosine=True)
    torch.testing.assert_close(found, torch.tensor(less).double(), rtol=1e-12, atol=0)


def test_scores_of_collected_gradients_equal_a_loop_with_the_live_optimizer(run):
    model, checkpoint, live = run
    model.eval()
    rows = Rows(5, 7)
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    tracked = track(model)
    gradients = collect(model, tracked, batch).gradients()
    queries = {name: block[:2] for name, block in gradients.items()}
    moments = read_moments(checkpoint, model)
    names = list(tracked.shapes)
    each = []
    for k in range(5):
        loss = example_losses(model, {key: value[k : k + 1] for key, value in batch.items()}).sum()
        each.append(torch.autograd.grad(loss, [model.get_parameter(name) for name in names]))
    adam, less = torch.zeros(2, 5), torch.zeros(2, 5)
    for i, j, (p, name) in itertools.product(range(2), range(5), enumerate(names)):
        h, g, state = each[i][p], each[j][p], live[name]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        adam[i, j] += (h * g / ((v / (1 - 0.999**2)).sqrt() + 1e-8)).sum()
        step = (0.9 * m + 0.1 * g) / (0.999 * v + 0.001 * g**2 + 1e-8).sqrt()
        less[i, j] += (h * step).sum()
    found = products([queries], [gradients], Adam(moments))
    torch.testing.assert_close(found, adam, rtol=1e-4, atol=1e-4 * float(adam.abs().max()))
    found = products([queries], [Less(moments).transform(gradients)])
    torch.testing.assert_close(found, less, rtol=1e-4, atol=1e-4 * float(less.abs().max()))


def test_half_precision_gradients_are_preconditioned_in_float32(gradients):
    _, _, moments = steps_of(torch.optim.Adam, (0.9, 0.95), 1e-8, gradients)
    half = gradients[-1:].half()
    for found in (Adam(moments).precondition({"w": half}), Less(moments).transform({"w": half})):
        assert found["w"].dtype == torch.float32
        assert found["w"].isfinite().all()  # 1e-8 is 0 in half precision


def test_settings_are_recorded(run):
    model, checkpoint, _ = run
    moments = read_moments(checkpoint, model)
    recorded = Adam(moments).to_dict()
    assert recorded["method"] == "adam"
    assert recorded["bias_correction"] is True
    assert recorded["order"] == "trainer"
    assert recorded["betas"] == [(0.9, 0.999)]
    assert recorded["epsilon"] == [1e-8]
    assert recorded["step"] == [2]
    zero = sum(int((m.square == 0).sum()) for m in moments.of.values())
    total = sum(m.square.numel() for m in moments.of.values())
    assert recorded["share_never_updated"] == zero / total
    assert Less(moments).to_dict()["bias_correction"] is False
    assert moments.to("cpu")[next(iter(moments.of))].step == 2


# --- bad input ---------------------------------------------------------------------------------


def test_another_model_is_refused_by_its_counts_or_names_the_entry(run, tmp_path):
    model, checkpoint, live = run
    with pytest.raises(InputError, match=r"optimizer\.pt: holds groups of \d+ and \d+ parameters"):
        read_moments(checkpoint, small())
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    entry = state["param_groups"][0]["params"][1]
    name = [n for n in live if "bias" not in n and "LayerNorm" not in n][1]
    shape = list(live[name]["exp_avg"].shape)
    state["state"][entry]["exp_avg"] = torch.zeros(5, 7)
    torch.save(state, tmp_path / "optimizer.pt")
    message = f"entry {entry} is of shape [5, 7]; expected {shape}, of {name} (Trainer's groups"
    with pytest.raises(InputError, match=re.escape(message)):
        read_moments(tmp_path, model)
    state["param_groups"].append({**state["param_groups"][0], "params": []})
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match=r"holds groups of \d+ and \d+ and 0 parameters"):
        read_moments(tmp_path, model)


def test_second_moments_and_named_entries_of_another_shape_are_refused(tmp_path):
    model = small()
    state = adamw(model).state_dict()
    state["state"][1]["exp_avg_sq"] = torch.zeros(4)
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match=r"entry 1 is of shape \[4\]; expected \[3\], of 0\.bias"):
        read_moments(tmp_path, model)
    named = get_optimizer_state_dict(model, adamw(model))
    named["param_groups"][0]["params"][0] = "elsewhere.weight"
    torch.save(named, tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match=r"names elsewhere\.weight, which is no trained"):
        read_moments(tmp_path, model)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda m: adamw(m, kind=torch.optim.SGD, momentum=0.9), "entry 0 holds momentum_buffer"),
        (lambda m: adamw(m, amsgrad=True), "was written by AMSGrad"),
        (lambda m: torch.optim.AdamW(m.parameters()), "holds no moments"),
    ],
)
def test_other_optimizers_are_refused(tmp_path, optimizer, message):
    model = small()
    torch.save(optimizer(model).state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(FileFormatError, match=message):
        read_moments(tmp_path, model)


def test_files_that_are_no_moments_are_refused(tmp_path):
    model = small()
    with pytest.raises(MissingInputError, match="has no state of the optimizer"):
        read_moments(tmp_path, model)
    (tmp_path / "optimizer_0").mkdir()
    (tmp_path / "optimizer_0" / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(MissingInputError, match=r"in shards only.*FULL_STATE_DICT"):
        read_moments(tmp_path, model)
    file = tmp_path / "optimizer.pt"
    torch.save({"model": 1}, file)
    with pytest.raises(FileFormatError, match="is no state of an optimizer"):
        read_moments(tmp_path, model)
    torch.save({"state": functools.partial(print, 1), "param_groups": []}, file)
    with pytest.raises(UnsafeFileError, match="whose loading would run code"):
        read_moments(tmp_path, model)
    torch.save(adamw(model).state_dict(), file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(FileFormatError, match="is truncated"):
        read_moments(tmp_path, model)


def test_gradients_of_another_shape_are_refused(gradients):
    _, _, moments = steps_of(torch.optim.Adam, (0.9, 0.95), 1e-8, gradients)
    with pytest.raises(InputError, match=r"gradients of w are of shape \[4, 3\]"):
        Adam(moments).precondition({"w": torch.ones(2, 4, 3)})
