"""`detcore predict`: folders, wildcards, videos, broken files, and that no result is lost or overwritten."""
from __future__ import annotations

import json
import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detcore.engine import predict_files as module
from detcore.engine.predict import Predictor
from detcore.engine.predict_files import find_inputs, predict_files
from detcore.errors import DataError, DetcoreError, UsageError
from detcore.pocket import pocket_zoo
from detcore.weights import save_weights
from detcore.zoo.create import create_model
from tests.engine.test_cli import run  # noqa: F401

NAME = "retinanet_r50_fpn_1x_coco"
IDS = [100 + 7 * i for i in range(len(pocket_zoo.CLASSES))]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_weights(path, create_model(NAME, profile="pocket"), dict(
        model=NAME, profile="pocket", classes=list(pocket_zoo.CLASSES), category_ids=IDS))
    return path


@pytest.fixture(scope="module")
def predictor(weights):
    return Predictor(weights, device="cpu", score_threshold=0.0, max_detections=3)


def draw(path, seed: int = 0, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


def film(path, frames: int = 6, size=(64, 48), rate: float = 12.5):
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), 20 * i, np.uint8))
    writer.release()
    return path


def written(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def detect(predictor, inputs, output, **options):
    return predict_files(predictor, inputs, output, **{"score_threshold": 0.0, "progress": False} | options)


def test_pictures_of_one_name_are_told_apart(predictor, tmp_path) -> None:
    files = [draw(tmp_path / "a/0001.jpg"), draw(tmp_path / "b/0001.jpg", 1), draw(tmp_path / "a/0001.png", 2),
             draw(tmp_path / "a/0001.PNG.webp", 3), draw(tmp_path / "A/0001.jpg", 4)]
    done = detect(predictor, files, tmp_path / "out")
    pictures = {p for p in written(tmp_path / "out") if p.endswith(".png")}
    assert {"a/0001.detections.png", "b/0001.detections.png", "a/0001.png.detections.png"} <= pictures
    assert len({p.casefold() for p in pictures}) == 5 == done.pictures
    table = json.loads((tmp_path / "out/detections.json").read_text())
    assert [entry["file"] for entry in table] == list(map(str, files))
    for number, (entry, file) in enumerate(zip(table, files), 1):
        expected = predictor(file)
        assert [d["category_id"] for d in entry["detections"]] == [IDS[c] for c in expected.labels.tolist()]
        assert [d["category"] for d in entry["detections"]] == [pocket_zoo.CLASSES[c] for c in expected.labels.tolist()]
        assert {d["image_id"] for d in entry["detections"]} == {number}
        np.testing.assert_allclose([d["score"] for d in entry["detections"]], expected.scores)


def test_one_picture_of_elsewhere_is_named_by_its_name_alone(predictor, tmp_path) -> None:
    detect(predictor, draw(tmp_path / "deep/down/x.y.png"), tmp_path / "out")
    assert written(tmp_path / "out") == {"x.y.detections.png", "detections.json"}


def test_an_earlier_run_is_never_overwritten(predictor, tmp_path, capsys) -> None:
    file, out = draw(tmp_path / "x.png"), tmp_path / "out"
    first = detect(predictor, file, out)
    before = {name: (out / name).read_bytes() for name in written(out)}
    draw(file, 5)
    assert capsys.readouterr().err == ""
    assert [detect(predictor, file, out).folder.name for _ in range(2)] == ["out2", "out3"] and first.folder == out
    assert "out holds x.detections.png of an earlier run, so the results go to" in capsys.readouterr().err
    assert {name: (out / name).read_bytes() for name in written(out)} == before
    assert written(tmp_path / "out3") == set(before)
    other = draw(tmp_path / "z.png")
    assert detect(predictor, other, out, paint=False).folder.name == "out4"  # for its detections.json
    assert detect(predictor, file, out, overwrite=True).folder == out
    assert {name: (out / name).read_bytes() for name in written(out)} != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("kept")
    assert detect(predictor, file, tmp_path / "mine").folder.name == "mine"  # nothing of it is touched


def test_folders_and_patterns(predictor, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shots/b.JPG", "shots/a.png", "shots/sub/c.tiff", "shots/.hidden/d.png", "shots/.e.png"):
        draw(tmp_path / name)
    (tmp_path / "shots/labels.txt").write_text("0 0.5 0.5 1 1")
    detect(predictor, "shots", "shots/found")
    expected = {"a.detections.png", "b.detections.png", "sub/c.detections.png", "detections.json"}
    assert written(tmp_path / "shots/found") == expected
    assert "1 file is left out" in capsys.readouterr().err
    detect(predictor, "shots", "shots/found")  # not the pictures that were painted before
    assert written(tmp_path / "shots/found2") == expected
    patterns = ("shots/*", "shots/**/*.tiff", ["shots", "shots/a.png"])
    names = [[str(p) for p in find_inputs(given)[0]] for given in patterns]
    assert names[0] == ["shots/a.png", "shots/b.JPG"] and names[1] == ["shots/sub/c.tiff"]
    assert sorted(names[2]) == ["shots/a.png", "shots/b.JPG", "shots/sub/c.tiff"], "each once"
    draw(tmp_path / "odd[1].png")
    assert find_inputs("odd[1].png")[0] == [(tmp_path / "odd[1].png").relative_to(tmp_path)]
    (tmp_path / "empty").mkdir()
    for given, sentence in (("none*.jpg", r"matches none\*\.jpg"), ("empty", "folder empty has no picture"),
                            ([], "at least"), ("", "not ''"), ([None], "not None"), ([b"a.png"], "not b'a.png'")):
        with pytest.raises(UsageError, match=sentence):
            detect(predictor, given, "out")
    assert not (tmp_path / "out").exists()


def test_what_is_broken_is_skipped_and_told(run, weights, tmp_path) -> None:  # noqa: F811
    for i in range(4):
        draw(tmp_path / f"in/{i}.png", i)
    whole = (tmp_path / "in/1.png").read_bytes()
    (tmp_path / "in/1.png").write_bytes(whole[:len(whole) // 2])
    os.mkfifo(tmp_path / "in/pipe.png")
    status, out, err = run("predict", weights, tmp_path / "in", tmp_path / "gone\x1bc.png", "--output",
                           tmp_path / "out", "--device", "cpu")
    assert status == 1 and "objects in 3 pictures" in out
    assert "\x1bc" not in err and r"gone\x1bc.png" in err
    assert err.splitlines()[-1].startswith("Error: 3 files could not be read: ")
    assert "1.png is damaged" in err and "pipe.png is a pipe" in err and r"There is no image file" in err
    table = json.loads((tmp_path / "out/detections.json").read_text())
    assert [os.path.basename(entry["file"]) for entry in table] == ["0.png", "2.png", "3.png"]
    assert len([p for p in written(tmp_path / "out") if p.endswith(".detections.png")]) == 3
    status, out, err = run("predict", weights, tmp_path / "in/1.png", "--output", tmp_path / "none", "--device", "cpu")
    assert status == 1 and "1.png is damaged" in err and written(tmp_path / "none") == set()


def test_an_interruption_loses_nothing(run, weights, tmp_path, monkeypatch) -> None:  # noqa: F811
    for i in range(4):
        draw(tmp_path / f"in/{i}.png", i)
    look, seen = Predictor.__call__, []

    def interrupted(self, picture):
        table = tmp_path / "out/detections.json"
        seen.append(len(json.loads(table.read_text())) if table.exists() else 0)  # whole after each picture
        if len(seen) == 3:
            raise KeyboardInterrupt
        return look(self, picture)

    monkeypatch.setattr(Predictor, "__call__", interrupted)
    status, out, err = run("predict", weights, tmp_path / "in", "--output", tmp_path / "out", "--device", "cpu")
    assert status == 130 and "Stopped" in err and "Traceback" not in err and seen == [0, 1, 2]
    assert len(json.loads((tmp_path / "out/detections.json").read_text())) == 2
    assert written(tmp_path / "out") == {"detections.json", *(f"{i}.detections.png" for i in range(2))}


def test_a_full_disk_leaves_a_whole_table(predictor, tmp_path, monkeypatch) -> None:
    files = [draw(tmp_path / f"{i}.png", i) for i in range(3)]
    put = module._Table._put

    def full(self, data):
        if b"2.png" in data:
            put(self, data[:30])
            raise OSError(28, "No space left on device")
        put(self, data)

    monkeypatch.setattr(module._Table, "_put", full)
    with pytest.raises(DetcoreError, match=r"detections\.json cannot be written: No space left"):
        detect(predictor, files, tmp_path / "out", paint=False)
    assert len(json.loads((tmp_path / "out/detections.json").read_text())) == 2


def test_too_little_memory_for_one_picture_ends_no_run(predictor, tmp_path, monkeypatch) -> None:
    files = [draw(tmp_path / f"{i}.png", i) for i in range(2)]
    look = Predictor.__call__

    def full(self, picture):
        if picture == files[0]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return look(self, picture)

    monkeypatch.setattr(Predictor, "__call__", full)
    done = detect(predictor, files, tmp_path / "out")
    assert done.pictures == 1 and len(done.failed) == 1 and "0.png needs more memory than there is" in done.failed[0]


def test_a_video_gives_a_video_and_a_line_for_each_frame(predictor, tmp_path) -> None:
    video = film(tmp_path / "ride.mp4")
    done = detect(predictor, [video, draw(tmp_path / "x.png")], tmp_path / "out")
    assert (done.frames, done.pictures, done.failed) == (6, 1, [])
    assert written(tmp_path / "out") == {"ride.detections.mp4", "ride.detections.jsonl", "x.detections.png",
                                         "detections.json"}
    lines = [json.loads(line) for line in (tmp_path / "out/ride.detections.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(6))
    assert [line["time_s"] for line in lines] == pytest.approx([i / 12.5 for i in range(6)], abs=1e-3)
    frames = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    for line in lines:
        expected = predictor(frames.read()[1][..., ::-1])
        assert [d["score"] for d in line["detections"]] == pytest.approx(expected.scores.tolist())
        assert [d["category_id"] for d in line["detections"]] == [IDS[c] for c in expected.labels.tolist()]
    painted = cv2.VideoCapture(str(tmp_path / "out/ride.detections.mp4"))
    assert painted.get(cv2.CAP_PROP_FPS) == 12.5 and painted.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    there, frame = painted.read()
    assert there and frame.shape == (48, 64, 3) and frame.any(), "of the same size, with boxes on black"
    again = detect(predictor, video, tmp_path / "out", paint=False)
    assert again.folder.name == "out2" and written(again.folder) == {"ride.detections.jsonl"}


def test_broken_videos(predictor, tmp_path, capfd) -> None:
    whole = film(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text.mov").write_text("no film")
    (tmp_path / "empty.avi").touch()
    done = detect(predictor, [tmp_path / n for n in ("half.mp4", "text.mov", "empty.avi", "none.mkv", "whole.mp4")],
                  tmp_path / "out")
    assert done.frames == 6 and [f.split(str(tmp_path))[1][1:9] for f in done.failed] == [
        "half.mp4", "text.mov", "empty.av", "none.mkv"]
    assert written(tmp_path / "out") == {"whole.detections.mp4", "whole.detections.jsonl"}
    assert "WARN" not in capfd.readouterr().err
    with pytest.raises(DataError, match=r"text\.mov cannot be read"):
        detect(predictor, tmp_path / "text.mov", tmp_path / "none")


def test_an_interrupted_video_can_be_watched(predictor, tmp_path, monkeypatch) -> None:
    video, look, seen = film(tmp_path / "ride.mp4"), Predictor.__call__, []

    def interrupted(self, picture):
        seen.append(picture)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return look(self, picture)

    monkeypatch.setattr(Predictor, "__call__", interrupted)
    done = detect(predictor, video, tmp_path / "out")
    assert done.interrupted and done.frames == 3
    assert len((tmp_path / "out/ride.detections.jsonl").read_text().splitlines()) == 3
    assert cv2.VideoCapture(str(tmp_path / "out/ride.detections.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_too_many_pixels_in_a_video(predictor, tmp_path, monkeypatch) -> None:
    video = film(tmp_path / "ride.mp4")
    monkeypatch.setenv("DETCORE_MAX_PIXELS", "3071")
    with pytest.raises(DataError, match=r"ride\.mp4 has 64 x 48 pixels"):
        detect(predictor, video, tmp_path / "out")


def test_a_folder_that_cannot_be_written_to(predictor, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DetcoreError, match="cannot be written to"):
        detect(predictor, draw(tmp_path / "x.png"), tmp_path / "file")
    shutil.rmtree(tmp_path / "in", ignore_errors=True)
    files = [draw(tmp_path / "in/a/x.png"), draw(tmp_path / "in/y.png")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_text("where a folder has to be")
    with pytest.raises(DetcoreError, match="cannot be written"):
        detect(predictor, files, tmp_path / "out")
