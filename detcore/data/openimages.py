"""Open Images v6 and its challenge of 2019: tables of boxes, and a hierarchy of classes.

    OpenImages/train/*.jpg, OpenImages/validation/*.jpg, OpenImages/test/*.jpg
    annotations/oidv6-train-annotations-bbox.csv, validation-annotations-bbox.csv, test-annotations-bbox.csv,
        class-descriptions-boxable.csv, bbox_labels_600_hierarchy.json,
        validation-annotations-human-imagelabels-boxable.csv, test-annotations-human-imagelabels-boxable.csv
    challenge2019/challenge-2019-{train,validation}-detection-bbox.txt, cls-label-description.csv, class_label_tree.np,
        challenge-2019-validation-detection-human-imagelabels.csv

Boxes are shares of the upright picture's width and height, so the sizes of all pictures are read from their files once,
and kept beside the annotations. A file that is missing or broken is a `DataError` with its name and line.
"""
from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from detcore.data.dataset import DEFAULT_OPTIONS, Dataset, ReadOptions, Rows
from detcore.data.files import open_file
from detcore.data.images import picture_sizes
from detcore.data.text import inside, problem, warn_again
from detcore.errors import DataError, UsageError

FOLDERS = {"train": "OpenImages/train", "val": "OpenImages/validation", "test": "OpenImages/test"}
BOXES = {"train": "annotations/oidv6-train-annotations-bbox.csv", "val": "annotations/validation-annotations-bbox.csv",
         "test": "annotations/test-annotations-bbox.csv"}
CLASSES, HIERARCHY = "annotations/class-descriptions-boxable.csv", "annotations/bbox_labels_600_hierarchy.json"
VERIFIED = "annotations/validation-annotations-human-imagelabels-boxable.csv"  # of the test images: test-...
CHALLENGE_BOXES = {"train": "challenge2019/challenge-2019-train-detection-bbox.txt",
                   "val": "challenge2019/challenge-2019-validation-detection-bbox.txt"}
CHALLENGE_CLASSES = "challenge2019/cls-label-description.csv"
CHALLENGE_TREE = "challenge2019/class_label_tree.np"
CHALLENGE_HIERARCHY = "challenge2019/challenge-2019-label500-hierarchy.json"
CHALLENGE_VERIFIED = "challenge2019/challenge-2019-validation-detection-human-imagelabels.csv"


class OpenImagesDataset(Dataset):
    """Open Images with its boxes; those around groups are flagged for the evaluation.

    Attributes:
        ancestors: bool [C, C]: [i, j] where class j is i or above it.
    """

    ancestors: np.ndarray

    def __init__(self, root: str | Path, split: str = "train", options: ReadOptions = DEFAULT_OPTIONS, *,
                 challenge: bool = False) -> None:
        """
        Args:
            split: "train", "val" or "test".
            challenge: the 500 classes and the boxes of the challenge of 2019, which has no "test".
        """
        tables = CHALLENGE_BOXES if challenge else BOXES
        if split not in tables:
            raise UsageError(f"Open Images{' challenge 2019' * challenge} has no split {split!r} with boxes: it has "
                             f"{', '.join(tables)}.")
        super().__init__(root, FOLDERS[split], options.boxes_alone("Open Images"),
                         "openimages-challenge" if challenge else "openimages")
        self.split, self.challenge = split, challenge
        self.annotation_file = self.root / tables[split]
        self._label, self.class_names = read_classes(self.root / (CHALLENGE_CLASSES if challenge else CLASSES),
                                                     numbered=challenge)
        self.ancestors = self._read_ancestors()
        rows = (read_blocks if challenge else read_table)(self.annotation_file, self._label)
        self.size_file = self.annotation_file.with_suffix(".sizes.npz")
        sizes = picture_sizes(self.image_folder, rows.files, self.size_file, upright=options.exif)
        self.take(rows, sizes, shares=True, ignore=False)

    def _read_ancestors(self) -> np.ndarray:
        tree, named = self.root / CHALLENGE_TREE, self.root / (CHALLENGE_HIERARCHY if self.challenge else HIERARCHY)
        if self.challenge and tree.exists() and not named.exists():
            return read_tree(tree, len(self.class_names))
        return read_hierarchy(named, self._label)

    def verified(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n], [n]: ids of images, and a class that people have looked for in each, whether it is there or not.

        Where the file of these labels is missing, a warning says so, and there are none: only classes that have a box
        in an image are known to have been looked for.
        """
        path = self.root / (CHALLENGE_VERIFIED if self.challenge else VERIFIED)
        if self.split == "test":
            path = path.with_name(path.name.replace("validation", "test"))
        if self.split == "train" or not path.exists():
            warnings.warn(f"There is no file {path} of the classes that were looked for in each image: detections of "
                          f"classes that have no box in an image are left out.", stacklevel=2)
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        place = {file.removesuffix(".jpg"): int(i) for file, i in zip(self.files, self.image_ids)}
        found = [(place[name], self._label[label]) for name, label in read_columns(path, ("ImageID", "LabelName"))
                 if name in place and label in self._label]
        image, label = np.array(found, np.int64).reshape(-1, 2).T
        return image, label


def open_lines(path: Path) -> IO[str]:
    """A text file, open; see `open_file`."""
    return open_file(path, mode="r", encoding="utf-8-sig", newline="")


def read_columns(path: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """The rows of a table that starts with the names of its columns, cut to some of them."""
    with open_lines(path) as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if missing := [name for name in names if name not in header]:
                raise DataError(f"The table {path} has no column {missing[0]}; it starts with "
                                f"{','.join(header)[:100]!r}.")
            columns = [header.index(name) for name in names]
            for row in reader:
                if row:  # csv gives an empty one for an empty line
                    yield [row[c] for c in columns]
        except (IndexError, csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"Line {reader.line_num} of {path} is broken: {problem(error)}.") from error


def read_classes(path: Path, numbered: bool = False) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each class's code, and the classes' names by label.

    Lines are a code and a name, after a line of headings or none; in the challenge also a number from 1 on
    (`numbered`), which decides the order.
    """
    try:
        with open_lines(path) as file:
            rows = [row for row in csv.reader(file) if row]
        if len(rows) > 1 and not rows[0][0].startswith("/") and all(row[0].startswith("/") for row in rows[1:]):
            del rows[0]  # the headings
        if numbered:
            rows.sort(key=lambda row: int(row[2]) if len(row) > 2 else 0)
        codes = [row[0] for row in rows]
        label = {code: i for i, code in enumerate(codes)}
        if len(label) < len(rows):
            raise ValueError(f"the class {next(c for i, c in enumerate(codes) if label[c] != i)[:100]} is there twice")
        numbers = [int(row[2]) for row in rows if len(row) > 2] if numbered else []
        if numbers and numbers != list(range(1, len(rows) + 1)):
            raise ValueError("the third column does not number the classes from 1 on")
        return label, tuple(row[1] for row in rows)
    except (IndexError, ValueError, csv.Error) as error:
        what = "a line has too few columns" if isinstance(error, IndexError) else problem(error)
        raise DataError(f"The list of classes {path} is broken: {what}.") from error


GROUP = {"0": False, "1": True, "-1": False}  # -1: not known


def read_table(path: Path, label: Mapping[str, int]) -> Rows:
    """The boxes of a table of Open Images."""
    rows = Rows()
    places: dict[str, int] = {}
    lines = read_columns(path, ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf"))
    for number, (name, code, *box, group) in enumerate(
            tqdm(lines, desc=f"reading {path.name}", unit="box", unit_scale=True, leave=False, delay=3), 2):
        try:
            rows.add([float(x) for x in box], label[code], GROUP[group], places.setdefault(name, len(places)))
        except KeyError:
            what = (f"the class {code[:100]}, which the list of classes does not have" if code not in label else
                    f"{group[:100]!r} for IsGroupOf, which is 0, 1 or -1")
            raise DataError(f"Line {number} of {path} has {what}.") from None
        except ValueError as error:
            raise DataError(f"Line {number} of {path} is broken: {problem(error)}.") from error
    rows.files = [f"{inside(name, path)}.jpg" for name in places]
    return rows


def read_blocks(path: Path, label: Mapping[str, int]) -> Rows:
    """The boxes of a text file of the challenge: for each image its file, a line that is not used, the number of its
    boxes, and their lines of class (from 1 on), x1, y1, x2, y2 and whether it is a group."""
    rows, number, found, again = Rows(), 0, set[str](), [0, 0]
    with open_lines(path) as file:
        try:
            for name in file:
                number += 1
                if not name.strip():
                    continue
                count = int(list(islice(file, 2))[1])
                lines = list(islice(file, count))
                number += 2
                if not 0 <= count == len(lines):
                    raise ValueError("the file ends within an image")
                picture = f"{Path(inside(name.strip(), path)).stem}.jpg"
                twice = picture in found
                found.add(picture)
                if twice:
                    again = [again[0] + 1, again[1] + count]
                for line in lines:
                    number += 1
                    kind, x1, y1, x2, y2, group, *_ = line.split()
                    if not 1 <= int(kind) <= len(label):
                        raise ValueError(f"there is no class {kind[:100]}")
                    if group not in GROUP:
                        raise ValueError(f"whether it is a group is 0, 1 or -1, not {group[:100]}")
                    if not twice:
                        rows.add((float(x1), float(y1), float(x2), float(y2)), int(kind) - 1, GROUP[group])
                if not twice:
                    rows.files.append(picture)
        except (ValueError, IndexError) as error:
            what = "the file ends within an image" if isinstance(error, IndexError) else problem(error)
            raise DataError(f"{path} is broken near line {number}: {what}.") from error
    warn_again(path, *again)
    return rows


def read_hierarchy(path: Path, label: Mapping[str, int]) -> np.ndarray:
    """bool [C, C]: [i, j] where j is i or above it, from the tree of classes; what has no label does not count."""
    above = np.eye(len(label), dtype=bool)

    def walk(node: Mapping[str, Any], parents: tuple[int, ...]) -> None:
        for child in node.get("Subcategory", ()):
            mine = label.get(child["LabelName"])
            if mine is not None:
                above[mine, list(parents)] = True
            walk(child, parents if mine is None else (*parents, mine))

    with open_lines(path) as file:
        try:
            walk(json.load(file), ())
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise DataError(f"The hierarchy of classes {path} is broken: {problem(error)}.") from error
    return above


def read_tree(path: Path, classes: int) -> np.ndarray:
    """The same from the original's array of the challenge, whose first row and column stand for no class."""
    try:
        tree = np.load(path, allow_pickle=False)
        tree.astype(bool)
    except Exception as error:  # whatever NumPy raises of a broken file
        raise DataError(f"The hierarchy of classes {path} cannot be read: {error}.") from error
    if tree.shape != (classes + 1, classes + 1):
        raise DataError(f"The hierarchy of classes {path} is an array {list(tree.shape)}, not one of {classes} "
                        f"classes.")
    return tree[1:, 1:].astype(bool) | np.eye(classes, dtype=bool)
