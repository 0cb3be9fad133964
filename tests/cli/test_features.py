"""The command line: what it writes, says and returns, offline, with the embedded demo model."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import DEMO, random_head
from hub_server import Hub
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models import save_for_hf

import dvt_timm
from dvt_timm import manifest, registry
from dvt_timm._util import images
from dvt_timm.cli import features as extract
from dvt_timm.cli import main as cli

DEMO_HEAD = manifest.weights_path("demo/head.safetensors")


def picture(height: int = 60, width: int = 90, seed: int = 0) -> Image.Image:
    """A smooth random RGB image."""
    small = np.random.default_rng(seed).integers(0, 255, size=(4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def saved(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)
    return path


def truncated(path: Path) -> Path:
    data = saved(path, picture(300, 300)).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`dvt-timm features` at 56 pixels, into tmp_path/out."""
    monkeypatch.chdir(tmp_path)
    return lambda *args, size="56": cli.main(["features", *map(str, args), "--out", "out", "--size", size])


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_features_are_the_models_own(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    image = saved(tmp_path / "a.b.png")
    assert run(image) == 0
    assert capsys.readouterr().out == "out/a.b.png\n"
    assert written(tmp_path / "out") == ["a.b.png", "a.b.safetensors"]
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


def test_pixels_are_normalised_as_timm_says() -> None:
    preprocessing = images.Preprocessing(14, (14, 14), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0), "bicubic")
    pixels = preprocessing.to_tensor(Image.new("RGB", (14, 14), (255, 0, 51)))
    torch.testing.assert_close(pixels[0, :, 3, 4], torch.tensor([1.0, -1.0, 0.2]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((90, 60), (84, 56)), ((60, 90), (56, 84)), ((1000, 10), (5600, 56)), ((57, 56), (56, 56)), ((3, 3), (56, 56))],
)
def test_resize_keeps_the_aspect_ratio_in_whole_patches(size: tuple[int, int], expected: tuple[int, int]) -> None:
    preprocessing = images.Preprocessing(56, (14, 14), (0.0,) * 3, (1.0,) * 3, "bicubic")
    assert preprocessing.resize(Image.new("RGB", size)).size == expected


def test_resize_gives_at_least_one_patch() -> None:
    preprocessing = images.Preprocessing(3, (14, 14), (0.0,) * 3, (1.0,) * 3, "bicubic")
    assert preprocessing.resize(Image.new("RGB", (50, 40))).size == (14, 14)


def test_a_single_patch_has_a_panel(run: Callable[..., int], tmp_path: Path) -> None:
    assert run(saved(tmp_path / "a.png"), size="1") == 0
    assert load_file(tmp_path / "out/a.safetensors")["raw"].shape == (1, 1, 384)


def test_metadata(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "dog.webp", picture(120, 61))
    assert run("dog.webp") == 0
    assert metadata_of(tmp_path / "out/dog.safetensors") == {
        "version": dvt_timm.__version__,
        "model": DEMO,
        "image": "dog.webp",
        "original_size": "[120, 61]",
        "image_size": "[112, 56]",
        "grid_size": "[8, 4]",
        "patch_size": "[14, 14]",
        "stride": "[14, 14]",
        "mean": "[0.485, 0.456, 0.406]",
        "std": "[0.229, 0.224, 0.225]",
        "interpolation": "bicubic",
    }


def test_default_size_is_the_models() -> None:
    model = timm.create_model(DEMO, num_classes=0)
    assert images.preprocessing_of(model, None).size == 518


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


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "RGB"])
def test_read_image_of_every_mode(tmp_path: Path, mode: str) -> None:
    image = images.read_image(saved(tmp_path / "a.png", picture().convert(mode)))
    assert image.mode == "RGB"
    assert image.size == (90, 60)


def test_read_image_palette_with_transparency(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", picture().convert("P"), transparency=3)
    assert images.read_image(path).mode == "RGB"


def test_read_image_cmyk_jpeg(tmp_path: Path) -> None:
    assert images.read_image(saved(tmp_path / "a.jpg", picture().convert("CMYK"))).mode == "RGB"


def test_read_image_scales_16_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    pixels = np.asarray(images.read_image(saved(tmp_path / "a.png", Image.fromarray(ramp))))
    np.testing.assert_array_equal(pixels[..., 0], ramp // 256)


def test_broken_inputs_are_reported_and_the_others_written(run: Any, tmp_path: Path, capsys: Any) -> None:
    truncated(tmp_path / "cut.jpg")
    truncated(tmp_path / "cut.png")
    truncated(tmp_path / "cut.webp")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    saved(tmp_path / "good.jpg")
    assert run("cut.jpg", "cut.png", "cut.webp", "text.png", "empty.jpg", "missing.jpg", "good.jpg") == 1
    captured = capsys.readouterr()
    assert captured.out == "out/good.png\n"
    for name in ("cut.jpg", "cut.png", "cut.webp", "text.png", "empty.jpg", "missing.jpg"):
        assert len(re.findall(rf"dvt-timm: skipped {name}: \S+", captured.err)) == 1
    assert "dvt-timm: 6 of 7 inputs skipped" in captured.err
    assert written(tmp_path / "out") == ["good.png", "good.safetensors"]


def test_other_formats_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(images.ImageError, match="not a JPEG, PNG or WebP"):
        images.read_image(saved(tmp_path / "a.bmp"))


def test_decompression_bomb_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(images.ImageError, match="decompression bomb"):
        images.read_image(saved(tmp_path / "a.png"))


def test_same_stems_do_not_overwrite_each_other(run: Callable[..., int], tmp_path: Path) -> None:
    names = ["a/x.jpg", "b/x.png", "b/X.webp", "b/x-2.png"]
    for seed, name in enumerate(names):
        saved(tmp_path / name, picture(seed=seed))
    assert run(*names) == 0
    files = [path for path in written(tmp_path / "out") if path.endswith(".safetensors")]
    assert len({file.casefold() for file in files}) == 4
    assert {metadata_of(tmp_path / "out" / file)["image"] for file in files} == {"x.jpg", "x.png", "X.webp", "x-2.png"}
    assert len([path for path in written(tmp_path / "out") if path.endswith(".png")]) == 4


def test_folders_keep_their_structure(run: Callable[..., int], tmp_path: Path) -> None:
    for name in ("in/b.PNG", "in/a.jpeg", "in/sub/a.jpg"):
        saved(tmp_path / name)
    (tmp_path / "in/notes.txt").touch()
    assert run("in", "in/sub/a.jpg") == 0  # an image named twice is taken once
    expected = ["a", "b", "sub/a"]
    assert written(tmp_path / "out") == sorted(f"{name}.{kind}" for name in expected for kind in ("png", "safetensors"))


def test_panels_of_an_earlier_run_are_no_images(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    assert run(".") == 0
    assert run(".") == 0
    assert written(tmp_path / "out") == ["a.png", "a.safetensors"]


def test_an_input_is_never_overwritten(tmp_path: Path, capsys: Any) -> None:
    image = saved(tmp_path / "a.png")
    before = image.read_bytes()
    assert cli.main(["features", str(image), "--out", str(tmp_path), "--size", "28"]) == 0
    assert image.read_bytes() == before
    assert written(tmp_path) == ["a-2.png", "a-2.safetensors", "a.png"]


def fails(capsys: Any, *args: str) -> str:
    """The one line of a command that ends with status 2."""
    assert cli.main(list(args)) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "skipped" not in line]
    assert line.startswith("dvt-timm: error: ")
    assert captured.out == ""
    return line


def test_out_that_is_the_image_folder(tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "a.png")
    assert "choose another --out" in fails(capsys, "features", str(tmp_path), "--out", str(tmp_path))


def test_nothing_to_read(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert "no image in" in fails(capsys, "features", str(tmp_path), "--out", str(out))
    assert "no image in" in fails(capsys, "features", str(tmp_path / "missing.jpg"), "--out", str(out))
    assert not out.exists()


def test_unwritable_out(tmp_path: Path, capsys: Any) -> None:
    image = saved(tmp_path / "a.png")
    for out in (image, image / "sub"):
        assert "cannot make the folder" in fails(capsys, "features", str(image), "--out", str(out))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no_such_model"], "Unknown model"),
        (["--model", "vit_small_patch14_dinov2.dvt_nope"], "no variant vit_small_patch14_dinov2.dvt_nope"),
        (["--model", "vit_giant_patch14_dinov2.dvt"], "no published weights"),
        (["--model", "resnet18"], "no patch tokens"),
        (["--checkpoint", "missing.safetensors"], "missing.safetensors not found"),
        (["--device", "nonsense"], "cannot use device 'nonsense'"),
    ],
)
def test_what_cannot_be_built(tmp_path: Path, capsys: Any, options: list[str], message: str) -> None:
    image = saved(tmp_path / "a.png")
    assert message in fails(capsys, "features", str(image), "--out", str(tmp_path / "out"), *options)


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path, capsys: Any) -> None:
    hub.absent.add("jjiaweiyang/DVT")
    name = "vit_small_patch14_dinov2.dvt"
    line = fails(capsys, "features", str(saved(tmp_path / "a.png")), "--out", str(tmp_path / "out"), "--model", name)
    assert line.startswith(f"dvt-timm: error: cannot build {name}: cannot get jjiaweiyang/DVT/voc_denoised/vit_small")
    assert "HF_TOKEN" in line


def test_damaged_checkpoint(tmp_path: Path, capsys: Any) -> None:
    damaged = tmp_path / "head.safetensors"
    damaged.write_bytes(DEMO_HEAD.read_bytes()[:1000])
    image = saved(tmp_path / "a.png")
    line = fails(capsys, "features", str(image), "--out", str(tmp_path / "out"), "--checkpoint", str(damaged))
    assert "damaged" in line


@pytest.mark.parametrize("size", ["0", "-14", "big", "1.5"])
def test_bad_size(size: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["features", "a.png", "--size", size])
    assert exit.value.code == 2
    assert "positive whole number" in capsys.readouterr().err


def test_similarity_to_a_chosen_patch(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "a.png")
    panels = []
    for options in ([], ["--patch", "2,3"], ["--patch", "0,5"]):  # the grid is 4 x 6, its centre 2, 3
        assert run("a.png", *options) == 0
        panels.append((tmp_path / "out/a.png").read_bytes())
    assert panels[0] == panels[1] != panels[2]
    assert run("a.png", "--patch", "4,0") == 1
    assert "skipped a.png: patch (4, 0) is outside its 4 x 6 grid; pass another --patch" in capsys.readouterr().err


@pytest.mark.parametrize("patch", ["3", "3,", "-1,2", "a,b", "1,2,3"])
def test_bad_patch(patch: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["features", "a.png", f"--patch={patch}"])
    assert exit.value.code == 2
    assert "ROW,COLUMN" in capsys.readouterr().err


def test_checkpoints_of_every_form(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    dvt_timm.save_head(random_head(384, (5, 4)), tmp_path / "head", base="vit_small_patch14_dinov2.lvd142m")
    whole = timm.create_model(DEMO, pretrained=True, num_classes=0)
    with torch.no_grad():
        whole.denoiser.pos_embed += 1
    dvt_timm.save_model(whole, tmp_path / "whole")
    save_for_hf(whole, tmp_path / "timm", safe_serialization=False)
    results = []
    for form in (DEMO_HEAD, "head", "head/model.safetensors", "whole", "whole/model.safetensors", "timm"):
        assert run("a.png", "--checkpoint", form) == 0
        assert metadata_of(tmp_path / "out/a.safetensors")["checkpoint"] == str(form)
        results.append(load_file(tmp_path / "out/a.safetensors"))
    for result in results[1:]:
        torch.testing.assert_close(result["raw"], results[0]["raw"])
    published, folder, file, whole_folder, whole_file, timms = (result["denoised"] for result in results)
    assert torch.equal(folder, file)
    assert torch.equal(whole_folder, whole_file)
    assert torch.equal(whole_folder, timms)
    assert not torch.allclose(published, folder, atol=0.1)
    assert not torch.allclose(published, whole_folder, atol=0.1)


def test_a_saved_model_keeps_its_stride(run: Callable[..., int], tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    dvt_timm.save_model(timm.create_model(DEMO, pretrained=True, num_classes=0, stride=7), tmp_path / "dense")
    assert run("a.png", "--checkpoint", "dense") == 0
    assert load_file(tmp_path / "out/a.safetensors")["denoised"].shape == (7, 11, 384)
    metadata = metadata_of(tmp_path / "out/a.safetensors")
    assert (metadata["model"], metadata["checkpoint"], metadata["stride"]) == (DEMO, "dense", "[7, 7]")


def test_a_photo_beside_the_image_is_not_overwritten(tmp_path: Path) -> None:
    image, photo = saved(tmp_path / "a.jpg"), saved(tmp_path / "a.png", picture(seed=1))
    before = photo.read_bytes()
    for _ in range(2):  # the second run replaces the results of the first
        assert cli.main(["features", str(image), "--out", str(tmp_path), "--size", "28"]) == 0
        assert photo.read_bytes() == before
        assert written(tmp_path) == ["a-2.png", "a-2.safetensors", "a.jpg", "a.png"]


def test_odd_inputs_do_not_end_the_run(run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "long.png", picture(3, 200))
    saved(tmp_path / f"{'n' * 245}.png")
    latin = os.fsdecode(b"caf\xe9.png")
    saved(tmp_path / "b.png").rename(tmp_path / latin)
    saved(tmp_path / "c.png").rename(tmp_path / "..png")
    status = run("long.png", f"{'n' * 245}.png", "x" * 300, latin, "..png")
    errors = capsys.readouterr().err
    assert status == 1
    assert "skipped long.png: 3 x 200 pixels, one side over 20 times the other; crop it" in errors
    assert "its name is too long" in errors
    assert f"skipped {'x' * 300}: not found" in errors
    assert metadata_of(tmp_path / "out/caf\ufffd.safetensors")["image"] == "caf\ufffd.png"
    assert (tmp_path / "out/image.png").is_file()


def test_broken_metadata_of_a_photo_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (struct.error("unpack requires 12 bytes"), MemoryError()):

        def fail(image: Image.Image, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(ImageOps, "exif_transpose", fail)
        with pytest.raises(images.ImageError):
            images.read_image(saved(tmp_path / "a.png"))


def test_a_plain_model_has_one_map(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    monkeypatch.setattr(extract, "load_model", lambda *args: plain)
    assert run(saved(tmp_path / "a.png", picture(64, 96)), size="64") == 0
    maps = load_file(tmp_path / "out/a.safetensors")
    assert {name: features.shape for name, features in maps.items()} == {"features": (4, 6, 192)}
    assert (tmp_path / "out/a.png").exists()


def test_a_failing_write_leaves_nothing(run: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: Image.Image, path: Path, *args: Any, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk\nfull")

    saved(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Image, "save", save)
    assert run("a.jpg") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "dvt-timm: error: cannot write out/a: disk full"
    assert written(tmp_path / "out") == ["a.safetensors"]


def test_what_a_model_cannot_process_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*args: Any) -> None:
        raise torch.OutOfMemoryError

    model = timm.create_model(DEMO, num_classes=0)
    preprocessing = images.preprocessing_of(model, 28)
    image = saved(tmp_path / "a.png")
    with torch.no_grad():
        model.denoiser.pos_embed.fill_(float("nan"))
    with pytest.raises(images.ImageError, match="NaN"):
        extract.extract(model.eval(), preprocessing, image, tmp_path / "out/a", {})
    monkeypatch.setattr(extract, "feature_maps", too_much)
    with pytest.raises(images.ImageError, match=r"OutOfMemoryError at --size 28.*smaller one"):
        extract.extract(model, preprocessing, image, tmp_path / "out/a", {})
    monkeypatch.setattr(images.Preprocessing, "resize", lambda *args: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(images.ImageError, match=r"MemoryError at --size 28"):
        extract.extract(model, preprocessing, image, tmp_path / "out/a", {})
    assert not (tmp_path / "out").exists()


def test_list_json(capsys: Any) -> None:
    assert cli.main(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == dvt_timm.list_variants()
    assert rows[DEMO] == {
        "name": DEMO,
        "base": "vit_small_patch14_dinov2.lvd142m",
        "licence": "apache-2.0",
        "head_mb": 9.2,
        "voc_miou": None,
        "ade20k_miou": None,
        "nyu_rmse": None,
        "weights": "embedded",
    }
    distilled = rows["vit_base_patch14_dinov2.dvt_voc_distilled"]
    assert distilled["head_mb"] is None
    assert distilled["voc_miou"] == 85.1
    assert distilled["weights"] == "jjiaweiyang/DVT:voc_distilled/vit_base_patch14_dinov2.lvd142m.pth"
    assert rows["vit_base_patch16_224.dvt_mae"]["licence"] == "cc-by-nc-4.0"
    assert rows["vit_giant_patch14_dinov2.dvt"]["weights"] is None


def test_list_table(capsys: Any) -> None:
    assert cli.main(["list"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "base", "licence", "head", "MB", "VOC", "ADE20k", "NYU", "weights"]
    assert [line.split()[0] for line in lines] == dvt_timm.list_variants()
    start = header.index("weights")
    assert all(line[start - 1] == " " and line[start] != " " for line in lines)
    unpublished = set(dvt_timm.list_variants()) - set(dvt_timm.list_variants(pretrained=True))
    assert {line.split()[0] for line in lines if line.endswith("none published")} == unpublished


def test_list_pretrained(capsys: Any) -> None:
    assert cli.main(["list", "--pretrained"]) == 0
    text = capsys.readouterr().out
    assert "none published" not in text
    assert [line.split()[0] for line in text.splitlines()[1:]] == dvt_timm.list_variants(pretrained=True)


def test_list_a_users_own_head(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = manifest.Variant("vit_small_patch14_dinov2.own", "vit_small_patch14_dinov2.lvd142m", head="my/head")
    monkeypatch.setattr(registry, "_variants", {own.name: own})
    assert cli.main(["list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["weights"] == "my/head"
    assert row["head_mb"] is None


def test_help_does_not_import_the_heavy_modules() -> None:
    code = (
        "import sys; from dvt_timm import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        "print(sorted(m for m in sys.modules if m in ('dvt_timm.extract', 'dvt_timm.viz')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "features" in result.stdout


def test_version(capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"dvt-timm {dvt_timm.__version__}\n"


def test_a_command_is_needed(capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main([])
    assert exit.value.code == 2
