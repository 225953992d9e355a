"""The strong augmentation of one-stage detectors (Liu et al., "SSD", 2016, sections 2.2 and 3.6).

A detector without a second look at each object needs more variety to learn from: objects made small on a large canvas,
objects made large by cropping around them, and other light and colours.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from detcore.data.transforms import Sample, crop
from detcore.structures import IGNORED

ATTEMPTS = 50  # at a window, before another overlap is drawn
MAX_ASPECT = 2.0  # of a window's sides


@dataclass(frozen=True)
class Expand:
    """With probability `p`, put the image at a random place on a canvas larger by a factor drawn from `ratio`.

    Attributes:
        fill: the canvas's colour, (r, g, b) on the scale 0..255; usually the mean that is subtracted later.
    """

    fill: tuple[float, float, float] = (123.675, 116.28, 103.53)
    ratio: tuple[float, float] = (1.0, 4.0)
    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        h, w = sample.size
        ratio = rng.uniform(*self.ratio)
        top, left = int(rng.uniform(0, h * ratio - h)), int(rng.uniform(0, w * ratio - w))
        return place(sample, (int(h * ratio), int(w * ratio)), top, left, self.fill)


def place(sample: Sample, size: tuple[int, int], top: int, left: int, fill: tuple[float, float, float]) -> Sample:
    """The sample on a canvas of `size` (h, w) and colour `fill` (r, g, b) that holds all of it."""
    (h, w), (high, wide) = sample.size, size
    canvas = np.full((high, wide, 3), fill[::-1], np.uint8)
    canvas[top:top + h, left:left + w] = sample.image
    out = sample.move(canvas, lambda p: p + np.array([left, top], p.dtype),
                      lambda m: np.pad(m, ((0, 0), (top, high - h - top), (left, wide - w - left))))
    if out.semantic is not None:
        inside = out.semantic[top:top + h, left:left + w]
        out.semantic = np.full_like(out.semantic, IGNORED)
        out.semantic[top:top + h, left:left + w] = inside
    return out


@dataclass(frozen=True)
class MinIoUCrop:
    """Keep the image, or cut a random window whose IoU with every object is at least a number drawn from `overlaps`.

    Drawn as often as each of these: the whole image, and a window without that condition. Objects whose centre lies
    outside the window go, the others' boxes are clipped; there is always one left, where there was one.

    Attributes:
        smallest: the window's least width and height, as share of the image's.
    """

    overlaps: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    smallest: float = 0.3

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        modes = (None, *self.overlaps, 0.0)
        boxes = np.concatenate([sample.boxes, sample.ignored])
        while (overlap := modes[rng.integers(len(modes))]) is not None:
            for _ in range(ATTEMPTS):
                window = self.window(sample.size, rng)
                if window is None or (len(boxes) and iou_with(window, boxes).min() < overlap):
                    continue
                if not len(boxes) or centred_in(window, boxes).any():
                    return crop_centred(sample, window)
        return sample

    def window(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int] | None:
        """A random window (x1, y1, x2, y2) of an image of `size` (h, w); None where it is too narrow."""
        h, w = size
        wide, high = rng.uniform(self.smallest * w, w), rng.uniform(self.smallest * h, h)
        if max(wide, high) > MAX_ASPECT * min(wide, high):
            return None
        left, top = rng.uniform(0, w - wide), rng.uniform(0, h - high)
        x1, y1, x2, y2 = int(left), int(top), int(left + wide), int(top + high)
        return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def iou_with(window: tuple[int, int, int, int], boxes: np.ndarray) -> np.ndarray:
    """[n] IoU of a window and boxes [n, 4]."""
    sides = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
    inter = sides.clip(0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return inter / np.maximum((window[2] - window[0]) * (window[3] - window[1]) + area - inter, 1e-6)


def centred_in(window: tuple[int, int, int, int], boxes: np.ndarray) -> np.ndarray:
    """[n] bool: which boxes [n, 4] have their centre inside a window."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > window[:2]) & (centres < window[2:])).all(1)


def crop_centred(sample: Sample, window: tuple[int, int, int, int]) -> Sample:
    """What lies in a window (x1, y1, x2, y2), with the objects whose centre does."""
    kept = sample.keep(centred_in(window, sample.boxes))
    return crop(replace(kept, ignored=kept.ignored[centred_in(window, kept.ignored)]), *window)


@dataclass(frozen=True)
class PhotometricDistortion:
    """Change brightness, contrast, saturation, hue and the order of the channels, each with probability one half.

    Contrast comes first after brightness or last before the channels, equally often. Nothing moves.

    Attributes:
        brightness: largest change, on the scale 0..255.
        contrast, saturation: range of the factors.
        hue: largest change in degrees.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image, contrast_first = sample.image.astype(np.float32), heads(rng)
        if heads(rng):
            image += np.float32(rng.uniform(-self.brightness, self.brightness))
        factor = np.float32(rng.uniform(*self.contrast)) if heads(rng) else np.float32(1)
        if contrast_first:
            image *= factor
        image = self.recolour(image, rng)
        if not contrast_first:
            image *= factor
        if heads(rng):
            image = image[..., rng.permutation(3)]
        return replace(sample, image=np.ascontiguousarray(image.round().clip(0, 255).astype(np.uint8)))

    def recolour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """float32 [h, w, 3] with another saturation and hue."""
        saturation = rng.uniform(*self.saturation) if heads(rng) else 1.0
        hue = rng.uniform(-self.hue, self.hue) if heads(rng) else 0.0
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)  # degrees, 0..1, 0..255
        hsv[..., 0] = (hsv[..., 0] + hue) % 360
        hsv[..., 1] = hsv[..., 1] * saturation
        if saturation > 1:
            hsv[..., 1] = hsv[..., 1].clip(0, 1)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def heads(rng: np.random.Generator) -> bool:
    """A coin's throw."""
    return bool(rng.integers(2))


BORDER = 128  # pixels from the image's rim within which no window's middle lies; less in small images


@dataclass(frozen=True)
class CornerCrop:
    """Cut a window of `size` (h, w) times a ratio at a random place and put what it has of the image around the middle
    of a canvas of its size (CornerNet, Law & Deng 2018, section 4.1).

    Objects whose centre lies outside the window go, the others' boxes are clipped; one at least is left, where there
    was one and `ATTEMPTS` found it, otherwise None.

    Attributes:
        fill: the canvas's colour, (r, g, b) on the scale 0..255.
    """

    size: tuple[int, int] = (511, 511)
    ratios: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
    fill: tuple[float, float, float] = (123.675, 116.28, 103.53)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        h, w = sample.size
        ratio = self.ratios[rng.integers(len(self.ratios))]
        high, wide = int(self.size[0] * ratio), int(self.size[1] * ratio)
        for _ in range(ATTEMPTS):
            y, x = (int(rng.integers(rim(side), side - rim(side))) for side in (h, w))
            window = max(0, x - wide // 2), max(0, y - high // 2), min(x + wide // 2, w), min(y + high // 2, h)
            if not len(sample.boxes) or centred_in(window, sample.boxes).any():
                return place(crop_centred(sample, window), (high, wide), high // 2 - (y - window[1]),
                             wide // 2 - (x - window[0]), self.fill)
        return None


def rim(side: int) -> int:
    """`BORDER`, halved until a side is more than twice as long."""
    border = BORDER
    while side <= 2 * border:
        border //= 2
    return border
