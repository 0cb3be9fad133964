"""Denoised vision transformers for timm: importing this package adds their names to timm's registry.

>>> import timm, dvt_timm
>>> model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True)

`list_variants` lists the names, `register_variant` adds one's own. timm's ViT, DeiT and EVA names take two more
arguments of `create_model`: `denoiser`, a head (a `DenoiserHead`, its folder or file, `hf-hub:user/repo`, or its shape
`{"grid_size": [h, w], "num_blocks": n}` for weights loaded later), and `stride`, the distance of two patches in pixels.
`denoise` puts a head on a model that exists. `save_head`, `load_head` and `save_model` write and read them,
`push_to_hub` takes them to the Hugging Face Hub, `convert_checkpoint` makes folders of the authors' files; the module
`viz` draws.
"""

from ._version import __version__
from .checkpoints.heads import load_head, save_head
from .checkpoints.models import save_model
from .checkpoints.published import convert_checkpoint
from .head import DenoiserHead
from .models import DenoisedEva, DenoisedVisionTransformer, denoise
from .publish.push import push_to_hub
from .registry import list_variants, register_published, register_variant

__all__ = [
    "DenoisedEva",
    "DenoisedVisionTransformer",
    "DenoiserHead",
    "__version__",
    "convert_checkpoint",
    "denoise",
    "list_variants",
    "load_head",
    "push_to_hub",
    "register_variant",
    "save_head",
    "save_model",
]

register_published()
del register_published
