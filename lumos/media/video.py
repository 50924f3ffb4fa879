"""Files <-> pixels: read a video or an image at a size and frame rate, write one, and lay samples out for the eye.

In go paths, out come pixels_CFHW, float in [-1, 1], with a note on what was done to make them fit; and the other way
round. PyAV and Pillow are imported where they are used, because training on prepared codes runs without them.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lumos.files import partial_of, whole_file
from lumos.media.pixels import to_bytes, to_float
from lumos.media.sheet import contact_sheet

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL.Image import Image

T = TypeVar("T")

MIN_SIDE = 16
MAX_PIXELS = 2**27
MAX_BYTES = 2**32
# What may be read: a playlist or a text file must not make the decoder open other files (or the network).
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,flv,ogg,asf,h264,hevc,ivf,apng,nut,y4m,yuv4mpegpipe"
)
# libswscale's bicubic + accurate rounding + full chroma interpolation: its default darkens by a level and costs 9 dB.
ACCURATE = 0x4 | 0x40000 | 0x2000
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class Clip:
    """Pixels read from a file, and what was done to them in words a user understands (empty when nothing was)."""

    pixels_CFHW: Tensor
    note: str


def read_video(path: str | Path, fps: float, height: int, width: int, max_frames: int | None = None, start: float = 0.0) -> Clip:
    """Frames of a video file from `start` seconds on, at `fps` frames a second: float32 [3, F, height, width] in [-1, 1].

    Frame i is what a player shows at start + i / fps, turned upright, centre-cropped to the asked shape and resized;
    transparency goes over white. Reads to the end or up to `max_frames`. Raises FileNotFoundError, and ValueError for
    anything that is no video, is damaged in the part asked for, smaller than 16 pixels a side, or longer than fits.
    """
    path = readable_file(path)
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be above 0, got {fps}; use for example 8")
    if not (math.isfinite(start) and start >= 0):
        raise ValueError(f"start must be 0 or more seconds, got {start}; use 0 to read from the beginning")
    import av

    pixels: list[Tensor] = []
    notes: list[str] = []
    shown: VideoFrame | None = None
    try:
        with av.open(f"file:{path}", options={"format_whitelist": DEMUXERS}) as container:
            stream = video_stream(container, path)
            source_fps, tick = float(stream.average_rate or fps), float(stream.time_base or 0)
            for frame in pick(timed_frames(container, stream, start, path), fps, start, max_frames):
                if frame is shown:
                    pixels.append(pixels[-1])
                    continue
                shown = frame
                rgb_HWC, upright = turned_upright(frame)
                rgb_CHW, fitted = fit(rgb_HWC, height, width, pixel_aspect_of(stream, frame))
                pixels.append(rgb_CHW)
                notes = notes or upright + fitted
                if len(pixels) * rgb_CHW.numel() * 4 > MAX_BYTES:
                    raise ValueError(
                        f"{path} is longer than fits into 4 GiB at {width}x{height}; read fewer frames or a smaller size"
                    )
    except av.FFmpegError as error:
        raise ValueError(f"{path} is no readable video ({error.strerror}); copy it again or convert it to .mp4") from error
    if not pixels:
        raise ValueError(f"start must lie within {path}, got {start} s; use a smaller one")
    if abs(1 / source_fps - 1 / fps) > tick:  # a file's times are whole ticks, so its rate is no better known
        notes.append(f"{source_fps:.4g} -> {fps:.4g} fps")
    return Clip(to_float(torch.stack(pixels, 1)), ", ".join(notes))


def read_image(path: str | Path, height: int, width: int) -> Clip:
    """An image file as a video of one frame: float32 [3, 1, height, width] in [-1, 1].

    Turned upright by its EXIF tag, transparency over white, 16 bits brought to 8, centre-cropped to the asked shape and
    resized. Raises FileNotFoundError, and ValueError for anything that is no image, damaged, too small or too large.
    """
    rgb_HWC, notes = upright_image(path)
    rgb_CHW, fitted = fit(rgb_HWC, height, width, 1.0)
    return Clip(to_float(rgb_CHW[:, None]), ", ".join(notes + fitted))


def upright_image(path: str | Path) -> tuple[np.ndarray[Any, Any], list[str]]:
    """An image file as rgb_HWC in its own size, upright and over white, and what was done. Errors as in `read_image`."""
    path = readable_file(path)
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own rule follows
            image = Image.open(path, formats=IMAGE_FORMATS)
        with image:
            check_size(path, *image.size)
            notes = ["first of several frames"] if getattr(image, "n_frames", 1) > 1 else []
            notes += ["turned upright"] if image.getexif().get(0x0112, 1) != 1 else []
            return image_rgb(ImageOps.exif_transpose(image), path), notes
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} must have at most {MAX_PIXELS // 10**6} million pixels; make it smaller first") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no readable image; give a {', '.join(IMAGE_FORMATS)} file") from error
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error


def write_video(path: str | Path, pixels_CFHW: Tensor, fps: float, overwrite: bool = False) -> Path:
    """Write float pixels [3, F, H, W] in [-1, 1] as .mp4, .gif, .webp or .png; returns the path.

    A .png of several frames is a contact sheet. The file appears whole or not at all; a full disk is an OSError in
    words. Raises ValueError for an unknown ending or a shape the format cannot hold, FileExistsError without overwrite.
    """
    path = check_output(path, overwrite)
    if pixels_CFHW.ndim != 4 or pixels_CFHW.shape[0] != 3 or pixels_CFHW.numel() == 0:
        raise ValueError(
            f"pixels must have shape [3, frames, height, width], got {list(pixels_CFHW.shape)}; add the missing axis"
        )
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be above 0, got {fps}; use for example 8")
    rgb_FHWC = to_bytes(pixels_CFHW).permute(1, 2, 3, 0).contiguous().numpy()
    with whole_file(path) as partial:
        WRITERS[path.suffix.lower()](partial, rgb_FHWC, fps)
    return path


def check_output(path: str | Path, overwrite: bool = False) -> Path:
    """Everything that can be wrong with an output path, found before the long work: ending, folder, permission, existing file."""
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"the output must end in {', '.join(WRITERS)}, got {path.name!r}; rename it")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}; create it first")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; use another name or --force to replace it")
    probe = partial_of(path)
    try:  # asking for permission is unreliable (root, read-only disks); trying is not
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666))
    except OSError as error:
        raise PermissionError(f"cannot write to the folder {path.parent} ({error.strerror}); choose another one") from error
    finally:
        probe.unlink(missing_ok=True)
    return path


def pick(timed: Iterable[tuple[float, float, T]], fps: float, start: float, limit: int | None) -> Iterator[T]:
    """From (time, duration, item) in order of time, the items shown at start, start + 1 / fps, ... until the last one ends.

    Times are rounded in most files, so an item counts as shown up to half an interval early, and equal rates give
    every item exactly once.
    """
    count = 0
    before: tuple[float, float, T] | None = None
    for time, duration, item in timed:
        if before is not None:
            early = min(1 / fps, max(time - before[0], 0.0)) / 2
            while start + count / fps < time - early:
                if count == limit:
                    return
                yield before[2]
                count += 1
        before = (time, duration, item)
    if before is not None:
        end = before[0] + before[1] - min(1 / fps, before[1]) / 2
        while start + count / fps < end and count != limit:
            yield before[2]
            count += 1


def timed_frames(
    container: InputContainer, stream: VideoStream, start: float, path: Path
) -> Iterator[tuple[float, float, VideoFrame]]:
    """(time since the video's first frame, duration, frame), from about `start` seconds on. ValueError where it is damaged."""
    import av

    assert stream.time_base is not None
    tick = float(stream.time_base)
    usual = 1 / float(stream.average_rate) if stream.average_rate else 0.04
    zero = stream.start_time
    if start > 0:
        with suppress(av.FFmpegError):  # a file without an index is read from its beginning
            container.seek((zero or 0) + int(start / tick), stream=stream)
    end, count = 0.0, 0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise ValueError(f"{path} is damaged {end:.2f} s in; copy it again, or read fewer frames")
        if zero is None:
            zero = frame.pts or 0
        time = (frame.pts - zero) * tick if frame.pts is not None else end
        duration = frame.duration * tick if frame.duration else usual
        end, count = time + duration, count + 1
        yield time, duration, frame
    promised = (stream.duration or 0) * tick
    if not promised and not container.streams.audio:  # Matroska gives one length for all, and sound may be longer
        promised = (container.duration or 0) / 1e6
    if end < 0.9 * promised and (start > 0 or not stream.frames or count < 0.9 * stream.frames):
        raise ValueError(f"{path} is cut off: it holds {end:.2f} of its {promised:.2f} s; copy it again, or read fewer frames")


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The pictures of an open file; ValueError when it holds none, or ones of an impossible size."""
    # Its decoder keeps PyAV's default threads, by slices: with threads by frames FFmpeg hides the errors of a damaged file.
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        held = "only sound" if container.streams.audio else "no pictures"
        raise ValueError(f"{path} holds {held}; give a video file")
    check_size(path, streams[0].width, streams[0].height)
    return streams[0]


def turned_upright(frame: VideoFrame) -> tuple[np.ndarray[Any, Any], list[str]]:
    """A decoded frame as rgb_HWC (transparency over white), turned as its file asks, and what was done."""
    format = frame.format
    if format.has_palette or any(component.is_alpha for component in format.components):
        rgb_HWC = _over_white(frame.to_ndarray(format="rgba", interpolation=ACCURATE))
    else:
        rgb_HWC = frame.to_ndarray(format="rgb24", interpolation=ACCURATE)
    turns = round(frame.rotation / 90) % 4  # phones write a sideways picture and how to turn it, counter-clockwise
    return np.rot90(rgb_HWC, turns), ["turned upright"] if turns else []


def pixel_aspect_of(stream: VideoStream, frame: VideoFrame) -> float:
    """Width over height of a pixel of the frame once it is upright."""
    aspect = float(stream.sample_aspect_ratio or 0) or 1.0
    return 1 / aspect if round(frame.rotation / 90) % 2 else aspect


def image_rgb(image: Image, path: Path) -> np.ndarray[Any, Any]:
    """An open image as rgb_HWC, 8 bits, transparency over white."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip
        gray_HW = (np.asarray(image, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        return gray_HW[..., None].repeat(3, axis=-1)
    if image.mode == "F":
        raise ValueError(f"{path} holds floating-point pixels of unknown range; save it as an 8-bit PNG")
    if image.has_transparency_data:
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _over_white(rgba_HWC: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    alpha_HW1 = rgba_HWC[..., 3:].astype(np.float32) / 255
    return (rgba_HWC[..., :3] * alpha_HW1 + 255 * (1 - alpha_HW1)).round().astype(np.uint8)


def fit(rgb_HWC: np.ndarray[Any, Any], height: int, width: int, pixel_aspect: float) -> tuple[Tensor, list[str]]:
    """Centre-crop to the shape height:width, then resize: uint8 [3, height, width] and what was done."""
    rows, columns = rgb_HWC.shape[:2]
    cut_columns = min(columns, max(1, round(rows * width / (height * pixel_aspect))))
    cut_rows = min(rows, max(1, round(columns * pixel_aspect * height / width)))
    top, left = (rows - cut_rows) // 2, (columns - cut_columns) // 2
    cut_HWC = np.ascontiguousarray(rgb_HWC[top : top + cut_rows, left : left + cut_columns])
    rgb_CHW = torch.from_numpy(cut_HWC).permute(2, 0, 1)
    notes = []
    if (cut_rows, cut_columns) != (rows, columns):
        notes.append(f"center-cropped {columns}x{rows} to {cut_columns}x{cut_rows}")
    if (cut_rows, cut_columns) != (height, width):
        notes.append(f"resized to {width}x{height}")
        rgb_CHW = F.interpolate(rgb_CHW[None], (height, width), mode="bicubic", antialias=True)[0]
    return rgb_CHW.contiguous(), notes


def _write_mp4(path: Path, rgb_FHWC: np.ndarray[Any, Any], fps: float) -> None:
    _, rows, columns, _ = rgb_FHWC.shape
    if rows % 2 or columns % 2:
        raise ValueError(f"an .mp4 must have even sides, got {columns}x{rows}; use .gif or an even size")
    import av

    rate = Fraction(fps).limit_denominator(1001)
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # Its macroblock tree is not deterministic; without it, and with one thread, the same pixels give the same file.
        options = {"crf": "16", "preset": "slow", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
        stream.thread_count = 1
        stream.colorspace = stream.color_primaries = stream.color_trc = 1  # BT.709, what players assume least wrongly
        stream.color_range = 1
        for i, rgb_HWC in enumerate(rgb_FHWC):
            frame = av.VideoFrame.from_ndarray(rgb_HWC, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", interpolation=ACCURATE)
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(path: Path, rgb_FHWC: np.ndarray[Any, Any], fps: float) -> None:
    if fps > 50:
        raise ValueError(f"a .gif must have at most 50 fps, got {fps}; use .mp4")
    import av
    from av.filter import Graph

    _, rows, columns, _ = rgb_FHWC.shape
    tick = Fraction(1, 100)  # what the format counts in
    graph = Graph()
    source = graph.add_buffer(width=columns, height=rows, format=av.VideoFormat("rgb24"), time_base=tick)
    split, palette, use = graph.add("split"), graph.add("palettegen"), graph.add("paletteuse", "dither=sierra2_4a")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(graph.add("buffersink"))
    graph.configure()
    starts = [round(100 * i / fps) for i in range(len(rgb_FHWC) + 1)]
    for i, rgb_HWC in enumerate(rgb_FHWC):
        frame = av.VideoFrame.from_ndarray(rgb_HWC, format="rgb24")
        frame.pts, frame.time_base, frame.duration = starts[i], tick, starts[i + 1] - starts[i]
        graph.vpush(frame)
    graph.vpush(None)
    with av.open(f"file:{path}", "w", format="gif", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = columns, rows, "pal8"
        stream.codec_context.time_base = tick
        for _ in rgb_FHWC:
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode())


def _write_webp(path: Path, rgb_FHWC: np.ndarray[Any, Any], fps: float) -> None:
    from PIL import Image

    starts = [round(1000 * i / fps) for i in range(len(rgb_FHWC) + 1)]
    durations = [after - before for before, after in pairwise(starts)]
    first, *rest = [Image.fromarray(rgb_HWC) for rgb_HWC in rgb_FHWC]
    first.save(path, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, quality=90, method=4)


def _write_png(path: Path, rgb_FHWC: np.ndarray[Any, Any], fps: float) -> None:
    from PIL import Image

    if len(rgb_FHWC) == 1:
        Image.fromarray(rgb_FHWC[0]).save(path, "PNG")
    else:
        pixels_CFHW = to_float(torch.from_numpy(rgb_FHWC).permute(3, 0, 1, 2))
        contact_sheet(pixels_CFHW[None], [f"{len(rgb_FHWC)} frames at {fps:.4g} fps"]).save(path, "PNG")


WRITERS: dict[str, Callable[[Path, np.ndarray[Any, Any], float], None]] = {
    ".mp4": _write_mp4,
    ".gif": _write_gif,
    ".webp": _write_webp,
    ".png": _write_png,
}


def readable_file(path: str | Path) -> Path:
    """The path of a file that exists, is not empty, and may be read; otherwise an error in words."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check the path")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); copy it again")
    with open(path, "rb"):  # no permission shows here, with its own words
        return path


def check_size(path: Path, columns: int, rows: int) -> None:
    """ValueError for a picture that is too small or too large to be meant."""
    if min(columns, rows) < MIN_SIDE:
        raise ValueError(f"{path} must be at least {MIN_SIDE}x{MIN_SIDE} pixels, got {columns}x{rows}; use a larger picture")
    if columns * rows > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise ValueError(f"{path} must have at most {limit} million pixels, got {columns}x{rows}; make it smaller first")
