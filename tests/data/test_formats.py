"""One's own data in the forms of VOC, YOLO, Open Images and WIDER FACE: odd but sound files are read, broken ones are
refused in a sentence, and what is dropped is counted."""
from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from detcore.data import cityscapes
from detcore.data.coco import fingerprint, trace
from detcore.data.dataset import DEFAULT_OPTIONS, Dataset, ReadOptions
from detcore.data.images import picture_sizes
from detcore.data.layouts import LAYOUTS, find_layout
from detcore.data.openimages import read_blocks, read_classes, read_hierarchy, read_table
from detcore.data.panoptic import PanopticMaps, PanopticSegments
from detcore.data.proposals import ProposalFile, save_proposals
from detcore.data.voc import VocDataset
from detcore.data.widerface import read_cells, read_faces
from detcore.engine.evaluate import evaluate
from detcore.engine.train import train
from detcore.errors import DataError, DetcoreError, UsageError
from detcore.ops.masks import rasterise
from detcore.pocket import pocket_zoo
from detcore.structures import Polygons

H, W = 48, 64
CUP, PLATE = ("cup", (5, 8, 20, 40)), ("plate", (25, 8, 40, 40))  # corners as VOC has them


def picture(path: Path, size: tuple[int, int] = (H, W), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, **options)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def xml(*objects: tuple, size: str = f"<width>{W}</width><height>{H}</height>", filename: str = "",
        difficult: str = "0") -> str:
    things = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>" + "".join(
            f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
        + "</bndbox></object>" for name, box in objects)
    return f"<annotation><filename>{filename}</filename><size>{size}</size>{things}</annotation>"


def opened(root: Path, split: str = "train", layout: str | None = None, **options) -> tuple[Dataset, list[str]]:
    """A data set and the warnings that it gives."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        form = LAYOUTS[layout] if layout else find_layout(root)
        data = form.open(root, split, ReadOptions(**options))
        for i in range(len(data)):
            data.sample(i)
    return data, [str(w.message) for w in told if w.category is UserWarning]


# PASCAL VOC

@pytest.fixture
def voc(tmp_path) -> Path:
    """Two pictures of classes of one's own."""
    for name in "a", "b":
        picture(tmp_path / f"VOC2007/JPEGImages/{name}.jpg")
        write(tmp_path / f"VOC2007/Annotations/{name}.xml", xml(CUP, PLATE))
    write(tmp_path / "VOC2007/ImageSets/Main/trainval.txt", "a\nb\n")
    write(tmp_path / "VOC2007/ImageSets/Main/test.txt", "a\n")
    return tmp_path


def test_voc_classes_are_those_of_the_xml_files(voc):
    data, told = opened(voc)
    assert data.class_names == ("cup", "plate") and data.labels.tolist() == [0, 1, 0, 1] and not told
    assert data.objects()["boxes"][:2].tolist() == [[4, 7, 19, 39], [24, 7, 39, 39]]
    # One name of VOC's own twenty among them changes nothing, and both splits have the same classes.
    write(voc / "VOC2007/Annotations/b.xml", xml(CUP, ("car", (1, 1, 9, 9))))
    assert opened(voc)[0].class_names == opened(voc, "val")[0].class_names == ("car", "cup", "plate")
    write(voc / "VOC2007/Annotations/a.xml", xml(("car", (1, 1, 9, 9))))
    write(voc / "VOC2007/Annotations/b.xml", xml(("bus", (1, 1, 9, 9))))
    assert len(opened(voc)[0].class_names) == 20  # VOC's own
    with pytest.raises(UsageError, match="has no class 'plane'; it has aeroplane"):
        VocDataset(voc, "train", ReadOptions(classes=("plane",)))


def test_voc_names_that_no_list_of_classes_has_are_counted(voc):
    write(voc / "VOC2007/ImageSets/Main/cup_trainval.txt", "a 1\nb 1\n")
    data, (told,) = opened(voc)
    assert data.class_names == ("cup",) and len(data.labels) == 2
    assert "2 objects are left out" in told and "'plate' (2)" in told and "a.xml" in told
    assert opened(voc, classes=("cup",))[0].class_names == ("cup",)


@pytest.mark.parametrize("split, names", [("test", ["c"]), ("val", ["c"]), ("train", ["a", "b"])])
def test_voc_splits(voc, split, names):
    picture(voc / "VOC2007/JPEGImages/c.jpg")
    write(voc / "VOC2007/Annotations/c.xml", xml(CUP))
    write(voc / "VOC2007/ImageSets/Main/test.txt", "c\n")
    assert [Path(file).stem for file in opened(voc, split)[0].files] == names


def test_voc_with_lists_of_ones_own(voc):
    lists = voc / "VOC2007/ImageSets/Main"
    (lists / "test.txt").rename(lists / "val.txt")
    with pytest.raises(DataError, match="val.txt is part of trainval.txt"):
        opened(voc, "val")
    (lists / "trainval.txt").rename(lists / "train.txt")
    assert (len(opened(voc)[0]), len(opened(voc, "val")[0])) == (2, 1)
    for split, sentence in ("test", "There is no list of pictures .*test.txt"), ("odd", "no split 'odd'"):
        with pytest.raises(DetcoreError, match=sentence):
            opened(voc, split)


def test_voc_without_years_and_without_lists(voc):
    for folder in "JPEGImages", "Annotations", "ImageSets":
        shutil.move(voc / "VOC2007" / folder, voc / folder)  # as CVAT writes it
    (voc / "VOC2007").rmdir()
    data, told = opened(voc)
    assert (data.layout, len(data), data.files) == ("voc-xml", 2, ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]) and not told
    assert len(opened(voc, "val")[0]) == 1
    before = data.objects()["boxes"]
    shutil.rmtree(voc / "ImageSets")
    data, told = opened(voc)
    assert (data.objects()["boxes"] == before).all() and data.class_names == ("cup", "plate") and not told
    with pytest.raises(DataError, match="no XML files of the split val: there are neither lists nor folders of splits"):
        opened(voc, "val")


@pytest.mark.parametrize("annotations, pictures", [
    ("{}/Annotations", "{}/JPEGImages"), ("Annotations/{}", "images/{}"), ("{}", "{}"), ("annotations/{}", "images/{}"),
    ("sub/{}/labels", "sub/{}/images")])
@pytest.mark.parametrize("val", ("val", "valid"))
def test_xml_files_in_folders_of_splits(tmp_path, annotations, pictures, val):
    for split, names in ("train", ("a", "b")), (val, ("a",)):
        for name in names:
            write(tmp_path / annotations.format(split) / f"{name}.xml", xml(CUP if split == "train" else PLATE))
            picture(tmp_path / pictures.format(split) / f"{name}.png")
    if not annotations.startswith("sub"):
        assert find_layout(tmp_path).name == "voc-xml"
    data, told = opened(tmp_path, layout="voc-xml")
    other, _ = opened(tmp_path, "val", layout="voc-xml")
    assert data.class_names == other.class_names == ("cup", "plate") and not told
    assert data.labels.tolist() == [0, 0] and other.labels.tolist() == [1]
    assert data.files == [f"{pictures.format('train')}/{name}.png" for name in "ab"]
    assert other.files == [f"{pictures.format(val)}/a.png"]


def test_what_an_xml_tree_leaves_out_is_counted(tmp_path):
    for name in "ab":
        write(tmp_path / f"Annotations/{name}.xml", xml(CUP))
        picture(tmp_path / f"images/{name}.jpg")
        picture(tmp_path / f"SegmentationClass/{name}.png")
    picture(tmp_path / "images/c.jpg")
    write(tmp_path / "annotations.xml", "<annotations/>")
    write(tmp_path / "project.xml", "<project/>")
    data, told = opened(tmp_path)
    assert data.files == ["images/a.jpg", "images/b.jpg"]
    assert any("1 pictures have no XML file and are left out (the first: images/c.jpg)" in text for text in told)
    assert any("2 XML files are no annotations" in text and "project.xml" in text for text in told)
    write(tmp_path / "copy/a.xml", xml(CUP))
    with pytest.raises(DataError, match="a.jpg has two XML files"):
        opened(tmp_path)


def test_a_model_trains_on_an_xml_tree(tmp_path):
    for name in "ab":
        write(tmp_path / f"data/train/{name}.xml", xml(CUP, PLATE))
        picture(tmp_path / f"data/train/{name}.jpg")
        write(tmp_path / f"data/valid/{name}.xml", xml(CUP))
        picture(tmp_path / f"data/valid/{name}.jpg")
    name, root = "retinanet_r50_fpn_1x_coco", tmp_path / "data"
    run = train(name, root, output=tmp_path / "run", device="cpu", steps=2, batch_size=2, workers=0, progress=False)
    assert "bbox_AP" in run.record.metrics and run.record.data.images == 2
    before = run.record.data.fingerprint
    assert fingerprint(root / "train") == before
    write(root / "train/a.xml", xml(CUP))
    assert fingerprint(root / "train") != before


@pytest.mark.parametrize("name, file, told", [
    ("shelf 01", "shelf 01.jpg", ""), ("a", "a.png", "a.png"), ("a", "a.JPG", ""), ("a", "b c.png", "C:\\x\\b c.png"),
    ("a.b", "a.b.jpeg", "")])
def test_pictures_of_any_name(voc, name, file, told):
    shutil.rmtree(voc / "VOC2007/JPEGImages")
    picture(voc / f"VOC2007/JPEGImages/{file}", format="PNG" if file.endswith("png") else "JPEG")
    write(voc / f"VOC2007/Annotations/{name}.xml", xml(CUP, filename=told))
    write(voc / "VOC2007/ImageSets/Main/trainval.txt", f"{name}\n")
    data, warned = opened(voc)
    assert data.files == [f"VOC2007/JPEGImages/{file}"] and not warned


@pytest.mark.parametrize("size", (f"<width>{W}.0</width><height>{H}</height>", "<width>0</width><height>0</height>"))
@pytest.mark.parametrize("difficult, flag", [("False", False), ("0", False), ("0.0", False), ("True", True),
                                             ("1", True)])
def test_numbers_of_other_tools(voc, size, difficult, flag):
    write(voc / "VOC2007/Annotations/a.xml", xml(CUP, size=size, difficult=difficult))
    data, told = opened(voc)
    assert data.sizes.tolist() == [[H, W]] * 2 and data.objects()["flags"][0] == flag and not told


@pytest.mark.parametrize("corner", ("inf", "-inf", "nan", "1e999", "9" * 400))
def test_boxes_that_are_not_finite_are_dropped_and_counted(voc, corner):
    write(voc / "VOC2007/Annotations/a.xml", xml(("cup", (corner, 8, 20, 40)), PLATE))
    data, (told,) = opened(voc)
    assert data.labels.tolist() == [1, 0, 1] and "dropped 1 of 4 boxes" in told and "a.jpg" in told


@pytest.mark.parametrize("file, text, sentence", [
    ("Annotations/a.xml", xml(CUP, size="<width>1e10</width><height>9</height>"), "a.xml is broken: the width 1e10"),
    ("Annotations/a.xml", xml(CUP, size="<width>-3</width><height>9</height>"), "the width -3"),
    ("Annotations/a.xml", xml(("cup", ("x", 8, 20, 40))), "could not convert"),
    ("Annotations/a.xml", xml(("", (1, 8, 20, 40))), "object has no name"),
    ("Annotations/a.xml", '<?xml version="1.0" encoding="odd"?><annotation/>', "a.xml is broken"),
    ("ImageSets/Main/trainval.txt", "a\ncaf\xe9\n".encode("latin-1"), "trainval.txt is not UTF-8 text .line 2"),
    ("ImageSets/Main/trainval.txt", "../../b\n", "trainval.txt names the file '../../b', which is not inside"),
    ("ImageSets/Main/trainval.txt", "/etc/passwd\n", "names the file '/etc/passwd'"),
    ("ImageSets/Main/trainval.txt", "n" * 5000, "names the file 'nnn"),
    ("ImageSets/Main/trainval.txt", "a\0b", "names the file")])
def test_broken_files_of_voc(voc, file, text, sentence):
    write(voc / "VOC2007" / file, text)
    with pytest.raises(DataError, match=sentence) as error:
        opened(voc)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_list_may_have_a_mark_and_names_twice(voc):
    write(voc / "VOC2007/ImageSets/Main/trainval.txt", "a\nb\na\nb\na\n")
    data, (told,) = opened(voc)
    assert len(data) == 2 and len(data.labels) == 4 and "3 of 5 lines name a picture again" in told
    for encoding in "utf-8-sig", "utf-16":
        write(voc / "VOC2007/ImageSets/Main/trainval.txt", "a\r\nb\r\n".encode(encoding))
        assert len(opened(voc)[0]) == 2


# YOLO

def yolo(root: Path, settings: str = "train: images/train\nval: images/val\nnames: [cup, plate]\n",
         form: str = "images/{}", *, suffix: str = "png") -> Path:
    """Pictures a, b and c (without a text file) to train on, and a to evaluate on."""
    write(root / "data.yaml", settings)
    ring = "1 0.25 0.25 0.75 0.25 0.75 0.5\n"
    for split, names in ("train", "abc"), ("val", "a"):
        for name in names:
            place = root / form.format(split) / f"{name}.{suffix}"
            picture(place)
            if name != "c":
                relative = place.relative_to(root)
                write(root / str(relative).replace("images", "labels").replace(f".{suffix}", ".txt"),
                      "0 0.5 0.5 0.25 0.5\n\n" + ring * (name == "a"))
    return root


@pytest.mark.parametrize("settings, form", [
    ("train: images/train\nval: images/val\nnames: [cup, plate]\n", "images/{}"),
    ("train: ./images/train/\nval: ./images/val\nnc: 2\nnames:\n  1: plate\n  0: cup\n", "images/{}"),
    ("train: ../train/images\nval: ../val/images\nnc: 2\nnames: ['cup', 'plate']\n", "{}/images"),
    ("path: ../somewhere\ntrain: train/images\nval: [val/images]\nnames: {0: cup, 1: plate}\n", "{}/images"),
    ("path: sub\ntrain: images/train\nval: images/val\nnames: [cup, plate]\n", "sub/images/{}"),
    ("train: /content/set/train/images\nval: C:\\set\\val\\images\nnames: [cup, plate]\n", "{}/images"),
    ("path: ''\ntrain: train\nval: val\nnames: [cup, plate]\n", "{}/images"),
    ("train: [images/train]\nvalid: images/val\ntest:\nnames: [cup, plate]\n", "images/{}"),
])
def test_yolo_data_are_read_where_they_are(tmp_path, settings, form):
    root = yolo(tmp_path, settings, form)
    assert find_layout(root).name == "yolo"
    data, told = opened(root)
    assert data.class_names == ("cup", "plate")
    assert [Path(file).name for file in data.files] == ["a.png", "b.png", "c.png"]
    objects = data.objects()
    assert not told and objects["image"].tolist() == [1, 1, 2] and objects["labels"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(objects["boxes"], [[24, 12, 40, 36], [16, 12, 48, 24], [24, 12, 40, 36]], atol=1e-4)
    assert len(opened(root, "val")[0]) == 1
    with pytest.raises(DataError, match="data.yaml names no pictures of the split test"):
        opened(root, "test")


def test_what_only_looks_like_a_form(tmp_path):
    root = yolo(tmp_path / "y")
    (root / "data.yaml").rename(root / "animals.yaml")
    assert find_layout(root).name == "yolo" and len(opened(root)[0]) == 3
    write(root / "animals.yaml", "version: 3\n")
    assert find_layout(root).name == "coco"
    write(tmp_path / "x/annotations.xml", "<annotations><image/></annotations>")
    assert find_layout(tmp_path / "x").name == "coco"
    write(tmp_path / "x/a.xml", xml(CUP))  # beside its picture
    picture(tmp_path / "x/a.jpg")
    assert find_layout(tmp_path / "x").name == "voc-xml"
    assert opened(tmp_path / "x")[0].files == ["a.jpg"]


def test_yolo_lists_of_pictures(tmp_path):
    root = yolo(tmp_path, "train: train.txt\nval: lists/val.txt\nnames: [cup, plate]\n")
    write(root / "train.txt", "./images/train/a.png\n/elsewhere/images/train/b.png\nimages/train/a.png\n\n")
    write(root / "lists/val.txt", "images/val/a.png")
    data, (told,) = opened(root)
    assert data.files == ["images/train/a.png", "images/train/b.png"] and "1 images are named again" in told
    assert len(opened(root, "val")[0].labels) == 2
    picture(tmp_path.parent / "out.png")
    for line in "../out.png", str(tmp_path.parent / "out.png"), "images/none.png", "n" * 5000, "a\0b", "..":
        write(root / "train.txt", line)
        with pytest.raises(DataError, match="Line 1 of .*train.txt names the picture|no pictures|There is no"):
            opened(root)


def test_yolo_polygons_are_masks(tmp_path):
    root = yolo(tmp_path)
    text = root / "labels/train/b.txt"
    write(text, "1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n")
    write(root / "labels/train/a.txt", "1 0.25 0.25 0.75 0.25 0.75 0.5\n")
    data, told = opened(root, masks="polygon")
    masks = data.sample(1).masks
    assert isinstance(masks, Polygons) and not told
    np.testing.assert_allclose(masks.rings[0][0], [[6.4, 4.8], [57.6, 4.8], [57.6, 43.2], [6.4, 43.2]], atol=1e-4)
    bitmap = opened(root, masks="bitmap")[0].sample(1).masks
    assert (bitmap == masks.to_bitmap()).all() and 1900 < bitmap.sum() < 2000
    write(text, "0 0.5 0.5 0.25 0.5\n")
    data, (told,) = opened(root, masks="bitmap")
    assert "1 of 2 objects have a box but no polygon" in told and len(data.sample(1).ignored) == 1
    write(root / "labels/train/a.txt", "")
    with pytest.raises(UsageError, match="have boxes alone, but this model needs masks"):
        opened(root, masks="bitmap")
    assert len(opened(root)[0].labels) == 1


@pytest.mark.parametrize("line, sentence", [
    ("0 0.5 0.5 0.2", "Line 1 of .*a.txt has 4 numbers"), ("0 0.5 0.5 0.2 0.2 0.9", "has 6 numbers"),
    ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "has 8 numbers: a box has 5, a polygon 7"), ("x 0.5 0.5 0.2 0.2", "is broken"),
    ("2 0.5 0.5 0.2 0.2", "has the class 2, but there are names of the classes 0 to 1"),
    ("0.5 0 0 1 1", "the class 0.5"),
    ("-1 0.5 0.5 0.2 0.2", "the class -1"), ("nan 0.5 0.5 0.2 0.2", "the class nan"), ("cup", "is broken"),
    ("0", "has 1 numbers"), (b"0 0.5 0.5 0.2 0.2 # caf\xe9", "a.txt is not UTF-8 text")])
def test_broken_lines_of_yolo(tmp_path, line, sentence):
    root = yolo(tmp_path)
    write(root / "labels/train/a.txt", line)
    with pytest.raises(DataError, match=sentence):
        opened(root)


@pytest.mark.parametrize("line", (
    "0 nan 0.5 0.2 0.2", "0 0.5 0.5 0 0.2", "0 0.5 0.5 -0.2 0.2", "0 300 200 50 40", "0 0.1 0.1 inf 0.1 0.2 0.2",
    "0 0.1 0.1 0.2 0.1 0.3 0.1", "0 1e300 1e300 1e300 1e300"))
def test_boxes_of_yolo_that_are_none_are_counted(tmp_path, line):
    root = yolo(tmp_path)
    write(root / "labels/train/b.txt", line)
    data, (told,) = opened(root, masks=None)
    assert len(data.labels) == 2 and "dropped 1 of 3 boxes" in told and "b.png" in told


@pytest.mark.parametrize("settings, sentence", [
    ("train: images/train\nnames: [cup]\nkpt_shape: [17, 3]\n", "is of key points"),
    ("task: obb\ntrain: images/train\nnames: [cup]\n", "of the task obb"),
    ("train: images/none\nnames: [cup, plate]\n", "train are in images/none: there is no such folder"),
    ("train: ../../etc\nnames: [cup, plate]\n", "there is no such folder"),
    ("names: [cup, plate]\nval: images/val\n", "names no pictures of the split train .it has val"),
    ("train: images/train\n", "has no names of classes"),
    ("train: images/train\nnc: 3\nnames: [cup, plate]\n", "nc is 3"),
    ("train: images/train\nnames: [cup, cup]\n", "has the name 'cup' twice"),
    ("train: images/train\nnames: {0: cup, 2: plate}\n", "not numbered from 0 to 1"),
    ("train: images/train\nnames: {a: cup}\n", "data.yaml is broken"), ("train: [\n", "data.yaml is broken"),
    ("- a\n", "is no list of settings"), ("", "is no list of settings"),
    ("train: {a: b}\nnames: [cup, plate]\n", "train is"),
    ("train: images/train\nnames: cup\n", "not a list of names"), ("[" * 5000, "data.yaml is broken"),
    ("x: &x [a]\n" + "".join(f"x{i}: &x{i} [*x{i - 1 if i else ''}, *x{i - 1 if i else ''}]\n" for i in range(40)),
     "has no names"), ("train: images/train\nnames: [[cup]]\n", "not a list of names")])
def test_broken_settings_of_yolo(tmp_path, settings, sentence):
    root = yolo(tmp_path, settings)
    with pytest.raises(DataError, match=sentence) as error:
        opened(root)
    assert "\n" not in str(error.value)


def test_yolo_names_are_text(tmp_path):
    root = yolo(tmp_path, "train: images/train\nval: images/val\nnames: [no, 1]\n")
    assert opened(root)[0].class_names == ("no", "1")
    write(root / "data.yaml", "train: images/train\nval: images/val\nnc: 2\n")
    assert opened(root)[0].class_names == ("class 0", "class 1")
    data, told = opened(root, classes=("class 1",))
    assert data.labels.tolist() == [0] and not told
    with pytest.raises(UsageError, match="has no class 'x'"):
        opened(root, classes=("x",))
    for option in dict(panoptic=True), dict(proposals="x"):
        with pytest.raises(UsageError, match="but this model needs"):
            opened(root, **option)


def test_yolo_text_files_and_pictures_without_each_other(tmp_path):
    root = yolo(tmp_path)
    write(root / "labels/train/z.txt", "0 0.5 0.5 0.25 0.5\n")
    data, (told,) = opened(root)
    assert "1 text files of objects have no picture and are left out (the first: labels/train/z.txt)" in told
    shutil.rmtree(root / "labels")
    data, (told,) = opened(root)
    assert "none of the 3 pictures has a text file of objects" in told and len(data) == 3
    write(root / "images/train/b.txt", "1 0.5 0.5 0.25 0.5\n")  # beside its picture
    assert opened(root)[0].labels.tolist() == [1]


def test_changed_pictures_of_yolo_are_looked_at_again(tmp_path):
    root = yolo(tmp_path)
    assert opened(root)[0].sizes[0].tolist() == [H, W] and list(root.glob("*.sizes.npz"))
    picture(root / "images/train/a.png", (30, 80))
    assert opened(root)[0].sizes[0].tolist() == [30, 80]


@pytest.mark.parametrize("name", ("mask-rcnn_r50_fpn_1x_coco", "retinanet_r50_fpn_1x_coco"))
def test_models_train_on_yolo_data(tmp_path, name):
    root = yolo(tmp_path / "data")
    write(root / "labels/train/b.txt", "0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    run = train(name, root, output=tmp_path / "run", device="cpu", steps=2, batch_size=2, workers=0, progress=False,
                log_interval=1, validate=False)
    assert np.isfinite(run.log[-1]["loss"])
    if name.startswith("retinanet"):
        found = evaluate(name, root, weights=run.checkpoint, device="cpu", workers=0, progress=False)
        assert found.record.data.images == 1 and "bbox_AP" in found.record.metrics


# Open Images

CODES = {"/m/0": 0, "/m/1": 1}
TABLE = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,/m/0,0.1,0.5,0.2,0.6,0\n\nb,/m/1,0.1,0.5,0.2,0.6,1\n"


@pytest.mark.parametrize("text", ("/m/0,cup\n/m/1,plate\n", "LabelName,DisplayName\n/m/0,cup\n\n/m/1,plate\n",
                                  "\ufeffmid,name\r\n/m/0,cup\r\n/m/1,plate\r\n"))
def test_a_line_of_headings_is_no_class(tmp_path, text):
    assert read_classes(write(tmp_path / "c.csv", text)) == (CODES, ("cup", "plate"))


@pytest.mark.parametrize("text, sentence", [
    (b"/m/x,caf\xe9\n", "not UTF-8 text"), ("/m/0," + "a" * 140_000, "larger than field limit"),
    ("/m/0,cup\n/m/0,plate\n", "the class /m/0 is there twice"), ("/m/0\n", "too few columns")])
def test_broken_lists_of_classes(tmp_path, text, sentence):
    with pytest.raises(DataError, match=f"The list of classes .*c.csv is broken: .*{sentence}"):
        read_classes(write(tmp_path / "c.csv", text))


def test_the_challenges_classes_are_numbered(tmp_path):
    assert read_classes(write(tmp_path / "c.csv", "/m/1,plate,2\n/m/0,cup,1\n"), numbered=True)[1] == ("cup", "plate")
    with pytest.raises(DataError, match="does not number the classes from 1 on"):
        read_classes(write(tmp_path / "c.csv", "/m/1,plate,3\n/m/0,cup,1\n"), numbered=True)


@pytest.mark.parametrize("old, new, sentence", [
    ("0.1,0.5,0.2,0.6,1", "0.1,0.5,0.2,0.6,300", "Line 3 .*'300' for IsGroupOf"), ("/m/1", "/m/2", "the class /m/2"),
    ("b,", "../b,", "names the file '../b'"), ("b,/m", "b" * 140_000 + ",/m", "larger than field limit"),
    ("0.6,1", "0.6", "is broken"), ("b,", "\udcff,", "not UTF-8 text")])
def test_broken_tables(tmp_path, old, new, sentence):
    rows = read_table(write(tmp_path / "t.csv", TABLE), CODES)
    assert rows.files == ["a.jpg", "b.jpg"] and list(rows.flags) == [0, 1]
    with pytest.raises(DataError, match=sentence):
        read_table(write(tmp_path / "t.csv", TABLE.replace(old, new).encode(errors="surrogateescape")), CODES)


def test_broken_files_of_the_challenge(tmp_path):
    text = "x/a.jpg\n# 0\n1\n1 0.1 0.1 0.2 0.2 0\n"
    more = text.replace("a.jpg", "b.jpg")
    rows = read_blocks(write(tmp_path / "c.txt", f"{text}\n\n{more}"), CODES)
    assert rows.files == ["a.jpg", "b.jpg"]  # an empty line ends nothing
    with pytest.warns(UserWarning, match="1 images are named again .* 1 objects are left out"):
        assert read_blocks(write(tmp_path / "c.txt", text + text), CODES).files == ["a.jpg"]
    for old, new in ("2 0\n", "2 300\n"), ("\n1\n", "\n-1\n"), ("\n1\n", f"\n{'9' * 5000}\n"), ("x/a", "../a"):
        with pytest.raises(DataError, match="c.txt .*"):
            read_blocks(write(tmp_path / "c.txt", text.replace(old, new)), CODES)


@pytest.mark.parametrize("text", ('{"Subcategory":[' * 20_000 + "]}" * 20_000, '{"Subcategory": [1]}',
                                  '{"Subcategory": [{"LabelName": []}]}', '{"Subcategory": 1}', "[]", "x", "\udcff"))
def test_broken_hierarchies(tmp_path, text):
    with pytest.raises(DataError, match="The hierarchy of classes .* is broken"):
        read_hierarchy(write(tmp_path / "h.json", text.encode(errors="surrogateescape")), CODES)


def test_the_test_images_of_open_images(tmp_path):
    root = pocket_zoo.draw(tmp_path / "x", images=2, val=2, workers=1, progress=False, layout="openimages")
    with pytest.raises(DetcoreError, match="challenge 2019 has no split 'test' with boxes"):
        LAYOUTS["openimages-challenge"].open(root, "test", DEFAULT_OPTIONS)
    with pytest.raises(DetcoreError, match="OpenImages/test"):
        opened(root, "test", "openimages")
    shutil.move(root / "OpenImages/validation", root / "OpenImages/test")
    for path in (root / "annotations").glob("validation-*"):
        path.rename(path.with_name(path.name.replace("validation", "test")))
    data, told = opened(root, "test", "openimages")
    assert len(data) and not told and len(data.verified()[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", [
    lambda sizes: sizes[:1], lambda sizes: -sizes, lambda sizes: sizes * np.nan, lambda sizes: sizes.astype(object),
    lambda sizes: np.zeros((10**6, 2), np.int32)])
def test_a_broken_file_of_sizes_is_not_used(tmp_path, change):
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    kept = tmp_path / "kept.npz"
    sizes = picture_sizes(tmp_path, ["a.png", "b.png"], kept)
    content = dict(np.load(kept))
    np.savez(kept, sizes=change(content["sizes"]), digest=content["digest"])
    assert (picture_sizes(tmp_path, ["a.png", "b.png"], kept) == sizes).all() and sizes.tolist() == [[H, W]] * 2


# WIDER FACE

def test_wider_face_text(tmp_path):
    path, line = tmp_path / "w.txt", "3 4 10 12 0 0 0 0 0 0\n"
    rows = read_faces(write(path, f"0--A/a.jpg\n1\n{line}\n0--A/b.jpg\n0\n{'0 ' * 10}\n0--A/c.jpg\n2\n{line}{line}"))
    assert rows.files == [f"0--A/{name}.jpg" for name in "abc"] and list(rows.image) == [0, 2, 2]
    huge = read_faces(write(path, f"0--A/a.jpg\n1\n{'9' * 400}{line[1:]}"))
    assert huge.boxes[0] == float("inf")
    with pytest.warns(UserWarning, match="1 images are named again .* 1 objects are left out"):
        assert len(read_faces(write(path, f"0--A/a.jpg\n1\n{line}" * 2)).files) == 1
    for text in (f"0--A/a.jpg\n-1\n{line}", f"0--A/a.jpg\n1\n{line[:8]}\n", f"../a.jpg\n1\n{line}", "a.jpg\n",
                 f"a.jpg\n{'9' * 5000}\n{line}", "caf\udce9.jpg\n", f"a.jpg\n2\n{line}"):
        with pytest.raises(DataError, match="w.txt"):
            read_faces(write(path, text.encode(errors="surrogateescape")))


def test_a_damaged_mat_file_is_read_in_another_process(tmp_path, monkeypatch):
    root = pocket_zoo.draw(tmp_path / "x", images=2, val=2, workers=1, progress=False, layout="wider_face")
    path = next(root.rglob("wider_hard_val.mat"))
    whole = path.read_bytes()
    good = read_cells(path, "gt_list")
    assert good and all(cell.dtype == float for cell in good.values())
    for at in range(128, len(whole), len(whole) // 4):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 32]) + whole[at + 1:])
        try:
            read_cells(path, "gt_list")
        except DataError as error:
            assert str(path) in str(error)
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: run(
        [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], **options))
    with pytest.raises(DataError, match="cannot be read: SciPy crashes on it"):
        read_cells(path, "gt_list")


@pytest.mark.parametrize("layout", ("wider_face", "cityscapes"))
def test_splits_without_annotations(tmp_path, layout):
    root = pocket_zoo.draw(tmp_path / "x", images=1, val=1, workers=1, progress=False, layout=layout)
    with pytest.raises(UsageError, match="has no split 'test' with"):
        LAYOUTS[layout].open(root, "test", DEFAULT_OPTIONS)


# Maps

@pytest.mark.parametrize("values, sentence", [
    (np.zeros((9000, 9000), np.uint8), "81,000,000|40,000,000 are read at most"),
    ((24000 + np.arange(2400) % 1200).reshape(40, 60).astype(np.uint16), "has 1200 objects, more than 1,000"),
    (np.zeros((40, 60, 3), np.uint8), "cannot be read")])
def test_maps_of_cityscapes_that_are_none(tmp_path, values, sentence):
    path = tmp_path / f"gtFine/train/zoo/1{cityscapes.MAP}"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), values)
    with pytest.raises(DataError, match=sentence):
        cityscapes.convert(tmp_path, "train")


def panoptic(root: Path, content: str) -> PanopticMaps:
    picture(root / "annotations/panoptic_val/1.png", (4, 5))
    write(root / "annotations/panoptic_val.json", content)
    return PanopticMaps(root, "val", (1,))


GRAY = 90 * (1 + 256 + 65536)
CONTENT = ('{"annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": [{"id": GRAY, "category_id": 2'
           '}]}], "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "sky", "isthing": 0}]}'
           ).replace("GRAY", str(GRAY))


@pytest.mark.parametrize("old, new", [("", ""), (f"{GRAY}", f'"{GRAY}"'), (f"{GRAY}", f"{GRAY}.0"),
                                      ('"isthing": 0', '"isthing": "0"'), ('"isthing": 0', '"isthing": false'),
                                      ('"category_id": 2', '"category_id": 2, "iscrowd": null')])
def test_panoptic_numbers_of_other_tools(tmp_path, old, new):
    maps = panoptic(tmp_path, CONTENT.replace(old, new) if old else f"\ufeff{CONTENT}")
    segments = maps.read(1, (4, 5))
    assert (maps.things, maps.stuff) == (("cup",), ("sky",)) and (segments.classes() == 1).all()
    assert segments.crowd.tolist() == [False]


@pytest.mark.parametrize("old, new, sentence", [
    ('"id": 2', '"id": 1', "has the category 1 more than once"), ('"sky"', '"cup"', "category name cup more than once"),
    ('"1.png"', '"../1.png"', "names the file '../1.png'"), (f"{GRAY}", "-1", "has the segment -1 twice, or its id"),
    (f"{GRAY}", str(2**40), "has the segment 1099511627776"), (f"{GRAY}", "7", f"has a segment {GRAY}"),
    ('"category_id": 2', '"category_id": 9', "has category 9"), ("1.png", "2.png", "There is no panoptic map"),
    ('[{"id": 1,', '[' * 3000, "cannot be read"), ('"isthing": 0', '"isthing": 1', "category 2, which"),
    ('"annotations": [', '"annotations": [{"image_id": 1, "file_name": "x", "segments_info": []}, ',
     "image 1 more than")])
def test_broken_panoptic_annotations(tmp_path, old, new, sentence):
    with pytest.raises(DataError, match=sentence):
        panoptic(tmp_path, CONTENT.replace(old, new, 1)).read(1, (4, 5))


def test_panoptic_maps_have_at_most_255_classes(tmp_path):
    many = ", ".join(f'{{"id": {i}, "name": "c{i}", "isthing": 0}}' for i in range(2, 257))
    text = CONTENT.replace('{"id": 2, "name": "sky", "isthing": 0}', many)
    with pytest.raises(DataError, match="has 256 classes; panoptic maps are read with 255"):
        panoptic(tmp_path, text)
    segments = PanopticSegments(np.array([[0, 1]]), np.array([254]), np.array([False]))
    assert segments.classes().tolist() == [[255, 254]]
    assert len(panoptic(tmp_path, text.replace('"c256"', '"c"').replace('{"id": 256, "name": "c", "isthing": 0}', (
        '{"id": 256, "name": "x", "isthing": 1}'))).stuff) == 254
    with pytest.raises(DataError, match="has 5 x 4 pixels, but the image has 9 x 9"):
        panoptic(tmp_path, CONTENT).read(1, (9, 9))


def test_holes_of_masks_are_kept_in_their_polygons():
    rng = np.random.default_rng(0)
    for _ in range(30):
        mask = np.zeros((60, 70), np.uint8)
        for value in (1, 1, 0, 0, 1, 0):
            centre, axes = rng.integers(0, 60, 2).tolist(), rng.integers(2, 24, 2).tolist()
            cv2.ellipse(mask, centre, axes, 0, 0, 360, value, -1)
        mask &= rng.random(mask.shape) < 0.98
        assert (rasterise(trace(mask), 60, 70) == mask).all()
    assert trace(np.zeros((5, 5), np.uint8)) == []


# Proposals

def proposal_file(path: Path, **changes) -> Path:
    arrays = dict(image_ids=np.array([3, 5]), offsets=np.array([0, 1, 3]), scores=np.array([0.9, 0.8, 0.7], np.float32),
                  boxes=np.array([[1, 2, 3, 4]] * 3, np.float32)) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_proposals_that_are_none_are_counted(tmp_path):
    boxes = np.array([[1, 2, 3, 4], [3, 2, 1, 4], [np.nan, 0, 1, 1]], np.float32)
    path = proposal_file(tmp_path / "p.npz", boxes=boxes)
    with pytest.warns(UserWarning, match="dropped 2 of 3 proposals .*one of image 5"):
        found = ProposalFile(path)
    assert {i: len(table) for i, table in found.items()} == {3: 1, 5: 0}
    save_proposals(path, {7: np.array([[0, 0, 5, 5, 0.1], [1, 1, 6, 6, 0.9]]), 8: np.zeros((0, 5))})
    found = ProposalFile(path)
    assert found[7][:, 4].tolist() == pytest.approx([0.9, 0.1]) and found[8].shape == (0, 5)


@pytest.mark.parametrize("changes, sentence", [
    (dict(image_ids=np.array(["3", "5"])), "of the kinds"),
    (dict(image_ids=np.array([3, 3])), "an image more than once"),
    (dict(offsets=np.array([0, 7, 3])), "do not rise"), (dict(offsets=np.array([1, 1, 3])), "do not rise"),
    (dict(offsets=np.array([0, 2, 1])), "do not rise"), (dict(offsets=np.array([-1, 1, 3])), "do not rise"),
    (dict(offsets=np.array([0.0, 1, 3])), "of the kinds"), (dict(offsets=np.array([0, 3])), "do not fit together"),
    (dict(boxes=np.zeros((3, 5))), "do not fit together"), (dict(boxes=np.zeros((3, 4), complex)), "of the kinds"),
    (dict(scores=np.zeros((3, 1))), "do not fit together"), (dict(scores=None), "is not a proposal file"),
    (dict(boxes=np.array([[{}] * 4] * 3)), "is not a proposal file")])
def test_broken_proposal_files(tmp_path, changes, sentence):
    with pytest.raises(DataError, match=sentence):
        ProposalFile(proposal_file(tmp_path / "p.npz", **changes))


def test_files_that_hold_no_proposals(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros(3))
    (tmp_path / "plain.npy").rename(tmp_path / "p.npz")
    with pytest.raises(DataError, match="is not a proposal file"):
        ProposalFile(tmp_path / "p.npz")
    np.savez_compressed(tmp_path / "p.npz", image_ids=np.zeros(30_000_000, np.int64))
    assert (tmp_path / "p.npz").stat().st_size < 1_000_000
    with pytest.raises(DataError, match="far more than the file's"):
        ProposalFile(tmp_path / "p.npz")
    with pytest.raises(DataError, match="There is no proposal file"):
        ProposalFile(tmp_path / "none.npz")


# EXIF

@pytest.mark.parametrize("layout", ("yolo", "voc"))
def test_pictures_are_read_as_they_are_stored(tmp_path, voc, layout):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    if layout == "yolo":
        root = yolo(tmp_path / "y", suffix="jpg")
        path = root / "images/train/a.jpg"
    else:
        root, path = voc, voc / "VOC2007/JPEGImages/a.jpg"
        write(root / "VOC2007/Annotations/a.xml", xml(CUP, size="<width>60</width><height>60</height>"))
    rows = np.arange(0, 240, 4, dtype=np.uint8)[:, None, None]
    falling = np.broadcast_to(rows, (60, 60 if layout == "voc" else 80, 3))
    Image.fromarray(falling).save(path, exif=exif, quality=95)
    turned, stored = (opened(root, exif=upright)[0].sample(0) for upright in (True, False))
    assert stored.image.shape == falling.shape and stored.image[0].mean() < 8 < stored.image[-1].mean()
    assert turned.image[:, -1].mean() < 8
    if layout == "yolo":
        assert turned.image.shape[:2] == (80, 60)
        np.testing.assert_allclose(stored.boxes[0], [30, 15, 50, 45], atol=1e-3)
        np.testing.assert_allclose(turned.boxes[0], [22.5, 20, 37.5, 60], atol=1e-3)
