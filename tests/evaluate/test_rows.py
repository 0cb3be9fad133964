"""The rows of a table: one pass of the plain model serves all heads, and maps are kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAMILIES, VIT, create, photo, random_head
from PIL import Image

import dvt_timm
from dvt_timm._util.team import Alone
from dvt_timm.evaluate import MapCache, PositionProjection, Rows, plant
from dvt_timm.offline import ImageFitter
from dvt_timm.projection import Moments
from dvt_timm.stride import set_stride

PHOTOS = [photo(seed).resize((90, 70)) for seed in range(5)]


def plain_model() -> Any:
    return create(FAMILIES[VIT], dynamic_img_size=True, img_size=70)


def raw_of(model: Any, image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    squeezed = image.resize(size[::-1], Image.Resampling.BICUBIC)
    with torch.inference_mode():
        maps = dvt_timm.feature_maps(model, dvt_timm.preprocess(model, squeezed, min(size)))
    return (maps.raw if maps.denoised is None else maps.denoised)[0].permute(1, 2, 0)


def test_every_row_is_what_its_model_gives() -> None:
    model, head = plain_model(), random_head()
    other = dvt_timm.denoise(create(FAMILIES[VIT], dynamic_img_size=True, img_size=70), random_head(seed=5))
    rows = Rows(model, {"head": head}, others={"other": other}, batch_size=2)
    assert rows.names == ["plain", "head", "other"]
    every = list(rows.over(PHOTOS))
    assert len(every) == 5
    for image, maps in zip(PHOTOS, every, strict=True):
        raw = raw_of(model, image, (70, 70))
        torch.testing.assert_close(maps.rows["plain"], raw)
        with torch.inference_mode():
            torch.testing.assert_close(maps.rows["head"], head(raw[None])[0])
        torch.testing.assert_close(maps.rows["other"], raw_of(other, image, (70, 70)))
        assert maps.class_token is not None
        assert maps.class_token.shape == (128,)


def test_aspect_sizes_and_blocks() -> None:
    rows = Rows(plain_model(), size=84, squeeze=False, batch_size=3)
    wide, high = photo(1).resize((90, 60)), photo(2).resize((60, 90))
    maps = list(rows.over([wide, high, wide]))
    assert [tuple(each.rows["plain"].shape) for each in maps] == [(6, 9, 128), (9, 6, 128), (6, 9, 128)]
    assert rows.grid(wide) == (6, 9)
    torch.testing.assert_close(maps[0].rows["plain"], maps[2].rows["plain"])
    early = Rows(plain_model(), layer=0).maps(wide)
    assert early.rows["plain"].shape == (5, 5, 128)
    assert early.class_token is None


@pytest.mark.parametrize(("denoiser", "row"), [(random_head(), "denoised"), ({"positions": 2}, "positions")])
def test_a_denoised_model_is_two_rows(denoiser: Any, row: str) -> None:
    model = create(FAMILIES[VIT], denoiser=denoiser, dynamic_img_size=True, img_size=70)
    rows = Rows(model)
    assert rows.names == ["plain", row]
    maps = rows.maps(PHOTOS[0]).rows
    torch.testing.assert_close(maps[row], raw_of(model, PHOTOS[0], (70, 70)))
    torch.testing.assert_close(maps["plain"], raw_of(plain_model(), PHOTOS[0], (70, 70)))
    assert rows.shares_positions(row)
    assert not Rows(plain_model(), others={"other": plain_model()}).shares_positions("other")


def test_maps_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, head = plain_model(), random_head()
    first = list(Rows(model, {"head": head}, cache=MapCache(tmp_path)).over(PHOTOS))
    with plant(model):
        planted = Rows(model, {"head": head}, cache=MapCache(tmp_path)).maps(PHOTOS[0])
    assert not torch.allclose(planted.rows["plain"], first[0].rows["plain"], atol=0.1)
    (tmp_path / "damaged.safetensors").write_bytes(b"")
    passes: list[int] = []
    monkeypatch.setattr(Rows, "_pass", lambda self, name, images, size: passes.append(len(images)))
    again = list(Rows(model, {"head": head}, cache=MapCache(tmp_path)).over(PHOTOS))
    assert passes == []
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.class_token, other.class_token)
        assert all(torch.equal(one.rows[name], other.rows[name]) for name in ("plain", "head"))


def test_features_that_are_not_finite() -> None:
    model = plain_model()
    with torch.no_grad():
        model.norm.weight[3] = torch.nan
    with pytest.raises(ValueError, match="the maps of plain hold NaN or Inf"):
        Rows(model).maps(PHOTOS[0])


def test_another_stride_is_another_map(tmp_path: Path) -> None:
    model = plain_model()
    before = Rows(model, cache=MapCache(tmp_path)).maps(PHOTOS[0]).rows["plain"]
    set_stride(model, 7, (70, 70))
    rows = Rows(model, cache=MapCache(tmp_path))
    after = rows.maps(PHOTOS[0]).rows["plain"]
    assert (before.shape[:2], after.shape[:2], rows.grid(PHOTOS[0])) == ((5, 5), (9, 9), (9, 9))


def test_another_block_has_no_head_but_a_projection() -> None:
    rows = Rows(create(FAMILIES[VIT], denoiser=random_head(), dynamic_img_size=True, img_size=70), layer=1)
    rows.add_projection(PHOTOS, 4)
    assert rows.names == ["plain", "projection"]
    assert rows.settings["projection"] == "4 dimensions, found on 5 images of this data, without their labels"


def test_what_is_damaged_is_made_again(tmp_path: Path) -> None:
    rows = Rows(plain_model(), cache=MapCache(tmp_path))
    expected = rows.maps(PHOTOS[0]).rows["plain"]
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(rows.maps(PHOTOS[0]).rows["plain"], expected)
    assert file.stat().st_size > 50


def test_a_cache_is_bounded(tmp_path: Path) -> None:
    rows = Rows(plain_model(), cache=MapCache(tmp_path, most_bytes=2 * 7_000))
    maps = list(rows.over(PHOTOS))
    assert len(list(tmp_path.iterdir())) == 3  # the third one goes over
    assert torch.equal(rows.maps(PHOTOS[4]).rows["plain"], maps[4].rows["plain"])


def test_a_cache_that_several_fill(tmp_path: Path) -> None:
    (tmp_path / ".00000000.half-written.safetensors").write_bytes(b"0" * 100_000)  # another process is at it
    rows = Rows(plain_model(), cache=MapCache(tmp_path, most_bytes=2 * 7_000, writers=2))
    list(rows.over(PHOTOS))
    assert len(list(tmp_path.glob("[!.]*"))) == 2  # with two of the other's, the second one goes over


class Joined(Alone):
    """The first of two processes, of which the other has found something."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.size, self.other = 2, other

    def gather(self, values: Any) -> Any:
        return {**values, 1: self.other}


def test_the_projection_is_that_of_all_processes() -> None:
    other = Moments()
    for maps in Rows(plain_model()).over(PHOTOS[3:]):
        other.add(maps.rows["plain"])
    rows, whole = Rows(plain_model(), team=Joined((other, 2))), Rows(plain_model())
    rows.add_projection(PHOTOS[:3], 5)
    whole.add_projection(PHOTOS, 5)
    assert rows.notes == whole.notes
    for name in ("plain", "projection"):
        torch.testing.assert_close(rows.maps(PHOTOS[0]).rows[name], whole.maps(PHOTOS[0]).rows[name])


def test_the_projection_is_a_row() -> None:
    rows = Rows(plain_model())
    maps = [each.rows["plain"] for each in rows.over(PHOTOS)]
    rows.add_projection(PHOTOS, 5)
    expected = PositionProjection.fit(maps, 5)
    with torch.no_grad():
        torch.testing.assert_close(rows.maps(PHOTOS[0]).rows["projection"], expected(maps[0][None])[0])


def test_rows_that_do_not_go_together() -> None:
    for options, message in (
        ({"denoisers": {"head": random_head(64)}}, "head is 64 channels wide, the model 128"),
        ({"layer": 3}, r"layer must be -3\.\.2 \(the model has 3 blocks\), got 3"),
        ({"layer": 0, "denoisers": {"head": random_head()}}, "denoisers are for the last block, not for block 0"),
        ({"denoisers": {"a": random_head()}, "others": {"a": plain_model()}}, "rows need names of their own"),
        ({"denoisers": {"plain": random_head()}}, "rows need names of their own"),
        ({"denoisers": {"a|b": random_head()}}, r"without \| and \$"),
        ({"others": {"other": create("vit_small_patch16_224")}}, "other sees images otherwise than the model"),
    ):
        with pytest.raises(ValueError, match=message):
            Rows(plain_model(), **options)


def test_the_same_weights_in_another_architecture_have_maps_of_their_own(tmp_path: Path) -> None:
    model = plain_model()
    for change in ({"num_heads": 4}, {"act_layer": "relu"}):
        other = create(FAMILIES[VIT], dynamic_img_size=True, img_size=70, **change)
        other.load_state_dict(model.state_dict())
        rows = Rows(model, others={"other": other}, cache=MapCache(tmp_path / "maps"))
        maps = rows.maps(PHOTOS[0]).rows
        torch.testing.assert_close(maps["other"], raw_of(other, PHOTOS[0], (70, 70)), atol=2e-3, rtol=2e-3)
        assert not torch.equal(maps["plain"], maps["other"])


def test_weights_of_another_precision_have_maps_of_their_own(tmp_path: Path) -> None:
    rounded = plain_model().bfloat16()
    widened = plain_model()
    widened.load_state_dict(rounded.state_dict())
    maps = [Rows(model, cache=MapCache(tmp_path)).maps(PHOTOS[0]).rows["plain"] for model in (rounded, widened)]
    assert not torch.equal(*maps)


def test_models_of_odd_sizes_see_what_stage_1_shows_them() -> None:
    for dynamic in (True, False):
        model = create(FAMILIES[VIT], dynamic_img_size=dynamic, img_size=(56, 84))
        stage_1 = ImageFitter(model, num_views=1)
        torch.testing.assert_close(Rows(model).maps(PHOTOS[0]).rows["plain"], stage_1.raw(PHOTOS[0]))
    assert Rows(model).settings["pixels"] == "56 x 84, squeezed"


def test_maps_beyond_half_precision_are_not_rounded(tmp_path: Path) -> None:
    model = create(FAMILIES[VIT], dynamic_img_size=True, img_size=70)
    with torch.no_grad():
        model.norm.bias[0] = 1e5
    for _ in range(2):
        maps = Rows(model, cache=MapCache(tmp_path)).maps(PHOTOS[0]).rows["plain"]
        assert maps.isfinite().all()
        torch.testing.assert_close(maps, Rows(model).maps(PHOTOS[0]).rows["plain"])


def test_averages_over_other_views_have_maps_of_their_own(tmp_path: Path) -> None:
    maps = []
    for views in (2, 4):
        averaged = dvt_timm.denoise(plain_model(), positions=views)
        rows = Rows(plain_model(), others={"mean": averaged}, cache=MapCache(tmp_path))
        assert rows.settings["views of mean"] == views
        maps.append(rows.maps(PHOTOS[0]).rows["mean"])
    assert not torch.equal(*maps)
