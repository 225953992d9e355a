# %% [markdown]
# # Benchmarks
#
# A difference between two models says little without the conditions under which it was
# measured, and without its uncertainty. This chapter describes how accuracy, time and
# memory are measured, and compares the methods of all chapters; it trains nothing,
# every number is read from the records that the chapters wrote.
#
# ```{figure} ../book/figures/benchmark.svg
# :name: benchmark-protocol
# :width: 100%
#
# What is measured. The forward pass and the post-processing are timed, loading is not.
# The validation images are resampled for the intervals. Every run leaves its results in
# a record, and this page reads the records.
# ```
#
# **Accuracy.** COCO's average precision is a mean over the classes $c \in C$ and over
# ten IoU thresholds $t \in T = \{0.50, 0.55, \dots, 0.95\}$:
#
# $$\mathrm{AP} = \frac{1}{|C|\,|T|} \sum_{c \in C} \sum_{t \in T} \frac{1}{101}
#   \sum_{r \in \{0, 0.01, \dots, 1\}} \max_{r' \ge r} \, p_{c,t}(r')$$
#
# where $p_{c,t}(r)$ is the precision at the recall $r$, if a detection counts as
# correct that has an IoU of at least $t$ with an object of its class. Proposals have no
# class and are measured by average recall.
#
# **Uncertainty.** The validation images are a sample. The bootstrap draws as many
# images from them, with replacement, and evaluates again; 300 such values
# $\mathrm{AP}^*_b$ give the 95 % interval, from their 2.5th to their 97.5th percentile.
# Two models $m$ and $n$ are evaluated on the same resamplings, so that the interval of
# their difference comes from
#
# $$\Delta^*_b = \mathrm{AP}^*_b(m) - \mathrm{AP}^*_b(n)$$
#
# It is mostly narrower than for two different sets of images, since an image that is
# difficult for one model is mostly difficult for the other one, too. These intervals
# speak of other images of the same kind. How much another seed of the training changes
# is a different question; the standard deviation over seeds answers it.
#
# **Inference time.** Forward pass and post-processing of one image after the other, up
# to the detections in the image's own pixels; reading, decoding and resizing do not
# count. The first images are left out. This book gives the median and the quartiles of
# the other images, with nothing else running; the published times are means over 2,000
# images.
#
# **FLOPs.** Those of convolutions and matrix products in one forward pass over the
# images that are timed, with the proposals that the model makes of them. A
# multiplication and an addition are two.
#
# **Memory.** On GPUs the largest allocation on any of them. On the CPU the largest
# resident size of the process, with Python and its libraries.

# %% tags=["parameters", "hide-input"]
profile = "pocket"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
records = "build/records"

# %% tags=["hide-input"]
import json
from itertools import combinations
from pathlib import Path

import numpy as np

from detcore import draw, get_model_entry, list_models
from detcore.experiment import (
    Experiment,
    Table,
    images_seen,
    paired,
    signed,
    with_interval,
)
from detcore.records import read_records
from detcore.zoo.index import published_results

known, found = set(list_models()), {}
for record in read_records(records).values():
    if record.model in known and record.profile == profile and not record.seed:
        found.setdefault(record.model, {})[record.kind] = record
# Models with a training and an evaluation, in the order of the chapters.
order = ["rpn", "fast-rcnn", "faster-rcnn", "mask-rcnn", "cascade-rcnn",
         "cascade-mask-rcnn", "retinanet"]

def place(model):
    """Where a model comes in the tables; those of no chapter are last."""
    name = model.split("_")[0]
    return order.index(name) if name in order else len(order), model


found = {model: found[model] for model in sorted(found, key=place)
         if {"train", "evaluate"} <= set(found[model])}
evaluated = {model: kinds["evaluate"] for model, kinds in found.items()}
trained = {model: kinds["train"] for model, kinds in found.items()}
timed = {model: kinds["benchmark"] for model, kinds in found.items()
         if "inference_q1_s" in kinds.get("benchmark", kinds["train"]).speed}
detectors = [model for model in found if "bbox_AP" in evaluated[model].metrics]


def short(model):
    """A name for axes."""
    return model.removesuffix("_r50_fpn_1x_coco")


def percent(model, metric="bbox_AP"):
    """A metric in percent."""
    value = evaluated[model].metrics.get(metric)
    return float("nan") if value is None else 100 * value


def bounds(model, metric="bbox_AP"):
    """Its 95 % interval in percent."""
    ends = evaluated[model].intervals.get(metric)
    return None if ends is None else tuple(100 * end for end in ends)


intervals = {short(m): b for m in detectors if (b := bounds(m))}

# %% [markdown]
# ## Accuracy
#
# The axis begins at zero. Where two intervals overlap widely, look at the pair's
# difference further below before you call one method better.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Box AP on the validation images, with 95 % intervals (lines). The axis begins at zero.", "name": "benchmark-accuracy"}}
figure = draw.bars({short(m): percent(m) for m in detectors}, x="box AP (%)",
                   intervals=intervals)
figure.axes[0].set_xlim(0)
figure

# %% tags=["hide-input", "nbval-ignore-output"]
seeds = {m: Experiment(m, data_root, profile=profile, records=records) for m in found}
Table(["model", "box AP (%) [95 % interval]", "mean ± std over seeds (n)", "AP50",
       "AP75", "mask AP (%) [95 % interval]"],
      [(m, with_interval(evaluated[m], "bbox_AP"), seeds[m].spread("bbox_AP"),
        f"{percent(m, 'bbox_AP50'):.1f}", f"{percent(m, 'bbox_AP75'):.1f}",
        with_interval(evaluated[m], "segm_AP")) for m in detectors])

# %% [markdown]
# By size of the objects; the first row says how many objects of the validation images
# each column rests on. Few objects give wide intervals.

# %% tags=["hide-input", "nbval-ignore-output"]
file = Path(data_root) / "annotations/instances_val2017.json"
areas = [a["area"] for a in json.loads(file.read_text())["annotations"]
         if not a["iscrowd"]]
groups = dict(zip("sml", np.histogram(np.sqrt(areas), [0, 32, 96, np.inf])[0]))
Table(["model", "small", "medium", "large"],
      [("number of objects", *(f"{groups[suffix]:,}" for suffix in groups)),
       *((m, *(with_interval(evaluated[m], f"bbox_AP{suffix}") for suffix in groups))
         for m in detectors)], caption="box AP (%) [95 % interval]")

# %% tags=["remove-cell"]
assert all(percent(m, "bbox_AP50") >= percent(m) for m in detectors)
assert all(low <= percent(m) + 2 and percent(m) - 2 <= high for m in detectors
           for low, high in [bounds(m) or (0, 100)])

# %% [markdown]
# Proposals, by how many of them are taken. The RPN of the pocket profile gives at most
# 200 proposals for an image, so that its recall is the same for 300 and for 1,000. It
# cannot be compared with the AR@1000 that is published for COCO.

# %% tags=["hide-input", "nbval-ignore-output"]
proposers = [m for m in found if "proposal_AR100" in evaluated[m].metrics]
Table(["model", *(f"AR@{n} (%)" for n in (100, 300, 1000))],
      [(m, *(with_interval(evaluated[m], f"proposal_AR{n}") for n in (100, 300, 1000)))
       for m in proposers])

# %% tags=["remove-cell"]
if profile == "pocket":
    for m in proposers:
        assert get_model_entry(m).pocket.options["max_detections"] == 200
        assert percent(m, "proposal_AR300") == percent(m, "proposal_AR1000")

# %% [markdown]
# ## Which differences are clear
#
# For each pair of detectors: the difference of their AP with its 95 % interval, the
# difference of their means over the seeds, and how many validation images it would take
# for a difference of one point to be outside of the interval. That number follows from
# the standard deviation $\sigma$ of the $\Delta^*_b$ with $N$ images, since it falls
# with the square root of their number: $N \, (1.96 \, \sigma / 0.01)^2$.

# %% tags=["hide-input", "nbval-ignore-output"]
def pair_row(a, b):
    """Whether the interval of the difference leaves out zero, and the row."""
    difference, ends = paired(evaluated[a], evaluated[b], "bbox_AP")
    if difference < 0:
        a, b = b, a
        difference, ends = paired(evaluated[a], evaluated[b], "bbox_AP")
    means = [np.mean(values) for m in (a, b)
             if len(values := seeds[m].over_seeds("bbox_AP")) > 1]
    needed = "–"
    if ends:
        first, second = (np.array(evaluated[m].replicates["bbox_AP"], float)
                         for m in (a, b))
        sigma = np.std(first - second)
        needed = f"{evaluated[a].data.images * (1.96 * sigma / 0.01) ** 2:,.0f}"
        narrower.append(sigma < np.hypot(first.std(), second.std()))
    return ends is not None and ends[0] > 0, (
        a, b, signed(difference, ends),
        f"{100 * (means[0] - means[1]):+.1f}" if len(means) == 2 else "–", needed)


narrower = []  # whether the pair's difference varies less than for other images
pairs = [pair_row(a, b) for a, b in combinations(detectors, 2)]
headers = ["model", "minus", "difference of box AP, points [95 % interval]",
           "difference of the means over seeds", "images needed for 1 point"]
Table(headers, [row for clear, row in pairs if clear],
      caption="Pairs whose interval leaves out zero")

# %% tags=["hide-input", "nbval-ignore-output"]
Table(headers, [row for clear, row in pairs if not clear],
      caption="Pairs whose interval includes zero, or that have none")

# %% [markdown]
# Only the first table supports a statement about an order, and that only for these
# images and this seed: where the means over the seeds differ in the other direction,
# another training may turn the order around. The pairs of the second table cannot be
# told apart with these images.

# %% tags=["remove-cell"]
assert len(pairs) == len(detectors) * (len(detectors) - 1) // 2
assert all(row[2].startswith("+") for _, row in pairs)
assert sum(narrower) >= len(narrower) / 2

# %% [markdown]
# ## Training
#
# Methods that train on a different number of images are not compared under equal
# conditions. The recipes of the pocket profile give the methods that the chapters
# compare the same number of images; where a row of the table has another number, it is
# not compared with the others.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Box AP over the number of images seen in training, with 95 % intervals. Both axes begin at zero. Points one above the other have seen the same number of images.", "name": "benchmark-images"}}
seen = {short(m): (images_seen(trained[m]), percent(m)) for m in detectors}
draw.points(seen, x="images seen", y="box AP (%)", upright=intervals)

# %% tags=["hide-input", "nbval-ignore-output"]
def all_seeds(kind):
    """For each model its records of a kind, of all seeds."""
    return {m: [seeds[m].recorded(kind, s) for s in range(10)
                if seeds[m].record_path(kind, s).exists()] for m in found}


trainings = all_seeds("train")
Table(["model", "steps", "images seen", "seeds", "training (s)",
       "training (s per step)"],
      [(m, f"{r.parameters['steps_done']:,}", f"{images_seen(r):,}",
        str(len(trainings[m])), f"{r.duration_s:.0f}",
        f"{r.speed.get('training_step_s', np.nan):.2f}")
       for m, r in trained.items()])

# %% [markdown]
# Each seed is a training of its own; the points of a model show how much one training
# differs from the next.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Box AP of each seed (points) and their mean (vertical line). The axis begins at zero. Where there is one point, one seed has been trained.", "name": "benchmark-seeds"}}
figure = draw.bars({short(m): 0 for m in detectors}, x="box AP (%)")
axes = figure.axes[0]
for m in detectors:
    values = 100 * np.array(seeds[m].over_seeds("bbox_AP"))
    axes.plot(values, [short(m)] * len(values), "o", color=draw.colour(5), ms=5)
    axes.plot([values.mean()], [short(m)], "|", color=draw.colour(3), ms=16, mew=2)
axes.set_xlim(0)
figure

# %% [markdown]
# ## Time, operations, memory
#
# Median time of an image, with the quartiles. Times are comparable on one machine only;
# the records name it at the end of this page.

# %% tags=["hide-input", "nbval-ignore-output"]
def milliseconds(record):
    """Median and quartiles of an image's time."""
    return tuple(1000 * record.speed[f"inference_{name}_s"]
                 for name in ("median", "q1", "q3"))


Table(["model", "inference (ms) [quartiles]", "GFLOPs", "parameters (millions)",
       "training memory (GB)"],
      [(m, "{:.1f} [{:.1f}, {:.1f}]".format(*milliseconds(r)),
        f"{(r.metrics['flops'] or 0) / 1e9:.2f}",
        f"{r.metrics['parameters'] / 1e6:.2f}",
        f"{max(trained[m].memory.values()):.2f}") for m, r in timed.items()])

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Box AP with 95 % intervals (vertical lines) over the median inference time of an image with its quartiles (horizontal lines). Both axes begin at zero. The best place is the upper left corner.", "name": "benchmark-speed"}}
fast = {m: milliseconds(timed[m]) for m in detectors if m in timed}
draw.points({short(m): (ms[0], percent(m)) for m, ms in fast.items()},
            x="inference time of an image (ms)", y="box AP (%)", upright=intervals,
            across={short(m): ms[1:] for m, ms in fast.items()})

# %% tags=["remove-cell"]
assert all(low <= middle <= high for middle, low, high in fast.values())

# %% [markdown]
# ## Which classes are difficult
#
# The mean over the detectors of each class's AP, and the range from the worst to the
# best of them.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Box AP of each class, averaged over the detectors, the best class on top; the lines go from the lowest to the highest of the detectors. The axis begins at zero. Of more than 20 classes the ten best and the ten worst.", "name": "benchmark-classes"}}
table = {}
for m in detectors:
    for name, value in evaluated[m].per_class.get("bbox", {}).items():
        table.setdefault(name, []).append(100 * (value or 0))
ranked = sorted(table, key=lambda name: -np.mean(table[name]))
ranked = ranked if len(ranked) <= 20 else ranked[:10] + ranked[-10:]
draw.bars({name: np.mean(table[name]) for name in ranked}, x="box AP (%)",
          intervals={name: (min(table[name]), max(table[name])) for name in ranked})

# %% [markdown]
# ## Is the order the same on COCO?
#
# The table has our AP on Pocket Zoo beside the published AP of the same models on COCO,
# each with its rank. Data, size of the models and length of the training differ, so
# that neither the values nor the order need agree: a result of the pocket profile shows
# how a method works, not how good it is on COCO.

# %% tags=["hide-input", "nbval-ignore-output"]
coco = {m: facts.box_ap for m, facts in published_results().items()
        if m in detectors and facts.box_ap}


def ranks(values):
    """The rank of each, the largest first."""
    return {m: 1 + sum(other > value for other in values.values())
            for m, value in values.items()}


here, there = ranks({m: round(percent(m), 1) for m in coco}), ranks(coco)
Table(["model", "box AP here (%)", "rank here", "published box AP on COCO (%)",
       "rank on COCO"],
      [(m, with_interval(evaluated[m], "bbox_AP"), str(here[m]), f"{coco[m]:.1f}",
        str(there[m])) for m in sorted(coco, key=lambda m: there[m])])

# %% tags=["remove-cell"]
assert set(here.values()) <= set(range(1, len(coco) + 1))

# %% [markdown]
# ## The published models
#
# Box AP on COCO over inference time on a V100 GPU, as the model zoo of MMDetection
# gives them; the published results come without intervals.
#
# ```{speed-accuracy} COCO
# ```
#
# ## Between implementations
#
# What was published of two implementations of the same methods; its authors installed
# both of them on one machine. The models of this book took no part. Box and mask AP:
#
# ```{published-table} comparison_ap
# ```
#
# Seconds per training step:
#
# ```{published-table} comparison_training
# ```
#
# Training memory in GB:
#
# ```{published-table} comparison_memory
# ```
#
# Images per second at inference:
#
# ```{published-table} comparison_inference
# ```
#
# ## Measure yourself
#
# On a machine with GPUs and COCO this chapter reads the records of the full-size
# models.
#
# ```bash
# detcore benchmark faster-rcnn_r50_fpn_1x_coco \
#     --data-root data/pocket --profile pocket
# papermill notebooks/benchmark.ipynb out.ipynb \
#     -p profile coco -p data_root /data/coco
# ```
#
# ## Exercises
#
# 1. Evaluate a model on the first half of the validation images and on the second half.
#    Does the difference between the two fit the 95 % interval?
# 2. Compute the interval of a pair's difference as if the two models had been evaluated
#    on different images, and compare it with the paired interval.
# 3. Run `make seeds` with two more seeds and compare the standard deviation over the
#    seeds with the half width of the interval over the images. Which one is larger?
#
# ## Summary
#
# A result is a value with an interval, measured under stated conditions: data, number
# of images seen, seed, machine. The interval of a paired difference tells which of two
# models is better on images of this kind; the spread over seeds tells whether another
# training would change that. Results of small models on small data do not give the
# order on COCO.
#
# ## How to cite
#
# ```{cite-paper} chen2019mmdetection
# ```

# %% [markdown]
# ## Where the records come from

# %% tags=["hide-input", "nbval-ignore-output"]
def machine(record):
    """What a record's run was made on."""
    hardware = record.hardware
    return ", ".join([hardware.cpu, f"{hardware.cores} cores", *hardware.accelerators])


Table(["model", "version", "commit", "date", "machine", "PyTorch", "checkpoint"],
      [(m, r.versions.get("detcore", "–"), r.commit or "–", r.date or "–",
        machine(r), r.versions.get("torch", "–"),
        str(r.parameters.get("checkpoint", "–")))
       for m, r in evaluated.items()])
