"""What the package is for, in one picture: an artifact that is known, before and after, and the truth.

    python examples/planted_picture.py [photo] [picture]

Half a minute on two CPU cores; without arguments the cat of this folder, into planted.png. The embedded backbone hardly
has the plaid that larger ones have, so one is planted in its position embedding (`evaluate.plant`). Means over eight
views of the positions, which need no head, take most of it out; the truth is the backbone without the plaid.
"""

import sys

import timm
import torch
from PIL import Image

import dvt_timm
from dvt_timm import evaluate, viz

photo, picture = [*sys.argv[1:], *["examples/data/cat.jpg", "planted.png"][len(sys.argv) - 1 :]]

name = "vit_small_patch14_dinov2.dvt_demo"
model = timm.create_model(name, pretrained=True, denoiser={"positions": 8}).eval()
image = dvt_timm.preprocess(model, photo)
with torch.inference_mode():
    without = dvt_timm.feature_maps(model, image)
    with evaluate.plant(model, "plaid", strength=4.0):
        planted = dvt_timm.feature_maps(model, image)
before, after, truth, clean = (
    fmap[0].permute(1, 2, 0) for fmap in (planted.raw, planted.denoised, without.raw, without.denoised)
)
left = evaluate.artifact_left(after, clean, before, truth)
distances = [evaluate.distance_to_truth(fmap, truth) for fmap in (before, after)]
figures = (
    f"{100 * left:.0f} % of the plaid's power is left, squared distance to the truth {distances[0]:.2f} before, "
    f"{distances[1]:.2f} after"
)
print(figures)

panel = viz.feature_panel(
    Image.open(photo),
    {"plaid planted": before, "denoised": after, "truth": truth},
    columns=["pca", "clusters", "similarity", "removed"],
    caption=f"{name}, a plaid of strength 4 planted in its positions | no head, means over 8 views of positions | "
    f"{figures} | dvt-timm {dvt_timm.__version__}",
)
Image.fromarray(panel).save(picture, optimize=True)
print(picture)
