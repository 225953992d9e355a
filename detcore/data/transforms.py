"""What happens to an image and its annotations before they enter a network.

A transform is a small frozen dataclass, called with a `Sample` and a NumPy generator that decides everything random;
it gives a new sample, or None where the image should be replaced by another one. Images are uint8 [h, w, 3] in BGR
(OpenCV's order), boxes (x1, y1, x2, y2) in pixels. `Preprocess` then pads a batch and normalises it on the device.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from detcore.structures import Images, Polygons

Masks = np.ndarray | Polygons


@dataclass(frozen=True)
class Meta:
    """Where a sample comes from and how to get back there.

    Attributes:
        file: the image file, for messages.
        image_id: the data set's own number of the image.
        original_size: (h, w) as decoded.
        scale_factor: (w, h), the network's pixels per original pixel.
    """

    file: str = ""
    image_id: int = -1
    original_size: tuple[int, int] = (0, 0)
    scale_factor: tuple[float, float] = (1.0, 1.0)


@dataclass
class Sample:
    """An image with its annotations on their way through the transforms.

    Attributes:
        image: uint8 [h, w, 3], BGR; float32, still 0 to 255, after `AsFloat`.
        boxes: float32 [n, 4].
        labels: int64 [n].
        masks: uint8 [n, h, w], or polygons, or None.
        ignored: float32 [m, 4], crowd regions.
        proposals: float32 [p, 4], or None.
        semantic: uint8 [h, w], the class of each pixel for panoptic methods, or None.
    """

    image: np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    masks: Masks | None = None
    ignored: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    proposals: np.ndarray | None = None
    semantic: np.ndarray | None = None
    meta: Meta = field(default_factory=Meta)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the image as it is now."""
        return self.image.shape[0], self.image.shape[1]

    def keep(self, chosen: np.ndarray) -> Sample:
        """The sample with only those objects that the boolean array [n] selects."""
        return replace(self, boxes=self.boxes[chosen], labels=self.labels[chosen],
                       masks=None if self.masks is None else self.masks[chosen])

    def move(self, image: np.ndarray, points: Callable[[np.ndarray], np.ndarray],
             bitmaps: Callable[[np.ndarray], np.ndarray], meta: Meta | None = None) -> Sample:
        """The sample with a new image, to which all its boxes are clipped.

        `points` maps the corners of boxes and rings ([n, 2], x and y), `bitmaps` masks and class maps [n, h, w].
        """
        h, w = image.shape[:2]

        def boxes(b: np.ndarray) -> np.ndarray:
            corners = points(b.reshape(-1, 2)).reshape(-1, 2, 2)
            return np.concatenate([corners.min(1), corners.max(1)], 1).clip(0, [w, h, w, h]).astype(np.float32)

        masks = self.masks
        if isinstance(masks, Polygons):
            masks = Polygons([[points(ring) for ring in rings] for rings in masks.rings], (h, w))
        elif masks is not None:
            masks = bitmaps(masks)
        return replace(self, image=image, boxes=boxes(self.boxes), ignored=boxes(self.ignored), masks=masks,
                       proposals=None if self.proposals is None else boxes(self.proposals),
                       semantic=None if self.semantic is None else bitmaps(self.semantic[None])[0],
                       meta=meta or self.meta)


Transform = Callable[[Sample, np.random.Generator], Sample | None]


def apply(transforms: Sequence[Transform], sample: Sample, rng: np.random.Generator) -> Sample | None:
    """The transforms one after the other; None as soon as one of them gives None."""
    for transform in transforms:
        result = transform(sample, rng)
        if result is None:
            return None
        sample = result
    return sample


def fit(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """The largest (h, w) with the ratio of `size` whose long and short side fit those of `scale`, rounded."""
    h, w = size
    ratio = min(max(scale) / max(h, w), min(scale) / min(h, w))
    return max(int(h * ratio + 0.5), 1), max(int(w * ratio + 0.5), 1)


def resize(sample: Sample, scale: tuple[int, int], keep_ratio: bool = True) -> Sample:
    """Scale to fit `scale`, or to be just that (w, h): bilinear for the image, nearest for bitmaps, exact for the rest.

    Boxes follow the rounded size, so x and y have slightly different factors even where the ratio is kept.
    """
    h, w = sample.size
    new_h, new_w = fit((h, w), scale) if keep_ratio else (scale[1], scale[0])
    x, y = new_w / w, new_h / h

    def bitmaps(m: np.ndarray) -> np.ndarray:
        out = [cv2.resize(one, (new_w, new_h), interpolation=cv2.INTER_NEAREST) for one in m]
        return np.array(out, np.uint8).reshape(-1, new_h, new_w)

    image = cv2.resize(sample.image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    before = sample.meta.scale_factor
    return sample.move(image, lambda p: p * np.array([x, y], p.dtype), bitmaps,
                       replace(sample.meta, scale_factor=(before[0] * x, before[1] * y)))


@dataclass(frozen=True)
class Resize:
    """Fit the image into `scale` (long and short side in pixels, in any order), or stretch it to that (w, h)."""

    scale: tuple[int, int] = (1333, 800)
    keep_ratio: bool = True

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return resize(sample, self.scale, self.keep_ratio)


@dataclass(frozen=True)
class Rescale:
    """Scale the image by `factor`."""

    factor: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        h, w = sample.size
        return resize(sample, (max(round(w * self.factor), 1), max(round(h * self.factor), 1)), keep_ratio=False)


@dataclass(frozen=True)
class ResizeRange:
    """`Resize` to a scale whose sides are drawn between those of `low` and `high`, both included."""

    low: tuple[int, int] = (1333, 640)
    high: tuple[int, int] = (1333, 800)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        long_side = rng.integers(max(self.low), max(self.high), endpoint=True)
        short_side = rng.integers(min(self.low), min(self.high), endpoint=True)
        return resize(sample, (int(long_side), int(short_side)))


@dataclass(frozen=True)
class ResizeChoice:
    """`Resize` to one of several scales, drawn anew for each image."""

    scales: tuple[tuple[int, int], ...]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return resize(sample, self.scales[rng.integers(len(self.scales))])


@dataclass(frozen=True)
class ScaleJitter:
    """`Resize` to `scale` times a ratio drawn uniformly: the first half of large-scale jitter.

    Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation, section 3.
    """

    scale: tuple[int, int] = (1024, 1024)
    ratio: tuple[float, float] = (0.1, 2.0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        ratio = rng.uniform(*self.ratio)
        return resize(sample, (int(self.scale[0] * ratio), int(self.scale[1] * ratio)))


def crop(sample: Sample, left: int, top: int, right: int, bottom: int) -> Sample:
    """What lies in a window of the image; all objects stay, their boxes and masks clipped to it."""
    out = sample.move(np.ascontiguousarray(sample.image[top:bottom, left:right]),
                      lambda p: p - np.array([left, top], p.dtype), lambda m: m[:, top:bottom, left:right])
    if isinstance(out.masks, Polygons):
        clipped = [[clip_ring(ring, *out.size) for ring in rings] for rings in out.masks.rings]
        out.masks = Polygons([[ring for ring in rings if len(ring)] for rings in clipped], out.size)
    return out


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window of `size` (h, w), or the whole side where the image is smaller, at a random place.

    Objects outside the window go, the others' boxes are clipped; where there are masks, a box becomes the tight box
    of what is left of its mask. With `allow_negative` false, a window without any object gives None.

    Attributes:
        drawn: `size` is the range that either side's length is drawn from, both ends included.
    """

    size: tuple[int, int] = (1024, 1024)
    allow_negative: bool = False
    drawn: bool = False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        h, w = sample.size
        crop_h, crop_w = min(h, self.size[0]), min(w, self.size[1])
        if self.drawn:
            crop_h, crop_w = (int(rng.integers(min(side, self.size[0]), min(side, self.size[1]), endpoint=True))
                              for side in (h, w))
        top = int(rng.integers(h - crop_h, endpoint=True))
        left = int(rng.integers(w - crop_w, endpoint=True))
        out = crop(sample, left, top, left + crop_w, top + crop_h)
        out.ignored = out.ignored[_has_area(out.ignored)]
        inside = _has_area(out.boxes)
        if out.masks is not None:
            # Tight boxes replace the clipped ones only where the clipped one still held something.
            out.boxes = np.where(inside[:, None], tight_boxes(out.masks), 0).astype(np.float32)
            inside = _has_area(out.boxes)
        if not inside.any() and not self.allow_negative:
            return None
        return out.keep(inside)


@dataclass(frozen=True)
class AsFloat:
    """Colours as float32, so that no later transform rounds them."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return replace(sample, image=sample.image.astype(np.float32))


@dataclass(frozen=True)
class Choice:
    """One of several lists of transforms, drawn anew for each image."""

    lists: tuple[tuple[Transform, ...], ...]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        return apply(self.lists[rng.integers(len(self.lists))], sample, rng)


@dataclass(frozen=True)
class FilterBoxes:
    """Drop objects not wider and higher than `min_size` pixels; None where no object is left."""

    min_size: float = 0.01

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        keep = (sample.boxes[:, 2:] - sample.boxes[:, :2] > self.min_size).all(1)
        return sample.keep(keep) if keep.any() else None


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability `p`."""

    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        w = sample.size[1]
        return sample.move(cv2.flip(sample.image, 1),
                           lambda p: p * np.array([-1, 1], p.dtype) + np.array([w, 0], p.dtype),
                           lambda m: np.ascontiguousarray(m[:, :, ::-1]))


def _has_area(boxes: np.ndarray) -> np.ndarray:
    return np.all(boxes[:, 2:] > boxes[:, :2], axis=1)


def tight_boxes(masks: Masks) -> np.ndarray:
    """float32 [n, 4]: the smallest box around each mask, zeros where the mask is empty."""
    boxes = np.zeros((len(masks), 4), np.float32)
    if isinstance(masks, Polygons):
        for box, rings in zip(boxes, masks.rings):
            if rings:
                points = np.concatenate(rings)
                box[:2], box[2:] = points.min(0), points.max(0)
        return boxes
    for box, mask in zip(boxes, masks):
        x, y, w, h = cv2.boundingRect(mask)
        box[:] = x, y, x + w, y + h
    return boxes


def clip_ring(ring: np.ndarray, h: int, w: int) -> np.ndarray:
    """The part of a polygon ring [k, 2] inside an image of h x w (Sutherland and Hodgman); [0, 2] if there is none."""
    for axis, sign, bound in ((0, 1, 0), (0, -1, -w), (1, 1, 0), (1, -1, -h)):
        if len(ring) == 0:
            break
        distance = sign * ring[:, axis] - bound  # positive inside
        points = []
        for a, b, p, q in zip(distance, np.roll(distance, -1), ring, np.roll(ring, -1, 0)):
            if a >= 0:
                points.append(p)
            if (a >= 0) != (b >= 0):
                points.append(p + (q - p) * (a / (a - b)))
        ring = np.array(points, ring.dtype).reshape(-1, 2)
    return ring.clip(0, [w, h]) if len(ring) >= 3 else ring[:0]  # rounding may have left it by a hair


@dataclass(frozen=True)
class Preprocess:
    """Padding and normalisation of a batch.

    Attributes:
        mean, std: of each channel, in the order in which the network takes them, on the scale 0..255.
        rgb: whether the network takes RGB; otherwise BGR, as images are read.
        pad_to: heights and widths of a batch are multiples of it.
        fixed_size: (h, w) of every training batch, where the recipe wants one size (large-scale jitter).
        canvas: at test time an image lies in the middle of the next larger canvas whose sides are a multiple of this
            less one (CornerNet: 128, so 640 gives 767); None: in the corner, as in training.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rgb: bool = True
    pad_to: int = 32
    fixed_size: tuple[int, int] | None = None
    canvas: int | None = None

    def collate(self, images: Sequence[np.ndarray], training: bool = False) -> tuple[Tensor, list[tuple[int, int]]]:
        """Images [h, w, 3] of different size as one tensor [N, 3, H, W] of their kind, BGR, and each one's (h, w)."""
        sizes = [(i.shape[0], i.shape[1]) for i in images]
        if self.canvas and not training:
            height, width = (max(self.on_canvas(side) for side in all_sides) for all_sides in zip(*sizes))
        elif training and self.fixed_size:
            height, width = self.fixed_size
        else:
            height, width = (-(-max(side) // self.pad_to) * self.pad_to for side in zip(*sizes))
        batch = np.zeros((len(images), 3, height, width), images[0].dtype)
        for row, image, (h, w), (top, left) in zip(batch, images, sizes, self.origins(sizes, training)):
            row[:, top:top + h, left:left + w] = image.transpose(2, 0, 1)
        return torch.from_numpy(batch), sizes

    def on_canvas(self, side: int) -> int:
        """The canvas's side for an image's."""
        assert self.canvas
        return -(-(side + 1) // self.canvas) * self.canvas - 1

    def origins(self, sizes: Sequence[tuple[int, int]], training: bool = False) -> list[tuple[int, int]]:
        """(top, left) of images of `sizes` (h, w) in their batch."""
        if self.canvas is None or training:
            return [(0, 0)] * len(sizes)
        return [(self.on_canvas(h) // 2 - h // 2, self.on_canvas(w) // 2 - w // 2) for h, w in sizes]

    def __call__(self, batch: Tensor, sizes: list[tuple[int, int]], training: bool = False) -> Images:
        """Normalise a batch [N, 3, H, W] (uint8 or float32) on its own device; then the padding is zero."""
        x = (batch.flip(1) if self.rgb else batch).float()
        x = (x - x.new_tensor(self.mean).view(3, 1, 1)) / x.new_tensor(self.std).view(3, 1, 1)
        origins = self.origins(sizes, training)
        for one, (h, w), (top, left) in zip(x, sizes, origins):
            one[:, :top] = 0
            one[:, top + h:] = 0
            one[:, :, :left] = 0
            one[:, :, left + w:] = 0
        return Images(x, sizes, None if training or self.canvas is None else origins)
