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

from detcore.detectors import Detector
from detcore.engine.benchmark import input_size
from detcore.engine.common import is_file, ready_model
from detcore.errors import DetcoreError, UsageError
from detcore.ranges import Range, checked
from detcore.recipe import Recipe
from detcore.runs import output_folder
from detcore.zoo.create import Model, Resolved

Format = Literal["onnx", "torch"]
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18
NAMES = ("boxes", "scores", "labels", "masks")
# How closely a graph has to agree, for how many detections and masks: as the reference's cases ask.
SCORE, PIXELS, SHARE = 1e-3, 0.5, 0.98
MASK_IOU, MASK_SHARE = 0.98, 0.95


class Graph(nn.Module):
    """A detector as a function of one picture [1, 3, h, w], RGB, 0..255, float32."""

    def __init__(self, model: Detector, recipe: Recipe, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size, self.preprocess = model, size, recipe.preprocess
        self.padding = [-side % recipe.preprocess.pad_to for side in size]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Boxes [n, 4] (x1, y1, x2, y2) in the picture's pixels, scores [n], labels [n], and masks [n, h, w] if any."""
        batch = nn.functional.pad(image.flip(1), (0, self.padding[1], 0, self.padding[0]))
        detections, = self.model.predict(self.preprocess(batch, [self.size]))
        masks = () if detections.masks is None else (detections.masks,)
        return detections.boxes, detections.scores, detections.labels, *masks


@checked(size=Range(1, 2**15, whole=True, pair=True))
def export(model: Model | Path, output: str | Path | None = None, *, weights: str | Path | None = None,
           recipe: Recipe | None = None, profile: str | None = None, format: Format = "onnx",
           size: tuple[int, int] | None = None, **options: Any) -> Path:
    """Write a detector as a file of its own, and check that it gives what the model gives.

    The graph takes "image", already resized to `size`, and gives "boxes", "scores", "labels" and, where the model has
    them, "masks"; see `Graph`. The file also tells model, profile, classes and size, as JSON under the name "detcore".

    Args:
        model: a name of the zoo, a `ModelEntry`, a file that training wrote, or a `Detector`, which needs a `recipe`.
        output: the file; by default NAME.onnx or NAME.pt2 here.
        weights: of a name or an entry: a file, "published", or None for random ones.
        recipe: in place of the model's own; its preprocessing becomes part of the graph.
        profile: "coco" or "pocket"; for a file what it says by default, for a name or an entry "coco".
        format: "onnx", or "torch" for a program of `torch.export`, which is loaded after `import detcore.ops.nms`.
        size: (h, w) of the picture; the largest that the recipe tests with by default.
        options: keyword options of the model's builder, such as `score_threshold`.

    Raises:
        UsageError: the model's graph cannot be taken down, or a package is missing.
        DetcoreError: the file cannot be written, or does not give what the model gives.
    """
    if format not in SUFFIXES:
        raise UsageError(f"There is no format {format!r}: it is one of {', '.join(SUFFIXES)}.")
    if not is_file(model):
        profile = profile or "coco"
    ready = ready_model(model, weights, recipe=recipe, profile=profile, check=refuse, **options)
    name, size = ready.name, size or input_size(ready.recipe)
    target = Path(output or f"{Path(model).stem if is_file(model) else name}{SUFFIXES[format]}")
    output_folder(target.parent)
    told = json.dumps(dict(model=name, profile=ready.profile, size=size, classes=ready.classes or None))
    device, training = next(ready.model.parameters()).device, ready.model.training
    graph = Graph(ready.model.cpu().eval(), ready.recipe, size)
    part = target.with_name(target.name + ".part")
    try:
        with torch.no_grad(), quiet():
            pictures = [picture(size, seed) for seed in (0, 1)]
            # Before the graph is taken down: what the model keeps for a picture's size is then kept from real numbers.
            expected = [[t.numpy() for t in graph(p)] for p in pictures]
            try:
                (write_onnx if format == "onnx" else write_torch)(graph, pictures[0], part, told)
            except (RuntimeError, ValueError) as error:  # what the exporters raise
                raise DetcoreError(f"The graph of {name} cannot be taken down: "
                                   f"{(str(error).splitlines() or [type(error).__name__])[0]}") from error
            run = (run_onnx if format == "onnx" else run_torch)(part)
            for p, one in zip(pictures, expected):
                if problem := differ(run(p), one):
                    raise DetcoreError(f"The exported {name} does not give what the model gives: {problem}.")
        if not any(len(boxes) for boxes, *_ in expected):
            warnings.warn(f"{name} finds nothing in the two pictures that it was checked with, so the check says "
                          f"little. Export it with trained weights.", stacklevel=2)
        os.replace(part, target)
    except OSError as error:
        raise DetcoreError(f"The file {target} cannot be written: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)
        ready.model.to(device).train(training)
    return target


def refuse(subject: Resolved) -> None:
    """Raise a sentence if a model cannot be exported; its parts say why in an attribute `not_exportable`."""
    with torch.device("meta"):
        model = subject.build()
    reason = "it takes proposals beside the picture" if model.needs_proposals else next(
        (module.not_exportable for module in model.modules() if hasattr(module, "not_exportable")), None)
    if reason:
        raise UsageError(f"{subject.name} cannot be exported: {reason}. RetinaNet, GFL, Faster, Mask and Cascade "
                         f"R-CNN, Deformable DETR and Mask2Former can, among others.")


def picture(size: tuple[int, int], seed: int) -> Tensor:
    """A random picture [1, 3, h, w] with large and small structures, 0..255."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.functional.interpolate(torch.rand(1, 3, cells, cells, generator=generator), size, mode="bilinear")
              for cells in (4, 16, 64)]
    return 255 * torch.stack(layers).mean(0)


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters talk about what they cannot know of sizes; it does not concern the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


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
    made: Any = torch.onnx.export(program, (example,), opset_version=OPSET, dynamo=True, verbose=False,
                                  custom_translation_table=TRANSLATIONS, input_names=["image"],
                                  output_names=NAMES[:len(graph(example))])
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


def differ(ours: list[np.ndarray], expected: list[np.ndarray]) -> str | None:
    """How two answers differ, as a sentence; None where they agree.

    A detection whose score is a hair from the threshold, or that another one's suppression hangs on, may come and go.
    """
    if len(ours) != len(expected):
        return f"{len(ours)} outputs instead of {len(expected)}"
    boxes, scores, labels, *masks = (np.asarray(f) for f in ours)
    count = len(expected[0])
    same = (np.abs(boxes[:, None] - expected[0]).max(2, initial=0) < PIXELS) & (
        np.abs(scores[:, None] - expected[1]) < SCORE) & (labels[:, None] == expected[2])
    matched = same.any(0).sum()
    if abs(len(boxes) - count) > (1 - SHARE) * count or matched < SHARE * count:
        return f"{matched} of {count} detections are the same, and there are {len(boxes)}"
    if masks and count:
        partner = same.argmax(0)
        exported, own = masks[0][partner] > 0, expected[3] > 0
        union = (exported | own).sum((1, 2))
        agree = ((exported & own).sum((1, 2)) >= MASK_IOU * union) | ~same.any(0)
        if agree.mean() < MASK_SHARE:
            return f"{agree.sum()} of {count} masks are the same"
    return None
