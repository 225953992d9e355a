"""WIDER FACE: faces of all sizes, by the kind of event.

    WIDER_train/images/0--Parade/*.jpg, WIDER_val/images/...                   or WIDER_train/0--Parade/*.jpg
    wider_face_split/wider_face_train_bbx_gt.txt, wider_face_val_bbx_gt.txt    the annotations as published
    train.txt, val.txt, WIDER_train/Annotations/*.xml                          or the same in VOC's form
    wider_face_split/wider_{face,easy,medium,hard}_val.mat                     which faces count, for the evaluation

Faces marked as invalid are ignored in training. A file that is missing or broken is a `DataError` with its name.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np

from detcore.data.dataset import DEFAULT_OPTIONS, Columns, Dataset, ReadOptions, Rows
from detcore.data.files import open_file
from detcore.data.images import picture_sizes
from detcore.data.voc import read_xml
from detcore.errors import DataError

CLASSES = ("face",)
SETTINGS = ("easy", "medium", "hard")
INVALID = 7  # the place of the mark in a line of the annotations
TRUTH_FOLDERS = ("wider_face_split", "eval_tools/ground_truth")


class WiderFaceDataset(Dataset):
    """WIDER FACE's images with their faces."""

    def __init__(self, root: str | Path, split: str = "train", options: ReadOptions = DEFAULT_OPTIONS) -> None:
        """
        Args:
            split: "train" or "val".
        """
        own = next(Path(root).glob(f"WIDER_{split}/*--*"), None) is not None
        super().__init__(root, f"WIDER_{split}" if own else f"WIDER_{split}/images", options.boxes_alone("WIDER FACE"),
                         "wider_face")
        self.class_names = CLASSES
        text, names = self.root / f"wider_face_split/wider_face_{split}_bbx_gt.txt", self.root / f"{split}.txt"
        if text.exists() or not names.exists():
            self.annotation_file, rows = text, read_text(text)
            self.take(rows, picture_sizes(self.image_folder, rows.files, text.with_suffix(".sizes.npz")))
            return
        self.annotation_file, rows = names, Rows()
        folder = self.root / f"WIDER_{split}/Annotations"
        # A picture's name begins with the number of its event, whose folder has that number and a name.
        events = {event.name.partition("--")[0]: event.name for event in self.image_folder.iterdir()}
        listed = [Path(name).name for name in names.read_text().split()]
        sizes = read_xml([(folder / f"{name}.xml", f"{events.get(name.partition('_')[0], '.')}/{name}.jpg")
                          for name in listed], self.image_folder, CLASSES, rows, offset=0, title=f"faces of {split}")
        self.take(rows, sizes)

    def official_ground_truth(self) -> tuple[Columns, dict[str, np.ndarray]]:
        """All faces of the images as the official evaluation has them, and which count as easy, medium and hard."""
        place = {file: int(i) for file, i in zip(self.files, self.image_ids)}
        faces = read_cells(self.truth_file("face"), "face_bbx_list")
        known = [file for file in faces if file in place]
        boxes = [faces[file].astype(float).reshape(-1, 4) for file in known]
        count = [len(b) for b in boxes]
        corners = np.concatenate([*boxes, np.zeros((0, 4))])
        corners[:, 2:] += corners[:, :2]
        counts = {}
        for setting in SETTINGS:
            cells = read_cells(self.truth_file(setting), "gt_list")
            flags = [np.isin(np.arange(1, n + 1), cells.get(file, ())) for file, n in zip(known, count)]
            counts[setting] = np.concatenate([*flags, np.zeros(0, bool)])
        image = np.repeat(np.array([place[file] for file in known], np.int64), count)
        columns = Columns(image=image, boxes=corners.astype(np.float32), labels=np.zeros(len(image), np.int64),
                          flags=np.zeros(len(image), bool))
        return columns, counts

    def truth_file(self, name: str) -> Path:
        """A file of the official evaluation."""
        for folder in TRUTH_FOLDERS:
            if (path := self.root / folder / f"wider_{name}_val.mat").exists():
                return path
        raise DataError(f"There is no file wider_{name}_val.mat in {self.root / TRUTH_FOLDERS[0]}: it is in "
                        f"eval_tools.zip of shuoyang1213.me/WIDERFACE, in its folder ground_truth.")


def read_text(path: Path) -> Rows:
    """The published annotations: a picture, the number of its faces, and for each x, y, w, h and six marks.

    Where there is no face, a line of zeros follows all the same.
    """
    rows, number = Rows(), 0
    try:
        with open_file(path, "annotation file") as file:
            lines = file.read().decode().splitlines()
        while number < len(lines) and lines[number].strip():
            picture, count = lines[number].strip(), int(lines[number + 1])
            number += 2
            for line in lines[number:number + count]:
                x, y, w, h, *marks = (int(v) for v in line.split())
                rows.add((x, y, x + w, y + h), 0, bool(marks[INVALID - 4]))
            if len(lines) < number + max(count, 1):
                raise ValueError("the file ends within a picture")
            rows.files.append(picture)
            number += max(count, 1)
    except (ValueError, IndexError) as error:
        raise DataError(f"{path} is broken near line {number + 1}: {error}.") from error
    return rows


def read_cells(path: Path, name: str) -> dict[str, np.ndarray]:
    """What a list of the official evaluation has for each picture, by "EVENT/PICTURE.jpg"."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(str(path))
        events, files, cells = (content[key].ravel() for key in ("event_list", "file_list", name))
        return {f"{event.ravel()[0]}/{file.ravel()[0]}.jpg": np.asarray(cell)
                for event, of_event, of_cells in zip(events, files, cells)
                for file, cell in zip(of_event.ravel(), of_cells.ravel())}
    except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, NotImplementedError,
            MatReadError) as error:
        raise DataError(f"The file {path} of the official evaluation cannot be read: {error}.") from error
