"""`dvt-timm fit`: from image files, folders and lists to a store and pictures, with exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
from helpers import DEMO, TINY, photos
from PIL import Image
from safetensors.torch import load_file, save_file

import dvt_timm
from dvt_timm import viz
from dvt_timm.cli import fit as fit_command
from dvt_timm.cli import main as cli
from dvt_timm.cli import stage1
from dvt_timm.offline import Decomposition, ImageFitter, LeastSquaresSolver, NeuralFieldSolver, open_store
from dvt_timm.offline.fit import default_solver
from dvt_timm.offline.views import Kind

FAST = ["--size", "56", "--views", "3"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: cli.main(["fit", *FAST, *map(str, arguments)])


def images_of(folder: Path) -> list[str]:
    return [Path(entry.image).name for entry in open_store(folder).entries]


def test_files_folders_and_lists(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = photos(tmp_path / "photos", 4)
    (tmp_path / "photos/list.txt").write_text("2.png\n\n3.png\n")
    (tmp_path / "one").mkdir()
    paths[1].rename(tmp_path / "one/1.png")
    assert run("photos/0.png", "one", "photos/list.txt") == 0
    assert capsys.readouterr().out == "dvt-store: 4 images\n"
    assert sorted(images_of(tmp_path / "dvt-store")) == ["0.png", "1.png", "2.png", "3.png"]
    settings = open_store(tmp_path / "dvt-store").settings
    assert settings["model"] == DEMO
    assert settings["views"]["size"] == 56
    assert open_store(tmp_path / "dvt-store").clean(0).shape == (4, 4, 384)


def test_panels(run: Callable[..., int], tmp_path: Path) -> None:
    photos(tmp_path / "photos", 2)
    assert run("photos", "--panel", "--out", "photos/store") == 0
    assert sorted(path.name for path in (tmp_path / "photos/store/panels").iterdir()) == ["0.png", "1.png"]
    picture = np.asarray(Image.open(tmp_path / "photos/store/panels/0.png"))
    assert picture.shape[0] > 800  # four rows
    with Image.open(tmp_path / "photos/store/panels/0.png") as panel:
        text = panel.text["Description"]  # type: ignore[attr-defined]
    unexplained = open_store(tmp_path / "photos/store").entries[0].stats["unexplained"]
    figures = f"raw features, least_squares of 4 views | unexplained: {100 * unexplained:.3g} % of the views' variance"
    assert f" | {figures} | dvt-timm" in text
    assert run("photos", "--panel", "--out", "photos/store") == 0
    assert len(open_store(tmp_path / "photos/store")) == 2  # panels are no images


def test_broken_and_missing_images_are_counted(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "photos", 2)
    (tmp_path / "photos/bad.jpg").write_text("no image")
    assert run("photos", "gone.jpg", "--half") == 1
    captured = capsys.readouterr()
    assert captured.out == "dvt-store: 2 images\n"
    assert "skipped gone.jpg: not found" in captured.err
    assert "skipped photos/bad.jpg: not a JPEG, PNG or WebP image" in captured.err
    assert "2 of 4 inputs skipped" in captured.err
    index = json.loads((tmp_path / "dvt-store/index.json").read_text())
    assert index["skipped"].keys() == {"gone.jpg", "photos/bad.jpg"}


def test_options_reach_views_and_solver(run: Callable[..., int], tmp_path: Path) -> None:
    photos(tmp_path / "photos", 1)
    options = ["--kind", "crops", "--seed", "3", "--layer", "-2", "--keep-aspect", "--edge-to-edge", "--view-pairs=2"]
    options += ["--autocast", "bfloat16"]
    assert run("photos", *options, "--smoothness", "1.5", "--density", "1", "--prior-views", "4") == 0
    settings = open_store(tmp_path / "dvt-store").settings
    assert settings["views"] == {
        "kind": "crops",
        "seed": 3,
        "layer": -2,
        "size": 56,
        "keep_aspect": True,
        "edge_to_edge": True,
        "num_views": 3,
        "autocast": "bfloat16",
    }
    assert open_store(tmp_path / "dvt-store").num_pairs == 3
    assert settings["solver"] == "LeastSquaresSolver(density=1.0, smoothness=1.5, prior_views=4.0)"
    assert open_store(tmp_path / "dvt-store").clean(0).shape == (4, 5, 384)
    assert run("photos", "--solver", "neural-field", "--field-steps", "10", "--out", "neural") == 0
    assert open_store(tmp_path / "neural").entries[0].stats["loss_curve"][-1]["step"] == 9
    assert run("photos", "--smoothness", "auto", "--views", "8", "--out", "auto") == 0
    assert open_store(tmp_path / "auto").entries[0].stats["num_views"] == 9
    assert open_store(tmp_path / "auto").settings["views"]["autocast"] == "float32"


def test_defaults_are_the_solvers_own() -> None:
    for name, solver in (("least-squares", LeastSquaresSolver()), ("neural-field", NeuralFieldSolver())):
        arguments = cli._parser().parse_args(["fit", "a.jpg", "--solver", name])
        assert repr(stage1.solver_of(arguments)) == repr(solver)


def test_lists_with_odd_lines(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos", 1)
    (tmp_path / "list.txt").write_text("\ufeffphotos/0.png\n" + 300 * "x" + ".png\n", encoding="utf-8")
    assert run("list.txt") == 1
    assert ".png: File name too long" in capsys.readouterr().err
    assert images_of(tmp_path / "dvt-store") == ["0.png"]
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    assert run("list.txt") == 2
    assert "cannot read the list list.txt" in capsys.readouterr().err


def test_the_panel_of_a_tall_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than channels, as patches that are wider than high make them."""
    model = timm.create_model(TINY)
    parts = [torch.randn(72, 4, 64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    decomposition = Decomposition(*parts, stats={"solver": "none", "num_views": 3}, semantics_at=lambda xy: xy)
    drawn: list[Any] = []
    monkeypatch.setattr(viz, "decomposition_panel", lambda photo, *maps, **_: drawn.extend(maps) or photo)
    picture = Image.new("RGB", (8, 8))
    fit_command._panel_writer(model, {Path("a.png"): tmp_path / "a"})(Path("a.png"), picture, decomposition)
    for fmap, part in zip(drawn, parts, strict=True):
        np.testing.assert_allclose(viz.norm_map(fmap), part.norm(dim=2), rtol=1e-5)


def test_a_panel_that_cannot_be_written_is_one_line(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "photos", 1)
    assert run("photos") == 0
    (tmp_path / "dvt-store/panels").write_text("in the way")
    photos(tmp_path / "photos", 2)
    assert run("photos", "--panel") == 2
    assert "cannot write dvt-store/panels/1.png" in capsys.readouterr().err


def test_a_folder_of_other_things_is_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "photos", 1)
    photos(tmp_path / "mine", 1)
    assert run("photos", "--out", "mine") == 2
    assert "mine is not empty and holds no run of dvt-timm" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["0.png"]


def test_what_stops_it_is_one_line(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos", 1)
    for arguments, message in (
        (["nothing"], "no image in nothing: nothing not found; give JPEG, PNG or WebP files"),
        (["photos", "--layer", "12"], "layer must be -12..11 (the model has 12 blocks), got 12"),
        (["photos", "--density", "99"], "density must be 0.5..16 nodes per patch, got 99.0"),
        (["photos", "--size", "20"], "size must be at least two patches, 28 pixels, got 20"),
        (["photos", "--smoothness", "auto"], 'smoothness="auto" holds 4 views out and needs at least 7, got 4'),
        (["photos", "--field-steps", "20"], "--field-steps is of --solver neural-field"),
        (["photos", "--solver", "neural-field", "--density", "2"], "--density is of --solver least-squares"),
        (["photos", "--solver", "neural-field", "--calibrate", "2"], "--calibrate is of --solver least-squares"),
        (["photos", "--keep-aspect", "--calibrate", "2"], "with keep_aspect the grids of images differ"),
        (["photos", "--model", "resnet18"], "resnet18 is no timm VisionTransformer or Eva"),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("dvt-timm: error: ")
        assert message in error
    assert run("photos") == 0
    assert run("photos", "--half") == 2
    assert "other settings: dtype is 'float32', not 'float16'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("photos", "--smoothness", "much")
    assert "argument --smoothness: must be a number or auto, got 'much'" in capsys.readouterr().err


def test_an_interruption_is_one_line(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "photos", 2)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_command, "_panel_writer", lambda *_: stopped)
    assert run("photos", "--panel") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "dvt-timm: interrupted; run the same again"


def test_weights_of_ones_own(run: Callable[..., int], tmp_path: Path) -> None:
    """A plain checkpoint, and the same model saved whole."""
    photos(tmp_path / "photos", 1)
    torch.manual_seed(0)
    model = timm.create_model(TINY, dynamic_img_size=True)
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    dvt_timm.save_model(model, tmp_path / "whole")
    stores = []
    for name in ("plain.safetensors", "whole"):
        assert run("photos", "--model", TINY, "--weights", name, "--out", f"store-{name}") == 0
        stores.append(open_store(tmp_path / f"store-{name}"))
    expected = ImageFitter(model.eval(), num_views=3, size=56)(tmp_path / "photos/0.png")
    for store in stores:
        torch.testing.assert_close(store.raw(0), expected.raw)
        torch.testing.assert_close(store.clean(0), expected.semantics)


@pytest.mark.slow
def test_two_processes_share_the_images(tmp_path: Path) -> None:
    """The second one ends early and with a broken image, while the first one still writes shards."""
    photos(tmp_path / "photos", 9)
    (tmp_path / "photos/bad.jpg").write_text("no image")
    (tmp_path / "worker.py").write_text(
        "import pathlib, sys, time\n"
        "from dvt_timm.cli import main as cli\n"
        "from dvt_timm.offline import run, store\n"
        "merge, gather = store._merge, run.Team.gather\n"
        "store._merge = lambda *arguments: (time.sleep(2), merge(*arguments))\n"
        "def seen(team, values):\n"
        "    pathlib.Path(f'process-{team.rank}-of-{team.size}').touch()\n"
        "    return gather(team, values)\n"
        "run.Team.gather = seen\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "worker.py"]
    command = ["fit", "photos", "--out", "store", *FAST, "--calibrate", "4"]
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*launch, *command], **options)
    assert {path.name for path in tmp_path.glob("process-*")} == {"process-0-of-2", "process-1-of-2"}, done.stderr
    assert done.stderr.count("1 of 10 inputs skipped") == 1
    assert done.stdout.count("store: 9 images") == 1
    assert done.returncode != 0
    assert len(open_store(tmp_path / "store")) == 9
    assert load_file(tmp_path / "store/artifact.safetensors")["artifact"].shape == (4, 4, 384)
    assert not list((tmp_path / "store/pending").iterdir())
    assert json.loads((tmp_path / "store/index.json").read_text())["skipped"].keys() == {"photos/bad.jpg"}
    again = subprocess.run([sys.executable, "-m", "dvt_timm", *command], **options)
    assert again.returncode == 1
    assert len(open_store(tmp_path / "store")) == 9


def test_the_kinds_of_views_are_the_librarys() -> None:
    """The command line names them without importing torch."""
    assert get_args(Kind) == stage1.KINDS
    for kind in stage1.KINDS:
        arguments = cli._parser().parse_args(["fit", "a.jpg", "--kind", kind])
        assert stage1.solver_of(arguments) == default_solver(kind)


def test_views_that_move_the_positions(
    run: Callable[..., int], base: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "photos", 2)
    options = ["photos", "--model", TINY, "--size", "96", "--views", "3"]
    assert run(*options, "--kind", "positions", "--sides", "0.6", "0.9", "--out", "moved") == 0
    settings = open_store(tmp_path / "moved").settings
    assert settings["solver"] == "MeanSolver()"
    assert settings["views"]["sides"] == [0.6, 0.9]
    assert run(*options, "--kind", "jitter+positions", "--shift", "0.5", "--zoom", "0.8", "1.1", "--out", "both") == 0
    assert open_store(tmp_path / "both").settings["views"]["shift"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "positions", "--shift", "0.5"], "--shift is of --kind jitter"),
        (["--kind", "crops", "--zoom", "0.5", "1"], "--zoom is of --kind jitter"),
        (["--sides", "0.5", "1"], "--sides is of --kind positions"),
        (["--kind", "positions", "--density", "2"], "--density is of --solver least-squares"),
        (["--kind", "positions", "--solver", "least-squares"], "do not go with LeastSquaresSolver"),
        (["--solver", "mean"], "MeanSolver() is for positions"),
        (["--shift", "7"], "shift must be 0..1"),
    ],
)
def test_options_of_another_kind(
    run: Callable[..., int],
    base: object,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    photos(tmp_path / "photos", 1)
    assert run("photos", "--model", TINY, *options, "--out", "none") == 2
    assert message in capsys.readouterr().err
