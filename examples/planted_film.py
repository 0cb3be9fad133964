"""Position artifacts stand still while the picture moves: a crop pans over a photo, with an artifact that is known.

    python examples/planted_film.py [film] [frames]

Two minutes on two CPU cores for 24 frames; without arguments planted.gif. A plaid is planted in the embedded backbone's
position embedding, means over eight views of the positions take it out, and the film says which share of the features
is locked to the frame, raw and denoised.
"""

import sys
import tempfile
from pathlib import Path

import timm
from PIL import Image

import dvt_timm
from dvt_timm import evaluate

out, count = [*sys.argv[1:], *["planted.gif", "24"][len(sys.argv) - 1 :]]

photo = Image.open("examples/data/cat.jpg").convert("RGB")
width, height = (int(0.6 * side) for side in photo.size)
model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True, denoiser={"positions": 8}).eval()
with tempfile.TemporaryDirectory() as folder, evaluate.plant(model, "plaid", strength=8.0):
    for i in range(int(count)):  # from left to right, and up and down
        along = i / max(1, int(count) - 1)
        x, y = (photo.width - width) * along, (photo.height - height) * abs(2 * along - 1)
        photo.crop((round(x), round(y), round(x) + width, round(y) + height)).save(Path(folder) / f"{i}.png")
    done = dvt_timm.film(model, folder, out, size=224, progress=True)
print(f"{out}: {done.frames} frames")
print(f"locked to the frame: raw {100 * done.raw_locked:.1f} %, denoised {100 * done.denoised_locked:.1f} %")
