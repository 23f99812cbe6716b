"""A language is (language, script): every usual way to write it meets in one identity."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnet.errors import UnknownLanguageError
from subnet.language import LanguageIndex, looks_like_language, parse_language

MASSIVE = [
    "af-ZA", "am-ET", "ar-SA", "az-AZ", "bn-BD", "ca-ES", "cy-GB", "da-DK", "de-DE", "el-GR",
    "en-US", "es-ES", "fa-IR", "fi-FI", "fr-FR", "he-IL", "hi-IN", "hu-HU", "hy-AM", "id-ID",
    "is-IS", "it-IT", "ja-JP", "jv-ID", "ka-GE", "km-KH", "kn-IN", "ko-KR", "lv-LV", "ml-IN",
    "mn-MN", "ms-MY", "my-MM", "nb-NO", "nl-NL", "pl-PL", "pt-PT", "ro-RO", "ru-RU", "sl-SL",
    "sq-AL", "sv-SE", "sw-KE", "ta-IN", "te-IN", "th-TH", "tl-PH", "tr-TR", "ur-PK", "vi-VN",
    "zh-CN", "zh-TW",
]  # fmt: skip


@pytest.mark.parametrize(
    "labels",
    [
        ("zho_Hans", "zh-CN", "zh_Hans", "zh", "cmn", "zh-Hans-CN", "cmn_Hans"),
        ("zh-TW", "zh_Hant", "zho_Hant", "zh-HK"),
        ("ar", "arb", "ara", "arb_Arab", "ar-SA"),
        ("sw", "swh", "swa", "swh_Latn", "sw_KE"),
        ("en", "eng", "en_US", "eng_Latn", "en-GB"),
        ("ja", "jpn", "jpn_Jpan", "ja-JP"),
        ("sr", "srp_Cyrl", "sr-Cyrl-RS"),
        ("he", "iw", "heb_Hebr"),
        ("id", "in", "ind_Latn"),
        ("fil", "tl", "tl-PH"),
        ("et", "est", "ekk_Latn"),
    ],
)
def test_usual_forms_of_one_language_meet(labels):
    assert len({parse_language(label).identity for label in labels}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("zh-CN", "zh-TW"),
        ("sr_Cyrl", "sr_Latn"),
        ("pa-PK", "pa-IN"),
        ("nb", "nn"),
        ("az", "az_Arab"),
    ],
)
def test_languages_that_differ_in_script_or_name_stay_apart(one, other):
    assert parse_language(one).identity != parse_language(other).identity


@pytest.mark.parametrize(
    ("label", "script", "latin"),
    [
        ("de", "Latn", True),
        ("ru", "Cyrl", False),
        ("ja", "Jpan", False),
        ("ko", "Kore", False),
        ("hi", "Deva", False),
        ("km", "Khmr", False),
        ("pa_PK", "Arab", False),
        ("uz", "Latn", True),
        ("de>en", "Latn>Latn", True),
        ("de>ja", "Latn>Jpan", False),
    ],
)
def test_script_of_a_language(label, script, latin):
    language = parse_language(label)
    assert (language.script, language.is_latin) == (script, latin)


def test_a_language_without_a_known_script_is_neither_latin_nor_not():
    # A code for private use: valid, and CLDR's likely subtags know nothing of it.
    language = parse_language("qaa")
    assert (language.script, language.is_latin, language.script_name) == ("", None, "")


def test_names_are_english():
    assert parse_language("sw").name == "Swahili"
    assert parse_language("zh_Hans").script_name == "Simplified Han"
    assert parse_language("de>sw").name == "German to Swahili"


@pytest.mark.parametrize(
    "label", ["", "x", "germanish", "xx", "und", "123", "de fr", "zz_ZZ", "../de", "de>"]
)
def test_what_is_no_language_is_refused_with_the_file_and_the_way_out(label):
    with pytest.raises(UnknownLanguageError) as caught:
        parse_language(label, path="scores.csv")
    message = str(caught.value)
    assert message.startswith("scores.csv: ")
    assert "is no language code" in message
    assert "subnet.toml" in message


def test_a_direction_has_two_sides():
    with pytest.raises(UnknownLanguageError, match="names 3 languages"):
        parse_language("de>en>fr")
    assert parse_language("de>en").identity != parse_language("en>de").identity


def test_a_declared_tag_wins_and_a_wrong_one_is_named():
    assert parse_language("run-7", tag="de").identity == parse_language("de").identity
    with pytest.raises(UnknownLanguageError, match="'run-7' is declared as 'germanish'"):
        parse_language("run-7", tag="germanish")


@pytest.mark.parametrize("word", ["all", "new", "run", "log", "bin", "tmp", "src", "ALL", "the"])
def test_ordinary_words_are_no_languages_by_themselves(word):
    assert not looks_like_language(word)
    assert LanguageIndex({word: "de"}).recognises(word)


@pytest.mark.parametrize("label", ["de", "is", "no", "so", "to", "my", "zh_Hans", "de>en", "fil"])
def test_codes_that_people_train_on_are_languages(label):
    assert looks_like_language(label)


def test_the_languages_of_massive_are_52_identities():
    index = LanguageIndex()
    index.add_distinct(MASSIVE)
    assert len(index) == 52
    assert len({language.identity for language in index}) == 52
    assert len({language.script for language in index}) >= 20


def test_a_region_matters_only_where_it_tells_two_apart():
    index = LanguageIndex()
    english = index.add("en")
    assert index.add("en_US") is english
    assert index.add("en_GB") is english
    portuguese, brazilian = index.add("pt_PT"), index.add("pt_BR")
    assert portuguese != brazilian
    assert index.add("pt-PT") is portuguese
    with pytest.raises(UnknownLanguageError, match="'pt' could be any of pt_PT, pt_BR"):
        index.add("pt")


def test_two_labels_of_one_source_for_one_language_are_a_mistake():
    with pytest.raises(UnknownLanguageError, match="'de' and 'deu' are the same language"):
        LanguageIndex().add_distinct(["de", "deu"], path="adapters")
    assert len(LanguageIndex().add_distinct(["zh_Hans", "zh_Hant", "de", "en"])) == 4


@given(st.text(max_size=12))
def test_any_text_is_a_language_or_an_error_of_ours(label):
    with contextlib.suppress(UnknownLanguageError):
        language = parse_language(label)
        assert language.language
        assert parse_language(language.tag).identity == language.identity


@pytest.mark.parametrize("code", ["mul", "mis", "zxx", "und"])
def test_codes_for_no_particular_language_are_refused(code):
    with pytest.raises(UnknownLanguageError, match=f"'{code}' is no language code"):
        parse_language(code)
