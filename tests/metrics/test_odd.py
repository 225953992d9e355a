"""COCO's evaluation of odd ground truth and results: what is read, what counts, and what is one sentence."""
from __future__ import annotations

import copy
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detcore.data.dataset import DEFAULT_OPTIONS, Dataset, Rows
from detcore.engine.scoring import score
from detcore.errors import DataError, DetcoreError, UsageError
from detcore.metrics.coco import BACKENDS, evaluate_coco
from detcore.metrics.entries import Numbers, run_totals, sound_polygons
from detcore.metrics.lvis import evaluate_lvis
from detcore.structures import encode_rle
from tests.metrics.test_coco import scenes

H, W = 60, 80
ONE = pytest.approx(1, abs=1e-9)  # pycocotools divides by a little more
BOXES = [10, 10, 20, 20], [50, 30, 20, 20]


def ring(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def rle(box: list[int], h: int = H, w: int = W) -> dict[str, Any]:
    mask = np.zeros((1, h, w), np.uint8)
    mask[0, box[1]:box[1] + box[3], box[0]:box[0] + box[2]] = 1
    return encode_rle(mask)[0]


def scene(first: Any = 1, second: Any = 2, category: Any = 1) -> tuple[dict, list[dict]]:
    """Two images with an object each, and detections that find both."""
    truth = dict(images=[dict(id=i, width=W, height=H) for i in (first, second)],
                 categories=[dict(id=category, name="a")],
                 annotations=[dict(id=n, image_id=i, category_id=category, bbox=box, area=400, iscrowd=0,
                                   segmentation=[ring(box)]) for n, i, box in zip((1, 2), (first, second), BOXES)])
    results = [dict(image_id=i, category_id=category, bbox=box, score=0.9, segmentation=rle(box))
               for i, box in zip((first, second), BOXES)]
    return truth, results


IDS = [(202405170930000000, 202405170930000001), (2**53, 2**53 + 1), (2**63, 2**63 + 1), (10**40, 10**40 + 1),
       (-7, -8), (0, 1), ("a.jpg", "b.jpg"), ("", "é" * 300), (3, "3a"), (1.0, 2.0)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids", IDS, ids=[f"{a!r:.20}" for a, _ in IDS])
def test_images_have_any_ids(ids, backend, tmp_path):
    truth, results = scene(*ids)
    exchanged = [dict(results[0], image_id=ids[1]), dict(results[1], image_id=ids[0])]
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    for gt in truth, file:
        assert evaluate_coco(gt, results, backend=backend, image_ids=ids).metrics["AP"] == ONE
        assert evaluate_coco(gt, exchanged, backend=backend).metrics["AP"] == 0  # ids that are near are not the same
    one = evaluate_coco(truth, results, backend=backend, image_ids=ids[:1])
    assert (one.images, one.objects, one.metrics["AP"]) == (1, 1, ONE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("category", [0, -3, 2**64, "thing"])
def test_categories_have_any_ids(category, backend):
    truth, results = scene(category=category)
    found = evaluate_coco(truth, results, backend=backend, category_ids=[category])
    assert found.metrics["AP"] == ONE and found.per_class == {"a": ONE}


def test_ids_are_in_order_and_may_be_text_for_numbers():
    numbers = Numbers([30, "b", 4, "a", 30, 2.0])
    assert numbers.ids == [2, 4, 30, "a", "b"] and [numbers.get(i) for i in ("30", 4, "b", 2.0)] == [3, 2, 5, 1]
    for stranger in (5, "c", None, [4], {}, math.nan, math.inf, 4.5, b"a"):
        assert numbers.get(stranger) is None
    truth, results = scene(1, 2)
    assert evaluate_coco(truth, [dict(r, image_id=str(r["image_id"])) for r in results]).metrics["AP"] == ONE


def test_two_categories_of_one_name_are_told_apart():
    truth, results = scene()
    truth["categories"] = [dict(id=1, name="cat"), dict(id=5, name="cat"), dict(id=6, name="dog")]
    truth["annotations"][1]["category_id"] = 5
    found = evaluate_coco(truth, results)
    assert found.per_class == {"cat (category 1)": 1, "cat (category 5)": 0, "dog": None}


def test_classes_that_the_file_does_not_have_have_no_objects():
    truth, results = scene()
    found = evaluate_coco(truth, results, category_ids=[1, 9], class_names=["renamed", "more"])
    assert found.per_class == {"renamed": 1, "more": None} and found.metrics["AP"] == ONE
    with pytest.raises(UsageError, match="no category 9"):
        evaluate_coco(truth, results, category_ids=[1, 9])


# Masks

BROKEN = {
    "missing": ..., "null": None, "empty": [], "empty ring": [[]], "two numbers": [[1, 2]], "four": [[1, 2, 30, 40]],
    "five": [[1, 2, 3, 4, 5]], "seven": [[1, 2, 3, 4, 5, 6, 7]], "text": "polygon", "number": 5, "true": True,
    "ring of text": [["a"] * 6], "ring of null": [[None] * 6], "NaN": [[1, 2, math.nan, 4, 5, 6]],
    "infinite": [[1, 2, math.inf, 4, 5, 6]], "far": [[0, 0, 1e8, 0, 1e8, 1e8]], "long": [[0, 0, 9e6, 9e6] * 50],
    "nested": [[[[1, 2], [3, 4]]]], "huge number": [[10**400] * 6], "no counts": {"size": [H, W]}, "dict": {},
    "no runs": {"size": [H, W], "counts": []}, "no text": {"size": [H, W], "counts": ""},
    "no pixel": {"size": [H, W], "counts": [H * W]}, "too few": {"size": [H, W], "counts": [5, 5]},
    "negative": {"size": [H, W], "counts": [H * W + 5, -5]}, "half": {"size": [H, W], "counts": [0.5, H * W - 0.5]},
    "other size": {"size": [W, H], "counts": [0, H * W]}, "no size": {"counts": [0, H * W]},
    "wraps": {"size": [H, W], "counts": [2**32 - 5, H * W + 5]}, "large": {"size": [H, W], "counts": [2**70, 5]},
    "size of text": {"size": "60", "counts": [0, H * W]}, "long text": {"size": [H, W], "counts": "o" * 10**6},
    "cut text": {"size": [H, W], "counts": rle(BOXES[0])["counts"] + "o"},
    "null counts": {"size": [H, W], "counts": None},
    "other text": {"size": [H, W], "counts": "~\x00é"}, "dict counts": {"size": [H, W], "counts": {"a": 1}},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", BROKEN.values(), ids=BROKEN)
def test_an_object_without_a_mask_counts_neither_way(shape, backend):
    truth, results = scene()
    truth["annotations"][0]["segmentation"] = shape
    if shape is ...:
        del truth["annotations"][0]["segmentation"]
    for found in (results, results[1:]):  # whether it is found does not matter
        with pytest.warns(UserWarning, match="1 of 2 objects have no usable mask .*annotation 1") as told:
            result = evaluate_coco(truth, found, "segm", backend=backend)
        assert len(told) == 1 and result.metrics["AP"] == ONE and result.objects == 1
    with pytest.warns(UserWarning, match="usable mask"):  # elsewhere a detection is wrong
        wrong = [*results, dict(results[0], bbox=[60, 0, 9, 9], segmentation=rle([60, 0, 9, 9]), score=1)]
        assert evaluate_coco(truth, wrong, "segm", backend=backend).metrics["AP"] == pytest.approx(0.5)
    assert evaluate_coco(truth, results, "bbox", backend=backend).objects == 2  # boxes are not asked for masks


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_that_are_written_otherwise_are_read(backend):
    box, plain = BOXES[0], rle(BOXES[0])
    counts = coco_mask.decode(plain).ravel(order="F")
    edges = np.flatnonzero(np.diff(counts)) + 1
    lengths = np.diff([0, *edges, H * W]).tolist()
    pairs = np.reshape(ring(box), (-1, 2)).tolist()
    for shape in (plain, dict(plain, counts=plain["counts"].encode()), dict(plain, counts=lengths), ring(box), [pairs],
                  [[str(v) for v in ring(box)]], [ring(box), [1, 2]], dict(plain, size=[float(H), float(W)])):
        truth, results = scene()
        truth["annotations"][0]["segmentation"] = shape
        truth["images"][0].update(width=float(W), height=str(H))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert evaluate_coco(truth, results, "segm", backend=backend).metrics["AP"] == ONE


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32))
def test_run_lengths_are_read_as_pycocotools_reads_them(h, w, share, seed):
    masks = np.random.default_rng(seed).random((3, h, w)) < share
    shapes = encode_rle(masks)
    wanted = [(h * w, int(m.sum())) for m in masks]
    assert run_totals([s["counts"] for s in shapes]) == wanted
    mixed = ["o", *(s["counts"].encode() for s in shapes), [3, 4], None]
    assert run_totals(mixed) == [(-1, 0), *wanted, (7, 4), (-1, 0)]


def test_long_runs_and_many_blocks(monkeypatch):
    shape = coco_mask.frPyObjects(dict(size=[40000, 50000], counts=[10**9, 7, 10**9 - 7]), 40000, 50000)
    assert run_totals([shape["counts"]]) == [(2 * 10**9, 7)]
    monkeypatch.setattr("detcore.metrics.entries.BLOCK", 10)
    shapes = encode_rle(np.random.default_rng(0).random((20, 9, 9)) < 0.5)
    assert run_totals([s["counts"] for s in shapes]) == [(81, int(coco_mask.area(s))) for s in shapes]


def test_sound_rings():
    assert sound_polygons([[0, 0, 4, 0, 4, 4], [1, 2]]) == [[0, 0, 4, 0, 4, 4]]
    assert sound_polygons([0, 0, 4, 0, 4, 4]) == [[0, 0, 4, 0, 4, 4]]
    assert sound_polygons([[0, 0, 4, 0, 4, math.nan]]) is None and sound_polygons([]) is None


def test_images_with_masks_need_a_size():
    for side in (None, 0, -5, "wide", 2**40, [80]):
        truth, results = scene()
        truth["images"][1]["width"] = side
        with pytest.raises(DataError, match="no width and height of image 2"):
            evaluate_coco(truth, results, "segm")
        assert evaluate_coco(truth, results).metrics["AP"] == 1  # boxes do not


# Fields of the ground truth

@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_exports_are_read(backend):
    """Numbers as text, flags as numbers with a point, nothing in place of an area."""
    truth, results = scene()
    truth["annotations"][0].update(bbox=["10", "10.0", 20.0, 20], iscrowd=0.0, area=None)
    truth["annotations"][1].update(iscrowd=None, area="400")
    found = evaluate_coco(truth, results, backend=backend)
    assert found.objects == 2 and found.metrics["APs"] == found.metrics["AP"] == ONE
    truth["annotations"][0].update(iscrowd=True, area=math.nan)
    assert evaluate_coco(truth, results, backend=backend).objects == 1


@pytest.mark.parametrize("key, value", [
    ("bbox", None), ("bbox", "10 10 20 20"), ("bbox", [1, 2, 3]), ("bbox", [1, 2, 3, 4, 5]), ("bbox", [1, 2, [3], 4]),
    ("bbox", [1, 2, math.nan, 4]), ("bbox", [1, 2, 0, 4]), ("bbox", [1, 2, 3, -4]), ("bbox", [1e300, 2, 1e300, 4]),
    ("bbox", [10**400, 2, 3, 4]), ("bbox", {"x": 1}), ("image_id", 99), ("image_id", None), ("image_id", [1]),
    ("category_id", 99), ("category_id", {})])
def test_annotations_without_a_place_are_counted(key, value):
    truth, results = scene()
    truth["annotations"][0][key] = value
    for kind in ("bbox", "segm"):
        with pytest.warns(UserWarning, match="1 of 2 annotations are left out.*annotation 1") as told:
            assert evaluate_coco(truth, results[1:], kind).objects == 1
        assert len(told) == 1
    with pytest.warns(UserWarning, match="number 1 of the list"):
        evaluate_coco(dict(truth, annotations=["a", truth["annotations"][1]]), [])


@pytest.mark.parametrize("content, message", [
    ([], "no lists"), ({}, "no list 'images'"), ({"images": 5}, "no list 'images'"),
    ({"images": [], "categories": {}}, "no list 'categories'"), ({"images": [5], "categories": []}, "Number 1 of"),
    ({"images": [{"id": None}], "categories": []}, "Number 1 of the images"),
    ({"images": [{"id": [1]}], "categories": []}, "whole number or text"),
    ({"images": [{"id": 1.5}], "categories": []}, "whole number or text"),
    ({"images": [], "categories": [{"name": "a"}]}, "Number 1 of the categories"),
    ({"images": [], "categories": [], "annotations": 7}, "are no list")])
def test_what_is_no_annotation_file(content, message, tmp_path):
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as raised:
        evaluate_coco(file, [])
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_nested_too_deep(tmp_path):
    file = tmp_path / "truth.json"
    file.write_text("[" * 200_000)
    with pytest.raises(DataError, match="truth.json cannot be read"):
        evaluate_coco(file, [])


# Results

@pytest.mark.parametrize("kind, change, message", [
    ("bbox", {"image_id": ...}, "Result 2 has no image_id"), ("bbox", {"image_id": 77}, "image 77"),
    ("bbox", {"image_id": None}, "image None"), ("bbox", {"category_id": ...}, "Result 2 has no category_id"),
    ("bbox", {"score": ...}, "Result 2 has the score None"), ("bbox", {"score": math.nan}, "the score nan"),
    ("bbox", {"score": math.inf}, "the score inf"), ("bbox", {"score": "high"}, "the score 'high'"),
    ("bbox", {"score": [0.5]}, "the score"), ("bbox", {"bbox": ...}, "the bbox None"),
    ("bbox", {"bbox": [1, 2, 3]}, "not four finite numbers"), ("bbox", {"bbox": [1, 2, 3, math.nan]}, "four finite"),
    ("bbox", {"bbox": "1 2 3 4"}, "four finite"), ("bbox", {"bbox": [1, 2, 3, None]}, "four finite"),
    ("proposal", {"bbox": {}}, "four finite"), ("segm", {"segmentation": ...}, "Result 2 has no segmentation"),
    ("segm", {"segmentation": [[1, 2, 3, 4, 5, 6]]}, "no segmentation in run lengths"),
    ("segm", {"segmentation": {}}, "size None"),
    ("segm", {"segmentation": dict(rle(BOXES[0]), size=[W, H])}, "its image is .60, 80."),
    ("segm", {"segmentation": rle([1, 1, 5, 5], 70, 90)}, r"size \[70, 90\]"),
    ("segm", {"segmentation": dict(size=[H, W], counts="o" * 10**6)}, "do not add up"),
    ("segm", {"segmentation": dict(size=[H, W], counts=[2**32, H * W])}, "do not add up"),
    ("segm", {"segmentation": dict(size=[H, W], counts=None)}, "do not add up")])
def test_a_broken_result_is_one_sentence(kind, change, message):
    truth, results = scene()
    results[1] = {k: v for k, v in (results[1] | change).items() if v is not ...}
    for backend in BACKENDS:
        with pytest.raises(DataError, match=message) as raised:
            evaluate_coco(truth, results, kind, backend=backend)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize("results", ["detections.json", {"image_id": 1}, 5, None, [5], [None], ["a"]])
def test_what_are_no_results(results):
    with pytest.raises(DataError, match="dict"):
        evaluate_coco(scene()[0], results)


def test_results_of_categories_that_there_are_not_are_counted():
    truth, results = scene()
    with pytest.warns(UserWarning, match="1 of 3 results are left out: their category, such as 90,"):
        assert evaluate_coco(truth, [*results, dict(results[0], category_id=90)]).metrics["AP"] == ONE
    nameless = [{k: v for k, v in r.items() if k != "category_id"} for r in results]
    assert evaluate_coco(truth, nameless, "proposal").metrics["AR100"] == 1


def test_results_stay_as_they_are():
    truth, results = scene()
    before = copy.deepcopy((truth, results))
    for backend in BACKENDS:
        evaluate_coco(truth, results, "segm", backend=backend)
    assert (truth, results) == before


# Sets without anything that counts

@pytest.mark.parametrize("kind", ["bbox", "segm", "proposal"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_objects_nothing_is_defined(kind, backend):
    truth, results = scene()
    crowds = [dict(a, iscrowd=1) for a in truth["annotations"]]
    for gt, found in ((dict(truth, annotations=[]), results), (dict(truth, annotations=crowds), results),
                      ({"images": truth["images"], "categories": truth["categories"]}, []),
                      (dict(images=[], categories=[]), []), (dict(truth, images=[], annotations=[]), [])):
        result = evaluate_coco(gt, found, kind, backend=backend, replicates=3 * (backend == BACKENDS[0]))
        assert set(result.metrics.values()) == {None} and result.headline == 0 and result.objects == 0
        assert set(result.per_class.values()) <= {None}


# Against pycocotools by itself

def alone(truth: dict, results: list[dict], kind: str) -> list[float]:
    """The twelve numbers that pycocotools gives."""
    truth = copy.deepcopy(truth)
    for number, annotation in enumerate(truth["annotations"], 1):
        annotation["id"] = number
    gt = COCO()
    gt.dataset = truth
    gt.createIndex()
    drop = "bbox" if kind == "segm" else "segmentation"  # by which pycocotools would take the area
    run = COCOeval(gt, gt.loadRes([{k: v for k, v in r.items() if k != drop} for r in results]), kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats.tolist()


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), images=st.integers(1, 6), odd=st.sampled_from(
    ["nothing", "ties", "far outside", "area 0", "area huge", "thin", "long ids", "text for numbers", "doubled"]))
def test_odd_but_sound_data_score_as_with_pycocotools(kind, seed, images, odd):
    truth, results = scenes(seed, images)
    if not results:
        return
    if odd == "ties":
        results = [dict(r, score=0.5) for r in results]
    elif odd == "doubled":
        results = results + results
    elif odd == "far outside":
        results = [dict(r, bbox=[r["bbox"][0] - 500, *r["bbox"][1:]]) for r in results]
    elif odd.startswith("area"):
        truth["annotations"] = [dict(a, area=0 if odd == "area 0" else 1e12) for a in truth["annotations"]]
    elif odd == "thin":
        truth["annotations"] = [dict(a, bbox=[*a["bbox"][:2], 1e-3, a["bbox"][3]]) for a in truth["annotations"]]
    wanted = [None if v < 0 else pytest.approx(v, abs=1e-9) for v in alone(truth, results, kind)]
    if odd == "long ids":
        for entry in truth["images"]:
            entry["id"] += 2**62
        for entry in truth["annotations"] + results:
            entry["image_id"] += 2**62
    elif odd == "text for numbers":
        for entry in truth["annotations"] + results:
            entry["bbox"] = [str(v) for v in entry["bbox"]]
    for backend in BACKENDS:
        assert list(evaluate_coco(truth, results, kind, backend=backend).metrics.values()) == wanted


JUNK = st.recursive(st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
                        st.sampled_from(["id", "size", "counts", "name"]), inner, max_size=3), max_leaves=6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(["bbox", "segm", "proposal"]), st.sampled_from(BACKENDS), st.data())
def test_junk_is_read_dropped_or_one_sentence(kind, backend, data):
    truth, results = scene()
    for _ in range(data.draw(st.integers(1, 3))):
        lists = [truth[key] for key in ("images", "categories", "annotations") if isinstance(truth[key], list)]
        entry = data.draw(st.sampled_from([truth, *(e for part in (*lists, results) for e in part
                                                    if isinstance(e, dict) and e)]))
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(JUNK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            evaluate_coco(truth, results, kind, backend=backend)
        except DetcoreError as error:
            assert "\n" not in str(error)


# Data sets of other forms

class Shapes(Dataset):
    """Two pictures with three objects, of which the last has no mask."""

    def __init__(self, root) -> None:
        super().__init__(root, "", DEFAULT_OPTIONS, "shapes")
        self.annotation_file, self.class_names = root / "shapes.txt", ("a", "b")
        rows = Rows()
        for file, boxes in (("1.png", [(BOXES[0], 0)]), ("2.png", [(BOXES[1], 1), ([0, 0, 9, 9], 0)])):
            for (x, y, w, h), label in boxes:
                rows.add((x, y, x + w, y + h), label, False)
            rows.files.append(file)
        self.take(rows, [(H, W)] * 2)

    def _mask(self, row, size):
        if row == 2:
            return None
        assert size == (H, W) and self.masks == "bitmap"
        x, y, w, h = BOXES[row]
        mask = np.zeros(size, np.uint8)
        mask[y:y + h, x:x + w] = 1
        return mask


def test_masks_of_data_sets_that_are_no_files_of_cocos(tmp_path):
    dataset = Shapes(tmp_path)
    found = [dict(image_id=i, category_id=dataset.category_ids[label], bbox=box, score=0.9, segmentation=rle(box))
             for i, label, box in zip(dataset.image_ids.tolist(), (0, 1), BOXES)]
    with pytest.warns(UserWarning, match="1 of 3 objects have no usable mask"):
        results = score(found, dataset, ["bbox", "segm"])
    assert results["segm"].per_class == {"a": ONE, "b": ONE} and results["segm"].objects == 2
    assert results["bbox"].objects == 3 and dataset.masks is None
    del Shapes._mask
    with pytest.raises(UsageError, match="shapes.txt has boxes alone"):
        score(found, dataset, ["segm"])


# LVIS

def federated() -> tuple[dict, list[dict]]:
    """Nobody looked for owls in the second image; there the only detection is of one."""
    truth, results = scene()
    truth["categories"] = [dict(id=1, name="cup", frequency="f"), dict(id=2, name="owl", frequency="r")]
    truth["annotations"] = truth["annotations"][:1]
    for image in truth["images"]:
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    return truth, [results[0], dict(results[1], category_id=2)]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_lvis_leaves_out_what_nobody_looked_for(kind):
    truth, results = federated()
    assert evaluate_lvis(truth, results, kind).metrics["AP"] == ONE
    truth["images"][1]["neg_category_ids"] = [1]
    wrong = [*results, dict(results[1], category_id=1, score=1)]
    assert evaluate_lvis(truth, wrong, kind).metrics["AP"] == pytest.approx(0.5)  # a cup that is surely not there
    truth["images"][1]["not_exhaustive_category_ids"] = [1]
    assert evaluate_lvis(truth, wrong, kind).metrics["AP"] == ONE


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
@pytest.mark.parametrize("value", [..., None, 5, "1", {}])
def test_lvis_without_its_lists_is_refused(key, value):
    """As the official evaluation does: else wrong detections would not count."""
    truth, results = federated()
    truth["images"][1][key] = value
    if value is ...:
        del truth["images"][1][key]
    with pytest.raises(DataError, match=f"Image 2 of .*no list {key}"):
        evaluate_lvis(truth, results)
