"""Denoised features of a photo in a few lines, without a network.

    python examples/quickstart.py [IMAGE]

Takes about 5 seconds on two CPU cores.
"""

import sys
from pathlib import Path

import timm
import torch
from PIL import Image

import dvt_timm

NAME = "vit_small_patch14_dinov2.dvt_demo"

path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data" / "cat.jpg"
model = timm.create_model(NAME, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = transform(Image.open(path).convert("RGB"))[None]  # [1, 3, 518, 518]

with torch.inference_mode():
    tokens = model.forward_features(image)  # class token and denoised patch tokens
    print("forward_features", tuple(tokens.shape))

    maps = model.forward_intermediates(image, indices=[5, 11], intermediates_only=True)
    print("forward_intermediates", [tuple(fmap.shape) for fmap in maps], "the last one is denoised")

    backbone = timm.create_model(NAME, pretrained=True, features_only=True, out_indices=(5, 8, 11)).eval()
    print("features_only", [tuple(fmap.shape) for fmap in backbone(image)], backbone.feature_info.reduction())

    raw = timm.create_model("vit_small_patch14_dinov2.lvd142m", dynamic_img_size=True).eval()
    raw.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("denoiser.")})
    before = raw.forward_features(image)
    print("class token unchanged", torch.equal(before[:, 0], tokens[:, 0]))
    change = (tokens - before)[:, 1:].norm() / before[:, 1:].norm()
    print(f"patch tokens changed by {change:.0%} of their norm")

print(
    len(dvt_timm.list_variants(pretrained=True)),
    "names with weights:",
    *dvt_timm.list_variants(pretrained=True)[:3],
    "...",
)
