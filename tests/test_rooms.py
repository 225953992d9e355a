"""The structure of the library: which room may import from which, and which method's file from another's."""
from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "detcore"

# Rooms from the ground up: a room imports from its own and from those before it. Names that end in a dot are folders.
ORDER = (("errors",), ("ranges",), ("structures",), ("records", "options"), ("ops.",), ("layers.", "draw"),
         ("backbones.", "necks."), ("detectors",), ("methods.",), ("data.",), ("metrics.",), ("recipe", "weights"),
         ("runs",), ("pocket.",), ("zoo.",), ("engine.",), ("experiment",), ("cli",), ("__main__",))

# A method's file imports from another's where its paper builds on that method.
BUILDS_ON = {
    "fast_rcnn": set(),
    "rpn": set(),
    "faster_rcnn": {"fast_rcnn", "rpn"},
    "fcos": {"fast_rcnn"},  # as the proposal network of Faster R-CNN
    "mask_rcnn": {"fast_rcnn", "rpn"},
    "cascade_rcnn": {"fast_rcnn", "mask_rcnn", "rpn"},
    "dynamic_rcnn": {"fast_rcnn", "faster_rcnn"},
    "libra_rcnn": {"fast_rcnn", "faster_rcnn", "retinanet", "rpn"},
    "grid_rcnn": {"fast_rcnn", "rpn"},
    "ms_rcnn": {"mask_rcnn"},
    "panoptic_fpn": {"mask_rcnn"},
    "seesaw_loss": {"cascade_rcnn", "fast_rcnn", "mask_rcnn"},
    "dcn": {"faster_rcnn"},
    "group_norm": {"faster_rcnn", "mask_rcnn"},
    "weight_standardization": {"faster_rcnn", "group_norm", "mask_rcnn"},
    "guided_anchoring": {"fast_rcnn", "faster_rcnn", "retinanet", "rpn"},
    "retinanet": set(),
    "efficientnet": {"retinanet"},
    "free_anchor": {"retinanet"},
    "mask2former": {"maskformer"},
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the library by its name without `detcore.`."""
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(ROOT.rglob("*.py"))
            if p.name != "__init__.py"}


@cache
def imports(path: Path, lazy: bool = False) -> frozenset[str]:
    """The modules of the library that a file imports when it is itself imported; `lazy`: also inside functions."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not lazy:
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("detcore"):
                base = (child.module or "").removeprefix("detcore").removeprefix(".")
                for alias in child.names:
                    full = f"{base}.{alias.name}".strip(".")
                    found.add(full if full in modules() else base)
            elif isinstance(child, ast.Import):
                found.update(a.name.removeprefix("detcore.") for a in child.names if a.name.startswith("detcore."))
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return frozenset(found - {""})


def height(module: str) -> int:
    """How far up in `ORDER` a module stands."""
    exact = [i for i, names in enumerate(ORDER) for n in names if module == n]
    if exact:
        return exact[0]
    return next(i for i, names in enumerate(ORDER) for n in names if n.endswith(".") and module.startswith(n))


@pytest.mark.parametrize("module", modules())
def test_rooms_import_downwards(module: str) -> None:
    wrong = {other for other in imports(modules()[module]) if height(other) > height(module)}
    assert not wrong, f"detcore.{module} imports from above: {', '.join(sorted(wrong))}"


def test_no_circle() -> None:
    """No module imports itself by way of others, not even inside functions."""
    graph = {name: {o for o in imports(path, lazy=True) if o in modules()} for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name):], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_methods_stand_alone(path: Path) -> None:
    """A method's file imports from another's only where the paper builds on it."""
    others = {o.removeprefix("methods.") for o in imports(path, lazy=True) if o.startswith("methods.")}
    assert others <= BUILDS_ON.get(path.stem, set())


# Lines of each room at most: it grows by decision, not unnoticed.
LINES = {"methods": 5_000, "backbones": 960, "layers": 500, "necks": 60, "ops": 1_140, "zoo": 1_880, "data": 4_750,
         "metrics": 1_310, "engine": 2_320, "": 3_350}


@pytest.mark.parametrize("room", LINES)
def test_size(room: str) -> None:
    """The small profile aside, which is not read to understand a method; "" are the files outside of all folders."""
    names = [name for name in modules() if name.rpartition(".")[0].partition(".")[0] == room]
    assert 0 < sum(len(modules()[name].read_text("utf-8").splitlines()) for name in names) <= LINES[room]


def test_every_room_has_a_size() -> None:
    assert {name.rpartition(".")[0].partition(".")[0] for name in modules()} == {*LINES, "pocket"}
