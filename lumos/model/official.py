"""A released checkpoint's parameter names <-> ours: one table beside the model.

Where ours are fused (query, key and value; gate and up) several released tensors are stacked along the output dimension.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lumos.model.transformer import ModelConfig

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
