# %% [markdown]
# # Data: Pocket Zoo
#
# A detector learns from pictures in which people have marked every object. The common data set for this is COCO
# (Lin et al., "Microsoft COCO: Common Objects in Context", 2014): 118,000 training pictures and 860,000 objects of
# 80 classes. It is too large for a page that anyone can run.
#
# So this book draws its own data. Pocket Zoo is a set of small scenes with animals, drawn from a seed and written
# in COCO's layout. The same reader, the same transforms and the same evaluation work on both. What you learn here
# about the one holds for the other.

# %% tags=["parameters"]
profile = "pocket"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
images = 300  # pictures drawn and loaded where speed is measured
output = "runs/data"
records = "book/records"

# %%
import base64
import tempfile
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML

from detcore import draw
from detcore.data.coco import CocoDataset
from detcore.data.instaboost import InstaBoost
from detcore.data.loader import build_loader
from detcore.data.transforms import Flip, RandomCrop, Resize, ResizeRange, ScaleJitter, apply
from detcore.engine.common import describe
from detcore.pocket import pocket_zoo
from detcore.recipe import TORCHVISION
from detcore.records import Record, peak_memory_gb

started = time.perf_counter()
if profile == "pocket":
    pocket_zoo.draw(data_root)  # does nothing where it is there already
data = CocoDataset(data_root, masks="polygon")

# %% [markdown]
# ## A first look
#
# Two dozen training pictures. Animals stand near and far, hide behind each other and are cut off by the border.
# Some pictures have no animal at all: a detector must learn to say nothing.

# %%
def picture(index):
    return data.sample(index).image[..., ::-1]  # files are read as BGR


draw.grid([picture(i) for i in range(min(24, len(data)))], 6)

# %% [markdown]
# ## What an annotation holds
#
# For each object there is a class, a box and an outline. A box is the smallest upright rectangle around the visible
# part. Where animals of one kind stand too close to be told apart, one *crowd* annotation covers them all (white
# boxes). A crowd is neither object nor background: training leaves it out, and a detection inside of it is not
# counted as wrong. The panoptic map gives every pixel to one animal or to one kind of ground.
#
# From left to right: the picture, its boxes, its outlines, its panoptic map.

# %%
def panoptic(index):
    file = Path(data_root) / "annotations/panoptic_train2017" / Path(data.files[index]).with_suffix(".png").name
    ids = cv2.imread(str(file)).astype(int) @ [65536, 256, 1]  # an id is R + 256 G + 65536 B
    tones = np.random.default_rng(3).integers(60, 240, (256, 3))
    return tones[ids % 256].astype(np.uint8)


def panels(index):
    sample = data.sample(index)
    image, colors = picture(index), [draw.colour(c) for c in sample.labels]
    names = [data.class_names[c] for c in sample.labels]
    boxes = draw.boxes(image, sample.ignored, colors="white", width=2)
    outlined = image.copy()
    for rings, color in zip(sample.masks.rings, colors):
        tone = [int(color[i:i + 2], 16) for i in (1, 3, 5)]
        cv2.polylines(outlined, [np.round(r * 16).astype(int) for r in rings], True, tone, 1, cv2.LINE_AA, 4)
    shown = [image, draw.boxes(boxes, sample.boxes * 3, colors=colors, width=2, scale=1, labels=names), outlined]
    return shown + [panoptic(index)] * (profile == "pocket")


crowded = [i for i in range(min(400, len(data))) if len(data.sample(i).ignored) and len(data.sample(i).boxes) > 2]
chosen = crowded[:2]
draw.grid([draw.to_pil(p).resize((264, 264)) for i in chosen for p in panels(i)], 4 if profile == "pocket" else 3)


# %% [markdown]
# ## Look closer
#
# Move over a picture (or tap it) to see the outlines; rest on one to read its name.

# %%
def interactive(index):
    """A picture with its outlines as shapes that react to the pointer."""
    sample = data.sample(index)
    jpeg = base64.b64encode(cv2.imencode(".jpg", sample.image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]).decode()
    h, w = sample.size
    shapes = "".join(
        f'<path d="{"".join("M" + " ".join(f"{v:.1f}" for v in ring.ravel()) + "z" for ring in rings)}" '
        f'fill="{draw.colour(c)}"><title>{data.class_names[c]}</title></path>'
        for rings, c in zip(sample.masks.rings, sample.labels))
    return (f'<svg viewBox="0 0 {w} {h}" tabindex="0"><image href="data:image/jpeg;base64,{jpeg}" width="{w}" '
            f'height="{h}"/>{shapes}</svg>')


HTML('<style>.zoo-gallery {display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 4px} '
     '.zoo-gallery svg {width: 100%} .zoo-gallery path {opacity: 0; transition: opacity .2s} '
     '.zoo-gallery svg:hover path, .zoo-gallery svg:focus path {opacity: .55} '
     '.zoo-gallery svg path:hover {opacity: .85}</style>'
     f'<div class="zoo-gallery">{"".join(interactive(i) for i in range(24, min(36, len(data))))}</div>')

# %% [markdown]
# ## Classes and sizes
#
# How many objects each class has, and their median size in pixels. Every class is about equally frequent. In COCO
# some classes are very common and others rare.

# %%
some = range(min(2000, len(data)))  # of a large set enough to count on
rows = [(data.class_names[c], *(box[2:] - box[:2])) for sample in map(data.sample, some)
        for box, c in zip(sample.boxes, sample.labels)]
objects = pd.DataFrame(rows, columns=["class", "width", "height"])
objects.groupby("class").agg(objects=("width", "size"), width=("width", "median"), height=("height", "median")).round(0)

# %% [markdown]
# COCO calls an object small when it covers less than 32 x 32 pixels, and large from 96 x 96 on. The results below
# are given for each of these sizes. Pictures of 128 x 128 pixels have few large objects: most animals are small or
# medium.

# %%
side = np.sqrt(objects.width * objects.height)
draw.histogram({"small": side[side < 32], "medium": side[(side >= 32) & (side < 96)], "large": side[side >= 96]},
               bins=np.arange(0, side.max() + 4, 4), x="square root of a box's area (pixels)", y="objects")

# %% [markdown]
# The shapes differ from class to class. Each point is a box; the pointer tells its class and size. A click on a
# name in the legend hides a class, a double click shows it alone.

# %%
figure = go.Figure(layout=dict(template="none", height=400, margin=dict(l=50, r=10, t=10, b=45), dragmode=False,
                               paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font=dict(color="#808080")))
for i, (name, group) in enumerate(objects.groupby("class")):
    group = group[:60].round(0)
    figure.add_scatter(x=group.width, y=group.height, name=name, mode="markers", hovertemplate="%{x} x %{y}",
                       marker=dict(color=draw.colour(i), size=6, opacity=0.7))
figure.update_xaxes(title="width (pixels)").update_yaxes(title="height (pixels)")
HTML(figure.to_html(full_html=False, include_plotlyjs="../_static/plotly.min.js", div_id="box-sizes",
                    config=dict(responsive=True, displayModeBar=False)))

# %% [markdown]
# ## What happens before training
#
# A network sees each picture many times. Transforms change it a little each time, and the boxes and outlines with
# it. From left to right: the picture as it is; mirrored; resized to a random scale; and large-scale jitter
# (Ghiasi et al., "Simple copy-paste is a strong data augmentation method for instance segmentation", 2021), which
# zooms by a random factor and then pads or cuts out; here once out and once in. The recipes of this book use the
# first two; the published models name theirs in the tables of the zoo.

# %%
index = (crowded or [0])[-1]
h, w = data.sample(index).size
crop = RandomCrop((h, w), allow_negative=True)
jitter = [(ScaleJitter((h, w), zoom), crop) for zoom in ((0.4, 0.7), (1.4, 2.0))]
variants = [(), (Flip(1.0),), (ResizeRange((h * 3 // 4, w * 3 // 4), (h * 3 // 2, w * 3 // 2)),), *jitter]
rng, shown = np.random.default_rng(seed), []
for steps in variants:
    sample = apply(steps, data.sample(index), rng)
    canvas = draw.to_pil(np.full((h * 3 // 2, w * 3 // 2, 3), 235, np.uint8))
    colors = [draw.colour(c) for c in sample.labels]
    canvas.paste(draw.boxes(sample.image[..., ::-1], sample.boxes, colors=colors, scale=1))
    shown.append(canvas)
draw.grid(shown, 5)

# %% [markdown]
# InstaBoost (Fang et al., "InstaBoost: Boosting instance segmentation via probability map guided copy-pasting", 2019)
# moves the objects themselves. Each is cut out along its outline, turned, resized and put back close by, and the
# place that it leaves is painted over. Above the pictures as they are, below after one such step.

# %%
chosen = [data.sample(i) for i in range(40) if len(data.sample(i).boxes) > 1][:5]
boost = InstaBoost(probability=1.0)
draw.grid([draw.boxes(s.image[..., ::-1], s.boxes, colors=[draw.colour(c) for c in s.labels], scale=1)
           for s in chosen + [boost(s, rng) for s in chosen]], 5)

# %% [markdown]
# ## How fast
#
# Pictures of a batch are padded to one size and stay bytes until they are on the device. Only there they become
# numbers around zero, as the pretrained backbone wants them.
#
# Pictures are drawn by several processes, each from its own random numbers: however many there are, the files are
# the same. Loading means to read the file, decode it, transform it and put a batch together. The row `opening`
# reads and arranges the whole annotation file, in images a second.

# %% tags=["nbval-ignore-output"]
speed = {}
with tempfile.TemporaryDirectory() as folder:
    for workers in (1, 2) * (profile == "pocket"):
        clock = time.perf_counter()
        pocket_zoo.draw(Path(folder) / str(workers), images=images, val=1, seed=seed, workers=workers, progress=False)
        speed[f"drawing, {workers} process{'es' * (workers > 1)}"] = images / (time.perf_counter() - clock)
clock = time.perf_counter()
opened = CocoDataset(data_root, transforms=(Resize(), Flip()) if profile == "coco" else (Flip(),))
speed["opening"] = len(opened) / (time.perf_counter() - clock)
clock = time.perf_counter()
loader = build_loader(opened, 16, preprocess=TORCHVISION, training=True, seed=seed)
seen = sum(len(batch) for batch in islice(loader, -(-images // 16)))
speed["loading, 1 process"] = seen / (time.perf_counter() - clock)
Record(kind="data", profile=profile, data=describe(data), seed=seed, duration_s=time.perf_counter() - started,
       parameters=dict(images=images), metrics=dict(objects=len(objects), classes=len(data.class_names)),
       speed={f"{name.replace(', ', '_').replace(' ', '_')}_images_per_s": value for name, value in speed.items()},
       memory=peak_memory_gb()).write(f"{records}/data.{profile}.json")
pd.DataFrame({"images a second": speed}).round(0)

# %% [markdown]
# ## Draw your own
#
# Another seed gives another set; a larger one begins with the same pictures. The long tail makes each class half as
# frequent as the one before.
#
# ```bash
# detcore data pocket --root data/mine --images 5000 --seed 1
# ```
#
# For COCO itself, unpack its pictures and annotations into one folder (`train2017/`, `val2017/`, `annotations/`)
# and run this chapter on it:
#
# ```bash
# papermill notebooks/data.ipynb out.ipynb -p profile coco -p data_root /data/coco
# ```
