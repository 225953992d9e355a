# %% [markdown]
# # Data: Pocket Zoo
#
# A detector learns from images in which people have annotated every object. The common
# data set, COCO, has 118,000 training images with 860,000 objects of 80 classes, too
# many for a page that anyone can run: this book generates its own data, Pocket Zoo, and
# writes it in COCO's layout.
#
# Tsung-Yi Lin and others: [Microsoft COCO: common objects in
# context](https://arxiv.org/abs/1405.0312), 2014.
#
# ```{figure} ../book/figures/data.svg
# :name: data-drawing
# :width: 100%
#
# The path of an image to the network. The reader joins the image with its annotations
# to a sample; the transforms (highlighted) change both together; samples are padded to
# a batch of bytes, which is normalised on the device.
# ```
#
# Three definitions are used throughout the book. COCO measures the size $s$ of an
# object by its visible area $A$ in pixels, not by the area of its box:
#
# $$s = \sqrt{A}, \qquad \text{small: } s < 32, \qquad
#   \text{medium: } 32 \le s < 96, \qquad \text{large: } s \ge 96$$
#
# A transform maps the annotations as it maps the image. The simplest one mirrors an
# image of width $w$: its left edge becomes the right edge, so that a box with the
# corners $(x_1, y_1)$ and $(x_2, y_2)$ becomes
#
# $$(x_1, y_1, x_2, y_2) \;\mapsto\; (w - x_2,\; y_1,\; w - x_1,\; y_2)$$
#
# A network takes normalised values. For the value $p_c$ of a pixel in channel $c$ these
# are
#
# $$x_c = \frac{p_c - \mu_c}{\sigma_c}$$
#
# where $\mu_c$ and $\sigma_c$ are the mean and the standard deviation of the channel in
# the data that the backbone was pretrained on.

# %% tags=["parameters", "hide-input"]
profile = "pocket"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = None
images = 300  # generated and loaded where speed is measured
output = "runs/data"
records = "build/records"

# %% tags=["hide-input"]
import base64
import json
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from IPython.display import HTML

from detcore import draw, get_model_entry
from detcore.data.coco import CocoDataset
from detcore.data.dataset import ReadOptions
from detcore.data.instaboost import InstaBoost
from detcore.data.layouts import find_layout
from detcore.data.loader import build_loader
from detcore.data.transforms import (
    Flip,
    RandomCrop,
    ResizeRange,
    Sample,
    ScaleJitter,
    apply,
)
from detcore.engine.common import describe
from detcore.experiment import Experiment, Table, source
from detcore.ops import boxes as box
from detcore.pocket import pocket_zoo
from detcore.pocket.writers import WRITERS
from detcore.recipe import TORCHVISION
from detcore.records import Record, peak_memory_gb

started = time.perf_counter()
# Generates the data; does nothing where they are there already.
root = Path(data_root)
zoo = pocket_zoo.draw(root if profile == "pocket" else "data/pocket", progress=False)
data = CocoDataset(root, masks="polygon")

# %% [markdown]
# ## A first look
#
# Animals are near and far, occlude each other, and are cut off at the image's edge.
# Some images have no animal: on these every detection is wrong.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The first 24 training images of Pocket Zoo, 128 x 128 pixels each. Scenes differ in light, ground, distance, and in the number of animals.", "name": "data-gallery"}}
def picture(index):
    return data.sample(index).image[..., ::-1]  # files are read as BGR


draw.grid([draw.to_pil(picture(i)).resize((128, 128)) for i in range(24)], 6)

# %% tags=["remove-cell"]
counts = np.array([len(data.sample(i).boxes) for i in range(200)])
assert (counts == 0).any() and (counts > 1).any()
all_boxes = [data.sample(i).boxes for i in range(200)]
if profile == "pocket":
    assert any((b[:, 0] < 1).any() for b in all_boxes)  # cut off at the left edge
    overlaps = [np.triu(box.pairwise_iou(*[torch.from_numpy(b)] * 2), 1)
                for b in all_boxes]
    assert any((o > 0.1).any() for o in overlaps if o.size)  # occlusion

# %% [markdown]
# ## What an annotation holds
#
# Each object has a class, a box and an outline. The box is the smallest upright
# rectangle around the object's visible part. Where animals of one kind are too close to
# be told apart, one *crowd* annotation covers them all. A crowd is no object to be
# detected: training takes no target from it. In the evaluation a detection $d$ that
# matches no object is not counted as wrong if at least half of it lies in a crowd $c$
# of its class, that is, if
#
# $$\frac{|d \cap c|}{|d|} \ge 0.5$$
#
# (for the IoU threshold 0.5; for a higher threshold, so much more). The denominator is
# the detection alone, not the union as in the IoU, since a crowd is much larger than
# any of its animals.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Two training images with a crowd. From left to right: the image; its boxes with their classes, the crowd in white; the outlines; the panoptic map, which assigns every pixel to one animal or to one kind of ground.", "name": "data-annotations"}}
def panoptic(index):
    """The panoptic map of a training image, a random colour for each segment."""
    file = root / "annotations/panoptic_train2017" / data.files[index]
    ids = cv2.imread(str(file.with_suffix(".png"))).astype(int)
    ids = ids @ [65536, 256, 1]  # an id is R + 256 G + 65536 B
    tones = np.random.default_rng(3).integers(60, 240, (256, 3))
    return tones[ids % 256].astype(np.uint8)


def outlines(index):
    """The image with the outlines of its objects."""
    shown, sample = picture(index).copy(), data.sample(index)
    for rings, label in zip(sample.masks.rings, sample.labels):
        tone = tuple(bytes.fromhex(draw.colour(label)[1:]))
        corners = [np.round(r * 16).astype(int) for r in rings]  # in 16ths of a pixel
        cv2.polylines(shown, corners, True, tone, 1, cv2.LINE_AA, 4)
    return shown


def with_boxes(sample, scale=1.5):
    """The sample's image with its boxes and their classes; crowds are white."""
    kinds = [*sample.labels, *[-1] * len(sample.ignored)]
    return draw.boxes(
        sample.image[..., ::-1], np.concatenate([sample.boxes, sample.ignored]),
        colors=[draw.colour(c) if c >= 0 else "white" for c in kinds], width=2,
        labels=[data.class_names[c] if c >= 0 else "crowd" for c in kinds], scale=scale)


crowded = [i for i in range(min(400, len(data)))
           if len(data.sample(i).ignored) and len(data.sample(i).boxes) > 2]
kinds_of_panels = [picture, lambda i: with_boxes(data.sample(i)), outlines]
if (root / "annotations/panoptic_train2017").exists():
    kinds_of_panels.append(panoptic)
panels = [panel(i) for i in crowded[:2] for panel in kinds_of_panels]
draw.grid([draw.to_pil(panel).resize((192, 192), 3) for panel in panels],
          len(kinds_of_panels))

# %% [markdown]
# Point at an image, or tap it, to see the outlines of its objects; rest on one to read
# its class.

# %% tags=["hide-input"]
def interactive(index):
    """An image with its outlines as shapes that react to pointer and keyboard."""
    sample, names = data.sample(index), data.class_names
    jpeg = cv2.imencode(".jpg", sample.image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    h, w = sample.size
    shapes = "".join(
        '<path d="' + "".join(
            f"M{' '.join(f'{v:.1f}' for v in ring.ravel())}z" for ring in rings)
        + f'" fill="{draw.colour(c)}"><title>{names[c]}</title></path>'
        for rings, c in zip(sample.masks.rings, sample.labels))
    label = ", ".join(names[c] for c in sample.labels) or "empty"
    return (f'<svg viewBox="0 0 {w} {h}" tabindex="0" role="img" aria-label="{label}">'
            f'<image href="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" '
            f'width="{w}" height="{h}"/>{shapes}</svg>')


HTML("""<style>
.zoo-outlines { display: grid; gap: 4px;
  grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) }
.zoo-outlines svg { width: 100% }
.zoo-outlines path { opacity: 0; transition: opacity .2s }
.zoo-outlines svg:is(:hover, :focus) path { opacity: .55 }
.zoo-outlines svg path:hover { opacity: .85 }
</style><div class="zoo-outlines">""" + "".join(map(interactive, range(24, 36)))
     + "</div>")

# %% [markdown]
# ## Classes and sizes
#
# The classes are similarly frequent: none has twice as many objects as another. In COCO
# some classes are frequent and others rare; the option `--long-tail` of the command at
# the end makes such a Pocket Zoo.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Objects of each class among the training images, crowds left out.", "name": "data-classes"}}
def objects(split):
    """Of a split's objects without crowds: class names, sizes of boxes, COCO's area."""
    told = json.loads((root / f"annotations/instances_{split}2017.json").read_text())
    names = {c["id"]: c["name"] for c in told["categories"]}
    rows = [a for a in told["annotations"] if not a["iscrowd"]]
    return (np.array([names[a["category_id"]] for a in rows]),
            np.array([a["bbox"][2:] for a in rows]),
            np.array([a["area"] for a in rows]))


kinds, sizes, areas = objects("train")
numbers = {name: int((kinds == name).sum()) for name in data.class_names}
draw.bars(dict(sorted(numbers.items(), key=lambda item: -item[1])[:20]), x="objects")

# %% [markdown]
# The classes differ in shape, and each occurs at many distances.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Width and height of the boxes of each class in pixels: the median, and the range of the middle half of the boxes (lines). Above the diagonal boxes are taller than wide.", "name": "data-shapes"}}
shown = list(numbers)[:8]
quartiles = {name: np.percentile(sizes[kinds == name], [25, 50, 75], axis=0)
             for name in shown}
figure = draw.points({name: q[1] for name, q in quartiles.items()},
                     x="width (pixels)", y="height (pixels)",
                     across={name: q[::2, 0] for name, q in quartiles.items()},
                     upright={name: q[::2, 1] for name, q in quartiles.items()})
end = max(q[2].max() for q in quartiles.values())
figure.axes[0].plot([0, end], [0, end], color="#808080", lw=0.8, ls=":")
figure

# %% tags=["remove-cell"]
if profile == "pocket":
    assert max(numbers.values()) < 1.6 * min(numbers.values())
    medians = {name: q[1] for name, q in quartiles.items()}
    assert medians["giraffe"][1] > 1.2 * medians["giraffe"][0]
    assert medians["crocodile"][0] > 1.2 * medians["crocodile"][1]

# %% [markdown]
# The evaluation gives AP for small, medium and large objects, too. What counts is
# COCO's `area`, the number of visible pixels. The area of the box is larger, so that
# counting by boxes would move objects to the next larger group. The numbers of the
# validation images say how much each AP of the following chapters rests on: an AP of
# few objects is uncertain.

# %% tags=["hide-input"]
def groups(area):
    """How many objects are small, medium, large."""
    return [str(int(n)) for n in np.histogram(np.sqrt(area), [0, 32, 96, np.inf])[0]]


val_kinds, val_sizes, val_areas = objects("val")
Table(["objects", "small", "medium", "large"], [
    ("training images, by COCO's area", *groups(areas)),
    ("training images, by the area of the box", *groups(sizes.prod(1))),
    ("validation images, by COCO's area", *groups(val_areas)),
    ("validation images, by the area of the box", *groups(val_sizes.prod(1)))])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Distribution of the sizes of the training objects: square root of COCO's area, in bins of 4 pixels, coloured by COCO's three groups.", "name": "data-sizes"}}
side = np.sqrt(areas)
draw.histogram({"small": side[side < 32], "medium": side[(side >= 32) & (side < 96)],
                "large": side[side >= 96]}, bins=np.arange(0, side.max() + 4, 4),
               x="square root of the area (pixels)", y="objects")

# %% tags=["remove-cell"]
assert (sizes.prod(1) >= areas - 1).mean() > 0.99
by_area, by_box = (list(map(int, groups(a))) for a in (val_areas, val_sizes.prod(1)))
assert by_area[0] > by_box[0] and by_area[2] < by_box[2]
assert by_area[2] >= 60 or profile != "pocket"

# %% [markdown]
# ## Transforms
#
# A network sees each image many times. Transforms change it a little each time, and the
# annotations with it; this is data augmentation. The recipes of this book's chapters
# mirror images and resize them; what the published models use is in the tables of the
# zoo.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "An image and its boxes after different transforms. Upper row: unchanged; mirrored; resized to a random scale. Lower row: large-scale jitter that zooms out, where the rest becomes padding; large-scale jitter that zooms in and crops; InstaBoost, which cuts objects out along their outlines, turns and scales them, puts them back nearby, and fills the holes.", "name": "data-transforms"}}
index = crowded[1]
h, w = data.sample(index).size
crop = RandomCrop((h, w), allow_negative=True)
larger = ResizeRange((w * 9 // 8, h * 9 // 8), (w * 11 // 8, h * 11 // 8))
variants = [(), (Flip(1.0),), (larger,),
            (ScaleJitter((h, w), (0.6, 0.7)), crop),
            (ScaleJitter((h, w), (1.6, 1.8)), crop),
            (InstaBoost(probability=1.0),)]
rng = np.random.default_rng(seed)
changed = [apply(variant, data.sample(index), rng) for variant in variants]
panels = []
for sample in changed:
    canvas = draw.to_pil(np.full((248, 248, 3), 225, np.uint8))
    canvas.paste(with_boxes(sample, scale=1.4 * 128 / max(h, w)))
    panels.append(canvas)
draw.grid(panels, 3)

# %% [markdown]
# Large-scale jitter: Ghiasi and others, [Simple copy-paste is a strong data
# augmentation method for instance segmentation](https://arxiv.org/abs/2012.07177),
# 2021. InstaBoost: Fang and others, {doc}`InstaBoost </book/zoo/instaboost>`, 2019.
#
# The code of the simplest transform, and of the function that all transforms use to
# change boxes, outlines, masks and class maps in the same way:

# %% tags=["hide-input"]
source(Flip, Sample.move)

# %% tags=["remove-cell"]
before, after = changed[0].boxes, changed[1].boxes
expected = np.stack([w - before[:, 2], before[:, 1], w - before[:, 0], before[:, 3]], 1)
assert len(before) > 2 and np.allclose(after, expected)
assert changed[2].image.shape[0] > h and len(changed[4].boxes) <= len(before)

# %% [markdown]
# ## Batches
#
# The images of a batch are padded to one size, at the right and at the bottom, and stay
# bytes until they are on the device: a quarter of the memory of 32-bit floating-point
# numbers, and a quarter of the transfer. Normalisation happens on the device, and makes
# the padding zero.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Four training images after resizing to random scales, as they are in a batch: all tensors have one size, the padding is black.", "name": "data-batch"}}
scaled = ResizeRange((h * 3 // 4, w * 3 // 4), (h * 5 // 4, w * 5 // 4))
ragged = CocoDataset(root, transforms=(scaled,))
ragged.select(np.isin(np.arange(len(ragged)), range(4, 8)))
batch = next(iter(build_loader(ragged, 4, preprocess=TORCHVISION, seed=seed)))
inputs = TORCHVISION(batch.images, batch.sizes)
draw.grid([draw.to_pil(image.flip(0)).resize((184, 184)) for image in batch.images], 4)

# %% tags=["remove-cell"]
assert len(set(batch.sizes)) > 1 and batch.images.dtype == torch.uint8
assert batch.images.nbytes * 4 == inputs.tensor.nbytes
height, width = min(batch.sizes)
smallest = batch.sizes.index((height, width))
assert not inputs.tensor[smallest, :, height:].any()
assert inputs.tensor[smallest, :, :height, :width].any()

# %% [markdown]
# ## Other layouts
#
# Data sets come in different layouts: COCO has one JSON file for each split, Pascal VOC
# one XML file for each image, Open Images tables. Each has a reader of its own, which
# is recognised by the files that a folder holds, and whose samples look alike. Pocket
# Zoo can be written in each layout; so the readers are tested on data of their own
# layout.

# %% tags=["hide-input"]
rows = []
with tempfile.TemporaryDirectory() as folder:
    for name in dict.fromkeys(WRITERS):
        place = pocket_zoo.draw(Path(folder) / name, images=6, val=1, layout=name,
                                workers=1, progress=False)
        layout = find_layout(place, name)
        opened = layout.open(layout.home(place), "train", ReadOptions())
        file = str(opened.annotation_file.relative_to(place))
        rows.append((name, layout.title, file, str(len(opened)),
                     str(len(opened.labels))))
Table(["layout", "data set", "annotations", "images", "objects"], rows)

# %% tags=["remove-cell"]
assert len({row[3] for row in rows}) == 1 and int(rows[0][4]) > 0

# %% [markdown]
# ## What more images buy
#
# Two RetinaNets train by the recipe of {doc}`RetinaNet's chapter <retinanet>`, with the
# same seed. They see the same number of images: one of them sees the training images of
# Pocket Zoo once or twice each, the other one sees the first fifty of them again and
# again.

# %% tags=["hide-input", "nbval-ignore-output"]
def subset(number):
    """A data set with the first training images and all validation images."""
    folder = Path(output) / f"images-{number}"
    file = "annotations/instances_train2017.json"
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for name in ("train2017", "val2017", file.replace("train", "val")):
        if not (folder / name).exists():
            (folder / name).symlink_to((zoo / name).resolve())
    told = json.loads((zoo / file).read_text())
    told["images"] = told["images"][:number]
    kept = {image["id"] for image in told["images"]}
    told["annotations"] = [a for a in told["annotations"] if a["image_id"] in kept]
    (folder / file).write_text(json.dumps(told))
    return folder


def student(number, place):
    """A RetinaNet that trains on so many different images."""
    entry = get_model_entry("retinanet_r50_fpn_1x_coco")
    entry = replace(entry, name=f"{entry.name}+images-{number}")
    return Experiment(entry, place, seed=seed, steps=steps, device=device,
                      records=records, output=f"{output}/train-{number}",
                      label=f"{number} images")


many, few = student(2000, zoo), student(50, subset(50))
runs = {exp.name: exp.train() for exp in (many, few)}
for exp in (many, few):
    exp.evaluate()
comparison = many.compare(few)
comparison

# %% [markdown]
# The last row is the difference with its 95 % interval, from a paired bootstrap over
# the validation images ({doc}`the benchmark chapter <benchmark>` explains it). The
# training loss falls further on fifty images: the network overfits these images, and
# detects less in images that it has not seen.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Classification loss of the two trainings over the steps, on a logarithmic axis.", "name": "data-overfitting"}}
curves = {name: run.record.curves for name, run in runs.items()}
draw.lines({name: (c["step"], c["loss_cls"]) for name, c in curves.items()},
           x="step", y="classification loss", log_y=True)

# %% tags=["remove-cell"]
if many.full:
    assert comparison.clear and comparison.difference > 0.03
    last = {name: np.mean(c["loss_cls"][-3:]) for name, c in curves.items()}
    assert last[few.name] < 0.9 * last[many.name]

# %% [markdown]
# ## Speed
#
# Images are generated by several processes, each image from random numbers of its own:
# the files do not depend on the number of processes. Opening reads and arranges the
# whole annotation file. Loading reads the files, decodes and transforms the images, and
# makes batches.

# %% tags=["hide-input", "nbval-ignore-output"]
number, speed = images if steps is None else 20, {}
with tempfile.TemporaryDirectory() as folder:
    for workers in (1, 2):
        clock = time.perf_counter()
        pocket_zoo.draw(Path(folder) / str(workers), images=number, val=1, seed=seed,
                        workers=workers, progress=False)
        speed[f"generating, {workers} process" + "es" * (workers > 1)] = (
            number / (time.perf_counter() - clock))
clock = time.perf_counter()
opened = CocoDataset(root, transforms=(Flip(),))
speed["opening"] = len(opened) / (time.perf_counter() - clock)
clock = time.perf_counter()
loader = build_loader(opened, 16, preprocess=TORCHVISION, training=True, seed=seed)
seen = sum(len(batch) for batch in islice(loader, -(-number // 16)))
speed["loading, 1 process"] = seen / (time.perf_counter() - clock)
Record(kind="data", profile=profile, data=describe(data), seed=seed,
       duration_s=time.perf_counter() - started, parameters=dict(images=number),
       metrics=dict(objects=len(kinds), classes=len(data.class_names),
                    small=by_area[0], medium=by_area[1], large=by_area[2]),
       speed={f"{name.replace(', ', '_').replace(' ', '_')}_images_per_s": value
              for name, value in speed.items()},
       memory=peak_memory_gb()).write(f"{records}/data.{profile}.json")
Table(["step", "images per second"],
      [(name, f"{value:,.0f}") for name, value in speed.items()])

# %% [markdown]
# ## Generate your own, or take COCO
#
# Another seed gives other images; a larger data set begins with the images of a smaller
# one. For COCO itself, unpack its images and annotations into one folder (`train2017/`,
# `val2017/`, `annotations/`) and run this chapter on it; {doc}`/book/data_sets` has the
# other data sets.
#
# ```bash
# detcore data pocket --root data/mine --images 5000 --seed 1
# papermill notebooks/data.ipynb out.ipynb \
#     -p profile coco -p data_root /data/coco
# ```
#
# ## Exercises
#
# 1. Generate a Pocket Zoo with `--long-tail` and draw the number of objects of each
#    class. How do the intervals of the rarest classes' AP differ from those of the most
#    frequent?
# 2. Write a transform that rotates an image by 90 degrees, with `Sample.move`. Check it
#    with a box whose corners you know.
# 3. Repeat the comparison with 400 and with 1,000 different images. From which number
#    on can 500 validation images no longer tell the result from that of 2,000?
#
# ## Summary
#
# An annotation holds a class, a box, an outline and whether it is a crowd, and COCO's
# size of an object is its visible area. Transforms change images and annotations
# together, and a batch stays bytes until it is on the device. With the same number of
# images seen, more different images give a better detector.
#
# ## How to cite
#
# ```bibtex
# @inproceedings{lin2014microsoft,
#     author = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James
#               and Perona, Pietro and Ramanan, Deva and Doll{\'a}r, Piotr
#               and Zitnick, C. Lawrence},
#     title = {Microsoft {COCO}: Common objects in context},
#     booktitle = {European Conference on Computer Vision},
#     year = {2014},
#     url = {https://arxiv.org/abs/1405.0312}
# }
# ```

# %% tags=["hide-input", "nbval-ignore-output"]
many.provenance()
