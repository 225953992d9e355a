"""What Pocket Zoo hands to the writer of a layout."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detcore.records import write_atomically

STUFF_ID = 100  # COCO's category id of the first stuff class, less one


@dataclass(frozen=True)
class Drawn:
    """An image that was drawn, and what is known of it.

    Attributes:
        split: "train" or "val".
        image_id: unique in all splits.
        image: uint8 [h, w, 3], BGR; jpeg: the same as the content of a file.
        ids: uint8 [h, w], the number of the segment of each pixel, 0 for none.
        numbers: of the objects' segments.
        objects: for each, COCO's category_id (from 1 on), iscrowd, area, bbox and segmentation.
        segments: objects and stuff, as in COCO's panoptic annotations.
    """

    split: str
    image_id: int
    image: np.ndarray
    jpeg: bytes
    ids: np.ndarray
    numbers: list[int]
    objects: list[dict[str, Any]]
    segments: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """A file's name without its ending."""
        return f"{self.image_id:012}"


@dataclass(frozen=True)
class Set:
    """What a writer needs to know of the whole data set.

    Attributes:
        classes, stuff: names.
        info: what the files say of themselves.
    """

    classes: Sequence[str]
    stuff: Sequence[str]
    info: dict[str, Any]


@dataclass(frozen=True)
class Writer:
    """How a layout is written.

    Attributes:
        clear: what stands in the root, to be removed before another data set is drawn.
        image: writes an image and what belongs to it alone into the root; what it gives (as JSON) is kept to the end.
        finish: writes what belongs to a split as a whole, from what `image` gave, in the order of the images.
    """

    clear: tuple[str, ...]
    image: Callable[[Path, Drawn], Any]
    finish: Callable[[Path, str, list[Any], Set], None]


def png(image: np.ndarray) -> bytes:
    """The content of a PNG file."""
    return cv2.imencode(".png", image)[1].tobytes()


def write(path: Path, content: bytes | str) -> None:
    """Write a file, and the folders above it, so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Thousands of files that can be drawn again need not be forced to the disk one by one.
    write_atomically(path, content.encode() if isinstance(content, str) else content, sync=False)
