"""The page says what the content says: escaped, complete, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

import report_content
from report_content import Headline
from subnet.errors import InputError
from subnet.report import (
    Found,
    Method,
    ReportContent,
    Section,
    Table,
    confounds_section,
    render_report,
    standard_sections,
)
from subnet.report._format import flatten, format_number, format_p, view

ANSWERS = {
    "associated": [
        "The answer: Association found",
        report_content.SENTENCES["associated"],
        (
            "Standardised slope | −0.41 | 95 % interval | −0.58 to −0.24 | p (permutation) | 0.004"
            " | q (corrected) | 0.008 | Languages | 12 | Permutations | 9999"
        ),
    ],
    "not associated": [
        "The answer: No association found",
        report_content.SENTENCES["not associated"],
        (
            "Standardised slope | −0.04 | 95 % interval | −0.21 to 0.13 | p (permutation) | 0.61"
            " | q (corrected) | 0.80 | Languages | 12 | Permutations | 9999"
        ),
    ],
    "not testable": [
        "The answer: Not testable",
        report_content.SENTENCES["not testable"],
        "Standardised slope | −0.41 | Languages | 4 | Permutations | 0",
    ],
    "files missing": ["The answer: Files missing", report_content.SENTENCES["files missing"], ""],
}


class Page(HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def small(**changes: object) -> ReportContent:
    content = ReportContent("x", Headline("not associated", "Nothing was found."))
    return replace(content, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ANSWERS)
def test_headline_of_each_state(state: str) -> None:
    row = {"estimate": -0.41, "ci_low": -0.58, "ci_high": -0.24, "p_value": 0.004,
           "q_value": 0.008, "n_languages": 12, "n_permutations": 9999}  # fmt: skip
    if state == "not associated":
        row |= {
            "estimate": -0.04,
            "ci_low": -0.21,
            "ci_high": 0.13,
            "p_value": 0.61,
            "q_value": 0.8,
        }
    if state == "not testable":
        row |= dict.fromkeys(("ci_low", "ci_high", "p_value", "q_value"), math.nan)
        row |= {"n_languages": 4, "n_permutations": 0}
    headline = Headline(
        state, report_content.SENTENCES[state], None if state == "files missing" else row
    )
    page = render_report(small(headline=headline))
    answer = page[page.index('<section id="answer"') : page.index('<section id="found"')]

    def text(pattern: str) -> str:
        found = re.findall(pattern, answer, flags=re.DOTALL)
        return html.unescape(" | ".join(re.sub(r"<[^>]+>", "", part) for part in found))

    assert [text(r"<h2.*?</h2>"), text(r'<p class="sentence">.*?</p>'),
            text(r"<d[td]>.*?</d[td]>")] == ANSWERS[state]  # fmt: skip
    assert page.index("answer-heading") < page.index('id="found"')


def test_unknown_state_is_refused() -> None:
    with pytest.raises(InputError, match="headline is 'proven'; expected one of associated"):
        render_report(small(headline=Headline("proven", "x")))


def test_the_answer_comes_first_and_the_confounds_next() -> None:
    page = report_content.page(12)
    order = re.findall(r'<section id="([\w-]+)"', page)
    assert order == [
        "answer", "confounds", "found", "scores", "forgetting", "overlap", "validation",
        "influence", "relation", "methods",
    ]  # fmt: skip
    assert re.findall(r'<li><a href="#([\w-]+)"', page) == order


def test_input_is_never_markup() -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    frame = pd.DataFrame({"language": [evil], evil: [1.0], "reason": [evil], "value": [math.nan]})
    content = ReportContent(
        name=evil,
        headline=Headline("associated", evil, {"estimate": 1.0}),
        key_numbers=(evil,),
        warnings=(evil,),
        confounds=confounds_section(report_content.languages_table(3, awkward=True)),
        found=(Found(evil, evil, evil, evil, evil),),
        skipped=report_content.content(3).skipped,
        sections=(Section("s", evil, evil, tables=(Table("t", evil, frame, evil),), method=evil),),
        method=Method(evil, evil, {evil: evil}, {evil: evil}, {}, {evil: evil}),
    )
    page = Page(render_report(content))
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not [key for _, attributes in page.elements for key in attributes if key[:2] == "on"]
    assert "".join(page.text).count(evil) >= 15


def test_labels_from_input_stay_text_in_tables_and_figures() -> None:
    page = report_content.page(12)
    assert "<script>alert" not in page
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for label in ("العربية", "中文（简体）", "fr_$x_1$ &amp; co"):
        assert label in page


def test_nothing_comes_from_elsewhere() -> None:
    page = Page(report_content.page(12))
    for tag, attributes in page.elements:
        for key, value in attributes.items():
            if key in {"src", "href", "xlink:href", "srcset", "action", "data"}:
                assert value is not None
                assert value.startswith(("#", "data:", "figures/")), (tag, value[:80])
    policy = page.all("meta")[1]["content"] or ""
    assert policy.startswith("default-src 'none'")


def test_the_policy_allows_the_pages_own_script_and_no_other() -> None:
    page = report_content.page(12)
    script = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"script-src &#39;sha256-{digest}&#39;" in page or f"script-src 'sha256-{digest}'" in page
    )


def test_identifiers_are_unique_and_labels_resolve() -> None:
    page = Page(report_content.page(52))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids


def test_52_languages_fit_in_two_megabytes() -> None:
    assert len(report_content.page(52).encode()) <= 2_000_000


def test_a_long_table_shows_its_top_and_says_where_the_rest_is() -> None:
    frame = pd.DataFrame({"module": [f"layer.{i}" for i in range(5000)], "value": range(5000)})
    shown = view(Table("t", "t", frame, rest="tables/overlap.csv"))
    assert len(shown.rows) == 60
    assert shown.note == "The first 60 of 5000 rows; all of them are in tables/overlap.csv."
    assert [row[0].text for row in shown.rows[:2]] == ["layer.0", "layer.1"]


def test_undefined_is_a_dash_with_its_reason_and_never_zero() -> None:
    frame = pd.DataFrame({"value": [0.5, math.nan], "reason": ["", "trained at the last stage"]})
    cell = view(Table("t", "t", frame)).rows[1][0]
    assert (cell.text, cell.undefined, cell.reason) == ("–", True, "trained at the last stage")
    wide = pd.DataFrame({"forgetting": [math.nan, 0.1]}, index=["ko", "de"])
    why = pd.DataFrame({"forgetting": ["one stage only", ""]}, index=["ko", "de"])
    page = render_report(
        small(sections=(Section("s", "s", tables=(Table("t", "t", wide, reasons=why),)),))
    )
    assert 'title="one stage only">–<span class="hidden"> undefined: one stage only' in page


def test_the_languages_last_in_order_say_why_they_were_not_forgotten() -> None:
    page = report_content.page(12)
    table = page[page.index('id="table-forgetting"') :]
    assert 'title="trained at the last stage"' in table[: table.index("</table>")]


def test_groups_are_not_sorted_by_p() -> None:
    tables = report_content.tables(12)
    _, section, *_ = standard_sections(
        languages=tables["languages"],
        scores=tables["scores"],
        forgetting=tables["forgetting"],
        groups=tables["groups"],
    )
    shown = next(table.frame for table in section.tables if table.name == "groups")
    expected = tables["groups"].query("metric == 'loss'")["p_value"]
    pd.testing.assert_series_equal(shown["p_value"], expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"), (-0.5, "−0.500"), (12.3456, "12.3"), (0.0, "0"), (1234, "1234"),
        (123456, "123\u202f456"), (1.23e-9, "1.2×10⁻⁹"), (math.nan, "–"), (math.inf, "∞"),
        (-3e-8, "−3.0×10⁻⁸"), (240.5, "240"),
    ],
)  # fmt: skip
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_a_p_value_is_never_zero() -> None:
    assert [format_p(p) for p in (0.0001, 0.004, 0.05, 0.5, math.nan)] == [
        "< 0.001", "0.004", "0.050", "0.50", "–",
    ]  # fmt: skip


def test_columns_keep_one_number_of_decimals() -> None:
    frame = pd.DataFrame({"value": [0.5, 0.123456, 1.0], "truncated_share": [0.0, 0.0312, 0.1],
                          "n": [3, 4, 5], "testable": [True, False, True]})  # fmt: skip
    rows = [[cell.text for cell in row] for row in view(Table("t", "t", frame)).rows]
    assert rows == [
        ["0.500", "0 %", "3", "yes"],
        ["0.123", "3.1 %", "4", "no"],
        ["1.000", "10.0 %", "5", "yes"],
    ]


def test_settings_are_written_as_lines() -> None:
    settings = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert flatten(settings) == {"a.b": "1", "a.c": "1, 2", "d": "none"}


def test_confounds_compare_scripts_and_add_baselines() -> None:
    tables = report_content.tables(12)
    section = confounds_section(tables["languages"], tables["scores"])
    means, single = (table.frame for table in section.tables)
    languages = tables["languages"]
    latin = languages["script"] == "Latn"
    assert list(means["group"]) == [
        f"Latin script ({latin.sum()})",
        f"other scripts ({(~latin).sum()})",
    ]
    assert list(means["bytes_per_character"]) == pytest.approx(
        [languages[rows]["bytes_per_character"].mean() for rows in (latin, ~latin)]
    )
    scores = (
        tables["scores"].query("stage == 0 and metric == 'loss'").set_index("language")["value"]
    )
    assert dict(zip(single["language"], single["baseline loss"], strict=True)) == dict(scores)


def test_what_was_not_computed_says_why() -> None:
    sections = standard_sections(
        languages=report_content.languages_table(3),
        missing={"overlap": "There are no adapters; add adapters/<language>."},
    )
    assert [section.id for section in sections] == ["scores", "forgetting", "overlap", "relation"]
    page = render_report(small(sections=sections))
    assert page.count("<strong>Not computed.</strong>") == 4
    assert "There are no adapters; add adapters/&lt;language&gt;." in page


def test_things_of_one_kind_are_one_line() -> None:
    found = [Found("adapter", "LoRA", f"adapters/{x}", "main", x) for x in ("de", "en", "fr")]
    page = render_report(small(found=found))
    assert "adapters/de and 2 more" in page
    assert "de, en, fr" in page


def test_two_parts_of_one_name_are_refused() -> None:
    section = Section("answer", "x")
    with pytest.raises(InputError, match="two parts of the report are called 'answer'"):
        render_report(small(sections=(section,)))


def test_the_same_content_gives_the_same_page() -> None:
    assert render_report(report_content.content(5)) == render_report(report_content.content(5))
