"""The workflow on two small chapters in a tree of its own: what runs, what does not, and what is left behind."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from workflow import contents

ROOT = Path(__file__).resolve().parent.parent.parent
CHAPTER = '''# %% [markdown]
# # {title}

# %% tags=["parameters"]
profile = "pocket"
output = "runs/{name}"

# %%
import sys
from pathlib import Path
if Path("broken").exists():
    raise ValueError("told to break")
with open("log.txt", "a") as file:
    file.write("{name} ")
print("a bar inside", file=sys.stderr)
{code}
'''


class Tree:
    """A copy of the workflow with two chapters, of which `second` reads a file of `first`."""

    def __init__(self, root: Path):
        self.root = root
        shutil.copytree(ROOT / "workflow", root / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "detcore", root / "detcore", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "book").mkdir()
        config = yaml.safe_load((root / "workflow/config.yaml").read_text())
        (root / "_toc.yml").write_text("root: book/index.md\nparts:\n  - chapters:\n    - file: notebooks/first.ipynb\n"
                                       "    - file: notebooks/second.ipynb\n")
        config["profiles"]["pocket"] |= dict(
            threads=1, pocket_zoo=dict(root="data/pocket", images=4, val=2, seed=0, size=64))
        (root / "workflow/config.yaml").write_text(yaml.safe_dump(config))
        (root / "notebooks").mkdir()
        self.write("first", "First", 'Path("runs/first/made").write_text("1")')
        self.write("second", "Second", 'print(Path("runs/first/made").read_text())')

    def write(self, name: str, title: str, code: str) -> None:
        text = CHAPTER.format(name=name, title=title, code=code)
        (self.root / f"notebooks/{name}.py").write_text(text)

    def run(self, profile: str = "default") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "snakemake", "--profile", f"workflow/profiles/{profile}", "chapters"]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=300,
                              env=os.environ | {"PYTHONPATH": str(self.root)})

    def ran(self, profile: str = "default") -> list[str]:
        """The chapters that a run executed, in order."""
        log = self.root / "log.txt"
        log.unlink(missing_ok=True)
        done = self.run(profile)
        assert done.returncode == 0, done.stdout + done.stderr
        return log.read_text().split() if log.exists() else []


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    tree = Tree(tmp_path_factory.mktemp("tree"))
    assert tree.ran() == ["first", "second"]
    return tree


def outputs(tree: Tree, name: str) -> list[dict]:
    notebook = json.loads((tree.root / f"notebooks/{name}.ipynb").read_text())
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_data_and_chapters_are_made(tree: Tree) -> None:
    assert (tree.root / "data/pocket/annotations/instances_val2017.json").exists()
    assert [output["text"] for output in outputs(tree, "second")] == [["1\n"]], "standard error is left out"


def test_nothing_runs_when_nothing_changed(tree: Tree) -> None:
    for path in tree.root.glob("notebooks/*.py"):
        path.touch()
    assert tree.ran() == []


def test_a_changed_text_runs_its_chapter_alone(tree: Tree) -> None:
    path = tree.root / "notebooks/first.py"
    path.write_text(path.read_text().replace("# # First", "# # The first"))
    assert tree.ran() == ["first"]
    assert "# The first" in (tree.root / "notebooks/first.ipynb").read_text()


def test_changed_code_runs_the_chapters_that_read_from_it(tree: Tree) -> None:
    tree.write("first", "First", 'Path("runs/first/made").write_text("2")')
    assert tree.ran() == ["first", "second"]
    assert outputs(tree, "second")[0]["text"] == ["2\n"]


def test_a_changed_library_runs_everything_but_not_for_a_comment(tree: Tree) -> None:
    path = tree.root / "detcore/ops/boxes.py"
    path.write_text(path.read_text() + "\n# a remark\n")
    assert tree.ran() == []
    path.write_text(path.read_text() + "\nHERE = 1\n")
    assert tree.ran() == ["first", "second"]


def test_two_runs_give_the_same_notebook(tree: Tree) -> None:
    before = (tree.root / "notebooks/second.ipynb").read_bytes()
    next(tree.root.glob("build/pocket/second.????????????")).unlink()
    assert tree.ran() == ["second"]
    assert (tree.root / "notebooks/second.ipynb").read_bytes() == before


def test_a_broken_run_leaves_what_was_there_and_continues(tree: Tree) -> None:
    before = (tree.root / "notebooks/second.ipynb").read_bytes()
    path = tree.root / "notebooks/second.py"
    path.write_text(path.read_text().replace("# # Second", "# # Broken"))
    (tree.root / "broken").touch()
    failed = tree.run()
    assert failed.returncode != 0
    assert "raised ValueError: told to break" in failed.stderr
    assert (tree.root / "notebooks/second.ipynb").read_bytes() == before
    kept = tree.root / "runs/second/checkpoint"
    kept.write_text("half way")
    (tree.root / "broken").unlink()
    assert tree.ran() == ["second"], "the finished chapter is not run again"
    assert kept.exists(), "what the broken run had made is there for the next one"
    tree.write("second", "Second", "print(3)")
    assert tree.ran() == ["second"]
    assert not kept.exists() and list(tree.root.glob("runs/second.*/checkpoint")), "another version's is moved aside"


def test_a_killed_run_continues(tree: Tree) -> None:
    tree.write("first", "First", 'Path("runs/first/made").write_text("4")')
    tree.write("second", "Second", "import time; time.sleep(600)  # before: runs/first/made")
    log = tree.root / "log.txt"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "snakemake", "--profile", "workflow/profiles/default", "chapters"]
    with subprocess.Popen(command, cwd=tree.root, start_new_session=True, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(tree.root)}) as run:
        deadline = time.monotonic() + 120
        while not log.exists() or log.read_text().split() != ["first", "second"]:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.2)
        os.killpg(run.pid, signal.SIGKILL)
    path = tree.root / "notebooks/second.py"
    path.write_text(path.read_text().replace("time.sleep(600)", ""))
    assert tree.ran() == ["second"]


def test_parameters_leave_the_committed_notebook_alone(tree: Tree) -> None:
    before = (tree.root / "notebooks/first.ipynb").read_bytes()
    subprocess.run([sys.executable, "-m", "workflow.chapter", "first", "-p", "profile", "coco"], cwd=tree.root,
                   check=True, capture_output=True, timeout=120)
    assert (tree.root / "notebooks/first.ipynb").read_bytes() == before
    assert 'profile = \\"coco\\"' in (tree.root / "build/notebooks/coco/first.ipynb").read_text()


def test_the_generic_cluster_executor_submits_each_chapter(tree: Tree) -> None:
    for stamp in tree.root.glob("build/pocket/*"):
        stamp.unlink()
    assert tree.ran("cluster-local") == ["first", "second"]
    logs = [path.read_text() for path in tree.root.glob("build/jobs/*/log")]
    assert len(logs) == 3, "the data and two chapters"
    assert all(path.read_text() == "0\n" for path in tree.root.glob("build/jobs/*/status"))


def test_chapters_follow_the_table_of_contents() -> None:
    chapters = contents.chapters()
    assert {f"notebooks/{name}.ipynb" for name in chapters} < set(contents.pages())
    assert contents.pages()[0] == "book/index.md"
    assert chapters["fast_rcnn"] == ["rpn"] and chapters["mask_rcnn"] == []
    assert chapters["benchmark"] == list(chapters)[:list(chapters).index("benchmark")], "it reads their records"


def test_every_lock_line_pins_a_package() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert len(lines) > 100
    assert all(len(line.split("==")) == 2 and " " not in line for line in lines)
