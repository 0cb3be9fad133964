"""Backbones in other homes, with a head: torch.hub's DINOv2 and DINOv3, and models of transformers.

Neither library is imported: a class is known by its name and its library. A model with a head is of a subclass that is
made for its class and has the same name, by which transformers looks classes up and writes them into configurations.

Letters: B images, H x W patches, C channels; P prefix tokens, class and registers, which come before the patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from timm.layers import to_2tuple
from torch import Tensor

from ._util.errors import warn_caller
from ._util.modules import refuse_replaced
from .head import Head

if TYPE_CHECKING:
    _Base = Any
else:
    _Base = object


class Resident(_Base):
    """What every model of another home with a head shares; it comes before the model's own class among the bases."""

    denoiser: Head
    _plain: ClassVar[type]  # its class without a head

    def __reduce__(self) -> tuple[Any, ...]:
        return _new, (self._plain,), self.__dict__

    @staticmethod
    def raw_tokens(plain: Any, model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the prefix tokens [B, P, C] and patch tokens [B, H * W, C] of a model as its class `plain` does."""
        raise TypeError(f"feature_maps takes models that give tokens, got {type(model).__name__}; call it for its maps")

    def _clean(self, tokens: Tensor, images: Tensor) -> Tensor:  # [B, P + H * W, C], [B, 3, height, width]
        """Put the head's patch tokens in the place of the backbone's; the tokens before them pass untouched."""
        H, W = grid_of(self, images)
        patches = self.denoiser(tokens[:, -H * W :].unflatten(1, (H, W))).flatten(1, 2)
        return torch.cat([tokens[:, : -H * W], patches], dim=1)

    def _clean_map(self, fmap: Tensor, images: Tensor, normed: bool) -> Tensor:  # [B, C, H, W] or [B, P + H * W, C]
        """Do the same to a map or to tokens, on which the final norm has been or not."""
        tokens = fmap.flatten(2).transpose(1, 2) if fmap.ndim == 4 else fmap
        tokens = self._clean(tokens if normed else _final_norm(self)(tokens), images)
        return tokens.transpose(1, 2).contiguous().view(fmap.shape) if fmap.ndim == 4 else tokens


class _TorchHub(Resident):
    """`DinoVisionTransformer` of facebookresearch/dinov2 and dinov3."""

    @staticmethod
    def raw_tokens(plain: Any, model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        output = plain.forward_features(model, images)
        registers = [output[key] for key in ("x_norm_regtokens", "x_storage_tokens") if key in output]  # of v2, v3
        return torch.cat([output["x_norm_clstoken"][:, None], *registers], dim=1), output["x_norm_patchtokens"]

    def forward_features(self, x: Any, masks: Any = None) -> Any:  # [B, 3, height, width], or a list of such batches
        """Compute what the backbone's own gives, with the head's patch tokens as "x_norm_patchtokens"."""
        output = super().forward_features(x, masks)
        if isinstance(x, Tensor):
            return self._with_clean(output, x)
        return [self._with_clean(each, images) for each, images in zip(output, x, strict=True)]

    def _with_clean(self, output: dict[str, Any], images: Tensor) -> dict[str, Any]:
        return dict(output, x_norm_patchtokens=self._clean(output["x_norm_patchtokens"], images))

    def get_intermediate_layers(
        self,
        x: Tensor,  # [B, 3, height, width]
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
        **options: Any,
    ) -> tuple[Any, ...]:
        """Compute what the backbone's own gives; the last block's map is head(norm(x)) for any `norm`."""
        options.update(n=n, reshape=reshape, return_class_token=return_class_token, norm=norm)
        layers = super().get_intermediate_layers(x, **options)
        if not isinstance(n, int) and self.n_blocks - 1 not in n:
            return layers
        *earlier, last = layers
        if isinstance(last, tuple):  # with its class token
            return (*earlier, (self._clean_map(last[0], x, norm), *last[1:]))
        return (*earlier, self._clean_map(last, x, norm))


class _Transformers(Resident):
    """A model of transformers."""

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Write what the model's own `save_pretrained` does, the head's tensors among the rest, and warn.

        transformers' `from_pretrained` reads the backbone alone from it.
        """
        warn_caller(
            f"from_pretrained will read a plain {self._plain.__name__} from {save_directory}, without the head; write "
            "the head with dvt_timm.save_head(model, FOLDER, base='arch.tag') too, and put it on again with "
            "dvt_timm.denoise(model, FOLDER)"
        )
        return super().save_pretrained(save_directory, *args, **kwargs)


class _TokenModel(_Transformers):
    """A `...Model`, which gives the tokens after its final norm as `last_hidden_state`."""

    @staticmethod
    def raw_tokens(plain: Any, model: Any, images: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        tokens = plain.forward(model, images, return_dict=True, **options).last_hidden_state
        H, W = grid_of(model, images)
        return tokens[:, : -H * W], tokens[:, -H * W :]

    def forward(self, pixel_values: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Compute what the model's own `forward` gives, with the head's patch tokens in `last_hidden_state`."""
        output = super().forward(pixel_values, *args, **kwargs)
        return _replaced(output, self._first_outputs(self._clean(output[0], pixel_values)))

    def _first_outputs(self, tokens: Tensor) -> dict[str, Tensor]:  # [B, P + H * W, C]
        """Give the first outputs, those that depend on the patch tokens, by their names."""
        return {"last_hidden_state": tokens}


class _Siglip(_TokenModel):
    """`SiglipVisionModel`, which pools its patch tokens, as timm's SigLIPs do: with a head, the head's."""

    @staticmethod
    def raw_tokens(plain: Any, model: Any, images: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        return _TokenModel.raw_tokens(plain, model, images, interpolate_pos_encoding=True)

    def _first_outputs(self, tokens: Tensor) -> dict[str, Tensor]:
        vision = _trunk(self)
        pooled = {"pooler_output": vision.head(tokens)} if vision.use_head else {}
        return {"last_hidden_state": tokens, **pooled}


class _Backbone(_Transformers):
    """A `...Backbone`, which `AutoBackbone` builds: maps of the stages that are asked for."""

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute what the model's own `forward` gives; the last stage's map is head(norm(x)).

        Earlier maps are the backbone's. Where the last stage is not asked for, a warning says so.
        """
        output = super().forward(pixel_values, *args, **kwargs)
        last = self.stage_names[-1]
        if last not in self.out_features:
            warn_caller(
                f"only the map of the last stage is denoised, and out_features {self.out_features} are without "
                f"{last!r}: they are the plain backbone's maps"
            )
            return output
        *earlier, fmap = output[0]
        fmap = self._clean_map(fmap, pixel_values, self._is_last_normed())
        return _replaced(output, {"feature_maps": (*earlier, fmap)})

    def _is_last_normed(self) -> bool:
        return self.config.apply_layernorm


class _Dinov3Backbone(_Backbone):
    """`DINOv3ViTBackbone`, which norms its last map always, and hands out the tokens beside the maps."""

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Do what other backbones do, and to `last_hidden_state` too."""
        output = super().forward(pixel_values, *args, **kwargs)
        if hasattr(output, "last_hidden_state") and self.stage_names[-1] in self.out_features:
            fmap = output[0][-1]
            patches = fmap.flatten(2).transpose(1, 2) if fmap.ndim == 4 else fmap
            prefix = output.last_hidden_state[:, : -patches.shape[1]]
            output.last_hidden_state = torch.cat([prefix, patches], dim=1)
        return output

    def _is_last_normed(self) -> bool:
        return True


class Home(NamedTuple):
    """How a class of another library is denoised."""

    kind: type[Resident]
    norm: str  # the name of the final norm


HOMES = {  # library, name of the class
    ("dinov2", "DinoVisionTransformer"): Home(_TorchHub, "norm"),
    ("dinov3", "DinoVisionTransformer"): Home(_TorchHub, "norm"),
    ("transformers", "Dinov2Model"): Home(_TokenModel, "layernorm"),
    ("transformers", "Dinov2Backbone"): Home(_Backbone, "layernorm"),
    ("transformers", "Dinov2WithRegistersModel"): Home(_TokenModel, "layernorm"),
    ("transformers", "Dinov2WithRegistersBackbone"): Home(_Backbone, "layernorm"),
    ("transformers", "DINOv3ViTModel"): Home(_TokenModel, "norm"),
    ("transformers", "DINOv3ViTBackbone"): Home(_Dinov3Backbone, "norm"),
    ("transformers", "SiglipVisionModel"): Home(_Siglip, "post_layernorm"),
    ("transformers", "SiglipVisionTransformer"): Home(_Siglip, "post_layernorm"),  # in it, in older versions
}


def home_of(model: Any) -> Home | None:
    """Give the home of a model, with a head or without; None if neither its class nor a base of it has one."""
    return _home(type(model))


def width_of(model: Any) -> int:
    """Give the channels of a model's tokens."""
    return len(_final_norm(model).weight)


def grid_of(model: Any, images: Tensor) -> tuple[int, int]:  # [B, 3, height, width]
    """Give (H, W), the patches that a model makes of images; a rest at the edges is dropped, as it drops it."""
    patch = to_2tuple(model.patch_size if hasattr(model, "patch_size") else model.config.patch_size)
    return images.shape[2] // patch[0], images.shape[3] // patch[1]


def raw_and_clean(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute prefix tokens [B, P, C], the patch tokens and, where there is a head, its own [B, C, H, W], in one pass.

    Raises:
        TypeError: if the model hands out maps, not tokens.
    """
    images = images.to(_final_norm(model).weight)  # device and dtype
    prefix, patches = _home(type(model)).kind.raw_tokens(_plain_class(model), model, images)
    raw = patches.unflatten(1, grid_of(model, images))
    clean = model.denoiser(raw).permute(0, 3, 1, 2) if isinstance(model, Resident) else None
    return prefix, raw.permute(0, 3, 1, 2), clean


def settle(model: Any, head: Head) -> Any:
    """Put a head on a model of another home, in place.

    Raises:
        TypeError: if a method that is to give denoised tokens was replaced on the instance.
    """
    _refuse_replaced(model)
    weight = _final_norm(model).weight
    model.__class__ = _class_of(_plain_class(model))
    model.denoiser = head.to(device=weight.device, dtype=weight.dtype).train(model.training)
    return model


def move_out(model: Any) -> Any:
    """Take the head off a model of another home, in place; raise TypeError as `settle` does."""
    _refuse_replaced(model)
    del model.denoiser
    model.__class__ = model._plain
    return model


def _home(kind: type) -> Any:
    names = ((base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__)
    return next((HOMES[name] for name in names if name in HOMES), None)


def _plain_class(model: Any) -> type:
    return model._plain if isinstance(model, Resident) else type(model)


@cache
def _class_of(plain: type) -> type[Any]:
    """Make the class of a model of class `plain` with a head."""
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    return type(plain.__name__, (_home(plain).kind, plain), {**names, "_plain": plain})


def _new(plain: type) -> Any:
    """Make the empty model that unpickling and copying fill."""
    kind: Any = _class_of(plain)
    return kind.__new__(kind)


def _final_norm(model: Any) -> Any:
    return getattr(_trunk(model), _home(type(model)).norm)


def _trunk(model: Any) -> Any:
    """Give the module that has the final norm: older SiglipVisionModels hold it."""
    return getattr(model, "vision_model", model)


def _refuse_replaced(model: Any) -> None:
    methods = ("forward", "forward_features", "get_intermediate_layers")
    refuse_replaced(model, [name for name in methods if hasattr(_home(type(model)).kind, name)])


def _replaced(output: Any, new: dict[str, Any]) -> Any:
    """Put new values in the place of the first ones of a `ModelOutput`, or of a tuple (return_dict=False)."""
    if isinstance(output, tuple):
        return (*new.values(), *output[len(new) :])
    for name, value in new.items():
        setattr(output, name, value)
    return output
