"""The built book in a real browser: from a folder and from a server, in both languages, on a screen and on a phone."""
from __future__ import annotations

import csv
import functools
import os
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from detcore.zoo import index

BOOK = Path(__file__).resolve().parent.parent.parent / "build/book"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
# The tables of 34 families and the sources are alike: two of each stand for the others, that with most models and those
# with the longest names.
PAGES = sorted([*(str(path.relative_to(BOOK / "en")) for path in (BOOK / "en").glob("*/*.html")
                  if path.parent.name[0] != "_"), "book/zoo/mask_rcnn.html", "book/zoo/gn_ws.html",
                "source/detcore/methods/weight_standardization.html",
                "source/detcore/zoo/families/guided_anchoring.html"]) if BOOK.exists() else []
# Of every kind of page one: axe-core looks at these, in both modes.
KINDS = ["book/index", "book/models", "book/model_zoo", "book/zoo/mask_rcnn", "book/records", "book/parity",
         "book/glossary", "book/settings", "notebooks/retinanet", "source/detcore/methods/retinanet"]
PHONE = dict(viewport=dict(width=390, height=844), is_mobile=True, has_touch=True)
pytestmark = [pytest.mark.book]
if not PAGES:
    if os.environ.get("CI"):
        raise RuntimeError("The book is not built: make book")
    pytestmark.append(pytest.mark.skip(reason="the book is not built: make book"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as play:
        with play.chromium.launch(executable_path=chromium, headless=True, args=FLAGS) as browser:
            yield browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module", params=["file", "http"])
def root(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of the built book."""
    if request.param == "file":
        yield BOOK.as_uri()
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(BOOK))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(browser: Browser, root: str) -> Iterator[Page]:
    """A page that may reach nothing but the book, and on which nothing may go wrong."""
    wrong: list[str] = []
    with browser.new_context(viewport=dict(width=1280, height=900)) as context:
        page = context.new_page()
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith((root, "data:", "blob:"))
                else wrong.append(f"asks for {asked.url}"))
        page.on("requestfailed", lambda asked: None if asked.failure == "net::ERR_ABORTED"  # left the page meanwhile
                else wrong.append(f"cannot get {asked.url}: {asked.failure}"))
        page.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}")
                if answer.status >= 400 else None)
        yield page
    assert not wrong


def test_the_start_page_leads_to_the_readers_language(browser: Browser, root: str) -> None:
    for locale, language in (("en-US", "en"), ("ja-JP", "ja")):
        with browser.new_context(locale=locale) as context:
            page = context.new_page()
            page.goto(f"{root}/index.html")
            page.wait_for_url(f"{root}/{language}/book/index.html")
            assert page.locator("html").get_attribute("lang") == language
            assert page.locator(".zoo-picture, .zoo-gallery img").count() > 5


@pytest.mark.parametrize("root, name", [
    *(("file", name) for name in PAGES), *(("http", f"{name}.html") for name in KINDS)], indirect=["root"])
def test_a_page_shows_itself_and_switches_language(page: Page, root: str, name: str) -> None:
    page.goto(f"{root}/en/{name}#main-content")
    english = page.locator(".bd-article h1").inner_text()
    assert english
    page.locator(".language-switch a").click()
    page.wait_for_url(f"{root}/ja/{name}#main-content")
    assert page.locator("html").get_attribute("lang") == "ja"
    assert page.evaluate("document.querySelectorAll('link[rel=alternate][hreflang]').length") == 2
    page.locator(".language-switch a").click()
    page.wait_for_url(f"{root}/en/{name}#main-content")
    assert page.locator(".bd-article h1").inner_text() == english


@pytest.mark.parametrize("language, query, found", [
    ("ja", "推論速度", "ベンチマークとモデル動物園"), ("ja", "平均再現率", "共通の設定"),
    ("ja", "領域提案ネットワーク", "RPN のモデルと結果"), ("ja", "学習率スケジュール", "共通の設定"),
    ("en", "proposals", "Fast R-CNN"), ("en", "NMS", "Glossary"), ("en", "mAP", "Glossary"),
    ("en", "DETR", "Deformable DETR: models and results"),
    *(("ja", word, "用語集") for word in ("閾値", "データ拡張", "インスタンスセグメンテーション", "転移学習"))])
def test_search(page: Page, root: str, language: str, query: str, found: str) -> None:
    page.goto(f"{root}/{language}/search.html?q={query}")
    # Hits come one by one: wait for this one.
    page.locator("#search-results ul.search li > a").get_by_text(found, exact=True).first.wait_for()


def test_search_finds_nothing_for_words_that_are_not_there(page: Page, root: str) -> None:
    page.goto(f"{root}/ja/search.html?q=量子暗号通信")
    page.wait_for_selector("#search-results .search-summary")
    page.wait_for_timeout(1000)
    assert page.locator("#search-results ul.search li").count() == 0


def column(page: Page, number: int) -> list[str]:
    cells = page.locator("table.zoo-filter").first.locator(f"tbody tr:not([hidden]) > :nth-child({number})")
    return ["" if text.strip() == "–" else text.strip() for text in cells.all_inner_texts()]


@pytest.mark.parametrize("language, header", [("en", "Box AP"), ("ja", "ボックス AP")])
def test_a_table_sorts_and_filters(page: Page, root: str, language: str, header: str) -> None:
    page.goto(f"{root}/{language}/book/zoo/mask_rcnn.html")
    table = page.locator("table.zoo-filter").first
    headers = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    number = headers.index(header) + 1
    before = column(page, number)
    table.locator(f"th:nth-child({number}) button").click()
    after = [float(text) for text in column(page, number) if text]
    assert after == sorted(after, reverse=True) and sorted(column(page, number)) == sorted(before)
    assert column(page, number)[-1] == "", "models without a published value stay at the end"
    table.locator(f"th:nth-child({number}) button").click()
    assert [float(text) for text in column(page, number) if text] == after[::-1]
    box, count = page.locator(".zoo-tools input").first, page.locator(".zoo-count").first
    box.fill("r101 3x")
    names = column(page, 1)
    assert names and all("r101" in name and "3x" in name for name in names)
    assert re.findall(r"\d+", count.inner_text()) in ([str(len(names)), str(len(before))],
                                                      [str(len(before)), str(len(names))])
    nothing = page.locator(".zoo-nothing").first
    assert not nothing.is_visible()
    box.fill("no such model")
    assert column(page, 1) == [] and nothing.is_visible()


def test_the_keyboard_sorts_a_table(page: Page, root: str) -> None:
    page.goto(f"{root}/en/book/zoo/mask_rcnn.html")
    header = page.locator("table.zoo-filter thead th").nth(1)
    for key, order in (("Enter", "descending"), ("Space", "ascending")):
        header.locator("button").focus()
        page.keyboard.press(key)
        assert header.get_attribute("aria-sort") == order
    lengths = [int(text.split()[0]) for text in column(page, 2)]
    assert lengths == sorted(lengths) and len(set(lengths)) > 2


def test_a_table_is_downloaded_as_csv(page: Page, root: str) -> None:
    page.goto(f"{root}/en/book/zoo/gfl.html")
    with page.expect_download() as found:
        page.locator(".zoo-tools button").first.click()
    assert found.value.suggested_filename.endswith(".csv")
    with open(found.value.path(), encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Model"] for row in rows] == [name for name, row in index.rows().items() if row.family == "gfl"]
    first = index.rows()["gfl_r50_fpn_1x_coco"].published
    assert first and rows[0]["Box AP"] == str(first.box_ap) and rows[0]["Weights"] == first.checkpoint


@pytest.mark.parametrize("width", [390, 1400])
def test_what_is_cut_can_be_scrolled_and_says_so(browser: Browser, width: int) -> None:
    with browser.new_context(viewport=dict(width=width, height=900)) as context:
        page = context.new_page()
        page.goto(f"{BOOK.as_uri()}/en/book/models.html")
        box = page.locator(".zoo-table-box").first
        assert box.evaluate("box => box.scrollWidth > box.clientWidth") and page.locator(".zoo-more").is_visible()
        box.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelector('.zoo-table-box').scrollLeft > 0")


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("name", KINDS)
def test_a_page_is_accessible(browser: Browser, name: str, mode: Literal["light", "dark"]) -> None:
    """Nothing that axe-core calls serious or critical, on the Japanese page; the English one has the same elements."""
    with browser.new_context(viewport=dict(width=1400, height=900), color_scheme=mode) as context:
        page = context.new_page()
        page.goto(f"{BOOK.as_uri()}/ja/{name}.html")
        page.wait_for_load_state("networkidle")
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [f"{rule['id']}: {node['target']} {node.get('failureSummary', '')}" for rule in found
                   if rule["impact"] in ("serious", "critical") for node in rule["nodes"]]
        assert serious == []


def test_a_model_leads_to_its_recipe(page: Page, root: str) -> None:
    page.goto(f"{root}/en/book/zoo/retinanet.html")
    page.locator("table.zoo-filter a", has_text="retinanet_r50_fpn_2x_coco").click()
    row = page.locator("tr:target")
    assert "24 epochs" in row.inner_text() and "SGD 0.01" in row.inner_text()


def first_point(page: Page) -> tuple[float, float]:
    """The middle of the chart's first point, brought into view."""
    point = page.locator(".zoo-chart .point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize("language, axis", [("en", "inference time"), ("ja", "推論時間")])
def test_the_chart_can_be_hovered(page: Page, root: str, language: str, axis: str) -> None:
    page.goto(f"{root}/{language}/book/model_zoo.html")
    page.wait_for_selector(".zoo-chart .point")
    assert axis in (page.locator(".zoo-chart .xtitle").text_content() or "")
    page.mouse.move(*first_point(page))
    page.wait_for_selector(".zoo-chart .hovertext")
    assert "_coco" in (page.locator(".zoo-chart .hovertext").first.text_content() or "")


def test_the_chart_can_be_tapped(browser: Browser) -> None:
    with browser.new_context(**PHONE) as context:
        page = context.new_page()
        page.goto(f"{BOOK.as_uri()}/en/book/model_zoo.html")
        page.wait_for_selector(".zoo-chart .point")
        page.touchscreen.tap(*first_point(page))
        page.wait_for_selector(".zoo-chart .hovertext")


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(browser: Browser, language: str, name: str) -> None:
    with browser.new_context(**PHONE) as context:
        page = context.new_page()
        page.goto(f"{BOOK.as_uri()}/{language}/{name}")
        wide = page.evaluate("""width => [...document.querySelectorAll('.bd-article *')].filter(element =>
            (element.getBoundingClientRect().right > width + 1 || element.scrollWidth > element.clientWidth + 1
             && /^H[1-6]$/.test(element.tagName)) && !element.closest(
                '.zoo-table-box, .zoo-scroll, pre, .highlight, .output, math, .pst-scrollable-table-container')
            ).map(element => element.outerHTML.slice(0, 80))""", PHONE["viewport"]["width"])
        assert wide == []
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["viewport"]["width"] + 1
