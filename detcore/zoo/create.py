"""Making a model of the zoo, with or without weights."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import torch
from torch import Tensor, nn

from detcore.errors import UsageError, WeightsError
from detcore.zoo.entries import ModelEntry
from detcore.zoo.models import MODELS, get_model_entry
from detcore.zoo.weights import Checkpoint, compare, find, load_weights, read_checkpoint

log = logging.getLogger(__name__)


def create_model(name: str, *, weights: str | Path | None = None, num_classes: int | None = None,
                 profile: str = "coco") -> nn.Module:
    """A detector by its name in the zoo, in training mode, on the CPU.

    Args:
        weights: None for random ones, "published" for the zoo's checkpoint, or the path or address of a file.
        num_classes: classes it tells apart; those of the weights, or else of the profile's data set, by default. With
            another number than that of the weights the layers that depend on it start anew.
        profile: "coco" for the published size, "pocket" for the small one.

    Raises:
        UsageError: there is no such model, profile, number of classes or published checkpoint.
        WeightsError: the weights cannot be had, read, or do not fit.
    """
    entry = get_model_entry(name)
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"A detector tells at least one class from background, not {num_classes}.")
    if weights is None:
        return entry.build(num_classes, profile)
    source = published_address(entry, profile) if weights == "published" else weights
    return _build(entry, read_checkpoint(find(source)), num_classes, profile)


@dataclass
class Restored:
    """A model made from one of our own files, and what the file says of it."""

    model: nn.Module
    entry: ModelEntry
    profile: str
    classes: tuple[str, ...] | None


def restore(path: str | Path) -> Restored:
    """The trained model in a file that detcore wrote.

    Raises:
        WeightsError: the file does not say which model of the zoo it is, or does not fit it.
    """
    checkpoint = read_checkpoint(path)
    name, profile = checkpoint.meta.get("model"), checkpoint.meta.get("profile", "coco")
    if not isinstance(name, str):
        raise WeightsError(f"{path} does not say which model it is: name the model and give the file as its weights.")
    entry = get_model_entry(name)
    return Restored(_build(entry, checkpoint, None, profile), entry, profile, checkpoint.classes)


def published_address(entry: ModelEntry, profile: str = "coco") -> str:
    """Where the published weights of a model are.

    Raises:
        UsageError: none are published.
    """
    if profile != "coco":
        raise UsageError(f"Published weights are of the coco profile, not of {profile}.")
    if entry.checkpoint is None:
        others = [e.name for e in MODELS.values() if e.family == entry.family and e.checkpoint]
        near = sorted(others, key=lambda n: -SequenceMatcher(None, n, entry.name).ratio())[:3]
        offer = f" In its family there are weights of {', '.join(near)}." if near else ""
        raise UsageError(f"No weights were published of {entry.name}.{offer}")
    return entry.checkpoint


def _build(entry: ModelEntry, checkpoint: Checkpoint, num_classes: int | None, profile: str) -> nn.Module:
    heads = _class_entries(entry, profile)
    found = _count_classes(checkpoint.state, heads)
    model = entry.build(num_classes or found, profile)
    anew = heads if found and num_classes not in (None, found) else {}
    try:
        load_weights(model, checkpoint, leave=anew, name=entry.name)
    except WeightsError as error:
        raise WeightsError(f"{error} {_explain(checkpoint, entry, profile)}") from error
    if anew:
        log.warning("%s tells %d classes apart, the model %d: %d entries start anew (%s).", checkpoint.path.name, found,
                    num_classes, len(anew), ", ".join(sorted({n.rpartition(".")[0] for n in anew})))
    return model


def _meta_state(entry: ModelEntry, num_classes: int | None, profile: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return entry.build(num_classes, profile).state_dict()


def _class_entries(entry: ModelEntry, profile: str) -> dict[str, tuple[torch.Size, torch.Size]]:
    """The entries whose shape depends on the number of classes, with the shapes for two and for three classes."""
    two, three = _meta_state(entry, 2, profile), _meta_state(entry, 3, profile)
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


def _explain(checkpoint: Checkpoint, wanted: ModelEntry, profile: str) -> str:
    """Which model of the zoo a checkpoint is of, as a sentence."""
    told = checkpoint.meta.get("model"), checkpoint.meta.get("profile", "coco")
    if told[0] in MODELS and told != (wanted.name, profile):
        return f"It says that it is {told[0]} of the {told[1]} profile."

    def likeness(entry: ModelEntry) -> float:
        known = entry.name, Path(entry.checkpoint or "").stem
        return max(SequenceMatcher(None, name, checkpoint.path.stem).ratio() for name in known)

    tried = set()
    for entry in sorted(MODELS.values(), key=likeness, reverse=True):
        kind = entry.builder, entry.backbone, str(entry.options)
        if kind in tried:
            continue
        tried.add(kind)
        found = _count_classes(checkpoint.state, heads := _class_entries(entry, "coco"))
        if (found or not heads) and not compare(checkpoint.state, _meta_state(entry, found, "coco")):
            return f"It fits {entry.name}" + (f" with {found} classes." if heads else ".")
    return "It fits no model of the zoo."
