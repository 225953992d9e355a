"""What training, evaluation and benchmarks have in common: device, folders, data sets."""
from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType

import torch

from detcore.data.coco import fingerprint
from detcore.data.dataset import Dataset, Wanted
from detcore.data.layouts import find_layout
from detcore.errors import DetcoreError, UsageError
from detcore.records import DataInfo
from detcore.zoo.recipes import Recipe

TRAIN, VAL = "train", "val"


def pick_device(device: str | torch.device | None, processes: int = 1) -> torch.device:
    """The device asked for; None: the first GPU where there is one, else the CPU.

    Raises:
        UsageError: it does not exist here, or there are fewer GPUs than `processes`.
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


def pick_profile(profile: str | None, weights: object) -> str:
    """The profile asked for; None: the published one with published weights, else the one for a small machine."""
    return profile or ("coco" if weights == "published" else "pocket")


def output_folder(path: str | Path) -> Path:
    """The folder, made if it is not there, and known to take files.

    Raises:
        DetcoreError: it cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DetcoreError(f"The output folder {path} cannot be written to: {error.strerror}.") from error
    return path


def load_data(root: str | Path, recipe: Recipe, split: str = VAL, *, training: bool = False,
              proposals: str | Path | None = None) -> Dataset:
    """A split of a data set as a recipe wants it, in the recipe's layout or the one that the files have.

    Raises:
        DataError: it is missing or broken.
        UsageError: the recipe needs precomputed proposals and none are given, or masks and the data set has none.
    """
    if recipe.max_proposals and proposals is None:
        raise UsageError("This model takes precomputed proposals: make a file of them with `detcore proposals` and "
                         "name it.")
    return find_layout(root, recipe.layout).open(Path(root), split, Wanted(
        classes=recipe.classes, transforms=recipe.train_transforms if training else recipe.test_transforms,
        masks=recipe.masks if training else None, filter_empty=training and recipe.filter_empty,
        min_size=recipe.min_size if training else 0, min_box=recipe.min_box if training else 0,
        proposals=proposals if recipe.max_proposals else None,
        max_proposals=recipe.max_proposals if training else None, panoptic="panoptic" in recipe.metric))


def describe(dataset: Dataset) -> DataInfo:
    """A data set as a record names it."""
    return DataInfo(name=dataset.annotation_file.stem, fingerprint=fingerprint(dataset.annotation_file),
                    images=len(dataset))


def loading_processes(device: torch.device) -> int:
    """How many processes load images: for a GPU a few; where the CPU computes, none but the one that does."""
    return min(4, os.cpu_count() or 1) if device.type == "cuda" else 0


class Interruption:
    """Lets Ctrl-C or a request to terminate wait for the end of a step; a second Ctrl-C does not wait.

    Used as a context; `wanted` tells whether it was asked for. Outside of the main thread it does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._ask) for s in self.SIGNALS}
        else:
            self._before = {}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
