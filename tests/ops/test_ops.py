"""Box coding, the IoU family, suppression, matching and sampling: what holds for any input."""
from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchvision.ops import nms

from detcore.errors import UsageError
from detcore.methods.fcos import FCOSHead
from detcore.ops import boxes as box
from detcore.ops import losses, matching
from detcore.ops import nms as suppression
from detcore.ops.masks import crop_masks, paste_masks
from detcore.ops.matching import BACKGROUND, IGNORE, ATSSMatcher, IoUMatcher, Sampler, pad_targets
from detcore.ops.nms import PostProcess, ProposalSettings, top_scores
from detcore.structures import Polygons, Target, encode_rle


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
    index, filled = suppression.nms_per_image(boxes.expand(2, -1, -1), scores, groups, valid, 0.5, max_kept=n)
    for i in range(2):
        want = []
        for group in range(3):
            mine = (valid[i] & (groups[i] == group)).nonzero()[:, 0]
            want += mine[nms(boxes[mine], scores[i, mine], 0.5)].tolist()
        want.sort(key=lambda k: -scores[i, k])
        assert index[i][filled[i]].tolist() == want


def test_nms_of_nothing() -> None:
    index, filled = suppression.nms_per_image(
        torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long),
        torch.zeros(2, 3, dtype=torch.bool), 0.5, 5)
    assert index.shape == (2, 5) and not filled.any()


@settings(max_examples=40, deadline=None)
@given(some_boxes(), st.integers(0, 2**31 - 1))
def test_soft_nms_one_box_at_a_time(boxes: torch.Tensor, seed: int) -> None:
    """The same as the published algorithm, which visits box after box."""
    g = torch.Generator().manual_seed(seed)
    scores, groups = torch.rand(len(boxes), generator=g), torch.randint(0, 2, (len(boxes),), generator=g)
    index, kept = suppression.soft_nms(boxes, scores, groups, 0.5)
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


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.05, 0.5, 0.99]), st.integers(1, 40))
def test_top_scores_are_those_of_a_sort(seed: int, threshold: float, top_n: int) -> None:
    """Of logits as of scores; images with fewer above the threshold are filled up with -1."""
    logits = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(seed)) * 3
    scores = logits.sigmoid()
    for given_scores, of_logits in ((scores, False), (logits, True)):
        best, index, label = top_scores(given_scores, threshold, top_n, logits=of_logits)
        for i in range(3):
            ordered = scores[i].flatten().sort(descending=True).values[:top_n]
            ordered = ordered[ordered > threshold]
            torch.testing.assert_close(best[i][:len(ordered)], ordered)
            assert (best[i][len(ordered):] == -1).all()
            torch.testing.assert_close(scores[i][index[i], label[i]][:len(ordered)], ordered)


@pytest.mark.parametrize("change", [dict(score_threshold=1.5), dict(nms_threshold=-0.1), dict(max_detections=0),
                                    dict(pre_nms_top_n=2.5)])
def test_thresholds_and_numbers_are_checked(change) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        PostProcess(**change)


def test_clip_and_rescale() -> None:
    boxes = torch.tensor([[[-5.0, -5, 300, 300]], [[10.0, 10, 20, 20]]])
    clipped = box.clip(boxes, torch.tensor([[100, 200], [15, 12]]))
    assert clipped.tolist() == [[[0, 0, 200, 100]], [[10, 10, 12, 15]]]
    assert box.rescale(torch.tensor([[10.0, 20, 30, 40]]), (100, 50), (200, 50)).tolist() == [[10, 40, 30, 80]]


def test_matching_thresholds_and_best_boxes() -> None:
    gt_boxes = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 0, 0]]])
    valid = torch.tensor([[True, True, False]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [55, 50, 65, 60], [80, 80, 90, 90]])
    assert IoUMatcher(0.7, 0.3)(boxes, gt_boxes, valid).tolist() == [[0, IGNORE, IGNORE, BACKGROUND]]
    assert IoUMatcher(0.7, 0.3, low_quality=0.3)(boxes, gt_boxes, valid).tolist() == [[0, IGNORE, 1, BACKGROUND]]
    only = torch.tensor([[False, True, True, True]])
    assert IoUMatcher(0.7, 0.3)(boxes, gt_boxes, valid, only).tolist() == [[IGNORE, IGNORE, IGNORE, BACKGROUND]]


def some_targets(seed: int) -> list[Target]:
    """Four images: one without objects, one with many; whole pixels and several of the same, so that overlaps tie."""
    g, targets = torch.Generator().manual_seed(seed), []
    for count in (3, 0, 25, 8):
        corner = torch.randint(0, 12, (count, 2), generator=g) * 8.0
        boxes = torch.cat([corner, corner + torch.randint(1, 6, (count, 2), generator=g) * 8.0], 1)
        targets.append(Target(boxes, torch.randint(0, 4, (count,), generator=g)))
    return targets


def same_in_chunks(assign, monkeypatch: pytest.MonkeyPatch) -> None:
    """The assignment of many batches does not depend on how many entries are looked at together."""
    for seed in range(5):
        targets, results = some_targets(seed), []
        for chunk in (matching.CPU_CHUNK, 5000, 1000, 1):
            with monkeypatch.context() as m:
                m.setattr(matching, "CPU_CHUNK", chunk)
                results.append(assign(targets))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other))


LEVELS = [torch.cat([grid - half, grid + half], 1) for half, step in ((8.0, 8), (16.0, 16)) for grid in
          [torch.cartesian_prod(torch.arange(0, 128, step), torch.arange(0, 128, step)).flip(1).float()]]


@pytest.mark.parametrize("low_quality", [None, 0.0, 0.3])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("some", [True, False])
def test_matching_in_chunks(low_quality, ties, some, monkeypatch) -> None:
    """Objects past an image's last one are padding, which may lie anywhere."""
    matcher, boxes = IoUMatcher(0.5, 0.4, low_quality=low_quality, ties=ties), torch.cat(LEVELS)
    candidates = torch.rand(4, len(boxes), generator=torch.Generator().manual_seed(0)) > 0.3 if some else None

    def assign(targets: list[Target]) -> list[torch.Tensor]:
        gt_boxes, _, gt_valid = pad_targets(targets)
        gt_boxes = torch.where(gt_valid[..., None], gt_boxes, boxes[7])
        matched = matcher(boxes, gt_boxes, gt_valid, candidates)
        assert (matched >= 0).any() and (matched[1] < 0).all()
        return [matched, matcher(boxes.expand(4, -1, -1), gt_boxes, gt_valid, candidates)]

    same_in_chunks(assign, monkeypatch)


def test_atss_in_chunks(monkeypatch) -> None:
    def assign(targets: list[Target]) -> list[torch.Tensor]:
        gt_boxes, _, gt_valid = pad_targets(targets)
        matched = ATSSMatcher()(LEVELS, torch.where(gt_valid[..., None], gt_boxes, LEVELS[0][7]), gt_valid)
        assert (matched >= 0).any() and (matched[1] == BACKGROUND).all()
        return [matched]

    same_in_chunks(assign, monkeypatch)


def test_fcos_in_chunks(monkeypatch) -> None:
    head = FCOSHead(4, 4, *[ProposalSettings(9, 9)] * 2, depth=0)
    points = [torch.cartesian_prod(torch.arange(4.0, 128, s), torch.arange(4.0, 128, s)) for s in (8, 16, 32, 64, 128)]

    def assign(targets: list[Target]) -> list[torch.Tensor]:
        labels, distances = head.assign(points, targets)
        positive = labels < 4
        assert positive.any() and not positive[1].any()
        return [labels, torch.where(positive[..., None], distances, 0.0)]

    same_in_chunks(assign, monkeypatch)


def test_matching_of_a_crowd_stays_small() -> None:
    """2,000 objects in one image of 16, as WIDER FACE has them, against RetinaNet's anchors on 800 x 1216: one table
    of all would take 23 GB."""
    code = """
import resource, torch
from detcore.methods.retinanet import STRIDES, RetinaHead
from detcore.structures import Target
torch.manual_seed(0)
head, maps = RetinaHead(4, 1, depth=0), [torch.zeros(16, 1, -(-800 // s), -(-1216 // s)) for s in STRIDES]
def target(n):
    corner = torch.rand(n, 2) * torch.tensor([1150.0, 750.0])
    return Target(torch.cat([corner, corner + 4 + torch.rand(n, 2) * 40], 1), torch.zeros(n, dtype=torch.long))
targets = [target(2000 if i == 7 else 10) for i in range(16)]
head.assign(maps, targets[:1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
anchors, matched, *_ = head.assign(maps, targets)
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(used / 2 ** 20, len(anchors), len(matched[7].unique()))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    gigabytes, anchors, matched = float(out[0]), int(out[1]), int(out[2])
    assert anchors > 180_000 and matched > 1500
    assert gigabytes < 1.5


def test_sampler_keeps_its_numbers() -> None:
    torch.manual_seed(0)
    matched = torch.cat([torch.zeros(2, 30, dtype=torch.long), torch.full((2, 100), BACKGROUND)], 1)
    matched[1, 3:30] = IGNORE
    positive, negative = Sampler(40, 0.5)(matched)
    assert positive.sum(1).tolist() == [20, 3] and negative.sum(1).tolist() == [20, 37]
    assert not (positive & (matched < 0)).any() and not (negative & (matched != BACKGROUND)).any()
    hardest = torch.arange(130.0).expand(2, -1)
    positive, negative = Sampler(40, 0.5)(matched, hardest)
    assert positive[0, 10:30].all() and negative[0, -20:].all()


def test_bitmap_and_polygon_crops_agree() -> None:
    ring = np.array([[10, 10], [50, 10], [50, 40], [10, 40]], np.float32)
    polygons = Polygons([[ring], [ring + 20]], (100, 100))
    bitmaps = torch.from_numpy(polygons.to_bitmap())
    boxes = torch.tensor([[5.0, 5, 45, 45], [30, 30, 70, 60]])
    image, matched = torch.tensor([0, 0]), torch.tensor([0, 1])
    a = crop_masks([polygons], boxes, image, matched, 28)
    b = crop_masks([bitmaps], boxes, image, matched, 28)
    assert (a == b).float().mean() > 0.95 and a[1].all()


def test_pasted_mask_fills_its_box() -> None:
    masks = torch.ones(2, 28, 28)
    masks[1, :, 14:] = 0
    full, half = paste_masks(masks, torch.tensor([[10.0, 20, 40, 60], [10, 20, 40, 60]]), (80, 80))
    want = torch.zeros(80, 80, dtype=torch.bool)
    want[20:60, 10:40] = True
    assert torch.equal(full, want)
    assert half[20:60, 10:25].all() and not half[:, 25:].any()
    assert encode_rle(full[None])[0]["size"] == [80, 80]


def test_many_groups_do_not_blur_coordinates() -> None:
    """The same boxes in the first and in the 200,000th group are suppressed alike."""
    boxes = torch.tensor([[0.0, 0, 1000, 1000], [0, 0, 1000, 500.5], [0, 0, 1000, 499.5]])
    for group in (0, 200_000):
        kept = suppression.grouped_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.full((3,), group), 0.5)
        assert kept.tolist() == [0, 2]
