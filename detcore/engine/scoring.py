"""Detections against the ground truth, by the rules of the data set they were made in.

COCO's layout is counted as COCO does it; VOC, LVIS, Cityscapes, Open Images and WIDER FACE have rules of their own.
Detections come as COCO's results (a dict for each detection), whatever the data set.
"""
from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from detcore.data.cityscapes import CityscapesDataset
from detcore.data.coco import CocoDataset
from detcore.data.dataset import Dataset
from detcore.data.openimages import OpenImagesDataset
from detcore.data.widerface import WiderFaceDataset
from detcore.errors import DataError, UsageError
from detcore.metrics import ranking
from detcore.metrics.cityscapes import CityscapesAP
from detcore.metrics.coco import DEFAULT_BACKEND, CocoResult, evaluate_coco
from detcore.metrics.lvis import evaluate_lvis
from detcore.metrics.openimages import evaluate_openimages
from detcore.metrics.panoptic import PanopticQuality
from detcore.metrics.ranking import Boxes
from detcore.metrics.voc import evaluate_voc
from detcore.metrics.wider_face import evaluate_wider_face
from detcore.structures import Detections, encode_rle

Result = CocoResult | ranking.Result
Results = dict[str, Result]
Rows = Sequence[Mapping[str, Any]]


# Some measures watch each image's detections as they come, because masks and maps are too large to be kept.

@dataclass
class PanopticWatcher:
    """Panoptic quality."""

    measure: PanopticQuality

    def add(self, image_id: int, detections: Detections) -> None:
        """Compare an image's detections, on any device, with its ground truth."""
        assert detections.panoptic is not None
        self.measure.add(image_id, detections.panoptic.cpu().numpy())

    def gather(self) -> None:
        """Put the counts of all processes in place of this one's."""
        counts, images = zip(*gather_object([(self.measure.counts, self.measure.images)]))
        self.measure.counts, self.measure.images = sum(counts), sum(images)


@dataclass
class CityscapesWatcher:
    """Cityscapes' average precision of masks; methods as in `PanopticWatcher`."""

    measure: CityscapesAP
    dataset: CityscapesDataset

    def add(self, image_id: int, detections: Detections) -> None:
        assert detections.masks is not None
        self.measure.add(self.dataset.instance_map(image_id), detections.masks.cpu().numpy(),
                         detections.labels.cpu().numpy(), detections.scores.float().cpu().numpy())

    def gather(self) -> None:
        self.measure.counted = gather_object(self.measure.counted)


Watcher = PanopticWatcher | CityscapesWatcher


def watchers(dataset: Dataset, kinds: Iterable[str]) -> dict[str, Watcher]:
    """The measures that must see every image, by name."""
    needed: dict[str, Watcher] = {}
    if dataset.panoptic is not None:
        needed["panoptic"] = PanopticWatcher(PanopticQuality(dataset.panoptic))
    if isinstance(dataset, CityscapesDataset) and "segm" in kinds:
        needed["cityscapes"] = CityscapesWatcher(CityscapesAP(dataset.category_ids, dataset.class_names), dataset)
    return needed


def score(detections: Rows, dataset: Dataset, kinds: Iterable[str], backend: str = DEFAULT_BACKEND,
          watched: Mapping[str, Watcher] | None = None, progress: bool = False, replicates: int = 0) -> Results:
    """Detections against the ground truth of the data set's images, by name of the measure.

    Args:
        kinds: what the model gives: "bbox", "segm", "proposal", "panoptic".
        backend: for COCO's own measures.
        watched: measures that have seen the images.
        replicates: resamplings of the images for the intervals of COCO's own measures.
    """
    kinds = [kind for kind in kinds if kind != "panoptic"]
    rule = coco if "proposal" in kinds else RULES.get(dataset.layout, coco)
    options = dict(replicates=replicates) if rule is coco else {}
    results = rule(detections, dataset, kinds, backend, progress, **options)
    return results | {name: watcher.measure.result() for name, watcher in (watched or {}).items()}


def coco(detections: Rows, dataset: Dataset, kinds: Sequence[str], backend: str, progress: bool,
         replicates: int = 0) -> Results:
    """COCO's average precision, or recall of proposals, of data in any form."""
    def truth(kind: str) -> dict[str, Any]:
        masks = kind == "segm"
        return dataset.ground_truth(masks) if isinstance(dataset, CocoDataset) else as_coco(dataset, masks=masks)

    return {kind: evaluate_coco(truth(kind), detections, kind, backend=backend,  # type: ignore[arg-type]
                                category_ids=dataset.category_ids, class_names=dataset.class_names,
                                image_ids=dataset.image_ids.tolist(), progress=progress, replicates=replicates)
            for kind in kinds}


def as_coco(dataset: Dataset, *, masks: bool = False) -> dict[str, Any]:
    """The content of a COCO annotation file with a data set's objects; what is flagged in it is a crowd.

    With `masks` objects have run lengths, made one after the other, so that no more than one is held as pixels.

    Raises:
        UsageError: the data set has no masks.
    """
    objects = dataset.objects()
    sides = np.concatenate([objects["boxes"][:, :2], objects["boxes"][:, 2:] - objects["boxes"][:, :2]], 1)
    annotations = [dict(image_id=image, bbox=box, category_id=dataset.category_ids[label], iscrowd=int(flag))
                   for image, box, label, flag in zip(objects["image"].tolist(), sides.tolist(),
                                                      objects["labels"].tolist(), objects["flags"].tolist())]
    if masks:
        for annotation, shape in zip(annotations, run_lengths(dataset)):
            annotation["segmentation"] = shape
    return dict(
        images=[dict(id=i, height=h, width=w) for i, (h, w) in zip(dataset.image_ids.tolist(), dataset.sizes.tolist())],
        categories=[dict(id=i, name=name) for i, name in zip(dataset.category_ids, dataset.class_names)],
        annotations=annotations)


def run_lengths(dataset: Dataset) -> Iterator[dict[str, Any] | None]:
    """The run lengths of all objects of a data set, in the order of `Dataset.objects`; None for one without a mask."""
    view = copy.copy(dataset)
    view.masks = "bitmap"
    try:
        for place, row in zip(*(column.tolist() for column in dataset.rows())):
            height, width = dataset.sizes[place].tolist()
            mask = view._mask(row, (height, width))
            yield None if mask is None else encode_rle(np.asarray(mask)[None])[0]
    except NotImplementedError:
        raise UsageError(f"{dataset.annotation_file} has boxes alone, so that masks cannot be evaluated: evaluate a "
                         f"model that gives boxes, or give the data in COCO's layout.") from None


def columns(detections: Rows, dataset: Dataset) -> Boxes:
    """Results as columns of arrays, with labels in place of category ids."""
    label = {category: i for i, category in enumerate(dataset.category_ids)}
    boxes = np.array([d["bbox"] for d in detections], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Boxes(np.array([d["image_id"] for d in detections], np.int64), boxes,
                 np.array([label[d["category_id"]] for d in detections], np.int64),
                 np.array([d["score"] for d in detections], float))


def voc(detections: Rows, dataset: Dataset, kinds: Sequence[str], backend: str, progress: bool) -> Results:
    """VOC 2007's average precision: eleven points, boxes that end with their last pixel."""
    return {"voc": evaluate_voc(Boxes(**dataset.objects()), columns(detections, dataset), dataset.class_names,
                                images=len(dataset), progress=progress)}


def lvis(detections: Rows, dataset: Dataset, kinds: Sequence[str], backend: str, progress: bool) -> Results:
    """LVIS's average precision."""
    return {kind: evaluate_lvis(dataset.annotation_file, detections, kind,  # type: ignore[arg-type]
                                image_ids=dataset.image_ids.tolist(), progress=progress) for kind in kinds}


def openimages(detections: Rows, dataset: Dataset, kinds: Sequence[str], backend: str, progress: bool) -> Results:
    """Open Images' average precision."""
    assert isinstance(dataset, OpenImagesDataset)
    image, label = dataset.verified()
    verified = Boxes(image, np.zeros((len(image), 4)), label)
    return {"openimages": evaluate_openimages(Boxes(**dataset.objects()), columns(detections, dataset),
                                              dataset.class_names, dataset.ancestors, verified, images=len(dataset),
                                              progress=progress)}


def wider_face(detections: Rows, dataset: Dataset, kinds: Sequence[str], backend: str, progress: bool) -> Results:
    """VOC's average precision, as the zoo publishes it, and the data set's own where its files are there."""
    assert isinstance(dataset, WiderFaceDataset)
    results = voc(detections, dataset, kinds, backend, progress)
    try:
        gt, counts = dataset.official_ground_truth()
    except DataError as error:
        warnings.warn(f"Easy, medium and hard faces are not told apart. {error}", stacklevel=2)
        return results
    return results | {"wider_face": evaluate_wider_face(Boxes(**gt), columns(detections, dataset), counts,
                                                        images=len(dataset), progress=progress)}


RULES = {"voc": voc, "lvis": lvis, "openimages": openimages, "openimages-challenge": openimages,
         "wider_face": wider_face}
