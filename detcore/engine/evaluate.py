"""Evaluation: a detector over a data set, its detections against the ground truth."""
from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from detcore.data.dataset import Dataset
from detcore.data.loader import Batch, build_loader
from detcore.data.options import DataOptions
from detcore.data.proposals import save_proposals
from detcore.data.splits import has_split
from detcore.data.transforms import Preprocess
from detcore.data.tta import TestTimeAugmentation, mirrored
from detcore.detectors import Detector
from detcore.engine.common import (
    check_stuff,
    describe,
    load_data,
    loading_processes,
    match_classes,
    match_stuff,
    pick_device,
    ready_model,
    told,
)
from detcore.engine.scoring import Result, Results, Watcher, score, watchers
from detcore.errors import UsageError
from detcore.metrics.coco import DEFAULT_BACKEND, IOUS, RECALLS, CocoResult, load_backend, mean
from detcore.metrics.intervals import REPLICATES, interval
from detcore.ranges import checked
from detcore.recipe import Recipe
from detcore.records import Clock, Record, peak_memory_gb, write_text
from detcore.runs import output_folder
from detcore.structures import Detections
from detcore.zoo.create import Model, Resolved

FEW_IMAGES = 1000  # up to which intervals come without being asked for: they take seconds


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        results: by name: "bbox", "segm", "proposal" and "panoptic" as COCO has them, or the data set's own measure.
        detections: as in COCO's results files.
        record: the record of the run.
    """

    results: Results
    detections: list[dict[str, Any]] = field(repr=False)
    record: Record = field(repr=False)

    def __getitem__(self, name: str) -> Result:
        return self.results[name]


@checked()
def evaluate(model: Model, data_root: str | Path, *, weights: str | Path | None = None, recipe: Recipe | None = None,
             profile: str | None = None, backend: str = DEFAULT_BACKEND, split: str = "val",
             proposals: str | Path | None = None, device: str | None = None, batch_size: int | None = None,
             workers: int | None = None, images: int | None = None, tta: bool = False, replicates: int | None = None,
             output: str | Path | None = None, progress: bool = True, **options: Any) -> Evaluation:
    """Evaluate a model on a data set, by the data set's own measure.

    Args:
        model: a name of the zoo, a `ModelEntry`, a `Detector` (which needs a `recipe`), or a file that training wrote.
        weights: of a name or an entry: a file, "published" or "random".
        recipe: in place of the model's own.
        profile: "pocket" or "coco", which is the default with published weights.
        backend: of COCO's measures: "faster-coco-eval" or "pycocotools".
        proposals: file of precomputed proposals, for the models that need them.
        batch_size: images at a time; 1 on the coco profile, as published, whose images differ in size.
        images: only the first so many.
        tta: look at each image several times, as the recipe publishes it, or else at it and its mirror image.
        replicates: resamplings of the images for 95 % intervals of COCO's own measures, by faster-coco-eval; by default
            300 for up to 1,000 images, else none.
        output: folder for `detections.json` and `record.json`.
        options: keyword options of the model's builder, such as `score_threshold`, and those of the data
            (`detcore.data.options.DataOptions`), such as `holdout`, `val_annotations` and `rename`.

    The classes of the model and of the data are the same where their names are.

    Raises:
        DetcoreError: a wrong name or option, weights that do not fit, missing data, a folder that cannot be written
            to; `tta` for a model that gives more than boxes.
    """
    load_backend(backend)
    named = DataOptions.take(options)
    where = pick_device(device)
    ready = ready_model(model, weights, required=True, recipe=recipe, profile=profile,
                        check=check_tta if tta else None, **options)
    recipe, detector = ready.recipe, ready.model
    folder = None if output is None else output_folder(output)
    dataset = load_data(data_root, recipe, split, proposals=proposals, options=named)
    if "proposal" not in recipe.metric:
        match_classes(dataset, ready.classes, f"the model ({ready.name})")
    if dataset.panoptic is not None:
        match_stuff(dataset, ready.meta.get("stuff"), f"the model ({ready.name})")
        check_stuff(detector, len(dataset.panoptic.stuff))
    if images is not None:
        dataset.select(np.arange(len(dataset)) < images)
    if "proposal" not in recipe.metric and detector.num_classes != len(dataset.class_names):
        raise UsageError(f"The model tells {detector.num_classes} classes apart, but {dataset.annotation_file} has "
                         f"{len(dataset.class_names)}.")
    clock, batch_size = Clock(where), batch_size or (1 if ready.profile == "coco" else recipe.batch_per_gpu)
    how: dict[str, Any] = dict(batch_size=batch_size, workers=workers, progress=progress, title=ready.name)
    watched = watchers(dataset, recipe.metric)
    detector.to(where)
    detections = detect_views(detector, dataset, recipe, **how) if tta else detect(
        detector, dataset, recipe.preprocess, watched=watched, **how)
    seconds = clock()
    if replicates is None:
        replicates = REPLICATES if len(dataset) <= FEW_IMAGES and backend == DEFAULT_BACKEND else 0
    results = score(detections, dataset, recipe.metric, backend, watched, progress, replicates)
    record = Record(
        kind="evaluate", model=ready.name, profile=ready.profile, data=describe(dataset), duration_s=clock(),
        parameters=dict(split=split, backend=backend, batch_size=batch_size, device=where.type, tta=tta,
                        **told(model, weights, options), **named.told()),
        speed=dict(evaluation_images_per_s=len(dataset) / seconds), memory=peak_memory_gb(), **summary(results))
    if folder is not None:
        write_text(folder / "detections.json", json.dumps(detections))
        record.write(folder / "record.json")
    return Evaluation(results, detections, record)


def check_tta(subject: Resolved) -> None:
    """Raise a sentence for a model whose views cannot be merged."""
    if subject.recipe.metric != ("bbox",):
        raise UsageError(f"Test-time augmentation merges boxes alone, but {subject.name} is evaluated by "
                         f"{', '.join(subject.recipe.metric)}.")


def detect(model: Detector, dataset: Dataset, preprocess: Preprocess, *, world_size: int = 1,
           watched: Mapping[str, Watcher] | None = None, **options: Any) -> list[dict[str, Any]]:
    """The detections in every image of a data set, as in COCO's results files; `options` as of `predictions`.

    Of several processes each takes its share; all get the whole, also what the measures in `watched` have counted.
    """
    results, watching = [], list((watched or {}).values())
    for image_id, detections in predictions(model, dataset, preprocess, world_size=world_size, **options):
        results += detections.to_coco(image_id, dataset.category_ids)
        for watcher in watching:
            watcher.add(image_id, detections)
    if world_size == 1:
        return results
    for watcher in watching:
        watcher.gather()
    return gather_object(results)


def detect_views(model: Detector, dataset: Dataset, recipe: Recipe, *, title: str = "evaluating",
                 **options: Any) -> list[dict[str, Any]]:
    """As `detect`, with the boxes of several views of each image merged (see `TestTimeAugmentation`)."""
    augmentation = recipe.tta or TestTimeAugmentation()
    widths = dict(zip(dataset.image_ids.tolist(), dataset.sizes[:, 1].tolist()))
    views_of: dict[int, list[Detections]] = {}
    views = list(augmentation.views(recipe.test_transforms))
    for number, (transforms, flipped) in enumerate(views, 1):
        view = copy.copy(dataset)
        view.transforms = transforms
        for image_id, one in predictions(model, view, recipe.preprocess, **options,
                                         title=f"{title}, view {number} of {len(views)}"):
            views_of.setdefault(image_id, []).append((mirrored(one, widths[image_id]) if flipped else one).to("cpu"))
    return [result for image_id, several in views_of.items()
            for result in augmentation.merge(several).to_coco(image_id, dataset.category_ids)]


def predictions(model: Detector, dataset: Dataset, preprocess: Preprocess, *, batch_size: int = 1,
                workers: int | None = None, rank: int = 0, world_size: int = 1, progress: bool = True,
                title: str = "evaluating") -> Iterator[tuple[int, Detections]]:
    """Each image's id and detections, in the image's own pixels; of several processes each gives its share.

    The model runs where it is, in evaluation mode, and goes back to its mode.
    """
    device, training = next(model.parameters()).device, model.training
    loader = build_loader(dataset, batch_size, preprocess=preprocess, rank=rank, world_size=world_size,
                          workers=loading_processes(device, workers))
    model.eval()
    try:
        with tqdm(total=len(dataset), desc=title, unit="img", disable=not progress or rank > 0,
                  dynamic_ncols=True) as bar:
            for batch in loader:
                detections = predict_batch(model, batch.to(device), preprocess)
                yield from zip([meta.image_id for meta in batch.metas], detections)
                bar.update(min(len(batch) * world_size, len(dataset) - bar.n))
    finally:
        model.train(training)


def predict_batch(model: Detector, batch: Batch, preprocess: Preprocess) -> list[Detections]:
    """The detections in a batch that is on the model's device, in the images' own pixels."""
    given = [t.proposals for t in batch.targets] if model.needs_proposals else None
    return model.predict(preprocess(batch.images, batch.sizes), proposals=given,  # type: ignore[arg-type]
                         output_sizes=[meta.original_size for meta in batch.metas])


def summary(results: Results) -> dict[str, Any]:
    """Results as a record takes them: metrics, AP of each class and at each IoU, precision over recall."""
    curves: dict[str, list[float | None]] = {}
    by_iou: dict[str, list[float | None]] = {}
    for kind, result in results.items():
        if isinstance(result, CocoResult) and kind in ("bbox", "segm"):
            by_iou[kind] = [None if (value := mean(at)) is None else round(value, 4) for at in result.precision]
            curves["recall"] = RECALLS.round(2).tolist()
            for iou in (IOUS[0], IOUS[5]):
                curves[f"{kind}_precision_{100 * iou:.0f}"] = [
                    None if np.isnan(p) else round(float(p), 4) for p in result.curve(iou)]
    replicates = {f"{kind}_{name}": values for kind, r in results.items() if isinstance(r, CocoResult)
                  for name, values in r.replicates.items() if not np.isnan(values).all()}
    return dict(metrics=flat(results), curves=curves, by_iou=by_iou,
                intervals={name: interval(values) for name, values in replicates.items()},
                replicates={name: [None if np.isnan(v) else round(float(v), 4) for v in values]
                            for name, values in replicates.items()},
                per_class={kind: r.per_class for kind, r in results.items() if r.per_class})


def flat(results: Results) -> dict[str, float | None]:
    """All metrics by names such as "bbox_AP"."""
    return {f"{kind}_{name}": value for kind, r in results.items() for name, value in r.metrics.items()}


@checked()
def make_proposals(model: Model, data_root: str | Path, output: str | Path, *, weights: str | Path | None = None,
                   recipe: Recipe | None = None, profile: str | None = None, splits: Iterable[str] | None = None,
                   device: str | None = None, batch_size: int | None = None, workers: int | None = None,
                   progress: bool = True, **options: Any) -> Path:
    """Write the proposals of a region proposal network for every image of a data set, as Fast R-CNN reads them.

    Args:
        output: the file (.npz); others as of `evaluate`.
        splits: of the data set; "train" and "val" by default, or the one that there is.

    Raises:
        DetcoreError: as in `evaluate`; a UsageError for a model that is no proposal network.
    """
    named = DataOptions.take(options)
    where = pick_device(device)
    ready = ready_model(model, weights, required=True, recipe=recipe, profile=profile, **options)
    recipe = ready.recipe
    if "proposal" not in recipe.metric:
        raise UsageError(f"{ready.name} makes no proposals: name a model of the family rpn.")
    output_folder(Path(output).parent)
    table: dict[int, np.ndarray] = {}
    batch_size = batch_size or (1 if ready.profile == "coco" else recipe.batch_per_gpu)
    if splits is None:
        splits = ["train", "val"] if has_split(data_root, "val", recipe.layout, named) else ["train"]
    for split in splits:
        for image_id, one in predictions(
                ready.model.to(where), load_data(data_root, recipe, split, options=named), recipe.preprocess,
                batch_size=batch_size, workers=workers, progress=progress, title=f"proposals of {split}"):
            table[image_id] = torch.cat([one.boxes, one.scores[:, None]], 1).float().cpu().numpy()
    save_proposals(output, table)
    return Path(output)
