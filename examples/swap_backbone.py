"""The same segmentation model on a plain and on a denoised backbone: only the string changes.

    pip install '.[clients]' && python examples/swap_backbone.py

DPT of segmentation_models_pytorch 0.6 wants maps at 1/4 ... 1/32 of the image, so a ViT with 16-pixel patches; of the
patch-14 backbones timm resamples the patch embedding with `patch_size=16`. Takes about 10 seconds on two CPU cores.
"""

import segmentation_models_pytorch as smp
import torch

import dvt_timm


def build(backbone: str, weights: bool | None = None) -> torch.nn.Module:
    """A DPT with two classes on a timm backbone, for images of any size that 32 divides."""
    torch.manual_seed(0)
    return smp.DPT(
        f"tu-{backbone}", encoder_weights=weights, encoder_depth=4, classes=2, patch_size=16, dynamic_img_size=True
    ).eval()


plain = build("vit_small_patch14_dinov2.lvd142m")  # weights=True fetches them from the Hub
denoised = build("vit_small_patch14_dinov2.dvt_demo", weights=True)  # embedded, no network

image = torch.randn(1, 3, 256, 320)
with torch.inference_mode():
    for name, model in (("plain", plain), ("denoised", denoised)):
        features, _ = model.encoder(image)
        print(name, "features", [tuple(fmap.shape) for fmap in features], "->", tuple(model(image).shape))

    before = denoised(image)
    head = denoised.encoder.model.denoiser
    assert isinstance(head, dvt_timm.DenoiserHead)
    head.pos_embed.zero_()
    print("the mask depends on the head:", not torch.allclose(denoised(image), before))
