"""Pictures for notebooks, drawn from real tensors.

Images are uint8 [h, w, 3] RGB arrays or PIL images, boxes [n, 4] (x1, y1, x2, y2) in the image's pixels. Pictures are
shared by all languages of the book, so there is no text in them beyond names of classes and of axes.
"""
from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from matplotlib import colormaps, font_manager, rc_context
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detcore.errors import DataError, UsageError

if TYPE_CHECKING:
    from detcore.data.transforms import Preprocess
    from detcore.metrics.coco import CocoResult
    from detcore.structures import Detections, Images

# Okabe & Ito's palette: told apart by colour-blind readers, on light and on dark.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442", "#999999")
MARKERS = "osDv^PX*"  # one for each colour, so that points are told apart without it
LEAST_SIDE = 384  # smaller images are enlarged before they are drawn on, so that lines and names stay crisp,
MOST_SIDE = 4096  # but not beyond this longer side
MOST_PIXELS = 2**28  # of a drawing
LONGEST_NAME = 60  # characters of a name that is drawn
# Families that are asked first for the letters that Pillow's own font lacks; matplotlib brings the first one along.
FAMILIES = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Noto Sans CJK TC",
            "Noto Sans JP", "Noto Sans SC", "Source Han Sans", "Hiragino Sans", "PingFang SC", "Yu Gothic", "Meiryo",
            "Microsoft YaHei", "Malgun Gothic", "IPAexGothic", "WenQuanYi Zen Hei", "Arial Unicode MS", "Noto Sans")
BLANK = ("Last Resort", "LastResort", "Adobe Blank")  # families with a box for every character


def colour(index: int) -> str:
    """The colour of a class or series."""
    return PALETTE[index % len(PALETTE)]


def to_pil(image: Any) -> Image.Image:
    """An RGB picture from a uint8 array [h, w, 3], a uint8 tensor [3, h, w] or a PIL image; a UsageError for others."""
    if isinstance(image, Image.Image):
        if image.mode in ("RGB", "L", "P", "1", "LA", "RGBA", "YCbCr") and min(image.size) > 0:
            return image.convert("RGB")
        from detcore.data.images import check_pixels, pil_to_bgr

        try:
            check_pixels("The picture", *image.size)
            return Image.fromarray(np.ascontiguousarray(pil_to_bgr(image, upright=False)[..., ::-1]))
        except (DataError, OSError, ValueError) as error:
            raise UsageError(f"A PIL image of mode {image.mode} cannot be drawn on: {error}") from error
    if isinstance(image, Tensor):
        image = (image.permute(1, 2, 0) if image.dim() == 3 else image).detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise UsageError(f"A picture to draw on is a uint8 array [h, w, 3] or a PIL image, not {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UsageError(f"A picture to draw on is uint8 [h, w, 3], not {image.dtype} {list(image.shape)}.")
    return Image.fromarray(np.ascontiguousarray(image))


def plain(name: object) -> str:
    """A name for a drawing: one line of at most `LONGEST_NAME` characters, without control characters."""
    text = "".join(c if c.isprintable() or c in JOINERS else " " for c in str(name))
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME - 1].rstrip() + "…"


JOINERS = "\u200c\u200d"  # which shape the letters beside them, and have no glyph


def literal(name: object) -> str:
    """A name for matplotlib, which would read what is between dollar signs as a formula."""
    return plain(name).replace("$", r"\$")


@cache
def _letters(path: str | None) -> frozenset[int]:
    """The characters of a font file, of Pillow's own font for None; none where the file cannot be read."""
    try:
        if path is None:
            data = getattr(ImageFont.load_default(size=11), "font_bytes", None)
            return frozenset(FT2Font(io.BytesIO(data)).get_charmap()) if data else frozenset(range(32, 127))
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def _faces() -> tuple[tuple[str, int, str], ...]:
    """Upright fonts of this machine as (file, index, family), those of `FAMILIES` and of ordinary weight first."""
    found = [f for f in font_manager.fontManager.ttflist if f.style == "normal" and not f.name.startswith(BLANK)]
    rank = {name: i for i, name in enumerate(FAMILIES)}

    def order(face: Any) -> tuple:
        weight = face.weight if isinstance(face.weight, int) else 400
        return rank.get(face.name, len(rank)), abs(weight - 400), face.name, face.fname

    return tuple(dict.fromkeys((f.fname, getattr(f, "index", 0) or 0, f.name) for f in sorted(found, key=order)))


@lru_cache(1024)
def find_font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    """A font that has every letter of the text: Pillow's own, or one of this machine; None where there is none."""
    needed = {ord(c) for c in text if not c.isspace() and c not in JOINERS}
    if needed <= _letters(None):
        return ImageFont.load_default(size=size)
    for path, index, _ in _faces():
        if needed <= _letters(path):
            try:
                return ImageFont.truetype(path, size, index=index)
            except OSError:  # such as a font of bitmaps in another size
                continue
    return None


def _name(names: Sequence[str] | None, label: int) -> str:
    """A class's name as it can be drawn; its label where no font here has the letters; nothing without names."""
    if not names:
        return ""
    name = plain(names[label]) if 0 <= label < len(names) else ""
    return name if name and find_font(name, 11) else f"class {label}"


def _size(picture: Image.Image, scale: float) -> tuple[int, int]:
    """(w, h) of the enlarged picture; a UsageError for a scale that is none, or that makes it too large."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float, np.number)) or not 0 < scale < math.inf:
        raise UsageError(f"The scale of a drawing is a number above 0, not {scale!r}.")
    w, h = (max(round(side * float(scale)), 1) for side in picture.size)
    if scale > 1 and w * h > MOST_PIXELS:
        raise UsageError(f"A drawing has at most {MOST_PIXELS:,} pixels, but {picture.width} x {picture.height} "
                         f"enlarged by {scale:g} are {w * h:,}: give a smaller scale.")
    return w, h


def pixels(images: Images, index: int, preprocess: Preprocess) -> np.ndarray:
    """The picture, uint8 [h, w, 3] RGB, that a network input was made from."""
    h, w = images.sizes[index]
    x = images.tensor[index, :, :h, :w].detach().cpu().float()
    x = x * torch.tensor(preprocess.std).view(3, 1, 1) + torch.tensor(preprocess.mean).view(3, 1, 1)
    picture = x.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return picture if preprocess.rgb else picture[..., ::-1].copy()


def detections(results: Detections, image: Any = None, *, score_threshold: float = 0.3,
               scale: float | None = None) -> Image.Image:
    """Boxes, names, scores and masks of the detections whose score is at least `score_threshold`.

    Args:
        image: the picture they belong to; by default the one that `Predictor` kept.
        scale: enlargement; by default small pictures grow to a readable size, thin ones to 4096 pixels at most.

    Raises a UsageError if there is no picture to draw on, or the drawing would be too large.
    """
    if image is None and results.image is None:
        raise UsageError("These detections carry no picture: give the image they belong to.")
    picture = to_pil(results.image if image is None else image)
    if scale is None:
        scale = max(1.0, min(LEAST_SIDE / min(picture.size), MOST_SIDE / max(picture.size)))
    results = results.above(score_threshold)
    if results.masks is not None:
        picture = tint(picture, results.masks.cpu().numpy(), results.labels.tolist())
    labels = results.labels.tolist()
    words = [f"{_name(results.class_names, c)} {100 * s:.0f}" for c, s in zip(labels, results.scores.tolist())]
    return boxes(picture, results.boxes, colors=[colour(c) for c in labels], width=2, scale=scale, labels=words)


def tint(picture: Image.Image, masks: np.ndarray, labels: Sequence[int]) -> Image.Image:
    """The picture with masks [n, h, w] laid over it in the colours of their classes, the first on top."""
    array = np.array(picture, np.float32)
    for mask, label in zip(masks[::-1], labels[::-1]):
        if mask.shape != array.shape[:2]:
            mask = cv2.resize(mask.astype(np.uint8), picture.size, interpolation=cv2.INTER_NEAREST)
        tone = np.array(Image.new("RGB", (1, 1), colour(label)))[0, 0]
        inside = mask.astype(bool)
        array[inside] = 0.5 * array[inside] + 0.5 * tone
    return Image.fromarray(array.astype(np.uint8))


def boxes(image: Any, boxes: Tensor | np.ndarray, *, colors: str | Sequence[str] = PALETTE[0], width: int = 1,
          scale: float = 3, labels: Sequence[str] | None = None, rim: bool = True) -> Image.Image:
    """Boxes drawn on an enlarged picture, the first on top; `labels` are written at their corners.

    Args:
        rim: a dark line around each box, which keeps light colours visible on light ground; not for many boxes.
    """
    picture = to_pil(image)
    picture = picture.resize(_size(picture, scale), Image.Resampling.LANCZOS)
    rows = np.asarray(boxes.detach().cpu() if isinstance(boxes, Tensor) else boxes, np.float64)
    if rows.size % 4 or rows.size and rows.shape[-1] != 4:
        raise UsageError(f"Boxes to draw are [n, 4], not {list(rows.shape)}.")
    rows = np.nan_to_num(rows.reshape(-1, 4) * scale, posinf=FAR, neginf=-FAR).clip(-FAR, FAR)
    tones = [colors] * len(rows) if isinstance(colors, str) else list(colors)
    if len(tones) < len(rows) or labels is not None and len(labels) < len(rows):
        raise UsageError(f"{len(rows)} boxes need as many colours and labels.")
    draw, size = ImageDraw.Draw(picture), max(11, min(picture.size) // 32)
    for i in reversed(range(len(rows))):
        x1, y1, x2, y2 = rows[i].tolist()
        left, top, right, bottom = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        if rim:
            draw.rectangle([left - 1, top - 1, right + 1, bottom + 1], outline="#202020", width=width + 2)
        draw.rectangle([left, top, right, bottom], outline=tones[i], width=width)
        if labels is not None and (text := plain(labels[i])):
            font = find_font(text, size)
            if font is None:
                font = ImageFont.load_default(size=size)
                text = "".join(c if ord(c) in _letters(None) else "?" for c in text)
            left, top, right, bottom = draw.textbbox((x1 + 2, y1), text, font=font)
            shift = min(0, picture.width - right - 2)
            draw.rectangle([left - 2 + shift, top - 1, right + 2 + shift, bottom + 1], fill=tones[i])
            draw.text((x1 + 2 + shift, y1), text, fill="black", font=font)
    return picture


FAR = 1e6  # pixels; Pillow's coordinates are integers of 32 bits


def heat(image: Any, values: Tensor | np.ndarray, *, scale: float = 3, alpha: float = 0.6,
         limits: tuple[float, float] | None = None) -> Image.Image:
    """A map [h, w] of any size laid over the picture, dark for its least and bright for its greatest value.

    Args:
        limits: the values that are drawn dark and bright, in place of the map's own, so that maps can be compared.
    """
    picture = to_pil(image)
    size = _size(picture, scale)
    values = np.asarray(values.detach().float().cpu() if isinstance(values, Tensor) else values, np.float32)
    if values.ndim != 2 or not values.size:
        raise UsageError(f"A map to lay over a picture is [h, w], not {list(values.shape)}.")
    low, high = limits or (float(values.min()), float(values.max()))
    values = cv2.resize((values - low).clip(0) / ((high - low) or 1), size, interpolation=cv2.INTER_NEAREST)
    tones = Image.fromarray((np.asarray(colormaps["magma"](values))[..., :3] * 255).astype(np.uint8))
    return Image.blend(picture.resize(size, Image.Resampling.LANCZOS), tones, alpha)


def grid(images: Sequence[Any], columns: int = 4, *, gap: int = 4) -> Image.Image:
    """Pictures side by side, by rows; all are brought to the size of the first. A UsageError if there is none."""
    pictures = [to_pil(i) for i in images]
    if not pictures:
        raise UsageError("A grid needs at least one picture.")
    w, h = pictures[0].size
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        picture = picture.resize((w, h), Image.Resampling.LANCZOS)  # which copies one of that size
        sheet.paste(picture, (i % columns * (w + gap), i // columns * (h + gap)))
    return sheet


class Plot(Figure):
    """A figure that a notebook shows by itself, without pyplot: SVG whose text is text, which the book translates."""

    def _repr_svg_(self) -> str:
        data = io.StringIO()
        # Equal figures are equal files; a transparent ground lets the page turn colours over in the dark.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "detcore"}):
            self.savefig(data, format="svg", transparent=True, metadata=dict(Date=None, Creator=None))
        return re.sub(r".*?(<svg.*?)\s*<metadata>.*?</metadata>", r"\1", data.getvalue(), count=1, flags=re.DOTALL)


def _axes(size: tuple[float, float], x: str, y: str) -> tuple[Figure, Any]:
    figure = Plot(size, layout="constrained", dpi=100)
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def lines(series: Mapping[str, tuple[Any, Any]], *, x: str = "", y: str = "", size: tuple[float, float] = (6, 3),
          log_y: bool = False) -> Figure:
    """Curves by name, each a pair (x values, y values)."""
    figure, axes = _axes(size, x, y)
    for i, (name, (horizontal, vertical)) in enumerate(series.items()):
        axes.plot(horizontal, vertical, color=colour(i), label=name, lw=1.8)
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")  # numbers in place of powers of ten
        axes.yaxis.set_minor_formatter(NullFormatter())
    _legend(axes, list(series))
    return figure


def _legend(axes: Any, names: Sequence[str]) -> None:
    """Names of several series, beside the axes, where they cover nothing."""
    if len(names) < 2:
        return
    known = set(map(str, names))
    handles = [handle for handle in [*axes.lines, *axes.patches] if handle.get_label() in known]
    # By numbers first: matplotlib leaves out a name that begins with an underscore.
    legend = axes.legend(handles, list(map(str, range(len(handles)))), frameon=False, fontsize="small",
                         loc="upper left", bbox_to_anchor=(1.01, 1))
    for text, handle in zip(legend.get_texts(), handles):
        _write(text, handle.get_label())


def _write(text: Text, name: str) -> None:
    """Write a name into a chart, in a family of this machine where matplotlib's own has not all of its letters."""
    text.set_text(literal(name))
    needed = {ord(c) for c in plain(name) if not c.isspace() and c not in JOINERS}
    if needed <= _letters(font_manager.findfont(text.get_fontproperties())):
        return
    family = next((family for path, _, family in _faces() if needed <= _letters(path)), None)
    if family is not None:
        text.set_fontfamily([*text.get_fontfamily(), family])


def histogram(series: Mapping[str, Any], *, bins: Any = 20, x: str = "", y: str = "number",
              size: tuple[float, float] = (6, 3)) -> Figure:
    """How values are distributed, one outline for each name."""
    figure, axes = _axes(size, x, y)
    for i, (name, values) in enumerate(series.items()):
        values = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, float)
        axes.hist(values, bins=bins, histtype="stepfilled", alpha=0.35, color=colour(i))
        axes.hist(values, bins=bins, histtype="step", lw=1.6, color=colour(i), label=name)
    _legend(axes, list(series))
    return figure


def bars(values: Mapping[str, float], *, x: str = "", size: tuple[float, float] = (6, 3),
         intervals: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """Horizontal bars by name, the first on top, with an interval (low, high) for those that have one."""
    figure, axes = _axes(size, x, "")
    names = list(values)[::-1]
    axes.barh(range(len(names)), list(values.values())[::-1], color=colour(1))
    axes.set_yticks(range(len(names)), list(map(literal, names)))
    for text, name in zip(axes.get_yticklabels(), names):
        _write(text, name)
    for name, (low, high) in (intervals or {}).items():
        axes.plot([low, high], [names.index(name)] * 2, color="#303030", lw=1.6, solid_capstyle="butt")
    return figure


def points(places: Mapping[str, tuple[float, float]], *, x: str = "", y: str = "", size: tuple[float, float] = (6, 3.4),
           across: Mapping[str, tuple[float, float]] | None = None,
           upright: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """Points by name, with an interval (low, high) across or upright for those that have one; axes begin at zero."""
    figure, axes = _axes(size, x, y)
    for i, (name, (a, b)) in enumerate(places.items()):
        spans = [(across[name], (b, b))] if across and name in across else []
        spans += [((a, a), upright[name])] if upright and name in upright else []
        for span in spans:
            axes.plot(*span, color="#303030", lw=2.6)  # a rim keeps light colours visible on light ground
            axes.plot(*span, color=colour(i), lw=1.6)
        axes.plot([a], [b], MARKERS[i % len(MARKERS)], color=colour(i), ms=8, mec="#303030", mew=0.6, label=name)
    axes.set(xlim=(0, None), ylim=(0, None))
    _legend(axes, list(places))
    return figure


def losses(curves: Mapping[str, Sequence[float | None]], *, size: tuple[float, float] = (6, 3)) -> Figure:
    """The losses of a training run, from its record's curves."""
    step = curves["step"]
    return lines({loss_name(name): (step, values) for name, values in curves.items() if name not in ("step", "lr")},
                 x="step", y="loss", size=size, log_y=True)


def loss_name(name: str) -> str:
    """A loss for people: "loss_rpn_cls" is "RPN objectness", "s0.loss_bbox" is "stage 1 boxes", "loss" the "sum"."""
    stage, _, name = name.rpartition(".")
    where = f"stage {int(stage[1:]) + 1} " if re.fullmatch(r"s\d+", stage) else f"{stage} " if stage else ""
    words = {"loss": "sum", "cls": "classes", "bbox": "boxes", "mask": "masks", "rpn_cls": "RPN objectness",
             "rpn_bbox": "RPN boxes"}
    return where + words.get(name.removeprefix("loss_"), name)


def precision_recall(result: CocoResult, *, size: tuple[float, float] = (5, 3.2)) -> Figure:
    """Precision over recall at IoU 0.5, 0.75 and 0.9, averaged over the classes."""
    recalls = np.linspace(0, 1, 101)
    figure = lines({f"IoU {iou}": (recalls, result.curve(iou)) for iou in (0.5, 0.75, 0.9)}, x="recall", y="precision",
                   size=size)
    figure.axes[0].set(xlim=(0, 1), ylim=(0, 1.02))
    return figure


def detections_html(results: Detections) -> str:
    """What a notebook shows for detections: the picture, if there is one, and the ten best as a table."""
    rows = []
    for b, s, c in zip(results.boxes.tolist()[:10], results.scores.tolist(), results.labels.tolist()):
        name = plain(results.class_names[c]) if results.class_names and c < len(results.class_names) else str(c)
        rows.append(f"<tr><td>{escape(name)}</td><td>{s:.3f}</td><td>{', '.join(f'{v:.1f}' for v in b)}</td></tr>")
    table = ("<table><thead><tr><th>class</th><th>score</th><th>x1, y1, x2, y2</th></tr></thead>"
             f"<tbody>{''.join(rows)}</tbody></table>")
    if results.image is None:
        return table
    data, picture = io.BytesIO(), detections(results)
    picture.thumbnail((65_500, 65_500))  # the longest sides of a JPEG
    picture.save(data, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">{table}'
