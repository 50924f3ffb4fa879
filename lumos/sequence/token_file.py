"""A video as its codes, in a file: saved while it is made, decoded or gone on with later (`--save-tokens`, `--from-tokens`).

One safetensors file: codes_BTHW, and prompts, seeds and the fingerprint of the tokenizer whose codes they are as its header.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lumos.files import whole_file

FORMAT = "lumos-tokens-1"


@dataclass(frozen=True)
class About:
    """A prompt and a seed for each video, frames a second, how many latent frames were given (an image, the start of a video)
    rather than made, and which tokenizer's codes they are."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    fps: int
    given: int
    tokenizer: str


@dataclass(frozen=True)
class Tokens:
    """codes_BTHW int64 of videos of one length, and what they are."""

    codes_BTHW: Tensor
    about: About


def save_tokens(file: Path, tokens: Tokens) -> None:
    """Write a tokens file, whole or not at all."""
    header = {"format": FORMAT, "about": json.dumps(asdict(tokens.about))}
    with whole_file(file) as partial:
        save_file({"codes": tokens.codes_BTHW.to("cpu", torch.int32).contiguous()}, partial, metadata=header)


def load_tokens(file: Path, tokenizer: str, codebook_size: int) -> Tokens:
    """Read a tokens file. ValueError, in one line, for another file, or codes of another tokenizer than this fingerprint's."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no tokens file {file}; make one with --save-tokens")
    try:
        with safe_open(file, "pt") as stored:
            header = stored.metadata() or {}
            codes_BTHW = stored.get_tensor("codes").to(torch.int64)
        values = json.loads(header["about"])
        about = About(tuple(values["prompts"]), tuple(values["seeds"]), values["fps"], values["given"], values["tokenizer"])
        whole = header["format"] == FORMAT and len(about.prompts) == len(about.seeds) == len(codes_BTHW) and codes_BTHW.ndim == 4
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{file} must be a tokens file made with --save-tokens, got another or a damaged one; make it again")
    if about.tokenizer != tokenizer:
        raise ValueError(
            f"{file} holds codes of another tokenizer ({about.tokenizer}) than these weights have ({tokenizer}); "
            "use the weights it was made with"
        )
    if codes_BTHW.numel() == 0 or int(codes_BTHW.min()) < 0 or int(codes_BTHW.max()) >= codebook_size:
        raise ValueError(f"{file} must hold codes of 0 to {codebook_size - 1}, got others or none; make it again")
    return Tokens(codes_BTHW, about)
