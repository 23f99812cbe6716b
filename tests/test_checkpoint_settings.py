"""`subnet.toml`: what it may say, and what is refused in one line."""

import pytest

from subnet.checkpoint.settings import CheckpointSettings, read_settings
from subnet.errors import InputError


def settings(tmp_path, text):
    (tmp_path / "subnet.toml").write_text(text)
    return read_settings(tmp_path)


def test_without_a_file_everything_has_its_default(tmp_path):
    assert read_settings(tmp_path) == CheckpointSettings()


def test_everything_that_may_be_said(tmp_path):
    found = settings(
        tmp_path,
        """
        format = 1
        base = "base"
        order = ["de", "fr"]
        task = "kinds"
        [languages.run-7]
        tag = "de"
        [scores.accuracy]
        higher_is_better = true
        chance = 0.2
        range = [0, 100]
        [stages."01-de"]
        learning_rate = 3e-3
        steps = 60
        optimizer = "adamw"
        examples = "train.jsonl"
        """,
    )
    assert found.tags == {"run-7": "de"}
    assert found.scores["accuracy"].range == (0, 100)
    assert found.stages["01-de"].learning_rate == 3e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ordre = []",
            r"unknown key 'ordre'; expected one of base, format, .*did you mean 'order'\?",
        ),
        (
            "[scores.acc]\nhigher = true",
            r"unknown key 'scores\.acc\.higher'.*did you mean 'higher_is_better'\?",
        ),
        ('[languages.x]\ntags = "de"', r"did you mean 'tag'\?"),
        (
            '[stages."01-de"]\nlr = 1',
            r"unknown key 'stages\.01-de\.lr'; expected one of examples, learning_rate",
        ),
        ("format = 2", "format is 2; expected 1"),
        ('order = "de"', "order is 'de'; expected a list"),
        ("order = [1]", r"order\.0 is 1; expected a string"),
        ('[languages]\nde = "de"', r"languages\.de is 'de'; expected a table"),
        ("[languages.de]", r"languages\.de has no 'tag'"),
        ("[scores.f1]\nrange = [1]", r"scores\.f1\.range is \[1\]; expected a list of two numbers"),
        ("[scores.f1]\nrange = [1, 0]", r"range is \[1, 0\]; expected the lowest value first"),
        ("[scores.f1]\nhigher_is_better = 3", "higher_is_better is 3; expected true or false"),
        ('[stages.a]\nlearning_rate = "x"', r"stages\.a\.learning_rate is 'x'; expected a number"),
        ('base = "../elsewhere"', r"the path '\.\./elsewhere' leaves the directory"),
        ('base = "/elsewhere"', "the path '/elsewhere' leaves the directory"),
        ('[stages."01-de"]\nexamples = "../x.jsonl"', "leaves the directory"),
    ],
)
def test_what_it_may_not_say(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        settings(tmp_path, text)
    assert "subnet.toml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_directory_leaves_it(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "base").symlink_to(tmp_path)
    with pytest.raises(InputError, match="leaves the directory"):
        settings(inside, 'base = "base"')


def test_a_base_that_is_not_there_is_named(tmp_path):
    from subnet.checkpoint import open_checkpoint
    from subnet.errors import MissingInputError

    (tmp_path / "subnet.toml").write_text('base = "model0"')
    with pytest.raises(MissingInputError, match="the base 'model0' is not there"):
        open_checkpoint(tmp_path)
