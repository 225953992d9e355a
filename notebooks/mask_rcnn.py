# %% [markdown]
# # Mask R-CNN
#
# A box says where an object is, but not which of the pixels inside belong to it.
# Mask R-CNN adds a third branch to {doc}`Faster R-CNN <faster_rcnn>`, beside class and
# box: a small convolutional network that predicts a mask for every region; and it
# replaces the pooling of regions, which rounded their borders to whole cells of the
# feature map, by *RoIAlign*, so that masks are aligned with the pixels.
#
# Kaiming He, Georgia Gkioxari, Piotr Dollár, Ross Girshick:
# [Mask R-CNN](https://arxiv.org/abs/1703.06870), 2017.
#
# ```{figure} ../book/figures/mask_rcnn.svg
# :name: mask-rcnn-architecture
#
# Mask R-CNN with a ResNet-50, at the size published for COCO. New in comparison with
# Fast R-CNN and Faster R-CNN as they were published are RoIAlign and the mask branch.
# In training the branch is applied to the positive regions, at test time to the
# detections that are left after NMS.
# ```

# %% tags=["parameters", "hide-input"]
profile = "pocket"
model = "mask-rcnn_r50_fpn_1x_coco"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = None
output = "runs/mask_rcnn"
records = "build/records"

# %% tags=["hide-input"]
import json

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.ops import roi_align, roi_pool

from detcore import draw
from detcore.experiment import Experiment, Table, source
from detcore.methods.mask_rcnn import MaskHead, with_masks
from detcore.metrics.coco import IOUS, evaluate_coco
from detcore.ops.masks import crop_masks
from detcore.records import Clock

run = dict(profile=profile, seed=seed, steps=steps, device=device, gpus=gpus,
           records=records)
exp = Experiment(model, data_root, output=output, label="Mask R-CNN", **run)

# %% [markdown]
# ## RoIAlign and the mask loss
#
# RoIAlign reads the feature map $F$ at sampling points $(x, y)$ that are spread evenly
# over the region and lie between the cells, by bilinear interpolation, and takes the
# mean of the points of each bin. No coordinate is rounded:
#
# $$f(x, y) = \sum_{i, j} F_{ij} \, \max(0, 1 - |y - i|) \, \max(0, 1 - |x - j|)$$
#
# - $F_{ij}$ is the feature in row $i$ and column $j$; $x$ and $y$ are in cells.
# - Of all the products only those of the four nearest cells are not zero.
#
# For a positive region whose true class is $k$, the mask loss is the mean binary
# cross-entropy over the pixels of mask $k$ alone:
#
# $$L_{\mathrm{mask}} = -\frac{1}{m^2} \sum_{i, j} \left[ y_{ij} \log p^k_{ij} +
#   (1 - y_{ij}) \log (1 - p^k_{ij}) \right]$$
#
# - $m = 28$ is the side of the mask.
# - $y_{ij}$ is 1 where the object's true mask, cropped to the region and brought to
#   $m \times m$, covers the pixel, else 0.
# - $p^k_{ij}$ is the probability, by a sigmoid, in the mask of class $k$. The masks of
#   the other classes are not part of the loss, so that classes do not compete for a
#   pixel: the box branch decides the class.
#
# ## Training
#
# One call trains the model by its recipe. Of a short training ten checkpoints stay, so
# that the masks can be looked at on the way.

# %% tags=["hide-input", "nbval-ignore-output"]
length = steps or exp.recipe.iterations
trained = exp.train(**(dict(checkpoint_interval=max(length // 10, 1), keep=10)
                       if length else {}))
trained

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Losses over the steps of the training, on a logarithmic axis: two of the RPN, class and box of the second stage, masks, and their sum.", "name": "mask-rcnn-training"}}
trained.figure

# %% [markdown]
# ## RoIAlign against quantised pooling
#
# The region pooling of Fast R-CNN rounds the region to whole cells and takes the
# maximum in each bin. Below, the box of one object is moved to the right by a quarter
# of a cell at a time, and both operations pool the same channels of the same map.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "The norm over the channels of a pooled region of 14 × 14 bins, bright where it is large. From left to right the box moves by a quarter of a cell; the number is the shift in cells. Upper row, RoIAlign: the pattern changes a little with each shift. Lower row, quantised pooling: it stays the same, and then changes at once.", "name": "mask-rcnn-shift"}}
sample = exp.sample(16 if profile == "pocket" else 2)
with torch.no_grad():
    features = exp.detector.features(sample.images.tensor)
stride = 4
# An object of about ten cells that has room to its right.
rights = [size[1] - 4 * stride for size in sample.images.sizes]
_, one, k = min((float((b[2:] - b[:2] - 10 * stride).abs().sum()), i, k)
                for i, t in enumerate(sample.targets) for k, b in enumerate(t.boxes)
                if b[2] < rights[i])
target, finest = sample.targets[one], features[0][one:one + 1]


def moved(cells):
    """The object's box as a region of the first image, moved to the right."""
    shift = torch.tensor([cells, 0, cells, 0], device=finest.device) * stride
    return torch.cat([finest.new_zeros(1), target.boxes[k] + shift])[None]


def align(region):
    return roi_align(finest, region, (14, 14), 1 / stride, aligned=True)


def quantised(region):
    return roi_pool(finest, region, (14, 14), 1 / stride)


def tile(picture, text="", side=112):
    """A picture of a fixed size with a text in its corner."""
    picture = draw.to_pil(picture).resize((side, side), 0)
    return draw.boxes(picture, torch.tensor([[0.0, 0, side, side]]), colors="white",
                      scale=1, rim=False, labels=[text])


shifts = [0, 0.25, 0.5, 0.75, 1]
blank = np.zeros((112, 112, 3), np.uint8)
pooled = [[pool(moved(s))[0].norm(dim=0) for s in shifts]
          for pool in (align, quantised)]
draw.grid([tile(draw.heat(blank, x, scale=1, alpha=1), f"{s:g}")
           for row in pooled for s, x in zip(shifts, row)], columns=len(shifts))

# %% [markdown]
# The same as numbers: how much the pooled region changes, relative to its size, when
# the box moves by a twentieth of a cell, over three cells.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Change of the pooled region for each shift by a twentieth of a cell. RoIAlign (orange) changes by a small amount at every shift. Quantised pooling (blue) does not change at all until a border of the region is rounded to another cell, and then by a large amount.", "name": "mask-rcnn-change"}}
def changes(pool):
    """Relative change of the pooled region from each position to the next."""
    x = torch.cat([pool(moved(s)).flatten(1) for s in way])
    return (x[1:] - x[:-1]).norm(dim=1).cpu() / x.norm(dim=1).mean().item()


way = torch.linspace(0, 3, 61).tolist()
change = {"RoIAlign": changes(align), "quantised pooling": changes(quantised)}
draw.lines({name: (way[1:], values) for name, values in change.items()},
           x="shift in cells", y="relative change")

# %% tags=["remove-cell"]
smooth, jumps = change.values()
assert (smooth > 0).all() and (jumps == 0).float().mean() > 0.5
same = [[torch.equal(a, b) for a, b in zip(row, row[1:])] for row in pooled]
assert not any(same[0]) and any(same[1]) and not all(same[1])
assert jumps.max() > 2 * smooth.max()

# %% [markdown]
# ## A mask for every class
#
# The branch predicts a mask for each class, and none of them knows of the others. At
# test time only the mask of the detected class is used, so that it does no harm where
# other masks have high values, too.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "One object, cropped to its box, and its mask of 28 × 28 pixels for each class, white where the probability is 1. The mask of its true class comes first, after the image.", "name": "mask-rcnn-classes"}}
def gray(values):
    """Values [h, w] from 0 to 1 as a gray picture."""
    tones = (255 * values.float().cpu().numpy()).astype(np.uint8)
    return np.repeat(tones[..., None], 3, 2)


@torch.no_grad()
def masks_of(detector, image, boxes):
    """Mask probabilities [r, classes, 28, 28] of boxes in an image of the sample."""
    head, maps = detector.roi_head, detector.features(sample.images.tensor)
    index = torch.full((len(boxes),), image, device=boxes.device)
    return head.mask_head(head.mask_features(maps, boxes, index)).sigmoid()


def crop(image, index):
    """An object of the sample, cropped to its box."""
    corners = sample.targets[image].boxes[index].round().tolist()
    return draw.to_pil(sample.pictures[image]).crop(corners)


names, label = sample.class_names, int(target.labels[k])
masks = masks_of(exp.detector, one, target.boxes[k:k + 1])[0]
order = [label] + [c for c in range(len(masks)) if c != label][:8]
draw.grid([tile(crop(one, k), names[label])]
          + [tile(gray(masks[c]), names[c]) for c in order], columns=5)

# %% [markdown]
# ## Masks during training
#
# The mean IoU of the masks with their targets rises during the training, as the second
# figure shows.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Masks of four objects, one per row, at several stages of the training. From left to right: the object, its masks after the number of steps in the corner, and its true mask at 28 × 28 pixels, which is the target of the branch. The true boxes are used as regions, so that the columns differ in the mask alone.", "name": "mask-rcnn-stages"}}
def target_masks(image):
    """The true masks of an image of the sample, cropped to their boxes, 28 x 28."""
    t = sample.targets[image]
    index = torch.arange(len(t.boxes), device=t.boxes.device)
    side = exp.detector.roi_head.mask_size
    return crop_masks([t.masks], t.boxes, torch.zeros_like(index), index, side)


at = list(exp.checkpoints().items())
at = dict([at[i] for i in sorted({0, len(at) // 5, len(at) // 2, len(at) - 1})])
stages = {step: exp.load(path) for step, path in at.items()}
sizes = [(t.boxes[:, 2:] - t.boxes[:, :2]).prod(1).tolist() for t in sample.targets]
four = sorted(((a, i, j) for i, of in enumerate(sizes) for j, a in enumerate(of)),
              reverse=True)[2:18:4]
tiles = []
for _, i, j in four:
    t = sample.targets[i]
    c, chosen = int(t.labels[j]), t.boxes[j:j + 1]
    tiles += [tile(crop(i, j), names[c])]
    tiles += [tile(gray(masks_of(d, i, chosen)[0, c]), str(step))
              for step, d in stages.items()]
    tiles += [tile(gray(target_masks(i)[j]))]
draw.grid(tiles, columns=len(stages) + 2)

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Mean IoU between the masks and their targets, at 28 × 28 pixels, over the steps of the training; the true boxes of all objects of the sample are the regions.", "name": "mask-rcnn-mask-iou"}}
def mask_iou(detector):
    """Mean IoU of the masks of all objects of the sample with their targets."""
    values = []
    for i, t in enumerate(sample.targets):
        true = target_masks(i) > 0.5
        drawn = masks_of(detector, i, t.boxes)
        drawn = drawn[torch.arange(len(drawn)), t.labels] > 0.5
        both, either = (true & drawn).sum((1, 2)), (true | drawn).sum((1, 2))
        values += (both / either.clamp(min=1)).tolist()
    return float(np.mean(values))


quality = {step: mask_iou(exp.load(path)) for step, path in exp.checkpoints().items()}
figure = draw.lines({"masks": (list(quality), list(quality.values()))}, x="step",
                    y="mean IoU")
figure.axes[0].set(xlim=(0, None), ylim=(0, 1))
figure

# %% tags=["remove-cell"]
if exp.full:
    first, *_, last = quality.values()
    assert last > first + 0.05 and last > 0.6

# %% [markdown]
# ## The code
#
# The branch: convolutions (four at the published size), a transposed convolution that
# doubles the side, and a logit for each class and pixel.

# %% tags=["hide-input"]
source(MaskHead)

# %% [markdown]
# At test time the mask of each detection is stretched to its box by bilinear
# interpolation, and a pixel of the image belongs to the object where the probability is
# 0.5 or more:

# %% tags=["hide-input"]
source(with_masks)

# %% [markdown]
# ## What it buys
#
# First the masks. The comparison is with Mask R-CNN's own detections whose boxes are
# filled and taken as masks: the same boxes, classes and scores.

# %% tags=["hide-input", "nbval-ignore-output"]
result = exp.evaluate()
found = json.loads((exp.folder / "evaluation/detections.json").read_text())


def filled(detection):
    """A detection whose mask is its whole box."""
    size, bbox = detection["segmentation"]["size"], np.array([detection["bbox"]])
    rle = coco_mask.frPyObjects(bbox, *size)
    return detection | dict(segmentation=dict(rle[0], counts=rle[0]["counts"].decode()))


boxes = evaluate_coco(exp.data().annotation_file, [filled(d) for d in found], "segm",
                      image_ids=sorted({d["image_id"] for d in found}) or None)
Table(["masks", "mask AP", "mask AP50", "mask AP75"],
      [("predicted by the branch",
        *(f"{100 * result[f'segm_{m}']:.1f}" for m in ("AP", "AP50", "AP75"))),
       ("filled boxes",
        *(f"{100 * (boxes.metrics[m] or 0):.1f}" for m in ("AP", "AP50", "AP75")))],
      caption="AP of masks in percent")

# %% tags=["remove-cell"]
if exp.full:
    assert result["segm_AP"] > 2 * boxes.headline

# %% [markdown]
# Then the boxes, beside those of Faster R-CNN, which has the same box branch, data,
# seed and number of images seen. Mask R-CNN trains the shared layers with the masks,
# too. On COCO its boxes gained by that; what happens here is in the last row.

# %% tags=["hide-input", "nbval-ignore-output"]
faster = Experiment("faster-rcnn_r50_fpn_1x_coco", data_root, label="Faster R-CNN",
                    **run)
comparison = exp.compare(faster) if exp.full else ""
comparison

# %% [markdown]
# The last row is the difference between the two, with its 95 % interval from a paired
# bootstrap over the images. Where the interval includes zero, these images are too few
# to tell the two apart. The interval says nothing of other seeds; the column of the
# seeds does, where more than one has been trained.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "AP over the IoU from which a detection counts as right, of Mask R-CNN's boxes and masks. For boxes the overlap is that of the boxes, for masks that of the pixels.", "name": "mask-rcnn-by-iou"}}
by_iou = {name: (IOUS, [100 * (v or 0) for v in result.record.by_iou[kind]])
          for kind, name in (("bbox", "boxes"), ("segm", "masks"))}
figure = draw.lines(by_iou, x="IoU threshold", y="AP (%)")
figure.axes[0].set_ylim(0, 100)
figure

# %% [markdown]
# ## Evaluation
#
# Boxes and masks on the validation set, as COCO defines it.

# %% tags=["hide-input", "nbval-ignore-output"]
result

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Detections with a score of 0.5 or more and their masks (upper row), with class and score in percent, and the ground truth (lower row).", "name": "mask-rcnn-detections"}}
numbers = [len(t.boxes) for t in sample.targets]
shown = sorted(range(len(numbers)), key=lambda i: -numbers[i])[:3]
exp.gallery(exp.sample(indices=shown), score_threshold=0.5)

# %% tags=["remove-cell"]
if exp.full and profile == "pocket":
    assert result["bbox_AP"] >= 0.5 and result["segm_AP"] >= 0.4

# %% [markdown]
# ## Speed and size
#
# At test time the branch is applied to the detections that are left after NMS, 100 per
# image at most. The second table shows what it costs: the median time of each part over
# some images, one at a time.

# %% tags=["hide-input", "nbval-ignore-output"]
exp.benchmark()

# %% tags=["hide-input", "nbval-ignore-output"]
@torch.inference_mode()
def times(index):
    """Seconds of each step of the detector for one image."""
    x, detector, clocks = exp.sample(indices=[index]).images, exp.detector, []
    head = detector.roi_head

    def step(function, *given):
        clock = Clock(x.tensor.device)
        out = function(*given)
        clocks.append(clock())
        return out

    maps = step(detector.features, x.tensor)
    proposals = step(detector.rpn_head.proposals, maps, x)
    detections = step(head.detect, maps, proposals, x)
    masks = step(head.masks, maps, detections)
    step(with_masks, detections, masks, x, None)
    return clocks


seconds = np.median([times(i) for i in range(2 if steps else 30)][1:], 0)
parts = ("backbone and pyramid", "RPN", "box branch and NMS", "mask branch",
         "pasting masks into the image")
Table(["part", "ms per image", "share"],
      [(name, f"{1000 * s:.1f}", f"{100 * s / seconds.sum():.0f} %")
       for name, s in zip(parts, seconds)], caption="Median time of each part")

# %% tags=["remove-cell"]
if exp.full:
    assert seconds[3:].sum() > 0.1 * seconds.sum()

# %% [markdown]
# The mask branch is a considerable part of the time: it has few regions, but each of
# them goes through convolutions on 14 × 14 cells, and its mask is resampled to the
# pixels of the image.
#
# ## The published models
#
# {doc}`The family's page </book/zoo/mask_rcnn>` lists all of them, with their recipes
# and how to cite the paper.
#
# ```{zoo-table} mask_rcnn
# :only: mask-rcnn_r50*
# ```
#
# ## On COCO
#
# ```bash
# python -m workflow.chapter mask_rcnn -p profile coco -p data_root /data/coco -p gpus 8
# ```
#
# ## Exercises
#
# 1. Replace `roi_align` by `roi_pool` in `MultiScaleRoIAlign.pool`
#    (`detcore/layers/roi_align.py`), train again, and compare mask AP50 and AP75. Which
#    of the two loses more, and why?
# 2. Change the threshold of 0.5 in `paste_masks` to 0.3 and 0.7. What happens to thin
#    legs, and what to mask AP?
# 3. Use the masks of the class with the highest mask probability in place of the
#    detected class. How often do the two differ?
#
# ## Summary
#
# Mask R-CNN adds to Faster R-CNN a branch that predicts, for each region, a mask per
# class, each pixel of which is a binary decision. RoIAlign reads the features between
# the cells of the map, so that a small shift of the box is a small change of the
# features. The branch takes a considerable part of the time of an image.
#
# ## Where the numbers come from

# %% tags=["hide-input", "nbval-ignore-output"]
exp.provenance()
