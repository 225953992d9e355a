"""The book's own Sphinx extension: tables and charts from facts and records, family tree, gallery, languages, formulas.

`python -m workflow.pages` loads it; nothing of it reaches outside the built book.
"""
from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from zoobook import (
    charts,
    data,
    families,
    figures,
    files,
    formulas,
    glossary,
    languages,
    machine,
    outputs,
    parity,
    start,
    tables,
)


def setup(app: Sphinx) -> dict[str, Any]:
    for part in (languages, tables, data, charts, formulas, families, figures, start, files, glossary, machine,
                 outputs, parity):
        part.setup(app)
    app.add_css_file("zoobook.css")
    app.add_js_file("zoobook.js")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
