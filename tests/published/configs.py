"""Configurations as released checkpoints have them, made from ours."""

from typing import Any

from lumos.model.transformer import ModelConfig
from lumos.published.official import NEUTRAL, OFFICIAL_COUNTS, OFFICIAL_SIZES


def config_to_official(config: ModelConfig) -> dict[str, Any]:
    """Our config -> the fields of a released config.json that `config_from_official` reads."""
    numbers = {theirs: getattr(config, ours) for ours, theirs in (OFFICIAL_SIZES | OFFICIAL_COUNTS).items()}
    numbers |= {"head_dim": config.head_width, "rope_theta": config.rope_theta, "rms_norm_eps": config.norm_eps}
    return numbers | {name: NEUTRAL[name][0] for name in ("attention_bias", "mlp_bias", "tie_word_embeddings", "hidden_act")}
