"""Tables drawn from facts and records: sortable, with a box that filters, links to recipes and checkpoints.

    ```{zoo-table} faster_rcnn            a family: published results, ours beside them
    :only: *r50*                          some of its models
    ```
    ```{recipe-table} faster_rcnn         how each of its models is trained
    ```
    ```{published-table} throughput       a file of book/data with its source
    ```
    ```{records-table} pocket             our results with a profile
    ```
    ```{preprocessing-table}
    ```

Headers come from the catalogue `zoobook`; cells are numbers and names and stay as they are.
"""
from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from detcore.data.transforms import Choice, Resize, ResizeChoice, ResizeRange, ScaleJitter, Transform
from detcore.recipe import CAFFE, CAFFE2, DARKNET, PYCLS, TORCHVISION, VGG, Recipe
from detcore.zoo.entries import ModelEntry
from zoobook import facts
from zoobook.languages import _

Cell = str | float | None | nodes.Node


@dataclass(frozen=True)
class Column:
    """A column: its header, its cells, the decimals of its numbers."""

    header: str
    cells: Sequence[Cell]
    decimals: int = 1

    @property
    def numeric(self) -> bool:
        return any(isinstance(cell, (int, float)) for cell in self.cells)


def link(text: str, address: str, **attributes: Any) -> nodes.reference:
    """A link with plain or monospaced text."""
    return nodes.reference(text, text, refuri=address, **attributes)


def build_table(columns: Sequence[Column], ids: Sequence[str] = (), filterable: bool = False) -> nodes.container:
    """A table without its empty columns, in a box that scrolls sideways on a phone.

    Args:
        ids: anchors of the rows.
    """
    columns = [column for column in columns if any(cell not in (None, "") for cell in column.cells)]
    table = nodes.table(classes=["zoo-table"] + ["zoo-filter"] * filterable)
    group = nodes.tgroup(cols=len(columns))
    table += group
    group += [nodes.colspec(colwidth=1) for _column in columns]
    head = nodes.row()
    for column in columns:
        head += nodes.entry("", nodes.paragraph(column.header, column.header),
                            classes=["number"] if column.numeric else [])
    group += nodes.thead("", head)
    body = nodes.tbody()
    group += body
    for i in range(len(columns[0].cells)):
        row = nodes.row(ids=[ids[i]] if ids else [])
        for column in columns:
            row += _entry(column, column.cells[i])
        body += row
    box = nodes.container("", table, classes=["zoo-table-box"])
    return box


def _entry(column: Column, cell: Cell) -> nodes.entry:
    entry = nodes.entry(classes=["number"] if column.numeric else [])
    if isinstance(cell, nodes.Node):
        entry += nodes.paragraph("", "", cell)
    else:
        text = "" if cell is None else f"{cell:.{column.decimals}f}" if isinstance(cell, (int, float)) else cell
        entry += nodes.paragraph(text, text)
    return entry


def source(title: str, address: str) -> nodes.paragraph:
    """The line under a table that says where its numbers come from."""
    line = note(str(_("Source")) + ": ")
    line += link(title, address) if address else nodes.Text(title)
    return line


def note(text: str) -> nodes.paragraph:
    """A line in small print, in the page's language already."""
    return nodes.paragraph(text, text, classes=["zoo-source"], translatable=False)


def zoo_source() -> nodes.paragraph:
    """The source of `published.csv`."""
    return source(str(_("published results of the MMDetection model zoo, release 3.3")), facts.ZOO_URL)


def records_source() -> nodes.paragraph:
    """The source of our own results."""
    return source(str(_("the records of our runs")) + " (book/records)", "")


class ZooTable(SphinxDirective):
    """A family's models: what was published, what we measured, where the weights are."""

    required_arguments = 1
    option_spec = {"only": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        family, only = self.arguments[0], self.options.get("only")
        rows = [row for row in facts.models(family) if not only or fnmatchcase(row[0].name, only)]
        page = "" if only is None else posixpath.relpath(f"book/zoo/{family}.html", posixpath.dirname(self.env.docname))
        ours = {(found.model, found.profile): found for found in facts.ours()}
        several = {p.dataset for _e, p in rows} - {None, "COCO"}
        columns = [
            Column(_("Model"), [link(entry.name, f"{page}#{recipe_id(entry)}") for entry, _p in rows]),
            Column(_("Data set"), [p.dataset if several else None for _e, p in rows]),
            Column(_("Training"), [length(entry.recipe) for entry, _p in rows]),
            Column(_("Box AP"), [p.box_ap for _e, p in rows]),
            Column(_("Mask AP"), [p.mask_ap for _e, p in rows]),
            Column(_("PQ"), [p.panoptic_quality for _e, p in rows]),
            Column(_("AR@1000"), [p.average_recall for _e, p in rows]),
            Column(_("Memory (GB)"), [p.training_memory_gb for _e, p in rows]),
            Column(_("Inference (ms)"), [p.inference_ms for _e, p in rows]),
            Column(_("Weights"), [link(_("weights"), p.checkpoint) if p.checkpoint else None for _e, p in rows]),
        ]
        for profile, header in (("coco", _("Ours")), ("pocket", _("Ours, pocket"))):
            found = [ours.get((entry.name, profile)) for entry, _p in rows]
            columns += [
                Column(f"{header}: {_('Box AP')}", [f and f.box_ap for f in found]),
                Column(f"{header}: {_('Mask AP')}", [f and f.mask_ap for f in found]),
                Column(f"{header}: {_('PQ')}", [f and f.panoptic_quality for f in found]),
                Column(f"{header}: {_('AR@1000')}", [f and f.recall for f in found]),
                Column(f"{header}: {_('Memory (GB)')}", [f and f.memory_gb for f in found], 2),
                Column(f"{header}: {_('Inference (ms)')}", [f and f.inference_ms for f in found]),
            ]
        return [build_table(columns, filterable=not only), zoo_source()]


class RecipeTable(SphinxDirective):
    """How each model of a family is trained, a row each, with an anchor."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        entries = [entry for entry, _p in facts.models(self.arguments[0])]
        rows = [entry.recipe for entry in entries]
        columns = [
            Column(_("Model"), [entry.name for entry in entries]),
            Column(_("Pretrained backbone"), [backbone_file(entry) for entry in entries]),
            Column(_("Training"), [length(r) for r in rows]),
            Column(_("Learning rate"), [f"{type(r.optimizer).__name__} {r.optimizer.lr:g}" for r in rows]),
            Column(_("Drops at"), [drops(r) for r in rows]),
            Column(_("Images a step"), [r.batch_size for r in rows], 0),
            Column(_("Image size"), [scales(r.train_transforms) for r in rows]),
            Column(_("Mixed precision"), [_("yes") if r.amp else "" for r in rows]),
            Column(_("Options of the method"), [options(entry) for entry in entries]),
        ]
        return [build_table(columns, ids=[recipe_id(entry) for entry in entries])]


class PublishedTable(SphinxDirective):
    """A table of `book/data`, with its source."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        table = facts.table(self.arguments[0])
        self.env.note_dependency(str(facts.BOOK / "data" / f"{self.arguments[0]}.csv"))
        columns = [Column(_(header) if header else "", cells) for header, cells in zip(table.header, zip(*table.rows))]
        box = build_table(columns)
        for entry in box.findall(nodes.entry):
            if _is_number(entry.astext()):
                entry["classes"] = ["number"]
        title, address = table.source
        return [box, source(_(title), address)]


class RecordsTable(SphinxDirective):
    """All models that we have trained with a profile."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        found = [result for result in facts.ours() if result.profile == self.arguments[0]]
        if not found:
            return [note(_("There is no record of this profile yet."))]
        columns = [
            Column(_("Model"), [result.model for result in found]),
            Column(_("Box AP"), [result.box_ap for result in found]),
            Column(_("Mask AP"), [result.mask_ap for result in found]),
            Column(_("PQ"), [result.panoptic_quality for result in found]),
            Column(_("AR@1000"), [result.recall for result in found]),
            Column(_("Training (s)"), [result.training_s for result in found], 0),
            Column(_("Memory (GB)"), [result.memory_gb for result in found], 2),
            Column(_("Inference (ms)"), [result.inference_ms for result in found]),
            Column(_("Hardware"), [result.hardware for result in found]),
        ]
        return [build_table(columns, filterable=True), records_source()]


class PreprocessingTable(SphinxDirective):
    """How the pretrained backbones expect an image to be normalised."""

    def run(self) -> list[nodes.Node]:
        kinds = {"TorchVision": TORCHVISION, "MSRA": CAFFE, "Caffe2": CAFFE2,
                 "Pycls": PYCLS, "SSD": VGG, "YOLOv3": DARKNET}
        columns = [
            Column(_("Origin"), list(kinds)),
            Column(_("Mean"), [", ".join(map(str, kind.mean)) for kind in kinds.values()]),
            Column(_("Standard deviation"), [", ".join(map(str, kind.std)) for kind in kinds.values()]),
            Column(_("Channels"), ["RGB" if kind.rgb else "BGR" for kind in kinds.values()]),
        ]
        return [build_table(columns)]


def recipe_id(entry: ModelEntry) -> str:
    """The anchor of a model's recipe."""
    return f"recipe-{entry.name}"


def length(recipe: Recipe) -> str:
    """How long a training is: epochs of the data set, or steps."""
    if recipe.epochs:
        return _("{n} epochs").format(n=recipe.epochs * recipe.repeat)
    return _("{n} steps").format(n=recipe.iterations)


def drops(recipe: Recipe) -> str:
    """When the learning rate drops, in what `length` counts."""
    schedule = recipe.schedule
    times = recipe.repeat if schedule.by_epoch else 1
    return ", ".join(str(m * times) for m in schedule.milestones if m < schedule.end)


def backbone_file(entry: ModelEntry) -> str:
    """The file of a model's pretrained backbone."""
    if entry.backbone is None or entry.backbone.weights is None:
        return _("none: from random weights")
    return entry.backbone.weights.rpartition("/")[2]


def scales(transforms: Sequence[Transform]) -> str:
    """The sizes of training images; of transforms that are chosen between, those of the first."""
    for transform in transforms:
        match transform:
            case Choice():
                return scales(transform.lists[0])
            case ResizeChoice():
                shorts = [scale[1] for scale in transform.scales]
                return f"{transform.scales[0][0]} × ({min(shorts)}, …, {max(shorts)})"
            case ResizeRange():
                (width, low), (widest, high) = transform.low, transform.high
                return f"{width} × ({low}–{high})" if width == widest else f"({width} × {low})–({widest} × {high})"
            case ScaleJitter():
                low, high = transform.ratio
                return f"{transform.scale[0]} × {transform.scale[1]}, ×({low:g}–{high:g})"
            case Resize():
                return f"{transform.scale[0]} × {transform.scale[1]}"
    return ""


def options(entry: ModelEntry) -> nodes.Node | None:
    """What a model changes in its family's builder, as Python would write it."""
    def name(value: Any) -> str:
        while isinstance(value, partial):
            value = value.func
        return value.__name__ if isinstance(value, Callable) and hasattr(value, "__name__") else repr(value)

    text = ", ".join(f"{key}={name(value)}" for key, value in entry.options.items())
    return nodes.literal(text, text) if text else None


def _is_number(text: str) -> bool:
    return bool(text) and not text.strip("0123456789.()& ")


def setup(app: Sphinx) -> None:
    app.add_directive("zoo-table", ZooTable)
    app.add_directive("recipe-table", RecipeTable)
    app.add_directive("published-table", PublishedTable)
    app.add_directive("records-table", RecordsTable)
    app.add_directive("preprocessing-table", PreprocessingTable)
