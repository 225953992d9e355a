"""What the zoo knows of a model: how to build it, how it is trained, what was published of it."""
from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from torch import nn

from detcore.data.transforms import Preprocess
from detcore.errors import UsageError
from detcore.pocket.profile import SLIM, Pocket, Slim
from detcore.zoo.recipes import TORCHVISION, Recipe
from detcore.zoo.weights import announced_hash, weights_file

Profile = Literal["coco", "pocket"]
PROFILES = ("coco", "pocket")


@dataclass(frozen=True)
class Published:
    """What the original zoo publishes of a model; None where it says nothing. Source: `published.csv`.

    Attributes:
        dataset: what it was evaluated on.
        box_ap, mask_ap, panoptic_quality, average_recall: in percent; recall is of 1000 proposals.
        training_memory_gb: of each GPU.
        inference_ms: an image, with the `hardware`, `precision` and `resolution` (height x width) it was measured at.
        epochs, iterations: length of the training.
        checkpoint: address of the weights.
    """

    dataset: str | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    panoptic_quality: float | None = None
    average_recall: float | None = None
    training_memory_gb: float | None = None
    inference_ms: float | None = None
    hardware: str | None = None
    precision: str | None = None
    resolution: str | None = None
    epochs: int | None = None
    iterations: int | None = None
    checkpoint: str | None = None


@cache
def published_results() -> dict[str, Published]:
    """The published facts of every model that has a checkpoint, by name."""
    read: dict[str, Callable[[str], Any]] = {
        f.name: float if "float" in str(f.type) else int if "int" in str(f.type) else str for f in fields(Published)}
    text = files("detcore.zoo").joinpath("published.csv").read_text("utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["name"]: Published(**{key: of(row[key]) for key, of in read.items() if row[key]})
            for row in rows if row["checkpoint"]}


@dataclass(frozen=True)
class Backbone:
    """A backbone, and what its pretrained weights are.

    Attributes:
        name: for people.
        origin: who trained the pretrained weights, or the framework that did: "TorchVision", "MSRA", "Caffe2", "Pycls"
            and so on; "none" where training starts from random weights.
        build: makes the network; slim: one of the same form at the pocket profile's size.
        preprocess: how the pretrained weights want their images.
        weights: where they are, as `load_backbone` takes it; None: training starts from random weights.
        pocket_weights: whether training starts from pretrained weights in the pocket profile.
    """

    name: str
    origin: str
    build: Callable[..., nn.Module]
    weights: str | None
    preprocess: Preprocess = TORCHVISION
    slim: Slim = SLIM
    pocket_weights: bool = True

    @property
    def sha256(self) -> str | None:
        """The first digits of the SHA-256 of the file of weights, None where its name does not tell them.

        torchvision's own names and addresses tell them, too.
        """
        return announced_hash(weights_file(self.weights)) if self.weights else None


@dataclass(frozen=True)
class ModelEntry:
    """A model of the zoo.

    Attributes:
        name, family: as published.
        builder: takes a backbone, the number of classes and `options`, and gives the detector.
        recipe: its published training.
        pocket: its pocket-size settings.
        num_classes: of the published model.
    """

    name: str
    family: str
    builder: Callable[..., nn.Module] = field(repr=False)
    backbone: Backbone = field(repr=False)
    recipe: Recipe = field(repr=False)
    pocket: Pocket = field(repr=False)
    num_classes: int = 80
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, num_classes: int | None = None, profile: str = "coco") -> nn.Module:
        """The model with random weights; `num_classes` defaults to the profile's data set."""
        if check_profile(profile) == "pocket":
            return self.build_pocket(num_classes)
        return self.builder(self.backbone.build(), num_classes or self.num_classes, **self.options)

    def build_pocket(self, num_classes: int | None = None) -> nn.Module:
        """The same method at the size of the pocket profile, with random weights."""
        options = {**self.options, **self.pocket.options}
        return self.builder(self.backbone.slim.build(), num_classes or self.pocket.num_classes, **options)

    def recipe_for(self, profile: str) -> Recipe:
        """The published recipe, or the pocket profile's, which keeps the published data set's form and sampling."""
        if check_profile(profile) == "pocket":
            return replace(self.pocket.recipe, layout=self.recipe.layout, sampling=self.recipe.sampling)
        return self.recipe

    def backbone_weights(self, profile: str) -> str | None:
        """Where the pretrained backbone is, as `load_backbone` takes it; None where training starts from scratch."""
        if check_profile(profile) == "coco":
            return self.backbone.weights
        return str(self.backbone.slim.file) if self.backbone.pocket_weights else None

    @property
    def published(self) -> Published | None:
        """The published results, None where there are none."""
        return published_results().get(self.name)

    @property
    def checkpoint(self) -> str | None:
        """Address of the published weights."""
        return self.published.checkpoint if self.published else None


def check_profile(profile: str) -> str:
    """The profile, if there is one of that name.

    Raises:
        UsageError: there is none.
    """
    if profile not in PROFILES:
        raise UsageError(f"There is no profile {profile!r}: it is one of {', '.join(PROFILES)}.")
    return profile
