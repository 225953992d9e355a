"""Finding, checking and loading weights.

Published files come from the network once, into PyTorch's own cache, and are checked against the hash in their name.
A checkpoint is a pickle, and a pickle can run code: only tensors and plain values are read from it. Bookkeeping that
published files carry besides (logs, configurations, NumPy scalars) becomes inert stand-ins.
"""
from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm.auto import tqdm

from detcore.errors import WeightsError
from detcore.records import write_atomically

log = logging.getLogger(__name__)

TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 4
CHUNK = 1 << 20
WANTED = "http://HOST/PATH/FILE is wanted, without blanks and special characters"
ROOM = 64 << 20  # bytes that a file may unpack to beyond four times its size
DIGEST = "tensors_sha256"  # where a safetensors file of ours has the digest of its content


# Fetching

def cache_folder() -> Path:
    """Where downloaded weights are kept: PyTorch's own cache (`TORCH_HOME` moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(url: str, folder: Path | None = None) -> Path:
    """The file at `url`, downloaded unless it is in the cache; an interrupted download goes on where it stopped.

    A file whose name ends with the beginning of its SHA-256 is held to it each time. Of another one the address and
    the SHA-256 are noted beside it, and what comes has to be readable as weights; put there by hand, it is taken as is.

    Raises:
        WeightsError: the address is none, or cannot be reached; what comes is not the file that was published.
    """
    folder = folder or cache_folder()
    source = _Source.of(url)
    name, shown = source.name, source.shown
    target, part = folder / name, folder / f"{name}.part"
    elsewhere = f"Run again to go on, or download it elsewhere and put it into {folder}."
    try:
        if _is_cached(target, source):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):  # the processes of one training may all come here
            if _is_cached(target, source):
                return target
            if not any(_download(source, part) for _ in range(ATTEMPTS)):
                raise WeightsError(f"The download of {shown} keeps breaking off. {elsewhere}")
            _check_download(source, part)
            os.replace(part, target)
            _beside(part).unlink(missing_ok=True)
    except WeightsError:
        raise
    except HTTPError as error:
        raise WeightsError(f"Cannot fetch {shown}: the server answers {error.code} {_clean(error.reason)}.") from error
    except URLError as error:
        raise WeightsError(f"Cannot fetch {shown}: {_clean(error.reason)}. {elsewhere}") from error
    except OSError as error:
        told = error.strerror or _clean(error)
        raise WeightsError(f"Cannot fetch {shown} into {folder}: {told}. {elsewhere}") from error
    except (HTTPException, ValueError) as error:  # an answer that is no HTTP, a redirect to no address
        told = _clean(error) or type(error).__name__
        raise WeightsError(f"Cannot fetch {shown}: the server's answer is not valid ({told}). {elsewhere}") from error
    return target


@dataclass(frozen=True)
class _Source:
    """An address, taken apart.

    Attributes:
        url: without user and password; headers: these.
        shown: for people: without a query, too, since it may hold a key.
        name: of the file.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    shown: str
    name: str

    @classmethod
    def of(cls, url: str) -> _Source:
        """Raises a WeightsError for what is not the address of a file."""
        try:
            parts = urlsplit(url)
            user, password, host, port = parts.username, parts.password, parts.hostname, parts.port
        except ValueError:  # whose text may hold a password
            raise WeightsError(f"{_clean(url)!r} is not an address of weights: {WANTED}.") from None
        if parts.scheme not in ("http", "https"):
            raise WeightsError(f"Cannot fetch {_clean(url)}: only http and https addresses are.")
        place = parts.netloc.rpartition("@")[2]
        name, shown = parts.path.rpartition("/")[2], f"{parts.scheme}://{place}{parts.path}"
        if not host or port == 0 or not (shown + url).isprintable() or not url.isascii() or " " in url:
            raise WeightsError(f"{_clean(url)!r} is not an address of weights: {WANTED}.")
        if name in ("", ".", ".."):
            raise WeightsError(f"The address {shown} does not end with the name of a file of weights.")
        headers = {"User-Agent": "detcore"}
        if user is not None:
            pair = f"{unquote(user)}:{unquote(password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(urlunsplit((parts.scheme, place, parts.path, parts.query, "")), headers, shown, name)


def _clean(told: object) -> str:
    """A text of others as a part of a sentence: on one line, not too long, without the password of an address."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(told)).split())
    return re.sub(r"(//[^?\s]*)\?\S*", r"\1", re.sub(r"//\S*@", "//", text))[:200]


def _beside(path: Path) -> Path:
    """Where it is noted which address a file came from, if its name tells no hash."""
    return path.with_name(f".{path.name}.json")


def _note(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_beside(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _is_cached(target: Path, source: _Source) -> bool:
    """Whether the file is there, and is the one that the address stands for."""
    if not target.is_file():
        return False
    if announced := announced_hash(source.name):
        sound = sha256(target).startswith(announced)
    elif not _beside(target).exists():  # put there by hand
        return True
    else:
        told = _note(target)
        if told.get("url") != _url_digest(source):
            return False  # another one of the same name
        sound = told.get("sha256") == sha256(target)
    if not sound:
        log.warning("%s is damaged; it is fetched again.", target)
    return sound


def _url_digest(source: _Source) -> str:
    return hashlib.sha256(source.url.encode()).hexdigest()


def _check_download(source: _Source, part: Path) -> None:
    """Raise a WeightsError, and remove the file, if it cannot be what the address stands for."""
    digest = sha256(part)
    if announced := announced_hash(source.name):
        if not digest.startswith(announced):
            part.unlink()
            raise WeightsError(f"{source.shown} is not the file that was published: its SHA-256 begins with "
                               f"{digest[:len(announced)]}, its name says {announced}. The download is removed.")
        return
    with open(part, "rb") as file:
        first = file.read(512).lstrip().lower()
    try:
        if first.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise WeightsError("it is a page")
        _read_any(part, source.name)
    except WeightsError as error:
        part.unlink()
        _beside(part).unlink(missing_ok=True)
        reason = "a page" if str(error) == "it is a page" else "no readable file of weights"
        raise WeightsError(f"What the server sends for {source.shown} is {reason}; the download is removed: look at "
                           "the address in a browser.") from error
    write_atomically(_beside(part.with_name(source.name)),
                     json.dumps(dict(url=_url_digest(source), sha256=digest)).encode())


def announced_hash(name: str) -> str | None:
    """The first hexadecimal digits of the SHA-256 that a file's name ends with, None if it does not."""
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return match[1] if match else None


def _download(source: _Source, part: Path) -> bool:
    """Append what is missing to `part`; whether it is complete now."""
    have, hashed = part.stat().st_size if part.exists() else 0, announced_hash(source.name) is not None
    headers = dict(source.headers)
    if have and not hashed:  # only of the very same file may the rest be taken
        note = _note(part)
        validator = note.get("validator") if note.get("url") == _url_digest(source) else None
        have = have if isinstance(validator, str) else 0
        headers |= {"If-Range": str(validator)} if have else {}
    headers |= {"Range": f"bytes={have}-"} if have else {}
    request = Request(source.url, headers={k: v for k, v in headers.items() if k != "Authorization"})
    if "Authorization" in headers:  # for this host alone, not for one that it redirects to
        request.add_unredirected_header("Authorization", headers["Authorization"])
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        told = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
        if (int(told[1]) == have) if told else hashed:  # nothing is left to send; a hash is looked at later
            return True
        part.unlink()
        return False
    except (ConnectionError, TimeoutError):
        return False
    with response:
        if response.status not in (200, 206):
            raise WeightsError(f"Cannot fetch {source.shown}: the server answers {response.status} "
                               f"{_clean(response.reason)} instead of a file.")
        if response.headers.get_content_type() == "text/html" and not hashed:
            raise WeightsError(f"What the server sends for {source.shown} is a page, not a file of weights: look at "
                               "the address in a browser.")
        place = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range") or "")
        if response.status == 200:  # the server sends the whole file
            have = 0
        elif (int(place[1]) != have) if place else not hashed:  # another part than the one asked for
            part.unlink(missing_ok=True)
            return False
        length = response.headers.get("Content-Length")
        if length is not None and not (length.strip().isdecimal() and len(length) < 20):
            raise WeightsError(f"Cannot fetch {source.shown}: the server's Content-Length is {_clean(length)!r}, not a "
                               "number.")
        total = have + int(length) if length else None
        if place and response.status == 206 and place[3] != "*":
            total = int(place[3])
        if not hashed and not have:
            validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
            validator = None if validator and validator.startswith("W/") else validator
            write_atomically(_beside(part), json.dumps(dict(url=_url_digest(source), validator=validator)).encode())
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
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise WeightsError(f"There is no file of weights at {path}.")
    return _read_any(path, path.name)


def _read_any(path: Path, name: str) -> Checkpoint:
    """As `read_checkpoint`; the file's kind is told by its `name`, or by how it begins."""
    if name.endswith(".safetensors") or _begins_as_safetensors(path):
        return _read_safetensors(path)
    content = _read_pickle(path)
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no weights.")
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            raise WeightsError(f"{path} cannot be used: its entry {name[:80]} is not a plain tensor, but "
                               f"{'quantised' if value.is_quantized else 'sparse or without content'}.")
    meta = content.get("meta") if state is not content else None
    return Checkpoint(path, tensors, meta if isinstance(meta, Mapping) else {})


def _begins_as_safetensors(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            first = file.read(9)
        return len(first) == 9 and first[8:] == b"{" and int.from_bytes(first[:8], "little") < path.stat().st_size
    except OSError:
        return False


def tensors_digest(state: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """The SHA-256 of tensors by name, with their types and shapes, and of what a file says of itself."""
    total = hashlib.sha256(json.dumps(sorted(meta.items())).encode())
    for name, value in sorted(state.items()):
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, "pt") as file:
            meta, names = dict(file.metadata() or {}), file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except Exception as error:  # of several libraries
        raise WeightsError(f"{path} is not a readable safetensors file: {_clean(error)}") from error
    if not state:
        raise WeightsError(f"{path} holds no weights.")
    told = meta.pop(DIGEST, None)
    if told is not None and told != tensors_digest(state, meta):
        raise WeightsError(f"{path} is damaged: its content is not what was written; copy or make it again.")
    return Checkpoint(path, state, {key: _plain(value) for key, value in meta.items() if key != "format"})


def _plain(text: str) -> Any:
    """A value of a file's metadata: ours are JSON, those of others plain text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def check_zip(path: Path) -> None:
    """Raise a WeightsError if a PyTorch file is damaged, or would unpack to far more than it holds.

    PyTorch packs nothing, and looks at no checksum.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as file:
        declared = sum(item.file_size for item in file.infolist())
        if declared > 4 * size + ROOM:
            raise WeightsError(f"{path} is refused: its {size / 2**20:.1f} MiB would unpack to "
                               f"{declared / 2**20:,.0f} MiB.")
        bad = []
        for item in file.infolist():
            try:
                with file.open(item) as record:
                    while record.read(CHUNK):
                        pass
            except zipfile.BadZipFile:
                bad.append(item.filename)
        # A file written without checksums (an option of PyTorch) has none that is right.
        if bad and (len(bad) < len(file.infolist()) or len(bad) < 3):
            raise WeightsError(f"{path} is damaged: the checksum of its part {bad[0]} is wrong; copy or make it again.")


def load_file(path: Path) -> Any:
    """What a PyTorch file holds, on the CPU; nothing in it is run. Raises whatever PyTorch does, or a WeightsError."""
    if zipfile.is_zipfile(path):
        check_zip(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of sparse tensors, which are refused
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(STAND_INS):
            content = load_file(path)
    except WeightsError:
        raise
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
    """A model's weights as a `.safetensors` file, written atomically, with a digest that reading is held to.

    Args:
        meta: what the file says of itself, kept as JSON; `detcore.zoo.create.restore` needs "model" (a name of the
            zoo), "profile" and "classes" (names).
    """
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    told = {"format": "pt"} | {key: json.dumps(value) for key, value in meta.items()}
    try:
        write_atomically(Path(path), save(state, told | {DIGEST: tensors_digest(state, told)}))
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
    check_values(state, expected, checkpoint.path)
    model.load_state_dict(state, strict=False)


def check_values(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise a WeightsError if an entry of a checkpoint is of a kind that weights are not, or not finite."""
    kinds: dict[str, list[str]] = {}
    for name, value in state.items():
        if name not in expected:
            continue
        real = value.is_floating_point()
        if value.is_complex() or value.dtype == torch.bool or expected[name].is_floating_point() != real:
            kinds.setdefault(f"of the type {str(value.dtype).removeprefix('torch.')}", []).append(name)
        elif real and not (value if value.element_size() > 1 else value.float()).isfinite().all():
            kinds.setdefault("not finite (NaN or infinite)", []).append(name)
    if kinds:
        told = "; ".join(f"{len(names)} entries are {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                         for kind, names in kinds.items())
        raise WeightsError(f"{path} holds no usable weights: {told}.")


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
    check_values(state, expected, checkpoint.path)
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
    return source if re.match(r"https?://", source, re.IGNORECASE) else None


def weights_file(source: str) -> str:
    """The name of a source's file; of an address without its query, which may hold a key."""
    address = weights_address(source)
    return (re.split(r"[?#]", address)[0] if address else source).rpartition("/")[2]
