"""Pocket Zoo in WIDER FACE's layout."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detcore.data.widerface import TRUTH_FOLDERS
from detcore.pocket.drawn import Drawn, Set, Writer, write
from detcore.pocket.writers.voc import xml

EVENT = "0--Zoo"
LEAST = {"easy": 40, "medium": 24, "hard": 8}  # height in pixels from which an animal counts, here


def write_image(root: Path, drawn: Drawn) -> dict[str, Any]:
    """Write a picture; each animal is a face, crowds are invalid."""
    height, width = drawn.ids.shape
    write(root / f"WIDER_{drawn.split}/images/{EVENT}/0_Zoo_{drawn.name}.jpg", drawn.jpeg)
    boxes = [[round(x), round(y), max(round(x + w) - round(x), 2), max(round(y + h) - round(y), 2), crowd]
             for (x, y, w, h), crowd in ((o["bbox"], o["iscrowd"]) for o in drawn.objects)]
    return dict(image=dict(file_name=f"0_Zoo_{drawn.name}.jpg", width=width, height=height), boxes=boxes)


def write_split(root: Path, split: str, records: list[dict[str, Any]], whole: Set) -> None:
    """Write the annotations as text and as XML, and the files of the evaluation."""
    lines, names = [], []
    for record in records:
        name = Path(record["image"]["file_name"]).stem
        names.append(name)
        lines += [f"{EVENT}/{name}.jpg", str(len(record["boxes"]))]
        lines += [f"{x} {y} {w} {h} 0 0 0 {crowd} 0 0" for x, y, w, h, crowd in record["boxes"]] or ["0 " * 9 + "0"]
        faces = [("face", (x, y, x + w, y + h), bool(crowd)) for x, y, w, h, crowd in record["boxes"]]
        write(root / f"WIDER_{split}/Annotations/{name}.xml", xml(EVENT, record["image"], faces))
    write(root / f"wider_face_split/wider_face_{split}_bbx_gt.txt", "\n".join(lines) + "\n")
    write(root / f"{split}.txt", "".join(f"{name}\n" for name in names))
    if split == "val":
        boxes = [np.array(r["boxes"], float).reshape(-1, 5) for r in records]
        write_cells(root, "face", names, "face_bbx_list", [b[:, :4] for b in boxes])
        for setting, least in LEAST.items():
            write_cells(root, setting, names, "gt_list", [
                1 + np.flatnonzero((b[:, 3] >= least) & (b[:, 4] == 0))[:, None] for b in boxes])


def write_cells(root: Path, name: str, pictures: Sequence[str], key: str, values: Sequence[np.ndarray]) -> None:
    """Write a file of the official evaluation, with one event."""
    from scipy.io import savemat

    def cells(items: Sequence[Any]) -> np.ndarray:
        out = np.empty((len(items), 1), object)
        for i, item in enumerate(items):
            out[i, 0] = item
        return out

    path = root / TRUTH_FOLDERS[0] / f"wider_{name}_val.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(str(path), {"event_list": cells([EVENT]), "file_list": cells([cells(pictures)]),
                        key: cells([cells(values)])})


WIDER_FACE = Writer(("WIDER_train", "WIDER_val", "wider_face_split", "train.txt", "val.txt"), write_image, write_split)
