"""The forms that data sets come in: how each is recognised, opened and checked."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from detcore.data import cityscapes, coco, locate, lvis, openimages, voc, widerface, xmltree, yolo
from detcore.data.dataset import Dataset, ReadOptions
from detcore.errors import UsageError


@dataclass(frozen=True)
class Needed:
    """A file or folder of a data set.

    Attributes:
        path: under the root; with wildcards where several files are meant.
        what: what it is, and where it comes from, as a sentence.
        optional: training and detection do without.
    """

    path: str
    what: str
    optional: bool = False


@dataclass(frozen=True)
class Layout:
    """A form of data sets.

    Attributes:
        name, title: for commands, for people.
        marks: paths (with wildcards) of which one tells that a folder has this form.
        needed: what must be there.
        open: reads a split ("train", "val") of the data set in a root.
        home: the folder that all paths start from, for the one that a user names.
        proof: looks into the files, where the marks alone could be of something else.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    needed: tuple[Needed, ...] = field(repr=False)
    open: Callable[[Path, str, ReadOptions], Dataset] = field(repr=False)
    home: Callable[[Path], Path] = field(default=Path, repr=False)
    proof: Callable[[Path], bool] = field(default=Path.is_dir, repr=False)

    def fits(self, root: Path) -> bool:
        """Whether a folder looks like this."""
        home = self.home(root)
        return any(next(home.glob(mark), None) is not None for mark in self.marks) and self.proof(home)


def both(path: str, what: str, optional: bool = False) -> tuple[Needed, ...]:
    """What is needed of the training and of the validation images: "{0}" stands for "train", "val", "{1}" for those."""
    return tuple(Needed(path.format(split, images), what.format(split, images), optional)
                 for split, images in (("train", "training"), ("val", "validation")))


COCO = Layout(
    "coco", "COCO 2017", ("annotations/instances_*.json",), (
        *both("{0}*", "pictures of the {1} images: {0}2017.zip of cocodataset.org"),
        *both("annotations/instances_{0}*.json",
              "objects of the {1} images: annotations_trainval2017.zip of cocodataset.org"),
        *both("annotations/panoptic_{0}*.json",
              "for panoptic models: panoptic_annotations_trainval2017.zip of cocodataset.org", optional=True),
    ), coco.CocoDataset.open)

LVIS = Layout(
    "lvis", "LVIS v1", ("annotations/lvis_v1_*.json",), (
        Needed("train2017", "most pictures: train2017.zip of cocodataset.org"),
        Needed("val2017", "the other pictures: val2017.zip of cocodataset.org"),
        *both("annotations/lvis_v1_{0}.json", "objects of the {1} images: lvis_v1_{0}.json.zip of lvisdataset.org"),
    ), lvis.open_lvis)

OF_2007 = "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar of host.robots.ox.ac.uk/pascal/VOC"
OF_2012 = "VOCtrainval_11-May-2012.tar of host.robots.ox.ac.uk/pascal/VOC"
VOC = Layout(
    "voc", "PASCAL VOC 2007 and 2012", ("VOC20*/ImageSets/Main",), (
        Needed("VOC2007/ImageSets/Main/trainval.txt", f"list of training images: {OF_2007}"),
        Needed("VOC2007/ImageSets/Main/test.txt", f"list of test images: {OF_2007}"),
        Needed("VOC2007/JPEGImages", f"pictures: {OF_2007}"),
        Needed("VOC2007/Annotations", f"objects: {OF_2007}"),
        Needed("VOC2012/ImageSets/Main/trainval.txt", f"list of more training images: {OF_2012}", optional=True),
        Needed("VOC2012/JPEGImages", f"pictures: {OF_2012}", optional=True),
        Needed("VOC2012/Annotations", f"objects: {OF_2012}", optional=True),
    ), voc.VocDataset, voc.devkit)

CONVERTED = "made from VOC's XML files by a converter to COCO's format"
VOC_COCO = Layout(
    "voc-coco", "PASCAL VOC in COCO's format", ("annotations/voc0712_trainval.json",), (
        Needed("annotations/voc0712_trainval.json", f"objects of the training images: {CONVERTED}"),
        Needed("annotations/voc07_test.json", f"objects of the test images: {CONVERTED}"),
        Needed("VOC2007/JPEGImages", f"pictures: {OF_2007}"),
        Needed("VOC2012/JPEGImages", f"pictures: {OF_2012}", optional=True),
    ), voc.open_coco_format, voc.devkit)

OF_CITYSCAPES = "of cityscapes-dataset.com"
CITYSCAPES = Layout(
    "cityscapes", "Cityscapes", ("leftImg8bit", "annotations/instancesonly_filtered_gtFine_*.json"), (
        *both("leftImg8bit/{0}", f"pictures of the {{1}} images: leftImg8bit_trainvaltest.zip {OF_CITYSCAPES}"),
        *both("gtFine/{0}", f"maps of instances: gtFine_trainvaltest.zip {OF_CITYSCAPES}"),
        *both("annotations/instancesonly_filtered_gtFine_{0}.json",
              "objects in COCO's format, made from the maps of instances when they are first read", optional=True),
    ), cityscapes.CityscapesDataset.open)

OF_OPENIMAGES = "of storage.googleapis.com/openimages"
PICTURES = [Needed(folder, f"pictures: the download page {OF_OPENIMAGES}") for folder in
            (openimages.FOLDERS["train"], openimages.FOLDERS["val"])]
OPENIMAGES = Layout(
    "openimages", "Open Images v6", tuple(openimages.BOXES.values()), (
        *PICTURES,
        Needed(openimages.BOXES["train"], f"boxes: v6/oidv6-train-annotations-bbox.csv {OF_OPENIMAGES}"),
        Needed(openimages.BOXES["val"], f"boxes: v5/validation-annotations-bbox.csv {OF_OPENIMAGES}"),
        Needed(openimages.CLASSES, f"classes: v5/class-descriptions-boxable.csv {OF_OPENIMAGES}"),
        Needed(openimages.HIERARCHY, f"hierarchy of classes: 2018_04/bbox_labels_600_hierarchy.json {OF_OPENIMAGES}"),
        Needed(openimages.VERIFIED, "classes that were looked for in each image: v5/validation-annotations-human-"
               f"imagelabels-boxable.csv {OF_OPENIMAGES}", optional=True),
    ), openimages.OpenImagesDataset)

AS_TEXT = "challenge-2019-*-detection-bbox.txt of github.com/Sense-X/TSD"
OF_CHALLENGE = "of storage.googleapis.com/openimages/challenge_2019"
CHALLENGE = Layout(
    "openimages-challenge", "Open Images challenge 2019", tuple(openimages.CHALLENGE_BOXES.values()), (
        *PICTURES,
        *(Needed(boxes, f"boxes: {AS_TEXT}") for boxes in openimages.CHALLENGE_BOXES.values()),
        Needed(openimages.CHALLENGE_CLASSES, "codes, names and numbers of the classes: of github.com/Sense-X/TSD"),
        Needed(openimages.CHALLENGE_TREE, "hierarchy of the classes as an array; or the next", optional=True),
        Needed(openimages.CHALLENGE_HIERARCHY, f"hierarchy of the classes {OF_CHALLENGE}", optional=True),
        Needed(openimages.CHALLENGE_VERIFIED, f"classes that were looked for in each image {OF_CHALLENGE}",
               optional=True),
    ), partial(openimages.OpenImagesDataset, challenge=True))

OF_WIDER = "of shuoyang1213.me/WIDERFACE"
OF_XML = "of github.com/sovrasov/wider-face-pascal-voc-annotations"
WIDER_FACE = Layout(
    "wider_face", "WIDER FACE", ("WIDER_train", "WIDER_val"), (
        *both("WIDER_{0}/**/*--*", f"pictures of the {{1}} images: WIDER_{{0}}.zip {OF_WIDER}"),
        *both("wider_face_split/wider_face_{0}_bbx_gt.txt", f"faces: wider_face_split.zip {OF_WIDER}; or {{0}}.txt and "
              f"WIDER_{{0}}/Annotations {OF_XML}", optional=True),
        Needed("*/**/wider_hard_val.mat", f"which faces are easy, medium and hard: eval_tools.zip {OF_WIDER}, its four "
               f"files of ground_truth into wider_face_split", optional=True),
    ), widerface.WiderFaceDataset)

VOC_XML = Layout(
    "voc-xml", "PASCAL VOC's XML files", (
        "Annotations/*.xml", "ImageSets/Main/*.txt", "annotations/*.xml", "*/Annotations/*.xml", "*/annotations/*.xml",
        "*/*/Annotations/*.xml", "Annotations/*/*.xml", "annotations/*/*.xml", "*/images/*.xml", "images/*.xml",
        "train/*.xml", "xml/*.xml", "xmls/*.xml", "labels/*.xml", "*/labels/*.xml", "*.xml"), (), xmltree.open_xml,
    proof=xmltree.recognised)

YOLO = Layout("yolo", "YOLO's text files", (*yolo.SETTINGS, "*.yaml", "*.yml"), (), yolo.YoloDataset,
              proof=yolo.recognised)

LAYOUTS = {layout.name: layout for layout in (
    COCO, LVIS, VOC, VOC_COCO, CITYSCAPES, OPENIMAGES, CHALLENGE, WIDER_FACE, YOLO, VOC_XML)}


def get_layout(name: str) -> Layout:
    """A layout by its name; UsageError where there is none."""
    if name not in LAYOUTS:
        raise UsageError(f"There is no layout {name!r}: it is one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def find_layout(root: str | Path, first: str = "coco") -> Layout:
    """The layout of the data set in a folder: the one named first where it fits, or else the first that does.

    The places where labelling tools put files of COCO's form are looked at last, because they are the least particular.
    Where nothing fits it is the one named first, so that opening it tells what is missing.
    """
    named = get_layout(first)
    fitting = (layout for layout in (named, *LAYOUTS.values()) if layout.fits(Path(root)))
    return next(fitting, COCO if locate.splits(Path(root)) else named)
