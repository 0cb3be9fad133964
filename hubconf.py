"""Denoised models by `torch.hub.load`, from this repository or a copy of it.

>>> torch.hub.load("path/to/dvt-timm", "dvt", "vit_small_patch14_dinov2.dvt_demo", source="local")
"""

import torch

dependencies = ["torch", "timm", "huggingface_hub", "filelock", "safetensors", "PIL", "numpy", "tqdm"]


def dvt(name: str, pretrained: bool = True, **kwargs: object) -> torch.nn.Module:
    """Build a denoised vision transformer, as timm.create_model does after `import dvt_timm`.

    Args:
        name: "arch.tag", one of dvt_timm.list_variants() (docs/names.md), such as "vit_base_patch14_dinov2.dvt"; or
            "hf-hub:user/repo" of a head or a model.
        pretrained: load the weights of the backbone and its head.
        **kwargs: further arguments of timm.create_model, `denoiser` and `stride` among them.

    Returns:
        The model, in training mode as timm gives it.
    """
    import timm

    import dvt_timm  # noqa: F401  its names are in timm then

    return timm.create_model(name, pretrained=pretrained, **kwargs)
