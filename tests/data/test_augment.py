"""The strong augmentation of one-stage detectors: what must hold for any image, objects and luck."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcore.data.augment import Expand, MinIoUCrop, PhotometricDistortion, centred_in, iou_with
from detcore.data.transforms import Flip, Resize, Sample, apply, tight_boxes
from detcore.structures import IGNORED, Polygons
from tests.data.test_transforms import calm, inside, rng, samples
from tests.reference import recipe

SEEDS = st.integers(0, 2**32 - 1)


@calm
@given(samples(), SEEDS)
def test_an_expanded_image_is_the_image_on_a_canvas_and_everything_follows(sample, seed):
    out = Expand(fill=(30.9, 20.0, 10.0), p=1.0)(sample, np.random.default_rng(seed))
    (h, w), (high, wide) = sample.size, out.size
    assert h <= high <= 4 * h and w <= wide <= 4 * w and inside(out)
    left, top = np.round(out.ignored[0, :2] - sample.ignored[0, :2]).astype(int) if len(sample.boxes) else (0, 0)
    if len(sample.boxes):
        assert (out.image[top:top + h, left:left + w] == sample.image).all()
        assert (out.image.reshape(-1, 3) == (10, 20, 30)).all(1).sum() >= high * wide - h * w
        for name in ("boxes", "ignored", "proposals"):
            np.testing.assert_allclose(getattr(out, name), getattr(sample, name) + [left, top, left, top], atol=1e-4)
    if out.masks is not None:
        assert len(out.masks) == len(sample.boxes)
        np.testing.assert_allclose(tight_boxes(out.masks), out.boxes, atol=1e-4)
        assert (out.masks.size if isinstance(out.masks, Polygons) else out.masks.shape[1:]) == out.size
    assert Expand(p=0.0)(sample, rng()) is sample


def test_the_canvas_has_no_class():
    sample = Sample(np.zeros((6, 8, 3), np.uint8), np.array([[1, 1, 5, 5]], np.float32), np.array([0]),
                    semantic=np.full((6, 8), 7, np.uint8))
    out = Expand(ratio=(2.0, 2.0), p=1.0)(sample, rng())
    assert out.semantic.shape == (12, 16) and (out.semantic == 7).sum() == 48 and (out.semantic == IGNORED).sum() == 144


@calm
@given(samples(), SEEDS)
def test_a_crop_keeps_the_objects_whose_centre_is_inside(sample, seed):
    marked = replace(sample, image=coordinates(*sample.size))
    out = MinIoUCrop()(marked, np.random.default_rng(seed))
    if out is marked:
        return
    (left, top), (h, w) = out.image[0, 0, :2], out.size
    window = int(left), int(top), int(left) + w, int(top) + h
    assert (out.image[-1, -1, :2] == (window[2] - 1, window[3] - 1)).all(), "the pixels come from one window"
    kept = centred_in(window, sample.boxes)
    assert (out.labels == sample.labels[kept]).all() and inside(out)
    shift, limit = np.array([left, top, left, top], np.float32), [w, h, w, h]
    np.testing.assert_allclose(out.boxes, (sample.boxes[kept] - shift).clip(0, limit), atol=1e-4)
    ignored = sample.ignored[centred_in(window, sample.ignored)]
    np.testing.assert_allclose(out.ignored, (ignored - shift).clip(0, limit), atol=1e-4)
    np.testing.assert_allclose(out.proposals, (sample.proposals - shift).clip(0, limit), atol=1e-4)
    assert (out.boxes[:, 2:] > out.boxes[:, :2]).all()
    assert len(out.boxes) or not len(sample.boxes), "an object is left"
    assert 0.3 * sample.size[0] - 1 <= h <= sample.size[0] and 0.3 * sample.size[1] - 1 <= w <= sample.size[1]
    if out.masks is not None:
        assert len(out.masks) == len(out.boxes)
        np.testing.assert_allclose(tight_boxes(out.masks), out.boxes, atol=1e-4)


def coordinates(h: int, w: int) -> np.ndarray:
    """An image whose pixels hold their own (x, y, 0)."""
    y, x = np.mgrid[:h, :w]
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize("overlap", (0.3, 0.7))
def test_a_crop_overlaps_every_object_as_much_as_asked(overlap):
    box = np.array([[10, 12, 70, 66]], np.float32)
    sample, chance, cropped = Sample(coordinates(80, 90), box, np.array([1])), rng(), 0
    for _ in range(60):
        out = MinIoUCrop((overlap,))(sample, chance)
        if out is sample:
            continue
        (left, top), (h, w) = out.image[0, 0, :2].astype(int), out.size
        found = iou_with((left, top, left + w, top + h), box)
        assert max(h, w) <= 2 * min(h, w) + 2
        cropped += found >= overlap
    assert cropped > 10


def test_iou_with_a_window():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]], np.float32)
    assert iou_with((0, 0, 2, 2), boxes) == pytest.approx([1, 1 / 7, 0])


@calm
@given(samples(), SEEDS)
def test_colours_change_and_nothing_else(sample, seed):
    out = PhotometricDistortion()(sample, np.random.default_rng(seed))
    assert out.image.dtype == np.uint8 and out.size == sample.size
    assert all(getattr(out, n) is getattr(sample, n) for n in ("boxes", "labels", "masks", "ignored", "proposals"))


def test_colours_without_range_keep_the_image_up_to_the_order_of_its_channels():
    photo, none = recipe.photo(40, 50, 0), PhotometricDistortion(0, (1, 1), (1, 1), 0)
    orders = set()
    for seed in range(40):
        out = none(Sample(photo), np.random.default_rng(seed)).image
        order = tuple(int(np.abs(photo.astype(int) - out[..., [i]].astype(int)).max((0, 1)).argmin()) for i in range(3))
        assert np.abs(photo[..., order].astype(int) - out).max() <= 1, "the way to hue and back rounds"
        orders.add(order)
    assert len(orders) == 6


@pytest.mark.parametrize(("limits", "spread"), ((dict(brightness=32), (5, 20)), (dict(contrast=(0.5, 1.5)), (5, 60)),
                                                (dict(saturation=(0.5, 1.5)), (2, 60)), (dict(hue=18), (2, 60))))
def test_each_distortion_acts_half_the_time(limits, spread):
    """`spread`: bounds of the mean change where there is one."""
    plain = dict(brightness=0.0, contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=0.0)
    distort, photo = PhotometricDistortion(**plain | limits), recipe.photo(30, 40, 1).astype(int)
    brightest, changes = np.sort(photo, -1), []
    for seed in range(200):
        out = distort(Sample(photo.astype(np.uint8)), np.random.default_rng(seed)).image
        changes.append(np.abs(np.sort(out, -1) - brightest).mean())  # whatever the channels' order
    acted = np.array(changes) > 0.5
    assert 0.3 < acted.mean() < 0.7
    assert spread[0] < np.array(changes)[acted].mean() < spread[1]


def test_the_same_seed_gives_the_same_sample():
    sample = Sample(recipe.photo(60, 80, 0), np.array([[10, 10, 40, 50]], np.float32), np.array([1]))
    chain = (Expand(), MinIoUCrop(), Resize((64, 64), keep_ratio=False), Flip(), PhotometricDistortion())
    a, b, c = (apply(chain, sample, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert (a.image == b.image).all() and (a.boxes == b.boxes).all() and (a.image != c.image).any()
