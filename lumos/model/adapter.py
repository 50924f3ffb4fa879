"""A LoRA adapter in peft's form (adapter_config.json, adapter_model.safetensors) -> the decoder's weights with it merged in.

An adapter adds scale * B @ A, of small rank, to the four matrices of every layer.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lumos.config import Scale, Size, read_json, read_value
from lumos.weights import read_tensors

TARGETS = ("query_key_value", "attention_out", "ffn_gate_up", "ffn_down")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# peft wraps a layer once for every target, the first one innermost: the depth tells the target
KEY = re.compile(r"(?:base_model\.model\.)?(layers\.\d+\.)((?:base_layer\.)*)lora_([AB])\.(?:\w+\.)?weight")
# What is read here, or says nothing about the weights. Any other setting of peft must be empty: it would change them.
READ = ("peft_type", "target_parameters", "r", "lora_alpha")
HARMLESS = ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout")
UNUSED = ("megatron_core", "qalora_group_size", "eva_config")
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # of init_lora_weights: others change the base weights


def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Add an adapter to a decoder's weights, in place. FileNotFoundError or ValueError for a folder that is no adapter for it."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} must be a LoRA folder with {CONFIG}, got none; give RUN/lora of a training run")
    where, config = folder / CONFIG, read_json(folder / CONFIG)
    if config.get("target_parameters") != list(TARGETS) or config.get("peft_type") != "LORA":
        raise ValueError(f"{folder} must hold a LoRA of {', '.join(TARGETS)}, got another kind; use one that lumos train made")
    rank, scale = _rank_and_scale(config, where)
    own = dict(model.named_parameters())
    changed = merged(own, read_tensors(folder / TENSORS), rank, scale, str(folder))
    with torch.no_grad():
        for name, tensor in changed.items():
            own[name].copy_(tensor)


def merged(
    weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], rank: int, scale: float, where: str
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
        weight, shapes = weights.get(name), [list(sides[side].shape) for side in "BA" if side in sides]
        fits = weight is not None and shapes == [[weight.shape[0], rank], [rank, weight.shape[1]]]
        if weight is None or not fits or not all(tensor.is_floating_point() for tensor in sides.values()):
            raise ValueError(f"{where} must fit the model, but {name} does not; use the weights that it was trained on")
        delta = sides["B"].to(weight.device, torch.float32) @ sides["A"].to(weight.device, torch.float32)
        found[name] = (weight.float() + scale * delta).to(weight.dtype)
    return found


def _rank_and_scale(config: Mapping[str, Any], where: Path) -> tuple[int, float]:
    """(rank, scale). ValueError, naming it, for a setting that is missing or that this file does not know how to obey."""
    for name, value in config.items():
        if name == "init_lora_weights" and value not in PLAIN_STARTS:
            raise ValueError(f"{where}: init_lora_weights must leave the model's weights alone, got {value!r:.80}")
        known = name in (*READ, *HARMLESS, *UNUSED, "init_lora_weights")
        if not known and value not in (None, False, "none", "", [], {}):
            raise ValueError(f"{where}: {name} must be empty for lumos, got {value!r:.80}; merge the adapter with peft instead")
    for name in ("r", "lora_alpha"):
        if name not in config:
            raise ValueError(f"{where} lacks the field {name!r}")
    rank: int = read_value(Size, config["r"], f"{where}: r")
    alpha: float = read_value(Scale, config["lora_alpha"], f"{where}: lora_alpha")
    return rank, alpha / rank
