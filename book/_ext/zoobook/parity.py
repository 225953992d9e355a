"""Agreement with the original implementation, from the rows that `python -m tests.parity FOLDER --json FILE` writes.

    ```{parity-summary}        how many cases were run, of how many, and how many pass
    ```
    ```{parity-table}          a row for each case, with its largest differences
    ```
"""
from __future__ import annotations

from functools import cache
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from detcore.records import read_json
from detcore.zoo import index
from zoobook import facts
from zoobook.languages import _
from zoobook.tables import Column, Value, build_table, name_nodes, note

RECORD = facts.BOOK / "parity.json"
CASES = facts.BOOK.parent / "tests/reference/cases"


@cache
def rows() -> list[dict[str, Any]]:
    return read_json(RECORD, list)


class ParitySummary(SphinxDirective):
    """What the record holds, in a sentence."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(RECORD))
        families = {index.rows()[row["case"]].family for row in rows()}
        text = _("{passed} of {run} cases pass. There are {all} cases; those that were run are of {families} of the "
                 "{total} families.").format(passed=sum(row["passes"] for row in rows()), run=len(rows()),
                                             all=len(list(CASES.glob("*.json.gz"))), families=len(families),
                                             total=len(index.families()))
        return [nodes.paragraph("", "", nodes.strong(text, text), translatable=False)]


class ParityTable(SphinxDirective):
    """The cases with their largest differences."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(RECORD))
        found = rows()

        def numbers(name: str) -> list[Value | None]:
            values = [row["differences"].get(name) for row in found]
            return [None if v is None else Value(f"{v:.0e}".replace("e-0", "e-") if v else "0", v) for v in values]

        def shares(name: str) -> list[Value | None]:
            values = [row["differences"].get(name) for row in found]
            return [None if v is None else Value(f"{100 * v:.1f}", v) for v in values]

        empty = _("the case has no such check")
        columns = [
            Column(_("Case"), [nodes.inline("", "", *name_nodes(row["case"])) for row in found]),
            Column(_("Result"), [_("pass") if row["passes"] else _("differs") for row in found]),
            Column(_("Features"), numbers("features"), empty=empty),
            Column(_("Head"), numbers("head"), empty=empty),
            Column(_("Losses"), numbers("losses"), empty=empty),
            Column(_("Gradients (%)"), shares("gradients"), empty=empty),
            Column(_("Detections (%)"), shares("detections"), empty=empty),
            Column(_("Masks (%)"), shares("masks"), empty=empty),
            Column(_("Panoptic (%)"), shares("panoptic"), empty=empty),
        ]
        caption = str(_("Largest differences from the original, case by case"))
        return [build_table(columns, caption, filterable=True),
                note(_("Source:") + " book/parity.json (python -m tests.parity)")]


def setup(app: Sphinx) -> None:
    app.add_directive("parity-summary", ParitySummary)
    app.add_directive("parity-table", ParityTable)
