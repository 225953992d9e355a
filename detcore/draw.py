"""Pictures of what goes in and out of a detector: boxes, masks, anchors, assignments, feature maps, contact sheets.

Pictures are PIL images in RGB. Whatever is drawn on a picture is given in that picture's own pixels; small pictures
are enlarged first, so that lines and names stay crisp. Colours follow Okabe and Ito's palette, which people with
colour-blindness can tell apart.
"""
from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from detcore.data.images import read_image
from detcore.data.transforms import Preprocess, Sample
from detcore.errors import UsageError
from detcore.masks import Polygons
from detcore.matching import BACKGROUND
from detcore.structures import Detections, Images, Target

if TYPE_CHECKING:
    from IPython.display import Image as Shown

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, RED, PINK, WHITE = "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF"
GRAY, INK = "#9A9A9A", "#222222"
PALETTE = (SKY, ORANGE, PINK, YELLOW, GREEN, RED, BLUE, WHITE)
SIDE = 384  # pictures whose longer side has fewer pixels are enlarged to it

Picture = Image.Image
AnyImage = Image.Image | np.ndarray | str | Path
Boxes = Tensor | np.ndarray
Colours = str | Sequence[str]


def colour(label: int) -> str:
    """The colour of a label: the palette, then the palette lighter, then darker, then all over again."""
    base = ImageColor.getrgb(PALETTE[label % len(PALETTE)])
    towards, share = ((0, 0.0), (255, 0.5), (0, 0.4))[label // len(PALETTE) % 3]
    return "#" + "".join(f"{round(v + (towards - v) * share):02X}" for v in base)


def as_picture(image: AnyImage) -> Picture:
    """A PIL image, an RGB or gray uint8 array, or a file, as an RGB picture."""
    if isinstance(image, str | Path):
        return Image.fromarray(np.ascontiguousarray(read_image(image)[..., ::-1]))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise UsageError(f"A picture is uint8 [h, w, 3], not {image.dtype} {list(image.shape)}.")
        image = Image.fromarray(np.ascontiguousarray(image))
    return image.convert("RGB")


def of_sample(sample: Sample) -> Picture:
    """The picture of a data set's sample."""
    return as_picture(sample.image[..., ::-1])


def of_input(images: Images, preprocess: Preprocess, index: int = 0) -> Picture:
    """One image of a network's input, its normalisation undone and its padding cut off."""
    h, w = images.sizes[index]
    x = images.tensor[index, :, :h, :w].cpu()
    x = x * x.new_tensor(preprocess.std).view(3, 1, 1) + x.new_tensor(preprocess.mean).view(3, 1, 1)
    array = x.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return as_picture(array if preprocess.rgb else array[..., ::-1])


class Canvas:
    """A picture, enlarged where it is small, and the pens to draw on it.

    Args:
        image: the picture.
        scale: canvas pixels a picture pixel; by default so many that the longer side has `SIDE` pixels, at least 1.

    Every method takes coordinates of the picture and gives the canvas back, so that calls can be chained; `picture` is
    the result.
    """

    def __init__(self, image: AnyImage, scale: float | None = None) -> None:
        original = as_picture(image)
        self.scale = scale or max(1.0, SIDE / max(original.size))
        self.size = (max(1, round(original.width * self.scale)), max(1, round(original.height * self.scale)))
        self.picture = original.resize(self.size, Image.Resampling.BICUBIC) if self.scale != 1 else original.copy()
        self.pen = max(2, round(max(self.size) / 190))
        self.font_size = max(11.0, max(self.size) / 23)

    def boxes(self, boxes: Boxes, colours: Colours = SKY, *, texts: Sequence[str] = (),
              width: int | None = None) -> Canvas:
        """Outlines of boxes [n, 4], the first on top, each with its text."""
        pen, width = ImageDraw.Draw(self.picture), width or self.pen
        corners = (_array(boxes) * self.scale).round().astype(int)
        chosen = _each(colours, len(corners))
        for (x1, y1, x2, y2), ink in reversed(list(zip(corners.tolist(), chosen))):
            if x2 >= x1 and y2 >= y1:
                if width > 1:
                    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK, width=width + 2)
                pen.rectangle((x1, y1, x2, y2), outline=ink, width=width)
        for (x1, y1, _, _), ink, text in reversed(list(zip(corners.tolist(), chosen, texts))):
            self._tag(x1, y1, text, ink)
        return self

    def _tag(self, x: int, y: int, text: str, ink: str) -> None:
        pen, font = ImageDraw.Draw(self.picture), ImageFont.load_default(self.font_size)
        left, top, right, bottom = font.getbbox(text)
        w, h = round(right - left) + 6, round(bottom - top) + 6
        x = max(0, min(x, self.size[0] - w))
        y = y - h if y >= h else min(max(y, 0), self.size[1] - h)
        pen.rectangle((x, y, x + w, y + h), fill=ink)
        pen.text((x + 3 - left, y + 3 - top), text, fill=INK if _is_light(ink) else WHITE, font=font)

    def masks(self, masks: Tensor | np.ndarray, colours: Colours = SKY, opacity: float = 0.45) -> Canvas:
        """Tinted and outlined areas of masks [n, h, w]."""
        canvas, array = np.array(self.picture), _array(masks)
        for mask, ink in reversed(list(zip(array, _each(colours, len(array))))):
            area = cv2.resize(mask.astype(np.float32), self.size, interpolation=cv2.INTER_LINEAR) >= 0.5
            rgb = np.array(ImageColor.getrgb(ink))
            canvas[area] = (canvas[area] * (1 - opacity) + rgb * opacity).astype(np.uint8)
            rings, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, rings, -1, rgb.tolist(), max(1, self.pen // 2), cv2.LINE_AA)
        self.picture = Image.fromarray(canvas)
        return self

    def heat(self, values: Tensor | np.ndarray, opacity: float = 0.65, low: float = 0.0, high: float = 1.0) -> Canvas:
        """A map [h', w'] over the whole picture, dark at `low`, bright at `high`."""
        colours = Image.fromarray(heat(values, low, high)).resize(self.size, Image.Resampling.NEAREST)
        self.picture = Image.blend(self.picture, colours, opacity)
        return self

    def points(self, points: Tensor | np.ndarray, colours: Colours = SKY, radius: float = 1.0) -> Canvas:
        """Dots at points [n, 2] (x, y), `radius` in pens' widths."""
        pen, r = ImageDraw.Draw(self.picture), radius * self.pen
        array = _array(points) * self.scale
        for (x, y), ink in zip(array.tolist(), _each(colours, len(array))):
            pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        return self

    def lines(self, lines: Tensor | np.ndarray, colours: Colours = WHITE, width: int = 1) -> Canvas:
        """Straight lines [n, 4] from (x1, y1) to (x2, y2)."""
        pen, array = ImageDraw.Draw(self.picture), _array(lines) * self.scale
        for line, ink in zip(array.tolist(), _each(colours, len(array))):
            pen.line(line, fill=ink, width=width)
        return self

    def dim(self, share: float = 0.5) -> Canvas:
        """The picture so far, faded towards gray, for what is drawn next to stand out."""
        faded = self.picture.convert("L").convert("RGB")
        self.picture = Image.blend(self.picture, Image.eval(faded, lambda v: 96 + v // 2), share)
        return self

    def window(self, box: Sequence[float], side: int = SIDE) -> Picture:
        """The part inside a box (x1, y1, x2, y2), its longer side enlarged to `side`."""
        x1, y1, x2, y2 = (v * self.scale for v in box)
        ratio = side / max(x2 - x1, y2 - y1)
        size = (max(1, round((x2 - x1) * ratio)), max(1, round((y2 - y1) * ratio)))
        return self.picture.resize(size, Image.Resampling.BICUBIC, box=(x1, y1, x2, y2))


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _each(colours: Colours, n: int) -> Sequence[str]:
    return [colours] * n if isinstance(colours, str) else colours


def _is_light(ink: str) -> bool:
    r, g, b = ImageColor.getrgb(ink)[:3]
    return 0.299 * r + 0.587 * g + 0.114 * b > 125


def heat(values: Tensor | np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """uint8 [h, w, 3] colours of a map [h, w], dark at `low` (its minimum), bright at `high` (its maximum)."""
    array = _array(values).astype(np.float64)
    low, high = array.min() if low is None else low, array.max() if high is None else high
    level = ((array - low) / max(high - low, 1e-12) * 255).clip(0, 255).astype(np.uint8)
    return cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[..., ::-1]


def grid(pictures: Sequence[Picture], columns: int = 4, *, width: int = 1200, gap: int = 6) -> Picture:
    """Pictures side by side and in rows, at most `width` pixels wide; all get the width of the widest."""
    if not pictures:
        raise UsageError("There is no picture to put into the grid.")
    columns = min(columns, len(pictures))
    cell = min(max(p.width for p in pictures), (width - gap * (columns - 1)) // columns)
    fitted = [p if p.width == cell else p.resize((cell, max(1, round(p.height * cell / p.width))),
                                                 Image.Resampling.LANCZOS) for p in pictures]
    rows = [fitted[i:i + columns] for i in range(0, len(fitted), columns)]
    heights = [max(p.height for p in row) for row in rows]
    sheet = Image.new("RGB", (cell * columns + gap * (columns - 1), sum(heights) + gap * (len(rows) - 1)), WHITE)
    y = 0
    for row, height in zip(rows, heights):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * (cell + gap), y))
        y += height + gap
    return sheet


def detections(found: Detections, image: AnyImage | None = None, *, score: float = 0.3, scale: float | None = None,
               scores: bool = True) -> Picture:
    """The image with boxes, names, scores and masks of the detections that score at least `score`.

    Args:
        image: the picture that the boxes belong to; the one that the detections carry, where not given.
        scale: see `Canvas`.
        scores: write the scores.

    Raises:
        UsageError: no image is given and the detections carry none.
    """
    image = found.image if image is None else image
    if image is None:
        raise UsageError("These detections carry no image: give the one to draw on.")
    best = found.to("cpu").above(score)
    colours = [colour(c) for c in best.labels.tolist()]
    canvas = Canvas(image, scale)
    if best.masks is not None:
        canvas.masks(best.masks, colours)
    names = [found.class_names[c] if found.class_names else "" for c in best.labels.tolist()]
    texts = [f"{n} {s:.2f}".strip() if scores else n for n, s in zip(names, best.scores.tolist())]
    return canvas.boxes(best.boxes, colours, texts=texts if any(texts) else ()).picture


def detections_html(found: Detections, *, score: float = 0.3) -> str:
    """What a notebook shows of detections: the picture if they carry it, otherwise a table of the best ten."""
    if found.image is not None:
        data, kind = encode(detections(found, score=score))
        return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
    names = found.class_names
    rows = "".join(
        f"<tr><td>{html.escape(names[c]) if names else c}</td><td>{s:.3f}</td><td>{', '.join(f'{v:.1f}' for v in b)}</td></tr>"
        for c, s, b in zip(found.labels[:10].tolist(), found.scores[:10].tolist(), found.boxes[:10].tolist()))
    return f"<table><tr><th>label</th><th>score</th><th>x1, y1, x2, y2</th></tr>{rows}</table>"


def truth(sample: Sample, class_names: Sequence[str], scale: float | None = None, *, names: bool = True) -> Picture:
    """A data set's sample with its objects; crowds in gray."""
    masks = sample.masks.to_bitmap() if isinstance(sample.masks, Polygons) else sample.masks
    colours = [colour(c) for c in sample.labels.tolist()]
    canvas = Canvas(of_sample(sample), scale)
    if masks is not None:
        canvas.masks(masks, colours)
    canvas.boxes(sample.ignored, GRAY)
    texts = [class_names[c] for c in sample.labels.tolist()] if names else ()
    return canvas.boxes(sample.boxes, colours, texts=texts).picture


def beside_truth(samples: Sequence[Sample], found: Sequence[Detections], class_names: Sequence[str], *,
                 score: float = 0.5, width: int = 1200) -> Picture:
    """Two rows: the objects of each sample, and below them what was found."""
    named = [Detections(d.boxes, d.scores, d.labels, d.masks, class_names=tuple(class_names)) for d in found]
    return grid([truth(s, class_names) for s in samples]
                + [detections(d, of_sample(s), score=score) for s, d in zip(samples, named)], len(samples), width=width)


def anchors(image: AnyImage, levels: Sequence[Tensor], per_cell: int, at: tuple[float, float]) -> list[Picture]:
    """A picture for each level's anchors [h * w * per_cell, 4]: every cell a dot, and all anchors of the cell at a point.

    Args:
        at: (x, y) of the point in pixels.
    """
    pictures = []
    for boxes in levels:
        cells = boxes.reshape(-1, per_cell, 4)
        centres = (cells[:, 0, :2] + cells[:, 0, 2:]) / 2
        nearest = (centres - centres.new_tensor(at)).square().sum(1).argmin()
        canvas = Canvas(image).dim(0.6).points(centres, INK, 0.7)
        canvas.boxes(cells[nearest], [PALETTE[i % 4] for i in range(per_cell)])
        pictures.append(canvas.points(centres[nearest, None], RED, 1.5).picture)
    return pictures


def assignment(image: AnyImage, boxes: Tensor, match: Tensor, objects: Boxes) -> Picture:
    """Boxes [A, 4] in the colour of the object they are matched to [A], on top of the objects [G, 4] in white.

    Boxes that are neither object nor background (see `matching.IoUMatcher`) are thin and gray; background is left out.
    """
    neither, positive = (match < 0) & (match != BACKGROUND), match >= 0
    canvas = Canvas(image).dim(0.4).boxes(boxes[neither], GRAY, width=1)
    canvas.boxes(objects, WHITE, width=canvas.pen + 2)
    return canvas.boxes(boxes[positive], [PALETTE[m % 7] for m in match[positive].tolist()], width=2).picture


def proposals(image: AnyImage, boxes: Tensor, scores: Tensor, objects: Boxes | None = None) -> Picture:
    """Boxes [p, 4], the brighter the higher their score [p] (0 to 1) is, and objects [G, 4] in white."""
    order = scores.argsort(descending=True)
    inks = heat(scores[order][None] * 0.75 + 0.2, 0, 1)[0] if len(boxes) else []
    canvas = Canvas(image).dim(0.4)
    if objects is not None:
        canvas.boxes(objects, WHITE, width=canvas.pen + 2)
    return canvas.boxes(boxes[order], ["#" + "".join(f"{v:02X}" for v in ink) for ink in inks], width=1).picture


def feature_maps(maps: Sequence[Tensor], side: int = SIDE) -> list[Picture]:
    """For each map [C, h, w] a picture of its strength (the norm over channels), every cell a square."""
    pictures = []
    for x in maps:
        ratio = side / max(x.shape[-2:])
        size = (max(1, round(x.shape[-1] * ratio)), max(1, round(x.shape[-2] * ratio)))
        pictures.append(Image.fromarray(heat(x.detach().float().norm(dim=0))).resize(size, Image.Resampling.NEAREST))
    return pictures


def bins(image: AnyImage, box: Sequence[float], size: int, sampling: int = 2, *, colour: str = YELLOW) -> Canvas:
    """A region (x1, y1, x2, y2) cut into size x size bins, with the sampling x sampling points RoIAlign reads in each."""
    x1, y1, x2, y2 = (float(v) for v in box)
    x, y = np.linspace(x1, x2, size + 1), np.linspace(y1, y2, size + 1)
    lines = [(v, y1, v, y2) for v in x] + [(x1, v, x2, v) for v in y]
    step = (np.arange(size * sampling) + 0.5) / (size * sampling)
    points = np.stack(np.meshgrid(x1 + (x2 - x1) * step, y1 + (y2 - y1) * step), -1).reshape(-1, 2)
    return Canvas(image).lines(np.array(lines), colour, 2).points(points, RED, 1.0)


def objects_of(target: Target) -> Tensor:
    """[n, 4] the boxes of a target, on the CPU, for drawing."""
    return target.boxes.detach().cpu()


def encode(picture: Picture, limit: int = 80_000) -> tuple[bytes, str]:
    """A picture as bytes, and "png" or "jpeg": charts keep every pixel, photographs shrink until they fit `limit`."""
    buffer = io.BytesIO()
    if picture.getcolors(4096) is not None:
        picture.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= limit:
            return buffer.getvalue(), "png"
    for quality in range(88, 40, -6):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True, subsampling=0 if quality > 70 else 2)
        if buffer.tell() <= limit:
            return buffer.getvalue(), "jpeg"
    smaller = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5), Image.Resampling.LANCZOS)
    return encode(smaller, limit)


def show(picture: Picture | Sequence[Picture], columns: int = 4, *, width: int = 1200) -> Shown:
    """What a notebook cell displays: one picture, or several in a grid, in few bytes."""
    from IPython.display import Image as Display

    data, kind = encode(picture if isinstance(picture, Image.Image) else grid(picture, columns, width=width))
    return Display(data=data, format=kind)
