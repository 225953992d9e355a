"""The command `detcore`: the library's functions from a shell.

What a user can mend ends in one sentence on standard error and exit status 1, an interrupted training in 130.
"""
from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from typer import Argument, Option

from detcore.errors import DataError, DetcoreError, UsageError, printable
from detcore.ranges import PROCESSES, RANGES, Range, checked, whole

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Object detectors: a zoo of models, their training, evaluation and benchmarks.")
data_app = typer.Typer(no_args_is_help=True, help="Draw, write or check data sets.")
app.add_typer(data_app, name="data")


def number(name: str, text: str = "", allowed: Range | None = None) -> Any:
    """An option that is a number: its help, with its range."""
    return Option(help=f"{text}{' ' * bool(text)}({(allowed or RANGES[name]).describe()})")


Name = Annotated[str, Argument(help="A name of the zoo; `detcore list` shows them.")]
Root = Annotated[Path, Option(help="Folder of a data set; `detcore data check` tells which forms there are.")]
Profile = Annotated[Literal["pocket", "coco"], Option(help="pocket: at a size for two CPU cores; coco: as published.")]
AnyProfile = Annotated[Literal["pocket", "coco"] | None, Option(
    help="pocket: at a size for two CPU cores; coco: as published, the default with published weights.")]
Device = Annotated[str | None, Option(help="cpu or cuda; the GPU where there is one by default.")]
Weights = Annotated[str | None, Option(help="A file of weights, 'published' or 'random'.")]
NeededWeights = Annotated[str | None, Argument(help="A file of weights, 'published' or 'random'.")]
Model = Annotated[str, Argument(help="A name of the zoo, or a file that training wrote.")]
Proposals = Annotated[Path | None, Option(help="File of `detcore proposals`, for Fast R-CNN.")]
Workers = Annotated[int | None, number("workers", "Processes that load images.")]
BatchSize = Annotated[int | None, number("batch_size", "Images at a time, of each process.")]
Gpus = Annotated[int, number("gpus", "Processes to start, a GPU each, or on the CPU with --device cpu.")]
ScoreThreshold = Annotated[float | None, number(
    "score_threshold", "Leave out detections below; as published by default.")]
NmsThreshold = Annotated[float | None, number(
    "nms_threshold", "IoU above which the lower-scored box of a class is dropped.")]
MaxDetections = Annotated[int | None, number("max_detections", "Detections of an image.")]
Seed = Annotated[int, number("seed")]
TrainFile = Annotated[Path | None, Option(help="Annotation file of the training images, in COCO's form.")]
ValFile = Annotated[Path | None, Option(help="Annotation file of the validation images, in COCO's form.")]
ImageFolder = Annotated[Path | None, Option(help="Folder of the pictures; they may be anywhere in it.")]
Holdout = Annotated[float | None, number(
    "holdout", "Share of the training images to validate on, such as 0.1; a hash of their names decides.")]
Rename = Annotated[list[str] | None, Option(help="A class of the data under another name, OLD=NEW; may come again.")]
SkipUnlisted = Annotated[bool, Option("--skip-unlisted", help="Leave out annotations of categories or images that "
                                                              "their file does not list.")]
IgnoreExif = Annotated[bool, Option("--ignore-exif", help="Read pictures as they are stored, whatever their EXIF "
                                                          "orientation says.")]
Precision = Annotated[str | None, Option(help="no, bf16 or fp16; the recipe's by default.")]
ROOT = Path("data/pocket")
SIDE, DRAWERS, PICTURE = whole(32, 2**14), whole(1, PROCESSES), Range(1, 2**15, whole=True, pair=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]], digits: int = 1) -> None:
    """Columns side by side; numbers to the right, floats with so many digits, nothing for None."""
    cells = [["" if c is None else f"{c:.{digits}f}" if isinstance(c, float) else
              printable(c, 500).replace("\n", "\\n").replace("\t", "\\t") for c in row] for row in rows]
    numeric = [all(row[i] in ("", "-") or row[i].replace(".", "").replace("-", "").isdigit() for row in cells)
               for i in range(len(header))]
    widths = [max(map(len, column)) for column in zip(header, *cells)]
    for row in [list(header), *cells]:
        print("  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric)).rstrip())


def print_metrics(results: dict[str, Any]) -> None:
    """The metrics of an evaluation, then each class's AP."""
    for kind, result in results.items():
        print_table([kind, *result.metrics], [["", *map(shown, result.metrics.values())]], digits=3)
    if classes := dict.fromkeys(name for result in results.values() for name in result.per_class):
        kinds = [kind for kind, result in results.items() if result.per_class]
        print()
        print_table(["class", *(f"{kind} AP" for kind in kinds)],
                    [[name, *(shown(results[kind].per_class.get(name)) for kind in kinds)] for name in classes],
                    digits=3)


def shown(metric: float | None) -> float | str:
    """A metric, "-" where it is not defined: the ground truth has no object for it."""
    return "-" if metric is None else metric


COLUMNS = ("box_ap", "mask_ap", "panoptic_quality", "average_recall", "training_memory_gb", "inference_ms")
Sorting = Literal["name", "box-ap", "mask-ap", "pq", "recall", "memory", "time"]


@app.command("list")
@checked()
def list_command(pattern: Annotated[str, Argument(help="Names, with wildcards.")] = "*",
                 family: Annotated[str | None, Option(help="Only this family.")] = None,
                 backbone: Annotated[str | None, Option(help="Only with this one: resnet-50, or 'swin*'.")] = None,
                 min_ap: Annotated[float | None, number("min_ap", "Least published box AP, in percent.")] = None,
                 has_weights: Annotated[bool, Option("--has-weights", "--weights",
                                                     help="Only those with published weights.")] = False,
                 sort: Annotated[Sorting, Option(help="Best first, or least memory or time first.")] = "name",
                 reverse: Annotated[bool, Option("--reverse", help="The other way round.")] = False,
                 backbones: Annotated[bool, Option("--backbones", help="The pretrained backbones.")] = False
                 ) -> None:
    """List the models of the zoo with their published results."""
    from detcore.zoo import index

    if backbones:
        return list_backbones()
    index.check_name(pattern)
    chosen = index.find_backbones(backbone) if backbone else None
    rows: list[list[Any]] = []
    for model in map(index.rows().__getitem__, index.list_models(pattern, family)):
        told = model.published or index.Published()
        if ((chosen is None or model.backbone in chosen) and (min_ap is None or (told.box_ap or 0) >= min_ap)
                and (told.checkpoint or not has_weights)):
            rows.append([model.name, *(getattr(told, column) for column in COLUMNS), "yes" if told.checkpoint else ""])
    order = get_args(Sorting).index(sort)  # its names are those of the columns
    known = sorted((row for row in rows if row[order] is not None), key=lambda row: row[order],
                   reverse=(sort in ("box-ap", "mask-ap", "pq", "recall")) != reverse)
    rows = known + [row for row in rows if row[order] is None]
    print_table(["name", "box AP", "mask AP", "PQ", "AR1000", "train GB", "ms/image", "weights"], rows)
    print(f"\n{len(rows)} models; the results are the published ones, times of a V100.")


def list_backbones() -> None:
    """The pretrained backbones: where they come from and what they want of an image."""
    from detcore.weights import weights_file
    from detcore.zoo.index import all_backbones, models_with

    print_table(["backbone", "origin", "file", "sha256", "mean", "std", "order", "models"], [
        [b.name, b.origin, weights_file(b.weights) if b.weights else None, b.sha256,
         *(" ".join(f"{v:g}" for v in values) for values in (b.preprocess.mean, b.preprocess.std)),
         "RGB" if b.preprocess.rgb else "BGR", len(models_with(b))] for b in all_backbones()])


@app.command()
def show(name: Name, profile: Profile = "coco") -> None:
    """Show a model: its parts, its recipe, its published results."""
    from dataclasses import asdict, fields

    from detcore.zoo.index import get_model_entry

    entry = get_model_entry(name)  # a wrong name is told before PyTorch is loaded
    from detcore.zoo.summary import summarize

    print(f"{entry.name} (family {entry.family}, profile {profile})\n")
    print_table(["part", "kind", "parameters", "trained"],
                [[p.name, p.kind, p.parameters, p.trainable] for p in summarize(entry.build(profile=profile))])
    recipe = entry.recipe_for(profile)
    if entry.backbone:
        print(f"\nbackbone: {entry.backbone.name}, weights of {entry.backbone.origin}: "
              f"{entry.backbone_weights(profile) or 'none, it is trained from scratch'}")
    print("\nrecipe")
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if isinstance(value, tuple) and f.name.endswith("transforms"):
            print_table([f"  {f.name}", ""], [["", step] for step in value])
        elif value is not None:
            print(f"  {f.name:<16}{value}")
    if profile == "coco" and entry.published:
        print("\npublished (MMDetection model zoo, release 3.3)")
        print_table(["", ""], [[f"  {k}", v] for k, v in asdict(entry.published).items() if v is not None])


@app.command()
@checked()
def train(model: Name, data_root: Root = ROOT, profile: AnyProfile = None,
          output: Annotated[Path | None, Option(help="Folder; runs/NAME.PROFILE by default.")] = None,
          steps: Annotated[int | None, number("steps", "Optimiser steps; the schedule is scaled to them.")] = None,
          seconds: Annotated[float | None, number("seconds", "Stop after so much time.")] = None,
          seed: Seed = 0, device: Device = None, gpus: Gpus = 1,
          resume: Annotated[bool, Option("--resume", help="Go on from the newest checkpoint.")] = False,
          overwrite: Annotated[bool, Option("--overwrite", help="Start anew over an earlier run.")] = False,
          weights: Annotated[str | None, Option(help="To start from: a file, 'published' or 'random'; the pretrained "
                                                     "backbone by default.")] = None,
          proposals: Proposals = None, batch_size: BatchSize = None, workers: Workers = None,
          mixed_precision: Precision = None,
          clip_norm: Annotated[float | None, number("clip_norm", "Clip gradients to this norm.")] = None,
          sync_bn: Annotated[bool, Option("--sync-bn", help="Batch norm over all processes.")] = False,
          validate: Annotated[bool, Option(help="Evaluate on the way and at the end.")] = True,
          log_interval: Annotated[int | None, number("log_interval", "Steps between lines of the log.")] = None,
          checkpoint_interval: Annotated[int | None, number(
              "checkpoint_interval", "Steps between checkpoints.")] = None,
          keep: Annotated[int, number("keep", "Checkpoints that are kept.")] = 2,
          train_annotations: TrainFile = None, val_annotations: ValFile = None, image_folder: ImageFolder = None,
          holdout: Holdout = None, rename: Rename = None, skip_unlisted: SkipUnlisted = False,
          ignore_exif: IgnoreExif = False) -> None:
    """Train a model by its recipe.

    For several machines start it with torchrun or accelerate launch: `torchrun --nproc-per-node 8 -m detcore train ...`
    """
    options = dict(locals())
    from detcore.engine.train import train as run

    try:
        result = run(**options)
    except KeyboardInterrupt:
        print("Stopped; the same command with --resume goes on.", file=sys.stderr)
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") != "0":
        return
    if result.record.metrics:
        print_table(list(result.record.metrics), [list(map(shown, result.record.metrics.values()))], digits=3)
    print(f"{result.record.parameters['steps_done']} steps in {result.record.duration_s:.0f} s; weights: "
          f"{result.checkpoint}")


@app.command()
@checked()
def evaluate(model: Model, weights: NeededWeights = None, data_root: Root = ROOT, profile: AnyProfile = None,
             backend: Annotated[str, Option(help="faster-coco-eval or pycocotools.")] = "faster-coco-eval",
             split: str = "val", proposals: Proposals = None, device: Device = None, batch_size: BatchSize = None,
             workers: Workers = None, images: Annotated[int | None, number("images", "Only the first so many.")] = None,
             tta: Annotated[bool, Option("--tta", help="Merge several views of an image, mirrored too.")] = False,
             output: Annotated[Path | None, Option(help="Folder for detections and record.")] = None,
             score_threshold: ScoreThreshold = None, nms_threshold: NmsThreshold = None,
             max_detections: MaxDetections = None,
             train_annotations: TrainFile = None, val_annotations: ValFile = None, image_folder: ImageFolder = None,
             holdout: Holdout = None, rename: Rename = None, skip_unlisted: SkipUnlisted = False,
             ignore_exif: IgnoreExif = False) -> None:
    """Evaluate a model on a data set."""
    options = dict(locals())
    from detcore.engine.evaluate import evaluate as run

    print_metrics(run(**options).results)


@app.command()
@checked()
def benchmark(model: Model, data_root: Root = ROOT, profile: AnyProfile = None,
              mode: Literal["inference", "training"] = "inference", weights: Weights = None,
              proposals: Proposals = None, device: Device = None, workers: Workers = None,
              images: Annotated[int, number("images", "Inference: images to time.")] = 2000,
              warmup: Annotated[int, number("warmup", "Inference: images before them.")] = 5,
              interval: Annotated[int, number("interval", "Inference: images between lines.")] = 50,
              fuse_conv_bn: Annotated[bool, Option("--fuse-conv-bn", help="Inference: fold batch norm.")] = False,
              score_threshold: ScoreThreshold = None, nms_threshold: NmsThreshold = None,
              max_detections: MaxDetections = None,
              first: Annotated[int, number("first", "Training: measure after this iteration.")] = 100,
              last: Annotated[int, number("last", "Training: up to this one.")] = 500, gpus: Gpus = 1,
              batch_size: BatchSize = None, mixed_precision: Precision = None,
              output: Annotated[Path | None, Option(help="File for the record.")] = None,
              train_annotations: TrainFile = None, val_annotations: ValFile = None, image_folder: ImageFolder = None,
              holdout: Holdout = None, rename: Rename = None, skip_unlisted: SkipUnlisted = False,
              ignore_exif: IgnoreExif = False) -> None:
    """Measure speed and memory, of inference or of training."""
    from detcore.engine.benchmark import benchmark as run
    from detcore.runs import output_folder

    if output is not None:
        output_folder(output.parent)
    options: dict[str, Any] = dict(
        images=images, warmup=warmup, interval=interval, fuse=fuse_conv_bn, score_threshold=score_threshold,
        nms_threshold=nms_threshold, max_detections=max_detections) if mode == "inference" else dict(
        first=first, last=last, gpus=gpus, batch_size=batch_size, mixed_precision=mixed_precision)
    record = run(model, data_root, training=mode == "training", weights=weights, profile=profile, proposals=proposals,
                 device=device, workers=workers, train_annotations=train_annotations, val_annotations=val_annotations,
                 image_folder=image_folder, holdout=holdout, rename=rename, skip_unlisted=skip_unlisted,
                 ignore_exif=ignore_exif, **options)
    if output is not None:
        record.write(output)
    print_table(["", ""], [[n, f"{v:.4g}"] for n, v in {**record.speed, **record.memory}.items()]
                + [[n, f"{v:,.0f}"] for n, v in record.metrics.items() if v is not None])


@app.command()
@checked(images=None)
def predict(model: Model,
            images: Annotated[list[str], Argument(help="Pictures, videos, folders of them, patterns with wildcards.")],
            output: Annotated[Path, Option(
                help="Folder for detections.json, pictures and videos; where it has such results already, the next of "
                     "detections2, detections3 ... is taken.")] = Path("detections"),
            weights: Weights = None, profile: AnyProfile = None, device: Device = None,
            score_threshold: Annotated[float | None, number(
                "score_threshold", "Leave out detections below; 0.3, or a higher published one, by default.")] = None,
            nms_threshold: NmsThreshold = None, max_detections: MaxDetections = None,
            paint: Annotated[bool, Option(help="Write painted pictures and videos.")] = True,
            overwrite: Annotated[bool, Option("--overwrite", help="Write over results of the same names.")] = False
            ) -> None:
    """Detect objects in pictures and videos.

    Each result is written as soon as it is there. Files that cannot be read are left out and named at the end.
    """
    from detcore.engine.predict import Predictor
    from detcore.engine.predict_files import find_inputs, predict_files, told

    find_inputs(images, output)  # a wrong name is told before the model is loaded
    predictor = Predictor(model, weights=weights, profile=profile, device=device, score_threshold=score_threshold,
                          nms_threshold=nms_threshold, max_detections=max_detections)
    done = predict_files(predictor, images, output, score_threshold=score_threshold, paint=paint, overwrite=overwrite,
                         say=lambda text: print(printable(text), file=sys.stderr))
    where = f"{done.pictures} pictures" + f" and {done.frames} frames of videos" * bool(done.frames)
    print(printable(f"{done.objects} objects in {where}: {done.folder}"))
    if done.interrupted:
        print("Stopped; what was found so far is written.", file=sys.stderr)
        raise typer.Exit(130)
    if done.failed:
        raise DataError(told(done.failed))


@app.command()
@checked(size=PICTURE)
def export(model: Model,
           format: Annotated[Literal["onnx", "torch"], Option(help="ONNX, or a torch.export program.")] = "onnx",
           output: Annotated[Path | None, Option(help="The file; NAME.onnx or NAME.pt2 by default.")] = None,
           weights: Weights = None, profile: AnyProfile = None,
           size: Annotated[tuple[int, int] | None, Option(
               help="Height and width of the picture; the largest that the recipe tests with by default.")] = None,
           score_threshold: ScoreThreshold = None, nms_threshold: NmsThreshold = None,
           max_detections: MaxDetections = None) -> None:
    """Write a detector as a file that runs without this library."""
    options = dict(locals())
    from detcore.engine.export import export as run

    print(f"exported and checked: {run(**options)}")


@app.command()
@checked()
def proposals(model: Annotated[str, Argument(help="A model of the family rpn.")],
              weights: Annotated[str, Argument(help="A file of weights, 'published' or 'random'.")],
              output: Annotated[Path, Argument(help="The file to write (.npz).")], data_root: Root = ROOT,
              profile: AnyProfile = None, device: Device = None, batch_size: BatchSize = None, workers: Workers = None,
              nms_threshold: NmsThreshold = None, max_detections: MaxDetections = None,
              train_annotations: TrainFile = None, val_annotations: ValFile = None, image_folder: ImageFolder = None,
              holdout: Holdout = None, rename: Rename = None, skip_unlisted: SkipUnlisted = False,
              ignore_exif: IgnoreExif = False) -> None:
    """Write a region proposal network's proposals, for Fast R-CNN."""
    options = dict(locals())
    from detcore.engine.evaluate import make_proposals

    print(f"proposals: {make_proposals(**options)}")


@app.command()
@checked()
def pretrain(data_root: Root = ROOT, slim: Annotated[str, Option(
                 help="Which: resnet, gn (with group norm), ws (and weight standardisation), regnet, vgg, "
                      "mobilenet, darknet, efficientnet, hourglass or swin.")] = "resnet",
             output: Annotated[Path | None, Option(help="File to write; by default the library's own one.")] = None,
             folder: Annotated[Path, Option(help="For checkpoints, to go on after a stop.")] = Path("runs/pretrain"),
             steps: Annotated[int, number("steps")] = 800, seed: Seed = 0,
             workers: Annotated[int, number("workers")] = 0) -> None:
    """Pretrain a small backbone of the pocket profile on Pocket Zoo."""
    from detcore.pocket.pretrain import pretrain as run
    from detcore.pocket.slim import SLIMS
    from detcore.runs import output_folder

    if slim not in SLIMS:
        raise UsageError(f"There is no small backbone {slim!r}: it is one of {', '.join(SLIMS)}.")
    output = output or SLIMS[slim].file
    output_folder(output.parent)
    result = run(data_root, slim=SLIMS[slim], steps=steps, seed=seed, output=output, folder=folder, workers=workers)
    accuracy = ", ".join(f"{100 * a:.1f} %" for a in result.accuracy)
    print(f"{steps} steps in {result.seconds:.0f} s; cells told right, by stage: {accuracy}; backbone: {output}")


@data_app.command("pocket")
@checked(size=SIDE, workers=DRAWERS)
def data_pocket(root: Annotated[Path, Option(help="Folder to draw into.")] = ROOT, layout: str = "coco",
                images: Annotated[int, number("images")] = 2000, val: Annotated[int, number("val")] = 500,
                seed: Seed = 0, size: Annotated[int, number("size", "Pixels of a side.", SIDE)] = 128,
                workers: Annotated[int, number("workers", allowed=DRAWERS)] = 2,
                long_tail: Annotated[bool, Option("--long-tail", help="Each class half as often as the last.")] = False
                ) -> None:
    """Draw a Pocket Zoo."""
    options = dict(locals())
    from detcore.pocket.pocket_zoo import draw

    print(f"Pocket Zoo: {draw(**options)}")


@data_app.command("check")
@checked()
def data_check(root: Annotated[Path, Argument(help="Folder of a data set.")],
               layout: Annotated[str | None, Option(help="Form of its files, such as voc; by default the one they "
                                                         "have.")] = None,
               contact_sheet: Annotated[Path | None, Option(help="Image file to draw: pictures with boxes.")] = None,
               train_annotations: TrainFile = None, val_annotations: ValFile = None, image_folder: ImageFolder = None,
               holdout: Holdout = None, rename: Rename = None, skip_unlisted: SkipUnlisted = False,
               ignore_exif: IgnoreExif = False) -> None:
    """Tell whether a data set is complete and sound, and where to get what is missing."""
    from detcore.data.check import check
    from detcore.data.options import DataOptions

    findings = check(root, layout, contact_sheet=contact_sheet, options=DataOptions(
        train_annotations=train_annotations, val_annotations=val_annotations, image_folder=image_folder,
        holdout=holdout, rename=rename, skip_unlisted=skip_unlisted,
        ignore_exif=ignore_exif))
    for finding in findings:
        print(f"{finding.verdict:8}{finding.what}{': ' * bool(finding.text)}{finding.text}")
    wrong = sum(f.verdict in ("missing", "broken") for f in findings)
    if wrong:
        raise DataError(f"{root} is not complete: {wrong} of {len(findings)} points above are missing or broken.")


def main() -> None:
    """Run the command line; errors that a user can mend become one sentence."""
    warnings.showwarning = lambda message, *_: print(  # type: ignore[assignment]
        f"Warning: {printable(message)}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name may have letters that the terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except DetcoreError as error:
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
