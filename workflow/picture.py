"""The book's front picture: scenes of Pocket Zoo side by side. `python -m workflow.picture data/pocket`"""
from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from workflow.fingerprint import ROOT

PICTURE = ROOT / "book/figures/pocket_zoo.jpg"
ROWS, COLUMNS, GAP = 3, 9, 4


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workflow.picture", description=__doc__)
    parser.add_argument("root", type=Path)
    files = sorted((parser.parse_args().root / "val2017").glob("*.jpg"))[:ROWS * COLUMNS]
    tiles = [np.pad(cv2.imread(str(file)), ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for file in files]
    rows = [np.hstack(tiles[i:i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
    PICTURE.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(PICTURE), np.vstack(rows)[:-GAP, :-GAP], [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
