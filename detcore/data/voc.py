"""PASCAL VOC: an XML file of objects for each picture, and lists of pictures.

    VOC2007/JPEGImages/000005.jpg    VOC2007/Annotations/000005.xml    VOC2007/ImageSets/Main/trainval.txt, test.txt
    VOC2012/...                                                        ImageSets/Main/aeroplane_trainval.txt, ...

Trained on `trainval` of both years, tested on `test` of 2007. A file that is missing or broken is a `DataError` with
its name.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image
from tqdm import tqdm

from detcore.data.coco import CocoDataset
from detcore.data.dataset import DEFAULT_OPTIONS, Dataset, ReadOptions, Rows
from detcore.data.files import open_file
from detcore.errors import DataError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
SPLITS = {"train": (("VOC2007", "trainval"), ("VOC2012", "trainval")), "val": (("VOC2007", "test"),)}


class VocDataset(Dataset):
    """VOC's images with their boxes; difficult objects are ignored in training and flagged for the evaluation.

    The last pixel of a box is inside, and pixels are counted from 1; as in the original, both ends become one less.
    Classes are those that `ImageSets/Main` has lists for, in alphabetical order, or else VOC's own twenty.
    """

    def __init__(self, root: str | Path, split: str = "train", options: ReadOptions = DEFAULT_OPTIONS) -> None:
        """
        Args:
            root: the folder that holds `VOC2007` and `VOC2012`, or one that holds it as `VOCdevkit`.
            split: "train" or "val".
        """
        root = devkit(root)
        super().__init__(root, "", options.boxes_alone("PASCAL VOC"), "voc")
        lists = {year: root / year / f"ImageSets/Main/{part}.txt" for year, part in SPLITS[split]
                 if (root / year).is_dir()}
        if not lists:
            raise DataError(f"{root} holds none of the folders {', '.join(year for year, _ in SPLITS[split])}.")
        self.annotation_file = next(iter(lists.values()))
        self.class_names = tuple(options.classes or class_names(self.annotation_file.parent))
        rows, sizes = Rows(), []
        for year, path in lists.items():
            with open_file(path, "list of pictures", "r") as file:
                names = file.read().split()
            sizes += read_xml([(root / year / f"Annotations/{name}.xml", f"{year}/JPEGImages/{name}.jpg")
                               for name in names], root, self.class_names, rows, offset=-1, title=f"{year} {path.stem}")
        self.take(rows, sizes)


def devkit(root: str | Path) -> Path:
    """The folder that holds the years."""
    return Path(root) / "VOCdevkit" if (Path(root) / "VOCdevkit").is_dir() else Path(root)


def class_names(folder: Path) -> tuple[str, ...]:
    """The classes that a folder of lists has lists for."""
    return tuple(sorted(path.stem.removesuffix("_trainval") for path in folder.glob("*_trainval.txt"))) or CLASSES


def read_xml(files: Iterable[tuple[Path, str]], folder: Path, classes: Sequence[str], rows: Rows, *,
             offset: int, title: str) -> list[tuple[int, int]]:
    """Read XML files and add what they say to `rows`; the sizes (h, w) of the pictures.

    Args:
        files: each with its picture under `folder`.
        offset: what is added to all coordinates.
    """
    label, sizes = {name: i for i, name in enumerate(classes)}, []
    for path, picture in tqdm(files, desc=f"reading {title}", unit="img", leave=False, delay=3):
        try:
            tree = ElementTree.fromstring(path.read_bytes())
            size = tree.find("size")
            if size is None:
                with Image.open(folder / picture) as image:
                    sizes.append((image.height, image.width))
            else:
                sizes.append((int(_text(size, "height")), int(_text(size, "width"))))
            for thing in tree.iter("object"):
                name = _text(thing, "name")
                if name not in label:
                    continue
                box = thing.find("bndbox")
                if box is None:
                    raise ValueError("an object has no bndbox")
                corners = [int(float(_text(box, side))) + offset for side in ("xmin", "ymin", "xmax", "ymax")]
                rows.add(corners, label[name], thing.findtext("difficult", "0").strip() not in ("0", ""))
        except FileNotFoundError as error:
            raise DataError(f"There is no file {error.filename}.") from None
        except (ElementTree.ParseError, ValueError, OSError) as error:
            raise DataError(f"The annotation file {path} is broken: {error}.") from error
        rows.files.append(picture)
    return sizes


def _text(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(name)
    if text is None or not text.strip():
        raise ValueError(f"{element.tag} has no {name}")
    return text.strip()


def open_coco_format(root: Path, split: str, options: ReadOptions) -> CocoDataset:
    """VOC converted to COCO's format: `annotations/voc0712_trainval.json` and `voc07_test.json`, with pictures named
    from the root on, or from `VOC2007` on."""
    root = devkit(root)
    data = CocoDataset.read(root, f"annotations/{'voc0712_trainval' if split == 'train' else 'voc07_test'}.json", "",
                            options, layout="voc-coco")
    if len(data) and not data.path(0).exists() and (root / "VOC2007" / data.files[0]).exists():
        data.image_folder = root / "VOC2007"
    return data
