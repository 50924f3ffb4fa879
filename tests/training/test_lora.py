"""Adapters start as nothing, train alone, and are saved, read and merged in peft's form."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lumos.model.adapter import TARGETS, merge_adapter
from lumos.model.attention import dense
from lumos.model.transformer import ModelConfig, Transformer
from lumos.training.lora import LoraSettings, add_adapter, save_adapter, split

CONFIG = ModelConfig(vocabulary=50, layers=2, width=32, heads=2, kv_heads=1, head_width=32, ffn=48)
LORA = LoraSettings(rank=3, alpha=5.0)
# what peft 0.21 writes beside rank, alpha and targets
PEFT = """{"task_type": null, "auto_mapping": null, "eva_config": null, "layers_pattern": null, "megatron_config": null,
"modules_to_save": null, "revision": null, "fan_in_fan_out": false, "lora_bias": false, "use_dora": false, "use_rslora": false,
"peft_version": "0.21.2", "bias": "none", "init_lora_weights": true, "loftq_config": {}, "alpha_pattern": {}, "rank_pattern": {},
"lora_dropout": 0.0, "megatron_core": "megatron.core", "qalora_group_size": 16}"""


def small_model(config: ModelConfig = CONFIG, seed: int | None = None) -> Transformer:
    """A model, with new adapters where a seed is given."""
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(1))
    if seed is not None:
        add_adapter(model, LORA, seed)
    return model


def run(model: torch.nn.Module) -> Tensor:
    ids_BL = torch.arange(12)[None] * 3 % 50
    position_BL3 = torch.arange(12)[None, :, None].expand(1, 12, 3).contiguous()
    block_BL = torch.arange(12)[None]
    hidden: Tensor = model(ids_BL, position_BL3, dense(block_BL, block_BL))
    return hidden


@pytest.fixture
def trained() -> Transformer:
    model = small_model(seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2, generator=generator)
    return model


@pytest.fixture
def folder(tmp_path: Path, trained: Transformer) -> Path:
    """A saved adapter."""
    save_adapter(tmp_path / "lora", LORA, split(dict(trained.named_parameters()), LORA)[1], "tiny")
    return tmp_path / "lora"


def test_a_new_adapter_changes_nothing_and_is_the_same_for_a_seed() -> None:
    one, again, other = (dict(small_model(seed=seed).named_parameters()) for seed in (3, 3, 4))
    assert torch.equal(run(small_model(seed=3)), run(small_model()))
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    assert sum(not torch.equal(tensor, other[name]) for name, tensor in one.items()) == 2 * len(TARGETS)
    drawn = (
        torch.cat([tensor.flatten() for name, tensor in one.items() if name.endswith(".A") and tensor.shape[1] == 32]) * 32**0.5
    )
    assert 0.95 < drawn.max() <= 1 and -1 <= drawn.min() < -0.95 and drawn.mean().abs() < 0.1
    assert LoraSettings(rank=8).scale == 2.0 and LoraSettings(rank=8, alpha=4).scale == 0.5


def test_only_adapters_learn(trained: Transformer) -> None:
    run(trained).square().sum().backward()
    moved = {name for name, parameter in trained.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert len(moved) == 2 * 2 * len(TARGETS) and all(name.endswith((".A", ".B")) for name in moved)


def test_saved_and_merged_it_computes_the_same_in_peft_s_form_too(folder: Path, trained: Transformer) -> None:
    """Its files have the names and shapes that peft writes; and what peft writes around them is read."""
    expected, (plain, ours, theirs) = run(trained), (small_model() for _ in range(3))
    assert not torch.allclose(run(plain), expected, atol=1e-2)
    weights, _ = split(dict(trained.named_parameters()), LORA)
    plain.load_state_dict({name: tensor.detach() for name, tensor in weights.items()})
    merge_adapter(ours, folder)
    assert torch.allclose(run(plain), expected, atol=1e-5) and torch.allclose(run(ours), expected, atol=1e-5)

    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    about = {"peft_type": "LORA", "base_model_name_or_path": "tiny", "inference_mode": True}
    assert config == about | {"r": 3, "lora_alpha": 5.0, "target_modules": [], "target_parameters": list(TARGETS)}
    shapes = {name: list(tensor.shape) for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
    wraps = {"query_key_value": 3, "attention_out": 2, "ffn_gate_up": 1, "ffn_down": 0}
    assert shapes == {
        f"base_model.model.layers.{number}.{wraps[target] * 'base_layer.'}lora_{side}.weight": shape
        for number, layer in enumerate(small_model().layers)
        for target in TARGETS
        for rows, columns in [getattr(layer, target).shape]
        for side, shape in (("A", [3, columns]), ("B", [rows, 3]))
    }
    (folder / "adapter_config.json").write_text(json.dumps(json.loads(PEFT) | config))
    merge_adapter(theirs, folder)
    assert torch.equal(run(ours), run(theirs))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_parameters": ["head"]}, "got another kind"),
        ({"peft_type": "IA3"}, "got another kind"),
        ({"r": None}, "r must be of type int, got None"),
        ({"r": 0}, "r must be 1 to"),
        ({"r": 2}, "must fit the model"),
        ({"r": ...}, "lacks the field 'r'"),
        ({"lora_alpha": ...}, "lacks the field 'lora_alpha'"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be"),
        ({"alpha_pattern": {"layers.0": 8}}, "alpha_pattern must be empty"),
        ({"a_setting_of_next_year": 3}, "a_setting_of_next_year must be empty"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must leave"),
    ],
)
def test_settings_that_cannot_be_obeyed_are_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))
    with pytest.raises(ValueError, match=words):
        merge_adapter(small_model(), folder)


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(3, 3, 3), torch.zeros(0, 0), torch.ones(32, 3).int()])
def test_matrices_of_other_shapes_and_kinds_are_refused(folder: Path, wrong: Tensor) -> None:
    file = folder / "adapter_model.safetensors"
    for name, words in (
        ("base_model.model.layers.0.lora_B.weight", "must fit the model"),
        ("x", "nothing but matrices of a LoRA"),
    ):
        save_file(load_file(file) | {name: wrong}, file)
        with pytest.raises(ValueError, match=words):
            merge_adapter(small_model(), folder)


def test_adapters_of_other_models_are_refused(folder: Path) -> None:
    for other, name in ((replace(CONFIG, width=64), r"layers\.0\."), (replace(CONFIG, layers=1), r"layers\.1\.")):
        with pytest.raises(ValueError, match=f"must fit the model, but {name}.* does not"):
            merge_adapter(small_model(other), folder)
    with pytest.raises(FileNotFoundError, match="must be a LoRA folder"):
        merge_adapter(small_model(), folder.parent)
