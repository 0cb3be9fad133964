"""The photos of a folder that are nearest to each of them, by their patches.

    python examples/nearest_photos.py FOLDER [size]

Two photos are as similar as the patches of one find patches like them in the other: the mean, over the patches, of the
best cosine, both ways; the folder's mean patch is taken off before. All maps are held, in half precision.
"""

import sys

import timm
import torch
from torch import Tensor
from torch.nn.functional import normalize

import dvt_timm

folder, size = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 224
model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True).eval()
found = dvt_timm.extract(model, folder, size=size, half=True, on_error="skip")
photos = {each.path: each.denoised.flatten(0, 1) for each in found}
mean = torch.cat(list(photos.values())).float().mean(dim=0)
patches = {path: normalize(fmap.float() - mean, dim=1) for path, fmap in photos.items()}  # [h * w, C] each


def similarity(a: Tensor, b: Tensor) -> float:
    cosines = a @ b.T
    return float(cosines.amax(dim=1).mean() + cosines.amax(dim=0).mean()) / 2


for path, query in patches.items():
    found = {other: similarity(query, fmap) for other, fmap in patches.items() if other != path}
    best = sorted(found, key=found.__getitem__, reverse=True)[:3]
    print(path.name, "->", ", ".join(f"{other.name} {found[other]:.2f}" for other in best))
