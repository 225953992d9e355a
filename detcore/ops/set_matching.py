"""Sets of predictions: one query for each object at the least cost (Carion et al., "End-to-end object detection with
transformers", 2020, section 3.1), and what the costs and losses of such sets share.

The objects of a batch lie in one row, image after image; nothing is padded.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

UNREACHABLE = 1e6  # a cost that no real one reaches
EPS = 1e-12


@dataclass
class Matches:
    """Pairs of a query and its object after each of L decoder layers, sorted by object; M pairs after every layer.

    Attributes:
        image, query, index: [L, M] int64, the image of a pair, its query there, its object among those of the batch.
        counts: pairs of each image, after any layer.
    """

    image: Tensor
    query: Tensor
    index: Tensor
    counts: list[int]

    @property
    def layer(self) -> Tensor:
        """[L, 1] the layer of each pair."""
        return torch.arange(len(self.image), device=self.image.device)[:, None]

    def labels(self, gt_labels: Tensor, queries: int, no_object: int) -> Tensor:
        """[L, N, Q] int64 the label that each of N x `queries` queries should predict: its object's or `no_object`."""
        labels = gt_labels.new_full((len(self.image), len(self.counts), queries), no_object)
        return labels.index_put((self.layer, self.image, self.query), gt_labels[self.index])


def hungarian(costs: Sequence[Sequence[Tensor]], gt_valid: Sequence[Tensor]) -> list[Matches]:
    """One object for each query at most, and one query for each object while there are any, at the least cost in all.

    Args:
        costs: sets of predictions that are matched with the same objects; of each set for every image [L, Q, G], the
            cost of giving an object to a query, where only Q may differ between sets. What is not finite counts as
            unreachable.
        gt_valid: [G] bool for every image, which of its objects are real.
    """
    tables = [cost.detach().float() for one_set in costs for cost in one_set]
    # SciPy solves on the CPU. This is the one time that these losses wait for the device, so all goes in one transfer.
    flat = torch.cat([part.flatten() for part in (*tables, *(v.float() for v in gt_valid))]).cpu().numpy()
    flat = np.nan_to_num(flat, nan=UNREACHABLE, posinf=UNREACHABLE, neginf=-UNREACHABLE)
    parts = np.split(flat, np.cumsum([p.numel() for p in (*tables, *gt_valid)])[:-1])
    objects = [valid.nonzero()[0] for valid in parts[len(tables):]]
    starts = np.cumsum([0, *(len(v) for v in gt_valid)])
    matches = []
    for i in range(len(costs)):
        pairs = []  # of each image [3, L, m]
        for image, real in enumerate(objects):
            position = i * len(objects) + image
            layers = []
            for cost in parts[position].reshape(tables[position].shape):
                query, chosen = linear_sum_assignment(cost[:, real])
                order = chosen.argsort()
                layers.append(np.stack([np.full_like(query, image), query[order], starts[image] + real[chosen[order]]]))
            pairs.append(np.stack(layers, 1))
        together = torch.from_numpy(np.concatenate(pairs, 2)).to(tables[0].device, non_blocking=True)
        matches.append(Matches(together[0], together[1], together[2], [p.shape[2] for p in pairs]))
    return matches


def by_layer(losses: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Losses after each of L layers, [L] for each name, as single ones: those of the last layer are named `prefix` and
    their name, those of layer i before it "d{i}." and their name."""
    layers = len(next(iter(losses.values())))
    return {prefix + name if i == layers - 1 else f"d{i}.{name}": values[i]
            for i in range(layers) for name, values in losses.items()}


# Costs of giving objects to queries.

def focal_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> tuple[Tensor, Tensor]:
    """Elementwise focal loss (see `losses.focal`) if the target is one, and if it is zero; finite also for what is all
    but impossible."""
    p = logits.float().sigmoid()
    return -alpha * (1 - p) ** gamma * (p + EPS).log(), -(1 - alpha) * p**gamma * (1 - p + EPS).log()


def pairwise_mean(positive: Tensor, negative: Tensor, gt_masks: Tensor) -> Tensor:
    """[..., Q, G] the mean cost of P pixels if a mask shall be one of `gt_masks` [..., G, P]: a pixel costs `positive`
    [..., Q, P] where that mask is one, and `negative` where it is zero."""
    gt_masks = gt_masks.transpose(-1, -2)
    return (positive @ gt_masks + negative @ (1 - gt_masks)) / gt_masks.shape[-2]


def dice_cost(logits: Tensor, gt_masks: Tensor) -> Tensor:
    """[..., Q, G] the dice loss of every mask [..., Q, P] (logits of P pixels) with every `gt_masks` [..., G, P]."""
    p = logits.sigmoid()
    total = p.sum(-1)[..., None] + gt_masks.sum(-1)[..., None, :]
    return 1 - (2 * p @ gt_masks.transpose(-1, -2) + 1) / (total + 1)
