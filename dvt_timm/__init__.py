"""Denoised vision transformers for timm: importing this package adds their names to timm's registry.

>>> import timm, dvt_timm
>>> model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True)
"""

from ._version import __version__
from .head import DenoiserHead
from .hub import load_head, save_head, save_model
from .models import DenoisedEva, DenoisedVisionTransformer, denoise
from .registry import list_variants, register_published, register_variant

__all__ = [
    "DenoisedEva",
    "DenoisedVisionTransformer",
    "DenoiserHead",
    "__version__",
    "denoise",
    "list_variants",
    "load_head",
    "register_variant",
    "save_head",
    "save_model",
]

register_published()
del register_published
