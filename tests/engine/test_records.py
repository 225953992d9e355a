"""Records: written whole, read back as they were, refused with a sentence."""
from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from detcore.errors import DataError
from detcore.records import DataInfo, Record, commit, hardware, peak_memory_gb, read_json, read_record, read_records


def sample(**more) -> Record:
    return Record(kind="train", model="retinanet_r18_fpn_1x_coco", profile="pocket", seed=3, duration_s=1.25,
                  data=DataInfo(name="instances_train2017", fingerprint="0123456789ab", images=7),
                  metrics={"bbox_AP": 0.25, "bbox_APl": None}, curves={"step": [1, 2], "loss": [0.5, None]}, **more)


def test_a_record_comes_back_as_it_was(tmp_path):
    record = sample()
    assert read_record(record.write(tmp_path / "new" / "run.json")) == record
    assert record.versions["torch"] and record.hardware.cores >= 1
    sample(parameters={"steps": 4}).write(tmp_path / "new" / "other.json")
    assert list(read_records(tmp_path / "new")) == ["other", "run"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["other.json", "run.json"]


def test_what_is_not_a_record_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"kind": "train", "duration_s": 1, "surprise": 2}')
    with pytest.raises(DataError, match="a.json is not a record: surprise"):
        read_records(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="a.json is not a record"):
        read_record(tmp_path / "a.json")
    with pytest.raises(DataError, match="none.json cannot be read: No such file"):
        read_record(tmp_path / "none.json")


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        sample().write(tmp_path / "file" / "run.json")


def test_the_memory_of_the_process_that_started_this_one_is_not_counted():
    much = np.ones(2**27)  # a gigabyte, resident
    code = "from detcore.records import peak_memory_gb; print(peak_memory_gb()['resident_gb'])"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert much.all() and 0.05 < float(told) < 0.9


def test_the_machine_is_described():
    here = hardware()
    assert here.cpu and here.memory_gb > 0.1
    assert peak_memory_gb()["resident_gb"] > 0.05
    assert commit() is None or len(commit().removesuffix("-dirty")) == 12


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"kind": "train", "duration_s": "x"}', b"[" * 50_000,
                                     b'{"kind": "train", "duration_s": 1, "metrics": {"a": "b"}}', b"null"])
def test_a_broken_record_is_one_sentence(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match="a.json is not a record: .* remove it") as error:
        read_records(tmp_path)
    assert "\n" not in str(error.value)
    if content not in (b"{}",) and not content.startswith(b'{"'):
        with pytest.raises(DataError, match="The file .*a.json is damaged"):
            read_json(tmp_path / "a.json")
