"""Looking through the folder of a data set: what is there, what is missing, and what training would make of it."""
from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from detcore.data import classes, locate
from detcore.data.coco import CocoDataset, named
from detcore.data.dataset import Dataset, ReadOptions
from detcore.data.layouts import LAYOUTS, Layout, find_layout, get_layout
from detcore.data.options import DataOptions
from detcore.data.panoptic import PanopticMaps
from detcore.data.splits import open_split
from detcore.errors import DataError, DetcoreError, UsageError

DEFAULT = DataOptions()
DECODED = 20  # pictures of a split that are decoded
SHOWN = 10  # faults of one kind that are told one by one
SMALL, MEDIUM = 32**2, 96**2  # pixels: COCO's small and medium objects are below
OWN = frozenset(("person", "stop sign", "hair drier", "toothbrush"))  # classes by which COCO itself is told from others
TILE, TILES = 240, 24  # pixels and pictures of a contact sheet


@dataclass(frozen=True)
class Finding:
    """What one look found.

    Attributes:
        verdict: "ok"; "missing" or "broken", with which something cannot be done; "note", with which all can.
        what: the file, folder or split.
        text: what is known of it; of what is missing, where to get it.
    """

    verdict: str
    what: str
    text: str


def check(root: str | Path, layout: str | None = None, *, progress: bool = True,
          contact_sheet: str | Path | None = None, options: DataOptions = DEFAULT) -> list[Finding]:
    """Look through a data set: its files, all annotations with their masks and panoptic maps, whether every picture is
    there, and whether some open; what training would leave out, and how the classes of the splits agree.

    Args:
        layout: a name of `detcore.data.layouts.LAYOUTS`; by default the one that the files have.
        contact_sheet: an image file to be drawn, with some pictures of each split and their objects.
        options: where the files are, and what the classes are called.

    Raises:
        UsageError: there is no such layout.
        DataError: there is no such folder.
    """
    root = Path(root)
    form = get_layout(layout) if layout else find_layout(root)
    if not root.is_dir():
        raise DataError(f"There is no data set at {root}: no such folder.")
    if form.name == "coco" or options.train_annotations or options.val_annotations:
        found, openers = _coco(root, options)
    else:
        title = f"read as {form.title} (layout {form.name})"
        found = [Finding("ok" if form.fits(root) else "missing", str(root), title), *_needed(root, form)]
        openers = {split: partial(_opened, root, split, form.name, options) for split in ("train", "val")}
    opened: dict[str, Dataset] = {}
    for split, opener in openers.items():
        found += _split(split, opener, opened, progress)
    found += _agreement(opened)
    if contact_sheet is not None and opened:
        found.append(Finding("ok", str(contact_sheet), draw_sheet(opened, Path(contact_sheet))))
    return found


Opener = Callable[[ReadOptions], Dataset]


def _opened(root: Path, split: str, layout: str, options: DataOptions, how: ReadOptions) -> Dataset:
    return open_split(root, split, how, layout, options)


def _needed(root: Path, form: Layout) -> Iterator[Finding]:
    for needed in form.needed:
        wanted = Path(needed.path).suffix == "" or needed.path.endswith("*")  # a folder
        paths = (path for path in form.home(root).glob(needed.path) if path.is_dir() or not wanted)
        if next(paths, None) is not None:
            yield Finding("ok", needed.path, "")
        else:
            yield Finding("note" if needed.optional else "missing", needed.path, needed.what)


def _coco(root: Path, options: DataOptions) -> tuple[list[Finding], dict[str, Opener]]:
    """What is told of data in COCO's form, and how each split is opened."""
    files: dict[str, Path] = {}
    titles: dict[str, str] = {}
    for split in locate.SPLITS:
        given = {"train": options.train_annotations, "val": options.val_annotations}.get(split)
        source = locate.find_source(root, split)
        if given is not None:
            files[split], titles[split] = named(root, given), "COCO's form, as it is named"
        elif source is not None:
            files[split], titles[split] = source.annotations, source.title
    if not files:
        known = "; ".join(f"{layout.title}: {layout.marks[0]}" for layout in LAYOUTS.values())
        return [Finding("missing", str(root), f"has no form of data set that is known ({known}; COCO's as "
                        f"labelling tools export it: {', '.join(locate.EXAMPLES)})"),
                *(_needed(root, LAYOUTS["coco"]) if (root / "train2017").is_dir() else ())], {}
    title = next(iter(titles.values()))
    found = [Finding("ok", str(root), f"read as {'COCO 2017' if _of_coco(root) else title} (layout coco)")]
    if _of_coco(root):
        found += _needed(root, LAYOUTS["coco"])
    found += [Finding("ok", str(path.relative_to(root) if path.is_relative_to(root) else path),
                      f"objects of the {split} images") for split, path in files.items()]
    if options.holdout is not None and "train" in files:
        files = {"train": files["train"], "val": files["train"]} | {s: p for s, p in files.items() if s == "test"}
    if "train" not in files:
        found.append(Finding("missing", "train", "no annotations to train on; their file can be named "
                                                 "(train_annotations)"))
    elif "val" not in files:
        found.append(Finding("note", "val", "no annotations to validate on: hold out a share of the training images "
                                            "(--holdout 0.1), name their file (--val-annotations), or train without "
                                            "validation (--no-validate)"))

    return found, {split: partial(_opened, root, split, "coco", options) for split in files}


def _of_coco(root: Path) -> bool:
    """Whether a folder is meant for COCO 2017 itself, not for one's own data in its form."""
    for split in ("val", "train"):
        file = root / f"annotations/instances_{split}2017.json"
        if file.is_file():
            with open(file, "rb") as handle:
                head = handle.read(2**16)
                handle.seek(max(file.stat().st_size - 2**16, 0))
                ends = head + handle.read()
            return all(f'"{name}"'.encode() in ends for name in OWN)
    return False


def _split(split: str, opener: Opener, opened: dict[str, Dataset], progress: bool) -> Iterator[Finding]:
    """The annotations of a split with all that belongs to them, then its pictures."""
    masks = True
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            try:
                data = opener(ReadOptions(masks="bitmap"))
            except UsageError:  # data with boxes alone
                data, masks = opener(ReadOptions()), False
        except DetcoreError as error:
            yield Finding("broken", split, str(error))
            return
    opened[split] = data
    objects = data.objects()
    counted = f"{len(data)} images, {len(objects['labels'])} objects of {len(data.class_names)} classes"
    if len(data) == 0 or len(objects["labels"]) == 0:
        yield Finding("broken", split, f"{counted}: there is nothing to "
                                       f"{'train' if split == 'train' else 'evaluate'} on")
    else:
        yield Finding("ok", split, counted)
        yield from _objects(split, data, masks)
    for warning in told:
        yield Finding("note", split, str(warning.message))
    if len(objects["labels"]) and (data.trainable() if split == "train" else data.countable()) == 0:
        yield Finding("note" if isinstance(data, CocoDataset) and data.mask_problem else "broken", split,
                      "no object counts: they are crowds, flagged or have no mask")
    if masks and isinstance(data, CocoDataset):
        yield from _masks(split, data, progress)
    yield from _panoptic(split, data, progress)
    missing = _pictures(split, data, progress)
    if missing:
        yield Finding("missing", split, f"{len(missing)} of {len(data)} pictures, the first {missing[0]}")
        return
    data.masks = None
    for index in np.unique(np.linspace(0, len(data) - 1, DECODED).astype(int)).tolist() if len(data) else ():
        try:
            data.sample(index)
        except DataError as error:
            yield Finding("broken", split, str(error))


def _pictures(split: str, data: Dataset, progress: bool) -> list[str]:
    """The pictures that are not there."""
    missing = []
    for index in tqdm(range(len(data)), desc=f"pictures of {split}", unit="img", disable=not progress, leave=False):
        try:
            path = data.path(index)
            if not path.is_file():
                missing.append(str(path))
        except DetcoreError as error:
            missing.append(str(error))
    return missing


def _objects(split: str, data: Dataset, masks: bool) -> Iterator[Finding]:
    """Objects by size and by class, crowds and masks."""
    columns = data.objects()
    sides = columns["boxes"][:, 2:] - columns["boxes"][:, :2]
    area, plain = sides.prod(1), ~columns["flags"]
    crowds = int(columns["flags"].sum())
    with_mask = f"; {data.trainable()} with a mask" if isinstance(data, CocoDataset) and masks else ""
    small, medium = area < SMALL, (area >= SMALL) & (area < MEDIUM)
    sizes = (small, medium, ~small & ~medium)
    yield Finding("note", split, "objects by the size of their boxes: {} small (below 32^2 pixels), {} medium (below "
                  "96^2), {} large".format(*(int((plain & size).sum()) for size in sizes))
                  + f"; {crowds} crowds or flagged{with_mask}")
    for label, name in enumerate(data.class_names):
        own = plain & (columns["labels"] == label)
        if own.any():
            yield Finding("note", f"{split}, {name}", "{} objects: {} small, {} medium, {} large".format(
                int(own.sum()), *(int((own & size).sum()) for size in sizes)))
    empty = [name for label, name in enumerate(data.class_names) if not (plain & (columns["labels"] == label)).any()]
    if empty:
        yield Finding("note", split, f"no objects of {classes.listing(empty)}")


def _parallel(work: Callable[[int], str | None], count: int, title: str, progress: bool) -> Iterator[str]:
    """What a function has to say of the numbers up to `count`, where it has something."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        done: Iterable[str | None] = pool.map(work, range(count), chunksize=8)
        yield from filter(None, tqdm(done, desc=title, total=count, disable=not progress, leave=False))


def _told(split: str, faults: Iterable[str], what: str) -> Iterator[Finding]:
    """The first faults one by one, and how many more there are."""
    number = 0
    for number, fault in enumerate(faults, 1):
        if number <= SHOWN:
            yield Finding("broken", split, fault)
    if number > SHOWN:
        yield Finding("broken", split, f"{number - SHOWN} more {what} like that")


def _masks(split: str, data: CocoDataset, progress: bool) -> Iterator[Finding]:
    """Reads every object's mask."""
    yield from _told(split, _parallel(data.mask_fault, len(data), f"masks of {split}", progress), "images with masks")


def _panoptic(split: str, data: Dataset, progress: bool) -> Iterator[Finding]:
    """Reads every panoptic map, where there are any."""
    if not isinstance(data, CocoDataset):
        return
    name = data.annotation_file.stem.removeprefix("instances_")
    if not (data.root / f"annotations/panoptic_{name}.json").is_file():
        return
    try:
        maps = PanopticMaps(data.root, name, data._file_ids)  # type: ignore[arg-type]
    except DetcoreError as error:
        yield Finding("broken", split, str(error))
        return
    ids, sizes = data.image_ids.tolist(), data.sizes.tolist()

    def read(index: int) -> str | None:
        try:
            maps.read(ids[index], tuple(sizes[index]))
        except DetcoreError as error:
            return str(error)
        return None

    yield Finding("note", split, f"panoptic maps with {len(maps.things)} classes of things, {len(maps.stuff)} of stuff")
    yield from _told(split, _parallel(read, len(ids), f"panoptic maps of {split}", progress), "panoptic maps")


def _agreement(opened: dict[str, Dataset]) -> Iterator[Finding]:
    """Classes that the splits do not share."""
    if "train" not in opened:
        return
    train = opened["train"]
    for split, data in opened.items():
        if split == "train" or set(data.class_names) == set(train.class_names):
            continue
        used = {data.class_names[label] for label in np.unique(data.objects()["labels"]).tolist()}
        more = [name for name in data.class_names if name not in train.class_names]
        fewer = [name for name in train.class_names if name not in data.class_names]
        if more:
            yield Finding("broken" if used & set(more) else "note", split,
                          f"has the classes {classes.listing(more)}, which the training images do not have: if they "
                          f"are only called otherwise, rename them (--rename OLD=NEW)")
        if fewer:
            yield Finding("note", split, f"does not have the classes {classes.listing(fewer)} of the training images")


def draw_sheet(opened: dict[str, Dataset], path: Path) -> str:
    """Draw some pictures of each split with their boxes and class names on one image; says what is on it.

    Raises:
        DataError: the file cannot be written.
    """
    from detcore import draw

    rows: list[list[np.ndarray]] = []
    for data in opened.values():
        tiles = []
        for index in np.unique(np.linspace(0, len(data) - 1, TILES // len(opened)).astype(int)) if len(data) else ():
            try:
                sample = data.sample(int(index))
            except DataError:  # told already
                continue
            h, w = sample.image.shape[:2]
            picture = draw.boxes(sample.image[..., ::-1], sample.boxes, scale=TILE / max(h, w),
                                 colors=[draw.colour(label) for label in sample.labels.tolist()],
                                 labels=[data.class_names[label] for label in sample.labels.tolist()])
            tile = np.full((TILE, TILE, 3), 255, np.uint8)
            drawn = np.asarray(picture)[:TILE, :TILE, ::-1]
            tile[:drawn.shape[0], :drawn.shape[1]] = drawn
            tiles.append(tile)
        rows += [tiles[i:i + 6] for i in range(0, len(tiles), 6)]
    if not rows:
        return "no picture to draw"
    blank = np.full((TILE, TILE, 3), 255, np.uint8)
    sheet = np.concatenate([np.concatenate(row + [blank] * (6 - len(row)), 1) for row in rows])
    try:
        written = cv2.imwrite(str(path), sheet)
    except cv2.error:
        written = False
    if not written:
        raise DataError(f"The contact sheet {path} cannot be written: name a .png or .jpg file in a folder that is "
                        f"there.")
    return f"a contact sheet of {sum(map(len, rows))} pictures"
