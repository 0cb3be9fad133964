"""A map as fine as the photo: denoise first, then upsample, since an upsampler keeps what it is given, artifacts too.

    python examples/denoise_then_upsample.py [photo] [picture]

A few seconds on two CPU cores; without arguments the cat of this folder, into upsampled.png. `upsample` is a
stand-in that knows nothing of the photo. Put any function of (image, map) in its place, AnyUp (arXiv 2510.12764) say:

    upsample = torch.hub.load("wimmerth/anyup", "anyup").eval()
"""

import sys

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

import dvt_timm
from dvt_timm import viz

photo, picture = [*sys.argv[1:], *["examples/data/cat.jpg", "upsampled.png"][len(sys.argv) - 1 :]]


def upsample(image: Tensor, fmap: Tensor) -> Tensor:  # [1, 3, H, W], [1, C, h, w] -> [1, C, H, W]
    return interpolate(fmap, image.shape[2:], mode="bicubic")


model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True).eval()
image = dvt_timm.preprocess(model, photo, size=224)  # normalized, as upsamplers want it
with torch.inference_mode():
    maps = dvt_timm.feature_maps(model, image)
    fine = [upsample(image, fmap) for fmap in (maps.raw, maps.denoised)]
print("map", tuple(maps.denoised.shape), "upsampled", tuple(fine[1].shape))
colors = np.concatenate(viz.pca_rgb(fine), axis=1)  # raw and denoised side by side, one projection for both
Image.fromarray((255 * colors).astype(np.uint8)).save(picture)
print(picture)
