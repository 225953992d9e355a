"""Tables of what models start from and what they are trained on.

    ```{backbone-table}
    ```
    ```{layout-table}
    ```
"""
from __future__ import annotations

from collections import Counter

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from detcore.data.layouts import LAYOUTS
from detcore.weights import weights_address, weights_file
from detcore.zoo.index import all_backbones, all_entries, models_with
from zoobook.languages import _
from zoobook.tables import Column, build_table, link


class BackboneTable(SphinxDirective):
    """Every backbone of the zoo with its pretrained weights."""

    def run(self) -> list[nodes.Node]:
        files = [b.weights and link(weights_file(b.weights), weights_address(b.weights)) for b in all_backbones()]
        random = _("trained from random weights")
        columns = [
            Column(_("Backbone"), [b.name for b in all_backbones()]),
            Column(_("Origin"), [b.origin if b.weights else None for b in all_backbones()], empty=random),
            Column(_("File"), files, empty=random),
            Column(_("Mean"), [", ".join(f"{v:g}" for v in b.preprocess.mean) for b in all_backbones()]),
            Column(_("Standard deviation"), [", ".join(f"{v:g}" for v in b.preprocess.std) for b in all_backbones()]),
            Column(_("Channels"), ["RGB" if b.preprocess.rgb else "BGR" for b in all_backbones()]),
            Column(_("Models"), [len(models_with(b)) for b in all_backbones()], 0),
        ]
        return [build_table(columns, str(_("Backbones and their pretrained weights")), filterable=True)]


class LayoutTable(SphinxDirective):
    """Every form of data set that is read."""

    def run(self) -> list[nodes.Node]:
        used = Counter(e.recipe.layout for e in all_entries().values())
        columns = [
            Column(_("Data set"), [layout.title for layout in LAYOUTS.values()]),
            Column(_("Layout"), [nodes.literal(name, name) for name in LAYOUTS]),
            Column(_("Recognised by"), [nodes.literal(mark := layout.marks[0], mark) for layout in LAYOUTS.values()]),
            Column(_("Models"), [used[name] for name in LAYOUTS], 0),
        ]
        return [build_table(columns, str(_("Data sets that are read")))]


def setup(app: Sphinx) -> None:
    app.add_directive("backbone-table", BackboneTable)
    app.add_directive("layout-table", LayoutTable)
