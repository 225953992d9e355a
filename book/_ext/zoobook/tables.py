"""Tables drawn from facts and records: sortable, with a box that filters, links to recipes and checkpoints.

    ```{model-table}                      all models of the zoo
    ```
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
from detcore.zoo.index import Published, families
from zoobook import facts
from zoobook.languages import _


@dataclass(frozen=True)
class Value:
    """A cell whose text is not what it is sorted by, such as "24 epochs" or "58.5 [57.1, 59.9]"."""

    text: str
    sort: float


Cell = str | float | Value | None | nodes.Node
IMAGES = 117_266  # of an epoch of COCO: those of train2017 that have objects


@dataclass(frozen=True)
class Column:
    """A column: its header, its cells, the decimals of its numbers, and why a cell may be empty."""

    header: str
    cells: Sequence[Cell]
    decimals: int = 1
    empty: str = ""

    @property
    def numeric(self) -> bool:
        return any(isinstance(cell, (int, float, Value)) for cell in self.cells)


def link(text: str, address: str, **attributes: Any) -> nodes.reference:
    """A link with plain or monospaced text."""
    return nodes.reference(text, text, refuri=address, **attributes)


def name_nodes(name: str) -> list[nodes.Node]:
    """A model's name, which breaks after an underscore and nowhere else."""
    parts = name.split("_")
    return [nodes.inline("", part + "_" * (i < len(parts) - 1), classes=["zoo-name"]) for i, part in enumerate(parts)]


def model_link(name: str, address: str) -> nodes.reference:
    return nodes.reference("", "", *name_nodes(name), refuri=address)


def build_table(columns: Sequence[Column], caption: str, ids: Sequence[str] = (),
                filterable: bool = False) -> nodes.container:
    """A table without its empty columns, in a box that scrolls sideways where the page is narrower.

    The cells of the first column name their rows. The caption is for those who cannot see what stands around the table;
    it is the name of the file, too, that the table is downloaded as.

    Args:
        ids: anchors of the rows.
    """
    columns = [column for column in columns if any(cell not in (None, "") for cell in column.cells)]
    table = nodes.table(classes=["zoo-table"] + ["zoo-filter"] * filterable)
    table += nodes.title(caption, caption, translatable=False)
    group = nodes.tgroup(cols=len(columns))
    table += group
    group += [nodes.colspec(colwidth=1, stub=int(i == 0)) for i in range(len(columns))]
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
    return nodes.container("", table, classes=["zoo-table-box"])


def _entry(column: Column, cell: Cell) -> nodes.entry:
    entry = nodes.entry(classes=["number"] if column.numeric else [])
    if isinstance(cell, nodes.Node):
        entry += nodes.paragraph("", "", cell)
    elif cell is None or cell == "":
        reason = column.empty or _("not published")
        entry += nodes.paragraph("", "", nodes.abbreviation("–", "–", explanation=reason, classes=["zoo-none"]))
    elif isinstance(cell, Value):
        entry["sort"] = f"{cell.sort:g}"
        entry += nodes.paragraph(cell.text, cell.text)
    else:
        text = f"{cell:.{column.decimals}f}" if isinstance(cell, (int, float)) else cell
        entry += nodes.paragraph(text, text)
    return entry


def visit_entry(self: Any, node: nodes.entry) -> None:
    """A cell as Sphinx writes it; headers say what they are the header of, and cells what they are sorted by."""
    type(self).visit_entry(self, node)
    added = ""
    if self.body[-1].startswith("<th"):
        added += f' scope="{"col" if isinstance(node.parent.parent, nodes.thead) else "row"}"'
    if "sort" in node:
        added += f' data-sort="{node["sort"]}"'
    self.body[-1] = self.body[-1].replace(self.body[-1][:3], self.body[-1][:3] + added, 1)


def depart_entry(self: Any, node: nodes.entry) -> None:
    type(self).depart_entry(self, node)


def source(title: str, address: str) -> nodes.paragraph:
    """The line under a table that says where its numbers come from."""
    line = note(str(_("Source:")) + " ")
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
    return source(str(_("our results: the records of our runs")) + " (book/records)", "")


def title_of(family: str) -> str:
    return str(_(facts.title(family)))


def measured(result: facts.Ours | None, metric: str) -> Cell:
    """One of our values, with its 95 % interval where there is one."""
    if result is None or (value := result.percent(metric)) is None:
        return None
    if interval := result.interval(metric):
        return Value(f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]", value)
    return value


def ours_columns(results: Sequence[facts.Ours | None], prefix: str = "") -> list[Column]:
    """What we measured of some models."""
    empty = _("not measured")
    headers = (("bbox_AP", _("Box AP")), ("segm_AP", _("Mask AP")), ("panoptic_PQ", _("PQ")),
               ("proposal_AR1000", _("AR of all proposals")))
    columns = [Column(prefix + header, [measured(r, metric) for r in results], empty=empty)
               for metric, header in headers]
    return columns + [
        Column(prefix + _("Memory (GB)"), [r and r.memory_gb for r in results], 2, empty),
        Column(prefix + _("Inference (ms)"), [r and r.inference_ms for r in results], empty=empty),
    ]


class ZooTable(SphinxDirective):
    """A family's models: what was published, what we measured, where the weights are."""

    required_arguments = 1
    option_spec = {"only": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        family, only = self.arguments[0], self.options.get("only")
        rows = [row for row in facts.models(family) if not only or fnmatchcase(row[0].name, only)]
        page = "" if only is None else posixpath.relpath(f"book/zoo/{family.replace('+', '_')}.html",
                                                         posixpath.dirname(self.env.docname))
        ours = {(found.model, found.profile): found for found in facts.ours()}
        several = {p.dataset for _e, p in rows} - {None, "COCO"}
        columns = [
            Column(_("Model"), [model_link(entry.name, f"{page}#{recipe_id(entry)}") for entry, _p in rows]),
            Column(_("Data set"), [p.dataset if several else None for _e, p in rows]),
            Column(_("Training"), [length(entry.recipe) for entry, _p in rows]),
            *published_columns([p for _e, p in rows]),
        ]
        own: list[Column] = []
        for profile, header in (("coco", _("Ours")), ("pocket", _("Ours, pocket"))):
            own += ours_columns([ours.get((entry.name, profile)) for entry, _p in rows], f"{header}: ")
        caption = _("Models of {family}").format(family=title_of(family))
        found: list[nodes.Node] = [build_table(columns + own, caption, filterable=not only), zoo_source()]
        if any(cell is not None for column in own for cell in column.cells):
            found.append(records_source())
        return found


def published_columns(rows: Sequence[Published]) -> list[Column]:
    """The published results of some models."""
    return [
        Column(_("Box AP"), [p.box_ap for p in rows]),
        Column(_("Mask AP"), [p.mask_ap for p in rows]),
        Column(_("PQ"), [p.panoptic_quality for p in rows]),
        Column(_("AR@1000"), [p.average_recall for p in rows]),
        Column(_("Memory (GB)"), [p.training_memory_gb for p in rows]),
        Column(_("Inference (ms)"), [p.inference_ms for p in rows]),
        Column(_("Weights"), [link(_("weights"), p.checkpoint) if p.checkpoint else None for p in rows]),
    ]


class ModelTable(SphinxDirective):
    """All models of the zoo with their published results."""

    def run(self) -> list[nodes.Node]:
        here = posixpath.dirname(self.env.docname)
        rows = [row for family in families() for row in facts.models(family)]
        pages = [posixpath.relpath(f"book/zoo/{(e.family or '').replace('+', '_')}.html", here) for e, _p in rows]
        columns = [
            Column(_("Model"), [model_link(e.name, f"{page}#{recipe_id(e)}") for (e, _p), page in zip(rows, pages)]),
            Column(_("Family"), [link(title_of(e.family or ""), page) for (e, _p), page in zip(rows, pages)]),
            Column(_("Backbone"), [e.backbone and e.backbone.name for e, _p in rows], empty=_("the method's own")),
            Column(_("Data set"), [p.dataset for _e, p in rows]),
            *published_columns([p for _e, p in rows]),
        ]
        return [build_table(columns, str(_("All models of the zoo")), filterable=True), zoo_source()]


class RecipeTable(SphinxDirective):
    """How each model of a family is trained, a row each, with an anchor."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        entries = [entry for entry, _p in facts.models(self.arguments[0])]
        rows = [entry.recipe for entry in entries]
        columns = [
            Column(_("Model"), [nodes.inline("", "", *name_nodes(entry.name)) for entry in entries]),
            Column(_("Pretrained backbone"), [backbone_file(entry) for entry in entries]),
            Column(_("Training"), [length(r) for r in rows]),
            Column(_("Learning rate"), [Value(f"{type(r.optimizer).__name__} {r.optimizer.lr:g}", r.optimizer.lr)
                                        for r in rows]),
            Column(_("Drops at"), [drops(r) for r in rows], empty=_("never")),
            Column(_("Images per step"), [r.batch_size for r in rows], 0),
            Column(_("Image size"), [scales(r.train_transforms) for r in rows]),
            Column(_("Mixed precision"), [_("yes") if r.amp else "" for r in rows], empty=_("no")),
            Column(_("Options of the method"), [options(entry) for entry in entries], empty=_("none")),
        ]
        caption = _("Recipes of {family}").format(family=title_of(self.arguments[0]))
        return [build_table(columns, caption, ids=[recipe_id(entry) for entry in entries])]


class PublishedTable(SphinxDirective):
    """A table of `book/data`, with its source."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        table = facts.table(self.arguments[0])
        self.env.note_dependency(str(facts.BOOK / "data" / f"{self.arguments[0]}.csv"))
        columns = [Column(_(header) if header else "", cells) for header, cells in zip(table.header, zip(*table.rows))]
        title, address = table.source
        box = build_table(columns, str(_(title)))
        numeric = [all(_is_number(str(cell)) for cell in column.cells) for column in columns]
        for row in box.findall(nodes.row):
            for entry, number in zip(row.findall(nodes.entry), numeric):
                if number:
                    entry["classes"] = ["number"]
        return [box, source(_(title), address)]


class RecordsTable(SphinxDirective):
    """All models that we have trained with a profile."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        found = [result for result in facts.ours() if result.profile == self.arguments[0]]
        if not found:
            return [note(_("There is no record of this profile yet."))]
        empty = _("not recorded")
        columns = [
            Column(_("Model"), [nodes.inline("", "", *name_nodes(result.model)) for result in found]),
            *ours_columns(found),
            Column(_("Steps"), [result.steps for result in found], 0, empty),
            Column(_("Images seen"), [result.images_seen for result in found], 0, empty),
            Column(_("Seed"), [result.seed for result in found], 0, empty),
            Column(_("Training (s)"), [result.training_s for result in found], 0, empty),
            Column(_("Hardware"), [result.hardware for result in found]),
            Column(_("Version"), [result.commit for result in found], empty=empty),
        ]
        caption = _("Our results, profile {profile}").format(profile=self.arguments[0])
        return [build_table(columns, caption, filterable=True), records_source()]


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
        return [build_table(columns, str(_("How pretrained backbones expect their images")))]


def recipe_id(entry: ModelEntry) -> str:
    """The anchor of a model's recipe, without dots: scripts of the theme look it up as a CSS selector."""
    return f"recipe-{entry.name.replace('.', '-')}"


def length(recipe: Recipe) -> Value:
    """How long a training is: epochs of the data set, or steps; sorted by images."""
    if recipe.epochs:
        epochs = recipe.epochs * recipe.repeat
        return Value(_("{n} epochs").format(n=epochs), epochs)
    steps = recipe.iterations or 0
    return Value(_("{n} steps").format(n=steps), round(steps * recipe.batch_size / IMAGES, 2))


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
    return bool(text) and not text.strip("0123456789.,()& ")


def setup(app: Sphinx) -> None:
    app.add_node(nodes.entry, override=True, html=(visit_entry, depart_entry))
    app.add_directive("model-table", ModelTable)
    app.add_directive("zoo-table", ZooTable)
    app.add_directive("recipe-table", RecipeTable)
    app.add_directive("published-table", PublishedTable)
    app.add_directive("records-table", RecordsTable)
    app.add_directive("preprocessing-table", PreprocessingTable)
