"""Charts that can be hovered, with plotly's script beside the pages.

    ```{speed-accuracy} COCO       box AP on a data set over inference time, as published
    ```
    ```{pocket-chart}              box AP over training time, our records
    ```
"""
from __future__ import annotations

import posixpath
import shutil
from html import escape
from pathlib import Path
from typing import Any

import plotly
import plotly.graph_objects as go
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from detcore.zoo.index import families, get_model_entry
from zoobook import facts
from zoobook.languages import _
from zoobook.tables import records_source, zoo_source

SCRIPT = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
# Colours that are told apart by the colour-blind and have a contrast of 3:1 on white and on the dark page; a shape
# each, too. Families beyond these are grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#C4609A", "#7B61C9", "#8A7A00", "#008C9E", "#9C6B4A")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
REST = "#808080"


class Chart(SphinxDirective):
    """A scatter plot in which each family has a colour."""

    x_title: str
    name: str

    def points(self) -> dict[str, list[tuple[float, float, str]]]:
        """For each family (x, box AP, what hovering shows)."""
        raise NotImplementedError

    def titles(self) -> tuple[str, str]:
        """Of the axes."""
        raise NotImplementedError

    def source(self) -> nodes.paragraph:
        """Where the numbers come from."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        if self.env.app.builder.format != "html":
            return []
        figure, found = go.Figure(), {family: points for family, points in self.points().items() if points}
        # The largest families are told apart, all others are one grey series behind them.
        largest = sorted(found, key=lambda family: -len(found[family]))[:len(COLOURS)]
        rest = [point for family, points in found.items() if family not in largest for point in points]
        if rest:
            self.add(figure, rest, str(_("other families")), REST, "circle-open")
        for family, colour, symbol in zip(sorted(largest, key=list(found).index), COLOURS, SYMBOLS):
            self.add(figure, found[family], str(_(facts.title(family))), colour, symbol)
        x_title, y_title = self.titles()
        axis = dict(gridcolor="rgba(128,128,128,.25)", zeroline=False)
        figure.update_layout(
            # On a phone the legend has a line for each or two families.
            margin=dict(l=56, r=8, t=8, b=48), height=360 + 12 * len(figure.data), paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)", font=dict(size=13), hovermode="closest", xaxis=dict(title=x_title, **axis),
            yaxis=dict(title=y_title, **axis), legend=dict(orientation="h", y=1.02, yanchor="bottom"),
            template="none", dragmode=False)
        up = posixpath.relpath(".", posixpath.dirname(self.env.docname) or ".")
        html = figure.to_html(full_html=False, include_plotlyjs=f"{up}/_static/plotly.min.js", div_id=self.chart_id(),
                              config=dict(responsive=True, displayModeBar=False))
        label = escape(f"{y_title}, {x_title}")
        return [nodes.raw("", f'<div class="zoo-chart" role="group" aria-label="{label}">{html}</div>', format="html"),
                self.source()]

    @staticmethod
    def add(figure: go.Figure, points: list[tuple[float, float, str]], name: str, colour: str, symbol: str) -> None:
        x, y, text = zip(*sorted(points))
        figure.add_trace(go.Scatter(x=x, y=y, text=text, mode="markers", name=name,
                                    marker=dict(color=colour, symbol=symbol, size=10, opacity=0.85),
                                    hovertemplate="%{text}<extra></extra>"))

    def chart_id(self) -> str:
        return f"chart-{self.env.new_serialno('zoo-chart')}"


class SpeedAccuracy(Chart):
    """Published box AP on a data set over published inference time."""

    required_arguments = 1
    final_argument_whitespace = True

    def points(self) -> dict[str, list[tuple[float, float, str]]]:
        return {family: [(p.inference_ms, p.box_ap, f"<b>{entry.name}</b><br>{_('Box AP')} {p.box_ap}"
                          + (f"<br>{_('Mask AP')} {p.mask_ap}" if p.mask_ap else "")
                          + f"<br>{p.inference_ms} ms ({p.hardware}, {p.precision}, {p.resolution})")
                         for entry, p in facts.models(family)
                         if p.inference_ms and p.box_ap and p.dataset == self.arguments[0]]
                for family in families()}

    def titles(self) -> tuple[str, str]:
        return (_("inference time of an image (ms, V100)"),
                _("box AP on {dataset} (%)").format(dataset=self.arguments[0]))

    def source(self) -> nodes.paragraph:
        return zoo_source()


class PocketChart(Chart):
    """Our box AP over our training time, pocket profile; of Pocket Zoo in COCO's layout, as AP differs in others."""

    def points(self) -> dict[str, list[tuple[float, float, str]]]:
        found: dict[str, list[tuple[float, float, str]]] = {family: [] for family in families()}
        for result in facts.ours():
            layout, box_ap = get_model_entry(result.model).recipe.layout, result.percent("bbox_AP")
            if result.profile == "pocket" and layout == "coco" and result.training_s and box_ap:
                ends = result.interval("bbox_AP")
                between = f" [{ends[0]}, {ends[1]}]" if ends else ""
                seen = f"<br>{_('Images seen')} {result.images_seen}" if result.images_seen else ""
                found[result.family].append((result.training_s, box_ap,
                                             f"<b>{result.model}</b><br>{_('Box AP')} {box_ap}{between}{seen}"
                                             f"<br>{result.training_s:.0f} s ({result.hardware})"))
        return found

    def titles(self) -> tuple[str, str]:
        return _("training time (s)"), _("box AP on Pocket Zoo (%)")

    def source(self) -> nodes.paragraph:
        return records_source()


def copy_script(app: Sphinx, error: Exception | None) -> None:
    """Put plotly's script beside the pages."""
    if error is None and app.builder.format == "html":
        target = Path(app.outdir) / "_static" / SCRIPT.name
        if not target.exists() or target.stat().st_size != SCRIPT.stat().st_size:
            shutil.copyfile(SCRIPT, target)


def setup(app: Sphinx) -> Any:
    app.add_directive("speed-accuracy", SpeedAccuracy)
    app.add_directive("pocket-chart", PocketChart)
    app.connect("build-finished", copy_script)
