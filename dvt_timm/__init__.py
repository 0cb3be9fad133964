"""Denoised vision transformers for timm: importing this package adds their names to timm's registry.

>>> import timm, dvt_timm
>>> model = timm.create_model("vit_small_patch14_dinov2.dvt_demo", pretrained=True)

`list_variants` lists the names, `register_variant` adds one's own. timm's ViT, DeiT and EVA names take two more
arguments of `create_model`: `denoiser`, a head (a `DenoiserHead`, its folder or file, `hf-hub:user/repo`, or its shape
`{"grid_size": [h, w], "num_blocks": n}` for weights loaded later) or `{"positions": n}` for means over views of the
positions, and `stride`, the distance of two patches in pixels. `denoise` does it to a model that exists, `feature_maps`
gives raw and denoised maps at once, `extract` those of many photos. `save_head`, `load_head` and `save_model` write and
read them, `push_to_hub` takes them to the Hugging Face Hub, `convert_checkpoint` makes folders of the authors' files.
`offline` is stage 1 of the method, `train` stages 2 and 3, `evaluate` measures, `viz` draws, `explore` makes a page to
look at.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import evaluate, explore, offline, train, viz
    from ._util.images import large_images
    from .attach import undenoise
    from .averaged import AveragedEva, AveragedVisionTransformer
    from .checkpoints.heads import load_head, save_head
    from .checkpoints.models import save_model
    from .checkpoints.published import convert_checkpoint
    from .extraction import Extracted, extract
    from .factory import denoise
    from .features import FeatureMaps, feature_maps, preprocess
    from .head import DenoiserHead, HeadSource
    from .models import DenoisedEva, DenoisedVisionTransformer
    from .names import list_variants
    from .publish.push import push_to_hub
    from .registry import register_variant

__all__ = [
    "AveragedEva",
    "AveragedVisionTransformer",
    "DenoisedEva",
    "DenoisedVisionTransformer",
    "DenoiserHead",
    "Extracted",
    "FeatureMaps",
    "HeadSource",
    "__version__",
    "convert_checkpoint",
    "denoise",
    "evaluate",
    "explore",
    "extract",
    "feature_maps",
    "large_images",
    "list_variants",
    "load_head",
    "offline",
    "preprocess",
    "push_to_hub",
    "register_variant",
    "save_head",
    "save_model",
    "train",
    "undenoise",
    "viz",
]

_PLACES = {  # public name -> the module that has it
    "DenoisedEva": "models",
    "DenoisedVisionTransformer": "models",
    "AveragedEva": "averaged",
    "AveragedVisionTransformer": "averaged",
    "DenoiserHead": "head",
    "Extracted": "extraction",
    "FeatureMaps": "features",
    "HeadSource": "head",
    "convert_checkpoint": "checkpoints.published",
    "denoise": "factory",
    "extract": "extraction",
    "feature_maps": "features",
    "large_images": "_util.images",
    "list_variants": "names",
    "load_head": "checkpoints.heads",
    "preprocess": "features",
    "push_to_hub": "publish.push",
    "register_variant": "registry",
    "save_head": "checkpoints.heads",
    "save_model": "checkpoints.models",
    "undenoise": "attach",
}
_ROOMS = ("evaluate", "explore", "offline", "train", "viz")


def __getattr__(name: str) -> Any:
    """Import what is public when it is asked for (PEP 562)."""
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


def _register() -> None:
    """Add the names to timm's registry."""
    import_module(".registry", __name__).register_published()


if (
    "dvt_timm_command" not in sys.modules
):  # the command line answers --help without timm, and registers when it needs it
    _register()
