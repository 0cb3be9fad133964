"""offline.coords: places by hand, flips, reflection, overlapping patches, bilinear weights."""

from __future__ import annotations

import pytest
import torch

from dvt_timm.offline import image_grid
from dvt_timm.offline.coords import PatchGrid, Windows, bilinear, patch_xy, reflect

WHOLE = [0.0, 0.0, 1.0, 1.0]


def windows(*boxes: list[float], flipped: bool = False) -> Windows:
    return Windows(torch.tensor(boxes, dtype=torch.float64), torch.tensor([flipped] * len(boxes)))


def places(grid: PatchGrid, *boxes: list[float], flipped: bool = False) -> torch.Tensor:
    return patch_xy(windows(*boxes, flipped=flipped), *grid.centers())


def test_patch_centers_of_the_whole_image() -> None:
    xy = places(PatchGrid((4, 8), (2, 2), (2, 2)), WHOLE)
    assert xy.shape == (1, 2, 4, 2)
    torch.testing.assert_close(xy[0, 0, :, 0], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(xy[0, :, 0, 1], torch.tensor([0.25, 0.75]))


def test_a_window_is_an_affine_map() -> None:
    grid = PatchGrid((56, 70), (14, 14), (14, 14))
    whole, part = places(grid, WHOLE)[0], places(grid, [0.2, 0.5, 0.6, 0.7])[0]
    torch.testing.assert_close(part, torch.tensor([0.2, 0.5]) + whole * torch.tensor([0.4, 0.2]))


def test_a_flip_mirrors_columns_only() -> None:
    grid, box = PatchGrid((56, 70), (14, 14), (14, 14)), [0.2, 0.5, 0.6, 0.7]
    torch.testing.assert_close(places(grid, box, flipped=True), places(grid, box).flip(2))


def test_what_leaves_the_image_is_reflected() -> None:
    position = torch.tensor([-0.25, 0.0, 0.4, 1.0, 1.25, -1.0, 2.0])
    torch.testing.assert_close(reflect(position), torch.tensor([0.25, 0.0, 0.4, 1.0, 0.75, 1.0, 0.0]))
    xy = places(PatchGrid((4, 4), (1, 1), (1, 1)), [-0.5, 0.0, 0.5, 1.0])
    torch.testing.assert_close(xy[0, 0, :, 0], torch.tensor([0.375, 0.125, 0.125, 0.375]))


def test_overlapping_patches_are_placed_at_their_own_centers() -> None:
    grid = PatchGrid((28, 42), (14, 14), (7, 7))
    assert grid.shape == (3, 5)
    rows, columns = grid.centers()
    torch.testing.assert_close(rows * 28, torch.tensor([7.0, 14, 21], dtype=torch.float64))
    torch.testing.assert_close(columns * 42, torch.tensor([7.0, 14, 21, 28, 35], dtype=torch.float64))


def test_edge_to_edge_is_the_released_convention() -> None:
    grid = PatchGrid((56, 70), (14, 14), (14, 14))
    xy = patch_xy(windows([0.2, 0.5, 0.6, 0.7]), *grid.edge_to_edge())[0]
    torch.testing.assert_close(xy[0, :, 0], torch.linspace(0.2, 0.6, 5))
    torch.testing.assert_close(xy[:, 0, 1], torch.linspace(0.5, 0.7, 4))


@pytest.mark.parametrize("nodes", [(2, 2), (5, 9)])
def test_bilinear_weights_reproduce_linear_functions(nodes: tuple[int, int]) -> None:
    xy = torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    xy = torch.cat([xy, torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)])
    index, weight = bilinear(xy, nodes)
    assert index.min() >= 0
    assert index.max() < nodes[0] * nodes[1]
    assert weight.min() >= 0
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(len(xy), dtype=torch.float64))
    rows, columns = index // nodes[1], index % nodes[1]
    node = torch.stack([columns / (nodes[1] - 1), rows / (nodes[0] - 1)], dim=-1)
    torch.testing.assert_close((weight[..., None] * node).sum(dim=1), xy)


def test_image_grid_of_the_patches_is_the_whole_images() -> None:
    torch.testing.assert_close(image_grid(4, 5), places(PatchGrid((56, 70), (14, 14), (14, 14)), WHOLE)[0])
