"""Pocket Zoo in Cityscapes' layout."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from detcore.data.cityscapes import CLASSES, INSTANCE, MAP, PICTURE, convert
from detcore.pocket.drawn import Drawn, Set, Writer, png, write

# Numbers of terrain, walls, roads and so on, which are not void.
STUFF = {"sky": 23, "grass": 22, "water": 11, "sand": 7, "path": 8, "tree": 21}


def write_image(root: Path, drawn: Drawn) -> None:
    """Write a picture and its map."""
    numbers = list(CLASSES)
    value = np.zeros(256, np.uint16)  # of each segment's number
    value[1:len(STUFF) + 1] = list(STUFF.values())
    for place, (number, thing) in enumerate(zip(drawn.numbers, drawn.objects)):
        category = numbers[thing["category_id"] - 1]
        value[number] = category if thing["iscrowd"] else category * INSTANCE + place
    name = f"zoo/zoo_{drawn.image_id:06}_000019"
    write(root / f"leftImg8bit/{drawn.split}/{name}{PICTURE}", png(drawn.image))
    write(root / f"gtFine/{drawn.split}/{name}{MAP}", png(value[drawn.ids]))


def write_split(root: Path, split: str, records: list[Any], whole: Set) -> None:
    """Write the annotation file."""
    if records:
        convert(root, split, dict(zip(CLASSES, whole.classes)))


CITYSCAPES = Writer(("leftImg8bit", "gtFine", "annotations"), write_image, write_split)
