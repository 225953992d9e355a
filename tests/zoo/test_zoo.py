"""The table of models against the original zoo: names, states, recipes, schedules, parameter groups, facts."""
from __future__ import annotations

import gzip
import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import detcore
from detcore.backbones.resnet import ResNet
from detcore.data import transforms as T
from detcore.data.augment import CornerCrop, Expand, MinIoUCrop, PhotometricDistortion
from detcore.data.instaboost import InstaBoost
from detcore.data.sampling import ClassAware, ClassBalanced
from detcore.errors import UsageError, WeightsError
from detcore.methods.retinanet import retinanet
from detcore.pocket.profile import Pocket, training
from detcore.pocket.slim import slim_resnet
from detcore.recipe import AdamW, parameter_groups
from detcore.weights import save_weights
from detcore.zoo.create import resolve, restore
from detcore.zoo.entries import Backbone
from detcore.zoo.index import (
    all_backbones,
    all_entries,
    families,
    find_backbones,
    near_names,
    published_results,
    rows,
)
from detcore.zoo.summary import summarize

MODELS = all_entries()
REFERENCE = Path(__file__).parent.parent / "reference"
ROWS = {row["name"]: row for row in json.loads(gzip.decompress((REFERENCE / "zoo.json.gz").read_bytes()))}
STATES = json.loads(gzip.decompress((REFERENCE / "states.json.gz").read_bytes()))
SCHEDULES = json.loads((REFERENCE / "schedules.json").read_text())
GROUPS = json.loads((REFERENCE / "parameter_groups.json").read_text())
FAMILIES = {"rpn", "fast_rcnn", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gn", "gn+ws", "scratch",
            "dcn", "dcnv2", "instaboost", "libra_rcnn", "guided_anchoring", "grid_rcnn", "ms_rcnn", "dynamic_rcnn",
            "seesaw_loss", "regnet", "panoptic_fpn", "free_anchor", "gfl", "autoassign", "cityscapes", "pascal_voc",
            "openimages", "wider_face", "ssd", "yolo", "efficientnet", "centripetalnet", "deformable_detr",
            "maskformer", "mask2former"}
CANVAS = 128  # CentripetalNet's
LAYOUTS = {"CocoDataset": "coco", "CocoPanopticDataset": "coco", "LVISV1Dataset": "lvis", "VOCDataset": "voc",
           "CityscapesDataset": "cityscapes", "OpenImagesDataset": "openimages",
           "OpenImagesChallengeDataset": "openimages-challenge", "WIDERFaceDataset": "wider_face"}


def on_meta(name: str, **options) -> torch.nn.Module:
    with torch.device("meta"):
        return detcore.create_model(name, **options)


def test_names_and_families():
    assert {n: e.family for n, e in MODELS.items()} == {
        n: r["family"] for n, r in ROWS.items() if r["family"] in FAMILIES}
    assert len(MODELS) == 314


def test_list_models():
    assert detcore.list_models() == sorted(MODELS)
    assert detcore.list_models("*tnr*") == ["faster-rcnn_r50-tnr-pre_fpn_1x_coco"]
    assert len(detcore.list_models("rpn_*")) == 11
    assert detcore.list_models("nothing*") == []


def test_the_index_says_what_the_families_files_make():
    """`published.csv` tells family and backbone without PyTorch; they are those of the entries, none is left out."""
    assert {n: (r.family, r.backbone) for n, r in rows().items()} == {
        n: (e.family, e.backbone.name) for n, e in MODELS.items()}
    assert set(families()) == FAMILIES and list(families()) == list(dict.fromkeys(e.family for e in MODELS.values()))
    files = {p.stem for p in Path(detcore.__file__).parent.joinpath("zoo/families").glob("[a-z]*.py")}
    assert files == {family.replace("+", "_") for family in FAMILIES}


def test_list_models_of_a_family():
    assert len(detcore.list_models(family="mask_rcnn")) == 29
    assert detcore.list_models("*r18*", family="retinanet") == sorted(
        n for n in MODELS if n.startswith("retinanet_r18"))
    with pytest.raises(UsageError, match="no family 'mask_rcn'; did you mean mask_rcnn"):
        detcore.list_models(family="mask_rcn")


@pytest.mark.parametrize(("wrong", "told"), [
    ("mask_rcnn_r50_fpn_1x_coco", "nearest names are: mask-rcnn_r50_fpn_1x_coco"),
    ("maks-rcnn", "nearest names are: mask-rcnn_r50_fpn_1x_coco"),
    ("maks-rcnn*", "No model matches 'maks-rcnn.*nearest names are: mask-rcnn_r50_fpn_1x_coco"),
    ("mask_rcnn", "is a family of 29 models.*such as mask-rcnn_r50_fpn_1x_coco.*list --family mask_rcnn"),
    ("gn+ws", "is a family of 12 models"),
    ("retinanet_r50*", "stands for several models.*such as retinanet_r50_fpn_1x_coco"),
    ("zzz", "`detcore list` shows all names"),
])
def test_a_wrong_name_offers_near_ones(wrong, told):
    with pytest.raises(UsageError, match=told):
        detcore.get_model_entry(wrong)


def test_near_names():
    assert near_names("RetinaNet_R50_FPN_1X_COCO", count=1) == ["retinanet_r50_fpn_1x_coco"]
    assert near_names("fastr", ["fast_rcnn", "faster_rcnn", "gfl"])[0] in ("fast_rcnn", "faster_rcnn")
    assert near_names("*") == [] and near_names("") == []


def test_what_no_model_takes():
    with pytest.raises(UsageError, match="coco, pocket"):
        detcore.create_model("rpn_r50_fpn_1x_coco", profile="tiny")
    with pytest.raises(UsageError, match="num_classes is a whole number of at least 1, not 0"):
        detcore.create_model("retinanet_r50_fpn_1x_coco", num_classes=0)
    with pytest.raises(UsageError, match="a name of the zoo, a ModelEntry or a Detector, not a int"):
        detcore.create_model(3)


def test_options_pass_through():
    model = on_meta("retinanet_r50_fpn_1x_coco", profile="pocket", score_threshold=0.3, max_detections=7)
    assert (model.bbox_head.postprocess.score_threshold, model.bbox_head.postprocess.max_detections) == (0.3, 7)
    assert on_meta("retinanet_r50_fpn_1x_coco", width=64).neck.fpn_convs[0].conv.out_channels == 64
    # Given options stand above those of the pocket profile, which stand above the model's own.
    assert on_meta("retinanet_r50_fpn_1x_coco", profile="pocket", width=64).neck.fpn_convs[0].conv.out_channels == 64
    with pytest.raises(UsageError, match="retinanet_r50_fpn_1x_coco has no option 'score_treshold'. Did you mean "
                                         "score_threshold\\? It takes width, .*nms_threshold"):
        on_meta("retinanet_r50_fpn_1x_coco", score_treshold=0.3)
    for name in ("rpn_r50_fpn_1x_coco", "ssd300_coco"):  # builders that hand their options on
        with pytest.raises(UsageError, match="It takes .*score_threshold"):
            on_meta(name, profile="pocket", colour="red")


def test_the_pocket_profile_may_build_in_its_own_way():
    small, published = (detcore.create_model("ssd300_coco", profile=p, num_classes=2) for p in ("pocket", "coco"))
    assert all(m.weight.std() < 0.004 for m in small.bbox_head.modules() if isinstance(m, torch.nn.Conv2d))
    assert all(m.weight.std() > 0.01 for m in published.bbox_head.modules() if isinstance(m, torch.nn.Conv2d))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_takes_thresholds_and_travels(family):
    """Entries go to the other processes of a training as pickles."""
    name = next(n for n, e in MODELS.items() if e.family == family)
    assert pickle.loads(pickle.dumps(MODELS[name])).recipe == MODELS[name].recipe
    for profile in ("coco", "pocket"):
        assert on_meta(name, profile=profile, score_threshold=0.2, max_detections=3)


def small_detector(num_classes: int = 3, *, width: int = 16, score_threshold: float = 0.05):
    return retinanet(slim_resnet(), num_classes, width=width, depth=1, score_threshold=score_threshold)


def test_an_entry_of_ones_own(tmp_path):
    entry = detcore.ModelEntry("my-net", small_detector, detcore.Recipe(epochs=2), num_classes=3)
    assert (entry.published, entry.checkpoint, entry.backbone_weights("coco")) == (None, None, None)
    model = detcore.create_model(entry, width=24)
    assert model.num_classes == 3 and model.neck.fpn_convs[0].conv.out_channels == 24
    with pytest.raises(UsageError, match="my-net has no option 'depth'.*It takes width, score_threshold."):
        detcore.create_model(entry, depth=2)
    with pytest.raises(UsageError, match="my-net has no pocket profile: use the profile coco.*pocket=Pocket"):
        detcore.create_model(entry, profile="pocket")
    with pytest.raises(UsageError, match="No weights were published of my-net"):
        detcore.create_model(entry, weights="published")
    assert resolve(entry).profile == "coco" and resolve(entry).recipe.epochs == 2
    assert resolve(entry, recipe=detcore.Recipe(epochs=5)).recipe.epochs == 5

    path = tmp_path / "x.safetensors"
    save_weights(path, model, {"model": "my-net", "profile": "coco", "classes": ["a", "b", "c"]})
    with pytest.raises(WeightsError, match="is of 'my-net', which is not of the zoo: name the model"):
        restore(path)
    restored = restore(path, entry, width=24)
    assert (restored.name, restored.profile, restored.classes) == ("my-net", "coco", ("a", "b", "c"))
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in restored.model.state_dict().items())
    assert detcore.create_model(entry, weights=path, num_classes=5, width=24).num_classes == 5


def test_an_entry_of_ones_own_with_backbone_and_pocket_settings():
    backbone = Backbone("mine", "none", partial(ResNet, 18))
    entry = detcore.ModelEntry("my-net", retinanet, detcore.Recipe(), backbone, options=dict(width=32),
                               pocket=Pocket(dict(width=16, depth=1), training(30)))
    model, small = detcore.create_model(entry), detcore.create_model(entry, profile="pocket")
    assert (model.num_classes, small.num_classes) == (80, 8)
    assert [m.neck.fpn_convs[0].conv.out_channels for m in (model, small)] == [32, 16]
    assert resolve(entry).profile == "pocket" and resolve(entry).recipe.iterations == 30
    assert resolve(entry, profile="coco").backbone_weights is None and resolve(entry).backbone_weights


def test_a_detector_of_ones_own(tmp_path):
    model = small_detector()
    assert detcore.create_model(model) is model
    with pytest.raises(UsageError, match="needs recipe=Recipe"):
        resolve(model)
    resolved = resolve(model, recipe=detcore.Recipe(epochs=3))
    assert (resolved.name, resolved.profile, resolved.recipe.epochs) == ("OneStageDetector", "coco", 3)
    assert resolved.build() is model and resolved.build(3) is model and resolved.entry is None
    with pytest.raises(UsageError, match="takes no options"):
        resolved.build(width=3)
    with pytest.raises(UsageError, match="tells 3 classes apart, not 4"):
        resolved.build(4)
    with pytest.raises(UsageError, match="No weights were published"):
        detcore.create_model(model, weights="published")
    other = small_detector()
    save_weights(tmp_path / "x.safetensors", other, {"classes": ["a", "b", "c"]})
    assert restore(tmp_path / "x.safetensors", model, recipe=detcore.Recipe()).model is model
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in model.state_dict().items())


def modules_after(code: str) -> set[str]:
    """The names of the modules that are loaded once `code` has run in a process of its own."""
    code += "\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.splitlines()[-1].split())


def test_a_name_imports_its_family_alone():
    loaded = modules_after("import detcore; detcore.get_model_entry('retinanet_r50_fpn_1x_coco')")
    assert {m for m in loaded if m.startswith("detcore.zoo.families.")} == {"detcore.zoo.families.retinanet"}
    assert {m for m in loaded if m.startswith("detcore.methods.")} == {"detcore.methods.retinanet"}
    assert {m for m in loaded if m.startswith("detcore.backbones.")} == {"detcore.backbones.resnet",
                                                                       "detcore.backbones.stages"}
    assert not {"detcore.pocket.pocket_zoo", "detcore.pocket.animals", "detcore.engine"} & loaded


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_imports_no_other(family):
    """Nothing but its own file, in the sources: a process for each would take long."""
    file = Path(detcore.__file__).parent / f"zoo/families/{family.replace('+', '_')}.py"
    assert "zoo.families" not in file.read_text()


@pytest.mark.parametrize("words", ["list", "list --family gfl", "list --backbone swin", "--help"])
def test_the_command_line_lists_without_pytorch(words):
    loaded = modules_after(f"import sys; sys.argv = ['detcore', *{words.split()!r}]\n"
                           "from detcore.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass")
    assert not {"torch", "numpy", "cv2"} & loaded


def test_importing_is_free():
    code = "import sys, detcore; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(MODELS))
def test_state_dict(name):
    model = on_meta(name)
    state = STATES[ROWS[name]["architecture"]]
    assert [[n, list(v.shape)] for n, v in model.state_dict().items()] == state["entries"]
    assert summarize(model)[-1].parameters == state["parameters"]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_pocket_builds(name):
    model = on_meta(name, profile="pocket", num_classes=5)
    assert model.num_classes == (1 if name.startswith(("rpn_", "ga-rpn_")) else 5)
    assert sum(p.numel() for p in model.parameters()) < 3e6
    recipe = MODELS[name].recipe_for("pocket")
    published = MODELS[name].recipe
    assert (recipe.masks is None) == (published.masks is None) and recipe.metric == published.metric
    assert (recipe.max_proposals is None) == (published.max_proposals is None)


def expected_transform(t: dict):
    """Our transform for one of the reference's; None for those that only load and pack."""
    match t["type"]:
        case "Resize":
            return T.Resize(tuple(t["scale"]), t["keep_ratio"])
        case "RandomChoiceResize":
            return T.ResizeChoice(tuple(map(tuple, t["scales"])))
        case "RandomResize" if "ratio_range" in t:
            return T.ScaleJitter(tuple(t["scale"]), tuple(t["ratio_range"]))
        case "RandomResize":
            return T.ResizeRange(*map(tuple, t["scale"]))
        case "Expand":
            assert t["to_rgb"]
            return Expand(tuple(t["mean"]), tuple(t["ratio_range"]))
        case "MinIoURandomCrop":
            return MinIoUCrop(tuple(t["min_ious"]), t["min_crop_size"])
        case "PhotoMetricDistortion":
            t = dict(brightness_delta=32, contrast_range=(0.5, 1.5), saturation_range=(0.5, 1.5), hue_delta=18) | t
            return PhotometricDistortion(t["brightness_delta"], tuple(t["contrast_range"]),
                                         tuple(t["saturation_range"]), t["hue_delta"])
        case "RandomCenterCropPad" if not t["test_mode"]:
            assert t["to_rgb"]
            return CornerCrop(tuple(t["crop_size"]), tuple(t["ratios"]), tuple(t["mean"]))
        case "RandomCenterCropPad":  # a matter of preprocessing here
            assert t["test_pad_mode"] == ["logical_or", CANVAS - 1]
            return None
        case "InstaBoost":
            assert t["action_prob"] == [1, 0, 0] and t["dx"] == t["dy"]
            return InstaBoost(t["aug_ratio"], tuple(t["scale"]), 1 / t["dx"], t["theta"][1], t["color_prob"])
        case "RandomFlip":
            return T.Flip(t["prob"])
        case "RandomCrop":
            # What recomputing boxes means without masks, clipping them, happens anyhow. Nothing is drawn from a range
            # of one size.
            size = tuple(t["crop_size"])
            return T.RandomCrop(size, t.get("allow_negative_crop", False),
                                t.get("crop_type") == "absolute_range" and size[0] != size[1])
        case "RandomChoice":
            return T.Choice(tuple(map(expected_transforms, t["transforms"])))
        case "FilterAnnotations":
            return T.FilterBoxes(*set(t["min_gt_bbox_wh"]))
        case "LoadImageFromFile" if t.get("to_float32"):
            return T.AsFloat()
        case "LoadImageFromFile" | "LoadAnnotations" | "LoadPanopticAnnotations" | "LoadProposals" | "PackDetInputs":
            return None
    raise AssertionError(f"unknown transform {t}")


def expected_transforms(pipeline: list[dict]) -> tuple:
    flat = [inner for t in pipeline for inner in ([t] if t["type"] == "RandomChoice" else t.get("transforms", [t]))]
    return tuple(o for o in map(expected_transform, flat) if o is not None)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_recipe(name):
    ours, row = MODELS[name].recipe, ROWS[name]

    given = row["preprocess"]
    pads = [a["size"] for a in given.get("batch_augments", [])]
    assert ours.preprocess == T.Preprocess(
        tuple(given["mean"]), tuple(given["std"]), given["bgr_to_rgb"], given.get("pad_size_divisor", 1),
        tuple(pads[0]) if pads else None,
        CANVAS if "RandomCenterCropPad" in {t["type"] for t in row["test_transforms"]} else None)

    assert ours.test_transforms == expected_transforms(row["test_transforms"])
    pipeline = row["train_transforms"] or []  # the reference leaves those out that stand inside VOC's two data sets
    assert not pipeline or ours.train_transforms == expected_transforms(pipeline)
    loads = {t["type"]: t for t in pipeline}
    panoptic = dict(with_mask=True) if "LoadPanopticAnnotations" in loads else {}
    annotations = loads.get("LoadAnnotations", panoptic)
    form = "bitmap" if annotations.get("poly2mask", True) else "polygon"
    assert ours.masks == (form if annotations.get("with_mask") else None)
    assert ours.max_proposals == loads.get("LoadProposals", {}).get("num_max_proposals")

    wrapper, optimizer = row["optimizer"], row["optimizer"]["optimizer"]
    assert type(ours.optimizer).__name__ == optimizer["type"]
    optimizer = {k: v for k, v in optimizer.items() if (k, v) not in (("eps", 1e-8), ("betas", [0.9, 0.999]))}
    assert all(getattr(ours.optimizer, key) == optimizer[key] for key in optimizer if key != "type")
    norm_decay = wrapper.get("paramwise_cfg", {}).get("norm_decay_mult", 1)
    assert ours.optimizer.norm_decay_mult == norm_decay
    assert ours.clip_norm == (wrapper.get("clip_grad") or {}).get("max_norm")
    assert ours.amp == (wrapper["type"] == "AmpOptimWrapper")

    *warmups, steps = row["schedule"] if isinstance(row["schedule"], list) else [row["schedule"]]
    schedule, warmup = ours.schedule, warmups[0] if warmups else dict(end=0)
    assert schedule.warmup_iters == warmup["end"]
    assert not warmups or schedule.warmup_factor == warmup["start_factor"]
    assert schedule.cosine == (steps["type"] == "CosineAnnealingLR")
    assert not schedule.cosine or (steps["T_max"], steps["eta_min"]) == (schedule.end, 0)
    assert (list(schedule.milestones), schedule.end, schedule.by_epoch, schedule.gamma) == (
        steps.get("milestones", []), steps.get("end", schedule.end), steps["by_epoch"], steps.get("gamma", 0.1))
    loop = row["train_loop"]
    assert (ours.epochs, ours.iterations, ours.val_interval) == (
        loop.get("max_epochs"), loop.get("max_iters"), loop["val_interval"])
    assert (ours.batch_size, ours.batch_per_gpu) == (row["base_batch_size"], row["batch_per_gpu"])

    *wrappers, dataset = row["train_dataset"]
    dataset = dataset.get("datasets", [dataset])[0]
    assert ours.repeat == (wrappers[0].get("times", 1) if wrappers else 1)
    kept = dict(filter_empty_gt=False, min_size=0, bbox_min_size=0) | dataset.get("filter_cfg", {})
    assert (ours.filter_empty, ours.min_size, ours.min_box) == (
        kept["filter_empty_gt"], kept["min_size"], kept["bbox_min_size"])
    voc_format = "voc" in dataset["ann_file"].lower() and dataset["type"] == "CocoDataset"
    assert ours.layout == ("voc-coco" if voc_format else LAYOUTS[dataset["type"]])
    balanced = [w["oversample_thr"] for w in wrappers if w["type"] == "ClassBalancedDataset"]
    # The reference says nothing of class-aware sampling; the names do.
    aware = ClassAware() if "-cas-" in name else None
    assert ours.sampling == (ClassBalanced(*balanced) if balanced else aware)
    names = dataset.get("metainfo", {}).get("classes")
    assert ours.classes == (tuple(names) if names else None)
    # Some of the original's mask models evaluate their boxes alone, though their mask AP is published too.
    evaluator = row["evaluator"] if isinstance(row["evaluator"], dict) else row["evaluator"][0]
    metric = ["bbox", "segm"] if ours.masks else evaluator.get("metric", "bbox")
    metric = [*metric, "panoptic"] if evaluator["type"] == "CocoPanopticMetric" else metric
    boxes = dict.fromkeys(("bbox", "mAP"), ["bbox"])
    assert list(ours.metric) == (boxes | {"proposal_fast": ["proposal"]}).get(str(metric), metric)


@pytest.mark.parametrize("case", [s for s in SCHEDULES if set(s["models"]) & set(MODELS)], ids=lambda s: s["models"][0])
def test_schedule(case):
    for name in set(case["models"]) & set(MODELS):
        recipe = MODELS[name].recipe
        assert recipe.optimizer.lr == case["base_lr"]
        for step, wanted in case["lr"].items():
            rate = recipe.optimizer.lr * recipe.schedule.factor(int(step), case["steps_per_epoch"] or 1)
            assert rate == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", [n for n in GROUPS if n in MODELS])
def test_parameter_groups(name):
    model = on_meta(name)
    groups = parameter_groups(model, MODELS[name].recipe.optimizer)
    found = {(g["lr"], g["weight_decay"]): g["names"] for g in groups}
    wanted = {tuple(map(float, key.split(","))): names for key, names in GROUPS[name]["groups"].items()}
    assert {key: sorted(names) for key, names in found.items()} == {key: sorted(names) for key, names in wanted.items()}
    named = dict(model.named_parameters())
    assert all(named[n] is p for g in groups for n, p in zip(g["names"], g["params"], strict=True))
    assert sorted(n for n, p in named.items() if not p.requires_grad) == sorted(GROUPS[name]["frozen"])


def test_parameter_groups_of_another_rate():
    model = detcore.create_model("retinanet_r18_fpn_1x_coco", profile="pocket")
    groups = parameter_groups(model, AdamW(1e-3, 0.05, norm_decay_mult=0.5), lr=0.25)
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {(0.25, 0.05), (0.25, 0.025)}
    torch.optim.AdamW(groups)  # no parameter is in two groups


@pytest.mark.parametrize("name", sorted(ROWS))
def test_published(name):
    row, ours = ROWS[name], published_results().get(name)
    if row["published"] is None:
        assert ours is None and row["weights"] is None
        return
    facts = row["published"]
    assert ours.checkpoint == row["weights"]
    assert (ours.training_memory_gb, ours.epochs, ours.iterations) == (
        facts["training_memory_gb"], facts["epochs"], facts["iterations"])
    results = {key: value for r in facts["results"] for key, value in r["metrics"].items()}
    assert {r["dataset"] for r in facts["results"]} == {ours.dataset}
    assert {"box AP": ours.box_ap, "mask AP": ours.mask_ap, "PQ": ours.panoptic_quality,
            "AR@1000": ours.average_recall} == {key: None for key in ("box AP", "mask AP", "PQ", "AR@1000")} | results
    (speed,) = facts["inference"] or [{}]
    height_width = speed.get("resolution", "").strip("()").replace(", ", "x") or None
    assert (ours.inference_ms, ours.hardware, ours.precision, ours.resolution) == (
        speed.get("value"), speed.get("hardware"), speed.get("mode"), height_width)


def test_entry_carries_its_facts():
    entry = detcore.get_model_entry("mask-rcnn_r50_fpn_1x_coco")
    assert (entry.published.box_ap, entry.published.mask_ap) == (38.2, 34.7)
    assert entry.checkpoint.endswith("mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth")
    assert detcore.get_model_entry("rpn_r101_fpn_1x_coco").published is None


CONVENTIONS = {
    "TorchVision": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True),
    "Pycls": ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), False),
    "MSRA": ((103.53, 116.28, 123.675), (1, 1, 1), False),
    "Caffe2": ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), False),
    "Caffe": ((123.675, 116.28, 103.53), (1, 1, 1), True),
    "Darknet": ((0, 0, 0), (255, 255, 255), True),
}


def test_backbones_know_their_origin():
    for backbone in all_backbones():
        told = backbone.preprocess
        if backbone.origin in CONVENTIONS:
            assert (told.mean, told.std, told.rgb) == CONVENTIONS[backbone.origin], backbone.name
        assert (backbone.weights is None) == (backbone.origin == "none") == ("from scratch" in backbone.name)
        # The authors' own files of Swin do not tell their hash.
        assert (backbone.sha256 is None) == (backbone.origin in ("none", "Swin")), backbone.name
    assert set(CONVENTIONS) <= {b.origin for b in all_backbones()}
    assert find_backbones("resnet-18") == {"ResNet-18"} and len(find_backbones("regnetx")) == 9


def test_rows_that_do_not_follow_their_backbone_are_the_references_own():
    """Normalisation is that of the pretrained backbone, but for rows of the reference that have another."""
    other = {name for name, e in MODELS.items() if (e.recipe.preprocess.mean, e.recipe.preprocess.std) != (
        e.backbone.preprocess.mean, e.backbone.preprocess.std)}
    assert {MODELS[name].family for name in other} <= {"regnet", "faster_rcnn", "guided_anchoring", "autoassign"}
    for name in other:
        assert list(MODELS[name].recipe.preprocess.mean) == ROWS[name]["preprocess"]["mean"]
