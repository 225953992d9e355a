"""The scenes of the Pocket Zoo: sky, land, water and trees, and the animals in them.

A scene is painted from back to front on a canvas three times as large as the picture, beside a map that holds, for
each pixel, the number of what is seen there: 1 to 6 for the stuff of `names.STUFF`, from 10 on for the animals.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial
from typing import NamedTuple

import cv2
import numpy as np

from detcore.pocket.animals import SPECIES, Brush, Random, colour, oval, ribbon, smooth

SKY, GRASS, WATER, SAND, PATH, TREE = range(1, 7)
FIRST_ANIMAL = 10
_DRAWING = 255  # the animal being drawn, until it is shaded
CLOSE_UPS = 0.17  # share of the pictures; in three quarters of them the animal is large by COCO, above 96 x 96 pixels

# (top of the sky, horizon, light on everything as BGR factors)
HOURS = (
    ("5b9bd8", "d4ebf5", (1.0, 1.0, 1.0)),
    ("7fb2de", "f8ecd9", (0.95, 1.0, 1.04)),
    ("8f9fb5", "dfe3e6", (1.0, 0.97, 0.94)),
    ("e8875b", "fbd99a", (0.82, 0.94, 1.05)),
    ("54588f", "eba392", (0.98, 0.87, 0.9)),
)
MEADOWS = (("a9c46c", "6b9a3a"), ("c3c27a", "93983f"), ("8fbf7f", "4f8a45"), ("d6c07a", "b0984a"))
DESERTS = (("ecd9a8", "d6b471"), ("f0d9b5", "d9a876"), ("eee7d8", "d2c4a6"))


@dataclass
class Scene:
    """A painted scene.

    Attributes:
        image: uint8 [size, size, 3], BGR.
        ids: uint8 [k * size, k * size], what is seen at each pixel of the larger canvas.
        animals: for each animal its number in `ids`, species index, and whether it is a crowd.
    """

    image: np.ndarray
    ids: np.ndarray
    animals: list[tuple[int, int, bool]] = field(default_factory=list)


class Placed(NamedTuple):
    """Where an animal is to be drawn: its feet at (x, y) on the canvas, `unit` canvas pixels a unit of its frame."""

    number: int
    species: int
    x: float
    y: float
    unit: float
    facing: int
    crowd: bool = False


@cache
def _noise() -> np.ndarray:
    """A tileable-enough cloud of noise, float32 [1024, 1024], mean 0, about -1..1; one for all scenes."""
    r, total = Random(7), np.zeros((1024, 1024), np.float32)
    for cells, weight in ((16, 0.3), (64, 0.35), (256, 0.35), (512, 0.3)):
        total += weight * cv2.resize(r.uniform(-1, 1, (cells, cells)).astype(np.float32), (1024, 1024),
                                     interpolation=cv2.INTER_CUBIC)
    return total


def _grain(r: Random, h: int, w: int) -> np.ndarray:
    y, x = r.randint(0, 1024 - h), r.randint(0, 1024 - w)
    return _noise()[y:y + h, x:x + w]


class Painter:
    """Paints one scene; see `paint`."""

    def __init__(self, r: Random, size: int, factor: int) -> None:
        self.r, self.size, self.n = r, size, size * factor
        self.canvas = np.zeros((self.n, self.n, 3), np.uint8)
        self.ids = np.full((self.n, self.n), SKY, np.uint8)
        self.horizon = int(self.n * r.uniform(0.2, 0.42))
        self.top, self.haze, self.light = HOURS[r.choice(len(HOURS), p=[0.36, 0.22, 0.14, 0.16, 0.12])]

    def fill(self, points: np.ndarray, paint: np.ndarray, number: int) -> None:
        pixels = [np.rint(points).astype(np.int32)]
        cv2.fillPoly(self.canvas, pixels, paint.tolist())
        cv2.fillPoly(self.ids, pixels, int(number))

    def depth(self, y: float) -> float:
        """0 at the horizon, 1 at the lower border."""
        return (y - self.horizon) / (self.n - self.horizon)

    def sky(self) -> None:
        r, n, h = self.r, self.n, self.horizon + self.n // 10
        t = np.linspace(0, 1, h)[:, None]
        self.canvas[:h] = (colour(self.top) * (1 - t) + colour(self.haze) * t)[:, None]
        if r.rand() < 0.55:
            x, y, radius = r.uniform(0.1, 0.9) * n, self.horizon * r.uniform(0.2, 0.8), n * r.uniform(0.03, 0.05)
            for grow, mix in ((2.4, 0.25), (1.6, 0.45), (1.0, 1.0)):
                paint = colour("fff3c4") * mix + colour(self.haze) * (1 - mix)
                self.fill(oval(x, y, radius * grow, radius * grow), paint, SKY)
        for _ in range(r.randint(0, 4)):
            x, y, s = r.uniform(0, n), self.horizon * r.uniform(0.1, 0.7), n * r.uniform(0.03, 0.06)
            for paint, lift in ((colour(self.haze) * 0.94, 0.25), (colour(self.haze) * 0.4 + 153, 0.0)):
                for dx, dy, k in ((-1.7, 0.2, 0.7), (-0.7, -0.2, 1.0), (0.5, -0.35, 1.1), (1.6, 0.15, 0.75)):
                    self.fill(oval(x + dx * s, y + (dy + lift) * s, k * s * 1.2, k * s * 0.62), paint, SKY)

    def land(self) -> None:
        r, n, h = self.r, self.n, self.horizon
        self.ground = SAND if r.rand() < 0.3 else GRASS
        palette = DESERTS if self.ground == SAND else MEADOWS
        far, near = (colour(c, r.uniform(0.92, 1.06)) for c in palette[r.randint(len(palette))])
        x = np.linspace(-0.1 * n, 1.1 * n, 9)
        for layer in range(r.randint(1, 3), 0, -1):
            y = h - n * 0.045 * layer * r.uniform(0.2, 1.6, 9)
            ridge = smooth(np.stack([x, y], 1), closed=False)
            mix = 0.3 + 0.22 * layer
            self.fill(np.concatenate([ridge, [[1.1 * n, h + 9], [-0.1 * n, h + 9]]]),
                      colour(self.haze) * mix + far * (1 - mix) * 0.92, self.ground)
        t = np.linspace(0, 1, n - h, dtype=np.float32)[:, None, None] ** 0.8
        grain = cv2.resize(_grain(r, 420, 320), (n, n - h))[..., None] * (5 + 13 * t)
        self.canvas[h:] = np.clip((far * (1 - t) + near * t).astype(np.float32) + grain, 0, 255)
        self.ids[h:] = self.ground
        self.near, self.far = near, far

    def blend(self, mask: np.ndarray, paint: np.ndarray, number: int, amount: float = 10) -> None:
        """Paint where the mask is set, with grain; `paint` is a colour or one for each row [n, 3]."""
        ys, xs = np.nonzero(mask)
        rows = np.broadcast_to(paint, (self.n, 3))[ys]
        grain = _grain(self.r, self.n, self.n)[ys, xs, None] * amount
        self.canvas[ys, xs] = np.clip(rows + grain, 0, 255)
        self.ids[ys, xs] = number

    def mask(self, points: np.ndarray) -> np.ndarray:
        out = np.zeros((self.n, self.n), np.uint8)
        cv2.fillPoly(out, [np.rint(points).astype(np.int32)], 1)
        out[:self.horizon] = 0
        return out

    def path(self) -> None:
        r, n, h = self.r, self.n, self.horizon
        x = r.uniform(0.2, 0.8) * n + np.array([0, 0.03, -0.02, 0.1, 0.0]) * n * r.uniform(-3, 3)
        y = np.array([h, h + 0.04 * n, h + 0.18 * n, h + 0.45 * n, n * 1.05])
        width = n * np.array([0.012, 0.02, 0.05, 0.12, 0.24]) * r.uniform(0.8, 1.3)
        course = ribbon(smooth(np.stack([x, y, width], 1), closed=False))
        paint = colour(("c9b48c", "b9a58c", "cfa878")[r.randint(3)]) * 0.9
        self.blend(self.mask(course), paint, PATH, 14)

    def pond(self) -> None:
        r, n = self.r, self.n
        y = r.uniform(self.horizon + 0.12 * n, 0.9 * n)
        rx, x = n * r.uniform(0.2, 0.5) * (0.5 + 0.5 * self.depth(y)), r.uniform(0, n)
        turns = np.linspace(0, 2 * np.pi, 11, endpoint=False)
        radius = r.uniform(0.8, 1.15, 11)
        shore = smooth(np.stack([x + rx * radius * np.cos(turns), y + rx * 0.34 * radius * np.sin(turns)], 1))
        centre = [x, y]
        self.blend(self.mask((shore - centre) * [1.06, 1.13] + centre), self.near * 0.55 + colour("d9c08c") * 0.4,
                   SAND, 8)
        t = np.clip((np.arange(n)[:, None] - y + rx * 0.36) / (rx * 0.72), 0, 1)
        water = self.mask(shore)
        deep = colour(self.top) * 0.15 + colour("2f8ab2") * 0.8
        bright = colour(self.haze) * 0.2 + colour("a9dcee") * 0.3 + deep * 0.5
        self.blend(water, bright * (1 - t) + deep * t, WATER, 6)
        for _ in range(9):
            cx, cy, length = x + r.uniform(-0.8, 0.8) * rx, y + r.uniform(-0.26, 0.28) * rx, rx * r.uniform(0.06, 0.2)
            if self.ids[int(np.clip(cy, 0, n - 1)), int(np.clip(cx, 0, n - 1))] == WATER:
                self.fill(oval(cx, cy, length, max(length * 0.05, 0.8)), deep * 0.5 + 125, WATER)

    def tree(self, x: float, y: float, height: float) -> None:
        r = self.r
        bark = colour("6d4a2d", r.uniform(0.8, 1.2))
        leaf = colour(("5d8a3a", "4b7a45", "7d8f3c")[r.randint(3)], r.uniform(0.85, 1.1))
        kind, bend = r.randint(3), r.uniform(-0.12, 0.12) * height
        tops = {0: ((0, 1.0, 0.75, 0.17), (-0.35, 0.86, 0.4, 0.12), (0.38, 0.84, 0.42, 0.12)),  # acacia
                1: ((0, 0.78, 0.36, 0.36), (-0.24, 0.62, 0.26, 0.24), (0.25, 0.62, 0.27, 0.24))}.get(kind)
        trunk = smooth(np.array([[x, y, 0.11 * height], [x + bend * 0.4, y - 0.45 * height, 0.07 * height],
                                 [x + bend, y - 0.85 * height, 0.05 * height]]), closed=False)
        self.fill(ribbon(trunk), bark, TREE)
        if tops:
            for shade, dy, wide, tall in ((0.75, 0.05, 1.1, 1.0), (1.0, 0.0, 1.1, 1.0), (1.16, -0.05, 0.85, 0.65)):
                for dx, up, rx, ry in tops:
                    self.fill(oval(x + bend + dx * height, y + (dy - up) * height, rx * height * wide,
                                   ry * height * tall), leaf * shade, TREE)
            return
        for angle in np.linspace(-0.5, 3.6, 8) + r.uniform(-0.15, 0.15, 8):  # palm
            c, s = np.cos(angle) * 0.5 * height, np.sin(angle) * 0.34 * height
            cx, cy = x + bend, y - 0.87 * height
            frond = smooth(np.array([[cx, cy, 0.03 * height], [cx + c * 0.55, cy - s - 0.06 * height, 0.11 * height],
                                     [cx + c, cy - s * 0.6 + 0.13 * height, 0.01 * height]]), closed=False)
            self.fill(ribbon(frond), leaf * r.uniform(0.8, 1.15), TREE)

    def tuft(self, x: float, y: float, s: float) -> None:
        """A few blades of grass, sometimes with a flower."""
        r = self.r
        paint = (self.near if self.ground == GRASS else colour("a3a04e")) * r.uniform(0.68, 0.95)
        for lean in np.linspace(-0.6, 0.6, 5) + r.uniform(-0.15, 0.15, 5):
            self.fill(np.array([[x - 0.12 * s, y], [x + lean * s, y - s * r.uniform(0.7, 1.2)], [x + 0.12 * s, y]]),
                      paint, GRASS)
        if r.rand() < 0.25:
            petals = colour(("f7f0d8", "f2c14e", "e8705a", "c78be0")[r.randint(4)])
            self.fill(oval(x, y - s, 0.28 * s, 0.28 * s), petals, GRASS)

    def details(self) -> None:
        r, n = self.r, self.n
        for y in np.sort(r.uniform(self.horizon + 2, n, r.randint(12, 30))):
            x, s = r.uniform(0, n), n * (0.006 + 0.024 * self.depth(y))
            seen = self.ids[int(y), int(x)]
            if seen == self.ground and r.rand() < 0.75:
                self.tuft(x, y, s)
            elif seen in (self.ground, PATH, SAND):
                stone = colour("9a958c", r.uniform(0.8, 1.15))
                self.fill(oval(x, y, s * 0.7, s * 0.4), stone * 0.75, seen)
                self.fill(oval(x - 0.1 * s, y - 0.12 * s, s * 0.55, s * 0.28), stone, seen)

    def animal(self, placed: Placed) -> None:
        """One animal, its shadow, or ripples in water, and light and shade on its body."""
        number, species, x, y, unit, facing, _ = placed
        r, kind = self.r, SPECIES[species]
        left, right, _ = kind.box
        wide = (right - left) * unit
        shadow = (round(x + 0.06 * wide), round(y))
        axes = (max(int(0.42 * wide), 1), max(int(0.07 * wide), 1))
        box = tuple(slice(max(c - 2 * a, 0), max(c + 2 * a, 0)) for c, a in zip(shadow[::-1], axes[::-1]))
        area = self.canvas[box]
        if area.size:
            light, centre = np.ones(area.shape[:2], np.float32), (shadow[0] - box[1].start, shadow[1] - box[0].start)
            wet = self.ids[min(max(shadow[1], 0), self.n - 1), min(max(shadow[0], 0), self.n - 1)] == WATER
            cv2.ellipse(light, centre, axes, 0, 0, 360, 0.8 if wet else 0.64, -1)
            for ring in range(2 * wet):
                size = (int(axes[0] * (1 + 0.35 * ring)), int(axes[1] * (1.2 + 0.5 * ring)))
                cv2.ellipse(light, centre, size, 0, 0, 360, 1.25, max(axes[1] // 7, 1))
            soft = cv2.blur(light, (max(axes[1] // (4 if wet else 1), 1),) * 2)
            if wet:
                soft[self.ids[box] != WATER] = 1
            area[:] = np.clip(area * soft[..., None], 0, 255)
        tint = r.uniform(0.86, 1.1) * r.uniform(0.95, 1.05, 3)
        brush = Brush(self.canvas, self.ids, _DRAWING, (x, y), unit, facing=facing, tilt=r.uniform(-0.06, 0.06),
                      tint=tint)
        kind.draw(brush, r)
        self.finish(number, brush.extent(), unit)

    def finish(self, number: int, extent: tuple[slice, slice], unit: float) -> None:
        """Give the animal just drawn its number, and roundness.

        Light falls from the upper left; there is grain in the coat, and the rim is darker.
        """
        ids, view = self.ids[extent], self.canvas[extent]
        if ids.size == 0:
            return
        chosen = ids == _DRAWING
        body = chosen.astype(np.uint8)
        k = max(int(unit * 0.08), 1)
        soft = cv2.blur(cv2.copyMakeBorder(body, k, k, k, k, cv2.BORDER_CONSTANT).astype(np.float32),
                        (2 * k + 1, 2 * k + 1))
        relief = soft[2 * k:, 2 * k:] - soft[:-2 * k, :-2 * k]
        factor = 1 + 0.2 * relief + 0.05 * _grain(self.r, *ids.shape)
        factor[chosen & (cv2.erode(body, np.ones((3, 3), np.uint8)) == 0)] *= 0.8
        view[chosen] = np.clip(view[chosen] * factor[chosen][:, None], 0, 255)
        ids[chosen] = number


def paint(r: Random, size: int, weights: np.ndarray, factor: int = 3) -> Scene:
    """Paint a scene.

    Args:
        r: decides everything.
        size: height and width of the picture in pixels.
        weights: [classes] how often each species is drawn, summing to 1.
        factor: canvas pixels a picture pixel.
    """
    p = Painter(r, size, factor)
    n = p.n
    p.sky()
    p.land()
    if r.rand() < 0.4:
        p.path()
    if r.rand() < 0.45:
        p.pond()
    p.details()
    trees = [(y, r.uniform(0, n), n * r.uniform(0.1, 0.2) * (0.8 + 2 * max(p.depth(y), 0)))
             for y in p.horizon + n * r.uniform(-0.01, 0.12, r.randint(0, 5))]
    animals = _place(p, weights)
    # From far to near, whatever it is.
    things = [(y, partial(p.tree, x, y, height)) for y, x, height in trees]
    things += [(animal.y, partial(p.animal, animal)) for animal in animals]
    for _, paint_it in sorted(things, key=lambda thing: thing[0]):
        paint_it()
    for _ in range(r.randint(0, 5)):
        p.tuft(r.uniform(0, n), n * r.uniform(0.99, 1.03), n * r.uniform(0.05, 0.09))
    image = cv2.resize(p.canvas, (size, size), interpolation=cv2.INTER_AREA)
    image = np.clip(image * np.array(p.light) * r.uniform(0.92, 1.05), 0, 255).astype(np.uint8)
    return Scene(image, p.ids, sorted({(a.number, a.species, a.crowd) for a in animals}))


def _place(p: Painter, weights: np.ndarray) -> list[Placed]:
    """A scene's animals, none too hidden by the others."""
    r, n = p.r, p.n
    if r.rand() < CLOSE_UPS:
        return [_close_up(p, int(r.choice(len(SPECIES), p=weights)))]
    wanted = r.choice(6, p=[0.04, 0.2, 0.28, 0.24, 0.16, 0.08])
    boxes = np.zeros((0, 4))
    placed: list[Placed] = []
    for _ in range(6 * wanted):
        if len(placed) == wanted:
            break
        species = int(r.choice(len(SPECIES), p=weights))
        kind = SPECIES[species]
        left, right, top = kind.box
        y = p.horizon + (n - p.horizon) * (0.12 + 0.86 * r.beta(1.4, 1.1))
        unit = n * (0.1 + 0.26 * p.depth(y)) * kind.scale * r.uniform(0.85, 1.2)
        half = (right - left) * unit / 2
        x = r.uniform(min(half * 0.7, n / 2), max(n - half * 0.7, n / 2))
        box = np.array([x - half, y - top * unit, x + half, y]).clip(0, n)
        overlap = np.prod(np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None), 1)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
        if (overlap > 0.3 * np.minimum(areas, np.prod(box[2:] - box[:2]))).any():
            continue
        boxes = np.concatenate([boxes, box[None]])
        placed.append(Placed(FIRST_ANIMAL + len(placed), species, x, y, unit, _side(r)))
    if r.rand() < 0.06:  # a herd far away, that nobody would count
        species, number = int(r.choice(len(SPECIES), p=weights)), FIRST_ANIMAL + len(placed)
        x, y, unit = r.uniform(0.25, 0.75) * n, p.horizon + n * r.uniform(0.04, 0.12), n * r.uniform(0.055, 0.08)
        unit *= SPECIES[species].scale
        for _ in range(r.randint(10, 16)):
            dx, dy = unit * r.uniform(-3.2, 3.2), unit * r.uniform(-0.3, 0.5)
            placed.append(Placed(number, species, x + dx, y + dy, unit, _side(r), crowd=True))
    return placed


def _side(r: Random) -> int:
    """To which side an animal looks."""
    return 1 if r.rand() < 0.5 else -1


def _close_up(p: Painter, species: int) -> Placed:
    """One animal so near that the border of the picture may cut it."""
    r, n = p.r, p.n
    x, y, side = SPECIES[species].close_up
    unit, facing = n / (side * r.uniform(0.76, 1.28)), _side(r)
    across, up = r.uniform(-0.06, 0.06, 2) * n
    return Placed(FIRST_ANIMAL, species, n / 2 - facing * x * unit + across, n / 2 + y * unit + up, unit, facing)
