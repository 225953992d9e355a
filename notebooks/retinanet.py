# %% [markdown]
# # RetinaNet
#
# A detector of one stage looks at every anchor of the image once and gives each a class straight away.
# Nearly all anchors lie on background, and most of that background is easy.
# Each easy anchor costs almost nothing, but there are so many that their sum drowns the few anchors on objects.
# Earlier detectors threw most of the background away, by a proposal stage or by sampling.
# RetinaNet keeps every anchor and changes the loss instead: the *focal loss* mutes what the network already knows.
#
# Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He, Piotr Dollár:
# [Focal loss for dense object detection](https://arxiv.org/abs/1708.02002), 2017.
# The method stands in `detcore/methods/retinanet.py`.

# %% tags=["parameters"]
profile = "pocket"
model = "retinanet_r50_fpn_1x_coco"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = None
output = "runs/retinanet"
records = "build/records"

# %%
import pandas as pd
import torch

from detcore import benchmark, create_model, draw, evaluate, get_model_entry, train
from detcore.data.loader import build_loader
from detcore.engine.common import load_data, pick_device
from detcore.ops.anchors import per_anchor
from detcore.ops.losses import focal
from detcore.ops.matching import BACKGROUND

# %% [markdown]
# ## The loss
#
# Let $p_t$ be the probability that the network gives to the right answer.
# Cross-entropy is $-\log p_t$; the focal loss is $-(1 - p_t)^\gamma \log p_t$.
# With $\gamma = 0$ they are the same.
# Look at the right half of the picture, where the answer is already good: a larger $\gamma$ presses the curve to zero
# there, and leaves the left end, the hard examples, nearly as it was.

# %%
p = torch.linspace(0.01, 0.999, 200)
draw.lines({f"γ = {gamma}": (p, focal(p.logit(), torch.ones(200), alpha=1, gamma=gamma))
            for gamma in (0, 0.5, 1, 2, 5)}, x="$p_t$", y="loss")

# %% [markdown]
# ## Training
#
# One call trains the model by its recipe. Class and box loss fall together, and no sampling takes place:
# every anchor of every image takes part in every step.

# %% tags=["nbval-ignore-output"]
trained = train(model, data_root, profile=profile, output=output, steps=steps, seed=seed, device=device, gpus=gpus,
                resume=True)
trained.record.write(f"{records}/{model}.{profile}.train.json")
draw.losses(trained.record.curves)

# %% [markdown]
# ## Anchors on five levels
#
# The pyramid has five maps, each half as fine as the one before.
# Every cell carries nine anchors: three shapes at three sizes, so that the sizes of all levels form a fine ladder.
# The table counts them for the first images of the validation set.
# "On objects" are the anchors that overlap an object by at least half; all others are background, or left out because
# they are in between.

# %% tags=["nbval-ignore-output"]
recipe = get_model_entry(model).recipe_for(profile)
data = load_data(data_root, recipe)
batch = next(iter(build_loader(data, 16 if profile == "pocket" else 2, preprocess=recipe.preprocess)))
batch = batch.to(pick_device(device))
images = recipe.preprocess(batch.images, batch.sizes)
detector = create_model(model, weights=trained.checkpoint, profile=profile).to(images.tensor.device).eval()
head = detector.bbox_head

with torch.no_grad():
    maps, _ = head(detector.features(images.tensor))
anchors, matched, gt_boxes, gt_labels = head.assign(maps, batch.targets)
counts = [m.shape[2] * m.shape[3] * n for m, n in zip(maps, head.anchors.counts)]
pd.DataFrame({
    "stride": head.anchors.strides, "anchors of an image": counts,
    "on objects, all images": [int((part >= 0).sum()) for part in matched.split(counts, 1)],
}, index=[f"P{i}" for i in range(3, 8)])

# %% [markdown]
# The anchors on objects, in the colour of their level.
# Small animals are found on the fine maps, large ones on the coarse maps, and most objects hold several anchors.

# %% tags=["nbval-ignore-output"]
scale = 256 / max(images.tensor.shape[2:])
pictures = [draw.pixels(images, i, recipe.preprocess) for i in range(len(images))]
level = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(matched.device)
shown = (matched >= 0).sum(1).argsort(descending=True)[:4].tolist()
draw.grid([draw.boxes(pictures[i], anchors[matched[i] >= 0], scale=scale,
                      colors=[draw.colour(k) for k in level[matched[i] >= 0].tolist()]) for i in shown])

# %% [markdown]
# ## What the levels answer
#
# For one image, the highest probability that any class has at each cell, level by level.
# Each object lights up on the level of its size, at the cells near its middle. Elsewhere the maps stay dark: the
# network is sure that there is nothing. Each map is drawn on its own scale, from its lowest to its highest value.

# %% tags=["nbval-ignore-output"]
def best_score(logits):
    """[h, w] the highest probability of any anchor and class at each cell of the first shown image."""
    return logits[shown[0]].sigmoid().amax(0)


draw.grid([draw.heat(pictures[shown[0]], best_score(m), scale=scale) for m in maps], columns=5)

# %% [markdown]
# ## Why easy background is a problem
#
# Here is the probability of "object" that the trained network gives to the anchors, as a power of ten.
# The two groups stand apart, so most anchors are easy. But mind the logarithmic scale: for every anchor on an object
# there are more than a hundred on background.

# %% tags=["nbval-ignore-output"]
logits = torch.cat([per_anchor(m, head.num_classes) for m in maps], 1).float()
positive, negative = matched >= 0, matched == BACKGROUND
one_hot = torch.zeros_like(logits)
labels = gt_labels.gather(1, matched.clamp(min=0))[positive]
one_hot[positive] = torch.eye(head.num_classes, device=logits.device)[labels]
score = logits.sigmoid().amax(2)
figure = draw.histogram({"background": score[negative].log10(), "on objects": score[positive].log10()},
                        bins=torch.linspace(-4, 0, 41), x="$\\log_{10}$ of the highest class probability")
figure.axes[0].set_yscale("log")
figure

# %% [markdown]
# Now the loss of each anchor, sorted from easy to hard, and summed up from left to right.
# A curve that hugs the lower right corner says that a few hard anchors make up nearly all of the loss.
# First the background anchors: under cross-entropy ($\gamma = 0$) the easy ones carry a good part of the sum; with
# $\gamma = 2$ almost everything comes from the hardest few percent.

# %% tags=["nbval-ignore-output"]
def share_of_loss(chosen, gamma):
    """How the loss of the chosen anchors adds up, from the easiest to the hardest."""
    loss = focal(logits, one_hot, gamma=gamma).sum(2)[chosen].sort().values.double().cumsum(0)
    index = torch.linspace(0, len(loss) - 1, 300).long().to(loss.device)
    return torch.linspace(0, 1, 300), (loss / loss[-1])[index].cpu()


draw.lines({f"γ = {gamma}": share_of_loss(negative, gamma) for gamma in (0, 0.5, 1, 2)},
           x="background anchors, easy to hard", y="share of the loss")

# %% [markdown]
# Then the anchors on objects. Here the curves lie closer together: the focal loss mutes easy objects too, but there is
# no mass of them to be muted.

# %% tags=["nbval-ignore-output"]
draw.lines({f"γ = {gamma}": share_of_loss(positive, gamma) for gamma in (0, 0.5, 1, 2)},
           x="anchors on objects, easy to hard", y="share of the loss")

# %% [markdown]
# What trains the network is the gradient. The table says which anchors it comes from, in percent.
# The first rows are a network that has just begun, which gives every class the same small probability; the others are
# the trained one. "Easy" background has a probability below 0.1.

# %% tags=["nbval-ignore-output"]
def gradient_shares(logits, gamma):
    """Percent of the gradient (its absolute value) that comes from each kind of anchor."""
    x = logits.detach().requires_grad_()
    size = torch.autograd.grad(focal(x, one_hot, gamma=gamma).sum(), x)[0].abs().sum(2)
    easy = negative & (logits.sigmoid().amax(2) < 0.1)
    parts = {"easy background": easy, "hard background": negative & ~easy, "objects": positive}
    sums = {name: float(size[chosen].sum()) for name, chosen in parts.items()}
    return {name: round(100 * value / sum(sums.values()), 1) for name, value in sums.items()}


start = torch.full_like(logits, float(head.retina_cls.bias.new_tensor(0.01).logit()))
pd.DataFrame({(when, f"γ = {gamma}"): gradient_shares(x, gamma)
              for when, x in (("at the start", start), ("trained", logits)) for gamma in (0, 1, 2)}).T

# %% [markdown]
# ## Evaluation
#
# Average precision on the validation set, as COCO defines it, then precision over recall.

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
detections = detector.predict(images)
draw.grid([draw.detections(detections[i], pictures[i], scale=scale) for i in shown[:3]]
          + [draw.boxes(pictures[i], batch.targets[i].boxes, scale=scale, width=2) for i in shown[:3]], columns=3)

# %% [markdown]
# ## Speed and size
#
# One stage means one pass: no region is cut out and looked at again.

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
# Some of the family; {doc}`its page </book/zoo/retinanet>` lists all, with their recipes.
#
# ```{zoo-table} retinanet
# :only: retinanet_r50*
# ```
#
# ## On COCO
#
# This chapter trains the published model on a machine with GPUs and COCO:
#
# ```bash
# papermill notebooks/retinanet.ipynb out.ipynb -p profile coco -p data_root /data/coco -p gpus 8
# ```
