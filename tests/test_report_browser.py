"""The page in a real browser: readable, operable, silent on the network."""

from __future__ import annotations

import importlib.resources
import importlib.util
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import report_content
from subnet.report import render_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HAS_DRIVER = all(map(importlib.util.find_spec, ("playwright", "axe_playwright_python")))

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.skipif(not HAS_DRIVER, reason="playwright and axe-playwright-python: extra `test`"),
]

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

#: Every text of a figure: effective size in CSS pixels, and the box of its letters.
TEXTS = """
() => [...document.querySelectorAll("figure")].flatMap((figure) =>
  [...figure.querySelectorAll("svg text")].map((text) => {
    const matrix = text.getScreenCTM();
    const size = parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b);
    const box = text.getBoundingClientRect();
    const turned = Math.abs(matrix.b) > Math.abs(matrix.a);
    const x = box.x + box.width / 2, y = box.y + box.height / 2;
    return {
      figure: figure.id, text: text.textContent, size, turned,
      left: turned ? x - size / 2 : box.left, right: turned ? x + size / 2 : box.right,
      top: turned ? box.top : y - size / 2, bottom: turned ? box.bottom : y + size / 2,
    };
  }))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=ARGUMENTS,
            accept_downloads=True,
            viewport={"width": 1280, "height": 900},
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("report")
    pages = {f"{n} languages": report_content.page(n) for n in (12, 52)}
    # axe looks at every cell: fewer languages, all the same parts
    pages |= {
        state: render_report(report_content.content(6, state=state, awkward=True))
        for state in ("associated", "files missing")
    }
    found = {name: folder / f"{name}.html".replace(" ", "-") for name in pages}
    for name, path in found.items():
        path.write_text(pages[name], encoding="utf-8")
    return found


@pytest.fixture
def opened(browser: Any, files: dict[str, Path]) -> Iterator[Any]:
    """Open a report in a new tab; its requests and messages are kept."""
    pages = []

    def open_report(name: str | int = 12, *, width: int = 1280, scheme: str = "light") -> Any:
        page = browser.new_page()
        pages.append(page)
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (page.complaints.append("dialog"), dialog.dismiss()))
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(files[name if isinstance(name, str) else f"{name} languages"].as_uri())
        return page

    yield open_report
    for page in pages:
        page.close()


def test_no_request_is_made_and_nothing_is_complained_about(
    opened: Any, files: dict[str, Path]
) -> None:
    page = opened(52)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_load_state("networkidle")
    asked = [url for url in page.requests if not url.startswith("data:")]
    assert asked == [files["52 languages"].as_uri()]
    assert page.complaints == []


@pytest.mark.parametrize(
    ("name", "scheme", "width"), [("associated", "light", 1280), ("files missing", "dark", 390)]
)
def test_axe_finds_no_violation(opened: Any, name: str, scheme: str, width: int) -> None:
    page = opened(name, width=width, scheme=scheme)
    axe = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")
    page.evaluate(axe.read_text(encoding="utf-8"))
    result = page.evaluate("() => axe.run({resultTypes: ['violations']})")
    found = [
        (violation["id"], violation["nodes"][0]["html"][:120], len(violation["nodes"]))
        for violation in result["violations"]
    ]
    assert found == []


@pytest.mark.parametrize("n", [12, 52])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(opened: Any, n: int, width: int) -> None:
    page = opened(n, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(x => x.scrollWidth > x.clientWidth + 1)"
        ".map(x => [x.tabIndex, x.getAttribute('role'), x.getAttribute('aria-label')])"
    )
    # on a wide screen every figure is seen whole
    assert wide if width == 390 else not [x for x in wide if x[2].startswith("Figure")]
    assert all(stop == 0 and role == "group" and label for stop, role, label in wide)


@pytest.mark.parametrize(("n", "width"), [(12, 390), (12, 1280), (52, 1280)])
def test_every_label_of_a_figure_is_readable(opened: Any, n: int, width: int) -> None:
    texts = opened(n, width=width).evaluate(TEXTS)
    languages = report_content.languages_table(n, awkward=True)
    shown = "\n".join(text["text"] for text in texts if text["figure"] == "figure-scores-loss")
    for name in languages["name"]:
        assert name[:17] in shown
    assert min(text["size"] for text in texts) >= 9
    overlapping = [
        (a["figure"], a["text"], b["text"])
        for place, a in enumerate(texts)
        for b in texts[place + 1 :]
        if a["figure"] == b["figure"]
        and min(a["right"], b["right"]) - max(a["left"], b["left"]) > 1
        and min(a["bottom"], b["bottom"]) - max(a["top"], b["top"]) > 1
    ]
    assert overlapping == []


def test_no_label_is_cut_off(opened: Any) -> None:
    cut = opened(52).evaluate(
        """() => [...document.querySelectorAll("figure svg")].flatMap((svg) => {
          const frame = svg.getBoundingClientRect();
          return [...svg.querySelectorAll("text")].filter((text) => {
            const box = text.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1
              || box.top < frame.top - 3 || box.bottom > frame.bottom + 3;
          }).map((text) => svg.closest("figure").id + ": " + text.textContent);
        })"""
    )
    assert cut == []


def test_tables_sort_by_keyboard_with_undefined_last(opened: Any) -> None:
    page = opened(12)
    table = page.locator("#table-forgetting table")
    button = table.get_by_role("button", name="forgetting since turn")
    heading = button.locator("xpath=..")

    def column() -> list[str]:
        cells = table.locator("tbody tr td:nth-child(3)")
        return [cell.get_attribute("data-v") for cell in cells.all()]

    for other in (0, 1, 3, 4):  # several orders to begin with, in which it stands elsewhere
        table.get_by_role("button").nth(other).click()
        button.focus()
        for direction, reverse in (("descending", True), ("ascending", False)):
            page.keyboard.press("Enter")
            assert heading.get_attribute("aria-sort") == direction
            *values, last = column()
            assert last == ""
            assert values == sorted(values, key=float, reverse=reverse)
            assert len(set(values)) == 11
    table.get_by_role("button", name="language").click()
    assert heading.get_attribute("aria-sort") is None
    labels = table.locator("tbody tr td:first-child").all_inner_texts()
    assert labels.index("en") < labels.index("fi") < labels.index("ko")


def test_figures_download_as_svg_that_stands_alone(opened: Any) -> None:
    page = opened(12)
    figures = page.locator("figure").count()
    links = page.locator("figure a.download")
    assert links.count() == figures
    with page.expect_download() as waiting:
        page.locator("#figure-scores-loss a.download").click()
    assert waiting.value.suggested_filename == "scores-loss.svg"
    root = ET.parse(waiting.value.path()).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "العربية" in "".join(root.itertext())
    names = [link.get_attribute("download") for link in links.all()]
    assert len(set(names)) == figures


def test_a_script_in_a_label_stays_text(opened: Any) -> None:
    page = opened(12)
    assert page.complaints == []
    assert page.locator("#table-languages td", has_text="<script>alert(1)</script>").count() == 1
    assert page.locator("script").count() == 1


def test_dark_mode_has_dark_ground_and_light_figures(opened: Any) -> None:
    luminance = """(selector) => {
      const style = getComputedStyle(document.querySelector(selector));
      const value = selector === "body" ? style.backgroundColor : style.fill;
      return value.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765;
    }"""
    for scheme, dark in (("light", False), ("dark", True)):
        page = opened(12, scheme=scheme)
        assert (page.evaluate(luminance, "body") < 0.2) is dark
        assert (page.evaluate(luminance, "#figure-scores-loss svg text") > 0.8) is dark


def test_it_prints_on_white_without_controls_and_in_full(opened: Any) -> None:
    page = opened(12, scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 less its margins
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert not page.locator("a.download").first.is_visible()
    cut = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(x => getComputedStyle(x).overflowY !== "
        "'visible').length"
    )
    assert cut == 0
    wide = page.evaluate(
        "[...document.querySelectorAll('figure svg')].filter(x => "
        "x.getBoundingClientRect().right > innerWidth).map(x => x.closest('figure').id)"
    )
    assert wide == []
    assert page.pdf(format="A4")[:5] == b"%PDF-"
