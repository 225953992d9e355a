"""detcore: object detection and instance segmentation, written to be read.

    import detcore

    model = detcore.create_model("faster-rcnn_r50_fpn_1x_coco", weights="published")
    detections = detcore.Predictor("faster-rcnn_r50_fpn_1x_coco")("street.jpg")

Names are looked up when they are first used, so that importing the package costs nothing.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detcore.engine.predict import Predictor
    from detcore.structures import Detections, Images, Target
    from detcore.zoo.create import create_model
    from detcore.zoo.entries import ModelEntry
    from detcore.zoo.models import get_model_entry, list_models

__version__ = "0.1.0"
__all__ = ["Detections", "Images", "ModelEntry", "Predictor", "Target", "__version__", "create_model",
           "get_model_entry", "list_models"]

_ROOMS = {
    "Predictor": "detcore.engine.predict", "Detections": "detcore.structures", "Images": "detcore.structures",
    "Target": "detcore.structures", "create_model": "detcore.zoo.create", "ModelEntry": "detcore.zoo.entries",
    "get_model_entry": "detcore.zoo.models", "list_models": "detcore.zoo.models",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'detcore' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return __all__
