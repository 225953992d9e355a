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
    from detcore.detectors import Detector
    from detcore.engine.benchmark import benchmark
    from detcore.engine.evaluate import evaluate
    from detcore.engine.export import export
    from detcore.engine.predict import Predictor
    from detcore.engine.train import train
    from detcore.recipe import Recipe
    from detcore.structures import Detections, Images, Target
    from detcore.zoo.create import create_model
    from detcore.zoo.entries import ModelEntry
    from detcore.zoo.index import get_model_entry, list_models

__version__ = "0.2.0"
__all__ = ["Detections", "Detector", "Images", "ModelEntry", "Predictor", "Recipe", "Target", "__version__",
           "benchmark", "create_model", "evaluate", "export", "get_model_entry", "list_models", "train"]

_ROOMS = {
    "detectors": ("Detector",), "engine.benchmark": ("benchmark",), "engine.evaluate": ("evaluate",),
    "engine.export": ("export",), "engine.predict": ("Predictor",), "engine.train": ("train",), "recipe": ("Recipe",),
    "structures": ("Detections", "Images", "Target"), "zoo.create": ("create_model",), "zoo.entries": ("ModelEntry",),
    "zoo.index": ("get_model_entry", "list_models"),
}
_PLACES = {name: f"detcore.{room}" for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'detcore' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
