"""Detectors as files that run without this library: ONNX graphs and `torch.export` programs.

The graph takes one picture of a fixed size and holds everything up to the detections: normalisation, network, box
decoding, non-maximum suppression, masks. What it gives is checked against the model before the file is kept.
"""
from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from detcore.engine.benchmark import input_size
from detcore.engine.common import output_folder
from detcore.errors import DetcoreError, UsageError
from detcore.zoo.create import create_model, restore
from detcore.zoo.entries import ModelEntry
from detcore.zoo.models import get_model_entry
from detcore.zoo.recipes import Recipe

Format = Literal["onnx", "torch"]
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18
NAMES = ("boxes", "scores", "labels", "masks")
# How closely a graph has to agree, for how many detections and masks: as the reference's cases ask.
SCORE, PIXELS, SHARE = 1e-3, 0.5, 0.98
MASK_IOU, MASK_SHARE = 0.98, 0.95

# What keeps the other families' graphs from being taken down.
REASONS = {
    "fast_rcnn": "it takes proposals beside the picture",
    "libra_rcnn": "ONNX's exporter has no translation of its attention with one head and no scaling",
    "centripetalnet": "how many corners it pairs depends on the picture",
    "panoptic_fpn": "its panoptic map is put together segment by segment, and their number depends on the picture",
    "ms_rcnn": "its masks are scored in a second round whose size depends on the picture",
    "grid_rcnn": "its grid points are read in a second round whose size depends on the picture",
}


class Graph(nn.Module):
    """A detector as a function of one picture [1, 3, h, w], RGB, 0..255, float32."""

    def __init__(self, model: nn.Module, recipe: Recipe, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size, self.preprocess = model, size, recipe.preprocess
        self.padding = [-side % recipe.preprocess.pad_to for side in size]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Boxes [n, 4] (x1, y1, x2, y2) in the picture's pixels, scores [n], labels [n], and masks [n, h, w] if any."""
        batch = nn.functional.pad(image.flip(1), (0, self.padding[1], 0, self.padding[0]))
        found, = self.model.predict(self.preprocess(batch, [self.size]))  # type: ignore[operator]
        masks = () if found.masks is None else (found.masks,)
        return found.boxes, found.scores, found.labels, *masks


def export(name: str | Path, output: str | Path | None = None, *, format: Format = "onnx",
           weights: str | Path | None = None, profile: str = "coco", size: tuple[int, int] | None = None) -> Path:
    """Write a detector as a file of its own, and check that it gives what the model gives.

    The graph takes "image", float32 [1, 3, h, w], RGB, 0..255, already resized to `size`; it gives "boxes" [n, 4]
    (x1, y1, x2, y2) in that picture's pixels, "scores" [n], "labels" [n] and, where the model has them, "masks"
    [n, h, w]. The file also tells model, profile, classes and size, as JSON under the name "detcore".

    Args:
        name: a name of the zoo, or a file that training wrote.
        output: the file; by default NAME.onnx or NAME.pt2 here.
        format: "onnx", or "torch" for a program of `torch.export`, which is loaded after `import detcore.ops.boxes`.
        weights: for a name: a file, "published", or None for random ones.
        size: (h, w) of the picture; the largest that the recipe tests with by default.

    Raises:
        UsageError: the model's graph cannot be taken down, or a package is missing.
        DetcoreError: the file cannot be written, or does not give what the model gives.
    """
    if format not in SUFFIXES:
        raise UsageError(f"There is no format {format!r}: it is one of {', '.join(SUFFIXES)}.")
    trained = restore(name) if Path(name).is_file() else None
    entry = trained.entry if trained else get_model_entry(str(name))
    refuse(entry)
    if trained:
        model, profile, classes, stem = trained.model, trained.profile, trained.classes, Path(name).stem
    else:
        model, classes, stem = create_model(entry.name, weights=weights, profile=profile), None, entry.name
    recipe = entry.recipe_for(profile)
    size = size or input_size(recipe)
    target = Path(output or f"{stem}{SUFFIXES[format]}")
    output_folder(target.parent)
    told = dict(model=entry.name, profile=profile, size=list(size), classes=list(classes) if classes else None)
    graph = Graph(model.eval(), recipe, size)
    part = target.with_name(target.name + ".part")
    try:
        with torch.no_grad(), quiet():
            pictures = [picture(size, seed) for seed in (0, 1)]
            # Before the graph is taken down: what the model keeps for a picture's size is then kept from real numbers.
            wanted = [[t.numpy() for t in graph(p)] for p in pictures]
            try:
                (write_onnx if format == "onnx" else write_torch)(graph, pictures[0], part, json.dumps(told))
            except (RuntimeError, ValueError) as error:  # what the exporters raise
                raise DetcoreError(f"The graph of {entry.name} cannot be taken down: "
                                   f"{(str(error).splitlines() or [type(error).__name__])[0]}") from error
            run = (run_onnx if format == "onnx" else run_torch)(part)
            for p, given in zip(pictures, wanted):
                if problem := differ(run(p), given):
                    raise DetcoreError(f"The exported {entry.name} does not give what the model gives: {problem}.")
        if not any(len(boxes) for boxes, *_ in wanted):
            warnings.warn(f"{entry.name} finds nothing in the two pictures that it was checked with, so the check says "
                          f"little. Export it with trained weights.", stacklevel=2)
        os.replace(part, target)
    except OSError as error:
        raise DetcoreError(f"The file {target} cannot be written: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def refuse(entry: ModelEntry) -> None:
    """Raise the sentence that tells why a model cannot be exported, if it cannot."""
    reason = REASONS.get("fast_rcnn" if entry.recipe.max_proposals else entry.family)
    if reason:
        raise UsageError(f"{entry.name} cannot be exported: {reason}. RetinaNet, GFL, Faster, Mask and Cascade R-CNN, "
                         f"Deformable DETR and Mask2Former can, among others.")


def picture(size: tuple[int, int], seed: int) -> Tensor:
    """A random picture [1, 3, h, w] with large and small structures, 0..255."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.functional.interpolate(torch.rand(1, 3, cells, cells, generator=generator), size, mode="bilinear")
              for cells in (4, 16, 64)]
    return 255 * torch.stack(layers).mean(0)


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters talk about what they cannot know of sizes; it does not concern the user."""
    names = "torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch._export"
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def write_torch(graph: Graph, example: Tensor, path: Path, told: str) -> None:
    """Write a `torch.export` program."""
    program = torch.export.export(graph, (example,), strict=False)
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={"detcore": told})


def run_torch(path: Path) -> Callable[[Tensor], list[np.ndarray]]:
    """A function that runs the program in a file."""
    with open(path, "rb") as file:
        program = torch.export.load(file).module()
    return lambda image: [t.numpy() for t in program(image)]


def write_onnx(graph: Graph, example: Tensor, path: Path, told: str) -> None:
    """Write an ONNX graph."""
    try:
        from detcore.engine.onnx_operators import TRANSLATIONS
    except ImportError as error:
        raise UsageError(f"ONNX export needs the package {error.name}: pip install 'detcore[export]'.") from error
    program = torch.export.export(graph, (example,), strict=False)
    masks = ("masks",) if len(graph(example)) > 3 else ()
    made: Any = torch.onnx.export(program, (example,), opset_version=OPSET, dynamo=True, verbose=False,
                                  custom_translation_table=TRANSLATIONS, input_names=["image"],
                                  output_names=[*NAMES[:3], *masks])
    made.model.metadata_props["detcore"] = told
    made.save(str(path), external_data=False)


def run_onnx(path: Path) -> Callable[[Tensor], list[np.ndarray]]:
    """A function that runs the graph in a file with onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("Checking an ONNX graph needs onnxruntime: pip install 'detcore[export]'.") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image.numpy()})


def differ(found: list[np.ndarray], wanted: list[np.ndarray]) -> str | None:
    """How two answers differ, as a sentence; None where they agree.

    A detection whose score is a hair from the threshold, or that another one's suppression hangs on, may come and go.
    """
    if len(found) != len(wanted):
        return f"{len(found)} outputs instead of {len(wanted)}"
    boxes, scores, labels, *masks = (np.asarray(f) for f in found)
    count = len(wanted[0])
    same = (np.abs(boxes[:, None] - wanted[0]).max(2, initial=0) < PIXELS) & (
        np.abs(scores[:, None] - wanted[1]) < SCORE) & (labels[:, None] == wanted[2])
    matched = same.any(0).sum()
    if abs(len(boxes) - count) > (1 - SHARE) * count or matched < SHARE * count:
        return f"{matched} of {count} detections are the same, and there are {len(boxes)}"
    if masks and count:
        partner = same.argmax(0)
        ours, theirs = masks[0][partner] > 0, wanted[3] > 0
        union = (ours | theirs).sum((1, 2))
        agree = ((ours & theirs).sum((1, 2)) >= MASK_IOU * union) | ~same.any(0)
        if agree.mean() < MASK_SHARE:
            return f"{agree.sum()} of {count} masks are the same"
    return None
