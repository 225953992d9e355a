"""From a picture to detections in one call."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detcore.data.images import check_pixels, pil_to_bgr, read_image
from detcore.data.transforms import Sample, apply
from detcore.detectors import Detector
from detcore.engine.common import is_file, pick_device, ready_model
from detcore.errors import DataError, UsageError
from detcore.ranges import checked
from detcore.recipe import Recipe
from detcore.structures import Detections
from detcore.zoo.create import Model

Picture = str | Path | np.ndarray | Image.Image
LEAST_SCORE = 0.05  # of detections that are given, where no threshold is asked for
COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


class Predictor:
    """A detector that takes pictures as they are and answers in their own pixels.

    Args:
        model: a name of the zoo, a `ModelEntry`, a file that training wrote, or a `Detector`, which needs a `recipe`.
        weights: of a name or an entry: "published" by default, a file, or "random".
        recipe: in place of the model's own; its test transforms and preprocessing are used.
        profile: "coco" or "pocket"; for a file what it says by default, for a name or an entry "coco".
        device: "cpu" or "cuda"; by default the GPU where there is one.
        score_threshold: detections score higher; by default as published, but at least 0.05.
        nms_threshold: IoU above which the lower-scored box of a class is dropped; by default as published.
        max_detections: of a picture; by default as published.
        batch_size: pictures at a time, if a list is given.

    Attributes:
        class_names: a name for each label, where the weights tell them.
        category_ids: for each label the category id of the data set that the model was trained on; None where it is not
            known.

    Raises:
        UsageError, WeightsError: the name is unknown, or its weights cannot be had or do not fit; a threshold that the
            model does not have, or for a `Detector`, whose thresholds are set where it is built.

    Example:
        detections = Predictor("faster-rcnn_r50_fpn_1x_coco")("street.jpg")
        detections.draw().save("detections.jpg")
    """

    @checked()
    def __init__(self, model: Model | Path, *, weights: str | Path | None = None, recipe: Recipe | None = None,
                 profile: str | None = None, device: str | None = None, score_threshold: float | None = None,
                 nms_threshold: float | None = None, max_detections: int | None = None, batch_size: int = 1):
        self.device = pick_device(device)
        if not (is_file(model) or isinstance(model, Detector)):
            weights, profile = weights or "published", profile or "coco"
        ready = ready_model(model, weights, recipe=recipe, profile=profile, score_threshold=score_threshold,
                            nms_threshold=nms_threshold, max_detections=max_detections)
        if ready.model.needs_proposals:
            raise UsageError(f"{ready.name} needs precomputed proposals: evaluate it on a data set with "
                             "`detcore evaluate --proposals`.")
        self.model, self.recipe, self.class_names = ready.model.to(self.device).eval(), ready.recipe, ready.classes
        names = self.class_names or ()
        # Panoptic models have the names of stuff after those of the 80 things.
        is_coco = len(names) in (80, 133) and (names[0], names[11], names[79]) == ("person", "stop sign", "toothbrush")
        if len(names) < self.model.num_classes:
            self.class_names = None
        told: Any = ready.meta.get("category_ids") or (COCO_IDS if is_coco else None)
        known = isinstance(told, (list, tuple)) and len(told) >= self.model.num_classes and all(
            isinstance(i, (int, str)) and not isinstance(i, bool) for i in told)
        self.category_ids = tuple(told) if known else None
        self.least_score = LEAST_SCORE if score_threshold is None else 0.0
        self.batch_size = batch_size

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Detections | list[Detections]:
        """Detections of one picture, or a list of them for a list.

        Args:
            pictures: files, PIL images, or arrays uint8 [h, w, 3] in the order R, G, B; one or a list.

        Raises:
            DataError: a file that is no picture, or an array of another form; for a list it names the index.
        """
        if isinstance(pictures, (str, bytes)) or not isinstance(pictures, Sequence):
            return self._batch([to_bgr(pictures)])[0]  # type: ignore[arg-type]
        results: list[Detections] = []
        for i in range(0, len(pictures), self.batch_size):
            batch = []
            for index, picture in enumerate(pictures[i:i + self.batch_size], i):
                try:
                    batch.append(to_bgr(picture))
                except DataError as error:
                    raise DataError(f"Picture {index} of the list of {len(pictures)}: {error}") from error
            results += self._batch(batch)
        return results

    def _batch(self, pictures: list[np.ndarray]) -> list[Detections]:
        rng = np.random.default_rng(0)  # test transforms draw nothing, but are called like all
        samples = [apply(self.recipe.test_transforms, Sample(p), rng) for p in pictures]
        batch, sizes = self.recipe.preprocess.collate([s.image for s in samples if s is not None])
        images = self.recipe.preprocess(batch.to(self.device), sizes)
        batch_detections = self.model.predict(images, output_sizes=[(p.shape[0], p.shape[1]) for p in pictures])
        result = []
        for detections, picture in zip(batch_detections, pictures):
            detections = detections.to("cpu").above(self.least_score)
            detections.class_names, detections.image = self.class_names, picture[..., ::-1].copy()
            result.append(detections)
        return result


def to_bgr(picture: Picture) -> np.ndarray:
    """A picture as uint8 [h, w, 3] in the order B, G, R; raises a DataError for what is none."""
    if isinstance(picture, (str, Path)):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        check_pixels("A picture", *picture.size)
        try:
            return pil_to_bgr(picture)
        except Exception as error:  # Pillow reads a file only now, and a damaged one fails in any way
            raise DataError(f"A PIL image of mode {picture.mode} cannot be read: {error}.") from error
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        form = f"{picture.dtype} {list(picture.shape)}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise DataError(f"A picture is a file, a PIL image or a uint8 array [h, w, 3], not {form}.")
    check_pixels("A picture", picture.shape[1], picture.shape[0])
    return picture[..., ::-1]
