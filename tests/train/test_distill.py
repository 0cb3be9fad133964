"""Stage 3: the method as written, and a plain timm model at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import TINY, photos
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from training import GRID, SHORT, restated, teacher, weights

from dvt_timm import denoise
from dvt_timm.train import DistillStage, TrainConfig, distill, make_accelerator
from dvt_timm.train.data import Stream, collate
from dvt_timm.train.loop import Trainer


def test_stage_3_is_what_the_method_says(tmp_path: Path) -> None:
    config = TrainConfig(steps=5, batch_size=4, workers=0, held_out=1, weight_decay=0.1)
    stage = DistillStage(teacher(), photos(tmp_path / "photos", 5))
    stage.module.double()
    stage.teacher.double()
    (tmp_path / "run").mkdir()
    trainer = Trainer(DoubleImages(stage), config, tmp_path / "run", make_accelerator(config, "cpu"))
    model, student = teacher().double(), teacher().double()
    plain = VisionTransformer.forward_features
    grid = GRID

    def pair(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            raw = plain(model, pixels)[:, 1:].reshape(len(pixels), *grid, -1)
            return pixels, model.denoiser(raw)

    batches = [collate([trainer.stream[4 * step + i] for i in range(4)]).double() for step in range(5)]
    forward = Forward(student)
    restated(forward, pair, batches, config)
    trainer.train()
    for key, value in trainer.module.vit.state_dict().items():
        torch.testing.assert_close(value, student.state_dict()[key], rtol=1e-8, atol=1e-11)
    assert not torch.equal(student.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)


def test_a_teacher_that_averages_over_positions(tmp_path: Path) -> None:
    """It needs no head: what it knows goes into a plain backbone all the same."""
    averaging = denoise(teacher(), positions=2)
    stage = DistillStage(averaging, photos(tmp_path / "photos", 3))
    sample = collate([stage.draw(i, torch.Generator().manual_seed(i)) for i in range(3)])
    batch = stage.batch(sample)
    tokens = averaging.forward_features(sample)[:, averaging.num_prefix_tokens :]
    torch.testing.assert_close(batch.target, tokens.reshape(3, *GRID, -1))
    assert stage.settings["positions"] == 2
    assert type(stage.module.vit) is VisionTransformer
    distill(averaging, photos(tmp_path / "more", 8), tmp_path / "run", SHORT)
    assert type(timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)) is VisionTransformer


class Forward(nn.Module):
    """timm's own forward pass of a denoised model's backbone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(("denoiser", "head")))

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = VisionTransformer.forward_features(self.model, pixels)
        return tokens[:, self.model.num_prefix_tokens :].reshape(len(pixels), *GRID, -1)


class DoubleImages:
    """A stage whose images are float64."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def batch(self, sample: Tensor) -> Any:
        return self._stage.batch(sample.double())


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_teacher_runs_in_the_precision_of_the_run(tmp_path: Path) -> None:
    config = TrainConfig(steps=1, batch_size=2, precision="bf16", workers=0, held_out=1)
    stage = DistillStage(teacher(), photos(tmp_path / "photos", 3))
    seen = []
    for linear in (stage.teacher.blocks[0].mlp.fc1, stage.teacher.denoiser.denoiser.mlp.fc1):
        linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    (tmp_path / "run").mkdir()
    trainer = Trainer(stage, config, tmp_path / "run", make_accelerator(config, "cpu"))
    trainer.train()
    assert len(seen) == 4
    assert set(seen) == {torch.bfloat16}
    assert {part.dtype for part in trainer.unseen()[0]} == {torch.float32}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.usefixtures("fresh_accelerate")
def test_a_teacher_in_half_precision_teaches_in_float32(precision: Any, tmp_path: Path) -> None:
    paths, config = photos(tmp_path / "photos", 6), replace(SHORT, precision=precision)
    distill(teacher().to(torch.bfloat16), paths, tmp_path / "half", config)
    distill(teacher(), paths, tmp_path / "whole", config)
    half, whole = weights(tmp_path / "half"), weights(tmp_path / "whole")
    assert {value.dtype for value in half.values()} == {torch.float32}
    for key, value in whole.items():
        torch.testing.assert_close(half[key], value, rtol=0.02, atol=0.02)
    saved = [load_file(tmp_path / run / "model.safetensors") for run in ("half", "whole")]
    assert {key: value.dtype for key, value in saved[0].items()} == {k: v.dtype for k, v in saved[1].items()}


def test_grad_checkpointing_changes_nothing(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 6)
    assert DistillStage(teacher(), paths, grad_checkpointing=True).module.vit.grad_checkpointing
    for name, checkpointing in (("a", False), ("b", True)):
        distill(teacher(), paths, tmp_path / name, SHORT, grad_checkpointing=checkpointing)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-4, atol=1e-6)


def test_flips_follow_from_the_position(tmp_path: Path) -> None:
    stage = DistillStage(teacher(), photos(tmp_path / "photos", 4))
    stream = Stream(stage.draw, range(4), 0)
    flipped = 0
    for position in range(32):
        sample = stream[position]
        assert torch.equal(sample, stream[position])
        originals = [stage.samples[i] for i in range(4)]
        (match,) = [o for o in originals if torch.equal(sample, o) or torch.equal(sample, o.flip(-1))]
        flipped += not torch.equal(sample, match)
    assert 8 <= flipped <= 24


def test_a_teacher_may_be_frozen_and_teaches_again(tmp_path: Path) -> None:
    model, paths = teacher(), photos(tmp_path / "photos", 6)
    model.requires_grad_(False)
    model.denoiser.requires_grad_(True)
    for run in ("one", "two"):
        distill(model, paths, tmp_path / run, SHORT)
        student = timm.create_model(f"local-dir:{tmp_path / run}", pretrained=True)
        assert not torch.equal(student.patch_embed.proj.weight, model.patch_embed.proj.weight)
    assert all(parameter.requires_grad for parameter in model.denoiser.parameters())


@pytest.mark.parametrize(("size", "pixels"), [(None, 48), (60, 64), (50, 48), (32, 32)])
def test_images_have_whole_patches(size: int | None, pixels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(TINY, img_size=50, dynamic_img_size=True, denoiser={"grid_size": [3, 3]}).eval()
    stage = DistillStage(model, photos(tmp_path / "photos", 1), size=size)
    assert stage.samples[0].shape == (3, pixels, pixels)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (31, "size must be at least two patches, 32 pixels, got 31"),
        (10**9, r"\d+ patches, and attention takes at most 262,144; choose a smaller size"),
    ],
)
def test_sizes_out_of_range_are_refused_at_once(size: int, message: str, tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 3)
    with pytest.raises(ValueError, match=message):
        distill(teacher(), paths, tmp_path / "run", SHORT, size=size)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_one_size(tmp_path: Path) -> None:
    model = timm.create_model(TINY, img_size=64, dynamic_img_size=False, denoiser={"grid_size": [4, 4]}).eval()
    with pytest.raises(ValueError, match="images of 32 x 32 pixels do not fit a model built for 64 x 64"):
        DistillStage(model, [], size=32)


def test_the_base_of_a_teacher(tmp_path: Path) -> None:
    model = teacher()
    for given in (None, "vit_tiny_patch16_224"):  # its own name is known
        assert DistillStage(model, [], base=given).base == TINY
    model.pretrained_cfg = {**model.pretrained_cfg, "tag": "dvt_mine"}
    with pytest.raises(ValueError, match=r"teacher's backbone: timm knows no model 'test_vit.dvt_mine'"):
        DistillStage(model, [])
    with pytest.raises(ValueError, match=r"the teacher is a test_vit, its base cannot be vit_tiny_patch16_224\."):
        DistillStage(model, [], base="vit_tiny_patch16_224")
    stage = DistillStage(model, [], base="test_vit")
    assert stage.base == TINY
    assert stage.module.vit.pretrained_cfg["tag"] == "r160_in1k_distilled"


@pytest.mark.slow
def test_what_stage_3_leaves_is_plain_timm(tmp_path: Path) -> None:
    """Built by a process that does not know this package; its features have come closer to the teacher's."""
    paths, model, run = photos(tmp_path / "photos", 8), teacher(), tmp_path / "run"
    config = TrainConfig(steps=40, batch_size=4, lr=1e-3, workers=0, held_out=2, eval_every=20)
    distill(model, paths, run, config)
    (metrics,) = json.loads((run / "metrics.json").read_text()).values()
    assert metrics["error"] < 0.7 * metrics["error, raw features"]
    code = (
        f"import timm, torch; model = timm.create_model('local-dir:{run}', pretrained=True).eval();"
        "print(type(model).__name__, float(model.forward_features(torch.ones(1, 3, 64, 64)).double().sum()))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    assert output[0] == type(ours).__name__ == "VisionTransformer"
    expected = float(ours.forward_features(torch.ones(1, 3, 64, 64)).detach().double().sum())
    assert float(output[1]) == pytest.approx(expected, rel=1e-5)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, model.state_dict()[name]) == name.startswith(("head.", "fc_norm.")), name
    assert ours.pretrained_cfg["tag"] == "r160_in1k_distilled"
