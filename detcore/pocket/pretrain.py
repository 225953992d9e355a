"""Pretrains the small backbones of the pocket profile on Pocket Zoo itself.

The published models start from backbones trained on ImageNet's labels. Here every stage of a slim backbone learns to
say, for each of its cells, which animal is there, or none. That takes a minute or two, and a detector that starts
from it needs a fraction of the steps that it would need from random weights.
"""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from detcore.data.coco import CocoDataset, fingerprint
from detcore.data.loader import build_loader
from detcore.data.transforms import Flip
from detcore.pocket.slim import SLIM, Slim
from detcore.ranges import checked
from detcore.recipe import TORCHVISION
from detcore.runs import Checkpoints, Interruption, alone, code_digest, output_folder, take
from detcore.structures import Target
from detcore.weights import save_weights

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


@checked()
@alone
def pretrain(data_root: str | Path, *, slim: Slim = SLIM, steps: int = STEPS, seed: int = 0,
             output: str | Path | None = None, folder: str | Path | None = None, workers: int = 0) -> Pretraining:
    """Trains a slim backbone and writes its weights.

    Args:
        data_root: a Pocket Zoo in COCO's layout.
        slim: which backbone, a value of `detcore.pocket.slim.SLIMS`.
        output: the safetensors file to write; None writes nothing.
        folder: for checkpoints, from which an interrupted run of the same settings goes on; None keeps none.

    Raises:
        DataError: the data set is missing or broken.
        KeyboardInterrupt: it was interrupted; the checkpoint is written.
    """
    torch.manual_seed(seed)
    data = CocoDataset(data_root, transforms=(Flip(),), masks="bitmap", min_size=8)
    settings = dict(slim=slim.file.stem, steps=steps, seed=seed, data=fingerprint(data.annotation_file),
                    code=code_digest())
    checkpoints = None if folder is None else Checkpoints(output_folder(folder), keep=1)
    if checkpoints is not None:
        take(checkpoints.folder)
    backbone: Any = slim.build()
    backbone.norm_eval = False  # here the statistics of batch norm are learned
    heads = nn.ModuleList([nn.Conv2d(c, len(data.class_names) + 1, 1) for c in backbone.channels])
    backbone.train()
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    parts: list[Any] = [backbone, heads, optimizer, schedule]
    result, right, step, before = Pretraining(backbone), torch.zeros(len(heads)), 0, 0.0
    state = checkpoints.load() if checkpoints else None
    if state and state["run"] == settings:
        for part, kept in zip(parts, state["parts"]):
            part.load_state_dict(kept)
        result.losses, right, step, before = state["losses"], state["right"], len(state["losses"]), state["seconds"]
    per_epoch, started = -(-len(data) // BATCH), time.perf_counter()
    with tqdm(total=steps, initial=step, desc="pretrain", unit="step") as bar, Interruption() as interruption:
        while step < steps and not interruption.requested:
            loader = build_loader(data, BATCH, preprocess=TORCHVISION, training=True, shuffle=True, workers=workers,
                                  seed=seed, epoch=step // per_epoch, start=step % per_epoch)
            for batch in loader:
                images = TORCHVISION(batch.images, batch.sizes).tensor
                targets = torch.stack([class_map(t, (images.shape[2], images.shape[3])) for t in batch.targets])
                losses = []
                for i, (x, head) in enumerate(zip(backbone(images), heads)):
                    stride = images.shape[2] // x.shape[2]
                    cells = targets[:, stride // 2::stride, stride // 2::stride]
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
                result.seconds = before + time.perf_counter() - started
                if checkpoints and (step % 100 == 0 or interruption.requested):
                    checkpoints.save(step, dict(
                        parts=[part.state_dict() for part in parts], losses=result.losses, right=right, run=settings,
                        seconds=result.seconds))
                if step == steps or interruption.requested:
                    break
    if interruption.requested:
        raise KeyboardInterrupt
    result.accuracy = right.tolist()
    if output is not None:
        save_weights(Path(output), backbone, {"made_by": "detcore pretrain", "steps": steps, "seed": seed,
                                              "data": settings["data"]})
    return result
