# %% [markdown]
# # RPN: region proposals
#
# Detectors once took their candidate regions from a separate program, which looked at colours and edges and needed
# two seconds an image. The detector itself had become faster than that. The *region proposal network* makes the
# candidates from the features that the detector computes anyway. It slides over the feature map. At each cell it
# looks at a few reference boxes, the *anchors*, says of each whether it holds any object, and how to move it onto
# that object. The best boxes are the proposals. What kind of object it is does not matter yet.
#
# Shaoqing Ren, Kaiming He, Ross Girshick, Jian Sun: [Faster R-CNN: towards real-time object detection with region
# proposal networks](https://arxiv.org/abs/1506.01497), 2015. On a feature pyramid: Tsung-Yi Lin and others,
# [Feature pyramid networks for object detection](https://arxiv.org/abs/1612.03144), 2017. The method stands in
# `detcore/methods/rpn.py`.

# %% tags=["parameters"]
profile = "pocket"
model = "rpn_r50_fpn_1x_coco"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = None
output = "runs/rpn"
records = "build/records"

# %%
import pandas as pd
import torch

from detcore import benchmark, create_model, draw, evaluate, get_model_entry, train
from detcore.data.loader import build_loader
from detcore.engine.common import load_data, pick_device
from detcore.engine.evaluate import make_proposals
from detcore.ops import boxes as box
from detcore.ops.anchors import per_anchor
from detcore.ops.matching import BACKGROUND, IGNORE

# %% [markdown]
# ## Training
#
# One call trains the model by its recipe. There are two losses: is there an object at the anchor, and how far off
# is its box.

# %% tags=["nbval-ignore-output"]
trained = train(model, data_root, profile=profile, output=output, steps=steps, seed=seed, device=device, gpus=gpus,
                resume=True)
trained.record.write(f"{records}/{model}.{profile}.train.json")
draw.losses(trained.record.curves)

# %% [markdown]
# ## Anchors
#
# Each level of the pyramid has anchors of one size and three shapes at each of its cells. Here are the anchors of
# one cell near the middle, on each of the five levels. Together they cover objects of every size that the picture
# can hold.

# %% tags=["nbval-ignore-output"]
recipe = get_model_entry(model).recipe_for(profile)
data = load_data(data_root, recipe)
batch = next(iter(build_loader(data, 16 if profile == "pocket" else 2, preprocess=recipe.preprocess)))
batch = batch.to(pick_device(device))
images = recipe.preprocess(batch.images, batch.sizes)
detector = create_model(model, weights=trained.checkpoint, profile=profile).to(images.tensor.device).eval()
head = detector.bbox_head
with torch.no_grad():
    logits, deltas = outputs = head(detector.features(images.tensor))
grids, counts = head.anchors(logits), [m[0].numel() for m in logits]
pictures = [draw.pixels(images, i, recipe.preprocess) for i in range(len(images))]
shown = sorted(range(len(images)), key=lambda i: -len(batch.targets[i].boxes))[:3]
zoom = 256 / max(pictures[shown[0]].shape)

middle = [(m.shape[2] // 2 * m.shape[3] + m.shape[3] // 2) * head.anchors.counts[0] for m in logits]
cell = torch.cat([grid[start:start + head.anchors.counts[0]] for grid, start in zip(grids, middle)])
levels = torch.arange(len(grids)).repeat_interleave(head.anchors.counts[0]).tolist()
draw.boxes(pictures[shown[0]], cell, colors=[draw.colour(k) for k in levels], width=2, scale=1.5 * zoom)

# %% tags=["nbval-ignore-output"]
pd.DataFrame({"stride": head.anchors.strides, "cells": [c // head.anchors.counts[0] for c in counts], "anchors": counts,
              "side of the square anchor": [round(float(s[0].prod().sqrt())) for s in head.anchors.buffers()]},
             index=[f"P{i}" for i in range(2, 7)])

# %% [markdown]
# ## Which anchors are right
#
# To train, each anchor needs an answer. It is *positive* where it overlaps an object by 0.7 or more (intersection
# over union), and *negative* below 0.3. In between it is ignored and does not train: to call it wrong would be
# unfair, to call it right as well. An object that no anchor overlaps so well keeps the best anchors that it has.
#
# In the upper row the positive anchors of three pictures, in the colours of their levels, on white boxes of the
# objects.
# In the lower row a quarter of those that are ignored.

# %% tags=["nbval-ignore-output"]
anchors, matched, gt_boxes = head.assign(logits, images, batch.targets)
level = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(matched.device)


def chosen_anchors(i, chosen):
    """A picture with some of its anchors, in the colours of their levels."""
    tones = [draw.colour(k) for k in level[chosen].tolist()] + ["white"] * len(batch.targets[i].boxes)
    return draw.boxes(pictures[i], torch.cat([anchors[chosen], batch.targets[i].boxes]), colors=tones, scale=zoom)


quarter = torch.arange(len(level), device=level.device) % 4 == 0
draw.grid([chosen_anchors(i, matched[i] >= 0) for i in shown]
          + [chosen_anchors(i, (matched[i] == IGNORE) & quarter) for i in shown], 3)

# %% [markdown]
# Positives are rare. A random sample of anchors trains, at most half of it positive; without the sample, the loss
# would be about background alone. The table has the means of an image.

# %% tags=["nbval-ignore-output"]
positive, negative = head.sampler(matched)
n, kinds = len(images), ["positive", "negative", "ignored"]
pd.DataFrame({"all anchors": [int((matched >= 0).sum()) / n, int((matched == BACKGROUND).sum()) / n,
                              int((matched == IGNORE).sum()) / n],
              "sampled": [int(positive.sum()) / n, int(negative.sum()) / n, 0]}, index=kinds).round(1)

# %% [markdown]
# ## Objectness
#
# What the trained network says: for each cell the best probability of its three anchors, level by level, fine to
# coarse. Each map is scaled to its own brightest cell. Small animals light up on the left, larger ones in the
# middle; no
# animal here is large enough for the last maps. The network was never told which level to use; the assignment did
# that.

# %% tags=["nbval-ignore-output"]
draw.grid([draw.heat(pictures[i], m[i].sigmoid().amax(0), scale=zoom / 2) for i in shown for m in logits], 5)

# %% [markdown]
# ## From anchors to proposals
#
# The best anchors, as they lie on their grid; then moved by their offsets; then after non-maximum suppression,
# which drops each box that overlaps a better one of its level by more than 0.7. The thirty best of each are drawn,
# the objects in white. Moving pulls the boxes onto the animals. Suppression removes doubles, so that thirty boxes
# reach further.

# %% tags=["nbval-ignore-output"]
scores = torch.cat([per_anchor(m, 1)[..., 0] for m in logits], 1)
offsets = torch.cat([per_anchor(m, 4) for m in deltas], 1)
best = scores.topk(30, 1).indices
moved = box.decode(anchors[best], box.gather(offsets, best))
kept = head.select(outputs, images, head.test_proposals).boxes[:, :30]


def over_objects(i, boxes):
    """Boxes over a picture, with the objects in white on top."""
    tones = ["white"] * len(batch.targets[i].boxes) + [draw.colour(1)] * len(boxes)
    return draw.boxes(pictures[i], torch.cat([batch.targets[i].boxes, boxes]), colors=tones, scale=zoom)


draw.grid([over_objects(i, boxes) for i in shown[:2] for boxes in (anchors[best[i]], moved[i], kept[i])], 3)

# %% [markdown]
# ## Evaluation
#
# Proposals have no class, so they are judged by *average recall* alone: the share of objects that some proposal
# overlaps well enough, averaged over the overlaps 0.5 to 0.95, for the 100, 300 and 1000 best proposals of an
# image, and for 1000 by object size.

# %% tags=["nbval-ignore-output"]
result = evaluate(model, data_root, weights=trained.checkpoint, profile=profile, device=device)
result.record.write(f"{records}/{model}.{profile}.evaluate.json")
pd.DataFrame({"recall": result["proposal"].metrics}).T.round(3)

# %% [markdown]
# How many proposals does it take? The share of objects found at three overlaps, over the number of proposals. At 0.5 a
# few dozen find nearly all objects. At 0.9 even a hundred leave most of them out: the boxes are near, but not exact.
# The second stage of a detector is there to refine them.

# %% tags=["nbval-ignore-output"]
def overlaps(loader):
    """[objects, P] the overlap of each object with the proposals of its image, best proposals first."""
    for batch in loader:
        batch = batch.to(images.tensor.device)
        for proposals, target in zip(detector.predict(recipe.preprocess(batch.images, batch.sizes)), batch.targets):
            overlap = box.pairwise_iou(target.boxes, proposals.boxes)
            yield torch.nn.functional.pad(overlap, (0, most - overlap.shape[1])).cummax(1).values


most = head.test_proposals.post_nms_top_n
best_overlap = torch.cat(list(overlaps(build_loader(data, len(images), preprocess=recipe.preprocess)))).cpu()
recall = {f"IoU {iou}": (range(1, 101), (best_overlap >= iou).float().mean(0)[:100]) for iou in (0.5, 0.7, 0.9)}
draw.lines(recall, x="proposals", y="recall")

# %% [markdown]
# What does suppression do to recall? With few objects in a picture it costs some: of many nearly equal boxes one fits
# best, and it may be dropped. But doubles fill the places of the list, and the second stage of a detector pays for
# each
# of them.

# %% tags=["nbval-ignore-output"]
values = {}
for iou in (0.5, 0.7, 1.0):
    recalls = evaluate(model, data_root, weights=trained.checkpoint, profile=profile, device=device, images=50,
                       nms_threshold=iou)["proposal"].metrics
    values[f"suppression at {iou}" if iou < 1 else "no suppression"] = {"AR100": recalls["AR100"]}
pd.DataFrame(values).T.round(3)

# %%
assert profile != "pocket" or steps is not None or result["proposal"].metrics["AR100"] >= 0.4

# %% [markdown]
# ## For Fast R-CNN
#
# Fast R-CNN takes its proposals from a file. This call writes one for both splits; the next chapter reads it.

# %% tags=["nbval-ignore-output"]
file = make_proposals(model, data_root, f"{output}/proposals.npz", weights=trained.checkpoint, profile=profile,
                      device=device)
print(file)

# %% [markdown]
# ## Speed and size

# %% tags=["nbval-ignore-output"]
timed = benchmark(model, data_root, weights=trained.checkpoint, profile=profile, device=device,
                  images=50 if profile == "pocket" else 2000, say=None)
timed.write(f"{records}/{model}.{profile}.benchmark.json")
pd.DataFrame({
    "parameters (millions)": timed.metrics["parameters"] / 1e6, "GFLOPs": timed.metrics["flops"] / 1e9,
    "inference (ms)": 1000 * timed.speed["inference_mean_s"],
    "training (s a step)": trained.record.speed["training_step_s"],
    "memory (GB)": max(trained.record.memory.values()),
}, index=[profile]).round(3)

# %% [markdown]
# ## The published models
#
# {doc}`The page of the family </book/zoo/rpn>` has their recipes.
#
# ```{zoo-table} rpn
# :only: rpn_r50*
# ```
#
# ## On COCO
#
# This chapter trains the published model on a machine with GPUs and COCO:
#
# ```bash
# papermill notebooks/rpn.ipynb out.ipynb -p profile coco -p data_root /data/coco -p gpus 8
# ```
