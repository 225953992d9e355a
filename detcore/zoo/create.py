"""Making a model by its name, or from one's own entry or detector, with or without weights."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detcore.detectors import Detector
from detcore.errors import UsageError, WeightsError
from detcore.ranges import checked
from detcore.recipe import Recipe
from detcore.weights import Checkpoint, differences, find, load_weights, read_checkpoint
from detcore.zoo.entries import PROFILES, ModelEntry, check_profile
from detcore.zoo.index import get_model_entry, near_names, rows
from detcore.zoo.states import candidates, names_digest

log = logging.getLogger(__name__)

Model = str | ModelEntry | Detector  # a name of the zoo, an entry, or a detector that is made already


@checked()
def create_model(model: Model, *, weights: str | Path | None = None, num_classes: int | None = None,
                 profile: str = "coco", **options: Any) -> Detector:
    """A detector, in training mode, on the CPU.

    Args:
        model: a name of the zoo, a `ModelEntry` of one's own, or a detector, which is given back with `weights` in it.
        weights: None for random ones, "published" for the zoo's checkpoint, or the path or address of a file.
        num_classes: classes it tells apart; those of the weights, or else of the profile's data set, by default. With
            another number than that of the weights the layers that depend on it start anew.
        profile: "coco" for the published size, "pocket" for the small one.
        options: of the model's builder, such as `score_threshold`, `nms_threshold` and `max_detections`.

    Raises:
        UsageError: there is no such model, profile, option, number of classes or published checkpoint.
        WeightsError: the weights cannot be had, read, or do not fit.

    Example:
        create_model("retinanet_r50_fpn_1x_coco", weights="published", score_threshold=0.3)
    """
    recipe = Recipe() if isinstance(model, Detector) else None  # building needs none
    return resolve(model, recipe=recipe, profile=profile).build(num_classes, weights=weights, **options)


@dataclass(frozen=True)
class Resolved:
    """What a name, an entry or a detector stands for.

    Attributes:
        name: for people, records and folders: of the zoo or the entry, or a detector's class.
        profile: "coco" or "pocket".
        recipe: how it is trained and tested; None where a detector came without one.
        entry: how it is built; None for a detector, which `detector` is.
    """

    name: str
    profile: str
    recipe: Recipe
    entry: ModelEntry | None = field(repr=False)
    detector: Detector | None = field(default=None, repr=False)

    @checked()
    def build(self, num_classes: int | None = None, *, weights: str | Path | None = None, **options: Any) -> Detector:
        """The detector; see `create_model`."""
        if weights is not None:
            return self._filled(self._read(weights), num_classes, options)
        if self.entry is not None:
            return self.entry.build(num_classes, self.profile, **options)
        assert self.detector is not None
        if options:
            raise UsageError(f"A {self.name} that is made already takes no options ({', '.join(options)}): give them "
                             "where you make it.")
        if num_classes not in (None, self.detector.num_classes):
            raise UsageError(f"This {self.name} tells {self.detector.num_classes} classes apart, not {num_classes}: "
                             "make it with that number.")
        return self.detector

    def load(self, weights: str | Path, num_classes: int | None = None, **options: Any) -> Restored:
        """The same with weights, and what their file says."""
        checkpoint = self._read(weights)
        return Restored(self._filled(checkpoint, num_classes, options), self, checkpoint.classes, checkpoint.meta)

    @property
    def backbone_weights(self) -> str | None:
        """Where the pretrained backbone is, as `load_backbone` takes it; None where training starts from scratch."""
        return self.entry.backbone_weights(self.profile) if self.entry else None

    @property
    def published(self) -> str:
        """Address of the published weights.

        Raises:
            UsageError: none are published.
        """
        if self.profile != "coco":
            raise UsageError(f"Published weights are of the coco profile, not of {self.profile}.")
        if self.entry is None or self.entry.checkpoint is None:
            siblings = [row.name for row in rows().values()
                        if self.entry and row.family == self.entry.family and row.published]
            near = near_names(self.name, siblings)
            offer = f" In its family there are weights of {', '.join(near)}." if near else ""
            raise UsageError(f"No weights were published of {self.name}.{offer}")
        return self.entry.checkpoint

    def _read(self, weights: str | Path) -> Checkpoint:
        return read_checkpoint(find(self.published if weights == "published" else weights))

    def _filled(self, checkpoint: Checkpoint, num_classes: int | None, options: Mapping[str, Any]) -> Detector:
        if self.entry is None:
            model = self.build(num_classes, **options)
            load_weights(model, checkpoint, name=self.name)
            return model
        stuff = checkpoint.meta.get("stuff")  # names; ours tell them
        theirs: dict[str, Any] = dict(stuff=len(stuff)) if isinstance(stuff, list) else {}
        options = theirs | dict(options)
        heads = _class_entries(self.entry, self.profile, **options | theirs)
        count = _count_classes(checkpoint.state, heads)
        model = self.build(num_classes or count, **options)
        anew = heads if count and num_classes not in (None, count) else {}
        if "stuff" in options:  # layers whose shape depends on it start anew where the number differs
            fewer, more = (_meta_state(self.entry, 2, self.profile, **options | dict(stuff=n)) for n in (2, 3))
            ours = model.state_dict()
            anew = dict(anew) | {n: (fewer[n].shape, more[n].shape) for n in fewer if fewer[n].shape != more[n].shape
                                 and n in checkpoint.state and checkpoint.state[n].shape != ours[n].shape}
        try:
            load_weights(model, checkpoint, leave=anew, name=self.name)
        except WeightsError as error:
            if " does not fit " not in str(error):  # but is damaged
                raise
            raise WeightsError(f"{error} {_explain(checkpoint, self.entry, self.profile)}") from error
        if anew:
            log.warning("%s tells %d classes apart, the model %d: %d entries start anew (%s).", checkpoint.path.name,
                        count or 0, num_classes or model.num_classes, len(anew),
                        ", ".join(sorted({n.rpartition(".")[0] for n in anew})))
        return model


def resolve(model: Model, *, recipe: Recipe | None = None, profile: str | None = None,
            weights: str | Path | None = None) -> Resolved:
    """What a name, an entry or a detector stands for, with a recipe.

    Args:
        recipe: in place of the model's own; a detector has none of its own.
        profile: None: "coco" for a detector, for an entry without pocket settings, and where `weights` are "published";
            else "pocket".

    Raises:
        UsageError: there is no such name or profile, or a detector comes without a recipe.
    """
    if profile is not None:
        check_profile(profile)
    if isinstance(model, Detector):
        if recipe is None:
            raise UsageError(f"A detector that is made already ({type(model).__name__}) needs recipe=Recipe(...), "
                             "which says how its images are prepared and how it is trained.")
        return Resolved(type(model).__name__, "coco", recipe, None, model)
    if not isinstance(model, (str, ModelEntry)):
        raise UsageError(f"A model is a name of the zoo, a ModelEntry or a Detector, not a {type(model).__name__}.")
    entry = get_model_entry(model) if isinstance(model, str) else model
    if profile is None:
        profile = "coco" if weights == "published" or entry.pocket is None else "pocket"
    return Resolved(entry.name, profile, recipe or entry.recipe_for(profile), entry)


@dataclass(frozen=True)
class Restored:
    """A model with weights, and what their file says of it.

    Attributes:
        model: in training mode, on the CPU.
        resolved: what it was made from.
        classes: their names, None where the file does not tell them.
        meta: what else the file says of itself.
        name, profile, recipe, entry: those of `resolved`.
    """

    model: Detector
    resolved: Resolved
    classes: tuple[str, ...] | None
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.resolved.name

    @property
    def profile(self) -> str:
        return self.resolved.profile

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe

    @property
    def entry(self) -> ModelEntry | None:
        return self.resolved.entry


@checked()
def restore(path: str | Path, model: Model | None = None, *, recipe: Recipe | None = None, profile: str | None = None,
            num_classes: int | None = None, **options: Any) -> Restored:
    """The trained model in a file that detcore wrote.

    Args:
        model: what the file is of; None for a model of the zoo, whose name the file tells.
        profile: None: what the file says, or else "coco".

    Raises:
        WeightsError: the file does not say which model of the zoo it is, or does not fit it.
    """
    checkpoint = read_checkpoint(path)
    name, kind = checkpoint.meta.get("model"), checkpoint.meta.get("profile", "coco")
    if model is None and not (isinstance(name, str) and name in rows()):
        told = f"is of {name!r}, which is not of the zoo" if isinstance(name, str) else "does not say which model it is"
        raise WeightsError(f"{path} {told}: name the model and give the file as its weights.")
    if profile is None and kind not in PROFILES:
        raise WeightsError(f"{path} says that it is of the profile {str(kind)[:80]!r}, which there is not: name one of "
                           f"{', '.join(PROFILES)}.")
    resolved = resolve(name if model is None else model, recipe=recipe,  # type: ignore[arg-type]
                       profile=profile or kind)
    return Restored(resolved._filled(checkpoint, num_classes, options), resolved, checkpoint.classes, checkpoint.meta)


def _meta_state(entry: ModelEntry, num_classes: int | None, profile: str, **options: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        return entry.build(num_classes, profile, **options).state_dict()


def _class_entries(entry: ModelEntry, profile: str, **options: Any) -> dict[str, tuple[torch.Size, torch.Size]]:
    """The entries whose shape depends on the number of classes, with the shapes for two and for three classes."""
    two, three = _meta_state(entry, 2, profile, **options), _meta_state(entry, 3, profile, **options)
    return {name: (two[name].shape, three[name].shape) for name in two if two[name].shape != three[name].shape}


def _count_classes(state: Mapping[str, Tensor], heads: Mapping[str, tuple[torch.Size, torch.Size]]) -> int | None:
    """The number of classes that a checkpoint's shapes stand for, None if they do not tell or disagree."""
    counts = set()
    for name, (two, three) in heads.items():
        if name not in state or state[name].dim() != len(two):
            return None
        counts |= {(n - (a - 2 * (b - a))) / (b - a) for n, a, b in zip(state[name].shape, two, three) if a != b}
    count = counts.pop() if len(counts) == 1 else 0
    return int(count) if count >= 1 and count == int(count) else None


def _explain(checkpoint: Checkpoint, expected: ModelEntry, profile: str) -> str:
    """Which model of the zoo a checkpoint is of, as a sentence."""
    told = checkpoint.meta.get("model"), checkpoint.meta.get("profile", "coco")
    if isinstance(told[0], str) and told != (expected.name, profile):
        return f"It says that it is {told[0]} of the {told[1]} profile."

    def likeness(model: tuple[str, str]) -> float:
        known = model[0], Path(get_model_entry(model[0]).checkpoint or "").stem
        return max(SequenceMatcher(None, name, checkpoint.path.stem[:200]).ratio() for name in known)

    tried = set()
    for name, kind in sorted(candidates().get(names_digest(checkpoint.state), ()), key=likeness, reverse=True):
        entry = get_model_entry(name)
        built = entry.builder, entry.backbone, str(entry.options), str(entry.pocket) if kind == "pocket" else "", kind
        if built in tried:
            continue
        tried.add(built)
        count = _count_classes(checkpoint.state, heads := _class_entries(entry, kind))
        if (count or not heads) and not differences(checkpoint.state, _meta_state(entry, count, kind)):
            return (f"It fits {entry.name}" + (" of the pocket profile" if kind == "pocket" else "")
                    + (f" with {count} classes." if heads else "."))
    return "It fits no model of the zoo."
