"""Adding a method: one method file, one family file, one chapter and one reference case, in a copy of the repository.

Everything else follows from these four, or `python -m workflow.check` says in one sentence what is missing.
"""
from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NAME, MODEL = "made_up", "made-up_r50_1x_coco"
FAMILY = f'''"""Made-up: center points once more."""
from __future__ import annotations

from detcore.methods.{NAME} import center_points
from detcore.pocket.profile import Pocket, training
from detcore.recipe import Recipe
from detcore.zoo.backbones.resnet import R50
from detcore.zoo.entries import family, row

MODELS = family("{NAME}", center_points, Recipe(), Pocket(dict(width=16), training(40)),
                row("{MODEL}", R50))
'''
CHAPTER = f'''# %% [markdown]
# # Made-up
#
# A method that nobody has published.
#
# ## Evaluation

# %% tags=["parameters"]
profile = "pocket"
output = "runs/{NAME}"
'''


class Copy:
    """A copy of what a method belongs to."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ("detcore", "workflow", "book", "notebooks"):
            shutil.copytree(ROOT / folder, root / folder,
                            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.mo"))
        for file in ("_toc.yml", "_config.yml", "CHANGELOG.md", "CITATION.cff", "LICENSE", "NOTICE"):
            shutil.copy(ROOT / file, root / file)
        shutil.copytree(ROOT / "examples", root / "examples")
        (root / "tests/reference/cases").mkdir(parents=True)
        for path in (ROOT / "tests/reference/cases").glob("*.json.gz"):
            (root / "tests/reference/cases" / path.name).touch()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command of the copy's Python, in the copy."""
        return subprocess.run([sys.executable, *command], cwd=self.root, capture_output=True, text=True, timeout=600,
                              env=os.environ | {"PYTHONPATH": str(self.root), "COLUMNS": "200"})

    def check(self, *options: str) -> list[str]:
        """The sentences of the check."""
        done = self.run("-m", "workflow.check", *options)
        assert not done.stderr, done.stderr
        sentences = done.stdout.splitlines()
        assert done.returncode == any(not s.startswith(("Written", "Nothing")) for s in sentences)
        return sentences

    def write_notebooks(self) -> None:
        """What `make accept` would write, without running them."""
        code = """
from workflow import text
for name in text.names():
    text.write(text.read(name), text.ROOT / "notebooks" / f"{name}.ipynb")
"""
        done = self.run("-c", code)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy with a made-up method: its file, its family's and its chapter."""
    copy = Copy(tmp_path_factory.mktemp("copy"))
    method = (ROOT / "examples/center_points.py").read_text("utf-8").partition("\nBACKBONE = ")[0]
    (copy.root / f"detcore/methods/{NAME}.py").write_text(method, "utf-8")
    (copy.root / f"detcore/zoo/families/{NAME}.py").write_text(FAMILY, "utf-8")
    (copy.root / f"notebooks/{NAME}.py").write_text(CHAPTER, "utf-8")
    return copy


def test_the_repository_lacks_nothing() -> None:
    done = subprocess.run([sys.executable, "-m", "workflow.check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_missing_is_said_and_written(copy: Copy) -> None:
    assert copy.check() == [
        f"published.csv has no row of {MODEL}, which detcore/zoo/families/{NAME}.py has. (--write writes it)",
        f"notebooks/{NAME}.ipynb is not in _toc.yml. (--write writes it)"]
    assert [s for s in copy.check("--write") if not s.startswith("Written: ")] == [
        f"notebooks/{NAME}.ipynb is in _toc.yml, but is not there: make book NAME={NAME}.",
        f"book/locale/ja/LC_MESSAGES/notebooks/{NAME}.po is missing: make translations.",
        f"book/locale/ja/LC_MESSAGES/book/zoo/{NAME}.po is missing: make translations.",
        f"No reference case is of the family {NAME}, or of another with its builder: add "
        "tests/reference/cases/MODEL.json.gz."]
    copy.write_notebooks()
    (copy.root / f"tests/reference/cases/{MODEL}.json.gz").write_bytes(gzip.compress(b"{}"))
    assert copy.check() == [
        f"book/locale/ja/LC_MESSAGES/notebooks/{NAME}.po is missing: make translations.",
        f"book/locale/ja/LC_MESSAGES/book/zoo/{NAME}.po is missing: make translations."]


def test_the_zoo_has_it(copy: Copy) -> None:
    code = f"""
import detcore
from workflow.contents import chapters
assert detcore.list_models("made-up*") == ["{MODEL}"]
model = detcore.create_model("{MODEL}", profile="pocket", score_threshold=0.2)
assert model.bbox_head.postprocess.score_threshold == 0.2 and model.num_classes == 8
assert list(chapters()).index("{NAME}") == list(chapters()).index("retinanet") + 1 and not chapters()["{NAME}"]
assert "{NAME}" in chapters()["benchmark"]
"""
    done = copy.run("-c", code)
    assert done.returncode == 0, done.stderr
    listed = copy.run("-m", "detcore", "list", "--family", NAME)
    assert MODEL in listed.stdout, listed.stderr
    wrong = copy.run("-m", "detcore", "show", "maed-up_r50_1x_coco")
    assert wrong.returncode != 0 and MODEL in wrong.stderr + wrong.stdout


def test_the_book_has_its_tables_and_asks_for_its_new_sentences_alone(copy: Copy) -> None:
    """All pages are built, with the family's tables; what other pages say in the same words is translated already."""
    done = copy.run("-m", "workflow.translations")
    assert done.returncode == 1, done.stderr
    asked = [line for line in done.stdout.splitlines() if ".po: '" in line or '.po: "' in line]
    page = f"ja/LC_MESSAGES/book/zoo/{NAME}.po"
    assert sorted(line.removeprefix("ja/LC_MESSAGES/") for line in asked) == sorted([
        "book/index.po: 'Made-up'", "zoobook.po: 'Made-up'", "zoobook.po: 'what it changes, in a few words'",
        f"book/zoo/{NAME}.po: 'Made-up: models and results'",
        f"book/zoo/{NAME}.po: 'Made-up in three sentences: what problem it solves, how, and what follows.'",
        f"notebooks/{NAME}.po: 'Made-up'", f"notebooks/{NAME}.po: 'A method that nobody has published.'",
    ]), done.stdout + done.stderr
    assert "AP in percent" in (copy.root / "book/locale" / page).read_text("utf-8")
