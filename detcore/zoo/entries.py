"""What the zoo knows of a model: how to build it, how it is trained, what was published of it.

An entry needs no registration: one that a user makes goes wherever a name of the zoo goes,

    entry = ModelEntry("my-net", my_builder, Recipe(epochs=24))
    detcore.train(entry, "data/coco")
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from torch import nn

from detcore.data.transforms import Preprocess
from detcore.detectors import Detector
from detcore.errors import UsageError
from detcore.options import check_options
from detcore.pocket.profile import Pocket
from detcore.pocket.slim import SLIM, Slim
from detcore.recipe import TORCHVISION, Recipe
from detcore.weights import announced_hash, weights_file
from detcore.zoo.index import Published, rows
from detcore.zoo.recipes import Change

PROFILES = ("coco", "pocket")
CONVERTED = "https://download.openmmlab.com/pretrain/third_party/"  # files converted from other frameworks


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
        label: what it is called in the names of models, such as "r50-caffe".
    """

    name: str
    origin: str
    build: Callable[..., nn.Module]
    weights: str | None = None
    preprocess: Preprocess = TORCHVISION
    slim: Slim = SLIM
    pocket_weights: bool = True
    label: str = ""

    @property
    def sha256(self) -> str | None:
        """The first digits of the SHA-256 of the file of weights, None where its name does not tell them.

        torchvision's own names and addresses tell them, too.
        """
        return announced_hash(weights_file(self.weights)) if self.weights else None


@dataclass(frozen=True)
class ModelEntry:
    """A model: its name, how it is built, how it is trained.

    Attributes:
        name: of the zoo, or another one.
        builder: gives the detector: `builder(backbone, num_classes, **options)`, or `builder(num_classes, **options)`
            where there is no backbone. What may be set when a model is made are its keyword-only arguments.
        recipe: its training; of a model of the zoo, the published one.
        backbone: with its pretrained weights.
        family: as published; None for a model that is not of the zoo.
        pocket: its pocket-size settings, None where it has none.
        num_classes: that it tells apart if nothing else is asked for.
        options: for the builder.
    """

    name: str
    builder: Callable[..., Detector] = field(repr=False)
    recipe: Recipe = field(repr=False)
    backbone: Backbone | None = field(default=None, repr=False)
    _: KW_ONLY
    family: str | None = None
    pocket: Pocket | None = field(default=None, repr=False)
    num_classes: int = 80
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, num_classes: int | None = None, profile: str = "coco", **options: Any) -> Detector:
        """The model with random weights, in training mode.

        Args:
            num_classes: classes that it tells apart; those of the profile's data set by default.
            profile: "coco" for the size of the entry, "pocket" for that of its pocket settings.
            options: of the builder, in place of the entry's own.

        Raises:
            UsageError: the profile or an option is not one of this model's.
        """
        if check_profile(profile) == "coco":
            builder, given = self.builder, {**self.options, **options}
            num_classes, build = num_classes or self.num_classes, self.backbone and self.backbone.build
        else:
            pocket = self.pocket_settings
            builder, given = pocket.builder or self.builder, {**self.options, **pocket.options, **options}
            num_classes, build = num_classes or pocket.num_classes, self.backbone and self.backbone.slim.build
        given |= check_options(builder, options, self.name)
        return builder(build(), num_classes, **given) if build else builder(num_classes, **given)

    @property
    def pocket_settings(self) -> Pocket:
        """Its settings of the pocket profile.

        Raises:
            UsageError: it has none.
        """
        if self.pocket is None:
            raise UsageError(f"{self.name} has no pocket profile: use the profile coco, which is the entry as it is, "
                             "or give its ModelEntry pocket=Pocket(options, recipe).")
        return self.pocket

    def recipe_for(self, profile: str) -> Recipe:
        """The recipe, or the pocket profile's, which keeps the published data set's layout and sampling.

        Raises:
            UsageError: there is no such profile, or the entry has no pocket settings.
        """
        if check_profile(profile) == "pocket":
            return replace(self.pocket_settings.recipe, layout=self.recipe.layout, sampling=self.recipe.sampling)
        return self.recipe

    def backbone_weights(self, profile: str) -> str | None:
        """Where the pretrained backbone is, as `load_backbone` takes it; None where training starts from scratch."""
        if self.backbone is None:
            return None
        if check_profile(profile) == "coco":
            return self.backbone.weights
        return str(self.backbone.slim.file) if self.backbone.pocket_weights else None

    @property
    def published(self) -> Published | None:
        """The published results, None where there are none."""
        row = rows().get(self.name) if self.family else None
        return row.published if row else None

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


# The tables of the families' files

def row(name: str, backbone: Backbone | Sequence[Backbone], *changes: Change, num_classes: int | None = None,
        **options: Any) -> Callable[[ModelEntry], Iterator[ModelEntry]]:
    """A model of a family, or one for each of several backbones, whose labels stand for "{}" in its name.

    Args:
        changes: of the family's recipe; options: for the family's builder.
    """
    def entries(shared: ModelEntry) -> Iterator[ModelEntry]:
        for one in (backbone,) if isinstance(backbone, Backbone) else backbone:
            recipe = replace(shared.recipe, preprocess=one.preprocess)
            for changed in changes:
                recipe = changed(recipe)
            yield replace(shared, name=name.format(one.label), backbone=one, recipe=recipe, options=options,
                          num_classes=num_classes or shared.num_classes)
    return entries


def family(name: str, builder: Callable[..., Detector], recipe: Recipe, pocket: Pocket,
           *models: Callable[[ModelEntry], Iterator[ModelEntry]], num_classes: int = 80) -> list[ModelEntry]:
    """The models of a family, or of one builder in it. What a row does not say is the family's."""
    shared = ModelEntry(name, builder, recipe, family=name, pocket=pocket, num_classes=num_classes)
    return [entry for entries in models for entry in entries(shared)]
