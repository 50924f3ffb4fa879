"""A LoRA adapter in peft's form (adapter_config.json, adapter_model.safetensors) -> the decoder's weights with it merged in.

An adapter adds scale * B @ A, of small rank, to the four matrices of every layer. peft itself is only needed to train one.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lumos.weights import read_tensors

TARGETS = ("query_key_value", "attention_out", "ffn_gate_up", "ffn_down")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# peft wraps a layer once for every target, the first one innermost: the depth tells the target
KEY = re.compile(r"(?:base_model\.model\.)?(layers\.\d+\.)((?:base_layer\.)*)lora_([AB])\.(?:\w+\.)?weight")


def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Add an adapter to a decoder's weights, in place. FileNotFoundError or ValueError for a folder that is no adapter for it."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{folder} must be a LoRA folder with {CONFIG}, got none; give RUN/lora of a training run"
        ) from error
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is not readable JSON ({error}); copy it again") from error
    targets = config.get("target_parameters") if isinstance(config, dict) else None
    if targets != list(TARGETS) or config.get("peft_type") != "LORA" or config.get("use_rslora"):
        raise ValueError(f"{folder} must hold a LoRA of {', '.join(TARGETS)}, got another kind; use one that lumos train made")
    tensors = read_tensors(folder / TENSORS)
    own = dict(model.named_parameters())
    changed = merged(own, tensors, config["lora_alpha"] / config["r"], str(folder))
    with torch.no_grad():
        for name, tensor in changed.items():
            own[name].copy_(tensor)


def merged(
    weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float, where: str = "the adapter"
) -> dict[str, Tensor]:
    """The weights that the adapter changes, changed. ValueError for an adapter of a model of another shape."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in adapter.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{where} must hold nothing but matrices of a LoRA, got {key!r}; use one that lumos train made")
        layer, wraps, side = match.groups()
        depth = wraps.count("base_layer.")
        name = layer + TARGETS[len(TARGETS) - 1 - depth] if depth < len(TARGETS) else key
        pairs.setdefault(name, {})[side] = tensor
    found = {}
    for name, sides in pairs.items():
        weight = weights.get(name)
        if weight is None or set(sides) != {"A", "B"} or (sides["B"].shape[0], sides["A"].shape[1]) != tuple(weight.shape):
            raise ValueError(f"{where} must fit the model, but {name} does not; use the weights that it was trained on")
        delta = sides["B"].to(weight.device, torch.float32) @ sides["A"].to(weight.device, torch.float32)
        found[name] = (weight.float() + scale * delta).to(weight.dtype)
    return found
