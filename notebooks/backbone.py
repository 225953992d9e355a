# %% [markdown]
# # Pretrained backbones
#
# A detector is a backbone with heads on it. The backbone turns pixels into features: maps that say, cell by cell,
# what is there. Edges, fur, legs and faces are the same whatever the task, so the backbone need not learn them anew
# for each detector. It is first trained on something simpler, with many more pictures, and then fine-tuned.
#
# The published models start from ResNets (He et al., "Deep residual learning for image recognition", 2016) that
# were trained to name the one object of an ImageNet picture. The small models of this book start from a slim
# ResNet-18 that was trained on Pocket Zoo. This chapter shows how that one is made, what it knows, and what it
# saves.

# %% tags=["parameters"]
profile = "pocket"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
steps = 120
output = "runs/backbone"
records = "build/records"

# %%
import pandas as pd
import torch

from detcore import create_model, draw, train
from detcore.data.coco import CocoDataset
from detcore.data.loader import build_loader
from detcore.engine.common import describe
from detcore.pocket import pocket_zoo
from detcore.pocket.pretrain import class_map, pretrain
from detcore.pocket.slim import SLIM, slim_resnet
from detcore.recipe import CAFFE, CAFFE2, TORCHVISION
from detcore.records import Record, peak_memory_gb
from detcore.weights import load_backbone
from detcore.zoo.summary import summarize

# The slim backbone belongs to Pocket Zoo, whatever the profile of the other chapters.
root = pocket_zoo.draw(data_root if profile == "pocket" else "data/pocket")

# %% [markdown]
# ## The task
#
# ImageNet asks one question a picture. Pocket Zoo has masks, so we can ask more: each of the four stages of the
# network must name the animal at each of its cells, or say that there is none. A linear layer on each stage gives
# the answer; it is thrown away afterwards. Look at what the stages are asked: the finest has a cell for each 4 x 4
# pixels, the coarsest for each 32 x 32.

# %%
data = CocoDataset(root, "annotations/instances_val2017.json", "val2017", masks="bitmap")
batch = next(iter(build_loader(data, 160, preprocess=TORCHVISION)))
images = TORCHVISION(batch.images, batch.sizes)
targets = torch.stack([class_map(target, images.tensor.shape[2:]) for target in batch.targets])
tones = ["#eeeeee", *(draw.colour(c) for c in range(len(data.class_names)))]
tones = torch.tensor([list(bytes.fromhex(tone[1:])) for tone in tones], dtype=torch.uint8)
shown = (targets.flatten(1) > 0).sum(1).argsort(descending=True)[[20, 45, 70]].tolist()
strides = (4, 8, 16, 32)


def cells(stride):
    """[N, h, w] the class at the middle of each cell."""
    return targets[:, stride // 2::stride, stride // 2::stride]


def show(maps):
    """Rows of a picture and its class maps."""
    rows = [[draw.pixels(images, i, TORCHVISION), *(tones[m[i]].numpy() for m in maps)] for i in shown]
    return draw.grid([draw.to_pil(x).resize((160, 160), 0) for row in rows for x in row], len(maps) + 1)


show([cells(stride) for stride in strides])

# %% [markdown]
# ## A short pretraining
#
# Here the network trains for a few steps from random weights. The loss is the sum over the four stages.

# %% tags=["nbval-ignore-output"]
short = pretrain(root, steps=steps, seed=seed, output=None)
Record(kind="pretrain", profile="pocket", data=describe(CocoDataset(root)), seed=seed, duration_s=short.seconds,
       parameters=dict(steps=steps), metrics={f"accuracy_stage{i + 1}": a for i, a in enumerate(short.accuracy)},
       speed=dict(training_step_s=short.seconds / steps), memory=peak_memory_gb(),
       curves=dict(step=list(range(1, steps + 1)), loss=short.losses)).write(f"{records}/backbone.pocket.json")
draw.lines({"loss": (range(1, steps + 1), short.losses)}, x="step", y="loss")

# %% [markdown]
# ## What a backbone knows
#
# How good are features? A common test is a linear probe: freeze the network, and fit one linear map from its
# features to the classes. If a linear map can read the class, the features hold it plainly. We fit it on one half
# of some validation pictures and ask it about the other half.
#
# Three backbones take the test: one with random weights, the one from the short run, and the one that comes with
# this book, which had more steps. The numbers are the share of animal cells whose class is read right, averaged
# over the classes.

# %% tags=["nbval-ignore-output"]
def probe(backbone):
    """For each stage the class map read from its features [N, h, w]."""
    with torch.no_grad():
        maps = backbone.eval()(images.tensor)
    answers = []
    for x, stride in zip(maps, strides):
        x = x.permute(0, 2, 3, 1)
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        y = torch.nn.functional.one_hot(cells(stride), len(data.class_names) + 1).float()
        y = y / y.flatten(0, 2).sum(0)  # rare classes count as much as background
        fit, target = x[1::2].flatten(0, 2), y[1::2].flatten(0, 2)
        weight = target.sum(1, keepdim=True)
        gram = fit.T @ (weight * fit)
        ridge = 1e-5 * gram.trace() * torch.eye(len(gram))
        answers.append((x @ torch.linalg.solve(gram + ridge, fit.T @ target)).argmax(-1))
    return answers


def right(answer, stride):
    """The share of right animal cells of the pictures that the probe was not fitted on."""
    answer, target = answer[::2], cells(stride)[::2]
    return torch.stack([(answer[target == c] == c).float().mean() for c in target.unique()[1:]]).mean().item()


torch.manual_seed(seed)
carrier = create_model("retinanet_r50_fpn_1x_coco", profile="pocket")
load_backbone(carrier, str(SLIM.file))
read = {"random": probe(slim_resnet()), f"{steps} steps": probe(short.backbone), "of the book": probe(carrier.backbone)}
table = pd.DataFrame({name: [right(a, s) for a, s in zip(answers, strides)] for name, answers in read.items()},
                     index=[f"stage {i}, stride {s}" for i, s in enumerate(strides, 1)])
table.round(2)

# %%
assert table["of the book"].iloc[2] > table["random"].iloc[2] + 0.2

# %% [markdown]
# The class maps that the probe reads from the book's backbone, stage by stage, in the colours of above. Early
# stages see texture: they know stripes from spots, but not where an animal ends. Late stages see whole animals, on
# a coarse grid. A feature pyramid brings the two together.

# %%
show(read["of the book"])

# %% [markdown]
# ## What it saves
#
# The same detector trains twice for a few steps: all from random weights, and with the pretrained backbone under the
# same random heads. The table has the average precision of both on the validation set. On COCO it is the same story,
# over days instead of seconds: only with a much longer training does a detector from random weights catch up (He and
# others, "Rethinking ImageNet pre-training", 2019).

# %% tags=["nbval-ignore-output"]
runs = {name: train("faster-rcnn_r50_fpn_1x_coco", root, weights=weights, steps=60, seed=seed,
                    output=f"{output}/{name}", device=device, resume=True).record.metrics
        for name, weights in (("random weights", "random"), ("pretrained backbone", None))}
pd.DataFrame(runs).T[["bbox_AP", "bbox_AP50", "bbox_AP75"]].round(3)

# %%
assert runs["pretrained backbone"]["bbox_AP"] > runs["random weights"]["bbox_AP"] + 0.05

# %% [markdown]
# ## Each backbone wants its own pictures
#
# A pretrained network expects pictures as it has seen them: the same order of channels, the same mean subtracted,
# the same scale. With another convention nothing fails, the results are just worse. The published models use
# backbones of several origins, and each recipe keeps the convention of its origin.
#
# ```{preprocessing-table}
# ```
#
# The same picture after three of these conventions, shown as the network's first channels would see it: the colours
# move, and the range of the values changes. The table under it gives that range.

# %%
kinds = {"TorchVision": TORCHVISION, "Caffe (MSRA)": CAFFE, "Caffe2": CAFFE2}
inputs = {name: kind(batch.images[shown[:1]], batch.sizes[:1]).tensor[0] for name, kind in kinds.items()}
draw.grid([draw.to_pil(((x - x.min()) / (x.max() - x.min()) * 255).byte()) for x in inputs.values()], 3)

# %%
pd.DataFrame({name: dict(least=x.min().item(), mean=x.mean().item(), greatest=x.max().item())
              for name, x in inputs.items()}).T.round(2)

# %% [markdown]
# ## Frozen parts
#
# With two pictures a GPU, the batch statistics of batch norm are mostly noise. So the published detectors keep the
# statistics of the pretrained backbone and do not update them; the stem and the first stage are not trained at all.
# The slim backbone freezes only the statistics: it has few weights, and Pocket Zoo is what it was pretrained on.

# %%
parts = {"published (ResNet-50)": create_model("retinanet_r50_fpn_1x_coco").backbone, "slim": slim_resnet()}
pd.DataFrame({name: dict(parameters=p.parameters, trainable=p.trainable) for name, part in parts.items()
              for p in summarize(part)[-1:]}).T

# %% [markdown]
# ## Make it anew
#
# The committed file `detcore/pocket/backbone.safetensors` comes from this command, which takes a few minutes on
# two cores. Its steps, seed and the fingerprint of its data stand in the file.
#
# ```bash
# detcore pretrain --data-root data/pocket
# ```
#
# The backbones of the published models are fetched when a training starts that needs them.
