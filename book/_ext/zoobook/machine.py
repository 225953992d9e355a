"""What chapters gave on the machine that built the book, beside the committed results: `build/machine.json`.

    ```{machine-results}                  each result with the committed value, its interval, and this machine's value
    ```
    ```{machine-runs}                     what ran, where, when and for how long
    ```
"""
from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from detcore.records import read_json
from zoobook import facts
from zoobook.languages import _
from zoobook.tables import Column, build_table, note

FILE = facts.BOOK.parent / "build/machine.json"
# A metric's kind and name, as records have them, and its header.
METRICS = {"bbox_AP": _("Box AP"), "segm_AP": _("Mask AP"), "panoptic_PQ": _("PQ"), "proposal_AR100": _("AR@100"),
           "proposal_AR1000": _("AR@1000")}


def told() -> dict[str, Any]:
    """What `make book` has found."""
    return read_json(FILE) if FILE.exists() else {"rows": [], "runs": []}


class MachineTable(SphinxDirective):
    """A table of what ran on this machine; a sentence where nothing did."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(FILE))
        return self.table() or [note(_("No chapter has run on this machine: every page shows the committed results."))]

    def table(self) -> list[nodes.Node]:
        raise NotImplementedError

    def chapter(self, name: str) -> nodes.Node:
        """A link to a chapter, with its title."""
        return addnodes.pending_xref("", nodes.inline("", name), refdomain="std", reftype="doc", refexplicit=False,
                                     refdoc=self.env.docname, reftarget=f"/notebooks/{name}", refwarn=True)


class Results(MachineTable):
    """A row for each result."""

    def table(self) -> list[nodes.Node]:
        within = {True: _("yes"), False: _("no"), None: "–"}
        if not (rows := told()["rows"]):
            return []
        bounds = [row["interval"] and " – ".join(f"{100 * value:.1f}" for value in row["interval"]) for row in rows]
        columns = [
            Column(_("Chapter"), [self.chapter(row["chapter"]) for row in rows]),
            Column(_("Model"), [row["model"] for row in rows]),
            Column(_("Metric"), [METRICS.get(row["metric"], row["metric"]) for row in rows]),
            Column(_("Committed (%)"), [row["committed"] and 100 * row["committed"] for row in rows]),
            Column(_("95 % interval"), bounds),
            Column(_("This machine (%)"), [100 * row["here"] for row in rows]),
            Column(_("Within the interval"), [within[row["within"]] for row in rows]),
        ]
        return [build_table(columns, str(_("Results on this machine beside the committed ones")))]


class Runs(MachineTable):
    """A row for each chapter."""

    def table(self) -> list[nodes.Node]:
        if not (runs := told()["runs"]):
            return []
        columns = [
            Column(_("Chapter"), [self.chapter(run["chapter"]) for run in runs]),
            Column(_("Seconds"), [run["seconds"] for run in runs], 0),
            Column(_("Machine"), [run["machine"] for run in runs]),
            Column(_("Committed run: seconds"), [run["committed_seconds"] for run in runs], 0),
            Column(_("Committed run: machine"), [run["committed_machine"] for run in runs]),
            Column(_("Commit"), [nodes.literal(text, text) if (text := run["commit"]) else None for run in runs]),
            Column(_("Date"), [run["date"][:10] for run in runs]),
        ]
        return [build_table(columns, str(_("Chapters that have run on this machine")))]


def setup(app: Sphinx) -> None:
    app.add_directive("machine-results", Results)
    app.add_directive("machine-runs", Runs)
