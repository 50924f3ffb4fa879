"""What `lumos generate` was asked for -> files: the options become one call of `Generator`.

Everything that can be wrong with a request is found before any generating, and a failed one leaves no file. Long work is
announced with its time; an interrupted one keeps the tokens of its finished frames if they were to be saved.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lumos.cli.generate import GenerateArgs, keyframe_files, read_script
from lumos.cli.options import tell
from lumos.diffusion.compute import Compute
from lumos.diffusion.cost import EFFICIENCY, check_memory, matrix_rate
from lumos.diffusion.sampler import Progress
from lumos.files import check_writable
from lumos.generate import CONTINUE, Generator
from lumos.known_words import in_known_words, size_note
from lumos.media.video import check_output, read_image, read_video, write_video
from lumos.model_folder import VideoConfig
from lumos.ranks import ALONE, Ranks, divide, gather, together
from lumos.sequence.token_file import load_tokens, save_tokens
from lumos.session import Session
from lumos.tokenizer.compression import check_keyframe, latent_frames, pixel_frames

LONGEST_START = 257  # frames of a given video that are read
WORTH_MEASURING = 1e12  # operations below which the time is not worth measuring
LONG = 60.0  # seconds from which on work is announced


class Started(NamedTuple):
    """A video in the making, and what is told of it."""

    parts: Iterator[Tensor]  # pixels_BCFHW of one latent frame after another
    prompts: Sequence[str]
    seeds: int | Sequence[int]
    given: int = 0  # latent frames that came from outside
    note: str = ""  # what was done to those
    session: Session | None = None  # of a script: it makes one video of several prompts


def generate_files(
    args: GenerateArgs, prompts: Sequence[str], sampling: dict[str, Any], progress: Progress | None = None, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Make every prompt's file and tell what was made. `sampling`: what to change in the model's sampler.

    Where there are at least as many prompts as ranks, they are dealt out; otherwise all make the same videos together.
    """
    begin = time.monotonic()
    is_dealt = 1 < ranks.world <= len(prompts)
    mine = slice(*(rank * len(prompts) // ranks.world for rank in (ranks.rank, ranks.rank + 1))) if is_dealt else slice(None)
    with together(ranks):
        _check_outputs(args, len(prompts) or 1)
        compute = Compute(precision=args.precision, divided=ranks.world > 1 and not is_dealt)
        device = args.device if ranks.world == 1 else str(ranks.device)
        generator = Generator.from_folder(args.weights, device, compute, args.lora)
        prompts, unknown = _in_known_words(generator, prompts)
        sampler = replace(generator.config.sampler, **sampling)
        record: list[Tensor] = []
        settings = {"sampler": sampler, "progress": progress, "record": record}
        made = (_from_tokens if args.from_tokens else _from_prompts)(args, generator, prompts[mine], settings)
        told = prompts if is_dealt else made.prompts
        files = _check_outputs(args, 1 if made.session else len(told), generator.config.video)

    def keep() -> None:
        if args.save_tokens and made.session and made.session.codes and ranks.is_main:
            made.session.save(args.save_tokens, overwrite=True)
        elif args.save_tokens and record and ranks.is_main:
            save_tokens(args.save_tokens, generator.tokens(record, told, made.seeds, made.given))

    if is_dealt:
        with together(ranks):  # nothing is written where one has failed
            pixels_BCFHW = torch.cat([part.cpu() for part in made.parts], dim=2)
        record[:] = map(torch.cat, zip(*gather([codes_BHW.cpu() for codes_BHW in record]), strict=True))
        keep()
    else:
        try:
            pixels_BCFHW = torch.cat([part.cpu() for part in made.parts], dim=2)
        finally:  # after Ctrl-C, too: what is finished can be gone on with
            keep()
    fps = args.fps or generator.config.video.fps
    with together(ranks):
        for file, pixels_CFHW in zip(files[mine], pixels_BCFHW, strict=True) if is_dealt or ranks.is_main else ():
            write_video(file, _enlarged(pixels_CFHW, args.scale), fps, overwrite=args.force)
    return {
        "files": [str(file) for file in files],
        "prompts": list(told),
        "frames": pixels_BCFHW.shape[2],
        "fps": fps,
        "seed": made.seeds[0] if isinstance(made.seeds, Sequence) and len(set(made.seeds)) == 1 else made.seeds,
        "sampler": None if args.from_tokens and args.branch is None else asdict(sampler),
        "weights": args.weights,
        "unknown": unknown or None,
        "given": made.note or ("the given frames are used as they are" if made.given else None),
        "tokens": str(args.save_tokens) if args.save_tokens else None,
        "seconds": round(time.monotonic() - begin, 2),
    }


def _check_outputs(args: GenerateArgs, count: int, video: VideoConfig | None = None) -> list[Path]:
    """--out for one prompt, numbered files beside it for several (red_1.mp4, red_2.mp4, ...), found to be writable."""
    out, digits = args.out, len(str(count))
    files = [out.with_name(f"{out.stem}_{n:0{digits}}{out.suffix}") for n in range(1, count + 1)] if count > 1 else [out]
    fps, height, width = (video.fps, args.height or video.height, args.width or video.width) if video else (1, 2, 2)
    for file in files:
        check_output(file, args.force, args.fps or fps, args.scale * height, args.scale * width)
    if args.save_tokens:
        check_writable(args.save_tokens, args.force)
    return files


def _in_known_words(generator: Generator, prompts: Sequence[str]) -> tuple[list[str], str]:
    """The prompts as the model is told them, and what it does not know of them."""
    told = [in_known_words(prompt, generator.text.words) for prompt in prompts]
    return [each.prompt for each in told], "; ".join(dict.fromkeys(each.note for each in told if each.note))


def _from_tokens(args: GenerateArgs, generator: Generator, prompts: Sequence[str], settings: dict[str, Any]) -> Started:
    """Decode a tokens file, or go on from its first frames."""
    assert args.from_tokens is not None
    tokens = load_tokens(args.from_tokens, generator.tokenizer, generator.tokenizer.codebook_size)
    about = tokens.about
    if args.branch is None:
        return Started(generator.decode(tokens), about.prompts, about.seeds, about.given)
    parts = generator.branch(tokens, args.branch, prompts or None, args.seed, args.frames, **settings)
    prompts = prompts or about.prompts
    seeds = list(about.seeds) * (len(prompts) // len(about.seeds)) if args.seed is None else args.seed
    return Started(parts, prompts, seeds, min(about.given, 1 + args.branch // generator.tokenizer.temporal))


def _from_prompts(args: GenerateArgs, generator: Generator, prompts: Sequence[str], settings: dict[str, Any]) -> Started:
    """Generate from prompts, and from what an image or the start of a video shows."""
    video, temporal = generator.config.video, generator.tokenizer.temporal
    height, width = args.height or video.height, args.width or video.width
    script = read_script(args.script, args.fps or video.fps, temporal) if args.script else {}
    told, unknown = _in_known_words(generator, list(script.values()))
    script = dict(zip(script, told, strict=True))
    starts = args.image or args.last_image or args.keyframe or script
    usual = 1 if args.out.suffix.lower() == ".png" and not starts else video.frames
    given, note = None, ""
    if args.image:
        start = read_image(args.image, height, width)
        given, note = start.pixels_CFHW, start.note
    elif args.video:  # as many frames as whole latent frames have
        start = read_video(args.video, video.fps, height, width, max_frames=LONGEST_START)
        left_out = (start.pixels_CFHW.shape[1] - 1) % temporal
        given = start.pixels_CFHW[:, : start.pixels_CFHW.shape[1] - left_out]
        note = start.note + (f"; frames left out at the end: {left_out}, as frames come in 1 + {temporal}k" if left_out else "")
        usual = given.shape[1] + CONTINUE
    if script:
        usual = max(usual, pixel_frames(max(script), temporal) + video.frames - 1)
    frames = usual if args.frames is None else args.frames
    files = keyframe_files(args, frames, args.fps or video.fps)
    pictures = {at: read_image(file, height, width) for at, file in files.items()}
    other = size_note(f"{width}x{height}", f"{video.width}x{video.height}")
    note = "; ".join(filter(None, [unknown, other, note, *(picture.note for picture in pictures.values())]))
    needed = generator.cost(len(prompts) or 1, frames, args.height, args.width, settings["sampler"])
    check_memory(needed.bytes, generator.device)
    if needed.operations > WORTH_MEASURING:
        ranks = divide(1, generator.compute.divided).world
        seconds = needed.operations / (EFFICIENCY * matrix_rate(generator.device, generator.dtype) * ranks)
        if seconds > LONG:
            tell(f"this takes about {seconds / 60:.0f} min here; fewer --steps, --guidance 1 or a smaller size take less")
    settings |= {"height": args.height, "width": args.width}
    settings["keyframes"] = {at: picture.pixels_CFHW[:, 0] for at, picture in pictures.items()}
    known = 0 if given is None else latent_frames(given.shape[1], temporal)
    if script:
        count, progress = latent_frames(frames, temporal), settings.pop("progress")
        if max(script) >= count or any(0 < start < known for start in script):
            most = f"after the {given.shape[1]} given and " if given is not None else ""
            raise ValueError(f"sentences of {args.script} must start {most}before the end, frame {frames}; use other --frames")
        for at in pictures:
            check_keyframe(at, 0 if given is None else given.shape[1], frames)
        del settings["record"]
        session = generator.session(script[0], args.seed or 0, given, **settings)
        for sentence in script.values():
            session.read_prompt(sentence)
        return Started(_steered(session, script, count, progress), list(script.values()), args.seed or 0, known, note, session)
    parts = generator.stream(prompts, frames, args.seed or 0, given, **settings)
    return Started(parts, prompts, args.seed or 0, known, note)


def _steered(session: Session, script: dict[int, str], count: int, progress: Progress | None) -> Iterator[Tensor]:
    """The first `count` latent frames of a session that is told the sentences of a script."""
    if progress:
        session.progress = lambda done, steps: progress(len(session.codes) * steps + done, count * steps)
    for number in range(count):
        if number in script:
            session.say(script[number])
        yield next(session)


def _enlarged(pixels_CFHW: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return pixels_CFHW
    return interpolate(pixels_CFHW.transpose(0, 1), scale_factor=scale, mode="bicubic").transpose(0, 1).clamp(-1, 1)
