"""The zoo against the numbers measured on the original implementation: a case of each kind of architecture, or, with
`make test ALL=1`, all cases."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import detcore
from tests import parity

CASES = parity.find_cases(parity.REFERENCE / "cases")
if not os.environ.get("ALL"):
    CASES = parity.one_of_each_kind(CASES)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.name.removesuffix(".json.gz"))
def test_case(path: Path) -> None:
    case = parity.load_case(path)
    model = detcore.create_model(case["model"])
    report = parity.run_case(case, model, path.name)
    expect_no_more_than_rounding_allows(report, case, model)
    assert report.passes, report.checks
    assert report.checks["state"] == report.checks["features"] == report.checks["detections"] == "pass"
    assert report.checks["losses"] == "pass"
    assert report.checks["gradients"] == ("pass" if case.get("grad_norms") else "n/a")


def expect_no_more_than_rounding_allows(report: parity.Report, case: dict, model: torch.nn.Module) -> None:
    """Ends a test as an expected failure where nothing but masks differs and this CPU's rounding decides over those.

    `self_match` says for boxes how many of the reference's own detections survive a relative input noise of 1e-6, and
    a case passes with 3 % less; for masks it says nothing, and a limit of 95 % asks more than that of ResNeXt-101 with
    weight standardisation, whose 101 random layers amplify rounding a thousandfold. So that rule is held for its masks.
    """
    failed = {check: text for check, text in report.checks.items() if text.startswith("fail")}
    if failed.keys() != {"detections"}:
        return
    counts = re.findall(r"(\d+) of (\d+) masks agree", failed["detections"])
    if len(counts) == failed["detections"].count(";") + 1:
        steady = parity.steady_masks(case, model)
        if steady < 0.95 and min(int(good) / int(of) for good, of in counts) >= steady - 0.03:
            pytest.xfail(f"{failed['detections']}; of our own masks {steady:.0%} survive the reference's input noise")


def test_a_usual_depth_excuses_no_masks() -> None:
    """ResNet-50 keeps its masks under that noise, so its case has to pass; the deepest model does not."""
    share = {}
    for name in ("mask-rcnn_r50_fpn_1x_coco", "mask-rcnn_x101-32x4d_fpn_gn-ws-all_2x_coco"):
        case = parity.load_case(parity.REFERENCE / "cases" / f"{name}.json.gz")
        share[name] = parity.steady_masks(case, detcore.create_model(name))
    usual, deepest = share.values()
    assert deepest < 0.8 < 0.95 <= usual


@pytest.mark.parametrize(("text", "steady", "excused"), [
    ("fail (16 of 20 masks agree; 18 of 20 masks agree)", 0.35, True),
    ("fail (16 of 20 masks agree)", 0.95, False),
    ("fail (6 of 20 masks agree)", 0.35, False),
    ("fail (0.900 of the detections found, 0.990 can be; 16 of 20 masks agree)", 0.35, False),
    ("fail (image 1: 3 detections where there are none)", 0.35, False)])
def test_only_unsteady_masks_are_excused(text, steady, excused, monkeypatch) -> None:
    monkeypatch.setattr(parity, "steady_masks", lambda case, model: steady)
    report = parity.Report("case", {"features": "pass", "detections": text})
    with pytest.raises(pytest.xfail.Exception) if excused else nullcontext():
        expect_no_more_than_rounding_allows(report, {}, torch.nn.Identity())


def test_a_wrong_weight_fails() -> None:
    """The harness sees a model whose numbers are off."""
    case = parity.load_case(parity.REFERENCE / "cases" / "retinanet_r18_fpn_1x_coco.json.gz")
    model = detcore.create_model(case["model"])
    keep = parity.fill

    def fill_and_break(model: torch.nn.Module, case: dict) -> None:
        keep(model, case)
        with torch.no_grad():
            model.backbone.layer4[0].conv1.weight.mul_(1.05)

    parity.fill = fill_and_break
    try:
        report = parity.run_case(case, model, "broken")
    finally:
        parity.fill = keep
    assert {k for k, v in report.checks.items() if v.startswith("fail")} == {
        "features", "head", "detections", "losses", "gradients"}


def test_every_attempt_is_told(monkeypatch) -> None:
    """What failed before the last attempt is in the report, whether that one passes or not."""
    def checks(case: dict, model: torch.nn.Module, name: str) -> parity.Report:
        report, dtype = parity.Report(name), next(model.parameters()).dtype
        report.note("state", True, "")
        report.note("losses", dtype in case["good"], f"off in {dtype} on {min(torch.get_num_threads(), 2)}")
        return report

    monkeypatch.setattr(parity, "run_checks", checks)
    model = torch.nn.Linear(1, 1)
    failed = {f"float32 on {max(2, torch.get_num_threads())} threads": {"losses": "fail (off in torch.float32 on 2)"},
              "float32 on 1 thread": {"losses": "fail (off in torch.float32 on 1)"}}
    for good in ([torch.float64], []):
        report = parity.run_case({"good": good}, model, "case")
        assert report.before == failed and report.passes == bool(good)
    assert parity.run_case({"good": [torch.float32]}, model, "case").before == {}


def test_panoptic_agreement_ignores_numbering() -> None:
    want = np.array([[3, 1003, 1003], [80, 2003, 2003]])
    have = np.array([[3, 2003, 2003], [80, 1003, 80]])
    assert parity.panoptic_agreement(want, want) == 1
    assert parity.panoptic_agreement(want, have) == pytest.approx(5 / 6)


def test_command(tmp_path: Path) -> None:
    """Exit status: 2 without cases, 0 when all pass, and a row for each."""
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "tests.parity", *arguments], capture_output=True, text=True,
                              cwd=Path(__file__).parent.parent)

    assert run(str(tmp_path)).returncode == 2
    done = run(str(parity.REFERENCE / "cases"), "--only", "rpn_r50_fpn_1x_coco", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 of 1 cases pass"
    assert '"passes": true' in (tmp_path / "rows.json").read_text()


def test_each_kind_of_architecture_has_a_case() -> None:
    """Whatever builder, option or backbone there is a case of, one of the chosen cases has it too."""
    everything = parity.find_cases(parity.REFERENCE / "cases")
    chosen = parity.one_of_each_kind(everything)
    assert set.union(*map(parity.kinds, chosen)) == set.union(*map(parity.kinds, everything))
    assert len(chosen) < len(everything) / 2
