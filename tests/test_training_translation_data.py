"""Directions of translation from CLDR and from files: parallel, split by meaning, well refused."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from subnet.errors import (
    FileFormatError,
    InputError,
    MissingInputError,
    UnknownLanguageError,
)
from subnet.training._translation_files import meanings, read_unsplit, split
from subnet.training.terms import read_terms
from subnet.training.translation_data import (
    PARTS,
    directions_between,
    kinds_of_direction,
    load_directions,
    read_translations,
)

TATOEBA = Path(__file__).parents[2] / "shared/data/tatoeba"


@pytest.fixture(scope="module")
def data():
    return load_directions(directions_between(["en", "de", "ru"]), max_concepts_per_kind=40)


def test_every_direction_has_the_same_concepts_in_the_words_of_cldr(data):
    assert data.directions == ("en>de", "en>ru", "de>en", "de>ru", "ru>en", "ru>de")
    words = {language: read_terms(language) for language in ("en", "de", "ru")}
    for part in PARTS:
        rows = getattr(data, part)
        by_direction = {
            direction: [row["concept"] for row in rows if row["language"] == direction]
            for direction in data.directions
        }
        assert len({tuple(concepts) for concepts in by_direction.values()}) == 1
        assert sum(map(len, by_direction.values())) == len(rows) > 0
        for row in rows:
            assert row["source"] == words[row["source_language"]][row["concept"]]
            assert row["target"] == words[row["target_language"]][row["concept"]]
            assert row["language"] == f"{row['source_language']}>{row['target_language']}"
    ids = [row["id"] for part in PARTS for row in getattr(data, part)]
    assert len(set(ids)) == len(ids)


def test_no_concept_and_no_text_is_on_two_sides(data):
    for a, b in combinations(PARTS, 2):
        for key in ("concept", "source", "target"):
            one, two = ({str(row[key]).casefold() for row in getattr(data, p)} for p in (a, b))
            assert not one & two
    assert all(row["test_source_seen_share"] == 0 for row in data.report)
    report = {row["language"]: row for row in data.report}
    own = [row for p in PARTS for row in getattr(data, p) if row["language"] == "en>de"]
    same = sum(row["source"] == row["target"] for row in own)
    assert report["en>de"]["copy_share"] == same / len(own) > report["en>ru"]["copy_share"]
    assert report["ru>en"]["source_bytes_per_character"] > 1.5
    assert report["ru>en"]["train_examples"] == len(data.train) / 6


def test_directions_are_all_pairs_or_those_of_a_pivot():
    assert directions_between(["a", "b"]) == ("a>b", "b>a")
    assert directions_between(["en", "de", "fr"], pivot="de") == (
        "en>de",
        "de>en",
        "de>fr",
        "fr>de",
    )
    with pytest.raises(InputError, match="the pivot 'sv' is none of the languages en, de"):
        directions_between(["en", "de"], pivot="sv")


def test_what_was_seen_of_a_direction():
    trained = ["de>en", "en>ru", "fr>ru"]
    expected = {
        "deu>eng": "seen_pair", "en>rus": "seen_pair", "de>ru": "unseen_pair",
        "fr_Latn>en": "unseen_pair", "sv>en": "unseen_source", "ru>en": "unseen_source",
        "de>sv": "unseen_target", "en>de": "unseen_target", "sv>fi": "unseen_both",
        "ru>de": "unseen_both",
    }  # fmt: skip
    found = kinds_of_direction(trained, list(expected))
    assert dict(zip(found["language"], found["group"], strict=True)) == expected
    assert list(found.columns) == ["language", "source_language", "target_language", "group"]
    assert list(found.iloc[0])[1:3] == ["deu", "eng"]
    assert set(kinds_of_direction([], ["de>en"])["group"]) == {"unseen_both"}
    with pytest.raises(InputError, match="'de' is no direction"):
        kinds_of_direction(["de"], ["de>en"])


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def row(key, language, source, target, **more):
    return {"id": key, "language": language, "source": source, "target": target, **more}


def test_json_lines_keep_the_split_that_they_come_with(tmp_path):
    write(tmp_path / "train.jsonl", [row("1", "deu>eng", "ja", "yes", concept="y"),
                                     row("2", "eng>deu", "no", "nein")])  # fmt: skip
    write(
        tmp_path / "test.jsonl", [row("3", "deu>eng", "ja", "yeah"), row("4", "eng>deu", "a", "b")]
    )
    data = read_translations(tmp_path)
    assert data.directions == ("deu>eng", "eng>deu")
    assert [r["id"] for r in data.train] == ["1", "2"]
    assert (data.train[0]["source_language"], data.train[0]["concept"]) == ("deu", "y")
    assert [r["id"] for r in data.test] == ["3", "4"]
    assert data.validation == ()
    report = {r["language"]: r for r in data.report}
    assert report["deu>eng"]["test_source_seen_share"] == 1
    assert report["deu>eng"]["test_target_seen_share"] == 0
    # Wanted by other labels, and one only.
    (one,) = {r["language"] for r in read_translations(tmp_path, directions=["en>de"]).train}
    assert one == "en>de"


def test_a_table_is_read_as_it_stands(tmp_path):
    """Quotation marks quote nothing, and a carriage return is no letter."""
    text = 'eng\tdeu\r\n"Hi\t"Hallo\r\nHe said "no".\tEr sagte „nein“.\r\n\r\n'
    path = tmp_path / "deu.tsv"
    path.write_bytes(text.encode())
    rows = read_unsplit(path)
    assert [(r["language"], r["source"], r["target"]) for r in rows] == [
        ("eng>deu", '"Hi', '"Hallo'),
        ("deu>eng", '"Hallo', '"Hi'),
        ("eng>deu", 'He said "no".', "Er sagte „nein“."),
        ("deu>eng", "Er sagte „nein“.", 'He said "no".'),
    ]
    assert len({r["id"] for r in rows}) == 4


def test_texts_that_are_connected_mean_the_same_and_others_do_not():
    def of(language, source, target, concept=""):
        before, _, after = language.partition(">")
        return {"source_language": before, "target_language": after, "source": source,
                "target": target, "concept": concept}  # fmt: skip

    rows = [
        of("eng>deu", "Yes.", "Ja."),
        of("en>fr", "yes.", "Oui."),  # the same text by another label, in other letters
        of("fra>rus", "Oui.", "Да."),  # connected through French alone
        of("de>fr", "Nein.", "Non."),
        of("sv>nb", "Ja.", "Ja."),  # the same letters in other languages
        of("fi>et", "kyllä", "jah", "yes"),
        of("it>es", "sì", "sí", "yes"),  # connected by its concept
    ]
    found = meanings(rows)
    assert found[0] == found[1] == found[2]
    assert found[5] == found[6]
    assert len({found[0], found[3], found[4], found[5]}) == 4
    assert meanings(rows[::-1]) == found[::-1]


def test_a_split_depends_on_seed_and_meaning_alone():
    rows = [
        {**row(str(i), "de>en", f"w{i // 2}", f"v{i // 2}" if i % 2 else f"u{i}"), "concept": "",
         "source_language": "de", "target_language": "en"}
        for i in range(800)
    ]  # fmt: skip
    parts = split(rows, 0.3, 0.1, 0)
    sizes = {part: len(own) / 800 for part, own in parts.items()}
    assert sizes == pytest.approx({"train": 0.6, "validation": 0.1, "test": 0.3}, abs=0.06)
    sources = {part: {r["source"] for r in own} for part, own in parts.items()}
    assert all(not sources[a] & sources[b] for a, b in combinations(PARTS, 2))
    assert all(r["concept"] for own in parts.values() for r in own)
    fewer = split(rows[:100], 0.3, 0.1, 0)
    for part in PARTS:
        assert {r["source"] for r in fewer[part]} <= sources[part]
    assert {r["source"] for r in split(rows, 0.3, 0.1, 1)["test"]} != sources["test"]
    for shares in ((0, 0.1), (0.5, 0.5), (0.2, -0.1)):
        with pytest.raises(InputError, match="test_share is"):
            split(rows, *shares, 0)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.jsonl", '{"language": "de>en", "source": "a"}', InputError,
         "a.jsonl: row 1 has no 'target'; expected {"),
        ("a.jsonl", '{"id": 7, "language": "de>en", "target": "a"}', InputError,
         "a.jsonl: row 1 (7) has no 'source'"),
        ("a.jsonl", '{"language": "de>zzz1", "source": "a", "target": "b"}', UnknownLanguageError,
         "a.jsonl: 'zzz1' is no language code"),
        ("a.jsonl", "[1]", FileFormatError, "a.jsonl: line 1 is a JSON list"),
        ("a.jsonl", "", InputError, "a.jsonl: has no rows"),
        ("a.jsonl", '{"id": 1, "language": "de>en", "source": "a", "target": "b"}\n' * 2,
         InputError, "a.jsonl: has the id '1' twice"),
        ("a.tsv", "eng\nx", FileFormatError, "a.tsv: has 1 columns; expected two columns, a tab"),
        ("a.tsv", "eng\tq1\nx\ty", UnknownLanguageError, "a.tsv: 'q1' is no language code"),
        ("a.tsv", "eng\ten\nx\ty", FileFormatError, "a.tsv: has two columns of English"),
        ("a.tsv", "eng\tdeu\nx\ty\nx", FileFormatError, "a.tsv: line 3 has 1 fields"),
        ("a.tsv", "eng\tdeu\nx\t ", FileFormatError, "a.tsv: line 2 has an empty field"),
        ("a.tsv", "eng\tdeu\n", InputError, "a.tsv: has no rows under its header"),
        ("a.tsv", b"eng\tdeu\nx\t\xff", FileFormatError, "is not UTF-8"),
        ("train.jsonl", "", MissingInputError, "has train.jsonl and no test.jsonl"),
        ("test.jsonl", "", MissingInputError, "has test.jsonl and no train.jsonl"),
        ("notes.md", "", MissingInputError, "holds no translations; expected train.jsonl and test"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, error, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error) as caught:
        read_translations(tmp_path)
    assert message in str(caught.value)


def test_directions_that_cannot_be_had_are_named(tmp_path):
    write(
        tmp_path / "train.jsonl", [row("1", "de>en", "ja", "yes"), row("2", "fr>en", "oui", "yes")]
    )
    write(tmp_path / "test.jsonl", [row("3", "de>en", "ja", "yes")])
    message = "has no row of de>fr to train; expected rows of it beside those of de>en, fr>en"
    with pytest.raises(MissingInputError, match=message):
        read_translations(tmp_path, directions=["de>fr"])
    with pytest.raises(MissingInputError, match="has no row of fr>en to test"):
        read_translations(tmp_path)
    with pytest.raises(MissingInputError, match="is not there"):
        read_translations(tmp_path / "other.jsonl")
    with pytest.raises(InputError, match="'de>en' and 'deu>eng' are the same direction; remove"):
        load_directions(["de>en", "deu>eng"])
    with pytest.raises(InputError, match="no direction was asked for"):
        load_directions([])
    with pytest.raises(UnknownLanguageError, match="CLDR has no words for 'tlh'"):
        load_directions(["de>tlh"])


@pytest.mark.skipif(not TATOEBA.is_dir(), reason="needs ../shared/data/tatoeba")
def test_tatoeba_is_split_so_that_no_sentence_is_on_two_sides():
    data = read_translations(TATOEBA, directions=["en>de", "de>en", "en>zh", "jpn>eng"])
    assert data.directions == ("en>de", "de>en", "en>zh", "jpn>eng")
    assert sum(len(getattr(data, part)) for part in PARTS) == 4000
    for report in data.report:
        assert report["test_source_seen_share"] == report["test_target_seen_share"] == 0
        assert 120 < report["test_examples"] < 280
