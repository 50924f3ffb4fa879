"""`lumos generate`: prompts (and an image or video) -> files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lumos.cli.options import UsageError, arguments, option, progress_line, report, required
from lumos.files import text_lines


@dataclass(frozen=True)
class GenerateArgs:
    """Turn sentences into videos or images.

    lumos generate "a red circle moves to the right" --out red.mp4
    lumos generate "a blue star" --out star.png
    lumos generate "it starts to spin" --image photo.jpg --out spin.gif
    lumos generate "a red circle" --out one.mp4 --save-tokens one.safetensors
    lumos generate --from-tokens one.safetensors --branch 9 --seed 2 --out other.mp4
    """

    out: Path = required(
        "file to write: .mp4, .gif or .webp for a video, .png for an image (one frame); several prompts are numbered"
    )
    prompt: tuple[str, ...] = arguments("what to show, in quotes; several make several videos in one batch")
    prompts: Path | None = option(None, "text file with one prompt a line, empty lines left out; instead of PROMPT", "none")
    image: Path | None = option(None, "image to start from (it becomes the first frame, cropped and resized to fit)", "none")
    video: Path | None = option(None, "video to continue (cropped, resized and brought to the model's frame rate)", "none")
    frames: int | None = option(None, "length in frames, 1 + 4k, with those of --image or --video", "as trained; 1 for .png")
    seed: int | None = option(None, "the same seed gives the same video", "0, or that of --from-tokens")
    steps: int | None = option(None, "denoising steps a latent frame (4 frames of video); more is slower", "the model's")
    guidance: float | None = option(None, "how strongly to follow the prompt; 1 is no guidance and twice as fast", "the model's")
    temperature: float | None = option(None, "randomness of every code; below 1 is safer and duller", "the model's")
    history_mask: float | None = option(None, "share of each finished frame hidden from later ones, 0 up to 1", "the model's")
    sampler: Literal["paper", "released", "random", "halton", "remask"] | None = option(
        None,
        "which codes a step reveals: the most confident (paper; released: with the authors' deviations), a random or an even "
        "(halton) order, or the most confident, with some of those already known hidden again (remask)",
        "the model's",
    )
    height: int | None = option(None, "pixels, a multiple of 32", "the model's")
    width: int | None = option(None, "pixels, a multiple of 32", "the model's")
    fps: float | None = option(None, "frames a second of the written file", "the model's")
    weights: str = option("tiny", "name of weights in the package, or a folder")
    lora: Path | None = option(
        None, "adapter to use with the weights: OUT/lora of lumos train --lora.rank, or peft's own", "none"
    )
    history: Literal["full", "visible"] | None = option(
        None,
        "what later frames see of finished ones: everything (full), or only unmasked codes (visible, faster)",
        "the model's",
    )
    window: int | None = option(None, "latent frames that see each other; fewer need less memory", "the model's")
    guidance_until: float | None = option(
        None, "share of the steps from which on there is no guidance (those are twice as fast)", "the model's, usually 1"
    )
    precision: Literal["plain", "fp8", "int8"] | None = option(
        None, "bf16 or float32; or 8-bit matrices, which are faster (fp8, newer cards) or small (int8)", "plain"
    )
    save_tokens: Path | None = option(None, "file for the video's codes (.safetensors): to decode again, or branch from", "none")
    from_tokens: Path | None = option(None, "file with codes: decode them, or with --branch go on from them; no prompt", "none")
    branch: int | None = option(None, "frames to keep of --from-tokens, 1 + 4k; other prompts or seeds tell another end", "none")
    device: str | None = option(None, "where to compute: cpu, cuda, cuda:1", "cuda if there is one, else cpu")
    force: bool = option(False, "replace the output file if it exists")
    json: bool = option(False, "print one JSON document as the last line of stdout")


def run_generate(args: GenerateArgs) -> None:
    wants_prompts = args.prompt or args.prompts or not args.from_tokens
    prompts = read_prompts(args.prompt, args.prompts) if wants_prompts else []
    from lumos.cli.generate_files import Request, generate_to_files
    from lumos.diffusion.compute import Compute

    asked = {
        "steps": args.steps,
        "guidance": args.guidance,
        "temperature": args.temperature,
        "history": args.history_mask,
        "sampler": args.sampler,
        "guidance_until": args.guidance_until,
        "only_visible": args.history == "visible" if args.history else None,
        "window": args.window,
    }
    settings = {name: value for name, value in asked.items() if value is not None}
    request = Request(
        prompts=tuple(prompts),
        out=args.out,
        weights=args.weights,
        image=args.image,
        video=args.video,
        frames=args.frames,
        seed=args.seed,
        height=args.height,
        width=args.width,
        fps=args.fps,
        device=args.device,
        overwrite=args.force,
        compute=Compute(precision=args.precision or "plain"),
        save_tokens=args.save_tokens,
        from_tokens=args.from_tokens,
        branch=args.branch,
        lora=args.lora,
    )
    with progress_line() as progress:
        document = generate_to_files(
            request, settings, progress, lambda line: print(f"lumos: {line}", file=sys.stderr, flush=True)
        )
    if document["given"]:
        print(f"lumos: {document['given']}", file=sys.stderr)
    report(document if args.json else {"wrote": ", ".join(document["files"]), "seconds": document["seconds"]}, args.json)


def read_prompts(words: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of a command line: those given, or the lines of a file. ValueError for none, both or an empty one."""
    if (not words) == (file is None):
        raise UsageError(
            f'give either prompts or --prompts FILE, got {"both" if words else "neither"}; for example "a red circle"'
        )
    prompts = list(words)
    if file is not None:
        try:
            prompts = [line for line in text_lines(file) if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} must be a text file in UTF-8 with one prompt a line, got other bytes; save it as one"
            ) from error
        if not prompts:
            raise ValueError(f"{file} must hold at least one prompt, one a line, got none; write one")
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError(f'a prompt must have words, got {prompt!r}; say what to show, for example "a red circle"')
    return prompts
