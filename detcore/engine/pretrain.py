"""Pretrains the small backbone of the pocket profile on Pocket Zoo itself.

The published models start from backbones trained on ImageNet's labels. Here every stage of the slim ResNet learns to
say, for each of its cells, which animal is there, or none. That takes a minute or two, and a detector that starts
from it needs a fraction of the steps that it would need from random weights.
"""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from detcore.data.coco import CocoDataset, fingerprint
from detcore.data.loader import build_loader
from detcore.data.transforms import Flip
from detcore.structures import Target
from detcore.zoo.pocket import POCKET_BACKBONE, slim_resnet
from detcore.zoo.recipes import TORCHVISION
from detcore.zoo.weights import save_weights

STEPS, BATCH, RATE, DECAY = 800, 32, 4e-3, 0.05


@dataclass
class Pretraining:
    """What a pretraining gave.

    Attributes:
        backbone: the trained network.
        losses: of each step.
        accuracy: share of right cells of each stage on the last batches, finest first.
        seconds: wall time.
    """

    backbone: nn.Module
    losses: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0


def class_map(target: Target, size: tuple[int, int]) -> Tensor:
    """[h, w] int64: for each pixel 0, or 1 + the class of the object there; of overlapping objects the smallest."""
    out = torch.zeros(size, dtype=torch.long)
    masks = cast(Tensor, target.masks)
    for i in masks.sum((1, 2)).argsort(descending=True).tolist():
        out[masks[i] > 0] = target.labels[i] + 1
    return out


def pretrain(data_root: str | Path, *, steps: int = STEPS, seed: int = 0, output: str | Path | None = POCKET_BACKBONE,
             workers: int = 0) -> Pretraining:
    """Trains the slim backbone and writes its weights.

    Args:
        data_root: a Pocket Zoo in COCO's layout.
        output: the safetensors file to write; None writes nothing.

    Raises:
        DataError: the data set is missing or broken.
    """
    torch.manual_seed(seed)
    data = CocoDataset(data_root, transforms=(Flip(),), masks="bitmap", min_size=8)
    backbone = slim_resnet()
    backbone.norm_eval = False  # here the statistics of batch norm are learned
    heads = nn.ModuleList([nn.Conv2d(c, len(data.class_names) + 1, 1) for c in backbone.channels])
    backbone.train()
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    result, started, step, epoch = Pretraining(backbone), time.perf_counter(), 0, 0
    right = torch.zeros(len(heads))
    with tqdm(total=steps, desc="pretrain", unit="step") as bar:
        while step < steps:
            loader = build_loader(data, BATCH, preprocess=TORCHVISION, training=True, shuffle=True, workers=workers,
                                  seed=seed, epoch=epoch)
            for batch in loader:
                images = TORCHVISION(batch.images, batch.sizes).tensor
                wanted = torch.stack([class_map(t, (images.shape[2], images.shape[3])) for t in batch.targets])
                losses = []
                for i, (x, head) in enumerate(zip(backbone(images), heads)):
                    stride = images.shape[2] // x.shape[2]
                    cells = wanted[:, stride // 2::stride, stride // 2::stride]
                    scores = head(x)
                    losses.append(F.cross_entropy(scores, cells))
                    # An average that forgets: the accuracy of about the last 50 batches.
                    right[i] += 0.02 * ((scores.argmax(1) == cells).float().mean() - right[i])
                loss = torch.stack(losses).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                result.losses.append(loss.item())
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
                step += 1
                if step == steps:
                    break
            epoch += 1
    result.accuracy, result.seconds = right.tolist(), time.perf_counter() - started
    if output is not None:
        save_weights(Path(output), backbone, {"made_by": "detcore pretrain", "steps": steps, "seed": seed,
                                              "data": fingerprint(data.annotation_file)})
    return result
