"""Masks as annotation files of COCO's form have them: rings of corners, or run lengths as numbers or text.

pycocotools would decode runs that do not fill the image without a word, from memory that nobody has written, and draw
rings of any size; what is given to it, or drawn, has passed here.
"""
from __future__ import annotations

from typing import Annotated, Any

import cv2
import msgspec
import numpy as np
from scipy.spatial import cKDTree

from detcore.structures import rasterise

Rings = list[np.ndarray]  # float [k, 2] each, x and y in pixels
FAR = 100_000  # pixels: a corner further away is an error, and would cost memory
DIGITS = 7  # characters of a run in packed run lengths, at most: more stand for more pixels than there can be


class _RunLengths(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: list[int] | str


_Number = Annotated[float, msgspec.Meta(ge=-FAR, le=FAR)]
_quick = msgspec.json.Decoder(list[list[_Number]] | _RunLengths).decode
_loose = msgspec.json.Decoder(object, strict=False).decode


def read_shape(text: bytes, size: tuple[int, int]) -> Rings | np.ndarray | None:
    """What a segmentation says of an image of `size` (h, w): rings, or int64 run lengths down its columns; None where
    it says nothing (missing, null, no ring of three corners, no pixel).

    One ring that is not in a list, corners in pairs, numbers as text and run lengths in a list are understood too.

    Raises:
        ValueError: it is broken; the text says in which way.
    """
    shape = _checked(text, size)
    if shape is None or isinstance(shape, np.ndarray):
        return shape
    return [np.array(ring, float).reshape(-1, 2) for ring in shape]


def has_shape(text: bytes, size: tuple[int, int]) -> bool:
    """Whether `read_shape` gives one; ValueError as there."""
    return _checked(text, size) is not None


def _checked(text: bytes, size: tuple[int, int]) -> list[list[float]] | np.ndarray | None:
    if not text or text in (b"null", b"[]"):
        return None
    try:
        try:
            shape: Any = _quick(text)
        except msgspec.ValidationError:
            shape = _other(_loose(text))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error).rstrip(".")) from error
    if isinstance(shape, _RunLengths):
        return _runs(shape, size)
    if len(shape) >= 3 and all(len(corner) == 2 for corner in shape):  # one ring, its corners in pairs
        shape = [[number for corner in shape for number in corner]]
    return [ring for ring in shape if len(ring) >= 6 and len(ring) % 2 == 0] or None


def _other(value: Any) -> Any:
    """What is not written as COCO writes it, as rings or run lengths; ValueError where it is neither."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, str):
        value = _loose(value) if value.strip()[:1] in ("[", "{") else _fail("is text")
    if isinstance(value, dict):
        try:
            return msgspec.convert(value, _RunLengths, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error
    if value is None:
        return []
    if not isinstance(value, list):
        _fail("is a number")
    rings = [value] if value and not any(isinstance(v, list) for v in value) else value
    return [_flat(ring) for ring in rings if ring is not None]


def _flat(ring: Any) -> list[float]:
    """The numbers of a ring, whose corners may be pairs."""
    if not isinstance(ring, list):
        _fail("has something that is no ring")
    if ring and all(isinstance(corner, list) for corner in ring):
        ring = [number for corner in ring for number in corner]
    try:
        numbers = [float(number) for number in ring]
    except (TypeError, ValueError, OverflowError):
        return _fail("has a corner that is no number")
    if not all(-FAR <= number <= FAR for number in numbers):  # nor does NaN
        _fail(f"has a corner that is no number, or further than {FAR} pixels away")
    return numbers


def _fail(what: str) -> Any:
    raise ValueError(f"it {what}")


def _runs(shape: _RunLengths, size: tuple[int, int]) -> np.ndarray | None:
    if shape.size != size:
        raise ValueError(f"its run lengths are for {shape.size[1]} x {shape.size[0]} pixels, the image has {size[1]} x "
                         f"{size[0]}")
    counts: list[int] | np.ndarray = unpack(shape.counts) if isinstance(shape.counts, str) else shape.counts
    if len(counts) == 0:
        return None
    # As numbers of Python's, which do not wrap.
    if int(min(counts)) < 0 or int(max(counts)) > size[0] * size[1] or int(sum(counts)) != size[0] * size[1]:
        raise ValueError("its run lengths do not add up to the image")
    runs = np.array(counts, np.int64)
    return runs if runs[1::2].any() else None


def unpack(text: str) -> np.ndarray:
    """COCO's run lengths from text, int64: five bits a character, lowest first, from the fourth number on as difference
    to two before; ValueError where a number does not end."""
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise ValueError("its run lengths are not COCO's text") from None
    if len(codes) == 0:
        return codes
    last = np.flatnonzero(codes & 32 == 0)
    first = np.append(0, last + 1)
    if len(last) == 0 or first[-1] != len(codes) or (last - first[:-1]).max() >= DIGITS or codes.min() < 0 \
            or codes.max() > 63:
        raise ValueError("its run lengths are not COCO's text")
    place = np.arange(len(codes)) - np.repeat(first[:-1], last - first[:-1] + 1)
    values = np.add.reduceat((codes & 31) << 5 * place, first[:-1])
    values -= (codes[last] & 16) << 5 * place[last] + 1  # the highest bit is the sign
    for start in (1, 2):
        values[start::2] = values[start::2].cumsum()
    return values


def bitmap(shape: Rings | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w] of what `read_shape` gives."""
    if isinstance(shape, list):
        return rasterise(shape, *size)
    return np.repeat(np.arange(len(shape)) % 2, shape).astype(np.uint8).reshape(size, order="F")


def trace(mask: np.ndarray) -> Rings:
    """The rings ([k, 2] each, along the pixels' outer borders) of a bitmap; a hole is part of the ring around it, which
    goes there and back along a line."""
    # Twice as large, the chain of border pixels keeps the corners of single pixels.
    double = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    chains, relations = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes: dict[int, list[np.ndarray]] = {i: [] for i in range(len(chains)) if relations[0, i, 3] < 0}
    for i, chain in enumerate(chains):
        if (parent := int(relations[0, i, 3])) >= 0:
            holes[parent].append(chain[:, 0])
    return [(_with_holes(chains[i][:, 0], inner) + 0.5) / 2 for i, inner in holes.items() if len(chains[i]) >= 3]


def _with_holes(ring: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """A ring [k, 2] that goes to each hole and back from its corner that is nearest to the hole's first."""
    if not holes:
        return ring
    corner = cKDTree(ring).query([hole[0] for hole in holes])[1]
    pieces, begin = [], 0
    for i in np.argsort(corner, kind="stable"):
        at = corner[i]
        pieces += [ring[begin:at + 1], holes[i], holes[i][:1], ring[at:at + 1]]
        begin = at + 1
    return np.concatenate([*pieces, ring[begin:]])
