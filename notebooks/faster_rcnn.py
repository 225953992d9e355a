# %% [markdown]
# # Faster R-CNN
#
# Fast R-CNN classifies regions quickly, but waits for the separate program that
# proposes them. Faster R-CNN predicts the proposals from the same feature maps that the
# regions are pooled from, so that one network, trained in one pass, goes from the image
# to the detections.
#
# Shaoqing Ren, Kaiming He, Ross Girshick, Jian Sun:
# [Faster R-CNN: towards real-time object detection with region proposal
# networks](https://arxiv.org/abs/1506.01497), 2015. Its two parts have chapters of
# their own, {doc}`rpn` and {doc}`fast_rcnn`.
#
# ```{figure} ../book/figures/faster_rcnn.svg
# :name: faster-rcnn-architecture
#
# Faster R-CNN with a ResNet-50 and a feature pyramid, at the size published for COCO.
# The new part is highlighted: the proposals come from a head on the shared maps. No
# gradient flows back through the boxes of the proposals.
# ```

# %% tags=["parameters", "hide-input"]
profile = "pocket"
model = "faster-rcnn_r50_fpn_1x_coco"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = None
output = "runs/faster_rcnn"
records = "build/records"

# %% tags=["hide-input"]
import numpy as np
import torch

from detcore import draw, evaluate
from detcore.detectors import TwoStageDetector
from detcore.experiment import Experiment, Table, source, with_interval
from detcore.methods.rpn import RPNHead
from detcore.ops import boxes as box
from detcore.ops.regions import flat_proposals, of_class

run = dict(profile=profile, seed=seed, steps=steps, device=device, gpus=gpus,
           records=records)
exp = Experiment(model, data_root, output=output, label="Faster R-CNN", **run)

# %% [markdown]
# ## One network, four losses
#
# Both stages and the backbone are trained at the same time by the sum
#
# $$L = L_{\mathrm{cls}}(p, p^*) + L_{\mathrm{reg}}(t, t^*)
#     + L_{\mathrm{cls}}(q, u) + L_{\mathrm{loc}}(t^u, v)$$
#
# The first two losses are those of the first stage, over the sampled anchors; the last
# two are those of the second stage, over the sampled regions.
#
# - $p$ is the objectness of the sampled anchors, $p^*$ says which of them are positive,
#   and $t$, $t^*$ are their predicted and true offsets, as in {doc}`rpn`.
# - $q$ are the class probabilities of the sampled regions, $u$ their true classes,
#   background among them as the last one, and $t^u$, $v$ the offsets of the true class,
#   as in {doc}`fast_rcnn`.
#
# The regions of the second stage are the proposals that the first stage makes at this
# very step. Their coordinates are taken as constants: the losses of the second stage
# reach the backbone through the pooled features, but not the first stage's offsets. The
# paper calls this approximate joint training; its own models were trained in four
# alternating steps.

# %% [markdown]
# ## Training
#
# One call trains the model by its recipe, on Pocket Zoo or on COCO.

# %% tags=["hide-input", "nbval-ignore-output"]
trained = exp.train()
trained

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Losses over the steps of the training, on a logarithmic axis: objectness and boxes of the first stage (RPN), classes and boxes of the second, and their sum.", "name": "faster-rcnn-training"}}
trained.figure

# %% [markdown]
# ## One set of maps, two heads
#
# The feature maps are computed once. The first stage reads its objectness from them,
# and the second stage pools its regions from them.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "One image on the levels P2, P3, P4 and P5, left to right. Upper row: the norm of the features over the channels. Lower row: the objectness that the first stage reads from these maps, the highest of the three anchors at each cell (dark: 0, bright: 1).", "name": "faster-rcnn-maps"}}
sample = exp.sample(24 if profile == "pocket" else 2)
images, targets, pictures = sample.images, sample.targets, sample.pictures
one = 7 if profile == "pocket" else 0
zoom = 240 / max(pictures[one].shape)
with torch.no_grad():
    features = exp.detector.features(images.tensor)
    objectness = [m.sigmoid().amax(1) for m in exp.detector.rpn_head(features)[0]]
draw.grid([draw.heat(pictures[one], f[one].norm(dim=0), scale=zoom, alpha=0.85)
           for f in features[:4]]
          + [draw.heat(pictures[one], m[one], scale=zoom, alpha=0.75, limits=(0, 1))
             for m in objectness[:4]])

# %% tags=["hide-input", "nbval-ignore-output"]
parts = {"backbone": exp.detector.backbone, "feature pyramid": exp.detector.neck,
         "first stage: proposal head": exp.detector.rpn_head,
         "second stage: RoI head": exp.detector.roi_head}
sizes = {name: sum(p.numel() for p in part.parameters())
         for name, part in parts.items()}
Table(["part", "parameters", "share (%)"],
      [(name, f"{size:,}", f"{100 * size / sum(sizes.values()):.1f}")
       for name, size in sizes.items()])

# %% tags=["remove-cell"]
assert min(sizes, key=sizes.get) == "first stage: proposal head"

# %% [markdown]
# The proposal head is the smallest of the four parts.
#
# ## From proposal to detection

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Left: the ten best proposals of the first stage, without classes; several share an object. Middle: the same ten boxes after the second stage has classified and moved them. Right: the detections that are left of all proposals after the score threshold and NMS within each class.", "name": "faster-rcnn-stages"}}
roi_head, names = exp.detector.roi_head, sample.class_names
with torch.no_grad():
    proposals = exp.detector.rpn_head.proposals(features, images)
    boxes, image, _ = flat_proposals(proposals, images)
    logits, deltas = roi_head.bbox_head(roi_head.region_features(features, boxes, image))
score, label = roi_head.bbox_head.scores(logits).max(1)
moved = roi_head.bbox_head.decode(boxes, of_class(deltas.unflatten(1, (-1, 4)), label))
moved = box.clip(moved, box.size_tensor(images.sizes, moved)[image])
detections = exp.predict(sample)
first = (image == one).nonzero()[:10, 0]
large = 1.5 * zoom
draw.grid([draw.boxes(pictures[one], boxes[first], scale=large, width=2, colors="white"),
           draw.boxes(pictures[one], moved[first], scale=large, width=2,
                      colors=[draw.colour(c) for c in label[first].tolist()],
                      labels=[f"{names[c]} {100 * s:.0f}" for c, s in
                              zip(label[first].tolist(), score[first].tolist())]),
           draw.detections(detections[one], pictures[one], scale=large)], 3)

# %% [markdown]
# ## What the second stage adds to the boxes
#
# Every proposal that overlaps an object by an IoU of 0.3 or more, in all images of the
# sample: its IoU with that object before and after the second stage.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Proposals on objects by their IoU with the object, before and after the second stage. The second distribution lies further to the right; some boxes get worse, because a proposal between two objects may be moved to either.", "name": "faster-rcnn-refined"}}
before, after = [], []
for i, t in enumerate(targets):
    mine = image == i
    if len(t.boxes) and bool(mine.any()):
        best, which = box.pairwise_iou(boxes[mine], t.boxes).max(1)
        before.append(best[best >= 0.3])
        after.append(box.iou(moved[mine], t.boxes[which])[best >= 0.3])
before, after = torch.cat(before).cpu(), torch.cat(after).cpu()
draw.histogram({"proposals": before, "after the second stage": after}, y="boxes",
               bins=torch.linspace(0, 1, 41), x="IoU with the object")

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Recall over the IoU threshold: the share of objects with a box of at least that IoU, whatever its class. At low thresholds the proposals find nearly all objects; at high thresholds it is the second stage that does.", "name": "faster-rcnn-recall"}}
def recall(candidates):
    """The share of objects, in percent, whose best box reaches each threshold."""
    best = torch.cat([box.pairwise_iou(t.boxes, candidates[image == i]).amax(1)
                      for i, t in enumerate(targets)
                      if len(t.boxes) and bool((image == i).any())])
    return [100 * float((best >= iou).float().mean()) for iou in ious]


ious = torch.linspace(0.3, 1, 36)
curves = {"proposals": recall(boxes), "after the second stage": recall(moved)}
draw.lines({name: (ious, values) for name, values in curves.items()},
           x="IoU threshold", y="recall (%)")

# %% tags=["remove-cell"]
if exp.full and profile == "pocket":
    assert after.mean() > before.mean() + 0.05 and bool((after < before).any())
    low, high = int((ious - 0.5).abs().argmin()), int((ious - 0.8).abs().argmin())
    assert curves["proposals"][low] > 85
    assert curves["after the second stage"][high] > curves["proposals"][high] + 5

# %% [markdown]
# ## The code
#
# The loss and the prediction of a two-stage detector. Without a proposal head
# (`rpn_head` is `None`) this is Fast R-CNN, and the proposals come with the targets.

# %% tags=["hide-input"]
source(TwoStageDetector.loss_from, TwoStageDetector.predict_from)

# %% [markdown]
# The first stage gives its losses, and the proposals that the second stage trains on.

# %% tags=["hide-input"]
source(RPNHead.loss_and_proposals, RPNHead.select)

# %% [markdown]
# ## What it buys: accuracy
#
# Faster R-CNN beside Fast R-CNN on the proposals of a separately trained RPN, the model
# that it improves. Both detectors start from the same pretrained backbone and see the
# same number of images, with the same number of proposals per image in training. At
# test time Fast R-CNN gets all proposals of its file, twice as many at pocket size; the
# section on the number of proposals shows how much that matters. Fast R-CNN also
# depends on a second network, the RPN, which has seen images of its own.

# %% tags=["hide-input", "nbval-ignore-output"]
result = exp.evaluate()
fast = Experiment("fast-rcnn_r50_fpn_1x_coco", data_root, label="Fast R-CNN",
                  profile=profile, records=records)
rpn = Experiment("rpn_r50_fpn_1x_coco", data_root, label="RPN", profile=profile,
                 records=records)
comparison = exp.compare(fast)
comparison

# %% [markdown]
# Only where the interval of the difference leaves out zero do these images tell the two
# apart. The paper does not claim a large gain in AP from sharing features either: it
# claims that the proposals cost almost nothing.
#
# ## What it buys: one pass

# %% tags=["hide-input", "nbval-ignore-output"]
timed = exp.benchmark()


def costs(*experiments):
    """Images seen, million parameters, GFLOPs and milliseconds of some models."""
    found = [e.recorded("benchmark") for e in experiments]
    seen = [e.recorded("train").parameters for e in experiments]
    return (sum(p["steps_done"] * p["images"] for p in seen),
            sum(r.metrics["parameters"] for r in found) / 1e6,
            sum(r.metrics["flops"] for r in found) / 1e9,
            sum(1000 * r.speed.get("inference_median_s", np.nan) for r in found))


rows = {"Fast R-CNN + RPN": costs(fast, rpn), "Faster R-CNN": costs(exp)}
Table(["from image to detections", "images seen", "parameters, millions", "GFLOPs",
       "inference, ms per image"],
      [(name, f"{seen:,}", f"{size:.2f}", f"{flops:.2f}", f"{ms:.1f}")
       for name, (seen, size, flops, ms) in rows.items()],
      caption="Two networks against one: sums over the networks, medians of the times")

# %% tags=["remove-cell"]
separate, joint = rows.values()
assert joint[1] < separate[1]
assert not exp.full or profile != "pocket" or (
    joint[0] < separate[0] and joint[2] < separate[2] and comparison.interval)

# %% [markdown]
# The proposals are not an additional network any more but one more head: parameters,
# operations and images seen are fewer than those of the two networks together.
#
# ## How many proposals
#
# Because the proposals are ordered by objectness, a few of them are enough. The trained
# model is evaluated with fewer proposals at test time.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Box AP of the trained model with only the best proposals of each image, with 95 % intervals. From 3 to 10 proposals AP rises steeply; beyond 30 it changes little.", "name": "faster-rcnn-proposals"}}
few = {str(number): evaluate(
    exp.entry, data_root, weights=exp.checkpoint, profile=profile, device=device,
    rpn_post_nms_top_n_test=number, images=None if exp.full else 16,
    progress=False).record for number in (3, 10, 30)}
few[str(exp.detector.rpn_head.test_proposals.post_nms_top_n)] = result.record
figure = draw.bars(
    {number: 100 * (record.metrics["bbox_AP"] or 0) for number, record in few.items()},
    intervals={number: tuple(100 * v for v in record.intervals["bbox_AP"])
               for number, record in few.items()}, x="box AP (%)")
figure.axes[0].set_ylabel("proposals per image")
figure

# %% tags=["hide-input", "nbval-ignore-output"]
Table(["proposals per image", "box AP (%) [95 % interval]"],
      [(number, with_interval(record, "bbox_AP")) for number, record in few.items()])

# %% tags=["remove-cell"]
if exp.full and profile == "pocket":
    ap = [record.metrics["bbox_AP"] for record in few.values()]
    assert ap[0] < ap[1] - 0.03 and abs(ap[3] - ap[2]) < 0.02

# %% [markdown]
# ## Evaluation
#
# Average precision on the validation set, as COCO defines it.

# %% tags=["hide-input", "nbval-ignore-output"]
result

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Detections with a score of 0.3 or more (upper row), with class and score in percent, and the ground truth (lower row).", "name": "faster-rcnn-detections"}}
exp.gallery(exp.sample(indices=[2, 7, 20] if profile == "pocket" else [0, 1]))

# %% tags=["remove-cell"]
assert not exp.full or profile != "pocket" or result["bbox_AP"] >= 0.35

# %% [markdown]
# ## Speed and size

# %% tags=["hide-input", "nbval-ignore-output"]
timed

# %% [markdown]
# ## The published models
#
# The family is the largest of the zoo: other backbones, features of one map (C4, DC5),
# other box losses, hard example mining, soft-NMS, an FCOS head in the first stage.
# {doc}`Its page </book/zoo/faster_rcnn>` lists them all, with their recipes.
#
# ```{zoo-table} faster_rcnn
# :only: faster-rcnn_r50*
# ```
#
# ## On COCO
#
# This chapter trains the published model where there are GPUs and COCO:
#
# ```bash
# python -m workflow.chapter faster_rcnn -p profile coco -p data_root /data/coco -p gpus 8
# ```
#
# ## Exercises
#
# 1. Train with `options=dict(hard_examples=True)` (online hard example mining) and
#    compare with the model above. Which loss is larger at the end, and why?
# 2. Evaluate with `soft_nms=True` in place of NMS. On which images can it help?
# 3. Let gradients flow through the proposals: remove `@torch.no_grad()` from
#    `RPNHead.select`. Which loss has now a gradient to the offsets of the first stage,
#    and does training remain stable?
#
# ## Summary
#
# Faster R-CNN adds a proposal head to the feature maps of Fast R-CNN, so that proposals
# and detections come from one network in one pass. Both stages train together by the
# sum of four losses, with the coordinates of the proposals taken as constants. The
# first stage finds nearly all objects roughly with a few boxes, and the second stage
# classifies them and makes the boxes exact.
#
# ## How to cite
#
# ```{cite-family} faster_rcnn
# ```
#
# ## Where the numbers come from

# %% tags=["hide-input", "nbval-ignore-output"]
exp.provenance()
