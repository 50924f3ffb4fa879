"""LoRA fine-tuning: small matrices beside the layers' large ones are trained, everything else stays as it is.

In: a decoder with weights. Out: RUN/lora, an adapter in peft's format, for `lumos generate --lora` and for peft itself; and the
same weights merged, so that RUN/model is a plain model folder.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from lumos.config import Range
from lumos.files import whole_file, write_text
from lumos.model.adapter import CONFIG, TARGETS, TENSORS, merged
from lumos.model.transformer import Transformer

# names that torch gives to a matrix with an adapter, and to the adapter's own
FROZEN, TRAINED = re.compile(r"parametrizations\.(\w+)\.original"), re.compile(r"(.*)parametrizations\.(\w+)\.0\.([AB])")


@dataclass(frozen=True)
class LoraSettings:
    """Adapters: the change of a matrix is alpha / rank * B @ A."""

    rank: Annotated[int, Range(0, 4096)] = 0  # 0 = train all weights instead
    alpha: Annotated[float, Range(0, 1e6)] = 0.0  # 0 = twice the rank

    @property
    def scale(self) -> float:
        return (self.alpha or 2.0 * self.rank) / self.rank


class LowRank(nn.Module):
    """W -> W + scale * B @ A. Nothing changes at first: A is random, B is zero."""

    def __init__(self, weight: Tensor, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        random_RC = torch.rand(settings.rank, columns, generator=generator) * 2 - 1
        self.A = nn.Parameter((random_RC / columns**0.5).to(weight.device))
        self.B = nn.Parameter(torch.zeros(rows, settings.rank, device=weight.device))
        self.scale = settings.scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.B @ self.A)


def add_adapter(model: Transformer, settings: LoraSettings, seed: int) -> None:
    """Put untrained adapters on the large matrices of all layers, and freeze everything else."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.layers:
        for name in TARGETS:
            register_parametrization(layer, name, LowRank(getattr(layer, name), settings, generator))


def split(weights: Mapping[str, Tensor], settings: LoraSettings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Named tensors of a model with adapters -> (plain weights with the adapters merged in, the adapters in peft's names)."""
    base, adapter = {}, {}
    for name, tensor in weights.items():
        if match := TRAINED.fullmatch(name):
            layer, target, side = match.groups()
            # peft wraps a layer once for every target, the first one innermost
            wraps = "base_layer." * (len(TARGETS) - 1 - TARGETS.index(target))
            adapter[f"{layer}{wraps}lora_{side}.weight"] = tensor
        else:
            base[FROZEN.sub(r"\1", name)] = tensor
    return base | merged(base, adapter, settings.rank, settings.scale, "the adapter"), adapter


def save_adapter(folder: Path, settings: LoraSettings, adapter: Mapping[str, Tensor], base: str) -> None:
    """Write an adapter as peft does. `base`: the weights it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.scale * settings.rank,
        "target_modules": [],
        "target_parameters": TARGETS,
    }
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    tensors = {f"base_model.model.{name}": tensor.detach().float().cpu().contiguous() for name, tensor in adapter.items()}
    with whole_file(folder / TENSORS) as partial:
        partial.write_bytes(save(tensors, metadata={"format": "pt"}))
