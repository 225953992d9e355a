"""Where the files of data in COCO's form are: COCO's own places, and those of the tools that people label with.

    annotations/instances_train2017.json     train2017/                      COCO
    annotations/instances_train.json         train/, images/train/           Datumaro
    annotations/instances_default.json       images/, images/default/        CVAT
    train/_annotations.coco.json, valid/     train/, valid/                  Roboflow
    result.json                              images/                         Label Studio
"""
from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from detcore.errors import DataError

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
ALONE = ("result.json", "labels.json", "annotations.json", "_annotations.coco.json", "instances.json", "coco.json")
FOLDERS = ("images", "data", "JPEGImages", "imgs")
EXAMPLES = ("annotations/instances_train.json", "annotations/instances_default.json", "train/_annotations.coco.json",
            "result.json")
TRIED = 5  # pictures by which a folder is recognised


@dataclass(frozen=True)
class Source:
    """The annotation file of a split.

    Attributes:
        annotations: the file.
        title: the form that it has, for people.
        alone: it is the only one, of no split by name.
    """

    annotations: Path
    title: str
    alone: bool = False


def split_names(split: str) -> tuple[str, ...]:
    """What a split's files may be called."""
    return SPLITS.get(split, (split,))


def find_source(root: Path, split: str) -> Source | None:
    """The annotation file of a split; None where there is none. A file that is alone is the training images'."""
    named = _in_annotations(root)
    for name in split_names(split):
        for wanted in (f"{name}2017", name):
            if wanted in named:
                path = named[wanted]
                folder = root / "images" / path.stem.removeprefix("instances_")
                return Source(path, "Datumaro's COCO export" if folder.is_dir() else
                              "COCO" if (root / path.stem.removeprefix("instances_")).is_dir() else "COCO's form")
    for name in split_names(split):
        for path in (root / name / "_annotations.coco.json", root / name / "annotations.json",
                     root / name / "labels.json", root / f"annotations/{name}.json", root / f"{name}.json"):
            if path.is_file():
                return Source(path, "Roboflow's COCO export" if path.name.startswith("_") else "COCO's form")
        years = sorted(path for subset, path in named.items() if re.fullmatch(rf"{name}[-_]?\d+", subset))
        if years:
            return Source(years[-1], "COCO's form")
    return _alone(root, named) if split == "train" else None


def splits(root: Path) -> list[str]:
    """The splits that there are annotations of."""
    return [split for split in SPLITS if find_source(root, split) is not None]


def _in_annotations(root: Path) -> dict[str, Path]:
    """`annotations/instances_NAME.json` by their names in small letters."""
    found = sorted((root / "annotations").glob("instances_*.json"))
    return {path.stem.removeprefix("instances_").lower(): path for path in found}


def _alone(root: Path, named: dict[str, Path]) -> Source | None:
    every = {name for split in SPLITS.values() for name in split}
    others = [path for subset, path in named.items() if re.sub(r"[-_]?\d+$", "", subset) not in every]
    if len(others) == 1:
        return Source(others[0], "CVAT's COCO export", alone=True)
    for name in ALONE:
        if (root / name).is_file():
            return Source(root / name, "Label Studio's COCO export" if name == "result.json" else
                          "Roboflow's COCO export" if name.startswith("_") else "COCO's form", alone=True)
    return None


def missing(root: Path, split: str) -> DataError:
    """The sentence for a split that there are no annotations of."""
    what = {"val": "validation", "test": "test", "train": "training"}.get(split, split)
    how = "name their annotation file (--train-annotations, train_annotations)" if split == "train" else (
        "hold out a share of the training images (--holdout 0.1, holdout=0.1), name their annotation file "
        "(--val-annotations, val_annotations), or train without validation (--no-validate, validate=False)")
    there = splits(root)
    if not there:
        return DataError(f"{root} has no annotations of {what} images where COCO or labelling tools put them (COCO's "
                         f"own are annotations/instances_{split}2017.json; `detcore data check` tells more): {how}.")
    return DataError(f"{root} has no annotations of {what} images, only of {', '.join(there)} "
                     f"({find_source(root, there[0]).annotations}): {how}.")  # type: ignore[union-attr]


def find_folder(root: Path, split: str, annotations: Path, files: Sequence[str]) -> Path:
    """The folder from which on the pictures have the names that the annotations give them, or else one that holds
    pictures of these names somewhere below."""
    subset = annotations.stem.removeprefix("instances_")
    names = dict.fromkeys((subset, f"{split}2017", *split_names(split), "default"))
    folders = [*(root / name for name in names), *(root / "images" / name for name in names),
               *([] if annotations.parent.name == "annotations" else [annotations.parent]),
               *(root / name for name in FOLDERS), annotations.parent.parent / "images", root]
    folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    tried = [plain(name) for name in files[::max(len(files) // TRIED, 1)][:TRIED]]
    for folder in folders:
        if any((folder / name).is_file() for name in tried):
            return folder
    last = {PurePosixPath(name).name for name in tried}
    for folder in folders:
        if any(last & set(inside) for _, _, inside in os.walk(folder)):
            return folder
    return next((folder for folder in folders if folder != root), root / f"{split}2017")


def plain(name: str) -> str:
    """A picture's name with the separators of POSIX."""
    return name.replace("\\", "/")


class Pictures:
    """The files of a folder, and of all below, by their last part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, list[str]] = {}
        for where, _, names in os.walk(folder):
            inside = os.path.relpath(where, folder)
            for name in names:
                self.files.setdefault(name, []).append(name if inside == "." else f"{inside}/{name}")

    def find(self, name: str, split: str | None = None) -> str | None:
        """The picture, from the folder on, that ends as the name does; None where there is none.

        Raises:
            DataError: there are several.
        """
        parts = plain(name).split("/")
        found = self.files.get(parts[-1], [])
        if len(found) > 1:
            def same(path: str) -> tuple[int, bool]:
                theirs = path.split("/")
                length = next((i for i, (a, b) in enumerate(zip(theirs[::-1], parts[::-1])) if a != b), len(parts))
                return length, split is not None and any(n in theirs for n in split_names(split))

            best = max(map(same, found))
            found = [path for path in found if same(path) == best]
        if len(found) > 1:
            raise DataError(f"There are several pictures {parts[-1]} in {self.folder} ({found[0]}, {found[1]}), and "
                            f"the annotations do not say which is meant: name a folder of images (image_folder).")
        return found[0] if found else None
