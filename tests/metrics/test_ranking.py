"""PASCAL VOC's and Open Images' average precision: against the original's numbers, and by hand."""
from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from detcore.metrics.openimages import evaluate_openimages
from detcore.metrics.ranking import Boxes, Curve, best, pairs
from detcore.metrics.voc import evaluate_voc

FOLDER = Path(__file__).parent.parent / "reference"
VOC = json.loads((FOLDER / "evaluation.json").read_text())
OPEN_IMAGES = json.loads((FOLDER / "openimages.json").read_text())
NAMES = tuple(f"class {i}" for i in range(VOC["num_classes"]))


def columns(images: list[dict]) -> Boxes:
    """The reference's images as columns."""
    def column(name: str, kind: type) -> np.ndarray:
        return np.concatenate([np.array(i.get(name, np.zeros(0)), kind) for i in images])

    image = np.repeat(np.arange(len(images)), [len(i["labels"]) for i in images])
    boxes = np.concatenate([np.array(i["boxes"], np.float32).reshape(-1, 4) for i in images])
    return Boxes(image, boxes, column("labels", np.int64), column("scores", np.float64), column("flag", bool))


TRUTH, FOUND = columns(VOC["ground_truth"]), columns(VOC["detections"])


@pytest.mark.parametrize("eleven", (True, False))
@pytest.mark.parametrize("pixels", (True, False))
def test_voc_is_the_originals(eleven, pixels):
    name = f"voc_ap50_{'11points' if eleven else 'area'}{'_legacy_coordinates' if pixels else ''}"
    result = evaluate_voc(TRUTH, FOUND, NAMES, images=24, eleven_points=eleven, pixels=pixels)
    wanted = VOC["reference"][name]
    assert result.headline == pytest.approx(wanted["mAP"], abs=1e-6)
    assert list(result.per_class.values()) == pytest.approx(wanted["per_class"], abs=1e-6)


def test_open_images_is_the_originals():
    verified = Boxes(np.append(TRUTH.image, np.arange(24)), np.zeros((len(TRUTH) + 24, 4)),
                     np.append(TRUTH.labels, np.zeros(24, np.int64)))
    result = evaluate_openimages(TRUTH, FOUND, NAMES, np.array(OPEN_IMAGES["relation"], bool), verified, images=24)
    assert result.headline == pytest.approx(OPEN_IMAGES["reference"]["mAP"], abs=1e-6)


def boxes(*rows: tuple, flags: tuple = ()) -> Boxes:
    """Rows of image, left side of a box of 10 x 10, label and score."""
    image, left, label, score = (np.array(c) for c in zip(*rows)) if rows else np.zeros((4, 0), int)
    corner = np.stack([left, 0 * left, left + 10, 0 * left + 10], 1).astype(float)
    return Boxes(image.astype(int), corner, label.astype(int), score.astype(float), np.array(flags, bool))


def test_a_second_detection_of_an_object_is_wrong_and_one_of_a_difficult_one_is_nothing():
    truth = boxes((0, 0, 0, 0), (0, 50, 0, 0), (1, 0, 0, 0), flags=(False, True, False))
    found = boxes((0, 1, 0, 0.9), (0, 50, 0, 0.8), (0, 0, 0, 0.7), (1, 30, 0, 0.6), (1, 0, 0, 0.5))
    curve = evaluate_voc(truth, found, ("a",), images=2).curves["a"]
    assert curve.objects == 2
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 2 / 4])  # the difficult one's is left out
    assert curve.recall.tolist() == pytest.approx([0.5, 0.5, 0.5, 1])
    assert curve.area() == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert curve.eleven_points() == pytest.approx((6 * 1 + 5 * 0.5) / 11)


def test_classes_without_objects_do_not_count():
    truth, found = boxes((0, 0, 1, 0)), boxes((0, 0, 1, 0.5), (0, 0, 0, 0.9))
    result = evaluate_voc(truth, found, ("a", "b", "c"), images=1)
    assert result.per_class == {"a": None, "b": 1.0, "c": None} and result.headline == 1
    assert evaluate_voc(boxes(), boxes(), ("a",), images=3).metrics == {"AP50": None}
    assert evaluate_voc(truth, boxes(), ("a", "b"), images=1).per_class["b"] == 0


def test_the_last_pixel_belongs_to_a_box():
    truth = Boxes(np.array([0]), np.array([[0.0, 0, 9, 9]]), np.array([0]))
    found = Boxes(np.array([0]), np.array([[0.0, 0, 4, 9]]), np.array([0]), np.array([1.0]))
    assert evaluate_voc(truth, found, ("a",), images=1).headline == 1  # 50 of 100 pixels
    assert evaluate_voc(truth, found, ("a",), images=1, pixels=False).headline == 0  # 36 of 81


def test_groups_and_classes_above():
    above = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], bool)  # class 1 is a kind of class 0
    verified = boxes((0, 0, 2, 0))
    truth = boxes((0, 0, 1, 0), (0, 100, 0, 0), flags=(False, True))
    inside = [(0, 102, 0, 0.8), (0, 103, 0, 0.7), (0, 104, 0, 0.6)]  # in the group: right once
    found = boxes((0, 0, 1, 0.9), *inside, (0, 0, 2, 0.5), (1, 0, 1, 0.5))  # nobody looked for 1 in the last image
    result = evaluate_openimages(truth, found, ("a", "b", "c"), above, verified, images=2)
    assert result.per_class == {"a": 1.0, "b": 1.0, "c": None}
    assert result.curves["a"].precision.tolist() == [1, 1] and result.curves["c"].precision.tolist() == [0]


def test_pairs():
    left, right = pairs(np.array([3, 1, 3, 7]), np.array([3, 5, 3, 1]))
    assert left.tolist() == [0, 0, 1, 2, 2] and right.tolist() == [0, 2, 3, 0, 2]
    index, overlap = best(boxes((0, 0, 0, 1), (0, 2, 0, 1), (0, 0, 1, 1)), boxes((0, 0, 0, 0), (0, 4, 0, 0)))
    assert index.tolist() == [0, 0, -1] and overlap.tolist() == pytest.approx([1, 8 / 12, 0])  # of equals the first


def test_five_thousand_images():
    """100 detections and 7 objects an image."""
    random = np.random.default_rng(0)

    def draw(n: int) -> Boxes:
        corner = random.uniform(0, 500, (5000 * n, 2))
        return Boxes(np.repeat(np.arange(5000), n), np.concatenate([corner, corner + random.uniform(5, 100, (
            5000 * n, 2))], 1), random.integers(20, size=5000 * n), random.uniform(size=5000 * n))

    start = time.perf_counter()
    result = evaluate_voc(draw(7), draw(100), tuple(map(str, range(20))), images=5000)
    assert time.perf_counter() - start < 30 and 0 < result.headline < 1 and result.objects == 35_000


def test_curves_fall():
    wavy = Curve(np.array([0.0, 0.5, 2 / 3]), np.array([0.0, 0.5, 1.0]), 2)
    assert wavy.area() == pytest.approx(2 / 3)
