"""The released Cosmos archives -> a weights folder; none of their code is run."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lumos.published.archive import read_archive
from lumos.tokenizer.cosmos import DV4X8X8, CosmosConfig
from lumos.tokenizer.cosmos_layers import Downsample, Upsample
from lumos.tokenizer.model import VideoTokenizer, tokenizer_header
from lumos.weights import check_finite, check_names, save_folder

ARCHIVES = ("autoencoder.jit", "encoder.jit", "decoder.jit")


def import_cosmos(folder: Path, out: Path, config: CosmosConfig = DV4X8X8) -> None:
    """Turn the released autoencoder.jit, or encoder.jit and decoder.jit, of a folder into the weights folder `out`.

    No code of the archives is run. Parameters keep their type. Raises FileNotFoundError for missing archives, ValueError
    for damaged ones and for those of another network. The archives do not tell their compression: the config must, and a
    path that names another one (DV8x16x16) is refused.
    """
    compression = f"DV{config.temporal}x{config.spatial}x{config.spatial}"
    named = re.findall(r"DV\d+x\d+x\d+", str(folder.absolute()))
    if named and named[-1] != compression:
        raise ValueError(f"{folder} must hold a tokenizer {compression} by the config, got {named[-1]} by its name; use that one")
    names = ARCHIVES[:1] if (folder / ARCHIVES[0]).is_file() else ARCHIVES[1:]
    if missing := [name for name in names if not (folder / name).is_file()]:
        wanted = f"{ARCHIVES[0]}, or {' and '.join(ARCHIVES[1:])}"
        raise FileNotFoundError(f"{folder} must hold {wanted}, but lacks {' and '.join(missing)}; download it")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= read_archive(folder / name)
    save_folder(out, tokenizer_header(config), from_released(config, tensors, folder))


def holds_archives(folder: Path) -> bool:
    """Whether a folder holds any of the released archives."""
    return any((folder / name).is_file() for name in ARCHIVES)


def from_released(config: CosmosConfig, released: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    """A released archive's tensors -> our state_dict, whose kernels have no dimensions of size 1 in front or behind.

    Raises ValueError for missing, unknown and misshapen weights, except that convolutions which this config never uses
    may be missing (zeros then). Buffers (anything not called weight or bias) follow from the config and are ignored.
    """
    with torch.device("meta"):
        tokenizer = VideoTokenizer(config)
    ours = tokenizer.state_dict()
    expected = {released_name(name): _released_kernel(tensor) for name, tensor in ours.items()}
    weights = {name: tensor for name, tensor in released.items() if name.endswith((".weight", ".bias"))}
    for name in map(released_name, _unused(tokenizer)):
        weights.setdefault(name, torch.zeros(expected[name].shape))
    check_names(weights, expected, where)
    for name, tensor in weights.items():
        check_finite(tensor, f"{where}: {name}")
    return {name: weights[released_name(name)].reshape(tensor.shape) for name, tensor in ours.items()}


def released_name(name: str) -> str:
    """Our parameter name -> the released one: encoder.mid.attn_1.space.q.bias -> encoder.mid.attn_1.0.q.conv3d.bias."""
    path, kind = name.replace(".space.", ".0.").replace(".time.", ".1.").rsplit(".", 1)
    inner = "norm" if path.rpartition(".")[2].startswith("norm") else "conv3d"
    return f"{path}.{inner}.{kind}"


def _released_kernel(ours: Tensor) -> Tensor:
    if ours.ndim == 2:
        return ours[..., None, None, None]
    if ours.ndim == 4:
        return ours[:, :, None] if ours.shape[3] > 1 else ours[..., None]  # over space; over time
    return ours


def _unused(tokenizer: VideoTokenizer) -> list[str]:
    """Parameters of the convolutions of levels that change neither space nor time."""
    names = []
    for path, module in tokenizer.named_modules():
        if isinstance(module, Downsample | Upsample):
            space, time = ("conv1", "conv2") if isinstance(module, Downsample) else ("conv2", "conv1")
            used = {space: module.space, time: module.time, "conv3": module.space or module.time}
            names += [f"{path}.{conv}.{kind}" for conv, is_used in used.items() if not is_used for kind in ("weight", "bias")]
    return names
