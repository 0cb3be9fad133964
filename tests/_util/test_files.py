"""Files are written whole or not at all, and a run's folder belongs to one run."""

from __future__ import annotations

import contextlib
import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers import full_disk

from dvt_timm._util.errors import RunError
from dvt_timm._util.files import (
    alone_in,
    json_text,
    read_json,
    remove_scratch,
    replacing,
    sha1s_of,
    sha256_of,
    write_json,
)


def begin(folder: Path, **settings: Any) -> None:
    with alone_in(folder, "run.json", settings, own_files=r"run\.json", kept="files"):
        (folder / "result").write_text("ours")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with replacing(target) as scratch:
        scratch.write_text("old")
        assert not target.exists()
    with contextlib.suppress(KeyboardInterrupt), replacing(target) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    with full_disk(10), pytest.raises(OSError, match="File too large"), replacing(target) as scratch:
        scratch.write_text("x" * 100)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_replaced_file_can_be_read_by_those_who_may(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "a") as scratch:
        scratch.chmod(0o600)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_only_scratch_files_of_known_names_are_removed(tmp_path: Path) -> None:
    of_safetensors = ".tmpjQw1Fw"  # while it writes
    for name in (".0123abcd.a.json", of_safetensors, ".0123abcd.b.json", ".0123.a.json", ".tmp", "a.json"):
        (tmp_path / name).touch()
    (tmp_path / "x.0123abcd.a.json").touch()
    remove_scratch(tmp_path, r"a\.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".0123.a.json",
        ".0123abcd.b.json",
        ".tmp",
        "a.json",
        "x.0123abcd.a.json",
    ]


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None], "b": {"c": "ü"}})
    assert read_json(path) == {"a": [1, None], "b": {"c": "ü"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ("[" * 100_000, "is no JSON"), ("[1]", "must hold a JSON object, got list")],
)
def test_json_that_is_no_object_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json")


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha1s_of(tmp_path / "a") == [
        "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f",  # git hash-object
        "a9993e364706816aba3e25717850c26c9cd0d89d",
    ]


def test_a_run_is_taken_up_with_its_own_settings_only(tmp_path: Path) -> None:
    folder = tmp_path / "new/run"
    for _ in range(2):
        begin(folder, steps=3, of={"seed": 0, "size": (1, 2)})
    with pytest.raises(RunError, match=r"run was made with other settings: of.seed is 0, not 1; choose another folder"):
        begin(folder, steps=3, of={"seed": 1, "size": (1, 2)})
    (folder / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run.json is no JSON.*; choose another folder"):
        begin(folder, steps=3)


def test_a_folder_of_other_things_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(RunError, match=r"is not empty and holds no run of dvt-timm \(no run.json\); choose another"):
        begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_what_a_run_leaves_that_is_killed_at_once_is_no_other_thing(tmp_path: Path) -> None:
    for name in (".lock", ".0123abcd.run.json"):
        (tmp_path / name).touch()
    begin(tmp_path)
    assert not (tmp_path / ".0123abcd.run.json").exists()
    assert (tmp_path / "result").exists()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(BlockingIOError, match="another run is writing to"):
        begin(tmp_path)
    begin(tmp_path)


def test_what_cannot_be_written_says_so_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/run: .*files are kept") as caught:
        begin(tmp_path / "file/run")
    assert caught.value.errno == errno.ENOTDIR


def test_json_that_every_reader_takes(tmp_path: Path) -> None:
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, True, None, "NaN")}]}
    write_json(tmp_path / "a.json", value)
    expected = {"a": None, "b": [1.5, None, {"c": [None, True, None, "NaN"]}]}
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == expected
    assert json_text({"a": 1}) == '{"a": 1}'
