"""Detections of pictures, folders of them and videos, written to files as they come."""
from __future__ import annotations

import glob
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import cv2
import numpy as np
import torch
from tqdm import tqdm

from detcore.data.files import open_file
from detcore.data.images import check_pixels
from detcore.engine.predict import Predictor
from detcore.errors import DataError, DetcoreError, UsageError, printable
from detcore.records import write_atomically
from detcore.runs import output_folder
from detcore.structures import Detections

PICTURES = frozenset(".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff "
                     ".webp".split())
VIDEOS = frozenset(".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
RESULTS = "detections.json"
SHOWN_SCORE = 0.3  # of detections that are written and painted, where no threshold is asked for
TOLD = 5  # files that are named where many are at fault


@dataclass
class Predicted:
    """What `predict_files` did.

    Attributes:
        folder: where the results are.
        pictures, frames, objects: how many were looked at and found.
        failed: for each file that could not be read the sentence that says why.
        interrupted: whether Ctrl-C ended it early.
    """

    folder: Path
    pictures: int = 0
    frames: int = 0
    objects: int = 0
    failed: list[str] = field(default_factory=list)
    interrupted: bool = False


def predict_files(predictor: Predictor, inputs: Sequence[str | Path] | str | Path, output: str | Path = "detections", *,
                  score_threshold: float | None = None, paint: bool = True, overwrite: bool = False,
                  say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
                  progress: bool = True) -> Predicted:
    """Detect objects in files and write what was found, each result as soon as it is there.

    A folder is searched with all that is below it for pictures and videos, by the ends of their names; hidden files and
    folders of earlier results are left out. Results are named after their input's path below the folder that all inputs
    have in common: `a/0001.jpg` gives `a/0001.detections.png`, and a video `a/ride.mp4` gives
    `a/ride.detections.mp4`, painted, and `a/ride.detections.jsonl`, a line for each frame ("frame" from 0, "time_s",
    "detections"). The pictures' detections are in `detections.json`: a list with, for each picture, "file" and
    "detections", which are COCO results with the name of the "category". The file is whole after each picture.

    Nothing is overwritten unless `overwrite`: where the folder holds results of the same names, the next free of
    `detections2`, `detections3` and so on is taken.

    Args:
        inputs: picture files, videos, folders, patterns with wildcards ("shots/**/*.jpg"); one or several.
        output: folder for the results.
        score_threshold: detections score at least this; 0.3 by default.
        paint: write painted pictures and videos.
        overwrite: write over results of the same names; other files stay.
        say: is given each note.
        progress: show bars.

    Raises:
        UsageError: nothing is given, or a pattern or folder has no picture.
        DataError: not one input could be read; of some that cannot, `failed` tells.
        DetcoreError: the results cannot be written.

    Example:
        predictor = Predictor("faster-rcnn_r50_fpn_1x_coco")
        found = predict_files(predictor, ["holidays", "ride.mp4"], "found")
        print(found.objects, "objects;", "not read:", found.failed)
    """
    files, root = find_inputs(inputs, output, say)
    names = _unique_names(files, root)
    ends = {path: [".mp4"] * paint + [".jsonl"] if is_video(path) else [".png"] * paint for path in files}
    results = [f"{names[path]}.detections{end}" for path in files for end in ends[path]]
    if not all(map(is_video, files)):
        results.append(RESULTS)
    folder = output_folder(output)
    if not overwrite and (taken := next((name for name in results if os.path.lexists(folder / name)), None)):
        folder = _next_folder(folder)
        say(f"Note: {output} holds {taken} of an earlier run, so the results go to {folder}; `overwrite` writes over "
            f"it.")
    least = SHOWN_SCORE if score_threshold is None else score_threshold
    ids = predictor.category_ids
    if ids is None:
        say("Note: the weights do not tell their data set's category ids; each category_id is the label + 1.")
        ids = tuple(range(1, predictor.model.num_classes + 1))
    done = Predicted(folder)

    def look(picture: Any, number: int) -> tuple[Detections, list[dict[str, Any]]]:
        found = cast(Detections, predictor(picture)).above(least)
        done.objects += len(found)
        classes = found.class_names
        return found, [record | ({"category": classes[label]} if classes else {})
                       for record, label in zip(found.to_coco(number, ids), found.labels.tolist())]

    table = _Table(folder / RESULTS)
    try:
        bar = tqdm(files, desc="detecting", unit="file", disable=not progress or len(files) < 2)
        for number, path in enumerate(bar, 1):
            target = folder / names[path]
            try:
                if is_video(path):
                    _predict_video(path, target, look, least, paint, progress, done)
                    continue
                found, records = look(path, number)
                if paint:
                    data = io.BytesIO()
                    found.draw(score_threshold=least).save(data, "PNG")
                    with _writing(target):
                        target.parent.mkdir(parents=True, exist_ok=True)
                        write_atomically(target.with_name(f"{target.name}.detections.png"), data.getbuffer(),
                                         sync=False)
                table.add(dict(file=str(path), detections=records))
                done.pictures += 1
            except DataError as error:
                done.failed.append(str(error))
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
                    raise
                done.failed.append(f"{path} needs more memory than there is: make it smaller.")
    except KeyboardInterrupt:
        done.interrupted = True
    finally:
        table.close()
    if done.failed and not done.pictures and not done.frames and not done.interrupted:
        raise DataError(told(done.failed))
    return done


def told(sentences: Sequence[str]) -> str:
    """Sentences on files in one, the first of them in words."""
    if len(sentences) == 1:
        return sentences[0]
    more = f" (and {len(sentences) - TOLD} more)" if len(sentences) > TOLD else ""
    return f"{len(sentences)} files could not be read: " + " ".join(printable(s, 300) for s in sentences[:TOLD]) + more


def is_video(path: Path) -> bool:
    """Whether a file is a video by the end of its name."""
    return path.suffix.lower() in VIDEOS


def find_inputs(inputs: Sequence[str | Path] | str | Path, output: str | Path = "",
                say: Callable[[str], None] = lambda text: None) -> tuple[list[Path], Path]:
    """The files that inputs stand for, each once, and the folder that they have in common.

    Raises:
        UsageError: there is no input, or a folder or pattern without picture or video.
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    files: dict[str, Path] = {}
    roots: list[str] = []
    left: list[Path] = []
    for one in given:
        if not isinstance(one, (str, Path)) or not str(one):
            raise UsageError(f"An input is a file, a folder or a pattern with wildcards, not {one!r}.")
        path = Path(one)
        is_folder = os.path.isdir(path)
        if is_folder:
            found, root = list(_below(path, Path(output))), str(path)
        elif not os.path.lexists(path) and glob.has_magic(str(one)):
            found = [Path(p) for p in sorted(glob.glob(str(one), recursive=True)) if not os.path.isdir(p)]
            root = ""
        else:
            files.setdefault(os.path.abspath(path), path)
            roots.append(str(path.parent))
            continue
        chosen = [p for p in found if p.suffix.lower() in PICTURES | VIDEOS]
        left += [p for p in found if p.suffix.lower() not in PICTURES | VIDEOS]
        if not chosen:
            raise UsageError(f"The folder {one} has no picture and no video." if is_folder else
                             f"No picture and no video matches {one}.")
        files |= {key: p for p in chosen if (key := os.path.abspath(p)) not in files}
        roots += [root] if root else [str(p.parent) for p in chosen]
    if not files:
        raise UsageError("Give at least one picture, folder or video.")
    if left:
        say(f"Note: {len(left)} {'file is' if len(left) == 1 else 'files are'} left out, being no picture and no video "
            f"by the end of the name, such as {left[0]}.")
    return list(files.values()), _common(roots)


def _below(folder: Path, output: Path) -> Iterator[Path]:
    """The files below a folder in the order of their names, without hidden ones and those of results."""
    skipped = os.path.realpath(output)
    for place, folders, names in os.walk(folder):
        if place != str(folder) and (RESULTS in names or os.path.realpath(place) == skipped):
            folders[:] = []
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (Path(place, n) for n in sorted(names)
                    if not n.startswith(".") and ".detections." not in n and n != RESULTS)


def _common(folders: Iterable[str]) -> Path:
    try:
        return Path(os.path.commonpath(map(os.path.abspath, folders)))
    except ValueError:  # of several drives
        return Path(os.curdir)


def _unique_names(files: Sequence[Path], root: Path) -> dict[Path, Path]:
    """A relative path without its end for each file, unlike all others also where case does not count."""
    names: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in files:
        full = Path(os.path.abspath(path))
        relative = full.relative_to(root) if full.is_relative_to(root) else Path(full.name)
        candidates = [relative.with_suffix(""), relative]
        name = next((c for c in candidates if str(c).casefold() not in taken), None)
        number = 2
        while name is None:
            other = relative.with_name(f"{relative.name}.{number}")
            name, number = (other if str(other).casefold() not in taken else None), number + 1
        taken.add(str(name).casefold())
        names[path] = name
    return names


def _next_folder(folder: Path) -> Path:
    """A new folder of the same name with the next free number; raises a DetcoreError if it cannot be made."""
    folder = folder if folder.name not in ("", "..") else folder.resolve() / "detections"
    number = 2
    while True:
        with _writing(folder), suppress(FileExistsError):
            (new := folder.with_name(f"{folder.name}{number}")).mkdir()
            return new
        number += 1


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into a sentence."""
    try:
        yield
    except OSError as error:
        raise DetcoreError(f"The results {path} cannot be written: {error.strerror or error}; those before are "
                           f"there.") from error


class _Table:
    """A JSON list in a file, which is whole after each item; made with the first one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] | None = None
        self.end = 0  # of the items, before the bracket that closes the list

    def add(self, item: object) -> None:
        data = (b",\n" if self.end else b"[\n") + json.dumps(item).encode()
        with _writing(self.path):
            self.file = self.file or open(self.path, "wb", buffering=0)
            try:
                self._put(data + b"\n]")
            except OSError:  # a full disk: back to the items before
                if self.end:
                    self.file.truncate(self.end)
                    self._put(b"\n]")
                raise
        self.end += len(data)

    def _put(self, data: bytes) -> None:
        assert self.file is not None
        self.file.seek(self.end)
        rest = memoryview(data)
        while rest:
            rest = rest[self.file.write(rest):]

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _predict_video(path: Path, target: Path, look: Callable[..., tuple[Detections, list[dict[str, Any]]]], least: float,
                   paint: bool, progress: bool, done: Predicted) -> None:
    """Detections of each frame of a video, one at a time, as lines and as a painted video."""
    open_file(path, "video").close()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong is told here
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    video = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)
    cv2.utils.logging.setLogLevel(level)
    writer, lines, number = None, None, 0
    film = target.with_name(f"{target.name}.detections.mp4")
    try:
        if not video.isOpened():
            raise DataError(f"The video {path} cannot be read: it is damaged, or in a form that is not known here.")
        width, height, rate, count = (video.get(p) for p in (
            cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        check_pixels(path, int(width), int(height))
        rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else 25.0
        expected = int(count) if math.isfinite(count) and 0 < count < 1e9 else None
        with tqdm(total=expected, desc=printable(path.name, 40), unit="frame", leave=False,
                  disable=not progress) as bar:
            while True:
                there, frame = video.read()
                if not there:
                    break
                time_s = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
                found, records = look(frame[..., ::-1], number)
                time_s = time_s if math.isfinite(time_s) and (time_s > 0 or number == 0) else number / rate
                line = json.dumps(dict(frame=number, time_s=round(time_s, 6), detections=records)) + "\n"
                with _writing(target):
                    if lines is None:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        lines = open(target.with_name(f"{target.name}.detections.jsonl"), "w", encoding="utf-8",
                                     buffering=1)
                    lines.write(line)
                if paint:
                    painted = np.asarray(found.draw(score_threshold=least, scale=1))[..., ::-1]
                    if writer is None:
                        size = (painted.shape[1], painted.shape[0])
                        writer = cv2.VideoWriter(str(film), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
                        if not writer.isOpened():
                            raise DetcoreError(f"The video {film} cannot be written here; --no-paint leaves it out.")
                    if painted.shape[1::-1] != size:
                        painted = cv2.resize(painted, size)
                    writer.write(np.ascontiguousarray(painted))
                number += 1
                done.frames += 1
                bar.update()
        if number == 0:
            raise DataError(f"The video {path} has no frame that can be read.")
        if expected and number < 0.9 * expected:
            raise DataError(f"The video {path} is cut short: it tells of {expected} frames, and {number} can be read, "
                            f"whose results are written.")
    finally:  # also on Ctrl-C: what there is can be watched
        video.release()
        if writer is not None:
            writer.release()
        if lines is not None:
            lines.close()
