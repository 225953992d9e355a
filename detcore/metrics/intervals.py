"""How certain a measured metric is: intervals by the bootstrap over images (Efron and Tibshirani, 1993, chapter 13).

A metric is computed again on resamplings of the evaluated images, drawn with replacement. The resamplings depend on the
number of images alone, so that those of two models on the same images belong together, and the difference of their
replicates is a paired bootstrap. The interval speaks of other images of the same kind, not of other trainings.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

REPLICATES = 300


def resamplings(images: int, replicates: int = REPLICATES) -> Iterator[np.ndarray]:
    """int [images] indices with replacement, `replicates` times; the same for every call with the same numbers."""
    rng = np.random.default_rng(images)
    for _ in range(replicates):
        yield rng.integers(0, images, images)


def interval(replicates: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The interval between two percentiles of a metric's replicates, NaN (resamplings without an object) left out."""
    low, high = np.nanpercentile(replicates, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
