"""Panoptic FPN on hand-made inputs: its head, its merging, the panoptic annotations and their evaluation."""
from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detcore
from detcore.data.coco import CocoDataset
from detcore.data.loader import _target
from detcore.data.panoptic import PanopticMaps, PanopticSegments
from detcore.data.transforms import Flip, RandomCrop, Resize
from detcore.detectors import Detector
from detcore.engine.common import load_data
from detcore.engine.evaluate import detect, evaluate
from detcore.engine.scoring import PanopticWatcher
from detcore.errors import DataError, UsageError
from detcore.methods.panoptic_fpn import LOSS_WEIGHT, STUFF_AREA, SemanticHead, merge
from detcore.metrics.panoptic import PanopticQuality, compare
from detcore.ops.nms import PostProcess
from detcore.pocket.pocket_zoo import CLASSES, STUFF, draw
from detcore.structures import IGNORED, Detections, Images, Target
from detcore.zoo.index import get_model_entry

NAME = "panoptic-fpn_r50_fpn_1x_coco"
THINGS, GROUNDS = 2, 2  # of the hand-made maps: classes 0 and 1, then 2 and 3; void is 4
VOID = THINGS + GROUNDS


# The method


def answers(*rows: str) -> torch.Tensor:
    """Logits [3, h, w] that are highest at each pixel's digit: 0 and 1 are stuff, 2 all things."""
    classes = torch.tensor([[int(c) for c in row] for row in rows])
    return torch.nn.functional.one_hot(classes, GROUNDS + 1).permute(2, 0, 1).float()


def objects(labels: list[int], *masks: list[str]) -> Detections:
    """Objects from rows of "x" and "."."""
    drawn = [torch.tensor([[c == "x" for c in row] for row in mask]) for mask in masks]
    return Detections(torch.zeros(len(labels), 4), torch.linspace(0.9, 0.7, len(labels)), torch.tensor(labels),
                      torch.stack(drawn))


def test_better_objects_lie_above_others_and_above_stuff():
    found = objects([1, 0], ["xx..", "xx.."], [".xxx", ".xxx"])  # a third of the second one is covered
    out = merge(found, answers("0000", "0000"), THINGS, stuff_area=1)
    assert out.tolist() == [[1001, 1001, 2000, 2000]] * 2


def test_an_object_that_is_mostly_covered_is_dropped():
    found = objects([1, 0], ["xxx.", "xxx."], [".xxx", ".xxx"])  # two thirds
    out = merge(found, answers("0000", "1111"), THINGS, stuff_area=1)
    assert out.tolist() == [[1001, 1001, 1001, 2], [1001, 1001, 1001, 3]]


def test_half_covered_is_kept():
    out = merge(objects([1, 0], ["xx.."], [".xx."]), answers("0000"), THINGS, stuff_area=1)
    assert out.tolist() == [[1001, 1001, 2000, 2]]


def test_an_empty_mask_changes_nothing():
    out = merge(objects([1, 0], ["...."], ["xx.."]), answers("0000"), THINGS, stuff_area=1)
    assert out.tolist() == [[2000, 2000, 2, 2]]


def test_things_without_an_object_and_small_stuff_are_void():
    out = merge(objects([1], ["x....."]), answers("001112"), THINGS, stuff_area=2)
    # Of stuff 0 the object leaves one pixel, which is too few.
    assert out.tolist() == [[1001, VOID, 3, 3, 3, VOID]]


def test_without_objects_stuff_fills_the_map():
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long),
                      torch.zeros(0, 1, 3, dtype=torch.bool))
    assert merge(none, answers("011"), THINGS, stuff_area=1).tolist() == [[2, 3, 3]]


@pytest.fixture
def head() -> SemanticHead:
    torch.manual_seed(0)
    return SemanticHead(8, THINGS, GROUNDS, channels=8)


def pyramid() -> list[torch.Tensor]:
    return [torch.randn(1, 8, 32 >> i, 32 >> i) for i in range(5)]


def target(semantic: torch.Tensor | None) -> Target:
    return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), semantic=semantic)


def test_the_head_answers_at_a_quarter_of_the_size(head):
    assert head(pyramid()).shape == (1, GROUNDS + 1, 32, 32)
    assert [level.doublings for level in head.conv_upsample_layers] == [0, 1, 2, 3]


def test_all_things_are_one_class(head):
    features = pyramid()
    losses = [head.loss(features, [target(torch.full((128, 128), thing))])["loss_seg"] for thing in range(THINGS)]
    wanted = -head(features).log_softmax(1)[:, GROUNDS].mean()
    torch.testing.assert_close(losses, [LOSS_WEIGHT * wanted] * 2)
    stuff = head.loss(features, [target(torch.full((128, 128), THINGS + 1))])["loss_seg"]
    torch.testing.assert_close(stuff, -LOSS_WEIGHT * head(features).log_softmax(1)[:, 1].mean())


def test_pixels_without_a_class_are_no_lesson(head):
    features, semantic = pyramid(), torch.full((128, 128), THINGS)
    whole = head.loss(features, [target(semantic)])["loss_seg"]
    nothing = head.loss(features, [target(torch.full((128, 128), IGNORED))])["loss_seg"]
    assert nothing == 0
    semantic[:, 64:] = IGNORED
    half = head.loss(features, [target(semantic)])["loss_seg"]
    wanted = -head(features).log_softmax(1)[:, 0, :, :16].sum() / 32 ** 2  # averaged over all pixels, even these
    torch.testing.assert_close(half, LOSS_WEIGHT * wanted)
    assert half < whole


def test_a_target_without_class_map_is_refused(head):
    with pytest.raises(UsageError, match="no class map"):
        head.loss(pyramid(), [target(None)])


def test_published_constants():
    with torch.device("meta"):
        model = detcore.create_model(NAME)
    assert model.roi_head.postprocess == PostProcess(score_threshold=0.6, class_agnostic_nms=True)
    assert model.stuff_area == STUFF_AREA == 4096
    assert (model.semantic_head.things, model.semantic_head.stuff) == (80, 53)


def test_maps_come_in_the_asked_size():
    torch.manual_seed(0)
    model = detcore.create_model(NAME, profile="pocket").eval()
    images = Images(torch.randn(2, 3, 64, 96), [(64, 80), (48, 96)])
    void = len(CLASSES) + len(STUFF)
    for sizes in ([(100, 125), (24, 48)], None):
        for found, size in zip(model.predict(images, output_sizes=sizes), sizes or images.sizes):
            assert found.panoptic.shape == size and found.masks.shape[1:] == size
            assert found.panoptic.dtype == torch.int64 and (found.panoptic % 1000 <= void).all()


# The evaluation: the quality is computed by hand


def truth(place: list[list[int]], labels: list[int], crowd: list[int] | None = None) -> PanopticSegments:
    return PanopticSegments(np.array(place), np.array(labels, np.int64), np.array(crowd or [0] * len(labels), bool))


compared = partial(compare, classes=VOID)


def test_found_invented_and_missed():
    """Class 0: 3 of 4 pixels of one object found (IoU 3/4), a second missed. Class 2: 5 found pixels, 4 right and one
    that belongs to class 0 (IoU 4/5). Class 1: one invented."""
    counts = compared(truth([[1, 1, 1, 1, 2], [3, 3, 3, 3, 2]], [0, 0, 2]),
                      np.array([[1000, 1000, 1000, 2, 2001], [2, 2, 2, 2, 2001]]))
    assert counts == pytest.approx(np.array([[3 / 4, 1, 0, 1], [0, 0, 1, 0], [4 / 5, 1, 0, 0], [0, 0, 0, 0]]))


def test_half_is_not_enough():
    """IoU 2/4, exactly one half: missed, and invented besides."""
    counts = compared(truth([[1, 1, 1, 1]], [0]), np.array([[1000, 1000, VOID, VOID]]))
    assert counts[0].tolist() == [0, 0, 1, 1]


def test_another_class_is_not_a_match():
    counts = compared(truth([[1, 1]], [0]), np.array([[1001, 1001]]))
    assert counts[0].tolist() == [0, 0, 0, 1] and counts[1].tolist() == [0, 0, 1, 0]


def test_the_numbers_of_instances_do_not_matter():
    place = [[1, 1, 2, 2]]
    for numbers in ([1000, 1000, 2000, 2000], [7000, 7000, 3000, 3000]):
        assert compared(truth(place, [0, 0]), np.array([numbers]))[0].tolist() == [2, 2, 0, 0]


def test_pixels_without_truth_do_not_count():
    """Two of the found pixels have no truth: the IoU is 2/2, not 2/4. A segment there alone is excused."""
    counts = compared(truth([[1, 1, 0, 0, 0, 0]], [0]), np.array([[1000, 1000, 1000, 1000, 1001, 1001]]))
    assert counts[0].tolist() == [1, 1, 0, 0] and counts[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("pixels", "invented"), [(2, 1), (3, 0)])
def test_excused_where_more_than_half_has_no_truth(pixels: int, invented: int):
    place = [[0] * pixels + [1] * (8 - pixels)]
    found = np.array([[1001] * 4 + [1000] * 4])
    assert compared(truth(place, [0]), found)[1, 2] == invented


def test_a_crowd_is_neither_missed_nor_found():
    crowd = truth([[1, 1, 1, 1]], [0], [1])
    assert compared(crowd, np.full((1, 4), VOID)).sum() == 0
    assert compared(crowd, np.full((1, 4), 1000)).sum() == 0  # excused: it is of the crowd's class
    assert compared(crowd, np.full((1, 4), 1001))[1].tolist() == [0, 0, 1, 0]


def test_an_image_without_segments():
    assert compared(truth([[0, 0]], []), np.array([[1000, VOID]])).sum() == 0


def quality(counts: list[list[float]]) -> dict[str, float | None]:
    maps = object.__new__(PanopticMaps)
    maps.things, maps.stuff = ("cat", "dog"), ("sky", "sand")
    result = PanopticQuality(maps)
    result.counts = np.array(counts, float)
    return result.result().metrics


def test_quality_is_the_mean_over_the_classes_that_occur():
    """cat: SQ 1.5 / 2, RQ 2 / (2 + 1/2 + 1/2). dog: nothing found. sky: SQ 0.8, RQ 1. No sand anywhere."""
    got = quality([[1.5, 2, 1, 1], [0, 0, 0, 2], [0.8, 1, 0, 0], [0, 0, 0, 0]])
    assert got == pytest.approx({
        "PQ": (0.5 + 0 + 0.8) / 3, "SQ": (0.75 + 0 + 0.8) / 3, "RQ": (2 / 3 + 0 + 1) / 3,
        "PQ_th": 0.25, "SQ_th": 0.375, "RQ_th": 1 / 3, "PQ_st": 0.8, "SQ_st": 0.8, "RQ_st": 1})


def test_what_does_not_occur_has_no_quality():
    got = quality([[0.9, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4])
    assert got["PQ"] == pytest.approx(0.9) and got["PQ_st"] is None


# The annotations


def record(tree: Path) -> dict:
    return json.loads((tree / "annotations/panoptic_train2017.json").read_text())


@pytest.fixture
def tree(tmp_path) -> Path:
    """One image of 4 x 3 pixels: a dog (id 300, one byte is not enough), a crowd of cats, sky, one pixel of nothing."""
    (tmp_path / "annotations/panoptic_train2017").mkdir(parents=True)
    (tmp_path / "train2017").mkdir()
    cv2.imwrite(str(tmp_path / "train2017/7.png"), np.zeros((3, 4, 3), np.uint8))
    numbers = np.array([[300, 300, 5, 5], [300, 300, 70000, 70000], [70000, 70000, 70000, 0]])
    cv2.imwrite(str(tmp_path / "annotations/panoptic_train2017/7.png"),
                np.stack([numbers // 65536, numbers // 256 % 256, numbers % 256], 2).astype(np.uint8))
    categories = [dict(id=3, name="cat"), dict(id=90, name="dog")]
    instance = dict(id=1, image_id=7, category_id=90, bbox=[0, 0, 2, 2], area=4, iscrowd=0,
                    segmentation=[[0, 0, 2, 0, 2, 2, 0, 2]])
    images = [dict(id=7, file_name="7.png", width=4, height=3)]
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(
        dict(images=images, categories=categories, annotations=[instance])))
    segments = [dict(id=i, category_id=c, iscrowd=crowd, area=1, bbox=[0, 0, 1, 1])
                for i, c, crowd in ((70000, 200, 0), (300, 90, 0), (5, 3, 1))]
    (tmp_path / "annotations/panoptic_train2017.json").write_text(json.dumps(dict(
        images=images, categories=[dict(id=200, name="sky", isthing=0), *(c | dict(isthing=1) for c in categories)],
        annotations=[dict(image_id=7, file_name="7.png", segments_info=segments)])))
    return tmp_path


read = partial(CocoDataset, masks="bitmap", panoptic="train2017")
CLASS_MAP = [[1, 1, 0, 0], [1, 1, 2, 2], [2, 2, 2, IGNORED]]


def test_the_class_of_every_pixel(tree):
    data = read(tree)
    assert data.panoptic.things == ("cat", "dog") and data.panoptic.stuff == ("sky",)
    assert data.sample(0).semantic.tolist() == CLASS_MAP
    segments = data.panoptic.read(7, (3, 4))
    assert segments.labels.tolist() == [0, 1, 2] and segments.crowd.tolist() == [True, False, False]
    assert segments.place.tolist() == [[2, 2, 1, 1], [2, 2, 3, 3], [3, 3, 3, 0]]


def test_evaluation_needs_no_class_map(tree):
    assert CocoDataset(tree, panoptic="train2017").sample(0).semantic is None
    assert read(tree, panoptic=None).sample(0).semantic is None


def test_transforms_carry_the_class_map(tree):
    sample, rng = read(tree).sample(0), np.random.default_rng(0)
    assert Flip(1.0)(sample, rng).semantic.tolist() == [row[::-1] for row in CLASS_MAP]
    assert Resize((8, 6))(sample, rng).semantic.tolist() == np.kron(CLASS_MAP, np.ones((2, 2), int)).tolist()
    cut = RandomCrop((2, 2), allow_negative=True)(sample, rng).semantic
    assert any((np.array(CLASS_MAP)[y:y + 2, x:x + 2] == cut).all() for y in range(2) for x in range(3))


def test_padding_has_no_class(tree):
    semantic = _target(read(tree).sample(0), (4, 6)).semantic
    assert semantic.dtype == torch.int64
    assert semantic[:3, :4].tolist() == CLASS_MAP and (semantic[3:] == IGNORED).all()
    assert (semantic[:, 4:] == IGNORED).all()


def perfect(tree: Path) -> np.ndarray:
    return np.array([[1001, 1001, VOID, VOID], [1001, 1001, 2, 2], [2, 2, 2, 3]])


def test_a_perfect_map_has_quality_one(tree):
    measured = PanopticQuality(read(tree).panoptic)
    measured.add(7, perfect(tree))
    result = measured.result()
    assert result.metrics["PQ"] == result.metrics["PQ_th"] == result.metrics["PQ_st"] == 1
    assert result.headline == 1 and (result.images, result.objects) == (1, 2)
    assert result.per_class == {"cat": None, "dog": 1.0, "sky": 1.0}


def change(tree: Path, **changes) -> None:
    content = record(tree)
    content["annotations"][0] |= changes
    (tree / "annotations/panoptic_train2017.json").write_text(json.dumps(content))


def test_missing_file(tree):
    (tree / "annotations/panoptic_train2017.json").unlink()
    with pytest.raises(DataError, match="There is no file of panoptic annotations .*panoptic_train2017.json"):
        read(tree)


def test_broken_file(tree):
    (tree / "annotations/panoptic_train2017.json").write_text('{"categories": 3}')
    with pytest.raises(DataError, match="cannot be read"):
        read(tree)


def test_missing_category(tree):
    content = record(tree)
    content["categories"] = content["categories"][:2]
    (tree / "annotations/panoptic_train2017.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no category 90"):
        read(tree)


def test_segment_of_an_unknown_category(tree):
    change(tree, segments_info=[dict(id=5, category_id=77)])
    with pytest.raises(DataError, match="category 77"):
        read(tree).sample(0)


def test_unknown_segment(tree):
    change(tree, segments_info=record(tree)["annotations"][0]["segments_info"][:2])
    with pytest.raises(DataError, match="a segment 5, of which .* knows nothing"):
        read(tree).sample(0)


def test_image_without_annotation(tree):
    change(tree, image_id=8)
    with pytest.raises(DataError, match="no annotation of image 7"):
        read(tree).sample(0)


def test_missing_map(tree):
    change(tree, file_name="other.png")
    with pytest.raises(DataError, match="There is no panoptic map of image 7 .*other.png"):
        read(tree).sample(0)


def test_a_map_that_does_not_fit_its_image(tree):
    """Both where it is learned from and where it is evaluated."""
    cv2.imwrite(str(tree / "annotations/panoptic_train2017/7.png"), np.zeros((3, 5, 3), np.uint8))
    with pytest.raises(DataError, match="image 7 .* has 5 x 3 pixels, but the image has 4 x 3"):
        read(tree).sample(0)
    with pytest.raises(DataError, match="image 7 .* has 5 x 3 pixels, but the image has 4 x 3"):
        PanopticQuality(read(tree).panoptic).add(7, perfect(tree))


# All together


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("zoo") / "pocket", images=4, val=4, workers=1, progress=False)


def test_the_recipe_asks_for_panoptic_data(zoo):
    recipe = get_model_entry(NAME).recipe_for("pocket")
    data = load_data(zoo, recipe, "train", training=True)
    semantic = data.sample(0).semantic
    assert semantic.shape == data.sample(0).size and semantic.max() < len(CLASSES) + len(STUFF)
    assert data.panoptic.things == CLASSES and data.panoptic.stuff == STUFF


class Oracle(Detector):
    """Predicts Pocket Zoo's own maps, at the sizes asked for, and no boxes."""

    num_classes = len(CLASSES)

    def __init__(self, maps: PanopticMaps, ids: list[int]):
        super().__init__()
        self.maps, self.left = maps, list(ids)
        self.anything = torch.nn.Parameter(torch.zeros(1))

    def predict(self, images: Images, *, output_sizes=None, proposals=None) -> list[Detections]:
        out = []
        for size in output_sizes or images.sizes:
            known = self.maps.read(self.left.pop(0), size)
            names = np.append(len(CLASSES) + len(STUFF), known.labels + 1000 * (1 + np.arange(len(known.labels))))
            out.append(Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long),
                                  torch.zeros(0, *size, dtype=torch.bool), torch.from_numpy(names[known.place])))
        return out


def test_the_evaluation_of_the_truth_is_perfect(zoo):
    recipe = get_model_entry(NAME).recipe_for("pocket")
    data = load_data(zoo, recipe, "val")
    measured = PanopticQuality(data.panoptic)
    model = Oracle(data.panoptic, data.image_ids.tolist())
    detect(model, data, recipe.preprocess, batch_size=2, workers=0, progress=False,
           watched={"panoptic": PanopticWatcher(measured)})
    assert measured.images == 4 and measured.result().metrics["PQ"] == 1


def test_evaluate_writes_the_quality(zoo, tmp_path):
    torch.manual_seed(0)
    model = detcore.create_model(NAME, profile="pocket")
    found = evaluate(model, zoo, recipe=get_model_entry(NAME).recipe_for("pocket"), output=tmp_path, workers=0,
                     progress=False)
    names = {f"panoptic_{q}{s}" for q in ("PQ", "SQ", "RQ") for s in ("", "_th", "_st")}
    assert names <= found.record.metrics.keys() and "bbox_AP" in found.record.metrics
    assert set(found.record.per_class["panoptic"]) == {*CLASSES, *STUFF}
