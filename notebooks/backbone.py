# %% [markdown]
# # Pretrained backbones
#
# A detector has few annotated images, and its layers would have to learn edges, fur and
# faces from these alone. So its *backbone*, the network that turns pixels into feature
# maps, is first trained on a simpler task with more data, and then fine-tuned with the
# detector.
#
# Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: [Deep residual learning for image
# recognition](https://arxiv.org/abs/1512.03385), 2016.
#
# ```{figure} ../book/figures/backbone.svg
# :name: backbone-architecture
# :width: 100%
#
# The small ResNet-18 of the pocket profile (highlighted), with the shapes of its
# feature maps for an image of 128 x 128 pixels. In pretraining a linear layer on each
# stage names the animal in each cell; these layers are discarded, and a detector takes
# over the stages.
# ```
#
# This chapter uses two formulas. Batch normalisation maps the value $x$ of a channel to
#
# $$y = \gamma \, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$
#
# where the scale $\gamma$ and the shift $\beta$ are learned, and $\epsilon$ is a small
# constant. In pretraining $\mu$ and $\sigma^2$ are the mean and the variance of the
# channel over the batch, and their running averages are stored. In a detector they are
# *frozen*: the stored values stay.
#
# A linear probe measures how well features tell the classes apart. With the network
# fixed, it fits a matrix $W$ that maps the features $f_i$ of the cell $i$ to its class,
# a one-hot vector $t_i$, by weighted least squares:
#
# $$W = \arg\min_W \sum_i w_i \, \lVert W f_i - t_i \rVert^2
#   + \lambda \lVert W \rVert^2$$
#
# where $w_i$ is one over the number of cells of the class, so that all classes count
# the same, and $\lambda$ is small.
#
# The published models start from networks that were trained to name the one object of
# an ImageNet image. The small models of this book start from one that was trained on
# Pocket Zoo.

# %% tags=["parameters", "hide-input"]
profile = "pocket"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = None
output = "runs/backbone"
records = "build/records"

# %% tags=["hide-input"]
from dataclasses import replace

import torch

from detcore import create_model, draw, get_model_entry
from detcore.data.coco import CocoDataset
from detcore.data.loader import build_loader
from detcore.engine.common import describe
from detcore.experiment import Experiment, Table, source
from detcore.pocket import pocket_zoo
from detcore.pocket.pretrain import class_map, pretrain
from detcore.pocket.profile import training
from detcore.pocket.slim import SLIM, slim_resnet
from detcore.recipe import CAFFE, CAFFE2, TORCHVISION
from detcore.records import Record, peak_memory_gb
from detcore.weights import load_backbone
from detcore.zoo.summary import summarize

# The small backbone belongs to Pocket Zoo, whatever the profile of the other chapters.
root = data_root if profile == "pocket" else "data/pocket"
pocket_zoo.draw(root, progress=False)
strides = (4, 8, 16, 32)

# %% [markdown]
# ## The task
#
# The label of an ImageNet image is one class. Pocket Zoo has masks, so that the targets
# can be finer: each of the four stages has to classify each of its cells as one of the
# animals or as background. A cell of the finest stage has 4 x 4 pixels, one of the
# coarsest stage 32 x 32.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Targets of the four stages for three validation images. From left to right: the image; the class of each cell of stages 1 to 4, in the colours of the classes, grey for background.", "name": "backbone-task"}}
data = CocoDataset(root, "annotations/instances_val2017.json", "val2017",
                   masks="bitmap")
data.select(torch.arange(len(data)).numpy() < 160)
batch = next(iter(build_loader(data, len(data), preprocess=TORCHVISION)))
images = TORCHVISION(batch.images, batch.sizes)
targets = torch.stack([class_map(t, images.tensor.shape[2:]) for t in batch.targets])
classes = len(data.class_names)
tones = torch.tensor([list(bytes.fromhex(tone[1:])) for tone in (
    "#e4e4e4", *map(draw.colour, range(classes)))], dtype=torch.uint8)
# The probe is fitted on the images with odd numbers and asked about the even ones.
fitted = torch.arange(len(batch)) % 2 == 1
most = (targets.flatten(1) > 0).sum(1).argsort(descending=True).tolist()
shown = [i for i in most if not fitted[i]][20:50:10]


def cells(stride):
    """[N, h, w] the class at the middle of each cell."""
    return targets[:, stride // 2::stride, stride // 2::stride]


def rows(*columns):
    """A row for each shown image: it, and what the functions give for it."""
    panels = [panel for i in shown for panel in (
        draw.pixels(images, i, TORCHVISION), *(column(i) for column in columns))]
    return draw.grid([draw.to_pil(x).resize((150, 150), 0) for x in panels],
                     1 + len(columns))


def class_maps(maps):
    """Functions that draw the class maps of the stages."""
    return [lambda i, m=m: tones[m[i]].numpy() for m in maps]


rows(*class_maps([cells(stride) for stride in strides]))

# %% [markdown]
# ## The code
#
# The whole pretraining is one function. Its core: each stage has a linear layer (a
# convolution of 1 x 1), its target is the class at the middle of each cell, and the
# loss is the sum of the cross-entropies of the four stages. The target is made from the
# masks:

# %% tags=["hide-input"]
source(class_map)

# %% [markdown]
# ## A short pretraining
#
# Here the network trains for a few steps from random weights; the backbone that comes
# with this book had more of them.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Loss of the short pretraining, the sum over the four stages, over the steps.", "name": "backbone-pretraining"}}
short_steps = 120 if steps is None else steps
short = pretrain(root, steps=short_steps, seed=seed, output=None)
at = list(range(1, short_steps + 1))
Record(kind="pretrain", profile="pocket", data=describe(CocoDataset(root)), seed=seed,
       duration_s=short.seconds, parameters=dict(steps=short_steps),
       metrics={f"accuracy_stage{i}": a for i, a in enumerate(short.accuracy, 1)},
       speed=dict(training_step_s=short.seconds / short_steps),
       memory=peak_memory_gb(),
       curves=dict(step=at, loss=short.losses)).write(f"{records}/backbone.pocket.json")
draw.lines({"loss": (at, short.losses)}, x="step", y="loss")

# %% tags=["remove-cell"]
if steps is None:
    assert sum(short.losses[-10:]) < 0.6 * sum(short.losses[:10])

# %% [markdown]
# ## What the features tell
#
# Three backbones are probed: one with random weights, the one of the short run, and the
# one that comes with this book. The probe is fitted on every other of 160 validation
# images; the numbers are from the images that it was not fitted on. None of these
# images was used in pretraining. Each number is the share of animal cells whose class
# is read correctly, averaged over the classes; guessing gives one over the number of
# classes and background.

# %% tags=["hide-input", "nbval-ignore-output"]
def features(backbone):
    """The maps of its four stages."""
    with torch.no_grad():
        return backbone.eval()(images.tensor)


def probe(backbone):
    """For each stage the class map that a linear probe reads from its features."""
    answers = []
    for x, stride in zip(features(backbone), strides):
        x = x.permute(0, 2, 3, 1)
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        y = torch.nn.functional.one_hot(cells(stride), classes + 1).float()
        y = y / y[fitted].flatten(0, 2).sum(0).clamp(min=1)  # classes count the same
        fit, target = x[fitted].flatten(0, 2), y[fitted].flatten(0, 2)
        gram = fit.T @ (target.sum(1, keepdim=True) * fit)
        ridge = 1e-5 * gram.trace() * torch.eye(len(gram))
        solution = torch.linalg.solve(gram + ridge, fit.T @ target)
        answers.append((x @ solution).argmax(-1))
    return answers


def accuracy(answer, stride):
    """Share of animal cells read correctly, of images that were not fitted on."""
    answer, target = answer[~fitted], cells(stride)[~fitted]
    return float(torch.stack([(answer[target == c] == c).float().mean()
                              for c in target.unique()[1:]]).mean())


torch.manual_seed(seed)
untrained = slim_resnet()
carrier = create_model("retinanet_r50_fpn_1x_coco", profile="pocket")
load_backbone(carrier, str(SLIM.file))
backbones = {"random weights": untrained, f"{short_steps} steps": short.backbone,
             "of this book": carrier.backbone}
read = {name: probe(backbone) for name, backbone in backbones.items()}
right = {name: [accuracy(a, s) for a, s in zip(answers, strides)]
         for name, answers in read.items()}
Table(["cells read correctly (%), images not fitted on",
       *(f"stage {i}" for i in range(1, 5))],
      [(name, *(f"{100 * v:.1f}" for v in values)) for name, values in right.items()])

# %% tags=["remove-cell"]
assert not any(fitted[i] for i in shown)
assert right["of this book"][2] > right["random weights"][2] + 0.2
assert right["of this book"][2] > right["of this book"][0] + 0.05


def false_share(answer, stride):
    """Share of background cells that are read as an animal, of images not fitted on."""
    return float((answer[~fitted][cells(stride)[~fitted] == 0] > 0).float().mean())


wrong = [false_share(a, s) for a, s in zip(read["of this book"], strides)]
assert wrong[0] > max(wrong[1:]) + 0.02
untrained_wrong = [false_share(a, s) for a, s in zip(read["random weights"], strides)]
assert min(untrained_wrong) > 0.5 > 1.5 * max(wrong)

# %% [markdown]
# Background cells are left out of these numbers. With random weights the probe reads an
# animal in most of them, too; with the backbone of this book this happens far less.
#
# The cells of early stages are fine, but each of them sees a small part of the image
# only, and is read wrongly more often. Late stages see whole animals, on a coarse grid.
# A feature pyramid combines the two.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Class maps that the probe reads from the backbone of this book, for three images that it was not fitted on. From left to right: the image; stages 1 to 4. The colours are those of the first figure. The maps of stage 1 have more false cells on the background than those of the later stages.", "name": "backbone-probe"}}
rows(*class_maps(read["of this book"]))

# %% [markdown]
# The features themselves, as their norm over the channels:

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Norm of the features over the channels, dark for the least and bright for the greatest value of each map. From left to right: the image; stages 2 and 3 with random weights; stages 2 and 3 of the backbone of this book. The trained backbone's features are much stronger on animals than elsewhere; with random weights the difference is smaller.", "name": "backbone-features"}}
norms = [features(backbones[name])[stage].norm(dim=1)
         for name in ("random weights", "of this book") for stage in (1, 2)]
rows(*(lambda i, n=n: draw.heat(draw.pixels(images, i, TORCHVISION), n[i], scale=1,
                                alpha=0.85) for n in norms))

# %% tags=["remove-cell"]
def contrast(maps, stride):
    """How much stronger features are on animals, in standard deviations."""
    on = cells(stride) > 0
    return float((maps[on].mean() - maps[~on].mean()) / maps.std())


contrasts = [contrast(maps, stride) for maps, stride in zip(norms, (8, 16, 8, 16))]
assert contrasts[2] > 1.5 * contrasts[0] and contrasts[3] > 1.5 * contrasts[1]

# %% [markdown]
# ## What pretraining buys
#
# The same RetinaNet trains twice on the same images with the same seed: once it starts
# from the pretrained backbone, once from random weights. Its other layers are random in
# both. The training is shorter than that of {doc}`RetinaNet's chapter <retinanet>`.

# %% tags=["hide-input", "nbval-ignore-output"]
def student(kind, label):
    """A RetinaNet that trains for 150 steps."""
    entry = get_model_entry("retinanet_r50_fpn_1x_coco")
    entry = replace(entry, name=f"{entry.name}+{kind}-backbone",
                    pocket=replace(entry.pocket, recipe=training(150)))
    return Experiment(entry, root, seed=seed, steps=steps, device=device,
                      records=records, output=f"{output}/{kind}", label=label)


pretrained = student("pretrained", "pretrained backbone")
scratch = student("random", "random weights")
runs = {pretrained.name: pretrained.train(),
        scratch.name: scratch.train(weights="random")}
for exp in (pretrained, scratch):
    exp.evaluate()
comparison = pretrained.compare(scratch)
comparison

# %% [markdown]
# The last row is the difference with its 95 % interval, from a paired bootstrap over
# the validation images. On COCO a detector from random weights reaches the same AP only
# with a much longer training (He, Girshick, Dollár, {doc}`Rethinking ImageNet
# pre-training </book/zoo/scratch>`, 2019).

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Sum of the losses of the two trainings over the steps, on a logarithmic axis. With the pretrained backbone the loss falls faster.", "name": "backbone-losses"}}
curves = {name: run.record.curves for name, run in runs.items()}
draw.lines({name: (c["step"], c["loss"]) for name, c in curves.items()},
           x="step", y="loss", log_y=True)

# %% tags=["remove-cell"]
if pretrained.full:
    assert comparison.clear and comparison.difference > 0.05
    late, early = curves[scratch.name]["loss"], curves[pretrained.name]["loss"]
    half = len(late) // 2
    assert sum(early[half:]) < 0.9 * sum(late[half:])

# %% [markdown]
# ## Frozen statistics
#
# Published detectors train with two images per GPU. The mean and the variance of so few
# images differ from those of the data. The figure measures this: batches of different
# sizes go through the backbone of this book, and each channel's mean over the batch is
# compared with the stored mean. With two images it deviates by more than a quarter of a
# standard deviation. Four times as many images halve the deviation, as for independent
# samples: the cells of one image are alike, so that it is the number of images that
# counts.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Deviation of a batch's mean from the stored mean, in stored standard deviations of the channel (root mean square over channels and batches), over the number of images in the batch; at the input of the last batch norm of each stage.", "name": "backbone-statistics"}}
def deviations(sizes):
    """For each stage the deviation of the mean at each batch size."""
    kept, found = {}, {f"stage {i}": [] for i in range(1, 5)}
    norms = {name: getattr(carrier.backbone, f"layer{i}")[-1].bn2
             for i, name in enumerate(found, 1)}
    hooks = [norm.register_forward_pre_hook(
        lambda module, x, name=name: kept.update({name: x[0].mean((2, 3))}))
        for name, norm in norms.items()]
    features(carrier.backbone)
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        for size in sizes:
            means = torch.stack([part.mean(0) for part in kept[name].split(size)])
            off = (means - norm.running_mean) / norm.running_var.sqrt()
            found[name].append(float(off.square().mean().sqrt()))
    return found


batch_sizes = [1, 2, 4, 8, 16, 32]
deviation = deviations(batch_sizes)
figure = draw.lines({name: (batch_sizes, values) for name, values in deviation.items()},
                    x="images in the batch", y="deviation of the mean (std)")
figure.axes[0].set_ylim(0)
figure

# %% tags=["remove-cell"]
for one, two, four, eight, *_ in deviation.values():
    assert two > 0.25 and 1.6 < one / four < 2.4 and 1.6 < two / eight < 2.4

# %% [markdown]
# So the published detectors keep the stored statistics of the pretrained backbone. They
# also keep the weights of its stem and first stage. The backbone of the pocket profile
# freezes the statistics only: it has few weights, and it was pretrained on the same
# kind of images.

# %% tags=["hide-input"]
parts = {"ResNet-50, as published": create_model("retinanet_r50_fpn_1x_coco").backbone,
         "small ResNet-18, pocket profile": slim_resnet()}
Table(["backbone", "parameters", "trainable"],
      [(name, f"{p.parameters:,}", f"{p.trainable:,}")
       for name, part in parts.items() for p in summarize(part)[-1:]])

# %% [markdown]
# ## Each backbone needs its own normalisation
#
# A pretrained network expects images as it has seen them: the same order of channels,
# the same mean subtracted, the same scale. With another convention nothing fails; the
# results are worse. The published models use backbones of several origins, and each
# recipe keeps the convention of its origin.
#
# ```{preprocessing-table}
# ```
#
# The same image after three of these conventions:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One image as three conventions give it to the network, its first channel shown as red, values scaled to the range of each. From left to right: TorchVision (RGB), Caffe and Caffe2 (both BGR, so that red and blue change places).", "name": "backbone-conventions"}}
kinds = {"TorchVision": TORCHVISION, "Caffe (MSRA)": CAFFE, "Caffe2": CAFFE2}
inputs = {name: kind(batch.images[shown[:1]], batch.sizes[:1]).tensor[0]
          for name, kind in kinds.items()}
spread = [(x - x.min()) / (x.max() - x.min()) for x in inputs.values()]
draw.grid([draw.to_pil((255 * x).byte()).resize((250, 250)) for x in spread], 3)

# %% tags=["hide-input"]
Table(["convention", "least value", "mean", "greatest value"],
      [(name, f"{x.min():.1f}", f"{x.mean():.2f}", f"{x.max():.1f}")
       for name, x in inputs.items()])

# %% tags=["remove-cell"]
first, second = inputs["TorchVision"], inputs["Caffe2"]
assert torch.allclose(first, second.flip(0), atol=0.05)
assert inputs["Caffe (MSRA)"].abs().max() > 20 * first.abs().max()

# %% [markdown]
# ## Reproduce the backbone
#
# The file `detcore/pocket/backbone.safetensors` comes from the following command; the
# file names its steps, its seed and the fingerprint of its data. The backbones of the
# published models are fetched when a training needs them.
#
# ```bash
# detcore pretrain --data-root data/pocket
# ```
#
# ## Exercises
#
# 1. Probe the backbone after each 100 steps of a longer pretraining. Which stage's
#    accuracy rises first?
# 2. Train the comparison for 600 steps (`training(600)`). How much of the difference
#    remains?
# 3. Give a published detector the convention of another origin, `CAFFE` in place of
#    `TORCHVISION`, and evaluate it on a hundred images of COCO. How much AP does it
#    lose?
#
# ## Summary
#
# A pretrained backbone gives a detector features that already tell the classes apart,
# most clearly in its late, coarse stages. With a short training a detector that starts
# from it reaches a higher AP than one from random weights. Its batch norm statistics
# stay frozen, because those of a batch of few images deviate from those of the data,
# and its images have to be normalised as in its pretraining.
#
# ## How to cite
#
# ```bibtex
# @inproceedings{he2016deep,
#     author = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
#     title = {Deep residual learning for image recognition},
#     booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
#     year = {2016},
#     url = {https://arxiv.org/abs/1512.03385}
# }
# ```

# %% tags=["hide-input", "nbval-ignore-output"]
pretrained.provenance()
