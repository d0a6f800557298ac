"""The report in a real browser: it opens, charts and tables do what they say, and it is whole wherever it is read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_profiles import base, cell, written
from made_results import DEIT, made, nothing, point, right, unreduced
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Request, ViewportSize, sync_playwright

from tokenmerge_bench.report import write_report

REQUIRED = "TMBENCH_BROWSER"
"""Set to `required`, a machine without a browser fails these tests instead of skipping them."""
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
EVIL = "<script>alert(1)</script>"
ODD = "odd_vit"
TOKENS = {"0.7": "9 8 7", "0.5": "9 6 3"}
PHONE, TABLET, DESKTOP = 360, 768, 1600
CUT = """(all) => all.filter((e) => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1)
    .map((e) => e.ariaLabel)"""
"""The labels of the boxes of which not everything is seen."""
SECTIONS = ["verdict", "what", "charts", "tables", "pairs", "merges", "caveats", "provenance"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium that speaks to nobody."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        missing = "no Chromium is installed; `apt-get install chromium`, or Google Chrome, has one."
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with two models, a profile of one, an evil name, a long one, and rows without a number."""
    root = tmp_path_factory.mktemp("report")
    points = [unreduced(right(90)), unreduced(right(95), model=ODD)]
    for budget, drop in (("0.7", 0), ("0.5", 15)):
        for number, method in enumerate(("dhtm", "tome", EVIL)):
            more: dict[str, Any] = {"tokens_per_block": TOKENS[budget]}
            points.append(point(method, budget, float(budget), right(85 - drop - 9 * number), **more))
            points.append(point(method, budget, float(budget), right(80 - drop - 9 * number), model=ODD, **more))
    points.append(point("random", "0.7", 0.7, right(40), options="pair=any:an_option_with_a_long_name=some_long_value"))
    points.append(nothing("k_medoids", "0.7", "unreachable", "at least 0.75"))
    made(root / "swept", *points)
    times = [
        {**cell(method, float(budget), speedup, model=DEIT), "tokens_per_block": TOKENS[budget]}
        for method, speedup in (("dhtm", 1.2), (EVIL, 0.8))
        for budget in TOKENS
    ]
    written(root / "timed", base(model=DEIT), *times)
    write_report([root / "swept", root / "timed"], root / "report.html")
    return (root / "report.html").as_uri()


class Opened:
    """A page with everything that went wrong in it, or out of it."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", self._note)
        self.page.goto(address)

    def _dismiss(self, dialog: Dialog) -> None:
        self.faults.append(dialog.message)
        dialog.dismiss()

    def _note(self, request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.faults.append(request.url)

    def drawn(self) -> Page:
        """The page with its live chart."""
        self.page.wait_for_selector("#chart svg .mark-symbol path")
        return self.page


SCREEN: ViewportSize = {"width": DESKTOP, "height": 1000}


@pytest.fixture
def fresh(browser: Browser, address: str) -> Iterator[Page]:
    """The report on a desktop, opened for one test; whatever that does with it, nothing may go wrong."""
    context = browser.new_context(viewport=SCREEN)
    found = Opened(context, address)
    yield found.drawn()
    context.close()
    assert found.faults == []


@pytest.fixture(scope="module")
def shared(browser: Browser, address: str) -> Iterator[Opened]:
    """The report opened once: drawing it takes longer than most of what is tested."""
    context = browser.new_context(viewport=SCREEN)
    found = Opened(context, address)
    found.drawn()
    yield found
    context.close()


@pytest.fixture
def page(shared: Opened) -> Iterator[Page]:
    """That report as it is when opened, but for the order of tables; a test of models and axes takes a fresh one."""
    yield shared.page
    shared.page.emulate_media(media="screen", color_scheme="light")
    shared.page.set_viewport_size(SCREEN)
    for button in ("All", "Whole chart"):
        shared.page.get_by_role("button", name=button, exact=True).click()
    settled(shared.page)
    assert shared.faults == []


@pytest.fixture(scope="module")
def scriptless(browser: Browser, address: str) -> Iterator[Page]:
    """The report where no script may run."""
    context = browser.new_context(java_script_enabled=False)
    found = Opened(context, address)
    yield found.page
    context.close()
    assert found.faults == []


def markers(page: Page) -> int:
    """The measured settings in the live chart."""
    return page.locator("#chart svg .mark-symbol").last.locator("path").count()


def first_column(page: Page, table: str) -> list[str]:
    rows = page.locator(f"#{table} tbody tr:visible td:first-child")
    return [text.strip() for text in rows.all_inner_texts()]


def domain(page: Page) -> list[str]:
    """The labels of the vertical axis."""
    return page.locator("#chart svg .role-axis-label").last.locator("text").all_inner_texts()


def settled(page: Page) -> None:
    """Waits for the chart to be drawn anew."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


# --- the chart --------------------------------------------------------------------------------------------------------


def test_it_opens_without_an_error_or_a_request_and_draws_the_chart(page: Page) -> None:
    assert markers(page) == 7  # of the first model: three methods at two budgets, one at one
    assert page.title() == "Token reduction compared on 100 images of photographs"
    assert page.locator(".still:visible").count() == 0


def test_toggling_a_method_changes_the_chart(page: Page) -> None:
    page.get_by_label("tome", exact=True).uncheck()
    settled(page)
    assert markers(page) == 5
    page.get_by_role("button", name="None").click()
    settled(page)
    assert markers(page) == 0
    page.get_by_label("dhtm", exact=True).focus()
    page.keyboard.press("Space")
    settled(page)
    assert markers(page) == 2
    page.get_by_role("button", name="All", exact=True).click()
    settled(page)
    assert markers(page) == 7


def test_model_and_axis_are_switched_and_what_is_hidden_stays_hidden(fresh: Page) -> None:
    page = fresh
    axis, title = page.get_by_label("Horizontal axis"), page.locator("#chart svg .role-title-text")
    assert axis.locator("option").all_inner_texts() == ["FLOPs", "measured time: batch 32, bfloat16, eager"]
    page.get_by_label("tome", exact=True).uncheck()
    axis.select_option(index=1)
    page.get_by_text("right of 100 % is slower").first.wait_for()
    title.get_by_text("measured time").wait_for()
    assert markers(page) == 4
    page.locator("#model").select_option(ODD)
    title.get_by_text(f"{ODD}, FLOPs").wait_for()
    assert axis.locator("option").all_inner_texts() == ["FLOPs", "rough time of the sweep"]
    assert markers(page) == 4
    assert ODD in (page.locator("#chart").get_attribute("aria-label") or "")


def test_hovering_shows_the_numbers_with_their_interval_and_names_as_text(page: Page) -> None:
    tip = page.locator("#vg-tooltip-element")
    for method in ("dhtm", EVIL):
        page.get_by_role("button", name="None").click()
        page.locator(f"input[value='{method}']").check()
        settled(page)
        page.locator("#chart svg .mark-symbol").last.locator("path").first.hover()
        tip.get_by_text(method, exact=True).wait_for()
        assert re.search(r"\d\d\.\d\d % \[\d\d\.\d\d, \d\d\.\d\d\]", tip.inner_text())
        page.mouse.move(5, 5)


def test_pointing_at_a_marker_brings_out_the_interval_of_its_method(page: Page) -> None:
    bands = page.locator("#chart svg .mark-area path")
    opacities = "(paths) => paths.map((path) => Number(path.getAttribute('opacity')))"
    assert len({*bands.evaluate_all(opacities)}) == 1
    page.locator("#chart svg .mark-symbol").last.locator("path").first.hover(force=True)
    settled(page)
    faint, *clear = sorted(bands.evaluate_all(opacities))[-2:]
    assert clear == [pytest.approx(4 * faint)]
    page.mouse.move(1, 1)


def test_zooming_by_button_wheel_and_keyboard_and_back(page: Page) -> None:
    whole = domain(page)
    page.get_by_role("button", name="Zoom in").click()
    settled(page)
    closer = domain(page)
    assert closer != whole
    page.locator("#chart").focus()
    page.keyboard.press("ArrowUp")
    settled(page)
    assert domain(page) != closer
    page.get_by_role("button", name="Whole chart").click()
    settled(page)
    assert domain(page) == whole
    page.locator("#chart svg").hover()
    page.keyboard.down("Shift")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Shift")
    settled(page)
    assert domain(page) != whole


def test_a_chart_without_methods_is_saved_without_a_legend(page: Page) -> None:
    page.get_by_role("button", name="None").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as SVG").click()
    assert re.search(r'viewBox="0 0 7\d\d 4\d\d"', Path(download.value.path()).read_text())


@pytest.mark.parametrize("kind", ["PNG", "SVG"])
def test_the_chart_is_saved_as_it_is_seen_with_a_legend(page: Page, kind: str) -> None:
    page.get_by_label("tome", exact=True).uncheck()
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Save as {kind}").click()
    assert download.value.suggested_filename == f"accuracy-{DEIT}-FLOPs.{kind.lower()}"
    saved = Path(download.value.path()).read_bytes()
    if kind == "PNG":
        assert saved.startswith(b"\x89PNG")
        return
    text = saved.decode()
    assert text.startswith("<svg")
    assert re.findall(r">(dhtm|tome)</text>", text) == ["dhtm"]
    assert EVIL not in text


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_is_sorted_by_click_and_keyboard_and_says_so(page: Page) -> None:
    heading = page.locator("#table-results th", has_text="top-1")
    cells = page.locator("#table-results tbody tr td.number:nth-child(4)")
    given = cells.all_inner_texts()
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    numbers = [float(text.split()[0].rstrip("†")) for text in cells.all_inner_texts() if text[0].isdigit()]
    assert len(numbers) == 15
    assert numbers == sorted(numbers)
    assert cells.all_inner_texts()[-1] == "unreachable"  # no number, last
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert float(cells.first.inner_text().split()[0]) == 95
    assert cells.all_inner_texts()[-1] == "unreachable"
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "none"
    assert cells.all_inner_texts() == given


def test_a_table_is_sorted_by_words(page: Page) -> None:
    page.locator("#table-profile th", has_text="method").get_by_role("button").click()
    assert first_column(page, "table-profile") == [EVIL, EVIL, "dhtm", "dhtm", "unreduced"]


def test_a_table_is_filtered_and_tells_how_much_is_left(page: Page) -> None:
    field, count = page.locator("input[data-filters='results']"), page.locator("[data-counts='results']")
    assert count.inner_text() == "16 of 16 rows"
    field.press_sequentially(f"{ODD} tome")
    assert count.inner_text() == "2 of 16 rows"
    assert first_column(page, "table-results") == [ODD, ODD]
    field.fill("")
    assert count.inner_text() == "16 of 16 rows"


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_method_named_as_a_script_is_text_and_does_nothing(page: Page) -> None:
    assert page.get_by_role("checkbox", name=EVIL).is_checked()
    assert page.locator("#table-results td", has_text=EVIL).count() == 4
    assert page.locator("script").count() == 3


# --- wherever it is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False])
def test_nothing_is_wider_than_the_screen(page: Page, scriptless: Page, scripts: bool) -> None:
    page = page if scripts else scriptless
    for width in (PHONE, TABLET, DESKTOP):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.locator("html").evaluate("(e) => e.scrollWidth") == width
        assert page.locator("#verdict .answer").first.is_visible()


def test_without_scripts_everything_is_readable(scriptless: Page) -> None:
    assert scriptless.locator(".still svg:visible").count() == 4
    assert scriptless.locator(".still svg text", has_text="dhtm").count() == 4  # with legends
    assert scriptless.locator("#table-results tbody tr:visible").count() == 16
    assert scriptless.locator("button:visible, select:visible, input:visible").count() == 0


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as the guidelines on accessibility define it."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page_in_light_and_dark(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    style = "(e) => [getComputedStyle(e).color, getComputedStyle(e).fill]"
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.1) == (scheme == "dark")
    seen = [
        page.locator(place).first.evaluate(style)[0] for place in ("h1", ".small", "nav a", "figcaption", "th button")
    ]
    seen.append(page.locator("#chart svg .role-axis-title text").first.evaluate(style)[1])
    for colour in seen:
        darker, lighter = sorted((luminance(colour), paper))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_a_long_table_scrolls_in_its_place_under_its_headings(page: Page) -> None:
    page.set_viewport_size({"width": PHONE, "height": 500})
    box, heading = page.locator(".long:has(#table-pairs)"), page.locator("#table-pairs th").first
    assert "Paired comparisons, scrolls" in box.evaluate_all(CUT)
    assert box.evaluate("(e) => e.clientHeight") < 500
    box.evaluate("(e) => { e.scrollTop = e.scrollHeight }")
    top = "(e) => e.getBoundingClientRect().top"
    assert heading.evaluate(top) == pytest.approx(box.evaluate(top), abs=1)


def test_a_phone_shows_the_verdict_at_every_budget_and_accuracies_before_settings(page: Page) -> None:
    page.set_viewport_size({"width": PHONE, "height": 500})
    box = page.locator(".verdicts")
    assert box.evaluate("(e) => [e.scrollHeight - e.clientHeight, e.scrollWidth - e.clientWidth]") == [0, 0]
    headings = page.locator("#table-results th").all_inner_texts()
    assert [heading.split(" ")[0] for heading in headings[:5]] == ["model", "method", "budget", "top-1", "drop"]


def test_on_paper_every_section_is_there_and_nothing_is_cut(page: Page) -> None:
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 without its margins
    page.emulate_media(media="print")
    assert [name for name in SECTIONS if not page.locator(f"#{name}").is_visible()] == []
    assert page.locator(".still svg:visible").count() == 4
    assert page.locator(".live:visible, button:visible, nav:visible").count() == 0
    heading = "getComputedStyle(document.querySelector('#table-pairs th:nth-child(3)'), '::before').content"
    assert page.evaluate(heading) == '"method A"'  # outside of the button, which is not there on later pages
    assert page.evaluate("document.documentElement.scrollWidth") == 703
    assert page.locator(".scroll").evaluate_all(CUT) == []
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_a_screen_reader_finds_its_way(fresh: Page) -> None:
    page = fresh
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    assert page.get_by_role("main").count() == page.get_by_role("navigation").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    for name in SECTIONS:
        assert page.locator(f"#{name}").get_attribute("aria-labelledby") == f"{name}-heading"
    unnamed = "(all) => all.filter((e) => !(e.labels?.length || e.textContent.trim())).length"
    assert page.locator("input, select, button").evaluate_all(unnamed) == 0
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("img:not([alt])").count() == 0
