"""CentripetalNet's pieces on inputs made by hand, and looking at images several times."""
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detcore.backbones.hourglass import Hourglass
from detcore.data.augment import CornerCrop
from detcore.data.transforms import Flip, Preprocess, Rescale, Resize, Sample
from detcore.data.tta import TestTimeAugmentation, mirrored
from detcore.engine.common import load_data
from detcore.engine.evaluate import detect_views, evaluate
from detcore.errors import UsageError
from detcore.layers.corner_pool import running_max
from detcore.methods.centripetalnet import (
    BOTTOM_RIGHT,
    TOP_LEFT,
    Corners,
    centripetalnet,
    corner_targets,
    decode,
    radius,
)
from detcore.ops import matching
from detcore.ops.nms import soft_nms
from detcore.pocket.pocket_zoo import draw
from detcore.structures import Detections, Images
from detcore.zoo.create import create_model
from detcore.zoo.index import get_model_entry


def corners(heat: torch.Tensor, offset: torch.Tensor, shift: torch.Tensor) -> Corners:
    """Corners on one map."""
    return Corners([heat], [offset], [shift], [shift])


def test_decoding_gives_the_references_boxes():
    case = json.loads((Path(__file__).parent.parent / "reference/corner_decode.json").read_text())
    maps = {name: torch.full((1, channels, 64, 64), value) for name, (channels, value) in case["fill"].items()}
    for name, channel, y, x, value in case["points"]:
        maps[name][0, channel, y, x] = value
    top_left, bottom_right = (corners(maps[f"{kind}_heat"], maps[f"{kind}_off"], maps[f"{kind}_centripetal"])
                              for kind in ("tl", "br"))
    boxes, scores, labels = decode(top_left, bottom_right, tuple(case["image_shape"]))
    pairs = scores[0] > 0
    assert boxes[0, pairs].numpy() == pytest.approx(np.array(case["reference"]["boxes"]), abs=1e-3)
    assert scores[0, pairs].tolist() == pytest.approx(case["reference"]["scores"], abs=1e-5)
    assert labels[0, pairs].tolist() == case["reference"]["labels"]


def test_corner_pooling_carries_each_value_to_where_a_corner_would_see_it():
    x = torch.zeros(1, 1, 4, 5)
    x[0, 0, 2, 3] = 1
    assert running_max(x, "left")[0, 0, 2].tolist() == [1, 1, 1, 1, 0]
    assert running_max(x, "right")[0, 0, 2].tolist() == [0, 0, 0, 1, 1]
    assert running_max(x, "top")[0, 0, :, 3].tolist() == [1, 1, 1, 0]
    assert running_max(x, "bottom")[0, 0, :, 3].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("sides", [(3, 3), (20, 7), (64, 64)])
def test_corners_off_by_the_radius_still_overlap_enough(sides):
    w, h = sides
    r = radius(torch.tensor([[w, h]], dtype=torch.float32)).item()
    overlaps = [inter / (w * h + other - inter) for inter, other in (
        ((w - r) * (h - r), w * h),  # one corner in, one out: a shifted box
        ((w - 2 * r) * (h - 2 * r), (w - 2 * r) * (h - 2 * r)),
        (w * h, (w + 2 * r) * (h + 2 * r)))]
    assert min(overlaps) >= 0.3


def test_targets_peak_at_the_corner_and_point_to_the_centre():
    gt_boxes = torch.tensor([[[16.0, 8.0, 48.0, 40.0], [0.0, 0.0, 0.0, 0.0]]])
    labels, valid = torch.tensor([[2, 0]]), torch.tensor([[True, False]])
    for kind, cell in ((TOP_LEFT, [2, 4]), (BOTTOM_RIGHT, [10, 12])):
        targets = corner_targets(kind, gt_boxes, labels, valid, (64, 64), torch.Size((1, 3, 16, 16)))
        assert (targets.heat == 1).nonzero().tolist() == [[0, 2, *cell]]
        assert targets.trains.tolist() == [[True, False]]
        assert targets.guiding_shift[0, 0].tolist() == [4, 4]
        assert targets.centripetal_shift[0, 0].exp().tolist() == pytest.approx([4, 4])
        assert targets.centripetal_shift.isfinite().all()


def test_objects_looked_at_in_parts_give_the_same_heat(monkeypatch):
    torch.manual_seed(0)
    boxes = torch.cat([40 * torch.rand(2, 9, 2), 44 + 20 * torch.rand(2, 9, 2)], 2)
    labels, valid = torch.randint(3, (2, 9)), torch.arange(9) < torch.tensor([[9], [2]])
    given = (TOP_LEFT, boxes, labels, valid, (64, 64), torch.Size((2, 3, 16, 16)))
    whole = corner_targets(*given).heat
    monkeypatch.setattr(matching, "CPU_CHUNK", 1100)  # two objects of both images, then four of the one that has more
    assert torch.equal(corner_targets(*given).heat, whole)


def test_of_two_objects_with_one_corner_the_later_trains():
    gt_boxes = torch.tensor([[[8.0, 8.0, 24.0, 24.0], [8.0, 8.0, 56.0, 40.0]]])
    targets = corner_targets(TOP_LEFT, gt_boxes, torch.zeros(1, 2, dtype=torch.long),
                             torch.ones(1, 2, dtype=torch.bool), (64, 64), torch.Size((1, 1, 16, 16)))
    assert targets.trains.tolist() == [[False, True]]


def test_a_map_smaller_than_the_number_of_corners_decodes():
    model = centripetalnet(Hourglass((8, 8), (1, 1), stem=8), 2, pooling=4).eval()
    images = Images(torch.randn(2, 3, 24, 24), [(24, 24), (20, 24)])
    assert len(model.predict(images, output_sizes=[(48, 48), (40, 48)])) == 2


def test_the_image_lies_in_the_middle_of_its_canvas_and_boxes_come_back_to_it():
    preprocess = Preprocess((10.0, 20.0, 30.0), (1.0, 1.0, 1.0), canvas=32)
    batch, sizes = preprocess.collate([np.full((40, 50, 3), 255, np.uint8), np.full((20, 31, 3), 255, np.uint8)])
    assert batch.shape[2:] == (63, 63)
    images = preprocess(batch, sizes)
    assert images.origins == [(11, 6), (5, 0)]
    for one, (h, w), (top, left) in zip(images.tensor, sizes, images.origins):
        inside = torch.zeros(63, 63, dtype=torch.bool)
        inside[top:top + h, left:left + w] = True
        assert (one[:, inside] > 0).all() and (one[:, ~inside] == 0).all()
    heats = [torch.full((1, 1, 16, 16), -9.0) for _ in range(2)]
    heats[0][0, 0, 3, 4] = heats[1][0, 0, 9, 10] = 5.0
    both = [corners(heat, torch.zeros(1, 2, 16, 16), torch.full((1, 2, 16, 16), np.log(3.0))) for heat in heats]
    plain, score, _ = decode(*both, (64, 64))
    moved, _, _ = decode(*both, (64, 64), [(11, 6)])
    assert score[0, 0] > 0.9
    assert (plain - moved)[0, 0].tolist() == [6, 11, 6, 11]


def test_the_corner_crop_keeps_an_object_and_its_pixels():
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:40, 30:60] = 200
    sample = Sample(image, np.array([[30, 20, 60, 40]], np.float32), np.array([3]))
    crop = CornerCrop((64, 64), fill=(0, 0, 0))
    for seed in range(20):
        out = crop(sample, np.random.default_rng(seed))
        assert out is not None and len(out.boxes) == 1
        assert out.size[0] in [int(64 * r) for r in crop.ratios]
        x1, y1, x2, y2 = out.boxes[0].astype(int)
        assert (out.image[y1:y2, x1:x2] == 200).all()
        assert out.image.astype(int).sum() == 200 * 3 * (x2 - x1) * (y2 - y1)


def test_views_are_each_scale_and_its_mirror():
    augmentation = TestTimeAugmentation(scales=(1.0, 0.5))
    assert list(augmentation.views((Resize((100, 80)),))) == [
        ((Resize((100, 80)),), False), ((Resize((100, 80)), Flip(1.0)), True),
        ((Resize((50, 40)),), False), ((Resize((50, 40)), Flip(1.0)), True)]
    assert [v for v, _ in TestTimeAugmentation((0.5,), flip=False).views(())] == [(Rescale(0.5),)]


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_merging_drops_or_weakens_what_was_found_twice(sigma):
    first = Detections(torch.tensor([[10.0, 10, 30, 30]]), torch.tensor([0.9]), torch.tensor([1]))
    mirror = Detections(torch.tensor([[71.0, 10, 91, 30], [10, 50, 20, 60]]), torch.tensor([0.8, 0.5]),
                        torch.tensor([1, 0]))
    merged = TestTimeAugmentation(sigma=sigma).merge([first, mirrored(mirror, 100)])
    assert merged.boxes[0].tolist() == [10, 10, 30, 30]
    assert [80, 50, 90, 60] in merged.boxes.tolist()
    assert len(merged) == (2 if sigma is None else 3)
    if sigma is not None:
        assert merged.scores[2] < 0.3


@pytest.fixture(scope="module")
def pocket_data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("zoo") / "data", images=4, val=2, workers=1, progress=False)


@pytest.fixture(scope="module")
def retinanet():
    """At the pocket profile's size, and with weights that find something."""
    torch.manual_seed(0)
    model = create_model("retinanet_r50_fpn_1x_coco", profile="pocket").eval()
    torch.nn.init.normal_(model.bbox_head.retina_cls.weight, 0, 0.5)
    return model


def test_looking_twice_changes_what_is_found_and_is_recorded(pocket_data, retinanet):
    recipe = get_model_entry("retinanet_r50_fpn_1x_coco").recipe_for("pocket")
    once, twice = (evaluate(retinanet, pocket_data, recipe=recipe, images=2, tta=tta, progress=False)
                   for tta in (False, True))
    assert twice.detections != once.detections
    assert (once.record.parameters["tta"], twice.record.parameters["tta"]) == (False, True)
    assert all(-1 <= d["bbox"][0] and d["bbox"][0] + d["bbox"][2] <= 129 for d in twice.detections)


@pytest.mark.parametrize("tta", [TestTimeAugmentation(scales=(1.0, 1.5)), TestTimeAugmentation(sigma=0.5)])
def test_a_mirror_image_looked_at_twice_gives_the_mirrored_boxes(pocket_data, retinanet, tta):
    """The two views of an image are those of its mirror image."""
    recipe = replace(get_model_entry("retinanet_r50_fpn_1x_coco").recipe_for("pocket"), tta=tta)
    sides = []
    for transforms in (recipe.test_transforms, (*recipe.test_transforms, Flip(1.0))):
        given = replace(recipe, test_transforms=transforms)
        data = load_data(pocket_data, given)
        data.select(np.arange(len(data)) < 2)
        found = detect_views(retinanet, data, given, workers=0, progress=False)
        sides.append(np.array([[d["image_id"], d["category_id"], d["score"], *d["bbox"]] for d in found]))
    plain, mirror = sides
    mirror[:, 3] = 128 - mirror[:, 3] - mirror[:, 5]
    assert len(plain) == len(mirror) > 20
    apart = np.abs(plain[:, None] - mirror[None]) / [0.1, 0.1, 1e-4, *[0.02] * 4]
    assert (apart.max(-1) < 1).any(1).mean() > 0.98  # a few may stand where rounding decides


def test_gaussian_soft_nms_weakens_every_box_that_overlaps_a_better_one():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [9, 0, 19, 10], [5, 0, 15, 10]])
    order, scores = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 0, 1]), sigma=0.5)
    first, second = math.exp(-((1 / 3) ** 2) / 0.5), math.exp(-((1 / 19) ** 2) / 0.5)
    third = math.exp(-((6 / 14) ** 2) / 0.5)
    assert order.tolist() == [0, 2, 3, 1]  # the third has overtaken the second
    assert scores.tolist() == pytest.approx([0.9, 0.7 * second, 0.6, 0.8 * first * third], abs=1e-6)


def test_a_model_with_masks_is_refused():
    with pytest.raises(UsageError, match="boxes alone"):
        evaluate("mask-rcnn_r50_fpn_1x_coco", "nowhere", weights="random", tta=True)
