"""torch.fx: positions at the grid of an image are leaves of a graph, so that models for any size can be traced.

timm resamples positions in branches on the grid, which a traced image does not know.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ._util.modules import shallow_copy
from .positions import FixedRope


@torch.fx.wrap
def embedding_at(
    pos_embed: Tensor,  # [1, prefix + h * w, C]
    old_size: tuple[int, int],  # (h, w)
    height: int,
    width: int,
    num_prefix: int,
) -> Tensor:  # [1, prefix + height * width, C]
    """Resample an absolute position embedding to another grid, as timm's models do."""
    return resample_abs_pos_embed(
        pos_embed, new_size=[height, width], old_size=list(old_size), num_prefix_tokens=num_prefix
    )


def embed_positions(model: Any, x: Any) -> Any:  # [B, H, W, C], or [B, N, C] in a model of one size
    """Do what timm's `_pos_embed` does, a denoised model's `_plain_pos_embed`, also where torch.fx traces the model."""
    if not model.dynamic_img_size or not isinstance(x, torch.fx.Proxy):
        return model._plain_pos_embed(x)
    shape: Any = x.shape  # a proxy, and so are its parts
    twin = shallow_copy(model)
    twin.dynamic_img_size = False  # the positions are made for the size of x
    if model.pos_embed is not None:
        num_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        del twin._parameters["pos_embed"]
        twin.pos_embed = embedding_at(model.pos_embed, model.patch_embed.grid_size, shape[1], shape[2], num_prefix)
    if getattr(model, "rope", None) is not None:
        twin.rope = FixedRope(_traced_module(model.rope, x.tracer).get_embed(shape=(shape[1], shape[2])))
    return twin._plain_pos_embed(x.flatten(1, 2))


def _traced_module(module: nn.Module, tracer: Any) -> Any:
    """Make a proxy of a part of the traced model, whose methods are then called when the graph runs."""
    return tracer.create_proxy("get_attr", tracer.path_of_module(module), (), {})
