"""Holds detcore's models against numeric cases measured on the original implementation.

    python -m tests.parity FOLDER [--only GLOB] [--json FILE]

FOLDER holds cases as pairs NAME.json.gz, NAME.npz: what `recipe.py` makes the input of, and what the original gave.
Prints a row for each case and `N of M cases pass`. Exit status: 0 all pass, 1 some fail, 2 there is no case.
"""
from __future__ import annotations

import argparse
import copy
import gzip
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.ops import StochasticDepth

import detcore
from detcore.errors import DetcoreError
from detcore.ops.matching import Sampler
from detcore.structures import Detections, Images, Target
from tests.reference import recipe

REFERENCE = Path(__file__).parent / "reference"
CHECKS = ("state", "features", "head", "detections", "losses", "gradients")


@dataclass
class Report:
    """What one case's checks gave: "pass", "fail ..." with the worst difference, or "n/a".

    Attributes:
        differences: the worst ones as numbers, whether a check passed or not. "features", "head": of the root mean
            squares and means of maps, relative to the root mean square. "losses": relative. "gradients": the share of
            parameters whose gradient norm differs by more than 1 %. "detections": the share of the original's that were
            not found, "masks": the share of masks of those found whose IoU with the original's is below 0.98,
            "panoptic": the share of pixels that differ; each in the worst image.
        before: what failed in earlier attempts, by their title and check.
    """

    case: str
    checks: dict[str, str] = field(default_factory=lambda: dict.fromkeys(CHECKS, "n/a"))
    differences: dict[str, float] = field(default_factory=dict)
    before: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        return not any(c.startswith("fail") for c in self.checks.values())

    def note(self, check: str, ok: bool, difference: str) -> None:
        self.checks[check] = "pass" if ok else f"fail ({difference})"

    def measure(self, name: str, difference: float) -> None:
        """Note a difference as a number; the largest of a name is kept."""
        self.differences[name] = float(f"{max(difference, self.differences.get(name, 0.0)):.3g}")


@cache
def reference(name: str) -> dict | list:
    """One of the reference's own files."""
    return json.loads(gzip.decompress((REFERENCE / name).read_bytes()))


def expected_state(model_name: str) -> dict[str, list[int]]:
    """Name and shape of every state-dict entry of a model."""
    row = next(r for r in reference("zoo.json.gz") if r["name"] == model_name)
    return dict(reference("states.json.gz")[row["architecture"]]["entries"])


def kinds(path: Path) -> set[str]:
    """What is of its own in the model of a case: its builder, the builder's options, its backbone and that one's."""
    entry = detcore.get_model_entry(path.name.removesuffix(".json.gz"))
    assert entry.backbone is not None
    found, build = {f"builder {entry.builder.__module__}.{entry.builder.__qualname__}"}, entry.backbone.build
    if inner := getattr(entry.builder, "__wrapped__", None):
        found.add(f"builder {inner.__qualname__}")
    options = dict(entry.options)
    while isinstance(build, partial):
        options |= {f"backbone {key}": value for key, value in build.keywords.items()}
        build = build.func
    found.add(f"backbone {build.__qualname__}")
    return found | {f"{key}={value}" if isinstance(value, (str, bool)) else key for key, value in options.items()}


def one_of_each_kind(paths: list[Path]) -> list[Path]:
    """Some of the cases that together have every kind that there is among all, small models first."""
    rest = {path: kinds(path) for path in paths}
    rows = {row["name"]: row for row in reference("zoo.json.gz")}
    size = {path: reference("states.json.gz")[rows[path.name.removesuffix(".json.gz")]["architecture"]]["parameters"]
            for path in paths}
    left, chosen = set().union(*rest.values()), []
    while left:
        best = max(rest, key=lambda path: len(rest[path] & left) / size[path] ** 0.3)
        chosen.append(best)
        left -= rest.pop(best)
    return sorted(chosen)


def load_case(path: Path) -> dict:
    """A case with its arrays."""
    case = json.loads(gzip.decompress(path.read_bytes()))
    arrays = path.with_name(path.name.removesuffix(".json.gz") + ".npz")
    case["arrays"] = dict(np.load(arrays)) if arrays.exists() else {}
    return case


def fill(model: nn.Module, case: dict) -> None:
    """Gives every parameter and running statistic the value that the case's seed defines."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            if name in parameters or name.endswith(("running_mean", "running_var")):
                made = recipe.fill(name, tuple(value.shape), case["seed"], case["gain"])
                value.copy_(torch.from_numpy(np.asarray(made)))


def inputs(case: dict, dtype: torch.dtype = torch.float32) -> tuple[Images, list[Target], list[torch.Tensor] | None]:
    """The batch, its ground truth and its proposals."""
    images = Images(torch.from_numpy(recipe.images(case)).to(dtype), [tuple(s) for s in case["image_shapes"]])
    given = recipe.proposals(case)
    proposals = None if given is None else [torch.from_numpy(p).to(dtype) for p in given]
    targets = [
        Target(torch.from_numpy(t["boxes"]).to(dtype), torch.from_numpy(t["labels"]), torch.from_numpy(t["masks"]),
               semantic=None if t["semantic"] is None else torch.from_numpy(t["semantic"]),
               proposals=None if proposals is None else proposals[i], image_id=i)
        for i, t in enumerate(recipe.targets(case))
    ]
    return images, targets, proposals


def configure(model: nn.Module, case: dict) -> None:
    """Applies the case's overrides, lets every random sampler keep all, and no block be left out."""
    overrides = case["overrides"]
    for module in model.modules():
        for phase in ("train", "test"):
            if f"{phase}_proposals" in overrides and hasattr(module, f"{phase}_proposals"):
                getattr(module, f"{phase}_proposals").post_nms_top_n = overrides[f"{phase}_proposals"]
        for value in vars(module).values():
            if isinstance(value, Sampler) and not getattr(module, "hard_examples", False):
                value.number = None
        if "object_mask_thr" in overrides and hasattr(module, "object_score"):
            module.object_score = overrides["object_mask_thr"]
        if hasattr(module, "mask_points"):  # Mask2Former's
            module.mask_points = CellCentres()
        if hasattr(module, "most_regions"):  # Grid R-CNN's
            module.jitter, module.most_regions = 0.0, None
        if isinstance(module, (StochasticDepth, nn.Dropout)):
            module.p = 0.0


def prepare(model: nn.Module, case: dict) -> tuple[Images, list[Target], list[torch.Tensor] | None]:
    """Fills and sets a model for a case, in evaluation mode; the case's input in its precision and on its device."""
    fill(model, case)
    configure(model, case)
    model.eval()
    parameter = next(model.parameters())
    images, targets, proposals = inputs(case, parameter.dtype)
    return (images.to(parameter.device), [t.to(parameter.device) for t in targets],
            None if proposals is None else [p.to(parameter.device) for p in proposals])


class CellCentres:
    """In place of Mask2Former's random points, the centres of a grid's cells."""

    CELLS = 112

    def uniform(self, count: int, device: torch.device) -> torch.Tensor:
        at = (torch.arange(self.CELLS, device=device) + 0.5) / self.CELLS
        grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)
        return grid.view(1, -1, 2).expand(count, -1, -1)

    def uncertain(self, masks: torch.Tensor) -> torch.Tensor:
        return self.uniform(len(masks), masks.device)


def run_case(case: dict, model: nn.Module, name: str) -> Report:
    """All checks of one case on a built model.

    The CPU's convolutions round otherwise on one thread than on several, and otherwise from one CPU to the next, by as
    much as lies between either and the reference. That is enough to move the border of a mask that is a few pixels
    wide. So a case passes if it does with either, or in float64, where our own rounding does not count. The report is
    of the last attempt, and tells what failed in those before.
    """
    attempts: dict[str, dict[str, str]] = {}
    for threads, dtype in ((max(2, torch.get_num_threads()), torch.float32), (1, torch.float32), (1, torch.float64)):
        with threads_set(threads):
            report = run_checks(case, copy.deepcopy(model).to(dtype), name)
        report.before = dict(attempts)
        if report.passes or report.checks["state"] != "pass":
            break
        title = f"{str(dtype).removeprefix('torch.')} on {threads} thread{'s' * (threads > 1)}"
        attempts[title] = {check: text for check, text in report.checks.items() if text.startswith("fail")}
    return report


@contextmanager
def threads_set(number: int) -> Iterator[None]:
    """PyTorch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_checks(case: dict, model: nn.Module, name: str) -> Report:
    """All checks of one case, in the precision of a model that may be changed."""
    report = Report(name)
    check_state(report, case, model)
    if not report.passes:
        return report
    images, targets, proposals = prepare(model, case)
    with torch.no_grad():
        features = model.features(images.tensor)
        check_maps(report, "features", case.get("features"), features)
        if case.get("head"):
            check_maps(report, "head", case["head"], head_maps(model.bbox_head, features))
        if case.get("detections"):
            check_detections(report, case, [d.to("cpu") for d in model.predict(images, proposals=proposals)])
    if case.get("losses"):
        check_training(report, case, model, images, targets)
    return report


def check_state(report: Report, case: dict, model: nn.Module) -> None:
    want = expected_state(case["model"])
    have = {k: list(v.shape) for k, v in model.state_dict().items()}
    wrong = [k for k in want.keys() | have.keys() if want.get(k) != have.get(k)]
    report.note("state", not wrong, f"{len(wrong)} entries differ: {', '.join(sorted(wrong)[:3])}")


def head_maps(head: nn.Module, features: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The raw outputs of a one-stage head, all levels of the first output, then of the second, and so on.

    Guided anchoring: the original computes no classes and boxes at the cells that it drops. Its maps are zero there, in
    the whole batch where the first image drops them.
    """
    output = head(features)
    if hasattr(head, "tl_pool"):  # CentripetalNet's: each output of both corners in turn
        output = [maps for pair in zip(*output) for maps in pair]
    if hasattr(head, "is_kept"):
        classes, boxes, _, locations = output
        kept = [head.is_kept(m[:1]) for m in locations]
        output = [[m * k for m, k in zip(maps, kept)] for maps in (classes, boxes)] + list(output[2:])
    return [m for maps in output for m in maps]


def check_maps(report: Report, check: str, want: list[dict] | None, maps) -> None:
    if want is None:
        return
    shapes = [list(m.shape) for m in maps]
    if shapes != [w["shape"] for w in want]:
        return report.note(check, False, f"shapes {shapes}")
    rms = [m.double().square().mean().sqrt().item() for m in maps]
    off_rms = max(abs(r - w["rms"]) / w["rms"] for r, w in zip(rms, want))
    off_mean = max(abs(m.double().mean().item() - w["mean"]) / w["rms"] for m, w in zip(maps, want))
    report.measure(check, max(off_rms, off_mean))
    report.note(check, off_rms <= 1e-3 and off_mean <= 1e-3, f"rms {off_rms:.1e}, mean {off_mean:.1e}")


def check_detections(report: Report, case: dict, found: list[Detections]) -> None:
    worst = []
    for i, (want, ours) in enumerate(zip(case["detections"], found)):
        arrays = {k.split(".")[0]: v for k, v in case["arrays"].items() if k.endswith(f".{i}")}
        if "boxes" in arrays and len(arrays["boxes"]):
            worst += compare_boxes(report, arrays, ours, case["self_match"][i], want)
        elif "boxes" in arrays and len(ours):
            worst.append(f"image {i}: {len(ours)} detections where there are none")
        if "panoptic" in arrays:
            share = panoptic_agreement(arrays["panoptic"], ours.panoptic.numpy())
            report.measure("panoptic", 1 - share)
            if share < 0.99:
                worst.append(f"image {i}: {share:.4f} of the panoptic map agrees")
    report.note("detections", not worst, "; ".join(worst))


def compare_boxes(report: Report, arrays: dict, ours: Detections, self_match: float, want: dict) -> list[str]:
    """What is wrong with one image's detections, as sentences."""
    wrong = []
    theirs = Detections(*(torch.from_numpy(arrays[k]) for k in ("boxes", "scores", "labels")))
    if abs(len(ours) - len(theirs)) > 0.02 * len(theirs):
        wrong.append(f"{len(ours)} detections, not {len(theirs)}")
    if not len(ours):
        return wrong
    share = same_detections(theirs, ours).any(1).float().mean().item()
    report.measure("detections", 1 - share)
    if share < self_match - 0.03:
        wrong.append(f"{share:.3f} of the detections found, {self_match:.3f} can be")
    if "masks" in arrays and want.get("mask_shape"):
        h, w = want["mask_shape"]
        packed = np.unpackbits(arrays["masks"], axis=1)[:, : h * w]
        theirs.masks = torch.from_numpy(packed.reshape(-1, h, w).astype(bool))
        good, matched = agreeing_masks(theirs, ours)
        report.measure("masks", 1 - good / max(matched, 1))
        if good < 0.95 * matched:
            wrong.append(f"{good} of {matched} masks agree")
    return wrong


def same_detections(theirs: Detections, ours: Detections) -> torch.Tensor:
    """Which of our detections may stand for which of theirs, bool [theirs, ours]."""
    same = theirs.labels[:, None] == ours.labels[None]
    same &= (theirs.scores[:, None] - ours.scores[None]).abs() <= 1e-3
    return same & ((theirs.boxes[:, None] - ours.boxes[None]).abs().amax(-1) <= 0.5)


def agreeing_masks(theirs: Detections, ours: Detections) -> tuple[int, int]:
    """How many of their masks have one of ours with an IoU of 0.98, and how many have a detection of ours at all."""
    good, matched = 0, 0
    same = same_detections(theirs, ours)
    for row, mask in enumerate(theirs.masks):
        for j in same[row].nonzero()[:1, 0]:
            union = (mask | ours.masks[j]).sum()
            matched += 1
            good += bool(union == 0 or (mask & ours.masks[j]).sum() / union >= 0.98)
    return good, matched


def steady_masks(case: dict, model: nn.Module) -> float:
    """Share of a model's own first 20 masks that survive a relative input noise of 1e-6, in the worst image.

    For boxes the reference says as `self_match` how much agreement a case can ask for; for masks this is the same. The
    model is changed.
    """
    images, _, proposals = prepare(model, case)
    with torch.no_grad():
        plain = model.predict(images, proposals=proposals)
        noise = torch.randn(images.tensor.shape, generator=torch.Generator().manual_seed(0))
        images.tensor = images.tensor * (1 + 1e-6 * noise)
        noisy = model.predict(images, proposals=proposals)
    shares = [1.0]
    for a, b in zip(plain, noisy):
        good, matched = agreeing_masks(replace(a, masks=a.masks[:20]), b)
        shares.append(good / max(matched, 1))
    return min(shares)


def panoptic_agreement(want: np.ndarray, have: np.ndarray) -> float:
    """Share of pixels equal up to the numbering of instances: each of our segments may stand for one of theirs."""
    pairs, counts = np.unique(np.stack([want.ravel(), have.ravel()]), axis=1, return_counts=True)
    used_want, used_have, agree = set(), set(), 0
    for k in np.argsort(-counts):
        a, b = pairs[:, k]
        if a % 1000 == b % 1000 and a not in used_want and b not in used_have:
            used_want.add(a)
            used_have.add(b)
            agree += counts[k]
    return agree / want.size


def check_training(report: Report, case: dict, model: nn.Module, images: Images, targets: list[Target]) -> None:
    model.train()
    model.zero_grad()
    losses = model.loss(images, targets)
    limit = 1e-3 + 5 * case["loss_noise"]
    if losses.keys() != case["losses"].keys():
        return report.note("losses", False, f"named {', '.join(losses)}")
    off = {k: abs(losses[k].item() - v) / (abs(v) or 1) for k, v in case["losses"].items()}
    good = all(abs(losses[k].item() - v) <= max(limit * abs(v), 1e-5) for k, v in case["losses"].items())
    name = max(off, key=off.__getitem__)
    report.measure("losses", off[name])
    report.note("losses", good, f"{name} {losses[name].item():.6g}, not {case['losses'][name]:.6g}")
    if not case.get("grad_norms"):
        return
    sum(losses.values()).backward()
    check_gradients(report, case, model)
    model.zero_grad()


def check_gradients(report: Report, case: dict, model: nn.Module) -> None:
    have = {n: p.grad.double().norm().item() if p.requires_grad and p.grad is not None
            else (0.0 if p.requires_grad else None) for n, p in model.named_parameters()}
    want = case["grad_norms"]
    frozen = [n for n in want if (want[n] is None) != (have.get(n) is None)]
    if frozen:
        return report.note("gradients", False, f"{len(frozen)} frozen otherwise, such as {frozen[0]}")
    floor = 1e-5 * max(v for v in want.values() if v is not None)
    off = {n: abs(have[n] - v) / max(v, floor) for n, v in want.items() if v is not None}
    share = sum(o > 0.01 for o in off.values()) / len(off)
    name = max(off, key=off.__getitem__)
    good = share <= 0.01 + 2 * case["grad_noise"]
    report.measure("gradients", share)
    report.note("gradients", good, f"{share:.1%} of norms off, {name} {off[name]:.1e}")


def find_cases(folder: Path, pattern: str = "*") -> list[Path]:
    """The cases of a folder whose name matches, sorted by model, so that each model is built once."""
    return sorted(p for p in folder.glob("*.json.gz") if fnmatch(p.name.removesuffix(".json.gz"), pattern))


def main() -> int:
    parser = argparse.ArgumentParser(description="Hold detcore's models against reference cases.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="glob over case names")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    cases = find_cases(options.folder, options.only)
    if not cases:
        print(f"There is no case in {options.folder} whose name matches {options.only}.", file=sys.stderr)
        return 2
    reports, model, built = [], None, None
    for path in cases:
        case, name = load_case(path), path.name.removesuffix(".json.gz")
        try:
            if built != case["model"]:
                model, built = detcore.create_model(case["model"]), case["model"]
            report = run_case(case, model, name)
        except DetcoreError as error:
            report = Report(name)
            report.note("state", False, str(error))
        reports.append(report)
        print(f"{name:58}", *(f"{k} {v}" for k, v in report.checks.items()), sep="  ", flush=True)
        for title, failed in report.before.items():
            print(f"    before, in {title}:", *(f"{k} {v}" for k, v in failed.items()), sep="  ", flush=True)
    passed = sum(r.passes for r in reports)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) | {"passes": r.passes} for r in reports], indent=1))
    print(f"{passed} of {len(reports)} cases pass")
    return 0 if passed == len(reports) else 1


if __name__ == "__main__":
    sys.exit(main())
