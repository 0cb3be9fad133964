"""`dvt-timm features`: what it writes, says and returns, offline, with the embedded demo model."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from command import error_of, metadata_of, picture, saved, truncated, written
from helpers import DEMO, TINY, full_disk, random_head
from PIL import Image
from safetensors.torch import load_file

import dvt_timm
from dvt_timm import viz
from dvt_timm._util import images
from dvt_timm._util.files import sha256_of
from dvt_timm.caption import caption_of
from dvt_timm.cli import main as cli
from dvt_timm.cli import models, results
from dvt_timm.offline.run import fingerprint


def test_features_are_the_models_own(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    image = saved(tmp_path / "a.b.png")
    assert run(image) == 0
    assert capsys.readouterr().out == "out/a.b.safetensors\n"
    assert written(tmp_path / "out") == ["a.b.safetensors"]
    maps = load_file(tmp_path / "out/a.b.safetensors")
    assert maps.keys() == {"raw", "denoised"}

    model = timm.create_model(DEMO, pretrained=True, num_classes=0).eval()
    plain = timm.create_model("vit_small_patch14_dinov2.lvd142m", num_classes=0, dynamic_img_size=True).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("denoiser.")}, strict=False)
    preprocessing = images.preprocessing_of(model, 56)
    pixels = preprocessing.to_tensor(preprocessing.resize(picture()))
    assert pixels.shape == (1, 3, 56, 84)
    with torch.inference_mode():
        torch.testing.assert_close(maps["denoised"], model.forward_features(pixels)[0, 1:].reshape(4, 6, 384))
        torch.testing.assert_close(maps["raw"], plain.forward_features(pixels)[0, 1:].reshape(4, 6, 384))


def test_without_a_head(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    assert run(saved(tmp_path / "a.png"), "--positions", 2) == 0
    maps = load_file(tmp_path / "out/a.safetensors")
    model = timm.create_model(DEMO, pretrained=True, num_classes=0, denoiser={"positions": 2}).eval()
    with torch.inference_mode():
        expected = dvt_timm.feature_maps(model, dvt_timm.preprocess(model, picture(), 56))
    assert maps.keys() == {"raw", "denoised"}
    for name, fmap in maps.items():
        torch.testing.assert_close(fmap, getattr(expected, name)[0].permute(1, 2, 0))
    metadata = metadata_of(tmp_path / "out/a.safetensors")
    assert metadata["positions"] == "2"
    assert "head_sha256" not in metadata
    capsys.readouterr()
    assert run("a.png", "--positions", 3) == 0  # other options are done anew
    assert metadata_of(tmp_path / "out/a.safetensors")["positions"] == "3"
    head = dvt_timm.save_head(timm.create_model(DEMO, pretrained=True), tmp_path / "head")
    capsys.readouterr()
    assert run("a.png", "--positions", 3, "--weights", head) == 2
    assert "--positions takes the place of a head" in capsys.readouterr().err


def test_a_single_patch_has_a_panel(run: Callable[..., int], tmp_path: Path) -> None:
    assert run(saved(tmp_path / "a.png"), "--panels", size="1") == 0
    assert load_file(tmp_path / "out/a.safetensors")["raw"].shape == (1, 1, 384)


def test_metadata(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "dog.webp", picture(120, 61))
    assert run("dog.webp", "--panels") == 0
    model = timm.create_model(DEMO, pretrained=True)
    assert metadata_of(tmp_path / "out/dog.safetensors") == {
        "version": dvt_timm.__version__,
        "model": DEMO,
        "weights_sha256": fingerprint(model),
        "head_sha256": fingerprint(model.denoiser, skipped=()),
        "image": "dog.webp",
        "image_sha256": sha256_of(tmp_path / "dog.webp"),
        "size": "56",
        "patch": "null",
        "columns": "null",
        "overlay": "false",
        "smooth": "false",
        "original_size": "[120, 61]",
        "image_size": "[112, 56]",
        "grid_size": "[8, 4]",
        "patch_size": "[14, 14]",
        "stride": "[14, 14]",
        "mean": "[0.485, 0.456, 0.406]",
        "std": "[0.229, 0.224, 0.225]",
        "interpolation": "bicubic",
        "maps": '["raw", "denoised"]',
        "dtype": "float32",
    }


def test_exif_rotation_is_honoured(run: Callable[..., int], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    sideways = picture(60, 90)
    saved(tmp_path / "turned.jpg", sideways, exif=exif, quality=100, subsampling=0)
    saved(tmp_path / "upright.png", sideways.rotate(-90, expand=True))
    assert run("turned.jpg", "upright.png") == 0
    assert metadata_of(tmp_path / "out/turned.safetensors")["original_size"] == "[90, 60]"
    turned, upright = (load_file(tmp_path / f"out/{name}.safetensors")["raw"] for name in ("turned", "upright"))
    assert turned.shape == (6, 4, 384)
    assert torch.nn.functional.cosine_similarity(turned, upright, dim=2).mean() > 0.97


def test_broken_inputs_are_reported_and_the_others_written(run: Any, tmp_path: Path, capsys: Any) -> None:
    truncated(tmp_path / "cut.jpg")
    truncated(tmp_path / "cut.png")
    truncated(tmp_path / "cut.webp")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    saved(tmp_path / "good.jpg")
    assert run("cut.jpg", "cut.png", "cut.webp", "text.png", "empty.jpg", "missing.jpg", "good.jpg") == 1
    captured = capsys.readouterr()
    assert captured.out == "out/good.safetensors\n"
    for name in ("cut.jpg", "cut.png", "cut.webp", "text.png", "empty.jpg", "missing.jpg"):
        assert len(re.findall(rf"dvt-timm: skipped {name}: \S+", captured.err)) == 1
    assert "dvt-timm: 6 of 7 inputs skipped" in captured.err
    assert written(tmp_path / "out") == ["good.safetensors"]


def test_unwritable_out(tmp_path: Path, capsys: Any) -> None:
    image = saved(tmp_path / "a.png")
    for out in (image, image / "sub"):
        assert "cannot make the folder" in error_of(capsys, "features", str(image), "--out", str(out))


@pytest.mark.parametrize("size", ["3000000000", "2147483647", "10000000", "7182"])
def test_sizes_that_attention_cannot_take(run: Callable[..., int], tmp_path: Path, capsys: Any, size: str) -> None:
    saved(tmp_path / "a.png")
    if size == "3000000000":
        with pytest.raises(SystemExit):
            run("a.png", size=size)
        assert "argument --size: must be at most 2,147,483,647" in capsys.readouterr().err
        return
    assert run("a.png", size=size) == 2
    assert "patches, and attention takes at most 262,144; choose a smaller size" in capsys.readouterr().err


def test_an_image_that_is_too_long_for_the_size(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "a.png", picture(20, 300))
    assert run("a.png", size="2800") == 1
    assert "skipped a.png: 2800 x 42000 pixels make 200 x 3000 patches" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-14", "big", "1.5"])
def test_bad_size(size: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["features", "a.png", "--size", size])
    assert exit.value.code == 2
    assert "positive whole number" in capsys.readouterr().err


def test_similarity_to_a_chosen_patch(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "a.png")
    panels = []
    maps = {"raw": torch.zeros(4, 6, 384)}
    for options in ([], ["--patch", "{},{}"], ["--patch", "0,5"]):  # the grid is 4 x 6
        patch = viz.salient_patch(list(maps.values())) if options[1:] == ["{},{}"] else (0, 5)
        assert run("a.png", "--panels", *(option.format(*patch) for option in options)) == 0
        panels.append((tmp_path / "out/a.png").read_bytes())
        maps = load_file(tmp_path / "out/a.safetensors")
    assert panels[0] == panels[1] != panels[2]
    assert run("a.png", "--panels", "--patch", "4,0") == 1
    assert "skipped a.png: patch (4, 0) is outside its 4 x 6 grid; pass another --patch" in capsys.readouterr().err
    assert "--patch is what a picture shows; pass --panels" in error_of(capsys, "features", "a.png", "--patch", "1,1")
    assert "--smooth is what a picture shows" in error_of(capsys, "features", "a.png", "--smooth")


def test_the_look_of_panels(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "a.png")
    looks = [["--columns", "norm,pca"], ["--columns", "norm"], ["--columns", "norm", "--overlay"]]
    panels = []
    for options in [*looks, ["--columns", "norm", "--smooth"]]:
        assert run("a.png", "--panels", *options) == 0
        panels.append((tmp_path / "out/a.png").read_bytes())
    assert len(set(panels)) == 4
    assert "done before" not in capsys.readouterr().err  # another look is drawn anew
    metadata = metadata_of(tmp_path / "out/a.safetensors")
    assert (metadata["columns"], metadata["overlay"], metadata["smooth"]) == ('["norm"]', "false", "true")
    assert run("a.png", "--panels", "--columns", "norm,colour") == 2
    assert "columns must be some of pca, clusters, norm, similarity, removed" in capsys.readouterr().err


def test_a_panel_says_what_it_shows(run: Callable[..., int], tmp_path: Path) -> None:
    assert run(saved(tmp_path / "a.png"), "--panels", "--columns", "pca") == 0
    with Image.open(tmp_path / "out/a.png") as panel:
        text = panel.text  # type: ignore[attr-defined]
    model = timm.create_model(DEMO, pretrained=True)
    assert text == {"Software": "dvt-timm", "Description": caption_of(model, (4, 6))}


@pytest.mark.parametrize("patch", ["3", "3,", "-1,2", "a,b", "1,2,3"])
def test_bad_patch(patch: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["features", "a.png", f"--patch={patch}"])
    assert exit.value.code == 2
    assert "ROW,COLUMN" in capsys.readouterr().err


def test_a_plain_model_has_one_map(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    monkeypatch.setattr(models, "load_model", lambda *args: plain)
    assert run(saved(tmp_path / "a.png", picture(64, 96)), "--panels", size="64") == 0
    maps = load_file(tmp_path / "out/a.safetensors")
    assert {name: features.shape for name, features in maps.items()} == {"features": (4, 6, 192)}
    assert (tmp_path / "out/a.png").exists()


def test_a_failing_write_leaves_nothing(run: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: Image.Image, path: Path, *args: Any, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk\nfull")

    saved(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Image, "save", save)
    assert run("a.jpg", "--panels") == 2
    line = "dvt-timm: error: cannot write out/a: disk full; finished images are kept, run the same again"
    assert capsys.readouterr().err.splitlines()[-1] == line
    assert written(tmp_path / "out") == ["a.safetensors"]


def times_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_goes_on_where_the_first_was_stopped(
    run: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        saved(tmp_path / f"in/{seed}.png", picture(seed=seed))
    add, seen = results.Files.add, []

    def interrupting(*args: Any) -> Any:
        seen.append(args)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return add(*args)

    monkeypatch.setattr(results.Files, "add", interrupting)
    assert run("in") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "dvt-timm: interrupted; run the same again"
    first = times_of(tmp_path / "out")
    assert len(first) == 2
    assert run("in") == 0
    assert len(seen) == 5
    captured = capsys.readouterr()
    assert "dvt-timm: 2 of 4 images were done before and are left as they are\n" in captured.err
    assert captured.out.split() == ["out/2.safetensors", "out/3.safetensors"]
    assert first.items() <= times_of(tmp_path / "out").items()
    assert run("in") == 0
    assert len(seen) == 5
    assert "4 of 4 images were done before" in capsys.readouterr().err


def test_other_images_weights_and_options_are_done_anew(run: Any, tmp_path: Path, capsys: Any) -> None:
    model = timm.create_model(DEMO, pretrained=True, num_classes=0)

    def done_anew(*options: str, size: str = "56") -> bool:
        before = times_of(tmp_path / "out")
        assert run("a.png", *options, size=size) == 0
        now = times_of(tmp_path / "out")
        return all(now[path] > time for path, time in before.items())

    for seed in (0, 1):
        saved(tmp_path / "a.png", picture(seed=seed))
        assert done_anew()
    assert done_anew(size="28")
    assert done_anew("--half", size="28")
    dvt_timm.save_model(model, tmp_path / "mine")
    assert done_anew("--weights", "mine")
    for changed in (model.denoiser.pos_embed, model.norm.bias):
        with torch.no_grad():
            changed += 1
        dvt_timm.save_model(model, tmp_path / "mine")
        assert done_anew("--weights", "mine")
    assert "done before" not in capsys.readouterr().err
    assert not done_anew("--weights", "mine")


def test_every_option_that_matters_is_recorded() -> None:
    model = timm.create_model(TINY, denoiser=random_head(64), dynamic_img_size=True)
    every = {"size": 32, "layers": (1,), "half": True, "autocast": "bfloat16", "denoised_only": True}
    plain = dict.fromkeys(every, None) | {"weights": None, "panels": False, "layers": ()}
    recipe = results.Recipe(model, Namespace(**plain))
    for name, value in every.items():
        assert results.Recipe(model, Namespace(**{**plain, name: value})).metadata != recipe.metadata, name


@pytest.mark.usefixtures("tiny")
def test_the_panel_of_a_tall_image(run: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """72 x 4 patches of 64 channels: more rows than channels."""
    drawn: list[Any] = []
    panel = viz.feature_panel
    monkeypatch.setattr(viz, "feature_panel", lambda *args, **options: drawn.append(args[1]) or panel(*args, **options))
    saved(tmp_path / "tall.png", picture(1152, 64))
    assert run("tall.png", "--panels", "--patch", "60,2", size="64") == 0
    stored = load_file(tmp_path / "out/tall.safetensors")
    for name, fmap in drawn[0].items():
        np.testing.assert_allclose(viz.norm_map(fmap), stored[name].norm(dim=2), rtol=1e-5)


def test_a_panel_is_part_of_the_result_where_it_is_wanted(run: Any, tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "a.jpg")
    maps, panel = tmp_path / "out/a.safetensors", tmp_path / "out/a.png"

    def is_kept(*options: str) -> bool:
        assert run("a.jpg", *options) == 0
        return "1 of 1 images were done before" in capsys.readouterr().err

    assert [is_kept(), is_kept(), is_kept("--panels"), is_kept("--panels"), is_kept()] == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert not is_kept("--panels", "--patch", "0,0")
    assert is_kept()  # what a picture shows is nothing to the maps
    for spoil in (panel.unlink, lambda: maps.write_bytes(b"half")):
        spoil()
        assert not is_kept("--panels", "--patch", "0,0")
        assert load_file(maps).keys() == {"raw", "denoised"}
        assert panel.is_file()
    assert not is_kept("--half")
    assert not panel.exists()  # it was of other maps


def test_new_maps_never_lie_beside_an_older_panel(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "a.jpg")
    assert run("a.jpg", "--panels") == 0

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(results, "save_picture", interrupted)
        assert run("a.jpg", "--panels", "--patch", "0,0") == 130
    assert written(tmp_path / "out") == ["a.safetensors"]
    assert run("a.jpg", "--panels", "--patch", "0,0") == 0
    assert written(tmp_path / "out") == ["a.png", "a.safetensors"]


def test_what_is_kept(run: Any, tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "a.png")
    assert run("a.png", "--layers", "2,-1") == 0
    whole = load_file(tmp_path / "out/a.safetensors")
    assert whole.keys() == {"raw", "denoised", "layer_2"}  # the last one's map is the denoised one
    model = timm.create_model(DEMO, pretrained=True, num_classes=0).eval()
    pixels = dvt_timm.preprocess(model, picture(), 56)
    with torch.inference_mode():
        layer, last = model.forward_intermediates(pixels, [2, 11], norm=True, intermediates_only=True)
    torch.testing.assert_close(whole["layer_2"], layer[0].permute(1, 2, 0))
    torch.testing.assert_close(whole["denoised"], last[0].permute(1, 2, 0))
    assert run("a.png", "--layers", "2", "--half", "--denoised-only") == 0
    kept = load_file(tmp_path / "out/a.safetensors")
    assert kept.keys() == {"denoised", "layer_2"}
    for name, fmap in kept.items():
        torch.testing.assert_close(fmap, whole[name].half())
    capsys.readouterr()
    assert run("a.png", "--layers", "12") == 2
    assert "layers must be -12..11 (the model has 12 blocks), got 12" in capsys.readouterr().err


def test_a_plain_model_has_nothing_denoised(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(models, "load_model", lambda *args: timm.create_model(TINY, dynamic_img_size=True).eval())
    saved(tmp_path / "a.png")
    assert run("a.png", "--denoised-only") == 2
    assert "the model has no denoiser; leave it out, or name one as --weights" in capsys.readouterr().err


def test_a_list_names_images(run: Any, tmp_path: Path) -> None:
    saved(tmp_path / "in/a.png")
    (tmp_path / "list.txt").write_text("in/a.png\n")
    assert run("list.txt") == 0
    assert written(tmp_path / "out") == ["a.safetensors"]


def test_a_full_disk_ends_the_run_and_leaves_whole_files(run: Any, tmp_path: Path, capsys: Any) -> None:
    for seed in range(2):
        saved(tmp_path / f"in/{seed}.png", picture(60, 60 + 200 * seed, seed))
    with full_disk(60_000):
        assert run("in", "--batch-size", "1") == 2
    assert re.search(r"error: cannot write out/1: .*; finished images are kept", capsys.readouterr().err)
    assert written(tmp_path / "out") == ["0.safetensors"]
    assert run("in") == 0
    assert "1 of 2 images were done before" in capsys.readouterr().err
