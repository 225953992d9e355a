# %% [markdown]
# # RPN: region proposals
#
# A two-stage detector classifies candidate regions of the image. They used to come from
# a separate algorithm on pixels, such as Selective Search, which took about two seconds
# per image, longer than the detector itself. The *region proposal network* (RPN)
# predicts them from the feature maps that the detector computes anyway.
#
# Shaoqing Ren, Kaiming He, Ross Girshick, Jian Sun:
# [Faster R-CNN: towards real-time object detection with region proposal
# networks](https://arxiv.org/abs/1506.01497), 2015. On a feature pyramid: Tsung-Yi Lin
# and others: [Feature pyramid networks for object
# detection](https://arxiv.org/abs/1612.03144), 2017.
#
# ```{figure} ../book/figures/rpn.svg
# :name: rpn-architecture
#
# RPN with a ResNet-50, at the size published for COCO. The new part is highlighted: one
# small head, shared by the five levels of the pyramid, gives an objectness logit and
# four box offsets for each anchor; the best boxes after NMS are the proposals.
# ```

# %% tags=["parameters", "hide-input"]
profile = "pocket"
model = "rpn_r50_fpn_1x_coco"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = None
output = "runs/rpn"
records = "build/records"

# %% tags=["hide-input"]
import numpy as np
import torch
from PIL import Image

from detcore import draw
from detcore.data.loader import build_loader
from detcore.engine.evaluate import make_proposals
from detcore.experiment import Experiment, Table, signed, source
from detcore.methods.rpn import RPNHead, anchor_losses, best_anchors
from detcore.metrics.intervals import interval, resamplings
from detcore.ops import boxes as box
from detcore.ops.anchors import per_anchor
from detcore.ops.matching import BACKGROUND, IGNORE

exp = Experiment(model, data_root, profile=profile, seed=seed, steps=steps,
                 device=device, gpus=gpus, output=output, records=records, label="RPN")

# %% [markdown]
# ## The two outputs of an anchor
#
# At each cell of each feature map lie a few reference boxes of fixed shapes, the
# *anchors*. For each anchor the head predicts whether it covers an object, of whatever
# class, and how to move it onto that object. The loss of an image is
#
# $$L = \frac{1}{N} \sum_i L_{\mathrm{cls}}(p_i, p_i^*)
#     + \frac{1}{N} \sum_i p_i^* \, L_{\mathrm{reg}}(t_i, t_i^*)$$
#
# - $i$ counts the anchors that are sampled for training, $N$ is their number.
# - $p_i$ is the *objectness*: the predicted probability that anchor $i$ covers an
#   object. $p_i^*$ is 1 for a positive anchor and 0 for background.
# - $L_{\mathrm{cls}}$ is binary cross-entropy.
# - $t_i$ are the four predicted offsets, $t_i^*$ those that lead from the anchor to its
#   object. The factor $p_i^*$ leaves out background, which has no box.
# - $L_{\mathrm{reg}}$ is the sum of the absolute differences of the four offsets (L1),
#   as in the published configurations; the paper has smooth L1, explained in
#   {doc}`fast_rcnn`.
#
# The offsets of a box with centre $(x, y)$, width $w$ and height $h$ from an anchor
# with centre $(x_a, y_a)$, width $w_a$ and height $h_a$ do not depend on the scale of
# the two:
#
# $$t_x = \frac{x - x_a}{w_a}, \quad t_y = \frac{y - y_a}{h_a}, \quad
#   t_w = \log \frac{w}{w_a}, \quad t_h = \log \frac{h}{h_a}$$

# %% [markdown]
# ## Training
#
# One call trains the model by its recipe, on Pocket Zoo or on COCO.

# %% tags=["hide-input", "nbval-ignore-output"]
trained = exp.train()
trained

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Losses over the steps of the training, on a logarithmic axis: of the objectness, of the boxes, and their sum.", "name": "rpn-training"}}
trained.figure

# %% [markdown]
# ## Anchors
#
# Each level of the pyramid has anchors of one size, in three shapes: width to height
# 2:1, 1:1 and 1:2. From one level to the next the size doubles, so that the five levels
# together cover small and large objects.

# %% tags=["hide-input", "nbval-ignore-output"]
sample = exp.sample(24 if profile == "pocket" else 2)
images, targets, pictures = sample.images, sample.targets, sample.pictures
head, levels = exp.detector.bbox_head, [f"P{i}" for i in range(2, 7)]
with torch.no_grad():
    logits, deltas = outputs = head(exp.detector.features(images.tensor))
grids, counts = head.anchors(logits), [m[0].numel() for m in logits]
shapes = head.anchors.counts[0]
sides = [float(size.prod(1).sqrt().mean()) for size in head.anchors.buffers()]
rows = zip(levels, head.anchors.strides, counts, sides)
Table(["level", "stride", "cells", "anchors", "side of the square anchor, pixels"],
      [(level, str(stride), f"{count // shapes:,}", f"{count:,}", f"{side:.0f}")
       for level, stride, count, side in rows],
      caption="Anchors of one image")

# %% tags=["remove-cell"]
assert shapes == 3 and all(abs(b / a - 2) < 0.01 for a, b in zip(sides, sides[1:]))

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "The three anchors of one cell on each of the five levels, P2 (smallest) to P6 (largest), over the image that they belong to. The anchors of P6 are larger than the image itself.", "name": "rpn-anchors"}}
shown = [2, 7, 20] if profile == "pocket" else [0, 1]
picture = Image.fromarray(pictures[shown[0]])
w, h = picture.size
canvas = Image.new("RGB", (3 * w, 3 * h), "#e8ebee")
canvas.paste(picture, (w, h))
cell, tones, unit = [], [], canvas.width / 24
for k, (grid, m) in enumerate(zip(grids, logits)):
    start = (m.shape[2] // 2 * m.shape[3] + m.shape[3] // 2) * shapes
    key = torch.tensor([[unit / 2, unit * (k + 0.5), unit * 2, unit * (k + 1.3)]])
    cell += [key, grid[start:start + shapes].cpu() + torch.tensor([w, h, w, h])]
    tones += [draw.colour(k)] * (shapes + 1)
names = [name for level in levels for name in [level] + [""] * shapes]
draw.boxes(canvas, torch.cat(cell), colors=tones, width=3, scale=720 / canvas.width,
           labels=names)

# %% tags=["remove-cell"]
assert sides[-1] > max(images.sizes[shown[0]])

# %% [markdown]
# ## Which anchors are positive
#
# - An anchor whose IoU with an object is 0.7 or more is *positive* for that object.
# - Below 0.3 it is *background*.
# - From 0.3 to 0.7 it is *ignored*: it covers an object in part, so that either label
#   would be misleading.
# - *Best-anchor rule*: the anchors with the highest IoU with an object are positive for
#   it even below 0.7, as long as that IoU is at least 0.3. Without this rule an object
#   that no anchor overlaps by 0.7 would have no positive anchor at all.

# %% tags=["hide-input", "nbval-ignore-output"]
several = exp.batch(200 if profile == "pocket" else 4)
all_anchors = torch.cat(grids)
best_iou = torch.cat([box.pairwise_iou(t.boxes, all_anchors).amax(1)
                      for t in several.targets if len(t.boxes)]).cpu()
reached = float((best_iou >= 0.7).float().mean())

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Objects of the validation set by the IoU with the anchor that overlaps them most. Only those to the right of the second line have an anchor above the threshold of 0.7; the others train by the best-anchor rule.", "name": "rpn-best-iou"}}
figure = draw.histogram({"objects": best_iou}, bins=torch.linspace(0, 1, 41),
                        x="IoU with the best anchor", y="objects")
for threshold in (0.3, 0.7):
    figure.axes[0].axvline(threshold, color="#808080", lw=1.4, ls="--")
figure

# %% tags=["remove-cell"]
assert profile != "pocket" or (0.02 < reached < 0.6 and float(best_iou.min()) >= 0.3)

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Anchors of three images, objects in white. Upper row: positive anchors, orange at an IoU of 0.7 or more, blue by the best-anchor rule. Lower row: one in four of the anchors that are ignored; they surround the objects and do not train.", "name": "rpn-assignment"}}
anchors, matched, gt_boxes = head.assign(logits, images, targets)
iou = box.iou(anchors.expand(len(sample), -1, -1),
              box.gather(gt_boxes, matched.clamp(min=0)))
positive, ignored = matched >= 0, matched == IGNORE
by_rule = positive & (iou < 0.7)
zoom = 360 / max(pictures[shown[0]].shape)


def with_objects(i, boxes, colors, width=2):
    """Boxes drawn on an image of the sample, with its objects in white on top."""
    drawn = draw.boxes(pictures[i], boxes, colors=colors, width=width, scale=zoom,
                       rim=False)
    return draw.boxes(drawn, targets[i].boxes * zoom, colors="white", width=2, scale=1)


quarter = torch.arange(len(anchors), device=anchors.device) % 4 == 0
draw.grid([with_objects(i, anchors[positive[i]], [draw.colour(int(rule)) for rule
                                                  in by_rule[i][positive[i]]])
           for i in shown]
          + [with_objects(i, anchors[ignored[i] & quarter], draw.colour(4), 1)
             for i in shown], len(shown))

# %% [markdown]
# Positive anchors are rare. Therefore not all anchors train: of each image a random
# sample is taken, with positive anchors for at most half of it. Without sampling, the
# loss would consist of background almost alone.

# %% tags=["hide-input", "nbval-ignore-output"]
torch.manual_seed(seed)
kept, kept_negative = head.sampler(matched)
numbers = {"positive, IoU of 0.7 or more": (positive & ~by_rule, kept & ~by_rule),
           "positive by the best-anchor rule": (by_rule, kept & by_rule),
           "ignored": (ignored, ignored & False),
           "background": (matched == BACKGROUND, kept_negative)}
Table(["anchors", "per image", "sampled per image"],
      [(name, *(f"{float(part.sum(1).float().mean()):,.1f}" for part in parts))
       for name, parts in numbers.items()])

# %% tags=["remove-cell"]
share = float(positive.float().mean())
assert share < 0.02 and int(kept.sum(1).max()) <= head.sampler.number // 2
assert int(kept_negative.sum()) > 0 and int((kept & by_rule).sum()) > 0

# %% [markdown]
# ## From anchors to proposals
#
# At test time the anchors of each level with the highest objectness are moved by their
# offsets, clipped to the image, and thinned by non-maximum suppression (NMS): of two
# boxes of the same level with an IoU above 0.7 only the better one stays.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Objectness of three images, one per row: the image with its objects, then the levels P2 to P5, with the highest of the three probabilities at each cell (dark: 0, bright: 1). Bright cells lie on the objects, those of larger objects on coarser levels.", "name": "rpn-objectness"}}
rows = []
for i in shown:
    rows.append(draw.boxes(pictures[i], targets[i].boxes, colors="white", width=2,
                           scale=zoom / 2))
    for m in logits[:4]:
        rows.append(draw.heat(pictures[i], m[i].sigmoid().amax(0), scale=zoom / 2,
                              alpha=0.75, limits=(0, 1)))
draw.grid(rows, 5)

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "The 20 boxes with the highest objectness in two images, objects in white. Left: the anchors as they lie on their grid. Middle: moved by their offsets, they fit the objects more closely. Right: after NMS most near duplicates are gone, and the 20 boxes cover more of the image.", "name": "rpn-proposals"}}
first = 20
scores = torch.cat([per_anchor(m, 1)[..., 0] for m in logits], 1)
offsets = torch.cat([per_anchor(m, 4) for m in deltas], 1)
top = scores.topk(first, 1).indices
moved = box.decode(anchors[top], box.gather(offsets, top))
final = head.select(outputs, images, head.test_proposals).boxes[:, :first]
stages = {"anchors": anchors[top], "moved": moved, "after NMS": final}
draw.grid([with_objects(i, boxes[i], draw.colour(0)) for i in shown[:2]
           for boxes in stages.values()], 3)

# %% [markdown]
# The table puts numbers to the three panels, over all images of the sample: how well the
# first 20 boxes fit their objects, how many of them have a near duplicate among the
# others (an IoU above 0.7), and how much of the image they cover together. The
# duplicates that NMS leaves lie on different levels.

# %% tags=["hide-input", "nbval-ignore-output"]
def describe_boxes(boxes):
    """Mean IoU of the boxes that overlap an object; share with a near duplicate; share
    of the image that is covered."""
    best, twice, covered = [], [], []
    for target, some, (h, w) in zip(targets, boxes, images.sizes):
        if len(target.boxes):
            best.append(box.pairwise_iou(target.boxes, some).amax(0))
        twice.append(box.pairwise_iou(some, some).fill_diagonal_(0).amax(1) > 0.7)
        x, y = torch.arange(w) + 0.5, torch.arange(h)[:, None] + 0.5
        x1, y1, x2, y2 = some.T[:, :, None, None]
        covered.append(((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(0).float().mean())
    best, twice = torch.cat(best), torch.cat(twice).float()
    return (float(best[best > 0.3].mean()), float(twice.mean()),
            float(torch.stack(covered).mean()))


panels = {name: describe_boxes(boxes) for name, boxes in stages.items()}
Table(["the 20 best boxes", "mean IoU of boxes on objects",
       "boxes with a near duplicate (%)", "image covered (%)"],
      [(name, f"{iou:.2f}", f"{100 * twice:.1f}", f"{100 * covered:.1f}")
       for name, (iou, twice, covered) in panels.items()])

# %% tags=["remove-cell"]
if exp.full and profile == "pocket":
    assert panels["moved"][0] > panels["anchors"][0] + 0.05
    assert panels["after NMS"][1] < panels["moved"][1] / 2
    assert panels["after NMS"][2] > panels["moved"][2] + 0.02
    inside = torch.cat([
        (box.pairwise_iou(t.boxes, b[s >= 0]).amax(0) >= 0.3)
        for t, b, s in zip(targets, moved, scores.gather(1, top)) if len(t.boxes)])
    assert float(inside.float().mean()) > 0.8  # bright cells lie on objects
    with torch.no_grad():
        brightest = [[], []]  # sides of objects that are brightest on P2 or P3, coarser
        for i, t in enumerate(targets):
            near = box.pairwise_iou(t.boxes, anchors) >= 0.3
            parts = (near * scores[i].sigmoid()).split(counts, 1)
            levels_of = torch.stack([part.amax(1) for part in parts], 1).argmax(1)
            for side, level in zip(box.area(t.boxes).sqrt().tolist(), levels_of):
                brightest[int(level > 1)].append(side)
    assert np.mean(brightest[1]) > 1.2 * np.mean(brightest[0])

# %% [markdown]
# ## The code
#
# The head, the loss above, and the choice of the proposals. Background needs no class
# of its own here: objectness is one logit per anchor.

# %% tags=["hide-input"]
source(RPNHead.forward, anchor_losses, best_anchors)

# %% [markdown]
# ## What it buys
#
# A proposal method is judged by *recall*: the share of objects that the first $n$
# proposals of an image cover. Here an object counts as covered at a threshold if a
# proposal has at least that IoU with it, and recall is averaged over the thresholds
# 0.5, 0.55 and so on to 0.95. RPN does two things to the anchors: it moves them, and it
# orders them by objectness. Each of the two is switched off in turn, on all validation
# images:
#
# - *not moved*: the anchors themselves, ordered by objectness;
# - *random order*: the boxes that RPN predicts, in random order;
# - *random anchors*: neither. This is what the anchors alone give.
#
# NMS is applied to all four in the same way.

# %% tags=["hide-input", "nbval-ignore-output"]
VARIANTS = {"RPN": (True, True), "not moved": (True, False),
            "random order": (False, True), "random anchors": (False, False)}
most = head.test_proposals.post_nms_top_n
ious = torch.linspace(0.5, 0.95, 10, device=anchors.device)


def variant(predicted, images, ordered, moved):
    """[N, P, 4] the proposals of RPN without one of its two parts, or without both."""
    scores = [per_anchor(m, 1)[..., 0].sigmoid() for m in predicted[0]]
    offsets = [per_anchor(m, 4) for m in predicted[1]]
    if not ordered:
        scores = [torch.rand_like(s) for s in scores]
    if not moved:
        offsets = [torch.zeros_like(d) for d in offsets]
    return best_anchors(scores, offsets, head.anchors(predicted[0]), images,
                        head.test_proposals).boxes


data = exp.data()
data.select(np.arange(len(data)) < (5000 if exp.full else 16))
covered, objects = {name: [] for name in VARIANTS}, []
torch.manual_seed(seed)
with torch.inference_mode():
    size = 16 if profile == "pocket" else 1
    for batch in build_loader(data, size, preprocess=exp.recipe.preprocess):
        batch = batch.to(anchors.device)
        batch_images = exp.recipe.preprocess(batch.images, batch.sizes)
        predicted = head(exp.detector.features(batch_images.tensor))
        objects += [len(t.boxes) for t in batch.targets]
        for name, parts in VARIANTS.items():
            for boxes, t in zip(variant(predicted, batch_images, *parts),
                                batch.targets):
                iou = box.pairwise_iou(t.boxes, boxes).cummax(1).values
                hits = (iou[..., None] >= ious).float().mean(2).sum(0)
                covered[name].append(hits.cpu().numpy())
objects = np.array(objects)
covered = {name: np.stack(rows) for name, rows in covered.items()}  # [images, P]
draws = list(resamplings(len(objects)))
again = {name: np.stack([rows[d].sum(0) / objects[d].sum() for d in draws])
         for name, rows in covered.items()}
recall = {name: rows.sum(0) / objects.sum() for name, rows in covered.items()}

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Average recall over the number of proposals, with 95 % intervals of a bootstrap over the images. RPN is the upper curve; without the offsets recall stays low at any number, without the order many more boxes are needed.", "name": "rpn-recall"}}
n = np.arange(1, most + 1)
figure = draw.lines({name: (n, 100 * values) for name, values in recall.items()},
                    x="proposals per image", y="average recall (%)")
for k, values in enumerate(again.values()):
    low, high = np.percentile(values, [2.5, 97.5], 0)
    figure.axes[0].fill_between(n, 100 * low, 100 * high, color=draw.colour(k),
                                alpha=0.25, lw=0)
figure.axes[0].set(xlim=(0, most), ylim=(0, None))
figure

# %% tags=["hide-input", "nbval-ignore-output"]
def at(name, number):
    """Recall at a number of proposals with its interval, in percent."""
    low, high = interval(again[name][:, number - 1])
    return f"{100 * recall[name][number - 1]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def lead(name, number):
    """How much more RPN covers than a variant, with its paired interval."""
    k = number - 1
    return recall["RPN"][k] - recall[name][k], interval(
        again["RPN"][:, k] - again[name][:, k])


Table(["proposals", "recall of the first 10 (%) [95 % interval]",
       "recall of the first 100 (%) [95 % interval]", "RPN − this, first 100"],
      [(name, at(name, 10), at(name, 100),
        "–" if name == "RPN" else signed(*lead(name, 100))) for name in VARIANTS])

# %% tags=["remove-cell"]
if exp.full and profile == "pocket":
    assert all(lead(name, number)[1][0] > 0.03 for name in list(VARIANTS)[1:]
               for number in (10, 100))
    # Without one part all 200 proposals do not reach what RPN reaches with a few.
    assert recall["not moved"][-1] < recall["RPN"][19] - 0.03
    assert recall["random order"][-1] < recall["RPN"][9] - 0.03

# %% [markdown]
# The intervals of the differences tell whether the two parts matter on these images:
# where an interval leaves out zero, RPN covers more than it does without that part.
# They are paired, so they speak of other images of the same kind; the spread over
# trainings is in the table of the next section, where more than one seed has been
# trained.
#
# ## Evaluation
#
# *Average recall* (AR) as COCO defines it, with each proposal matched to one object at
# most, for the 100, 300 and 1000 best proposals of an image, and by object size. At
# pocket size RPN gives at most 200 proposals per image, so that the numbers for 300 and
# 1000 rest on 200; on COCO they rest on 300 and 1000.

# %% tags=["hide-input", "nbval-ignore-output"]
result = exp.evaluate()
result

# %% tags=["hide-input", "nbval-ignore-output"]
Table(["average recall, 100 proposals", "mean ± std over seeds (n), %"],
      [(exp.name, exp.spread("proposal_AR100"))])

# %% tags=["remove-cell"]
assert profile != "pocket" or most == 200
# COCO's matching of each proposal to one object hardly changes the recall above.
assert not exp.full or abs(recall["RPN"][99] - result["proposal_AR100"]) < 0.02
assert not exp.full or profile != "pocket" or result["proposal_AR100"] >= 0.4

# %% [markdown]
# Proposals have no class. The class is decided by the second stage of a detector, which
# also moves the boxes once more.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "The five best proposals of three images (upper row), with their objectness in percent, and the ground truth (lower row).", "name": "rpn-best"}}
found = [d.to("cpu") for d in exp.predict(sample)]
draw.grid([draw.boxes(pictures[i], found[i].boxes[:5], width=2, scale=zoom,
                      labels=[f"{100 * s:.0f}" for s in found[i].scores[:5].tolist()])
           for i in shown]
          + [draw.boxes(pictures[i], targets[i].boxes, width=2, scale=zoom,
                        colors=[draw.colour(c) for c in targets[i].labels.tolist()],
                        labels=[sample.class_names[c]
                                for c in targets[i].labels.tolist()])
             for i in shown], len(shown))

# %% [markdown]
# ## Proposals for Fast R-CNN
#
# {doc}`fast_rcnn` reads its proposals from a file. This call writes one, for the
# training and the validation images.

# %% tags=["nbval-ignore-output"]
file = make_proposals(model, data_root, f"{output}/proposals.npz",
                      weights=exp.checkpoint, profile=profile, device=device)

# %% [markdown]
# ## Speed and size

# %% tags=["hide-input", "nbval-ignore-output"]
exp.benchmark()

# %% [markdown]
# ## The published models
#
# {doc}`The family's page </book/zoo/rpn>` lists all of them, with their recipes.
#
# ```{zoo-table} rpn
# :only: rpn_r50*
# ```
#
# ## On COCO
#
# This chapter trains the published model where there are GPUs and COCO:
#
# ```bash
# python -m workflow.chapter rpn -p profile coco -p data_root /data/coco -p gpus 8
# ```
#
# ## Exercises
#
# 1. Evaluate the trained model with `nms_threshold` 0.5 and 1.0
#    (`detcore.evaluate(..., nms_threshold=...)`). Which of the two costs recall of the
#    first 100 proposals, and why?
# 2. Train `Experiment(model, options=dict(anchor_scale=8))`, the size of anchors
#    published for COCO. Which objects of Pocket Zoo lose their positive anchors?
# 3. Set `low_quality=None` in the `IoUMatcher` of `RPNHead` and count the positive
#    anchors per object. What does the figure of the best IoU predict?
#
# ## Summary
#
# RPN predicts an objectness and four offsets for each anchor of a feature pyramid.
# Anchors are labelled by IoU, with 0.7 and 0.3 as thresholds and the best anchor of
# each object always positive, and a balanced sample of them trains. Ordering and moving
# the anchors is what lets a few proposals cover most objects.
#
# ## How to cite
#
# ```{cite-family} rpn
# ```
#
# ## Where the numbers come from

# %% tags=["hide-input", "nbval-ignore-output"]
exp.provenance()
