# %% [markdown]
# # Faster R-CNN
#
# Fast R-CNN classified regions quickly, but the regions came from a slow program that knew nothing of the network.
# Faster R-CNN lets the network find them itself.
# A small proposal head reads the same feature maps as the RoI head, so that a proposal costs almost nothing.
# The first stage says "there is something here" and hands over a rough box.
# The second stage looks at that box alone, names the object and moves the box a second time.
# Both stages and the backbone are trained together, in one pass, by the sum of four losses.
#
# Shaoqing Ren, Kaiming He, Ross Girshick, Jian Sun:
# [Faster R-CNN: Towards real-time object detection with region proposal networks](https://arxiv.org/abs/1506.01497),
# 2015. The method stands in `detcore/methods/faster_rcnn.py`; its two halves have chapters of their own,
# {doc}`rpn` and {doc}`fast_rcnn`.

# %% tags=["parameters"]
profile = "pocket"
model = "faster-rcnn_r50_fpn_1x_coco"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = None
output = "runs/faster_rcnn"
records = "build/records"

# %%
import pandas as pd
import torch

from detcore import benchmark, create_model, draw, evaluate, get_model_entry, train
from detcore.data.loader import build_loader
from detcore.engine.common import load_data, pick_device
from detcore.ops import boxes as box
from detcore.ops.regions import of_class

# %% [markdown]
# ## Training both stages at once
#
# The losses of the first stage carry `rpn` in their name. They fall first: telling objects from background is the
# easier task. The second stage's box loss may even rise at the beginning: the better the proposals, the more of them
# are positive and count.

# %% tags=["nbval-ignore-output"]
trained = train(model, data_root, profile=profile, output=output, steps=steps, seed=seed, device=device, gpus=gpus,
                resume=True)
trained.record.write(f"{records}/{model}.{profile}.train.json")
draw.losses(trained.record.curves)

# %% [markdown]
# ## One set of maps, two heads
#
# The trained detector looks at one batch of the validation set. Its feature maps are computed once.
# The upper row shows the strength of the features on the four finest levels of one image.
# The lower row shows what the first stage reads out of these very maps: how likely each cell is to belong to an object,
# on the level of the object's size. The second stage will cut its regions out of the same maps.

# %% tags=["nbval-ignore-output"]
recipe = get_model_entry(model).recipe_for(profile)
data = load_data(data_root, recipe)
batch = next(iter(build_loader(data, 16 if profile == "pocket" else 2, preprocess=recipe.preprocess)))
batch = batch.to(pick_device(device))
images = recipe.preprocess(batch.images, batch.sizes)
detector = create_model(model, weights=trained.checkpoint, profile=profile).to(images.tensor.device).eval()

pictures = [draw.pixels(images, i, recipe.preprocess) for i in range(len(images))]
scale = 256 / max(images.tensor.shape[2:])
one = max(range(len(images)), key=lambda i: len(batch.targets[i].boxes))
with torch.no_grad():
    features = detector.features(images.tensor)
    objectness = [logit.sigmoid().amax(1) for logit in detector.rpn_head(features)[0]]
draw.grid([draw.heat(pictures[one], f[one].norm(dim=0), scale=scale, alpha=0.8) for f in features[:4]]
          + [draw.heat(pictures[one], o[one], scale=scale) for o in objectness[:4]])

# %% [markdown]
# How the weights are shared out: both heads stand on the same backbone and pyramid, and the proposal head is tiny.

# %%
parts = {"backbone": detector.backbone, "feature pyramid": detector.neck,
         "first stage: proposal head": detector.rpn_head, "second stage: RoI head": detector.roi_head}
pd.DataFrame({"parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}})

# %% [markdown]
# ## From proposal to detection
#
# Left: the ten best proposals of the first stage. They have no class, and several share an object.
# Middle: the same ten boxes after the second stage has moved them, in the colour of the class that it found.
# Right: what remains of all proposals after weak scores are dropped and duplicates are suppressed.

# %% tags=["nbval-ignore-output"]
with torch.no_grad():
    proposals = detector.rpn_head.proposals(features, images)
    rois, image = proposals.boxes.flatten(0, 1), torch.arange(len(images)).repeat_interleave(proposals.boxes.shape[1])
    head, pooled = detector.roi_head.bbox_head, detector.roi_head.region_features(features, rois, image.to(rois.device))
    logits, deltas = head(pooled)
score, label = logits.softmax(1)[:, :-1].max(1)
refined = head.decode(rois, of_class(deltas.unflatten(1, (-1, 4)), label)).view_as(proposals.boxes)
score, label = score.view_as(proposals.scores), label.view_as(proposals.scores)
detections = detector.predict(images)

draw.grid([draw.boxes(pictures[one], proposals.boxes[one, :10], scale=1.4 * scale, width=2, colors="white"),
           draw.boxes(pictures[one], refined[one, :10], scale=1.4 * scale, width=2,
                      colors=[draw.colour(c) for c in label[one, :10].tolist()]),
           draw.detections(detections[one], pictures[one], scale=1.4 * scale)], columns=3)

# %% [markdown]
# One object in detail. Its proposals above IoU 0.5 with the ground truth, before the second stage and after it, with
# the ground truth in white. A loose bundle becomes a tight one.

# %% tags=["nbval-ignore-output"]
overlap = [box.pairwise_iou(p, t.boxes) for p, t in zip(proposals.boxes, batch.targets)]
which = int((overlap[one] > 0.5).sum(0).argmax())
near, gt_box = overlap[one][:, which] > 0.5, batch.targets[one].boxes[which:which + 1]
draw.grid([draw.boxes(pictures[one], torch.cat([gt_box, b[one][near]]), scale=1.4 * scale, width=2,
                      colors=["white"] + [draw.PALETTE[0]] * int(near.sum())) for b in (proposals.boxes, refined)])

# %% [markdown]
# ## What the second stage adds
#
# Every proposal that overlaps an object by at least 0.3, in all images of the batch: its IoU with that object as it
# came from the first stage, and after the second. Nearly the whole heap moves to the right. A few boxes get worse: a
# proposal between two animals may be drawn to either.

# %% tags=["nbval-ignore-output"]
before, after = [], []
for p, r, v, target in zip(proposals.boxes, refined, proposals.valid, batch.targets):
    if len(target.boxes):
        best, index = box.pairwise_iou(p[v], target.boxes).max(1)
        before.append(best[best > 0.3])
        after.append(box.iou(r[v], target.boxes[index])[best > 0.3])
before, after = torch.cat(before), torch.cat(after)
draw.histogram({"proposals": before, "after the second stage": after}, bins=torch.linspace(0, 1, 41),
               x="IoU with the object")

# %% [markdown]
# The same as recall: the share of the objects that have a box of at least that IoU, be its class right or not.
# The first stage finds almost every object roughly. At high IoU it is the second stage that delivers.

# %% tags=["nbval-ignore-output"]
def recall(boxes):
    """Share of objects whose best box reaches each IoU; `boxes` are those of each image."""
    best = torch.cat([box.pairwise_iou(t.boxes, b).amax(1) for b, t in zip(boxes, batch.targets) if len(t.boxes)])
    return ious, [(best >= iou).float().mean().item() for iou in ious]


ious = torch.linspace(0.3, 1, 36)
draw.lines({"proposals": recall(proposals.boxes), "after the second stage": recall(refined),
            "10 best proposals": recall(proposals.boxes[:, :10])}, x="IoU", y="recall")

# %% [markdown]
# ## Suppression
#
# All refined boxes of one image with a score above 0.05 on the left, what non-maximum suppression leaves on the right.
# Within a class, a box goes if it overlaps a better one by more than half.

# %% tags=["nbval-ignore-output"]
strong = score[one] > 0.05
draw.grid([draw.boxes(pictures[one], b, scale=1.4 * scale, colors=[draw.colour(c) for c in labels.tolist()])
           for b, labels in ((refined[one][strong], label[one][strong]),
                             (detections[one].boxes, detections[one].labels))])

# %% [markdown]
# ## Evaluation

# %% tags=["nbval-ignore-output"]
result = evaluate(model, data_root, weights=trained.checkpoint, profile=profile, device=device)
result.record.write(f"{records}/{model}.{profile}.evaluate.json")
pd.DataFrame({kind: r.metrics for kind, r in result.results.items()}).T.round(3)

# %% tags=["nbval-ignore-output"]
draw.precision_recall(result["bbox"])

# %%
assert profile != "pocket" or steps is not None or result["bbox"].headline >= 0.35

# %% [markdown]
# Detections above, ground truth below.

# %% tags=["nbval-ignore-output"]
draw.grid([draw.detections(d, p, scale=scale) for d, p in zip(detections[:3], pictures)]
          + [draw.boxes(p, t.boxes, scale=scale, width=2) for t, p in zip(batch.targets[:3], pictures)],
          columns=min(3, len(images)))

# %% [markdown]
# ## Speed and size

# %% tags=["nbval-ignore-output"]
timed = benchmark(model, data_root, weights=trained.checkpoint, profile=profile, device=device,
                  images=2 if steps else 50 if profile == "pocket" else 2000, say=None)
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
# The family is the largest of the zoo: other backbones, features of one map (C4, DC5), other box losses, hard example
# mining, soft suppression, an FCOS head in the first stage. {doc}`Its page </book/zoo/faster_rcnn>` lists them all.
#
# ```{zoo-table} faster_rcnn
# :only: faster-rcnn_r50*
# ```
#
# ## On COCO
#
# ```bash
# papermill notebooks/faster_rcnn.ipynb out.ipynb -p profile coco -p data_root /data/coco -p gpus 8
# ```
