"""COCO's panoptic annotations: a picture for each image whose colours number its segments, and a JSON file that names
the class of each."""
from __future__ import annotations

from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detcore.data.files import open_file
from detcore.data.images import read_map
from detcore.data.text import inside, problem
from detcore.errors import DataError
from detcore.structures import IGNORED


class _Segment(msgspec.Struct, gc=False):
    id: int
    category_id: int
    iscrowd: float | bool | None = 0


class _Annotation(msgspec.Struct, gc=False):
    image_id: int | str
    file_name: str
    segments_info: list[_Segment]


class _Category(msgspec.Struct):
    id: int
    name: str
    isthing: float | bool = 1


class _File(msgspec.Struct):
    categories: list[_Category]
    annotations: list[_Annotation]


@dataclass(frozen=True)
class PanopticSegments:
    """What is known of one image.

    Attributes:
        place: int64 [h, w], 0 where there is no segment, otherwise 1 + its index.
        labels: int64 [s], things from 0 on, then stuff.
        crowd: bool [s].
    """

    place: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray

    def classes(self) -> np.ndarray:
        """uint8 [h, w] class of each pixel, `IGNORED` where there is none."""
        return np.append(IGNORED, self.labels).astype(np.uint8)[self.place]


class PanopticMaps:
    """The panoptic annotations of a data set; DataError where the file is missing, broken, or lacks a class.

    Attributes:
        things, stuff: names of the classes, in the order of their labels.
    """

    def __init__(self, root: str | Path, split: str, thing_ids: Sequence[int]) -> None:
        """
        Args:
            root: of the data set; the maps are `annotations/panoptic_SPLIT.json` and the folder of that name.
            thing_ids: category ids of the things, in the order of their labels.
        """
        self.file = Path(root) / f"annotations/panoptic_{split}.json"
        self.folder = self.file.with_suffix("")
        try:
            with open_file(self.file, "file of panoptic annotations") as file:
                content = msgspec.json.decode(file.read().removeprefix(BOM_UTF8), type=_File, strict=False)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            what = problem(error).rstrip(".")
            raise DataError(f"The panoptic annotations {self.file} cannot be read: {what}.") from error
        names = {c.id: c.name for c in content.categories}
        stuff_ids = [c.id for c in content.categories if not c.isthing]
        missing = [i for i in thing_ids if i not in names]
        if missing:
            raise DataError(f"{self.file} has no category {missing[0]}, which the instances have.")
        self._once("category", (c.id for c in content.categories))
        self._once("category name", (names[i] for i in (*thing_ids, *stuff_ids)))
        self._once("annotation of image", (a.image_id for a in content.annotations))
        if both := set(stuff_ids) & set(thing_ids):
            raise DataError(f"Category {min(both)} of {self.file} is stuff there, but the instances have it.")
        if len(thing_ids) + len(stuff_ids) > IGNORED:
            raise DataError(f"{self.file} has {len(thing_ids) + len(stuff_ids)} classes; panoptic maps are read with "
                            f"{IGNORED} of them at most: merge rare ones.")
        self.things = tuple(names[i] for i in thing_ids)
        self.stuff = tuple(names[i] for i in stuff_ids)
        self._labels = {category: label for label, category in enumerate([*thing_ids, *stuff_ids])}
        self._of_image = {a.image_id: a for a in content.annotations}

    def _once(self, what: str, keys: Iterable[Hashable]) -> None:
        """DataError where a key is there twice."""
        if again := [key for key, count in Counter(keys).items() if count > 1]:
            raise DataError(f"{self.file} has the {what} {str(again[0])[:100]} more than once.")

    def read(self, image_id: Any, size: tuple[int, int]) -> PanopticSegments:
        """What is known of an image of `size` (h, w).

        Raises:
            DataError: the image has no annotation or map, or they contradict each other or the size.
        """
        if image_id not in self._of_image:
            raise DataError(f"{self.file} has no annotation of image {image_id}.")
        annotation = self._of_image[image_id]
        path = self.folder / inside(annotation.file_name, f"Image {image_id} of {self.file}")
        picture = read_map(path, f"panoptic map of image {image_id}", size, colour=True)
        numbers = picture.astype(np.int64) @ [65536, 256, 1]  # OpenCV gives blue first, which counts most
        segments = sorted(annotation.segments_info, key=lambda segment: segment.id)
        unknown = next((s.category_id for s in segments if s.category_id not in self._labels), None)
        if unknown is not None:
            raise DataError(f"A segment of image {image_id} in {self.file} has category {unknown}, which the file does "
                            f"not have.")
        ids = [0, *(s.id for s in segments)]
        bad_id = next((b for a, b in zip(ids, ids[1:]) if a >= b or b >= 2**24), None)
        if bad_id is not None:
            raise DataError(f"Image {image_id} in {self.file} has the segment {bad_id} twice, or its id "
                            f"is not between 1 and {2**24 - 1:,}.")
        known = np.array(ids)
        place = np.searchsorted(known, numbers).clip(max=len(known) - 1)
        if (known[place] != numbers).any():
            bad = numbers[known[place] != numbers][0]
            raise DataError(f"The panoptic map {path} has a segment {bad}, of which {self.file} knows nothing.")
        return PanopticSegments(place, np.array([self._labels[s.category_id] for s in segments], np.int64),
                                np.array([s.iscrowd for s in segments], bool))
