"""Figures whose axes and texts a page relies on, and names and pictures of any kind."""
from __future__ import annotations

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from detcore import draw
from detcore.errors import DetcoreError, UsageError, printable
from detcore.structures import Detections

ODD_NAMES = ("$$", r"$\frac$", "_private", "猫", "con\x1b[31mtrol\nline", "кот", "x" * 500, "naïve", "a $5 & <b>")
INVENTED = "\U000F1234"  # of the private use area: no font has a letter there


def test_points_begin_at_zero_and_have_their_intervals() -> None:
    figure = draw.points({"one": (40.0, 55.0), "two": (70.0, 60.0)}, x="ms", across={"one": (30.0, 50.0)},
                         upright={"two": (58.0, 62.0)})
    axes = figure.axes[0]
    assert axes.get_xlim()[0] == 0 and axes.get_ylim()[0] == 0 and axes.get_xlim()[1] > 70
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([30.0, 50.0], [55.0, 55.0]) in drawn and ([70.0, 70.0], [58.0, 62.0]) in drawn
    svg = figure._repr_svg_()  # type: ignore[attr-defined]
    assert ">one</text>" in svg and ">ms</text>" in svg


@pytest.mark.parametrize("chart", [
    lambda names: draw.lines({n: ([1, 2], [i, 2]) for i, n in enumerate(names)}),
    lambda names: draw.histogram({n: [1, 2] for n in names}),
    lambda names: draw.bars({n: 1.0 for n in names}, intervals={n: (0.5, 1.5) for n in names}),
    lambda names: draw.points({n: (i, 2) for i, n in enumerate(names)}),
], ids=["lines", "histogram", "bars", "points"])
def test_a_name_in_a_chart_is_what_it_is(chart) -> None:
    """No formula between dollar signs, none left out for its underscore, no character that breaks the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = chart(ODD_NAMES)._repr_svg_()
    texts = {"".join(e.itertext()) for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"$$", r"$\frac$", "_private", "猫", "con [31mtrol line", "кот", "x" * 59 + "…", "naïve",
            "a $5 & <b>"} <= texts


def test_intervals_of_bars_lie_on_their_bars() -> None:
    axes = draw.bars({"a": 1.0, "b": 2.0}, intervals={"b": (1.5, 2.5)}).axes[0]
    [line] = axes.lines
    assert list(line.get_ydata()) == [0, 0] and list(line.get_xdata()) == [1.5, 2.5]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["b", "a"]
    assert [p.get_width() for p in axes.patches] == [2.0, 1.0]


def found(name: str, image: np.ndarray, box=(20.0, 20, 90, 90)) -> Detections:
    return Detections(torch.tensor([box]), torch.tensor([0.9]), torch.tensor([0]), class_names=(name,), image=image)


def test_a_name_in_any_script_is_painted_with_its_letters() -> None:
    ground = np.full((120, 200, 3), 120, np.uint8)
    missing = found(INVENTED, ground).draw()
    assert (np.asarray(missing) == np.asarray(found("class 0", ground).draw())).all(), "the label where no font helps"
    for name in ("cat", "naïve", "кот", "猫", "고양이"):
        font = draw.find_font(name, 12)
        if font is None:
            assert not name.isascii() and name not in ("naïve", "кот"), "these are in the font of matplotlib"
            continue
        assert bytes(font.getmask("\U0010ffff")) not in {bytes(font.getmask(c)) for c in name}, "an empty box"
        assert (np.asarray(found(name, ground).draw()) != np.asarray(missing)).any()


def test_fonts_are_looked_for_in_order(monkeypatch) -> None:
    monkeypatch.setattr(draw, "_faces", lambda: (("/no/font.ttf", 0, "None"),))
    draw.find_font.cache_clear()
    try:
        assert draw.find_font("cat", 12) is not None and draw.find_font("猫", 12) is None
        assert draw._name(("猫", "cat"), 0) == "class 0" and draw._name(("猫", "cat"), 1) == "cat"
        painted = draw.boxes(np.zeros((60, 60, 3), np.uint8), np.array([[1, 1, 50, 50]]), labels=["猫 90"])
        assert (np.asarray(painted) == np.asarray(draw.boxes(
            np.zeros((60, 60, 3), np.uint8), np.array([[1, 1, 50, 50]]), labels=["? 90"]))).all()
    finally:
        draw.find_font.cache_clear()


def test_names_that_are_missing_are_labels() -> None:
    assert draw._name(("a",), 3) == "class 3" and draw._name(None, 3) == "" and draw._name(("",), 0) == "class 0"
    assert draw.plain("a\n b\x00\x1b\u202ec") == "a b c" and len(draw.plain("x" * 10_000)) == draw.LONGEST_NAME


@pytest.mark.parametrize("shape, size", [
    ((40, 60), (576, 384)), ((400, 600), (600, 400)), ((1000, 3), (12, 4096)), ((3, 1000), (4096, 12)),
    ((1, 5000), (5000, 1)), ((1, 1), (384, 384)), ((70_000, 1), (1, 70_000))])
def test_small_pictures_grow_within_bounds(shape, size) -> None:
    picture = found("cat", np.zeros((*shape, 3), np.uint8), box=(0.0, 0, 1, 1))
    assert picture.draw().size == size
    assert "data:image/jpeg;base64" in picture._repr_html_()


@pytest.mark.parametrize("image", [
    None, "street.jpg", [[1, 2]], np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0, 3), np.uint8),
    np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3)), torch.zeros(3),
    torch.zeros(3, 0, 4, dtype=torch.uint8),
    Image.new("RGB", (0, 3))], ids=lambda i: type(i).__name__)
def test_what_is_no_picture_is_a_sentence(image) -> None:
    with pytest.raises(UsageError, match="[Pp]icture to draw on|cannot be drawn on"):
        draw.to_pil(image)


@pytest.mark.parametrize("options, sentence", [
    (dict(scale=0), "scale of a drawing is a number above 0, not 0"), (dict(scale=-1), "number above 0"),
    (dict(scale=float("nan")), "number above 0"), (dict(scale=float("inf")), "number above 0"),
    (dict(scale="2"), "number above 0"), (dict(scale=1e6), "give a smaller scale"),
    (dict(labels=["a"]), "2 boxes need as many"), (dict(colors=["#fff"]), "2 boxes need as many"),
    (dict(boxes=np.zeros((2, 5))), r"are \[n, 4\], not \[2, 5\]")])
def test_drawings_that_cannot_be_made(options, sentence) -> None:
    with pytest.raises(UsageError, match=sentence):
        draw.boxes(np.zeros((40, 40, 3), np.uint8), **({"boxes": np.zeros((2, 4))} | options))


def test_boxes_far_outside_are_drawn_where_they_are_seen() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    far = np.array([[np.nan, 5, np.inf, 30], [-1e30, -1e30, 1e30, 1e30]])
    painted = np.asarray(draw.boxes(image, far, labels=["a", "b"], scale=1))
    assert painted[5].any() and painted.shape == (40, 40, 3)


def test_deep_pil_images_keep_their_brightness_under_a_drawing() -> None:
    deep = Image.fromarray(np.full((10, 10), 32768, np.uint16))
    assert np.asarray(draw.to_pil(deep)).mean() == 128


def test_messages_are_safe_on_a_terminal() -> None:
    error = DetcoreError("a\x1b[31mb\r\x07\x9b\u202e\udc80 猫 é\n")
    assert str(error) == r"a\x1b[31mb\r\x07\x9b\u202e\udc80 猫 é" + "\n"
    str(error).encode()
    long = str(UsageError("start " + "x" * 10_000 + " do this"))
    assert len(long) == 2000 and long.startswith("start") and long.endswith("do this")
    assert printable("short", 5) == "short" and len(printable("x" * 99, 20)) == 20
