"""Box coding, the IoU family, suppression, matching and sampling: what holds for any input."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchvision.ops import nms

from detcore.ops import boxes as box
from detcore import losses
from detcore.ops.masks import crop_masks
from detcore.structures import Polygons, encode_rle
from detcore.ops.matching import BACKGROUND, IGNORE, IoUMatcher, Sampler
from detcore.methods.mask_rcnn import paste
from detcore.methods.rpn import rescale


@st.composite
def some_boxes(draw, most: int = 12) -> torch.Tensor:
    """[n, 4] boxes of at least one pixel within 200 x 200."""
    n = draw(st.integers(1, most))
    raw = draw(hnp.arrays(np.float32, (n, 4), elements=st.floats(0, 1, width=32)))
    raw = torch.from_numpy(raw)
    corner = raw[:, :2] * 150
    return torch.cat([corner, corner + 1 + raw[:, 2:] * 49], 1)


@settings(max_examples=60, deadline=None)
@given(some_boxes(), some_boxes())
def test_decoding_undoes_encoding(anchors: torch.Tensor, boxes: torch.Tensor) -> None:
    n = min(len(anchors), len(boxes))
    stds = (0.1, 0.1, 0.2, 0.2)
    back = box.decode(anchors[:n], box.encode(anchors[:n], boxes[:n], stds), stds)
    torch.testing.assert_close(back, boxes[:n], atol=2e-2, rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(some_boxes(), some_boxes())
def test_iou_family(a: torch.Tensor, b: torch.Tensor) -> None:
    matrix = box.pairwise_iou(a, b)
    assert ((matrix >= 0) & (matrix <= 1 + 1e-5)).all()
    torch.testing.assert_close(matrix, box.pairwise_iou(b, a).T)
    torch.testing.assert_close(box.iou(a, a), torch.ones(len(a)))
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    overlap = box.iou(a, b)
    torch.testing.assert_close(overlap, matrix[range(n), range(n)])
    assert (box.giou(a, b) <= overlap + 1e-5).all() and (box.giou(a, b) >= -1 - 1e-5).all()
    assert (box.ciou(a, b) <= overlap + 1e-5).all()
    for loss in (losses.iou_loss, losses.giou_loss, losses.ciou_loss, losses.bounded_iou_loss):
        assert (loss(a, b) >= -1e-5).all() and loss(a, a).abs().max() < 1e-2


@settings(max_examples=40, deadline=None)
@given(some_boxes(), st.integers(0, 2**31 - 1))
def test_nms_of_a_batch_is_nms_of_each_image(boxes: torch.Tensor, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    n = len(boxes)
    scores = torch.rand(2, n, generator=g)
    groups = torch.randint(0, 3, (2, n), generator=g)
    valid = torch.rand(2, n, generator=g) > 0.2
    index, filled = box.nms_per_image(boxes.expand(2, -1, -1), scores, groups, valid, 0.5, limit=n)
    for i in range(2):
        want = []
        for group in range(3):
            mine = (valid[i] & (groups[i] == group)).nonzero()[:, 0]
            want += mine[nms(boxes[mine], scores[i, mine], 0.5)].tolist()
        want.sort(key=lambda k: -scores[i, k])
        assert index[i][filled[i]].tolist() == want


def test_nms_of_nothing() -> None:
    index, filled = box.nms_per_image(torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long),
                                      torch.zeros(2, 3, dtype=torch.bool), 0.5, 5)
    assert index.shape == (2, 5) and not filled.any()


@settings(max_examples=40, deadline=None)
@given(some_boxes(), st.integers(0, 2**31 - 1))
def test_soft_nms_one_box_at_a_time(boxes: torch.Tensor, seed: int) -> None:
    """The same as the published algorithm, which visits box after box."""
    g = torch.Generator().manual_seed(seed)
    scores, groups = torch.rand(len(boxes), generator=g), torch.randint(0, 2, (len(boxes),), generator=g)
    index, kept = box.soft_nms(boxes, scores, groups, 0.5)
    left, current, want = set(range(len(boxes))), scores.clone(), {}
    while left:
        best = max(left, key=lambda k: current[k].item())
        left.remove(best)
        if current[best] > 1e-3:
            want[best] = current[best].item()
        for k in left:
            overlap = box.iou(boxes[best], boxes[k]).item()
            if groups[k] == groups[best] and overlap >= 0.5:
                current[k] *= 1 - overlap
    assert dict(zip(index.tolist(), kept.tolist())) == pytest.approx(want, abs=1e-5)
    assert (kept[:-1] >= kept[1:]).all()


def test_clip_and_rescale() -> None:
    boxes = torch.tensor([[[-5.0, -5, 300, 300]], [[10.0, 10, 20, 20]]])
    clipped = box.clip(boxes, torch.tensor([[100, 200], [15, 12]]))
    assert clipped.tolist() == [[[0, 0, 200, 100]], [[10, 10, 12, 15]]]
    assert rescale(torch.tensor([[10.0, 20, 30, 40]]), (100, 50), (200, 50)).tolist() == [[10, 40, 30, 80]]


def test_matching_thresholds_and_best_boxes() -> None:
    truth = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 0, 0]]])
    valid = torch.tensor([[True, True, False]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [55, 50, 65, 60], [80, 80, 90, 90]])
    assert IoUMatcher(0.7, 0.3)(boxes, truth, valid).tolist() == [[0, IGNORE, IGNORE, BACKGROUND]]
    assert IoUMatcher(0.7, 0.3, low_quality=0.3)(boxes, truth, valid).tolist() == [[0, IGNORE, 1, BACKGROUND]]
    only = torch.tensor([[False, True, True, True]])
    assert IoUMatcher(0.7, 0.3)(boxes, truth, valid, only).tolist() == [[IGNORE, IGNORE, IGNORE, BACKGROUND]]


def test_sampler_keeps_its_numbers() -> None:
    torch.manual_seed(0)
    match = torch.cat([torch.zeros(2, 30, dtype=torch.long), torch.full((2, 100), BACKGROUND)], 1)
    match[1, 3:30] = IGNORE
    positive, negative = Sampler(40, 0.5)(match)
    assert positive.sum(1).tolist() == [20, 3] and negative.sum(1).tolist() == [20, 37]
    assert not (positive & (match < 0)).any() and not (negative & (match != BACKGROUND)).any()
    hardest = torch.arange(130.0).expand(2, -1)
    positive, negative = Sampler(40, 0.5)(match, hardest)
    assert positive[0, 10:30].all() and negative[0, -20:].all()


def test_bitmap_and_polygon_crops_agree() -> None:
    ring = np.array([[10, 10], [50, 10], [50, 40], [10, 40]], np.float32)
    polygons = Polygons([[ring], [ring + 20]], (100, 100))
    bitmaps = torch.from_numpy(polygons.to_bitmap())
    boxes = torch.tensor([[5.0, 5, 45, 45], [30, 30, 70, 60]])
    image, match = torch.tensor([0, 0]), torch.tensor([0, 1])
    a = crop_masks([polygons], boxes, image, match, 28)
    b = crop_masks([bitmaps], boxes, image, match, 28)
    assert (a == b).float().mean() > 0.95 and a[1].all()


def test_pasted_mask_fills_its_box() -> None:
    masks = torch.ones(2, 28, 28)
    masks[1, :, 14:] = 0
    full, half = paste(masks, torch.tensor([[10.0, 20, 40, 60], [10, 20, 40, 60]]), (80, 80))
    want = torch.zeros(80, 80, dtype=torch.bool)
    want[20:60, 10:40] = True
    assert torch.equal(full, want)
    assert half[20:60, 10:25].all() and not half[:, 25:].any()
    assert encode_rle(full[None])[0]["size"] == [80, 80]


def test_many_groups_do_not_blur_coordinates() -> None:
    """The same boxes in the first and in the 200,000th group are suppressed alike."""
    boxes = torch.tensor([[0.0, 0, 1000, 1000], [0, 0, 1000, 500.5], [0, 0, 1000, 499.5]])
    for group in (0, 200_000):
        kept = box.grouped_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.full((3,), group), 0.5)
        assert kept.tolist() == [0, 2]
