"""Repositories that mean harm or are badly made: refused by name, no code run, nothing read from elsewhere."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from helpers import TINY, files_of, random_head, same_weights
from hub_server import Hub
from safetensors.torch import load, save

import dvt_timm

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture(autouse=True)
def plain_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


def damaged(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        state = load(data)
        change(state)
        return save(state, {"grid_size": "[5, 4]"})

    return apply


HOSTILE_WEIGHTS = {
    "a giant header": (lambda data: (2**62).to_bytes(8, "little") + data[8:], "damaged or no safetensors"),
    "a giant tensor": (
        lambda data: (
            b"\x50\0\0\0\0\0\0\0"
            + b'{"pos_embed":{"dtype":"F32","shape":[1,99999999999,64],"data_offsets":[0,4]}}   '
            + b"\0" * 4
        ),
        "damaged or no safetensors",
    ),
    "no safetensors": (lambda data: pickle.dumps({"pos_embed": 1}), "damaged or no safetensors"),
    "NaN": (damaged(lambda state: state["pos_embed"].fill_(float("nan"))), "pos_embed are not finite"),
    "inf": (damaged(lambda state: state["denoiser.norm1.bias"].fill_(float("inf"))), "norm1.bias are not finite"),
    "a wrong shape": (
        damaged(lambda state: state.update({"denoiser.attn.proj.weight": torch.zeros(3, 3)})),
        "no denoiser head",
    ),
    "a missing key": (damaged(lambda state: state.pop("denoiser.norm2.bias")), "no denoiser head"),
    "an extra key": (damaged(lambda state: state.update(more=torch.zeros(1))), "no denoiser head"),
    "integers": (damaged(lambda state: state.update(pos_embed=torch.zeros(20, dtype=torch.int64))), "no denoiser head"),
}


class TestHostileRepositories:
    @pytest.mark.parametrize("kind", HOSTILE_WEIGHTS)
    def test_weights(self, hub: Hub, head: Any, base: Any, kind: str) -> None:
        change, message = HOSTILE_WEIGHTS[kind]
        files = hub.repos["me/head"].files()
        pickled = pickle.dumps(load(files[WEIGHTS]))
        hub.repo("me/head", {**files, WEIGHTS: change(files[WEIGHTS]), "pytorch_model.bin": pickled})
        for load_it in (
            lambda: dvt_timm.load_head("hf-hub:me/head"),
            lambda: timm.create_model("hf-hub:me/head", pretrained=True),
            lambda: timm.create_model(TINY, pretrained=True, denoiser="hf-hub:me/head"),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                load_it()
            assert str(caught.value).startswith("hf-hub:me/head@")
        assert hub.asked("pytorch_model") == []  # never another file in its place

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (b"[1, 2]", "JSON object, got list"),
            (b"\xff\xfe", "is no JSON"),
            (b"[" * 100_000, "is no JSON"),
            (b'{"schema": 2, "version": "9.0"}', r"schema 2 \(dvt-timm 9\.0\), this version reads 1; update dvt-timm"),
            (b'{"schema": "x"}', "schema 'x'"),
            (b'{"kind": "head", "grid_size": "evil"}', "do not belong together"),
            (b'{"kind": "head", "base": ["x"]}', "base must be the name of a timm model"),
            (b'{"kind": "head", "dim": "64"}', "its configuration says '64'"),
            (b'{"kind": "head", "num_blocks": 7}', "its configuration says 7"),
        ],
    )
    def test_configurations(self, hub: Hub, head: Any, config: bytes, message: str) -> None:
        hub.repos["me/head"].commit({CONFIG: config})
        with pytest.raises(ValueError, match=message) as caught:
            dvt_timm.load_head("hf-hub:me/head")
        assert str(caught.value).startswith("hf-hub:me/head@")
        assert str(caught.value).endswith("Name another revision or repository, or ask its owner")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"base": "test_vit.nothing"}, r"hf-hub:me/head@\w+ is refused: timm knows no model 'test_vit\.nothing'"),
            ({"base": "resnet18.a1_in1k"}, "its base is 'resnet18.a1_in1k', which is no test_vit"),
            ({"base": None}, "its base is None"),
            ({"base": 3}, "its base is 3"),
            ({"grid_size": "ab"}, "grid_size must be"),
            ({"grid_size": None}, "grid_size must be"),
            ({"grid_size": [10**9, 10**9]}, "do not belong together"),
            ({"schema": 2}, "schema 2"),
        ],
    )
    def test_configurations_for_create_model(self, hub: Hub, head: Any, change: dict[str, Any], message: str) -> None:
        config = json.loads(hub.repos["me/head"].files()[CONFIG])
        hub.repos["me/head"].commit({CONFIG: json.dumps({**config, **change}).encode()})
        with pytest.raises(ValueError, match=message):
            timm.create_model("hf-hub:me/head", pretrained=True)

    @pytest.mark.parametrize("args", [{"depth": 14, "pretrained_strict": False}, {"img_size": "x"}, {"stride": "x"}])
    def test_arguments_that_no_head_has(self, hub: Hub, head: Any, args: dict[str, Any]) -> None:
        config = json.loads(hub.repos["me/head"].files()[CONFIG])
        config["model_args"].update(args)
        hub.repos["me/head"].commit({CONFIG: json.dumps(config).encode()})
        with pytest.raises(ValueError, match=r"me/head@\w+ is refused: its model_args .* are not those of a head"):
            timm.create_model("hf-hub:me/head", pretrained=True)

    def test_a_model_that_names_a_head_elsewhere(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        model = timm.create_model(TINY, pretrained=True, denoiser=random_head(64, (5, 4)))
        files = files_of(dvt_timm.save_model(model, tmp_path / "merged"))
        config = json.loads(files[CONFIG])
        for elsewhere in ("hf-hub:evil/head", str(tmp_path / "merged")):
            config["model_args"]["denoiser"] = elsewhere
            hub.repo("me/merged", {**files, CONFIG: json.dumps(config).encode()})
            with pytest.raises(ValueError, match=r"me/merged@\w+ is refused: .* names a head elsewhere"):
                timm.create_model("hf-hub:me/merged", pretrained=True)
        assert hub.asked("evil") == []

    def test_a_model_whose_backbone_is_not_finite(self, hub: Hub, base: Any, tmp_path: Path) -> None:
        model = timm.create_model(TINY, pretrained=True, denoiser=random_head(64, (5, 4)))
        files = files_of(dvt_timm.save_model(model, tmp_path / "merged"))
        weights = load(files[WEIGHTS])
        weights["blocks.2.norm1.bias"].fill_(torch.nan)
        hub.repo("me/merged", {**files, WEIGHTS: save(weights)})
        with pytest.raises(ValueError, match=r"me/merged@\w+: values of blocks\.2\.norm1\.bias are not finite"):
            timm.create_model("hf-hub:me/merged", pretrained=True)

    def test_an_architecture_that_does_not_exist(self, hub: Hub, head: Any) -> None:
        hub.repos["me/head"].commit({CONFIG: b'{"kind": "head", "base": "vit_none.x", "architecture": "vit_none"}'})
        with pytest.raises(RuntimeError, match="Unknown model"):
            timm.create_model("hf-hub:me/head", pretrained=True)

    def test_a_model_that_names_other_files(self, hub: Hub, base: Any, tmp_path: Path, cache: Path) -> None:
        """Paths in the configuration of a pushed model are not followed: not out of the cache, not to a pickle."""
        model = timm.create_model(TINY, pretrained=True, denoiser=random_head(64, (5, 4)))
        files = files_of(dvt_timm.save_model(model, tmp_path / "merged"))
        config = json.loads(files[CONFIG])
        secret = tmp_path / "secret.bin"
        torch.save({}, secret)
        names = {
            "hf_hub_filename": "../../../evil.bin",
            "file": str(secret),
            "url": f"{hub.url}/evil",
            "custom_load": "hf",
        }
        config["pretrained_cfg"].update(names)
        hub.repo("me/merged", {**files, CONFIG: json.dumps(config).encode()})
        assert same_weights(timm.create_model("hf-hub:me/merged", pretrained=True), model)
        assert hub.asked("evil") == []
        assert list(cache.parent.rglob("evil*")) == []

    def test_a_pickle_that_would_run_code(self, hub: Hub, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "ran",))

        torch.save({"denoiser": {"pos_embed": torch.ones(1)}, "optimizer": Hostile()}, tmp_path / "hostile.pth")
        file = "voc_denoised/vit_small_patch14_dinov2.lvd142m.pth"
        hub.repo("jjiaweiyang/DVT", {file: (tmp_path / "hostile.pth").read_bytes()})
        with pytest.raises(ValueError, match="cannot be read as a file of tensors"):
            timm.create_model("vit_small_patch14_dinov2.dvt", pretrained=True)
        assert not (tmp_path / "ran").exists()
