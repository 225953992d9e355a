"""COCO's evaluation: average precision of boxes and masks, average recall of proposals.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and the evaluation that came with the data set. The
counting is left to faster-coco-eval or to pycocotools; what is read out of their arrays here is the same for both.
All values are fractions of 1; None stands for what the ground truth has no object for.
"""
from __future__ import annotations

import contextlib
import copy
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from detcore.errors import UsageError
from detcore.metrics.entries import Entry, GroundTruth, read_ground_truth, read_results
from detcore.metrics.intervals import resamplings

Kind = Literal["bbox", "segm", "proposal"]
KINDS = ("bbox", "segm", "proposal")
BACKENDS = ("faster-coco-eval", "pycocotools")
DEFAULT_BACKEND = BACKENDS[0]
DETECTION_LIMITS, PROPOSAL_LIMITS = (1, 10, 100), (100, 300, 1000)
AREAS = ("", "s", "m", "l")  # suffixes: any area, below 32^2 pixels, up to 96^2, above
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
GROUP = 20  # classes that are compared at a time: the libraries keep something for each pair of image and class


@dataclass(frozen=True)
class CocoResult:
    """What an evaluation gives.

    Attributes:
        kind: "bbox", "segm" or "proposal"; or "panoptic" (`detcore.metrics.panoptic`), whose quality stands for AP.
        metrics: AP (mean over IoU 0.5 to 0.95), AP50, AP75, APs, APm, APl (by area) and the average recalls AR1, AR10,
            AR100, ARs, ARm, ARl; of proposals the recalls AR100, AR300, AR1000, ARs, ARm, ARl without classes.
        per_class: AP of each class; empty for proposals.
        precision: [10, 101, classes], the precision at each of `IOUS` and `RECALLS`; NaN where a class has no object.
        images, objects: how many were evaluated; crowds are not counted.
        replicates: the metrics under resamplings of the images (`detcore.metrics.intervals`), where asked for.
    """

    kind: Kind | Literal["panoptic"]
    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    precision: np.ndarray = field(repr=False)
    images: int
    objects: int
    replicates: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def headline(self) -> float:
        """The one number that stands for the result: AP, or the recall of the most proposals; 0 where there is none."""
        return list(self.metrics.values())[2 if self.kind == "proposal" else 0] or 0.0

    def curve(self, iou: float = 0.5, label: int | None = None) -> np.ndarray:
        """Precision [101] over `RECALLS` at an IoU of `IOUS`, of one class or averaged over the classes."""
        at = self.precision[int(np.abs(IOUS - iou).argmin())]
        if label is not None:
            return at[:, label]
        known = ~np.isnan(at).all(0)
        return at[:, known].mean(1) if known.any() else np.full(len(RECALLS), np.nan)


def evaluate_coco(gt: str | Path | Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind = "bbox", *,
                  backend: str = DEFAULT_BACKEND, category_ids: Sequence[Any] | None = None,
                  class_names: Sequence[str] | None = None, image_ids: Sequence[Any] | None = None,
                  limits: tuple[int, int, int] | None = None, replicates: int = 0,
                  progress: bool = False) -> CocoResult:
    """Compare detections with the ground truth of a COCO annotation file.

    Ids are whole numbers of any size, or text. Annotations without a box of positive, finite size are left out. An
    object whose mask is missing, empty or broken counts neither for nor against detections in its box when masks are
    compared, as in training. One warning tells how many there are of both.

    Args:
        gt: the annotation file, or its content.
        results: as in COCO's results files: image_id, category_id, score, bbox (x, y, width, height) and, for "segm",
            segmentation (run lengths). For "proposal" the category does not matter.
        backend: "faster-coco-eval" or "pycocotools".
        category_ids, image_ids: evaluate only these; all of the file by default.
        class_names: names of those categories, which the file then need not have; by default the file's.
        limits: three numbers of detections an image, for the recalls; precision takes the last.
        replicates: resamplings of the images under which the metrics are computed again, by faster-coco-eval.

    Raises:
        UsageError: an unknown kind or backend, one that gives no replicates, or a category that the file does not have.
        DataError: the annotation file cannot be read, or a result is of an image that it does not have, lacks a key, or
            has a score, box or mask that is none.
    """
    if kind not in KINDS:
        raise UsageError(f"There is no COCO evaluation {kind!r}: it is one of {', '.join(KINDS)}.")
    load_backend(backend)
    if replicates and backend != DEFAULT_BACKEND:
        raise UsageError(f"Intervals by the bootstrap need the backend {DEFAULT_BACKEND}, not {backend}.")
    more = None if class_names is None else dict(zip(category_ids or (), class_names))
    truth = read_ground_truth(gt, masks=kind == "segm", more_categories=more)
    detections = read_results(results, truth, masks=kind == "segm", classes=kind != "proposal")
    limits = limits or (PROPOSAL_LIMITS if kind == "proposal" else DETECTION_LIMITS)
    counts = count(truth, detections, kind, backend, category_ids, image_ids, limits, progress, replicates)
    metrics = {} if kind == "proposal" else counts.average_precision()
    return counts.result(kind, metrics | counts.average_recall())


@dataclass(frozen=True)
class Counts:
    """Precision and recall of every class, NaN where it has no object.

    Attributes:
        precision: [10, 101, classes, 4, limits], by `IOUS`, `RECALLS` and `AREAS`; recall: [10, classes, 4, limits].
        limits: numbers of detections.
        names: of the classes.
        images, objects: how many there are.
        resampled: for each resampling of the images the metrics.
    """

    precision: np.ndarray
    recall: np.ndarray
    limits: Sequence[int]
    names: Sequence[str]
    images: int
    objects: int
    resampled: Sequence[dict[str, float | None]] = ()

    def average_precision(self) -> dict[str, float | None]:
        """AP, at two thresholds, and by area, with the most detections."""
        p = self.precision[..., -1]
        values = {"AP": p[..., 0], "AP50": p[0, ..., 0], "AP75": p[5, ..., 0]}
        values |= {f"AP{area}": p[..., a] for a, area in enumerate(AREAS) if area}
        return {name: mean(v) for name, v in values.items()}

    def average_recall(self) -> dict[str, float | None]:
        """AR with each number of detections, and by area with the most."""
        values = {f"AR{n}": self.recall[..., 0, i] for i, n in enumerate(self.limits)}
        values |= {f"AR{area}": self.recall[..., a, -1] for a, area in enumerate(AREAS) if area}
        return {name: mean(v) for name, v in values.items()}

    def result(self, kind: Kind, metrics: dict[str, float | None]) -> CocoResult:
        """The result with these metrics."""
        precision = self.precision[..., 0, -1]
        per_class = {} if kind == "proposal" else {n: mean(precision[:, :, k]) for k, n in enumerate(self.names)}
        replicates = {name: np.array([one[name] for one in self.resampled], float)
                      for name in metrics if self.resampled and name in self.resampled[0]}
        return CocoResult(kind, metrics, per_class, precision, self.images, self.objects, replicates)


def count(truth: GroundTruth, results: Sequence[Entry], kind: Kind, backend: str, category_ids: Sequence[Any] | None,
          image_ids: Sequence[Any] | None, limits: Sequence[int], progress: bool, replicates: int = 0,
          **options: Any) -> Counts:
    """Let a library compare results with the ground truth, a group of classes after the other.

    Args:
        truth, results: from `detcore.metrics.entries`; the other arguments as in `evaluate_coco`.
        options: of the library's evaluation.
    """
    coco_class, eval_class = load_backend(backend)
    names = unique_names(truth)
    classes = list(names) if category_ids is None else sorted(_category(truth, i) for i in category_ids)
    images = ([image["id"] for image in truth.images] if image_ids is None
              else sorted({truth.image_of(i) for i in image_ids}))
    together = max(len(classes), 1) if kind == "proposal" else GROUP
    groups = [classes[i:i + together] for i in range(0, len(classes), together)] or [[]]
    objects, found = _by_class(truth.annotations), _by_class(results)
    shape = len(IOUS), len(RECALLS), -1, len(AREAS), len(limits)
    replicates = replicates if images else 0
    precision, recall = [], []
    resampled: list[list[dict[str, np.ndarray]]] = [[] for _ in range(replicates)]
    options |= dict(separate_eval=True) if replicates else {}
    with tqdm(total=len(classes), desc=f"counting {kind}", unit="class", disable=not progress, leave=False) as bar:
        for group in groups:
            with contextlib.redirect_stdout(io.StringIO()):  # both libraries talk
                ground, detected = (_index(coco_class, truth, [a for c in group for a in of_class.get(c, ())])
                                    for of_class in (objects, found))
                run = eval_class(ground, detected, "segm" if kind == "segm" else "bbox", **options)
                run.params.maxDets = list(limits)
                run.params.useCats = int(kind != "proposal")
                run.params.imgIds, run.params.catIds = images, group
                run.evaluate()
                run.accumulate()
            precision.append(_nan(run.eval["precision"]).reshape(shape))
            recall.append(_nan(run.eval["recall"]).reshape(shape[:1] + shape[2:]))
            for of_group, values in zip(resampled, _resample(run, kind, len(images), replicates)):
                of_group.append(values)
            bar.update(len(group))
    counted, shown = set(classes), set(images)
    number = sum(not a["iscrowd"] and a["image_id"] in shown and (kind == "proposal" or a["category_id"] in counted)
                 for a in truth.annotations)
    again = [{name: mean(np.concatenate([values[name] for values in groups])) for name in groups[0]}
             for groups in resampled]
    return Counts(np.concatenate(precision, 2), np.concatenate(recall, 1), limits, [names[c] for c in classes],
                  len(shown), number, again)


def _category(truth: GroundTruth, value: Any) -> int:
    """The new id of a category; UsageError where there is none."""
    if (number := truth.category_numbers.get(value)) is None:
        raise UsageError(f"{truth.title} has no category {value!r}.")
    return number


def unique_names(truth: GroundTruth) -> dict[int, str]:
    """A name for each category by its new id, with the file's id where several have the same."""
    names = [str(category["name"]) for category in truth.categories]
    seen = Counter(names)
    return {c["id"]: f"{name} (category {i})" if seen[name] > 1 else name
            for c, name, i in zip(truth.categories, names, truth.category_numbers.ids)}


def _resample(run: Any, kind: Kind, images: int, replicates: int) -> Iterator[dict[str, np.ndarray]]:
    """Metrics of each class under resamplings of the images: the matches in each image are put together anew."""
    if not replicates:
        return
    from faster_coco_eval.faster_eval_api_cpp import COCOevalAccumulate

    params, per_image = copy.copy(run._paramsEval), run._evalImgs_cpp  # by class and area, then by image
    if kind == "proposal":
        params.imgIds = params.imgIds[:1]
        alone = [COCOevalAccumulate(params, per_image[i::images])["recall"] for i in range(images)]
        yield from _resample_recall(run, np.stack(alone), replicates)
        return
    params.maxDets = params.maxDets[-1:]
    shape = len(IOUS), len(RECALLS), -1, len(AREAS)
    for chosen in resamplings(images, replicates):
        drawn = [per_image[start + i] for start in range(0, len(per_image), images) for i in chosen]
        counted = COCOevalAccumulate(params, drawn)
        p, r = _nan(counted["precision"]).reshape(shape), _nan(counted["recall"]).reshape(shape[:1] + shape[2:])
        values = {f"AR{params.maxDets[0]}": r[..., 0].mean(0)}
        values |= {"AP": p[..., 0].mean((0, 1)), "AP50": p[0, ..., 0].mean(0), "AP75": p[5, ..., 0].mean(0)}
        for a, area in enumerate(AREAS[1:], 1):
            values |= {f"AP{area}": p[..., a].mean((0, 1)), f"AR{area}": r[..., a].mean(0)}
        yield values


def _resample_recall(run: Any, recall: np.ndarray, replicates: int) -> Iterator[dict[str, np.ndarray]]:
    """The same for recall without classes, which needs no ranking over images: objects found over objects there are.

    Args:
        recall: [images, ...] of each image alone, by IoU, area and number of proposals.
    """
    limits, place = run.params.maxDets, {image: i for i, image in enumerate(run.params.imgIds)}
    recall = recall.reshape(len(place), len(IOUS), len(AREAS), len(limits))
    objects = np.zeros((len(place), len(AREAS)))
    for annotation in run.cocoGt.anns.values():
        if not annotation["iscrowd"] and annotation["image_id"] in place:
            objects[place[annotation["image_id"]]] += [low <= annotation["area"] <= high
                                                       for low, high in run.params.areaRng]
    found = np.where(recall > -1, recall, 0) * objects[:, None, :, None]
    for chosen in resamplings(len(place), replicates):
        with np.errstate(invalid="ignore"):
            r = (found[chosen].sum(0) / objects[chosen].sum(0)[:, None]).mean(0)[:, :, None]
        yield {f"AR{n}": r[0, i] for i, n in enumerate(limits)} | {
            f"AR{area}": r[a, -1] for a, area in enumerate(AREAS) if area}


def load_backend(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A library's COCO and COCOeval; UsageError where there is no such library."""
    if name not in BACKENDS:
        raise UsageError(f"There is no evaluation backend {name!r}: it is one of {', '.join(BACKENDS)}.")
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    from faster_coco_eval import COCO, COCOeval_faster

    return COCO, COCOeval_faster


def _by_class(annotations: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for annotation in annotations:
        found.setdefault(annotation["category_id"], []).append(annotation)
    return found


def _index(coco_class: Callable[..., Any], truth: GroundTruth, annotations: list[Entry]) -> Any:
    coco = coco_class()
    coco.dataset = dict(images=truth.images, categories=truth.categories, annotations=annotations)
    coco.createIndex()
    return coco


def _nan(values: np.ndarray) -> np.ndarray:
    """Both libraries write -1 where there is no object."""
    return np.where(np.asarray(values) > -1, values, np.nan)


def mean(values: np.ndarray) -> float | None:
    """The mean of what is known, None where nothing is."""
    return None if np.isnan(values).all() else float(np.nanmean(values))
