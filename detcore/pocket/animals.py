"""The animals of the Pocket Zoo, drawn with ellipses, splines and tapered strokes.

An animal is a function of a `Brush` and a random stream. It draws itself in its own coordinates: x to the front, y up,
the feet at y = 0, one unit about the length of a zebra's body. The brush carries that frame to the canvas and marks
every painted pixel with the animal's number, so masks and occlusion come for free.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

Random = np.random.RandomState  # NumPy's frozen generator: the same drawing with every release
Points = Sequence[Sequence[float]] | np.ndarray


def colour(code: str, light: float = 1.0) -> np.ndarray:
    """A colour "rrggbb" as float BGR, made lighter or darker by a factor."""
    return np.clip(np.array([int(code[i:i + 2], 16) for i in (4, 2, 0)], float) * light, 0, 255)


_T = np.arange(5)[:, None] / 5
_SPLINE = np.concatenate([-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3,
                          _T**3 - _T**2], 1) / 2
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 20, endpoint=False)),
                    np.sin(np.linspace(0, 2 * np.pi, 20, endpoint=False))], 1)


def smooth(points: Points, closed: bool = True) -> np.ndarray:
    """The Catmull-Rom spline through points [k, c], five samples from each point to the next."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    windows = np.stack([p[i:len(p) - 3 + i] for i in range(4)])
    curve = np.einsum("sk,knc->nsc", _SPLINE, windows).reshape(-1, p.shape[1])
    return curve if closed else np.concatenate([curve, p[-2:-1]])


def oval(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    """The ellipse with radii rx, ry, turned by `angle` radians, as a polygon [20, 2]."""
    c, s = np.cos(angle), np.sin(angle)
    return _CIRCLE * [rx, ry] @ np.array([[c, s], [-s, c]]) + [x, y]


def ribbon(path: np.ndarray) -> np.ndarray:
    """The outline [2k, 2] of a stroke along [k, 3] (x, y, width)."""
    p = path[:, :2]
    direction = np.concatenate([p[1:2] - p[:1], p[2:] - p[:-2], p[-1:] - p[-2:-1]])
    direction /= np.maximum(np.hypot(direction[:, :1], direction[:, 1:]), 1e-9)
    side = direction[:, ::-1] * [-1, 1] * path[:, 2:] / 2
    return np.concatenate([p + side, (p - side)[::-1]])


@dataclass
class Brush:
    """Paints in one animal's frame on a shared canvas.

    Attributes:
        canvas: uint8 [h, w, 3], BGR.
        ids: uint8 [h, w], the number of what is seen at each pixel.
        number: this animal's.
        origin: (x, y) of its feet on the canvas.
        scale: pixels a unit.
        facing: 1 to the right, -1 to the left.
        tilt: rotation in radians.
        tint: factor [3] on all colours.
    """

    canvas: np.ndarray
    ids: np.ndarray
    number: int
    origin: tuple[float, float]
    scale: float
    facing: int = 1
    tilt: float = 0.0
    tint: np.ndarray | float = 1.0

    def __post_init__(self) -> None:
        c, s = np.cos(self.tilt) * self.scale, np.sin(self.tilt) * self.scale
        self._frame = np.array([[c * self.facing, -s], [-s * self.facing, -c]]).T
        self._painted: list[Sequence[int]] = []

    def extent(self) -> tuple[slice, slice]:
        """The rows and columns of the canvas that hold all that was painted."""
        x, y, w, h = np.array(self._painted).T
        rows, columns = self.ids.shape
        return (slice(max(int(y.min()), 0), max(min(int((y + h).max()), rows), 0)),
                slice(max(int(x.min()), 0), max(min(int((x + w).max()), columns), 0)))

    def _pixels(self, points: Points) -> np.ndarray:
        return np.rint(np.asarray(points, float) @ self._frame + self.origin).astype(np.int32)

    def poly(self, points: Points, paint: np.ndarray) -> None:
        """Fill a polygon."""
        pixels = [self._pixels(points)]
        cv2.fillPoly(self.canvas, pixels, (paint * self.tint).tolist())  # OpenCV cuts colours to 0..255
        cv2.fillPoly(self.ids, pixels, self.number)
        self._painted.append(cv2.boundingRect(pixels[0]))

    def blob(self, points: Points, paint: np.ndarray) -> None:
        """Fill the smooth closed curve through the points."""
        self.poly(smooth(points), paint)

    def oval(self, x: float, y: float, rx: float, ry: float, paint: np.ndarray, angle: float = 0.0) -> None:
        """Fill an ellipse with radii rx and ry, turned by `angle` radians."""
        self.poly(oval(x, y, rx, ry, angle), paint)

    def limb(self, path: Points, paint: np.ndarray) -> None:
        """A smooth stroke through [k, 3] (x, y, width) with round ends."""
        p = smooth(path, closed=False)
        self.poly(ribbon(p), paint)
        for x, y, width in (p[0], p[-1]):
            self.oval(x, y, width / 2, width / 2, paint)

    def pattern(self, region: np.ndarray, shapes: Sequence[Points], paint: np.ndarray) -> None:
        """Fill shapes where they lie inside the polygon `region`."""
        border = self._pixels(region)
        h, w = self.ids.shape
        (x1, y1), (x2, y2) = border.min(0).clip(0), border.max(0).clip(0, [w - 1, h - 1]) + 1
        if x1 >= x2 or y1 >= y2:
            return
        inside, painted = np.zeros((2, y2 - y1, x2 - x1), np.uint8)
        offset = (-int(x1), -int(y1))
        cv2.fillPoly(inside, [border], 1, offset=offset)
        for shape in shapes:
            cv2.fillPoly(painted, [self._pixels(shape)], 1, offset=offset)
        self.canvas[y1:y2, x1:x2][(inside & painted).astype(bool)] = np.clip(paint * self.tint, 0, 255)

    def eye(self, x: float, y: float, r: float) -> None:
        """A dark eye with a glint."""
        self.oval(x, y, r, r, colour("1c1714"))
        self.oval(x + r * 0.3, y + r * 0.35, r * 0.35, r * 0.35, colour("ffffff"))


def _legs(b: Brush, r: Random, xs: Sequence[float], top: float, width: float, near: np.ndarray, far: np.ndarray,
          foot: np.ndarray, knee: float = 0.0, body: Callable[[], None] | None = None) -> None:
    """Four legs in a random step: the far pair, then `body`, then the near pair."""
    swing = r.uniform(-0.13, 0.13, 4)
    for pair, paint in ((0, far), (1, near)):
        for i, x in enumerate(xs):
            dx = swing[2 * pair + i] + (0.09 if pair == 0 else 0)
            bend = knee * (1 if i else -1)
            b.limb([[x + dx * 0.2, top, width * 1.5], [x + dx * 0.55 + bend, top * 0.5, width],
                    [x + dx, 0.03, width * 0.9]], paint)
            b.limb([[x + dx - 0.01, 0.035, width * 0.95], [x + dx + 0.05, 0.03, width * 0.8]], foot)
        if pair == 0 and body:
            body()


def elephant(b: Brush, r: Random) -> None:
    grey, dark, light = colour("8f98a3"), colour("6a737f"), colour("adb5be")
    pose = r.uniform(-1, 1)

    def body() -> None:
        b.limb([[-0.72, 0.78, 0.05], [-0.82, 0.6, 0.035], [-0.8 + 0.06 * pose, 0.4, 0.03]], dark)
        b.blob([[-0.74, 0.6], [-0.66, 0.92], [-0.25, 1.06], [0.2, 1.02], [0.5, 0.95], [0.52, 0.55], [0.25, 0.36],
                [-0.2, 0.34], [-0.62, 0.38]], grey)
        b.blob([[-0.5, 0.4], [0.0, 0.47], [0.4, 0.45], [0.2, 0.34], [-0.2, 0.32]], dark)

    _legs(b, r, (-0.5, 0.3), 0.5, 0.21, grey, dark, light, body=body)
    b.blob([[-0.45, 0.93], [-0.1, 1.02], [0.25, 0.98], [0.1, 0.92], [-0.2, 0.93]], light)
    lift = r.uniform(-0.1, 0.5) * (r.rand() < 0.5)  # a trunk that hangs, or is raised
    b.limb([[0.83, 0.85, 0.25], [1.0, 0.62 + lift * 0.5, 0.19], [1.06 + lift * 0.3, 0.35 + lift * 1.3, 0.13],
            [1.0 + lift * 0.9, 0.14 + lift * 2.2, 0.10], [1.1 + lift * 0.7, 0.08 + lift * 2.7, 0.08]], grey)
    b.blob([[0.45, 0.95], [0.62, 1.16], [0.88, 1.12], [1.0, 0.9], [0.92, 0.68], [0.68, 0.6], [0.5, 0.7]], grey)
    b.limb([[0.86, 0.66, 0.075], [1.02, 0.52, 0.06], [1.17, 0.52, 0.02]], colour("fff6df"))
    flap = r.uniform(-0.07, 0.07)
    b.blob([[0.62, 1.1], [0.4 - flap, 1.12], [0.22 - flap, 0.93], [0.26 - flap, 0.64], [0.42, 0.5], [0.56, 0.68],
            [0.66, 0.9]], dark)
    b.blob([[0.58, 1.05], [0.42 - flap, 1.06], [0.29 - flap, 0.91], [0.33 - flap, 0.68], [0.44, 0.57], [0.53, 0.72],
            [0.6, 0.9]], colour("b59a9a"))
    b.eye(0.82, 0.94, 0.038)


def giraffe(b: Brush, r: Random) -> None:
    coat, dark, patch = colour("f0c267"), colour("cf9c48"), colour("94541f")
    lean = r.uniform(-0.12, 0.2)
    neck = smooth([[0.28, 0.98, 0.36], [0.42 + lean * 0.4, 1.32, 0.21], [0.56 + lean, 1.7, 0.15],
                   [0.62 + lean * 1.3, 1.95, 0.14]], closed=False)
    trunk = smooth([[-0.52, 0.72], [-0.48, 0.92], [-0.1, 1.04], [0.3, 1.16], [0.46, 1.0], [0.4, 0.74], [0.0, 0.66],
                    [-0.35, 0.63]])

    def body() -> None:
        b.limb([[-0.5, 0.88, 0.04], [-0.62, 0.66, 0.03], [-0.6, 0.5, 0.025]], dark)
        b.oval(-0.6, 0.44, 0.035, 0.08, colour("3a2412"))
        b.limb(np.stack([neck[:, 0] - 0.075, neck[:, 1] + 0.02, neck[:, 2] * 0.5], 1)[4:], patch)
        b.poly(ribbon(neck), coat)
        b.poly(trunk, coat)

    _legs(b, r, (-0.38, 0.3), 0.8, 0.095, coat, dark, colour("5d3a1c"), knee=0.02, body=body)
    spots = []
    for y in np.arange(0.62, 1.2, 0.155):
        for x in np.arange(-0.55, 0.55, 0.17):
            cx, cy = np.array([x + (round(y / 0.155) % 2) * 0.085, y]) + r.uniform(-0.02, 0.02, 2)
            spots.append(oval(cx, cy, 0.078, 0.07, 0.4)[::3] + r.uniform(-0.014, 0.014, (7, 2)))
    b.pattern(trunk, spots, patch)
    b.pattern(ribbon(neck), [oval(x + s * w * 0.27, y, 0.05, 0.055)[::3] + r.uniform(-0.012, 0.012, (7, 2))
                             for x, y, w in neck[2::2] for s in (-1, 1)], patch)
    x, y = neck[-1, :2]
    b.limb([[x - 0.1, y + 0.07, 0.06], [x - 0.2, y + 0.1, 0.03]], dark)
    for dx in (-0.02, 0.05):
        b.limb([[x + dx, y + 0.08, 0.035], [x + dx - 0.02, y + 0.2, 0.035]], dark)
        b.oval(x + dx - 0.02, y + 0.21, 0.032, 0.028, colour("4a2c14"))
    b.blob([[x - 0.1, y + 0.08], [x + 0.06, y + 0.13], [x + 0.26, y + 0.02], [x + 0.36, y - 0.07], [x + 0.3, y - 0.15],
            [x + 0.1, y - 0.11], [x - 0.07, y - 0.08]], coat)
    b.oval(x + 0.31, y - 0.09, 0.06, 0.055, colour("d9b08a"))
    b.eye(x + 0.09, y + 0.04, 0.033)


def zebra(b: Brush, r: Random) -> None:
    white, shade, black = colour("f4f1ea"), colour("c9c5be"), colour("221f1f")
    nod = r.uniform(-0.16, 0.06)
    trunk = smooth([[-0.58, 0.62], [-0.52, 0.84], [-0.1, 0.86], [0.3, 0.92], [0.5, 0.84], [0.5, 0.58], [0.1, 0.45],
                    [-0.4, 0.44]])
    neck = smooth([[0.36, 0.74, 0.4], [0.56, 0.98 + nod * 0.5, 0.27], [0.7, 1.17 + nod, 0.2]], closed=False)

    def body() -> None:
        b.limb([[-0.56, 0.78, 0.04], [-0.68, 0.58, 0.035], [-0.67, 0.44, 0.03]], shade)
        b.oval(-0.67, 0.36, 0.035, 0.09, black)
        b.poly(ribbon(np.stack([neck[:, 0] - 0.13, neck[:, 1] + 0.07, neck[:, 2] * 0.45], 1)), black)
        b.poly(ribbon(neck), white)
        b.poly(trunk, white)

    _legs(b, r, (-0.42, 0.36), 0.52, 0.1, white, shade, black, knee=0.02, body=body)
    stripes = [ribbon(smooth([[x - 0.1, 0.3, 0.03], [x, 0.62, 0.075], [x - 0.04, 0.95, 0.06]], closed=False))
               for x in np.arange(-0.5, 0.56, 0.145) + r.uniform(-0.02, 0.02)]
    b.pattern(trunk, stripes, black)
    for x, y, width in neck[2::2]:
        b.pattern(ribbon(neck), [ribbon(np.array([[x - 0.8 * width, y + 0.4 * width, 0.05], [x, y, 0.05],
                                                  [x + 0.8 * width, y - 0.5 * width, 0.035]]))], black)
    x, y = neck[-1, :2]
    b.blob([[x - 0.12, y + 0.1], [x - 0.1, y + 0.24], [x - 0.03, y + 0.12]], white)
    head = smooth([[x - 0.14, y + 0.06], [x + 0.02, y + 0.13], [x + 0.22, y - 0.02], [x + 0.36, y - 0.14],
                   [x + 0.3, y - 0.25], [x + 0.1, y - 0.17], [x - 0.1, y - 0.12]])
    b.poly(head, white)
    b.pattern(head, [ribbon(np.array([[x + d, y + 0.2, 0.035], [x + d - 0.05, y - 0.3, 0.035]]))
                     for d in (-0.06, 0.05, 0.16)], black)
    b.oval(x + 0.31, y - 0.18, 0.075, 0.07, colour("4b4444"), 0.6)
    b.eye(x + 0.06, y + 0.01, 0.033)


def lion(b: Brush, r: Random) -> None:
    coat, dark, mane = colour("dfa552"), colour("bd8238"), colour("87431a", r.uniform(0.8, 1.15))
    nod = r.uniform(-0.12, 0.08)

    def body() -> None:
        lift = r.uniform(0, 0.35)
        b.limb([[-0.58, 0.62, 0.06], [-0.8, 0.55 + lift * 0.4, 0.045], [-0.88, 0.5 + lift, 0.04]], dark)
        b.oval(-0.9, 0.55 + lift, 0.075, 0.09, mane)
        b.blob([[-0.62, 0.52], [-0.52, 0.74], [-0.1, 0.72], [0.3, 0.8], [0.46, 0.6], [0.36, 0.36], [0.0, 0.34],
                [-0.45, 0.33]], coat)
        b.blob([[-0.35, 0.36], [0.0, 0.41], [0.3, 0.4], [0.1, 0.33], [-0.2, 0.32]], colour("f0cf94"))

    _legs(b, r, (-0.42, 0.26), 0.42, 0.14, coat, dark, colour("f0cf94"), body=body)
    x, y = 0.52, 0.82 + nod
    turns = np.linspace(0, 2 * np.pi, 22, endpoint=False)
    radius = np.where(np.arange(22) % 2, 0.45, 0.37) * r.uniform(0.95, 1.06, 22)
    b.poly(np.stack([x - 0.05 + radius * np.cos(turns), y - 0.05 + radius * 1.05 * np.sin(turns)], 1), mane)
    b.oval(x, y, 0.3, 0.3, mane * 1.25)
    for dx in (-0.15, 0.17):
        b.oval(x + dx, y + 0.23, 0.075, 0.075, coat)
        b.oval(x + dx, y + 0.225, 0.04, 0.04, dark)
    b.blob([[x - 0.2, y + 0.08], [x, y + 0.23], [x + 0.22, y + 0.08], [x + 0.2, y - 0.14], [x + 0.03, y - 0.26],
            [x - 0.15, y - 0.14]], coat)
    b.oval(x + 0.03, y - 0.14, 0.125, 0.09, colour("f6e3bd"))
    b.poly([[x - 0.045, y - 0.05], [x + 0.105, y - 0.05], [x + 0.03, y - 0.125]], colour("5a2d20"))
    for dx in (-0.085, 0.135):
        b.eye(x + dx, y + 0.05, 0.034)


def penguin(b: Brush, r: Random) -> None:
    black, white, orange = colour("2a303d"), colour("fbfaf5"), colour("f39a2b")
    lean, wave = r.uniform(-0.05, 0.08), r.uniform(0.0, 0.13) * (r.rand() < 0.6)
    for x in (-0.13, 0.14):
        b.limb([[x, 0.06, 0.1], [x + 0.11, 0.04, 0.085]], orange)
    b.blob([[-0.2, 0.12], [-0.42, 0.03], [-0.3, 0.25]], black)
    b.limb([[-0.2, 0.78, 0.14], [-0.36 - wave, 0.55 + wave, 0.13], [-0.4 - wave * 1.5, 0.36 + wave * 1.6, 0.06]], black)
    b.blob([[-0.3, 0.3], [-0.31, 0.6], [-0.2, 0.9], [0.02 + lean, 1.0], [0.22, 0.88], [0.33, 0.56], [0.3, 0.25],
            [0.1, 0.06], [-0.15, 0.07]], black)
    b.blob([[-0.05, 0.3], [-0.07, 0.58], [0.04, 0.84], [0.2, 0.8], [0.29, 0.55], [0.27, 0.27], [0.1, 0.11],
            [0.0, 0.14]], white)
    b.limb([[-0.12, 0.78, 0.14], [-0.17, 0.55, 0.15], [-0.12, 0.32, 0.06]], black * 1.25)
    x, y = 0.06 + lean, 1.06
    b.blob([[x + 0.12, y + 0.05], [x + 0.34, y - 0.03], [x + 0.14, y - 0.08]], orange)
    b.oval(x, y, 0.2, 0.19, black)
    b.blob([[x - 0.02, y - 0.05], [x + 0.04, y + 0.05], [x + 0.15, y + 0.02], [x + 0.17, y - 0.1],
            [x + 0.06, y - 0.17]], white)
    b.oval(x - 0.06, y - 0.14, 0.05, 0.09, colour("f7c843"), 0.4)
    b.eye(x + 0.085, y + 0.045, 0.034)


def crocodile(b: Brush, r: Random) -> None:
    green, dark, pale = colour("6f9a4a"), colour("476b31"), colour("c9d49a")
    sway, jaw = r.uniform(-0.1, 0.25), r.uniform(0.02, 0.2)
    for x in (-0.3, 0.38):
        b.limb([[x + 0.08, 0.2, 0.12], [x + 0.14, 0.05, 0.09], [x + 0.22, 0.03, 0.07]], dark)
    spine = smooth([[-1.35, 0.08 + sway, 0.03], [-1.05, 0.13 + sway * 0.3, 0.17], [-0.65, 0.26, 0.34],
                    [-0.1, 0.33, 0.46], [0.4, 0.33, 0.42], [0.7, 0.31, 0.32]], closed=False)
    top = spine[:, :2] + spine[:, 2:] * [0, 0.5]
    for i in range(2, len(top) - 3, 2):
        x, y = top[i]
        b.poly([[x - 0.075, y - 0.03], [x - 0.01, y + 0.1], [x + 0.075, y - 0.03]], dark)
    b.poly(ribbon(spine), green)
    belly = spine[7:] * [1, 1, 0.45] - [0, 0.09, 0]
    b.poly(ribbon(belly), pale)
    b.pattern(ribbon(spine), [oval(x, y, 0.042, 0.036) for x, y in
                              np.stack([np.arange(-1.0, 0.6, 0.115), 0.37 + 0.075 * (np.arange(14) % 2)], 1)], dark)
    for x in (-0.42, 0.28):
        b.limb([[x, 0.22, 0.15], [x + 0.02, 0.08, 0.11], [x + 0.13, 0.035, 0.08]], green * 0.9)
    b.blob([[0.62, 0.2], [0.7, 0.14], [1.15, 0.1 - jaw * 0.35], [1.42, 0.13 - jaw * 0.5], [1.4, 0.17 - jaw * 0.45],
            [1.0, 0.22], [0.7, 0.28]], pale * 0.92)
    for i in range(5):
        x, gum = 0.92 + 0.105 * i, 0.24 + jaw * 0.04 * i
        b.poly([[x, gum], [x + 0.06, gum], [x + 0.03, gum - 0.09]], colour("fffdf2"))
    b.blob([[0.55, 0.38], [0.7, 0.52], [0.86, 0.45], [1.1, 0.37 + jaw * 0.25], [1.38, 0.37 + jaw * 0.5],
            [1.45, 0.26 + jaw * 0.5], [1.2, 0.22 + jaw * 0.3], [0.85, 0.2], [0.6, 0.2]], green)
    b.oval(1.37, 0.34 + jaw * 0.5, 0.035, 0.03, dark)
    b.oval(0.76, 0.5, 0.1, 0.095, green * 1.1)
    b.oval(0.78, 0.51, 0.065, 0.065, colour("f4d35e"))
    b.oval(0.79, 0.51, 0.024, 0.058, colour("1c1714"))


def flamingo(b: Brush, r: Random) -> None:
    pink, deep, pale = colour("f58fa8"), colour("dc5a7e"), colour("fcc2cf")
    bow = r.uniform(-0.06, 0.1)
    b.limb([[0.02, 0.6, 0.045], [0.05, 0.33, 0.035], [0.02, 0.03, 0.032]], deep)
    b.limb([[0.02, 0.03, 0.035], [0.14, 0.02, 0.03]], deep)
    if r.rand() < 0.5:
        b.limb([[-0.05, 0.6, 0.045], [0.17, 0.42, 0.035], [-0.1, 0.36, 0.03]], deep)
    else:
        b.limb([[-0.07, 0.6, 0.045], [-0.1, 0.32, 0.035], [-0.07, 0.03, 0.032]], deep)
        b.limb([[-0.07, 0.03, 0.035], [0.05, 0.02, 0.03]], deep)
    b.limb([[0.2, 0.74, 0.17], [0.4, 0.8, 0.1], [0.4, 0.98, 0.085], [0.24, 1.12, 0.08], [0.2 + bow, 1.29, 0.08],
            [0.3 + bow, 1.41, 0.09]], pink)
    b.blob([[-0.5, 0.62], [-0.25, 0.84], [0.08, 0.88], [0.29, 0.78], [0.24, 0.62], [0.02, 0.54], [-0.25, 0.54]], pink)
    b.blob([[-0.55, 0.56], [-0.3, 0.77], [0.0, 0.79], [0.1, 0.7], [-0.12, 0.6], [-0.32, 0.57]], deep)
    b.blob([[-0.44, 0.64], [-0.2, 0.79], [0.02, 0.79], [0.06, 0.73], [-0.15, 0.68]], pale)
    x, y = 0.33 + bow, 1.42
    b.oval(x, y, 0.095, 0.085, pink)
    b.blob([[x + 0.06, y + 0.05], [x + 0.2, y - 0.01], [x + 0.22, y - 0.12], [x + 0.12, y - 0.07],
            [x + 0.05, y - 0.05]], colour("fff1dd"))
    b.blob([[x + 0.17, y - 0.02], [x + 0.23, y - 0.05], [x + 0.2, y - 0.18], [x + 0.14, y - 0.09]], colour("2b2326"))
    b.eye(x + 0.02, y + 0.02, 0.03)


def tortoise(b: Brush, r: Random) -> None:
    skin, shell, rim = colour("a7a65a"), colour("8a5a2b"), colour("5f3b1a")
    nod = r.uniform(-0.08, 0.14)
    for x in (-0.34, 0.4):
        b.limb([[x, 0.24, 0.18], [x + 0.05 + r.uniform(-0.06, 0.06), 0.06, 0.16]], skin * 0.75)
    b.limb([[-0.55, 0.22, 0.1], [-0.72, 0.14, 0.03]], skin)
    b.limb([[0.45, 0.28, 0.2], [0.66, 0.36 + nod * 0.6, 0.15], [0.76, 0.42 + nod, 0.17]], skin)
    x, y = 0.82, 0.44 + nod
    b.blob([[x - 0.12, y + 0.06], [x, y + 0.13], [x + 0.14, y + 0.06], [x + 0.17, y - 0.04], [x + 0.04, y - 0.11],
            [x - 0.1, y - 0.08]], skin)
    b.limb([[x + 0.15, y - 0.035, 0.018], [x + 0.04, y - 0.045, 0.012]], skin * 0.5)
    b.eye(x + 0.06, y + 0.04, 0.034)
    for x in (-0.42, 0.28):
        b.limb([[x, 0.26, 0.2], [x + 0.04 + r.uniform(-0.07, 0.07), 0.07, 0.17]], skin)
    dome = smooth([[-0.66, 0.2], [-0.58, 0.5], [-0.25, 0.76], [0.15, 0.77], [0.46, 0.54], [0.58, 0.22], [0.0, 0.15]])
    b.poly(dome, rim)
    plates = []
    for y, n, rx, ry in ((0.28, 6, 0.1, 0.085), (0.47, 5, 0.115, 0.085), (0.65, 3, 0.12, 0.07)):
        for i in range(n):
            x = -0.03 + (i - (n - 1) / 2) * (rx * 2 + 0.022)
            plates.append((x, y, rx, ry))
    b.pattern(dome, [oval(*p)[::2] for p in plates], shell * 1.2)
    b.pattern(dome, [oval(x, y, rx * 0.6, ry * 0.6)[::2] for x, y, rx, ry in plates], colour("d9a55a"))
    b.limb([[-0.66, 0.21, 0.07], [0.0, 0.17, 0.08], [0.58, 0.22, 0.07]], colour("c79a55"))


@dataclass(frozen=True)
class Species:
    """An animal of the zoo.

    Attributes:
        draw: draws it.
        box: left, right and top of what it covers in its frame, about.
        scale: its size against the other animals.
        close_up: (x, y, side) of the square of its frame, of which its body fills two thirds, that a close-up shows.
    """

    name: str
    draw: Callable[[Brush, Random], None]
    box: tuple[float, float, float]
    scale: float
    close_up: tuple[float, float, float]


SPECIES = (
    Species("elephant", elephant, (-0.8, 1.15, 1.15), 1.0, (0.3, 0.6, 1.15)),
    Species("giraffe", giraffe, (-0.6, 1.0, 2.15), 0.85, (0.16, 0.98, 0.74)),
    Species("zebra", zebra, (-0.7, 1.05, 1.35), 0.9, (0.52, 0.86, 0.62)),
    Species("lion", lion, (-0.9, 0.95, 1.25), 0.85, (0.36, 0.72, 1.0)),
    Species("penguin", penguin, (-0.45, 0.5, 1.25), 0.85, (-0.08, 0.68, 0.9)),
    Species("crocodile", crocodile, (-1.35, 1.45, 0.6), 0.72, (0.6, 0.36, 0.72)),
    Species("flamingo", flamingo, (-0.5, 0.55, 1.5), 0.8, (0.0, 0.72, 0.52)),
    Species("tortoise", tortoise, (-0.7, 1.0, 0.78), 0.75, (0.16, 0.44, 0.92)),
)
