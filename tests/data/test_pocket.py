"""Pocket Zoo: the same pictures from the same seed, whatever happens on the way, in a layout that others can read."""
import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from detcore.data.coco import CocoDataset, fingerprint
from detcore.errors import DataError, UsageError
from detcore.pocket import pocket_zoo, profile
from detcore.pocket.names import STUFF
from detcore.pocket.pocket_zoo import CLASSES, draw


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("zoo") / "pocket", images=50, val=10, workers=2, progress=False)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_number_of_workers_and_an_interruption_change_nothing(zoo, tmp_path, monkeypatch):
    root, real, drawn = tmp_path / "again", pocket_zoo._draw_image, []

    def interrupted(*args):
        if len(drawn) == 27:
            raise KeyboardInterrupt
        drawn.append(args)
        return real(*args)

    monkeypatch.setattr(pocket_zoo, "_draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(root, images=50, val=10, workers=1, progress=False)
    assert not (root / "annotations/instances_train2017.json").exists()
    count: list = []
    monkeypatch.setattr(pocket_zoo, "_draw_image", lambda *args: count.append(1) or real(*args))
    draw(root, images=50, val=10, workers=1, progress=False)
    assert len(count) == 40  # the first 20 were finished
    assert contents(root) == contents(zoo)


def test_a_finished_set_is_left_alone_and_another_one_is_drawn_anew(zoo, tmp_path):
    root = draw(tmp_path / "set", images=3, val=1, workers=1, progress=False)
    before = fingerprint(root / "annotations/instances_train2017.json")
    times = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    draw(root, images=3, val=1, workers=1, progress=False)
    assert times == {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    draw(root, images=2, val=1, seed=1, workers=1, progress=False)
    assert before != fingerprint(root / "annotations/instances_train2017.json")
    assert len(list((root / "train2017").iterdir())) == 2
    # A small set is the beginning of a large one.
    small = draw(tmp_path / "small", images=3, val=1, workers=1, progress=False)
    for file in (small / "train2017").iterdir():
        assert file.read_bytes() == (zoo / "train2017" / file.name).read_bytes()


def test_our_reader_and_pycocotools_read_the_same(zoo, capsys):
    ours = CocoDataset(zoo, masks="bitmap")
    theirs = COCO(str(zoo / "annotations/instances_train2017.json"))
    assert ours.class_names == CLASSES and len(ours) == 50 == len(theirs.imgs)
    for i, image_id in enumerate(ours.image_ids.tolist()):
        sample = ours.sample(i)
        records = theirs.imgToAnns[image_id]
        things, crowds = ([r for r in records if r["iscrowd"] == k] for k in (0, 1))
        assert sample.image.shape == (128, 128, 3) and len(sample.ignored) == len(crowds)
        assert sample.labels.tolist() == [r["category_id"] - 1 for r in things]
        for box, mask, record in zip(sample.boxes, sample.masks, things):
            assert (mask == theirs.annToMask(record)).all()
            np.testing.assert_allclose(box[2:] - box[:2], record["bbox"][2:], atol=1e-4)
            assert mask.sum() == pytest.approx(record["area"], rel=0.2, abs=8)


def test_segments_fill_the_panoptic_map(zoo):
    content = json.loads((zoo / "annotations/panoptic_val2017.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert set(names.values()) == {*CLASSES, *STUFF}
    for record in content["annotations"]:
        rgb = cv2.imread(str(zoo / "annotations/panoptic_val2017" / record["file_name"]))[..., ::-1].astype(int)
        ids = rgb @ [1, 256, 65536]
        segments = {s["id"]: s for s in record["segments_info"]}
        assert set(np.unique(ids)) - {0} == set(segments) and (ids == 0).mean() < 0.01
        for number, segment in segments.items():
            assert (ids == number).sum() == segment["area"]
            assert list(cv2.boundingRect((ids == number).astype(np.uint8))) == segment["bbox"]


def test_there_are_all_classes_sizes_crowds_and_empty_images(tmp_path):
    """Sizes as COCO's evaluation has them: by the annotation's area, which counts the mask's pixels."""
    root = draw(tmp_path / "zoo", images=100, val=500, progress=False)
    shares = {}
    for split, images in (("train", 100), ("val", 500)):
        content = json.loads((root / f"annotations/instances_{split}2017.json").read_text())
        things = [a for a in content["annotations"] if not a["iscrowd"]]
        area = np.array([a["area"] for a in things])
        shares[split] = (area > 96**2).sum() / images
    assert (area < 32**2).sum() >= 750 and (area > 96**2).sum() >= 60
    assert ((area >= 32**2) & (area <= 96**2)).sum() >= 200
    assert shares["train"] == pytest.approx(shares["val"], abs=0.07)
    # Each class is among the large ones too, and the small ones are not specks.
    assert {a["category_id"] for a in things if a["area"] > 96**2} == set(range(1, len(CLASSES) + 1))
    assert np.percentile(area, 5) > 8**2 and 18**2 < np.median(area) < 35**2
    assert 8 <= len(content["annotations"]) - len(things) <= 80
    numbers = np.unique([a["image_id"] for a in things], return_counts=True)[1]
    assert len(numbers) < 500 and set(numbers) == {1, 2, 3, 4, 5} and 1.5 < len(things) / 500 < 3.5


def test_methods_that_the_chapters_compare_see_as_many_images_and_regions():
    recipes = [p.recipe for p in (profile.RPN, profile.FAST_RCNN, profile.FASTER_RCNN, profile.MASK_RCNN,
                                  profile.CASCADE_RCNN, profile.CASCADE_MASK_RCNN, profile.RETINANET)]
    assert {(r.iterations, r.batch_size, r.iterations * r.batch_size) for r in recipes} == {(400, 8, 3200)}
    assert len({p.options["samples"] for p in (profile.FAST_RCNN, profile.FASTER_RCNN, profile.MASK_RCNN,
                                               profile.CASCADE_RCNN, profile.CASCADE_MASK_RCNN)}) == 1


def test_a_long_tail_makes_later_classes_rare(tmp_path):
    root = draw(tmp_path / "tail", images=60, val=0, size=64, workers=1, long_tail=True, progress=False)
    labels = np.concatenate([s.labels for s in map(CocoDataset(root).sample, range(60))])
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert counts[0] > 3 * counts[2] and counts[4:].sum() < counts[0] / 3


def test_a_hundred_images_a_second_on_two_idle_cores():
    """Measured as processor time, so that a busy machine does not matter; generous, for slower processors."""
    plan = pocket_zoo.Plan(40, 0, 0, 128, False)
    begin = time.process_time()
    for i in range(40):
        pocket_zoo.scene(plan, "train", i)
    assert (time.process_time() - begin) / 40 < 0.04


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a Pocket Zoo"):
        draw(tmp_path, images=2, val=0)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(UsageError, match="not drawn in the layout 'abacus'"):
        draw(tmp_path / "x", layout="abacus")
    with pytest.raises(UsageError, match="images is a whole number of at least 1, not 0"):
        draw(tmp_path / "x", images=0)


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/null")
def test_a_root_that_cannot_be_written_is_named():
    with pytest.raises(DataError, match="/dev/null/zoo.* cannot be written"):
        draw("/dev/null/zoo", images=2, val=0, workers=1, progress=False)
