"""Pocket Zoo in PASCAL VOC's layout, and converted to COCO's format."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detcore.data.voc import SPLITS
from detcore.pocket.drawn import Drawn, Set, Writer, write
from detcore.pocket.writers.coco import instances


def xml(folder: str, image: Mapping[str, Any], objects: Sequence[tuple[str, Sequence[float], bool]]) -> str:
    """The XML file of a picture (COCO's record of it) with `objects`: name, (xmin, ymin, xmax, ymax), difficult."""
    root = ElementTree.Element("annotation")
    for key, value in ("folder", folder), ("filename", Path(image["file_name"]).name):
        ElementTree.SubElement(root, key).text = value
    size = ElementTree.SubElement(root, "size")
    for key, number in ("width", image["width"]), ("height", image["height"]), ("depth", 3):
        ElementTree.SubElement(size, key).text = str(number)
    for kind, corners, difficult in objects:
        thing = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(thing, "name").text = kind
        ElementTree.SubElement(thing, "difficult").text = str(int(difficult))
        box = ElementTree.SubElement(thing, "bndbox")
        for key, corner in zip(("xmin", "ymin", "xmax", "ymax"), corners):
            ElementTree.SubElement(box, key).text = f"{corner:g}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def year_of(drawn: Drawn) -> str:
    """Every second training image is of 2012."""
    return "VOC2012" if drawn.split == "train" and drawn.image_id % 2 == 0 else "VOC2007"


def whole_pixels(box: Sequence[float]) -> tuple[int, int, int, int]:
    """The first and the last pixel, counted from 1, of a box (x, y, w, h)."""
    x, y, w, h = box
    return round(x) + 1, round(y) + 1, max(round(x + w), round(x) + 2), max(round(y + h), round(y) + 2)


def write_image(root: Path, drawn: Drawn) -> dict[str, Any]:
    """Write a picture."""
    h, w = drawn.ids.shape
    year = year_of(drawn)
    write(root / f"{year}/JPEGImages/{drawn.name}.jpg", drawn.jpeg)
    return dict(year=year, name=drawn.name, objects=drawn.objects, image=dict(
        id=drawn.image_id, file_name=f"{year}/JPEGImages/{drawn.name}.jpg", width=w, height=h))


def write_split(root: Path, split: str, records: list[dict[str, Any]], whole: Set) -> None:
    """Write the XML files (in which crowds are difficult objects), the lists, and the same in COCO's format."""
    for year, part in SPLITS[split]:
        mine = [r for r in records if r["year"] == year]
        for r in mine:
            objects = [(whole.classes[o["category_id"] - 1], whole_pixels(o["bbox"]), bool(o["iscrowd"]))
                       for o in r["objects"]]
            write(root / f"{year}/Annotations/{r['name']}.xml", xml(year, r["image"], objects))
        write(root / f"{year}/ImageSets/Main/{part}.txt", "".join(f"{r['name']}\n" for r in mine))
        for number, name in enumerate(whole.classes, 1):
            has = [any(o["category_id"] == number for o in r["objects"]) for r in mine]
            write(root / f"{year}/ImageSets/Main/{name}_{part}.txt",
                  "".join(f"{r['name']} {1 if h else -1:2}\n" for r, h in zip(mine, has)))
    write(root / f"annotations/{'voc0712_trainval' if split == 'train' else 'voc07_test'}.json",
          json.dumps(instances(records, whole)))


VOC = Writer(("VOC2007", "VOC2012", "annotations"), write_image, write_split)
