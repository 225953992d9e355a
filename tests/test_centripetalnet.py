"""CentripetalNet's pieces on inputs made by hand, and looking at images several times."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detcore.backbones.hourglass import Hourglass
from detcore.data.augment import CornerCrop
from detcore.data.pocket_zoo import draw
from detcore.data.transforms import Flip, Preprocess, Rescale, Resize, Sample
from detcore.engine.evaluate import evaluate
from detcore.errors import UsageError
from detcore.layers.corner_pool import running_max
from detcore.methods.centripetalnet import TOP_LEFT, centripetalnet, corner_targets, decode, radius
from detcore.structures import Detections, Images
from detcore.tta import TestTimeAugmentation, mirrored
from detcore.zoo.create import create_model

MODEL = "centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco"


def test_decoding_gives_the_references_boxes():
    case = json.loads((Path(__file__).parent / "reference/corner_decode.json").read_text())
    maps = {name: torch.full((1, channels, 64, 64), value) for name, (channels, value) in case["fill"].items()}
    for name, channel, y, x, value in case["points"]:
        maps[name][0, channel, y, x] = value
    boxes, scores, labels = decode(maps["tl_heat"], maps["br_heat"], maps["tl_off"], maps["br_off"],
                                   maps["tl_centripetal"], maps["br_centripetal"], tuple(case["image_shape"]))
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
    truth = torch.tensor([[[16.0, 8.0, 48.0, 40.0], [0.0, 0.0, 0.0, 0.0]]])
    labels, valid = torch.tensor([[2, 0]]), torch.tensor([[True, False]])
    goal = corner_targets(TOP_LEFT, truth, labels, valid, (64, 64), torch.Size((1, 3, 16, 16)))
    assert (goal.heat == 1).nonzero().tolist() == [[0, 2, 2, 4]]
    assert goal.owned.tolist() == [[True, False]]
    assert goal.guiding[0, 0].tolist() == [4, 4]
    assert goal.centripetal[0, 0].exp().tolist() == pytest.approx([4, 4])
    assert goal.centripetal.isfinite().all()


def test_of_two_objects_with_one_corner_the_later_owns_it():
    truth = torch.tensor([[[8.0, 8.0, 24.0, 24.0], [8.0, 8.0, 56.0, 40.0]]])
    goal = corner_targets(TOP_LEFT, truth, torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool),
                          (64, 64), torch.Size((1, 1, 16, 16)))
    assert goal.owned.tolist() == [[False, True]]


def test_a_map_smaller_than_the_number_of_corners_decodes():
    model = centripetalnet(Hourglass((8, 8), (1, 1), stem=8), 2, pooling=4).eval()
    found = model.predict(Images(torch.randn(2, 3, 24, 24), [(24, 24), (20, 24)]), output_sizes=[(48, 48), (40, 48)])
    assert len(found) == 2


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
    maps = [torch.full((1, 1, 16, 16), -9.0), torch.full((1, 1, 16, 16), -9.0), *[torch.zeros(1, 2, 16, 16)] * 2,
            *[torch.full((1, 2, 16, 16), np.log(3.0)) for _ in range(2)]]
    maps[0][0, 0, 3, 4] = maps[1][0, 0, 9, 10] = 5.0
    plain, score, _ = decode(*maps, (64, 64))
    moved, _, _ = decode(*maps, (64, 64), [(11, 6)])
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


def test_looking_twice_gives_a_mirror_image_the_mirrored_boxes(tmp_path):
    """With flip, an image and its mirror image are the same two views."""
    model = create_model("retinanet_r50_fpn_1x_coco", profile="pocket").eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.bbox_head.retina_cls.weight, 0, 0.5)
    root = draw(tmp_path / "zoo", images=4, seed=1)
    once = evaluate("retinanet_r50_fpn_1x_coco", model, root, images=2, progress=False)
    twice = evaluate("retinanet_r50_fpn_1x_coco", model, root, images=2, tta=True, progress=False)
    assert twice.detections != once.detections
    assert twice.record.parameters["tta"] is True
    assert all(-1 <= d["bbox"][0] and d["bbox"][0] + d["bbox"][2] <= 129 for d in twice.detections)


def test_a_model_with_masks_is_refused():
    with pytest.raises(UsageError, match="boxes alone"):
        evaluate("mask-rcnn_r50_fpn_1x_coco", "missing.pth", "nowhere", tta=True)
