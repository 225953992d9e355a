"""Pocket Zoo, the embedded data set: small scenes of a zoo, drawn from a seed and written in the layout of a real data
set, so that the real readers and evaluations run on it (COCO's if no other is named).

Every image has a random stream of its own, seeded with (seed, split, index): the files do not depend on the number of
workers, and the first thousand images of a large set are a small set. Drawing goes on where it was interrupted.
"""
from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from detcore.errors import DataError, UsageError
from detcore.pocket.animals import SPECIES, Random
from detcore.pocket.drawn import STUFF_ID, Drawn, Set, write
from detcore.pocket.names import CLASSES, STUFF
from detcore.pocket.scenes import Scene, paint
from detcore.pocket.writers import get_writer
from detcore.ranges import PROCESSES, checked, whole

assert tuple(s.name for s in SPECIES) == CLASSES
SPLITS = ("train", "val")
VERSION = 2  # goes up whenever the same seed gives other pictures
_FACTOR = 3  # canvas pixels a picture pixel
_CHUNK = 20  # images drawn, and finished, together
_HIDDEN = 12  # an animal of which fewer pixels are seen is not annotated


@dataclass(frozen=True)
class Plan:
    """What a Pocket Zoo is drawn from; written beside it as `pocket_zoo.json`."""

    images: int
    val: int
    seed: int
    size: int
    long_tail: bool
    layout: str = "coco"
    version: int = VERSION

    @property
    def weights(self) -> np.ndarray:
        """[classes] how often each species is drawn; with a long tail each half as often as the one before."""
        w = 0.5 ** np.arange(len(SPECIES)) if self.long_tail else np.ones(len(SPECIES))
        return w / w.sum()


@checked(size=whole(32, 2**14), workers=whole(1, PROCESSES))
def draw(root: str | Path, *, images: int = 2000, val: int = 500, seed: int = 0, size: int = 128, workers: int = 2,
         layout: str = "coco", long_tail: bool = False, progress: bool = True) -> Path:
    """Draw a Pocket Zoo, or finish one that was begun; a finished one with the same parameters is left as it is.

    Args:
        root: folder of the data set; made if it is not there.
        images, val: number of training and validation images.
        size: height and width in pixels.
        workers: processes; the result does not depend on it.
        layout: a name of `detcore.pocket.writers.WRITERS`.
        long_tail: each class half as frequent as the one before.

    Returns:
        The root.

    Raises:
        UsageError: a parameter out of range, or a root that holds something else.
        DataError: a folder or file that cannot be written.
    """
    writer = get_writer(layout)
    root, plan = Path(root), Plan(images, val, seed, size, long_tail, layout)
    try:
        if _prepare(root, plan):
            return root
        chunks = [(split, start) for split, n in zip(SPLITS, (images, val)) for start in range(0, n, _CHUNK)]
        job = partial(_draw_chunk, root, plan)
        with tqdm(total=images + val, desc=f"drawing {root}", unit="img", disable=not progress) as bar:
            for done in _run(job, chunks, workers):
                bar.update(done)
        for split in SPLITS:
            parts = [json.loads(part.read_text()) for part in sorted((root / ".parts" / split).glob("*.json"))]
            records = [record for part in parts for record in part]
            digest = hashlib.sha256("".join(r["digest"] for r in records).encode()).hexdigest()
            info = dict(description="Pocket Zoo", version=str(plan.version), seed=seed, images_sha256=digest)
            writer.finish(root, split, [r["kept"] for r in records], Set(CLASSES, STUFF, info))
        write(root / "pocket_zoo.json", json.dumps(asdict(plan) | dict(finished=True)).encode())
        shutil.rmtree(root / ".parts")
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be written: {error.strerror or error}.") from error
    return root


def _prepare(root: Path, plan: Plan) -> bool:
    """Make the root; True if the data set is there already. One of another plan is cleared away."""
    stamp = root / "pocket_zoo.json"
    if stamp.exists():
        try:
            found = json.loads(stamp.read_text())
        except ValueError:
            found = {}
        if {"layout": "coco", **found, "finished": None} == asdict(plan) | dict(finished=None):
            if found["finished"]:
                return True
        else:
            for name in (".parts", *get_writer(found.get("layout", "coco")).clear):
                shutil.rmtree(root / name, ignore_errors=True)
    elif root.exists() and any(root.iterdir()):
        raise UsageError(f"{root} holds something that is not a Pocket Zoo; name an empty or a new folder.")
    write(stamp, json.dumps(asdict(plan) | dict(finished=False)).encode())
    return False


def _run(job: partial, chunks: list[tuple[str, int]], workers: int):
    """The results of `job(*chunk)` in any number of processes."""
    if workers == 1:
        yield from (job(*chunk) for chunk in chunks)
        return
    # Fork costs no import of the library in each worker; the workers call NumPy and single-threaded OpenCV only.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), initializer=_follow_parent)
        try:
            yield from pool.map(job, *zip(*chunks))
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Let this process end when its parent has ended, even by force (it would wait for work forever), and only then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def scene(plan: Plan, split: str, index: int) -> Scene:
    """The scene of one image."""
    return paint(Random([plan.seed, SPLITS.index(split), index]), plan.size, plan.weights, _FACTOR)


def _draw_chunk(root: Path, plan: Plan, split: str, start: int) -> int:
    """Draw `_CHUNK` images from `start` on, with their records, unless that was done before; how many they are."""
    stop = min(start + _CHUNK, plan.images if split == SPLITS[0] else plan.val)
    part = root / ".parts" / split / f"{start:07}.json"
    if not part.exists():
        threads = cv2.getNumThreads()
        cv2.setNumThreads(0)
        write(part, json.dumps([_draw_image(root, plan, split, i) for i in range(start, stop)]).encode())
        cv2.setNumThreads(threads)
    return stop - start


def _draw_image(root: Path, plan: Plan, split: str, index: int) -> dict:
    """Write one image in the plan's layout: what its writer keeps of it, and the picture's digest."""
    drawn = scene(plan, split, index)
    ids = drawn.ids[_FACTOR // 2::_FACTOR, _FACTOR // 2::_FACTOR]
    numbers, objects, segments = [], [], []
    for number, species, crowd in drawn.animals:
        mask = ids == number
        if mask.sum() < _HIDDEN:
            ids[mask] = 0
            continue
        record = dict(category_id=species + 1, iscrowd=int(crowd), area=int(mask.sum()))
        segments.append(dict(id=number, bbox=_box(mask), **record))
        objects.append(record | _outline(drawn.ids == number, mask, crowd))
        numbers.append(number)
    for number in range(1, len(STUFF) + 1):
        mask = ids == number
        if mask.any():
            segments.append(dict(id=number, category_id=STUFF_ID + number, iscrowd=0, area=int(mask.sum()),
                                 bbox=_box(mask)))
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    jpeg = cv2.imencode(".jpg", drawn.image, quality)[1].tobytes()
    # Validation images have numbers of their own, so that both splits can be put together.
    image_id = index + 1 + (500_000 if split == SPLITS[1] else 0)
    image = Drawn(split, image_id, drawn.image, jpeg, ids, numbers, objects, segments)
    return dict(kept=get_writer(plan.layout).image(root, image), digest=hashlib.sha256(jpeg).hexdigest())


def _box(mask: np.ndarray) -> list[int]:
    """COCO's (x, y, w, h) of a mask."""
    return list(cv2.boundingRect(mask.astype(np.uint8)))


def _outline(large: np.ndarray, mask: np.ndarray, crowd: bool) -> dict:
    """Segmentation and box of a mask, `large` as on the canvas, as COCO has it: polygons with sub-pixel corners.

    Crowds, and animals that enclose much that is not theirs, are run lengths: a polygon has no holes.
    """
    rings, tree = cv2.findContours(large.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    hole = tree[0, :, 3] >= 0
    outer = [cv2.approxPolyDP(r, 0.9, True)[:, 0] for r, h in zip(rings, hole) if not h]
    polygons = [np.round((r + 0.5) / _FACTOR, 2) for r in outer if len(r) >= 3 and cv2.contourArea(r) >= _FACTOR**2]
    holes = sum(cv2.contourArea(r) for r, h in zip(rings, hole) if h)
    if crowd or not polygons or holes > 0.03 * large.sum():
        runs = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=~mask[-1, -1]))
        counts = np.diff(runs, prepend=0).tolist()
        return dict(segmentation=dict(size=list(mask.shape), counts=counts), bbox=_box(mask))
    low, high = np.concatenate(polygons).min(0), np.concatenate(polygons).max(0)
    return dict(segmentation=[p.ravel().tolist() for p in polygons],
                bbox=np.round([*low, *(high - low)], 2).tolist())
