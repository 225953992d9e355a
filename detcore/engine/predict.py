"""From a picture to detections in one call."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from detcore.data.images import read_image
from detcore.data.transforms import Sample, apply
from detcore.errors import DataError, UsageError
from detcore.structures import Detections
from detcore.zoo.create import create_model, published_address, restore
from detcore.zoo.models import get_model_entry
from detcore.zoo.weights import find, read_checkpoint

Picture = str | Path | np.ndarray | Image.Image


class Predictor:
    """A detector that takes pictures as they are and answers in their own pixels.

    Args:
        name_or_path: a name of the zoo, with its published weights, or a file that detcore's training wrote.
        weights: for a name, other weights: a file, or "random".
        device: "cpu" or "cuda"; by default the GPU where there is one.
        score: detections below it are left out.
        batch_size: pictures at a time, if a list is given.

    Raises:
        UsageError, WeightsError: the name is unknown, or its weights cannot be had or do not fit.

    Example:
        found = Predictor("faster-rcnn_r50_fpn_1x_coco")("street.jpg")
        found.draw().save("found.jpg")
    """

    def __init__(self, name_or_path: str | Path, *, weights: str | Path | None = None, profile: str = "coco",
                 device: str | None = None, score: float = 0.05, batch_size: int = 1):
        if Path(name_or_path).is_file():
            restored = restore(name_or_path)
            model, entry, profile, self.class_names = (restored.model, restored.entry, restored.profile,
                                                       restored.classes)
        else:
            entry = get_model_entry(str(name_or_path))
            model, self.class_names = create_model(entry.name, profile=profile), None
            if weights != "random":
                source = weights or published_address(entry, profile)
                self.class_names = read_checkpoint(find(source)).classes
                model = create_model(entry.name, weights=source, profile=profile)
        if getattr(model, "takes_proposals", False):
            raise UsageError(f"{entry.name} needs precomputed proposals: evaluate it on a data set with "
                             "`detcore evaluate --proposals`.")
        self.recipe, self.score, self.batch_size = entry.recipe_for(profile), score, batch_size
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model: Any = model.to(self.device).eval()

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Detections | list[Detections]:
        """Detections of one picture, or a list of them for a list.

        Args:
            pictures: files, PIL images, or arrays uint8 [h, w, 3] in the order R, G, B; one or a list.

        Raises:
            DataError: a file that is no picture, or an array of another form.
        """
        if isinstance(pictures, (str, Path, np.ndarray, Image.Image)):
            return self._batch([to_bgr(pictures)])[0]
        found: list[Detections] = []
        for i in range(0, len(pictures), self.batch_size):
            found += self._batch([to_bgr(p) for p in pictures[i:i + self.batch_size]])
        return found

    def _batch(self, pictures: list[np.ndarray]) -> list[Detections]:
        rng = np.random.default_rng(0)  # test transforms draw nothing, but are called like all
        samples = [apply(self.recipe.test_transforms, Sample(p), rng) for p in pictures]
        batch, sizes = self.recipe.preprocess.collate([s.image for s in samples if s is not None])
        images = self.recipe.preprocess(batch.to(self.device), sizes)
        found = self.model.predict(images, output_sizes=[(p.shape[0], p.shape[1]) for p in pictures])
        result = []
        for detections, picture in zip(found, pictures):
            detections = detections.to("cpu").above(self.score)
            detections.class_names, detections.image = self.class_names, picture[..., ::-1].copy()
            result.append(detections)
        return result


def to_bgr(picture: Picture) -> np.ndarray:
    """A picture as uint8 [h, w, 3] in the order B, G, R.

    Raises:
        DataError: it is no picture.
    """
    if isinstance(picture, (str, Path)):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        picture = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        form = f"{picture.dtype} {list(picture.shape)}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise DataError(f"A picture is a file, a PIL image or a uint8 array [h, w, 3], not {form}.")
    return picture[..., ::-1]
