"""The glossary: `book/glossary.yaml` as a page, in the language of the book, with the terms of the other one.

    ```{term-list}
    ```

Its definitions and synonyms are words of the page, so that a search for any of them finds it.
"""
from __future__ import annotations

from functools import cache
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from zoobook import facts

FILE = facts.BOOK / "glossary.yaml"


@cache
def terms() -> list[dict[str, Any]]:
    """The entries of the file."""
    return yaml.safe_load(FILE.read_text("utf-8"))


class TermList(SphinxDirective):
    """A definition list of all terms."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(FILE))
        if self.env.app.builder.name == "gettext":
            return []  # both languages stand in the file
        own = self.config.language
        other = "ja" if own == "en" else "en"
        listing = nodes.definition_list(classes=["zoo-glossary"])
        for entry in sorted(terms(), key=lambda entry: entry["en"]["term"].lower()):
            here, there = entry[own], entry[other]
            term = nodes.term("", here["term"], ids=["term-" + nodes.make_id(entry["en"]["term"])])
            words = here.get("synonyms", []) + [there["term"]] + there.get("synonyms", [])
            also = nodes.inline("", " · ".join(dict.fromkeys(w for w in words if w != here["term"])),
                                classes=["zoo-synonyms"])
            text = nodes.paragraph("", here["definition"])
            body = nodes.definition("", nodes.paragraph("", "", also), text) if also.astext() else \
                nodes.definition("", text)
            listing += nodes.definition_list_item("", term, body)
        for node in listing.findall(nodes.TextElement):
            node["translatable"] = False
        return [listing]


def setup(app: Sphinx) -> None:
    app.add_directive("term-list", TermList)
