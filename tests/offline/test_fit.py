"""Stage 1 on an image: a planted artifact of a ViT comes apart from its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, create, fitter, photo, photos
from planting import ramps, seeing

from dvt_timm.offline import (
    ImageFitter,
    LeastSquaresSolver,
    NeuralFieldSolver,
    fit_image,
    sample_views,
)
from dvt_timm.offline.solution import collect


def test_stage_1_recovers_what_a_vit_adds_to_its_content() -> None:
    """A ViT that adds its position embedding to the colors of the patches: content and embedding come apart."""
    model, image = seeing(), ramps()
    artifact = torch.zeros(10, 10, 64)
    artifact[..., :2] = 0.3 * torch.randn(10, 10, 2, generator=torch.Generator().manual_seed(0))
    artifact -= artifact.mean(dim=(0, 1))
    with torch.no_grad():
        model.pos_embed[0, -100:] = artifact.reshape(100, 64)
    solution = fit_image(model, image, solver=LeastSquaresSolver(smoothness=1e-3), num_views=40)
    truth = collect(sample_views(seeing(), image, num_views=1)).features[-1]
    inner = slice(1, -1)  # mirror lines at the border are no bilinear function
    error = (solution.semantics - truth)[inner, inner, :2]
    assert error.abs().max() < 0.02
    assert (solution.artifact - artifact)[inner, inner].abs().max() < 0.02
    assert (solution.raw - truth - artifact).abs().max() < 1e-4


def test_one_factorization_serves_all_images_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create(TINY)
    fitter = ImageFitter(model, num_views=4, size=64)
    prepared = []
    prepare = LeastSquaresSolver.prepare
    monkeypatch.setattr(LeastSquaresSolver, "prepare", lambda self, xy: prepared.append(xy) or prepare(self, xy))
    solutions = [fitter(photo(seed)) for seed in (0, 1)]
    assert len(prepared) == 1
    for seed, solution in enumerate(solutions):
        alone = LeastSquaresSolver().fit(sample_views(model, photo(seed), num_views=4, size=64))
        torch.testing.assert_close(solution.semantics, alone.semantics)


def test_aspects_are_prepared_one_by_one_and_forgotten() -> None:
    fitter = ImageFitter(create(TINY), num_views=3, size=32, keep_aspect=True)
    for width in (64, 96, 128, 160, 192, 224, 64):
        assert fitter(ramps(width, 64)).semantics.shape == (2, width // 32, 128)
    assert len(fitter._prepared) == 4


def test_fit_image_takes_paths_and_solvers(tmp_path: Any) -> None:
    photo().save(tmp_path / "a.png")
    model = create(TINY)
    by_path = fit_image(model, tmp_path / "a.png", num_views=3, size=64)
    by_image = fit_image(model, photo(), num_views=3, size=64)
    assert torch.equal(by_path.semantics, by_image.semantics)
    assert sample_views(model, str(tmp_path / "a.png"), num_views=np.int64(3)).image.size == photo().size
    neural = fit_image(model, photo(), num_views=3, size=64, solver=NeuralFieldSolver(num_steps=10))
    assert neural.semantics.shape == (4, 4, 128)
    auto = fit_image(model, photo(), num_views=8, size=64, solver=LeastSquaresSolver(smoothness="auto"))
    assert auto.stats["smoothness"] > 0


def test_view_pairs_of_other_solvers_have_the_semantics_of_all_views(tmp_path: Path) -> None:
    (path,) = photos(tmp_path, 1)
    fit = ImageFitter(fitter().model, LeastSquaresSolver(smoothness="auto"), num_views=9, size=64, view_pairs=2)
    solution, pairs = fit.with_pairs(path, seed=0)
    views = collect(sample_views(fit.model, path, num_views=9, size=64))
    found = [next(v for v in range(10) if torch.equal(views.features[v], raw)) for raw in pairs.raw]
    assert len(set(found)) == 3
    assert found[0] == 9  # the whole image
    assert torch.equal(pairs.clean, solution.semantics_at(views.xy[found]))


def test_what_cannot_be_fitted() -> None:
    model = create(TINY)
    with pytest.raises(TypeError, match=r"a PIL image or the path of one, got ndarray; PIL\.Image\.fromarray"):
        fit_image(model, np.zeros((64, 64, 3)))
    with pytest.raises(TypeError, match=r"solver must be one like LeastSquaresSolver\(\), got 'least-squares'"):
        fit_image(model, photo(), solver="least-squares")
    with pytest.raises(ValueError, match="holds 4 views out and needs at least 7, got 6"):
        ImageFitter(model, LeastSquaresSolver(smoothness="auto"), num_views=5)
    with pytest.raises(ValueError, match=r"view_pairs must be 0\.\.5, the views sampled, got 6"):
        ImageFitter(model, num_views=5, view_pairs=6)
    with pytest.raises(ValueError, match="with view_pairs sample at least 2 views"):
        ImageFitter(model, num_views=1, view_pairs=1)
    with pytest.raises(TypeError, match="got an unexpected keyword argument"):
        ImageFitter(model, views=3)
