"""Finding, checking and loading weights.

Published files come from the network once, into PyTorch's own cache, and are checked against the hash in their name.
A checkpoint is a pickle, and a pickle can run code: only tensors and plain values are read from it. Bookkeeping that
published files carry besides (logs, configurations, NumPy scalars) becomes inert stand-ins.
"""
from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm.auto import tqdm

from detcore.errors import WeightsError
from detcore.records import write_atomically

TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 4
CHUNK = 1 << 20


# Fetching

def cache_folder() -> Path:
    """Where downloaded weights are kept: PyTorch's own cache (`TORCH_HOME` moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(url: str, folder: Path | None = None) -> Path:
    """The file at `url`, downloaded unless it is in the cache; an interrupted download goes on where it stopped.

    Raises:
        WeightsError: the address cannot be reached, or the file's SHA-256 is not the one its name announces.
    """
    folder = folder or cache_folder()
    name = Path(urlparse(url).path).name
    target, part = folder / name, folder / (name + ".part")
    if target.exists():
        return target
    if urlparse(url).scheme not in ("http", "https"):
        raise WeightsError(f"Cannot fetch {url}: only http and https addresses are.")
    elsewhere = f"Run again to go on, or download it elsewhere and put it into {folder}."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):  # the processes of one training may all come here
            if target.exists():
                return target
            if not any(_download(url, part) for _ in range(ATTEMPTS)):
                raise WeightsError(f"The download of {url} keeps breaking off. {elsewhere}")
            announced, digest = announced_hash(name), sha256(part)
            if announced and not digest.startswith(announced):
                part.unlink()
                raise WeightsError(f"{url} is not the file that was published: its SHA-256 begins with "
                                   f"{digest[:len(announced)]}, its name says {announced}. The download is removed.")
            os.replace(part, target)
    except HTTPError as error:
        raise WeightsError(f"Cannot fetch {url}: the server answers {error.code} {error.reason}.") from error
    except URLError as error:
        raise WeightsError(f"Cannot fetch {url}: {error.reason}. {elsewhere}") from error
    except OSError as error:
        raise WeightsError(f"Cannot fetch {url} into {folder}: {error}. {elsewhere}") from error
    return target


def announced_hash(name: str) -> str | None:
    """The first hexadecimal digits of the SHA-256 that a file's name ends with, None if it does not."""
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return match[1] if match else None


def _download(url: str, part: Path) -> bool:
    """Append what is missing to `part`; whether it is complete now."""
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"User-Agent": "detcore"} | ({"Range": f"bytes={have}-"} if have else {}))
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send
            return True
        raise
    with response:
        if response.status != 206:  # the server sends the whole file
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with open(part, "ab" if have else "wb") as file, tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, leave=False) as bar:
            try:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            except (ConnectionError, TimeoutError, HTTPException):
                return False
            return total is None or file.tell() == total


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Reading

class Inert:
    """Takes the place of a class or function that a checkpoint names: accepts anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What published files name beside tensors. `getattr` is how a pickle refers to a method (HistoryBuffer's statistics).
STAND_INS: list[Any] = [
    *((Inert, name) for name in (
        "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "argparse.Namespace", "pathlib.PosixPath",
        "datetime.datetime", "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct", "numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct")),
    *((OrderedDict, name) for name in (
        "mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict", "addict.addict.Dict")),
]


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        path: the file.
        state: tensors by name.
        meta: what the file says of itself; ours have "model", "profile" and "classes".
    """

    path: Path
    state: dict[str, Tensor] = field(repr=False)
    meta: Mapping[str, Any] = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, where the file tells them."""
        told = self.meta.get("classes") or self.meta.get("CLASSES")
        if told is None and isinstance(self.meta.get("dataset_meta"), Mapping):
            told = self.meta["dataset_meta"].get("classes") or self.meta["dataset_meta"].get("CLASSES")
        return tuple(map(str, told)) if isinstance(told, (list, tuple)) else None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a `.safetensors` or PyTorch file, on the CPU. Nothing that the file contains is run.

    Raises:
        WeightsError: there is no such file, it is broken, holds no tensors, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"There is no file of weights at {path}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_pickle(path)
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no weights.")
    meta = content.get("meta") if state is not content else None
    return Checkpoint(path, tensors, meta if isinstance(meta, Mapping) else {})


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, "pt") as file:
            meta, names = file.metadata() or {}, file.keys()
            state = {name: file.get_tensor(name) for name in names}
        return Checkpoint(path, state, {key: json.loads(value) for key, value in meta.items() if key != "format"})
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"unrecognized function (.+)", str(error))
        if found:
            raise WeightsError(f"{path} is refused: it would run {found[1]}, which weights have no need of.") from error
        raise WeightsError(f"{path} is not a readable file of weights.") from error
    except Exception as error:  # there is no end to the ways in which a damaged pickle fails
        raise WeightsError(f"{path} is not a readable file of weights: it is cut off, or of another kind.") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds no weights.")
    return content


def save_weights(path: str | Path, model: nn.Module, meta: Mapping[str, Any]) -> None:
    """A model's weights as a `.safetensors` file, written atomically.

    Args:
        meta: what the file says of itself, kept as JSON; `detcore.zoo.create.restore` needs "model" (a name of the
            zoo), "profile" and "classes" (names).
    """
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    try:
        content = save(state, {"format": "pt"} | {key: json.dumps(value) for key, value in meta.items()})
        write_atomically(Path(path), content)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"Cannot write {path}: {error}") from error


# Loading

def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """How the entries of a checkpoint differ from those that a model expects, in words; "" if they do not."""
    # Older files lack batch norm's counter, which nothing here depends on.
    kinds = {"missing": [n for n in expected if n not in state and not n.endswith("num_batches_tracked")],
             "too many": [n for n in state if n not in expected],
             "of another shape": [n for n in expected if n in state and state[n].shape != expected[n].shape]}
    return "; ".join(f"{len(names)} entries are {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                     for kind, names in kinds.items() if names)


def load_weights(model: nn.Module, checkpoint: Checkpoint, *, leave: Collection[str] = (),
                 name: str = "the model") -> None:
    """Copy a checkpoint into a model; every entry must fit, but for those in `leave`, which keep their values.

    Raises:
        WeightsError: something is missing, too much or of another shape.
    """
    expected = {n: v for n, v in model.state_dict().items() if n not in leave}
    state = {n: v for n, v in checkpoint.state.items() if n not in leave}
    if found := differences(state, expected):
        raise WeightsError(f"{checkpoint.path} does not fit {name}: {found}.")
    model.load_state_dict(state, strict=False)


def load_backbone(model: nn.Module, source: str) -> None:
    """Fill a detector's backbone with pretrained weights; the classifier that comes with them is left out.

    In C4 detectors the last stage of the file goes to the RoI head, where that stage is. What no classifier has
    stays as it is, where the file does not have it: offsets of deformable convolutions, and the layers that SSD's VGG
    and Swin name `added`. A backbone with group norm also takes a file with batch norm: its scales and shifts.

    Args:
        source: torchvision's weights by name ("ResNet50_Weights.IMAGENET1K_V1"), an address, or a file.

    Raises:
        WeightsError: the file is not one of this backbone.
    """
    checkpoint = read_checkpoint(find(source))
    # The files converted from MSRA's also have a bias of the first convolution, which the zoo's backbones leave out.
    # Files of whole classifiers say `backbone.` before every name.
    state = {n.removeprefix("backbone."): v for n, v in checkpoint.state.items()
             if not n.startswith(("fc.", "head.")) and n != "conv1.bias"}
    shared_head = getattr(getattr(model, "roi_head", None), "shared_head", None)
    parts = [p for p in (model.get_submodule("backbone"), shared_head) if isinstance(p, nn.Module)]
    for part in parts:
        if convert := getattr(part, "from_published", None):
            state = convert(state)
    expected = {name: value for part in parts for name, value in part.state_dict().items()}
    if not any("running_mean" in name for name in expected):
        state = {re.sub(r"\bbn(\d)", r"gn\1", n): v for n, v in state.items()
                 if not n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    stages = {_stage(name) for name in expected}
    state = {n: v for n, v in state.items() if _stage(n) in stages}  # some backbones leave their last stage out
    added = tuple(name for part in parts for name in getattr(part, "added", ()))
    found = differences(state, {n: v for n, v in expected.items()
                                if n in state or not (".conv_offset." in n or n.startswith(added))})
    if found or not state:
        raise WeightsError(f"{checkpoint.path} does not fit the backbone: {found or 'no entry is known'}.")
    for part in parts:
        part.load_state_dict({n: state[n] for n in part.state_dict() if n in state}, strict=False)


def _stage(name: str) -> str:
    """The stage of a backbone that an entry belongs to: "layer1", "conv1", or "layers.1" where they are numbered."""
    found = re.match(r"(layers\.)?\w+", name)
    return found[0] if found else name


def find(source: str | Path) -> Path:
    """The local file of a source of weights: torchvision's name of them, an address (fetched), or a path."""
    address = weights_address(str(source))
    return fetch(address) if address else Path(source)


def weights_address(source: str) -> str | None:
    """Where a source of weights is to be fetched from; None for a path.

    Raises:
        WeightsError: torchvision has no weights of this name.
    """
    if re.fullmatch(r"\w+_Weights\.\w+", source):
        from torchvision.models import get_weight

        try:
            return get_weight(source).url
        except (KeyError, ValueError, AttributeError) as error:
            raise WeightsError(f"torchvision has no weights {source!r}.") from error
    return source if re.match(r"https?://", source) else None


def weights_file(source: str) -> str:
    """The name of a source's file."""
    return (weights_address(source) or source).rpartition("/")[2]
