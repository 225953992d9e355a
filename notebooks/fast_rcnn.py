# %% [markdown]
# # Fast R-CNN
#
# R-CNN cropped every candidate region from the image and ran a convolutional network on
# each crop, two thousand times per image. Fast R-CNN runs the network once on the whole
# image, pools the features of each region from the shared feature map, and learns the
# class and the box of a region together, with one loss.
#
# Ross Girshick: [Fast R-CNN](https://arxiv.org/abs/1504.08083), 2015. Regions are
# pooled as in Kaiming He, Georgia Gkioxari, Piotr Dollár, Ross Girshick: [Mask
# R-CNN](https://arxiv.org/abs/1703.06870), 2017 (RoIAlign).
#
# ```{figure} ../book/figures/fast_rcnn.svg
# :name: fast-rcnn-architecture
#
# Fast R-CNN with a ResNet-50 and a feature pyramid, at the size published for COCO. The
# new part is highlighted: proposals are pooled from the shared maps to a fixed size,
# and a small head classifies and refines each of them. The proposals come from a file.
# ```

# %% tags=["parameters", "hide-input"]
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

# %% tags=["hide-input"]
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import roi_align

from detcore import draw, evaluate
from detcore.detectors import batch_proposals
from detcore.experiment import Experiment, Table, paired, signed, source, with_interval
from detcore.methods.fast_rcnn import BoxHead
from detcore.ops import boxes as box
from detcore.ops.losses import SmoothL1, l1
from detcore.ops.regions import assign_regions, of_class

run = dict(profile=profile, seed=seed, steps=steps, device=device, gpus=gpus,
           records=records, proposals=proposals)
exp = Experiment(model, data_root, output=output, label="Fast R-CNN", **run)

# %% [markdown]
# ## One loss for two tasks
#
# A head of two fully connected layers predicts for each region the probabilities of the
# $K$ classes and of background, and four box offsets for each class. The loss of a
# region is
#
# $$L = -\log p_u + \lambda \, [u < K] \, L_{\mathrm{loc}}(t^u, v)$$
#
# - $u$ is the true class of the region. The classes are numbered from 0 to $K - 1$, and
#   *background is the last class*, $u = K$; the paper numbers background 0 and writes
#   $[u \ge 1]$.
# - $p_u$ is the probability of that class, a softmax over the $K + 1$ logits, so that
#   the first term is cross-entropy.
# - $[u < K]$ is 1 for a region on an object and 0 for background, which has no box.
# - $t^u$ are the four offsets that the head predicts for class $u$; those of the other
#   classes do not train. $v$ are the offsets that lead from the region to its object,
#   defined as in {doc}`rpn` and divided by their standard deviations, 0.1 for the
#   centre and 0.2 for width and height.
# - $\lambda$ weights the two tasks; it is 1 in the paper and here.
#
# With $d = t^u - v$, the paper's $L_{\mathrm{loc}}$ is the smooth L1 loss, summed over
# the four offsets:
#
# $$\mathrm{smooth}_{L_1}(d) = \begin{cases} 0.5 \, d^2 & |d| < 1 \\
#   |d| - 0.5 & \text{otherwise} \end{cases}$$
#
# It is quadratic near zero, where its gradient is $d$, and linear beyond, so that
# outliers do not dominate. The published configurations, and so this zoo, use L1, whose
# gradient has the same size at every error. What that changes is measured below.

# %% [markdown]
# ## Training
#
# One call trains the model by its recipe, on the proposals of the file.

# %% tags=["hide-input", "nbval-ignore-output"]
trained = exp.train()
trained

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Losses over the steps of the training, on a logarithmic axis: of the classes, of the boxes, and their sum.", "name": "fast-rcnn-training"}}
trained.figure

# %% [markdown]
# ## Pooling a region
#
# RoIAlign divides a region into 7 × 7 bins. Each bin is the mean of a few points of the
# feature map, read between the cells by bilinear interpolation, so that no coordinate
# is rounded. A region of any size and shape becomes a map of fixed size, which fully
# connected layers can take. On a pyramid, a region of width $w$ and height $h$ is read
# from level
#
# $$k = 2 + \left\lfloor \log_2 \frac{\sqrt{w h}}{56} \right\rfloor$$
#
# limited to the levels P2 to P5. Regions with sides up to 112 pixels are read from P2,
# which is nearly all of them in the small images of Pocket Zoo.

# %% tags=["hide-input", "nbval-ignore-output"]
sample = exp.sample(24 if profile == "pocket" else 2)
images, pictures, targets = sample.images, sample.pictures, sample.targets
head, pool = exp.detector.roi_head, exp.detector.roi_head.bbox_roi_extractor
shown = [2, 7, 20] if profile == "pocket" else range(2)
zoom = 360 / pictures[shown[0]].shape[1]
with torch.no_grad():
    features = exp.detector.features(images.tensor)
given = batch_proposals([t.proposals for t in targets])
finest = float((pool.level(given.boxes[given.valid]) == 0).float().mean())

# %% tags=["remove-cell"]
assert profile != "pocket" or finest > 0.85

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "RoIAlign of one object per row, left to right: the region and its 7 × 7 bins; the feature map that it is read from, as the norm over the channels, with the region; the pooled map of 7 × 7, drawn as a square; the image itself pooled in the same way, which shows what part of the object each bin holds.", "name": "fast-rcnn-roialign"}}
def bins(region):
    """The boxes [49, 4] of a region's bins."""
    size = pool.output_size
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    corners = torch.stack([x, y, x + 1, y + 1], -1).reshape(-1, 4).to(region) / size
    return region[:2].repeat(2) + corners * (region[2:] - region[:2]).repeat(2)


panels = []
for i in shown:
    region = targets[i].boxes[box.area(targets[i].boxes).argmax()][None]
    where = torch.tensor([i], device=region.device)
    pooled = pool(features, region, where)[0]
    norm = features[int(pool.level(region))][i].norm(dim=0)
    pixels = torch.from_numpy(pictures[i]).permute(2, 0, 1)[None].float()
    mosaic = roi_align(pixels, [region.cpu()], pool.output_size, aligned=True)[0]
    square = np.zeros((pool.output_size, pool.output_size, 3), np.uint8)
    panels += [draw.boxes(pictures[i], bins(region[0]), scale=zoom, rim=False),
               draw.boxes(draw.heat(pictures[i], norm, scale=zoom, alpha=0.85),
                          region * zoom, scale=1, colors="white", width=2),
               draw.heat(square, pooled.norm(dim=0), scale=40, alpha=1.0),
               Image.fromarray(mosaic.round().byte().permute(1, 2, 0).numpy()).resize(
                   (280, 280), Image.Resampling.NEAREST)]
draw.grid(panels, 4)

# %% tags=["remove-cell"]
assert tuple(pooled.shape[1:]) == (7, 7) and tuple(mosaic.shape) == (3, 7, 7)

# %% [markdown]
# ## Which regions train
#
# A region is positive for the object that it overlaps most if their IoU is 0.5 or more,
# and background otherwise. Background is far more frequent, so a random sample trains,
# with positive regions for at most a quarter of it. The boxes of the objects themselves
# are added to the proposals: even if no proposal fits an object, it trains the head.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Sampled regions of three images: positive ones with the name and in the colour of their class, and a dozen of the background regions in dark grey. Most background regions lie on objects too, but overlap them by less than half.", "name": "fast-rcnn-samples"}}
torch.manual_seed(seed)
samples = head.sample(features, given, targets)
background = samples.valid & ~samples.positive


def sampled(i):
    """The sampled regions of an image, positive ones on top."""
    drawn = draw.boxes(pictures[i], samples.boxes[i][background[i]][:12], width=2,
                       scale=zoom, colors="#404040", rim=False)
    labels = samples.labels[i][samples.positive[i]].tolist()
    return draw.boxes(drawn, samples.boxes[i][samples.positive[i]] * zoom, width=2,
                      scale=1, rim=False, colors=[draw.colour(c) for c in labels],
                      labels=[sample.class_names[c] for c in labels])


draw.grid([sampled(i) for i in shown], len(shown))

# %% tags=["remove-cell"]
assert bool((samples.labels[background] == head.num_classes).all())
assert int(samples.positive.sum(1).max()) <= head.sampler.number // 4
best = torch.cat([box.pairwise_iou(samples.boxes[i][background[i]], t.boxes).amax(1)
                  for i, t in enumerate(targets) if len(t.boxes)])
near = float((best > 0.05).float().mean())
assert float(best.max()) < 0.5
assert not exp.full or profile != "pocket" or near > 0.5

# %% [markdown]
# ## What the box loss teaches
#
# The positive regions before and after the head has moved them. The objects' own boxes
# are left out, since they need no moving.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Positive regions by their IoU with their object, as proposed and after the head has moved them. The second distribution lies further to the right.", "name": "fast-rcnn-refined"}}
regions = samples.regions()
with torch.no_grad():
    maps = head.region_features(features, regions.boxes, regions.image)
    logits, deltas = head.bbox_head(maps)
chosen = regions.positive & ~samples.is_gt.flatten()[regions.index]
offsets = of_class(deltas.unflatten(1, (-1, 4)), regions.labels)
moved = head.bbox_head.decode(regions.boxes, offsets)
overlaps = {name: box.iou(boxes, regions.gt_boxes)[chosen].cpu()
            for name, boxes in (("proposed", regions.boxes), ("moved", moved))}
draw.histogram(overlaps, bins=torch.linspace(0.4, 1, 31), x="IoU with the object",
               y="regions")

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Absolute errors of the offsets of the same regions, in standard deviations: before (no offset is predicted) and after training. Left of the dashed line, where smooth L1 is quadratic, its gradient is smaller than that of L1; after training nearly all errors lie there.", "name": "fast-rcnn-errors"}}
stds = head.bbox_head.stds
true = box.encode(regions.boxes[chosen], regions.gt_boxes[chosen], stds)
errors = {"before training": true.abs().flatten().cpu(),
          "after training": (offsets[chosen] - true).abs().flatten().cpu()}
figure = draw.histogram(errors, bins=torch.linspace(0, 3, 31), y="offsets",
                        x="error of an offset, in standard deviations")
figure.axes[0].axvline(1, color="#808080", lw=1.4, ls="--")
figure

# %% tags=["remove-cell"]
d = torch.tensor([0.3, 2.0], requires_grad=True)
slopes = [torch.autograd.grad(loss(d, torch.zeros(2)).sum(), d)[0].tolist()
          for loss in (l1, SmoothL1(1.0))]
assert slopes[0] == [1, 1] and abs(slopes[1][0] - 0.3) < 1e-6 and slopes[1][1] == 1
if exp.full and profile == "pocket":
    assert overlaps["moved"].mean() > overlaps["proposed"].mean() + 0.03
    assert (errors["after training"] < 1).float().mean() > 0.8
    assert errors["after training"].mean() < errors["before training"].mean() - 0.1

# %% [markdown]
# Once the errors are small, the gradient of smooth L1 fades with them, while that of L1
# continues to pull the boxes towards the exact position. The price is a gradient that
# does not vanish at the target; the falling learning rate makes up for it.
#
# ## The code
#
# The head and its loss: class logits with background last, offsets for each class, and
# of the offsets only those of the true class count.

# %% tags=["hide-input"]
source(BoxHead.forward, BoxHead.scores, BoxHead.loss, BoxHead.class_loss)

# %% [markdown]
# How regions get their labels. `num_classes` is the label of background.

# %% tags=["hide-input"]
source(assign_regions)

# %% [markdown]
# ## What it buys: computation
#
# The paper's first claim is speed: the convolutional network runs once per image
# instead of once per region. The table counts the operations for the same regions in
# both ways: on the shared maps, and as R-CNN does it, with the network run on a crop of
# each region that is resized to the size of the input.

# %% tags=["hide-input", "nbval-ignore-output"]
def gigaflops(call):
    """Operations of a call, in 10^9; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 1e9


count = int(given.valid[0].sum())
network = gigaflops(lambda: exp.detector.features(images.tensor[:1]))
heads = gigaflops(lambda: head.bbox_head(maps[:1])) * count
costs = {"Fast R-CNN: network once, head per region": network + heads,
         "R-CNN: network and head per region": (network + heads / count) * count}
Table([f"{count} regions of one image", "network runs", "GFLOPs"],
      [(name, f"{runs:,}", f"{cost:,.2f}")
       for (name, cost), runs in zip(costs.items(), (1, count))])

# %% tags=["remove-cell"]
fast, slow = costs.values()
assert count < 2 or slow > 1.5 * fast

# %% [markdown]
# ## What it buys: one training for both tasks
#
# The second claim is that class and box are better learned together. Three models of
# the same size, on the same proposals, with the same number of images seen:
#
# - *Fast R-CNN* as trained above;
# - *boxes not moved*: the same weights, but the detections keep the boxes of the
#   proposals, which shows what the box offsets contribute;
# - *classes alone*: trained with $\lambda = 0$, so that only the class loss trains; its
#   boxes are not moved either. The difference from the row above it is what learning
#   the boxes does to the classes.

# %% tags=["hide-input", "nbval-ignore-output"]
classes_alone = Experiment(model, data_root, output=f"{output}-classes-alone",
                           label="classes alone", options=dict(box_weight=0.0), **run)
trained_alone = classes_alone.train()


def not_moved(experiment):
    """The record of an evaluation in which detections keep their proposals' boxes."""
    detector = experiment.load(experiment.checkpoint)
    torch.nn.init.zeros_(detector.roi_head.bbox_head.fc_reg.weight)
    torch.nn.init.zeros_(detector.roi_head.bbox_head.fc_reg.bias)
    return evaluate(detector, data_root, recipe=experiment.recipe, profile=profile,
                    proposals=proposals, device=device, progress=False,
                    images=None if exp.full else 16).record


result = exp.evaluate()
rows = {"Fast R-CNN": result.record, "boxes not moved": not_moved(exp),
        "classes alone": not_moved(classes_alone)}

# %% tags=["hide-input", "nbval-ignore-output"]
METRICS = {"AP": "bbox_AP", "AP at IoU 0.5": "bbox_AP50", "AP at IoU 0.75": "bbox_AP75"}
names, found = list(rows), list(rows.values())
Table(["model", *(f"{name} (%) [95 % interval]" for name in METRICS)],
      [(name, *(with_interval(record, metric) for metric in METRICS.values()))
       for name, record in rows.items()]
      + [(f"{names[k]} − {names[k + 1]}",
          *(signed(*paired(found[k], found[k + 1], metric))
            for metric in METRICS.values())) for k in (0, 1)],
      caption="Differences are paired over the images")

# %% tags=["remove-cell"]
if exp.full and profile == "pocket":
    difference, bounds = paired(found[0], found[1], "bbox_AP75")
    assert bounds[0] > 0.05
    gain = paired(found[0], found[1], "bbox_AP50")[0]
    assert gain < difference  # moving the boxes matters most at high IoU

# %% [markdown]
# Moving the boxes raises AP at the high IoU threshold most, since a proposal that
# overlaps its object by half is often off by more than the threshold of 0.75 allows. As
# to learning both tasks together: only where the interval of the last row leaves out
# zero do these images tell the two trainings apart, and a single training of each kind
# leaves open how much of the difference is due to the seed.
#
# ## Evaluation
#
# Average precision on the validation set, as COCO defines it, and its spread over the
# seeds that have been trained.

# %% tags=["hide-input", "nbval-ignore-output"]
result

# %% tags=["hide-input", "nbval-ignore-output"]
Table(["box AP", "mean ± std over seeds (n), %"], [(exp.name, exp.spread("bbox_AP"))])

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Detections with a score of 0.3 or more (upper row), with class and score in percent, and the ground truth (lower row).", "name": "fast-rcnn-detections"}}
exp.gallery(exp.sample(indices=shown))

# %% tags=["remove-cell"]
assert not exp.full or profile != "pocket" or result["bbox_AP"] >= 0.35

# %% [markdown]
# ## Speed and size
#
# The time is that of the detector alone: the proposals are read from the file.
# {doc}`faster_rcnn` computes them in the same pass.

# %% tags=["hide-input", "nbval-ignore-output"]
exp.benchmark()

# %% [markdown]
# ## The published models
#
# {doc}`The family's page </book/zoo/fast_rcnn>` lists all of them, with their recipes.
#
# ```{zoo-table} fast_rcnn
# :only: fast-rcnn_r50*
# ```
#
# ## On COCO
#
# This chapter trains the published model where there are GPUs and COCO, on the
# proposals that the RPN chapter writes there:
#
# ```bash
# python -m workflow.chapter rpn -p profile coco -p data_root /data/coco -p gpus 8
# python -m workflow.chapter fast_rcnn -p profile coco -p data_root /data/coco -p gpus 8
# ```
#
# ## Exercises
#
# 1. Train `Experiment(model, options=dict(box_loss=SmoothL1(1.0)), label="smooth L1",
#    ...)` and compare AP at IoU 0.5 and at 0.75 with L1. Does the figure of the errors
#    explain what you see?
# 2. Write a file of proposals with 10 per image (`detcore.data.proposals`) and evaluate
#    on it. Which metric falls most, and why?
# 3. Train with a quarter of the sampled regions (`options=dict(samples=8)`). How many
#    positive regions per image are left, and what happens to the class loss?
#
# ## Summary
#
# Fast R-CNN computes the feature maps once and pools each region from them to a fixed
# size, so that the cost per region is that of a small head. Class and box offsets are
# learned with one loss, in which only regions on objects count for the box. Moving the
# boxes is what AP at high IoU depends on.
#
# ## How to cite
#
# ```{cite-family} fast_rcnn
# ```
#
# ## Where the numbers come from

# %% tags=["hide-input", "nbval-ignore-output"]
exp.provenance()
