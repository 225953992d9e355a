"""PASCAL VOC: an XML file of objects for each picture, and lists of pictures.

    VOC2007/JPEGImages/000005.jpg    VOC2007/Annotations/000005.xml    VOC2007/ImageSets/Main/trainval.txt, test.txt
    VOC2012/...                                                        ImageSets/Main/aeroplane_trainval.txt, ...

Trained on `trainval` of both years, tested on `test` of 2007. One's own data may have the three folders without a year,
and `train.txt` and `val.txt` in place of those lists. A file that is missing or broken is a `DataError` with its name.
"""
from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tqdm import tqdm

from detcore.data.coco import CocoDataset
from detcore.data.dataset import DEFAULT_OPTIONS, Dataset, ReadOptions, Rows
from detcore.data.images import picture_size
from detcore.data.text import PICTURES, inside, listed, read_text, side
from detcore.errors import DataError, UsageError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
SPLITS = {"train": (("VOC2007", "trainval"), ("VOC2012", "trainval")), "val": (("VOC2007", "test"),)}
# The lists that one's own data may have instead, the first that there is.
PARTS = {"train": ("trainval", "train", "default"), "val": ("test", "val", "valid"), "test": ("test",)}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
NOT = ("", "0", "0.0", "false", "no")  # what says that an object is not difficult


class VocDataset(Dataset):
    """VOC's images with their boxes; difficult objects are ignored in training and flagged for the evaluation.

    The last pixel of a box is inside, and pixels are counted from 1; as in the original, both ends become one less.
    Classes are those that `ImageSets/Main` has lists for (`cup_trainval.txt`), or else VOC's own twenty, or else, where
    the XML files have others, those of the XML files; in alphabetical order. Objects of other names are counted in a
    warning. A picture is the .jpg of the XML file's name, or else the file that the XML file names.
    """

    def __init__(self, root: str | Path, split: str = "train", options: ReadOptions = DEFAULT_OPTIONS) -> None:
        """
        Args:
            root: the folder that holds `VOC2007` and `VOC2012`, or one that holds it as `VOCdevkit`.
            split: "train", "val" or "test".
        """
        root = devkit(root)
        super().__init__(root, "", options.boxes_alone("PASCAL VOC"), "voc")
        years = years_of(root)
        if years == ["."]:
            self.layout = "voc-xml"  # one's own data, measured as COCO's
        lists = lists_of(root, years, split)
        self.annotation_file = next(iter(lists.values()))
        known = class_names(self.annotation_file.parent) or classes_of_xml(
            [root / year / f"Annotations/{name}.xml" for year in years for part in PARTS.values() for kind in part
             if (path := main(root, year) / f"{kind}.txt").is_file() for name in names_of(path)])
        self.class_names = asked(options, known, self.annotation_file)
        rows, sizes, xml = Rows(), [], []
        for year, path in lists.items():
            xml += [(root / year / f"Annotations/{name}.xml", f"{year}/JPEGImages/{name}.jpg".removeprefix("./"))
                    for name in names_of(path, tell=True)]
        sizes = read_xml(xml, root, self.class_names, rows, known=known, offset=-1, upright=options.exif,
                         title=f"{self.annotation_file.stem} of VOC")
        self.take(rows, sizes)


def devkit(root: str | Path) -> Path:
    """The folder that holds the years."""
    return Path(root) / "VOCdevkit" if (Path(root) / "VOCdevkit").is_dir() else Path(root)


def main(root: Path, year: str) -> Path:
    """The folder of the lists of a year."""
    return root / year / "ImageSets/Main"


def years_of(root: Path) -> list[str]:
    """The folders of VOC's own years, or else of others, or else "." where the three folders have none."""
    own = list(dict.fromkeys(year for parts in SPLITS.values() for year, _ in parts if (root / year).is_dir()))
    found = own or sorted(path.name for path in root.glob("VOC20*") if main(root, path.name).is_dir())
    if not found and not main(root, ".").is_dir():
        raise DataError(f"{root} holds none of the folders {', '.join(year for year, _ in SPLITS['train'])}.")
    return found or ["."]


def lists_of(root: Path, years: Sequence[str], split: str) -> dict[str, Path]:
    """The list of pictures of a split, by year; DataError where there is none."""
    if split not in PARTS:
        raise UsageError(f"PASCAL VOC has no split {split!r}: it has {', '.join(PARTS)}.")
    if split != "train":  # the test images of VOC2012 have no annotations
        years = ["VOC2007"] if "VOC2007" in years else years
    lists = {}
    for year in years:
        folder = main(root, year)
        there = [part for part in PARTS[split] if (folder / f"{part}.txt").is_file()]
        if not there:
            raise DataError(f"There is no list of pictures {folder / PARTS[split][0]}.txt.")
        if split == "val" and there[0] != "test" and (folder / "trainval.txt").is_file():
            raise DataError(f"There is no list of pictures {folder}/test.txt to evaluate on; {there[0]}.txt is part of "
                            f"trainval.txt, on which is trained: remove trainval.txt to train on train.txt.")
        lists[year] = folder / f"{there[0]}.txt"
    return lists


def names_of(path: Path, tell: bool = False) -> list[str]:
    """The names of a list of pictures, each once; `tell`: how many are there more often, in a warning."""
    annotations = path.parent.parent.parent / "Annotations"
    names: list[str] = []
    for line in read_text(path, "list of pictures").splitlines():
        name = inside(line.strip(), path) if line.strip() else ""
        several = name.split()
        # A name may have spaces; but several names may stand in a line too.
        if len(several) > 1 and not (annotations / f"{name}.xml").exists() and all(
                (annotations / f"{one}.xml").exists() for one in several):
            names += several
        elif name:
            names.append(name)
    once = list(dict.fromkeys(names))
    if tell and len(once) < len(names):
        again = next(name for name, count in Counter(names).items() if count > 1)
        warnings.warn(f"{path}: {len(names) - len(once)} of {len(names)} lines name a picture again and are left out "
                      f"(the first: {again}).", stacklevel=4)
    return once


def class_names(folder: Path) -> tuple[str, ...]:
    """The classes that a folder of lists has lists for."""
    for end in "_trainval", "_train":
        if found := sorted(path.stem.removesuffix(end) for path in folder.glob(f"*{end}.txt")):
            return tuple(found)
    return ()


def classes_of_xml(files: Iterable[Path]) -> tuple[str, ...]:
    """VOC's twenty classes, or where XML files have another one, all names in them in alphabetical order."""
    found: set[str] = set()
    for path in dict.fromkeys(files):
        if path.is_file():
            found.update(name for name, _, _ in parse(path).objects)
    return CLASSES if found <= set(CLASSES) else tuple(sorted(found))


def asked(options: ReadOptions, known: Sequence[str], file: Path) -> tuple[str, ...]:
    """The classes that the options ask for, all of them by default."""
    if missing := [name for name in options.classes or () if name not in known]:
        raise UsageError(f"{file} has no class {missing[0]!r}; it has {listed(list(known), 50)}.")
    return tuple(options.classes or known)


class Parsed(NamedTuple):
    """What an XML file says: the picture's name ("" for none), its (h, w) (None for none), and the name, the four
    corners and the difficulty of each object."""

    picture: str
    size: tuple[int, int] | None
    objects: list[tuple[str, list[float], bool]]


def parse(path: Path) -> Parsed:
    """Read an XML file; DataError where it is missing, broken, or an object has no name or no box."""
    try:
        tree = ElementTree.fromstring(path.read_bytes())
        size, objects = tree.find("size"), []
        for thing in tree.iter("object"):
            name, box = _text(thing, "name"), thing.find("bndbox")
            if box is None:
                raise ValueError("an object has no bndbox")
            objects.append((name, [float(_text(box, corner)) for corner in CORNERS],
                            thing.findtext("difficult", "0").strip().lower() not in NOT))
        shape = None
        if size is not None and any(float(_text(size, name)) for name in ("width", "height")):  # some tools write 0
            shape = side(_text(size, "height"), "height"), side(_text(size, "width"))
        return Parsed(tree.findtext("filename", "").strip(), shape, objects)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {error.filename}.") from None
    except (ElementTree.ParseError, ValueError, LookupError, OSError, RecursionError) as error:
        raise DataError(f"The annotation file {path} is broken: {str(error)[:300]}.") from error


def read_xml(files: Sequence[tuple[Path, str]], folder: Path, classes: Sequence[str], rows: Rows, *,
             offset: int, title: str, known: Sequence[str] | None = None, whole: bool = True,
             upright: bool = True) -> list[tuple[int, int]]:
    """Read XML files and add what they say to `rows`; the sizes (h, w) of the pictures.

    Args:
        files: each with its picture under `folder`.
        classes: those whose objects are wanted; objects of `known` other ones are left out without a word.
        offset: what is added to all coordinates.
        whole: cut coordinates to whole numbers.
        upright: see `picture_size`; of pictures of which an XML file says no size.
    """
    label, sizes, unknown = {name: i for i, name in enumerate(classes)}, [], Counter[str]()
    expected, first = set(known or classes), ""
    folders: dict[str, dict[str, list[str]]] = {}
    for path, picture in tqdm(files, desc=f"reading {title}", unit="img", leave=False, delay=3):
        said = parse(path)
        picture = find_picture(folder, picture, said.picture, folders)
        sizes.append(said.size or picture_size(folder / picture, upright))
        for name, corners, difficult in said.objects:
            if name in label:
                # What is not finite stays so, and is dropped and counted with other boxes that are none.
                corners = [(math.trunc(x) if whole and math.isfinite(x) else x) + offset for x in corners]
                rows.add(corners, label[name], difficult)
            elif name not in expected:
                unknown[name] += 1
                first = first or str(path)
        rows.files.append(picture)
    if unknown:
        names = [f"{name[:50]!r} ({count})" for name, count in unknown.most_common()]
        warnings.warn(f"{title}: {unknown.total()} objects are left out, because their names are not among the classes "
                      f"({listed(list(classes))}): {listed(names, 10)}; the first in {first}.", stacklevel=3)
    return sizes


def find_picture(folder: Path, usual: str, told: str, known: dict[str, dict[str, list[str]]]) -> str:
    """The picture of an XML file: `usual` where it is there, or else the file that the XML file names (`told`), or else
    one of the same name with another ending; `usual` again where there is none.

    Args:
        folder, usual: the picture is usually `usual` under `folder`.
        known: the pictures by name of each folder that was looked into; this function keeps them there.
    """
    parent, _, name = usual.rpartition("/")
    if parent not in known:
        known[parent] = {}
        try:
            for entry in sorted(os.listdir(folder / parent)):
                stem, dot, end = entry.rpartition(".")
                if f".{end.lower()}" in PICTURES:
                    known[parent].setdefault(stem, []).append(entry)
        except OSError:
            pass  # the picture is told missing when it is read
    there = known[parent].get(name.removesuffix(".jpg"), [])
    last = re.split(r"[\\/]", told)[-1]
    if name in there or not (there or last):
        return usual
    if last in known[parent].get(last.rpartition(".")[0], ()):
        return f"{parent}/{last}".removeprefix("/")
    return f"{parent}/{there[0]}".removeprefix("/") if there else usual


def _text(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(name)
    if text is None or not text.strip():
        raise ValueError(f"{element.tag} has no {name}")
    return text.strip()


def open_coco_format(root: Path, split: str, options: ReadOptions) -> CocoDataset:
    """VOC converted to COCO's format: `annotations/voc0712_trainval.json` and `voc07_test.json`, with pictures named
    from the root on, or from `VOC2007` on."""
    if split not in PARTS:
        raise UsageError(f"PASCAL VOC has no split {split!r}: it has {', '.join(PARTS)}.")
    root = devkit(root)
    data = CocoDataset.read(root, f"annotations/{'voc0712_trainval' if split == 'train' else 'voc07_test'}.json", "",
                            options, layout="voc-coco")
    if len(data) and not data.path(0).exists() and (root / "VOC2007" / data.files[0]).exists():
        data.image_folder = root / "VOC2007"
    return data
