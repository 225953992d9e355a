"""The workflow on two small chapters in a repository of its own: what runs, what does not, and what is left behind."""
from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from sphinx import locale

from detcore.errors import DataError
from detcore.pocket.pocket_zoo import draw
from detcore.runs import code
from tests.book.test_pages import shown, table
from workflow import book, contents, fingerprint
from workflow.faults import sentences

ROOT = Path(__file__).resolve().parent.parent.parent
CHAPTER = '''# %% [markdown]
# # {title}

# %% tags=["parameters"]
profile = "pocket"
steps = None
output = "runs/{name}"
records = "build/records"

# %%
import sys
from pathlib import Path

from detcore.records import Hardware, Record
if Path("broken").exists():
    raise ValueError("told to break")
with open("log.txt", "a") as file:
    file.write("{name} ")
Path(output).mkdir(parents=True, exist_ok=True)
Record(kind="evaluate", model="{name}", profile=profile, duration_s=1, metrics=dict(bbox_AP={ap}),
       hardware=Hardware(cpu="any", cores=1, memory_gb=1), intervals=dict(bbox_AP=(0.4, 0.6))
       ).write(f"{{records}}/{name}.json")
print("a bar inside", file=sys.stderr)
{code}
'''
FIRST = 'import detcore.engine.clock, detcore.methods.alpha\nPath(output, "made").write_text("1")'
SECOND = 'import detcore.methods.beta, detcore.zoo.families.beta\nprint(Path("runs/first/made").read_text())'
BOTH = "first, which it reads from and which is out of date"
# A small library inside the library: its modules load without PyTorch, whose import would take most of the time.
LIBRARY = {
    "methods/alpha.py": "from detcore.ops.area import area\n\n\ndef half(side):\n    return area(side) / 2\n",
    "methods/beta.py": "def double(x):\n    return 2 * x\n",
    "methods/gamma.py": "def triple(x):\n    return 3 * x\n",
    "ops/area.py": '''def area(side):
    """Of a square."""
    if side < 0:
        raise ValueError(f"A side of {side} is negative.")
    return side * side
''',
    "engine/clock.py": "def now():\n    return 0\n",
    "zoo/families/beta.py": "MODELS = []\n",
    "zoo/families/gamma.py": "MODELS = []\n",
}
GIT = ["git", "-c", "user.name=reader", "-c", "user.email=reader@example.org", "-c", "commit.gpgsign=false"]


class Tree:
    """A repository with the workflow, the library and two chapters, of which `second` reads a file of `first`."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ("workflow", "detcore"):
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file, text in LIBRARY.items():
            (root / "detcore" / file).write_text(text)
        (root / "book/records").mkdir(parents=True)
        (root / "notebooks").mkdir()
        for file in (".gitignore", "notebooks/conftest.py", "notebooks/sanitize.cfg"):
            shutil.copy(ROOT / file, root / file)
        with (root / ".gitignore").open("a") as file:
            file.write("log.txt\nbroken\n")
        config = yaml.safe_load((root / "workflow/config.yaml").read_text())
        config["proof"] = "first"
        config["profiles"]["pocket"]["pocket_zoo"] = dict(root="data/pocket", images=4, val=2, seed=0, size=64)
        (root / "workflow/config.yaml").write_text(yaml.safe_dump(config))
        (root / "_toc.yml").write_text("root: book/index.md\nparts:\n  - chapters:\n    - file: notebooks/first.ipynb\n"
                                       "    - file: notebooks/second.ipynb\n")
        self.write("first", "First", FIRST)
        self.write("second", "Second", SECOND)
        self.git("init", "-q")
        self.commit()

    def write(self, name: str, title: str, code: str, ap: float = 0.5) -> None:
        (self.root / f"notebooks/{name}.py").write_text(CHAPTER.format(name=name, title=title, code=code, ap=ap))

    def git(self, *arguments: str) -> str:
        return subprocess.run([*GIT, *arguments], cwd=self.root, capture_output=True, text=True, check=True).stdout

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "as it is")

    def changed(self) -> list[str]:
        """The files that are not as in the last commit."""
        return [line[3:] for line in self.git("status", "--porcelain", "--untracked-files=all").splitlines()]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", *command], cwd=self.root, capture_output=True, text=True,
                              timeout=600, env=os.environ | {"PYTHONPATH": str(self.root)})

    def book(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("workflow.book", "--no-pages", *options)

    def ran(self, *options: str) -> list[str]:
        """The chapters that a run executed, in order."""
        log = self.root / "log.txt"
        log.unlink(missing_ok=True)
        done = self.book(*options)
        assert done.returncode == 0, done.stdout + done.stderr
        return log.read_text().split() if log.exists() else []

    def accept(self, name: str) -> str:
        """What the command says where it refuses; nothing where it has taken the runs over."""
        done = self.run("workflow.accept", name)
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr.strip()

    def states(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """What has changed since each chapter ran: what makes it out of date, and what is noted."""
        script = ("import json; from workflow.fingerprint import states; s = states(); "
                  "print(json.dumps([{n: v.stale for n, v in s.items() if v.stale}, "
                  "{n: v.noted for n, v in s.items() if v.noted}]))")
        done = subprocess.run([sys.executable, "-c", script], cwd=self.root, capture_output=True, text=True, check=True,
                              env=os.environ | {"PYTHONPATH": str(self.root)})
        stale, noted = json.loads(done.stdout)
        return stale, noted

    @contextmanager
    def edited(self, file: str, old: str, new: str) -> Iterator[None]:
        """The tree with another text in a file."""
        path = self.root / file
        before = path.read_text("utf-8")
        assert old in before, f"{file} has no {old!r}"
        path.write_text(before.replace(old, new, 1), "utf-8")
        try:
            yield
        finally:
            path.write_text(before, "utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Both chapters have run, and have been accepted and committed."""
    tree = Tree(tmp_path_factory.mktemp("tree"))
    assert tree.ran() == ["first", "second"]
    assert tree.changed() == [], "a run changes nothing in the repository"
    assert tree.accept("all") == ""
    tree.commit()
    return tree


def outputs(tree: Tree, name: str) -> list[dict]:
    notebook = json.loads((tree.root / f"build/pocket/{name}/{name}.ipynb").read_text())
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_what_a_run_leaves(tree: Tree) -> None:
    assert (tree.root / "data/pocket/annotations/instances_val2017.json").exists()
    assert [output["text"] for output in outputs(tree, "second")] == [["1\n"]], "standard error is left out"
    run = json.loads((tree.root / "notebooks/runs/first.json").read_text())
    assert {"detcore.methods.alpha", "detcore.ops.area", "detcore.engine.clock"} <= run["modules"].keys()
    assert "detcore.methods.beta" not in run["modules"] and "detcore.cli" not in run["modules"]
    assert run["records"] == ["first.json"] and run["clean"] and run["data"] == {} and run["seconds"] > 0
    record = json.loads((tree.root / "book/records/first.json").read_text())
    assert record["commit"] == run["commit"] == tree.git("rev-parse", "--short=12", "HEAD~").strip()
    notebook = json.loads((tree.root / "notebooks/second.ipynb").read_text())
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "the runner's own cells are not in it"


def test_nothing_runs_when_nothing_changed_and_a_fresh_clone_proves_one(tree: Tree) -> None:
    for path in tree.root.glob("notebooks/*.py"):
        path.touch()
    assert tree.ran() == []
    shutil.rmtree(tree.root / "build")
    shutil.rmtree(tree.root / "runs")
    log = tree.root / "log.txt"
    log.unlink(missing_ok=True)
    done = tree.book()
    assert log.read_text().split() == ["first"], done.stderr
    assert "first runs (the proof)" in done.stdout
    assert "first    first  bbox_AP  50.0       40.0 to 60.0   50.0  yes" in done.stdout
    assert tree.changed() == []
    assert tree.ran() == [], "once"
    assert tree.ran("--run", "none", "--name", "second") == ["second"], "the file that it reads is here"
    assert tree.ran("--run", "all") == ["first", "second"]
    assert tree.changed() == []


@pytest.mark.parametrize("file, old, new, stale, noted", [
    ("detcore/ops/area.py", "    if side", "    # Nothing is smaller.\n    if side", {}, {}),
    ("detcore/ops/area.py", "Of a square", "Of a square, in square pixels", {}, {}),
    ("detcore/ops/area.py", "is negative", "is less than nothing", {}, {}),
    ("detcore/cli.py", "ROOT = Path(", "OTHER = 1\nROOT = Path(", {}, {}),
    ("detcore/zoo/families/gamma.py", "[]", "[1]", {}, {}),
    ("detcore/methods/gamma.py", "3 *", "4 *", {}, {}),
    ("detcore/methods/beta.py", "2 *", "4 *", {"second": "detcore.methods.beta"}, {}),
    ("detcore/zoo/families/beta.py", "[]", "[1]", {"second": "detcore.zoo.families.beta"}, {}),
    ("detcore/methods/alpha.py", "/ 2", "/ 4", {"first": "detcore.methods.alpha", "second": BOTH}, {}),
    ("detcore/ops/area.py", "side * side", "side ** 2", {"first": "detcore.ops.area", "second": BOTH}, {}),
    ("detcore/engine/clock.py", "0", "1", {}, {"first": ["detcore.engine.clock"]}),
    ("notebooks/second.py", "# # Second", "# # The second", {}, {}),
    ("notebooks/second.py", "print(Path(", "print(1, Path(", {"second": "its own code"}, {}),
    ("notebooks/first.py", "write_text(", "write_text(3 * ", {"first": "its own code", "second": BOTH}, {}),
    ("workflow/config.yaml", "val: 2", "val: 3", dict.fromkeys(["first", "second"], "what the data is drawn from"), {}),
], ids=["comment", "docstring", "error", "command line", "other family", "other method", "method", "family",
        "method of another's", "operation", "engine", "text", "own code", "code of another's", "data"])
def test_what_makes_a_chapter_out_of_date(tree: Tree, file: str, old: str, new: str, stale: dict[str, str],
                                          noted: dict[str, list[str]]) -> None:
    with tree.edited(file, old, new):
        found, mentioned = tree.states()
    assert {name: reasons[0] for name, reasons in found.items()} == stale
    assert mentioned == noted
    assert tree.states() == ({}, {})


def test_a_changed_text_needs_no_run(tree: Tree) -> None:
    assert tree.accept("all") == ""
    tree.commit()
    with tree.edited("notebooks/second.py", "# # Second", "# # The second"):
        assert tree.ran() == []
        assert tree.accept("second") == ""
        assert tree.changed() == ["notebooks/second.ipynb", "notebooks/second.py"]
        notebook = json.loads((tree.root / "notebooks/second.ipynb").read_text())
        assert notebook["cells"][0]["source"] == ["# The second"]
        assert notebook["cells"][-1]["outputs"][0]["text"] == ["1\n"]
    tree.git("checkout", "-q", ".")


def test_changed_code_runs_the_chapters_that_read_from_it(tree: Tree) -> None:
    tree.write("first", "First", FIRST.replace('"1"', '"2"'), ap=0.7)
    assert tree.ran() == ["first", "second"]
    assert outputs(tree, "second")[0]["text"] == ["2\n"]
    assert list(tree.root.glob("runs/first.*/made")), "what another version made is moved aside"
    assert tree.changed() == ["notebooks/first.py"]
    assert tree.accept("first") == ("The run of first was made with changes that are in no commit: commit them, then "
                                    "make book NAME=first.")
    tree.commit()
    log = tree.root / "log.txt"
    log.unlink()
    said = tree.book("--name", "first").stdout
    assert log.read_text().split() == ["first"]
    assert "first    first   bbox_AP  50.0       40.0 to 60.0   70.0  no" in said
    assert tree.accept("first") == ""
    assert sorted(tree.changed()) == ["book/records/first.json", "notebooks/first.ipynb", "notebooks/runs/first.json"]
    assert tree.ran("--name", "second") == ["second"]
    assert tree.accept("second") == "", "outputs that are accepted do not make a tree dirty"
    tree.commit()
    assert tree.states() == ({}, {})


def test_two_runs_give_the_same_notebook(tree: Tree) -> None:
    before = (tree.root / "build/pocket/second/second.ipynb").read_bytes()
    assert tree.ran("--name", "second") == ["second"]
    assert (tree.root / "build/pocket/second/second.ipynb").read_bytes() == before


def test_a_run_of_a_few_steps_stands_apart(tree: Tree) -> None:
    kept = (tree.root / "build/records/first.json").read_bytes()
    done = tree.run("workflow.chapter", "first", "-p", "steps", "2")
    assert done.returncode == 0, done.stderr
    assert (tree.root / "runs/first.short/run/made").exists()
    assert (tree.root / "build/records/first.json").read_bytes() == kept
    assert tree.accept("first") == ("The run of first was given steps=2; the book has runs with a chapter's own "
                                    "parameters: make book NAME=first.")
    assert tree.states() == ({}, {}), "the committed run stands for it"
    assert tree.changed() == []


def test_parameters_of_a_profile_have_their_own_folder(tree: Tree) -> None:
    done = tree.run("workflow.chapter", "first", "-p", "profile", "coco", "-p", "output", "runs/coco")
    assert done.returncode == 0, done.stderr
    assert 'profile = \\"coco\\"' in (tree.root / "build/coco/first/first.ipynb").read_text()
    assert tree.changed() == []


def test_a_broken_run_is_told_and_goes_on(tree: Tree) -> None:
    tree.write("second", "Second", SECOND + "\n1 + 1")
    (tree.root / "broken").touch()
    failed = tree.book()
    assert failed.returncode != 0
    assert "raised ValueError: told to break" in failed.stderr and "These chapters failed: second" in failed.stderr
    assert tree.accept("second") == ("The run of second failed (ValueError: told to break): run it again, "
                                     "make book NAME=second.")
    kept = tree.root / "runs/second/checkpoint"
    kept.write_text("half way")
    (tree.root / "broken").unlink()
    assert tree.ran() == ["second"], "the finished chapter is not run again"
    assert kept.exists(), "what the broken run had made is there for the next one"
    tree.write("second", "Second", SECOND + "\n1 + 2")
    assert tree.ran() == ["second"]
    assert not kept.exists() and list(tree.root.glob("runs/second.*/checkpoint")), "another version's is moved aside"
    tree.git("checkout", "-q", ".")


def test_a_killed_run_goes_on(tree: Tree) -> None:
    tree.write("second", "Second", "import time; time.sleep(600)  # before: runs/first/made")
    log = tree.root / "log.txt"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "workflow.book", "--no-pages"]
    with subprocess.Popen(command, cwd=tree.root, start_new_session=True, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(tree.root)}) as run:
        deadline = time.monotonic() + 300
        while not log.exists() or "second" not in log.read_text().split():
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.2)
        os.killpg(run.pid, signal.SIGKILL)
    path = tree.root / "notebooks/second.py"
    path.write_text(path.read_text().replace("time.sleep(600)", ""))
    assert tree.ran() == ["second"]
    tree.git("checkout", "-q", ".")


def test_a_cluster_runs_each_chapter_by_its_own_command(tree: Tree) -> None:
    submit = tree.root / "build/submit"
    submit.write_text('#!/bin/sh\necho "$@" >> build/submitted\nshift\nexec "$@"\n')
    submit.chmod(0o755)
    assert tree.ran("--run", "all", "--submit", f"{submit} -q") == ["first", "second"]
    lines = (tree.root / "build/submitted").read_text().splitlines()
    assert [line.split("workflow.chapter ")[1] for line in lines] == ["first", "second"]


def test_nbval_runs_the_text_at_two_steps_beside_everything_else(tree: Tree) -> None:
    command = ["pytest", "notebooks", "--nbval", "--nbval-current-env", "--nbval-sanitize-with",
               "notebooks/sanitize.cfg", "-p", "no:cacheprovider", "-q"]
    before = (tree.root / "build/records/first.json").read_bytes()
    with tree.edited("notebooks/first.py", 'file.write("first ")', 'file.write(f"first at {steps} steps ")'):
        done = tree.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tree.root / "build/nbval/first/log.txt").read_text() == "first at 2 steps "
    assert (tree.root / "build/nbval/second/log.txt").read_text() == "first at 2 steps second ", \
        "what it reads has run there"
    assert (tree.root / "build/records/first.json").read_bytes() == before
    made = (tree.root / "runs/first/made").read_text()
    with tree.edited("notebooks/second.ipynb", f'"{made}\\n"', '"another\\n"'):
        done = tree.run(*command)
        assert done.returncode == 1 and "another" in done.stdout, "outputs are compared"


def test_seeds(tree: Tree) -> None:
    done = tree.run("workflow.seeds", "--only", "*nothing*")
    assert done.returncode == 1 and "No model matches *nothing*: the models are" in done.stderr
    assert tree.accept("seeds") == "No model has been trained with other seeds on this machine: make seeds."


def test_committed_seeds_can_be_read() -> None:
    """Of every model of the configuration with every seed there is a list, and its records are there."""
    settings, found = fingerprint.config()["seeds"], fingerprint.read_all(fingerprint.RUNS / "seeds.json")
    assert {f"{model}.seed{seed}" for model in settings["models"] for seed in settings["values"]} <= set(found)
    assert all((ROOT / "book/records" / record).exists() for run in found.values() for record in run["records"])


def test_a_chapter_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    """A real one, which trains two steps."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "detcore", "workflow", "notebooks", "book",
                            "_toc.yml", ".gitignore"], cwd=ROOT, capture_output=True, text=True, check=True)
    for file in files.stdout.splitlines():
        if (ROOT / file).is_file():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / file)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "as it is"]):
        subprocess.run([*GIT, *command], cwd=tmp_path, check=True)
    draw(tmp_path / "data/pocket", images=40, val=48, workers=1, progress=False)
    name = fingerprint.config()["proof"]
    done = subprocess.run([sys.executable, "-m", "workflow.chapter", name, "-p", "steps", "2"], cwd=tmp_path,
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert status.stdout == ""
    run = json.loads((tmp_path / f"build/pocket/{name}/run.json").read_text())
    assert run["records"] and run["clean"]
    assert {f"detcore.{room}" for room in ("methods.rpn", "zoo.families.rpn", "layers.conv", "ops.boxes", "recipe",
                                           "backbones.resnet", "necks.fpn", "detectors")} <= run["modules"].keys()
    assert not {"detcore.methods.mask_rcnn", "detcore.zoo.families.mask_rcnn"} & run["modules"].keys()


def test_the_page_of_what_ran_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book/_ext"))
    locale.init([str(ROOT / "book/locale")], "en", "zoobook")
    from zoobook import machine

    monkeypatch.setattr(machine, "FILE", tmp_path / "machine.json")
    assert shown(machine.Results)[0].astext().startswith("No chapter has run on this machine")
    row = dict(chapter="rpn", model="rpn_r50_fpn_1x_coco", metric="proposal_AR100", committed=0.62, here=0.65)
    run = dict(chapter="rpn", seconds=71, machine="a CPU", date="2026-01-31T12:00:00+00:00", commit="0123456789ab",
               committed_seconds=100, committed_machine="another CPU")
    machine.FILE.write_text(json.dumps(dict(runs=[run], rows=[
        row | dict(interval=[0.6, 0.64], within=False), row | dict(interval=None, within=None)])))
    assert table(shown(machine.Results))[1] == [
        ["rpn", "rpn_r50_fpn_1x_coco", "AR@100", "62.0", "60.0 – 64.0", "65.0", "no"],
        ["rpn", "rpn_r50_fpn_1x_coco", "AR@100", "62.0", "–", "65.0", "–"]]
    assert table(shown(machine.Runs))[1] == [["rpn", "71", "a CPU", "100", "another CPU", "0123456789ab", "2026-01-31"]]


def test_committed_chapters_are_up_to_date() -> None:
    """make book NAME=..., then make accept NAME=..., mends it."""
    states = fingerprint.states(here=False)
    for name, state in states.items():
        if state.noted:
            warnings.warn(f"{name}: changed since it ran, without making it out of date: {', '.join(state.noted)}",
                          stacklevel=1)
    out_of_date = {name: state.stale for name, state in states.items() if state.stale}
    assert out_of_date == {}, f"Out of date: {', '.join(out_of_date)}"


def test_what_a_program_says_is_no_code_of_it() -> None:
    source = '''
def f(x):
    """Says what."""
    if x > 3:
        raise ValueError(f"{x} is " + "too large") from None
    warnings.warn("careful", stacklevel=2)
    return "result", x + 1
'''
    same = code(source)
    for old, new in (("Says what.", "Says it otherwise."), ("{x} is ", "it is "), ("too large", "larger than three"),
                     ('"careful"', 'f"careful with {x}"'), ('    """Says what."""\n', ""), ("x + 1", "(x+1) # one")):
        assert old in source and code(source.replace(old, new)) == same, old
    for old, new in (("x + 1", "x + 2"), ("ValueError", "TypeError"), ("x > 3", "x > 4"), ("result", "outcome"),
                     ("stacklevel=2", "stacklevel=3")):
        assert old in source and code(source.replace(old, new)) != same, old


def test_chapters_follow_the_table_of_contents() -> None:
    chapters = contents.chapters()
    assert {f"notebooks/{name}.ipynb" for name in chapters} < set(contents.pages())
    assert contents.pages()[0] == "book/index.md"
    assert "rpn" in chapters["fast_rcnn"] and chapters["data"] == []
    assert chapters["benchmark"] == list(chapters)[:list(chapters).index("benchmark")], "it reads their records"


def test_chapters_share_fewer_than_ten_lines_of_code() -> None:
    """Beside their parameters, which papermill sets by name, imports, and names alone that show a value."""
    lines = {}
    for name in contents.chapters():
        cells = re.split(r"^# %%(.*)$", (ROOT / f"notebooks/{name}.py").read_text("utf-8"), flags=re.MULTILINE)[1:]
        own = [line.strip() for head, body in zip(cells[::2], cells[1::2])
               if "markdown" not in head and '"parameters"' not in head for line in body.splitlines()]
        lines[name] = {line for line in own if line and not re.match(r"#|from |import |[\w.]+$", line)}
    for one, other in itertools.combinations(lines, 2):
        assert len(same := lines[one] & lines[other]) < 10, (one, other, same)


def test_every_lock_line_pins_a_package() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert len(lines) > 100
    assert all(len(line.split("==")) == 2 and " " not in line for line in lines)


def test_commands_end_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fingerprint, "RUNS", tmp_path)
    (tmp_path / "a.json").write_text('{"code": "x", "given": []}')
    with pytest.raises(SystemExit) as stop, sentences():
        try:
            fingerprint.committed("a")
        except DataError as error:
            raise RuntimeError("as Sphinx wraps it") from error
    assert re.fullmatch(r"The list of a run .*a.json is damaged, 'given' in it .* again\.", stop.value.code)
    with pytest.raises(ZeroDivisionError), sentences():
        raise ZeroDivisionError


def test_two_builds_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "BUILD", tmp_path / "build")
    (tmp_path / "build").mkdir()
    code = (f"import sys, time; from pathlib import Path; from detcore.runs import alone, take\n"
            f"@alone\ndef main():\n    take(Path({str(tmp_path / 'build')!r})); print('taken', flush=True); "
            f"time.sleep(100)\nmain()")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "taken\n"
        monkeypatch.setattr(sys, "argv", ["book"])
        with pytest.raises(SystemExit, match="Another run is writing into .*build"):
            book.main()
        other.kill()
