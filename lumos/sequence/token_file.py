"""A video as its codes, in a file: saved while it is made, decoded or gone on with later (`--save-tokens`, `--from-tokens`).

One safetensors file: codes_BTHW, and prompts, seeds and the fingerprint of the tokenizer whose codes they are as its header.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lumos.config import Range, read_config, read_object
from lumos.files import whole_file
from lumos.weights import fingerprint

TOKENS_FORMAT = "lumos-tokens-1"


@dataclass(frozen=True)
class About:
    """What the videos of a tokens file are."""

    prompts: tuple[str, ...]  # one per video
    seeds: tuple[int, ...]  # one per video
    fps: Annotated[int, Range(1, 1000)]
    given: Annotated[int, Range(0, 2**18)]  # latent frames that were given (an image, the start of a video) rather than made
    tokenizer: str  # whose codes they are
    course: str = field(default="", metadata={"later": True})  # of a session, as JSON: what else it goes on from


@dataclass(frozen=True)
class Tokens:
    """codes_BTHW int64 of videos of one length, and what they are."""

    codes_BTHW: Tensor
    about: About


def save_tokens(file: Path, tokens: Tokens) -> None:
    """Write a tokens file, whole or not at all."""
    header = {"format": TOKENS_FORMAT, "about": json.dumps(asdict(tokens.about))}
    with whole_file(file) as partial:
        partial.write_bytes(save({"codes": tokens.codes_BTHW.to("cpu", torch.int32).contiguous()}, header))


def load_tokens(file: Path, tokenizer: nn.Module, codebook_size: int) -> Tokens:
    """Read a tokens file. ValueError, in one line, for another file, or codes of another tokenizer than this."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no tokens file {file}; make one with --save-tokens")
    try:
        with safe_open(file, "pt") as stored:
            header = stored.metadata() or {}
            codes_BTHW = stored.get_tensor("codes").to(torch.int64)
        about = read_config(About, read_object(header["about"], "about"), "about")
        whole = header["format"] == TOKENS_FORMAT and len(about.prompts) == len(about.seeds) == len(codes_BTHW)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        whole = False
    if not whole or codes_BTHW.ndim != 4:
        raise ValueError(f"{file} must be a tokens file made with --save-tokens, got another or a damaged one; make it again")
    found = fingerprint(tokenizer)
    if about.tokenizer != found:
        raise ValueError(f"{file} holds codes of another tokenizer ({about.tokenizer}) than these weights have ({found})")
    if codes_BTHW.numel() == 0 or int(codes_BTHW.min()) < 0 or int(codes_BTHW.max()) >= codebook_size:
        raise ValueError(f"{file} must hold codes of 0 to {codebook_size - 1}, got others or none; make it again")
    return Tokens(codes_BTHW, about)
