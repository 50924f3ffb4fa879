"""A released checkpoint: its config fields and parameter names <-> ours, and whether it is whole.

Where ours are fused (query, key and value; gate and up) several released tensors are stacked along the output dimension.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.config import Count, Scale, Size, read_config, read_json, read_value
from lumos.model.transformer import ModelConfig, Transformer
from lumos.sequence.vocabulary import LUMOS
from lumos.weights import CONFIG, INDEX, TENSORS, Stored, differences, some_of, stored_tensors

FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
IGNORED_PREFIX = "model.vqmodel."  # a released file may also hold a tokenizer that generation does not use
OUTER_NAMES = {"embedding": ("model.embed_tokens.weight",), "norm": ("model.norm.weight",), "head": ("lm_head.weight",)}
LAYER_NAMES = {
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
OFFICIAL_SIZES = {"vocabulary": "vocab_size", "width": "hidden_size", "ffn": "intermediate_size"}
OFFICIAL_COUNTS = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}
# What such a config may also say, and the only values that leave this network what it is; None is "not used" to all of them.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings", "swin_norm"), (False,)),
    **dict.fromkeys(("use_bias", "qkv_bias", "alibi", "parallel_attn", "rope_interleave"), (False,)),
    **dict.fromkeys(("hidden_act", "hidden_activation"), ("silu", "swish")),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rotary_percent"), (1,)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb"), (1,)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_nextn_predict_layers"), (0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "attention_multiplier"), ()),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "no_rope_layers", "no_rope_layer_interval", "clip_qkv"), ()),
    **dict.fromkeys(("rope_local_base_freq", "rope_local_theta", "moe_intermediate_size"), ()),
    **dict.fromkeys(("quantization_config", "kv_lora_rank", "q_lora_rank", "scale_depth"), ()),
}
ROPE_FIELDS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section")
PLAIN_ROPE = ("default", "mrope")  # kinds of rotary positions that leave the frequencies alone
OTHER = "this is a checkpoint of another model"


def read_checkpoint(source: Path) -> tuple[ModelConfig, dict[str, Stored]]:
    """Config and whereabouts of every tensor of a released checkpoint, all of it checked; no tensor is read."""
    where = source / CONFIG
    config = config_from_official(read_json(where), where)
    if config.vocabulary != LUMOS.size:
        raise ValueError(f"{where}: vocab_size must be {LUMOS.size} for a Lumos-1 model, got {config.vocabulary}; {OTHER}")
    if not (source / TENSORS).is_file() and not (source / INDEX).is_file():
        others = sorted(file.name for file in source.glob("*") if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        found = f", got {some_of(others)}, which could run code" if others else ""
        raise ValueError(f"{source} must hold {TENSORS}, or {INDEX} and the files it names{found}; copy those of the checkpoint")
    stored = {name: entry for name, entry in stored_tensors(source).items() if not name.startswith(IGNORED_PREFIX)}
    expected = official_shapes(config)
    if differing := differences(list(stored), list(expected)):
        raise ValueError(f"{source} is no whole Lumos-1 checkpoint: it {differing}; copy all of it")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(f"{source}: {name} must have shape {list(shape)} by {CONFIG}, got {list(stored[name].shape)}")
    for theirs in official_names(config).values():
        if len(types := {stored[name].dtype for name in theirs}) > 1 or not types <= set(FLOATS):
            found = " and ".join(sorted(types))
            raise ValueError(f"{source}: {', '.join(theirs)} must be of one type of {', '.join(FLOATS)}, got {found}")
    return config, stored


def official_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter name -> the released names it is stacked from, in order."""
    names: dict[str, tuple[str, ...]] = {**OUTER_NAMES}
    for layer in range(config.layers):
        names |= {
            f"layers.{layer}.{ours}": tuple(f"model.layers.{layer}.{part}" for part in theirs)
            for ours, theirs in LAYER_NAMES.items()
        }
    return names


def from_official(config: ModelConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor) one by one; `read` gives a released tensor by name. Never holds more than one parameter."""
    for ours, theirs in official_names(config).items():
        yield ours, read(theirs[0]) if len(theirs) == 1 else torch.cat([read(name) for name in theirs])


def official_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Released parameter name -> shape."""
    with torch.device("meta"):
        ours = Transformer(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in to_official(config, ours.__getitem__)}


def to_official(config: ModelConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The way back: (released name, tensor), views of ours; `read` gives our tensor by name."""
    rows = {"query_key_value": [heads * config.head_width for heads in (config.heads, config.kv_heads, config.kv_heads)]}
    rows["ffn_gate_up"] = [config.ffn, config.ffn]
    for ours, theirs in official_names(config).items():
        tensor = read(ours)
        yield from zip(theirs, tensor.split(rows.get(ours.rpartition(".")[2], len(tensor))), strict=True)


def config_from_official(values: Mapping[str, Any], where: str | Path) -> ModelConfig:
    """A released config.json -> ours. Sizes, eps and the base of the rotary frequencies are taken from it, never assumed.

    Raises ValueError, naming the field, for one that is missing, is out of range, or describes another network.
    """
    sizes: dict[str, Any] = {ours: _field(Size, values, theirs, where) for ours, theirs in OFFICIAL_SIZES.items()}
    sizes |= {ours: _field(Count, values, theirs, where) for ours, theirs in OFFICIAL_COUNTS.items()}
    _check_fixed(values, where)
    head_width = sizes["width"] // sizes["heads"]  # what Llama's config means when it leaves it out
    if values.get("head_dim") is not None:
        head_width = _field(Size, values, "head_dim", where)
    eps = _field(Scale, values, "rms_norm_eps", where)
    document = {**sizes, "head_width": head_width, "rope_theta": _rope_theta(values, where), "norm_eps": eps}
    return read_config(ModelConfig, {"rope": "mm-rope", **document}, where)


def config_to_official(config: ModelConfig) -> dict[str, Any]:
    """Our config -> the fields of a released config.json that `config_from_official` reads."""
    numbers = {theirs: getattr(config, ours) for ours, theirs in (OFFICIAL_SIZES | OFFICIAL_COUNTS).items()}
    numbers |= {"head_dim": config.head_width, "rope_theta": config.rope_theta, "rms_norm_eps": config.norm_eps}
    return numbers | {name: NEUTRAL[name][0] for name in ("attention_bias", "mlp_bias", "tie_word_embeddings", "hidden_act")}


def _check_fixed(values: Mapping[str, Any], where: str | Path) -> None:
    for name, allowed in NEUTRAL.items():
        value = values.get(name)
        unused = name == "sliding_window" and values.get("use_sliding_window") is False
        if value is not None and value not in allowed and not unused:
            usual = repr(allowed[0]) if allowed else "null"
            raise ValueError(f"{where}: {name} must be {usual} for a Lumos-1 model, got {value!r:.80}; {OTHER}")
    kinds = values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(f"{where}: layer_types must be full_attention, got {kinds!r:.80}; {OTHER}")


def _rope_theta(values: Mapping[str, Any], where: str | Path) -> float:
    """The one base of the frequencies: older configs keep it beside the rest, newer ones in `rope_parameters`."""
    found = {"rope_theta": values["rope_theta"]} if "rope_theta" in values else {}
    for name in ("rope_scaling", "rope_parameters"):
        inner = values.get(name) or {}
        if not isinstance(inner, dict) or any(isinstance(value, dict) for value in inner.values()):
            raise ValueError(f"{where}: {name} must be one set of values for all layers, got {inner!r:.80}; {OTHER}")
        kinds = [inner.get("rope_type", inner.get("type", "default")), *(field for field in inner if field not in ROPE_FIELDS)]
        if kinds[0] not in PLAIN_ROPE or len(kinds) > 1:
            raise ValueError(f"{where}: {name} must leave the rotary frequencies alone, got {kinds!r:.80}; {OTHER}")
        _check_fixed(inner, f"{where}: {name}")
        if "rope_theta" in inner:
            found[f"{name}.rope_theta"] = inner["rope_theta"]
    theta = next(iter(found.values()), None)
    if any(value != theta for value in found.values()):
        said = " and ".join(f"{name} = {value!r:.40}" for name, value in found.items())
        raise ValueError(f"{where} must name one base of the rotary frequencies, got {said}; {OTHER}")
    return float(_field(Scale, {"rope_theta": theta} if found else {}, "rope_theta", where))


def _field(kind: Any, values: Mapping[str, Any], name: str, where: str | Path) -> Any:
    if name not in values:
        raise ValueError(f"{where} lacks the field {name!r}; add what the model was trained with, or {OTHER}")
    return read_value(kind, values[name], f"{where}: {name}")
