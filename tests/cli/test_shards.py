"""`dvt-timm features --shards`: many images in a file, an index beside it, and what becomes of both in trouble."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import metadata_of, picture, saved, truncated, written
from filelock import FileLock
from helpers import full_disk
from safetensors.torch import load_file
from torch import Tensor

import dvt_timm
from dvt_timm.cli import shards
from dvt_timm.cli.shards import rows_in

pytestmark = pytest.mark.usefixtures("tiny")
FORMATS = ["safetensors", "parquet"]
Run = Callable[..., int]


@pytest.fixture
def given(run: Run, tmp_path: Path) -> Run:
    """`dvt-timm features in --shards 2` on five photos of two sizes, two of them of one stem."""
    for seed, name in enumerate(("a/x.png", "b/x.png", "c.jpg", "d.webp", "e.png")):
        saved(tmp_path / "in" / name, picture(60, 60 + 30 * (seed % 2), seed))
    return lambda *options, size="32": run("in", "--shards", 2, *options, size=size)


def maps_in(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The maps of every image, by its name, as a user reads them."""
    found = {}
    for name, row in rows_in(folder).items():
        if row["shard"].endswith("safetensors"):
            file = load_file(folder / row["shard"])
            found[name] = {key.partition(".")[2]: file[key] for key in file if key.startswith(row["sha256"])}
        else:
            found |= of_parquet(folder / row["shard"])
    return found


def of_parquet(path: Path) -> dict[str, dict[str, Tensor]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    names = json.loads(table.schema.metadata[b"maps"])
    found = {}
    for row in table.to_pylist():
        shape = (row["grid_height"], row["grid_width"], row["dim"])
        number = np.float16 if "halffloat" in str(table.schema.field("raw").type) else np.float32
        found[row["name"]] = {name: torch.tensor(np.array(row[name], number).reshape(shape)) for name in names}
    return found


def expected_of(model: Any, tmp_path: Path, name: str, size: int = 32) -> Any:
    (path,) = (tmp_path / "in").glob(f"{name}.*")
    return next(dvt_timm.extract(model, [path], size=size))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("half", [False, True])
def test_shards_hold_what_extract_gives(
    given: Run, tiny: Any, tmp_path: Path, capsys: Any, format: str, half: bool
) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    assert given("--format", format, *(["--half"] if half else [])) == 0
    assert capsys.readouterr().out == "out: 5 images in 3 shards\n"
    found = maps_in(tmp_path / "out")
    assert sorted(found) == ["a/x", "b/x", "c", "d", "e"]
    for name, maps in found.items():
        one = expected_of(tiny, tmp_path, name)
        for part in ("raw", "denoised"):
            wanted = getattr(one, part)
            torch.testing.assert_close(
                maps[part], wanted.half() if half else wanted, rtol=1e-3, atol=1e-3 if half else 1e-5
            )
        row = rows_in(tmp_path / "out")[name]
        assert (row["path"], row["sha256"], row["dim"]) == (
            f"in/{one.path.relative_to(tmp_path / 'in')}",
            one.sha256,
            64,
        )
        sizes = (one.original_size, one.pixels.shape[:2], one.raw.shape[:2])
        assert [row[f"{size}_size"] for size in ("original", "image", "grid")] == [list(size) for size in sizes]


def test_the_metadata_are_those_of_files(given: Run, run: Run, tmp_path: Path) -> None:
    assert given() == 0
    assert run("in/c.jpg", "--out", "files", size="32") == 0
    of_file = metadata_of(tmp_path / "files/c.safetensors")
    for shard in (tmp_path / "out").glob("*.safetensors"):
        of_shard = metadata_of(shard)
        assert of_shard.items() <= of_file.items()
        assert {"model", "size", "maps", "dtype"} <= of_shard.keys()


def test_one_content_of_two_names_is_there_once(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / f"in/{name}.png")
    assert run("in", "--shards", 2, size="32") == 0
    rows = rows_in(tmp_path / "out")
    assert rows.keys() == {"a", "b"}
    assert len(load_file(tmp_path / "out" / rows["a"]["shard"])) == 2  # raw, denoised


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}


@pytest.mark.parametrize("format", FORMATS)
def test_a_second_run_does_what_is_new(given: Run, tmp_path: Path, capsys: Any, format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    assert given("--format", format) == 0
    first = times_of(tmp_path / "out")
    saved(tmp_path / "in/f.png", picture(seed=9))
    capsys.readouterr()
    assert given("--format", format, "--batch-size", 3) == 0
    printed = capsys.readouterr()
    assert "dvt-timm: 5 of 6 images were done before" in printed.err
    assert printed.out == "out: 6 images in 4 shards\n"
    assert first.items() < times_of(tmp_path / "out").items()


def test_a_changed_image_costs_its_shard(given: Run, tiny: Any, tmp_path: Path, capsys: Any) -> None:
    """No row is of an image that was."""
    assert given() == 0
    changed = rows_in(tmp_path / "out")["a/x"]["shard"]
    first = times_of(tmp_path / "out")
    saved(tmp_path / "in/a/x.png", picture(60, 60, seed=7))
    capsys.readouterr()
    assert given() == 0
    assert "dvt-timm: 3 of 5 images were done before" in capsys.readouterr().err
    assert {name for name, time in first.items() if times_of(tmp_path / "out").get(name) == time} == {
        name for name in first if not name.startswith(Path(changed).stem)
    }
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3
    torch.testing.assert_close(maps_in(tmp_path / "out")["a/x"]["raw"], expected_of(tiny, tmp_path, "a/x").raw)


def test_bad_images_are_left_out(given: Run, tmp_path: Path, capsys: Any) -> None:
    truncated(tmp_path / "in/a/y.png")
    assert given() == 1
    printed = capsys.readouterr()
    assert printed.out == "out: 5 images in 3 shards\n"
    assert "skipped in/a/y.png: " in printed.err
    assert "dvt-timm: 1 of 6 inputs skipped" in printed.err


def test_ctrl_c_keeps_what_is_done(given: Run, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    add = shards.Shards.add

    def interrupting(self: Any, features: Any) -> None:
        if features.index == 3:
            raise KeyboardInterrupt
        add(self, features)

    with monkeypatch.context() as context:
        context.setattr(shards.Shards, "add", interrupting)
        assert given() == 130
    assert len(rows_in(tmp_path / "out")) == 3
    assert given() == 0
    assert "dvt-timm: 3 of 5 images were done before" in capsys.readouterr().err
    assert len(rows_in(tmp_path / "out")) == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_shard_whose_writing_was_cut_off_is_dropped(
    given: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    written_rows = []

    def cut_off(self: Any, *row: Any) -> None:
        written_rows.append(row)
        if len(written_rows) == 4:
            raise error
        SAFETENSORS_ADD(self, *row)

    SAFETENSORS_ADD = shards.SafetensorsShard.add
    with monkeypatch.context() as context:
        context.setattr(shards.SafetensorsShard, "add", cut_off)
        assert given() == (130 if error is KeyboardInterrupt else 70)
    assert len(rows_in(tmp_path / "out")) == 2
    assert len([name for name in written(tmp_path / "out") if name not in ("features.json", ".lock")]) == 2
    assert given() == 0
    assert len(rows_in(tmp_path / "out")) == 5


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_ends_the_run(run: Run, tmp_path: Path, capsys: Any, format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    for seed in range(4):
        saved(tmp_path / f"in/{seed}.png", picture(60, 60 + 500 * (seed > 1), seed))
    with full_disk(60_000):
        assert run("in", "--shards", 2, "--format", format) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("dvt-timm: error: cannot write out: ")
    assert "finished shards are kept" in line
    assert len(written(tmp_path / "out")) == 4  # features.json, the lock, a shard, its index
    assert run("in", "--shards", 2, "--format", format) == 0
    assert "dvt-timm: 2 of 4 images were done before" in capsys.readouterr().err


def test_what_a_killed_run_leaves(given: Run, tmp_path: Path, capsys: Any) -> None:
    """A shard that has no index yet, one that was being written, an index whose shard somebody has deleted."""
    assert given() == 0
    out = tmp_path / "out"
    first, second, _ = sorted(out.glob("*.safetensors"))
    first.with_suffix(".jsonl").unlink()
    second.unlink()
    (out / f".0123abcd.{first.name}").write_bytes(b"half")
    before = {name for name, row in rows_in(out).items() if row["shard"] != second.name}
    capsys.readouterr()
    assert given() == 0
    assert f"dvt-timm: {len(before)} of 5 images were done before" in capsys.readouterr().err
    assert not list(out.glob(".0123abcd*"))
    assert len(list(out.glob("*.safetensors"))) == len(list(out.glob("*.jsonl"))) == 3
    assert len(maps_in(out)) == 5


def test_a_folder_keeps_one_kind_of_results(given: Run, run: Run, tmp_path: Path, capsys: Any) -> None:
    def refused(*options: Any, size: str = "32") -> str:
        capsys.readouterr()
        assert run("in", *options, size=size) == 2
        return capsys.readouterr().err

    assert given() == 0
    before = times_of(tmp_path / "out")
    assert "out was made with other settings: dtype is 'float32', not 'float16'; choose another" in refused(
        "--shards", 2, "--half"
    )
    assert "size is '32', not '48'" in refused("--shards", 2, size="48")
    assert "out holds shards of an earlier run; choose another --out, or pass --shards" in refused()
    assert run("in", "--shards", 3, size="32") == 0  # another N is no other setting
    assert times_of(tmp_path / "out") == before
    assert run("in", "--out", "files", size="32") == 0
    assert "files is not empty and holds no run of dvt-timm (no features.json)" in refused(
        "--out", "files", "--shards", 2
    )


def test_a_folder_keeps_one_format(given: Run, capsys: Any) -> None:
    pytest.importorskip("pyarrow")
    assert given() == 0
    assert given("--format", "parquet") == 2
    assert "files is 'safetensors', not 'parquet'" in capsys.readouterr().err


def test_two_runs_at_once(given: Run, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"):
        assert given() == 2
    assert "another run is writing to out; wait for it" in capsys.readouterr().err


def test_a_damaged_index_is_named(given: Run, tmp_path: Path, capsys: Any) -> None:
    assert given() == 0
    index = min((tmp_path / "out").glob("*.jsonl"))
    index.write_text(index.read_text()[:50])
    assert given() == 2
    assert f"out/{index.name} is damaged; delete it, and its images are made again" in capsys.readouterr().err
    index.unlink()
    assert given() == 0


def test_what_does_not_go_together(given: Run, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert given("--panels") == 2
    assert "--panels goes with a file for each image" in capsys.readouterr().err
    monkeypatch.setattr(shards, "MOST_TENSORS", 3)
    assert given() == 2
    assert "--shards 2: a file takes at most 1 images of these maps" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert given("--format", "parquet") == 2
    assert "Parquet files need pyarrow; pip install 'dvt-timm[parquet]'" in capsys.readouterr().err


def test_parquet_has_groups_of_rows(given: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some size, so that little is held and readers share a file's rows."""
    parquet = pytest.importorskip("pyarrow.parquet")
    from dvt_timm.cli import parquet as writing

    monkeypatch.setattr(writing, "ROW_GROUP", 3000)
    assert given("--format", "parquet", "--shards", "1000") == 0
    (path,) = (tmp_path / "out").glob("*.parquet")
    file = parquet.ParquetFile(path)
    assert file.metadata.num_rows == 5
    assert 1 < file.num_row_groups <= 5
    assert file.schema_arrow.metadata[b"model"]
    assert run("in", "--format", "parquet", size="32") == 0  # a thousand images a file by default


def test_results_of_images_that_are_not_named_are_not_given_up(
    given: Run, run: Run, tmp_path: Path, capsys: Any
) -> None:
    assert given() == 0
    kept = times_of(tmp_path / "out")
    saved(tmp_path / "in/c.jpg", picture(60, 60, seed=7))
    assert run("in/c.jpg", "--shards", 2, size="32") == 2
    assert "are not among those named" in capsys.readouterr().err
    assert times_of(tmp_path / "out") == kept
