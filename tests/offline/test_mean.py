"""The mean over views that move the positions: planted artifacts of position go, the picture stays."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from helpers import FAMILIES, TINY, create, photo

from dvt_timm.evaluate import artifact_left, plant
from dvt_timm.offline import (
    ImageFitter,
    LeastSquaresSolver,
    MeanSolver,
    NeuralFieldSolver,
    Views,
    fit_image,
    image_grid,
    sample_views,
)
from dvt_timm.offline.solution import collect

SIZE = 160  # pixels, 10 x 10 patches


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(TINY, dynamic_img_size=True, **options).eval()


def views(count: int = 5, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    return Views(torch.randn(count, 4, 6, 8, generator=generator), image_grid(4, 6).expand(count, -1, -1, -1))


def test_the_mean_at_the_level_of_the_plain_pass() -> None:
    given = views()
    solution = MeanSolver().fit(given)
    raw = given.features[-1]
    aligned = given.features[:-1] - given.features[:-1].mean(dim=(1, 2), keepdim=True) + raw.mean(dim=(0, 1))
    torch.testing.assert_close(solution.semantics, aligned.mean(dim=0))
    torch.testing.assert_close(solution.raw, solution.semantics + solution.artifact + solution.residual)
    torch.testing.assert_close(solution.artifact.mean(dim=(0, 1)), torch.zeros(8), atol=1e-6, rtol=0)
    assert solution.stats == {"solver": "mean", "num_views": 5}


@pytest.mark.parametrize("batch", [1, 2, 4, 5])
def test_batches_do_not_matter(batch: int) -> None:
    given = views()
    parts = [Views(f, xy) for f, xy in zip(given.features.split(batch), given.xy.split(batch), strict=True)]
    torch.testing.assert_close(MeanSolver().fit(parts).semantics, MeanSolver().fit(given).semantics)


def test_semantics_are_read_anywhere() -> None:
    solution = MeanSolver().fit(views())
    torch.testing.assert_close(solution.semantics_at(image_grid(4, 6)), solution.semantics)
    middle = solution.semantics_at(torch.tensor([1 / 6, 1 / 8]))  # between the first two patches of the first row
    torch.testing.assert_close(middle, solution.semantics[0, :2].mean(dim=0))
    torch.testing.assert_close(solution.semantics_at(torch.tensor([-3.0, 0.0])), solution.semantics[0, 0])


@pytest.mark.parametrize("kind", ["plaid", "noise"])
def test_a_planted_artifact_goes(kind: Any) -> None:
    """A ViT whose blocks pass their input on: the artifact is in the features as it is planted."""
    vit = model(num_classes=0)
    with torch.no_grad():
        for block in vit.blocks:
            for parameter in block.parameters():
                parameter.zero_()
    vit.norm = torch.nn.Identity()
    clean = fit_image(vit, photo(), kind="positions", num_views=64, size=SIZE)
    with plant(vit, kind, strength=3.0):
        planted = fit_image(vit, photo(), kind="positions", num_views=64, size=SIZE)
    left = artifact_left(planted.semantics, clean.semantics, planted.raw, clean.raw)
    assert left < 0.3  # what is left is slow: a patch's positions all lie on its own side of the plane
    assert artifact_left(planted.raw, clean.raw, planted.raw, clean.raw) == 1


def test_the_last_view_is_the_plain_pass_and_the_others_see_the_same_picture() -> None:
    vit = model()
    seen: list[torch.Tensor] = []
    vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    sampled = collect(sample_views(vit, photo(), kind="positions", num_views=5, size=SIZE, batch_size=4))
    pictures = torch.cat(seen)
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    assert torch.equal(sampled.xy, sampled.xy[:1].expand_as(sampled.xy))
    plain = collect(sample_views(vit, photo(), num_views=1, size=SIZE)).features[-1]
    torch.testing.assert_close(sampled.features[-1], plain)
    assert not torch.allclose(sampled.features[0], plain, atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [{}, {"keep_aspect": True}, {"layer": 0}, {"seed": 3}, {"sides": (0.9, 1.0)}, {"kind": "jitter+positions"}],
)
def test_options_are_those_of_the_other_kinds(options: dict[str, Any]) -> None:
    options = {"kind": "positions", "num_views": 4, "size": 96, **options}
    solution, again = (fit_image(model(), photo(), **options) for _ in range(2))
    assert torch.equal(solution.semantics, again.semantics)
    assert solution.semantics.shape[:2] == ((6, 8) if "keep_aspect" in options else (6, 6))
    torch.testing.assert_close(solution.raw, solution.semantics + solution.artifact + solution.residual)
    other = fit_image(model(), photo(), **{**options, "seed": 9})
    assert not torch.allclose(solution.semantics, other.semantics, atol=1e-4)


@pytest.mark.parametrize("name", ["eva02_base_patch16_clip_224.dvt", "deit3_base_patch16_224.dvt"])
def test_other_families(name: str) -> None:
    vit = create(FAMILIES[name], dynamic_img_size=True)
    assert fit_image(vit, photo(), kind="positions", num_views=2, size=96).semantics.isfinite().all()


def test_settings_and_pairs() -> None:
    fitter = ImageFitter(model(), kind="positions", size=96, view_pairs=2)
    assert fitter.settings["num_views"] == 8
    assert fitter.settings["sides"] == [0.5, 1.0]
    assert "shift" not in fitter.settings
    _, pairs = fitter.with_pairs(photo(), seed=1)
    assert pairs.raw.shape == pairs.clean.shape == (3, 6, 6, 64)
    torch.testing.assert_close(pairs.clean[1], pairs.clean[0])
    assert ImageFitter(model(), shift=0.5, size=96).settings["shift"] == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeanSolver().fit(views(1)), "at least 2, got 1"),
        (lambda: MeanSolver().fit(sample_views(model(), photo(), num_views=2, size=96)), 'kind="positions"'),
        (lambda: ImageFitter(model(), MeanSolver(), kind="jitter"), "MeanSolver.* is for positions"),
        (lambda: ImageFitter(model(), LeastSquaresSolver(), kind="positions"), "do not go with LeastSquaresSolver"),
        (lambda: ImageFitter(model(), NeuralFieldSolver(), kind="positions"), "do not go with NeuralFieldSolver"),
        (lambda: ImageFitter(model(), kind="positions", sides=(0.9, 0.2)), "shortest <= longest"),
        (lambda: ImageFitter(model(), zoom=(1.5, 0.2)), "smallest <= largest"),
        (lambda: ImageFitter(model(), shift=-0.1), "shift must be"),
        (lambda: fit_image(timm.create_model(TINY, pos_embed="none").eval(), photo(), kind="positions"), "no position"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_features_that_are_not_finite() -> None:
    given = views()
    given.features[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or Inf"):
        MeanSolver().fit(given)
