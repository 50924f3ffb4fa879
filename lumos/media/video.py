"""Files <-> pixels: read a video or an image at a size and frame rate, and write one.

Reads paths into pixels_CFHW, float in [-1, 1], with a note on what was done to make them fit, and writes them back. PyAV is
imported where it is used: machines that only train or sample, as rented ones do, may lack it.
"""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lumos.config import Range, read_value
from lumos.files import check_writable, whole_file
from lumos.media.ffmpeg import ACCURATE
from lumos.media.picture import Picture
from lumos.media.pillow import IMAGE_FORMATS, image_header
from lumos.media.pixels import clips_to_pixels, to_bytes
from lumos.media.sheet import contact_sheet
from lumos.media.source import decoding, pick, read_header, readable_file, timed_pictures

MAX_BYTES = 2**32
LARGEST_SIDE = 16_383  # pixels: of WebP, and nearly of H.264
Rate = Annotated[float, Range(0.001, 1000)]  # frames per second
Moment = Annotated[float, Range(0, 1e9)]  # seconds


class Footage(NamedTuple):
    """Pixels read from a file, and what was done to them in words a user understands (empty when nothing was)."""

    pixels_CFHW: Tensor
    note: str
    kind: Literal["image", "video"] = "video"


def read_video(
    path: str | Path, fps: float, height: int, width: int, max_frames: int | None = None, start: float = 0.0
) -> Footage:
    """Frames of a file from `start` seconds on, at `fps` frames per second: float32 [3, F, height, width] in [-1, 1].

    Frame i is what a player shows at start + i / fps, turned upright, deinterlaced, resized until it covers the asked shape
    and cropped in the middle; transparency goes over white. A photo is one frame. Reads to the end or up to `max_frames`.
    Raises FileNotFoundError, and ValueError for anything that cannot be read, is damaged in the part asked for, smaller
    than 16 pixels a side, or longer than fits.
    """
    fps, start = read_value(Rate, float(fps), "fps"), read_value(Moment, float(start), "start")
    header = read_header(path)
    frames: list[NDArray[np.uint8]] = []
    notes: list[str] = []
    shown: Picture | None = None
    with decoding(path):
        for _, picture in pick(timed_pictures(path, start), fps, start, most=max_frames):
            frames.append(frames[-1] if picture is shown else picture.draw(height, width))
            shown, notes = picture, notes or picture.note(height, width)
            if len(frames) * frames[0].size * 4 > MAX_BYTES:
                raise ValueError(f"{path} is longer than fits into 4 GiB at {width}x{height}; read fewer frames")
    if not frames:
        raise ValueError(f"start must lie within {path}, got {start} s; use a smaller one")
    if header.fps and abs(1 / header.fps - 1 / fps) > header.tick:
        notes = [*notes, f"{header.fps:.4g} -> {fps:.4g} fps"]
    pixels_BCFHW = clips_to_pixels(torch.from_numpy(np.stack(frames)[None]))
    return Footage(pixels_BCFHW[0].contiguous(), ", ".join(notes), header.kind)


def read_image(path: str | Path, height: int, width: int) -> Footage:
    """An image file, or an animation's first frame, as a video of one frame: float32 [3, 1, height, width] in [-1, 1].

    Turned upright by its EXIF tag, transparency over white, 16 bits brought to 8, resized and cropped as `read_video` does.
    Raises FileNotFoundError, and ValueError for anything that is no image, damaged, too small or too large.
    """
    path = readable_file(path)
    with decoding(path):
        header = image_header(path)
    if header is None:
        raise ValueError(f"{path} is no readable image; give a {', '.join(IMAGE_FORMATS)} file (--video takes videos)")
    footage = read_video(path, header.fps or 1.0, height, width, 1)
    first = ["first of several frames"] if header.kind == "video" else []
    return Footage(footage.pixels_CFHW, ", ".join([*first, *filter(None, [footage.note])]), "image")


def write_video(path: str | Path, pixels_CFHW: Tensor, fps: float, overwrite: bool = False) -> Path:
    """Write float pixels [3, F, H, W] (or a batch of one video) in [-1, 1] as .mp4, .gif, .webp or .png; returns the path.

    A .png of several frames is a contact sheet. The file appears whole or not at all; a full disk is an OSError in
    words. Raises ValueError for an unknown ending or a shape the format cannot hold, FileExistsError without overwrite.
    """
    if pixels_CFHW.ndim == 5 and len(pixels_CFHW) == 1:  # as a Generator gives one video
        pixels_CFHW = pixels_CFHW[0]
    if pixels_CFHW.ndim != 4 or pixels_CFHW.shape[0] != 3 or pixels_CFHW.numel() == 0:
        raise ValueError(f"pixels must have shape [3, frames, height, width], got {list(pixels_CFHW.shape)}")
    fps = read_value(Rate, float(fps), "fps")
    path = check_output(path, overwrite, fps, *pixels_CFHW.shape[2:])
    rgb_FHWC = to_bytes(pixels_CFHW).permute(1, 2, 3, 0).contiguous().numpy()
    with whole_file(path) as partial:
        WRITERS[path.suffix.lower()](partial, rgb_FHWC, fps)
    return path


def check_output(path: str | Path, overwrite: bool = False, fps: float = 1.0, height: int = 2, width: int = 2) -> Path:
    """All that can be wrong with an output, found before the long work: ending, folder, permission, existing file, rate, size."""
    path, size = Path(path), f"{width}x{height}"
    kind = path.suffix.lower()
    if kind not in WRITERS:
        raise ValueError(f"the output must end in {', '.join(WRITERS)}, got {path.name!r}; rename it")
    if kind == ".gif" and fps > 50:
        raise ValueError(f"a .gif must have at most 50 fps, got {fps}; use .mp4")
    if kind == ".mp4" and (height % 2 or width % 2):
        raise ValueError(f"an .mp4 must have even sides, got {size}; use .gif or an even size")
    if kind in (".mp4", ".webp") and max(height, width) > LARGEST_SIDE:
        rule = f"an {kind} must have sides of at most {LARGEST_SIDE} pixels"
        raise ValueError(f"{rule}, got {size}; use .gif or .png, or a smaller size")
    check_writable(path, overwrite)
    return path


def _write_mp4(path: Path, rgb_FHWC: NDArray[np.uint8], fps: float) -> None:
    _, rows, columns, _ = rgb_FHWC.shape
    import av

    rate = Fraction(fps).limit_denominator(1001)
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # Without a macroblock tree, and in one thread, pixels give the same file again. Slower presets gain nothing.
        options = {"crf": "16", "preset": "veryfast", "x264-params": "mbtree=0"}
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


def _write_gif(path: Path, rgb_FHWC: NDArray[np.uint8], fps: float) -> None:
    import av
    from av.filter import Graph

    _, rows, columns, _ = rgb_FHWC.shape
    tick = Fraction(1, 100)  # what the format counts in
    graph = Graph()
    source = graph.add_buffer(width=columns, height=rows, format=av.VideoFormat("rgb24"), time_base=tick)
    split, palette, use = graph.add("split"), graph.add("palettegen"), graph.add("paletteuse", "dither=sierra2_4a")
    graph.link_nodes(source, split, use, graph.add("buffersink"))
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
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


def _write_webp(path: Path, rgb_FHWC: NDArray[np.uint8], fps: float) -> None:
    starts = [round(1000 * i / fps) for i in range(len(rgb_FHWC) + 1)]
    durations = [after - before for before, after in pairwise(starts)]
    first, *rest = [Image.fromarray(rgb_HWC) for rgb_HWC in rgb_FHWC]
    first.save(path, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, quality=90, method=4)


def _write_png(path: Path, rgb_FHWC: NDArray[np.uint8], fps: float) -> None:
    if len(rgb_FHWC) == 1:
        image = Image.fromarray(rgb_FHWC[0])
    else:
        pixels_BCFHW = clips_to_pixels(torch.from_numpy(rgb_FHWC[None]))
        image = contact_sheet(pixels_BCFHW, [f"{len(rgb_FHWC)} frames at {fps:.4g} fps"])
    image.save(path, "PNG", compress_level=4)  # half to a third of the time of Pillow's 6, and files as large


WRITERS = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp, ".png": _write_png}
