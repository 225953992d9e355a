"""How a model is trained: preprocessing, transforms, optimiser, learning-rate schedule, batch size.

A recipe's defaults are the zoo's common ground ("1x": 12 epochs of COCO, 16 images a batch, SGD); a model states what
differs: `Recipe(optimizer=SGD(lr=0.01), epochs=24, schedule=Schedule((16, 22), 24))`.
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from detcore.data.sampling import Sampling
from detcore.data.transforms import Flip, Preprocess, Resize, Transform
from detcore.data.tta import TestTimeAugmentation
from detcore.layers.init import NORMS

# What the pretrained backbones expect of an image, named after where they were trained.
TORCHVISION = Preprocess(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), rgb=True)
CAFFE = Preprocess(mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), rgb=False)
DETECTRON = Preprocess(mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0), rgb=False)  # its older mean
CAFFE2 = Preprocess(mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395), rgb=False)
PYCLS = CAFFE2  # the RegNets; the same numbers
DARKNET = Preprocess(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0), rgb=True)
VGG = Preprocess(mean=TORCHVISION.mean, std=(1.0, 1.0, 1.0), rgb=True, pad_to=1)


@dataclass(frozen=True)
class Part:
    """Parameters trained in another way than the rest.

    Attributes:
        names: regular expression that is found in their names.
        lr_mult, decay_mult: factors of the optimiser's `lr` and `weight_decay`.
    """

    names: str
    lr_mult: float = 1.0
    decay_mult: float = 1.0


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum; `lr` is for the recipe's batch size.

    Norm layers decay by `norm_decay_mult` times `weight_decay`. Of `parts`, the first that a parameter belongs to
    counts, and for a norm's parameter in its place.
    """

    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_decay_mult: float = 1.0
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Adam:
    """Adam; fields as in `SGD`."""

    lr: float = 5e-4
    weight_decay: float = 0.0
    norm_decay_mult: float = 1.0
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay; fields as in `SGD`."""

    lr: float = 1e-4
    weight_decay: float = 0.1
    norm_decay_mult: float = 1.0
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Learning rate over time: a linear warm-up by iteration, and drops at milestones or a cosine's fall.

    Attributes:
        milestones: where the rate is multiplied by `gamma`; those at or beyond `end` never happen.
        end: where the drops stop, or the cosine reaches zero.
        by_epoch: whether milestones and end count epochs or iterations.
        gamma: factor of a drop.
        warmup_iters: length of the warm-up, 0 for none; its last iteration has the full rate.
        warmup_factor: share of the rate at the first iteration.
        cosine: the rate follows half a cosine, in steps of an epoch (or iteration).
    """

    milestones: tuple[int, ...] = (8, 11)
    end: int = 12
    by_epoch: bool = True
    gamma: float = 0.1
    warmup_iters: int = 500
    warmup_factor: float = 0.001
    cosine: bool = False

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The share of the base rate at optimiser step `step` (from 0); warm-up, drops and cosine multiply."""
        now = step // steps_per_epoch if self.by_epoch else step
        factor = self.gamma ** sum(m <= now for m in self.milestones if m < self.end)
        if self.cosine:
            factor *= (1 + math.cos(math.pi * min(now / self.end, 1))) / 2
        last = self.warmup_iters - 1
        if step < last:
            factor *= self.warmup_factor + (1 - self.warmup_factor) * step / last
        return factor


@dataclass(frozen=True)
class Recipe:
    """How a model is trained and tested.

    Attributes:
        preprocess: normalisation and padding.
        train_transforms, test_transforms: applied in order to each image.
        masks: form of the masks that training needs, None for boxes alone.
        max_proposals: precomputed proposals used an image in training (Fast R-CNN), None where there are none.
        optimizer: its `lr` is for `batch_size` images; scaled by the total batch size of a run.
        schedule: of the learning rate.
        epochs, iterations: length of the training; one of them is None.
        repeat: times that an epoch runs through the data set.
        sampling: how images of rare classes are shown more often; None: all equally often.
        batch_size, batch_per_gpu: images a step in all, and of each GPU as published.
        clip_norm: L2 norm of the gradient at most; None for no limit.
        amp: mixed precision.
        val_interval: epochs (or iterations) between evaluations.
        layout: form of the data set that it was published for, a name of `detcore.data.layouts`.
        filter_empty, min_size: leave out training images without objects, or with a side below `min_size` pixels.
        min_box: training objects narrower or lower than so many pixels are ignored.
        aspect_grouping: batches of wide images or of high ones.
        classes: the data set's classes used, None for all.
        metric: "bbox", "segm", "panoptic" or "proposal".
        tta: how the published result looked at each image several times; None where it did not.
    """

    preprocess: Preprocess = TORCHVISION
    train_transforms: tuple[Transform, ...] = (Resize(), Flip())
    test_transforms: tuple[Transform, ...] = (Resize(),)
    masks: Literal["bitmap", "polygon"] | None = None
    max_proposals: int | None = None
    optimizer: SGD | Adam | AdamW = SGD()
    schedule: Schedule = Schedule()
    epochs: int | None = 12
    iterations: int | None = None
    repeat: int = 1
    sampling: Sampling | None = None
    batch_size: int = 16
    batch_per_gpu: int = 2
    clip_norm: float | None = None
    amp: bool = False
    val_interval: int = 1
    layout: str = "coco"
    filter_empty: bool = True
    min_size: int = 32
    min_box: int = 0
    aspect_grouping: bool = True
    classes: tuple[str, ...] | None = None
    metric: tuple[str, ...] = ("bbox",)
    tta: TestTimeAugmentation | None = None


def parameter_groups(model: nn.Module, optimizer: SGD | Adam | AdamW, lr: float | None = None) -> list[dict[str, Any]]:
    """The trainable parameters, grouped by learning rate and weight decay, as `torch.optim` takes them.

    Args:
        lr: base rate, instead of the recipe's own.

    Returns:
        Groups with "params", their "names", "lr" and "weight_decay"; parameters keep the model's order.
    """
    lr = optimizer.lr if lr is None else lr
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for prefix, module in model.named_modules():
        rest = Part("", decay_mult=optimizer.norm_decay_mult if isinstance(module, NORMS) else 1.0)
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.requires_grad:
                part = next((p for p in optimizer.parts if re.search(p.names, name)), rest)
                rate, decay = lr * part.lr_mult, optimizer.weight_decay * part.decay_mult
                group = groups.setdefault((rate, decay), dict(params=[], names=[], lr=rate, weight_decay=decay))
                group["params"].append(parameter)
                group["names"].append(name)
    return list(groups.values())
