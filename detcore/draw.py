"""Pictures for notebooks, drawn from real tensors.

Images are uint8 [h, w, 3] RGB arrays or PIL images, boxes [n, 4] (x1, y1, x2, y2) in the image's pixels. Pictures are
shared by all languages of the book, so there is no text in them beyond names of classes and of axes.
"""
from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detcore.errors import UsageError

if TYPE_CHECKING:
    from detcore.data.transforms import Preprocess
    from detcore.metrics.coco import CocoResult
    from detcore.structures import Detections, Images

# Okabe & Ito's palette: told apart by colour-blind readers, on light and on dark.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442", "#999999")
MARKERS = "osDv^PX*"  # one for each colour, so that points are told apart without it
LEAST_SIDE = 384  # smaller images are enlarged before they are drawn on, so that lines and names stay crisp


def colour(index: int) -> str:
    """The colour of a class or series."""
    return PALETTE[index % len(PALETTE)]


def to_pil(image: Any) -> Image.Image:
    """An RGB picture from a uint8 array [h, w, 3], a uint8 tensor [3, h, w] or a PIL image; a UsageError for others."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).cpu().numpy()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(f"A picture to draw on is uint8 [h, w, 3], not {image.dtype} {list(image.shape)}.")
    return Image.fromarray(np.ascontiguousarray(image))


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
        scale: enlargement; by default small pictures grow to a readable size.

    Raises a UsageError if there is no picture to draw on.
    """
    if image is None and results.image is None:
        raise UsageError("These detections carry no picture: give the image they belong to.")
    picture = to_pil(results.image if image is None else image)
    scale = scale or max(1.0, LEAST_SIDE / min(picture.size))
    results = results.above(score_threshold)
    if results.masks is not None:
        picture = tint(picture, results.masks.cpu().numpy(), results.labels.tolist())
    labels, names = results.labels.tolist(), results.class_names
    words = [f"{names[c] if names else ''} {100 * s:.0f}" for c, s in zip(labels, results.scores.tolist())]
    return boxes(picture, results.boxes, colors=[colour(c) for c in labels], width=2, scale=scale, labels=words)


def tint(picture: Image.Image, masks: np.ndarray, labels: Sequence[int]) -> Image.Image:
    """The picture with masks [n, h, w] laid over it in the colours of their classes, the first on top."""
    array = np.asarray(picture, np.float32)
    for mask, label in zip(masks[::-1], labels[::-1]):
        if mask.shape != array.shape[:2]:
            mask = cv2.resize(mask.astype(np.uint8), picture.size, interpolation=cv2.INTER_NEAREST)
        tone = np.array(Image.new("RGB", (1, 1), colour(label)))[0, 0]
        array = np.where(mask[..., None].astype(bool), 0.5 * array + 0.5 * tone, array)
    return Image.fromarray(array.astype(np.uint8))


def boxes(image: Any, boxes: Tensor | np.ndarray, *, colors: str | Sequence[str] = PALETTE[0], width: int = 1,
          scale: float = 3, labels: Sequence[str] | None = None, rim: bool = True) -> Image.Image:
    """Boxes drawn on an enlarged picture, the first on top; `labels` are written at their corners.

    Args:
        rim: a dark line around each box, which keeps light colours visible on light ground; not for many boxes.
    """
    picture = to_pil(image)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=max(11, min(picture.size) // 32))
    rows = (np.asarray(boxes.detach().cpu() if isinstance(boxes, Tensor) else boxes).reshape(-1, 4) * scale).tolist()
    tones = [colors] * len(rows) if isinstance(colors, str) else list(colors)
    for i in reversed(range(len(rows))):
        x1, y1, x2, y2 = rows[i]
        left, top, right, bottom = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        if rim:
            draw.rectangle([left - 1, top - 1, right + 1, bottom + 1], outline="#202020", width=width + 2)
        draw.rectangle([left, top, right, bottom], outline=tones[i], width=width)
        if labels is not None and labels[i].strip():
            left, top, right, bottom = draw.textbbox((x1 + 2, y1), labels[i].strip(), font=font)
            shift = min(0, picture.width - right - 2)
            draw.rectangle([left - 2 + shift, top - 1, right + 2 + shift, bottom + 1], fill=tones[i])
            draw.text((x1 + 2 + shift, y1), labels[i].strip(), fill="black", font=font)
    return picture


def heat(image: Any, values: Tensor | np.ndarray, *, scale: float = 3, alpha: float = 0.6,
         limits: tuple[float, float] | None = None) -> Image.Image:
    """A map [h, w] of any size laid over the picture, dark for its least and bright for its greatest value.

    Args:
        limits: the values that are drawn dark and bright, in place of the map's own, so that maps can be compared.
    """
    picture = to_pil(image)
    size = (round(picture.width * scale), round(picture.height * scale))
    values = np.asarray(values.detach().float().cpu() if isinstance(values, Tensor) else values, np.float32)
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
    _legend(axes, len(series))
    return figure


def _legend(axes: Any, series: int) -> None:
    """Names of several series, beside the axes, where they cover nothing."""
    if series > 1:
        axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))


def histogram(series: Mapping[str, Any], *, bins: Any = 20, x: str = "", y: str = "number",
              size: tuple[float, float] = (6, 3)) -> Figure:
    """How values are distributed, one outline for each name."""
    figure, axes = _axes(size, x, y)
    for i, (name, values) in enumerate(series.items()):
        values = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, float)
        axes.hist(values, bins=bins, histtype="stepfilled", alpha=0.35, color=colour(i))
        axes.hist(values, bins=bins, histtype="step", lw=1.6, color=colour(i), label=name)
    _legend(axes, len(series))
    return figure


def bars(values: Mapping[str, float], *, x: str = "", size: tuple[float, float] = (6, 3),
         intervals: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """Horizontal bars by name, the first on top, with an interval (low, high) for those that have one."""
    figure, axes = _axes(size, x, "")
    axes.barh(list(values)[::-1], list(values.values())[::-1], color=colour(1))
    for name, (low, high) in (intervals or {}).items():
        axes.plot([low, high], [name, name], color="#303030", lw=1.6, solid_capstyle="butt")
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
    _legend(axes, len(places))
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
        name = results.class_names[c] if results.class_names else str(c)
        rows.append(f"<tr><td>{escape(name)}</td><td>{s:.3f}</td><td>{', '.join(f'{v:.1f}' for v in b)}</td></tr>")
    table = ("<table><thead><tr><th>class</th><th>score</th><th>x1, y1, x2, y2</th></tr></thead>"
             f"<tbody>{''.join(rows)}</tbody></table>")
    if results.image is None:
        return table
    data = io.BytesIO()
    detections(results).save(data, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">{table}'
