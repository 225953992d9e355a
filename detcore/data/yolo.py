"""YOLO's text format: a file `data.yaml`, pictures, and beside them a text file of objects for each.

    data.yaml                   train: images/train   val: images/val   names: [cat, dog], or {0: cat, 1: dog}
    images/train/a.jpg          labels/train/a.txt     or train/images/a.jpg, train/labels/a.txt

A line is `class cx cy w h` for a box or `class x1 y1 x2 y2 ...` for a polygon, in shares of the upright picture's width
and height. A picture without such a file has no objects. `train`, `val` and `test` are folders or lists of pictures, or
several of them, from `path` on (which is under the folder of `data.yaml`, or an address of its own), or as Roboflow
writes them (`../train/images`). A file that is missing or broken is a `DataError` with its name and line.
"""
from __future__ import annotations

import os
import re
import warnings
from array import array
from collections.abc import Iterable, Mapping
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from detcore.data.dataset import DEFAULT_OPTIONS, Dataset, ReadOptions, Rows
from detcore.data.images import picture_sizes
from detcore.data.text import PICTURES, listed, problem, read_text, warn_again
from detcore.errors import DataError, UsageError
from detcore.structures import rasterise

SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LARGEST_SETTINGS = 2_000_000  # bytes


class YoloDataset(Dataset):
    """Pictures with boxes or polygons of YOLO's text files; polygons give masks.

    Objects of which there is a box alone are ignored where masks are asked for.
    """

    def __init__(self, root: str | Path, split: str = "train", options: ReadOptions = DEFAULT_OPTIONS) -> None:
        """
        Args:
            root: the folder of `data.yaml`.
            split: "train", "val" or "test".
        """
        for what, unread in ("panoptic maps", options.panoptic), ("proposals", options.proposals):
            if unread:
                raise UsageError(f"YOLO's format is read with boxes and masks, but this model needs {what}: train it "
                                 f"on a data set in COCO's layout.")
        super().__init__(root, "", options, "yolo")
        self.annotation_file = settings_file(self.root)
        settings = read_settings(self.annotation_file)
        known = read_names(settings, self.annotation_file)
        if missing := [name for name in options.classes or () if name not in known]:
            raise UsageError(f"{self.annotation_file} has no class {missing[0]!r}; it has {listed(list(known), 50)}.")
        self.class_names = tuple(options.classes or known)
        self.image_folder, files, scanned = find_pictures(self.root, settings, split, self.annotation_file)
        label = {name: i for i, name in enumerate(self.class_names)}
        rows, points, ends = read_labels(self.image_folder, files, [label.get(name, -1) for name in known],
                                         self.annotation_file, scanned)
        stamps = [(at.st_size, at.st_mtime_ns) for at in map(_stat, (self.image_folder / file for file in files))]
        self.size_file = self.annotation_file.with_suffix(f".{split}.sizes.npz")
        sizes = picture_sizes(self.image_folder, files, self.size_file, upright=options.exif, stamps=stamps)
        taken = self.take(rows, sizes, shares=True)
        self._points, begins = np.array(points, np.float32), np.array([0, *ends], np.int64)
        self._spans = np.stack([begins[:-1], begins[1:]], 1)[taken]
        boxes = int((self._spans[:, 0] == self._spans[:, 1]).sum())
        if self.masks is not None and boxes:
            if boxes == len(taken):
                raise UsageError(f"The {split} images of {self.annotation_file} have boxes alone, but this model needs "
                                 f"masks: give polygons, or train a model of boxes.")
            warnings.warn(f"{self.annotation_file}: {boxes} of {len(taken)} objects have a box but no polygon; where "
                          f"masks are trained they are ignored.", stacklevel=2)

    def _mask(self, row: int, size: tuple[int, int]) -> np.ndarray | list[np.ndarray] | None:
        ring = self._points[slice(*self._spans[row])].reshape(-1, 2) * np.array(size[::-1], float)
        if not len(ring):
            return None
        if self.masks == "polygon":
            return [ring]
        mask = rasterise([ring], *size)
        return mask if mask.any() else None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError:
        raise DataError(f"There is no image file {path}.") from None


def recognised(root: Path) -> bool:
    """Whether a folder has a file of settings by its usual name, or one of another name that has names of classes."""
    path = settings_file(root)
    if path.name in SETTINGS:
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(100_000)
    except OSError:
        return False
    return all(re.search(key, head, re.MULTILINE) for key in (rb"^(names|nc)\s*:", rb"^(train|val)\s*:"))


def settings_file(root: Path) -> Path:
    """The file of settings of a folder."""
    found = [root / name for name in SETTINGS if (root / name).is_file()]
    found = found or sorted(path for end in ("*.yaml", "*.yml") for path in root.glob(end))
    if not found:
        raise DataError(f"There is no file data.yaml in {root}.")
    return found[0]


def read_settings(path: Path) -> dict[str, Any]:
    """The settings, in which every number is text; DataError where the file is broken or of another task."""
    if path.stat().st_size > LARGEST_SETTINGS:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes, more than the settings of a data set.")
    try:
        settings = yaml.load(read_text(path), getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is broken: {' '.join(problem(error).split())}.") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path} is no list of settings such as `train: images/train`.")
    task = str(settings.get("task", "detect"))[:50]
    if settings.get("kpt_shape") or task not in ("", "detect", "segment"):
        raise DataError(f"{path} is of {'key points' if settings.get('kpt_shape') else f'the task {task}'}: boxes and "
                        f"polygons are read, not key points or turned boxes.")
    return settings


def read_names(settings: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The names of the classes, from 0 on."""
    names, count = settings.get("names"), settings.get("nc", "")
    try:
        number = int(str(count)) if count else None
        if not names:
            names = [f"class {i}" for i in range(min(number or 0, 100_000))]
        if isinstance(names, dict):
            if sorted(numbered := {int(str(key)): name for key, name in names.items()}) != list(range(len(names))):
                raise ValueError(f"its names are not numbered from 0 to {len(names) - 1}")
            names = [numbered[i] for i in range(len(numbered))]
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError("its names are not a list of names")
        names = [name.strip() for name in names]
        if not names:
            raise ValueError("it has no names of classes")
        if again := sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []:
            raise ValueError(f"it has the name {again[0][:100]!r} twice")
        if number not in (None, len(names)):
            raise ValueError(f"nc is {number}, but there are {len(names)} names")
    except ValueError as error:
        raise DataError(f"{path} is broken: {problem(error)}.") from None
    return tuple(names)


def find_pictures(root: Path, settings: Mapping[str, Any], split: str, path: Path) -> tuple[Path, list[str], bool]:
    """The pictures of a split in the order of their names.

    Returns:
        The folder that they are under, their names from it on, and whether all are of folders (not of lists).
    """
    if split not in SPLITS:
        raise UsageError(f"YOLO's format has no split {split!r}: it has {', '.join(SPLITS)}.")
    said = next((settings[key] for key in SPLITS[split] if settings.get(key)), None)
    entries = said if isinstance(said, list) else [] if said is None else [said]
    if not entries:
        there = ", ".join(name for name, keys in SPLITS.items() if any(settings.get(key) for key in keys))
        raise DataError(f"{path} names no pictures of the split {split} (it has {there or 'none'}): add a line "
                        f"`{split}: FOLDER`.")
    if not all(isinstance(entry, str) and entry.strip() and "\0" not in entry for entry in entries):
        raise DataError(f"{path} is broken: {split} is neither a folder nor a list of pictures, nor several of them.")
    own = settings.get("path")
    base = root
    if isinstance(own, str) and own.strip() and "\0" not in own and (root / own).is_dir():
        base = Path(os.path.normpath(root / own))
        if not Path(own).is_absolute() and not _under(base, root):
            base = root
    bases = tuple(dict.fromkeys((base, root)))
    found: list[str] = []
    scanned = True
    for entry in entries:
        place = _find(entry, bases)
        if place is None:
            raise DataError(f"{path} says that pictures of {split} are in {entry[:200]}: there is no such folder or "
                            f"list under {' or '.join(map(str, bases))}.")
        if place.is_file():
            scanned = False
            lines = [line.strip() for line in read_text(place, "list of pictures").splitlines()]
            for number, line in enumerate(lines, 1):
                if not line:
                    continue
                picture = _find(line, (place.parent, *bases)) if "\0" not in line else None
                if picture is None or not picture.is_file() or not any(_under(picture, one) for one in bases):
                    raise DataError(f"Line {number} of {place} names the picture {line[:200]}, which is not under "
                                    f"{' or '.join(map(str, bases))}.")
                found.append(str(picture))
        else:
            for folder, below, names in os.walk(place, followlinks=True):
                below[:] = sorted(name for name in below if not name.startswith("."))
                found += [os.path.join(folder, name) for name in sorted(names)
                          if name.lower().endswith(PICTURES) and not name.startswith(".")]
    if not found:
        raise DataError(f"There are no pictures ({', '.join(PICTURES)}) of {split} in {listed(entries)} of {path}.")
    once = sorted(dict.fromkeys(found))
    warn_again(path, len(found) - len(once))
    home = base if all(_under(Path(picture), base) for picture in once) else root
    if not all(_under(Path(picture), home) for picture in once):
        home = Path(os.path.commonpath(once)).parent
    return home, [os.path.relpath(picture, home) for picture in once], scanned


def _under(path: Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _find(name: str, bases: Iterable[Path]) -> Path | None:
    """The file or folder under one of `bases` that is meant by a name: as it is, without "../" at its front (Roboflow),
    or the end of an address of another machine."""
    bases, name = tuple(bases), name.strip().replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    ends = [parts]
    while parts and parts[0] == "..":
        parts = parts[1:]
        ends.append(parts)
    if name.startswith("/") or name[1:2] == ":":
        ends = [["/", *parts], *(parts[i:] for i in range(max(len(parts) - 4, 0), len(parts)))]
    for end in ends:
        for base in bases:
            path = Path(os.path.normpath(base.joinpath(*end)))
            try:
                if any(_under(path, one) for one in bases) and path.exists():
                    return path
            except OSError:  # a name that is too long
                return None
    return None


def label_files(picture: str) -> tuple[str, str]:
    """Where the text file of a picture may be: in `labels` in place of the last `images`, or beside it."""
    parts, beside = picture.split(os.sep), f"{os.path.splitext(picture)[0]}.txt"
    place = next((i for i in reversed(range(len(parts) - 1)) if parts[i].lower() == "images"), None)
    if place is None:
        return beside, beside
    return os.path.join(*parts[:place], "labels", *parts[place + 1:-1], os.path.basename(beside)), beside


def read_labels(folder: Path, files: list[str], labels: list[int], settings: Path,
                scanned: bool) -> tuple[Rows, array, array]:
    """The objects of pictures.

    Args:
        labels: the label of each class, -1 for none.
        scanned: tell of text files without a picture.

    Returns:
        Rows, in shares of the pictures; the corners of all polygons as shares; and where each object's end in them.
    """
    rows, points, ends = Rows(), array("f"), array("q")
    used: dict[str, set[str]] = {}
    for file in tqdm(files, desc=f"reading labels of {folder.name}", unit="img", leave=False, delay=3):
        for name in dict.fromkeys(label_files(file)):
            if (folder / name).is_file():
                parent, _, last = name.rpartition(os.sep)
                used.setdefault(parent, set()).add(last)
                _read_lines(folder / name, labels, rows, points, ends)
                break
        rows.files.append(file)
    if not used:
        warnings.warn(f"{settings}: none of the {len(files)} pictures has a text file of objects, such as "
                      f"{folder / label_files(files[0])[0]}.", stacklevel=3)
    if scanned:
        left = [os.path.join(parent, name) for parent, names in used.items() for name in os.listdir(folder / parent)
                if name.endswith(".txt") and name not in names and name not in ("classes.txt", "train.txt", "val.txt")]
        if left:
            warnings.warn(f"{settings}: {len(left)} text files of objects have no picture and are left out (the first: "
                          f"{min(left)}).", stacklevel=3)
    return rows, points, ends


def _read_lines(path: Path, labels: list[int], rows: Rows, points: array, ends: array) -> None:
    """Read a text file of objects."""
    for number, line in enumerate(read_text(path, "file of objects").splitlines(), 1):
        if not (fields := line.split()):
            continue
        try:
            kind, *shares = map(float, fields)
        except ValueError as error:
            raise DataError(f"Line {number} of {path} is broken: {problem(error)}.") from None
        if not kind % 1 == 0 <= kind < len(labels):
            raise DataError(f"Line {number} of {path} has the class {kind:g}, but there are names of the classes 0 to "
                            f"{len(labels) - 1}.")
        if len(shares) == 4:
            x, y, w, h = shares
            box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        elif len(shares) >= 6 and len(shares) % 2 == 0:
            sound = all(map(isfinite, shares))
            xs, ys = shares[::2], shares[1::2]
            box = (min(xs), min(ys), max(xs), max(ys)) if sound else (nan,) * 4  # which is dropped and counted
            points.extend(shares)
        else:
            raise DataError(f"Line {number} of {path} has {len(shares) + 1} numbers: a box has 5, a polygon 7, 9, 11 "
                            f"and so on; key points, angles and scores are not read.")
        rows.add(box, labels[int(kind)])
        ends.append(len(points))
