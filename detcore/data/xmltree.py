"""XML files in PASCAL VOC's form in any usual folders, without VOC's years.

    Annotations/a.xml, JPEGImages/a.jpg or images/a.png    ImageSets/Main/train.txt, val.txt, or no lists
    train/Annotations/a.xml, train/images/a.jpg            val/... or valid/..., test/...
    train/a.xml, train/a.jpg                               as Roboflow writes them

Which images a split has is told by lists, or by a folder `train`, `val` (`valid`) or `test` anywhere in the path of an
XML file; where there is neither, all are training images.
"""
from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from detcore.data.dataset import DEFAULT_OPTIONS, Dataset, ReadOptions, Rows
from detcore.data.text import PICTURES, listed
from detcore.data.voc import VocDataset, asked, parse, read_xml
from detcore.errors import DataError, UsageError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}
FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "pictures")  # of pictures
HEAD = 4096  # bytes in which the root element begins


class XmlDataset(Dataset):
    """Pictures with the boxes of their XML files; coordinates and difficult objects as in `VocDataset`, but parts of a
    pixel are kept.

    Classes are those of all XML files of the data set, of whatever split, in alphabetical order. The picture of an XML
    file has its name with another ending, or else the name that the XML file gives it.
    """

    def __init__(self, root: str | Path, split: str = "train", options: ReadOptions = DEFAULT_OPTIONS) -> None:
        """
        Args:
            root: a folder that holds the others somewhere below.
            split: "train", "val" or "test".
        """
        if split not in SPLITS.values():
            raise UsageError(f"PASCAL VOC's XML files have no split {split!r}: it is train, val or test.")
        super().__init__(root, "", options.boxes_alone("PASCAL VOC"), "voc-xml")
        xml, pictures = walk(self.root)
        by_split: dict[str, list[str]] = {}
        for name in xml:
            by_split.setdefault(split_of(name), []).append(name)
        named = [one for one in by_split if one]
        mine = by_split.get(split if named else "" if split == "train" else split, [])
        if not mine:
            there = f"folders of {', '.join(sorted(named))} alone" if named else "neither lists nor folders of splits"
            raise DataError(f"{root} has no XML files of the split {split}: there are {there}; put its files into a "
                            f"folder {split}, hold out a share of the training images, or train without validation.")
        if named and "" in by_split:
            warnings.warn(f"{root}: {len(by_split[''])} XML files are in no folder of a split and are left out (the "
                          f"first: {by_split[''][0]}).", stacklevel=2)
        self.annotation_file = self.root / os.path.commonpath([os.path.dirname(name) for name in mine])
        known = sorted({name for path in xml for name, _, _ in parse(self.root / path).objects})
        self.class_names = asked(options, known, self.annotation_file)
        matched = match(self.root, mine, pictures)
        rows = Rows()
        sizes = read_xml([(self.root / path, picture) for path, picture in matched.items()], self.root,
                         self.class_names, rows, known=known, offset=-1, whole=False, upright=options.exif,
                         title=str(self.annotation_file))
        self.take(rows, sizes)


def recognised(root: Path) -> bool:
    """Whether a folder has lists of pictures, or a folder whose first XML files are of VOC's form."""
    if any((root / "ImageSets/Main").glob("*.txt")):
        return True
    for folder, below, names in os.walk(root):
        below.sort()
        for name in sorted(name for name in names if name.lower().endswith(".xml"))[:5]:
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    if re.search(rb"<annotation[\s/>]", file.read(HEAD)):
                        return True
            except OSError:
                continue
    return False


def open_xml(root: Path, split: str, options: ReadOptions) -> Dataset:
    """A split by the lists of `ImageSets/Main`, where there are some, or by folders."""
    return (VocDataset if any((root / "ImageSets/Main").glob("*.txt")) else XmlDataset)(root, split, options)


def walk(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The XML files of annotations under a folder, and the pictures by their names without ending; in order."""
    xml, others = list[str](), list[str]()
    pictures: dict[str, list[str]] = {}
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith((".", "__MACOSX")))
        inside = os.path.relpath(folder, root)
        for name in sorted(names):
            stem, end = os.path.splitext(name)
            path = name if inside == "." else os.path.join(inside, name)
            if name.startswith("."):
                continue
            if end.lower() == ".xml":
                try:
                    with open(os.path.join(folder, name), "rb") as file:
                        (xml if re.search(rb"<annotation[\s/>]", file.read(HEAD)) else others).append(path)
                except OSError as error:
                    raise DataError(f"The annotation file {root / path} cannot be read: {error.strerror}.") from error
            elif end.lower() in PICTURES:
                pictures.setdefault(stem, []).append(path)
    if others:
        warnings.warn(f"{root}: {len(others)} XML files are no annotations of PASCAL VOC's form and are left out: "
                      f"{listed(others)}.", stacklevel=3)
    return xml, pictures


def split_of(path: str) -> str:
    """The split that a folder of a path names, "" for none."""
    return next((SPLITS[part.lower()] for part in path.split(os.sep)[:-1] if part.lower() in SPLITS), "")


def match(root: Path, xml: list[str], pictures: dict[str, list[str]]) -> dict[str, str]:
    """The picture of each XML file; pictures of the same folders without one are counted in a warning.

    Raises:
        DataError: two XML files have the same picture.
    """
    matched: dict[str, str] = {}
    owner: dict[str, str] = {}
    for path in xml:
        folders, stem = path.split(os.sep)[:-1], os.path.splitext(os.path.basename(path))[0]
        told = re.split(r"[\\/]", parse(root / path).picture)[-1]
        split = split_of(path)
        found: list[tuple[bool, bool, int, bool, str]] = []
        for picture in dict.fromkeys((*pictures.get(stem, ()), *pictures.get(os.path.splitext(told)[0], ()))):
            parts = picture.split(os.sep)
            if split_of(picture) == split:
                # Best in a folder of pictures or beside the XML file, by the file's own name, in the nearest folder.
                usual = parts[:-1] == folders or any(part.lower() in FOLDERS for part in parts[:-1])
                found.append((usual, os.path.splitext(parts[-1])[0] == stem, len(set(parts[:-1]) & set(folders)),
                              parts[-1] == told, picture))
        # Where there is none, reading it tells so.
        picture = max(found)[-1] if found else os.path.join(*folders, told or f"{stem}.jpg")
        if picture in owner:
            raise DataError(f"The picture {root / picture} has two XML files: {owner[picture]} and {path}.")
        owner[picture] = path
        matched[path] = picture
    used = {os.path.dirname(picture) for picture in owner}
    left = [picture for some in pictures.values() for picture in some
            if os.path.dirname(picture) in used and picture not in owner]
    if left:
        warnings.warn(f"{root}: {len(left)} pictures have no XML file and are left out (the first: {min(left)}).",
                      stacklevel=3)
    return matched
