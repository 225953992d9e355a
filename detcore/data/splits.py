"""Opening a split of a data set in whatever form its files have, where the options of one's own data say."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from detcore.data import locate
from detcore.data.classes import listing
from detcore.data.coco import CocoDataset, named
from detcore.data.dataset import Dataset, ReadOptions
from detcore.data.layouts import find_layout
from detcore.data.options import DataOptions
from detcore.errors import UsageError


def open_split(root: str | Path, split: str, how: ReadOptions, layout: str, options: DataOptions) -> Dataset:
    """A split of a data set in the form that its files have, `layout` where that fits.

    Raises:
        DataError: it is missing or broken.
        UsageError: an option is for data in COCO's form, and these are not; two classes get one name in another form.
    """
    root = Path(root)
    how = replace(how, rename=options.names, skip_unlisted=options.skip_unlisted,
                  exif=not options.ignore_exif)
    if options.holdout is not None and split in ("train", "val"):
        how, split = replace(how, holdout=options.holdout, held=split == "val"), "train"
    annotations = {"train": options.train_annotations, "val": options.val_annotations}.get(split)
    form = find_layout(root, layout)
    if annotations is not None:
        annotations = named(root, annotations)
    if annotations is not None or form.name == "coco":
        return CocoDataset.locate(root, split, how, annotations, options.image_folder)
    if options.image_folder is not None:
        raise UsageError(f"A folder of images (image_folder) is named for data in COCO's form; {root} is read as "
                         f"{form.title}.")
    data = form.open(root, split, how)
    names = tuple(options.names.get(name, name) for name in data.class_names)
    if len(set(names)) < len(data.class_names):
        raise UsageError(f"Two classes of {data.annotation_file} would have one name ({listing(names)}).")
    data.class_names = names
    return data


def has_split(root: str | Path, split: str, layout: str, options: DataOptions) -> bool:
    """Whether there is such a split, as far as the places of files tell, of data in COCO's form."""
    root = Path(root)
    named_there = (options.holdout or options.val_annotations) if split == "val" else options.train_annotations
    return bool(named_there) or find_layout(root, layout).name != "coco" or split in locate.splits(root)
