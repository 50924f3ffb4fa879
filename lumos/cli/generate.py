"""`lumos generate`: prompts (and an image or video) -> files. `lumos bench`: how fast a model does it on this machine."""

import re
import resource
import sys
import time
import unicodedata
import webbrowser
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from lumos.cli.options import Fields, UsageError, Word, progress_line, report, tell
from lumos.config import PACKAGED, Range
from lumos.files import text_of
from lumos.tokenizer.compression import TIME, frame_at

# Options that change the model's sampler; --history has two of its fields.
SAMPLING = Fields("lumos.diffusion.sampler", "SamplerConfig", {"history": "history-mask", "only_visible": ""}, "the model's")
KEYFRAME = re.compile(f"({TIME})=(.+)")  # path
SCRIPT_LINE = re.compile(rf"\s*({TIME})\s*:\s*(\S.*)")  # sentence
MOST_FRAMES = 10_000
PROMPT = "a red circle moves to the right"  # of bench
PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2013": "-", "\u2014": "-"})


@dataclass(frozen=True)
class GenerateArgs:
    """Turn sentences into videos or images.

    lumos generate "a red circle moves to the right" --out red.mp4
    lumos generate "a blue star" --out star.png --scale 4 --open
    lumos generate "it starts to spin" --image photo.jpg --out spin.gif
    lumos generate "a heart turns" --image start.png --last-image end.png --out turned.mp4
    lumos generate "a red circle" --out one.mp4 --save-tokens one.safetensors
    lumos generate --from-tokens one.safetensors --branch 9 --seed 2 --out other.mp4
    lumos generate --script story.txt --out story.mp4
    torchrun --nproc-per-node 4 -m lumos generate "a red circle" --out red.mp4
    """

    out: Path  # file to write: .mp4, .gif, .webp, or .png for an image (of more frames: a sheet); several prompts are numbered
    prompt: Word[tuple[str, ...]] = ()  # what to show, in quotes; several make several videos in one batch
    prompts: Path | None = None  # text file with one prompt per line, empty lines left out; instead of PROMPT
    # text file with lines TIME: SENTENCE, such as 0: a red circle moves up, then 4s: it stops or, by the frame's number, 32: it
    # stops; instead of PROMPT. One video of any length; a sentence holds from the first latent frame that starts then or later
    script: Path | None = None
    image: Path | None = None  # image to start from (it becomes the first frame, cropped and resized to fit)
    video: Path | None = None  # video to continue (cropped, resized and brought to the model's frame rate)
    # picture that a later frame is to show, TIME=PATH: 2s=mid.png or, by the frame's number, 16=mid.png; may be repeated. Needs
    # weights that were trained with keyframes, as those in the package were
    keyframe: tuple[str, ...] = ()
    last_image: Path | None = None  # picture that the last frame is to show: a keyframe
    # length in frames, 1 + 4k, with those of --image or --video (default: as trained, 1 for .png; with --script that much more
    # after its last time)
    frames: Annotated[int, Range(1, MOST_FRAMES)] | None = None
    seed: int | None = None  # the same seed gives the same video (default: 0, or that of --from-tokens)
    height: Annotated[int, Range(1, 2**16)] | None = None  # pixels, a multiple of 32 (default: the model's)
    width: Annotated[int, Range(1, 2**16)] | None = None  # pixels, a multiple of 32 (default: the model's)
    fps: Annotated[float, Range(0.01, 1000)] | None = None  # frames per second of the written file (default: the model's)
    scale: Annotated[int, Range(1, 16)] = 1  # enlarge the file: 2 makes 512x512 of a video of 256x256
    weights: str = PACKAGED  # name of weights in the package, or a folder
    lora: Path | None = None  # adapter to use with the weights: OUT/lora of lumos train --lora.rank, or peft's own
    # what later frames see of finished ones: everything, or only unmasked codes (visible, faster) (default: the model's)
    history: Literal["full", "visible"] | None = None
    # bf16 or float32; or 8-bit matrices, which are faster (fp8, newer cards) or small (int8)
    precision: Literal["plain", "fp8", "int8"] = "plain"
    save_tokens: Path | None = None  # file for the video's codes (.safetensors): to decode again, or branch from
    from_tokens: Path | None = None  # file with codes: decode them, or with --branch go on from them
    # frames (1 + 4k) to keep of --from-tokens; the rest, up to --frames (default: as trained, or 16 more), is generated anew from
    # the given prompt and seed
    branch: int | None = None
    device: str | None = None  # where to compute: cpu, cuda, cuda:1 (default: cuda if there is one, else cpu)
    force: bool = False  # replace the output file if it exists
    open: bool = False  # show the result in the program that this machine has for it
    json: bool = False  # print one JSON document as the last line of stdout


@dataclass(frozen=True)
class BenchArgs:
    """Measure this machine with a model: seconds per video and latent frame, to the first frame, memory, share of the peak.

    lumos bench
    lumos bench --weights FOLDER --width 672 --height 384 --precision fp8
    lumos bench --videos 16 --json
    """

    weights: str = PACKAGED  # name of weights in the package, or a folder
    frames: Annotated[int, Range(1, MOST_FRAMES)] | None = None  # length in frames, 1 + 4k (default: as trained)
    height: Annotated[int, Range(1, 2**16)] | None = None  # pixels, a multiple of 32 (default: the model's)
    width: Annotated[int, Range(1, 2**16)] | None = None  # pixels, a multiple of 32 (default: the model's)
    videos: Annotated[int, Range(1, 10_000)] = 1  # videos made at once
    history: Literal["full", "visible"] | None = None  # see lumos generate (default: the model's)
    precision: Literal["plain", "fp8", "int8"] = "plain"  # see lumos generate
    repeat: Annotated[int, Range(1, 10_000)] = 1  # timed runs, after one that warms up
    device: str | None = None  # where to compute: cpu, cuda, cuda:1 (default: cuda if there is one, else cpu)
    json: bool = False  # print one JSON document as the last line of stdout


def run_generate(args: GenerateArgs, sampling: dict[str, Any]) -> None:
    check(args, sampling)
    none = not (args.prompt or args.prompts) and (args.from_tokens or args.script)
    prompts = [] if none else read_prompts(args.prompt, args.prompts)
    from lumos.cli.generate_files import generate_files
    from lumos.ranks import finish, leave_when_told, start, tell_of_lost_ranks

    ranks = start(args.device, dividing=True)
    if ranks.device.type == "cuda" and ranks.world > 1:  # elsewhere a lost connection is heard
        leave_when_told(ranks)
    lost = tell_of_lost_ranks(ranks, "give the command again")
    with lost, progress_line() if ranks.is_main else nullcontext() as progress:
        document = generate_files(args, prompts, sampling | visible(args.history), progress, ranks)
    finish(ranks)
    if not ranks.is_main:
        return
    for note in filter(None, (document["unknown"], document["given"])):
        tell(note)
    report(document if args.json else {"wrote": ", ".join(document["files"]), "seconds": document["seconds"]}, args.json)
    if args.open and not webbrowser.open(Path(document["files"][0]).resolve().as_uri()):
        tell("there is no program to show it with")


def visible(history: str | None) -> dict[str, Any]:
    """What --history says of the sampler."""
    return {} if history is None else {"only_visible": history == "visible"}


def check(args: GenerateArgs, sampling: dict[str, Any]) -> None:
    """UsageError for options that do not go together."""
    starts = [name for name in ("image", "video", "from-tokens") if getattr(args, name.replace("-", "_"))]
    if len(starts) > 1:
        raise UsageError(f"give one thing to start from, got {' and '.join(starts)}; leave one out")
    if args.script and (args.prompt or args.prompts or args.from_tokens):
        raise UsageError("--script has its own sentences, got also a prompt or --from-tokens; leave one out")
    if args.from_tokens and (args.keyframe or args.last_image):
        raise UsageError("--from-tokens takes no --keyframe or --last-image; leave one out")
    if wrong := [text for text in args.keyframe if not KEYFRAME.fullmatch(text)]:
        raise UsageError(f"--keyframe must be TIME=PATH, got {wrong[0]!r}; for example 2s=mid.png, or 16=mid.png for frame 16")
    if args.branch is not None and not args.from_tokens:
        raise UsageError("--branch needs --from-tokens, the file with the frames to keep; add it")
    anew = args.prompt or args.prompts or args.frames or args.save_tokens or args.seed is not None or sampling or args.history
    if args.from_tokens and args.branch is None and anew:
        rule = "--from-tokens alone only decodes, got also a prompt, --frames, --seed, --save-tokens or settings"
        raise UsageError(f"{rule}; say with --branch how many frames to keep")
    if args.from_tokens and (args.height or args.width):
        raise UsageError("--from-tokens has its own height and width, got others; leave them out")
    if args.save_tokens and args.save_tokens.suffix not in (".safetensors", ".tokens"):
        raise UsageError(f"--save-tokens must end in .safetensors, got {args.save_tokens.name!r}; rename it")


def keyframe_files(args: GenerateArgs, frames: int, fps: float) -> dict[int, Path]:
    """Number of a frame -> picture that it is to show. UsageError for two of one frame."""
    given = [match.groups() for text in args.keyframe if (match := KEYFRAME.fullmatch(text))]
    named = [(frame_at(time, fps), Path(path)) for time, path in given]
    named += [(frames - 1, args.last_image)] if args.last_image else []
    files: dict[int, Path] = {}
    for at, file in named:
        if at in files:
            raise UsageError(f"a frame may have one keyframe, got {files[at]} and {file} for frame {at}; leave one out")
        files[at] = file
    return files


def read_prompts(words: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of a command line: those given, or the lines of a file. ValueError for none, both or an empty one."""
    if bool(words) == bool(file):
        got = "both" if words else "neither"
        raise UsageError(f'give either prompts or --prompts FILE, got {got}; for example "a red circle"')
    prompts = list(words)
    if len(words) > 1 and not any(" " in word.strip() for word in words):
        prompts = [" ".join(words)]
        tell(f'made one prompt of these words, "{prompts[0]}"; put each in --prompts FILE if they are several')
    if file is not None:
        prompts = [line for line in text_of(file).split("\n") if line.strip()]
        if not prompts:
            raise ValueError(f"{file} must hold at least one prompt, one per line, got none; write one")
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError(f'a prompt must have words, got {prompt!r}; say what to show, for example "a red circle"')
    return [plain(prompt) for prompt in prompts]


def read_script(file: Path, fps: float, temporal: int) -> dict[int, str]:
    """Number of a latent frame -> sentence that holds from it on. ValueError, with the line, for what cannot be followed."""
    script: dict[int, str] = {}
    last = -1
    for number, line in enumerate(text_of(file).split("\n"), 1):
        if not line.strip():
            continue
        match, where = SCRIPT_LINE.fullmatch(line), f"line {number} of {file}"
        if not match:
            raise ValueError(f"{where} must be TIME: SENTENCE, got {line[:60]!r}; for example 4s: it stops")
        frame = frame_at(match[1], fps)
        start = -(-(frame - 1) // temporal) + 1 if frame else 0
        if frame >= MOST_FRAMES:
            raise ValueError(f"{where} must be before frame {MOST_FRAMES}, got {frame}; use an earlier time")
        if (start > 0) if not script else (start <= last):
            rule = f"start later than the one before, by {temporal} frames or more" if script else "start at 0"
            raise ValueError(f"{where} must {rule}, got {match[1]}; use another time")
        script[start], last = plain(match[2]), start
    if not script:
        raise ValueError(f"{file} must have a line TIME: SENTENCE, got none; begin with 0: and what to show")
    return script


def plain(prompt: str) -> str:
    """A prompt as it would be typed: no line ends, no typographic quotes and dashes, none around the whole."""
    text = " ".join(unicodedata.normalize("NFC", prompt).translate(PLAIN).split())
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text


def run_bench(args: BenchArgs, sampling: dict[str, Any]) -> None:
    """One run that warms up, `repeat` timed ones; the fastest counts. Raises ValueError for sizes the model cannot make."""
    import torch

    from lumos.diffusion.compute import Compute
    from lumos.diffusion.cost import GIB, matrix_rate
    from lumos.generate import Generator

    generator = Generator.from_folder(args.weights, args.device, Compute(precision=args.precision))
    sampler = replace(generator.config.sampler, **sampling, **visible(args.history))
    video, device = generator.config.video, generator.device
    on_card = device.type == "cuda"
    frames, height, width = args.frames or video.frames, args.height or video.height, args.width or video.width
    needed = generator.cost(args.videos, frames, height, width, sampler)
    rate = matrix_rate(device, generator.dtype)
    runs: list[list[float]] = []  # seconds until each latent frame of a run was there
    for _ in range(1 + args.repeat):
        if on_card:
            torch.cuda.reset_peak_memory_stats(device)
        runs.append([])
        begin = time.perf_counter()
        with progress_line("measuring") as progress:
            prompts, seeds = [PROMPT] * args.videos, list(range(args.videos))
            for part in generator.stream(prompts, frames, seeds, None, sampler, height, width, progress):
                part.cpu()  # waits for the device
                runs[-1].append(time.perf_counter() - begin)
    seconds = min(run[-1] for run in runs[1:])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # of this process
    document = {
        "weights": args.weights,
        "device": torch.cuda.get_device_name(device) if on_card else f"cpu, {torch.get_num_threads()} threads",
        "made": f"{args.videos} of {width}x{height}, {frames} frames, {sampler.steps} steps, guidance {sampler.guidance}",
        "seconds": round(seconds, 3),
        "seconds of the first run": round(runs[0][-1], 3),
        "seconds a latent frame": round(seconds / len(runs[0]), 3),
        "seconds to the first frame": round(min(run[0] for run in runs[1:]), 3),
        "frames a second": round(args.videos * frames / seconds, 1),
        "peak memory, GiB": round((torch.cuda.max_memory_allocated(device) if on_card else most) / GIB, 2),
        "memory estimated beside the weights, GiB": round(needed.bytes / GIB, 2),
        "tera-operations": round(needed.operations / 1e12, 2),
        "matrix products here, tera-operations a second": round(rate / 1e12, 2),
        "share of that": round(needed.operations / seconds / rate, 3),
    }
    report(document, args.json)
