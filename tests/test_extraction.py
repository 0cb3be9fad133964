"""`extract`: the maps of `feature_maps`, of any number of images, in their order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import TINY, images, photo, photos, random_head
from PIL import Image

import dvt_timm
from dvt_timm import extraction
from dvt_timm._util import images as reading
from dvt_timm._util.files import sha256_of
from dvt_timm.offline import ImageError


def tiny(**options: Any) -> Any:
    torch.manual_seed(3)
    return timm.create_model(TINY, dynamic_img_size=True, **options).eval()


MODELS = {
    "plain": lambda: tiny(),
    "denoised": lambda: tiny(denoiser=random_head(64)),
    "positions": lambda: tiny(denoiser={"positions": 3}),
}
SIZES = [(64, 48), (64, 64), (64, 48), (96, 64), (64, 64), (64, 48), (64, 48), (48, 64), (64, 48)]  # width, height


def shaped(sizes: list[tuple[int, int]] = SIZES) -> list[Image.Image]:
    return [photo(seed).resize(size) for seed, size in enumerate(sizes)]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_maps_are_those_of_one_pass(kind: str, batch_size: int) -> None:
    model, pictures = MODELS[kind](), shaped()
    found = list(dvt_timm.extract(model, pictures, size=48, layers=[1, -1], batch_size=batch_size))
    assert [each.index for each in found] == list(range(len(pictures)))
    for picture, each in zip(pictures, found, strict=True):
        pixels = dvt_timm.preprocess(model, picture, size=48)
        with torch.inference_mode():
            one = dvt_timm.feature_maps(model, pixels)
            maps = model.forward_intermediates(pixels, [1, 5], norm=True, intermediates_only=True)
        torch.testing.assert_close(each.raw, one.raw[0].permute(1, 2, 0))
        torch.testing.assert_close(each.class_token, one.class_token[0])
        assert (each.denoised is None) == (kind == "plain")
        if each.denoised is not None:
            torch.testing.assert_close(each.denoised, one.denoised[0].permute(1, 2, 0))
        assert list(each.layers) == [1, 5]
        for fmap, expected in zip(each.layers.values(), maps, strict=True):
            torch.testing.assert_close(fmap, expected[0].permute(1, 2, 0))
        assert (each.path, each.sha256) == (None, None)
        assert each.original_size == (picture.height, picture.width)
        assert each.pixels.shape[:2] == pixels.shape[2:]


def test_folders_paths_and_images(tmp_path: Path) -> None:
    paths = photos(tmp_path / "in", 3)
    model = tiny()
    for given in (tmp_path / "in", str(tmp_path / "in"), paths, map(str, paths), (path for path in paths)):
        found = list(dvt_timm.extract(model, given, size=32))
        assert [each.path for each in found] == paths
        assert [each.sha256 for each in found] == [sha256_of(path) for path in paths]
    mixed = dvt_timm.extract(model, [paths[1], Image.open(paths[1])], size=32)
    assert torch.equal(next(mixed).raw, next(mixed).raw)
    assert list(dvt_timm.extract(model, [])) == []


def test_an_eva() -> None:
    model = timm.create_model(
        "eva02_tiny_patch14_224", depth=3, dynamic_img_size=True, denoiser={"positions": 2}
    ).eval()
    (found,) = dvt_timm.extract(model, [photo()], size=112, layers=[0])
    with torch.inference_mode():
        (expected,) = model.forward_intermediates(
            dvt_timm.preprocess(model, photo(), 112), [0], norm=True, intermediates_only=True
        )
    torch.testing.assert_close(found.layers[0], expected[0].permute(1, 2, 0))


def test_precision() -> None:
    model = tiny()
    (whole,), (half,) = (list(dvt_timm.extract(model, [photo()], size=64, half=half)) for half in (False, True))
    assert (whole.raw.dtype, half.raw.dtype) == (torch.float32, torch.float16)
    torch.testing.assert_close(half.raw, whole.raw.half())
    (rough,) = dvt_timm.extract(model, [photo()], size=64, autocast=torch.bfloat16)
    assert rough.raw.dtype == torch.float32
    assert 0 < (rough.raw - whole.raw).norm() / whole.raw.norm() < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        (same,) = dvt_timm.extract(model, [photo()], size=64)
    assert torch.equal(same.raw, rough.raw)


def test_features_may_take_part_in_training() -> None:
    (found,) = dvt_timm.extract(tiny(), [photo()], size=32)
    layer = torch.nn.Linear(64, 1)
    layer(found.raw).sum().backward()
    assert layer.weight.grad is not None


def test_images_of_one_size_share_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    passing = extraction.maps_and_layers
    monkeypatch.setattr(
        extraction, "maps_and_layers", lambda m, x, blocks: (seen.append(x.shape), passing(m, x, blocks))[1]
    )
    sizes = [(64, 64), (64, 48)] * 4
    assert len(list(dvt_timm.extract(tiny(), shaped(sizes), size=48, batch_size=4))) == 8
    assert [shape[0] for shape in seen] == [4, 4]


def test_few_images_are_held() -> None:
    """One of another size waits for others of it, but not for long."""
    taken = []

    def coming() -> Iterator[Image.Image]:
        for i in range(60):
            taken.append(i)
            yield photo(i).resize((96, 48) if i == 0 else (64, 48))

    found = dvt_timm.extract(tiny(), coming(), size=48, batch_size=2)
    assert taken == []
    for given, each in enumerate(found):
        assert each.index == given
        assert len(taken) - given <= 5 * 2 + 1
    assert len(taken) == 60


def broken(folder: Path) -> list[Path]:
    """Four photos, the second and the last of which cannot be read."""
    paths = photos(folder, 4)
    for i in (1, 3):
        paths[i].write_text("no image")
    return paths


def test_a_bad_image_raises_in_its_place(tmp_path: Path) -> None:
    found = dvt_timm.extract(tiny(), broken(tmp_path / "in"), size=32, batch_size=1)
    assert next(found).index == 0
    with pytest.raises(ImageError, match=r"1\.png: not a JPEG, PNG or WebP"):
        next(found)
    assert [thread for thread in threading.enumerate() if "ThreadPool" in thread.name] == []


@pytest.mark.parametrize("batch_size", [1, 4])
def test_bad_images_are_left_out(tmp_path: Path, batch_size: int) -> None:
    paths, errors = broken(tmp_path / "in"), []
    found = dvt_timm.extract(tiny(), paths, size=32, batch_size=batch_size, on_error=errors.append)
    assert [each.index for each in found] == [0, 2]
    assert [str(error).startswith(str(path)) for error, path in zip(errors, paths[1::2], strict=True)] == [True, True]
    with pytest.warns(UserWarning, match="skipped .*[13].png: not a JPEG"):
        found = list(dvt_timm.extract(tiny(), paths, size=32, batch_size=batch_size, on_error="skip"))
    assert [each.index for each in found] == [0, 2]


@pytest.mark.parametrize(
    ("picture", "size", "message"),
    [
        (Image.new("RGB", (210, 10)), 32, "image 0: 10 x 210 pixels, one side over 20 times the other"),
        (Image.new("RGB", (200, 10)), 3000, "image 0: 3008 x 60000 pixels make 188 x 3750 patches, and attention"),
        (Image.new("RGB", (0, 10)), 32, "image 0: the image has no pixels"),
    ],
)
def test_images_that_do_not_go(picture: Image.Image, size: int, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        next(dvt_timm.extract(tiny(), [picture], size=size))


def test_large_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = photos(tmp_path / "in", 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"more than 200 in all"):
        next(dvt_timm.extract(tiny(), [path], size=32))
    with dvt_timm.large_images():
        assert len(list(dvt_timm.extract(tiny(), [path], size=32))) == 1


def test_features_that_are_not_finite() -> None:
    model = tiny(denoiser=random_head(64))
    with torch.no_grad():
        model.denoiser.pos_embed.fill_(float("nan"))
    with pytest.raises(ImageError, match=r"image 0: the model's features hold NaN or Inf; check its weights$"):
        next(dvt_timm.extract(model, [photo()], size=32))
    with torch.no_grad():
        model.denoiser.pos_embed.fill_(1e6)
    assert next(dvt_timm.extract(model, [photo()], size=32)).denoised is not None
    with pytest.raises(ImageError, match=r"check its weights, or leave half precision out$"):
        next(dvt_timm.extract(model, [photo()], size=32, half=True))


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    passing, most = extraction.maps_and_layers, 2

    def small(model: Any, pixels: torch.Tensor, layers: Any) -> Any:
        if len(pixels) > most:
            raise torch.OutOfMemoryError("out of memory")
        return passing(model, pixels, layers)

    monkeypatch.setattr(extraction, "maps_and_layers", small)
    with pytest.warns(
        UserWarning, match="a batch of [35] images does not fit and is halved; pass a smaller batch_size"
    ):
        found = list(dvt_timm.extract(tiny(), shaped([(64, 48)] * 5), size=32, batch_size=5))
    assert [each.index for each in found] == list(range(5))
    most = 0
    with pytest.raises(ImageError, match="image 0: out of memory at size 32; if memory is short, pass a smaller one"):
        next(dvt_timm.extract(tiny(), [photo()], size=32))


def test_memory_that_is_short_while_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading.Preprocessing, "resize", lambda *args: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(ImageError, match="image 0: MemoryError at size 32"):
        next(dvt_timm.extract(tiny(), [photo()], size=32))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, ValueError, "size must be a whole number of pixels"),
        ({"size": 10**6}, ValueError, "attention takes at most"),
        ({"layers": [6]}, ValueError, r"layers must be -6..5 \(the model has 6 blocks\), got 6"),
        ({"layers": [True]}, ValueError, "got True"),
        ({"layers": [5, -1]}, ValueError, "layers must be different blocks"),
        ({"layers": 5}, TypeError, r"layers must be several numbers of blocks, got 5; pass \[5\]"),
        ({"autocast": "bfloat16"}, TypeError, "autocast must be a torch.dtype"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number, at least 1, got 0"),
        ({"threads": -1}, ValueError, "threads must be a whole number, at least 0, or None, got -1"),
        ({"on_error": "ignore"}, ValueError, 'on_error must be "raise", "skip" or a function'),
    ],
)
def test_arguments_are_checked_at_once(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dvt_timm.extract(tiny(), [], **options)


def test_what_is_no_model_and_no_image() -> None:
    with pytest.raises(TypeError, match="extract takes a timm VisionTransformer or Eva, got Linear"):
        dvt_timm.extract(torch.nn.Linear(1, 1), [])
    with pytest.raises(TypeError, match=r"images must be several, got one image; pass \[image\]"):
        dvt_timm.extract(tiny(), Image.new("RGB", (32, 32)))
    with pytest.raises(NotADirectoryError, match=r"photo.jpg is no folder; pass \[path\] for one image"):
        dvt_timm.extract(tiny(), "photo.jpg")
    with pytest.raises(TypeError, match="an image is a PIL image or the path of one, got Tensor"):
        next(dvt_timm.extract(tiny(), images(32, 32)))


def test_a_model_of_one_size_says_so() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
    with pytest.raises(ValueError, match="dynamic_img_size=True"):
        next(dvt_timm.extract(model, [photo()], size=64, on_error="skip"))
