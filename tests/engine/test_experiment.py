"""`Experiment`: what a chapter calls."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detcore import draw
from detcore.errors import UsageError
from detcore.experiment import (
    Experiment,
    Table,
    bitmaps,
    images_seen,
    paired,
    signed,
    source,
    truth,
    with_interval,
)
from detcore.ops.losses import focal
from detcore.records import Record, read_record

RETINANET = "retinanet_r50_fpn_1x_coco"


@pytest.fixture(scope="module")
def trained(pocket_zoo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("experiment")
    exp = Experiment(RETINANET, pocket_zoo_root, steps=3, device="cpu", output=folder / "run",
                     records=folder / "records")
    exp.train()
    exp.evaluate()
    exp.benchmark()
    return exp


def test_records_say_where_they_come_from(trained: Experiment) -> None:
    """Seed, steps, images seen, the checkpoint's hash and the date are in the records of all three kinds."""
    kinds = {kind: trained.recorded(kind) for kind in ("train", "evaluate", "benchmark")}
    assert {r.seed for r in kinds.values()} == {0}
    assert len({r.parameters["checkpoint"] for r in kinds.values()}) == 1
    assert all(r.date and len(r.date) == 10 for r in kinds.values())
    assert images_seen(kinds["train"]) == 3 * trained.recipe.batch_size
    by_iou = kinds["evaluate"].by_iou["bbox"]
    assert len(by_iou) == 10 and sum(by_iou) / 10 == pytest.approx(kinds["evaluate"].metrics["bbox_AP"], abs=1e-3)
    assert by_iou[0] == pytest.approx(kinds["evaluate"].metrics["bbox_AP50"], abs=1e-3)
    assert kinds["evaluate"].intervals.keys() == kinds["evaluate"].replicates.keys() >= {"bbox_AP", "bbox_AR100"}
    assert not trained.full and trained.folder.name == "run.3-steps"
    text = str(trained.provenance())
    assert kinds["train"].parameters["checkpoint"] in text and "train" in text and "benchmark" in text


def test_an_experiment_beside_another_shares_its_circumstances_alone() -> None:
    exp = Experiment(RETINANET, "data", seed=3, steps=7, device="cpu", output="mine", records="records", label="One",
                     options=dict(gamma=0.0), proposals="p.npz")
    other = exp.beside("rpn_r50_fpn_1x_coco", label="Other")
    assert (other.data_root, other.seed, other.steps, other.device, other.records) == ("data", 3, 7, "cpu", "records")
    assert (other.name, other.options, other.proposals) == ("Other", {}, None)
    assert other.folder == Path("runs/rpn_r50_fpn_1x_coco.pocket.seed3.7-steps") != exp.folder
    assert exp.beside(RETINANET, output="mine").folder == exp.folder


def test_a_finished_run_is_not_trained_again(trained: Experiment) -> None:
    before = trained.checkpoint.stat().st_mtime_ns
    result = trained.train()
    assert trained.checkpoint.stat().st_mtime_ns == before
    assert result.figure is not None and "images seen" in str(result)


def test_the_weights_on_the_way_can_be_loaded(trained: Experiment) -> None:
    assert set(trained.checkpoints()) == {2, 3}  # training keeps the last two
    early, late = (trained.load(path).state_dict() for path in trained.checkpoints().values())
    name = "bbox_head.retina_cls.weight"
    assert not torch.equal(early[name], late[name]) and torch.equal(late[name], trained.detector.state_dict()[name])


def test_gamma_is_an_option_of_retinanet(trained: Experiment, pocket_zoo_root: Path) -> None:
    """With gamma 0 the easy background counts in full: the loss of an untrained network is larger."""
    batch = trained.batch(2)
    images = trained.recipe.preprocess(batch.images, batch.sizes)
    losses = [Experiment(RETINANET, pocket_zoo_root, device="cpu", options=dict(gamma=gamma)).load(None).loss(
        images, batch.targets)["loss_cls"] for gamma in (0.0, 2.0)]
    assert losses[0] > 10 * losses[1]


def test_source_is_code_with_its_file() -> None:
    told = source(focal)
    assert told.file == "detcore/ops/losses.py" and told.code.startswith("def focal(")
    assert told._repr_markdown_().startswith("`detcore/ops/losses.py`\n\n```python\ndef focal(")
    assert source(Table.__str__).code.startswith("def __str__")  # without the class's indentation


def test_results_show_themselves(trained: Experiment) -> None:
    for result in (trained.train(), trained.evaluate(), trained.benchmark()):
        html = result._repr_html_()
        assert html.startswith('<table class="detcore">') and html.count('scope="row"') == len(result.table.rows)
        assert RETINANET in str(result)
    assert "[" in dict(trained.benchmark().table.rows)["inference, ms per image"]


def test_sample_and_gallery(trained: Experiment) -> None:
    sample = trained.sample(3)
    assert len(sample) == 3 and sample.images.tensor.shape[0] == 3
    assert sample.pictures[0].shape == (128, 128, 3) and len(sample.targets[0].labels) > 0
    picture = trained.gallery(sample, score_threshold=0.0)
    assert isinstance(picture, Image.Image) and picture.width > 3 * 128
    other = trained.sample(indices=[2])
    assert (other.pictures[0] == sample.pictures[2]).all()
    assert torch.allclose(trained.predict(other)[0].boxes, trained.predict(sample)[2].boxes, atol=1e-3)


def test_a_sample_has_masks_where_the_model_learns_them(trained: Experiment, pocket_zoo_root: Path) -> None:
    assert bitmaps(trained.sample(1), 0) is None
    sample = Experiment("mask-rcnn_r50_fpn_1x_coco", pocket_zoo_root, device="cpu").sample(2)
    masks, boxes = bitmaps(sample, 0), sample.targets[0].boxes
    assert masks is not None and masks.shape == (len(boxes), *sample.pictures[0].shape[:2])
    x1, y1, x2, y2 = boxes[0].round().int().tolist()
    assert masks[0].sum() == masks[0, y1:y2 + 1, x1:x2 + 1].sum() > 0  # it lies in its box
    plain = np.asarray(draw.boxes(sample.pictures[0], boxes, width=2, scale=1))
    assert (np.asarray(truth(sample, 0, scale=1)) != plain).any(2).sum() >= masks.any(0).sum() / 2


def test_other_options_are_a_model_of_their_own(trained: Experiment, pocket_zoo_root: Path) -> None:
    plain = Experiment(RETINANET, pocket_zoo_root, steps=3, device="cpu", label="one conv",
                       output=trained.folder.parent / "other", records=trained.records, options=dict(depth=1))
    assert plain.entry.name == f"{RETINANET}+depth-1" and plain.name == "one conv"
    with pytest.raises(UsageError, match="has not been trained .* call train"):
        plain.evaluate()
    with pytest.raises(UsageError, match="has no record .* run the chapter or script"):
        plain.recorded("train")
    plain.train()
    plain.evaluate()
    assert len(plain.detector.state_dict()) < len(trained.detector.state_dict())
    both = trained.compare(plain)
    assert both.interval is not None and both.interval[0] <= both.difference <= both.interval[1] or both.difference == 0
    assert both.clear == (both.interval[0] > 0 or both.interval[1] < 0)
    assert [row[0] for row in both.table.rows] == [RETINANET, "one conv", f"{RETINANET} − one conv"]
    assert trained.compare(trained).interval == (0.0, 0.0) and not trained.compare(trained).clear


def test_seeds_are_put_together(trained: Experiment, tmp_path: Path) -> None:
    exp = Experiment(RETINANET, records=tmp_path)
    for seed, value in enumerate((0.5, 0.52, 0.48)):
        Record(kind="evaluate", duration_s=1, metrics={"bbox_AP": value}).write(exp.record_path("evaluate", seed))
        Record(kind="train", duration_s=60, parameters=dict(steps_done=10, images=16)).write(
            exp.record_path("train", seed))
    assert exp.over_seeds("bbox_AP") == [0.5, 0.52, 0.48]
    assert "50.0 ± 2.0 (3)" in str(exp.compare(exp))
    assert exp.record_path("evaluate", 2).name == f"{RETINANET}.pocket.seed2.evaluate.json"


def test_values_are_shown_in_percent_with_intervals() -> None:
    record = Record(kind="evaluate", duration_s=1, metrics={"bbox_AP": 0.5, "bbox_APl": None},
                    intervals={"bbox_AP": (0.45, 0.551)})
    assert with_interval(record, "bbox_AP") == "50.0 [45.0, 55.1]"
    assert with_interval(record, "bbox_APl") == "–"


def test_a_record_without_a_date_has_none(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"kind": "train", "duration_s": 1}')
    assert read_record(path).date is None


def test_tables_escape_and_align() -> None:
    table = Table(["model", "AP"], [["a < b", "5.0"], ["c", "50.0"]], caption="x & y")
    assert "a &lt; b" in table._repr_html_() and "x &amp; y" in table._repr_html_()
    assert str(table).splitlines() == ["model    AP", "a < b   5.0", "c      50.0"]


def test_a_record_keeps_lists_on_a_line(tmp_path: Path) -> None:
    record = Record(kind="evaluate", duration_s=1, replicates={"bbox_AP": [0.1, None, 0.3]},
                    parameters=dict(names=["a", "b, c"]))
    path = record.write(tmp_path / "record.json")
    assert '"bbox_AP": [ 0.1, null, 0.3 ]' in path.read_text()
    assert read_record(path).replicates == record.replicates


def test_differences_are_paired_on_the_same_images_only() -> None:
    """The interval is of the differences of the replicates; other images have no common resamplings."""
    data = [dict(name="val", fingerprint=name, images=2) for name in "ab"]
    ours, theirs, others = (
        Record.model_validate(dict(kind="evaluate", duration_s=1, data=of, metrics={"bbox_AP": value},
                                   replicates={"bbox_AP": [value - 0.1, value, value + 0.1]}))
        for of, value in ((data[0], 0.5), (data[0], 0.4), (data[1], 0.4)))
    difference, bounds = paired(ours, theirs, "bbox_AP")
    assert difference == pytest.approx(0.1) and bounds == pytest.approx((0.1, 0.1))
    assert signed(difference, bounds) == "+10.0 [+10.0, +10.0]"
    assert paired(ours, others, "bbox_AP")[1] is None and signed(-0.01, None) == "-1.0"
