"""Weights: fetched from a local server, read safely, loaded strictly."""
from __future__ import annotations

import base64
import hashlib
import io
import logging
import os
import sys
import threading
import time
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import detcore
from detcore import weights
from detcore.backbones.resnet import ResNet
from detcore.errors import UsageError, WeightsError
from detcore.zoo import states
from detcore.zoo.backbones.resnet import R18
from detcore.zoo.create import restore
from detcore.zoo.index import Published, all_entries, rows

NAME = "retinanet_r18_fpn_1x_coco"


class Server(ThreadingHTTPServer):
    """Files by name, with Range; `cut` ends the next answers after so many bytes, `asked` keeps the ranges."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []
        self.asked: list[str | None] = []

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/v2.0/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        content = self.server.files.get(self.path.rpartition("/")[2])
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        length = self.server.cut.pop(0) if self.server.cut else len(content)
        self.wfile.write(content[start:start + length])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield http
        http.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "cache" / "hub" / "checkpoints"


def serve(server: Server, content: bytes, name: str = "model", suffix: str = ".pth") -> str:
    """The address of a file that is named after its own hash, as published ones are."""
    file = f"{name}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}"
    server.files[file] = content
    return server.address(file)


def files(folder: Path) -> list[str]:
    """The names of the files in a folder, but for locks."""
    return [p.name for p in folder.iterdir() if p.suffix != ".lock"]


@pytest.fixture
def mmengine():
    """The module whose class published files contain; it is gone again when they are read."""

    class HistoryBuffer:
        def __init__(self):
            self.history = np.array([1.5, 2.5])

        def mean(self):
            return self.history.mean()

        def __getstate__(self):
            return self.__dict__ | {"statistics_methods": {"mean": HistoryBuffer.mean}}

    HistoryBuffer.__qualname__, HistoryBuffer.mean.__qualname__ = "HistoryBuffer", "HistoryBuffer.mean"
    HistoryBuffer.__module__ = HistoryBuffer.mean.__module__ = "mmengine.logging.history_buffer"
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules[names[-1]].HistoryBuffer = HistoryBuffer
    yield HistoryBuffer
    for name in names:
        sys.modules.pop(name, None)


def published_form(path: Path, model: nn.Module, history: type, **options) -> bytes:
    """A checkpoint as the original writes it: weights, and bookkeeping of several kinds. Its modules are gone after."""
    torch.save({
        "meta": {"dataset_meta": {"CLASSES": ("cat", "dog")}, "epoch": np.int64(12), "seed": np.array([1, 2])},
        "state_dict": {"module." + n: v for n, v in model.state_dict().items() if "num_batches" not in n},
        "message_hub": {"log_scalars": {"loss": history(), "lr": np.float64(0.02)}},
    }, path, **options)
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        del sys.modules[name]
    content = path.read_bytes()
    # In files as old as the legacy format NumPy's module has its former name.
    return content if zipfile.is_zipfile(path) else content.replace(b"numpy._core", b"numpy.core")


def assert_same(a: nn.Module, b: nn.Module):
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_published_weights(server, tmp_path, cache, mmengine, monkeypatch, zipped):
    model = detcore.create_model(NAME)
    content = published_form(tmp_path / "x.pth", model, mmengine, _use_new_zipfile_serialization=zipped)
    assert b"HistoryBuffer" in content and b"multiarray" in content
    url = serve(server, content, "retinanet_r18")
    monkeypatch.setitem(rows(), NAME, replace(rows()[NAME], published=Published(checkpoint=url)))
    assert_same(detcore.create_model(NAME, weights="published"), model)
    assert files(cache) == [Path(url).name]
    detcore.create_model(NAME, weights="published")
    assert len(server.asked) == 1  # the second time comes from the cache


def test_meta_of_a_published_file(tmp_path, mmengine):
    published_form(tmp_path / "x.pth", nn.Linear(2, 3), mmengine)
    checkpoint = weights.read_checkpoint(tmp_path / "x.pth")
    assert checkpoint.classes == ("cat", "dog")
    assert isinstance(checkpoint.meta["epoch"], weights.Inert)
    assert set(checkpoint.state) == {"weight", "bias"}


def test_broken_off_download_goes_on(server, cache):
    content = os.urandom(3_000_000)
    url = serve(server, content)
    server.cut = [1_000_000, 500_000]
    assert weights.fetch(url).read_bytes() == content
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_interrupted_download_goes_on_in_the_next_run(server, cache):
    content = os.urandom(2_000_000)
    url = serve(server, content)
    server.cut = [300_000] + [100_000] * (weights.ATTEMPTS - 1)
    with pytest.raises(WeightsError, match="keeps breaking off"):
        weights.fetch(url)
    part = cache / (Path(url).name + ".part")
    assert content.startswith(part.read_bytes()) and part.stat().st_size > 300_000
    server.asked.clear()
    assert weights.fetch(url).read_bytes() == content
    assert server.asked == [f"bytes={300_000 + 100_000 * (weights.ATTEMPTS - 1)}-"]
    assert not part.exists()


def test_several_ask_at_once(server):
    url = serve(server, os.urandom(5_000_000))
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(weights.fetch, [url] * 4))
    assert len(set(paths)) == 1 and server.asked == [None]


def test_complete_part_needs_no_more(server, cache):
    content = os.urandom(1000)
    url = serve(server, content)
    cache.mkdir(parents=True)
    (cache / (Path(url).name + ".part")).write_bytes(content)
    assert weights.fetch(url).read_bytes() == content


def test_wrong_hash_is_thrown_away(server, cache):
    server.files["model-0123abcd.pth"] = b"something else"
    with pytest.raises(WeightsError, match="its name says 0123abcd"):
        weights.fetch(server.address("model-0123abcd.pth"))
    assert files(cache) == []


def test_unreachable_addresses(server, cache):
    with pytest.raises(WeightsError, match="404"):
        weights.fetch(server.address("none-01234567.pth"))
    server.server_close()
    with pytest.raises(WeightsError, match=f"put it into {cache}"):
        weights.fetch(server.address("none-01234567.pth"))
    with pytest.raises(WeightsError, match="only http"):
        weights.fetch("file:///etc/passwd")


def test_unwritable_cache(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="Cannot fetch"):
        weights.fetch(serve(server, b"x"), tmp_path / "file")


class Dangerous:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("call, told", [
    ((os.system, "touch {}"), r"(posix|nt)\.system"),
    ((eval, "open('{}', 'w')"), "eval"),
    ((Path.touch, Path("{}")), "touch|Path"),
    ((getattr, os, "system"), "os"),
], ids=["system", "eval", "method", "module"])
def test_files_that_run_code_are_refused(tmp_path, call, told, zipped):
    mark = tmp_path / "ran"
    call = tuple(type(c)(str(c).format(mark)) if isinstance(c, (str, Path)) else c for c in call)
    if call[0] is getattr:
        call = (os.getenv, "HOME")
    path = tmp_path / "bad.pth"
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "meta": Dangerous(*call)}, path,
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=f"refused: it would run .*({told})"):
        weights.read_checkpoint(path)
    assert not mark.exists()


def test_files_that_are_not_weights(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(WeightsError, match="no file"):
        weights.read_checkpoint(path)
    for content in (b"", b"<html>not found</html>", b"\x80\x02}q\x00"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="not a readable"):
            weights.read_checkpoint(path)
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(WeightsError, match="not a readable"):
            weights.read_checkpoint(tmp_path / "x.safetensors")
    torch.save({"state_dict": {n: v for n, v in nn.Linear(500, 500).state_dict().items()}}, path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="not a readable"):
        weights.read_checkpoint(path)
    for content in ([1, 2], {"meta": {"epoch": 1}}):
        torch.save(content, path)
        with pytest.raises(WeightsError, match="holds no weights"):
            weights.read_checkpoint(path)


def test_weights_of_another_model(tmp_path):
    torch.save({"state_dict": detcore.create_model(NAME).state_dict()}, tmp_path / "retinanet_r18_fpn_1x_coco.pth")
    with pytest.raises(WeightsError) as error:
        detcore.create_model("retinanet_r50_fpn_1x_coco", weights=tmp_path / "retinanet_r18_fpn_1x_coco.pth")
    told = str(error.value)
    assert "does not fit retinanet_r50_fpn_1x_coco" in told and "backbone.layer1.0.conv3.weight" in told
    assert told.endswith("It fits retinanet_r18_fpn_1x_coco with 80 classes.")
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "strange.pth")
    with pytest.raises(WeightsError, match="fits no model of the zoo"):
        detcore.create_model(NAME, weights=tmp_path / "strange.pth")


def test_weights_of_another_profile(tmp_path):
    model = detcore.create_model(NAME, profile="pocket")
    weights.save_weights(tmp_path / "x.safetensors", model, {"model": NAME, "profile": "pocket"})
    with pytest.raises(WeightsError, match=f"it is {NAME} of the pocket profile"):
        detcore.create_model(NAME, weights=tmp_path / "x.safetensors")


def test_other_classes_start_anew(tmp_path, caplog):
    name = "mask-rcnn_r50_fpn_1x_coco"
    trained = detcore.create_model(name, profile="pocket", num_classes=7)
    weights.save_weights(tmp_path / "x.safetensors", trained, {})
    with caplog.at_level(logging.WARNING):
        same = detcore.create_model(name, profile="pocket", weights=tmp_path / "x.safetensors")
        assert_same(same, trained)
        assert detcore.create_model(name, profile="pocket", weights=tmp_path / "x.safetensors", num_classes=7)
        assert not caplog.messages
        model = detcore.create_model(name, profile="pocket", weights=tmp_path / "x.safetensors", num_classes=3)
    heads = ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits")
    assert caplog.messages == [
        f"x.safetensors tells 7 classes apart, the model 3: 6 entries start anew ({', '.join(heads)})."]
    ours, theirs = model.state_dict(), trained.state_dict()
    assert all(torch.equal(v, theirs[n]) for n, v in ours.items() if not n.startswith(heads))
    assert ours["roi_head.mask_head.conv_logits.weight"].shape[0] == 3


def test_models_without_published_weights():
    with pytest.raises(UsageError, match="rpn_r50_fpn_1x_coco|rpn_r50_fpn_2x_coco"):
        detcore.create_model("rpn_r101_fpn_1x_coco", weights="published")
    with pytest.raises(UsageError, match="coco profile"):
        detcore.create_model(NAME, weights="published", profile="pocket")


def test_own_files_say_what_they_are(tmp_path):
    model = detcore.create_model(NAME, profile="pocket", num_classes=2)
    path = tmp_path / "x.safetensors"
    weights.save_weights(path, model, {"model": NAME, "profile": "pocket", "classes": ["cat", "猫"]})
    found = restore(path)
    assert_same(found.model, model)
    assert (found.entry.name, found.profile, found.classes) == (NAME, "pocket", ("cat", "猫"))
    weights.save_weights(path, model, {})
    with pytest.raises(WeightsError, match="does not say which model"):
        restore(path)
    with pytest.raises(WeightsError, match="Cannot write"):
        weights.save_weights(tmp_path / "none" / "x.safetensors", model, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def classifier(**options) -> dict[str, torch.Tensor]:
    """The state of an image classifier: a whole ResNet-18, its last layer, and what converted files have besides."""
    state = ResNet(18, **options).state_dict()
    return state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000), "conv1.bias": torch.zeros(64)}


def test_backbone_from_an_address(server, tmp_path):
    state = classifier()
    torch.save(state, tmp_path / "x.pth")
    model = detcore.create_model(NAME)
    weights.load_backbone(model, serve(server, (tmp_path / "x.pth").read_bytes()))
    assert all(torch.equal(v, state[n]) for n, v in model.backbone.state_dict().items())


def test_backbone_of_torchvision(tmp_path, monkeypatch, server):
    torch.save(classifier(), tmp_path / "x.pth")
    asked = []
    monkeypatch.setattr(weights, "fetch", lambda url: asked.append(url) or tmp_path / "x.pth")
    weights.load_backbone(detcore.create_model(NAME), R18.weights)
    assert asked == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    with pytest.raises(WeightsError, match="no weights 'ResNet18_Weights.BEST'"):
        weights.find("ResNet18_Weights.BEST")


def test_backbone_of_c4_reaches_the_region_head(tmp_path):
    state = classifier(base_channels=16)
    torch.save(state, tmp_path / "x.pth")
    model = detcore.create_model("faster-rcnn_r50-caffe_c4-1x_coco", profile="pocket")
    weights.load_backbone(model, tmp_path / "x.pth")
    last = "layer4.1.conv2.weight"
    assert torch.equal(model.get_parameter(f"roi_head.shared_head.{last}"), state[last])
    assert torch.equal(model.backbone.conv1.weight, state["conv1.weight"])
    proposals = detcore.create_model("rpn_r50-caffe-c4_1x_coco", profile="pocket")
    weights.load_backbone(proposals, tmp_path / "x.pth")
    assert torch.equal(proposals.backbone.conv1.weight, state["conv1.weight"])


def test_backbone_of_another_kind(tmp_path):
    torch.save(ResNet(34).state_dict(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="does not fit the backbone"):
        weights.load_backbone(detcore.create_model(NAME), tmp_path / "x.pth")
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="does not fit the backbone"):
        weights.load_backbone(detcore.create_model(NAME), tmp_path / "x.pth")


# Hostile and damaged files

@pytest.mark.parametrize("value, told", [
    (torch.zeros(3, dtype=torch.int8), "of the type int8"), (torch.zeros(3, dtype=torch.bool), "of the type bool"),
    (torch.zeros(3, dtype=torch.complex64), "of the type complex64"), (torch.full((3,), torch.nan), "not finite"),
    (torch.tensor([1, 2, float("inf")]), "not finite")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_values_that_are_no_weights(tmp_path, value, told, suffix):
    model, state = nn.Linear(2, 3), {"weight": torch.zeros(3, 2), "bias": value}
    path = tmp_path / f"x{suffix}"
    path.write_bytes(safetensors.torch.save(state)) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(WeightsError, match=rf"x{suffix} holds no usable weights: 1 entries are {told}.*\(bias\)"):
        weights.load_weights(model, weights.read_checkpoint(path))
    torch.save({"weight": torch.ones(3, 2).half(), "bias": torch.zeros(3).double()}, tmp_path / "y.pth")
    weights.load_weights(model, weights.read_checkpoint(tmp_path / "y.pth"))
    assert model.weight.sum() == 6


def test_metadata_of_others(tmp_path):
    meta = {"format": "pt", "author": "me", "model": "[" * 30_000, "n": "9" * 5000, "classes": '["a", "b"]'}
    (tmp_path / "x.safetensors").write_bytes(safetensors.torch.save({"w": torch.zeros(2)}, meta))
    found = weights.read_checkpoint(tmp_path / "x.safetensors")
    assert found.meta["author"] == "me" and found.classes == ("a", "b") and set(found.state) == {"w"}
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.safetensors").read_bytes())
    assert set(weights.read_checkpoint(tmp_path / "x.pth").state) == {"w"}
    for told in ('["a"]', '{"a": 1}', "3", "null"):
        meta = {"model": told, "profile": told}
        (tmp_path / "x.safetensors").write_bytes(safetensors.torch.save({"w": torch.zeros(2)}, meta))
        with pytest.raises(WeightsError, match="x.safetensors does not say which model it is"):
            restore(tmp_path / "x.safetensors")


def test_a_flipped_bit_of_our_own_file(tmp_path):
    path = tmp_path / "x.safetensors"
    weights.save_weights(path, nn.Linear(20, 30), {"classes": ["cat", "dog"]})
    sound = path.read_bytes()
    assert weights.read_checkpoint(path).meta == {"classes": ["cat", "dog"]}
    places = {sound.index(b"cat"), len(sound) - 3, len(sound) - 600, sound.index(b"[20") if b"[20" in sound else 20}
    for place in places:
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1:])
        with pytest.raises(WeightsError, match="x.safetensors is (damaged|not a readable)"):
            weights.read_checkpoint(path)


def test_a_flipped_bit_of_a_pytorch_file(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.arange(1000.0), "b": torch.arange(7.0)}, path)
    sound = path.read_bytes()
    place = sound.index(torch.arange(1000.0).numpy().tobytes()) + 77
    path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1:])
    with pytest.raises(WeightsError, match="x.pth is damaged: the checksum of its part x/data/0 is wrong"):
        weights.read_checkpoint(path)
    torch.serialization.set_crc32_options(False)  # such files are not damaged
    try:
        torch.save({"w": torch.arange(1000.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert weights.read_checkpoint(path).state["w"][999] == 999


def test_packed_files_do_not_fill_the_memory(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("x/data/0", "w") as record:
        for _ in range(100):
            record.write(bytes(1 << 20))
    assert path.stat().st_size < 200_000
    with pytest.raises(WeightsError, match="x.pth is refused: its 0.1 MiB would unpack to 100 MiB"):
        weights.read_checkpoint(path)
    torch.save({"w": torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), [1.0], (100_000, 100_000))}, path)
    with pytest.raises(WeightsError, match="its entry w is not a plain tensor, but sparse"):
        weights.read_checkpoint(path)


def test_a_pocket_file_is_told_at_once(tmp_path):
    model = detcore.create_model("faster-rcnn_r50_fpn_1x_coco", profile="pocket", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "faster-rcnn_r50_fpn_1x_coco.pth")
    began = time.process_time()
    with pytest.raises(WeightsError, match="It fits faster-rcnn_r50_fpn_1x_coco of the pocket profile with 5 classes"):
        detcore.create_model("retinanet_r50_fpn_1x_coco", weights=tmp_path / "faster-rcnn_r50_fpn_1x_coco.pth")
    assert time.process_time() - began < 2 * len(os.sched_getaffinity(0))


@pytest.mark.parametrize("name", list(all_entries())[::40])
def test_the_table_of_entries_is_up_to_date(name):
    for profile in ("coco", "pocket"):
        digest = states.entry_digest(all_entries()[name], profile)
        assert [name, profile] in [list(pair) for pair in states.candidates()[digest]]


# Addresses and servers

@pytest.mark.parametrize("url", [
    "http://h:abc/x", "http://[::1/x", "http://host/", "http://host", "http:///x.pth", "http://h/..", "http://h:99999/x",
    "http://h/a b", "http://h/\x00", "http://u:se/cret@h/x", "http://u:secret@h:abc/x", "http://é/x", "http://.../x.pth",
    "http://" + "h" * 300 + "/x.pth", "http://127.0.0.1:9/" + "x" * 300, "http://u:secret@127.0.0.1:9/x.pth?key=secret"])
def test_addresses_that_are_none(url, cache):
    with pytest.raises(WeightsError) as error:
        weights.find(url)
    assert "secret" not in str(error.value) and "cret@" not in str(error.value) and "\n" not in str(error.value)


class Scripted(ThreadingHTTPServer):
    """Answers with what it is given: a list of (status, headers, body), or bytes as they are."""

    def __init__(self, *answers):
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.answers, self.asked = list(answers), []


class ScriptedHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(dict(self.headers))
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if isinstance(answer, bytes):
            self.wfile.write(answer)
        else:
            status, headers, body = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def scripted():
    started = []

    def start(*answers):
        http = Scripted(*answers)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        started.append(http)
        return http, f"http://127.0.0.1:{http.server_port}/model.pth"

    yield start
    for http in started:
        http.shutdown()
        http.server_close()


def file_of_weights(size: int = 50_000) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(float(size))}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("answer", [
    (204, {}, b""), (206, {"Content-Range": "bytes 5-9/20"}, b"12345"), (206, {}, b"12345"), (416, {}, b""),
    (200, {"Content-Type": "text/html"}, b"<html>sign in</html>"), (200, {}, b"  <!DOCTYPE html>"), (200, {}, b""),
    (200, {}, b"{}"), (200, {"Content-Length": "abc"}, b"x"), (200, {"Content-Length": "-5"}, b"x"),
    (200, {"Content-Length": "9" * 5000}, b"x"), (200, {"Content-Length": "100"}, b"x"),
    (302, {"Location": "http://h:abc/x"}, b""), (302, {"Location": "file:///etc/passwd"}, b""),
    (302, {"Location": "http://[::1/x"}, b""), (302, {"Location": "ftp://u:secret@h/x"}, b""),
    (200, {"Transfer-Encoding": "chunked"}, b"zz\r\n"), b"nonsense\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000 + b"\r\n\r\n", (200, {}, file_of_weights()[:-5000]), (500, {}, b"")])
def test_a_server_that_errs(scripted, cache, answer):
    http, url = scripted(answer)
    with pytest.raises(WeightsError, match="model.pth") as error:
        weights.fetch(url)
    assert "secret" not in str(error.value) and not (cache / "model.pth").exists()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_file_without_a_hash_in_its_name(scripted, cache):
    content, other = file_of_weights(), file_of_weights(60_000)
    http, url = scripted((200, {"ETag": '"1"', "Content-Length": str(len(content))}, content[:1000]),
                         (200, {"ETag": '"2"', "Content-Length": str(len(other))}, other))
    assert weights.fetch(url).read_bytes() == other  # it changed while it was fetched
    assert [h.get("Range") for h in http.asked] == [None, "bytes=1000-"] and http.asked[1]["If-Range"] == '"1"'
    assert weights.fetch(url).read_bytes() == other and len(http.asked) == 2
    (cache / "model.pth").write_bytes(other[:-1] + b"x")
    assert weights.fetch(url).read_bytes() == other and len(http.asked) == 3
    http, url = scripted((200, {"Content-Length": str(len(content))}, content))
    assert weights.fetch(url).read_bytes() == content  # another address, the same name
    (cache / "byhand.pth").write_bytes(b"anything")
    assert weights.fetch(url.replace("model", "byhand")) == cache / "byhand.pth"


def test_the_rest_of_a_file_is_taken_from_the_same_one(scripted, cache):
    content = file_of_weights()
    rest = {"ETag": '"1"', "Content-Range": f"bytes 1000-{len(content) - 1}/{len(content)}"}
    http, url = scripted((200, {"ETag": '"1"', "Content-Length": str(len(content))}, content[:1000]),
                         (206, rest, content[1000:]))
    assert weights.fetch(url).read_bytes() == content
    assert files(cache) == ["model.pth", ".model.pth.json"] or set(files(cache)) == {"model.pth", ".model.pth.json"}


def test_a_damaged_file_of_the_cache_is_fetched_again(server, cache):
    content = os.urandom(1000)
    path = weights.fetch(serve(server, content))
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert weights.fetch(server.address(path.name)).read_bytes() == content and len(server.asked) == 2


def test_user_and_password_go_to_the_server_alone(scripted, cache):
    content = file_of_weights(10)
    http, url = scripted((200, {"Content-Length": str(len(content))}, content))
    weights.fetch(url.replace("http://", "http://me:secr%40t@") + "?key=1")
    assert http.asked[0]["Authorization"] == "Basic " + base64.b64encode(b"me:secr@t").decode()
    assert all(b"secr" not in p.read_bytes() for p in cache.iterdir())
    assert weights.weights_file(url + "?key=1#a") == "model.pth"
