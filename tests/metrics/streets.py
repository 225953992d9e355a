"""Maps of instances in Cityscapes' coding and detections, drawn from a seed, for the official evaluation and ours."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detcore.data.cityscapes import CLASSES, INSTANCE
from tests.metrics.federated import SIZE, ellipse

IMAGES = 12
Street = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def draw(seed: int = 0) -> Iterator[Street]:
    """For each image its map [h, w], and masks [p, h, w], labels [p] and scores [p]: some right, some wrong, some on
    what is not evaluated, on groups and on small objects."""
    rng, ids = np.random.default_rng(seed), np.array(list(CLASSES)[:6])
    for _ in range(IMAGES):
        truth = np.full((SIZE, SIZE), 7)
        truth[:20], truth[:, :15] = 0, 29  # not labelled, caravans
        masks, labels = [], []
        for number in range(9):
            side = rng.uniform(6, 70, 2)
            corner = rng.uniform(0, SIZE - side)
            box, label = np.concatenate([corner, corner + side]), int(rng.integers(len(ids)))
            truth[ellipse(box)] = ids[label] if rng.random() < 0.2 else ids[label] * INSTANCE + number
            for _ in range(rng.integers(0, 4)):
                moved = np.sort((box + rng.normal(0, 2, 4)).clip(0, SIZE).reshape(2, 2), 0).ravel()
                if (moved[2:] - moved[:2] > 3).all():
                    masks.append(ellipse(moved))
                    labels.append(label if rng.random() < 0.85 else int(rng.integers(len(CLASSES))))
        for _ in range(4):
            side = rng.uniform(6, 50, 2)
            corner = rng.uniform(0, SIZE / 2 - side / 2)
            masks.append(ellipse(np.concatenate([corner, corner + side])))
            labels.append(int(rng.integers(len(CLASSES))))
        # One digit, so that some scores are equal.
        yield truth, np.array(masks), np.array(labels), rng.random(len(masks)).round(1)
