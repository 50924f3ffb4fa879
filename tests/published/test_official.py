"""Released names, shapes and config fields <-> ours."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumos.model.transformer import LUMOS_1B, LUMOS_3B, ModelConfig
from lumos.published.official import NEUTRAL, config_from_official, config_to_official, official_shapes

CONFIG = ModelConfig(50, layers=2, width=48, heads=3, kv_heads=1, head_width=32, ffn=40, rope_theta=5e5, norm_eps=1e-6)
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "lumos_small.json").read_text())


def test_names_and_shapes_are_the_recorded_ones() -> None:
    sizes = {"layers": 2, "width": 128, "heads": 4, "kv_heads": 2, "head_width": 32, "ffn": 256}
    assert official_shapes(ModelConfig(129_536, **sizes)) == {name: tuple(shape) for name, shape in GOLDEN["parameters"].items()}


@pytest.mark.parametrize("config", [CONFIG, LUMOS_1B, LUMOS_3B])
def test_config_there_and_back(config: ModelConfig) -> None:
    values = json.loads(json.dumps(config_to_official(config)))
    assert config_from_official(values, "here") == config


def test_what_a_config_may_leave_out_or_say_elsewhere() -> None:
    values = config_to_official(LUMOS_1B)
    theta = values.pop("rope_theta")
    nested = {**values, "rope_parameters": {"rope_type": "default", "rope_theta": theta}, "model_type": "anything", "x": [1]}
    assert config_from_official(nested, "here") == LUMOS_1B
    unused = {"sliding_window": 4096, "use_sliding_window": False, "partial_rotary_factor": 1.0, "layer_types": None}
    unused |= {"logit_scale": 1, "num_experts": 0, "use_bias": False, "hidden_activation": "swish", "clip_qkv": None}
    assert config_from_official({**nested, **unused}, "here") == LUMOS_1B
    del values["head_dim"], values["hidden_act"], values["tie_word_embeddings"]
    assert config_from_official({**values, "rope_theta": theta, "rope_scaling": None}, "here") == LUMOS_1B


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": None}, ["num_hidden_layers", "of type int", "None"]),
        ({"hidden_size": 2048.5}, ["hidden_size", "of type int", "2048.5"]),
        ({"vocab_size": 10**9}, ["vocab_size", "must be 1 to"]),
        ({"num_hidden_layers": 100_000}, ["num_hidden_layers must be 1 to", "100000"]),
        ({"num_key_value_heads": 7}, ["multiple of kv_heads"]),
        ({"head_dim": 24}, ["head_width must be"]),
        ({"rms_norm_eps": 0}, ["rms_norm_eps", "got 0"]),
        ({"rope_theta": "big"}, ["rope_theta", "'big'"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 32}}, ["rope_scaling", "'llama3'", "another model"]),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ["rope_scaling", "'linear'"]),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, ["rope_scaling", "'factor'"]),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, ["one base", "rope_theta = 10000", "= 500000"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["rope_parameters: partial_rotary_factor must be 1", "0.5"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["rope_parameters must be one set", "full_attention"]),
        ({"rope_parameters": [1]}, ["rope_parameters must be one set"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types must be full_attention"]),
        ({"layer_types": 7}, ["layer_types must be full_attention, got 7"]),
        *(({name: 7.5}, [f"{name} must be", "got 7.5; this is a checkpoint of another model"]) for name in NEUTRAL),
        *(({name: None}, [f"lacks the field '{name}'"]) for name in ("vocab_size", "num_key_value_heads", "rope_theta")),
    ],
)
def test_a_wrong_or_missing_value_is_named(change: dict[str, Any], words: list[str]) -> None:
    values = config_to_official(LUMOS_1B) | change
    if "lacks" in words[0]:
        values = {name: value for name, value in values.items() if name not in change}
    with pytest.raises(ValueError, match=r"^a/config\.json") as caught:
        config_from_official(values, "a/config.json")
    assert all(word in str(caught.value) for word in words), str(caught.value)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner))
FIELDS = [*config_to_official(LUMOS_1B), *NEUTRAL, "rope_parameters", "rope_scaling", "layer_types"]


@given(st.sampled_from(FIELDS), ANYTHING)
def test_any_value_of_any_field_is_read_or_refused(name: str, value: Any) -> None:
    try:
        config = config_from_official(config_to_official(LUMOS_1B) | {name: value}, "here")
    except ValueError as error:
        assert str(error).startswith("here") and "\n" not in str(error)
    else:
        assert config.vocabulary >= 1 and config.rope_theta > 0
