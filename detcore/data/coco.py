"""The COCO layout: one JSON file of images, categories and annotations, and a folder of pictures.

An annotation file is read into a few NumPy columns. What belongs to masks stays as the file's own text until an image
is asked for, so that the 118,000 images of COCO open in seconds and in little memory.
"""
from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detcore.data import classes, locate
from detcore.data.dataset import Dataset, ReadOptions
from detcore.data.files import open_file
from detcore.data.panoptic import PanopticMaps
from detcore.data.proposals import ProposalFile
from detcore.data.segmentation import bitmap, has_shape, read_shape, trace
from detcore.errors import DataError, UsageError

Id = int | str  # of an image or a category


class _Image(msgspec.Struct, gc=False):
    id: Id
    width: int
    height: int
    file_name: str | None = None
    coco_url: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    id: int | str | None = None
    area: float | None = None
    iscrowd: int | bool | None = 0
    ignore: int | bool | None = 0
    segmentation: msgspec.Raw = msgspec.Raw()


class _Category(msgspec.Struct):
    id: Id
    name: str
    supercategory: object = None


class _File(msgspec.Struct):
    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    annotations: list[msgspec.Raw] | None = None


# The columns of annotations: `image` and `category` are places in the file's lists, `begin` and `end` say where the
# segmentation stands in the file's text.
_ROW = np.dtype([("id", "i8"), ("image", "i8"), ("category", "i8"), ("box", "f8", 4), ("area", "f8"), ("crowd", "?"),
                 ("ignore", "?"), ("begin", "i8"), ("end", "i8")])
_CHUNK = 10_000  # annotations that are Python objects at a time
_LARGEST = 2**31 - 1  # pixels of a side
_BEYOND = 9e9  # what stands for NaN and infinity


def fingerprint(path: str | Path) -> str:
    """Twelve hexadecimal digits that stand for the content of an annotation file, or of a folder of XML files."""
    if Path(path).is_dir():
        digest = hashlib.sha256()
        for xml in sorted(Path(path).rglob("*.xml")):
            digest.update(f"{xml.relative_to(path)}\n".encode("utf-8", "surrogateescape") + xml.read_bytes())
        return digest.hexdigest()[:12]
    with open_file(path, "annotation file") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]  # type: ignore[arg-type]


def _read(path: Path, skip_unlisted: bool = False) -> tuple[bytes, list[_Image], list[_Category], np.ndarray]:
    """The text of an annotation file, its images and categories, and the columns [n] of its annotations."""
    with open_file(path, "annotation file") as file:
        data = file.read()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = data.decode("utf-16", errors="replace").encode()
    data = data.removeprefix(b"\xef\xbb\xbf")
    problem: Exception | None = None
    for text in (data, _finite(data)) if b"NaN" in data or b"Infinity" in data else (data,):
        try:
            content = msgspec.json.decode(text, type=_File)
            images = _records(path, "Image", _Image, content.images)
            categories = _records(path, "Category", _Category, content.categories)
            return text, images, categories, _columns(path, text, content.annotations or [], images, categories,
                                                      skip_unlisted)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problem = error
    raise DataError(f"The annotation file {path} cannot be read: {str(problem).rstrip('.')}.") from problem


def _records(path: Path, what: str, kind: type, records: Sequence[msgspec.Raw]) -> list[Any]:
    decode: Callable[[msgspec.Raw], Any] = msgspec.json.Decoder(kind).decode
    found = []
    for i, raw in enumerate(records):
        try:
            found.append(decode(raw))
        except msgspec.ValidationError as error:
            found.append(_loosely(path, f"{what} number {i + 1}", raw, kind, error))
    return found


def _loosely(path: Path, title: str, raw: msgspec.Raw, kind: type, problem: Exception) -> Any:
    """A record whose numbers may be text, or whole numbers written with a point; DataError where they are not."""
    try:
        return msgspec.json.decode(raw, type=kind, strict=False)
    except msgspec.ValidationError:
        pass
    try:
        values = msgspec.json.decode(raw)
        if isinstance(values, dict):
            values = {name: _tidy(name, value) for name, value in values.items()}
        record: Any = msgspec.convert(values, kind, strict=False)
        if kind is _Annotation:
            segmentation = msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get("segmentation")
            record.segmentation = msgspec.Raw() if segmentation is None else segmentation
        return record
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise DataError(f"{title} of {path} is broken: {str(problem).rstrip('.')}.") from problem


def _tidy(name: str, value: Any) -> Any:
    """A field's value, as the type that it has in most files."""
    if name == "segmentation":
        return msgspec.Raw()
    if name == "bbox" and isinstance(value, list):
        return [_tidy("", part) for part in value]
    if name in ("name", "file_name", "coco_url"):
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    if name in ("area", "iscrowd", "ignore") and isinstance(value, str) and not value.strip():
        return None
    if name in ("", "area", "iscrowd", "ignore", "width", "height") and isinstance(value, str):
        number = value.strip().lower()
        number = {"true": "1", "false": "0"}.get(number, number)
        return float(number) if name in ("", "area") else int(float(number))
    return value


def _columns(path: Path, text: bytes, annotations: list[msgspec.Raw], images: list[_Image],
             categories: list[_Category], skip_unlisted: bool) -> np.ndarray:
    rows, position = np.empty(len(annotations), _ROW), 0
    decode = msgspec.json.Decoder(_Annotation).decode
    image_places, category_places = _places(path, "images", images), _places(path, "categories", categories)
    stray: list[str] = []
    for start in range(0, len(rows), _CHUNK):
        chunk = []
        for i, raw in enumerate(annotations[start:start + _CHUNK], start):
            try:
                a = decode(raw)
            except msgspec.ValidationError as error:
                a = _loosely(path, f"Annotation number {i + 1}", raw, _Annotation, error)
            # The first text like this one's from here on: its own, or one that says the same.
            part = bytes(a.segmentation)
            position = max(text.find(part, position), position)
            number = a.id if isinstance(a.id, int) and abs(a.id) < 2**63 else i + 1
            image, category = image_places.get(key(a.image_id), -1), category_places.get(key(a.category_id), -1)
            if image < 0 or category < 0:
                stray.append("" if stray else f"{number} of {path} belongs to " + (
                    f"image {a.image_id}" if image < 0 else f"category {a.category_id}"))
            chunk.append((number, image, category, a.bbox, a.area or 0.0, bool(a.iscrowd), bool(a.ignore),
                          position, position + len(part)))
        rows[start:start + _CHUNK] = chunk
    annotations.clear()  # their text is in `text`, the rest in the columns
    if stray and not skip_unlisted:
        raise DataError(f"Annotation {stray[0]}, which the file does not have ({len(stray)} of {len(rows)} annotations "
                        f"are like that): correct the file, or leave them out (--skip-unlisted, skip_unlisted=True).")
    if stray:
        warnings.warn(f"{path}: left out {len(stray)} of {len(rows)} annotations, of categories or images that the "
                      f"file does not list (the first: annotation {stray[0]}).", stacklevel=6)
        rows = rows[(rows["image"] >= 0) & (rows["category"] >= 0)]
    return rows


def key(number: Id) -> Id:
    """An id, as a number where it is one that is written as text."""
    if isinstance(number, str) and len(number) < 40 and number.lstrip("-").isdecimal() and str(int(number)) == number:
        return int(number)
    return number


def _places(path: Path, what: str, records: Sequence[_Image | _Category]) -> dict[Id, int]:
    """The place of each record by its id; DataError where two have the same."""
    places: dict[Id, int] = {}
    for i, record in enumerate(records):
        if places.setdefault(key(record.id), i) != i:
            raise DataError(f"{path} has two {what} with the id {record.id}: give each its own.")
    return places


def _finite(text: bytes) -> bytes:
    """JSON in which NaN and Infinity, which Python writes and JSON does not know, are numbers too large for any box."""
    return re.sub(rb"(?<=[\s,:\[])-?(?:NaN|Infinity)(?=[\s,\]}])", b"9e9", text)


class CocoDataset(Dataset):
    """Images of a COCO annotation file with their objects; see `Dataset`.

    Ids are whole numbers or text. Classes are told by their names: categories of one name are one class; Roboflow's
    category 0, which has the name of the project and no objects, is none. Crowds are ignored, and where masks are read
    also objects without one, or with a broken one, which a warning counts. Files that name pictures by their address
    alone (LVIS) have them in folders of the address's last part. A picture that is not where its name says is looked
    for by the last part of it, in all folders below the folder of images.
    """

    def __init__(self, root: str | Path, annotations: str | Path = "annotations/instances_train2017.json",
                 images: str | Path | None = "train2017", *, layout: str = "coco", panoptic: str | None = None,
                 split: str | None = None, **options: Any) -> None:
        """
        Args:
            root: folder of the data set.
            annotations, images: annotation file and folder of pictures under the root; None for the folder where
                pictures of these names are.
            layout: the name of the form, where another data set's files are like COCO's.
            panoptic: the split whose panoptic annotations to read too; with `masks`, samples get class maps.
            split: where pictures of one name are in several folders, the one whose name this is.
            options: the others of `ReadOptions`. Where `masks` are polygons, run lengths are traced.
        """
        super().__init__(root, "" if images is None else str(images), ReadOptions(**options), layout)
        self.annotation_file, self.split_name = self.root / annotations, split
        self._pictures: locate.Pictures | None = None
        text, pictures, categories, rows = _read(self.annotation_file, self.options.skip_unlisted)
        self._choose_classes(categories, rows)
        self._take_content(pictures, rows, text)
        if images is None:
            self.image_folder = locate.find_folder(self.root, split or "train", self.annotation_file, self.files)
            if not self.image_folder.is_dir():
                raise DataError(f"There is no image folder {self.image_folder}: name it (--image-folder, "
                                f"image_folder).")
        if layout == "coco" and self.files and not (self.image_folder / self.files[0]).is_file():
            self._pictures = locate.Pictures(self.image_folder)  # here, so that other processes get it ready
        if self.options.proposals is not None:
            self.proposals = ProposalFile(self.options.proposals)
            missing = next((i for i in self.image_ids.tolist() if i not in self.proposals), None)
            if missing is not None:
                raise DataError(f"The proposal file {self.options.proposals} has nothing for image {missing} of "
                                f"{self.annotation_file}.")
        self.panoptic = None if panoptic is None else PanopticMaps(
            root, panoptic, [key(i) for i in self._file_ids])  # type: ignore[misc]

    @classmethod
    def open(cls, root: str | Path, split: str, options: ReadOptions) -> CocoDataset:
        """A split of a data set, as `locate` finds it."""
        return cls.locate(root, split, options)

    @classmethod
    def locate(cls, root: str | Path, split: str, options: ReadOptions, annotations: str | Path | None = None,
               images: str | Path | None = None) -> CocoDataset:
        """A split of a data set whose files are where COCO or the tools that people label with have them.

        Args:
            split: "train", "val" or "test"; of COCO itself "train" is `train2017`, and so on.
            annotations, images: the annotation file and the folder of pictures, where they are named.

        Raises:
            DataError: besides what is missing or broken, there is no such split.
        """
        root = Path(root)
        if annotations is None:
            found = locate.find_source(root, split)
            if found is None and not root.is_dir():
                raise DataError(f"There is no data set at {root}: no such folder.")
            if found is None:
                raise locate.missing(root, split)
            annotations = found.annotations
        path = Path(annotations)
        name = path.stem.removeprefix("instances_")
        if images is None and (root / name).is_dir() and path.parent == root / "annotations":
            images = name
        elif images is not None:
            images = named(root, images)
        inside = path.parent == root / "annotations" and path.stem.startswith("instances_")
        return cls.read(root, path.relative_to(root) if path.is_relative_to(root) else path.absolute(), images, options,
                        panoptic=name if inside else split, split=split)

    @classmethod
    def read(cls, root: str | Path, annotations: str | Path, images: str | Path | None, options: ReadOptions, *,
             layout: str = "coco", panoptic: str | None = None, split: str | None = None) -> CocoDataset:
        """An annotation file as `options` say; `panoptic` names the split of its panoptic maps, if there are any."""
        given = vars(options) | dict(panoptic=panoptic if options.panoptic else None)
        return cls(root, annotations, images, layout=layout, split=split, **given)

    def _choose_classes(self, categories: list[_Category], rows: np.ndarray) -> None:
        """Class names in the file's order, the category id of each, and the label of each category."""
        rename, file = self.options.rename, self.annotation_file
        used = np.bincount(rows["category"], minlength=len(categories)) > 0
        parents = {c.supercategory for c in categories if isinstance(c.supercategory, str)}
        unused = [c.name for c, u in zip(categories, used) if not u and key(c.id) == 0 and c.supercategory == "none"
                  and c.name in parents]  # the name of Roboflow's project
        by_name: dict[str, Id] = {}
        twice: dict[str, list[Id]] = {}
        for c in categories:
            name = rename.get(c.name, c.name)
            if key(c.id) == 0 and c.name in unused and c.supercategory == "none":
                continue
            if name in by_name:
                twice.setdefault(name, [by_name[name]]).append(c.id)
            by_name.setdefault(name, c.id)
        for name, ids in twice.items():
            if not any(new == name for new in rename.values()):
                warnings.warn(f"{file} has {len(ids)} categories with the name {name!r} (ids "
                              f"{', '.join(map(str, ids))}): their objects are read as one class; if they are "
                              f"different ones, give them different names in the file.", stacklevel=4)
        known = {c.name for c in categories} | set(by_name)
        stale = [old for old, new in rename.items() if old not in known and new not in known]
        if stale:
            warnings.warn(f"{file} has no class {classes.listing(stale)}, which is to be renamed; it has "
                          f"{classes.listing(list(by_name))}.", stacklevel=4)
        missing = [name for name in self.options.classes or () if name not in by_name]
        if missing:
            raise UsageError(f"{file} has no category {missing[0]!r}; it has {', '.join(by_name)}.")
        self.class_names = tuple(self.options.classes or by_name)
        self._file_ids = [by_name[name] for name in self.class_names]
        labels = {name: label for label, name in enumerate(self.class_names)}
        self._of_category = np.array([labels.get(rename.get(c.name, c.name), -1) for c in categories], np.int64)
        # Results have whole numbers, such that their readers take.
        ids = [key(i) for i in self._file_ids]
        small = all(isinstance(i, int) and abs(i) < 2**31 for i in ids)
        self.category_ids = [int(i) for i in ids] if small else list(range(1, len(ids) + 1))

    def _take_content(self, images: list[_Image], rows: np.ndarray, text: bytes) -> None:
        """Images in the file's order, and its annotations."""
        file, ids = self.annotation_file, [i.id for i in images]
        usual = all(isinstance(i, int) and -2**63 <= i < 2**63 for i in ids)
        self.image_ids = np.array(ids, np.int64) if usual else np.array([*ids, None], object)[:-1]
        self.files = [i.file_name or "/".join((i.coco_url or "").split("/")[-2:]) for i in images]
        bad = next((i for i in images if not (0 < i.width <= _LARGEST and 0 < i.height <= _LARGEST)), None)
        if bad is not None:
            raise DataError(f"Image {bad.id} of {file} has no positive width and height below 2^31, but {bad.width} x "
                            f"{bad.height}: correct them.")
        self.sizes = np.array([(i.height, i.width) for i in images], np.int32).reshape(-1, 2)
        boxes = rows["box"]
        boxes[:, 2:] += boxes[:, :2]
        taken = self.arrange(
            rows["image"], boxes, self._of_category[rows["category"]], ignored=rows["crowd"], flags=rows["crowd"],
            skip=rows["ignore"], title=lambda row: f"annotation {rows['id'][row]}")
        self._text, self.mask_problem = b"", ""
        if self.masks is not None:
            self._annotation_ids = rows["id"][taken]
            self._spans = np.stack([rows["begin"][taken], rows["end"][taken]], 1)
            self._text = text
            self._check_masks(self.sizes_of(rows["image"][taken], images))

    @staticmethod
    def sizes_of(places: np.ndarray, images: list[_Image]) -> list[tuple[int, int]]:
        """(h, w) of the images of rows; those that were left out have no place in `sizes` any more."""
        return [(images[place].height, images[place].width) for place in places.tolist()]

    def _check_masks(self, sizes: list[tuple[int, int]]) -> None:
        """Ignore objects without a sound mask, and tell how many there are."""
        wanted = np.flatnonzero(~self._ignored)
        lacking: list[int] = []
        broken: list[str] = []
        for row in wanted.tolist():
            begin, end = self._spans[row].tolist()
            try:
                if has_shape(self._text[begin:end], sizes[row]):
                    continue
            except ValueError as error:
                broken.append(f"annotation {self._annotation_ids[row]}: {error}")
            lacking.append(row)
        if not lacking:
            return
        self._ignored[lacking] = True
        told = []
        if without := len(lacking) - len(broken):
            told.append(f"{without} have no mask" + (
                f" (the first: annotation {self._annotation_ids[lacking[0]]})" if not broken else ""))
        if broken:
            told.append(f"{len(broken)} have a broken one (the first: {broken[0]})")
        self.mask_problem = f"{self.annotation_file}: of {len(wanted)} objects {' and '.join(told)}"
        warnings.warn(f"{self.mask_problem}; in training they are neither objects nor background.", stacklevel=5)

    def mask_fault(self, index: int) -> str | None:
        """What is wrong with the masks of image `index`, crowds' too, which training does not read."""
        size = (int(self.sizes[index, 0]), int(self.sizes[index, 1]))
        faults = []
        for row in range(*self._runs[index].tolist()):
            try:
                read_shape(self._text[slice(*self._spans[row])], size)
            except ValueError as error:
                faults.append(f"annotation {self._annotation_ids[row]}: {error}")
        more = f" (and {len(faults) - 1} more of the image)" if len(faults) > 1 else ""
        return f"the mask of {faults[0]}{more}" if faults else None

    def relabel(self, names: Sequence[str], title: str) -> None:
        before, labels = self.class_names, None if self.panoptic is None else self.panoptic._labels
        super().relabel(names, title)
        if self.class_names != before and self.panoptic is not None and labels is not None:
            place, things = {name: i for i, name in enumerate(names)}, len(before)
            self.panoptic._labels = {category: place.get(before[label], len(names)) if label < things else
                                     label - things + len(names) for category, label in labels.items()}
            self.panoptic.things = self.class_names

    def path(self, index: int) -> Path:
        path = super().path(index)
        if self.layout != "coco" or path.is_file():  # other forms have places of their own
            return path
        if self._pictures is None:
            self._pictures = locate.Pictures(self.image_folder)
        found = self._pictures.find(self.files[index], self.split_name)
        return path if found is None else self.image_folder / found

    def ground_truth(self, masks: bool = False) -> dict[str, Any]:
        """The file as the content of one with the data set's classes, for the evaluation: each object's category is
        that of its class, and areas that are missing are those of boxes.

        With `masks`, those are there; an object without a sound one becomes a crowd as large as its box, so that
        detections in it count neither way, and a warning tells how many there are. All images of the file are in it,
        also those that were left out.
        """
        text, images, categories, rows = _read(self.annotation_file, skip_unlisted=True)
        names = [self.options.rename.get(c.name, c.name) for c in categories]
        ids = dict(zip(self.class_names, self.category_ids))
        annotations: list[dict[str, Any]] = []
        lacking: list[int] = []
        for row in rows.tolist():
            number, place, category, box, area, crowd, ignore, begin, end = row
            image, sides = images[place], [float(v) for v in box]
            if names[category] not in ids or max(map(abs, sides)) >= _BEYOND:
                continue
            annotation = dict(id=number, image_id=image.id, category_id=ids[names[category]], bbox=sides,
                              area=area if 0 < area < _BEYOND else sides[2] * sides[3], iscrowd=int(crowd))
            if ignore:
                annotation["ignore"] = 1
            if masks:
                segmentation = _for_evaluation(text[begin:end], (image.height, image.width))
                if segmentation is None:
                    lacking.append(number)
                    (x, y, w, h), annotation["iscrowd"] = sides, 1
                    segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                annotation["segmentation"] = segmentation
            annotations.append(annotation)
        if lacking:
            warnings.warn(f"{self.annotation_file}: {len(lacking)} of {len(annotations)} objects have no sound mask "
                          f"(the first: annotation {lacking[0]}); the evaluation of masks counts detections in their "
                          f"boxes neither way.", stacklevel=2)
        return dict(images=[dict(id=i.id, width=i.width, height=i.height) for i in images], annotations=annotations,
                    categories=[dict(id=i, name=name) for name, i in ids.items()])

    def _mask(self, row: int, size: tuple[int, int]) -> np.ndarray | list[np.ndarray] | None:
        try:
            shape = read_shape(self._text[slice(*self._spans[row])], size)
        except ValueError as error:
            raise DataError(f"The segmentation of annotation {self._annotation_ids[row]} of {self.annotation_file} "
                            f"is broken: {error}.") from error
        if shape is None or isinstance(shape, list) and self.masks == "polygon":
            return shape  # type: ignore[return-value]
        mask = bitmap(shape, size)
        if not mask.any():
            return None
        return trace(mask) if self.masks == "polygon" else mask


def _for_evaluation(text: bytes, size: tuple[int, int]) -> Any:
    """A segmentation as COCO's libraries take it; None where there is none that they can take."""
    try:
        shape = read_shape(text, size)
    except ValueError:
        return None
    if isinstance(shape, list):
        return [ring.ravel().tolist() for ring in shape]
    return None if shape is None else dict(size=list(size), counts=shape.tolist())


def named(root: Path, path: str | Path) -> Path:
    """A file or folder that a user named, from the data set's folder or else from the working folder on."""
    return (root / path if (root / path).exists() else Path(path)).absolute()
