"""Making a model of the zoo, with or without weights."""
from __future__ import annotations

from torch import nn

from detcore.zoo.models import get_model_entry


def create_model(name: str, *, weights: str | None = None, num_classes: int | None = None,
                 profile: str = "coco") -> nn.Module:
    """A detector by its name in the zoo, in training mode on the CPU."""
    return get_model_entry(name).build(num_classes, profile)
