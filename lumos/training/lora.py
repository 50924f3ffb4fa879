"""LoRA fine-tuning through peft: small matrices beside the layers' large ones are trained, everything else stays as it is.

In: a decoder with weights. Out: RUN/lora, an adapter in peft's format, for `lumos generate --lora` and for peft itself; and the
same weights merged, so that RUN/model is a plain model folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from lumos.config import Range
from lumos.files import whole_file
from lumos.model.adapter import TARGETS, TENSORS, merged
from lumos.model.transformer import Transformer
from lumos.training.parallel import ParallelConfig

ADAPTER = "default"  # peft's name for the only one


@dataclass(frozen=True)
class LoraSettings:
    """Adapters: the change of a matrix is alpha / rank * B @ A."""

    rank: Annotated[int, Range(0, 4096)] = 0  # 0 = train all weights instead
    alpha: Annotated[float, Range(0, 1e6)] = 0.0  # 0 = twice the rank

    @property
    def scale(self) -> float:
        return (self.alpha or 2.0 * self.rank) / self.rank


def plan_for(plan: ParallelConfig) -> ParallelConfig:
    """How a LoRA run is computed: peft swaps weights at every call, which neither compilation nor recomputation can follow."""
    if plan.shard:
        raise ValueError("lora.rank must be 0 with parallel.shard, got both; set parallel.shard=false")
    return replace(plan, compile="off", recompute="off")


def add_adapter(model: Transformer, settings: LoraSettings, seed: int) -> None:
    """Put untrained adapters (which change nothing yet) around the model's layers, and freeze everything else."""
    from peft import inject_adapter_in_model

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):  # peft draws from the global generator
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(settings), model, ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def split(weights: Mapping[str, Tensor], settings: LoraSettings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Named tensors of a model with adapters -> (plain weights with the adapters merged in, the adapters in peft's names)."""
    base = {name.replace("base_layer.", ""): tensor for name, tensor in weights.items() if "lora_" not in name}
    adapter = {name.replace(f".{ADAPTER}.", "."): tensor for name, tensor in weights.items() if "lora_" in name}
    return base | merged(base, adapter, settings.scale), adapter


def save_adapter(folder: Path, settings: LoraSettings, adapter: Mapping[str, Tensor], base: str) -> None:
    """Write an adapter as peft does. `base`: the weights it belongs to."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    config = _peft_config(settings)
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))
    tensors = {f"base_model.model.{name}": tensor.detach().float().cpu().contiguous() for name, tensor in adapter.items()}
    with whole_file(folder / TENSORS) as partial:
        partial.write_bytes(save(tensors, metadata={"format": "pt"}))


def _peft_config(settings: LoraSettings):  # type: ignore[no-untyped-def]  # peft is imported where it is needed
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scale * settings.rank,  # type: ignore[arg-type]  # a float will do
        target_modules=[],
        target_parameters=list(TARGETS),
    )
