"""Clusters of the patches of a folder: a color is one kind of thing, in all photos.

    python examples/cluster_folder.py FOLDER [number of clusters] [folder of pictures]

All maps are held, and clustering them takes longer than computing them: of thousands of photos, cluster some and give
the patches of the others to the nearest mean.
"""

import sys
from pathlib import Path

import numpy as np
import timm
from PIL import Image

import dvt_timm
from dvt_timm import viz

folder, number, out = [*sys.argv[1:], *["6", "clusters"][max(len(sys.argv) - 2, 0) :]]
model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True).eval()
photos = list(dvt_timm.extract(model, folder, size=224, on_error="skip"))
labels = viz.kmeans_labels([photo.denoised for photo in photos], int(number))
colors = np.random.default_rng(0).integers(0, 255, size=(int(number), 3))

Path(out).mkdir(parents=True, exist_ok=True)
for photo, of_patches in zip(photos, labels, strict=True):
    height, width = photo.pixels.shape[:2]
    tinted = Image.fromarray(colors[of_patches].astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    picture = Path(out, f"{photo.index:04}-{photo.path.stem}.png")  # stems of different folders may be the same
    Image.blend(Image.fromarray(photo.pixels.numpy()), tinted, 0.6).save(picture)
    shares = np.bincount(of_patches.ravel(), minlength=int(number)) / of_patches.size
    print(picture, "shares of the clusters", " ".join(f"{share:.2f}" for share in shares))
