"""What training, evaluation and benchmarks have in common: device, checks, models, data sets."""
from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch

from detcore.data.classes import listing, match
from detcore.data.coco import CocoDataset, fingerprint
from detcore.data.dataset import Dataset, ReadOptions
from detcore.data.options import DataOptions
from detcore.data.splits import open_split
from detcore.detectors import Detector
from detcore.errors import DataError, UsageError
from detcore.recipe import Recipe
from detcore.records import DataInfo
from detcore.weights import find, read_checkpoint, weights_file
from detcore.zoo.create import Model, Resolved, Restored, resolve, restore

DEFAULT_DATA = DataOptions()
FILES = (".safetensors", ".pt", ".pth")  # of weights


def pick_device(device: str | torch.device | None, processes: int = 1) -> torch.device:
    """The device asked for; None: the first GPU where there is one, else the CPU.

    Raises a UsageError if it does not exist here, or there are fewer GPUs than `processes`.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UsageError(f"There is no device {device!r}: it is cpu or cuda.") from None
    gpus = torch.cuda.device_count()
    if chosen.type == "cuda" and gpus == 0:
        raise UsageError("Device cuda was asked for, but PyTorch finds no GPU here.")
    if chosen.type == "cuda" and processes > gpus:
        raise UsageError(f"{processes} GPUs were asked for, but this machine has {gpus}.")
    if chosen.type == "cpu" and device is None and processes > 1:
        raise UsageError(f"{processes} GPUs were asked for, but PyTorch finds none here (device 'cpu' runs "
                         f"{processes} processes on the CPU).")
    return chosen


def ready_model(model: Model | Path, weights: str | Path | None = None, *, required: bool = False,
                recipe: Recipe | None = None, profile: str | None = None,
                check: Callable[[Resolved], None] | None = None, **options: Any) -> Restored:
    """A detector to be run, and what is known of it; on the CPU, in training mode.

    Args:
        model: a name of the zoo, a `ModelEntry`, a `Detector`, or a file that training wrote.
        weights: "published", a file or an address; None or "random" for random ones (a `Detector`: as it is).
        required: whether a name or an entry has to come with weights, be it "random".
        profile: for a file what it says by default.
        check: raises if the model will not do; called before the weights of a name or an entry are fetched.
        options: keyword options of the builder, None for its defaults.

    Raises:
        UsageError, WeightsError: the model is unknown, or its weights cannot be had or do not fit; options are given
            for a model that is built already, or that it does not have.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if isinstance(model, Detector) and options:
        raise UsageError(f"The {' and '.join(options)} of a detector that is built already cannot be changed here: "
                         f"give such options to what builds it.")
    check = check or (lambda subject: None)
    if is_file(model):
        if weights is not None:
            raise UsageError(f"{model} is a file of weights: give either it, or a model with other weights.")
        ready = restore(model, recipe=recipe, profile=profile, **options)
        check(ready.resolved)
        return ready
    assert not isinstance(model, Path)
    subject = resolve(model, recipe=recipe, profile=profile, weights=weights)
    check(subject)
    if weights is None and required and subject.entry is not None:
        raise UsageError(f"Which weights of {subject.name}? Name a file of them, 'published' or 'random'.")
    if weights is None or weights == "random":
        return Restored(subject.build(**options), subject, None)
    return subject.load(weights, **options)


def is_file(model: object) -> TypeGuard[str | Path]:
    """Whether a model is named by a file of weights."""
    return isinstance(model, Path) or isinstance(model, str) and (Path(model).is_file() or model.endswith(FILES))


def told(model: object, weights: str | Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """What a record keeps of how a model was made: "weights" (a file without its folder, "published", "random" or
    None), and the builder's "options" that were set."""
    source = model if weights is None and is_file(model) else weights
    return dict(weights=None if source is None else weights_file(str(source)),
                options={name: value if isinstance(value, (int, float, str)) else repr(value)
                         for name, value in options.items() if value is not None})


def load_data(root: str | Path, recipe: Recipe, split: str = "val", *, training: bool = False,
              proposals: str | Path | None = None, options: DataOptions = DEFAULT_DATA) -> Dataset:
    """A split of a data set as a recipe wants it, in the recipe's layout or the one that the files have.

    Args:
        options: where the files are, and what the classes are called.

    Raises:
        DataError: it is missing or broken, has no image, or in training no object, or no mask where these are learnt.
        UsageError: the recipe needs precomputed proposals and none are given, or masks and the data set has none; an
            option is for data in COCO's form, and these are not.
    """
    if recipe.max_proposals and proposals is None:
        raise UsageError("This model takes precomputed proposals: make a file of them with `detcore proposals` and "
                         "name it.")
    how = ReadOptions(
        classes=recipe.classes, transforms=recipe.train_transforms if training else recipe.test_transforms,
        masks=recipe.masks if training else None, filter_empty=training and recipe.filter_empty,
        min_size=recipe.min_size if training else 0, min_box=recipe.min_box if training else 0,
        proposals=proposals if recipe.max_proposals else None,
        max_proposals=recipe.max_proposals if training else None, panoptic="panoptic" in recipe.metric)
    data = open_split(root, split, how, recipe.layout, options)
    if len(data) == 0 or training and data.trainable() == 0:
        what = "image" if len(data) == 0 and not (training and recipe.filter_empty) else "object"
        use = "train on" if training else "evaluate on"
        if isinstance(data, CocoDataset) and data.mask_problem and what == "object":
            raise DataError(f"{data.mask_problem}: this model learns masks, so export the data with masks, or train a "
                            f"model of boxes alone.")
        if training and len(data) and (n := len(data.objects()["labels"])):
            raise DataError(f"{data.annotation_file} has no object to train on: all {n} are crowds (iscrowd), as CVAT "
                            f"exports what is painted with a brush, or flagged otherwise; export them as polygons, or "
                            f"set iscrowd to 0.")
        raise DataError(f"{data.annotation_file} has no {what} to {use}: name another data set or split.")
    if not training and data.countable() == 0:
        warnings.warn(f"{data.annotation_file} has no object that counts in an evaluation (crowds do not): the metrics "
                      f"of its {len(data)} images are not defined.", stacklevel=2)
    return data


def describe(dataset: Dataset) -> DataInfo:
    """A data set as a record names it; its fingerprint is also of the options that change what is read."""
    digits, how = fingerprint(dataset.annotation_file), dataset.options
    changed = [how.holdout, how.held, sorted(how.rename.items()), how.skip_unlisted, not how.exif]
    if any(changed):
        digits = hashlib.sha256(f"{digits} {changed}".encode()).hexdigest()[:12]
    return DataInfo(name=dataset.annotation_file.stem, fingerprint=digits, images=len(dataset))


def match_classes(dataset: Dataset, names: Sequence[str] | None, title: str) -> None:
    """Let a data set have the classes of a model (None where it does not tell them) or of other data, by their names.

    Raises:
        UsageError: it has objects of other classes.
    """
    # The classes of Open Images have codes, and an order of the data set's own; names differ from file to file.
    if names is not None and not (dataset.layout.startswith("openimages") and len(names) == len(dataset.class_names)):
        dataset.relabel(names, title)


def match_stuff(dataset: Dataset, names: Sequence[str] | None, title: str) -> None:
    """The same of the stuff of panoptic annotations."""
    maps = dataset.panoptic
    if maps is None or names is None or maps.stuff == tuple(names):
        return
    things = len(dataset.class_names)
    table = match(maps.stuff, names, range(len(maps.stuff)), file=maps.file, title=title)
    maps._labels = {category: label if label < things else things + int(table[label - things])
                    for category, label in maps._labels.items()}
    maps.stuff = tuple(names)


def check_stuff(model: Detector, stuff: int | None) -> None:
    """Raise a UsageError for a model that tells another number of classes of stuff apart than the data have."""
    told = next((m.stuff for m in model.modules() if isinstance(getattr(m, "stuff", None), int)), 0)
    if stuff is not None and told != stuff:
        raise UsageError(f"The model tells {told} classes of stuff apart, but the data have {stuff}: train it on them, "
                         f"or build it with that number (stuff={stuff}).")


def weights_classes(subject: Resolved, weights: str | Path | None, data: Dataset) -> tuple[str, ...] | None:
    """The class names of the weights that training starts from, where they are those of the data, maybe in another
    order; None where they are others, or not known."""
    if weights is None or weights == "random":
        return None
    names = read_checkpoint(find(subject.published if weights == "published" else weights)).classes
    if names is None or set(names) == set(data.class_names):
        return names
    if len(names) == len(data.class_names):
        warnings.warn(f"The weights are of the classes {listing(names)}, the data of {listing(data.class_names)}: "
                      f"training starts from what the weights know of the others; rename classes that are only called "
                      f"otherwise (--rename OLD=NEW, rename={{old: new}}).", stacklevel=3)
    return None


def loading_processes(device: torch.device, asked: int | None) -> int:
    """How many processes load images; by default a few for a GPU, and none but the one that computes on the CPU."""
    if asked is not None:
        return asked
    return min(4, os.cpu_count() or 1) if device.type == "cuda" else 0
