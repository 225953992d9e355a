"""`python -m tests.pocket`: train and evaluate each method at the pocket profile, and hold it against its bar.

    python -m tests.pocket [--only GLOB] [--seed S] [--data-root DIR]

A method against long tails trains on data whose classes are each half as frequent as the one before, and is evaluated
on the common data, where all are equally frequent. A second line shows how it does on the rarest classes beside a model
that has only plain cross-entropy.

Exit status 1 where a method falls short, in its metric or in its time.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from detcore.engine.evaluate import evaluate, make_proposals
from detcore.engine.train import train
from detcore.pocket.pocket_zoo import CLASSES, draw
from detcore.records import Record

RAREST = CLASSES[-round(len(CLASSES) / 3):]  # in the long-tailed data


@dataclass(frozen=True)
class Method:
    """A method, the model that stands for it, and what it has to reach.

    Attributes:
        plain: the model beside which one against long tails is shown.
        seconds: of training, on two cores.
    """

    name: str
    model: str
    bars: dict[str, float]
    plain: str | None = None
    seconds: float = 120


RPN = Method("rpn", "rpn_r50_fpn_1x_coco", {"proposal_AR100": 0.55})
FAST_RCNN = Method("fast_rcnn", "fast-rcnn_r50_fpn_1x_coco", {"bbox_AP": 0.35})
BOXES, MASKS = {"bbox_AP": 0.30}, {"bbox_AP": 0.30, "segm_AP": 0.25}
METHODS = (
    RPN,
    FAST_RCNN,
    Method("faster_rcnn", "faster-rcnn_r50_fpn_1x_coco", {"bbox_AP": 0.35}),
    Method("mask_rcnn", "mask-rcnn_r50_fpn_1x_coco", {"bbox_AP": 0.50, "segm_AP": 0.42}),
    Method("cascade_rcnn", "cascade-rcnn_r50_fpn_1x_coco", {"bbox_AP": 0.35}),
    Method("cascade_mask_rcnn", "cascade-mask-rcnn_r50_fpn_1x_coco", {"bbox_AP": 0.35, "segm_AP": 0.30},
           seconds=180),
    Method("retinanet", "retinanet_r50_fpn_1x_coco", {"bbox_AP": 0.45}),
    Method("group_norm", "mask-rcnn_r50_fpn_gn-all_2x_coco", MASKS),
    Method("weight_standardization", "faster-rcnn_r50_fpn_gn-ws-all_1x_coco", BOXES),
    Method("scratch", "faster-rcnn_r50-scratch_fpn_gn-all_6x_coco", BOXES),
    Method("dcn", "faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco", BOXES),
    Method("dcn_pooling", "faster-rcnn_r50_fpn_dpool_1x_coco", BOXES),
    Method("dcnv2", "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", BOXES),
    Method("dcnv2_pooling", "faster-rcnn_r50_fpn_mdpool_1x_coco", BOXES),
    Method("instaboost", "mask-rcnn_r50_fpn_instaboost-4x_coco", MASKS),
    Method("libra_rcnn", "libra-faster-rcnn_r50_fpn_1x_coco", BOXES),
    Method("libra_retinanet", "libra-retinanet_r50_fpn_1x_coco", BOXES),
    Method("dynamic_rcnn", "dynamic-rcnn_r50_fpn_1x_coco", BOXES),
    Method("grid_rcnn", "grid-rcnn_r50_fpn_gn-head_2x_coco", BOXES),
    Method("ms_rcnn", "ms-rcnn_r50_fpn_1x_coco", MASKS),
    Method("panoptic_fpn", "panoptic-fpn_r50_fpn_1x_coco", MASKS | {"panoptic_PQ": 0.25}),
    Method("regnet", "faster-rcnn_regnetx-3.2GF_fpn_1x_coco", BOXES),
    Method("regnet_retinanet", "retinanet_regnetx-3.2GF_fpn_1x_coco", BOXES),
    Method("ga_rpn", "ga-rpn_r50_fpn_1x_coco", {"proposal_AR100": 0.50}),
    Method("ga_faster_rcnn", "ga-faster-rcnn_r50_fpn_1x_coco", BOXES),
    Method("ga_retinanet", "ga-retinanet_r50_fpn_1x_coco", BOXES),
    Method("seesaw_loss", "mask-rcnn_r50_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1", MASKS,
           plain="mask-rcnn_r50_fpn_1x_coco"),
    Method("free_anchor", "freeanchor_r50_fpn_1x_coco", BOXES),
    Method("gfl", "gfl_r50_fpn_1x_coco", BOXES),
    Method("ssd", "ssd300_coco", BOXES),
    Method("ssdlite", "ssdlite_mobilenetv2-scratch_8xb24-600e_coco", BOXES),
    Method("yolov3", "yolov3_d53_8xb8-320-273e_coco", BOXES),
    Method("yolov3_mobilenet", "yolov3_mobilenetv2_8xb24-320-300e_coco", BOXES),
    Method("efficientnet", "retinanet_effb3_fpn_8xb4-crop896-1x_coco", BOXES),
    Method("centripetalnet", "centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco", {"bbox_AP": 0.10},
           seconds=150),
    Method("autoassign", "autoassign_r50-caffe_fpn_1x_coco", BOXES),
    Method("deformable_detr", "deformable-detr_r50_16xb2-50e_coco", {"bbox_AP": 0.20}, seconds=180),
    Method("deformable_detr_refined", "deformable-detr-refine-twostage_r50_16xb2-50e_coco", {"bbox_AP": 0.20},
           seconds=180),
    Method("maskformer", "maskformer_r50_ms-16xb1-75e_coco", {"panoptic_PQ": 0.25}, seconds=180),
    Method("mask2former", "mask2former_r50_8xb2-lsj-50e_coco", {"segm_AP": 0.20}, seconds=180),
    Method("mask2former_panoptic", "mask2former_r50_8xb2-lsj-50e_coco-panoptic", {"panoptic_PQ": 0.25}, seconds=180),
    Method("mask2former_swin", "mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco", {"segm_AP": 0.20}, seconds=180),
)


def run(method: Method, data_root: Path, output: Path, seed: int) -> tuple[Record, float]:
    """The record of the evaluation, and the seconds of training."""
    folder, train_root, proposals = output / method.name, data_root, None
    if method.plain:
        train_root = draw(data_root.with_name(f"{data_root.name}-long-tailed"), long_tail=True)
    if method is FAST_RCNN:
        weights = output / RPN.name / "model.safetensors"
        if not weights.exists():
            run(RPN, data_root, output, seed)
        proposals = make_proposals(RPN.model, data_root, output / "proposals.npz", weights=weights)
    trained = train(method.model, train_root, seed=seed, output=folder, proposals=proposals, validate=False,
                    overwrite=True)
    found = evaluate(method.model, data_root, weights=trained.checkpoint, proposals=proposals)
    return found.record, trained.record.duration_s


def on_rarest(record: Record, metric: str) -> float:
    """AP, averaged over the rarest classes; `metric` as in the record's metrics."""
    found = record.per_class[metric.removesuffix("_AP")]
    return sum(found[name] or 0.0 for name in RAREST) / len(RAREST)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pocket", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", metavar="GLOB", help="methods whose name matches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-root", type=Path, default=Path("data/pocket"))
    parser.add_argument("--output", type=Path, default=Path("runs/tests"))
    options = parser.parse_args()
    chosen = [m for m in METHODS if fnmatchcase(m.name, options.only)]
    if not chosen:
        parser.error(f"no method matches {options.only!r}; there are {', '.join(m.name for m in METHODS)}")
    draw(options.data_root)
    print(f"{'method':<24} {'metric':<15} {'value':>6} {'bar':>6} {'seconds':>8}", flush=True)
    short = 0
    for method in chosen:
        where = options.data_root, options.output / f"seed{options.seed}", options.seed
        record, seconds = run(method, *where)
        for metric, bar in method.bars.items():
            value = record.metrics[metric] or 0.0
            passed = value >= bar and seconds <= method.seconds
            short += not passed
            print(f"{method.name:<24} {metric:<15} {value:>6.3f} {bar:>6.2f} {seconds:>8.1f}"
                  f"{'' if passed else '  short'}", flush=True)
        if method.plain:
            plain, _ = run(replace(method, name=f"{method.name}_beside", model=method.plain), *where)
            for metric in method.bars:
                print(f"  {', '.join(RAREST)}: {metric} {on_rarest(record, metric):.3f}, "
                      f"{on_rarest(plain, metric):.3f} by {method.plain}", flush=True)
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
