# %% [markdown]
# # Benchmarks
#
# A number says little without how it was measured. This chapter tells how the zoo measures accuracy, time and memory,
# and puts the results of all chapters side by side. It trains nothing: every number is read from the records that the
# other chapters wrote.

# %% tags=["parameters"]
profile = "pocket"
data_root = "data/pocket"
device = None
gpus = 1
seed = 0
records = "build/records"

# %%
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML

from detcore import draw, get_model_entry, list_models
from detcore.records import read_records
from detcore.zoo.index import published_results

# %% [markdown]
# ## The protocol
#
# **Accuracy.** Average precision as COCO defines it: the area under precision over recall, averaged over the classes
# and over ten overlaps, from 0.5 to 0.95, that a detection must have with its object. Proposals have no class and are
# measured by average recall.
#
# **Inference time.** Forward pass and post-processing of one picture after the other, up to the detections in the
# picture's own pixels. Reading, decoding and resizing do not count. The first pictures warm up and are left out; the
# mean of the rest counts. The zoo takes 2,000 pictures; the chapters of the pocket profile take fewer.
#
# **Training time.** Mean seconds of a step, loading included, over the steps from 100 to 500, or over the second half
# of a run that is too short for that.
#
# **Memory.** On GPUs the most that was allocated on any of them. On the CPU the largest resident size of the process,
# with Python and its libraries.
#
# **FLOPs.** Those of convolutions and matrix products in one forward pass. A multiplication and an addition are two.

# %% [markdown]
# ## Accuracy
#
# Average precision in percent, by overlap (AP50, AP75) and by object size (small, medium, large).

# %% tags=["nbval-ignore-output"]
found = {}
for record in read_records(records).values():
    if record.model and record.profile == profile:
        found.setdefault(record.model, {})[record.kind] = record
found = {model: kinds for model, kinds in found.items() if "evaluate" in kinds}
metrics = {model: kinds["evaluate"].metrics for model, kinds in found.items()}
detectors = {model: values for model, values in metrics.items() if "bbox_AP" in values}
names = {f"bbox_{n}": n for n in ("AP", "AP50", "AP75", "APs", "APm", "APl")} | {"segm_AP": "mask AP"}
accuracy = pd.DataFrame(detectors).T.reindex(columns=list(names)).rename(columns=names).astype(float) * 100
accuracy.sort_values("AP", ascending=False).round(1).astype(object).fillna("")

# %% [markdown]
# Proposals, by how many of them are taken. Where a model gives fewer, the recall stays as it is.

# %% tags=["nbval-ignore-output"]
recalls = {model: {n: 100 * values[f"proposal_{n}"] for n in ("AR100", "AR300", "AR1000")}
           for model, values in metrics.items() if "proposal_AR100" in values}
pd.DataFrame(recalls).T.round(1)

# %% [markdown]
# Which classes are easy? Each row is a class, and the mean of its average precision over the detectors above.

# %% tags=["nbval-ignore-output"]
classes = pd.DataFrame({model: found[model]["evaluate"].per_class.get("bbox", {}) for model in detectors})
means = classes.astype(float).mean(axis=1).sort_values(ascending=False)
draw.bars((means if len(means) <= 20 else pd.concat([means[:10], means[-10:]])).to_dict(), x="box AP")

# %% [markdown]
# ## Time, memory, size
#
# Two stages cost more than one, and masks cost more than boxes.

# %% tags=["nbval-ignore-output"]
rows = {}
for model, kinds in found.items():
    timed, trained = kinds.get("benchmark"), kinds.get("train")
    rows[model] = {
        "parameters (millions)": timed and timed.metrics["parameters"] / 1e6,
        "GFLOPs": timed and timed.metrics["flops"] / 1e9,
        "inference (ms)": timed and 1000 * timed.speed["inference_mean_s"],
        "95th percentile (ms)": timed and 1000 * timed.speed["inference_p95_s"],
        "training (s a step)": trained and trained.speed.get("training_step_s"),
        "training (s)": trained and trained.duration_s,
        "memory (GB)": trained and max(trained.memory.values()),
    }
cost = pd.DataFrame(rows).T.astype(float)
cost.round(2)

# %% [markdown]
# The machine, as the records name it:

# %% tags=["nbval-ignore-output"]
machines = {(r.hardware.cpu, r.hardware.cores, r.hardware.memory_gb, ", ".join(r.hardware.accelerators) or "none",
             r.versions.get("torch", "")) for kinds in found.values() for r in kinds.values()}
pd.DataFrame(sorted(machines), columns=["processor", "cores", "memory (GB)", "accelerators", "PyTorch"])

# %% [markdown]
# ## Accuracy over time
#
# Up and left is better. The pointer tells the model.

# %% tags=["nbval-ignore-output"]
def chart(groups, x, y, name):
    """A scatter plot that reacts to the pointer: for each group a list of (x, y, text)."""
    figure = go.Figure(layout=dict(template="none", height=400, margin=dict(l=50, r=10, t=10, b=45), dragmode=False,
                                   paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
                                   font=dict(color="#808080")))
    for i, (group, points) in enumerate(groups.items()):
        xs, ys, texts = zip(*points)
        figure.add_scatter(x=xs, y=ys, text=texts, name=group, mode="markers", hovertemplate="%{text}<extra></extra>",
                           marker=dict(color=draw.colour(i), size=11, opacity=0.85))
    grid = dict(gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_xaxes(title=x, **grid).update_yaxes(title=y, **grid)
    return HTML(figure.to_html(full_html=False, include_plotlyjs="../_static/plotly.min.js", div_id=name,
                               config=dict(responsive=True, displayModeBar=False)))


ours = {}
for model in accuracy.index.intersection(cost["inference (ms)"].dropna().index):
    ms, ap = cost.loc[model, "inference (ms)"], accuracy.loc[model, "AP"]
    ours.setdefault(get_model_entry(model).family, []).append((ms, ap, f"{model}<br>{ap:.1f} AP, {ms:.1f} ms"))
chart(ours, "inference of a picture (ms)", "box AP (%)", "ours")

# %% [markdown]
# The published models on COCO, by the same protocol on a V100 GPU, as the model zoo of MMDetection gives them. Larger
# backbones and more training move a method up; the order of the methods is much the same.

# %%
published = {}
for model, facts in published_results().items():
    if model in list_models() and facts.box_ap and facts.inference_ms:
        text = f"{model}<br>{facts.box_ap} AP, {facts.inference_ms} ms<br>{facts.hardware}, {facts.precision}"
        published.setdefault(get_model_entry(model).family, []).append((facts.inference_ms, facts.box_ap, text))
chart(published, "inference of a picture (ms)", "box AP on COCO (%)", "published")

# %% [markdown]
# ## Between implementations
#
# What was published of two implementations of the same methods, measured on the same machine. Box and mask AP:
#
# ```{published-table} comparison_ap
# ```
#
# Seconds of a training step:
#
# ```{published-table} comparison_training
# ```
#
# Training memory in GB:
#
# ```{published-table} comparison_memory
# ```
#
# Pictures a second at inference:
#
# ```{published-table} comparison_inference
# ```
#
# ## Measure yourself
#
# ```bash
# detcore benchmark faster-rcnn_r50_fpn_1x_coco --data-root data/pocket --profile pocket
# ```
#
# On a machine with GPUs and COCO, this chapter reads the records of the full-size models:
#
# ```bash
# papermill notebooks/benchmark.ipynb out.ipynb -p profile coco -p data_root /data/coco
# ```
