"""Figures whose axes and texts a page relies on."""
from __future__ import annotations

from detcore import draw


def test_points_begin_at_zero_and_have_their_intervals() -> None:
    figure = draw.points({"one": (40.0, 55.0), "two": (70.0, 60.0)}, x="ms", across={"one": (30.0, 50.0)},
                         upright={"two": (58.0, 62.0)})
    axes = figure.axes[0]
    assert axes.get_xlim()[0] == 0 and axes.get_ylim()[0] == 0 and axes.get_xlim()[1] > 70
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([30.0, 50.0], [55.0, 55.0]) in drawn and ([70.0, 70.0], [58.0, 62.0]) in drawn
    svg = figure._repr_svg_()  # type: ignore[attr-defined]
    assert ">one</text>" in svg and ">ms</text>" in svg
