# %% [markdown]
# # Cascade R-CNN
#
# When does a box count as a hit? An RoI head trained with IoU 0.5 as its bar learns to be content with sloppy boxes.
# With 0.7 as its bar it would learn to be exact, but hardly any proposal is that good, and a head that has seen few
# positives learns little.
# Cascade R-CNN gets around this with three heads in a row.
# The first has the bar at 0.5 and improves the proposals; for the second, which gets these better boxes, 0.6 is no
# longer too much to ask; the third asks for 0.7.
# Every stage sees boxes of the quality that it is trained for, in training and at test time.
# Cascade Mask R-CNN adds a mask head to every stage.
#
# Zhaowei Cai, Nuno Vasconcelos:
# [Cascade R-CNN: Delving into high quality object detection](https://arxiv.org/abs/1712.00726), 2018.
# The method stands in `detcore/methods/cascade_rcnn.py`.

# %% tags=["parameters"]
profile = "pocket"
model = "cascade-rcnn_r50_fpn_1x_coco"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = None
output = "runs/cascade_rcnn"
records = "build/records"

# %%
import pandas as pd
import torch

from detcore import benchmark, create_model, draw, evaluate, get_model_entry, train
from detcore.data.loader import build_loader
from detcore.engine.common import load_data, pick_device
from detcore.methods.cascade_rcnn import STAGE_IOU
from detcore.ops import boxes as box
from detcore.ops.regions import assign_regions, sample_regions
from detcore.structures import Proposals

# %% [markdown]
# ## Training
#
# Each stage has its class loss and its box loss. The losses are weighted 1, 1/2 and 1/4.
# The picture shows the box losses, divided by these weights. The later stages have the larger ones: they measure a
# mistake with a finer ruler, because the mistakes that are left for them are smaller.

# %% tags=["nbval-ignore-output"]
trained = train(model, data_root, profile=profile, output=output, steps=steps, seed=seed, device=device, gpus=gpus,
                resume=True)
trained.record.write(f"{records}/{model}.{profile}.train.json")
curves = trained.record.curves
draw.lines({f"stage {s + 1}": (curves["step"], [v * 2**s for v in curves[f"s{s}.loss_bbox"]]) for s in range(3)},
           x="step", y="box loss", log_y=True)

# %% [markdown]
# ## Through the stages, by hand
#
# The trained detector on a batch of the validation set. This loop is the whole of the cascade at test time: pool the
# regions, ask the head, move the boxes, and hand them on.

# %% tags=["nbval-ignore-output"]
recipe = get_model_entry(model).recipe_for(profile)
data = load_data(data_root, recipe)
batch = next(iter(build_loader(data, 32 if profile == "pocket" else 2, preprocess=recipe.preprocess)))
batch = batch.to(pick_device(device))
images = recipe.preprocess(batch.images, batch.sizes)
detector = create_model(model, weights=trained.checkpoint, profile=profile).to(images.tensor.device).eval()
roi_head = detector.roi_head

with torch.no_grad():
    features = detector.features(images.tensor)
    proposals = detector.rpn_head.proposals(features, images)
    shape = proposals.boxes.shape
    boxes, image = proposals.boxes.flatten(0, 1), torch.arange(shape[0]).repeat_interleave(shape[1])
    image = image.to(boxes.device)
    sizes, stages, scores = box.size_tensor(images.sizes, boxes)[image], [proposals.boxes], []
    for head in roi_head.bbox_head:
        logits, deltas = head(roi_head.bbox_roi_extractor(features, boxes, image))
        boxes = box.clip(head.decode(boxes, deltas), sizes)
        stages.append(boxes.view(shape))
        scores.append(logits.softmax(1).view(*shape[:2], -1))
names = ["proposals", "after stage 1", "after stage 2", "after stage 3"]

# %% [markdown]
# ## One object, stage by stage
#
# All proposals that overlap one object by at least 0.4, then the same boxes after each stage, with the ground truth in
# white.
# The first stage does the coarse work. The others pull the bundle together.

# %% tags=["nbval-ignore-output"]
pictures = [draw.pixels(images, i, recipe.preprocess) for i in range(len(images))]
scale = 256 / max(images.tensor.shape[2:])
overlaps = [box.pairwise_iou(b, t.boxes) for b, t in zip(stages[0], batch.targets)]
bundles = [(int((o[:, k] > 0.4).sum()), i, k) for i, o in enumerate(overlaps) for k in range(o.shape[1])]
_, one, k = max(bundles)
near, gt_box = overlaps[one][:, k] > 0.4, batch.targets[one].boxes[k:k + 1]
draw.grid([draw.boxes(pictures[one], torch.cat([gt_box, b[one][near]]), scale=1.2 * scale,
                      colors=["white"] + [draw.colour(s)] * int(near.sum())) for s, b in enumerate(stages)])

# %% [markdown]
# ## What enters each stage
#
# The IoU with the ground truth of all regions that begin with an IoU of 0.3 or more, in all images of the batch.
# The first curve is what the first head gets, the second what the second head gets, and so on.
# The heap moves to the right from stage to stage, by less each time.

# %% tags=["nbval-ignore-output"]
paths = []
for i, target in enumerate(batch.targets):
    if len(target.boxes):
        first, index = overlaps[i].max(1)
        keep = (first > 0.3) & proposals.valid[i]
        paths.append(torch.stack([box.iou(s[i], target.boxes[index])[keep] for s in stages]))
paths = torch.cat(paths, 1)
draw.histogram({name: iou for name, iou in zip(names, paths)}, bins=torch.linspace(0, 1, 41), x="IoU with the object")

# %% [markdown]
# The same regions, by the IoU that they began with. A stage makes boxes better where its curve lies above the dotted
# diagonal. Poor boxes gain most; boxes that were very good from the start have nothing left to gain.

# %% tags=["nbval-ignore-output"]
edges = torch.linspace(0.3, 0.9, 13)
inside = [(paths[0] >= low) & (paths[0] < high) for low, high in zip(edges, edges[1:])]
figure = draw.lines({name: ((edges[1:] + edges[:-1]) / 2, [iou[chosen].mean().item() for chosen in inside])
                     for name, iou in zip(names[1:], paths[1:])}, x="IoU of the proposal", y="IoU after the stage")
figure.axes[0].plot([0.3, 0.9], [0.3, 0.9], ":", color="gray")
figure

# %% [markdown]
# ## Enough positives for every bar
#
# How many positives an image has, if the bar is at 0.5, 0.6 or 0.7, counted among the boxes that each stage gets.
# Follow the diagonal: that is what each stage trains with. In the first row is the trouble of a single head with a high
# bar, and in the others the way out. The objects' own boxes, which training adds, are not counted.

# %% tags=["nbval-ignore-output"]
def positives(iou):
    """Regions of an image that reach an IoU, in what each stage gets."""
    return [(s >= iou).sum().item() / len(images) for s in paths[:3]]


pd.DataFrame({f"IoU ≥ {iou}": positives(iou) for iou in STAGE_IOU}, index=names[:3]).round(1)

# %% [markdown]
# The same during training. A stage learns from a fixed number of sampled regions, a quarter of them positive at most,
# and the objects' own boxes are among them. All three stages come close to the quarter, though each asks for more
# than the one before: no head goes short of positives.

# %% tags=["nbval-ignore-output"]
entering = [proposals]
for boxes in stages[1:3]:
    entering.append(Proposals(boxes, proposals.scores, proposals.valid))
sampled = [sample_regions(assign_regions(p, batch.targets, matcher, detector.num_classes), roi_head.sampler)
           for p, matcher in zip(entering, roi_head.matchers)]
draw.bars({f"stage {s + 1}, IoU {iou}": x.positive.sum().item() / x.valid.sum().item()
           for s, (iou, x) in enumerate(zip(STAGE_IOU, sampled))}, x="share of positives")

# %% [markdown]
# ## Evaluation
#
# The last row is the detector. For the others the cascade is cut short after one or two stages, with the same weights.
# At test time the class scores of all stages that have run are averaged.
# The gain is small at AP50 and largest at AP75, which asks for more exact boxes.

# %% tags=["nbval-ignore-output"]
whole, results = roi_head.bbox_head, {}
for count in (1, 2):
    roi_head.bbox_head = whole[:count]
    results[f"stages 1 to {count}"] = evaluate(detector, data_root, recipe=recipe, device=device,
                                               batch_size=recipe.batch_per_gpu)
roi_head.bbox_head = whole
result = evaluate(model, data_root, weights=trained.checkpoint, profile=profile, device=device)
results["stages 1 to 3"] = result
result.record.write(f"{records}/{model}.{profile}.evaluate.json")
pd.DataFrame({name: r["bbox"].metrics for name, r in results.items()}).T.round(3)

# %% [markdown]
# Precision over recall at IoU 0.75, for the cascade cut short and whole.

# %% tags=["nbval-ignore-output"]
draw.lines({name: (torch.linspace(0, 1, 101), r["bbox"].curve(0.75)) for name, r in results.items()},
           x="recall", y="precision")

# %%
assert profile != "pocket" or steps is not None or result["bbox"].headline >= 0.35

# %% [markdown]
# Detections above, ground truth below.

# %% tags=["nbval-ignore-output"]
detections = detector.predict(images)
shown = sorted(range(len(images)), key=lambda i: -len(batch.targets[i].boxes))[1:4]
draw.grid([draw.detections(detections[i], pictures[i], scale=scale) for i in shown]
          + [draw.boxes(pictures[i], batch.targets[i].boxes, scale=scale, width=2) for i in shown], columns=len(shown))

# %% [markdown]
# ## Speed and size
#
# Three heads instead of one: more parameters, and each region is pooled three times. Backbone and proposals are as in
# {doc}`faster_rcnn`.

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
# {doc}`The family's page </book/zoo/cascade_rcnn>` lists all of them, with and without masks.
#
# ```{zoo-table} cascade_rcnn
# :only: cascade*_r50*
# ```
#
# ## On COCO
#
# The second line trains Cascade Mask R-CNN.
#
# ```bash
# papermill notebooks/cascade_rcnn.ipynb out.ipynb -p profile coco -p data_root /data/coco -p gpus 8
# detcore train cascade-mask-rcnn_r50_fpn_1x_coco --profile coco --data-root /data/coco --gpus 8
# ```
