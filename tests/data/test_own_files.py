"""One's own data in COCO's form: where labelling tools leave the files, what they write, and which classes are one."""
from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from detcore.cli import main
from detcore.data.check import check
from detcore.data.coco import CocoDataset
from detcore.data.dataset import ReadOptions, held_out
from detcore.data.layouts import find_layout
from detcore.data.options import DataOptions
from detcore.data.proposals import ProposalFile
from detcore.data.segmentation import bitmap, has_shape, read_shape, unpack
from detcore.engine.common import load_data
from detcore.engine.evaluate import evaluate, make_proposals
from detcore.engine.scoring import score
from detcore.engine.train import train
from detcore.errors import DataError, DetcoreError, UsageError
from detcore.zoo.create import restore
from detcore.zoo.index import get_model_entry
from tests.data import exporters
from tests.data.exporters import EXPORTERS, NAMES, SIDE

MODEL, MASKS = "retinanet_r50_fpn_1x_coco", "mask-rcnn_r50_fpn_1x_coco"
QUICK = dict(device="cpu", workers=0, progress=False, batch_size=2)


def recipe(name: str = MODEL):
    return get_model_entry(name).recipe_for("pocket")


def change(path: Path, **changes) -> None:
    """Change parts of an annotation file."""
    content = json.loads(path.read_text())
    for key, part in changes.items():
        content[key] = part(content[key]) if callable(part) else part
    path.write_text(json.dumps(content))


@pytest.fixture
def own(tmp_path) -> Path:
    """Data as COCO has them, to be changed."""
    exporters.coco(tmp_path / "own")
    return tmp_path / "own"


TRAIN, VAL = "annotations/instances_train2017.json", "annotations/instances_val2017.json"


# Layouts

@pytest.mark.parametrize("tool", EXPORTERS)
def test_an_export_is_trained_on_evaluated_and_checked_as_it_is(tmp_path, tool):
    exporter, options, title = EXPORTERS[tool]
    exporter(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    run = train(MODEL, tmp_path / "data", output=tmp_path / "run", steps=2, **QUICK, **options)
    found = evaluate(run.checkpoint, tmp_path / "data", **QUICK, **options)
    assert restore(run.checkpoint).classes == NAMES and set(found.results["bbox"].per_class) == set(NAMES)
    assert found.record.metrics == pytest.approx(run.record.metrics)
    assert run.record.data.images + found.record.data.images == 12
    findings = check(tmp_path / "data", progress=False, options=DataOptions(**options))
    assert {f.verdict for f in findings} <= {"ok", "note"} and title in findings[0].text
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}


@pytest.mark.parametrize("tool", EXPORTERS)
def test_objects_of_an_export_lie_where_they_were_drawn(tmp_path, tool):
    exporter, options, _ = EXPORTERS[tool]
    exporter(tmp_path)
    for split in ("train", "val"):
        data = load_data(tmp_path, recipe(), split, options=DataOptions(**options))
        for index in range(len(data)):
            sample = data.sample(index)
            for label, (x1, y1, x2, y2) in zip(sample.labels, sample.boxes.astype(int)):
                assert (sample.image[y1:y2, x1:x2] == exporters.COLOURS[label]).mean() > 0.99


def test_a_test_split_is_evaluated(tmp_path):
    exporters.roboflow(tmp_path)
    assert len(load_data(tmp_path, recipe(), "test")) == len(exporters.VAL)


def test_the_commands_take_the_options(tmp_path, monkeypatch, capsys):
    exporters.label_studio(tmp_path / "data")

    def run(*words) -> str:
        monkeypatch.setattr(sys, "argv", ["detcore", *map(str, words)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` sets its own
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        assert not end.value.code, told.err
        return told.out

    data = ("--holdout", "0.3", "--rename", "cup=mug", "--image-folder", "images", "--train-annotations", "result.json")
    where = ("--data-root", tmp_path / "data", "--device", "cpu", "--workers", "0", *data)
    run("train", MODEL, *where, "--steps", "1", "--batch-size", "2", "--output", tmp_path / "run")
    out = run("evaluate", tmp_path / "run/model.safetensors", *where)
    assert "mug" in out and "cup" not in out
    run("benchmark", tmp_path / "run/model.safetensors", *where, "--images", "1", "--warmup", "0")
    out = run("data", "check", tmp_path / "data", *data, "--contact-sheet", tmp_path / "sheet.jpg")
    assert "mug" in out and (tmp_path / "sheet.jpg").exists()


def test_proposals_of_one_file(tmp_path):
    exporters.cvat(tmp_path / "data")
    model = "rpn_r50_fpn_1x_coco"
    file = make_proposals(model, tmp_path / "data", tmp_path / "p.npz", weights="random", device="cpu", workers=0,
                          progress=False)
    assert sorted(ProposalFile(file)) == list(range(1, 13))
    again = make_proposals(model, tmp_path / "data", tmp_path / "q.npz", weights="random", device="cpu", workers=0,
                           progress=False, holdout=0.3)
    assert sorted(ProposalFile(again)) == list(range(1, 13))


def test_one_file_needs_a_share_or_no_validation(tmp_path):
    exporters.cvat(tmp_path / "data")
    with pytest.raises(DataError, match="no annotations of validation images, only of train .*--holdout 0.1") as error:
        train(MODEL, tmp_path / "data", output=tmp_path / "run", steps=1, **QUICK)
    assert "\n" not in str(error.value)
    run = train(MODEL, tmp_path / "data", output=tmp_path / "run", steps=1, validate=False, **QUICK)
    assert run.record.data.images == 12


def test_the_share_that_is_held_out_hangs_on_names_alone():
    names = [f"images/{i}.jpg" for i in range(2000)]
    held = held_out(names, 0.1)
    assert 150 < held.sum() < 250
    order = np.random.default_rng(0).permutation(2000)
    assert (held_out([names[i] for i in order], 0.1) == held[order]).all()
    assert (held_out(names[:1500], 0.1) == held[:1500]).all()
    for share in (1e-9, 1 - 1e-9):  # neither side is ever empty
        assert 0 < held_out(names[:5], share).sum() < 5


def test_named_files_and_a_folder_of_pictures(tmp_path):
    exporters.write(tmp_path / "a.json", exporters.content(range(1, 9), "C/{}.png".format))
    exporters.write(tmp_path / "labels/b.json", exporters.content(range(9, 13), "{}.png".format))
    exporters.draw(tmp_path / "pictures/deep/down", range(1, 13))
    options = DataOptions(train_annotations=tmp_path / "a.json", val_annotations="labels/b.json",
                          image_folder="pictures")
    for split, number in ("train", 8), ("val", 4):
        data = load_data(tmp_path, recipe(), split, options=options)
        assert len(data) == number and data.sample(0).image.shape == (SIDE, SIDE, 3)
    assert {f.verdict for f in check(tmp_path, progress=False, options=options)} <= {"ok", "note"}


def test_pictures_of_one_name_in_two_folders(tmp_path):
    exporters.write(tmp_path / "annotations/instances_default.json", exporters.content(range(1, 3), "b/{}.png".format))
    for folder in ("x/a", "x/b"):
        exporters.draw(tmp_path / "images" / folder, range(1, 3))
    data = CocoDataset.open(tmp_path, "train", ReadOptions())
    assert data.path(0) == tmp_path / "images/x/b/1.png"
    change(tmp_path / "annotations/instances_default.json", images=lambda i: [dict(r, file_name="1.png") for r in i])
    with pytest.raises(DataError, match="several pictures 1.png .*image_folder"):
        CocoDataset.open(tmp_path, "train", ReadOptions()).path(0)


@pytest.mark.parametrize("options, sentence", [
    (dict(holdout=0), "holdout is a number above 0"), (dict(holdout=1), "above 0 and below 1"),
    (dict(holdout="0.1"), "number above 0 .*'0.1'"), (dict(holdout=float("nan")), "number above 0 .*nan"),
    (dict(holdout=0.1, val_annotations="x.json"), "either a share"), (dict(rename=["cup"]), "OLD=NEW, not by 'cup'"),
    (dict(rename={"cup": 3}), "from a name to a name"), (dict(train_annotations="nowhere.json"), "no annotation file"),
    (dict(image_folder="nowhere"), "no image folder"), (dict(hold=1), "no option 'hold'")])
def test_options_that_make_no_sense(own, tmp_path, options, sentence):
    with pytest.raises(DetcoreError, match=sentence):
        train(MODEL, own, output=tmp_path / "run", steps=1, **QUICK, **options)


# Classes

def shuffled(categories: list[dict]) -> list[dict]:
    return [categories[i] for i in (2, 0, 1)]


def test_the_order_of_categories_says_nothing(own, tmp_path):
    change(own / VAL, categories=shuffled)
    run = train(MODEL, own, output=tmp_path / "run", steps=20, **QUICK)
    assert evaluate(run.checkpoint, own, **QUICK).record.metrics == pytest.approx(run.record.metrics)
    change(own / VAL, categories=lambda cs: sorted(cs, key=lambda c: c["id"]))
    assert evaluate(run.checkpoint, own, **QUICK).record.metrics == pytest.approx(run.record.metrics)
    assert run.record.metrics["bbox_AP"] > 0
    # Other ids too; what a checkpoint calls its classes is what counts.
    for file in (TRAIN, VAL):
        change(own / file, categories=lambda cs: [c | dict(id=100 - c["id"]) for c in cs],
               annotations=lambda rows: [a | dict(category_id=100 - a["category_id"]) for a in rows])
    assert evaluate(run.checkpoint, own, **QUICK).record.metrics == pytest.approx(run.record.metrics)


def test_what_knows_the_truth_has_full_marks_in_another_order(own):
    change(own / VAL, categories=shuffled)
    data = load_data(own, recipe())
    assert data.class_names != NAMES
    data.relabel(NAMES, "the training data")
    assert data.class_names == NAMES and data.category_ids == [1, 2, 3]
    columns = data.objects()
    found = [dict(image_id=int(i), category_id=1 + label, score=1.0, bbox=exporters.rectangle(label, int(i)))
             for i, label in zip(columns["image"], columns["labels"].tolist())]
    assert score(found, data, ("bbox",))["bbox"].metrics["AP"] == pytest.approx(1)


def test_validation_data_may_lack_classes_but_have_no_others(own, tmp_path):
    run = train(MODEL, own, output=tmp_path / "run", steps=2, **QUICK)
    change(own / VAL, categories=lambda c: c[1:], annotations=lambda rows: [a for a in rows if a["category_id"] != 1])
    found = evaluate(run.checkpoint, own, **QUICK)
    assert found.results["bbox"].per_class["cup"] is None and found.results["bbox"].per_class["fork"] is not None
    change(own / VAL, categories=lambda c: [dict(id=1, name="mug"), *c],
           annotations=lambda rows: [*rows, rows[0] | dict(id=99, category_id=1)])
    with pytest.raises(UsageError, match="'mug', which the training data .* does not have .*--rename OLD=NEW"):
        train(MODEL, own, output=tmp_path / "other", steps=1, **QUICK)
    with pytest.raises(UsageError, match="'mug', which the model .* does not have"):
        evaluate(run.checkpoint, own, **QUICK)
    assert not (tmp_path / "other/checkpoints").exists() or not list((tmp_path / "other/checkpoints").iterdir())
    assert evaluate(run.checkpoint, own, rename={"mug": "cup"}, **QUICK).results["bbox"].per_class["cup"] is not None


def test_a_class_without_objects_that_only_validation_lists_is_told(own):
    change(own / VAL, categories=lambda c: [dict(id=7, name="spoon"), *c])
    data = load_data(own, recipe())
    with pytest.warns(UserWarning, match="lists 'spoon', which the training data does not have"):
        data.relabel(NAMES, "the training data")
    assert data.class_names == NAMES and set(data.labels.tolist()) == {0, 1, 2}


def test_categories_of_one_name_are_one_class(own):
    change(own / TRAIN, categories=lambda c: [*c, dict(id=9, name="cup")],
           annotations=lambda rows: [a | dict(category_id=9) if a["image_id"] < 5 and a["category_id"] == 1 else a
                                     for a in rows])
    with pytest.warns(UserWarning, match=r"2 categories with the name 'cup' \(ids 1, 9\)"):
        data = load_data(own, recipe(), "train", training=True)
    assert data.class_names == NAMES and np.bincount(data.labels).tolist() == [8, 8, 8]
    assert sum(a["category_id"] == 1 for a in data.ground_truth()["annotations"]) == 8


def test_annotations_of_unlisted_categories_can_be_left_out(own):
    change(own / TRAIN, categories=lambda c: c[:2])
    with pytest.raises(DataError, match=r"belongs to category 3, which .*\(8 of 24 .*--skip-unlisted"):
        load_data(own, recipe(), "train", training=True)
    with pytest.warns(UserWarning, match="left out 8 of 24 annotations"):
        data = load_data(own, recipe(), "train", training=True, options=DataOptions(skip_unlisted=True))
    assert data.trainable() == 16


# What a file may say

@pytest.mark.parametrize("changes", [
    dict(bbox=["4", " 9.0", "16", "20"]), dict(area=None), dict(area=0), dict(area="320"), dict(area=""),
    dict(iscrowd=0.0), dict(iscrowd=None), dict(iscrowd="0"), dict(iscrowd="false"), dict(image_id="1"),
    dict(image_id=1.0), dict(category_id="1"), dict(id="x"), dict(id=None), dict(id=2**70)])
@pytest.mark.parametrize("masks", (None, "bitmap"))
def test_numbers_as_exports_have_them(own, changes, masks):
    change(own / TRAIN, annotations=lambda rows: [rows[0] | changes, *rows[1:]])
    sample = CocoDataset(own, masks=masks).sample(0)
    assert sample.boxes[0].tolist() == [4, 9, 20, 29] and sample.labels.tolist() == [0, 1, 2]
    truth = CocoDataset(own).ground_truth(True)["annotations"][0]
    assert (truth["area"], truth["iscrowd"], truth["image_id"], truth["category_id"]) == (320, 0, 1, 1)
    assert truth["segmentation"] == [[4, 9, 20, 9, 20, 29, 4, 29]]


@pytest.mark.parametrize("encoding", ("utf-8-sig", "utf-16"))
@pytest.mark.parametrize("changes", [dict(width="64"), dict(height=64.0), dict(id="1"), dict(id=1.0)])
def test_images_as_exports_have_them(own, changes, encoding):
    change(own / TRAIN, images=lambda i: [i[0] | changes, *i[1:]])
    (own / TRAIN).write_text((own / TRAIN).read_text(), encoding=encoding)
    data = CocoDataset(own)
    assert len(data.sample(0).boxes) == 3 and data.sizes.tolist() == [[SIDE, SIDE]] * 8


@pytest.mark.parametrize("ids", [lambda i: 2**63 + i, lambda i: 10**30 + i, lambda i: f"picture {i}",
                                 lambda i: -i, lambda i: 202405170930000000 + i, str])
def test_ids_of_any_size_and_text(own, ids):
    for file in (TRAIN, VAL):
        change(own / file, images=lambda rows: [i | dict(id=ids(i["id"])) for i in rows],
               annotations=lambda rows: [a | dict(image_id=ids(a["image_id"])) for a in rows])
    data = load_data(own, recipe())
    assert data.image_ids.tolist() == [ids(i) for i in exporters.VAL]
    sample = data.sample(1)
    assert sample.meta.image_id == ids(10) and sample.labels.tolist() == [0, 1, 2]
    assert [i["id"] for i in data.ground_truth()["images"]] == [ids(i) for i in exporters.VAL]


def test_category_ids_that_are_text_are_numbered(own):
    for file in (TRAIN, VAL):
        change(own / file, categories=lambda rows: [c | dict(id=f"c{c['id']}") for c in rows],
               annotations=lambda rows: [a | dict(category_id=f"c{a['category_id']}") for a in rows])
    data = load_data(own, recipe())
    assert data.category_ids == [1, 2, 3] and data.class_names == NAMES
    assert {a["category_id"] for a in data.ground_truth()["annotations"]} == {1, 2, 3}


@pytest.mark.parametrize("name", ["../val2017/9.png", "/etc/passwd", "..\\9.png", "C:\\9.png", "a/../../9.png",
                                  "a\0.png", "x" * 5000, "", ".", "..", None])
def test_names_that_are_no_place_in_the_folder_are_refused(own, name):
    change(own / TRAIN, images=lambda i: [i[0] | dict(file_name=name), *i[1:]])
    with pytest.raises(DataError, match="Image 1 of .*names the picture .*correct the name") as error:
        CocoDataset(own)
    assert len(str(error.value)) < 400 + len(str(own))


@pytest.mark.parametrize("old, new", [("[[4,", "[" * 20000 + "4" + "]" * 20000 + ",[[4,"),
                                      ('{"images"', '{"x": ' + "[" * 20000 + "]" * 20000 + ', "images"'),
                                      ('"width": 64', '"width": 2147483648'), ('"width": 64', '"width": 1e300'),
                                      ('"image_id": 1,', '"image_id": [1],'), ('"name": "cup"', '"name": null'),
                                      ('"iscrowd": 0', '"iscrowd": []')])
def test_what_cannot_be_read_is_a_sentence(own, old, new):
    text = (own / TRAIN).read_text().replace(", ", ",").replace(": ", ":")
    old = old.replace(", ", ",").replace(": ", ":")
    assert old in text
    (own / TRAIN).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match="instances_train2017.json") as error:
        CocoDataset(own, masks="bitmap")
    assert "\n" not in str(error.value)
    assert "broken" in {f.verdict for f in check(own, progress=False)}


@pytest.mark.parametrize("tail", (1e-9, 1e-6, 5e-4))
def test_a_sliver_of_a_box_at_the_border_is_dropped(own, tail):
    change(own / TRAIN, annotations=lambda rows: [*rows, rows[0] | dict(id=99, bbox=[SIDE - tail, 5, 10, 10])])
    with pytest.warns(UserWarning, match="dropped 1 of 25 boxes .*annotation 99"):
        assert len(CocoDataset(own).sample(0).boxes) == 3


# Masks

SQUARE = [4.0, 9, 20, 9, 20, 29, 4, 29]
RUNS = dict(size=[SIDE, SIDE], counts=[64 * 4 + 9, 20, SIDE * SIDE - 64 * 4 - 29])


@pytest.mark.parametrize("shape", [
    [SQUARE], SQUARE, [list(map(str, SQUARE))], [[[4, 9], [20, 9], [20, 29], [4, 29]]],
    [[4, 9], [20, 9], [20, 29], [4, 29]], [SQUARE, None], json.dumps([SQUARE]), [SQUARE, [1, 2, 3, 4]]])
def test_rings_in_any_nesting(shape):
    (ring,) = read_shape(json.dumps(shape).encode(), (SIDE, SIDE))
    assert ring.ravel().tolist() == SQUARE
    assert bitmap([ring], (SIDE, SIDE)).sum() == 16 * 20


@pytest.mark.parametrize("shape", [RUNS, [RUNS], RUNS | dict(counts=list(map(float, RUNS["counts"]))),
                                   RUNS | dict(size=["64", "64"], counts=list(map(str, RUNS["counts"])))])
def test_run_lengths_in_any_writing(shape):
    mask = bitmap(read_shape(json.dumps(shape).encode(), (SIDE, SIDE)), (SIDE, SIDE))
    assert mask.sum() == 20 and mask[9:29, 4].all()


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"[[]]", b"[[1, 2]]", b"[1, 2, 3, 4, 5, 6, 7]",
                                  b"[[1, 2, 3, 4]]", b'{"size": [64, 64], "counts": []}',
                                  b'{"size": [64, 64], "counts": ""}', b'{"size": [64, 64], "counts": [4096]}'])
def test_what_is_no_mask(text):
    assert read_shape(text, (SIDE, SIDE)) is None and not has_shape(text, (SIDE, SIDE))


@pytest.mark.parametrize("shape, problem", [
    ([[1e8, 1, 2, 3, 4, 5]], "Expected `float` <= 100000|further than"), ([["nan", 1, 2, 3, 4, 5]], "no number"),
    ([[9e9] * 6], "100000"), ("abc", "text"), (5, "number"), ([[1, 2, 3, 4, 5, None]], "no number"),
    ([SQUARE, "x"], "no ring"),
    (RUNS | dict(counts=[2**63, 2**63, SIDE * SIDE]), "add up"), (RUNS | dict(counts=[SIDE * SIDE + 5, -5]), "add up"),
    (RUNS | dict(counts=[5, 5]), "add up"), (RUNS | dict(size=[32, 64]), "are for 64 x 32"),
    (RUNS | dict(counts="o" * 1_000_000), "not COCO's text"), (RUNS | dict(counts="1" * 1_000_000), "add up"),
    (RUNS | dict(counts="\u00e9"), "not COCO's text"), (RUNS | dict(counts="1" * 7 + "o"), "not COCO's text"),
    ({}, "size"), (dict(size=None, counts=5), "size"), ([[[[1, 2]]]], "no number")])
def test_broken_masks_are_told_and_cost_nothing(shape, problem):
    with pytest.raises(ValueError, match=problem):
        read_shape(json.dumps(shape).encode(), (SIDE, SIDE))


def test_unpacking_is_exact():
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = rng.integers(0, 10**int(rng.integers(1, 9)), rng.integers(1, 12))
        text = ""
        for i, count in enumerate(counts.tolist()):  # as COCO packs them
            value, more = count - (int(counts[i - 2]) if i > 2 else 0), True
            while more:
                bits, value = value & 31, value >> 5
                more = value != (-1 if bits & 16 else 0)
                text += chr((bits | 32 * more) + 48)
        assert unpack(text).tolist() == counts.tolist()


@pytest.mark.parametrize("segmentation", [None, [], [[1, 2, 3, 4]], "x", RUNS | dict(counts=[2**63, 2**63, 1]),
                                          [[float("nan")] * 6]])
def test_one_object_without_a_sound_mask_is_counted_and_the_rest_trained_on(own, tmp_path, segmentation):
    for file in (TRAIN, VAL):
        change(own / file, annotations=lambda rows: [rows[0] | dict(segmentation=segmentation), *rows[1:]])
    with pytest.warns(UserWarning) as told:
        data = load_data(own, recipe(MASKS), "train", training=True)
    (told,) = told
    assert re.search("of 24 objects 1 have (no mask|a broken one) .*annotation 1", str(told.message))
    assert data.trainable() == 23 and data.sample(0).ignored.tolist() == [[4, 9, 20, 29]]
    with pytest.warns(UserWarning, match="1 of 12 objects have no sound mask"):
        truth = load_data(own, recipe(MASKS)).ground_truth(True)["annotations"]
    assert [a["iscrowd"] for a in truth] == [1] + [0] * 11
    verdicts = {f.verdict for f in check(own, progress=False)}
    assert ("broken" in verdicts) == (segmentation not in (None, [], [[1, 2, 3, 4]]))


def test_masks_are_evaluated_where_some_are_missing(own, tmp_path):
    change(own / VAL, annotations=lambda rows: [
        a if a["id"] % 2 else {k: v for k, v in a.items() if k != "segmentation"} for a in rows])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = train(MASKS, own, output=tmp_path / "run", steps=1, **QUICK)
    assert run.record.metrics["segm_AP"] is not None


# Nothing to learn, nothing to count

def test_a_model_of_masks_needs_masks(own, tmp_path):
    change(own / TRAIN, annotations=lambda rows: [a | dict(segmentation=[]) for a in rows])
    with pytest.raises(DataError, match="of 24 objects 24 have no mask .*export the data with masks"), \
            warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(MASKS, own, output=tmp_path / "run", steps=1, **QUICK)


@pytest.mark.parametrize("changes, sentence", [
    (dict(annotations=[]), "has no object to train on"), (dict(images=[], annotations=[]), "has no object to train on"),
    (dict(annotations=lambda rows: [a | dict(iscrowd=1) for a in rows]), "all 24 are crowds"),
    (dict(categories=[], annotations=[]), "has no object to train on")])
def test_nothing_to_train_on_is_a_sentence_before_training(own, tmp_path, changes, sentence):
    change(own / TRAIN, **changes)
    with pytest.raises(DataError, match=sentence):
        train(MODEL, own, output=tmp_path / "run", steps=1, **QUICK)
    assert "broken" in {f.verdict for f in check(own, progress=False)}


def test_validation_without_countable_objects_is_a_warning(own, tmp_path):
    change(own / VAL, annotations=lambda rows: [a | dict(iscrowd=1) for a in rows])
    with pytest.warns(UserWarning, match="no object that counts"):
        data = load_data(own, recipe())
    assert len(data) == 4
    change(own / VAL, images=[], annotations=[])
    with pytest.raises(DataError, match="has no image to evaluate on"):
        load_data(own, recipe())


# Stuff

def panoptic(root: Path, split: str, pictures: range, stuff: list[str]) -> None:
    """Panoptic annotations of `exporters.coco`'s pictures: the ground is the first class of stuff in the upper half,
    the last one in the lower."""
    categories = [*(dict(id=1 + i, name=n, isthing=1) for i, n in enumerate(NAMES)),
                  *(dict(id=100 + i, name=n, isthing=0) for i, n in enumerate(stuff))]
    annotations = []
    for picture in pictures:
        ids = np.full((SIDE, SIDE), 1, np.uint8)
        ids[SIDE // 2:] = 2
        segments = [dict(id=1, category_id=100, iscrowd=0), dict(id=2, category_id=99 + len(stuff), iscrowd=0)]
        for label in range(len(NAMES)):
            x, y, w, h = exporters.rectangle(label, picture)
            ids[y:y + h, x:x + w] = 11 + label
            segments.append(dict(id=11 + label, category_id=1 + label, iscrowd=0))
        folder = root / f"annotations/panoptic_{split}2017"
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{picture}.png"), np.stack([np.zeros_like(ids)] * 2 + [ids], 2))
        annotations.append(dict(image_id=picture, file_name=f"{picture}.png", segments_info=segments))
    exporters.write(root / f"annotations/panoptic_{split}2017.json", dict(
        images=[dict(id=i, file_name=f"{i}.png", width=SIDE, height=SIDE) for i in pictures], categories=categories,
        annotations=annotations))


@pytest.mark.parametrize("name", ("panoptic-fpn_r50_fpn_1x_coco", "maskformer_r50_ms-16xb1-75e_coco"))
def test_the_number_of_classes_of_stuff_comes_from_the_data(own, tmp_path, name):
    stuff = [f"stuff {i}" for i in range(9)]
    panoptic(own, "train", exporters.TRAIN, stuff)
    panoptic(own, "val", exporters.VAL, stuff[::-1])  # classes are one where their names are
    options = QUICK | dict(steps=1)
    run = train(name, own, output=tmp_path / "run", **options)
    ready = restore(run.checkpoint)
    assert ready.meta["stuff"] == stuff
    assert 9 in {m.stuff for m in ready.model.modules() if isinstance(getattr(m, "stuff", None), int)}
    assert evaluate(run.checkpoint, own, **QUICK).record.metrics == pytest.approx(run.record.metrics)
    assert {f.verdict for f in check(own, progress=False)} <= {"ok", "note"}
    # Another number of them: a start for a training, but no evaluation.
    for split, pictures in ("train", exporters.TRAIN), ("val", exporters.VAL):
        panoptic(own, split, pictures, [*stuff, "one more"])
    with pytest.raises(UsageError, match="'one more', which the model"):
        evaluate(run.checkpoint, own, **QUICK)
    again = train(name, own, output=tmp_path / "again", weights=run.checkpoint, validate=False, **options)
    assert len(restore(again.checkpoint).meta["stuff"]) == 10


def test_broken_panoptic_maps_are_found(own):
    for split, pictures in ("train", exporters.TRAIN), ("val", exporters.VAL):
        panoptic(own, split, pictures, ["sky", "grass"])
    (own / "annotations/panoptic_val2017/10.png").write_bytes(b"nothing")
    assert any(f.verdict == "broken" and "10.png" in f.text for f in check(own, progress=False))


# The check

def test_what_the_check_tells(own, tmp_path):
    change(own / TRAIN, annotations=lambda rows: [rows[0] | dict(iscrowd=1), *rows[1:]])
    change(own / VAL, categories=lambda c: [c[0] | dict(name="mug"), *c[1:]])
    (own / "val2017/12.png").unlink()
    sheet = tmp_path / "sheet.png"
    told = [f"{f.verdict} {f.what}: {f.text}" for f in check(own, progress=False, contact_sheet=sheet)]
    text = "\n".join(told)
    assert "23 small (below 32^2 pixels), 0 medium (below 96^2), 0 large; 1 crowds or flagged; 23 with a mask" in text
    assert "note train, cup: 7 objects: 7 small" in text
    assert "broken val: has the classes 'mug', which the training images do not have" in text
    assert "note val: does not have the classes 'cup'" in text
    assert re.search("missing val: 1 of 4 pictures, the first .*12.png", text)
    assert "cocodataset" not in text and "read as COCO (layout coco)" in text
    drawn = cv2.imread(str(sheet))
    assert drawn.shape == (3 * 240, 6 * 240, 3)  # 8 pictures to train on in two rows, 3 of 4 to evaluate on
    assert (drawn[:240, :240] == exporters.COLOURS[2]).all(2).sum() > 2000


def test_what_is_not_recognised_is_said(tmp_path):
    (tmp_path / "VOC/pictures").mkdir(parents=True)
    (tmp_path / "train_001.jpg").write_bytes(b"x")
    found = check(tmp_path, progress=False)
    assert [f.verdict for f in found] == ["missing"] and "no form of data set that is known" in found[0].text
    assert "cocodataset" not in found[0].text


def test_a_tool_s_export_does_not_hide_another_form(tmp_path):
    (tmp_path / "VOC2007/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "result.json").write_text("{}")
    assert find_layout(tmp_path).name == "voc"
