"""The COCO layout: one JSON file of images, categories and annotations, and a folder of pictures.

An annotation file is read into a few NumPy columns. What belongs to masks stays as the file's own text until an image
is asked for, so that the 118,000 images of COCO open in seconds and in little memory.
"""
from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from scipy.spatial import cKDTree

from detcore.data.dataset import Dataset, ReadOptions
from detcore.data.files import open_file
from detcore.data.panoptic import PanopticMaps
from detcore.data.proposals import ProposalFile
from detcore.errors import DataError, UsageError
from detcore.ops.masks import rasterise


class _Image(msgspec.Struct, gc=False):
    id: int
    width: int
    height: int
    file_name: str = ""
    coco_url: str = ""


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
    """Twelve hexadecimal digits that stand for the content of an annotation file, or of a folder of XML files."""
    if Path(path).is_dir():
        digest = hashlib.sha256()
        for xml in sorted(Path(path).rglob("*.xml")):
            digest.update(f"{xml.relative_to(path)}\n".encode("utf-8", "surrogateescape") + xml.read_bytes())
        return digest.hexdigest()[:12]
    with open_file(path, "annotation file") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]  # type: ignore[arg-type]


def _read(path: Path) -> tuple[bytes, _File, np.ndarray]:
    """The text of an annotation file, its images and categories, and the columns [n] of its annotations."""
    with open_file(path, "annotation file") as file:
        data = file.read()
    problem: Exception | None = None
    for text in (data, _finite(data)) if b"NaN" in data or b"Infinity" in data else (data,):
        try:
            content = msgspec.json.decode(text, type=_File)
            rows = _columns(path, text, content.annotations)
            content.annotations.clear()  # their text is in `text`, the rest in the columns
            return text, content, rows
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


class CocoDataset(Dataset):
    """Images of a COCO annotation file with their objects; see `Dataset`.

    Crowds, and objects whose polygons have no corner, are ignored. Files that name pictures by their address alone
    (LVIS) have them in folders of the address's last part.
    """

    def __init__(self, root: str | Path, annotations: str = "annotations/instances_train2017.json",
                 images: str = "train2017", *, layout: str = "coco", panoptic: str | None = None,
                 **options: Any) -> None:
        """
        Args:
            root: folder of the data set.
            annotations, images: annotation file and folder of pictures under the root.
            layout: the name of the form, where another data set's files are like COCO's.
            panoptic: the split whose panoptic annotations to read too; with `masks`, samples get class maps.
            options: the others of `ReadOptions`. Where `masks` are polygons, run lengths are traced.
        """
        super().__init__(root, images, ReadOptions(**options), layout)
        self.annotation_file = self.root / annotations
        text, content, rows = _read(self.annotation_file)
        self._choose_classes(content.categories)
        self._take_content(content, rows)
        self._text = text if self.masks else b""
        if self.options.proposals is not None:
            self.proposals = ProposalFile(self.options.proposals)
            missing = next((i for i in self.image_ids.tolist() if i not in self.proposals), None)
            if missing is not None:
                raise DataError(f"The proposal file {self.options.proposals} has nothing for image {missing} of "
                                f"{self.annotation_file}.")
        self.panoptic = None if panoptic is None else PanopticMaps(root, panoptic, self.category_ids)

    @classmethod
    def open(cls, root: str | Path, split: str, options: ReadOptions) -> CocoDataset:
        """A split of a data set in COCO's own layout: "train" is `train2017`, or else `train`, and so on."""
        name = next((n for n in (f"{split}2017", split) if (Path(root) / f"annotations/instances_{n}.json").exists()),
                    f"{split}2017")
        return cls.read(root, f"annotations/instances_{name}.json", name, options, panoptic=name)

    @classmethod
    def read(cls, root: str | Path, annotations: str, images: str, options: ReadOptions, *, layout: str = "coco",
             panoptic: str | None = None) -> CocoDataset:
        """An annotation file as `options` say; `panoptic` names the split of its panoptic maps, if there are any."""
        given = vars(options) | dict(panoptic=panoptic if options.panoptic else None)
        return cls(root, annotations, images, layout=layout, **given)

    def _choose_classes(self, categories: list[_Category]) -> None:
        by_name = {c.name: c.id for c in categories}
        missing = [name for name in self.options.classes or () if name not in by_name]
        if missing:
            raise UsageError(f"{self.annotation_file} has no category {missing[0]!r}; it has {', '.join(by_name)}.")
        self.class_names = tuple(self.options.classes or by_name)
        self.category_ids = [by_name[name] for name in self.class_names]

    def _take_content(self, content: _File, rows: np.ndarray) -> None:
        """Images in the file's order, and its annotations."""
        file, images = self.annotation_file, content.images
        self.image_ids = np.array([i.id for i in images], np.int64)
        self.files = [i.file_name or "/".join(i.coco_url.split("/")[-2:]) for i in images]
        self.sizes = np.array([(i.height, i.width) for i in images], np.int32).reshape(-1, 2)
        ids, count = np.unique(self.image_ids, return_counts=True)
        if (count > 1).any():
            raise DataError(f"{file} has two images with the id {ids[count > 1][0]}.")
        if (self.sizes < 1).any():
            bad = self.image_ids[(self.sizes < 1).any(1)][0]
            raise DataError(f"Image {bad} of {file} has no positive width and height.")
        image = find(self.image_ids, rows["image"])
        category = find(np.array([c.id for c in content.categories]), rows["category"])
        for what, found in ("image", image), ("category", category):
            if (found < 0).any():
                bad = rows[np.argmin(found)]
                raise DataError(f"Annotation {bad['id']} of {file} belongs to {what} {bad[what]}, "
                                f"which the file does not have.")
        boxes = rows["box"]
        boxes[:, 2:] += boxes[:, :2]
        taken = self.arrange(
            image, boxes, find(np.array(self.category_ids), rows["category"]), ignored=rows["crowd"],
            flags=rows["crowd"], good=rows["area"] > 0, skip=rows["ignore"],
            title=lambda row: f"annotation {rows['id'][row]}")
        if self.masks is not None:
            self._annotation_ids = rows["id"][taken]
            self._spans = np.stack([rows["begin"][taken], rows["end"][taken]], 1)

    def _mask(self, row: int, size: tuple[int, int]) -> np.ndarray | list[np.ndarray] | None:
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


def find(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each value stands among the keys; -1 if it does not."""
    if len(keys) == 0:
        return np.full(len(values), -1)
    order = np.argsort(keys, kind="stable")
    place = order[np.searchsorted(keys[order], values).clip(max=len(keys) - 1)]
    return np.where(keys[place] == values, place, -1)
