"""InstaBoost: Fang et al., "InstaBoost: Boosting instance segmentation via probability map guided copy-pasting", 2019.

Masks say where an object ends, so it can be cut out and put back elsewhere. InstaBoost moves each object of an image a
little (shift, scale, turn, colour), and fills the place that it leaves by inpainting. Moved only a little, it still
stands where such objects stand, and its surroundings still fit: that is what tells this from random copy and paste.
Objects may also go further, to a place drawn from a map of how much the surroundings there look like those that the
object comes from. It needs no labels beyond the masks, and works on any data set that has them.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from detcore.data.transforms import Sample, clip_ring, tight_boxes
from detcore.structures import Polygons

# The surroundings of an object: rings of so many pixels, the nearest counts most (section 3.3).
RING_WIDTH, RING_WEIGHTS = 5, (0.4, 0.35, 0.25)
INPAINT_RADIUS, INPAINT_SIDE = 3, 256  # holes are filled on a copy of at most this size: they are blurred anyway
FEATHER = 2  # pixels over which a pasted object's border fades


@dataclass(frozen=True)
class InstaBoost:
    """Moves the objects of an image (section 3.2), with the published settings.

    Attributes:
        probability: that an image is changed at all.
        scale: range of the factor of an object's size.
        shift: largest shift, as a share of the image's width (height).
        angle: largest turn in degrees.
        color: probability that an object's brightness and contrast change.
        guided: draw the place from the map of like surroundings (section 3.3) instead of shifting a little.
    """

    probability: float = 0.5
    scale: tuple[float, float] = (0.8, 1.2)
    shift: float = 1 / 15
    angle: float = 1.0
    color: float = 0.5
    guided: bool = False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if sample.masks is None or not len(sample.boxes) or rng.random() >= self.probability:
            return sample
        h, w = sample.size
        bitmaps = sample.masks.to_bitmap((h, w)) if isinstance(sample.masks, Polygons) else sample.masks
        canvas = fill_holes(sample.image, bitmaps.max(0))
        moves, masks = np.zeros((len(bitmaps), 2, 3)), np.zeros_like(bitmaps)
        for i in np.argsort(-bitmaps.sum((1, 2), dtype=np.int64), kind="stable"):  # small objects end up in front
            moves[i] = self.draw_move(sample, bitmaps[i], rng)
            masks[i] = paste(canvas, sample.image, bitmaps[i], moves[i], self.draw_colors(rng))
            hidden = np.arange(len(masks)) != i
            masks[hidden] &= 1 - masks[i]
        moved: np.ndarray | Polygons = masks
        if isinstance(sample.masks, Polygons):
            rings = [[clip_ring(ring @ m[:, :2].T + m[:, 2], h, w) for ring in rings]
                     for rings, m in zip(sample.masks.rings, moves)]
            moved = Polygons(rings, (h, w))
        return replace(sample, image=canvas, masks=moved, boxes=tight_boxes(masks)).keep(masks.max((1, 2)) > 0)

    def draw_move(self, sample: Sample, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[2, 3] where the pixels (x, y) of an object go: turned and scaled about its middle, then shifted."""
        h, w = sample.size
        y, x = np.nonzero(mask)
        middle = (float(x.mean()), float(y.mean())) if len(x) else (0.0, 0.0)
        angle, scale = rng.uniform(-self.angle, self.angle), rng.uniform(*self.scale)
        move: np.ndarray = cv2.getRotationMatrix2D(middle, angle, scale)
        shift = rng.uniform(-self.shift, self.shift, 2) * np.array([w, h])
        if self.guided and len(x):
            shift = draw_shift(likeness(sample.image, mask), mask, rng)
        move[:, 2] += shift
        return move

    def draw_colors(self, rng: np.random.Generator) -> tuple[float, float]:
        """Factor of the contrast, and what is added to the brightness."""
        if rng.random() >= self.color:
            return 1.0, 0.0
        return rng.uniform(0.8, 1.2), rng.uniform(-20, 20)


def fill_holes(image: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """The image uint8 [h, w, 3] with the holes (uint8 [h, w]) filled from around them (Telea 2004)."""
    h, w = holes.shape
    ratio = min(INPAINT_SIDE / max(h, w), 1.0)
    size = (max(round(w * ratio), 1), max(round(h * ratio), 1))
    wide = cv2.dilate(holes, np.ones((5, 5), np.uint8))  # borders are blurred, and shadows lie there
    small = cv2.inpaint(cv2.resize(image, size, interpolation=cv2.INTER_AREA),
                        (cv2.resize(wide, size, interpolation=cv2.INTER_NEAREST) > 0).astype(np.uint8),
                        INPAINT_RADIUS, cv2.INPAINT_TELEA)
    return np.where(wide[..., None] > 0, cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR), image)


def paste(canvas: np.ndarray, image: np.ndarray, mask: np.ndarray, move: np.ndarray,
          colors: tuple[float, float]) -> np.ndarray:
    """Paint an image's object on the canvas (in place), moved and recoloured; its mask there, uint8 [h, w]."""
    h, w = mask.shape
    contrast, brightness = colors
    moved = cv2.warpAffine(image, move, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    share = cv2.warpAffine(mask.astype(np.float32), move, (w, h), flags=cv2.INTER_LINEAR)
    alpha = cv2.GaussianBlur(share, (0, 0), FEATHER / 2) * (share > 0)
    y, x = np.nonzero(alpha)
    if len(x):
        part = np.s_[y.min():y.max() + 1, x.min():x.max() + 1]
        mean = moved[share > 0.5].mean(0) if (share > 0.5).any() else 0.0
        painted = np.clip((moved[part] - mean) * contrast + mean + brightness, 0, 255)
        blend = alpha[part][..., None]
        canvas[part] = np.round(painted * blend + canvas[part] * (1 - blend)).astype(np.uint8)
    return (share >= 0.5).astype(np.uint8)


# Where else an object could stand (section 3.3)

def likeness(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How much the surroundings of each place look like those of the object, from 0 to 1.

    The object's surroundings are rings around it. At each shift they are compared with what lies there.

    Args:
        image: uint8 [h, w, 3]; mask: uint8 [h, w], one object.

    Returns:
        float32 [b + 1, c + 1] over the shifts that keep the rings inside the image; they begin at the upper left, and
        `draw_shift` knows where the object itself is.
    """
    weights, inner = np.zeros(mask.shape, np.float32), mask
    for weight in RING_WEIGHTS:
        outer = cv2.dilate(inner, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * RING_WIDTH + 1,) * 2))
        weights[(outer > 0) & (inner == 0)] = weight
        inner = outer
    x, y, w, h = cv2.boundingRect(inner)
    part = np.s_[y:y + h, x:x + w]
    root = np.repeat(np.sqrt(weights[part])[..., None], 3, 2)  # the mask multiplies differences before they are squared
    pixels = image.astype(np.float32)
    distance = cv2.matchTemplate(pixels, pixels[part], cv2.TM_SQDIFF, mask=root)
    distance = np.maximum(distance - distance.min(), 0)
    largest = distance.max()
    if largest <= 0:
        return np.ones_like(distance)
    # Equation 6: the logarithm spreads what is alike and flattens what is not.
    heat = -np.log((distance + 1e-3 * largest) / (largest * (1 + 1e-3)))
    return np.maximum(heat / heat.max(), 0).astype(np.float32)


def draw_shift(heat: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shift (x, y) of the object, drawn with the map of `likeness` as its probability."""
    share = heat.astype(np.float64).ravel()
    share = share / share.sum() if share.sum() > 0 else np.full(share.size, 1 / share.size)
    y, x = divmod(int(rng.choice(share.size, p=share)), heat.shape[1])
    grown = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * RING_WIDTH + 1,) * 2),
                       iterations=len(RING_WEIGHTS))
    left, top, _, _ = cv2.boundingRect(grown)
    return np.array([x - left, y - top], float)
