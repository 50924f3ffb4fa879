"""What `lumos generate` was asked for -> files: the words of the command become one call of `Generator`.

Everything that can be wrong with a request is found before any generating, and a failed one leaves no file. Long work is
announced with its time; an interrupted one keeps the tokens of its finished frames if they were to be saved.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.diffusion.compute import Compute
from lumos.diffusion.cost import EFFICIENCY, check_memory, matrix_rate
from lumos.diffusion.sampler import Progress, SamplerConfig
from lumos.generate import CONTINUE, Generator
from lumos.media.video import Footage, check_output, read_image, read_video, write_video
from lumos.sequence.token_file import Tokens, load_tokens, save_tokens

LONGEST_START = 257  # frames of a given video that are read
LONG = 60.0  # seconds from which on work is announced


@dataclass(frozen=True)
class Request:
    """`frames` None = as trained (1 for .png; 16 more than a given video). `seed` None = 0, or that of `from_tokens`.

    from_tokens: a tokens file to decode, or, with `branch` frames of it kept, to go on from; save_tokens: one to write.
    """

    prompts: tuple[str, ...]
    out: Path
    weights: str = "tiny"
    image: Path | None = None
    video: Path | None = None
    frames: int | None = None
    seed: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    device: str | None = None
    overwrite: bool = False
    compute: Compute = field(default_factory=Compute)
    save_tokens: Path | None = None
    from_tokens: Path | None = None
    branch: int | None = None
    lora: Path | None = None


@dataclass(frozen=True)
class Start:
    """What a request begins with: frames of an image or video, or the tokens of an earlier one; and what to say about it."""

    clip: Footage | None
    tokens: Tokens | None

    @property
    def frames(self) -> int:
        return self.clip.pixels_CFHW.shape[1] if self.clip else 0

    def latent_frames(self, generator: Generator) -> int:
        return -(-self.frames // generator.tokenizer.temporal)


def generate_to_files(
    request: Request,
    settings: Mapping[str, float | int | str | bool | None],
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Make every prompt's file and tell what was made. `settings` replace fields of the model's sampler.

    say: told how long the work will take, if long.
    """
    _check(request)
    begin = time.monotonic()
    generator = Generator.from_folder(request.weights, request.device, request.compute, request.lora)
    sampler = replace(generator.config.sampler, **settings)  # type: ignore[arg-type]
    start = _start(request, generator)
    prompts = request.prompts or (start.tokens.about.prompts if start.tokens else ())
    files = output_files(request.out, len(prompts))
    for file in [*files, *([request.save_tokens] if request.save_tokens else [])]:
        _check_writable(file, request.overwrite)
    frames = _frames(request, generator, start)
    record: list[Tensor] = []
    parts = _parts(request, generator, sampler, start, prompts, frames, progress, record, say)
    try:
        pixels_BCFHW = torch.cat([part.cpu() for part in parts], dim=2)
    finally:  # after Ctrl-C, too: what is finished can be gone on with
        if request.save_tokens and record:
            save_tokens(request.save_tokens, _tokens(request, generator, start, prompts, record))
    fps = request.fps or generator.config.video.fps
    for file, pixels_CFHW in zip(files, pixels_BCFHW, strict=True):
        write_video(file, pixels_CFHW, fps, overwrite=request.overwrite)
    return {
        "files": [str(file) for file in files],
        "prompts": list(prompts),
        "frames": pixels_BCFHW.shape[2],
        "fps": fps,
        "seed": request.seed or 0,
        "sampler": asdict(sampler),
        "weights": request.weights,
        "given": start.clip.note if start.clip else None,
        "tokens": str(request.save_tokens) if request.save_tokens else None,
        "seconds": round(time.monotonic() - begin, 2),
    }


def output_files(out: Path, count: int) -> list[Path]:
    """`out` itself for one prompt; numbered ones beside it for several (red.mp4 -> red_1.mp4, red_2.mp4, ...)."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}_{number:0{len(str(count))}}{out.suffix}") for number in range(1, count + 1)]


def _check(request: Request) -> None:
    starts = [name for name in ("image", "video", "from_tokens") if getattr(request, name)]
    if starts == ["image", "video"]:
        raise ValueError("give either an image or a video to start from, got both; leave one out")
    if len(starts) > 1:
        raise ValueError(f"give one thing to start from, got {' and '.join(starts).replace('_', '-')}; leave one out")
    if request.branch is not None and not request.from_tokens:
        raise ValueError("--branch needs --from-tokens, the file with the frames to keep; add it")
    if request.from_tokens and request.branch is None and (request.prompts or request.frames or request.save_tokens):
        raise ValueError(
            "--from-tokens alone only decodes, got also a prompt, --frames or --save-tokens; "
            "say with --branch how many frames to keep"
        )
    if request.from_tokens and (request.height or request.width):
        raise ValueError("--from-tokens has its own height and width, got others; leave them out")
    for file in output_files(request.out, max(1, len(request.prompts))):
        check_output(file, request.overwrite)


def _check_writable(file: Path, overwrite: bool) -> None:
    if file.suffix == ".safetensors" or file.suffix == ".tokens":
        if file.exists() and not overwrite:
            raise ValueError(f"{file} exists; use --force to replace it, or another name")
        if not file.parent.is_dir():
            raise ValueError(f"{file} must be in a folder that exists, got {file.parent}; make it first")
    else:
        check_output(file, overwrite)


def _start(request: Request, generator: Generator) -> Start:
    video = generator.config.video
    height, width = request.height or video.height, request.width or video.width
    if request.from_tokens:
        tokenizer = generator.tokenizer
        return Start(None, load_tokens(request.from_tokens, tokenizer, tokenizer.codebook_size))
    if request.image:
        return Start(read_image(request.image, height, width), None)
    if request.video:
        clip = read_video(request.video, video.fps, height, width, max_frames=LONGEST_START)
        count = clip.pixels_CFHW.shape[1]
        temporal = generator.tokenizer.temporal
        keep = count - (count - 1) % temporal
        note = clip.note + (f"; last {count - keep} frames left out, as frames come in 1 + {temporal}k" if keep < count else "")
        return Start(Footage(clip.pixels_CFHW[:, :keep], note), None)
    return Start(None, None)


def _frames(request: Request, generator: Generator, start: Start) -> int | None:
    if request.frames is not None or start.tokens:
        return request.frames
    if request.video:
        return start.frames + CONTINUE
    return 1 if request.out.suffix.lower() == ".png" and not start.clip else generator.config.video.frames


def _parts(
    request: Request,
    generator: Generator,
    sampler: SamplerConfig,
    start: Start,
    prompts: tuple[str, ...],
    frames: int | None,
    progress: Progress | None,
    record: list[Tensor],
    say: Callable[[str], None] | None,
) -> Iterator[Tensor]:
    if start.tokens and request.branch is None:
        return generator.decode(start.tokens)
    if start.tokens:
        assert request.branch is not None
        return generator.branch(
            start.tokens,
            request.branch,
            request.prompts or None,
            request.seed,
            frames,
            sampler=sampler,
            progress=progress,
            record=record,
        )
    assert frames is not None
    height, width = request.height or generator.config.video.height, request.width or generator.config.video.width
    if say:
        _announce(say, generator, len(prompts), frames, height, width, sampler)
    return generator.stream(
        prompts,
        frames,
        request.seed or 0,
        given=start.clip.pixels_CFHW if start.clip else None,
        sampler=sampler,
        height=height,
        width=width,
        progress=progress,
        record=record,
    )


def _tokens(request: Request, generator: Generator, start: Start, prompts: tuple[str, ...], record: list[Tensor]) -> Tokens:
    if not start.tokens:
        return generator.tokens(record, prompts, request.seed or 0, start.latent_frames(generator))
    about = start.tokens.about
    seeds = list(about.seeds) if request.seed is None else [request.seed]
    seeds = seeds * len(prompts) if len(seeds) == 1 else seeds
    kept = 1 + (request.branch or 0) // generator.tokenizer.temporal
    return generator.tokens(record, prompts, seeds, min(about.given, kept))


def _announce(
    say: Callable[[str], None],
    generator: Generator,
    prompts: int,
    frames: int,
    height: int,
    width: int,
    sampler: SamplerConfig,
) -> None:
    """Tell the time that long work will take: its operations at the rate that matrix products have here, measured in a moment."""
    needed = generator.cost(prompts, frames, height, width, sampler)
    check_memory(needed.bytes, generator.device)
    if needed.operations < 1e12:
        return
    seconds = needed.operations / (EFFICIENCY * matrix_rate(generator.device, generator.dtype))
    if seconds > LONG:
        say(f"this takes about {seconds / 60:.0f} minutes here; fewer --steps, --guidance 1 or a smaller size take less")
