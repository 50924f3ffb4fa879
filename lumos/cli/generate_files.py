"""What `lumos generate` was asked for -> files: the options become one call of `Generator`.

Everything that can be wrong with a request is found before any generating, and a failed one leaves no file. Long work is
announced with its time; an interrupted one keeps the tokens of its finished frames if they were to be saved.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lumos.cli.generate import GenerateArgs
from lumos.cli.options import tell, with_settings
from lumos.diffusion.compute import Compute
from lumos.diffusion.cost import EFFICIENCY, check_memory, matrix_rate
from lumos.diffusion.sampler import Progress
from lumos.files import check_writable
from lumos.generate import CONTINUE, Generator
from lumos.media.video import Footage, check_output, read_image, read_video, write_video
from lumos.sequence.token_file import load_tokens, save_tokens

LONGEST_START = 257  # frames of a given video that are read
WORTH_MEASURING = 1e12  # operations below which the time is not worth measuring
LONG = 60.0  # seconds from which on work is announced


# pixels_BCFHW of one latent frame after another; prompts; seeds; latent frames that came from outside; what was done to those
Started = tuple[Iterator[Tensor], Sequence[str], int | Sequence[int], int, str]


def generate_files(
    args: GenerateArgs, prompts: Sequence[str], sampling: Sequence[str], progress: Progress | None = None
) -> dict[str, Any]:
    """Make every prompt's file and tell what was made. `sampling`: NAME=VALUE of its sampler."""
    begin = time.monotonic()
    _check_outputs(args, len(prompts) or 1)
    generator = Generator.from_folder(args.weights, args.device, Compute(precision=args.precision), args.lora)
    sampler = with_settings(generator.config.sampler, sampling, "sampler")
    record: list[Tensor] = []
    settings = {"sampler": sampler, "progress": progress, "record": record}
    parts, prompts, seeds, given, note = (_from_tokens if args.from_tokens else _from_prompts)(args, generator, prompts, settings)
    files = _check_outputs(args, len(prompts))
    try:
        pixels_BCFHW = torch.cat([part.cpu() for part in parts], dim=2)
    finally:  # after Ctrl-C, too: what is finished can be gone on with
        if args.save_tokens and record:
            save_tokens(args.save_tokens, generator.tokens(record, prompts, seeds, given))
    fps = args.fps or generator.config.video.fps
    for file, pixels_CFHW in zip(files, pixels_BCFHW, strict=True):
        write_video(file, _enlarged(pixels_CFHW, args.scale), fps, overwrite=args.force)
    return {
        "files": [str(file) for file in files],
        "prompts": list(prompts),
        "frames": pixels_BCFHW.shape[2],
        "fps": fps,
        "seed": args.seed or 0,
        "sampler": asdict(sampler),
        "weights": args.weights,
        "given": note or None,
        "tokens": str(args.save_tokens) if args.save_tokens else None,
        "seconds": round(time.monotonic() - begin, 2),
    }


def _check_outputs(args: GenerateArgs, count: int) -> list[Path]:
    """--out for one prompt, numbered files beside it for several (red_1.mp4, red_2.mp4, ...), found to be writable."""
    out, digits = args.out, len(str(count))
    files = (
        [out.with_name(f"{out.stem}_{number:0{digits}}{out.suffix}") for number in range(1, count + 1)] if count > 1 else [out]
    )
    for file in files:
        check_output(file, args.force)
    if args.save_tokens:
        check_writable(args.save_tokens, args.force)
    return files


def _from_tokens(args: GenerateArgs, generator: Generator, prompts: Sequence[str], settings: dict[str, Any]) -> Started:
    """Decode a tokens file, or go on from its first frames."""
    assert args.from_tokens is not None
    tokens = load_tokens(args.from_tokens, generator.tokenizer, generator.tokenizer.codebook_size)
    about = tokens.about
    if args.branch is None:
        return generator.decode(tokens), about.prompts, about.seeds, about.given, ""
    parts = generator.branch(tokens, args.branch, prompts or None, args.seed, args.frames, **settings)
    prompts = prompts or about.prompts
    seeds = list(about.seeds) * (len(prompts) // len(about.seeds)) if args.seed is None else args.seed
    return parts, prompts, seeds, min(about.given, 1 + args.branch // generator.tokenizer.temporal), ""


def _from_prompts(args: GenerateArgs, generator: Generator, prompts: Sequence[str], settings: dict[str, Any]) -> Started:
    """Generate from prompts, and from what an image or the start of a video shows."""
    start, temporal = _start(args, generator), generator.tokenizer.temporal
    there = start.pixels_CFHW.shape[1] if start else 0
    usual = there + CONTINUE if args.video else 1 if args.out.suffix.lower() == ".png" and not start else None
    frames = (usual or generator.config.video.frames) if args.frames is None else args.frames
    needed = generator.cost(len(prompts), frames, args.height, args.width, settings["sampler"])
    check_memory(needed.bytes, generator.device)
    if needed.operations > WORTH_MEASURING:
        seconds = needed.operations / (EFFICIENCY * matrix_rate(generator.device, generator.dtype))
        if seconds > LONG:
            tell(f"this takes about {seconds / 60:.0f} min here; fewer --steps, --guidance 1 or a smaller size take less")
    given = start.pixels_CFHW if start else None
    parts = generator.stream(prompts, frames, args.seed or 0, given, height=args.height, width=args.width, **settings)
    return parts, prompts, args.seed or 0, -(-there // temporal), start.note if start else ""


def _start(args: GenerateArgs, generator: Generator) -> Footage | None:
    """The frames that are given, as many as whole latent frames have."""
    video, temporal = generator.config.video, generator.tokenizer.temporal
    height, width = args.height or video.height, args.width or video.width
    if args.image:
        return read_image(args.image, height, width)
    if not args.video:
        return None
    clip = read_video(args.video, video.fps, height, width, max_frames=LONGEST_START)
    count = clip.pixels_CFHW.shape[1]
    keep = (count - 1) // temporal * temporal + 1
    note = f"; last {count - keep} frames left out, as frames come in 1 + {temporal}k" if keep < count else ""
    return Footage(clip.pixels_CFHW[:, :keep], clip.note + note)


def _enlarged(pixels_CFHW: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return pixels_CFHW
    return interpolate(pixels_CFHW.transpose(0, 1), scale_factor=scale, mode="bicubic").transpose(0, 1).clamp(-1, 1)
