"""What an image says to those who cannot see it: its caption, where no alternative text is given.

A chapter's cell gives a caption as MyST-NB's render metadata, `mystnb={"figure": {"caption": "...", "name": "..."}}`.
Without one, an image takes the title of the section that it stands in.
"""
from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from zoobook.languages import _

# The name of an image file, which MyST-NB makes from a hash, is no description of it.
FILE_NAME = re.compile(r"^\S*\.(png|jpe?g|svg|gif|webp)$|^[0-9a-f]{16,}\S*$", re.IGNORECASE)


class AlternativeTexts(SphinxTransform):
    """Gives every image a text; runs when captions and titles are translated."""

    default_priority = 105

    def apply(self, **kwargs: Any) -> None:
        if self.app.builder.name == "gettext":
            return  # the text is the caption's translation, not a message of its own
        for image in self.document.findall(nodes.image):
            given = image.get("alt", "").strip()
            if not given or FILE_NAME.match(given):
                image["alt"] = description(image)


def description(image: nodes.image) -> str:
    """The caption of an image's figure, or else what section it is in."""
    node: nodes.Node | None = image
    while node is not None and not isinstance(node, nodes.figure):
        node = node.parent
    if node is not None:
        for caption in node.findall(nodes.caption):
            return caption.astext()
    node = image.parent
    while node is not None and not isinstance(node, nodes.section):
        node = node.parent
    title = next(node.findall(nodes.title)).astext() if node is not None else ""
    return _("Figure of the section “{title}”").format(title=title)


def setup(app: Sphinx) -> None:
    app.add_transform(AlternativeTexts)
