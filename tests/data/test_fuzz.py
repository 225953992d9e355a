"""Mutated data sets: each is read, with what is dropped counted, or refused in one sentence, fast and in little memory.

`pytest tests/data/test_fuzz.py --fuzz 20000` tries so many other ones, over all readers together.
"""
from __future__ import annotations

import copy
import csv
import io
import json
import re
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detcore.data.dataset import Dataset, ReadOptions
from detcore.data.layouts import LAYOUTS
from detcore.data.panoptic import PanopticMaps
from detcore.data.proposals import ProposalFile, save_proposals
from detcore.errors import DetcoreError
from detcore.structures import encode_rle

H, W = 20, 24
SECONDS, BYTES = 5, 2**30
EXAMPLES = 500
NAMES = ("cat", "dog")
BOXES = ((2, 3, 10, 8), (5, 6, 12, 9))  # x, y, w, h
IMAGES = range(1, 4)


# Sound data sets, as the content of their files

def picture() -> bytes:
    return bytes(cv2.imencode(".png", np.full((H, W, 3), 90, np.uint8))[1])


def ring(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def coco_content(crowd: bool = True) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = [
        dict(id=10 * i + k, image_id=i, category_id=k + 1, bbox=list(box), area=box[2] * box[3], iscrowd=0,
             segmentation=[ring(*box)]) for i in IMAGES for k, box in enumerate(BOXES)]
    if crowd:
        mask = dict(size=[H, W], counts=[40, 8, H * W - 48])
        annotations += [dict(id=90, image_id=1, category_id=1, bbox=[2, 0, 1, 8], area=8, iscrowd=1, segmentation=mask)]
        column = np.zeros((1, H, W), np.uint8)
        column[0, :8, 2] = 1
        text = encode_rle(column)[0]
        annotations += [dict(id=91, image_id=2, category_id=2, bbox=[2, 0, 1, 8], area=8, iscrowd=0, segmentation=text)]
    return dict(images=[dict(id=i, file_name=f"{i}.jpg", height=H, width=W) for i in IMAGES],
                categories=[dict(id=i, name=name) for i, name in enumerate(NAMES, 1)], annotations=annotations)


def coco() -> dict[str, bytes]:
    return {f"train2017/{i}.jpg": picture() for i in IMAGES} | {
        "annotations/instances_train2017.json": json.dumps(coco_content()).encode()}


def lvis() -> dict[str, bytes]:
    content = coco_content(crowd=False)
    for image in content["images"]:
        image |= dict(coco_url=f"http://host/train2017/{image.pop('file_name')}", neg_category_ids=[2],
                      not_exhaustive_category_ids=[1])
    for category in content["categories"]:
        category |= dict(frequency="c", image_count=3)
    return {f"train2017/{i}.jpg": picture() for i in IMAGES} | {
        "annotations/lvis_v1_train.json": json.dumps(content).encode()}


def xml(name: str) -> bytes:
    things = "".join(
        f"<object><name>{NAMES[k]}</name><difficult>{k}</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w + 1}</xmax><ymax>{y + h + 1}</ymax></bndbox></object>" for k, (x, y, w, h) in enumerate(BOXES))
    return (f"<annotation><filename>{name}.jpg</filename><size><width>{W}</width><height>{H}</height></size>{things}"
            f"</annotation>").encode()


def voc() -> dict[str, bytes]:
    files = {"VOC2007/ImageSets/Main/trainval.txt": "".join(f"a {i}\n" for i in IMAGES).encode()}
    for i in IMAGES:
        files |= {f"VOC2007/JPEGImages/a {i}.jpg": picture(), f"VOC2007/Annotations/a {i}.xml": xml(f"a {i}")}
    return files


def voc_xml() -> dict[str, bytes]:
    return {f"images/{i}.png": picture() for i in IMAGES} | {f"Annotations/{i}.xml": xml(str(i)) for i in IMAGES}


def cityscapes() -> dict[str, bytes]:
    values = np.zeros((H, W), np.uint16)
    values[3:11, 2:12], values[12:18, 2:9], values[1:3, 15:20] = 24001, 26001, 25
    files = {}
    for i in IMAGES:
        files |= {f"leftImg8bit/train/zoo/{i}_leftImg8bit.png": picture(),
                  f"gtFine/train/zoo/{i}_gtFine_instanceIds.png": bytes(cv2.imencode(".png", values)[1])}
    return files


def share(value: float, of: int) -> str:
    return f"{value / of:.6f}"


def openimages() -> dict[str, bytes]:
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
    lines = [f"{i},x,/m/{k},1,{share(x, W)},{share(x + w, W)},{share(y, H)},{share(y + h, H)},0,0,{k}"
             for i in IMAGES for k, (x, y, w, h) in enumerate(BOXES)]
    tree = dict(LabelName="/m/9", Subcategory=[dict(LabelName="/m/0"), dict(LabelName="/m/1", Subcategory=[])])
    return {f"OpenImages/train/{i}.jpg": picture() for i in IMAGES} | {
        "annotations/oidv6-train-annotations-bbox.csv": "\n".join([head, *lines, ""]).encode(),
        "annotations/class-descriptions-boxable.csv": b"LabelName,DisplayName\n/m/0,cat\n/m/1,dog\n",
        "annotations/bbox_labels_600_hierarchy.json": json.dumps(tree).encode()}


def challenge() -> dict[str, bytes]:
    blocks = "".join(f"x/{i}.jpg\n# {i}\n2\n" + "".join(
        f"{k + 1} {share(x, W)} {share(y, H)} {share(x + w, W)} {share(y + h, H)} {k}\n"
        for k, (x, y, w, h) in enumerate(BOXES)) for i in IMAGES)
    tree = dict(LabelName="/m/9", Subcategory=[dict(LabelName="/m/0"), dict(LabelName="/m/1")])
    return {f"OpenImages/train/{i}.jpg": picture() for i in IMAGES} | {
        "challenge2019/challenge-2019-train-detection-bbox.txt": blocks.encode(),
        "challenge2019/cls-label-description.csv": b"/m/0,cat,1\n/m/1,dog,2\n",
        "challenge2019/challenge-2019-label500-hierarchy.json": json.dumps(tree).encode()}


def wider_face() -> dict[str, bytes]:
    text = "".join(f"0--Zoo/{i}.jpg\n2\n" + "".join(f"{x} {y} {w} {h} 0 0 0 {k} 0 0\n" for k, (x, y, w, h)
                                                   in enumerate(BOXES)) for i in IMAGES)
    return {f"WIDER_train/images/0--Zoo/{i}.jpg": picture() for i in IMAGES} | {
        "wider_face_split/wider_face_train_bbx_gt.txt": text.encode()}


def yolo() -> dict[str, bytes]:
    corners = [v / (H if k % 2 else W) for k, v in enumerate(ring(*BOXES[1]))]
    x, y, w, h = BOXES[0]
    lines = [f"0 {share(x + w / 2, W)} {share(y + h / 2, H)} {share(w, W)} {share(h, H)}",
             f"1 {' '.join(f'{v:.6f}' for v in corners)}"]
    files = {"data.yaml": b"path: .\ntrain: ../train/images\nval: valid/images\nnc: 2\nnames:\n  0: cat\n  1: dog\n"}
    for i in IMAGES:
        files |= {f"train/images/{i}.png": picture(), f"train/labels/{i}.txt": "\n".join([*lines, ""]).encode()}
    return files


def panoptic() -> dict[str, bytes]:
    colours = np.zeros((H, W, 3), np.uint8)
    colours[..., 2] = 7
    colours[3:11, 2:12] = 0, 1, 2
    segments = [dict(id=7, category_id=100, iscrowd=0), dict(id=256 + 2, category_id=1, iscrowd=0)]
    content = dict(annotations=[dict(image_id=i, file_name=f"{i}.png", segments_info=segments) for i in IMAGES],
                   categories=[dict(id=1, name="cat", isthing=1), dict(id=2, name="dog", isthing=1),
                               dict(id=100, name="sky", isthing=0)])
    return {f"annotations/panoptic_train/{i}.png": bytes(cv2.imencode(".png", colours)[1]) for i in IMAGES} | {
        "annotations/panoptic_train.json": json.dumps(content).encode()}


def proposals() -> dict[str, bytes]:
    return {"proposals.npz": b""}  # written by `open_proposals`, which knows the format


# What they are to hold, counted without the readers: None where that cannot be told

def count_coco(root: Path) -> int | None:
    path = next((root / "annotations").glob("*train*.json"))
    return len(json.loads(path.read_bytes())["annotations"])


def count_xml(root: Path) -> int | None:
    files = {path: len(list(ElementTree.fromstring(path.read_bytes()).iter("object"))) for path in root.rglob("*.xml")}
    listed = root / "VOC2007/ImageSets/Main/trainval.txt"
    if not listed.exists():  # files that are no annotations are left out and counted as such
        return sum(count for path, count in files.items() if re.search(rb"<annotation[\s/>]", path.read_bytes()))
    names = {line.strip() for line in listed.read_text("utf-8-sig").splitlines()} - {""}
    return sum(count for path, count in files.items() if path.stem in names)


def count_table(root: Path) -> int | None:
    return sum(bool(row) for row in csv.reader(io.StringIO(
        (root / "annotations/oidv6-train-annotations-bbox.csv").read_text("utf-8-sig"), newline=""))) - 1


def count_lines(root: Path, file: str, fields: int) -> int | None:
    def numbers(line: str) -> bool:
        try:
            return len([float(field) for field in line.split()[:fields]]) == fields
        except ValueError:
            return False

    return sum(map(numbers, (root / file).read_text("utf-8-sig").splitlines()))


def count_yolo(root: Path) -> int | None:
    if "train: ../train/images\n" not in (root / "data.yaml").read_text("utf-8-sig"):
        return None
    return sum(bool(line.strip()) for i in IMAGES if (path := root / f"train/labels/{i}.txt").exists()
               for line in path.read_text("utf-8-sig").splitlines())


@dataclass(frozen=True)
class Form:
    """A form of data: its sound files, which of them are changed, and how many objects they hold."""

    files: Callable[[], dict[str, bytes]]
    changed: str
    count: Callable[[Path], int | None] = lambda root: None
    masks: bool = False


FORMS = {
    "coco": Form(coco, r"\.json$", count_coco, masks=True),
    "lvis": Form(lvis, r"\.json$", count_coco, masks=True),
    "voc": Form(voc, r"\.(xml|txt)$", count_xml),
    "voc-xml": Form(voc_xml, r"\.xml$", count_xml),
    "cityscapes": Form(cityscapes, r"gtFine.*\.png$", masks=True),
    "openimages": Form(openimages, r"\.(csv|json)$", count_table),
    "openimages-challenge": Form(challenge, r"\.(csv|json|txt)$", lambda root: count_lines(
        root, "challenge2019/challenge-2019-train-detection-bbox.txt", 6)),
    "wider_face": Form(wider_face, r"\.txt$", lambda root: count_lines(
        root, "wider_face_split/wider_face_train_bbx_gt.txt", 8)),
    "yolo": Form(yolo, r"\.(yaml|txt)$", count_yolo, masks=True),
    "panoptic": Form(panoptic, r"annotations/.*\.(json|png)$"),
    "proposals": Form(proposals, r"\.npz$"),
}


# Mutations

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2, 300, 2**31, 2**32 + 1, 2**63, -2**63, 10**30, 10**400, 0.5, -0.0, 1e-9, 1e10, 1e300,
    float("inf"), float("-inf"), float("nan"), "", " ", "x", "cat", "1", "1.0", "-1", "1e10", "1e999", "NaN", "inf",
    "9" * 400, "9" * 5000, "é", "a\0b", "n" * 5000, "../../x", "../1.jpg", "/etc/passwd", "C:\\x", ".", "..", [], {},
    [[]], [[], []], [1], [1, 2, 3, 4, 5, 6], [None], ["a"], {"a": 1}, {"size": [H, W], "counts": "o" * 3000},
    {"size": [H, W], "counts": []}, {"size": [H, W], "counts": [2**32 + H * W]},
    {"size": [2**16, 2**16], "counts": [2**32]}, "True", "null", "~", "&a [*a]", "- x", "{", "'"]
SHAPES: list[Any] = [
    [[float("nan")] * 6], [[float("inf"), 0, 1, 1, 5, 5]], [[1e8, 1e8, 2e8, 1e8, 2e8, 2e8]], [[0] * 7],
    [[-1e8, 0, 1e8, 0, 0, 1e8]], [[1, 2], [3, 4]], [[1, 2, 3, 4]], [1, 1, 9, 1, 9, 9], [[[1, 1], [9, 1], [9, 9]]],
    [["1", "1", 9, 1, 9, 9]], [[1, 1, 9, 1, 9, 9], []], [[1, 1, 9, 1, 9, 9], None], [[5, 5] * 3],
    [[1, 1, 9, 1, 9, 9]] * 50, [[30, 30, 40, 30, 40, 40]], [1, 2, 3, 4], [1, 2, -3, 4], [0, 0, W, H], [1, 2, 3],
    [1, 2, 3, 4, 5], ["1", "2", "3", "4"], [[1, 2, 3, 4]], [1e300, 0, 1e300, 5], [1, 2, 3, None],
    [float("nan"), 2, 3, 4], [W - 1e-9, 2, 3, 4], [2, 2, 1e-9, 4], dict(x=1, y=2, width=3, height=4),
    dict(size=[2**32 + H, W], counts=[0, H * W]), dict(size=None, counts=None), dict(size=[H, W]),
    dict(size=[W, H], counts=[0, H * W]), dict(counts=[0, H * W]), dict(size=[H], counts=[5]), *(
        dict(size=[H, W], counts=counts) for counts in (
            [H * W], [0, H * W], [-1, H * W + 1], [2.0, H * W - 2], "0", "\u0101", "o" * 100_000, [1] * H * W,
            [2**64, 2**64]))]


def nested(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def change_value(draw: Callable, value: Any) -> Any:
    """Something else in a value's place."""
    kind = draw(st.sampled_from(("junk", "junk", "junk", "text", "number", "float", "list", "dict", "deep")))
    if kind == "text":
        return str(value)
    if kind == "number":
        return draw(st.integers(-2**70, 2**70))
    if kind == "float":
        return draw(st.floats())
    if kind == "list":
        return [copy.deepcopy(value)] * draw(st.integers(1, 3))
    if kind == "dict":
        return {"a": copy.deepcopy(value)}
    if kind == "deep":
        return nested(draw(st.sampled_from((2, 30, 800))), copy.deepcopy(value))
    return copy.deepcopy(draw(st.sampled_from(JUNK)))


def mutate_json(draw: Callable, data: bytes) -> bytes:
    """Change a value anywhere in a JSON text."""
    content = {"": json.loads(data)}
    parent: Any = content
    key: Any = ""
    for _ in range(draw(st.integers(0, 6))):
        inner = parent[key]
        if not isinstance(inner, (dict, list)) or not inner:
            break
        parent, key = inner, draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    annotations = content[""].get("annotations") if isinstance(content[""], dict) else None
    if annotations and isinstance(annotations, list) and not draw(st.integers(0, 2)):
        record = draw(st.sampled_from(annotations))
        if isinstance(record, dict):
            record[draw(st.sampled_from(("segmentation", "segmentation", "bbox")))] = draw(st.sampled_from(SHAPES))
        return json.dumps(content[""]).encode()
    kind = draw(st.sampled_from(("value", "value", "value", "delete", "twice", "add", "rename")))
    if kind == "delete" and parent is not content:
        del parent[key]
    elif kind == "twice" and isinstance(parent, list):
        parent.insert(draw(st.integers(0, len(parent))), copy.deepcopy(parent[key]))
    elif kind == "add" and isinstance(parent[key], list):
        parent[key].append(change_value(draw, None))
    elif kind == "add" and isinstance(parent[key], dict):
        parent[key][draw(st.sampled_from(("id", "segmentation", "x")))] = change_value(draw, 1)
    elif kind == "rename" and isinstance(parent, dict) and parent is not content:
        parent[draw(st.sampled_from(("id", "name", "bbox", "x")))] = parent.pop(key)
    else:
        parent[key] = change_value(draw, parent[key])
    return json.dumps(content[""]).encode()


def text_of(draw: Callable, value: str) -> str:
    new = change_value(draw, value)
    return new if isinstance(new, str) else json.dumps(new)


def mutate_xml(draw: Callable, data: bytes) -> bytes:
    """Change an element anywhere in an XML text."""
    root = ElementTree.fromstring(data)
    parents = {child: parent for parent in root.iter() for child in parent}
    element = draw(st.sampled_from(list(root.iter())))
    kind = draw(st.sampled_from(("text", "text", "text", "delete", "twice", "rename", "nest")))
    if kind == "delete" and element in parents:
        parents[element].remove(element)
    elif kind == "twice" and element in parents:
        parents[element].append(copy.deepcopy(element))
    elif kind == "rename":
        element.tag = draw(st.sampled_from(("object", "name", "bndbox", "xmin", "size", "x", "annotation")))
    elif kind == "nest":
        element.append(copy.deepcopy(draw(st.sampled_from(list(root.iter())))))
    else:
        element.text = re.sub(r"[^\x20-\x7e\xa0-\ud7ff]", "?", text_of(draw, element.text or ""))
    return ElementTree.tostring(root)


def mutate_text(draw: Callable, data: bytes) -> bytes:
    """Change a line or a field of a text."""
    lines = data.decode().split("\n")
    at = draw(st.integers(0, len(lines) - 1))
    kind = draw(st.sampled_from(("field", "field", "delete", "twice", "junk", "move", "less", "more", "blank")))
    fields = re.split(r"([ ,:])", lines[at])
    place = 2 * draw(st.integers(0, len(fields) // 2))
    if kind == "field":
        fields[place] = text_of(draw, fields[place])
        lines[at] = "".join(fields)
    elif kind == "less":
        lines[at] = "".join(fields[:place] + fields[place + 2:])
    elif kind == "more":
        lines[at] = "".join(fields[:place + 2] + fields[place:])
    elif kind == "delete":
        del lines[at]
    elif kind == "twice":
        lines.insert(draw(st.integers(0, len(lines))), lines[at])
    elif kind == "move":
        lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
    else:
        lines.insert(at, "" if kind == "blank" else text_of(draw, ""))
    return "\n".join(lines).encode(errors="replace")


def mutate_bytes(draw: Callable, data: bytes) -> bytes:
    """Change some bytes."""
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    kind = draw(st.sampled_from(("flip", "flip", "insert", "delete", "cut", "nothing", "mark", "latin1", "repeat")))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))] if data else ()) + data[at + 1:]
    if kind == "insert":
        return data[:at] + draw(st.binary(max_size=8)) + data[at:]
    if kind == "delete":
        return data[:at] + data[at + draw(st.integers(1, 40)):]
    return {"cut": data[:at], "nothing": b"", "mark": b"\xef\xbb\xbf" + data, "latin1": data[:at] + b"\xe9" + data[at:],
            "repeat": data + data}[kind]


def mutate(draw: Callable, name: str, data: bytes) -> bytes:
    by_end = dict(json=mutate_json, xml=mutate_xml, txt=mutate_text, csv=mutate_text, yaml=mutate_text)
    change = by_end.get(name.rpartition(".")[2], mutate_bytes)
    if not draw(st.integers(0, 3)):
        change = mutate_bytes
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
        try:
            data = change(draw, data)
        except (ValueError, IndexError, ElementTree.ParseError, UnicodeDecodeError, RecursionError):
            break  # what was changed before has no such structure any more
    return data


# Reading

def open_proposals(draw: Callable, root: Path) -> None:
    boxes = {i: np.array([[*box[:2], box[0] + box[2], box[1] + box[3], 0.5] for box in BOXES]) for i in IMAGES}
    path = root / "proposals.npz"
    save_proposals(path, boxes)
    if draw(st.booleans()):
        path.write_bytes(mutate_bytes(draw, path.read_bytes()))
    else:
        with np.load(path) as file:
            arrays = dict(file)
        name = draw(st.sampled_from(sorted(arrays)))
        flat = arrays[name].astype(draw(st.sampled_from(("f8", "f4", "i8", "u8", "i1", "?", "c8", "U9", "O", "M8[s]"))))
        if flat.size and draw(st.booleans()) and flat.dtype.kind == "f":
            flat.flat[draw(st.integers(0, flat.size - 1))] = draw(st.floats(width=32))
        if flat.size and draw(st.booleans()) and flat.dtype.kind == "i":
            flat.flat[draw(st.integers(0, flat.size - 1))] = draw(st.integers(-100, 100))
        form = draw(st.sampled_from(((-1,), (-1, 1), None, None, None)))
        arrays[name] = flat if form is None else flat.reshape(form)
        np.savez(path, **arrays)
    table = ProposalFile(path)
    for boxes_of in table.values():
        assert boxes_of.shape[1:] == (5,) and np.isfinite(boxes_of).all()


def read(form: str, root: Path, masks: str | None) -> Dataset | None:
    """Open a data set and read all that is in it."""
    if form == "panoptic":
        maps = PanopticMaps(root, "train", (1, 2))
        for i in IMAGES:
            segments = maps.read(i, (H, W))
            assert segments.classes().shape == (H, W) and segments.place.max() <= len(segments.labels)
        return None
    data = LAYOUTS[form].open(root, "train", ReadOptions(masks=masks))  # type: ignore[arg-type]
    for i in range(len(data)):
        sample = data.sample(i)
        assert len(sample.boxes) == len(sample.labels) and np.isfinite(sample.boxes).all()
        assert (sample.labels >= 0).all() and (sample.labels < len(data.class_names)).all()
        if sample.masks is not None:
            assert len(sample.masks) == len(sample.boxes)
    return data


def dropped(told: list[warnings.WarningMessage]) -> int:
    """How many objects warnings count as left out."""
    texts = [str(w.message) for w in told]
    return sum(int(n) for text in texts for n in re.findall(r"dropped (\d+) of|: (\d+) objects are left", text)
               for n in n if n)


@contextmanager
def limits() -> Iterator[None]:
    """Fail where more than `SECONDS` or `BYTES` are used."""
    def late(*_: Any) -> None:
        raise AssertionError("it takes too long")

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    earlier = signal.signal(signal.SIGALRM, late)
    signal.alarm(4 * SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    assert time.perf_counter() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


@pytest.mark.parametrize("form", FORMS)
def test_a_mutated_data_set_is_read_or_refused(form, request, tmp_path):
    number = request.config.getoption("--fuzz")
    kind, files = FORMS[form], FORMS[form].files()
    changed = sorted(name for name in files if re.search(kind.changed, name))
    root = tmp_path / "data"

    @settings(max_examples=-(-(number or EXAMPLES) // len(FORMS)), derandomize=number is None, deadline=None,
              database=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        shutil.rmtree(root, ignore_errors=True)
        content = dict(files)
        for _ in range(data.draw(st.sampled_from((1, 1, 1, 2)))):
            name = data.draw(st.sampled_from(changed))
            if form != "proposals":
                content[name] = mutate(data.draw, name, content[name])
        for name, text in content.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text)
        masks = data.draw(st.sampled_from((None, "bitmap", "polygon"))) if kind.masks else None
        with warnings.catch_warnings(record=True) as told, limits():
            warnings.simplefilter("always")
            try:
                found = open_proposals(data.draw, root) if form == "proposals" else read(form, root, masks)
            except DetcoreError as error:
                assert len(str(error)) < 1500 and "\n" not in str(error), str(error)[:3000]
                return
        assert not [w for w in told if issubclass(w.category, RuntimeWarning)], [str(w.message) for w in told]
        try:
            wanted = kind.count(root)
        except (ValueError, KeyError, TypeError, ElementTree.ParseError, RecursionError, csv.Error, LookupError):
            return  # a reader may know more
        if wanted is not None and found is not None:
            assert len(found.labels) + dropped(told) == wanted, [str(w.message) for w in told]

    run()


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("panoptic", "proposals")])
def test_the_sound_data_set_is_read(form, tmp_path):
    for name, text in FORMS[form].files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    data = read(form, tmp_path, "bitmap" if FORMS[form].masks else None)
    assert data is not None and len(data) == 3 and len(data.class_names) > 0
    wanted = FORMS[form].count(tmp_path)
    assert len(data.labels) == (9 if form == "cityscapes" else wanted)
