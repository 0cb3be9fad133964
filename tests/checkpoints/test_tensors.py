"""The authors' files: what is read of them, and what is not."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FAMILIES, GOLDEN_HEADS, VIT, create, files_of, random_head
from timm.models import PretrainedCfg

import dvt_timm
from dvt_timm.checkpoints.models import read_weights
from dvt_timm.checkpoints.tensors import kind_of, read_pickle


@pytest.mark.parametrize("name", GOLDEN_HEADS)
def test_the_authors_files(name: str) -> None:
    """They hold a numpy float64 scalar, which weights_only alone refuses."""
    path = GOLDEN_HEADS[name][1] / f"official_denoiser_{name}.pth"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert "pos_embed" in read_pickle(path)


def test_a_numpy_scalar_is_admitted(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"denoiser": {"pos_embed": torch.ones(1)}, "optimizer": {"lr": np.float64(0.1)}}, path)
    assert read_pickle(path).keys() == {"pos_embed"}


@pytest.mark.parametrize("value", [np.float32(1), np.int64(3), np.zeros(3), np.dtype("O"), np.str_("x")])
def test_nothing_else_of_numpy_is(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.pth"
    torch.save({"denoiser": {"pos_embed": torch.ones(1)}, "optimizer": {"lr": value}}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_pickle(path)


def test_the_prefix_is_stripped_only_where_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"model.a.model.b": torch.ones(1), "c.model.d": torch.ones(1)}}, path)
    assert read_pickle(path).keys() == {"a.model.b", "c.model.d"}


def test_code_does_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "a.pth"
    torch.save({"denoiser": {"pos_embed": torch.ones(1)}, "optimizer": Hostile()}, path)
    with pytest.raises(ValueError, match="cannot be read as a file of tensors: it holds a ") as caught:
        read_pickle(path)
    assert "weights_only=False" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"step": 1}, [1, 2], {"denoiser": {"a": 1}}, {"denoiser": {1: torch.ones(1)}}])
def test_other_contents(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds"):
        read_pickle(tmp_path / "a.pth")


def test_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"denoiser": random_head().state_dict()}, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        read_pickle(path)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_are_cut_off_are_named(zipped: bool, share: float, tmp_path: Path) -> None:
    """PyTorch says "[Errno 22] Invalid argument" of some, and never which."""
    path, head = tmp_path / "a.pth", random_head(64, (16, 16))
    torch.save({"denoiser": head.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} cannot be read as a file of tensors: "):
        read_pickle(path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_weights(PretrainedCfg(file=str(path)), None)
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "missing.pth")


class TestKindOf:
    """One question for every source: a head, a model, a model with its head?"""

    @pytest.fixture(scope="class")
    def model(self) -> Any:
        return create(VIT, denoiser=random_head())

    def test_keys(self, model: Any) -> None:
        denoised = model.state_dict()
        plain = {key for key in denoised if not key.startswith("denoiser.")}
        assert kind_of(denoised) == kind_of({f"module.{key}" for key in denoised}) == "denoised"
        assert kind_of(plain) == "model"
        assert kind_of(model.denoiser.state_dict()) == "head"
        assert kind_of({"weight"}) == kind_of([]) == "unknown"

    def test_files_and_folders(self, model: Any, tmp_path: Path) -> None:
        dvt_timm.save_head(model.denoiser, tmp_path / "head", base=FAMILIES[VIT])
        dvt_timm.save_model(model, tmp_path / "denoised")
        dvt_timm.save_model(dvt_timm.undenoise(copy.deepcopy(model)), tmp_path / "model")
        for kind in ("head", "denoised", "model"):
            assert kind_of(tmp_path / kind) == kind_of(str(tmp_path / kind / "model.safetensors")) == kind
        (tmp_path / "model/model.safetensors").unlink()
        assert kind_of(tmp_path / "model") == "model"  # as its configuration says; who loads it hears what is missing

    def test_pickles(self, model: Any, tmp_path: Path) -> None:
        torch.save({"state_dict": model.state_dict()}, tmp_path / "a.pth")
        assert kind_of(tmp_path / "a.pth") == "denoised"
        (tmp_path / "b.pth").write_bytes(b"no pickle")
        assert kind_of(tmp_path / "b.pth") == kind_of(tmp_path / "missing.pth") == "unknown"

    def test_repositories(self, hub: Any, head: Any, model: Any, tmp_path: Path) -> None:
        assert kind_of("hf-hub:me/head") == "head"
        hub.repo("me/model", files_of(dvt_timm.save_model(model, tmp_path / "m")))
        assert kind_of("hf-hub:me/model") == "denoised"
