"""The embedded weights do the job: on real photos, position is readable from raw features and not from ours."""

import pytest
import timm
import timm.data
import torch
from helpers import DEMO, ROOT
from PIL import Image
from torch import Tensor

RIDGE = 30.0  # on features as they are, not standardized


@pytest.fixture(scope="module")
def maps() -> dict[str, Tensor]:
    """Raw and denoised maps [photo, mirrored, h, w, C] of the center squares of the cat and the puppy at 518."""
    model = timm.create_model(DEMO, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    photos = [transform(Image.open(ROOT / f"examples/data/{name}.jpg").convert("RGB")) for name in ("cat", "puppy")]
    raw: list[Tensor] = []
    model.denoiser.register_forward_pre_hook(lambda _, inputs: raw.append(inputs[0]))
    with torch.inference_mode():
        views = torch.stack([view for photo in photos for view in (photo, photo.flip(-1))])
        denoised = [model.forward_intermediates(view[None], 1, intermediates_only=True)[0] for view in views]
    return {
        "raw": torch.cat(raw).unflatten(0, (2, 2)),
        "denoised": torch.cat(denoised).permute(0, 2, 3, 1).unflatten(0, (2, 2)),
    }


def positions(size: int) -> Tensor:  # [size * size, 4]: x, y, |x - 1/2|, |y - 1/2| of patch centers in [0, 1]
    centers = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    return torch.stack([x, y, (x - 0.5).abs(), (y - 0.5).abs()], -1).flatten(0, 1)


def position_leakage(maps: Tensor) -> list[float]:
    """Measure R2 of a ridge probe that is fitted on the first photo and its mirror image, and tested on the second."""
    size = maps.shape[2]
    fit, test = maps.flatten(1, 3).double()
    target = positions(size).double().repeat(2, 1)
    fit, test = fit - fit.mean(0), test - fit.mean(0)
    gram = fit.T @ fit + RIDGE * torch.eye(fit.shape[1], dtype=fit.dtype)
    weights = torch.linalg.solve(gram, fit.T @ (target - target.mean(0)))
    error = (test @ weights + target.mean(0) - target).square().mean(0)
    return (1 - error / target.var(0, correction=0)).tolist()


def test_position_leaks_from_raw_features_and_not_from_denoised_ones(maps: dict[str, Tensor]) -> None:
    raw, denoised = position_leakage(maps["raw"]), position_leakage(maps["denoised"])
    print("raw", raw, "denoised", denoised)
    assert min(raw) > 0.2
    assert sum(raw) / 4 > 0.4
    assert max(denoised) < 0.05
