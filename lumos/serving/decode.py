"""An uploaded file -> its pixels, and a finished video -> a larger one, in processes of their own (processes.py).

A decoder may use so much memory and time and no more. It writes start.safetensors (rgb_CFHW) and a small picture, and answers in
words. A file that crashes or stalls it costs that process.
"""

import os
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save

from lumos.files import is_memory_error
from lumos.media import picture
from lumos.media.pixels import to_bytes
from lumos.media.video import read_video, write_video
from lumos.serving.config import ServeConfig
from lumos.serving.request import Decoded
from lumos.serving.store import START
from lumos.serving.uploads import PREVIEW, Format


def run(answer: Connection, file: Path, folder: Path, size: Format, config: ServeConfig) -> None:
    """Say one Decoded, ValueError in words for a file that cannot be used, or OSError when the disk fails."""
    limit_process(config)
    try:
        answer.send(_decode(file, folder, size, config))
    except OSError as error:
        answer.send(OSError(error.errno, error.strerror))
    except ValueError as error:
        answer.send(ValueError(str(error).replace(str(file), "the file")))


def enlarge(source: Path, target: Path, height: int, width: int, fps: float) -> None:
    """Write a finished video with longer sides."""
    write_video(target, read_video(source, fps, height, width).pixels_CFHW, fps, overwrite=True)


def limit_process(config: ServeConfig) -> None:
    """Take limits of processor time, file size and memory that this process cannot raise again."""
    seconds = int(config.decode_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + config.decode_bytes,) * 2)
    torch.set_num_threads(1)


def _decode(file: Path, folder: Path, size: Format, config: ServeConfig) -> Decoded:
    """Read a picture or a video, keep 1 + 4k frames of it, and write them."""
    picture.MAX_PIXELS = config.upload_pixels  # this process reads one stranger's file and ends
    (height, width, fps), most = size, config.max_frames - 4  # at least four new ones
    try:
        footage = read_video(file, fps, height, width, most + 1)
    except Exception as error:  # whatever a decoder says of a stranger's file
        is_told = isinstance(error, ValueError | OSError)
        words = str(error) if is_told else "the file cannot be decoded; convert it to .png or .mp4"
        memory = "the file needs too much memory to decode; make it smaller first"
        raise ValueError(memory if is_memory_error(error) else words) from None
    read = footage.pixels_CFHW.shape[1]
    if read > most:
        raise ValueError(f"a video to continue may have at most {most} frames at {fps:g} fps ({most / fps:g} s); cut it")
    frames = (read - 1) // 4 * 4 + 1
    left = f"frames left out at the end: {read - frames}, as frames come in 1 + 4k" if read > frames else ""
    rgb_CFHW = to_bytes(footage.pixels_CFHW[:, :frames]).contiguous()
    (folder / START.format(0)).write_bytes(save({"rgb_CFHW": rgb_CFHW}))
    first, *others = [Image.fromarray(rgb_HWC.numpy()) for rgb_HWC in rgb_CFHW.permute(1, 2, 3, 0).contiguous()]
    first.save(folder / PREVIEW, save_all=True, append_images=others, duration=round(1000 / fps), loop=0, quality=85)
    return Decoded(footage.kind == "video", frames, ", ".join(filter(None, [footage.note, left])))
