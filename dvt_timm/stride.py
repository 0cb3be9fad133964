"""Overlapping patches: a patch embedding whose stride is smaller than its patch, for denser maps."""

import torch
from timm.layers import Format, PatchEmbed, to_2tuple
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer


def overlapping_grid(
    img_size: tuple[int, int], patch_size: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int]:
    """Count the (rows, columns) of patches in an image; all sizes are (height, width) in pixels."""
    return (
        (img_size[0] - patch_size[0]) // stride[0] + 1,
        (img_size[1] - patch_size[1]) // stride[1] + 1,
    )


class OverlapPatchEmbed(PatchEmbed):
    """timm's `PatchEmbed` with a stride of its own: patch k covers the pixels [k * stride, k * stride + patch).

    An image of height H gives (H - patch) // stride + 1 rows of patches. As in `PatchEmbed`, H must be a multiple of
    the patch (or is padded to one with `dynamic_img_pad`).
    """

    img_size: tuple[int, int]
    stride: tuple[int, int]
    output_fmt: Format  # TorchScript reads the class's own annotations only
    dynamic_img_pad: torch.jit.Final[bool]  # type: ignore[misc]

    def _init_img_size(self, img_size: int | tuple[int, int]):  # type: ignore[no-untyped-def]
        size = to_2tuple(img_size)
        grid_size = overlapping_grid(size, self.patch_size, self.stride)
        return size, grid_size, grid_size[0] * grid_size[1]

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Change the nominal image size; the patch size is fixed once patches overlap.

        Raises:
            ValueError: if another patch size is asked for.
        """
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise ValueError(
                f"the patch size of a model with stride {self.stride} cannot change from {self.patch_size} to "
                f"{patch_size}; change it before the stride is set"
            )
        self.img_size, self.grid_size, self.num_patches = self._init_img_size(img_size or self.img_size)

    def feat_ratio(self, as_scalar: bool = True) -> tuple[int, int] | int:
        return max(self.stride) if as_scalar else self.stride

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Count the (rows, columns) of patches in an image of this (height, width) in pixels, padding included."""
        height, width = img_size
        if self.dynamic_img_pad:
            height += (self.patch_size[0] - height % self.patch_size[0]) % self.patch_size[0]
            width += (self.patch_size[1] - width % self.patch_size[1]) % self.patch_size[1]
        return overlapping_grid((height, width), self.patch_size, self.stride)


def set_stride(model: VisionTransformer | Eva, stride: int, img_size: int | tuple[int, int] | None = None) -> None:
    """Make the patches of a timm ViT overlap, in place.

    The position embedding is resampled once, from its grid to the denser one, exactly as
    `model.set_input_size` does; a rotary embedding follows the grid.

    Args:
        model: a timm `VisionTransformer` or `Eva`.
        stride: distance of two patches in pixels, in both directions, 1..patch size.
        img_size: nominal image size in pixels, one side or (height, width); the model's own by default.

    Raises:
        ValueError: on a stride outside 1..patch size.
        TypeError: on a stride that is no integer, or if the model's patches do not come from timm's `PatchEmbed`.
    """
    if isinstance(stride, bool) or not isinstance(stride, int):
        raise TypeError(f"stride must be one integer, pixels in both directions, got {stride!r}")
    embed = model.patch_embed
    if type(embed) not in (PatchEmbed, OverlapPatchEmbed):
        raise TypeError(f"stride needs timm's PatchEmbed, this model has {type(embed).__name__}")
    if not 1 <= stride <= min(embed.patch_size):
        raise ValueError(f"stride must be 1..{min(embed.patch_size)} (the patch size) in pixels, got {stride}")
    embed.__class__ = OverlapPatchEmbed
    embed.stride = embed.proj.stride = to_2tuple(stride)
    model.set_input_size(img_size=to_2tuple(img_size or embed.img_size))
    for info in model.feature_info:
        info["reduction"] = stride
