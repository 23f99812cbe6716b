"""The demo's data: parallel, split by concept, and free of what manufactures a script effect."""

import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from babel import Locale

from subnet.errors import InputError, UnknownLanguageError
from subnet.language import parse_language
from subnet.training import (
    DEFAULT_LANGUAGES,
    MASSIVE_LANGUAGES,
    DemoData,
    DemoSettings,
    build_tokenizer,
    load_data,
    resolve_languages,
)
from subnet.training.terms import PHRASE_KINDS, TERM_KINDS, read_terms


@pytest.fixture(scope="module", params=["default", "all"])
def data(request: pytest.FixtureRequest) -> DemoData:
    return load_data(resolve_languages(request.param))


def by_language(data: DemoData, split: str) -> dict[str, list]:
    found = defaultdict(list)
    for example in getattr(data, split):
        found[example.language].append(example)
    return found


def test_the_default_has_twelve_languages_in_at_least_eight_scripts_with_shared_ones() -> None:
    languages = [parse_language(label) for label in DEFAULT_LANGUAGES]
    scripts = Counter(language.script for language in languages)
    assert len(languages) == 12
    assert len(scripts) >= 8
    assert scripts["Latn"] >= 3
    assert scripts["Arab"] == 2  # Arabic and Persian: one script, two families


def test_all_means_the_52_languages_of_massive_each_with_a_family_and_a_locale_of_its_own() -> None:
    languages = resolve_languages("all")
    assert len(languages) == len(MASSIVE_LANGUAGES) == 52
    assert all(language.family for language in languages)
    assert len({language.locale for language in languages}) == 52
    locales = {language.label: language.locale for language in languages}
    assert (locales["tl"], locales["pt"]) == ("fil", "pt_PT")
    assert (locales["zh-CN"], locales["zh-TW"]) == ("zh_Hans_CN", "zh_Hant_TW")


def test_any_usual_form_of_a_label_finds_the_same_words() -> None:
    usual = resolve_languages(["de", "pt", "zh-TW", "tl"])
    other = resolve_languages(["deu", "por", "zho_Hant", "fil"])
    for one, two in zip(usual, other, strict=True):
        assert read_terms(one.locale, ("territory",)) == read_terms(two.locale, ("territory",))
        assert one.family == two.family


def test_a_language_outside_massive_is_taken_where_cldr_describes_it() -> None:
    (ukrainian, _) = resolve_languages("uk,en")
    assert (ukrainian.locale, ukrainian.family) == ("uk", "")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["de", "klingonish"], UnknownLanguageError, "'klingonish' is no language code"),
        (["de", "deu"], UnknownLanguageError, "'de' and 'deu' are the same language"),
        (["de", "akk"], UnknownLanguageError, "CLDR has no words for 'akk'"),
        (["de", "de>en"], UnknownLanguageError, "'de>en' is not a single language"),
        (["de"], InputError, "1 language was asked for; expected at least two"),
        ([], InputError, "no language was asked for"),
    ],
)
def test_languages_that_cannot_be_had_are_one_clear_line(labels, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        resolve_languages(labels)
    assert "\n" not in str(caught.value)


def test_every_language_has_the_same_concepts_on_the_same_side(data: DemoData) -> None:
    for split in ("train", "validation", "test"):
        concepts = {
            tuple((example.concept, example.label) for example in examples)
            for examples in by_language(data, split).values()
        }
        assert len(concepts) == 1  # hence the same class balance in every language
    splits = [{e.concept for e in split} for split in (data.train, data.validation, data.test)]
    assert all(splits)
    assert len(set.union(*splits)) == sum(map(len, splits))


def test_no_test_string_was_seen_in_training_in_any_language(data: DemoData) -> None:
    seen = {example.text.casefold() for example in data.train}
    assert not [example for example in data.test if example.text.casefold() in seen]


def test_no_string_carries_two_labels_whatever_its_case(data: DemoData) -> None:
    labels = defaultdict(set)
    for example in (*data.train, *data.validation, *data.test):
        labels[example.text.casefold()].add(example.label)
    assert {len(kinds) for kinds in labels.values()} == {1}


def test_ids_are_unique_over_all_languages(data: DemoData) -> None:
    ids = [example.id for example in (*data.train, *data.validation, *data.test)]
    assert len(set(ids)) == len(ids)


def test_every_language_has_enough_concepts_and_a_majority_far_from_all(data: DemoData) -> None:
    for row in data.report:
        assert row["train_examples"] >= 400
        assert row["test_examples"] >= 200
        assert row["majority_share"] < 0.3
    assert set(data.kinds) == set(TERM_KINDS)


def test_less_than_one_percent_is_cut_in_any_language(data: DemoData) -> None:
    assert DemoSettings().max_length >= 96 + 2
    assert all(row["truncated_share"] < 0.01 for row in data.report)


def test_the_report_counts_what_it_says() -> None:
    data = load_data(resolve_languages(["en", "tl", "th"]), max_bytes=30)
    english = {
        e.concept: e.text for e in (*data.train, *data.validation, *data.test) if e.language == "en"
    }
    for row in data.report:
        own = [
            e for e in (*data.train, *data.validation, *data.test) if e.language == row["language"]
        ]
        n = len(own)
        cut = sum(len(e.text.encode("utf-8")) > 30 for e in own)
        counts = Counter(e.label for e in own)
        assert row["train_examples"] + row["validation_examples"] + row["test_examples"] == n
        assert row["truncated_share"] == cut / n
        assert row["equal_to_english_share"] == sum(e.text == english[e.concept] for e in own) / n
        assert row["majority_share"] == max(counts.values()) / n
        assert row["bytes_per_character"] == pytest.approx(
            len("".join(e.text for e in own).encode()) / len("".join(e.text for e in own))
        )
    tagalog = next(row for row in data.report if row["language"] == "tl")
    assert tagalog["equal_to_english_share"] > 0.5  # most Filipino names are the English ones


def test_the_side_of_a_concept_depends_on_the_seed_but_not_on_the_other_languages() -> None:
    few = load_data(resolve_languages(["en", "de"]), max_concepts_per_kind=1000)
    more = load_data(resolve_languages(["en", "de", "th"]), max_concepts_per_kind=1000)
    other = load_data(resolve_languages(["en", "de"]), max_concepts_per_kind=1000, seed=1)
    test = {example.concept for example in few.test}
    both = {e.concept for e in (*more.train, *more.validation, *more.test)} & {
        e.concept for e in (*few.train, *few.validation, *few.test)
    }
    moved = {concept for concept in both if (concept in test) != (concept in _tested(more))}
    assert len(moved) < 0.05 * len(both)  # only where the cut falls
    assert test != _tested(other)


def _tested(data: DemoData) -> set[str]:
    return {example.concept for example in data.test}


def test_a_concept_that_collides_in_one_language_is_dropped_in_all() -> None:
    # "Welsh" as a language and "Wales" as a territory are one word in Thai, two in English.
    terms = {label: read_terms(label, TERM_KINDS) for label in ("en", "th")}
    by_text = defaultdict(set)
    for concept, text in terms["th"].items():
        if concept in terms["en"]:
            by_text[text.casefold()].add(concept)
    colliding = {
        concept
        for concepts in by_text.values()
        if len({concept.split(":")[0] for concept in concepts}) > 1
        for concept in concepts
    }
    assert colliding
    data = load_data(resolve_languages(["en", "th"]), max_concepts_per_kind=10_000)
    assert not colliding & {
        example.concept for example in (*data.train, *data.validation, *data.test)
    }


def test_terms_are_those_of_babel() -> None:
    locale = Locale.parse("sw")
    terms = read_terms("sw")
    assert terms["territory:DE"] == locale.territories["DE"] == "Ujerumani"
    assert terms["currency:EUR"] == locale.currencies["EUR"]
    hindi = Locale.parse("hi").time_zones["Africa/Cairo"]["city"]
    assert read_terms("hi", ("city",))["city:Africa/Cairo"] == hindi
    assert terms["unit:length-meter"] == "mita"


@pytest.mark.parametrize("kind", PHRASE_KINDS)
def test_phrases_are_parallel_and_written_by_the_locale(kind: str) -> None:
    english, korean = read_terms("en", (kind,)), read_terms("ko", (kind,))
    assert list(english) == list(korean)
    assert len(set(english.values())) >= 100
    # Money in a foreign currency is written alike in both.
    assert (
        sum(english[key] == korean[key] for key in english) < 0.9 * len(english) or kind == "money"
    )


def test_phrases_can_be_labels_too() -> None:
    data = load_data(resolve_languages(["en", "ru"]), kinds=("territory", "date", "list"))
    assert data.kinds == ("territory", "date", "list")
    assert any(
        example.text == "January 1, 1990" for example in (*data.train, *data.validation, *data.test)
    )


def test_an_unknown_kind_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="'animal' is no kind of term; expected some of territory"):
        load_data(resolve_languages(["en", "de"]), kinds=("territory", "animal"))


def test_too_few_kinds_in_common_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="1 kind of term in common; expected at least two"):
        load_data(resolve_languages(["en", "de"]), kinds=("territory",))


def test_every_byte_is_a_token_and_every_text_comes_back() -> None:
    tokenizer = build_tokenizer(160)
    data = load_data(resolve_languages("all"))
    texts = [example.text for example in data.test[::7]] + ["", " a  b ", "\x00\n", "𝒳🙂"]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.encode("utf-8")) + 2
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == 256 + 3
    assert tokenizer.pad_token_id == 0
    assert len({tuple(tokenizer(text)["input_ids"]) for text in texts}) == len(set(texts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 10, "heads": 4}, "width 10 cannot be divided among 4 heads"),
        ({"test_share": 1.0}, "test_share is 1.0; expected a share between 0 and 1"),
        ({"base_steps": 0}, "base_steps is 0; expected a number above 0"),
        ({"replicates": -1}, "replicates is -1; expected 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message) -> None:
    with pytest.raises(InputError, match=message):
        DemoSettings(**changes)


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = (
        "import sys, subnet.training;"
        "print([m for m in ('torch','transformers','pandas','scipy','babel') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
