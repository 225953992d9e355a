"""Backbones with deformable convolutions."""
from dataclasses import replace
from functools import partial
from typing import Any

from detcore.methods.dcn import DeformConv2d
from detcore.zoo.entries import Backbone


def deformed(backbone: Backbone, stages: tuple[int, ...] = (1, 2, 3), **options: Any) -> Backbone:
    """A backbone some of whose stages (c3 to c5) are deformable; options as in `DeformConv2d`."""
    deform: dict[str, Any] = dict(deform=partial(DeformConv2d, **options), deform_stages=stages)
    slim = replace(backbone.slim, build=partial(backbone.slim.build, **deform))
    name = f"{backbone.name} + DCN{'v2' * bool(options.get('modulated'))}"
    return replace(backbone, name=name, build=partial(backbone.build, **deform), slim=slim)
