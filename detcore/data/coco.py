"""The COCO layout: one JSON file of images, categories and annotations, and a folder of pictures.

An annotation file is read into a few NumPy columns. What belongs to masks stays as the file's own text until an image
is asked for, so that the 118,000 images of COCO open in seconds and in little memory.
"""
from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import msgspec
import numpy as np

from detcore.data.images import read_image
from detcore.data.panoptic import PanopticMaps
from detcore.data.proposals import Proposals
from detcore.data.transforms import Meta, Sample, Transform, apply
from detcore.errors import DataError, UsageError
from detcore.masks import Polygons, rasterise


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    width: int
    height: int


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    id: int | str | None = None
    area: float = 1.0
    iscrowd: int | bool = 0
    ignore: int | bool = 0
    segmentation: msgspec.Raw = msgspec.Raw()


class _Category(msgspec.Struct):
    id: int
    name: str


class _File(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[msgspec.Raw] = []


# The columns of annotations; `begin` and `end` say where the segmentation stands in the file's text.
_ROW = np.dtype([("id", "i8"), ("image", "i8"), ("category", "i8"), ("box", "f8", 4), ("area", "f8"), ("crowd", "?"),
                 ("ignore", "?"), ("begin", "i8"), ("end", "i8")])
_CHUNK = 10_000  # annotations that are Python objects at a time


def fingerprint(path: str | Path) -> str:
    """Twelve hexadecimal digits that stand for the content of an annotation file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise DataError(f"The annotation file {path} cannot be read: {error.strerror}.") from error


def _read(path: Path) -> tuple[bytes, _File, np.ndarray]:
    """The text of an annotation file, its images and categories, and the columns [n] of its annotations."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no annotation file {path}.") from None
    except OSError as error:
        raise DataError(f"The annotation file {path} cannot be read: {error.strerror}.") from error
    problem: Exception | None = None
    for text in (data, _finite(data)) if b"NaN" in data or b"Infinity" in data else (data,):
        try:
            content = msgspec.json.decode(text, type=_File)
            return text, content, _columns(path, text, content.annotations)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            problem = error
    raise DataError(f"The annotation file {path} cannot be read: {str(problem).rstrip('.')}.") from problem


def _columns(path: Path, text: bytes, annotations: list[msgspec.Raw]) -> np.ndarray:
    rows, position = np.empty(len(annotations), _ROW), 0
    decode = msgspec.json.Decoder(_Annotation).decode
    for start in range(0, len(rows), _CHUNK):
        chunk = []
        for i, raw in enumerate(annotations[start:start + _CHUNK], start):
            try:
                a = decode(raw)
            except msgspec.ValidationError as error:
                raise DataError(f"Annotation number {i + 1} of {path} is broken: {error}.") from error
            # The first text like this one's from here on: its own, or one that says the same.
            part = bytes(a.segmentation)
            position = text.find(part, position)
            number = a.id if isinstance(a.id, int) else i + 1
            chunk.append((number, a.image_id, a.category_id, a.bbox, a.area, a.iscrowd, a.ignore,
                          position, position + len(part)))
        rows[start:start + _CHUNK] = chunk
    return rows


def _finite(text: bytes) -> bytes:
    """JSON in which NaN and Infinity, which Python writes and JSON does not know, are numbers too large for any box."""
    return re.sub(rb"(?<=[\s,:\[])-?(?:NaN|Infinity)(?=[\s,\]}])", b"9e9", text)


class CocoDataset:
    """Images of a COCO annotation file with their objects.

    Boxes without a positive, finite size, smaller than a pixel or outside their image are dropped and counted in one
    warning. Crowds, and objects whose polygons have no corner, become `ignored` boxes.

    Attributes:
        class_names: a name for each label.
        category_ids: the file's category id for each label.
        image_ids: int64 [n].
        sizes: int32 [n, 2], (h, w) as the file has them.
        panoptic: the panoptic annotations, None where they are not asked for.

    Raises:
        DataError: what is missing, broken or contradictory, with the file and the record.
        UsageError: a class that the file does not have.
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    files: list[str]
    _runs: np.ndarray  # [n, 2], each image's first row in the columns of annotations, and the row after its last
    _any: np.ndarray  # [n], whether there is any annotation of the classes, good or not

    def __init__(self, root: str | Path, annotations: str = "annotations/instances_train2017.json",
                 images: str = "train2017", *, transforms: Sequence[Transform] = (),
                 masks: Literal["bitmap", "polygon"] | None = None, classes: Sequence[str] | None = None,
                 filter_empty: bool = False, min_size: int = 0, proposals: str | Path | None = None,
                 max_proposals: int | None = None, panoptic: str | None = None) -> None:
        """
        Args:
            root: folder of the data set.
            annotations, images: annotation file and folder of pictures under the root.
            transforms: what every image goes through in `load`.
            masks: read masks, as bitmaps or as polygons (run lengths are then traced).
            classes: only objects of these names, which get the labels 0, 1, ...; all of the file's otherwise.
            filter_empty: leave out images without any annotation of the classes.
            min_size: leave out images whose shorter side is smaller.
            proposals: file of precomputed proposals, of which the best `max_proposals` are kept.
            panoptic: the split whose panoptic annotations to read too; with `masks`, samples get class maps.
        """
        self.root, self.annotation_file, self.image_folder = Path(root), Path(root) / annotations, Path(root) / images
        self.transforms, self.masks, self.max_proposals = tuple(transforms), masks, max_proposals
        if not self.root.is_dir():
            raise DataError(f"There is no data set at {root}: no such folder.")
        text, content, rows = _read(self.annotation_file)
        if not self.image_folder.is_dir():
            raise DataError(f"There is no image folder {self.image_folder}.")
        self._choose_classes(content.categories, classes)
        self._arrange(content.images, content.categories, rows)
        self._text = text if masks else b""
        keep = self.sizes.min(1, initial=2**31 - 1) >= min_size
        if filter_empty:
            keep &= self._any
        self.image_ids, self.sizes, self._runs = self.image_ids[keep], self.sizes[keep], self._runs[keep]
        self.files = [f for f, k in zip(self.files, keep) if k]
        self.proposals = None if proposals is None else self._read_proposals(proposals)
        self.panoptic = None if panoptic is None else PanopticMaps(root, panoptic, self.category_ids)

    def _choose_classes(self, categories: list[_Category], classes: Sequence[str] | None) -> None:
        by_name = {c.name: c.id for c in categories}
        missing = [name for name in classes or () if name not in by_name]
        if missing:
            raise UsageError(f"{self.annotation_file} has no category {missing[0]!r}; it has {', '.join(by_name)}.")
        self.class_names = tuple(classes or by_name)
        self.category_ids = [by_name[name] for name in self.class_names]

    def _arrange(self, images: list[_Image], categories: list[_Category], rows: np.ndarray) -> None:
        """Images in the file's order and, for each, a run of rows of the good annotations."""
        file, n = self.annotation_file, len(rows)
        self.image_ids = np.array([i.id for i in images], np.int64)
        self.files = [i.file_name for i in images]
        self.sizes = np.array([(i.height, i.width) for i in images], np.int32).reshape(-1, 2)
        ids, count = np.unique(self.image_ids, return_counts=True)
        if (count > 1).any():
            raise DataError(f"{file} has two images with the id {ids[count > 1][0]}.")
        if (self.sizes < 1).any():
            bad = self.image_ids[(self.sizes < 1).any(1)][0]
            raise DataError(f"Image {bad} of {file} has no positive width and height.")
        image = _find(self.image_ids, rows["image"])
        category = _find(np.array([c.id for c in categories]), rows["category"])
        for what, found in ("image", image), ("category", category):
            if (found < 0).any():
                bad = rows[np.argmin(found)]
                raise DataError(f"Annotation {bad['id']} of {file} belongs to {what} {bad[what]}, "
                                f"which the file does not have.")

        boxes = rows["box"]
        boxes[:, 2:] += boxes[:, :2]
        size = boxes[:, 2:] - boxes[:, :2]
        seen = np.minimum(boxes[:, 2:], self.sizes[image][:, ::-1]) - boxes[:, :2].clip(0)
        good = (np.abs(boxes) < 1e9).all(1) & (size >= 1).all(1) & (seen > 0).all(1) & (rows["area"] > 0)
        if not good.all():
            warnings.warn(f"{file}: dropped {n - good.sum()} of {n} boxes whose size is zero, negative, not finite or "
                          f"less than a pixel, or that lie outside their image (the first: annotation "
                          f"{rows['id'][np.argmin(good)]}).", stacklevel=3)
        label = _find(np.array(self.category_ids), rows["category"])
        keep = np.flatnonzero(good & (label >= 0) & ~rows["ignore"])
        keep = keep[np.argsort(image[keep], kind="stable")]
        ends = np.searchsorted(image[keep], np.arange(len(images) + 1))
        self._runs = np.stack([ends[:-1], ends[1:]], 1)
        self._boxes, self._labels, self._crowd = boxes[keep].astype(np.float32), label[keep], rows["crowd"][keep]
        self._any = np.bincount(image[label >= 0], minlength=len(images)) > 0
        if self.masks is not None:
            self._annotation_ids = rows["id"][keep]
            self._spans = np.stack([rows["begin"][keep], rows["end"][keep]], 1)

    def _read_proposals(self, path: str | Path) -> Proposals:
        proposals = Proposals(path)
        missing = next((int(i) for i in self.image_ids if int(i) not in proposals), None)
        if missing is not None:
            raise DataError(f"The proposal file {path} has nothing for image {missing} of {self.annotation_file}.")
        return proposals

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """The picture's file."""
        return self.image_folder / self.files[index]

    def sample(self, index: int) -> Sample:
        """Image `index` of `len(self)` with all that is known about it, as it is in the files."""
        image, (start, stop) = self._picture(index), self._runs[index]
        size, image_id = (image.shape[0], image.shape[1]), int(self.image_ids[index])
        crowd, boxes, masks = self._crowd[start:stop].copy(), self._boxes[start:stop], None
        if self.masks is not None:
            decoded = [self._mask(row, size) for row in range(start, stop)]
            crowd |= np.array([m is None for m in decoded], bool)
            kept: list[Any] = [m for m in decoded if m is not None]
            masks = Polygons(kept, size) if self.masks == "polygon" else np.array(kept, np.uint8).reshape(-1, *size)
        proposals = None
        if self.proposals is not None:
            proposals = self.proposals[image_id][:self.max_proposals, :4]
        return Sample(image, boxes[~crowd], self._labels[start:stop][~crowd], masks, boxes[crowd], proposals,
                      self._class_map(image_id, size), Meta(str(self.path(index)), image_id, size))

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Image `index` after the transforms; where they refuse it, another image that `rng` draws."""
        for _ in range(100):
            sample = apply(self.transforms, self.sample(index), rng)
            if sample is not None:
                return sample
            index = int(rng.integers(len(self)))
        raise DataError(f"A hundred images of {self.annotation_file} in a row keep no object through the transforms.")

    def _picture(self, index: int) -> np.ndarray:
        """The decoded picture, upright unless width and height of the annotation file are those before turning it."""
        wanted, path = tuple(self.sizes[index]), self.path(index)
        image = read_image(path)
        if image.shape[:2] != wanted and image.shape[1::-1] == wanted:
            image = read_image(path, upright=False)
        if image.shape[:2] != wanted:
            raise DataError(f"{path} has {image.shape[1]} x {image.shape[0]} pixels, but {self.annotation_file} says "
                            f"{wanted[1]} x {wanted[0]} (image {self.image_ids[index]}).")
        return image

    def _class_map(self, image_id: int, size: tuple[int, int]) -> np.ndarray | None:
        """uint8 [h, w] class of each pixel, where training needs it."""
        if self.panoptic is None or self.masks is None:
            return None
        return self.panoptic.read(image_id, size).classes()

    def _mask(self, row: int, size: tuple[int, int]) -> np.ndarray | list[np.ndarray] | None:
        """One object's bitmap [h, w] or rings, as `masks` says; None for a crowd or a mask without area."""
        if self._crowd[row]:
            return None
        text = self._text[slice(*self._spans[row])]
        try:
            shape = msgspec.json.decode(text, type=_RunLengths | list[list[float]]) if text else []
            if isinstance(shape, list):
                rings = [np.array(r).reshape(-1, 2) for r in shape if len(r) >= 6 and len(r) % 2 == 0]
                if not rings:
                    return None
                return rings if self.masks == "polygon" else rasterise(rings, *size)
            mask = shape.decode(size)
        except (msgspec.MsgspecError, ValueError) as error:
            raise DataError(f"The segmentation of annotation {self._annotation_ids[row]} of {self.annotation_file} "
                            f"is broken: {str(error).rstrip('.')}.") from error
        if not mask.any():
            return None
        return trace(mask) if self.masks == "polygon" else mask


class _RunLengths(msgspec.Struct):
    size: tuple[int, int]
    counts: list[int] | str

    def decode(self, size: tuple[int, int]) -> np.ndarray:
        """uint8 [h, w]; ValueError where the runs do not fill an image of `size`."""
        if self.size != size:
            raise ValueError(f"its run lengths are for {self.size[1]} x {self.size[0]} pixels, "
                             f"the image has {size[1]} x {size[0]}")
        counts = np.array(_unpack(self.counts) if isinstance(self.counts, str) else self.counts)
        if counts.sum() != size[0] * size[1] or counts.min() < 0:
            raise ValueError("its run lengths do not add up to the image")
        return np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8).reshape(size, order="F")


def _unpack(text: str) -> list[int]:
    """COCO's run lengths from text: five bits a character, lowest first, from the third on as difference to two before.

    pycocotools would decode runs that do not fill the image without a word, from memory that nobody has written.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode():
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number; its highest bit is the sign
            value -= (bits & 16) << shift - 4
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def trace(mask: np.ndarray) -> list[np.ndarray]:
    """The outer rings ([k, 2] each, along the pixels' outer borders) of a bitmap."""
    # Twice as large, the chain of border pixels keeps the corners of single pixels.
    double = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    chains, _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [(chain[:, 0] + 0.5) / 2 for chain in chains if len(chain) >= 3]


def _find(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each value stands among the keys; -1 if it does not."""
    if len(keys) == 0:
        return np.full(len(values), -1)
    order = np.argsort(keys, kind="stable")
    place = order[np.searchsorted(keys[order], values).clip(max=len(keys) - 1)]
    return np.where(keys[place] == values, place, -1)
