"""LVIS's, Cityscapes', WIDER FACE's and the panoptic measure against the official ones, and how long they take."""
from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from detcore.data.cityscapes import CLASSES
from detcore.data.panoptic import PanopticSegments
from detcore.errors import DataError
from detcore.metrics import ranking
from detcore.metrics.cityscapes import CityscapesAP
from detcore.metrics.coco import evaluate_coco
from detcore.metrics.lvis import LIMIT, best_of_image, evaluate_lvis
from detcore.metrics.openimages import evaluate_openimages
from detcore.metrics.panoptic import compare
from detcore.metrics.ranking import Boxes
from detcore.metrics.wider_face import evaluate_wider_face
from tests.metrics import federated, streets

FOLDER = Path(__file__).parent.parent / "reference"
LVIS, CITYSCAPES = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("lvis", "cityscapes"))


@pytest.fixture(scope="module")
def drawn():
    return federated.draw()


@pytest.mark.parametrize("kind", ("bbox", "segm"))
def test_lvis_is_the_official_one(drawn, kind):
    found, wanted = evaluate_lvis(*drawn, kind).metrics, LVIS[kind]
    names = {f"AR@{LIMIT}": f"AR{LIMIT}"} | {f"AR{area}@{LIMIT}": f"AR{area}" for area in "sml"}
    assert found == pytest.approx({names.get(key, key): value for key, value in wanted.items()}, abs=1e-6)
    assert len(set(found.values())) == 13  # no two of them are the same by chance


def test_lvis_keeps_the_best_of_an_image(drawn):
    kept = best_of_image(drawn[1])
    crowded = [r["score"] for r in drawn[1] if r["image_id"] == federated.CROWDED]
    left = [r["score"] for r in kept if r["image_id"] == federated.CROWDED]
    assert len(crowded) > LIMIT == len(left) and min(left) >= sorted(crowded)[-LIMIT]
    assert len(drawn[1]) - len(kept) == len(crowded) - LIMIT
    assert best_of_image([]) == []


def test_lvis_needs_to_know_what_is_rare(drawn):
    truth = dict(drawn[0], categories=[{k: v for k, v in c.items() if k != "frequency"}
                                       for c in drawn[0]["categories"]])
    with pytest.raises(DataError, match="how frequent the class 'class 1' is"):
        evaluate_lvis(truth, drawn[1])


def test_cityscapes_is_the_official_one():
    """Counted in one process and in three."""
    whole, parts = CityscapesAP(list(CLASSES), list(CLASSES.values())), []
    for i, image in enumerate(streets.draw()):
        whole.add(*image)
        if i % 4 == 0:
            parts.append(CityscapesAP(list(CLASSES), list(CLASSES.values())))
        parts[-1].add(*image)
    parts[0].counted = [counted for part in parts for counted in part.counted]
    for measure in (whole, parts[0]):
        result = measure.result()
        assert result.metrics == pytest.approx({name: CITYSCAPES[name] for name in ("AP", "AP50")}, abs=1e-6)
        assert result.per_class == pytest.approx(CITYSCAPES["per_class"], abs=1e-6)
        assert result.images == streets.IMAGES


def test_cityscapes_of_nothing():
    measure = CityscapesAP(list(CLASSES), list(CLASSES.values()))
    assert measure.result().metrics == {"AP": None, "AP50": None}
    truth, *found = next(streets.draw())
    measure.add(truth, np.zeros((0, *truth.shape), bool), np.zeros(0, int), np.zeros(0))
    assert measure.result().metrics == {"AP": 0, "AP50": 0}


def wider_by_hand(truth: Boxes, found: Boxes, counts: np.ndarray) -> float:
    """The published protocol as it is told: image by image, detection by detection, threshold by threshold."""
    low, high = found.scores.min(), found.scores.max()
    total = np.zeros((1000, 2))
    for image in np.unique(truth.image):
        faces, counted = truth.boxes[truth.image == image], counts[truth.image == image]
        mine = np.flatnonzero(found.image == image)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        taken, kept, recalled = np.zeros(len(faces)), [], []
        for x1, y1, x2, y2 in found.boxes[mine]:
            overlaps = []
            for a1, b1, a2, b2 in faces:
                w, h = min(x2, a2) - max(x1, a1) + 1, min(y2, b2) - max(y1, b1) + 1
                inter = max(w, 0) * max(h, 0)
                area = (x2 - x1 + 1) * (y2 - y1 + 1) + (a2 - a1 + 1) * (b2 - b1 + 1)
                overlaps.append(inter / (area - inter))
            best, keep = int(np.argmax(overlaps)), 1
            if overlaps[best] >= 0.5:
                if not counted[best]:
                    keep = 0
                else:
                    taken[best] = 1
            kept.append(keep)
            recalled.append(taken.sum())
        scores = (found.scores[mine] - low) / (high - low)
        for t in range(1000):
            reaching = np.flatnonzero(scores >= 1 - (t + 1) / 1000)
            if len(reaching):
                total[t] += sum(kept[:reaching[-1] + 1]), recalled[reaching[-1]]
    precision = np.append(total[:, 1] / np.maximum(total[:, 0], 1), 0)
    recall = np.concatenate([[0], total[:, 1] / counts.sum(), [1]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * precision).sum())


def faces(rng: np.random.Generator, images: int, each: int) -> Boxes:
    corner = rng.uniform(0, 100, (images * each, 2)).round()
    return Boxes(np.repeat(np.arange(images), each), np.concatenate([corner, corner + rng.integers(
        8, 40, (images * each, 2))], 1).astype(float), np.zeros(images * each, int), rng.random(images * each))


def test_wider_face_is_the_published_protocol():
    rng = np.random.default_rng(0)
    truth = faces(rng, 12, 6)
    noise = faces(rng, 14, 8)  # two images without a face
    near = np.concatenate([truth.boxes + rng.normal(0, 2, truth.boxes.shape) for _ in range(2)])
    found = Boxes(np.concatenate([truth.image, truth.image, noise.image]), np.concatenate([near, noise.boxes]),
                  np.zeros(len(near) + len(noise), int), rng.random(len(near) + len(noise)))
    counts = {"easy": rng.random(len(truth)) < 0.4, "hard": rng.random(len(truth)) < 0.9}
    result = evaluate_wider_face(truth, found, counts, images=14)
    for setting, counted in counts.items():
        wanted = wider_by_hand(truth, found, counted)
        assert 0.1 < wanted < 0.9 and result.metrics[setting] == pytest.approx(wanted, abs=1e-6)
    nothing = found[np.zeros(0, int)]
    assert evaluate_wider_face(truth, nothing, counts, images=14).metrics == {"easy": 0, "hard": 0}


def panoptic_by_hand(truth: np.ndarray, labels: list[int], crowd: list[bool], found: np.ndarray, classes: int):
    """[classes, 4] of one image: sum of IoU, found, invented, missed, as the official evaluation tells it."""
    counts = np.zeros((classes, 4))
    matched_truth, matched_found = set(), set()
    pred = {v: int((found == v).sum()) for v in np.unique(found).tolist() if v % 1000 < classes}
    for value, area in pred.items():
        for segment, (label, is_crowd) in enumerate(zip(labels, crowd), 1):
            inter = int(((truth == segment) & (found == value)).sum())
            if inter == 0 or is_crowd or label != value % 1000:
                continue
            void = int(((truth == 0) & (found == value)).sum())
            iou = inter / (area + int((truth == segment).sum()) - inter - void)
            if iou > 0.5:
                counts[label, 0] += iou
                counts[label, 1] += 1
                matched_truth.add(segment)
                matched_found.add(value)
    for segment, (label, is_crowd) in enumerate(zip(labels, crowd), 1):
        if segment not in matched_truth and not is_crowd:
            counts[label, 3] += 1
    for value, area in pred.items():
        if value not in matched_found:
            excused = int(((truth == 0) & (found == value)).sum())
            excused += sum(int(((truth == s) & (found == value)).sum())
                           for s, (label, is_crowd) in enumerate(zip(labels, crowd), 1)
                           if is_crowd and label == value % 1000)
            if excused / area <= 0.5:
                counts[value % 1000, 2] += 1
    return counts


def test_panoptic_quality_is_the_official_formula():
    """On drawn maps with crowds, unlabelled pixels, invented and missed segments."""
    rng, classes, total = np.random.default_rng(3), 6, np.zeros((6, 4))
    for _ in range(40):
        labels, crowd = rng.integers(0, classes, 8).tolist(), (rng.random(8) < 0.25).tolist()
        truth, found = np.zeros((64, 64), np.int64), np.full((64, 64), classes)
        for segment, label in enumerate(labels, 1):
            y, x, h, w = rng.integers(0, 40), rng.integers(0, 40), *rng.integers(6, 30, 2)
            truth[y:y + h, x:x + w] = segment
            dy, dx = rng.integers(-2, 3, 2)
            if rng.random() < 0.8:
                name = label if rng.random() < 0.85 else rng.integers(classes)
                found[max(y + dy, 0):y + dy + h, max(x + dx, 0):x + dx + w] = name + 1000 * segment
        ours = compare(PanopticSegments(truth, np.array(labels), np.array(crowd)), found, classes)
        np.testing.assert_allclose(ours, panoptic_by_hand(truth, labels, crowd, found, classes), atol=1e-9)
        total += ours
    assert (total > 0).all()


# Five thousand images with a hundred detections each take less than a minute; here a fifth of them.

IMAGES, EACH, LIMIT_S = 1000, 100, 12


def columns(rng: np.random.Generator, each: int, classes: int) -> Boxes:
    n = IMAGES * each
    corner, side = rng.uniform(0, 500, (n, 2)), rng.uniform(5, 130, (n, 2))
    return Boxes(np.repeat(np.arange(IMAGES), each), np.concatenate([corner, corner + side], 1),
                 rng.integers(classes, size=n), rng.random(n), rng.random(n) < 0.1)


def records(boxes: Boxes) -> list[dict]:
    sides = np.concatenate([boxes.boxes[:, :2], boxes.boxes[:, 2:] - boxes.boxes[:, :2]], 1)
    return [dict(image_id=i, category_id=c, bbox=b, score=s)
            for i, c, b, s in zip(boxes.image.tolist(), boxes.labels.tolist(), sides.tolist(), boxes.scores.tolist())]


@pytest.mark.parametrize("kind", ("bbox", "proposal"))
def test_coco_is_counted_in_time(kind, capfd):
    rng = np.random.default_rng(0)
    truth = dict(images=[dict(id=i, height=640, width=640) for i in range(IMAGES)],
                 categories=[dict(id=c, name=str(c)) for c in range(80)],
                 annotations=records(columns(rng, 7, 80)))
    found = records(columns(rng, EACH, 80))
    start = time.perf_counter()
    assert evaluate_coco(truth, found, kind, progress=True).objects == 7 * IMAGES
    assert time.perf_counter() - start < LIMIT_S
    assert f"counting {kind}" in capfd.readouterr().err


def test_open_images_is_counted_in_time(capfd):
    rng, classes = np.random.default_rng(0), 600
    above = np.eye(classes, dtype=bool)
    above[np.arange(classes), np.arange(classes) // 20] = True
    truth, found = columns(rng, 8, classes), columns(rng, EACH, classes)
    start = time.perf_counter()
    result = evaluate_openimages(truth, found, tuple(map(str, range(classes))), above, columns(rng, 5, classes),
                                 images=IMAGES, progress=True)
    assert time.perf_counter() - start < LIMIT_S and result.objects > 8 * IMAGES
    assert "comparing boxes" in capfd.readouterr().err


@pytest.mark.parametrize("how", ({}, {"pixels": True}, {"of_first": True}))
def test_boxes_are_compared_block_by_block_as_all_at_once(how, monkeypatch):
    rng = np.random.default_rng(1)
    truth, found = columns(rng, 3, 2), columns(rng, 5, 2)
    whole = ranking.best(found, truth, **how)
    monkeypatch.setattr(ranking, "BLOCK", 777)
    for one, other in zip(whole, ranking.best(found, truth, **how)):
        assert (one == other).all() and len(np.unique(one)) > 100


def test_wider_face_is_counted_in_time():
    rng = np.random.default_rng(0)
    truth, found = columns(rng, 12, 1), columns(rng, EACH, 1)
    start = time.perf_counter()
    result = evaluate_wider_face(truth, found, {"hard": rng.random(len(truth)) < 0.8}, images=IMAGES)
    assert time.perf_counter() - start < LIMIT_S and 0 < result.metrics["hard"] < 1
