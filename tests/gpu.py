"""Everything that needs a GPU, in one command of at most ten minutes: `make gpu`, or `python -m tests.gpu`.

    python -m tests.gpu [--minutes 8] [--device cuda] [--only SECTION ...] [--output book/records/gpu]

Each section says what it does, and writes its record as soon as it is over; one that fails, or for which a package is
missing, does not stop the next. Records name the card. Exit status 1 where a check failed.

On the CPU (`--device cpu`) the same code runs at the pocket profile's size, as `tests/test_gpu.py` does.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import detcore
from detcore.detectors import Detector
from detcore.engine.benchmark import fuse_conv_bn
from detcore.pocket.pocket_zoo import draw
from detcore.records import Record
from detcore.runs import Checkpoints
from detcore.structures import Images, Target
from detcore.weights import read_checkpoint
from tests import parity

ROOT = Path(__file__).resolve().parent.parent
COMPARED = {"RetinaNet": "retinanet_r50_fpn_1x_coco", "Faster R-CNN": "faster-rcnn_r50_fpn_1x_coco",
            "Mask R-CNN": "mask-rcnn_r50_fpn_1x_coco"}
PEERS: dict[str, Callable[..., nn.Module]] = {
    "RetinaNet": RetinaNet, "Faster R-CNN": FasterRCNN, "Mask R-CNN": MaskRCNN}
CLASS_LAYER = re.compile(r"(fc_cls|retina_cls|classification_head\.cls_logits|box_predictor\.cls_score)$")
LINE = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED) (\S+(?:\[[^\]]*\])?)(.*)$", re.M)  # of pytest's summary
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Work:
    """What a section is given: the device, the seconds that are left to it, whether at full size."""

    device: torch.device
    seconds: float
    full: bool

    def left(self) -> Callable[[], float]:
        """A function that tells the seconds that are left from now on."""
        end = time.monotonic() + self.seconds
        return lambda: end - time.monotonic()


@dataclass
class Outcome:
    """What a section found: checks that hold or fail by name, figures by name, notes."""

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def side_by_side(job: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], work: Work,
                 found: Outcome) -> Iterator[tuple[str, Any]]:
    """What a function gives for each label's arguments, six processes at a time.

    What it raises is a failed check; what the section's time does not reach is noted.
    """
    left = work.left()
    with multiprocessing.get_context("spawn").Pool(min(6, len(arguments))) as pool:
        running = {label: pool.apply_async(job, given) for label, given in arguments.items()}
        for label, result in running.items():
            try:
                value = result.get(max(1.0, left()))
            except multiprocessing.TimeoutError:
                found.notes[label] = "not reached"
            except Exception as error:
                found.failed[label] = f"{type(error).__name__}: {error}"[:300]
            else:
                yield label, value


# Does it compute the same?

def one_case(path: Path, device: str) -> dict[str, str]:
    """The checks of a reference case on a device, in float32 without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)
    case = parity.load_case(path)
    model = detcore.create_model(case["model"]).to(device)
    return parity.run_checks(case, model, case["model"]).checks


def cases(work: Work) -> Outcome:
    """Reference cases, one of each kind of architecture, in the tolerance of `tests.parity`."""
    found = Outcome()
    paths = parity.one_of_each_kind(parity.find_cases(parity.REFERENCE / "cases"))
    jobs = {path.name.removesuffix(".json.gz"): (path, str(work.device)) for path in paths[:None if work.full else 1]}
    for name, checks in side_by_side(one_case, jobs, work, found):
        if wrong := "; ".join(f"{k} {v}" for k, v in checks.items() if v.startswith("fail")):
            found.failed[name] = wrong
        else:
            found.passed.append(name)
    return found


# Does it train?

def sync(work: Work) -> Outcome:
    """No loss waits for the GPU: one model of every family under PyTorch's synchronisation check."""
    return pytest_section(["tests/methods/test_contract.py", "-k", "do_not_wait_for_the_gpu"], work)


def pytest_section(arguments: list[str], work: Work) -> Outcome:
    """Tests by pytest, several at once where pytest-xdist is there."""
    found = Outcome()
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--no-header", "-p", "no:cacheprovider", *arguments]
    try:
        import xdist  # noqa: F401
        command += ["-n", "6"] if work.full else ["-n", "0"]
    except ImportError:
        found.notes["one after the other"] = "pytest-xdist is not installed"
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(10, work.seconds),
                         env=os.environ | {"OMP_NUM_THREADS": "1"})
    for status, name, reason in LINE.findall(run.stdout):
        if status == "PASSED":
            found.passed.append(name.split("::")[-1])
        elif status != "SKIPPED":
            found.failed[name.split("::")[-1]] = reason.strip(" -")[:300]
    if run.returncode not in (0, 1, 5) or not (found.passed or found.failed):
        found.notes["pytest"] = (run.stdout + run.stderr)[-1500:]
    return found


def few_steps(name: str, device: str, precision: str) -> float:
    """The loss of a pocket-size model after three steps in half precision.

    Raises:
        AssertionError: a loss, or a parameter afterwards, is not finite.
    """
    from tests.methods import test_contract as contract

    torch.set_num_threads(1)
    model = contract.pocket_model(name).train().to(device)
    images, targets, _ = contract.batch(model)
    images, targets = images.to(device), [t.to(device) for t in targets]
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, 1e-4, momentum=0.9)
    kind = torch.device(device).type
    scaler = torch.amp.GradScaler(kind, init_scale=64.0, enabled=precision == "fp16")
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast(kind, AUTOCAST[precision]):
            loss = sum(model(images, targets).values())
        assert isinstance(loss, torch.Tensor) and loss.isfinite(), f"the loss is {float(loss)}"
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(trainable, 10.0)
        scaler.step(optimizer)
        scaler.update()
    wrong = [n for n, p in model.named_parameters() if not p.isfinite().all()]
    assert not wrong, f"not finite after three steps: {', '.join(wrong[:3])}"
    return float(loss.detach())


def half(work: Work) -> Outcome:
    """Three steps of one model of every family and variant in bf16 and in fp16; losses and weights stay finite."""
    from tests.methods.test_contract import MODELS

    found = Outcome()
    names = MODELS if work.full else ["retinanet_r50_fpn_1x_coco"]
    kinds = list(AUTOCAST) if work.device.type == "cuda" else ["bf16"]
    jobs = {f"{name} {kind}": (name, str(work.device), kind) for name in names for kind in kinds}
    for label, loss in side_by_side(few_steps, jobs, work, found):
        found.notes[label] = round(loss, 4)
        found.passed.append(label)
    return found


def data_set(place: str, images: int, work: Work) -> Path:
    """Pocket Zoo in a folder, a tenth as many images to evaluate on; few where not `full`."""
    return draw(Path(place) / "data", images=images if work.full else 16, val=max(8, images // 10) if work.full else 8,
                workers=min(12, os.cpu_count() or 1), progress=False)


def resume(work: Work) -> Outcome:
    """A training that is stopped and resumed, beside one that is not, in the GPU's half precision.

    With deterministic algorithms wherever PyTorch has one; what still differs is noted, not asked for.
    """
    found = Outcome()
    cuda = work.device.type == "cuda"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with tempfile.TemporaryDirectory() as place:
            root = data_set(place, 64, work)
            steps = 12 if work.full else 3
            options: dict[str, Any] = dict(profile="pocket", steps=steps, device=work.device.type, validate=False,
                                           progress=False, mixed_precision="fp16" if cuda else "no", log_interval=1,
                                           checkpoint_interval=steps // 3, workers=0)
            name = COMPARED["RetinaNet"]
            whole = detcore.train(name, root, output=Path(place) / "whole", **options)
            again = detcore.train(name, root, output=Path(place) / "again", **options)
            detcore.train(name, root, output=Path(place) / "parts", **options)
            Checkpoints(Path(place) / "parts/checkpoints", 2).paths()[-1].unlink()  # as if killed before its end
            for file in ("model.safetensors", "record.json"):
                (Path(place) / "parts" / file).unlink()
            parts = detcore.train(name, root, output=Path(place) / "parts", resume=True, **options)
            states = [read_checkpoint(r.checkpoint).state for r in (whole, again, parts)]
    finally:
        torch.use_deterministic_algorithms(False)
    for label, other in (("two runs", states[1]), ("resumed", states[2])):
        difference = max(float((a.double() - other[k].double()).abs().max()) for k, a in states[0].items())
        found.notes[f"largest difference of a weight, {label}"] = difference
    limit = max(1e-6, 4 * found.notes["largest difference of a weight, two runs"])
    ok = found.notes["largest difference of a weight, resumed"] <= limit
    if ok:
        found.passed.append("a resumed run ends as one that was not stopped")
    else:
        found.failed["resumed"] = f"weights differ by {found.notes['largest difference of a weight, resumed']:.2e}"
    return found


def processes(work: Work) -> Outcome:
    """Training under torchrun with one process for each GPU: NCCL's process group, gathering, saving."""
    found = Outcome()
    cuda = work.device.type == "cuda"
    number = torch.cuda.device_count() if cuda else 2
    if number == 1:
        found.notes["processes"] = "This machine has one GPU, and NCCL takes one process for each: one was started."
    with tempfile.TemporaryDirectory() as place:
        root = data_set(place, 64, work)
        steps = "6" if work.full else "2"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}", "-m",
                   "detcore.cli", "train", COMPARED["RetinaNet"], "--profile", "pocket", "--data-root", str(root),
                   "--output", str(Path(place) / "run"), "--steps", steps, "--device", work.device.type]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(10, work.seconds),
                             env=os.environ | {"OMP_NUM_THREADS": "1"})
        label = f"{number} process{'es' if number > 1 else ''}, {'NCCL' if cuda else 'gloo'}"
        if run.returncode == 0 and (Path(place) / "run/record.json").exists():
            found.passed.append(label)
        else:
            found.failed[label] = (run.stdout + run.stderr)[-800:]
    return found


def accuracy(work: Work) -> Outcome:
    """RetinaNet and Mask R-CNN trained at the pocket profile and evaluated, as their chapters do on a CPU."""
    found, left = Outcome(), work.left()
    with tempfile.TemporaryDirectory() as place:
        root = data_set(place, 2000, work)
        for label in ("RetinaNet", "Mask R-CNN")[:2 if work.full else 1]:
            if left() < 20 and work.full:
                found.notes[label] = "not reached"
                continue
            name = COMPARED[label]
            result = detcore.train(name, root, profile="pocket", output=Path(place) / label, device=work.device.type,
                                   steps=None if work.full else 2, progress=False)
            found.speed[f"{label} training_step_s"] = result.record.speed.get("training_step_s", 0.0)
            measured = detcore.evaluate(name, root, weights=result.checkpoint, profile="pocket",
                                        device=work.device.type, progress=False)
            for metric, value in measured.record.metrics.items():
                if metric.endswith("_AP"):
                    found.notes[f"{label} {metric}"] = value
            found.notes[f"{label} loss"] = result.record.curves["loss"][-1]
            if not work.full or measured["bbox"].headline >= 0.35:
                found.passed.append(f"{label} trains")
            else:
                found.failed[label] = f"box AP {measured['bbox'].headline:.3f}"
    return found


# How fast is it?

def coco_batch(number: int, device: torch.device, full: bool) -> tuple[Images, list[Target]]:
    """Images of COCO's usual test size, 800 x 1333, padded to 800 x 1344, with 7 objects each, as COCO has on average.

    Noise, and boxes at random; masks are the boxes' ellipses. Pocket size where not `full`.
    """
    h, w, real = (800, 1344, 1333) if full else (128, 160, 150)
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(number, 3, h, w, generator=generator).to(device)
    tensor[..., real:] = 0
    y, x = torch.arange(h, device=device)[:, None], torch.arange(w, device=device)
    targets = []
    for _ in range(number):
        size = torch.rand(7, 2, generator=generator) * torch.tensor([real, h]) * 0.4 + 8
        corner = torch.rand(7, 2, generator=generator) * (torch.tensor([real, h]) - size)
        boxes = torch.cat([corner, corner + size], 1).to(device)
        middle, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        masks = torch.stack([(x - m[0]) ** 2 / r[0] ** 2 + (y - m[1]) ** 2 / r[1] ** 2 <= 1
                             for m, r in zip(middle, radius)]).to(torch.uint8)
        targets.append(Target(boxes, torch.randint(80 if full else 5, (7,), generator=generator).to(device), masks))
    return Images(tensor, [(h, real)] * number), targets


def wake(model: nn.Module, run: Callable[[], Any]) -> None:
    """Gives a random model's class scores a spread, so that it detects something and its post-processing has work.

    The class layer's weights are scaled until the logits of the image that `run` runs on have a standard deviation of
    1 (sigmoid, after a prior of 0.01) or 2 (softmax): in ours and in torchvision's about the same share of scores then
    passes the threshold.
    """
    layers = {name: m for name, m in model.named_modules() if CLASS_LAYER.search(name)}
    assert len(layers) == 1, list(layers)
    layer = next(iter(layers.values()))
    outputs: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    with torch.no_grad():
        run()
        handle.remove()
        layer.weight *= (1 if isinstance(layer, nn.Conv2d) else 2) / torch.cat([o.flatten() for o in outputs]).std()


def timed(step: Callable[[], Any], device: torch.device, warmup: int, repeats: int, seconds: float) -> list[float]:
    """Seconds of each of some calls after the first ones, the device's work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: list[float] = []
    end = time.monotonic() + seconds
    for i in range(warmup + repeats):
        wait()
        started = time.perf_counter()
        step()
        wait()
        if i >= warmup:
            times.append(time.perf_counter() - started)
        if time.monotonic() > end and len(times) >= 3:
            break
    return times


@contextmanager
def fast(precision: str, device: torch.device) -> Iterator[None]:
    """Autocast to bf16, or plain float32 as PyTorch has it by default."""
    with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
        yield


def note_times(found: Outcome, label: str, times: list[float], images: int) -> None:
    found.speed[f"{label} median_s"] = median(times)
    if len(times) > 3:
        found.speed[f"{label} q1_s"], _, found.speed[f"{label} q3_s"] = quantiles(times, n=4)
    found.speed[f"{label} images_per_s"] = images / median(times)
    print(f"    {label}: {1000 * median(times):.1f} ms, {images / median(times):.1f} images/s", flush=True)


def ours(label: str, work: Work) -> Detector:
    """The zoo's model of a method with random weights, on the device."""
    options: dict[str, Any] = {} if work.full else dict(profile="pocket", num_classes=5)
    return detcore.create_model(COMPARED[label], **options).to(work.device)


def peer(label: str, work: Work) -> nn.Module:
    """torchvision's model of the same method, with frozen norms, stem and first stage, and the zoo's settings."""
    one_stage = label == "RetinaNet"
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3,
        **(dict(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(2048, 256)) if one_stage else {}))
    options: dict[str, Any] = dict(min_size=800, max_size=1344) if work.full else dict(min_size=128, max_size=160)
    options |= dict(score_thresh=0.05, nms_thresh=0.5, detections_per_img=100) if one_stage else dict(
        box_score_thresh=0.05, box_nms_thresh=0.5, box_detections_per_img=100, rpn_pre_nms_top_n_train=2000,
        rpn_post_nms_top_n_train=1000)
    return PEERS[label](backbone, num_classes=81 if work.full else 6, **options).to(work.device)


def training_speed(work: Work) -> Outcome:
    """Training steps of the three models with 2 and 16 images, float32 and bf16: time and largest memory.

    Images lie on the device already. PyTorch's defaults (TF32 in convolutions on a GPU).
    """
    found, left = Outcome(), work.left()
    torch.backends.cudnn.benchmark = True
    for number in (2, 16) if work.full else (2,):
        images, targets = coco_batch(number, work.device, work.full)
        theirs = list(images.tensor), [dict(boxes=t.boxes, labels=t.labels + 1, masks=t.masks) for t in targets]
        for label in COMPARED if work.full else ["RetinaNet"]:
            for kind in ("float32", "bf16", "torchvision"):
                title = f"{label} training, {number} images, {kind}"
                if left() < 8:
                    found.notes[title] = "not reached"
                elif kind == "torchvision":
                    train_step_times(found, title, peer(label, work), theirs, work, number, "float32")
                else:
                    train_step_times(found, title, ours(label, work), (images, targets), work, number, kind)
    return found


def train_step_times(found: Outcome, label: str, model: nn.Module, batch: tuple[Any, Any], work: Work,
                     number: int, precision: str) -> None:
    """Time and memory of a model's training step."""
    if precision == "bf16":
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-5, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with fast(precision, work.device):
            value = sum(model(*batch).values())
        value.backward()
        optimizer.step()

    model.train()
    cuda = work.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        note_times(found, label, timed(step, work.device, 4 if work.full else 1, 15 if work.full else 3, 5.0), number)
    except torch.OutOfMemoryError:
        found.notes[label] = "out of memory"
    if cuda:
        found.memory[f"{label} gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)


def inference_speed(work: Work) -> Outcome:
    """Inference of the three models, one image at a time: ours in float32 and in bf16 beside torchvision's float32.

    Ours in bf16 has folded batch norm and channels_last. Post-processing is included. Random weights, with class scores
    spread in both so that about 100 objects are detected.
    """
    found, left = Outcome(), work.left()
    torch.backends.cudnn.benchmark = True
    images, _ = coco_batch(1, work.device, work.full)
    last = Images(images.tensor.to(memory_format=torch.channels_last), images.sizes)
    for label in COMPARED if work.full else ["RetinaNet"]:
        if left() < 10:
            found.notes[label] = "not reached"
            continue
        torch.manual_seed(0)
        model, other = ours(label, work).eval(), peer(label, work).eval()
        wake(model, partial(model, images))
        wake(other, partial(other, [images.tensor[0]]))
        medians = {}
        for kind in ("float32", "bf16", "torchvision"):
            if kind == "bf16":
                model = fuse_conv_bn(model).to(memory_format=torch.channels_last)
            run = partial(other, [images.tensor[0]]) if kind == "torchvision" else \
                partial(model, last if kind == "bf16" else images)
            with torch.inference_mode(), fast(kind, work.device):
                times = timed(run, work.device, 5 if work.full else 1, 40 if work.full else 3, 6.0)
                answer = run()[0]
            found.notes[f"{label} {kind} detections"] = len(answer["boxes"] if isinstance(answer, dict) else answer)
            medians[kind] = median(times)
            note_times(found, f"{label} inference, 1 image, {kind}", times, 1)
        for kind in ("float32", "bf16"):
            found.notes[f"{label} torchvision's time over ours, {kind}"] = round(
                medians["torchvision"] / medians[kind], 3)
    return found


def compiled(work: Work) -> Outcome:
    """The network of RetinaNet and Faster R-CNN under `torch.compile`, without and with CUDA graphs, in bf16."""
    found, left = Outcome(), work.left()
    images, _ = coco_batch(1, work.device, work.full)
    tensor = images.tensor.to(memory_format=torch.channels_last)
    for label in ("RetinaNet", "Faster R-CNN"):
        model = fuse_conv_bn(ours(label, work).eval()).to(memory_format=torch.channels_last)
        network = Network(model).eval()
        modes: dict[str, Any] = {"eager": None, "compiled": "default", "CUDA graphs": "reduce-overhead"}
        if work.device.type != "cuda":
            modes = {"eager": None}
        with torch.inference_mode(), fast("bf16", work.device):
            for title, mode in modes.items():
                if left() < 15 and mode:
                    found.notes[f"{label} {title}"] = "not reached"
                    continue
                torch.compiler.reset()
                module = network if mode is None else torch.compile(network, mode=mode, fullgraph=True)
                started = time.monotonic()
                module(tensor)
                found.notes[f"{label} {title} first_call_s"] = round(time.monotonic() - started, 2)
                note_times(found, f"{label} network, bf16, {title}",
                           timed(partial(module, tensor), work.device, 5 if work.full else 1,
                                 40 if work.full else 3, 5.0), 1)
        found.passed.append(label)
    return found


class Network(nn.Module):
    """The part of a detector that is the same for every image: backbone, neck, dense head."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, tensor: torch.Tensor) -> Any:
        head = getattr(self.model, "rpn_head", None) or self.model.bbox_head
        return head(self.model.features(tensor))


# Sections in the order of their worth, with the share of the time that each may take.
SECTIONS: dict[str, tuple[Callable[[Work], Outcome], float]] = {
    "sync": (sync, 0.15), "half": (half, 0.15), "cases": (cases, 0.3), "training": (training_speed, 0.25),
    "inference": (inference_speed, 0.15), "processes": (processes, 0.1), "resume": (resume, 0.1),
    "accuracy": (accuracy, 0.25), "compile": (compiled, 0.3),
}


def run_section(name: str, work: Work) -> tuple[Outcome, float]:
    """A section's outcome and its seconds; what it raises becomes a failed check."""
    section = SECTIONS[name][0]
    started = time.monotonic()
    print(f"\n{name}: {(section.__doc__ or name).splitlines()[0]}", flush=True)
    try:
        found = section(work)
    except Exception as error:
        found = Outcome()
        found.failed[name] = f"{type(error).__name__}: {error}"[:500]
        traceback.print_exc()
    if work.device.type == "cuda":
        torch.cuda.empty_cache()
    return found, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="budget; sections that it does not reach are named")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--output", type=Path, default=ROOT / "book/records/gpu", help="folder of the records")
    parser.add_argument("--commit", help="the commit of a tree that has no .git")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("PyTorch finds no GPU here; --device cpu runs the same code at pocket size.", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    slug = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    print(f"{card}; PyTorch {torch.__version__}; {options.minutes:g} minutes", flush=True)
    end, bad = time.monotonic() + 60 * options.minutes, 0
    whole = min(1.0, sum(SECTIONS[name][1] for name in options.only))
    for name in options.only:
        left = end - time.monotonic()
        if left < 10:
            print(f"\n{name}: not reached in {options.minutes:g} minutes", flush=True)
            continue
        work = Work(device, min(left, SECTIONS[name][1] / whole * 60 * options.minutes), device.type == "cuda")
        found, seconds = run_section(name, work)
        record = Record(kind="benchmark", profile=None if work.full else "pocket", duration_s=seconds,
                        parameters=dict(section=name, passed=found.passed, failed=found.failed, notes=found.notes),
                        metrics=dict(passed=len(found.passed), failed=len(found.failed)), speed=found.speed,
                        memory=found.memory)
        if options.commit:
            record.commit = options.commit
        record.write(options.output / f"{slug}.{name}.json")
        bad += len(found.failed)
        print(f"  {len(found.passed)} pass, {len(found.failed)} fail, {seconds:.0f} s", flush=True)
        for key, reason in found.failed.items():
            print(f"  FAILED {key}: {reason}", flush=True)
        for key, note in found.notes.items() if name != "half" else ():
            print(f"    {key}: {note}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
