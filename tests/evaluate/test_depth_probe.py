"""The depth probe's head, losses and scores are those of the protocol, restated slowly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from dvt_timm.evaluate.augment import depth_sample, recolor
from dvt_timm.evaluate.depth_probe import (
    DepthConfig,
    DepthHead,
    depth_loss,
    depth_scores,
    gradient_loss,
    mirrored_depth,
)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_the_head_weighs_depths() -> None:
    """What the head does in another order, as the authors do it: repeat the token, resize, convolve."""
    torch.manual_seed(0)
    head = DepthHead(3).double()
    with torch.no_grad():
        head.weigh.weight.mul_(20)  # so that many bins are cut off at 0
    maps, token = torch.randn(2, 3, 2, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    features = torch.cat([maps, token[:, :, None, None].repeat(1, 1, 2, 5)], dim=1)
    resized = interpolate(features, size=(8, 20), mode="bilinear", align_corners=False)
    logits = torch.einsum("kc,bchw->bkhw", head.weigh.weight[:, :, 0, 0], resized) + head.weigh.bias[:, None, None]
    weights = logits.clamp(min=0) + 0.1
    depths = torch.linspace(0.001, 10, 256, dtype=torch.float64)
    expected = (weights * depths[:, None, None]).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    found = head(maps, token)
    assert found.shape == (2, 1, 8, 20)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_a_head_without_preference_gives_the_middle() -> None:
    head = DepthHead(3)
    with torch.no_grad():
        head.weigh.weight.zero_()
        head.weigh.bias.fill_(-1)
    depth = head(torch.randn(1, 3, 2, 2), torch.randn(1, 3))
    torch.testing.assert_close(depth, torch.full((1, 1, 8, 8), 5.0005))
    with torch.no_grad():
        head.weigh.bias[255] = 1e6
    torch.testing.assert_close(
        head(torch.randn(1, 3, 2, 2), torch.randn(1, 3)), torch.full((1, 1, 8, 8), 10.0), rtol=1e-4, atol=0
    )


def ratio_of(predicted: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(predicted + 0.001) - np.log(target + 0.001)


def slow_gradient(predicted: NDArray[np.float64], target: NDArray[np.float64], as_released: bool) -> float:
    """Pairs two apart along two axes of every subsampled array, one after the other."""
    axes = (0, 1) if as_released else (2, 3)
    ratio, total = ratio_of(predicted, target), 0.0
    for stride in (1, 2, 4, 6):
        kept = [range(0, size, stride if axis in axes else 1) for axis, size in enumerate(target.shape)]
        places = [(b, c, y, x) for b in kept[0] for c in kept[1] for y in kept[2] for x in kept[3]]
        known = {place for place in places if target[place] > 0}
        for axis in axes:
            for place in known:
                other = tuple(i + 2 * stride * (k == axis) for k, i in enumerate(place))
                if other in known:
                    total += abs(ratio[other] - ratio[place]) / len(known)
    return total


def slow_loss(predicted: NDArray[np.float64], target: NDArray[np.float64], step: int, as_released: bool) -> float:
    ratio = ratio_of(predicted, target)[target > 0].tolist()
    mean = sum(ratio) / len(ratio)
    variance = sum((r - mean) ** 2 for r in ratio) / (len(ratio) - 1) if step >= 100 else 0
    return math.sqrt(variance + 0.15 * mean**2) + 0.5 * slow_gradient(predicted, target, as_released)


@pytest.mark.parametrize("as_released", [True, False])
@pytest.mark.parametrize("step", [99, 100])
@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (3, 1, 4, 4), (13, 1, 1, 13)])
def test_the_loss_and_its_gradient(shape: tuple[int, ...], step: int, as_released: bool) -> None:
    rng = np.random.default_rng(0)
    predicted, target = rng.uniform(0.5, 9, shape), rng.uniform(0.5, 9, shape)
    target[rng.random(shape) < 0.2] = 0
    inputs = torch.from_numpy(predicted).float().requires_grad_()
    loss = depth_loss(inputs, torch.from_numpy(target).float(), step, as_released=as_released)
    assert float(loss.detach()) == pytest.approx(slow_loss(predicted, target, step, as_released), rel=1e-4)
    (grad,) = torch.autograd.grad(loss, inputs)
    for place in list(np.ndindex(shape))[::9]:
        moved = []
        for move in (-1e-5, 1e-5):
            other = predicted.copy()
            other[place] += move
            moved.append(slow_loss(other, target, step, as_released))
        assert float(grad[place]) == pytest.approx((moved[1] - moved[0]) / 2e-5, rel=1e-3, abs=1e-5)


def test_the_loss_by_hand() -> None:
    """One image of a row in which log ratios are 0, 1, 2, 3 and the last pixel has no depth."""
    target = torch.tensor([1.0, 2, 3, 4, 0])[None, None, None]
    predicted = ((target + 0.001).log() + torch.arange(5.0)).exp() - 0.001
    assert float(depth_loss(predicted, target, 0, as_released=True)) == pytest.approx(math.sqrt(0.15) * 1.5, rel=1e-4)
    variance = (1.5**2 + 0.5**2) * 2 / 3
    expected = math.sqrt(variance + 0.15 * 1.5**2)
    assert float(depth_loss(predicted, target, 100, as_released=True)) == pytest.approx(expected, rel=1e-4)
    # 0-2 and 1-3 of 4 pixels; of pixels 0, 2, 4 the last has none; pixels 0, 4 and 0 alone are too few
    expected += 0.5 * (2 + 2) / 4
    assert float(depth_loss(predicted, target, 100, as_released=False)) == pytest.approx(expected, rel=1e-4)


def test_the_released_gradient_loss_compares_images() -> None:
    target = 1 + torch.rand(2, 1, 8, 8, generator=seeded())
    predicted = 1 + torch.rand(2, 1, 8, 8, generator=seeded(1))
    assert float(gradient_loss(predicted, target, as_released=True)) == 0
    assert float(gradient_loss(predicted, target, as_released=False)) > 0
    target, predicted = torch.ones(3, 1, 8, 8), torch.ones(3, 1, 8, 8)
    predicted[2] = math.e * 1.001 - 0.001
    assert float(gradient_loss(predicted, target, as_released=True)) == pytest.approx(1 / 3, rel=1e-5)
    assert float(gradient_loss(predicted, target, as_released=False)) == 0


def test_predictions_are_resized_to_the_target() -> None:
    target = 1 + torch.rand(1, 1, 6, 8, generator=seeded())
    small = 1 + torch.rand(1, 1, 3, 4, generator=seeded(1))
    resized = interpolate(small, size=(6, 8), mode="bilinear", align_corners=False)
    losses = [float(depth_loss(each, target, 200, as_released=False)) for each in (small, resized)]
    assert losses[0] == pytest.approx(losses[1])


def test_a_perfect_mean_has_a_finite_gradient() -> None:
    target = torch.tensor([1.0, 2])[None, None, None]
    predicted = target.clone().requires_grad_()
    depth_loss(predicted, target, 0, as_released=False).backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
    with pytest.raises(ValueError, match="1 pixels of the batch have a depth, the loss needs two; 0 means none"):
        depth_loss(predicted, target * torch.tensor([0.0, 1]), 0, as_released=False)


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = DepthConfig()
    assert config.rate(0) == pytest.approx(5e-3 * 1e-3)
    assert config.rate(6_400) == pytest.approx(5e-3 * (1 + math.cos(math.pi / 6)) / 2 * 0.5005)
    assert config.rate(12_800) == pytest.approx(5e-3 * 0.75)
    assert config.rate(38_400) == pytest.approx(5e-3 * 1e-8)
    short = DepthConfig(steps=384)
    assert [short.rate(step) for step in (0, 128, 384)] == pytest.approx([5e-6, 5e-3 * 0.75, 5e-11])
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        DepthConfig(steps=0)


def test_scores_by_hand() -> None:
    target = torch.zeros(480, 640)
    predicted = torch.full((480, 640), 3.0)
    target[45, 41], target[470, 600], target[200, 300] = 2, 4, 3  # the corners of the crop, and a right one
    target[100, 100], target[100, 101] = 10, 0.001  # too far, too near
    scores = depth_scores(predicted, target)
    assert scores == pytest.approx(
        {
            "RMSE": math.sqrt(2 / 3),
            "AbsRel": (1 / 2 + 1 / 4) / 3,
            "a1": 1 / 3,  # factors 1.5, 1.333, 1
            "a2": 1,
            "a3": 1,
            "log10": (math.log10(1.5) + math.log10(4 / 3)) / 3,
        }
    )


def test_scores_leave_the_border_out() -> None:
    target = torch.full((480, 640), 2.0)
    predicted = target.clone()
    inside = torch.zeros(480, 640, dtype=torch.bool)
    inside[45:471, 41:601] = True
    predicted[~inside] = 9
    perfect = {"RMSE": 0, "AbsRel": 0, "a1": 1, "a2": 1, "a3": 1, "log10": 0}
    assert depth_scores(predicted, target) == perfect
    for row, column in ((45, 41), (45, 600), (470, 41), (470, 600)):
        wrong = predicted.clone()
        wrong[row, column] = 9
        assert depth_scores(wrong, target)["RMSE"] == pytest.approx(7 / math.sqrt(426 * 560))
    assert all(math.isnan(score) for score in depth_scores(predicted, torch.zeros(480, 640)).values())
    with pytest.raises(ValueError, match=r"of \[480, 640\] pixels, got \[240, 320\] and \[480, 640\]; resize"):
        depth_scores(predicted[::2, ::2], target)


def test_a_prediction_is_kept_in_range() -> None:
    target = torch.full((480, 640), 8.0)
    assert depth_scores(torch.full((480, 640), 50.0), target)["RMSE"] == pytest.approx(2)
    assert depth_scores(torch.zeros(480, 640), target)["RMSE"] == pytest.approx(7.999)


def test_the_mirror_image_is_averaged() -> None:
    image = torch.rand(3, 4, 6, generator=seeded())

    def predict(batch: Tensor) -> Tensor:  # leans to the left, at half the resolution
        return batch[:, :1, ::2, ::2] + torch.arange(3.0)

    straight = interpolate(predict(image[None]), size=(4, 6), mode="bilinear", align_corners=False)[0, 0]
    mirrored = interpolate(predict(image[None].flip(3)), size=(4, 6), mode="bilinear", align_corners=False)[0, 0]

    def averaged(of: Tensor) -> Tensor:
        return mirrored_depth(predict(of[None]), predict(of[None].flip(3)), of.shape[1:])

    torch.testing.assert_close(averaged(image), (straight + mirrored.flip(1)) / 2)
    torch.testing.assert_close(averaged(image), averaged(image.flip(2)).flip(1))


@pytest.fixture(scope="module")
def frame() -> tuple[Image.Image, NDArray[np.float32]]:
    """A frame whose depth tells the place, and whose red channel tells the depth."""
    y, x = np.mgrid[:480, :640]
    depth = (1 + x / 640 + 2 * (y / 480)).astype(np.float32)
    red = np.round(depth * 60).astype(np.uint8)
    return Image.fromarray(np.stack([red, red // 2, red // 3], axis=2)), depth


def test_a_sample_keeps_image_and_depth_together(frame: tuple[Image.Image, NDArray[np.float32]]) -> None:
    image, depth = frame
    generator, flips, rotations, plain, offsets = seeded(), 0, [], 0, []
    for _ in range(24):
        pixels, depths = depth_sample(image, depth, generator, mean=(0, 0, 0), std=(1 / 255,) * 3)
        assert (pixels.shape, depths.shape) == ((3, 416, 544), (1, 416, 544))
        assert depths.dtype == torch.float32
        down, across = (
            float(depths[0, 308, 272] - depths[0, 108, 272]),
            float(depths[0, 208, 372] - depths[0, 208, 172]),
        )
        angle = math.degrees(math.atan2(across - math.copysign(200 / 640, across), 2 * 200 / 480))  # about, up to 2.5
        rotations.append(abs(angle))
        flips += across < 0
        assert down == pytest.approx(2 * 200 / 480, abs=0.03)
        red, true = pixels[0], depths[0] * 60
        off = (red - true)[(true > 0) & (red > 0)].abs()
        if off.max() < 2:
            plain += 1
        if angle == 0:
            offsets.append(float(depths.min()))
    assert 6 <= flips <= 18
    assert 6 <= plain <= 18
    assert max(rotations) <= 3.5
    assert min(offsets) >= depth[45, 43]
    assert len(set(offsets)) > 1


def test_a_rotated_sample_has_no_depth_where_it_has_no_image() -> None:
    image, depth = Image.new("RGB", (640, 480), (200, 200, 200)), np.full((480, 640), 2, dtype=np.float32)
    generator, uncovered = seeded(), 0
    for _ in range(16):
        pixels, depths = depth_sample(image, depth, generator, mean=(0, 0, 0), std=(1 / 255,) * 3)
        assert set(depths.unique().tolist()) <= {0, 2}
        black = pixels.amax(dim=0) == 0
        assert float((black == (depths[0] == 0)).double().mean()) > 0.995  # the image's edge is interpolated
        uncovered += bool(black.any())
    assert 3 <= uncovered <= 13


def test_colors_stay_in_range() -> None:
    generator, gray = seeded(), torch.full((3, 1, 1), 50.0)
    drawn = torch.stack([recolor(gray, generator).flatten() for _ in range(1500)])
    assert 50**0.9 * 0.75 * 0.9 <= drawn.min() < 50**0.9
    assert 50**1.1 < drawn.max() <= 50**1.1 * 1.25 * 1.1
    ratio = drawn[:, 0] / drawn[:, 1]
    assert 0.9 / 1.1 <= ratio.min() < 0.86
    assert 1.16 < ratio.max() <= 1.1 / 0.9
    bright = torch.stack([recolor(torch.full((3, 1, 1), 250.0), generator) for _ in range(50)])
    assert bright.max() == 255


def test_what_a_sample_of_depth_needs(frame: tuple[Image.Image, NDArray[np.float32]]) -> None:
    image, depth = frame
    with pytest.raises(ValueError, match="NYU's images are 480 x 640 pixels, got 240 x 320"):
        depth_sample(image.resize((320, 240)), depth[::2, ::2], seeded())
    with pytest.raises(ValueError, match=r"the image has 480 x 640 pixels, its labels \[240, 320\]"):
        depth_sample(image, depth[::2, ::2], seeded())
    one, two = (depth_sample(image, depth, seeded(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("steps", [5, 10, 38_400])
def test_the_first_beta_goes_through_one_cycle(steps: int) -> None:
    config = DepthConfig(steps=steps)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], betas=(0.9, 0.999))
    policy = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps)
    for step in range(min(steps, 20)):
        assert config.betas(step) == pytest.approx(optimizer.param_groups[0]["betas"])
        optimizer.step()
        policy.step()


def test_the_first_beta_is_least_at_three_tenths_and_never_out_of_its_range() -> None:
    config = DepthConfig()
    firsts = [config.betas(step)[0] for step in range(0, config.steps, 100)] + [config.betas(config.steps - 1)[0]]
    assert firsts[0] == firsts[-1] == 0.95
    assert min(firsts) == pytest.approx(0.85, abs=1e-5)
    assert config.betas(11_519)[0] == pytest.approx(0.85)
    assert all(0.85 <= DepthConfig(steps=few).betas(step)[0] <= 0.95 for few in range(1, 12) for step in range(few))


def test_what_a_rotation_uncovers_has_no_depth_or_the_authors() -> None:
    image, depth = Image.new("RGB", (640, 480), "white"), np.ones((480, 640), dtype=np.float32)
    shares = []
    for seed in range(12):
        empty, far = (depth_sample(image, depth, seeded(seed), uncovered=of)[1] for of in (0.0, 255.0))
        assert set(empty.unique().tolist()) <= {0.0, 1.0}
        torch.testing.assert_close(far, torch.where(empty == 0, 255.0, empty))
        shares.append(float((empty == 0).float().mean()))
    assert 0 == min(shares) < max(shares) < 0.02
