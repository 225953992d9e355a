"""Predictor on real files, and the pictures that are drawn from its answers."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import detcore
from detcore import draw
from detcore.engine import common
from detcore.engine.predict import COCO_IDS, Predictor
from detcore.errors import DataError, UsageError, WeightsError
from detcore.pocket import pocket_zoo
from detcore.recipe import CAFFE, TORCHVISION, Recipe
from detcore.structures import Detections, Images, Polygons
from detcore.weights import save_weights
from detcore.zoo.index import get_model_entry

NAME = "mask-rcnn_r50_fpn_1x_coco"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = detcore.create_model(NAME, profile="pocket")
    save_weights(path, model, {"model": NAME, "profile": "pocket", "classes": list(pocket_zoo.CLASSES),
                               "category_ids": list(range(10, 10 + len(pocket_zoo.CLASSES)))})
    return path


@pytest.fixture(scope="module")
def picture():
    return (np.random.default_rng(0).random((96, 144, 3)) * 255).astype(np.uint8)


def test_files_arrays_and_pil_images_give_the_same(checkpoint, picture, tmp_path) -> None:
    predictor = Predictor(checkpoint, score_threshold=0.0, batch_size=2)
    Image.fromarray(picture).save(tmp_path / "a.png")
    from_file, from_array, from_pil = predictor([tmp_path / "a.png", picture, Image.fromarray(picture)])
    assert len(from_file) > 0
    for other in (from_array, from_pil):
        torch.testing.assert_close(other.boxes, from_file.boxes)
    assert from_file.masks is not None and from_file.masks.shape[1:] == (96, 144)
    edge = torch.tensor([144.0, 96, 144, 96]) * (1 + 1e-6)  # scaled in float32
    assert (from_file.boxes <= edge).all()
    assert from_file.class_names == tuple(pocket_zoo.CLASSES)
    np.testing.assert_array_equal(from_file.image, picture)


def test_a_name_an_entry_and_a_detector_give_the_same(checkpoint, picture) -> None:
    entry = get_model_entry(NAME)
    detector = detcore.create_model(NAME, weights=checkpoint, profile="pocket", score_threshold=0.0)
    expected = Predictor(checkpoint, score_threshold=0.0)(picture)
    for predictor in (Predictor(NAME, weights=checkpoint, profile="pocket", score_threshold=0.0),
                      Predictor(replace(entry, name="mine"), weights=str(checkpoint), profile="pocket",
                                score_threshold=0.0)):
        assert predictor.class_names == pocket_zoo.CLASSES and predictor.category_ids[0] == 10
        torch.testing.assert_close(predictor(picture).boxes, expected.boxes)
    own = Predictor(detector, recipe=entry.recipe_for("pocket"))
    assert own.model is detector and own.class_names is None and own.category_ids is None
    found = own(picture)
    torch.testing.assert_close(found.boxes, expected.boxes[expected.scores >= 0.05])


def test_the_model_is_built_and_its_file_read_once(checkpoint, monkeypatch) -> None:
    calls = []
    read, build = detcore.zoo.create.read_checkpoint, detcore.ModelEntry.build

    def count_build(entry, *args, **options):
        model = build(entry, *args, **options)
        if not next(model.parameters()).is_meta:
            calls.append("build")
        return model

    monkeypatch.setattr("detcore.zoo.create.read_checkpoint", lambda path: calls.append("read") or read(path))
    monkeypatch.setattr(detcore.ModelEntry, "build", count_build)
    for source in (dict(model=checkpoint), dict(model=NAME, weights=checkpoint, profile="pocket")):
        calls.clear()
        Predictor(**source)
        assert sorted(calls) == ["build", "read"]


def test_thresholds(checkpoint, picture) -> None:
    everything = Predictor(checkpoint, score_threshold=0.0, max_detections=50)(picture)
    assert len(everything) == 50
    few = Predictor(checkpoint, score_threshold=0.0, max_detections=7)(picture)
    torch.testing.assert_close(few.boxes, everything.boxes[:7])
    by_default = Predictor(checkpoint)(picture)
    assert (by_default.scores >= 0.05).all()
    limit = float(everything.scores[20])
    assert (Predictor(checkpoint, score_threshold=limit)(picture).scores > limit).all()
    with pytest.raises(UsageError, match="score_threshold is a number from 0 to 1, not 1.5"):
        Predictor(checkpoint, score_threshold=1.5)
    with pytest.raises(UsageError, match="max_detections is a whole number of at least 1, not 0"):
        Predictor(checkpoint, max_detections=0)
    with pytest.raises(UsageError, match="deformable-detr.* has no option 'nms_threshold'. .* It takes"):
        Predictor("deformable-detr_r50_16xb2-50e_coco", weights="random", profile="pocket", nms_threshold=0.5)
    model = detcore.create_model(NAME, profile="pocket")
    with pytest.raises(UsageError, match="score_threshold of a detector that is built already .* to what builds it"):
        Predictor(model, recipe=Recipe(), score_threshold=0.5)
    with pytest.raises(UsageError, match="recipe"):
        Predictor(model)


def test_category_ids(checkpoint, tmp_path) -> None:
    assert Predictor(checkpoint).category_ids == tuple(range(10, 10 + len(pocket_zoo.CLASSES)))
    assert len(COCO_IDS) == 80 and COCO_IDS[10:13] == (11, 13, 14) and COCO_IDS[-1] == 90
    names = ["person", *(f"class {i}" for i in range(1, 11)), "stop sign", *(f"class {i}" for i in range(12, 79)),
             "toothbrush"]
    model = detcore.create_model("retinanet_r50_fpn_1x_coco", profile="pocket", num_classes=80)
    for classes, ids in ((names, COCO_IDS), ([f"class {i}" for i in range(80)], None)):
        torch.save(dict(meta=dict(CLASSES=classes), state_dict=model.state_dict()), tmp_path / "theirs.pth")
        predictor = Predictor("retinanet_r50_fpn_1x_coco", weights=tmp_path / "theirs.pth", profile="pocket")
        assert predictor.category_ids == ids and predictor.class_names == tuple(classes)
    assert common.told(tmp_path / "theirs.pth", None, {})["weights"] == "theirs.pth"


def test_what_is_no_picture(checkpoint, picture, tmp_path) -> None:
    predictor = Predictor(checkpoint, batch_size=2)
    (tmp_path / "a.jpg").write_text("not a picture")
    with pytest.raises(DataError, match=r"a\.jpg"):
        predictor(tmp_path / "a.jpg")
    for form in (np.zeros((4, 4), np.float32), picture.astype(np.float32), picture[..., 0], picture[None],
                 picture.astype(object), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(DataError, match=r"a PIL image or a uint8 array \[h, w, 3\], not \w+ \[[\d, ]+\]"):
            predictor(form)
    for other in (None, 3, b"bytes", torch.zeros(3, 4, 4), {"a": 1}, iter([picture])):
        with pytest.raises(DataError, match="A picture is a file, a PIL image or a uint8 array"):
            predictor(other)
    for empty in (picture[:0], picture[:, :0], Image.new("RGB", (0, 5)), Image.new("L", (5, 0))):
        with pytest.raises(DataError, match=r"has no pixels: its size is \d+ x \d+"):
            predictor(empty)
    closed = Image.new("RGB", (9, 9))
    closed.close()
    with pytest.raises(DataError, match="cannot be read"):
        predictor(closed)


def test_of_a_list_the_broken_one_is_named(checkpoint, picture, tmp_path) -> None:
    predictor = Predictor(checkpoint, batch_size=2)
    (tmp_path / "a.jpg").write_text("not a picture")
    with pytest.raises(DataError, match=r"Picture 3 of the list of 4: .*a\.jpg is not an image file"):
        predictor([picture, picture, picture, tmp_path / "a.jpg"])
    with pytest.raises(DataError, match="Picture 1 of the list of 2: A picture is a file"):
        predictor((picture, [picture]))
    assert predictor([]) == [] and len(predictor((picture,))) == 1


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F", "1", "L", "P", "LA", "RGBA", "CMYK"])
def test_a_pil_image_gives_what_its_file_gives(mode, checkpoint, picture, tmp_path) -> None:
    deep = np.arange(96 * 144, dtype=np.uint16).reshape(96, 144) * 4
    image = {"I;16": lambda: Image.fromarray(deep), "I": lambda: Image.fromarray(deep.astype(np.int32)),
             "I;16B": lambda: Image.frombytes("I;16B", (144, 96), deep.astype(">u2").tobytes()),
             "F": lambda: Image.fromarray((deep / 65535).astype(np.float32))}.get(
                 mode, lambda: Image.fromarray(picture).convert(mode))()
    image.save(tmp_path / "a.tiff")
    predictor = Predictor(checkpoint, score_threshold=0.0)
    from_image, from_file = predictor(image), predictor(tmp_path / "a.tiff")
    np.testing.assert_array_equal(from_image.image, from_file.image)
    torch.testing.assert_close(from_image.boxes, from_file.boxes)
    assert from_image.image.std() > 20, "neither white nor black"


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 700)])
def test_thin_pictures(shape, checkpoint) -> None:
    found = Predictor(checkpoint, score_threshold=0.0)(np.zeros((*shape, 3), np.uint8))
    assert found.masks.shape[1:] == shape and torch.isfinite(found.boxes).all()


@pytest.mark.parametrize("told, known", [
    ([5] * len(pocket_zoo.CLASSES), True), ([str(i) for i in range(len(pocket_zoo.CLASSES))], True), ([1], False),
    ("abc", False), ([None] * len(pocket_zoo.CLASSES), False), ([True] * len(pocket_zoo.CLASSES), False), (7, False)])
def test_category_ids_that_do_not_fit_are_not_known(told, known, checkpoint, tmp_path) -> None:
    state = load_file(checkpoint)
    torch.save(dict(meta=dict(model=NAME, profile="pocket", classes=["one"], category_ids=told), state_dict=state),
               tmp_path / "m.pt")
    predictor = Predictor(tmp_path / "m.pt")
    assert predictor.category_ids == (tuple(told) if known else None)
    assert predictor.class_names is None, "one name is too few"


def test_names_and_files_that_do_not_do(tmp_path) -> None:
    with pytest.raises(UsageError, match="faster-rcnn_r50_fpn_1x_coco"):
        Predictor("faster_rcnn_r50_fpn_1x_coco")
    with pytest.raises(UsageError, match="proposals"):
        Predictor("fast-rcnn_r50_fpn_1x_coco", weights="random", profile="pocket")
    (tmp_path / "broken.pth").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match=r"broken\.pth"):
        Predictor(tmp_path / "broken.pth")


def some_detections(image=None) -> Detections:
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 5:20, 5:25] = True
    return Detections(torch.tensor([[5.0, 5, 25, 20], [30, 10, 50, 35]]), torch.tensor([0.9, 0.2]),
                      torch.tensor([1, 0]), masks, class_names=("cat", "dog"), image=image)


def test_drawing_paints_what_is_sure_enough() -> None:
    plain = np.full((40, 60, 3), 200, np.uint8)
    found = some_detections(plain)
    sure, all_of_them = np.asarray(found.draw(scale=4)), np.asarray(found.draw(score_threshold=0.1, scale=4))
    assert sure.shape == (160, 240, 3)
    assert (sure[60:70, 60:70] != 200).any(), "the mask tints its pixels"
    assert (sure[80:140, 120:200] == 200).all(), "the weak detection is left out"
    assert (all_of_them[80:140, 120:200] != 200).any()
    with pytest.raises(UsageError, match="picture"):
        some_detections().draw()


def test_html_has_picture_and_table() -> None:
    html = some_detections(np.zeros((40, 60, 3), np.uint8))._repr_html_()
    assert "data:image/jpeg;base64" in html and "<td>dog</td><td>0.900</td>" in html
    assert "<img" not in some_detections()._repr_html_()


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(UsageError, match="uint8"):
        draw.boxes(np.zeros((4, 4, 3)), np.zeros((0, 4)))
    with pytest.raises(UsageError, match="at least one"):
        draw.grid([])


def test_coco_results_count_from_the_box_corner() -> None:
    first, second = some_detections().to_coco(7, [10, 20])
    assert first["bbox"] == [5, 5, 20, 15] and first["category_id"] == 20 and first["image_id"] == 7
    assert first["segmentation"]["size"] == [40, 60] and second["score"] == pytest.approx(0.2)


def test_moving_structures_moves_their_tensors() -> None:
    moved = some_detections().to("meta")
    assert moved.boxes.device.type == moved.masks.device.type == "meta" and moved.class_names == ("cat", "dog")


@pytest.mark.parametrize("preprocess", [TORCHVISION, CAFFE])
def test_pixels_undo_the_normalisation(preprocess, picture) -> None:
    batch, sizes = preprocess.collate([picture[..., ::-1]])
    images = preprocess(batch, sizes)
    assert isinstance(images, Images)
    np.testing.assert_array_equal(draw.pixels(images, 0, preprocess), picture)


def test_pictures_have_the_expected_form(picture) -> None:
    assert draw.boxes(picture, np.array([[1, 2, 30, 40]]), scale=2).size == (288, 192)
    assert draw.heat(picture, torch.rand(6, 9), scale=1).size == (144, 96)
    assert draw.grid([picture] * 5, columns=3, gap=2).size == (3 * 146 - 2, 2 * 98 - 2)
    dark = np.asarray(draw.heat(picture, torch.zeros(6, 9), scale=1, alpha=1, limits=(0, 1)))
    half = np.asarray(draw.heat(picture, torch.full((6, 9), 0.5), scale=1, alpha=1, limits=(0, 1)))
    assert half.mean() > dark.mean() + 50  # of their own ranges both would be dark
    assert [draw.loss_name(n) for n in ("loss", "loss_rpn_cls", "s1.loss_bbox", "loss_pq")] == [
        "sum", "RPN objectness", "stage 2 boxes", "loss_pq"]
    figure = draw.losses({"step": [1, 2], "lr": [0.1, 0.1], "loss": [3.0, 2.0], "classes": [2.0, 1.0]})
    assert [line.get_label() for line in figure.axes[0].lines] == ["sum", "classes"]
    assert draw.histogram({"a": [1, 2], "b": [2, 3]}).axes and draw.bars({"a": 1.0}).axes


def test_polygons_select_and_rasterise() -> None:
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], np.float32)
    polygons = Polygons([[square], [square + 4]], (8, 8))
    assert len(polygons[[1]]) == 1 and len(polygons[np.array([True, False])]) == 1
    assert polygons.to_bitmap().sum((1, 2)).tolist() == [16, 16]
