"""Adapters start as nothing, train alone, are saved as peft saves them, and merge to the same numbers as peft's own merging."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lumos.model.adapter import TARGETS, merge_adapter, merged
from lumos.model.attention import dense
from lumos.model.transformer import ModelConfig, Transformer
from lumos.training.lora import LoraSettings, add_adapter, plan_for, save_adapter, split
from lumos.training.parallel import ParallelConfig

CONFIG = ModelConfig(vocabulary=50, layers=2, width=32, heads=2, kv_heads=1, head_width=32, ffn=48)
LORA = LoraSettings(rank=3, alpha=5.0)


def small_model() -> Transformer:
    model = Transformer(CONFIG)
    model.initialise(torch.Generator().manual_seed(1))
    return model


def run(model: torch.nn.Module) -> Tensor:
    ids_BL = torch.arange(12)[None] * 3 % 50
    position_BL3 = torch.arange(12)[None, :, None].expand(1, 12, 3).contiguous()
    block_BL = torch.arange(12)[None]
    hidden: Tensor = model(ids_BL, position_BL3, dense(block_BL, block_BL))
    return hidden


def trained() -> Transformer:
    model = small_model()
    add_adapter(model, LORA, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2, generator=generator)
    return model


def test_a_new_adapter_changes_nothing_and_is_the_same_for_a_seed() -> None:
    before = torch.random.get_rng_state()
    one, other = small_model(), small_model()
    add_adapter(one, LORA, seed=3)
    assert torch.equal(run(one), run(small_model()))
    add_adapter(other, LORA, seed=3)
    drawn = dict(other.named_parameters())
    assert all(torch.equal(tensor, drawn[name]) for name, tensor in one.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_only_adapters_learn() -> None:
    model = trained()
    run(model).square().sum().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert moved == {name for name, _ in model.named_parameters() if "lora_" in name} and len(moved) == 2 * 2 * len(TARGETS)


def test_saved_merged_and_read_by_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    model = trained()
    expected = run(model)
    weights, adapter = split(dict(model.named_parameters()), LORA)
    assert set(weights) == set(dict(small_model().named_parameters()))
    whole = small_model()
    whole.load_state_dict({name: tensor.detach() for name, tensor in weights.items()}, strict=False)
    assert torch.allclose(run(whole), expected, atol=1e-5)

    save_adapter(tmp_path / "lora", LORA, adapter, "tiny")
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    ours = small_model()
    merge_adapter(ours, tmp_path / "lora")
    assert torch.allclose(run(ours), expected, atol=1e-5) and not torch.allclose(run(small_model()), expected, atol=1e-2)

    theirs = PeftModel.from_pretrained(small_model(), str(tmp_path / "lora"))
    assert torch.allclose(run(theirs), expected, atol=1e-6)
    united = theirs.merge_and_unload()
    assert all(torch.allclose(a, dict(ours.named_parameters())[n], atol=1e-6) for n, a in united.named_parameters())


def test_other_folders_are_refused(tmp_path: Path) -> None:
    _, adapter = split(dict(trained().named_parameters()), LORA)
    save_adapter(tmp_path / "lora", LORA, adapter, "tiny")
    with pytest.raises(FileNotFoundError, match="must be a LoRA folder"):
        merge_adapter(small_model(), tmp_path)
    wider = Transformer(ModelConfig(vocabulary=50, layers=2, width=64, heads=2, kv_heads=1, head_width=32, ffn=48))
    with pytest.raises(ValueError, match=r"must fit the model, but layers\.0\..* does not"):
        merge_adapter(wider, tmp_path / "lora")
    shallow = Transformer(ModelConfig(vocabulary=50, layers=1, width=32, heads=2, kv_heads=1, head_width=32, ffn=48))
    with pytest.raises(ValueError, match=r"layers\.1\."):
        merge_adapter(shallow, tmp_path / "lora")
    with pytest.raises(ValueError, match="nothing but matrices of a LoRA, got 'x'"):
        merged({}, {"x": torch.zeros(1)}, 1.0)
    path = tmp_path / "lora" / "adapter_config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "target_parameters": ["head"]}))
    with pytest.raises(ValueError, match="got another kind"):
        merge_adapter(small_model(), tmp_path / "lora")
    for change, words in (
        ({"r": None}, "r must be of type int, got None"),
        ({"r": 0}, "r must be 1 to"),
        ({"r": "3"}, "r must be of type int, got '3'"),
        ({"r": 2}, "must fit the model"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be"),
        ({"alpha_pattern": {"layers.0": 8}}, "alpha_pattern must be empty"),
        ({"rank_pattern": {"layers.0": 8}}, "rank_pattern must be empty"),
        ({"use_rslora": True}, "use_rslora must be empty"),
        ({"use_dora": True}, "use_dora must be empty"),
        ({"bias": "all"}, "bias must be empty"),
        ({"a_setting_of_next_year": 3}, "a_setting_of_next_year must be empty"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must leave"),
    ):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(ValueError, match=words):
            merge_adapter(small_model(), tmp_path / "lora")
    for name in ("r", "lora_alpha"):
        path.write_text(json.dumps({key: value for key, value in document.items() if key != name}))
        with pytest.raises(ValueError, match=f"lacks the field '{name}'"):
            merge_adapter(small_model(), tmp_path / "lora")
    path.write_text(json.dumps(document))
    for wrong in (torch.zeros(3), torch.zeros(3, 3, 3), torch.zeros(0, 0), torch.zeros(32, 3, dtype=torch.int32)):
        save_file(adapter | {next(iter(adapter)): wrong}, tmp_path / "lora" / "adapter_model.safetensors")
        with pytest.raises(ValueError, match="must fit the model"):
            merge_adapter(small_model(), tmp_path / "lora")
    path.write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        merge_adapter(small_model(), tmp_path / "lora")


def test_settings() -> None:
    assert LoraSettings(rank=8).scale == 2.0 and LoraSettings(rank=8, alpha=4).scale == 0.5
    assert plan_for(ParallelConfig(recompute="full")) == ParallelConfig(recompute="off", compile="off")
    with pytest.raises(ValueError, match="set parallel.shard=false"):
        plan_for(ParallelConfig(shard=True))
