"""Stage 1 on one photo: clean features, what was taken out, and a picture.

    python examples/fit_one_image.py [photo] [picture]

About half a minute on two CPU cores; without arguments the cat of this folder, into decomposition.png.
"""

import sys

import numpy as np
import timm
from PIL import Image

import dvt_timm  # noqa: F401  adds the name
from dvt_timm import offline, viz

photo, picture = [*sys.argv[1:], *["examples/data/cat.jpg", "decomposition.png"][len(sys.argv) - 1 :]]

model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True).eval()  # or any ViT or Eva of timm
image = Image.open(photo).convert("RGB")
solution = offline.fit_image(model, image, num_views=24, seed=0, progress=True)
for name in ("raw", "semantics", "artifact", "residual"):
    features = getattr(solution, name)  # [37, 37, 384]
    print(f"{name:10}", tuple(features.shape), f"mean norm {features.norm(dim=-1).mean():.1f}")
print(f"unexplained {solution.stats['unexplained']:.3f} of what differs between views")

finer = solution.semantics_at(offline.image_grid(74, 74))  # the same field, read more densely
print("finer     ", tuple(finer.shape))
panel = viz.decomposition_panel(
    np.asarray(image), solution.raw, solution.semantics, solution.artifact, solution.residual
)
Image.fromarray(panel).save(picture)
print(picture)
