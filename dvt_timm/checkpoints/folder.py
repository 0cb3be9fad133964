"""The folder of a saved head or model: config.json and model.safetensors, each written whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._util.files import CONFIG_NAME, WEIGHTS_NAME, write_json
from .._util.modules import COMPILED
from .._util.tensors import save_tensors
from .tensors import check_finite

SHOWN = 3  # names of tensors in an error
# names of tensors that no saved model has -> what takes them away
WAYS_OUT = {
    r"lora_|\.base_layer\.": "call merge_and_unload() first, and save what it gives",
    r"_(orig|mask)$": "make it permanent first, by torch.nn.utils.prune.remove say",
    r"(^|\.)parametrizations\.": "call torch.nn.utils.parametrize.remove_parametrizations first",
    r"_packed_params": "save it before it is quantized",
    r"^(head|fc_norm|attn_pool)\.": "choose its classifier by create_model's arguments, or by reset_classifier",
}


def write_folder(
    folder: Path, module: nn.Module, twin: nn.Module, config: Mapping[str, Any], metadata: dict[str, str]
) -> Path:
    """Write a module, then its configuration, and give the folder.

    Args:
        folder: made if it does not exist.
        module: a head or a model.
        twin: what is built of the configuration, on any device: the tensors are to be read into such a one.
        config: the content of config.json.
        metadata: of the file of tensors.

    Raises:
        TypeError: if the twin has other tensors, or the module's are on the meta device; nothing is written then.
        ValueError: if values are not finite; nothing is written then.
        OSError: if it cannot be written.
    """
    state = {key.replace(COMPILED, ""): value for key, value in module.state_dict().items()}
    _check_readable(state, twin.state_dict(), type(module).__name__)
    check_finite(state, f"the {config.get('kind', 'module')}")
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(_apart(state), folder / WEIGHTS_NAME, metadata)
    write_json(folder / CONFIG_NAME, config)
    return folder


def _check_readable(state: Mapping[str, Any], expected: Mapping[str, Tensor], kind: str) -> None:
    """Raise TypeError unless tensors have the names and shapes of those expected, and values."""
    odd = [
        key
        for key, value in state.items()
        if key not in expected or not isinstance(value, Tensor) or value.shape != expected[key].shape
    ]
    missing = [key for key in expected if key not in state]
    if odd or missing:
        what = " and ".join(
            [*([f"has {_some(odd)}"] if odd else []), *([f"lacks {_some(missing)}"] if missing else [])]
        )
        raise TypeError(
            f"cannot save this {kind}, which could not be read again: unlike what its configuration builds it {what}; "
            f"{_way_out([*odd, *missing])}"
        )
    if any(value.is_meta for value in state.values()):
        raise TypeError(f"cannot save this {kind}: it is on the meta device, without values; load its weights first")


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _way_out(keys: Sequence[str]) -> str:
    """Say what makes a model of these tensors one that can be saved."""
    advice = [way for sign, way in WAYS_OUT.items() if any(re.search(sign, key) for key in keys)]
    return advice[0] if advice else "save a model as create_model builds it, or its state_dict by torch.save"


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor a memory of its own: safetensors takes none that share it, as tied weights do."""
    seen: set[int] = set()
    apart = {}
    for key, value in state.items():
        place = value.untyped_storage().data_ptr()
        apart[key] = value.clone().contiguous() if place in seen else value.contiguous()
        seen.add(place)
    return apart
