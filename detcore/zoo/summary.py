"""A model at a glance: its parts and their parameters."""
from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class PartSummary:
    """A part of a model.

    Attributes:
        name: where it is, such as "roi_head.bbox_head".
        kind: its class.
        parameters, trainable: numbers of values.
    """

    name: str
    kind: str
    parameters: int
    trainable: int


def summarize(model: nn.Module) -> list[PartSummary]:
    """The parts of a detector (one level into heads that are made of heads), then the whole of it."""
    parts = []
    for name, child in model.named_children():
        inner = [(f"{name}.{n}", m) for n, m in child.named_children() if "head" in n]
        parts += [_part(n, m) for n, m in inner or [(name, child)]]
    return parts + [_part("model", model)]


def _part(name: str, module: nn.Module) -> PartSummary:
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return PartSummary(name, type(module).__name__, sum(n for n, _ in sizes), sum(n for n, train in sizes if train))
