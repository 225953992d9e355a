# %% [markdown]
# # Fast R-CNN
#
# R-CNN cut every candidate region out of the picture and ran a network on each: two thousand runs for one picture.
# Fast R-CNN runs the network once, on the whole picture, and cuts the regions out of its feature map instead. A region
# of any size becomes a small map of fixed size, and a head of two layers tells its class and moves its box. Class and
# box are learned together, with one loss. Where the regions come from is not its business: they are read from a file,
# here the one that the chapter on RPN has written.
#
# Ross Girshick: [Fast R-CNN](https://arxiv.org/abs/1504.08083), 2015. Regions are read as in Kaiming He, Georgia
# Gkioxari, Piotr Dollár, Ross Girshick: [Mask R-CNN](https://arxiv.org/abs/1703.06870), 2017 (RoIAlign). The method
# stands in `detcore/methods/fast_rcnn.py`.

# %% tags=["parameters"]
profile = "pocket"
model = "fast-rcnn_r50_fpn_1x_coco"
data_root = "data/pocket"
proposals = "runs/rpn/proposals.npz"
device = None
gpus = 1
seed = 0
steps = None
output = "runs/fast_rcnn"
records = "build/records"

# %%
import pandas as pd
import torch

from detcore import benchmark, create_model, draw, evaluate, get_model_entry, train
from detcore.data.loader import build_loader
from detcore.detectors import batch_proposals
from detcore.engine.common import load_data, pick_device
from detcore.ops import boxes as box
from detcore.ops.regions import of_class

# %% [markdown]
# ## Training
#
# One call trains the model by its recipe, on the proposals of the file. Look at three curves: `loss_cls` for the class
# of a region, `loss_bbox` for its box, and their sum.

# %% tags=["nbval-ignore-output"]
trained = train(model, data_root, profile=profile, proposals=proposals, output=output, steps=steps, seed=seed,
                device=device, gpus=gpus, resume=True)
trained.record.write(f"{records}/{model}.{profile}.train.json")
draw.losses(trained.record.curves)

# %% [markdown]
# ## Regions and their levels
#
# The best proposals of three pictures. Their colour is the level of the pyramid that they are read from: small regions
# from the fine map, large ones from a coarse map, so that every region covers a like number of cells. The rule is made
# for COCO's sizes: a region of less than 112 x 112 pixels belongs to the finest level. In the small pictures of Pocket
# Zoo that is nearly every region.

# %% tags=["nbval-ignore-output"]
recipe = get_model_entry(model).recipe_for(profile)
data = load_data(data_root, recipe, proposals=proposals)
batch = next(iter(build_loader(data, 16 if profile == "pocket" else 2, preprocess=recipe.preprocess)))
batch = batch.to(pick_device(device))
images = recipe.preprocess(batch.images, batch.sizes)
detector = create_model(model, weights=trained.checkpoint, profile=profile).to(images.tensor.device).eval()
head, pool = detector.roi_head, detector.roi_head.bbox_roi_extractor
pictures = [draw.pixels(images, i, recipe.preprocess) for i in range(len(images))]
shown = sorted(range(len(images)), key=lambda i: -len(batch.targets[i].boxes))[:3]
zoom = 256 / max(pictures[shown[0]].shape)

given = [target.proposals for target in batch.targets]
draw.grid([draw.boxes(pictures[i], given[i][:20], scale=zoom,
                      colors=[draw.colour(k) for k in pool.level(given[i][:20]).tolist()]) for i in shown], 3)

# %% [markdown]
# ## RoIAlign
#
# A region is divided into 7 x 7 bins. Each bin takes the mean of a few points of the feature map, read between cells by
# bilinear interpolation. Nothing is rounded, so the pooled map stays exactly where the region is. (RoI pooling, its
# predecessor, rounded every border to whole cells and lost up to half a cell.)
#
# On the left the bins over the picture. In the middle the feature map that they read, as the mean strength of its
# channels. On the right the pooled map of 7 x 7: the shape of the animal is still there.

# %% tags=["nbval-ignore-output"]
with torch.no_grad():
    features = detector.features(images.tensor)


def bins(region):
    """The boxes [49, 4] of a region's bins."""
    size = pool.output_size
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    corners = torch.stack([x, y, x + 1, y + 1], -1).reshape(-1, 4).to(region) / size
    return region[:2].repeat(2) + corners * (region[2:] - region[:2]).repeat(2)


row = []
for i in shown:
    region = max(batch.targets[i].boxes, key=lambda b: float((b[2:] - b[:2]).prod()))
    pooled = pool(features, region[None], torch.tensor([i], device=region.device))[0]
    strength = features[int(pool.level(region[None]))][i].norm(dim=0)
    row += [draw.boxes(pictures[i], bins(region), scale=zoom), draw.heat(pictures[i], strength, scale=zoom, alpha=0.8),
            draw.heat(pictures[i][:7, :7], pooled.norm(dim=0), scale=44, alpha=1.0)]
draw.grid(row, 3)

# %% [markdown]
# ## Regions that train
#
# A region is positive where it overlaps an object by half or more; all others are background. As most are background, a
# sample trains, with a quarter of positives at most. Objects' own boxes are added to the proposals, so that even a new
# network sees some perfect regions. Positive samples in the colour of their class, some of the background in dark grey.

# %% tags=["nbval-ignore-output"]
torch.manual_seed(seed)
samples = head.sample(features, batch_proposals(given), batch.targets)


def sampled(i):
    """The sampled regions of a picture, positives on top."""
    positive, background = samples.positive[i], (samples.valid & ~samples.positive)[i]
    tones = [draw.colour(c) for c in samples.labels[i][positive].tolist()]
    boxes = torch.cat([samples.boxes[i][positive], samples.boxes[i][background][:12]])
    return draw.boxes(pictures[i], boxes, scale=zoom, colors=tones + ["#444444"] * (len(boxes) - len(tones)))


draw.grid([sampled(i) for i in shown], 3)

# %% [markdown]
# How well do the sampled positives fit their objects, and how well do they after the head has moved them? The second
# heap lies further right: that is what the box loss has taught.

# %% tags=["nbval-ignore-output"]
regions = samples.regions()
with torch.no_grad():
    logits, deltas = head.bbox_head(head.region_features(features, regions.boxes, regions.image))
proposed = regions.positive & ~samples.is_gt.flatten()[regions.index]
moved = head.bbox_head.decode(regions.boxes, of_class(deltas.unflatten(1, (-1, 4)), regions.labels))


def overlap(boxes):
    """[n] intersection over union of the boxes of proposals, each with the object that it is for."""
    return box.iou(boxes, regions.gt_boxes)[proposed].cpu()  # an object's own box needs no moving


draw.histogram({"proposals": overlap(regions.boxes), "moved": overlap(moved)}, bins=25, x="IoU with the object",
               y="regions")

# %% [markdown]
# ## One loss for two tasks
#
# The loss of a region with classes $p$ and box offsets $t$ is
#
# $$L = -\log p_u + [u \ge 1] \, \lvert t^u - v \rvert$$
#
# where $u$ is the true class (0 for background) and $v$ are the offsets that would be right. Background has no box, so
# only positives count in the second term. The losses of this batch:

# %% tags=["nbval-ignore-output"]
values = head.bbox_head.loss(logits, deltas, regions)
pd.DataFrame({name: [value.item()] for name, value in values.items()}, index=["batch"]).round(3)

# %% [markdown]
# ## Evaluation
#
# Average precision on the validation set, as COCO defines it, then precision over recall.

# %% tags=["nbval-ignore-output"]
result = evaluate(model, data_root, weights=trained.checkpoint, profile=profile, proposals=proposals, device=device)
result.record.write(f"{records}/{model}.{profile}.evaluate.json")
pd.DataFrame({kind: r.metrics for kind, r in result.results.items()}).T.round(3)

# %% tags=["nbval-ignore-output"]
draw.precision_recall(result["bbox"])

# %%
assert profile != "pocket" or steps is not None or result["bbox"].headline >= 0.35

# %% [markdown]
# Detections above, ground truth below.

# %% tags=["nbval-ignore-output"]
detections = detector.predict(images, proposals=given)
for one in detections:
    one.class_names = data.class_names
draw.grid([draw.detections(detections[i], pictures[i], scale=zoom) for i in shown]
          + [draw.boxes(pictures[i], batch.targets[i].boxes, scale=zoom) for i in shown], 3)

# %% [markdown]
# ## Speed and size
#
# The time is that of the detector alone; the proposals are there already. Faster R-CNN, in the next chapter, makes them
# on the way.

# %% tags=["nbval-ignore-output"]
timed = benchmark(model, data_root, weights=trained.checkpoint, profile=profile, proposals=proposals, device=device,
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
# {doc}`The page of the family </book/zoo/fast_rcnn>` has their recipes.
#
# ```{zoo-table} fast_rcnn
# :only: fast-rcnn_r50*
# ```
#
# ## On COCO
#
# This chapter trains the published model on a machine with GPUs and COCO, with the proposals of the RPN chapter there:
#
# ```bash
# papermill notebooks/rpn.ipynb out.ipynb -p profile coco -p data_root /data/coco -p gpus 8
# papermill notebooks/fast_rcnn.ipynb out.ipynb -p profile coco -p data_root /data/coco -p gpus 8
# ```
