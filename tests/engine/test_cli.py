"""The command line: what it prints, and one clear sentence for whatever a user can mend."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from detcore.cli import main, print_table
from detcore.engine.train import train
from detcore.pocket import pocket_zoo
from detcore.records import read_record
from detcore.weights import save_weights
from detcore.zoo.create import create_model
from detcore.zoo.index import published_results

MODEL = "retinanet_r50_fpn_1x_coco"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `detcore ARGS` in this process; gives its exit status, output and errors."""
    def command(*args):
        monkeypatch.setattr(sys, "argv", ["detcore", *map(str, args)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` sets its own
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        told = capsys.readouterr()
        return status, told.out, told.err

    return command


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return pocket_zoo.draw(tmp_path_factory.mktemp("data") / "zoo", images=8, val=4, workers=1, progress=False)


@pytest.fixture(scope="module")
def weights(zoo, tmp_path_factory):
    """Weights of a run of two steps."""
    return train(MODEL, zoo, output=tmp_path_factory.mktemp("run"), steps=2, batch_size=2, device="cpu", validate=False,
                 progress=False).checkpoint


def test_list_and_show(run):
    status, out, _ = run("list", "*retinanet_r18*")
    assert status == 0 and "retinanet_r18_fpn_1x_coco" in out and "31.7" in out and "3 models" in out
    status, out, _ = run("list", "--family", "rpn", "--weights")
    assert status == 0 and "rpn_r50_fpn_1x_coco" in out and "retinanet" not in out
    status, out, _ = run("show", MODEL, "--profile", "pocket")
    assert status == 0 and "bbox_head" in out and "AdamW" in out
    status, out, _ = run("show", "centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco")
    assert status == 0 and "TestTimeAugmentation" in out and "trained from scratch" in out and "box_ap" in out


def test_list_filters_and_sorts(run):
    def rows(*args):
        status, out, err = run("list", *args)
        assert status == 0, err
        return [line.split() for line in out.splitlines()[1:-2]]

    found = rows("--min-ap", 45, "--has-weights", "--sort", "box-ap", "--family", "mask2former")
    values = [float(row[1]) for row in found]
    assert len(values) == 10 and values == sorted(values, reverse=True) and min(values) >= 45
    other = rows("--min-ap", 45, "--has-weights", "--sort", "box-ap", "--family", "mask2former", "--reverse")
    assert [float(row[1]) for row in other] == values[::-1]
    swins = rows("--backbone", "swin")
    assert len(swins) == 8 and all("swin" in row[0] for row in swins)
    assert {row[0] for row in rows("--backbone", "SWIN-L*")} == {row[0] for row in swins if "swin-l" in row[0]}
    found = [row[0] for row in rows("faster-rcnn_*_1x_coco", "--has-weights", "--sort", "time")]
    times = [published_results()[name].inference_ms for name in found]
    known = [t for t in times if t is not None]
    assert len(known) > 5 and times == sorted(known) + [None] * (len(times) - len(known))  # unknown ones come last
    status, out, _ = run("list", "--backbones")
    assert status == 0 and "resnet50_msra-5891d200.pth" in out and "Caffe2" in out and "Pycls" in out


def test_train_evaluate_benchmark_predict(run, zoo, tmp_path):
    folder = tmp_path / "run"
    status, out, err = run("train", MODEL, "--data-root", zoo, "--output", folder, "--steps", 2, "--batch-size", 2,
                           "--device", "cpu")
    assert status == 0, err
    assert "bbox_AP" in out and str(folder / "model.safetensors") in out and "loss=" in err
    file = folder / "model.safetensors"
    status, out, err = run("train", MODEL, "--data-root", zoo, "--output", folder, "--steps", 3, "--device", "cpu")
    assert status == 1 and "holds a run" in err
    status, out, err = run("evaluate", MODEL, file, "--data-root", zoo, "--output", tmp_path / "found")
    assert status == 0 and "AR100" in out and pocket_zoo.CLASSES[0] in out, err
    assert read_record(tmp_path / "found/record.json").model == MODEL
    status, out, err = run("benchmark", MODEL, "--weights", file, "--data-root", zoo, "--images", 4, "--interval", 2,
                           "--fuse-conv-bn", "--output", tmp_path / "speed.json", "--device", "cpu")
    assert status == 0 and "image 4 of 4" in out and "inference_p95_s" in out and "flops" in out, err
    assert read_record(tmp_path / "speed.json").parameters["fuse_conv_bn"]
    picture = next((zoo / "val2017").iterdir())
    status, out, err = run("predict", file, picture, "--output", tmp_path / "painted", "--score-threshold",
                           0, "--max-detections", 5, "--device", "cpu")
    assert status == 0 and "Note:" not in err, err
    [told] = json.loads((tmp_path / "painted/detections.json").read_text())
    assert told["file"] == str(picture)
    assert cv2.imread(str(tmp_path / f"painted/{picture.stem}.detections.png")) is not None
    assert len(told["detections"]) == 5
    ids = {name: i for i, name in enumerate(pocket_zoo.CLASSES, 1)}
    assert all(ids[found["category"]] == found["category_id"] for found in told["detections"])
    status, out, err = run("evaluate", file, "--data-root", zoo, "--score-threshold", 1, "--nms-threshold", 0.3,
                           "--max-detections", 7, "--output", tmp_path / "none")
    assert status == 0 and json.loads((tmp_path / "none/detections.json").read_text()) == [], err
    assert read_record(tmp_path / "none/record.json").parameters["options"] == dict(
        score_threshold=1, nms_threshold=0.3, max_detections=7)


def test_category_ids_that_are_not_known(run, zoo, tmp_path):
    save_weights(tmp_path / "old.safetensors", create_model(MODEL, profile="pocket"),
                 dict(model=MODEL, profile="pocket", classes=pocket_zoo.CLASSES))
    status, out, err = run("predict", tmp_path / "old.safetensors", next((zoo / "val2017").iterdir()), "--output",
                           tmp_path / "out", "--device", "cpu", "--no-paint")
    assert status == 0 and "Note: the weights do not tell their data set's category ids" in err


def test_data_sets(run, tmp_path):
    status, out, err = run("data", "pocket", "--root", tmp_path / "zoo", "--images", 2, "--val", 1, "--workers", 1)
    assert status == 0 and len(list((tmp_path / "zoo/train2017").iterdir())) == 2, err
    status, out, err = run("data", "check", tmp_path / "zoo")
    assert status == 0 and "train: 2 images" in out, err
    status, out, err = run("data", "check", tmp_path / "zoo", "--layout", "voc")
    assert status == 1 and "missing VOC2007/JPEGImages: pictures: VOCtrainval_06-Nov-2007.tar" in out
    assert err.splitlines()[-1].startswith("Error:") and "is not complete" in err


@pytest.mark.parametrize("args, sentence", [
    (("list", "nothing*"), "matches 'nothing*'."),
    (("list", "--backbone", "abacus"), "no backbone 'abacus' in the zoo: it has Darknet-53"),
    (("show", "retinanet_r50_fpn_1x_coc"), "retinanet_r50_fpn_1x_coco"),
    (("train", MODEL, "--data-root", "/nowhere"), "There is no data set at /nowhere"),
    (("evaluate", MODEL, "/nowhere.pth", "--data-root", "ZOO"), "There is no file of weights at /nowhere.pth."),
    (("evaluate", MODEL, "published", "--profile", "pocket", "--data-root", "ZOO"),
     "Published weights are of the coco profile"),
    (("evaluate", "mask-rcnn_r50_fpn_1x_coco", "WEIGHTS", "--data-root", "ZOO"), "does not fit mask-rcnn_r50"),
    (("evaluate", MODEL, "WEIGHTS", "--data-root", "ZOO", "--backend", "abacus"), "no evaluation backend 'abacus'"),
    (("train", MODEL, "--data-root", "ZOO", "--device", "abacus"), "There is no device 'abacus'"),
    (("train", MODEL, "--data-root", "ZOO", "--device", "cpu", "--mixed-precision", "fp16"), "fp16 needs a GPU"),
    (("train", MODEL, "--data-root", "ZOO", "--output", "FILE/run"), "cannot be written to: Not a directory."),
    (("predict", "WEIGHTS", "FILE", "--output", "OUT", "--device", "cpu"), "is not an image file"),
    (("proposals", MODEL, "WEIGHTS", "OUT/p.npz", "--data-root", "ZOO"), "makes no proposals"),
    (("benchmark", MODEL, "--data-root", "ZOO", "--mode", "training", "--first", "9", "--last", "3"), "unlike 9 to 3"),
    (("evaluate", MODEL, "--data-root", "ZOO"), "Which weights of retinanet_r50_fpn_1x_coco?"),
    (("evaluate", "WEIGHTS", "--data-root", "ZOO", "--score-threshold", "2"), "from 0 to 1, not 2"),
    (("evaluate", "WEIGHTS", "--data-root", "ZOO", "--images", "0"), "images is a whole number of at least 1, not 0"),
    (("predict", "deformable-detr_r50_16xb2-50e_coco", "FILE", "--weights", "random", "--profile", "pocket",
      "--nms-threshold", "0.5", "--output", "OUT"), "has no option 'nms_threshold'"),
    (("predict", "nowhere.pth", "FILE", "--output", "OUT"), "There is no file of weights at nowhere.pth."),
    (("train", MODEL, "--data-root", "ZOO", "--steps", "0"), "steps is a whole number of at least 1, not 0"),
])
def test_a_fault_is_one_sentence(run, zoo, weights, tmp_path, monkeypatch, args, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("no picture")
    places = {"ZOO": zoo, "WEIGHTS": weights}
    status, out, err = run(*(places.get(a, a) for a in args))
    assert status == 1 and out == ""
    lines = [line for line in err.splitlines() if not line.startswith("Warning")]
    assert len(lines) == 1 and lines[0].startswith("Error: ") and sentence in lines[0]
    assert not list(tmp_path.glob("**/*.json")) + list(tmp_path.glob("**/*.npz")), "half-written output"


def break_annotations(zoo: Path, folder: Path, change) -> Path:
    """A copy of a Pocket Zoo, without pictures, whose validation file went through `change`."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    content = json.loads((zoo / "annotations/instances_val2017.json").read_text())
    text = change(content) or json.dumps(content)
    (folder / "annotations/instances_val2017.json").write_text(text)
    return folder


@pytest.mark.parametrize("change, sentence", [
    (lambda c: "{", "instances_val2017.json cannot be read"),
    (lambda c: c["annotations"][1].update(image_id=77), "belongs to image 77, which the file does not have"),
    (lambda c: c["annotations"][1].update(category_id=99), "belongs to category 99, which the file does not have"),
    (lambda c: None, "There is no image file"),
])
def test_broken_data_is_named(run, zoo, weights, tmp_path, change, sentence):
    root = break_annotations(zoo, tmp_path / "zoo", change)
    status, out, err = run("evaluate", MODEL, weights, "--data-root", root, "--output", tmp_path / "out")
    assert status == 1 and sentence in err and err.count("Error: ") == 1 and "Traceback" not in err
    assert not (tmp_path / "out/record.json").exists()


def test_pictures_that_are_cut_short_or_unusual(run, zoo, weights, tmp_path):
    for picture in (zoo / "val2017").iterdir():
        sixteen = cv2.imread(str(picture)).astype(np.uint16) * 257
        cv2.imwrite(str(tmp_path / f"{picture.stem}.png"), sixteen)
    status, out, err = run("predict", weights, *tmp_path.glob("*.png"), "--output", tmp_path / "out", "--no-paint")
    assert status == 0 and len(json.loads((tmp_path / "out/detections.json").read_text())) == 4, err
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(picture.read_bytes()[:500])
    status, out, err = run("predict", weights, cut, "--output", tmp_path / "none")
    assert status == 1 and "cut.jpg" in err and not (tmp_path / "none/detections.json").exists()


def test_the_module_is_the_command(tmp_path):
    told = subprocess.run([sys.executable, "-m", "detcore", "list", "no-such-model"], capture_output=True, text=True)
    assert told.returncode == 1 and told.stderr.startswith("Error: There is no model 'no-such-model'.")


def test_help_needs_no_torch():
    told = subprocess.run([sys.executable, "-X", "importtime", "-m", "detcore", "--help"], capture_output=True,
                          text=True)
    assert told.returncode == 0 and "benchmark" in told.stdout
    loaded = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert not loaded & {"torch", "numpy", "cv2", "PIL", "detcore.engine.common"}


def test_names_from_files_cannot_steer_the_terminal(run, capsys, monkeypatch):
    print_table(["class", "AP"], [["cat\x1b[31m\n\tdog", 0.5], ["x" * 10_000, None]])
    table = capsys.readouterr().out
    assert table.splitlines()[1].startswith(r"cat\x1b[31m\n\tdog ") and len(table.splitlines()) == 3
    assert max(map(len, table.splitlines())) < 520
    status, out, err = run("show", "no\x1b]0;title\x07such\x9b2J\nmodel")
    assert status == 1 and r"no\x1b]0;title\x07such" in err and not set("\x1b\x07\x9b") & set(err)
    assert len(err.splitlines()) == 1
    status, out, err = run("show", "x" * 100_000)
    assert status == 1 and len(err) < 2_100


def test_letters_that_the_terminal_has_not_end_no_command(tmp_path):
    told = subprocess.run([sys.executable, "-m", "detcore", "show", "猫"], capture_output=True, text=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert told.returncode == 1 and told.stderr.startswith("Error: ") and "Traceback" not in told.stderr
