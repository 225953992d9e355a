"""The built book in a real browser: from a folder and from a server, in both languages, on a screen and on a phone."""
from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

BOOK = Path(__file__).resolve().parent.parent.parent / "build/book"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
PAGES = sorted(str(path.relative_to(BOOK / "en")) for path in (BOOK / "en").glob("*/**/*.html")
               if "_static" not in path.parts)
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
    for locale, title in (("en-US", "Benchmark and model zoo"), ("ja-JP", "ベンチマークとモデル動物園")):
        with browser.new_context(locale=locale) as context:
            page = context.new_page()
            page.goto(f"{root}/index.html")
            assert page.locator(".bd-article h1").inner_text().startswith(title)


@pytest.mark.parametrize("name", PAGES)
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
    ("ja", "領域提案ネットワーク", "Faster R-CNN"), ("ja", "学習率スケジュール", "共通の設定"),
    ("en", "proposals", "Fast R-CNN")])
def test_search(page: Page, root: str, language: str, query: str, found: str) -> None:
    page.goto(f"{root}/{language}/search.html?q={query}")
    page.wait_for_selector("#search-results ul.search li a")
    page.wait_for_function("!document.querySelector('#search-progress')?.textContent.includes('...')")
    assert found in page.locator("#search-results ul.search li > a").all_inner_texts()


def test_search_finds_nothing_for_words_that_are_not_there(page: Page, root: str) -> None:
    page.goto(f"{root}/ja/search.html?q=量子暗号通信")
    page.wait_for_selector("#search-results .search-summary")
    page.wait_for_timeout(1000)
    assert page.locator("#search-results ul.search li").count() == 0


def column(page: Page, number: int) -> list[str]:
    cells = page.locator("table.zoo-filter").first.locator(f"tbody tr:not([hidden]) td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


@pytest.mark.parametrize("language, header", [("en", "Box AP"), ("ja", "ボックス AP")])
def test_a_table_sorts_and_filters(page: Page, root: str, language: str, header: str) -> None:
    page.goto(f"{root}/{language}/book/zoo/mask_rcnn.html")
    table = page.locator("table.zoo-filter").first
    headers = [text.strip() for text in table.locator("th p").all_inner_texts()]
    number = headers.index(header) + 1
    before = column(page, number)
    table.locator(f"th:nth-child({number})").click()
    after = [float(text) for text in column(page, number) if text]
    assert after == sorted(after, reverse=True) and sorted(column(page, number)) == sorted(before)
    assert column(page, number)[-1] == "", "models without a published value stay at the end"
    table.locator(f"th:nth-child({number})").click()
    assert [float(text) for text in column(page, number) if text] == after[::-1]
    page.locator(".zoo-filter-input").first.fill("r101 3x")
    names = column(page, 1)
    assert names and all("r101" in name and "3x" in name for name in names)


def test_a_model_leads_to_its_recipe(page: Page, root: str) -> None:
    page.goto(f"{root}/en/book/zoo/retinanet.html")
    page.locator("table.zoo-filter a", has_text="retinanet_r50_fpn_2x_coco").click()
    row = page.locator("tr:target")
    assert "24 epochs" in row.inner_text() and "SGD 0.01" in row.inner_text()


@pytest.mark.parametrize("language, axis", [("en", "inference time"), ("ja", "推論時間")])
def test_the_chart_can_be_hovered(page: Page, root: str, language: str, axis: str) -> None:
    page.goto(f"{root}/{language}/book/index.html")
    page.wait_for_selector(".zoo-chart .point")
    assert axis in (page.locator(".zoo-chart .xtitle").text_content() or "")
    point = page.locator(".zoo-chart .point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".zoo-chart .hovertext")
    assert "_coco" in (page.locator(".zoo-chart .hovertext").first.text_content() or "")


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(browser: Browser, language: str, name: str) -> None:
    with browser.new_context(viewport=dict(width=375, height=800), is_mobile=True, has_touch=True) as context:
        page = context.new_page()
        page.goto(f"{BOOK.as_uri()}/{language}/{name}")
        wide = page.evaluate("""() => [...document.querySelectorAll('.bd-article *')].filter(element =>
            element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(
                '.zoo-table-box, pre, .highlight, .output, math, .pst-scrollable-table-container')
            ).map(element => element.outerHTML.slice(0, 80))""")
        assert page.evaluate("document.documentElement.scrollWidth") <= 376
        assert wide == []
