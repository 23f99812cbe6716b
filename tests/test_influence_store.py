"""The gradient store: right to the digit, resumable, refused where it is of something else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import resource
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

import influence_oracles as oracles
import model_makers as makers
from checkpoint_makers import move
from influence_oracles import data, mean_by_language, oracle_sides
from influence_processes import fill_store, workers
from subnet.errors import (
    FileFormatError,
    InputError,
    MissingInputError,
    NotComparableError,
    OutputError,
)
from subnet.influence import attribute, collect, track
from subnet.influence import engine as engine_room
from subnet.influence.store import GradientStore, StoreSettings
from subnet.influence.storing import store_gradients


def options_for(name, **more):
    return {"collate_fn": makers.collate_for(name), "batch_size": 2, **more}


def two_points(model):
    """Two states of the model with unequal rates, the second the one it has now."""
    second = {name: value.clone() for name, value in model.state_dict().items()}
    move(model, 3, size=0.2)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(second)
    return [(first, 0.3), (second, 0.05)]


@contextlib.contextmanager
def counting(monkeypatch):
    """How many examples go through the model meanwhile."""
    seen = []
    original = engine_room.collect

    def watched(model, tracked, batch, loss_fn=None):
        found = original(model, tracked, batch, loss_fn)
        seen.append(len(found))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(engine_room, "collect", watched)
        yield seen


def hashes(folder):
    """Hash of every file, also of those in what a killed run was writing."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("method", ["tracin", "cosine", "final"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_scores_through_a_store_are_the_same_and_train_gradients_are_made_once(
    tmp_path, monkeypatch, name, method
):
    model = makers.make(name).float()
    train, test = data(name)
    points = two_points(model)
    # Shards of one batch each, so that there are several.
    store = StoreSettings(path=tmp_path / "s", shard_size=1)
    options = options_for(name, method=method, checkpoints=points)
    exact = attribute(model, train, test, **options)
    found = attribute(model, train, test, store=store, **options)
    assert np.array_equal(found.scores, exact.scores)
    n_points = 1 if method == "final" else 2
    assert len(GradientStore.open(tmp_path / "s").header.shards) == 4 * n_points
    with counting(monkeypatch) as seen:
        again = attribute(model, train, test, store=store, **options)
    assert sum(seen) == len(test) * n_points
    assert np.array_equal(again.scores, exact.scores)
    assert exact.provenance.settings["store"] is None
    assert found.provenance.settings["store"]["dtype"] == "float32"


def test_two_stores_are_scored_without_the_model(tmp_path):
    model = makers.make("bert")
    train, test = data("bert")
    points = two_points(model)
    options = options_for("bert", checkpoints=points, dtype="float64", shard_size=20_000)
    store_gradients(model, train, tmp_path / "train", role="training", **options)
    store_gradients(model, test, tmp_path / "test", role="test", **options)
    kept, asked = GradientStore.open(tmp_path / "train"), GradientStore.open(tmp_path / "test")
    assert len(kept.shards_of(0)) > 1 < len(asked.shards_of(1))
    names = list(kept.header.blocks)
    for method in ("tracin", "cosine", "final"):
        expected = attribute(
            model, train, test, method=method, **options_for("bert", checkpoints=points)
        )
        found = kept.score(asked, method=method)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9, atol=1e-12)
        assert found.train.equals(expected.train)
        assert found.test.equals(expected.test)
        columns = ["test", "train", "score"]
        assert found.top(2)[columns[:2]].equals(expected.top(2)[columns[:2]])
        assert found.languages(m=2)["value"].notna().all()
    assert [p["learning_rate"] for p in found.provenance.settings["checkpoints"]] == [1.0]
    # By the slow way, from gradients at hand.
    sums = np.zeros((len(test), len(train)))
    raw = []
    for state, eta in points:
        model.load_state_dict(state)
        g, q = oracle_sides(model, "bert", names)
        sums += eta * q @ g.T
        raw.append(oracles.gradients(model, test, makers.collate_for("bert"), names))
    np.testing.assert_allclose(kept.score(asked).scores, sums, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kept.score(raw).scores, sums, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kept.score(raw[-1], method="final").scores, q @ g.T, rtol=1e-9,
                               atol=1e-12)  # fmt: skip
    with pytest.raises(InputError, match="given for 1 checkpoints; expected 2"):
        kept.score(raw[:1])
    lacking = [{names[0]: blocks[names[0]]} for blocks in raw]
    with pytest.raises(NotComparableError, match=r"the queries' .* is not there; expected \["):
        kept.score(lacking)


def test_in_sequential_training_an_example_is_stored_at_its_own_stage_only(tmp_path):
    model = makers.make("bert")
    train, test = data("bert")
    (first, one), (second, two) = two_points(model)
    stages = {"a": [(first, one)], "b": [(second, two)]}
    options = options_for("bert", checkpoints=stages)
    store = StoreSettings(path=tmp_path / "s", dtype="float64")
    exact = attribute(model, train, test, **options)
    found = attribute(model, train, test, store=store, **options)
    np.testing.assert_allclose(found.scores, exact.scores, rtol=1e-12)
    kept = GradientStore.open(tmp_path / "s")
    of_a = [i for i, row in enumerate(train) if row["language"] == "a"]
    assert [numbers for numbers, _ in kept.gradients(0)] == [of_a]
    store_gradients(model, test, tmp_path / "t", role="test", dtype="float64", **options)
    scored = kept.score(GradientStore.open(tmp_path / "t"))
    np.testing.assert_allclose(scored.scores, exact.scores, rtol=1e-9, atol=1e-12)
    # Test gradients of their own stage only are no queries.
    store_gradients(model, test, tmp_path / "u", role="training", dtype="float64", **options)
    with pytest.raises(NotComparableError, match="holds no gradients of all queries"):
        kept.score(GradientStore.open(tmp_path / "u"))


@pytest.mark.parametrize("method", ["tracin", "cosine"])
@pytest.mark.parametrize("projection", [None, 3])
def test_language_level_through_a_store_is_the_mean_of_the_example_level(
    tmp_path, method, projection
):
    model = makers.make("bert")
    train = oracles.rows_of("bert", [2 + i % 5 for i in range(23)], 1, "abc")
    test = oracles.rows_of("bert", [2 + i % 4 for i in range(13)], 2, "cab")
    points = two_points(model)
    options = options_for("bert", method=method, checkpoints=points, projection=projection)
    scores = attribute(model, train, test, **options).scores
    plain = attribute(model, train, test, level="language", **options)
    expected = mean_by_language(scores, train, test, plain)
    np.testing.assert_allclose(plain.scores, expected, rtol=1e-9, atol=1e-12)
    store = StoreSettings(path=tmp_path / "s", dtype="float64", shard_size=60_000)
    found = attribute(model, train, test, level="language", store=store, **options)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9, atol=1e-12)
    numbers = ["value", "ci_low", "ci_high"]
    np.testing.assert_allclose(found.languages()[numbers], plain.languages()[numbers], rtol=1e-6)


def test_a_method_that_changes_gradients_takes_them_from_the_store(tmp_path):
    """A test-side change works projected too; a train-side one only on whole gradients."""
    from subnet.influence import GradientMethod, Transform, register_method

    def double(blocks):
        return {name: 2 * block for name, block in blocks.items()}

    def sign(blocks):
        return {name: block.sign() for name, block in blocks.items()}

    register_method(GradientMethod("store-double", prepare=lambda s: Transform(test=double)))
    register_method(
        GradientMethod("store-sign", bilinear=False, prepare=lambda s: Transform(train=sign))
    )
    model = makers.make("bert").float()
    train, test = data("bert")
    for method in ("store-double", "store-sign"):
        options = options_for("bert", method=method)
        exact = attribute(model, train, test, **options).scores
        found = attribute(model, train, test, store=tmp_path / "s", **options).scores
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5 * abs(exact).max())
    options = options_for("bert", projection=4)
    once = attribute(model, train, test, store=tmp_path / "p", **options).scores
    twice = attribute(
        model, train, test, store=tmp_path / "p", **{**options, "method": "store-double"}
    ).scores
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5, atol=1e-5 * abs(once).max())
    with pytest.raises(InputError, match="'store-sign', which needs more than gradients of the lo"):
        attribute(model, train, test, store=tmp_path / "p", **{**options, "method": "store-sign"})
    with pytest.raises(InputError, match="'store-sign' needs the model"):
        GradientStore.open(tmp_path / "s").score({}, method="store-sign")


@pytest.mark.parametrize("method", ["kfac", "datainf"])
def test_methods_that_look_at_the_model_first_work_with_store_and_projection(tmp_path, method):
    model = oracles.adapted("bert_lora").float()
    train = oracles.rows_of("bert", [2 + i % 5 for i in range(20)], 1)
    _, test = data("bert")
    options = options_for("bert", method=method)
    exact = attribute(model, train, test, **options).scores
    # A projection as wide as the layers is none.
    for more in ({"store": tmp_path / "s"}, {"projection": 40}, {"store": tmp_path / "p",
                                                                 "projection": 40}):  # fmt: skip
        found = attribute(model, train, test, **options, **more).scores
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5 * abs(exact).max())


def test_a_method_of_its_own_features_takes_neither(tmp_path):
    model, (train, test) = makers.make("bert"), data("bert")
    options = options_for("bert", method="trak", dimension=3)
    with pytest.raises(InputError, match=r"store is given for the method 'trak'.*expected no stor"):
        attribute(model, train, test, store=tmp_path / "s", **options)
    with pytest.raises(InputError, match="projection is given for the method 'trak', which has fe"):
        attribute(model, train, test, projection=4, **options)


def test_scoring_holds_one_shard_of_either_side(tmp_path, monkeypatch):
    import weakref

    from subnet.influence import store as store_room

    model = makers.make("bert").float()
    rows = oracles.rows_of("bert", [3] * 16, 1)
    options = options_for("bert", shard_size=1, dtype="bfloat16")
    kept = store_gradients(model, rows, tmp_path / "a", role="training", **options)
    asked = store_gradients(model, rows[:12], tmp_path / "b", role="test", **options)
    alive, most = [], 0
    original = store_room.read_shard

    def watched(*arguments):
        nonlocal most
        blocks = original(*arguments)
        alive.append(weakref.ref(next(iter(blocks.values()))))
        most = max(most, sum(reference() is not None for reference in alive))
        return blocks

    monkeypatch.setattr(store_room, "read_shard", watched)
    kept.score(asked)
    assert len(alive) == 6 + 6 * 8
    assert most <= 4  # one of either side, and those before them while these are read


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_takes_two_bytes_and_keeps_gradients_of_any_size(tmp_path, dtype, error):
    """Gradients near 1e-9 would be 0 in plain float16, those near 1e9 infinite."""
    train, test = data("bert")
    for factor in (1.0, 1e-9, 1e9):

        def loss(model, batch, factor=factor):
            from subnet.model import example_losses

            return factor * example_losses(model, batch)

        # By example, what a scale is for: one of them is much smaller than the others.
        model = makers.make("bert").float()
        accepted = [{k: v for k, v in row.items() if k != "id"} for row in train]
        options = options_for("bert", loss_fn=loss)
        exact = attribute(model, accepted, test, **options).scores
        folder = tmp_path / f"{factor}"
        store = StoreSettings(path=folder, dtype=dtype)
        found = attribute(model, accepted, test, store=store, **options).scores
        scale = abs(exact).max()
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, exact, atol=error * scale, rtol=0)
        assert not np.array_equal(found, exact)
    kept = GradientStore.open(folder)
    n_parameters = track(model).n_parameters
    per_example = 8 if dtype == "float16" else 0
    assert kept.n_bytes == len(train) * (2 * n_parameters + per_example)
    on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert kept.n_bytes <= on_disk <= kept.n_bytes + 5000


def test_a_projected_store_takes_k_squared_numbers_per_module(tmp_path):
    model = makers.make("bert").float()
    train, _ = data("bert")
    options = options_for("bert", modules=["bert.encoder"], projection=4, dtype="bfloat16")
    store = store_gradients(model, train, tmp_path / "s", role="training", **options)
    n_modules = len(track(model, ["bert.encoder"]))
    assert store.n_bytes == 2 * len(train) * 4**2 * n_modules
    settings = json.loads((tmp_path / "s" / "header.json").read_text())["settings"]
    assert settings["projection"] == {
        "projection": "two-sided rademacher", "inputs": 4, "outputs": 4, "seed": 0,
    }  # fmt: skip


def start(folder, **more):
    process = workers().Process(target=fill_store, args=(str(folder),), kwargs=more)
    process.start()
    return process


def finish(process):
    process.join(timeout=120)
    assert process.exitcode == 0


def test_killed_five_times_it_ends_with_the_same_bytes(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(whole))
    expected = hashes(whole)
    assert len(expected) == 52
    draw = random.Random(0)
    count = 0
    for _ in range(5):
        process = start(broken)
        # At a moment of its own: after so many files more, and a little.
        wanted, deadline = count + draw.randrange(1, 6), time.monotonic() + 120
        while len(list(broken.glob("c*.safetensors"))) < wanted:
            assert time.monotonic() < deadline
            assert process.is_alive()
            time.sleep(0.0005)
        time.sleep(draw.random() * 0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        there = hashes(broken)
        # Whatever has its name is whole; every run goes on where the one before had stopped.
        shards = {name for name in there if name.startswith("checkpoint")}
        assert all(there[name] == expected[name] for name in shards)
        assert wanted <= len(shards) < 50
        count = len(shards)
    store = GradientStore.open(broken)
    with pytest.raises(MissingInputError, match=r"\d+ of 50 shards are not there.*run again"):
        store.score(store)
    finish(start(broken))
    assert hashes(broken) == expected
    assert not [path for path in broken.iterdir() if path.is_dir()]


def test_killed_within_the_library_that_writes_it_ends_with_the_same_bytes(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(whole))
    process = start(broken, killed_at=3)
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    (half,) = (path for path in broken.rglob("*") if path.name == ".tmpAbCdEf")
    assert half.parent.parent == broken  # in a directory of its own, whose name says what it is
    assert half.parent.name.startswith(".checkpoint-000-shard-000003.safetensors-")
    finish(start(broken))
    assert hashes(broken) == hashes(whole)
    assert not [path for path in broken.iterdir() if path.is_dir()]


def made(tmp_path, **more):
    model = makers.make("bert").float()
    train, _ = data("bert")
    options = options_for("bert", **more)
    store_gradients(model, train, tmp_path / "s", role="training", **options)
    return model, train, options


def loss_of_mine(model, batch):
    from subnet.model import example_losses

    return 2 * example_losses(model, batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"modules": ["bert.pooler"]},
            r"parameters: \S+ is \[16, 16\]; expected none, as given now",
        ),
        ({"dtype": "float16"}, "dtype is float32; expected float16, as given now"),
        ({"projection": 4}, "projection is none; expected {'projection': 'two-sided rademacher', "),
        ({"batch_size": 3}, "batch_size is 2; expected 3"),
        ({"loss_fn": loss_of_mine}, "loss is mean over the example's own labels; expected "),
        ({"role": "test"}, "role of the examples is training; expected test"),
    ],
)
def test_a_store_of_other_settings_is_refused(tmp_path, change, message):
    model, train, options = made(tmp_path)
    before = hashes(tmp_path / "s")
    with pytest.raises(NotComparableError, match=message):
        store_gradients(model, train, tmp_path / "s", **{"role": "training", **options, **change})
    assert hashes(tmp_path / "s") == before


def test_a_store_of_another_projection_model_or_dataset_is_refused(tmp_path):
    model, train, options = made(tmp_path, projection=4)
    again = {**options, "role": "training"}
    with pytest.raises(NotComparableError, match="projection: inputs is 4; expected 8"):
        store_gradients(model, train, tmp_path / "s", **{**again, "projection": 8})
    with pytest.raises(NotComparableError, match="projection: seed is 0; expected 1"):
        store_gradients(model, train, tmp_path / "s", seed=1, **again)
    digest = "SHA-256 [0-9a-f]{8}"
    changed = [{**train[0], "labels": 1 - train[0]["labels"]}, *train[1:]]
    with pytest.raises(NotComparableError, match=f"batches is {digest}.*expected {digest}"):
        store_gradients(model, changed, tmp_path / "s", **again)
    renamed = [{**train[0], "language": "z"}, *train[1:]]
    with pytest.raises(NotComparableError, match=f"examples is {digest}.*expected {digest}"):
        store_gradients(model, renamed, tmp_path / "s", **again)
    with pytest.raises(NotComparableError, match="number of examples is 7; expected 6"):
        store_gradients(model, train[:-1], tmp_path / "s", **again)
    # One number of a parameter that is not tracked.
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 3] += 1e-3
    with pytest.raises(
        NotComparableError, match=f"model at the model as given is {digest}.*expected {digest}"
    ):
        store_gradients(model, train, tmp_path / "s", **again)
    other = makers.make("xlm_roberta").float()
    rows, _ = data("xlm_roberta")
    with pytest.raises(NotComparableError, match=r"model is Bert.*expected XLMRoberta"):
        store_gradients(other, rows, tmp_path / "s", role="training",
                        **options_for("xlm_roberta", projection=4))  # fmt: skip


def test_queries_of_another_model_or_projection_are_refused(tmp_path):
    model, _, options = made(tmp_path)
    _, test = data("bert")
    kept = GradientStore.open(tmp_path / "s")
    projected = store_gradients(model, test, tmp_path / "p", role="test", projection=4, **options)
    with pytest.raises(NotComparableError, match=r"projection of the queries is {.*None, as"):
        kept.score(projected)
    move(model, 5)
    moved = store_gradients(model, test, tmp_path / "m", role="test", **options)
    with pytest.raises(NotComparableError, match="no gradients of all queries by the model at"):
        kept.score(moved)


def test_rates_are_no_part_of_gradients_and_the_last_checkpoint_is_one_of_all(
    tmp_path, monkeypatch
):
    model = makers.make("bert").float()
    train, test = data("bert")
    points = two_points(model)
    store = tmp_path / "s"
    attribute(model, train, test, store=store, **options_for("bert", checkpoints=points))
    others = [(state, 10 * eta) for state, eta in points]
    for more in ({"checkpoints": others}, {"checkpoints": points, "method": "final"}):
        exact = attribute(model, train, test, **options_for("bert", **more))
        with counting(monkeypatch) as seen:
            found = attribute(model, train, test, store=store, **options_for("bert", **more))
        np.testing.assert_allclose(found.scores, exact.scores, rtol=1e-6, atol=1e-6)
        assert set(seen) == {2}
        assert sum(seen) == len(test) * len(found.provenance.settings["checkpoints"])
    strange = [(points[0][0], 1.0), ({k: 2 * v for k, v in points[1][0].items()}, 1.0)]
    with pytest.raises(NotComparableError, match="model at the given tensors is SHA-256"):
        attribute(model, train, test, store=store, **options_for("bert", checkpoints=strange))


def test_a_subnetwork_is_part_of_what_a_store_is_of(tmp_path):
    from subnet.subnetwork import Subnetwork

    model = makers.make("bert").float()
    train, test = data("bert")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    rng = np.random.default_rng(0)
    masks = [
        Subnetwork.from_arrays(
            {name: rng.permutation(256).reshape(16, 16) < 99}, language="de", base="tiny"
        )
        for _ in range(2)
    ]
    options = options_for("bert", store=tmp_path / "s")
    exact = attribute(model, train, test, subnetwork=masks[0], **options_for("bert")).scores
    found = attribute(model, train, test, subnetwork=masks[0], **options).scores
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-7)
    with pytest.raises(NotComparableError, match=r"mask_sha256 is \w+; expected \w+"):
        attribute(model, train, test, subnetwork=masks[1], **options)


def test_a_disk_that_is_full_leaves_whole_files_and_a_clear_line(tmp_path, monkeypatch):
    model = makers.make("bert").float()
    train, _ = data("bert")
    options = options_for("bert", role="training", shard_size=1)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(OutputError, match=r"needs [\d,]+ bytes more .* the disk has 1,000; t"):
            store_gradients(model, train, tmp_path / "s", **options)
    assert not list((tmp_path / "s").glob("*.safetensors"))
    # What was free beforehand may be gone: no file may grow beyond its first half.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot be written \(.*too large.*make space and"):
            store_gradients(model, train, tmp_path / "s", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(hashes(tmp_path / "s")) == ["examples.json", "header.json"]
    store_gradients(model, train, tmp_path / "s", **options)
    store_gradients(model, train, tmp_path / "t", **options)
    assert hashes(tmp_path / "s") == hashes(tmp_path / "t")


def test_what_is_no_store_or_is_damaged_is_refused(tmp_path):
    model, train, options = made(tmp_path)
    path = tmp_path / "s"
    with pytest.raises(MissingInputError, match=r"has no header\.json; expected a gradient store"):
        GradientStore.open(tmp_path)
    (tmp_path / "f").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    again = {**options, "role": "training"}
    with pytest.raises(OutputError, match="is a file"):
        store_gradients(model, train, tmp_path / "f", **again)
    with pytest.raises(OutputError, match=r"holds thesis\.tex and no header\.json"):
        store_gradients(model, train, tmp_path / "full", **again)
    shard = next(path.glob("checkpoint-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    with pytest.raises(FileFormatError, match=r"shard-000000\.safetensors: is damaged .*remove it"):
        next(GradientStore.open(path).gradients())
    shard.unlink()
    with pytest.raises(MissingInputError, match="1 of 1 shards are not there"):
        next(GradientStore.open(path).gradients())
    store_gradients(model, train, path, **again)
    assert shard.read_bytes() == whole
    header = path / "header.json"
    text = header.read_text()
    for wrong, message in (
        ("{", "is not JSON"), ("{}", "is no header"),
        (text.replace('"format": 1', '"format": 9'), "of format 9; expected format 1"),
        (text.replace('"blocks"', '"blokcs"'), "is damaged"),
    ):  # fmt: skip
        header.write_text(wrong)
        with pytest.raises(FileFormatError, match=message):
            GradientStore.open(path)
    header.write_text(text)
    (path / "examples.json").unlink()
    with pytest.raises(MissingInputError, match=r"has no examples\.json"):
        GradientStore.open(path)


def test_two_runs_do_not_write_to_one_store(tmp_path):
    import fcntl

    model, train, options = made(tmp_path)
    with (tmp_path / "s" / "header.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="is being written by another run; wait"):
            store_gradients(model, train, tmp_path / "s", role="training", **options)
    store_gradients(model, train, tmp_path / "s", role="training", **options)


def test_a_gradient_that_is_not_finite_is_not_stored(tmp_path):
    model = nn.Linear(3, 1)
    rows = [{"x": torch.ones(3), "id": "fine"}, {"x": torch.zeros(3), "id": "bad"}]

    def loss(m, batch):
        return m(batch["x"])[:, 0].sub(m.bias).abs().sqrt()  # at 0 the root has no derivative

    with pytest.raises(InputError, match=r"gradient of training example 1 \(id 'bad'\) is not fin"):
        store_gradients(model, rows, tmp_path / "s", role="training", loss_fn=loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; expected float64 or float32"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"role": "dev"}, "role is 'dev'; expected 'training' or 'test'"),
        ({"projection": 0}, "projection is 0; expected a whole number"),
        ({"projection": "64"}, "projection is '64'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path, options, message):
    train, _ = data("bert")
    with pytest.raises(InputError, match=message):
        store_gradients(
            makers.make("bert"), train, tmp_path / "s",
            **{**options_for("bert"), "role": "training", **options},
        )  # fmt: skip
    assert not (tmp_path / "s").exists()


def test_a_baseline_takes_neither_store_nor_projection(tmp_path):
    train, test = data("bert")
    for options in ({"store": tmp_path}, {"projection": 3}, {"memory": 5}):
        with pytest.raises(InputError, match="is given for 'random', which uses no gradients"):
            attribute(makers.make("bert"), train, test, method="random", **options)


def test_collected_gradients_are_stored_as_they_are(tmp_path):
    """What comes back is what one backward pass per example gives."""
    model, train, _ = made(tmp_path)
    kept = GradientStore.open(tmp_path / "s")
    names = list(track(model).shapes)
    expected = oracles.gradients(model, train, makers.collate_for("bert"), names)
    for numbers, blocks in kept.gradients():
        for name in names:
            torch.testing.assert_close(blocks[name], expected[name][numbers], rtol=1e-4, atol=1e-6)
    ((numbers, blocks),) = kept.gradients(numbers=[4, 1])
    assert numbers == [1, 4]
    torch.testing.assert_close(blocks[names[0]], expected[names[0]][[1, 4]], rtol=1e-4, atol=1e-6)
    plain = [{k: v for k, v in row.items() if k not in oracles.ABOUT} for row in train[:2]]
    own = collect(model, track(model), makers.collate_for("bert")(plain)).gradients()
    ((_, first),) = kept.gradients(numbers=[0, 1])
    assert all(torch.equal(first[name], own[name]) for name in names)
