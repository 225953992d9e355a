"""Batches from a data set, in an order that depends on the seed and the epoch alone.

What is random about an image (its place in the epoch, its transforms) is drawn from (seed, epoch, place), never from
the process that loads it. So the number of workers changes nothing, several ranks see together what one would see
alone, and an epoch can be taken up at any batch without reading what came before.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from detcore.data.dataset import Dataset
from detcore.data.sampling import Sampling, epoch_images
from detcore.data.transforms import Meta, Preprocess, Sample
from detcore.errors import DataError, DetcoreError
from detcore.structures import IGNORED, Polygons, Target


@dataclass
class Batch:
    """Images and their ground truth, not normalised yet; `Preprocess` makes the network's input of them on the device.

    Attributes:
        images: uint8 [N, 3, H, W], BGR, zero-padded; float32, where the transforms make it so.
        sizes: each image's own (h, w).
        targets: the ground truth, in pixels of the network's input.
        metas: where each image comes from.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target]
    metas: list[Meta]

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""
        return replace(self, images=self.images.to(device, non_blocking=non_blocking),
                       targets=[t.to(device, non_blocking) for t in self.targets])

    def pin_memory(self) -> Batch:
        """The same batch with its images in page-locked memory; called by PyTorch's loader."""
        return replace(self, images=self.images.pin_memory())


def collate(samples: list[Sample], preprocess: Preprocess, training: bool = False) -> Batch:
    """Pad samples to one size; bitmaps and polygons become masks over the padded image."""
    images, sizes = preprocess.collate([s.image for s in samples], training)
    size = (images.shape[2], images.shape[3])
    return Batch(images, sizes, [_target(s, size) for s in samples], [s.meta for s in samples])


def _target(sample: Sample, size: tuple[int, int]) -> Target:
    h, w = sample.size
    masks: Tensor | Polygons | None = None
    if isinstance(sample.masks, Polygons):
        masks = replace(sample.masks, size=size)
    elif sample.masks is not None:
        masks = torch.zeros(len(sample.masks), *size, dtype=torch.uint8)
        masks[:, :h, :w] = torch.from_numpy(sample.masks.copy())
    semantic = None
    if sample.semantic is not None:
        semantic = torch.full(size, IGNORED)
        semantic[:h, :w] = torch.from_numpy(sample.semantic.copy())
    proposals = None if sample.proposals is None else torch.from_numpy(sample.proposals)
    return Target(torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels), masks,
                  torch.from_numpy(sample.ignored), proposals, semantic, image_id=sample.meta.image_id)


def plan_epoch(sizes: np.ndarray, batch_size: int, *, shuffle: bool, seed: int, epoch: int,
               images: np.ndarray | None = None, aspect_grouping: bool = False, rank: int = 0, world_size: int = 1,
               fill: bool = False) -> list[list[tuple[int, int]]]:
    """One rank's batches of an epoch, each a list of (image, place in the epoch).

    Batches are made for all ranks together, `world_size` times as large, and every rank takes its share of each.

    Args:
        sizes: [n, 2], (h, w) of the images.
        batch_size: images a rank.
        shuffle: draw a new order for each (seed, epoch).
        images: int64, those of the epoch; each once by default.
        aspect_grouping: put wide images with wide ones and tall with tall, to pad less; what is left over at the end
            is mixed.
        fill: take images from the beginning again where the last batch would give the ranks unequal shares.
    """
    order = np.arange(len(sizes)) if images is None else images
    n, whole = len(order), batch_size * world_size
    if shuffle:
        order = order[np.random.default_rng([seed, epoch]).permutation(n)]
    places = np.arange(n)
    if aspect_grouping:
        tall = sizes[order, 1] < sizes[order, 0]
        # A batch of a kind stands where its last image stands in the order.
        groups = [g[:len(g) // whole * whole].reshape(-1, whole) for g in (places[tall], places[~tall])]
        full = np.concatenate(groups)
        full = full[np.argsort(full[:, -1], kind="stable")]
        places = np.concatenate([full.ravel(), np.setdiff1d(places, full)])
    if fill and n:
        places = np.concatenate([places, np.resize(places, -n % world_size)])
    batches = [places[i:i + whole][rank::world_size] for i in range(0, len(places), whole)]
    return [[(int(order[p]), int(p)) for p in batch] for batch in batches if len(batch)]


class _Batches(TorchDataset):
    """Gives the batch for a list of (image, place), or the error to be raised where the batch is used."""

    def __init__(self, dataset: Dataset, preprocess: Preprocess, training: bool, seed: int, epoch: int) -> None:
        self.dataset, self.preprocess, self.training, self.seed, self.epoch = dataset, preprocess, training, seed, epoch

    def __getitem__(self, batch: list[tuple[int, int]]) -> Batch | DetcoreError:
        try:
            samples = [self.dataset.load(image, np.random.default_rng([self.seed, self.epoch, place]))
                       for image, place in batch]
            return collate(samples, self.preprocess, self.training)
        except DetcoreError as error:
            return error


class Loader(DataLoader):
    """The batches of one epoch, in order; see `build_loader`."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, DetcoreError):  # PyTorch would wrap an error of a worker in a traceback
                raise batch
            yield batch


def build_loader(dataset: Dataset, batch_size: int, *, preprocess: Preprocess, training: bool = False,
                 shuffle: bool | None = None, workers: int = 0, seed: int = 0, epoch: int = 0, start: int = 0,
                 repeat: int = 1, sampling: Sampling | None = None, aspect_grouping: bool = False, rank: int = 0,
                 world_size: int = 1, pin_memory: bool = False) -> Loader:
    """The batches of an epoch of one rank, from batch `start` on.

    Args:
        batch_size: images a rank.
        training: use the recipe's fixed size if there is one, and give every rank equally many images.
        shuffle: as `training` if not given.
        repeat, sampling: see `epoch_images`.
        workers: processes that load; 0 loads in this one. The batches do not depend on it.

    Raises:
        DataError: a data set without images; while iterating, whatever is wrong with an image.
    """
    if len(dataset) == 0:
        raise DataError(f"{dataset.annotation_file} has no image left to load.")
    batches = plan_epoch(dataset.sizes, batch_size, shuffle=training if shuffle is None else shuffle, seed=seed,
                         epoch=epoch, images=epoch_images(dataset, repeat, sampling, seed, epoch),
                         aspect_grouping=aspect_grouping, rank=rank, world_size=world_size, fill=training)
    return Loader(_Batches(dataset, preprocess, training, seed, epoch), batch_size=None,
                  sampler=batches[start:],  # type: ignore[arg-type]  # any iterable with a length
                  num_workers=workers, worker_init_fn=_one_thread, pin_memory=pin_memory)


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # PyTorch limits its own threads
