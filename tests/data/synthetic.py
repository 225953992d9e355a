"""A COCO annotation file of any size, without pictures, to measure how a reader copes with the real one."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, CATEGORIES, POOL = 640, 480, 80, 500


def write_annotations(path: str | Path, *, images: int = 118_000, annotations: int = 860_000, seed: int = 0) -> None:
    """Write an annotation file with as much text an object as COCO's: polygons of some 27 corners, one crowd in 100.

    Objects are copies of a pool of `POOL` shapes, spread over the images at random.
    """
    rng = np.random.default_rng(seed)
    pool = [_object(rng, crowd=i % 100 == 0) for i in range(POOL)]
    owner = np.sort(rng.integers(1, images + 1, annotations)).tolist()
    shape = rng.integers(0, POOL, annotations).tolist()
    category = rng.integers(1, CATEGORIES + 1, annotations).tolist()
    with open(path, "w") as file:
        file.write('{"info": {"description": "synthetic"}, "categories": ')
        json.dump([dict(id=c, name=f"class {c}", supercategory="thing") for c in range(1, CATEGORIES + 1)], file)
        file.write(', "images": [')
        for i in range(1, images + 1):
            file.write(f'{", " if i > 1 else ""}{{"id": {i}, "file_name": "{i:012}.jpg", '
                       f'"width": {WIDTH}, "height": {HEIGHT}}}')
        file.write('], "annotations": [')
        for i, (image_id, s, c) in enumerate(zip(owner, shape, category), 1):
            file.write(f'{", " if i > 1 else ""}{{"id": {i}, "image_id": {image_id}, "category_id": {c}, {pool[s]}}}')
        file.write("]}")


def _object(rng: np.random.Generator, crowd: bool) -> str:
    """Box, area and segmentation of one object, as JSON without braces."""
    w, h = rng.uniform(8, 300), rng.uniform(8, 300)
    x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
    corners = int(rng.integers(12, 43))
    turns = np.sort(rng.uniform(0, 2 * np.pi, corners))
    ring = np.stack([x + w / 2 * (1 + np.cos(turns)), y + h / 2 * (1 + np.sin(turns))], 1).round(2)
    segmentation: dict | list = [ring.ravel().tolist()]
    if crowd:
        runs = rng.integers(1, 2 * HEIGHT, 300)
        segmentation = dict(counts=[*runs.tolist(), int(WIDTH * HEIGHT - runs.sum())], size=[HEIGHT, WIDTH])
    record = dict(bbox=[round(v, 2) for v in (x, y, w, h)], area=round(w * h * 0.78, 2), iscrowd=int(crowd),
                  segmentation=segmentation)
    return json.dumps(record)[1:-1]
