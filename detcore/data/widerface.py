"""WIDER FACE: faces of all sizes, by the kind of event.

    WIDER_train/images/0--Parade/*.jpg, WIDER_val/images/...                   or WIDER_train/0--Parade/*.jpg
    wider_face_split/wider_face_train_bbx_gt.txt, wider_face_val_bbx_gt.txt    the annotations as published
    train.txt, val.txt, WIDER_train/Annotations/*.xml                          or the same in VOC's form
    wider_face_split/wider_{face,easy,medium,hard}_val.mat                     which faces count, for the evaluation

Faces marked as invalid are ignored in training. A file that is missing or broken is a `DataError` with its name.
"""
from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np

from detcore.data.dataset import DEFAULT_OPTIONS, Columns, Dataset, ReadOptions, Rows
from detcore.data.images import picture_sizes
from detcore.data.text import inside, problem, read_text, warn_again
from detcore.data.voc import read_xml
from detcore.errors import DataError, UsageError

CLASSES = ("face",)
SETTINGS = ("easy", "medium", "hard")
INVALID = 7  # the place of the mark in a line of the annotations
TRUTH_FOLDERS = ("wider_face_split", "eval_tools/ground_truth")


class WiderFaceDataset(Dataset):
    """WIDER FACE's images with their faces."""

    def __init__(self, root: str | Path, split: str = "train", options: ReadOptions = DEFAULT_OPTIONS) -> None:
        """
        Args:
            split: "train" or "val"; of the test images there are no annotations.
        """
        if split not in ("train", "val"):
            raise UsageError(f"WIDER FACE has no split {split!r} with annotations: it has train, val.")
        own = next(Path(root).glob(f"WIDER_{split}/*--*"), None) is not None
        super().__init__(root, f"WIDER_{split}" if own else f"WIDER_{split}/images", options.boxes_alone("WIDER FACE"),
                         "wider_face")
        self.class_names = CLASSES
        text, names = self.root / f"wider_face_split/wider_face_{split}_bbx_gt.txt", self.root / f"{split}.txt"
        if text.exists() or not names.exists():
            self.annotation_file, rows = text, read_faces(text)
            self.size_file = text.with_suffix(".sizes.npz")
            self.take(rows, picture_sizes(self.image_folder, rows.files, self.size_file, upright=options.exif))
            return
        self.annotation_file, rows = names, Rows()
        folder = self.root / f"WIDER_{split}/Annotations"
        # A picture's name begins with the number of its event, whose folder has that number and a name.
        events = {event.name.partition("--")[0]: event.name for event in self.image_folder.iterdir()}
        listed = [Path(inside(name, names)).name for name in read_text(names, "list of pictures").split()]
        once = list(dict.fromkeys(listed))
        warn_again(names, len(listed) - len(once))
        sizes = read_xml([(folder / f"{name}.xml", f"{events.get(name.partition('_')[0], '.')}/{name}.jpg")
                          for name in once], self.image_folder, CLASSES, rows, offset=0, title=f"faces of {split}",
                         upright=options.exif)
        self.take(rows, sizes)

    def official_ground_truth(self) -> tuple[Columns, dict[str, np.ndarray]]:
        """All faces of the images as the official evaluation has them, and which count as easy, medium and hard."""
        place = {file: int(i) for file, i in zip(self.files, self.image_ids)}
        faces = read_cells(self.truth_file("face"), "face_bbx_list")
        known = [file for file in faces if file in place]
        if bad := next((file for file in known if faces[file].size % 4), None):
            raise DataError(f"The file {self.truth_file('face')} has {faces[bad].size} numbers for the boxes of {bad}, "
                            f"not four each.")
        boxes = [faces[file].reshape(-1, 4) for file in known]
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


def read_faces(path: Path) -> Rows:
    """The published annotations: a picture, the number of its faces, and for each x, y, w, h and six marks.

    Where there is no face, a line of zeros follows all the same.
    """
    rows, number, found, again = Rows(), 0, set[str](), [0, 0]
    lines = [line.strip() for line in read_text(path, "annotation file").splitlines()]
    try:
        while number < len(lines):
            if not lines[number]:
                number += 1
                continue
            picture = inside(lines[number], f"Line {number + 1} of {path}")
            count = int(lines[number + 1])
            number += 2
            if count < 0 or len(lines) < number + max(count, 1):
                raise ValueError("the file ends within a picture")
            twice = picture in found
            found.add(picture)
            if twice:
                again = [again[0] + 1, again[1] + count]
            for line in lines[number:number + count]:
                x, y, w, h, *marks = map(float, line.split())
                invalid = marks[INVALID - 4]
                if not twice:
                    rows.add((x, y, x + w, y + h), 0, bool(invalid))
                number += 1
            if not twice:
                rows.files.append(picture)
            number += count == 0
    except (ValueError, IndexError) as error:
        what = "a line has too few numbers" if isinstance(error, IndexError) else problem(error)
        raise DataError(f"{path} is broken near line {number + 1}: {what}.") from error
    warn_again(path, *again)
    return rows


# A damaged file can crash SciPy together with its process, or take all memory: it is read in a process of its own.
_CELLS = """
import sys
import numpy as np
from scipy.io import loadmat
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
except ImportError:  # not on Windows
    pass
path, name = sys.argv[1:]
content = loadmat(path)
events, files, cells = (content[key].ravel() for key in ("event_list", "file_list", name))
pairs = [(f"{event.ravel()[0]}/{file.ravel()[0]}.jpg", np.asarray(cell)) for event, of_event, of_cells
         in zip(events, files, cells) for file, cell in zip(of_event.ravel(), of_cells.ravel())]
np.savez(sys.stdout.buffer, names=np.array([name for name, _ in pairs], np.str_),
         shapes=np.array([(*np.atleast_2d(cell).shape,) for _, cell in pairs], np.int64).reshape(-1, 2),
         values=np.concatenate([np.zeros(0), *(cell.ravel().astype(float) for _, cell in pairs)]))
"""


def read_cells(path: Path, name: str) -> dict[str, np.ndarray]:
    """What a list of the official evaluation has for each picture, by "EVENT/PICTURE.jpg": float64 arrays."""
    try:
        done = subprocess.run([sys.executable, "-c", _CELLS, str(path), name], capture_output=True, timeout=300)
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ValueError(last[0][:200] if last and done.returncode > 0 else "SciPy crashes on it")
        with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
            names, shapes, values = found["names"], found["shapes"], found["values"]
        parts = np.split(values, shapes.prod(1).cumsum()[:-1]) if len(names) else []
        return {str(name): part.reshape(shape) for name, part, shape in zip(names, parts, shapes)}
    except Exception as error:  # whatever comes of a broken file
        raise DataError(f"The file {path} of the official evaluation cannot be read: {error}.") from error
