"""The book's sources and its built pages, read as files: translations, links, nothing from the network."""
from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from babel.messages.pofile import read_po
from docutils import nodes
from sphinx import locale

from detcore.records import read_records
from detcore.zoo.index import all_entries, families, get_model_entry, list_models, rows

ROOT = Path(__file__).resolve().parent.parent.parent
BOOK = ROOT / "build/book"
LOCALE = ROOT / "book/locale"
HTML = sorted(path for path in BOOK.rglob("*.html") if "_static" not in path.parts)
built = pytest.mark.skipif(not HTML, reason="the book is not built: make book")


def messages(path: Path) -> list:
    with path.open("rb") as file:
        return [message for message in read_po(file, locale="ja") if message.id]


CATALOGUES = sorted((LOCALE / "ja/LC_MESSAGES").rglob("*.po"))


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: str(path.relative_to(LOCALE)))
def test_every_message_is_translated(path: Path) -> None:
    found = messages(path)
    assert found
    assert [m.id for m in found if not m.string] == []
    assert [m.id for m in found if m.fuzzy] == []


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: str(path.relative_to(LOCALE)))
def test_sentences_are_japanese_and_keep_their_links(path: Path) -> None:
    for message in messages(path):
        text = re.sub(r"\[[^]]*\]\([^)]*\)", "", message.id)  # titles of papers stay as they are
        if len(re.findall(r"(?<![\\\\\w`])[a-z]{2,}(?![\w`])", text)) > 5:
            assert re.search("[ぁ-んァ-ヶ一-龥]", message.string), message.id
        for pattern in (r"\{doc\}`[^`<]*<?([^`>]*)>?`", r"\]\(([^)]*)\)", r"\{(\w+)\}(?!`)"):
            assert sorted(re.findall(pattern, message.id)) == sorted(re.findall(pattern, message.string)), message.id


def test_every_page_has_a_catalogue() -> None:
    pages = re.findall(r"(?:file|root): (\S+)\.(?:md|ipynb)", (ROOT / "_toc.yml").read_text())
    assert len(pages) > 15
    have = {str(path.relative_to(LOCALE / "ja/LC_MESSAGES").with_suffix("")) for path in CATALOGUES}
    assert set(pages) <= have
    assert have - set(pages) == {"zoobook", "sphinx", "outputs"}


def test_the_catalogues_are_those_of_the_pages(tmp_path: Path) -> None:
    """No sentence of a page is missing from its catalogue, or differs from it.

    In a process of its own: an extension of Sphinx asks every object of the process for its class, and one that other
    tests left half dead does not answer.
    """
    code = "import sys, pathlib, workflow.translations as t; t.templates(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True)
    assert len(list(tmp_path.rglob("*.pot"))) > 15
    for template in tmp_path.rglob("*.pot"):
        wanted = {m.id for m in messages(template)}
        have = {m.id for m in messages(LOCALE / "ja/LC_MESSAGES" / template.relative_to(tmp_path).with_suffix(".po"))}
        assert wanted == have, f"{template.relative_to(tmp_path)}: make translations"


def test_a_term_has_one_translation() -> None:
    """Words that the glossary says to avoid are in no catalogue, and each of its terms is there in both languages."""
    terms = yaml.safe_load((ROOT / "book/glossary.yaml").read_text("utf-8"))
    assert len({term["en"]["term"] for term in terms}) == len({term["ja"]["term"] for term in terms}) == len(terms) > 30
    for term in terms:
        for language in ("en", "ja"):
            assert term[language]["definition"].count("。" if language == "ja" else ".") >= 1, term
    avoid = {word: term["ja"]["term"] for term in terms for word in term["ja"].get("avoid", ())}
    assert avoid
    found = [f"{path.relative_to(LOCALE)}: {word} in {message.string}; the glossary has {avoid[word]}"
             for path in CATALOGUES for message in messages(path) for word in avoid if word in str(message.string)]
    assert found == []


def test_every_family_is_described() -> None:
    """Year, change and papers; what it builds on is another one and older, so that the tree has no circle."""
    rows = yaml.safe_load((ROOT / "book/families.yaml").read_text("utf-8"))
    assert list(rows) == list(families())
    papers = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book/references.bib").read_text("utf-8"), re.MULTILINE))
    for name, row in rows.items():
        assert (ROOT / f"book/zoo/{name.replace('+', '_')}.md").exists()
        assert row["papers"] and set(row["papers"]) <= papers, name
        assert len(row["change"]) <= 60, f"{name}: too long for the tree"
        assert row.get("from") is None or rows[row["from"]]["year"] <= row["year"], name


def test_the_parity_record_is_of_reference_cases() -> None:
    rows = json.loads((ROOT / "book/parity.json").read_text("utf-8"))
    cases = {path.name.removesuffix(".json.gz") for path in (ROOT / "tests/reference/cases").glob("*.json.gz")}
    names = [row["case"] for row in rows]
    assert len(set(names)) == len(names) and set(names) <= cases
    assert {"features", "losses"} <= set().union(*(row["differences"] for row in rows))
    assert all(row["passes"] == (not any(c.startswith("fail") for c in row["checks"].values())) for row in rows)


def test_published_tables_name_their_source() -> None:
    for path in (ROOT / "book/data").glob("*.csv"):
        first, *lines = path.read_text("utf-8").splitlines()
        assert re.fullmatch(r"# .+ <https://\S+>", first), path
        assert "/main/" not in first and "/master/" not in first, f"{path}: a branch moves on, a tag does not"
        rows = list(csv.reader(lines))
        assert len(rows) > 2 and len({len(row) for row in rows}) == 1, path


def test_records_can_be_read() -> None:
    for name, record in read_records(ROOT / "book/records").items():
        assert record.duration_s > 0, name


# The book's extension, without a build

@pytest.fixture(scope="module")
def zoobook() -> ModuleType:
    """The extension, with its English texts."""
    locale.init([str(LOCALE)], "en", "zoobook")
    sys.path.insert(0, str(ROOT / "book/_ext"))
    try:
        import zoobook.charts
        import zoobook.data
        import zoobook.families
        import zoobook.figures
        import zoobook.parity
        import zoobook.tables
    finally:
        sys.path.remove(str(ROOT / "book/_ext"))
    return zoobook


def shown(directive: type, *arguments: str, **options: str) -> list[nodes.Node]:
    """What a directive puts on a page."""
    env = SimpleNamespace(docname="book/zoo/here", new_serialno=lambda name: 0, note_dependency=lambda name: None,
                          app=SimpleNamespace(builder=SimpleNamespace(format="html")))
    state = SimpleNamespace(document=SimpleNamespace(settings=SimpleNamespace(env=env)))
    machine = SimpleNamespace(reporter=None)
    return directive("", list(arguments), options, [], 0, 0, "", state, machine).run()


def table(found: list[nodes.Node]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the table among some nodes."""
    tables = [t for node in found for t in node.findall(nodes.table)]
    header, *body = [[entry.astext() for entry in row.findall(nodes.entry)] for row in tables[0].findall(nodes.row)]
    return header, body


@pytest.mark.parametrize("family", families())
def test_tables_of_a_family(zoobook: ModuleType, family: str) -> None:
    names = list_models(family=family)
    header, body = table(shown(zoobook.tables.ZooTable, family))
    assert sorted(row[0] for row in body) == names
    assert all(cell for row in body for cell in row), "an empty cell says why"
    published = [row.published for row in rows().values() if row.family == family and row.published]
    assert ("PQ" in header) == any(p.panoptic_quality for p in published)
    assert ("Data set" in header) == any(p.dataset != "COCO" for p in published)
    header, body = table(shown(zoobook.tables.RecipeTable, family))
    assert sorted(row[0] for row in body) == names
    for row in body:
        backbone, file = get_model_entry(row[0]).backbone, row[header.index("Pretrained backbone")]
        if backbone and backbone.weights:
            assert file and backbone.weights.endswith(file)
        else:
            assert file == "none: from random weights"
        assert re.search(r"\d+ × \(?\d+", row[header.index("Image size")]), row
    assert 2 <= len(zoobook.facts.title(family)) <= 40 and "_" not in zoobook.facts.title(family)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours by WCAG 2."""
    def luminance(colour: str) -> float:
        values = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_trainings_are_sorted_by_their_length(zoobook: ModuleType) -> None:
    """90,000 steps are 12 epochs of COCO, and not more than 200."""
    def length(name: str) -> float:
        return zoobook.tables.length(get_model_entry(name).recipe).sort

    assert 10 < length("retinanet_r50_fpn_90k_coco") < 13
    assert length("mask-rcnn_r50_fpn_2x_coco") == 24


def test_the_family_tree_has_every_method(zoobook: ModuleType) -> None:
    svg = zoobook.families.tree("book/index")
    methods = [f for f in zoobook.families.families().values() if f.kind == "method"]
    assert svg.count("<circle") == svg.count("<a href") == len(methods)
    assert svg.count("<path") == sum(f.parent is not None for f in methods)
    for family in methods:
        assert family.change in svg and f'href="zoo/{zoobook.families.stem(family.name)}.html"' in svg


@pytest.mark.parametrize("given, expected", [(None, "What to see."), ("3fd2a1c4e5b6a7980011.png", "What to see."),
                                             ("A lion.", "A lion.")])
def test_a_caption_is_the_alternative_text(zoobook: ModuleType, given: str | None, expected: str) -> None:
    image = nodes.image(uri="3fd2a1c4e5b6a7980011.png", **({"alt": given} if given else {}))
    document = SimpleNamespace(findall=lambda kind: [image])
    nodes.section("", nodes.title("", "The loss"), nodes.figure("", image, nodes.caption("", "What to see.")))
    transform = SimpleNamespace(document=document, app=SimpleNamespace(builder=SimpleNamespace(name="html")))
    zoobook.figures.AlternativeTexts.apply(transform)
    assert image["alt"] == expected


def test_charts_and_the_other_tables(zoobook: ModuleType) -> None:
    assert len(set(zoobook.charts.COLOURS)) == len(zoobook.charts.COLOURS) == len(set(zoobook.charts.SYMBOLS)) == 8
    for colour in (*zoobook.charts.COLOURS, zoobook.charts.REST):
        assert min(contrast(colour, "#ffffff"), contrast(colour, "#121212")) >= 3, colour
    chart, source = shown(zoobook.charts.SpeedAccuracy, "COCO")
    assert source.astext().startswith("Source") and "box AP on COCO (%)" in chart.astext()
    assert chart.astext().count('"mode":"markers"') == 9, "eight families and the rest"
    timed = {name for name, row in rows().items() if (p := row.published) and p.dataset == "COCO" and p.inference_ms
             and p.box_ap}
    assert set(re.findall(r"003cb\\u003e([^\\]+)\\u003c", chart.astext())) == timed
    assert "box AP on LVIS v1 (%)" in shown(zoobook.charts.SpeedAccuracy, "LVIS v1")[0].astext()
    assert "box AP on Pocket Zoo (%)" in shown(zoobook.charts.PocketChart)[0].astext()
    for directive in (zoobook.data.BackboneTable, zoobook.data.LayoutTable, zoobook.tables.PreprocessingTable):
        assert len(table(shown(directive))[1]) > 3


# The built pages

class Links(HTMLParser):
    """Addresses and anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.links.append((tag, value))
            if key in ("id", "name") and value:
                self.anchors.add(value)


@pytest.fixture(scope="module")
def pages() -> dict[Path, Links]:
    return {path: Links(path.read_text("utf-8")) for path in HTML}


def addresses(pages: dict[Path, Links]) -> Iterator[tuple[Path, str, str]]:
    for path, page in pages.items():
        for tag, address in page.links:
            yield path, tag, address


@built
@pytest.mark.book
def test_every_internal_link_leads_somewhere(pages: dict[Path, Links]) -> None:
    broken, seen = [], 0
    for path, _tag, address in addresses(pages):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        seen += 1
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.is_file():
            broken.append(f"{path.relative_to(BOOK)} -> {address}")
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
            broken.append(f"{path.relative_to(BOOK)} -> {address}: no such place")
    assert seen > 1000
    assert broken == []


@built
@pytest.mark.book
def test_nothing_is_loaded_from_the_network(pages: dict[Path, Links]) -> None:
    loaded = [f"{path.relative_to(BOOK)}: {address}" for path, tag, address in addresses(pages)
              if tag in ("script", "link", "img", "iframe", "source") and urlsplit(address).scheme in ("http", "https")]
    assert loaded == []
    styles = [f"{path}: {address}" for path in BOOK.rglob("*.css")
              for address in re.findall(r"url\(['\"]?(https?:[^)'\"]+)", path.read_text("utf-8"))]
    assert styles == []


@built
@pytest.mark.book
def test_both_languages_have_the_same_pages() -> None:
    names = {language: {path.relative_to(BOOK / language) for path in HTML if language in path.parts}
             for language in ("en", "ja")}
    assert names["en"] == names["ja"] and len(names["en"]) > 15


class Images(HTMLParser):
    """The images of a page, each with its alternative text."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            given = dict(attrs)
            self.found.append((given.get("src") or "", given.get("alt")))


@built
@pytest.mark.book
def test_every_image_has_an_alternative_text() -> None:
    """It is no file name; it is empty only beside the title that says the same, in the gallery."""
    seen = 0
    for path in HTML:
        for source, text in Images(path.read_text("utf-8")).found:
            seen += 1
            assert text is not None, f"{path.relative_to(BOOK)}: {source}"
            assert text or "thumbnail-" in source, f"{path.relative_to(BOOK)}: {source}"
            assert not re.search(r"\.(png|jpe?g|svg)$|[0-9a-f]{20}", text), f"{path.relative_to(BOOK)}: {text}"
    assert seen > 20


@built
@pytest.mark.book
def test_a_zoo_page_and_a_chapter_have_different_titles() -> None:
    for language in ("en", "ja"):
        titles = {path: re.findall(r"<h1>(.*?)<a", path.read_text("utf-8"), re.DOTALL)[0]
                  for folder in ("book", "notebooks") for path in (BOOK / language / folder).rglob("*.html")}
        assert len(set(titles.values())) == len(titles)


@built
@pytest.mark.book
def test_plotly_is_only_where_a_chart_is() -> None:
    for path in HTML:
        text = path.read_text("utf-8")
        assert ("plotly.min.js" in text) == ("zoo-chart" in text), path.relative_to(BOOK)
    assert "zoo-chart" not in (BOOK / "en/book/index.html").read_text("utf-8")


@built
@pytest.mark.book
def test_a_chapter_offers_its_notebook_and_its_source() -> None:
    for path in (BOOK / "en/notebooks").glob("*.html"):
        text = path.read_text("utf-8")
        assert f'href="../_downloads/{path.stem}.ipynb"' in text
        if (ROOT / f"detcore/methods/{path.stem}.py").exists():
            assert f'href="../source/detcore/methods/{path.stem}.html"' in text and "@inproceedings" in text


@built
@pytest.mark.book
def test_headers_of_tables_have_a_scope() -> None:
    for path in (BOOK / "en/book").rglob("*.html"):
        for table in re.findall(r'<table class="[^"]*zoo-table.*?</table>', path.read_text("utf-8"), re.DOTALL):
            assert "<caption>" in table and len(re.findall("<th ", table)) == table.count("scope="), path


@built
@pytest.mark.book
def test_every_model_is_in_a_table_with_recipe_and_checkpoint() -> None:
    listed = all_entries()
    for language in ("en", "ja"):
        text = "".join(path.read_text("utf-8") for path in (BOOK / language / "book/zoo").glob("*.html"))
        for name, entry in listed.items():
            anchor = f"recipe-{name.replace('.', '-')}"
            assert f'href="#{anchor}"' in text and f'id="{anchor}"' in text
            assert not entry.checkpoint or entry.checkpoint in text
        # 12 times through a set repeated three times; the rate drops at 9 and 11 of them.
        row, = re.findall(r'id="recipe-mask-rcnn_r50_fpn_ms-poly-3x_coco".*?</tr>', text, re.DOTALL)
        assert ">27, 33<" in row.replace("<p>", "").replace("</p>", "") and "36 " in row


@built
@pytest.mark.book
def test_japanese_pages_are_japanese(pages: dict[Path, Links]) -> None:
    """No text of a page's frame is English on a Japanese page."""
    for path in (BOOK / "ja/book").rglob("*.html"):
        text = path.read_text("utf-8")
        for phrase in ("On this page", "Toggle primary", "Link to this heading", "Source:", "Filter the rows",
                       "Previous", "Skip to main", 'aria-label="Main"', "Search this book", "Color mode"):
            assert phrase not in text, f"{path.relative_to(BOOK)}: {phrase}"
