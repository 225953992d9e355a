"""What every data set is: pictures, and their objects as columns of arrays.

The readers of the layouts (`detcore.data.coco`, `voc`, `openimages`, ...) fill the columns; what happens to an image on
its way to the network stands here once.
"""
from __future__ import annotations

import hashlib
import warnings
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from detcore.data import classes
from detcore.data.files import check_names
from detcore.data.images import read_image
from detcore.data.panoptic import PanopticMaps
from detcore.data.proposals import ProposalFile
from detcore.data.transforms import Masks, Meta, Sample, Transform, apply
from detcore.errors import DataError, UsageError
from detcore.structures import Polygons


@dataclass(frozen=True)
class ReadOptions:
    """What a reader gives.

    Attributes:
        transforms: what every image goes through in `Dataset.load`.
        masks: form of the masks that samples get; None: boxes alone.
        classes: only objects of these names, which get the labels 0, 1, ...; None: all.
        filter_empty: leave out images without any annotation of the classes.
        min_size: leave out images whose shorter side is smaller.
        min_box: objects narrower or lower count as ignored.
        proposals: file of precomputed proposals, of which the best `max_proposals` are kept.
        panoptic: panoptic annotations too.
        holdout: share of the images that are held out, as `held_out` says; `held`: read these instead of the others.
        rename: new names of classes by their old ones, where the files name them.
        skip_unlisted: leave out annotations of categories and images that the file does not list.
        exif: turn pictures as their EXIF orientation says; False: as they are stored, for boxes made on those.
    """

    transforms: Sequence[Transform] = ()
    masks: Literal["bitmap", "polygon"] | None = None
    classes: Sequence[str] | None = None
    filter_empty: bool = False
    min_size: int = 0
    min_box: int = 0
    proposals: str | Path | None = None
    max_proposals: int | None = None
    panoptic: bool = False
    holdout: float | None = None
    held: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)
    skip_unlisted: bool = False
    exif: bool = True

    def boxes_alone(self, title: str) -> ReadOptions:
        """The same; UsageError where more than boxes is asked for."""
        for what, asked in ("masks", self.masks), ("panoptic maps", self.panoptic), ("proposals", self.proposals):
            if asked:
                raise UsageError(f"{title} is read with boxes alone, but this model needs {what}: train it on a data "
                                 f"set in COCO's layout.")
        return self


DEFAULT_OPTIONS = ReadOptions()
THIN = 1e-3  # pixels: less of a box in its image is nothing once the image is resized, in 32 bits


def held_out(files: Sequence[str], share: float) -> np.ndarray:
    """bool [n], whether an image is held out: by a hash of its file's name, whatever other images there are.

    At least one is, and one is not.
    """
    names = [file.replace("\\", "/").encode(errors="replace") for file in files]
    keys = np.array([int.from_bytes(hashlib.sha256(name).digest()[:6], "big") for name in names]) / 2**48
    held = keys < share
    if len(keys) > 1:
        held[keys.argmin()], held[keys.argmax()] = True, False
    return held


class Columns(TypedDict):
    """The objects of all images of a data set, as its evaluation takes them.

    `image` int64 [n] ids, `boxes` float32 [n, 4] in pixels, `labels` int64 [n], `flags` bool [n].
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    flags: np.ndarray


class Rows:
    """What annotation files say; `Dataset.take` makes a data set's columns of it.

    Attributes:
        files: of the pictures.
        image: of each object, the place in `files`; boxes: its x1, y1, x2, y2, one object's after the other's.
        labels, flags: of each object.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.image, self.boxes, self.labels, self.flags = array("i"), array("f"), array("i"), array("b")

    def add(self, box: Sequence[float], label: int, flag: bool = False, image: int | None = None) -> None:
        """An object, of the picture whose file comes next if `image` does not say another."""
        self.image.append(len(self.files) if image is None else image)
        self.boxes.extend(box)
        self.labels.append(label)
        self.flags.append(flag)


class Dataset:
    """Images with their objects.

    Boxes without a positive, finite size, smaller than a pixel or outside their image are dropped and counted in one
    warning. Objects that are neither to be found nor to be taken for background become `ignored` boxes.

    Attributes:
        annotation_file: the file that messages and records name.
        class_names, category_ids: a name for each label, and the number that results give it.
        image_ids: int64 [n], or objects [n] where the files have ids that are text or beyond 64 bits.
        sizes: int32 [n, 2], (h, w) as the annotations have them.
        files: pictures, under `image_folder`.
        size_file: the file that keeps the sizes, where they are not in the annotations.
        labels: int64, of all objects, in the order of the rows that `rows` names.
        panoptic: the panoptic annotations, None where they are not asked for.

    Raises:
        DataError: what is missing, broken or contradictory, with the file and the record.
        UsageError: a class that there is not, or masks of a data set that has boxes alone.
    """

    annotation_file: Path
    class_names: tuple[str, ...]
    category_ids: list[int]
    image_ids: np.ndarray
    sizes: np.ndarray
    files: list[str]
    labels: np.ndarray
    size_file: Path | None = None
    panoptic: PanopticMaps | None = None
    proposals: ProposalFile | None = None
    _runs: np.ndarray  # [n, 2], each image's first row in the columns of objects, and the row after its last

    def __init__(self, root: str | Path, image_folder: str, options: ReadOptions, layout: str) -> None:
        """`image_folder` with the pictures is under `root`; `layout` is a name of `detcore.data.layouts`."""
        self.root, self.image_folder, self.options, self.layout = Path(root), Path(root) / image_folder, options, layout
        self.transforms, self.masks = tuple(options.transforms), options.masks
        if not self.root.is_dir():
            raise DataError(f"There is no data set at {root}: no such folder.")
        if not self.image_folder.is_dir():
            raise DataError(f"There is no image folder {self.image_folder}.")

    def take(self, rows: Rows, sizes: np.ndarray | Sequence[tuple[int, int]], *, shares: bool = False,
             ignore: bool = True) -> np.ndarray:
        """Take over what annotation files say, once `class_names` are known; `sizes` are the pictures' (h, w).

        Args:
            shares: boxes are shares of the picture's width and height.
            ignore: flagged objects are ignored.

        Returns:
            As of `arrange`.
        """
        self.files, self.image_ids = rows.files, np.arange(1, len(rows.files) + 1)
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self.category_ids = list(range(1, len(self.class_names) + 1))
        image, flags = np.array(rows.image, np.int64), np.array(rows.flags, bool)
        boxes = np.array(rows.boxes, np.float64).reshape(-1, 4)
        if shares:
            boxes *= np.tile(self.sizes[image][:, ::-1], 2)
        return self.arrange(image, boxes, np.array(rows.labels, np.int64), ignored=flags & ignore, flags=flags,
                            title=lambda row: f"one in {rows.files[image[row]]}")

    def arrange(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, *, ignored: np.ndarray,
                flags: np.ndarray, title: Callable[[int], str], good: np.ndarray | bool = True,
                skip: np.ndarray | bool = False) -> np.ndarray:
        """Take the columns of objects over: the good ones, in the order of their images; leave images out as the
        options say.

        Args:
            image: int64 [n], the place of each one's image; labels: int64 [n], below 0 for classes not asked for.
            boxes: float [n, 4] (x1, y1, x2, y2) in pixels.
            ignored: bool [n], neither object nor background; flags: bool [n], what the evaluation treats differently.
            title: what a message calls row i.
            good: bool [n], what the reader has nothing against; skip: bool [n], what is left out without a word.

        Returns:
            int64 [m], the rows that were taken, in their new order.
        """
        check_names(self.files, self.image_ids.tolist(), self.annotation_file)
        with np.errstate(invalid="ignore"):  # inf - inf
            size = boxes[:, 2:] - boxes[:, :2]
            seen = np.minimum(boxes[:, 2:], self.sizes[image][:, ::-1]) - boxes[:, :2].clip(0)
        sound = (np.abs(boxes) < 1e9).all(1) & (size >= 1).all(1) & (seen > THIN).all(1) & good
        if not sound.all():
            n = len(boxes)
            warnings.warn(f"{self.annotation_file}: dropped {n - sound.sum()} of {n} boxes whose size is zero, "
                          f"negative, not finite or less than a pixel, or that lie outside their image (the first: "
                          f"{title(int(np.argmin(sound)))}).", stacklevel=4)
        rows = np.flatnonzero(sound & (labels >= 0) & np.logical_not(skip))
        rows = rows[np.argsort(image[rows], kind="stable")]
        ends = np.searchsorted(image[rows], np.arange(len(self.sizes) + 1))
        self._runs = np.stack([ends[:-1], ends[1:]], 1)
        self._boxes, self.labels, self._flags = boxes[rows].astype(np.float32), labels[rows], flags[rows]
        self._ignored = ignored[rows] | (self._boxes[:, 2:] - self._boxes[:, :2] < self.options.min_box).any(1)
        keep = self.sizes.min(1, initial=2**31 - 1) >= self.options.min_size
        if self.options.filter_empty:
            keep &= np.bincount(image[labels >= 0], minlength=len(self.sizes)) > 0
        if self.options.holdout is not None:
            keep &= held_out(self.files, self.options.holdout) == self.options.held
        self.select(keep)
        return rows

    def select(self, keep: np.ndarray) -> None:
        """Leave images out: those for which the boolean array [n] is false."""
        self.image_ids, self.sizes, self._runs = self.image_ids[keep], self.sizes[keep], self._runs[keep]
        self.files = [f for f, k in zip(self.files, keep) if k]

    def relabel(self, names: Sequence[str], title: str) -> None:
        """Take on the classes that something else has, in its order: those of one name are the same.

        Classes that the data set lacks have no objects in it.

        Args:
            title: what has the classes, for messages.

        Raises:
            UsageError: the data set has objects of a class that is not among the names, or knows none of the names.
        """
        if tuple(names) == self.class_names:
            return
        table = classes.match(self.class_names, names, set(np.unique(self.labels[self.rows()[1]]).tolist()),
                              file=self.annotation_file, title=title)
        ids = dict(zip(table.tolist(), self.category_ids))
        spare = iter(set(range(1, len(names) + len(ids) + 1)) - set(self.category_ids))
        self.category_ids = [ids[label] if label in ids else next(spare) for label in range(len(names))]
        self.class_names, self.labels = tuple(names), table[self.labels]

    def trainable(self) -> int:
        """How many objects of the images are not ignored."""
        return int((~self._ignored[self.rows()[1]]).sum())

    def countable(self) -> int:
        """How many objects of the images an evaluation counts: those that are not flagged either."""
        row = self.rows()[1]
        return int((~(self._ignored[row] | self._flags[row])).sum())

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """The picture's file."""
        return self.image_folder / self.files[index]

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n], [n]: the place of the image of each object, and the object's row in the columns."""
        count = self._runs[:, 1] - self._runs[:, 0]
        image = np.repeat(np.arange(len(self)), count)
        return image, np.arange(len(image)) - np.repeat(count.cumsum() - count, count) + self._runs[image, 0]

    def objects(self) -> Columns:
        """All objects of the images, as evaluations take them."""
        image, row = self.rows()
        return Columns(image=self.image_ids[image], boxes=self._boxes[row], labels=self.labels[row],
                       flags=self._flags[row])

    def sample(self, index: int) -> Sample:
        """Image `index` of `len(self)` with all that is known about it, as it is in the files."""
        image, (start, stop) = self._picture(index), self._runs[index]
        size, image_id = (image.shape[0], image.shape[1]), self.image_ids[index:index + 1].tolist()[0]
        ignored, boxes = self._ignored[start:stop].copy(), self._boxes[start:stop]
        masks: Masks | None = None
        if self.masks is not None:
            decoded = [None if skip else self._mask(row, size) for row, skip in zip(range(start, stop), ignored)]
            ignored |= np.array([m is None for m in decoded], bool)
            kept: list[Any] = [m for m in decoded if m is not None]
            masks = Polygons(kept, size) if self.masks == "polygon" else np.array(kept, np.uint8).reshape(-1, *size)
        proposals = semantic = None
        if self.proposals is not None:
            proposals = self.proposals[image_id][:self.options.max_proposals, :4]
        if self.panoptic is not None and self.masks is not None:  # training needs it, evaluation has maps of its own
            semantic = self.panoptic.read(image_id, size).classes()
        return Sample(image, boxes[~ignored], self.labels[start:stop][~ignored], masks, boxes[ignored], proposals,
                      semantic, Meta(str(self.path(index)), image_id, size))

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Image `index` after the transforms; where they refuse it, another image that `rng` draws."""
        for _ in range(100):
            sample = apply(self.transforms, self.sample(index), rng)
            if sample is not None:
                return sample
            index = int(rng.integers(len(self)))
        raise DataError(f"A hundred images of {self.annotation_file} in a row keep no object through the transforms.")

    def _mask(self, row: int, size: tuple[int, int]) -> np.ndarray | list[np.ndarray] | None:
        """One object's bitmap [h, w] or rings, as `masks` says; None where it has no area."""
        raise NotImplementedError

    def _picture(self, index: int) -> np.ndarray:
        """The decoded picture, upright unless width and height of the annotations are those before turning it."""
        expected, path = tuple(self.sizes[index]), self.path(index)
        image = read_image(path, upright=self.options.exif)
        if image.shape[:2] != expected and self.options.exif and image.shape[1::-1] == expected:
            image = read_image(path, upright=False)
        if image.shape[:2] != expected:
            advice = f"; remove {self.size_file} if pictures have changed" if self.size_file else ""
            raise DataError(f"{path} has {image.shape[1]} x {image.shape[0]} pixels, but {self.annotation_file} says "
                            f"{expected[1]} x {expected[0]} (image {self.image_ids[index]}){advice}.")
        return image
