"""`make gpu` without a GPU: every section runs the same code on the CPU at the pocket profile's size."""
from __future__ import annotations

import pytest
import torch

from detcore.records import read_record
from tests import gpu

WORK = gpu.Work(torch.device("cpu"), 300, full=False)


@pytest.mark.parametrize("section", [name for name in gpu.SECTIONS if name != "sync"])
def test_section(section: str) -> None:
    found, _ = gpu.run_section(section, WORK)
    assert not found.failed, found.failed
    assert found.passed or found.speed
    assert all(0 < value < 300 for value in found.speed.values())


def test_a_failure_is_a_failed_check(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """A section that raises does not stop the next; both leave records; the exit status tells."""
    def broken(work: gpu.Work) -> gpu.Outcome:
        raise RuntimeError("a kernel is missing")

    def whole(work: gpu.Work) -> gpu.Outcome:
        return gpu.Outcome(passed=["a check"], speed={"step median_s": 0.1})

    monkeypatch.setattr(gpu, "SECTIONS", {"first": (broken, 0.5), "second": (whole, 0.5)})
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--minutes", "1", "--output", str(tmp_path)])
    assert gpu.main() == 1
    first, second = (read_record(tmp_path / f"cpu.{name}.json") for name in ("first", "second"))
    assert first.parameters["failed"] == {"first": "RuntimeError: a kernel is missing"}
    assert second.parameters["passed"] == ["a check"] and second.speed == {"step median_s": 0.1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what to do without a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cuda"])
    assert gpu.main() == 2
    assert "--device cpu runs the same code" in capsys.readouterr().err
