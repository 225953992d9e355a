"""The loader: the same batches from the same seed, in any number of processes and ranks, from any batch on."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detcore.data.coco import CocoDataset
from detcore.data.loader import build_loader, collate, plan_epoch
from detcore.data.transforms import Flip, Preprocess, ResizeRange, Sample
from detcore.errors import DataError
from detcore.pocket.pocket_zoo import draw
from detcore.structures import Polygons

PREPROCESS = Preprocess((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> CocoDataset:
    root = draw(tmp_path_factory.mktemp("zoo") / "pocket", images=30, val=0, workers=1, progress=False)
    return CocoDataset(root, transforms=(ResizeRange((128, 96), (128, 128)), Flip()), masks="bitmap")


def content(loader) -> list:
    """What the batches hold, in a form that compares."""
    return [(b.images.numpy().tobytes(), b.sizes, [m.image_id for m in b.metas],
             [(t.boxes.tolist(), t.labels.tolist(), int(t.masks.sum())) for t in b.targets]) for b in loader]


def test_batches_depend_on_seed_and_epoch_only(data):
    def load(**more):
        return content(build_loader(data, 4, preprocess=PREPROCESS, training=True, **more))

    plain = load()
    assert len(plain) == 8 and sorted(i for b in plain for i in b[2]) == sorted(data.image_ids)
    assert load(workers=2) == plain
    assert load(workers=1, start=5) == plain[5:]
    assert load(seed=1) != plain and load(epoch=1) != plain
    assert load(seed=1, epoch=2) == load(seed=1, epoch=2)


def test_an_image_is_drawn_anew_in_every_repetition_and_epoch(data):
    loader = build_loader(data, 1, preprocess=PREPROCESS, training=True, repeat=8)
    flips = {m.image_id: set() for b in loader for m in b.metas}
    for batch in loader:
        flips[batch.metas[0].image_id].add(batch.images.numpy().tobytes())
    assert len(loader) == 240 and np.mean([len(v) for v in flips.values()]) > 4


def test_ranks_see_together_what_one_process_would_see(data):
    whole = content(build_loader(data, 4, preprocess=PREPROCESS, training=True, seed=3))
    ranks = [content(build_loader(data, 2, preprocess=PREPROCESS, training=True, seed=3, rank=r, world_size=2))
             for r in (0, 1)]
    for one, a, b in zip(whole, *ranks, strict=True):
        assert sorted(one[2]) == sorted(a[2] + b[2]) and not set(a[2]) & set(b[2])
        assert {tuple(map(str, t)) for t in one[3]} == {tuple(map(str, t)) for t in a[3] + b[3]}


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(1, 3),
       st.integers(0, 2**31))
def test_an_epoch_goes_over_all_images_on_any_number_of_ranks(n, batch, world, shuffle, grouping, repeat, seed):
    sizes = np.random.default_rng(seed).integers(1, 100, (n, 2))
    images = np.tile(np.arange(n), repeat)
    ranks = [plan_epoch(sizes, batch, shuffle=shuffle, seed=seed, epoch=0, images=images, aspect_grouping=grouping,
                        rank=r, world_size=world, fill=fill) for fill in (False, True) for r in range(world)]
    plain, filled = ranks[:world], ranks[world:]
    seen = [image for rank in plain for b in rank for image, _ in b]
    assert sorted(seen) == sorted(list(range(n)) * repeat)
    places = [place for rank in plain for b in rank for _, place in b]
    assert sorted(places) == list(range(n * repeat))
    assert len({tuple(len(b) for b in rank) for rank in filled}) == 1  # every rank does the same work
    assert {image for rank in filled for b in rank for image, _ in b} == set(range(n))
    if grouping:
        tall = sizes[:, 1] < sizes[:, 0]
        mixed = [k for k, together in enumerate(zip(*filled)) if len({tall[i] for b in together for i, _ in b}) > 1]
        left = {True: (tall.sum() * repeat) % (batch * world), False: ((~tall).sum() * repeat) % (batch * world)}
        assert len(mixed) <= 2 and (mixed == [] or min(mixed) >= len(filled[0]) - 2 or sum(left.values()) == 0)


def test_without_shuffling_the_order_is_the_files(data):
    batches = plan_epoch(data.sizes, 7, shuffle=False, seed=0, epoch=0)
    assert [i for b in batches for i, _ in b] == list(range(30)) and [len(b) for b in batches] == [7, 7, 7, 7, 2]


def test_masks_are_padded_with_their_image():
    bitmap = Sample(np.full((20, 30, 3), 9, np.uint8), np.array([[1, 2, 5, 6]], np.float32), np.array([3]),
                    np.ones((1, 20, 30), np.uint8))
    polygon = Sample(np.zeros((40, 10, 3), np.uint8), masks=Polygons([], (40, 10)),
                     proposals=np.zeros((5, 4), np.float32))
    batch = collate([bitmap, polygon], PREPROCESS)
    assert batch.images.shape == (2, 3, 64, 32) and batch.images.dtype == torch.uint8
    a, b = batch.targets
    assert a.masks.shape == (1, 64, 32) and a.masks.sum() == 600 and a.labels.dtype == torch.int64
    assert b.masks.size == (64, 32) and b.boxes.shape == (0, 4) and b.proposals.shape == (5, 4) and a.proposals is None


def test_an_error_in_a_worker_is_one_sentence(data):
    broken = data.path(12)
    whole = broken.read_bytes()
    broken.write_bytes(whole[:500])
    try:
        for workers in (0, 2):
            with pytest.raises(DataError) as error:
                list(build_loader(data, 4, preprocess=PREPROCESS, workers=workers))
            assert str(broken) in str(error.value) and "\n" not in str(error.value)
    finally:
        broken.write_bytes(whole)


def test_a_data_set_without_images_is_an_error(data):
    empty = CocoDataset(data.root, min_size=500)
    with pytest.raises(DataError, match="no image left"):
        build_loader(empty, 2, preprocess=PREPROCESS)
