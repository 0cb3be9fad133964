"""Small models of other homes with the weights of timm models: transformers' own classes, and torch.hub's surface."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIMM = {  # home -> timm's model of the same backbone
    "dinov2": "vit_small_patch14_dinov2",
    "dinov2_registers": "vit_small_patch14_reg4_dinov2",
    "dinov3": "vit_small_patch16_dinov3",
    "siglip": "vit_base_patch16_siglip_224",
}
SIDE = 4  # patches a side of the images that they are made for
SMALL = {"depth": 2, "embed_dim": 128, "num_heads": 2}


def timm_model(home: str, flat: bool = False, **options: Any) -> Any:
    """A small timm model of random weights, of which every one matters; flat: the positions of all patches are alike.

    Each library resamples positions in a way of its own, in which alike ones stay as they are.
    """
    torch.manual_seed(0)
    side = SIDE * (14 if "patch14" in TIMM[home] else 16)
    model = timm.create_model(TIMM[home], img_size=side, **{"dynamic_img_size": True, **SMALL, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if flat and model.pos_embed is not None:
            patches = model.pos_embed[:, -SIDE * SIDE :]
            patches.copy_(patches[:, :1].clone())
    return model


def image_size(home: str, rows: int = SIDE, columns: int = SIDE) -> tuple[int, int]:
    """Pixels of images of so many patches."""
    patch = 14 if "patch14" in TIMM[home] else 16
    return rows * patch, columns * patch


class _Dino(nn.Module):
    """What the classes of dinov2 and dinov3 share: the parts of a timm model under their names."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        parts = copy.deepcopy(model)
        self.embed_dim = self.num_features = model.embed_dim
        self.n_blocks, self.patch_size = len(model.blocks), model.patch_embed.patch_size[0]
        self.n_extra = model.num_prefix_tokens - 1
        self.patch_embed, self.blocks, self.norm = parts.patch_embed.proj, parts.blocks, parts.norm
        self.cls_token, self.pos_embed, self.rope = parts.cls_token, parts.pos_embed, getattr(parts, "rope", None)
        self.extra_tokens = parts.reg_token if self.n_extra else None
        self.mask_token = nn.Parameter(torch.randn(1, model.embed_dim))
        self.head = nn.Identity()

    def prepare_tokens_with_masks(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        fmap = self.patch_embed(x)
        patches = fmap.flatten(2).transpose(1, 2)
        if masks is not None:
            patches = torch.where(masks[..., None], self.mask_token, patches)
        prefix = self.cls_token
        if self.pos_embed is not None:
            positions = self.pos_embed[:, -SIDE * SIDE :].unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2)
            positions = F.interpolate(positions, size=fmap.shape[2:], mode="bicubic")
            patches = patches + positions.flatten(2).transpose(1, 2)
            prefix = prefix + self.pos_embed[:, : -SIDE * SIDE].sum(dim=1, keepdim=True)
        if self.extra_tokens is not None:
            prefix = torch.cat([prefix, self.extra_tokens], dim=1)
        return torch.cat([prefix.expand(len(x), -1, -1), patches], dim=1)

    def _layers(self, x: Tensor, masks: Tensor | None = None) -> list[Tensor]:
        H, W = (side // self.patch_size for side in x.shape[2:])
        x, layers = self.prepare_tokens_with_masks(x, masks), []
        for block in self.blocks:
            x = block(x) if self.rope is None else block(x, rope=self.rope.get_embed((H, W)))
            layers.append(x)
        return layers

    def _outputs(self, x: Tensor, masks: Tensor | None) -> dict[str, Any]:
        raw = self._layers(x, masks)[-1]
        normed, first = self.norm(raw), 1 + self.n_extra
        extra = {self.extra_key: normed[:, 1:first]}
        tokens = {"x_norm_clstoken": normed[:, 0], **extra, "x_norm_patchtokens": normed[:, first:]}
        return {**tokens, "x_prenorm": raw, "masks": masks}

    def forward_features(self, x: Any, masks: Any = None) -> Any:
        if isinstance(x, list):
            return [self._outputs(*each) for each in zip(x, masks, strict=True)]
        return self._outputs(x, masks)

    def _maps(self, x: Tensor, n: Any, reshape: bool, norm: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        layers = self._layers(x)
        taken = range(len(layers) - n, len(layers)) if isinstance(n, int) else n
        tokens = [self.norm(each) if norm else each for i, each in enumerate(layers) if i in taken]
        maps = [each[:, 1 + self.n_extra :] for each in tokens]
        if reshape:
            grid = [side // self.patch_size for side in x.shape[2:]]
            maps = [each.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for each in maps]
        return maps, [each[:, 0] for each in tokens], [each[:, 1 : 1 + self.n_extra] for each in tokens]

    def forward(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        output = self.forward_features(*args, **kwargs)
        return output if is_training else self.head(output["x_norm_clstoken"])


class _Dinov2(_Dino):
    extra_key = "x_norm_regtokens"

    def get_intermediate_layers(
        self, x: Tensor, n: Any = 1, reshape: bool = False, return_class_token: bool = False, norm: bool = True
    ) -> tuple[Any, ...]:
        maps, class_tokens, _ = self._maps(x, n, reshape, norm)
        return tuple(zip(maps, class_tokens, strict=True)) if return_class_token else tuple(maps)


class _Dinov3(_Dino):
    extra_key = "x_storage_tokens"

    def get_intermediate_layers(
        self,
        x: Tensor,
        *,
        n: Any = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        return_extra_tokens: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        maps, class_tokens, extra = self._maps(x, n, reshape, norm)
        asked = [maps, *([class_tokens] if return_class_token else []), *([extra] if return_extra_tokens else [])]
        return tuple(zip(*asked, strict=True)) if len(asked) > 1 else tuple(maps)


def _named(kind: type, library: str) -> type:
    """Such a class under the name that the library gives it."""
    module = f"{library}.models.vision_transformer"
    return type("DinoVisionTransformer", (kind,), {"__module__": module, "__qualname__": "DinoVisionTransformer"})


HUB_CLASSES = {"dinov2": _named(_Dinov2, "dinov2"), "dinov3": _named(_Dinov3, "dinov3")}


def hub_model(home: str, model: Any) -> Any:
    """torch.hub's model of a home, with the weights of a timm model."""
    return HUB_CLASSES[home.partition("_")[0]](model).eval()


RENAMED = [  # a key of transformers -> timm's
    (r"^vision_model\.", ""),
    (r"embeddings\.(cls_token|register_tokens)", r"\1"),
    (r"register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings?(\.weight)?", "pos_embed"),
    (r"embeddings\.patch_embeddings?(\.projection)?", "patch_embed.proj"),
    (r"^(encoder|model)?\.?layers?\.", "blocks."),
    (r"\.(attention|self_attn)\.", ".attn."),
    (r"attn\.attention\.", "attn."),
    (r"attn\.(o_proj|out_proj|output\.dense)", "attn.proj"),
    (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
    (r"\.layer_norm(\d)", r".norm\1"),
    (r"\.up_proj", ".fc1"),
    (r"\.down_proj", ".fc2"),
    (r"^(post_)?(layernorm|norm)\.", "norm."),
    (r"^head\.attn\.", "attn_pool."),
    (r"^head\.attention\.", "attn_pool."),
    (r"^head\.layernorm", "attn_pool.norm"),
    (r"^head\.probe", "attn_pool.latent"),
    (r"^head\.", "attn_pool."),
    (r"attn_pool\.out_proj", "attn_pool.proj"),
]
PARTS = ("q_proj|query", "k_proj|key", "v_proj|value")


def _timm_tensor(state: dict[str, Tensor], key: str) -> Tensor:
    """What timm has for a key of transformers."""
    for pattern, name in RENAMED:
        key = re.sub(pattern, name, key)
    for part, names in enumerate(PARTS):
        if match := re.search(rf"\.({names})\.", key):
            return state[key.replace(match[0], ".qkv.")].chunk(3)[part]
    if "in_proj_" in key:
        return torch.cat([state[key.replace("in_proj_", f"{part}.")] for part in ("q", "kv")])
    if key.endswith(".gamma") and key not in state:  # of Eva
        key = re.sub(r"ls(\d)\.gamma", r"gamma_\1", key)
    return state[key]


def transformers_config(home: str) -> dict[str, Any]:
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    images = {"image_size": image_size(home)[0], "patch_size": image_size(home)[0] // SIDE}
    common = {**sizes, **images, "layer_norm_eps": 1e-6}
    if home == "siglip":
        return {**common, "intermediate_size": 512, "hidden_act": "gelu"}
    if home == "dinov3":
        biases = {"query_bias": False, "value_bias": False}
        return {**common, "layer_norm_eps": 1e-5, "intermediate_size": 512, "num_register_tokens": 4, **biases}
    return {**common, **({"num_register_tokens": 4} if home == "dinov2_registers" else {})}


NAMES = {
    "dinov2": "Dinov2",
    "dinov2_registers": "Dinov2WithRegisters",
    "dinov3": "DINOv3ViT",
    "siglip": "SiglipVision",
}


def transformers_model(home: str, model: Any, kind: str = "Model", **options: Any) -> Any:
    """transformers' model of a home, with the weights of a timm model."""
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    config = getattr(transformers, f"{NAMES[home]}Config")(**transformers_config(home), **options)
    ours = getattr(transformers, f"{NAMES[home]}{kind}")(config).eval()
    state = dict(model.state_dict())
    if home == "siglip":
        state["pos_embed"] = state["pos_embed"][0]
    if home == "dinov2_registers":  # timm's class token has no position
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, 128), state["pos_embed"]], dim=1)
    with torch.no_grad():
        for key, value in ours.state_dict().items():
            if "mask_token" not in key:
                value.copy_(_timm_tensor(state, key))
    return ours
