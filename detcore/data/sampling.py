"""Which images an epoch shows, where not every image is shown equally often: ways to meet rare classes."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detcore.data.dataset import Dataset


@dataclass(frozen=True)
class ClassBalanced:
    """Images of rare classes several times (Gupta et al., "LVIS", 2019, section 5: repeat factor sampling).

    A class that is in a share f of the images asks for sqrt(threshold / f) repetitions, an image gets what its rarest
    class asks for, rounded up, and is there once at least.
    """

    threshold: float = 1e-3

    def images(self, dataset: Dataset, rng: np.random.Generator) -> np.ndarray:
        """int64, the images of an epoch, in the data set's order."""
        image, label = present(dataset)
        share = np.bincount(label, minlength=len(dataset.class_names)) / max(len(dataset), 1)
        asked = np.sqrt(self.threshold / np.maximum(share, 1e-12))
        factor = np.ones(len(dataset))
        np.maximum.at(factor, image, asked[label])
        return np.repeat(np.arange(len(dataset)), np.ceil(factor).astype(int))


@dataclass(frozen=True)
class ClassAware:
    """First a class, then an image that has it (Shen et al., "Relay backpropagation", 2016, section 4).

    Classes come in rounds, each in another order, and so do the images of a class.
    """

    def images(self, dataset: Dataset, rng: np.random.Generator) -> np.ndarray:
        """int64, as many images as the data set has, in random order."""
        image, label = present(dataset)
        classes, first, count = np.unique(label, return_index=True, return_counts=True)
        if len(classes) == 0:
            return np.arange(len(dataset))
        rounds = -(-len(dataset) // len(classes))
        order = rng.permuted(np.tile(np.arange(len(classes)), (rounds, 1)), axis=1)
        drawn = np.empty((rounds, len(classes)), np.int64)
        for c, (start, n) in enumerate(zip(first, count)):  # the images of a class, as many rounds as are needed
            shuffled = rng.permuted(np.tile(image[start:start + n], (-(-rounds // n), 1)), axis=1)
            drawn[:, c] = shuffled.ravel()[:rounds]
        return np.take_along_axis(drawn, order, 1).ravel()[:len(dataset)]


Sampling = ClassBalanced | ClassAware


def present(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n], [n]: every pair of an image's place and a class that it has, in the order of the classes."""
    place, row = dataset.rows()
    classes = len(dataset.class_names)
    pairs = np.unique(dataset.labels[row] * len(dataset) + place) if classes else np.zeros(0, np.int64)
    return pairs % max(len(dataset), 1), pairs // max(len(dataset), 1)


def epoch_images(dataset: Dataset, repeat: int = 1, sampling: Sampling | None = None, seed: int = 0,
                 epoch: int = 0) -> np.ndarray:
    """int64, the images of an epoch; a loader shuffles them.

    Args:
        repeat: an epoch goes over the data set so many times.
        sampling: not every image equally often.
    """
    if sampling is None:
        return np.tile(np.arange(len(dataset)), repeat)
    # A stream of its own beside the loader's (seed, epoch) and its samples' (seed, epoch, place).
    draws = [sampling.images(dataset, np.random.default_rng([seed, epoch, 0, i])) for i in range(repeat)]
    return np.concatenate(draws)
