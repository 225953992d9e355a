"""Transforms against the reference's numbers, and what must hold for any image and boxes."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detcore.data.transforms import (
    Choice,
    FilterBoxes,
    Flip,
    RandomCrop,
    Resize,
    ResizeChoice,
    ResizeRange,
    Sample,
    ScaleJitter,
    apply,
    tight_boxes,
)
from detcore.ops.masks import Polygons, rasterise
from detcore.recipe import TORCHVISION
from detcore.zoo.index import all_entries
from tests.reference import recipe

CASES = json.loads((Path(__file__).parent.parent / "reference/transforms.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['model']}-{c['image_seed']}")
def test_test_time_transforms_give_the_references_tensor(case):
    ours = all_entries()[case["model"]].recipe
    sample = apply(ours.test_transforms, Sample(recipe.photo(*case["image_shape"], case["image_seed"])), rng())
    preprocess = ours.preprocess
    images = preprocess(*preprocess.collate([sample.image]))
    tensor = images.tensor[0].numpy()
    if preprocess.canvas:  # the reference counts the canvas to the image, and resizes nothing
        assert list(sample.size) == case["image_shape"] and case["scale_factor"] is None
    else:
        assert list(sample.size) == case["resized_shape"] == list(images.sizes[0])
        assert sample.meta.scale_factor == pytest.approx(case["scale_factor"], abs=1e-12)
    assert list(tensor.shape[1:]) == case["batch_shape"]
    assert np.abs(tensor[:, case["rows"]][..., case["cols"]] - case["samples"]).max() < 1e-4
    assert tensor.mean((1, 2), np.float64) == pytest.approx(case["mean"], abs=2e-5)
    assert tensor.std((1, 2), dtype=np.float64, ddof=1) == pytest.approx(case["std"], rel=1e-6)

calm = settings(deadline=None, max_examples=60)  # no deadline: a busy machine is not a failure


@st.composite
def samples(draw, kinds=(None, "bitmap", "polygon")):
    """A random image with rectangles as objects."""
    h, w, n = draw(st.integers(8, 90)), draw(st.integers(8, 90)), draw(st.integers(0, 5))
    r = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corner = r.integers(0, [w - 2, h - 2], (n, 2))
    boxes = np.concatenate([corner, corner + r.integers(2, [w, h], (n, 2))], 1).clip(0, [w, h, w, h]).astype(np.float32)
    kind, m = draw(st.sampled_from(kinds)), None
    rings = [[np.array([[a, b], [c, b], [c, d], [a, d]], float)] for a, b, c, d in boxes]
    if kind == "polygon":
        m = Polygons(rings, (h, w))
    elif kind == "bitmap":
        m = np.array([rasterise(ring, h, w) for ring in rings], np.uint8).reshape(n, h, w)
    return Sample(r.integers(0, 256, (h, w, 3), np.uint8), boxes, r.integers(0, 9, n), m, boxes[:1].copy(),
                  boxes.copy())


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def inside(sample: Sample) -> bool:
    h, w = sample.size
    every = np.concatenate([sample.boxes, sample.ignored, sample.proposals])
    return bool(((every >= 0) & (every <= [w, h, w, h])).all())


@calm
@given(samples())
def test_flipping_twice_changes_nothing(sample):
    once = Flip(1.0)(sample, rng())
    twice = Flip(1.0)(once, rng())
    assert (twice.image == sample.image).all() and (once.image == sample.image[:, ::-1]).all()
    for name in ("boxes", "ignored", "proposals"):
        np.testing.assert_allclose(getattr(twice, name), getattr(sample, name), atol=1e-4)
    assert inside(once) and Flip(0.0)(sample, rng()) is sample
    if isinstance(sample.masks, Polygons):
        for before, after in zip(sample.masks.rings, twice.masks.rings):
            np.testing.assert_allclose(after[0], before[0], atol=1e-9)
    elif sample.masks is not None:
        assert (twice.masks == sample.masks).all()
    if sample.masks is not None:
        np.testing.assert_allclose(tight_boxes(once.masks), once.boxes, atol=1e-4)


@calm
@given(samples(), st.integers(10, 120), st.integers(10, 120))
def test_resizing_scales_every_box_and_mask_by_the_rounded_factor(sample, long_side, short_side):
    out = Resize((long_side, short_side))(sample, rng())
    (h, w), (new_h, new_w) = sample.size, out.size
    assert max(out.size) <= max(long_side, short_side) and min(out.size) <= max(min(long_side, short_side), 1)
    assert out.meta.scale_factor == (new_w / w, new_h / h)
    factor = np.array([new_w / w, new_h / h] * 2)
    np.testing.assert_allclose(out.boxes, sample.boxes * factor, rtol=1e-5, atol=1e-4)
    assert inside(out)
    if isinstance(sample.masks, Polygons):
        assert out.masks.size == out.size
        np.testing.assert_allclose(tight_boxes(out.masks), out.boxes, atol=1e-3)
    elif sample.masks is not None:
        assert out.masks.shape == (len(sample.boxes), new_h, new_w) and out.masks.max(initial=0) <= 1


@calm
@given(samples(), st.integers(2, 120), st.integers(2, 120))
def test_stretching_gives_that_size_and_takes_the_boxes_along(sample, wide, high):
    out = Resize((wide, high), keep_ratio=False)(sample, rng())
    assert out.size == (high, wide) and inside(out)
    factor = np.array([wide / sample.size[1], high / sample.size[0]] * 2)
    assert out.meta.scale_factor == (factor[0], factor[1])
    np.testing.assert_allclose(out.boxes, sample.boxes * factor, rtol=1e-5, atol=1e-4)


@calm
@given(samples(), st.integers(2, 100), st.integers(2, 100), st.integers(0, 2**32 - 1))
def test_cropping_keeps_boxes_inside_and_on_their_masks(sample, h, w, seed):
    out = RandomCrop((h, w), allow_negative=True)(sample, np.random.default_rng(seed))
    assert out.size == (min(h, sample.size[0]), min(w, sample.size[1])) and inside(out)
    assert len(out.boxes) == len(out.labels) and (out.boxes[:, 2:] > out.boxes[:, :2]).all()
    if out.masks is not None:
        assert len(out.masks) == len(out.boxes)
        np.testing.assert_allclose(tight_boxes(out.masks), out.boxes, atol=1e-4)
    refused = RandomCrop((h, w))(sample, np.random.default_rng(seed))
    assert (refused is None) == (len(out.boxes) == 0)


@calm
@given(samples(kinds=("polygon",)), st.integers(0, 2**32 - 1))
def test_a_cropped_polygon_covers_what_the_cropped_bitmap_covers(sample, seed):
    bitmap = replace(sample, masks=sample.masks.to_bitmap())
    crop = RandomCrop((20, 20), allow_negative=True)
    a, b = (crop(s, np.random.default_rng(seed)) for s in (sample, bitmap))
    assert (a.masks.to_bitmap() == b.masks).all() and (a.image == b.image).all()


def test_random_sizes_reach_their_ends_and_nothing_else():
    sample, r = Sample(np.zeros((50, 100, 3), np.uint8)), rng()
    heights = {ResizeRange((400, 60), (400, 64))(sample, r).size[0] for _ in range(200)}
    assert heights == {60, 61, 62, 63, 64}
    assert {ResizeChoice(((80, 20), (80, 30)))(sample, r).size for _ in range(50)} == {(20, 40), (30, 60)}
    jittered = [ScaleJitter((100, 100), (0.1, 2.0))(sample, r).size[1] for _ in range(300)]
    assert 9 <= min(jittered) < 25 and 180 < max(jittered) <= 200
    drawn = [RandomCrop((30, 40), allow_negative=True, drawn=True)(sample, r).size for _ in range(300)]
    assert {h for h, _ in drawn} == {w for _, w in drawn} == set(range(30, 41))
    assert {RandomCrop((60, 80), True, drawn=True)(sample, r).size[0] for _ in range(50)} == {50}  # all there is


def test_one_of_several_lists_is_drawn():
    sample = Sample(np.zeros((50, 100, 3), np.uint8))
    either = Choice(((Resize((80, 20)),), (Resize((80, 30)), RandomCrop((10, 12), allow_negative=True))))
    sizes = [either(sample, np.random.default_rng(seed)).size for seed in range(100)]
    assert set(sizes) == {(20, 40), (10, 12)} and 30 < sizes.count((20, 40)) < 70


def test_objects_too_small_are_dropped_and_an_empty_image_is_refused():
    sample = Sample(np.zeros((9, 9, 3), np.uint8), np.array([[1, 1, 5, 5], [2, 2, 2.005, 8]], np.float32),
                    np.array([3, 4]))
    assert FilterBoxes(0.01)(sample, rng()).labels.tolist() == [3]
    assert FilterBoxes(5)(sample, rng()) is None
    assert apply((FilterBoxes(5), Flip()), sample, rng()) is None


def test_the_same_seed_gives_the_same_sample():
    sample = Sample(recipe.photo(60, 80, 0), np.array([[10, 10, 40, 50]], np.float32), np.array([1]))
    chain = (ScaleJitter((64, 64), (0.5, 2.0)), RandomCrop((48, 48), allow_negative=True), Flip())
    a, b, c = (apply(chain, sample, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert (a.image == b.image).all() and (a.boxes == b.boxes).all()
    assert a.size != c.size or (a.image != c.image).any()


def test_padding_is_zero_after_normalisation_and_training_has_the_recipes_size():
    images = [recipe.photo(20, 30, 0), recipe.photo(40, 25, 1)]
    out = TORCHVISION(*TORCHVISION.collate(images))
    assert out.tensor.shape == (2, 3, 64, 32) and out.sizes == [(20, 30), (40, 25)]
    assert not out.tensor[0, :, 20:].any() and not out.tensor[0, :, :, 30:].any() and not out.tensor[1, :, :, 25:].any()
    red = (images[1][..., 2].astype(np.float32) - 123.675) / 58.395
    np.testing.assert_allclose(out.tensor[1, 0, :40, :25].numpy(), red, rtol=1e-5, atol=1e-6)
    fixed = replace(TORCHVISION, fixed_size=(96, 128))
    assert fixed.collate(images, training=True)[0].shape[2:] == (96, 128)
    assert fixed.collate(images)[0].shape[2:] == (64, 32)
