"""`dvt-timm convert`: what it writes, says and returns."""

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from command import error_of
from helpers import random_head, same_weights

import dvt_timm
from dvt_timm.cli import main as cli

SMALL = "vit_small_patch14_dinov2.lvd142m"
TINY_224 = "vit_tiny_patch16_224.augreg_in21k"


def as_published(path: Path, kind: str, state: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({kind: state, "optimizer": {"lr": np.float64(1e-4)}, "step": 7}, path)
    return path


class TestConvert:
    def test_a_file(self, tmp_path: Path, capsys: Any) -> None:
        head = random_head(384, (6, 6))
        file = as_published(tmp_path / "mine.pth", "denoiser", head.state_dict())
        assert cli.main(["convert", str(file), "--base", SMALL, "--out", str(tmp_path / "out")]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
        assert same_weights(dvt_timm.load_head(tmp_path / "out"), head)

    def test_a_folder_of_both_kinds(self, tmp_path: Path, capsys: Any) -> None:
        head = random_head(192, (6, 6))
        plain = timm.create_model(TINY_224, num_classes=0)
        as_published(tmp_path / f"dvt/voc_denoised/{TINY_224}.pth", "denoiser", head.state_dict())
        state = {f"model.{key}": value for key, value in plain.state_dict().items()}
        as_published(tmp_path / f"dvt/voc_distilled/{TINY_224}.pth", "model", state)
        (tmp_path / "dvt/README.md").touch()
        out = tmp_path / "out"
        assert cli.main(["convert", str(tmp_path / "dvt"), "--out", str(out)]) == 0
        folders = [out / f"{kind}/{TINY_224}" for kind in ("voc_denoised", "voc_distilled")]
        assert capsys.readouterr().out.split() == [str(folder) for folder in folders]
        assert same_weights(dvt_timm.load_head(folders[0]), head)
        assert same_weights(timm.create_model(f"local-dir:{folders[1]}", pretrained=True), plain)

    def test_a_bad_file_does_not_stop_the_others(self, tmp_path: Path, capsys: Any) -> None:
        as_published(tmp_path / f"dvt/{SMALL}.pth", "denoiser", random_head(384, (6, 6)).state_dict())
        (tmp_path / f"dvt/a/{SMALL}.pth").parent.mkdir()
        (tmp_path / f"dvt/a/{SMALL}.pth").write_bytes(b"no checkpoint")
        assert cli.main(["convert", str(tmp_path / "dvt"), "--out", str(tmp_path / "out")]) == 1
        captured = capsys.readouterr()
        assert captured.out == f"{tmp_path / 'out' / SMALL}\n"
        assert f"skipped {tmp_path}/dvt/a/{SMALL}.pth cannot be read as a file of tensors" in captured.err

    def test_errors(self, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "out"
        assert "none.pth not found" in error_of(capsys, "convert", tmp_path / "none.pth", "--base", SMALL, "--out", out)
        assert "no .pth file in" in error_of(capsys, "convert", tmp_path, "--out", out)
        file = as_published(tmp_path / f"{SMALL}.pth", "other", {})
        assert "neither 'denoiser' nor 'model'" in error_of(capsys, "convert", file, "--out", out)
        assert "--base goes with one file" in error_of(capsys, "convert", tmp_path, "--base", SMALL, "--out", out)
        assert not out.exists()

    def test_what_is_no_pth_file(self, tmp_path: Path, capsys: Any) -> None:
        dvt_timm.save_head(random_head(384), tmp_path / "head", base=SMALL)
        line = error_of(capsys, "convert", str(tmp_path / "head/model.safetensors"), "--out", str(tmp_path / "out"))
        assert "is no .pth file of the authors" in line
