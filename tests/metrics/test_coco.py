"""COCO's evaluation against the original's values, and the two libraries against each other."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detcore.errors import DataError, UsageError
from detcore.metrics.coco import BACKENDS, evaluate_coco
from detcore.structures import encode_rle

REFERENCE = json.loads((Path(__file__).parent.parent / "reference" / "evaluation.json").read_text())


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


@pytest.fixture(scope="module")
def reference():
    """The reference's images as an annotation file's content, and its detections as COCO results."""
    truth = dict(images=[dict(id=i, height=200, width=200) for i in range(len(REFERENCE["ground_truth"]))],
                 categories=[dict(id=c, name=f"class {c}") for c in range(REFERENCE["num_classes"])])
    truth["annotations"] = [
        dict(id=0, image_id=i, category_id=label, bbox=xywh(box), iscrowd=flag)
        for i, t in enumerate(REFERENCE["ground_truth"]) for box, label, flag in zip(*t.values())]
    results = [dict(image_id=i, category_id=label, bbox=xywh(box), score=score)
               for i, d in enumerate(REFERENCE["detections"]) for box, score, label in zip(*d.values())]
    return truth, results


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_have_the_reference_values(reference, backend):
    found = evaluate_coco(*reference, backend=backend)
    wanted = [None if v < 0 else v for v in REFERENCE["reference"]["coco_bbox_stats"]]
    assert list(found.metrics) == "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()
    for value, expected in zip(found.metrics.values(), wanted):
        assert value == (None if expected is None else pytest.approx(expected, abs=1e-6))
    assert np.mean(list(found.per_class.values())) == pytest.approx(found.metrics["AP"])
    assert (found.images, found.objects) == (24, 92)
    assert found.curve(0.5).mean() == pytest.approx(found.metrics["AP50"])
    assert found.curve(0.5, 2).shape == (101,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_recall_without_classes_has_the_reference_values(reference, backend):
    found = evaluate_coco(*reference, "proposal", backend=backend, limits=(1, 5, 10))
    assert [found.metrics[f"AR{n}"] for n in (1, 5, 10)] == pytest.approx(
        REFERENCE["reference"]["coco_class_agnostic_recall_at_1_5_10"], abs=1e-6)


def blob(size: int, x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """uint8 [size, size], an ellipse."""
    rows, columns = np.mgrid[:size, :size]
    return (((columns - x) / rx) ** 2 + ((rows - y) / ry) ** 2 < 1).astype(np.uint8)


def described(mask: np.ndarray, **more) -> dict:
    """A mask's box and run lengths, as a COCO record."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    return dict(bbox=box, segmentation=encode_rle(mask[None])[0], **more)


def scenes(seed: int, images: int = 12, size: int = 64):
    """Random blobs as ground truth (crowds, polygons and run lengths among them) and displaced ones as detections."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for i in range(images):
        for _ in range(rng.integers(0, 7)):
            (x, y), (rx, ry) = rng.uniform(8, size - 8, 2), rng.uniform(3, 20, 2)
            label, crowd = int(rng.integers(1, 4)), int(rng.random() < 0.1)
            truth = described(blob(size, x, y, rx, ry), id=len(annotations), image_id=i, category_id=label,
                              iscrowd=crowd, area=float(rng.uniform(20, 12000)))
            if not crowd and rng.random() < 0.5:
                left, top, w, h = truth["bbox"]
                truth["segmentation"] = [[left, top, left + w, top, left + w, top + h, left, top + h]]
            annotations.append(truth)
            for dx, dy in rng.normal(0, 3, (rng.integers(0, 4), 2)):
                guess = label if rng.random() < 0.8 else int(rng.integers(1, 4))
                results.append(described(blob(size, x + dx, y + dy, rx, ry), image_id=i, category_id=guess,
                                         score=float(rng.random())))
    truth = dict(images=[dict(id=i, height=size, width=size) for i in range(images)],
                 categories=[dict(id=c, name=f"class {c}") for c in (1, 2, 3)], annotations=annotations)
    return truth, results


@pytest.mark.parametrize("kind", ["bbox", "segm", "proposal"])
@pytest.mark.parametrize("seed", range(3))
def test_both_libraries_agree(kind, seed):
    truth, results = scenes(seed)
    fast, slow = (evaluate_coco(truth, results, kind, backend=b) for b in BACKENDS)
    assert fast.metrics.keys() == slow.metrics.keys()
    for name in fast.metrics:
        assert fast.metrics[name] == pytest.approx(slow.metrics[name], abs=1e-6), name
    assert fast.per_class == pytest.approx(slow.per_class, abs=1e-6, nan_ok=True)
    np.testing.assert_allclose(fast.precision, slow.precision, atol=1e-6)
    assert fast.headline > 0.05


def test_the_first_annotation_can_be_found():
    truth, _ = scenes(0)
    truth["annotations"] = truth["annotations"][:1]
    truth["annotations"][0].update(id=0, iscrowd=0)
    perfect = dict(truth["annotations"][0], score=1.0)
    assert evaluate_coco(truth, [perfect]).metrics["AP"] == pytest.approx(1)


def test_no_detections_and_a_part_of_the_data(tmp_path):
    truth, results = scenes(1)
    truth["annotations"] += [dict(id=999, image_id=0, category_id=1, bbox=[3, 3, 0, float("nan")])]
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    assert evaluate_coco(file, []).metrics["AP"] == 0
    some = evaluate_coco(file, [r for r in results if r["image_id"] < 6], category_ids=[2], image_ids=range(6))
    assert list(some.per_class) == ["class 2"] and some.images == 6


def test_errors_name_the_fault(tmp_path):
    truth, results = scenes(1)
    with pytest.raises(UsageError, match="'cocoapi'.*faster-coco-eval, pycocotools"):
        evaluate_coco(truth, results, backend="cocoapi")
    with pytest.raises(DataError, match="image 77"):
        evaluate_coco(truth, [dict(results[0], image_id=77)])
    with pytest.raises(DataError, match="no annotation file .*none.json"):
        evaluate_coco(tmp_path / "none.json", [])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="broken.json cannot be read"):
        evaluate_coco(tmp_path / "broken.json", [])
