"""Numbers: every one that a user can give has a range, and is held to it before any work begins."""
from __future__ import annotations

import inspect
import re
from fractions import Fraction

import numpy as np
import pytest

import detcore
from detcore import cli
from detcore.engine import benchmark, evaluate
from detcore.errors import UsageError
from detcore.experiment import Experiment, truth
from detcore.options import builder_options
from detcore.pocket import pocket_zoo, pretrain
from detcore.ranges import PROPERTY, RANGES, check_option, checked, whole
from detcore.zoo import create
from detcore.zoo.index import all_entries

FUNCTIONS = [detcore.benchmark, detcore.create_model, detcore.evaluate, detcore.export, detcore.train,
             detcore.Predictor.__init__, benchmark.benchmark_inference, benchmark.benchmark_training,
             evaluate.make_proposals, pocket_zoo.draw, pretrain.pretrain, create.restore, create.Resolved.build,
             Experiment._numbers, Experiment.batch, Experiment.sample, Experiment.gallery, Experiment.recorded, truth]
COMMANDS = [command.callback for app in (cli.app, cli.data_app) for command in app.registered_commands]


def numbers(function) -> list[str]:
    """The parameters of a function that are numbers by their annotation or default."""
    found = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        kinds = set(re.findall(r"\b(int|float)\b", inspect.formatannotation(parameter.annotation)))
        if kinds and "Mapping" not in str(parameter.annotation) and "indices" != name:
            found.append(name)
    return found


@pytest.mark.parametrize("function", FUNCTIONS + COMMANDS, ids=lambda f: f.__qualname__)
def test_every_number_has_a_range(function):
    assert set(numbers(function)) - {"index"} <= set(getattr(function, PROPERTY, {}))


def test_what_is_public_is_looked_at():
    functions = {getattr(detcore, name) for name in detcore.__all__ if inspect.isfunction(getattr(detcore, name))}
    assert {f.__name__ for f in functions - set(FUNCTIONS)} == {"get_model_entry", "list_models"}
    assert len(COMMANDS) == 11 and sum(bool(numbers(c)) for c in COMMANDS) >= 8
    assert set(numbers(detcore.train)) >= {"steps", "seconds", "seed", "gpus", "batch_size", "keep", "measure"}


WRONG = [-2, True, "4", float("nan"), float("inf"), [1], {}, 10**5000, np.bool_(True), 1j, b"1"]


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", WRONG, ids=lambda v: str(type(v).__name__))
def test_what_is_out_of_range_is_refused(name, value):
    with pytest.raises(UsageError, match=rf"^{name} is a (whole number|number|pair)") as error:
        RANGES[name].check(name, (value, 1) if RANGES[name].pair else value)
    assert len(str(error.value)) < 200


def test_what_is_in_range_passes_as_it_is():
    @checked(size=whole(32, 64))
    def work(images, val=2, *, size=32, steps: int | None = None, seconds=None, **options):
        return images, val, size, steps, seconds, options

    assert work(3) == (3, 2, 32, None, None, {})
    found = work(np.int64(3), 0, size=64.0, steps=5, seconds=np.float32(0.5), batch_size=np.uint8(7), model="a")
    assert found == (3, 0, 64, 5, 0.5, dict(batch_size=7, model="a"))
    assert [type(v) for v in found[:5]] == [int, int, int, int, float]
    assert work(1, seconds=Fraction(1, 4))[4] == 0.25 and work(1, score_threshold=None)[5] == dict(score_threshold=None)
    for wrong, told in ((dict(images=0), "images is a whole number of at least 1, not 0"),
                        (dict(images=1, size=65), "size is a whole number from 32 to 64, not 65"),
                        (dict(images=None), "images is .* not None"), (dict(images=1, val=0.5), "val is .* not 0.5"),
                        (dict(images=1, seconds=0), "seconds is a number above 0, not 0"),
                        (dict(images=10**9 + 1), "images is a whole number from 1 to 1,000,000,000, not"),
                        (dict(images=1, nms_threshold=1.01), "nms_threshold is a number from 0 to 1, not 1.01")):
        with pytest.raises(UsageError, match=told):
            work(**wrong)


def test_options_of_every_builder_have_ranges():
    seen = set()
    for entry in all_entries().values():
        for name, default in builder_options(entry.builder).items():
            if isinstance(default, (int, float)) and (name, default) not in seen:
                seen.add((name, default))
                assert check_option(name, default, default) == default
                for wrong in (float("nan"), "1", [2], -7e13):
                    with pytest.raises(UsageError, match=f"^{name} is "):
                        check_option(name, wrong, default)
    assert len(seen) > 40
    with pytest.raises(UsageError, match="queries is a whole number of at least 0, not 2.5"):
        detcore.create_model("mask2former_r50_8xb2-lsj-50e_coco", profile="pocket", queries=2.5)
    with pytest.raises(UsageError, match="masks is True or False, not 'no'"):
        check_option("masks", "no", True)


@pytest.mark.parametrize("call", [
    lambda: detcore.train("retinanet_r50_fpn_1x_coco", "nowhere", steps=True),
    lambda: detcore.train("retinanet_r50_fpn_1x_coco", "nowhere", measure=(5, 2)),
    lambda: detcore.evaluate("retinanet_r50_fpn_1x_coco", "nowhere", weights="random", batch_size=-1),
    lambda: detcore.benchmark("retinanet_r50_fpn_1x_coco", "nowhere", images=0),
    lambda: detcore.benchmark("retinanet_r50_fpn_1x_coco", "nowhere", training=True, first=4, last=4),
    lambda: detcore.benchmark("retinanet_r50_fpn_1x_coco", "nowhere", training=True, last=float("nan")),
    lambda: detcore.export("retinanet_r50_fpn_1x_coco", size=(0, 5)),
    lambda: detcore.export("retinanet_r50_fpn_1x_coco", size=5),
    lambda: detcore.Predictor("retinanet_r50_fpn_1x_coco", max_detections=0),
    lambda: detcore.create_model("retinanet_r50_fpn_1x_coco", num_classes="3"),
    lambda: detcore.create_model("retinanet_r50_fpn_1x_coco", score_threshold=float("nan")),
    lambda: pocket_zoo.draw("nowhere", size=31), lambda: pocket_zoo.draw("nowhere", seed=-1),
    lambda: pretrain.pretrain("nowhere", steps=0), lambda: Experiment("retinanet_r50_fpn_1x_coco", steps=0),
    lambda: evaluate.make_proposals("rpn_r50_fpn_1x_coco", "nowhere", "x.npz", workers=1.5)])
def test_functions_check_first(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["train --steps 0", "train --clip-norm -1", "evaluate random --batch-size -1",
                                  "benchmark --images 0 --output out/x.json", "benchmark --score-threshold nan",
                                  "export --size 0 4", "train --seconds inf"])
def test_commands_check_first(line, tmp_path, monkeypatch, capsys):
    command, *rest = line.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["detcore", command, "retinanet_r50_fpn_1x_coco", *rest])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1 and re.match(r"Error: \w+ is a .*number .* not ", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
