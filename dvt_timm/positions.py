"""The position embedding of a model, read through windows of itself: the picture stays, the positions move.

Letters: V windows, K of them drawn, B images, h x w patches, C channels. A place in the plane of positions is (x, y) in
[0, 1]; (0, 0) is its upper left corner, and patch (i, j) of the plain model lies at ((j + 1/2) / w, (i + 1/2) / h).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from ._util.modules import shallow_copy, uncompiled
from .cleaned import as_plain, check_image_size

WHOLE = [0.0, 0.0, 1.0, 1.0]
SIDES = (0.5, 1.0)  # of windows, relative to the plane's
FEWEST = 5  # patches a side from which the frequencies of a rotary embedding can be told
MOST_VIEWS = 1024  # of a model that averages over positions


@dataclass(frozen=True)
class PositionWindows:
    """Windows of the plane of positions.

    Attributes:
        boxes: [V, 4], left, top, right, bottom in [0, 1].
        mirrored: [V], whether the leftmost patch gets the rightmost position of its window.

    Raises:
        ValueError: on other shapes, or boxes that are empty or leave the plane.
    """

    boxes: Tensor
    mirrored: Tensor

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4 or self.mirrored.shape != self.boxes.shape[:1]:
            shapes = f"{list(self.boxes.shape)} and {list(self.mirrored.shape)}"
            raise ValueError(f"windows need boxes [V, 4] and mirrored [V], got {shapes}")
        inside = bool(((self.boxes >= 0) & (self.boxes <= 1)).all())
        if not inside or not bool((self.boxes[:, :2] < self.boxes[:, 2:]).all()):
            raise ValueError(
                f"boxes must be left, top, right, bottom with 0 <= left < right <= 1, got {self.boxes.tolist()}"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, part: slice | Tensor) -> PositionWindows:
        return PositionWindows(self.boxes[part], self.mirrored[part])

    def with_plane(self) -> PositionWindows:
        """Add the whole plane as the last window: the plain pass."""
        plane = torch.tensor([WHOLE], dtype=self.boxes.dtype, device=self.boxes.device)
        return PositionWindows(torch.cat([self.boxes, plane]), torch.cat([self.mirrored, self.mirrored.new_zeros(1)]))

    @property
    def whole(self) -> Tensor:
        """[V], whether a window is the whole plane as it is."""
        plane = torch.tensor(WHOLE, dtype=self.boxes.dtype, device=self.boxes.device)
        return (self.boxes == plane).all(dim=1) & ~self.mirrored

    def places(self, rows: int, columns: int) -> Tensor:
        """Say where patches find their positions: [V, rows, columns, 2] (x, y) in [0, 1]."""
        options: dict[str, Any] = {"dtype": self.boxes.dtype, "device": self.boxes.device}
        across, down = (torch.arange(n, **options).add(0.5).div(n) for n in (columns, rows))
        left, top, right, bottom = self.boxes[:, :, None].unbind(1)  # [V, 1] each
        x = left + torch.where(self.mirrored[:, None], 1 - across, across) * (right - left)  # [V, columns]
        y = top + down * (bottom - top)  # [V, rows]
        shape = (len(self), rows, columns)
        return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)


def sample_position_windows(num_windows: int, seed: int = 0, *, sides: tuple[float, float] = SIDES) -> PositionWindows:
    """Draw windows: a side between `sides` of the plane's, anywhere inside it, half of them mirrored.

    They are spread evenly (a scrambled Sobol sequence); the same arguments give the same windows on every machine.

    Args:
        num_windows: V, at least 1.
        seed: of the draw.
        sides: the shortest and the longest side, 0 < shortest <= longest <= 1.

    Raises:
        ValueError: on values out of range.
    """
    if num_windows < 1:
        raise ValueError(f"num_windows must be at least 1, got {num_windows}; 8 give flat maps")
    if not 0 < sides[0] <= sides[1] <= 1:
        raise ValueError(f"sides must be 0 < shortest <= longest <= 1, got {sides}")
    draws = torch.quasirandom.SobolEngine(4, scramble=True, seed=seed).draw(num_windows, dtype=torch.float64)
    side = sides[0] + (sides[1] - sides[0]) * draws[:, :1]  # [V, 1]
    corner = (1 - side) * draws[:, 1:3]  # [V, 2] left, top
    return PositionWindows(torch.cat([corner, (corner + side).clamp(max=1)], dim=1), draws[:, 3] < 0.5)


class PositionViews(nn.Module):
    """The windows of positions that an averaging model looks through; has no weights.

    Args:
        num_views: K, at least 1; drawn evenly, the same on every machine.

    Raises:
        ValueError: if K is no whole number from 1 to 1024.
    """

    def __init__(self, num_views: int) -> None:
        super().__init__()
        if isinstance(num_views, bool) or not isinstance(num_views, int) or not 1 <= num_views <= MOST_VIEWS:
            raise ValueError(
                f"positions must be a whole number of views, 1..{MOST_VIEWS}, got {num_views!r}; 8 give flat maps"
            )
        self.windows = sample_position_windows(num_views).with_plane()

    @property
    def config(self) -> dict[str, int]:
        """JSON-friendly, as `create_model` takes it as `denoiser`."""
        return {"positions": len(self.windows) - 1}

    def extra_repr(self) -> str:
        return f"positions={len(self.windows) - 1}"

    def repeated(self, x: Tensor) -> Tensor:
        """Repeat a batch for every window, windows first: [B, ...] -> [(K + 1) B, ...]."""
        return x.repeat(len(self.windows), *[1] * (x.ndim - 1))

    def plain(self, x: Tensor) -> Tensor:
        """Take the plain pass out of a batch: [(K + 1) B, ...] -> [B, ...]."""
        return x.unflatten(0, (len(self.windows), -1))[-1]

    def mean(self, x: Tensor, over: tuple[int, ...]) -> Tensor:
        """Average over the windows, at the level of the plain pass: [(K + 1) B, ...] -> [B, ...].

        Args:
            x: maps of all views.
            over: the dimensions of the patches.
        """
        views = x.unflatten(0, (len(self.windows), -1))
        clean, plain = views[:-1].mean(dim=0), views[-1]
        return clean - clean.mean(dim=over, keepdim=True) + plain.mean(dim=over, keepdim=True)


def under_windows(model: Any, windows: PositionWindows, size: tuple[int, int]) -> Any:
    """Make a twin of a model that sees image v of a batch under window v; both share their weights.

    The model itself is not touched, so that several threads may do this at once.

    Args:
        model: a timm `VisionTransformer` or `Eva`, denoised or not, with an absolute or a rotary position embedding.
            What torch.compile made of one is run as it was before; one that averages over positions is taken plain.
        windows: V of them; one that is the whole plane gives the plain model's features to the bit.
        size: (height, width) in pixels of the images that the twin is for.

    Returns:
        A model of the same class for batches of V images of that size; prefix tokens keep their own positions.

    Raises:
        TypeError: if the model is neither, or its patches do not come from timm's `PatchEmbed`.
        ValueError: if it has no position embedding, images of that size do not fit it, or a rotary embedding has too
            few patches to be read between them.
    """
    model = uncompiled(model)
    check_positions(model)
    if isinstance(getattr(model, "denoiser", None), PositionViews):
        model = as_plain(model)
    embed, rope = model.patch_embed, getattr(model, "rope", None)
    images = torch.empty(1, embed.proj.in_channels, *size, device="meta")
    check_image_size(images, embed.patch_size, embed.img_size, embed.strict_img_size, embed.dynamic_img_pad)
    grid = embed.dynamic_feat_size(size) if model.dynamic_img_size else embed.grid_size
    twin = shallow_copy(model)
    twin.dynamic_img_size = False  # the positions are made for this size
    twin.patch_embed = shallow_copy(embed)
    twin.patch_embed.flatten = True  # [V, h * w, C], as models of one size have them
    twin.patch_embed.grid_size, twin.patch_embed.num_patches = tuple(grid), grid[0] * grid[1]
    twin.patch_embed.img_size = tuple(size)
    if model.pos_embed is not None:
        del twin._parameters["pos_embed"]
        twin.pos_embed = windowed_embedding(model, windows, grid)
    if rope is not None:
        twin.rope = FixedRope(windowed_rotation(rope, windows, grid))
    return twin


def check_positions(model: Any) -> None:
    """Raise TypeError if a model is no timm ViT or Eva, ValueError if it has no position embedding to move."""
    if not isinstance(model, VisionTransformer | Eva):
        raise TypeError(f"positions are moved in a timm VisionTransformer or Eva, got {type(model).__name__}")
    if not isinstance(model.patch_embed, PatchEmbed):
        raise TypeError(
            f"positions are moved where patches come from timm's PatchEmbed, got {type(model.patch_embed).__name__}; "
            "use views of another kind"
        )
    if model.pos_embed is None and getattr(model, "rope", None) is None:
        raise ValueError(f"this {type(model).__name__} has no position embedding to move; use views of another kind")


class FixedRope(nn.Module):
    """In the place of timm's: a rotary embedding that is there already."""

    def __init__(self, embed: Tensor) -> None:
        super().__init__()
        self.feat_shape, self.embed = None, embed

    def get_embed(self, shape: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        """Give it, whatever the shape."""
        return self.embed if dtype is None else self.embed.to(dtype)


def plain_embedding(model: Any, grid: tuple[int, int]) -> Tensor:  # [1, prefix + h * w, C]
    """Give a model's absolute position embedding, resampled to a grid as timm does."""
    plain: Tensor = model.pos_embed
    own = model.patch_embed.grid_size
    if tuple(grid) == tuple(own):
        return plain
    num_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    return resample_abs_pos_embed(plain, new_size=list(grid), old_size=list(own), num_prefix_tokens=num_prefix)


def windowed_embedding(model: Any, windows: PositionWindows, grid: tuple[int, int]) -> Tensor:
    """Read an absolute position embedding through windows: [V, prefix + h * w, C]; prefix is 0 for `no_embed_class`."""
    plain = plain_embedding(model, grid)
    num_prefix = plain.shape[1] - grid[0] * grid[1]
    prefix, patches = plain[:, :num_prefix], plain[:, num_prefix:]
    plane = patches.float().reshape(1, *grid, -1).permute(0, 3, 1, 2)  # [1, C, h, w]
    places = (2 * windows.places(*grid) - 1).to(plane)  # [V, h, w, 2] in [-1, 1]
    moved = grid_sample(
        plane.expand(len(windows), -1, -1, -1), places, mode="bicubic", padding_mode="border", align_corners=False
    )
    moved = moved.flatten(2).transpose(1, 2).to(plain.dtype)  # [V, h * w, C]
    moved = torch.where(windows.whole.to(plain.device)[:, None, None], patches, moved)
    return torch.cat([prefix.expand(len(windows), -1, -1), moved], dim=1)


def windowed_rotation(rope: Any, windows: PositionWindows, grid: tuple[int, int]) -> Tensor:
    """Read a rotary embedding at windowed places: [V, 1, h * w, 2 D], of a model with one per block and head [blocks,
    V, heads, h * w, 2 D].

    Its angles grow linearly along rows and columns; the steps between neighbors tell their frequencies.
    """
    if min(grid) < (fewest := _fewest(rope)):
        raise ValueError(
            f"this rotary embedding needs at least {fewest} patches a side to be read between them, got {grid}; take "
            "larger images"
        )
    plain = rope.get_embed(shape=list(grid)) if _takes_shapes(rope) else rope.get_embed()  # [..., h * w, 2 D]
    sin, cos = plain.float().unflatten(-2, tuple(grid)).chunk(2, dim=-1)  # [..., h, w, D]
    angle = torch.atan2(sin, cos)
    first = angle[..., :1, :1, :]  # [..., 1, 1, D]
    right, down = (_wrapped(step - first) for step in (angle[..., :1, 1:2, :], angle[..., 1:2, :1, :]))
    places = windows.places(*grid).to(sin)  # [V, h, w, 2]
    steps_right, steps_down = ((places[..., i] * n - 0.5)[..., None] for i, n in ((0, grid[1]), (1, grid[0])))
    lead = plain.ndim - 2  # blocks and heads, if each has its own
    if lead:  # [blocks, 1, heads, 1, 1, D] against [V, 1, h, w, 1]
        first, right, down, plain = (value.unsqueeze(1) for value in (first, right, down, plain))
        steps_right, steps_down = steps_right[:, None], steps_down[:, None]
    turned = first + right * steps_right + down * steps_down  # [..., h, w, D]
    moved = torch.cat([turned.sin(), turned.cos()], dim=-1).flatten(-3, -2).to(plain.dtype)  # [..., h * w, 2 D]
    whole = windows.whole.to(plain.device)
    if lead:
        return torch.where(whole[:, None, None, None], plain, moved)
    return torch.where(whole[:, None, None], plain, moved)[:, None]


def _fewest(rope: Any) -> int:
    """Count the patches a side at which neighbors are less than half a turn apart in every frequency.

    Where timm stretches a grid to a reference shape (EVA02, PE), the fastest turns by 1 from one place of that to the
    next.
    """
    reference = getattr(rope, "ref_feat_shape", None) or [0]
    return max(FEWEST, int(max(reference) / math.pi) + 1)


def _wrapped(angle: Tensor) -> Tensor:
    """Bring angles to -pi..pi."""
    return torch.atan2(angle.sin(), angle.cos())


def _takes_shapes(rope: Any) -> bool:
    """Whether a rotary embedding is made for the shape that is asked for, rather than kept for one."""
    return getattr(rope, "pos_embed", None) is None and getattr(rope, "feat_shape", None) is None
