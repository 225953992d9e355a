"""Intervals by the bootstrap: replicates are what an evaluation of resampled images gives, and intervals cover."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detcore.errors import UsageError
from detcore.metrics.coco import evaluate_coco
from detcore.metrics.intervals import interval, resamplings


@pytest.fixture(scope="module")
def gt(pocket_zoo_root: Path) -> dict:
    return json.loads((pocket_zoo_root / "annotations/instances_train2017.json").read_text())


def jittered(gt: dict, spread: float, seed: int = 0) -> list[dict]:
    """Two detections an object, moved and scaled at random, some of a wrong class."""
    rng = np.random.default_rng(seed)
    found = []
    for a in gt["annotations"]:
        for _ in range(2):
            x, y, w, h = a["bbox"]
            move = rng.normal(0, spread, 4)
            right = rng.random() < 0.8
            found.append(dict(
                image_id=a["image_id"], score=float(rng.random()), category_id=a["category_id"] if right else 1,
                bbox=[x + move[0] * w, y + move[1] * h, w * np.exp(move[2]), h * np.exp(move[3])]))
    return found


@pytest.mark.parametrize("kind", ["bbox", "proposal"])
def test_a_replicate_is_the_evaluation_of_the_resampled_images(gt: dict, kind: str) -> None:
    """An image that was drawn twice counts as two images."""
    results = jittered(gt, 0.1)
    ids = sorted(image["id"] for image in gt["images"])
    images, annotations, again = [], [], []
    for new, i in enumerate(next(resamplings(len(ids))), 1):
        images.append(dict(id=new, width=128, height=128, file_name=f"{new}.jpg"))
        annotations += [dict(a, image_id=new) for a in gt["annotations"] if a["image_id"] == ids[i]]
        again += [dict(r, image_id=new) for r in results if r["image_id"] == ids[i]]
    annotations = [dict(a, id=n) for n, a in enumerate(annotations, 1)]
    expected = evaluate_coco(dict(gt, images=images, annotations=annotations), again, kind).metrics  # type: ignore[arg-type]
    plain = evaluate_coco(gt, results, kind)  # type: ignore[arg-type]
    found = evaluate_coco(gt, results, kind, replicates=2)  # type: ignore[arg-type]
    assert found.metrics == plain.metrics and plain.replicates == {}
    assert {"AR100", "ARs"} <= found.replicates.keys()
    for name, values in found.replicates.items():
        assert len(values) == 2
        assert values[0] == pytest.approx(np.nan if expected[name] is None else expected[name], nan_ok=True), name


def test_better_detections_differ_clearly_and_equal_ones_do_not(gt: dict) -> None:
    good, bad, other = (evaluate_coco(gt, jittered(gt, spread, seed), replicates=100).replicates["AP"]
                        for spread, seed in ((0.04, 0), (0.12, 0), (0.12, 1)))
    assert interval(good - bad)[0] > 0.05
    low, high = interval(bad - other)
    assert low < 0 < high
    # Paired differences vary less than unpaired ones, as both see the same easy and hard images.
    assert np.std(good - bad) < np.std(good - np.roll(bad, 1))


def test_resamplings_belong_together() -> None:
    first, second = list(resamplings(40, 5)), list(resamplings(40, 5))
    assert all((a == b).all() for a, b in zip(first, second))
    assert not (first[0] == first[1]).all() and all(len(a) == 40 and a.max() < 40 for a in first)


def test_an_interval_of_known_numbers() -> None:
    low, high = interval(np.append(np.linspace(0, 1, 1001), np.nan))
    assert (low, high) == (pytest.approx(0.025), pytest.approx(0.975))


def test_the_other_backend_says_that_it_cannot(gt: dict) -> None:
    with pytest.raises(UsageError, match="need the backend faster-coco-eval, not pycocotools"):
        evaluate_coco(gt, [], backend="pycocotools", replicates=10)
