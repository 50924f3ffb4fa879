"""Everything a run needs to go on bit-exactly, as one file: RUN/checkpoints/step_00001000.safetensors.

Named tensors, and a JSON document in the file's header; no pickle. A file is written under another name, flushed to the
disk and renamed, so a kill at any moment leaves the last whole one in place.
"""

import json
import os
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lumos.files import flush
from lumos.training.optim import Ema
from lumos.weights import check_names

FORMAT = "lumos checkpoint 1"
NAME = re.compile(r"step_(\d+)\.safetensors")


def save(run: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write the checkpoint of `step` and delete all but the newest `keep`. Raises OSError when the disk is full."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.safetensors"
    partial = path.with_suffix(".partial")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "state": json.dumps({**state, "step": step}, allow_nan=False)}
    try:
        save_file(plain, partial, metadata)
    except SafetensorError as error:  # it wraps the OSError of a full disk in text
        partial.unlink(missing_ok=True)
        raise OSError(f"could not write {path}: {error}") from error
    flush(partial)
    os.replace(partial, path)
    flush(folder)
    for old in _all(run)[:-keep]:
        old.unlink()
    for leftover in folder.glob("step_" + 8 * "[0-9]" + ".partial"):  # of a kill; other names are not ours
        leftover.unlink()
    return path


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None when there is none."""
    return next(reversed(_all(run)), None)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's tensors (on the CPU) and state, with "step" in it. Raises ValueError for a truncated or foreign file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(
                    f"{path} must be of format {FORMAT!r}, got {metadata.get('format')!r}; give a file that lumos saved"
                )
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, json.loads(metadata["state"])
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or is no checkpoint ({error}); delete it to go on from an earlier one") from error


def find(run: Path, resume: bool) -> Path | None:
    """The checkpoint a run starts from: None for a fresh run. Raises ValueError when a run would be overwritten."""
    path = latest(run)
    if path is not None and not resume:
        raise ValueError(f"{run} already holds a run up to {path.stem}; resume it (--resume) or choose another folder")
    return path


def check_config(saved: Mapping[str, Any], config: Mapping[str, Any], where: str | Path) -> None:
    """Raise ValueError when a resumed run's config (nested, as plain values) differs from the one its checkpoint holds."""
    plain = json.loads(json.dumps(config))  # tuples become lists, as in the file
    for name in sorted(saved.keys() | plain.keys()):
        if saved.get(name) != plain.get(name):
            raise ValueError(
                f"a resumed run must keep its config, got {name} = {plain.get(name)} "
                f"where {where} has {saved.get(name)}; use that, or a new folder"
            )


def collect(
    module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, optimiser state, average and this process's random states, as named tensors and JSON.

    Other ranks' random states are not kept: derive their generators from (seed, step, rank), then none are needed.
    """
    tensors = {f"model/{name}": tensor for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = value
    if ema is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in ema.average.items()}
    tensors["random/torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    return tensors, {"random/python": random.getstate()}


def restore(
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None = None,
    where: str | Path = "the checkpoint",
) -> None:
    """Put back what `collect` took; module and optimiser are those of the same config. Raises ValueError when they are not."""
    weights = _under("model/", tensors)
    check_names(weights, module.state_dict(), where)
    module.load_state_dict(weights)
    moments = _under("optimizer/", tensors)
    for group in optimizer.param_groups:
        names = {parameter: name for name, parameter in module.named_parameters()}
        for parameter in group["params"]:
            prefix = f"{names[parameter]}/"
            # AdamW keeps its step count on the CPU unless it is fused
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" and not group.get("fused") else _like(value, parameter)
                for key, value in _under(prefix, moments).items()
            }
    if ema is not None:
        average = _under("ema/", tensors)
        check_names(average, ema.average, where)
        ema.load(average)
    torch.set_rng_state(tensors["random/torch"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
    version, numbers, gauss = state["random/python"]
    random.setstate((version, tuple(numbers), gauss))


def _like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, memory_format=torch.preserve_format).copy_(value)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _all(run: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in (run / "checkpoints").glob("*") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
