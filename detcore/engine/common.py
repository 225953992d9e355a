"""What training, evaluation and benchmarks have in common: device, checks, models, data sets."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import torch

from detcore.data.coco import fingerprint
from detcore.data.dataset import Dataset, ReadOptions
from detcore.data.layouts import find_layout
from detcore.detectors import Detector
from detcore.errors import UsageError
from detcore.recipe import Recipe
from detcore.records import DataInfo
from detcore.weights import weights_file
from detcore.zoo.create import Model, Resolved, Restored, resolve, restore

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
              proposals: str | Path | None = None) -> Dataset:
    """A split of a data set as a recipe wants it, in the recipe's layout or the one that the files have.

    Raises:
        DataError: it is missing or broken.
        UsageError: the recipe needs precomputed proposals and none are given, or masks and the data set has none.
    """
    if recipe.max_proposals and proposals is None:
        raise UsageError("This model takes precomputed proposals: make a file of them with `detcore proposals` and "
                         "name it.")
    return find_layout(root, recipe.layout).open(Path(root), split, ReadOptions(
        classes=recipe.classes, transforms=recipe.train_transforms if training else recipe.test_transforms,
        masks=recipe.masks if training else None, filter_empty=training and recipe.filter_empty,
        min_size=recipe.min_size if training else 0, min_box=recipe.min_box if training else 0,
        proposals=proposals if recipe.max_proposals else None,
        max_proposals=recipe.max_proposals if training else None, panoptic="panoptic" in recipe.metric))


def describe(dataset: Dataset) -> DataInfo:
    """A data set as a record names it."""
    return DataInfo(name=dataset.annotation_file.stem, fingerprint=fingerprint(dataset.annotation_file),
                    images=len(dataset))


def loading_processes(device: torch.device, asked: int | None) -> int:
    """How many processes load images; by default a few for a GPU, and none but the one that computes on the CPU."""
    if asked is not None:
        return asked
    return min(4, os.cpu_count() or 1) if device.type == "cuda" else 0
