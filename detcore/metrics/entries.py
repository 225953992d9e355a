"""What COCO's libraries are given: ids that they can hold, boxes that are numbers, masks that they can decode.

They take any ground truth and results as they come, keep ids as doubles, and decode run lengths and polygons into
memory of any size without a check. So everything is checked and numbered anew here before they see it.
"""
from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detcore.data.files import open_file
from detcore.errors import DataError

FAR = 1e9  # pixels from the corner of the image: no box begins or ends there
FAR_CORNER, LONGEST_RING = 1e7, 2e6  # pixels: pycocotools holds every pixel on a ring's way
LARGEST = 2**31  # pixels of an image with masks, as run lengths are kept
DIGITS = 7  # characters of a run's length in text: more hold no number of 32 bits
BLOCK = 2**18  # characters of run lengths that are read at a time

Entry = dict[str, Any]


class Numbers:
    """Whole numbers from 1 on for ids of any kind, in the order of the ids; text comes after numbers."""

    def __init__(self, ids: Iterable[Any]) -> None:
        distinct = {plain(i) for i in ids}
        self.ids = sorted(distinct, key=lambda i: (isinstance(i, str), i))
        self._numbers = {i: n for n, i in enumerate(self.ids, 1)}

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, value: Any) -> int | None:
        """The number of an id, None where there is none; an id may be text here and a number there."""
        try:
            if (found := self._numbers.get(value)) is not None:
                return found
            return self._numbers.get(int(value) if isinstance(value, str) else str(plain(value)))
        except (TypeError, ValueError, OverflowError):
            return None


def plain(value: Any) -> int | str:
    """An id as int or text; ValueError where it is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float, np.integer, np.floating)) and value == (number := int(value)):
        return number
    raise ValueError("neither a whole number nor text")


@dataclass
class GroundTruth:
    """The sound content of an annotation file.

    Attributes:
        title: the file, or what stands for it in messages.
        images, categories, annotations: as in the file, with new ids; annotations have image_id, category_id, bbox,
            area, iscrowd, and where masks are compared a sound segmentation.
        image_numbers, category_numbers: the new ids.
    """

    title: str
    images: list[Entry]
    categories: list[Entry]
    image_numbers: Numbers
    category_numbers: Numbers
    annotations: list[Entry] = field(default_factory=list)

    def image_of(self, value: Any) -> int:
        """The new id of an image; DataError where there is none."""
        if (number := self.image_numbers.get(value)) is None:
            raise DataError(f"{self.title} has no image {told(value)}.")
        return number

    def size(self, number: int) -> tuple[int, int]:
        """(h, w) of an image by its new id; DataError where the file does not tell it."""
        image = self.images[number - 1]
        try:
            h, w = int(image["height"]), int(image["width"])
        except (KeyError, TypeError, ValueError, OverflowError):
            h = w = 0
        if h < 1 or w < 1 or h * w >= LARGEST:
            raise DataError(f"{self.title} tells no width and height of image "
                            f"{told(self.image_numbers.ids[number - 1])} for which masks can be compared.")
        image.update(height=h, width=w)
        return h, w


def read_ground_truth(gt: str | Path | Mapping[str, Any], *, masks: bool = False,
                      more_categories: Mapping[Any, str] | None = None) -> GroundTruth:
    """An annotation file, or what it would hold.

    Annotations that say no place are dropped; objects without a usable mask become crowds as large as their box if
    `masks` are compared, so that they count neither way. One warning tells how many of both there are.

    Args:
        more_categories: names of classes by their ids, which the file need not have.

    Raises:
        DataError: it cannot be read, or is no annotation file.
    """
    title = "The ground truth" if isinstance(gt, Mapping) else str(gt)
    content = gt if isinstance(gt, Mapping) else _read(Path(gt))
    if not isinstance(content, Mapping):
        raise DataError(f"{title} is no annotation file in COCO's format: it has no lists 'images' and 'categories'.")
    images, categories = (_list(content, key, title) for key in ("images", "categories"))
    annotations = content.get("annotations") or []
    if not isinstance(annotations, (list, tuple)):
        raise DataError(f"The 'annotations' of {title} are no list.")
    named: dict[Any, Entry] = {plain(c["id"]): dict(c) for c in categories}
    for i, name in (more_categories or {}).items():
        named[plain(i)] = {**named.get(plain(i), {}), "name": name}
    numbers = Numbers(plain(i["id"]) for i in images)
    category_numbers = Numbers(named)
    by_id = {plain(i["id"]): i for i in images}
    truth = GroundTruth(title, [{**by_id[i], "id": n} for n, i in enumerate(numbers.ids, 1)],
                        [{"name": str(i), **named[i], "id": n} for n, i in enumerate(category_numbers.ids, 1)],
                        numbers, category_numbers)
    _annotate(truth, annotations, masks)
    return truth


def _read(path: Path) -> Any:
    with open_file(path, "annotation file") as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise DataError(f"The annotation file {path} cannot be read: {str(error).rstrip('.')}.") from error


def _list(content: Mapping[str, Any], key: str, title: str) -> list[Mapping[str, Any]]:
    """The entries of a list of the file, all of which have an id."""
    entries = content.get(key)
    if not isinstance(entries, (list, tuple)):
        raise DataError(f"{title} is no annotation file in COCO's format: it has no list {key!r}.")
    for place, entry in enumerate(entries, 1):
        try:
            plain(entry["id"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(f"Number {place} of the {key} of {title} has no id, a whole number or text.") from None
    return list(entries)


def _annotate(truth: GroundTruth, annotations: Sequence[Any], masks: bool) -> None:
    """Add the annotations that say where something is, numbered from 1: both libraries take 0 for "not matched"."""
    dropped: list[str] = []
    shapes: list[Any] = []
    for place, a in enumerate(annotations, 1):
        if not isinstance(a, Mapping):
            dropped.append(f"number {place} of the list")
            continue
        image, category = truth.image_numbers.get(a.get("image_id")), truth.category_numbers.get(a.get("category_id"))
        box = numbers_of(a.get("bbox"), 4)
        if image is None or category is None or box is None or min(box[2:]) <= 0 or max(map(abs, box)) >= FAR:
            dropped.append(f"annotation {told(a.get('id', place))}")
            continue
        area = numbers_of([a.get("area")], 1)
        truth.annotations.append(dict(
            id=len(truth.annotations) + 1, image_id=image, category_id=category, bbox=box,
            area=area[0] if area is not None and area[0] >= 0 else box[2] * box[3], iscrowd=_flag(a.get("iscrowd"))))
        if masks:
            shapes.append((a.get("id", place), a.get("segmentation")))
    problems = []
    if dropped:
        problems.append(f"{len(dropped)} of {len(annotations)} annotations are left out, whose box is not four finite "
                        f"numbers with a positive size, or whose image or category is not listed (the first: "
                        f"{dropped[0]})")
    if masks:
        without = _give_masks(truth, shapes)
        if without:
            problems.append(f"{len(without)} of {len(truth.annotations)} objects have no usable mask and count neither "
                            f"for nor against detections in their boxes (the first: annotation {told(without[0])})")
    if problems:
        warnings.warn(f"{truth.title}: in the evaluation {'; '.join(problems)}.", stacklevel=5)


def _give_masks(truth: GroundTruth, shapes: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Give the annotations their masks; the ids of those that have none."""
    sizes = [truth.size(a["image_id"]) for a in truth.annotations]
    usable = [sound_polygons(shape) if isinstance(shape, (list, tuple)) else None for _, shape in shapes]
    coded = [i for i, (_, shape) in enumerate(shapes) if isinstance(shape, Mapping)]
    for i, (total, inside) in zip(coded, run_totals([shapes[i][1].get("counts") for i in coded])):
        if total == sizes[i][0] * sizes[i][1] and inside and numbers_of(shapes[i][1].get("size"), 2) == list(sizes[i]):
            usable[i] = {"size": list(sizes[i]), "counts": _counts(shapes[i][1]["counts"])}  # type: ignore[call-overload]
    without = []
    for annotation, (h, w), shape, (number, _) in zip(truth.annotations, sizes, usable, shapes):
        if shape is None:
            x1, y1, bw, bh = annotation["bbox"]
            x2, y2 = (min(max(v, 0), side) for v, side in ((x1 + bw, w), (y1 + bh, h)))
            x1, y1 = (min(max(v, 0), side) for v, side in ((x1, w), (y1, h)))
            shape = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            annotation["iscrowd"] = 1
            without.append(number)
        annotation["segmentation"] = shape
    return without


def _counts(counts: Any) -> Any:
    """Run lengths as both libraries take them: text, or whole numbers."""
    return counts if isinstance(counts, (str, bytes)) else [int(c) for c in counts]


def sound_polygons(rings: Sequence[Any]) -> list[list[float]] | None:
    """The rings (x, y, x, y, ...) with three corners at least, which may be a single one outside of a list; None where
    there is none."""
    if rings and not any(isinstance(ring, (list, tuple)) for ring in rings):
        rings = [rings]
    kept = []
    for ring in rings:
        try:
            corners = np.array(ring, float)
        except (TypeError, ValueError, OverflowError):
            continue
        if corners.ndim == 2 and corners.shape[1] == 2:
            corners = corners.ravel()
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not (np.abs(corners) < FAR_CORNER).all():
            continue
        steps = np.abs(corners.reshape(-1, 2) - np.roll(corners.reshape(-1, 2), 1, 0))
        if steps.max(1).sum() < LONGEST_RING:
            kept.append(corners.tolist())
    return kept or None


def run_totals(runs: Sequence[Any]) -> list[tuple[int, int]]:
    """For each mask's run lengths, text or numbers, the pixels of the image and those of the mask; -1 where broken."""
    found = [(-1, 0)] * len(runs)
    waiting: list[tuple[int, bytes]] = []
    length = 0
    for i, one in enumerate(runs):
        if isinstance(one, (str, bytes)):
            text = one.encode("latin-1", "replace") if isinstance(one, str) else one
            waiting.append((i, text))
            length += len(text)
            if length > BLOCK:
                _read_texts(waiting, found)
                waiting, length = [], 0
        elif isinstance(one, (list, tuple)) and (counts := numbers_of(one)) is not None:
            if counts and all(c >= 0 and c == int(c) for c in counts):
                found[i] = int(sum(counts)), int(sum(counts[1::2]))
    _read_texts(waiting, found)
    return found


def _read_texts(texts: Sequence[tuple[int, bytes]], found: list[tuple[int, int]]) -> None:
    """COCO's run lengths from text, all at once: five bits a character, lowest first, the sixth says that more follow;
    from the fourth number on as difference to two before."""
    texts = [(i, text) for i, text in texts if text and not (ord(text[-1:]) - 48) & 32]  # ends with a number's end
    if not texts:
        return
    sizes = np.array([len(text) for _, text in texts])
    bounds = sizes.cumsum()
    bits = np.frombuffer(b"".join(text for _, text in texts), np.uint8) - np.uint8(48)  # what is below wraps
    broken = np.zeros(len(texts), bool)
    broken[np.searchsorted(bounds, np.flatnonzero(bits > 63), "right")] = True
    ends = np.flatnonzero(bits & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    more = ends - starts  # digits after a number's first
    first = np.searchsorted(starts, bounds - sizes)
    count = np.diff(np.append(first, len(starts)))
    owner = np.repeat(np.arange(len(texts)), count)
    broken[owner[more >= DIGITS]] = True
    value = (bits[starts] & 31).astype(np.int64)
    for digit in range(1, DIGITS):
        chosen = np.flatnonzero(more >= digit)
        value[chosen] |= (bits[starts[chosen] + digit] & 31).astype(np.int64) << 5 * digit
    value -= (bits[ends] & 16).astype(np.int64) << 5 * np.minimum(more, DIGITS) + 1  # the highest bit is the sign
    value[broken[owner]] = 0  # sums stay small
    # Every other number is summed up; the very first stands alone.
    place = np.arange(len(value)) - np.repeat(first, count)
    for chosen, number in ((place % 2 == 1, count // 2), ((place % 2 == 0) & (place > 0), (count - 1) // 2)):
        total = value[chosen].cumsum()
        value[chosen] = total - np.repeat(np.append(0, total)[number.cumsum() - number], number)
    broken[owner[(value < 0) | (value >= LARGEST)]] = True
    value[broken[owner]] = 0
    totals = np.add.reduceat(value, first)
    inside = np.add.reduceat(np.where(place % 2, value, 0), first)
    for (i, _), bad, total, own in zip(texts, broken.tolist(), totals.tolist(), inside.tolist()):
        found[i] = (-1, 0) if bad else (total, own)


def numbers_of(values: Any, count: int | None = None) -> list[float] | None:
    """Finite numbers, which may be written as text; None where they are anything else, or not `count`."""
    if not isinstance(values, (list, tuple, np.ndarray)) or count is not None and len(values) != count:
        return None
    try:
        found = [v if type(v) in (int, float) else float(v) for v in values]
        return found if all(map(math.isfinite, found)) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _flag(value: Any) -> int:
    found = numbers_of([value], 1)
    return int(bool(found[0])) if found is not None else 0


def told(value: Any) -> str:
    """An id as messages show it."""
    text = repr(value)
    return text if len(text) <= 50 else f"{text[:47]}..."


def read_results(results: Sequence[Mapping[str, Any]], truth: GroundTruth, *, masks: bool = False,
                 classes: bool = True) -> list[Entry]:
    """Results in the form of annotations, with the new ids; a mask's area decides whether it is small, else the box's.

    Args:
        masks: masks are compared, and boxes not needed.
        classes: the category matters; where it does not, any will do.

    Raises:
        DataError: a result is of an image that there is not, or lacks something, or has it in a form that is of no use.
    """
    if isinstance(results, (str, bytes, Mapping)) or not isinstance(results, Sequence):
        raise DataError(f"Results are a list with a dict for each detection, not {type(results).__name__}.")
    entries: list[Entry] = []
    strange: list[Any] = []
    for place, result in enumerate(results, 1):
        if not isinstance(result, Mapping):
            raise DataError(f"Result {place} is no dict with image_id, category_id, bbox and score: {told(result)}.")
        if "image_id" not in result:
            raise DataError(f"Result {place} has no image_id.")
        image = truth.image_numbers.get(result["image_id"])
        if image is None:
            raise DataError(f"There are detections of image {told(result['image_id'])}, which {truth.title} does not "
                            f"have.")
        category = truth.category_numbers.get(result.get("category_id"))
        if category is None:
            if classes and "category_id" not in result:
                raise DataError(f"Result {place} has no category_id.")
            if classes:
                strange.append(result["category_id"])
                continue
            category = 1
        score = numbers_of([result.get("score")], 1)
        if score is None:
            raise DataError(f"Result {place} has the score {told(result.get('score'))}, which is no finite number.")
        entry: Entry = dict(id=place, image_id=image, category_id=category, score=score[0], iscrowd=0)
        if not masks:
            box = numbers_of(result.get("bbox"), 4)
            if box is None:
                raise DataError(f"Result {place} has the bbox {told(result.get('bbox'))}, which is not four finite "
                                f"numbers (x, y, width, height).")
            entry.update(bbox=box, area=box[2] * box[3])
        entries.append(entry)
    if masks:
        _give_result_masks(entries, results, truth)
    if strange:
        warnings.warn(f"{len(strange)} of {len(results)} results are left out: their category, such as "
                      f"{told(strange[0])}, is not in {truth.title}.", stacklevel=5)
    return entries


def _give_result_masks(entries: Sequence[Entry], results: Sequence[Mapping[str, Any]], truth: GroundTruth) -> None:
    shapes = [results[entry["id"] - 1].get("segmentation") for entry in entries]
    totals = run_totals([shape.get("counts") if isinstance(shape, Mapping) else None for shape in shapes])
    sizes = {image: truth.size(image) for image in {entry["image_id"] for entry in entries}}
    for entry, shape, (total, inside) in zip(entries, shapes, totals):
        size = sizes[entry["image_id"]]
        if not isinstance(shape, Mapping):
            raise DataError(f"Result {entry['id']} has no segmentation in run lengths (a dict with size and counts).")
        if numbers_of(shape.get("size"), 2) != list(size):
            raise DataError(f"The mask of result {entry['id']} has the size {told(shape.get('size'))}, but its image "
                            f"is {list(size)} (height, width) in {truth.title}.")
        if total != size[0] * size[1]:
            raise DataError(f"The run lengths of the mask of result {entry['id']} do not add up to its image of "
                            f"{size[1]} x {size[0]} pixels.")
        entry.update(segmentation={"size": list(size), "counts": _counts(shape["counts"])}, area=float(inside))
