"""Settings of `subnet train` that would have no effect are refused; those that have one are not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from file_trainings import write_lines
from subnet.errors import InputError
from subnet.training import TrainingConfig, explain, read_config, train
from subnet.training._plan import plan_runs
from subnet.training._procedure import check_procedure
from subnet.training._without_effect import _RULES
from subnet.training.config import BaseRecipe
from subnet.training.corpora import load_corpus
from subnet.training.demo import _configuration
from subnet.training.settings import DemoSettings
from training_makers import small_config

ROOT = Path(__file__).parents[1]
FULL = {"tuning": "full"}
TRANSLATION = {"task": "translation", "languages": ["de>en", "en>de"]}


@pytest.mark.parametrize(
    ("parts", "says", "remedy"),
    [
        ({"data": {"path": "x"}}, r"data.path is 'x', which has.*data.source is 'cldr'",
         {"data": {"path": "x", "source": "files"}}),
        ({"data": {"source": "files", "kinds": ["city"], "max_concepts_per_kind": 9}},
         r"data.kinds is \['city'\] and data.max_concepts_per_kind is 9, which have no effect",
         {"data": {"kinds": ["city"], "max_concepts_per_kind": 9}}),
        ({"data": {"source": "files", "test_share": 0.2}}, r"data.test_share is 0.2",
         {**TRANSLATION, "data": {"source": "files", "test_share": 0.2}}),
        ({"model": {"name": "m", "layers": 9}}, r"model.layers is 9.*model.name is 'm'",
         {"model": {"layers": 9}}),
        ({"model": {"kind": "decoder"}}, r"model.kind is 'decoder'.*task is 'sequence-",
         {**TRANSLATION, "model": {"kind": "decoder"}}),
        ({**TRANSLATION, "model": {"initializer_range": 0.2}}, r"model.initializer_range is 0.2",
         {**TRANSLATION, "model": {"initializer_range": 0.2, "kind": "decoder"}}),
        ({"base": {"steps": 0, "conflict_every": 2}}, r"base.conflict_every is 2.*base.steps is 0",
         {"base": {"conflict_every": 2}}),
        ({"base": {"steps": 0, "method": "meta", "support": 3, "batch_size": 2}},
         r"base.method is 'meta' and base.support is 3, which have.*leave them out",
         {"base": {"method": "meta", "support": 3}}),
        ({"base": {"method": "pcgrad", "query": 3, "inner_rate": 0.2}},
         r"base.query is 3 and base.inner_rate is 0.2.*base.method is 'pcgrad'",
         {"base": {"method": "meta", "query": 3, "inner_rate": 0.2}}),
        ({"base": {"method": "meta", "batch_size": 12}},
         r"base.batch_size is 12.*base.method is 'meta'.*set base.support and base.query",
         {"base": {"method": "pcgrad", "batch_size": 12}}),
        ({"adaptation": {**FULL, "rank": [2, 4], "dropout": 0.3, "targets": "x"}},
         r"rank is \[2, 4\] and adaptation.targets is 'x' and adaptation.dropout is 0.3.*'full'",
         {"adaptation": {"rank": [2, 4], "dropout": 0.3, "targets": "x"}}),
        ({"adaptation": {**FULL, "alpha_over_rank": 0.7}}, r"adaptation.alpha_over_rank is 0.7",
         {"adaptation": {"alpha_over_rank": 0.7}}),
        ({"adaptation": {"partial": "lower_layers"}}, r"partial is 'lower_layers'.*sharing is 'fu",
         {"adaptation": {"partial": "lower_layers", "sharing": ["none", "partial"]}}),
        ({"adaptation": {"sharing": "partial", "shared_layers": 0.3}}, r"shared_layers is 0.3",
         {"adaptation": {"sharing": "partial", "partial": "lower_layers", "shared_layers": 0.3}}),
        ({**TRANSLATION, "adaptation": {"head": "shared"}}, r"adaptation.head is 'shared'.*task is",
         {"adaptation": {"head": "shared"}}),
        ({"adaptation": {**FULL, "sharing": "none"},
          "sequence": {"adapters": True, "replicates": 1}, "subnetworks": {"method": "sparse"}},
         r"sequence.replicates is 1.*subnetworks.method is 'sparse'",
         {"adaptation": {**FULL, "sharing": ["none", "full"]},
          "sequence": {"adapters": True, "replicates": 1}, "subnetworks": {"method": "sparse"}}),
        ({"subnetworks": {"density": 0.2}}, r"subnetworks.density is 0.2.*method is 'none'",
         {"adaptation": FULL, "subnetworks": {"method": "sparse", "density": 0.2}}),
        ({"subnetworks": {"method": "static", "masks": "m", "density": 0.5, "every": 3}},
         r"subnetworks.density is 0.5.*subnetworks.method is 'static'.*'dynamic' or 'sparse'",
         {"adaptation": FULL, "subnetworks": {"method": "dynamic", "density": 0.5, "every": 3}}),
        ({"subnetworks": {"method": "static", "masks": "m", "every": 3, "score": "fisher"}},
         r"subnetworks.every is 3 and subnetworks.score is 'fisher'",
         {"adaptation": FULL, "subnetworks": {"method": "dynamic", "every": 3, "score": "fisher"}}),
        ({"subnetworks": {"forward": True}},
         r"subnetworks.forward is true.*let subnetworks.method be 'static' or 'dynamic'",
         {"adaptation": FULL, "subnetworks": {"method": "dynamic", "forward": True}}),
        ({"subnetworks": {"during": "both"}}, r"subnetworks.during is 'both'.*method is 'none'",
         {"adaptation": FULL, "base": {"method": "turns", "steps": 9},
          "subnetworks": {"method": "dynamic", "during": "both"}}),
        ({"adaptation": FULL, "base": {"steps": 0},
          "subnetworks": {"method": "dynamic", "during": "base"}},
         r"subnetworks.during is 'base'.*base.steps is 0.*let base.steps be 1 or more",
         {"adaptation": FULL, "base": {"method": "turns", "steps": 9},
          "subnetworks": {"method": "dynamic", "during": "base"}}),
        ({"training": {"conflict_examples": 5}}, r"training.conflict_examples is 5.*every is 0",
         {"training": {"conflict_examples": 5, "conflict_every": 1}}),
        ({"base": {"conflict_examples": 5}}, r"base.conflict_examples is 5.*every is 0",
         {"base": {"conflict_examples": 5, "conflict_every": 1}}),
        ({"adaptation": FULL, "subnetworks": {"method": "sparse", "forward": True}},
         r"subnetworks.forward is true.*subnetworks.method is 'sparse'",
         {"subnetworks": {"method": "static", "masks": "m", "forward": True}}),
        ({"translation": {"beams": 4, "chat": True}}, r"chat is true and translation.beams is 4",
         {**TRANSLATION, "translation": {"beams": 4, "chat": True}}),
        ({**TRANSLATION, "translation": {"temperature": 0.5}}, r"temperature is 0.5.*is false",
         {**TRANSLATION, "translation": {"temperature": 0.5, "alignment": True}}),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_refused_and_the_remedy_is_taken(parts, says, remedy):
    for config in _also_read_again(parts):
        with pytest.raises(InputError, match=says):
            check_procedure(config)
    for config in _also_read_again(remedy):
        check_procedure(config)


def _also_read_again(parts):
    config = TrainingConfig.model_validate(parts)
    return config, TrainingConfig.model_validate(config.model_dump(mode="json"))


def test_every_rule_names_keys_that_there_are():
    config = TrainingConfig()
    for rule in _RULES:
        known = type(getattr(config, rule.table)).model_fields
        assert set(rule.keys) <= set(known)
        *tables, key = rule.decides.split(".")
        deciding = getattr(config, tables[0]) if tables else config
        assert key in type(deciding).model_fields


def test_a_default_that_is_written_out_is_not_refused(tmp_path):
    (tmp_path / "run.toml").write_text(explain(), encoding="utf-8")
    check_procedure(read_config(tmp_path / "run.toml"))
    other = {"base": {"steps": 0, "batch_size": 7}, "subnetworks": {"method": "none"}}
    config = TrainingConfig.model_validate(other)
    check_procedure(TrainingConfig.model_validate(config.model_dump()))


def test_what_we_ship_has_an_effect(tmp_path):
    shipped = [file.read_text() for file in (ROOT / "examples").rglob("*.toml")]
    shipped += re.findall(r"```toml\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL)
    assert len(shipped) >= 4
    for text in shipped:
        (tmp_path / "run.toml").write_text(text, encoding="utf-8")
        check_procedure(read_config(tmp_path / "run.toml"))
    check_procedure(_configuration(DemoSettings(), ("de", "fr", "ru"), 0))


@pytest.mark.parametrize("mode", ["python", "json"])
def test_no_warmup_is_recorded_where_none_happens(mode):
    config = TrainingConfig.model_validate({"base": {"schedule": "constant"}})
    assert config.model_dump()["base"]["warmup"] == config.base.recipe.warmup == 0
    assert TrainingConfig.model_validate(config.model_dump(mode=mode)) == config
    assert BaseRecipe(schedule="constant").warmup == 0
    for schedule in ("linear", "cosine", "constant_with_warmup"):
        assert BaseRecipe(schedule=schedule).warmup == BaseRecipe().warmup == 0.1
    with pytest.raises(ValueError, match="constant_with_warmup"):
        BaseRecipe(schedule="constant", warmup=0.1)  # also at the value that others default to


def test_the_batch_of_a_base_is_explained_as_that_of_its_method():
    above = explain().partition("\n[base]")[2].partition("\nbatch_size")[0].splitlines()
    said = " ".join(line.removeprefix("# ") for line in above[-2:])
    assert "plain, turns, pcgrad: examples of a step" in said
    assert "meta" in said


def test_more_replicates_than_languages_are_refused_but_for_the_demo():
    parts = {"languages": ["de", "fr"], "sequence": {"adapters": True, "replicates": 3}}
    with pytest.raises(InputError, match=r"replicates is 3, and 2 languages are.*expected 2 or le"):
        plan_runs(small_config(**parts), ["de", "fr"])
    parts["sequence"]["replicates"] = 2
    assert len(plan_runs(small_config(**parts), ["de", "fr"])) == 1
    assert _configuration(DemoSettings(), ("de", "fr"), 0).sequence.replicates == 2
    assert _configuration(DemoSettings(), ("de", "fr", "ru", "hi"), 0).sequence.replicates == 3


def test_an_order_names_languages_as_the_list_of_languages_does(tmp_path):
    rows = [
        {"id": f"{name}{i}", "language": name, "text": f"a {i}", "label": "xy"[i % 2]}
        for name in ("zho_Hans", "deu_Latn")
        for i in range(4)
    ]
    for part in ("train", "test"):
        write_lines(tmp_path / f"data/{part}.jsonl", rows)
    parts = {
        "languages": ["zh", "de"],
        "data": {"source": "files", "path": "data", "max_length": 32},
        "sequence": {"orders": [["de", "zh"], ["zho_Hans", "deu"]]},
    }
    config = TrainingConfig.model_validate(parts)
    labels = load_corpus(config, tmp_path).names
    runs = plan_runs(config, labels)
    assert [run.order for run in runs] == [("deu_Latn", "zho_Hans"), ("zho_Hans", "deu_Latn")]
    for orders, says in (
        ([["de", "deu"]], r"has 'deu_Latn' 2 times"),
        ([["de", "zh"], ["deu_Latn", "cmn"]], r"an order twice"),
        ([["de", "fr"]], r"has 'fr', which is not trained; expected each of zho_Hans, deu_Latn"),
        ([["de", "no language"]], r"has 'no language', which is not trained"),
    ):
        other = TrainingConfig.model_validate({**parts, "sequence": {"orders": orders}})
        with pytest.raises(InputError, match=says):
            plan_runs(other, labels)


def test_directions_in_an_order_are_those_of_the_languages():
    config = TrainingConfig.model_validate(
        {**TRANSLATION, "sequence": {"orders": [["eng>deu", "deu>eng"]]}}
    )
    (run,) = plan_runs(config, TRANSLATION["languages"])
    assert run.order == ("en>de", "de>en")


class _Begun(Exception):
    """Training has begun."""


def _begun(*_):
    raise _Begun


@pytest.mark.parametrize("method", ["dynamic", "sparse"])
def test_the_least_density_that_selects_a_weight_is_taken(tmp_path, method):
    """Of the encoder's weights, of which the head that is trained beside them is none."""
    parts = {
        "languages": ["de", "fr"],
        "base": {"steps": 1, "batch_size": 4},
        "adaptation": {**FULL, "head": "shared"},
        "training": {"steps": 1, "batch_size": 4},
    }
    said = []
    for density, error in ((1e-9, InputError), (None, _Begun), (None, InputError)):
        if density is None:  # a little more, and a little less, than half a weight
            (size,) = map(int, re.findall(r"none of (\d+) weights", said[0]))
            density = (0.6 if error is _Begun else 0.4) / size
        config = small_config(**parts, subnetworks={"method": method, "density": density})
        with pytest.raises(error) as found:
            train(config, tmp_path / f"run-{len(said)}", progress=_begun)
        said.append(str(found.value))
    assert size == _weights_of_the_encoder()
    assert "subnetworks.density is 1e-09" in said[0]
    assert not (tmp_path / "run-0").exists()


def _weights_of_the_encoder(width=16, layers=2, feed_forward=32, vocabulary=259, positions=96):
    """By hand: BERT's embeddings, blocks and pooler."""
    norm = 2 * width
    embeddings = (vocabulary + positions + 1) * width + norm
    attention = 4 * (width * width + width) + norm
    block = attention + 2 * width * feed_forward + feed_forward + width + norm
    return embeddings + layers * block + width * width + width
