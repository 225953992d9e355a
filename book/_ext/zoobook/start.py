"""The start page's gallery of chapters and picture of detections, both taken from the executed notebooks.

    ```{chapter-gallery}
    ```
    ```{chapter-picture} mask_rcnn       the last photograph that a chapter shows
    :alt: Masks, boxes and names that the model of the chapter has found
    ```
"""
from __future__ import annotations

import base64
import io
import json
import posixpath
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from zoobook import facts
from zoobook.languages import _

THUMBNAIL = (480, 300)


class gallery(nodes.General, nodes.Element):
    """The place of the gallery: what it shows is known when all pages are read."""


class ChapterGallery(SphinxDirective):
    """Each chapter with its first figure and its first sentence."""

    def run(self) -> list[nodes.Node]:
        return [gallery()]


class ChapterPicture(SphinxDirective):
    """The last photograph of a chapter's notebook."""

    required_arguments = 1
    option_spec = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        path = facts.BOOK.parent / "notebooks" / f"{name}.ipynb"
        self.env.note_dependency(str(path))
        photographs = [data for kind, data in pictures(path) if kind == "image/jpeg"]
        if not photographs:  # a chapter that has not run: the data alone
            image = nodes.image(uri="/book/figures/pocket_zoo.jpg", alt=str(_("Scenes of Pocket Zoo")), width="100%",
                                classes=["zoo-picture"])
            return [image]
        folder = Path(self.env.app.doctreedir) / "zoobook"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.jpg"
        file.write_bytes(photographs[-1])
        image = nodes.image(uri=posixpath.relpath(file, Path(self.env.srcdir) / posixpath.dirname(self.env.docname)),
                            alt=self.options["alt"], width="100%", classes=["zoo-picture"])
        image.source, image.line = self.get_source_info()
        return [image]


def pictures(path: Path) -> Iterator[tuple[str, bytes]]:
    """(type, data) of the pictures that an executed notebook shows."""
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/svg+xml" in data:
                yield "image/svg+xml", "".join(data["image/svg+xml"]).encode()
            for kind in ("image/jpeg", "image/png"):
                if kind in data:
                    yield kind, base64.b64decode("".join(data[kind]))


def thumbnail(path: Path) -> tuple[str, bytes] | None:
    """The first picture of a notebook, small: the ending of its file, and its data."""
    first = next(pictures(path), None)
    if first is None:
        return None
    kind, data = first
    if kind == "image/svg+xml":
        return "svg", data
    image = Image.open(io.BytesIO(data))
    # The upper left part in the format of the gallery: enough to recognise a figure of many panels.
    wide = min(image.width, image.height * THUMBNAIL[0] // THUMBNAIL[1])
    image = image.crop((0, 0, wide, min(image.height, wide * THUMBNAIL[1] // THUMBNAIL[0])))
    image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if kind == "image/jpeg":
        image.convert("RGB").save(file, "JPEG", quality=82)
        return "jpg", file.getvalue()
    image.save(file, "PNG", optimize=True)
    return "png", file.getvalue()


def chapters(app: Sphinx) -> list[str]:
    """The documents of the chapters, in the book's order."""
    text = (facts.BOOK.parent / "_toc.yml").read_text("utf-8")
    return [name for name in re.findall(r"file: (notebooks/\w+)\.ipynb", text) if name in app.env.found_docs]


def fill_gallery(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the cards in the gallery's place."""
    for place in list(doctree.findall(gallery)):
        cards = "".join(card(app, document, docname) for document in chapters(app))
        place.replace_self(nodes.raw("", f'<ul class="zoo-gallery">{cards}</ul>', format="html"))


def card(app: Sphinx, document: str, here: str) -> str:
    """A chapter of the gallery: its title, the first sentence of its text, its first figure."""
    title = escape(app.env.titles[document].astext())
    paragraph = next(iter(app.env.get_doctree(document).findall(nodes.paragraph)), None)
    text = re.split(r"(?<=[.?!])\s|(?<=[。？！])", paragraph.astext() if paragraph else "")[0]
    folder = posixpath.dirname(here)
    image = ""
    if found := thumbnail(facts.BOOK.parent / f"{document}.ipynb"):
        name = f"thumbnail-{posixpath.basename(document)}.{found[0]}"
        file = Path(app.outdir) / "_images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(found[1])
        image = f'<img src="{posixpath.relpath(f"_images/{name}", folder)}" alt=""/>'
    return (f'<li><a href="{posixpath.relpath(document, folder)}.html">{image}<strong>{title}</strong></a>'
            f"<span>{escape(text)}</span></li>")


def setup(app: Sphinx) -> Any:
    app.add_node(gallery)
    app.add_directive("chapter-gallery", ChapterGallery)
    app.add_directive("chapter-picture", ChapterPicture)
    app.connect("doctree-resolved", fill_gallery)
