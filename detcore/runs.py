"""What every run on disk needs: an output folder, checkpoints, a way to be interrupted, a digest of the code.

What is random in a training step is drawn from (seed, process, step), and the place in the data follows from the step,
so that neither the state of a random generator nor that of a loader has to be kept.
"""
from __future__ import annotations

import ast
import hashlib
import io
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from functools import cache, wraps
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from detcore.errors import DetcoreError, UsageError, WeightsError
from detcore.records import write_atomically


def output_folder(path: str | Path) -> Path:
    """The folder, made if it is not there; raises a DetcoreError if it cannot be made or written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()
    except OSError as error:
        raise DetcoreError(f"The output folder {path} cannot be written to: {error.strerror}.") from error
    except ValueError as error:  # a NUL in its name
        raise DetcoreError(f"The output folder {str(path)!r} cannot be written to: {error}.") from error
    return path


P = ParamSpec("P")
R = TypeVar("R")
_taken: set[Path] = set()  # by this process
_locks: ContextVar[ExitStack] = ContextVar("locks")


def take(folder: Path) -> None:
    """Have a folder for oneself until the function marked with `alone` is over, or the process, however it ends.

    Raises:
        UsageError: another run has it.
    """
    path = (folder / ".lock").resolve()
    told = UsageError(f"Another run is writing into {folder}: wait until it is over, or name another folder.")
    if path in _taken:
        raise told
    try:
        import fcntl

        # Unlike `flock`'s, such a lock does not pass to the processes that load images, which may end later.
        file = open(path, "a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise told from None
    except (ImportError, OSError):  # a system or a disk that knows no locks
        return
    _taken.add(path)
    _locks.get().callback(_taken.discard, path)
    _locks.get().callback(file.close)


def release() -> None:
    """Give back what the function marked with `alone` has taken, for processes that it starts."""
    _locks.get().close()


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: what the function takes by `take` is given back when it is over."""
    @wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        with ExitStack() as stack:
            token = _locks.set(stack)
            try:
                return function(*args, **options)
            finally:
                _locks.reset(token)
    return run


class _Silent(ast.NodeTransformer):
    """Takes out what a program says of itself: docstrings, and the texts that it raises, logs or warns with."""

    SPEAKERS = ("log", "logger", "logging", "warnings")
    spoken = False

    def _speak(self, node: ast.AST) -> ast.AST:
        before, self.spoken = self.spoken, True
        self.generic_visit(node)
        self.spoken = before
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return self._speak(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        match node.func:
            case ast.Attribute(value=ast.Name(id=name)) if name in self.SPEAKERS:
                return self._speak(node)
        return self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("") if self.spoken else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if self.spoken and isinstance(node.value, str) else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """One text in two halves is the same as one."""
        self.generic_visit(node)
        match node:
            case ast.BinOp(left=ast.Constant(value=""), op=ast.Add(), right=ast.Constant(value="")) if self.spoken:
                return node.left
        return node


def code(source: str) -> str:
    """Python source without comments, docstrings, layout, and the texts of its errors, warnings and log lines."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case (ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef()) as scope:
                match scope.body:
                    case [ast.Expr(value=ast.Constant(value=str())), *_] as body:
                        body[:1] = [ast.Pass()] if len(body) == 1 else []
    return ast.dump(_Silent().visit(tree))


@cache
def code_digest(folder: Path = Path(__file__).parent) -> str:
    """Twelve hexadecimal digits that stand for the library's code, as `code` reads it."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n{code(path.read_text('utf-8'))}\n".encode())
    return digest.hexdigest()[:12]


class Checkpoints:
    """The numbered checkpoints of a run, of which the last `keep` stay.

    Each is one PyTorch file, readable without running code: "meta" (model, profile, classes, category_ids) and
    "state_dict" as `detcore.zoo.create.restore` takes them, beside what training needs.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted(self.folder.glob("step_*.pt"))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, then remove those that are too old.

        Raises:
            DetcoreError: it cannot be written; those before stay.
        """
        import torch

        path = self.folder / f"step_{step:08}.pt"
        # Through memory: a full disk then shows as an ordinary error of one write.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomically(path, buffer.getbuffer())
        except OSError as error:
            if not self.folder.parent.is_dir():
                raise removed(self.folder.parent) from error
            last = self.paths()
            rest = f"{last[-1]} is whole, and the run can go on from it" if last else "there is none before it"
            raise DetcoreError(f"The checkpoint {path} cannot be written: {error.strerror}; {rest}.") from error
        for old in self.paths()[:-self.keep]:
            old.unlink(missing_ok=True)

    def load(self, form: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The newest checkpoint, None where there is none; its checksums are verified.

        Args:
            form: the type, or types, that each of its entries has to have; "step" has to be that of the file's name.

        Raises:
            WeightsError: it is damaged.
        """
        from detcore.weights import load_file

        if not (paths := self.paths()):
            return None
        path, before = paths[-1], paths[-2:-1]
        advice = f"remove it to go on from the one before it ({before[0].name})" if before else (
            "there is none before it: start anew over it (overwrite)")
        try:
            state = load_file(path)
        except OSError as error:
            raise WeightsError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
        except Exception as error:  # there is no end to the ways in which a damaged pickle fails
            reason = f" ({error})" if isinstance(error, WeightsError) else ""
            raise WeightsError(f"The checkpoint {path} cannot be read{reason}; {advice}.") from error
        form = form or {}
        wrong = [] if isinstance(state, dict) else ["everything"]
        wrong += [name for name, kind in form.items()
                  if not wrong and (name not in state or not isinstance(state[name], kind))]
        if not wrong and "step" in form and path.stem != f"step_{state['step']:08}":
            wrong = ["step"]
        if wrong:
            raise WeightsError(f"The checkpoint {path} is damaged: {', '.join(wrong[:3])} in it is missing or of the "
                               f"wrong kind; {advice}.")
        return state


def removed(folder: Path) -> DetcoreError:
    """The error where the folder of a run is gone."""
    return DetcoreError(f"The output folder {folder} was removed or moved while the run was writing into it: start it "
                        "again, or put the folder back and resume it.")


class Interruption:
    """Lets Ctrl-C, a request to terminate or a closed terminal wait for the end of a step; a second Ctrl-C does not.

    Used as a context; `requested` tells whether it was asked for. Outside of the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._ask) for s in stop_signals() if s != signal.SIGINT}
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a process to end, but for those that it was started to ignore, as `nohup` does."""
    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return [s for s in known if signal.getsignal(s) != signal.SIG_IGN]
