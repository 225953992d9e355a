"""Benchmarks by the zoo's own protocol, so that times and memory can be put beside the published ones.

Inference: forward pass and post-processing of one image after the other, without loading; the first images warm up.
Training: the mean time of the iterations after the beginning, loading included. Memory: the most that PyTorch has
allocated on any GPU; on the CPU the largest resident size of the process. FLOPs: those of convolutions and matrix
products; a multiplication and an addition are two, where tables of "multiply-adds" say half as much.
"""
from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from itertools import chain, count, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from detcore.data.loader import build_loader
from detcore.data.options import DataOptions
from detcore.data.transforms import Resize
from detcore.detectors import Detector
from detcore.engine.common import describe, load_data, loading_processes, pick_device, ready_model, told
from detcore.engine.evaluate import predict_batch
from detcore.engine.train import train
from detcore.errors import UsageError
from detcore.options import check_options
from detcore.ranges import checked
from detcore.recipe import Recipe
from detcore.records import Clock, Record, peak_memory_gb
from detcore.zoo.create import Model

COUNTED = 5  # images whose operations are counted


@checked()
def benchmark(model: Model, data_root: str | Path, *, training: bool = False, **options: Any) -> Record:
    """Measure speed and memory of a model.

    Args:
        training: of training, by `benchmark_training`, or else of inference, by `benchmark_inference`.
        options: of that function.
    """
    return (benchmark_training if training else benchmark_inference)(model, data_root, **options)


@checked()
def benchmark_inference(model: Model, data_root: str | Path, *, weights: str | Path | None = None,
                        recipe: Recipe | None = None, profile: str | None = None, proposals: str | Path | None = None,
                        device: str | None = None, workers: int | None = None, images: int = 2000, warmup: int = 5,
                        interval: int = 50, fuse: bool = False, say: Callable[[str], None] | None = print,
                        **options: Any) -> Record:
    """Time a model on the validation images, one at a time.

    Args:
        model: a name of the zoo, a `ModelEntry`, a `Detector` (which needs a `recipe`), or a file that training wrote.
        weights: a file or "published"; None: random ones, whose detections, and so the time of post-processing, are
            not those of a trained model.
        images: images that are timed; the data set is gone through again where it has fewer.
        warmup: images before them that are not.
        interval: images between lines; `say` takes the lines.
        fuse: fold batch norm into convolutions first.
        options: keyword options of the model's builder, such as `score_threshold`, and those of the data
            (`detcore.data.options.DataOptions`).

    Returns:
        A record with the mean, quartiles and 95th percentile of an image's time, parameters, memory, and the mean FLOPs
        of the first images (with the proposals that the model makes of them, so that they are those of the times).

    Raises:
        DetcoreError: as in `evaluate`.
    """
    named = DataOptions.take(options)
    where = pick_device(device)
    ready = ready_model(model, weights, recipe=recipe, profile=profile, **options)
    recipe, detector = ready.recipe, ready.model
    data = load_data(data_root, recipe, proposals=proposals, options=named)
    if fuse and isinstance(model, Detector):
        detector = copy.deepcopy(detector)  # the caller's keeps its norms
    detector.to(where).eval()
    parameters, size = sum(p.numel() for p in detector.parameters()), input_size(recipe, tuple(data.sizes[0].tolist()))
    if fuse:
        fuse_conv_bn(detector)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    total, times = Clock(where), []
    workers = loading_processes(where, workers)
    endless = chain.from_iterable(build_loader(data, 1, preprocess=recipe.preprocess, workers=workers) for _ in count())
    operations = []
    for i, batch in enumerate(islice(endless, warmup + images)):
        batch = batch.to(where)
        if i < COUNTED:
            with FlopCounterMode(display=False) as counter:
                predict_batch(detector, batch, recipe.preprocess)
            operations.append(counter.get_total_flops())
        clock = Clock(where)
        predict_batch(detector, batch, recipe.preprocess)
        if i >= warmup:
            times.append(clock())
        done = len(times)
        if say is not None and done and done % interval == 0:
            mean = float(np.mean(times))
            say(f"image {done} of {images}: {1 / mean:.1f} images/s, {1000 * mean:.1f} ms an image")
    seconds = np.array(times)
    return Record(
        kind="benchmark", model=ready.name, profile=ready.profile, data=describe(data), duration_s=total(),
        parameters=dict(mode="inference", images=images, warmup=warmup, fuse_conv_bn=fuse, device=where.type,
                        **told(model, weights, options)),
        metrics=dict(parameters=parameters, flops=fmean(operations), input_height=size[0], input_width=size[1]),
        speed=dict(inference_mean_s=float(seconds.mean()), inference_images_per_s=1 / float(seconds.mean()),
                   **{f"inference_{name}_s": float(np.percentile(seconds, percent))
                      for name, percent in (("q1", 25), ("median", 50), ("q3", 75), ("p95", 95))}),
        memory=peak_memory_gb())


@checked()
def benchmark_training(model: Model, data_root: str | Path, *, first: int = 100, last: int = 500,
                       **options: Any) -> Record:
    """Train, and measure the iterations after `first` up to `last`; `options` and errors are those of `train`.

    Returns:
        A record with seconds an iteration, images a second and memory.
    """
    if first >= last:
        raise UsageError(f"The iterations to measure end after they begin, unlike {first} to {last}.")
    check_options(train, options, "A benchmark of training")
    if isinstance(model, Detector):
        model = copy.deepcopy(model)  # the caller's stays as it is
    with tempfile.TemporaryDirectory(prefix="detcore-") as folder:
        run = train(model, data_root, **dict(options, output=folder, steps=last, measure=(first, last), validate=False,
                                             checkpoint_interval=last)).record
    return run.model_copy(update=dict(kind="benchmark", curves={}, metrics={}, parameters=dict(
        run.parameters, mode="training", first=first, last=last)))


def input_size(recipe: Recipe, image: tuple[int, int] | None = None) -> tuple[int, int]:
    """(h, w) of the largest image that a recipe's test transforms give, lying, and padded.

    Args:
        image: (h, w) of an image, for recipes that test at the image's own size; a UsageError there without one.
    """
    scale = next((t.scale for t in recipe.test_transforms if isinstance(t, Resize)), image)
    if scale is None:
        raise UsageError("The recipe tests at each image's own size: name a size (height and width).")
    pad = recipe.preprocess.pad_to
    return -(-min(scale) // pad) * pad, -(-max(scale) // pad) * pad


def fuse_conv_bn(model: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it, in place; for evaluation only.

    A norm belongs to the convolution that its parent holds right before it, as everywhere in this library.
    """
    for module in list(model.modules()):
        before: tuple[str, nn.Module] | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and before is not None:
                setattr(module, before[0], fuse_conv_bn_eval(before[1].eval(), child.eval()))  # type: ignore[type-var]
                setattr(module, name, nn.Identity())
            before = (name, child) if isinstance(child, nn.Conv2d) else None
    return model
