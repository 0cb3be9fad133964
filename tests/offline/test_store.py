"""The feature store: complete, and readable while it is being filled."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import TINY, fitter, photos
from PIL import Image
from planting import contents
from torch.utils.data import DataLoader

from dvt_timm._util.files import sha256_of
from dvt_timm.offline import LeastSquaresSolver, RunError, Views, fit_store, open_store, sample_views
from dvt_timm.offline.solution import collect


def test_a_store_holds_what_fit_image_gives(tmp_path: Path) -> None:
    paths, fit = photos(tmp_path / "photos"), fitter()
    assert fit_store(fit, paths, tmp_path / "store") == {}
    opened = open_store(tmp_path / "store")
    assert len(opened) == 5
    assert [entry.image for entry in opened.entries] == [str(path) for path in paths]
    for i, path in enumerate(paths):
        expected = fit(Image.open(path))
        raw, clean = opened[i]
        assert torch.equal(raw, expected.raw)
        assert torch.equal(clean, expected.semantics)
        assert torch.equal(opened.clean(i), clean)
        assert torch.equal(opened.raw(i), raw)
        assert opened.entries[i].sha256 == sha256_of(path)
        assert opened.entries[i].stats["unexplained"] == pytest.approx(expected.stats["unexplained"])
    assert opened.settings["model"] == TINY
    assert opened.settings["views"]["num_views"] == 3
    assert opened.settings["solver"] == "LeastSquaresSolver(density=2.0, smoothness=1.0, prior_views=0.0)"
    index = json.loads((tmp_path / "store/index.json").read_text())
    assert [image["image"] for image in index["images"]] == [str(path) for path in paths]
    assert {image["shard"] for image in index["images"]} == {entry.file.name for entry in opened.entries}
    assert list((tmp_path / "store/pending").iterdir()) == []


def test_view_pairs_are_views_and_what_the_others_have_where_their_patches_lie(tmp_path: Path) -> None:
    paths, fit = photos(tmp_path / "photos"), fitter(num_views=9, view_pairs=4)
    fit_store(fit, paths, tmp_path / "store", shard_bytes=1)
    opened = open_store(tmp_path / "store")
    assert len(opened) == 5
    assert opened.num_pairs == 5
    drawn = set()
    for i, path in enumerate(paths):
        views = collect(sample_views(fit.model, path, num_views=9, size=64, batch_size=4))
        raw, clean = (torch.stack(parts) for parts in zip(*(opened.pair(i, k) for k in range(5)), strict=True))
        found = [next(v for v in range(10) if torch.equal(views.features[v], y)) for y in raw]
        assert found == [9, *sorted(set(found[1:]))]  # the whole image and four others
        drawn.add(tuple(found))
        for left, target in zip(found, clean, strict=True):
            rest = [v for v in range(10) if v != left]
            others = LeastSquaresSolver().fit(Views(views.features[rest], views.xy[rest]))
            torch.testing.assert_close(target, others.semantics_at(views.xy[left]), rtol=0, atol=1e-4)
        assert torch.equal(opened.raw(i), raw[0])
        assert torch.equal(opened.clean(i), fit(path).semantics)
    assert len(drawn) > 1  # each image has its own
    with pytest.raises(RunError, match="view_pairs is 4, not 3"):
        fit_store(fitter(num_views=9, view_pairs=3), paths, tmp_path / "store")


def test_without_view_pairs_an_image_is_one_pair(tmp_path: Path) -> None:
    fit_store(fitter(), photos(tmp_path / "photos", 1), tmp_path / "store")
    opened = open_store(tmp_path / "store")
    assert opened.num_pairs == 1
    assert torch.equal(opened.pair(0, 0)[1], opened.clean(0))
    for k in (-1, 1):
        with pytest.raises(IndexError, match=rf"pair must be 0\.\.0, got {k}; fit with a larger view_pairs"):
            opened.pair(0, k)


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    fit_store(fitter(), photos(tmp_path / "photos", 1), tmp_path / "store")
    settings = json.loads((tmp_path / "store/store.json").read_text())
    (tmp_path / "store/store.json").write_text(json.dumps({**settings, "format": 1}))
    with pytest.raises(ValueError, match=r"is a store of format 1, and this version reads 2; .* in another folder"):
        open_store(tmp_path / "store")


def test_shards_are_closed_by_size(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos")
    image_bytes = 2 * 4 * 4 * 64 * 4  # raw and clean, 4 x 4 patches, 64 channels, float32
    fit_store(fitter(), paths, tmp_path / "store", shard_bytes=2 * image_bytes)
    sizes = Counter(entry.file for entry in open_store(tmp_path / "store").entries)
    assert sorted(sizes.values()) == [1, 2, 2]


def test_half_precision(tmp_path: Path) -> None:
    paths, fit = photos(tmp_path / "photos", 1), fitter()
    fit_store(fit, paths, tmp_path / "store", half=True)
    raw, clean = open_store(tmp_path / "store")[0]
    assert raw.dtype == clean.dtype == torch.float16
    assert torch.equal(clean, fit(Image.open(paths[0])).semantics.half())


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 2)
    fit_store(fitter(), paths[:1], tmp_path / "store")
    (tmp_path / "store/.eslintrc.json").write_text("{}")
    (tmp_path / "store/.0123abcd.store.json").write_text("{")  # of a killed run
    fit_store(fitter(), paths, tmp_path / "store")
    assert (tmp_path / "store/.eslintrc.json").exists()
    assert not (tmp_path / "store/.0123abcd.store.json").exists()


def test_a_store_that_is_being_filled_can_be_read(tmp_path: Path) -> None:
    """Pending files turn into shards under a reader's hands."""
    folder, opened = tmp_path / "store", []
    paths = photos(tmp_path / "photos", 4)
    bytes_of_two = 2 * 8_700
    fit_store(fitter(), paths, folder, shard_bytes=bytes_of_two, finished=lambda *_: opened.append(open_store(folder)))
    assert [len(store) for store in opened] == [0, 1, 2, 3]
    expected = contents(folder)
    for part in opened:
        for i, entry in enumerate(list(part.entries)):
            assert torch.equal(part.clean(i), expected[entry.sha256][1])


def test_half_written_and_vanished_files_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    fit_store(fitter(), photos(tmp_path / "photos", 1), folder)
    (folder / f"pending/.0123abcd.{64 * 'a'}.safetensors").write_bytes(b"torn")  # killed while it was written
    (folder / f"pending/{64 * 'b'}.safetensors").symlink_to(folder / "gone")  # merged after it was listed
    assert len(open_store(folder)) == 1


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 2)
    fit_store(fitter(), paths, tmp_path / "store", shard_bytes=1)
    shard = open_store(tmp_path / "store").entries[0].file
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{shard.name} is damaged: .*delete it"):
        open_store(tmp_path / "store")
    with pytest.raises(RunError, match=f"{shard.name} is damaged: .*delete it"):
        fit_store(fitter(), paths, tmp_path / "store")
    shard.unlink()
    fit_store(fitter(), paths, tmp_path / "store")
    assert len(open_store(tmp_path / "store")) == 2
    (tmp_path / "store/shard-0.safetensors").write_bytes((8).to_bytes(8, "little") + b'{"a":{}}')
    with pytest.raises(ValueError, match=r"shard-0.safetensors is (damaged|no part of a feature store)"):
        open_store(tmp_path / "store")


def test_a_store_feeds_data_workers(tmp_path: Path) -> None:
    fit_store(fitter(), photos(tmp_path / "photos"), tmp_path / "store", shard_bytes=1)
    opened = open_store(tmp_path / "store")
    opened[0]
    again = pickle.loads(pickle.dumps(opened))
    assert torch.equal(again.raw(1), opened.raw(1))
    raw, clean = next(iter(DataLoader(opened, batch_size=5)))
    assert raw.shape == clean.shape == (5, 4, 4, 64)
