# %% [markdown]
# # Mask R-CNN
#
# A box says where an object is, a mask says which pixels are the object.
# Mask R-CNN takes Faster R-CNN and adds a third branch beside class and box: a small network of convolutions that
# draws a mask for every region.
# It draws one mask for each class, and every pixel of it is a separate yes or no.
# So the masks needn't compete: which class it is, the box head has decided already.
# A mask has to fit to the pixel. So the rounding of the old region pooling had to go, and *RoIAlign* took its place.
#
# Kaiming He, Georgia Gkioxari, Piotr Dollár, Ross Girshick: [Mask R-CNN](https://arxiv.org/abs/1703.06870), 2017.
# The method stands in `detcore/methods/mask_rcnn.py`.

# %% tags=["parameters"]
profile = "pocket"
model = "mask-rcnn_r50_fpn_1x_coco"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = None
output = "runs/mask_rcnn"
records = "build/records"

# %%
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torchvision.ops import roi_align, roi_pool

from detcore import Detections, benchmark, create_model, draw, evaluate, get_model_entry, train
from detcore.data.loader import build_loader
from detcore.engine.common import load_data, pick_device
from detcore.ops.masks import crop_masks, paste_masks
from detcore.structures import Polygons

# %% [markdown]
# ## Training
#
# Five losses: two of the first stage, class and box of the second, and the masks.
# The mask loss looks only at regions on objects, and of each only at the mask of its true class.

# %% tags=["nbval-ignore-output"]
trained = train(model, data_root, profile=profile, output=output, steps=steps, seed=seed, device=device, gpus=gpus,
                resume=True)
trained.record.write(f"{records}/{model}.{profile}.train.json")
draw.losses(trained.record.curves)

# %% [markdown]
# ## RoIAlign
#
# Each region is brought to a map of fixed size. Region pooling as in Fast R-CNN rounds the region to whole cells of the
# feature map first; RoIAlign reads the map between the cells, by bilinear interpolation.
# Here is one object whose box is moved to the right by a quarter of a cell at a time. Upper row: RoIAlign; lower row:
# quantised pooling, of the same channels of the same map. Upstairs the pattern slides evenly; downstairs it stands
# still, then jumps.

# %% tags=["nbval-ignore-output"]
recipe = get_model_entry(model).recipe_for(profile)
data = load_data(data_root, replace(recipe, train_transforms=recipe.test_transforms), "val", training=True)
batch = next(iter(build_loader(data, 16 if profile == "pocket" else 2, preprocess=recipe.preprocess)))
batch = batch.to(pick_device(device))
images = recipe.preprocess(batch.images, batch.sizes)
detector = create_model(model, weights=trained.checkpoint, profile=profile).to(images.tensor.device).eval()
pictures = [draw.pixels(images, i, recipe.preprocess) for i in range(len(images))]
scale = 256 / max(images.tensor.shape[2:])
one = max(range(len(images)), key=lambda i: len(batch.targets[i].boxes))
target, stride = batch.targets[one], 4
with torch.no_grad():
    features = detector.features(images.tensor)
finest = features[0][one:one + 1]
# The largest object that has room to its right.
room = target.boxes[:, 2] + 4 * stride < images.sizes[one][1]
largest = int(((target.boxes[:, 2:] - target.boxes[:, :2]).prod(1) * room).argmax())


def moved(cells):
    """The object's box as a region (image 0 of a batch of one), moved to the right by so many cells."""
    shift = torch.tensor([cells, 0, cells, 0], device=finest.device) * stride
    return torch.cat([finest.new_zeros(1), target.boxes[largest] + shift])[None]


shifts = [0, 0.25, 0.5, 0.75, 1]
pooled = [[pool(finest, moved(s), (14, 14), 1 / stride, **options)[0].norm(dim=0) for s in shifts]
          for pool, options in ((roi_align, dict(aligned=True)), (roi_pool, {}))]
blank = np.zeros((128, 128, 3), np.uint8)
draw.grid([draw.heat(blank, x, scale=1, alpha=1) for row in pooled for x in row], columns=len(shifts))

# %% [markdown]
# The same as numbers: how much the pooled map changes, relative to its size, when the box moves by a twentieth of a
# cell, over three cells of the way. RoIAlign changes a little with every step. Pooling does not change at all, until
# a border is rounded to the next cell.

# %% tags=["nbval-ignore-output"]
def changes(pool, **options):
    """Relative change of the pooled features from each position to the next."""
    x = torch.cat([pool(finest, moved(s), (14, 14), 1 / stride, **options).flatten(1) for s in way])
    return (x[1:] - x[:-1]).norm(dim=1).cpu() / x.norm(dim=1).mean().item()


way = torch.linspace(0, 3, 61).tolist()
draw.lines({"RoIAlign": (way[1:], changes(roi_align, aligned=True)), "quantised pooling": (way[1:], changes(roi_pool))},
           x="shift in cells", y="change of the features")

# %% [markdown]
# ## A mask for every class
#
# One object: its box in the image, then the mask that the branch draws for each class, white for "yes". The class
# of the object comes first. No class knows of the others. Other masks may light up too, and it does no harm: only
# the mask of the detected class is used.

# %% tags=["nbval-ignore-output"]
def gray(values, side=112):
    """Values [h, w] from 0 to 1 as a gray picture."""
    tones = (255 * values.float().cpu().numpy()).astype(np.uint8)
    return draw.to_pil(np.repeat(tones[..., None], 3, 2)).resize((side, side), 0)


head, box, label = detector.roi_head, target.boxes[largest:largest + 1], int(target.labels[largest])
with torch.no_grad():
    masks = head.mask_head(head.mask_features(features, box, torch.tensor([one], device=box.device)))[0].sigmoid()
region = draw.to_pil(pictures[one]).crop(box[0].tolist()).resize((112, 112))
draw.grid([region] + [gray(masks[c]) for c in [label] + [c for c in range(len(masks)) if c != label][:8]], columns=5)

# %% [markdown]
# The mask has 28 x 28 pixels and lives in its box. To become pixels of the image it is stretched to the box, by
# bilinear interpolation, and cut at one half. From left to right: the true mask, cropped to the box and brought to 28
# x 28, which is what the branch learns to draw; the mask it has drawn; that mask, pasted; the true mask of the image.

# %% tags=["nbval-ignore-output"]
which = torch.tensor([largest], device=box.device)
mask_target = crop_masks([target.masks], box, torch.zeros_like(which), which, head.mask_size)[0]
size = images.sizes[one]
pasted = paste_masks(masks[label][None], box, size)[0]
true_masks = [torch.as_tensor(t.masks.to_bitmap() if isinstance(t.masks, Polygons) else t.masks.cpu()).bool()
              [:, :h, :w] for t, (h, w) in zip(batch.targets, images.sizes)]
draw.grid([gray(m, 224) for m in (mask_target, masks[label], pasted, true_masks[one][largest])])

# %% [markdown]
# ## Evaluation
#
# Masks are counted like boxes, only that the overlap is that of the pixels. Boxes of 0.5 overlap are easy to have,
# masks with thin legs are not: compare AP75 of the two rows.

# %% tags=["nbval-ignore-output"]
result = evaluate(model, data_root, weights=trained.checkpoint, profile=profile, device=device)
result.record.write(f"{records}/{model}.{profile}.evaluate.json")
pd.DataFrame({kind: r.metrics for kind, r in result.results.items()}).T.round(3)

# %% [markdown]
# The same by class, the largest difference between box and mask first. Long necks and long legs are hard to draw on a
# grid of 28 x 28 that is filled from maps of stride 4.

# %% tags=["nbval-ignore-output"]
classes = pd.DataFrame({"boxes": result["bbox"].per_class, "masks": result["segm"].per_class}, dtype=float)
classes.loc[(classes["masks"] - classes["boxes"]).sort_values().index].head(10).round(3)

# %% tags=["nbval-ignore-output"]
draw.precision_recall(result["segm"])

# %%
assert profile != "pocket" or steps is not None or result["bbox"].headline >= 0.35
assert profile != "pocket" or steps is not None or result["segm"].headline >= 0.30

# %% [markdown]
# Detections with their masks above, ground truth below.

# %% tags=["nbval-ignore-output"]
detections = detector.predict(images)
gt = [Detections(t.boxes, torch.ones(len(t.boxes)), t.labels, m) for t, m in zip(batch.targets, true_masks)]
shown = sorted(range(len(images)), key=lambda i: -len(gt[i]))[:3]
draw.grid([draw.detections(d[i], pictures[i], scale=scale, score_threshold=0.5) for d in (detections, gt)
           for i in shown], columns=len(shown))

# %% [markdown]
# ## Speed and size
#
# At test time masks are drawn last, for the boxes that are left after suppression: few regions, so the branch is cheap.

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
# {doc}`The family's page </book/zoo/mask_rcnn>` lists all of them, with their recipes.
#
# ```{zoo-table} mask_rcnn
# :only: mask-rcnn_r50*
# ```
#
# ## On COCO
#
# ```bash
# papermill notebooks/mask_rcnn.ipynb out.ipynb -p profile coco -p data_root /data/coco -p gpus 8
# ```
