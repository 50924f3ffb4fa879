"""A released checkpoint's config fields and parameter names <-> ours: tables beside the model.

Where ours are fused (query, key and value; gate and up) several released tensors are stacked along the output dimension.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.model.transformer import ModelConfig, Transformer

IGNORED_PREFIX = "model.vqmodel."  # a released file may also hold a tokenizer that generation does not use
WHOLE = {
    "embedding": ("model.embed_tokens.weight",),
    "norm": ("model.norm.weight",),
    "head": ("lm_head.weight",),
}
PER_LAYER = {
    "attention_norm": ("input_layernorm.weight",),
    "query_key_value": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "query_norm_scale": ("self_attn.q_norm.weight",),
    "query_norm_bias": ("self_attn.q_norm.bias",),
    "key_norm_scale": ("self_attn.k_norm.weight",),
    "key_norm_bias": ("self_attn.k_norm.bias",),
    "attention_out": ("self_attn.o_proj.weight",),
    "ffn_norm": ("post_attention_layernorm.weight",),
    "ffn_gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "ffn_down": ("mlp.down_proj.weight",),
}

# our field -> the field of a Hugging Face Llama config
SIZES = {
    "vocabulary": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
}
# what such a config may also say, and the only values that leave this network what it is
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "tie_word_embeddings": (False,),
    "swin_norm": (False,),
}
PLAIN_ROPE = ("default", "mrope")  # kinds of rotary positions that leave the frequencies alone
OTHER = "this is a checkpoint of another model"
PUBLISHED = {"rope_theta": 10_000, "rms_norm_eps": 1e-5}  # said in errors, never taken for granted
LARGEST = 2**18  # of any size in a config


def official_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter name -> the released names it is stacked from, in order."""
    names: dict[str, tuple[str, ...]] = {**WHOLE}
    for layer in range(config.layers):
        names |= {
            f"layers.{layer}.{ours}": tuple(f"model.layers.{layer}.{part}" for part in theirs)
            for ours, theirs in PER_LAYER.items()
        }
    return names


def from_official(config: ModelConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor) one by one; `read` gives a released tensor by name. Never holds more than one parameter."""
    for ours, theirs in official_names(config).items():
        parts = [read(name) for name in theirs]
        yield ours, parts[0] if len(parts) == 1 else torch.cat(parts, dim=0)


def official_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Released parameter name -> shape."""
    with torch.device("meta"):
        ours = Transformer(config).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, theirs in official_names(config).items():
        shape = tuple(ours[name].shape)
        shapes |= {part: (rows, *shape[1:]) for part, rows in zip(theirs, _stacked(config, name, shape[0]), strict=True)}
    return shapes


def to_official(config: ModelConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The way back: (released name, tensor), views of ours; `read` gives our tensor by name."""
    for ours, theirs in official_names(config).items():
        tensor = read(ours)
        yield from zip(theirs, tensor.split(_stacked(config, ours, tensor.shape[0])), strict=True)


def config_from_official(values: Mapping[str, Any], where: str | Path) -> ModelConfig:
    """A released config.json -> ours. Sizes, eps and the base of the rotary frequencies are taken from it, never assumed.

    Raises ValueError, naming the field, for one that is missing, is no positive number, or describes another network.
    """
    sizes: dict[str, Any] = {ours: _count(values, theirs, where) for ours, theirs in SIZES.items()}
    for name, allowed in FIXED.items():
        if name in values and values[name] not in allowed:
            raise ValueError(f"{where}: {name} must be {allowed[0]!r} for a Lumos-1 model, got {values[name]!r}; {OTHER}")
    head_width = sizes["width"] // sizes["heads"]  # what Llama's config means when it leaves it out
    if values.get("head_dim") is not None:
        head_width = _count(values, "head_dim", where)
    theta, eps = _rope_theta(values, where), _positive(values, "rms_norm_eps", where)
    try:
        return ModelConfig(**sizes, head_width=head_width, rope_theta=theta, norm_eps=eps)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def config_to_official(config: ModelConfig) -> dict[str, Any]:
    """Our config -> the fields of a released config.json that `config_from_official` reads."""
    numbers = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    fixed = {name: allowed[0] for name, allowed in FIXED.items()}
    return {
        **numbers,
        "head_dim": config.head_width,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        **fixed,
    }


def _stacked(config: ModelConfig, ours: str, rows: int) -> list[int]:
    """Output rows of every released tensor that one of our parameters is stacked from."""
    match ours.rpartition(".")[2]:
        case "query_key_value":
            return [heads * config.head_width for heads in (config.heads, config.kv_heads, config.kv_heads)]
        case "ffn_gate_up":
            return [config.ffn, config.ffn]
        case _:
            return [rows]


def _rope_theta(values: Mapping[str, Any], where: str | Path) -> float:
    # Newer Hugging Face configs keep everything about rotary positions in `rope_parameters`, older ones beside the rest.
    nested = values.get("rope_parameters") or {}
    for name, kind in (("rope_scaling", values.get("rope_scaling") or {}), ("rope_parameters", nested)):
        found = kind.get("rope_type", kind.get("type", "default")) if isinstance(kind, dict) else kind
        if found not in PLAIN_ROPE:
            raise ValueError(f"{where}: {name} must leave the rotary frequencies alone, got {found!r}; {OTHER}")
    return _positive(values if "rope_theta" in values else nested, "rope_theta", where)


def _count(values: Mapping[str, Any], name: str, where: str | Path) -> int:
    value = _positive(values, name, where)
    if value != int(value) or value > LARGEST:
        raise ValueError(f"{where}: {name} must be a whole number up to {LARGEST}, got {value!r}; copy the file again")
    return int(value)


def _positive(values: Mapping[str, Any], name: str, where: str | Path) -> float:
    if name not in values:
        remedy = f"add it, the published models have {PUBLISHED[name]}" if name in PUBLISHED else OTHER
        raise ValueError(f"{where} lacks the field {name!r}; {remedy}")
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{where}: {name} must be a number above 0, got {value!r}; copy the file again")
    return value
