"""What several rooms' tests share: Pocket Zoo, drawn once for each process that runs tests."""
from __future__ import annotations

from pathlib import Path

import pytest

from detcore.pocket.pocket_zoo import draw


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, metavar="N", default=None, help="examples of the test of mutated data sets, "
                     "other ones each time; by default 500, always the same")


@pytest.fixture(scope="session")
def pocket_zoo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pocket Zoo in COCO's layout: 40 images to train on, 8 to evaluate on. Copy it before you change it."""
    return draw(tmp_path_factory.mktemp("pocket_zoo") / "data", images=40, val=8, workers=1, progress=False)
