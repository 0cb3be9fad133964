"""From a folder of photos to `timm.create_model` with a denoiser head of one's own.

    pip install 'dvt-timm[train]'
    python examples/train_head.py PHOTOS [--model NAME] [--out DIR] [--views 24] [--view-pairs 7] [--size 518]
        [--steps 2000]

The same on the command line:

    dvt-timm fit PHOTOS --model NAME --half --view-pairs 7 --out DIR/store  25 forward passes per photo, once
    dvt-timm train --store DIR/store --preset quick --out DIR/head
    dvt-timm push DIR/head user/repo                                        if others are to have it
    timm.create_model(NAME, pretrained=True, denoiser="DIR/head")

Stop it whenever you like: the same command goes on where it was.
"""

import argparse
from pathlib import Path

import timm
import torch

import dvt_timm  # noqa: F401  adds the names
from dvt_timm.offline import ImageFitter, fit_store, open_store
from dvt_timm.train import TrainConfig, train_denoiser

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photos", type=Path)
parser.add_argument("--model", default="vit_small_patch14_dinov2.dvt_demo", help="(default: %(default)s)")
parser.add_argument("--out", type=Path, default=Path("my-head"), help="(default: %(default)s)")
parser.add_argument("--views", type=int, default=24, help="per photo (default: %(default)s)")
parser.add_argument("--view-pairs", type=int, default=7, help="of them, to train on too (default: %(default)s)")
parser.add_argument("--size", type=int, default=518, help="of views in pixels (default: %(default)s)")
parser.add_argument("--steps", type=int, default=2000, help="of 8 pairs (default: %(default)s)")
arguments = parser.parse_args()

model = timm.create_model(arguments.model, pretrained=True, num_classes=0, dynamic_img_size=True)
model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
fitter = ImageFitter(model, num_views=arguments.views, view_pairs=arguments.view_pairs, size=arguments.size)
photos = sorted(path for path in arguments.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
skipped = fit_store(fitter, photos, arguments.out / "store", half=True, progress=True)
store = open_store(arguments.out / "store")
print(f"{len(store)} photos of {store.num_pairs} pairs of features, {len(skipped)} skipped")

config = TrainConfig(steps=arguments.steps, batch_size=8, eval_every=max(arguments.steps // 10, 1))
train_denoiser(store, arguments.model, arguments.out / "head", config, progress=True)
print((arguments.out / "head/metrics.json").read_text())

denoised = timm.create_model(arguments.model, pretrained=True, denoiser=str(arguments.out / "head")).eval()
height, width = (
    side * patch for side, patch in zip(denoised.denoiser.grid_size, denoised.patch_embed.patch_size, strict=True)
)
with torch.inference_mode():
    print("features", tuple(denoised.forward_features(torch.randn(1, 3, height, width)).shape))
