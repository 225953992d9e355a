"""Texts inside what chapters show: headers of tables, labels of plots, words in drawings.

A chapter is executed once, in English. Its tables are HTML, its plots and drawings SVG whose text is text. The words
in them are in the catalogue `outputs`, and are put in their place in each language.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import escape, unescape
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.locale import get_translation

CATALOGUE = "outputs"
HEADERS = re.compile(r"(?<=>)([^<>]*)(?=</(?:th|caption)>)")
LABELS = re.compile(r"(?<=>)([^<>]+)(?=</(?:text|tspan)>)")
# A text to translate has a word in it: not a number, a symbol, a code name or a file.
WORD = re.compile(r"[A-Za-z]{2}")
CODE = re.compile(r"[\w.+-]*[_\d][\w.+-]*|[\w-]+\.(?:py|json|npz)")

_ = get_translation(CATALOGUE)


def is_text(message: str) -> bool:
    """Whether a label is for translators."""
    return bool(WORD.search(message)) and not CODE.fullmatch(message.strip())


def replace(content: str, pattern: re.Pattern[str], translate: Callable[[str], str]) -> str:
    """HTML or SVG with its texts translated."""
    def one(found: re.Match[str]) -> str:
        message = unescape(found[0]).strip()
        return escape(translate(message), quote=False) if is_text(message) else found[0]

    return pattern.sub(one, content)


def messages(root: Path) -> Iterator[tuple[str, str]]:
    """(file, text) of everything that the committed chapters and the drawings say in tables and plots."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, 4).cells:
            for output in cell.get("outputs", ()):
                data = output.get("data", {})
                for kind, pattern in (("text/html", HEADERS), ("image/svg+xml", LABELS)):
                    for text in pattern.findall("".join(data.get(kind, ""))):
                        if is_text(message := unescape(text).strip()):
                            yield path.name, message
    for path in sorted((root / "book/figures").glob("*.svg")):
        for text in LABELS.findall(path.read_text("utf-8")):
            if is_text(message := unescape(text).strip()):
                yield path.name, message


def translate_tables(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Headers and captions of the tables that a chapter shows."""
    for node in doctree.findall(nodes.raw):
        if "html" in node.get("format", "") and "<table" in node.astext():
            node.children = [nodes.Text(replace(node.astext(), HEADERS, lambda text: str(_(text))))]
            node.rawsource = node.astext()


def translate_drawings(app: Sphinx, error: Exception | None) -> None:
    """Labels of plots and drawings, in the built book's copies."""
    for path in sorted(Path(app.outdir, "_images").glob("*.svg")) if error is None else ():
        before = path.read_text("utf-8")
        after = replace(before, LABELS, lambda text: str(_(text)))
        if after != before:
            path.write_text(after, "utf-8")


def setup(app: Sphinx) -> None:
    app.add_message_catalog(CATALOGUE, str(Path(__file__).resolve().parents[2] / "locale"))
    if app.config.language != "en":
        app.connect("doctree-resolved", translate_tables)
        app.connect("build-finished", translate_drawings)

