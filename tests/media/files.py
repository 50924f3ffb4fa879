"""Files of every strange kind, made with PyAV and Pillow, and what their frames show."""

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import numpy as np
from PIL import Image

from lumos.data.clips import Clip, Cut, read_clips
from lumos.data.manifest import Entry

Rgb = np.ndarray[Any, Any]
Maker = Callable[[Path], Path]
RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 220, 40)
COLOURS = {"R": RED, "G": GREEN, "B": BLUE, "Y": YELLOW, "W": (255, 255, 255)}


def bars(number: int, height: int = 32, width: int = 96) -> Rgb:
    """A picture that carries its number: nine black or white bars."""
    row = np.array([235 if number >> (x * 9 // width) & 1 else 20 for x in range(width)], np.uint8)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(rgb_HWC: Rgb) -> int:
    height, width, _ = rgb_HWC.shape
    return sum(1 << i for i in range(9) if rgb_HWC[height // 2, (2 * i + 1) * width // 18].mean() > 128)


def quadrants(height: int = 48, width: int = 64) -> Rgb:
    """RG/BY."""
    rgb_HWC = np.zeros((height, width, 3), np.uint8)
    rgb_HWC[: height // 2, : width // 2], rgb_HWC[: height // 2, width // 2 :] = RED, GREEN
    rgb_HWC[height // 2 :, : width // 2], rgb_HWC[height // 2 :, width // 2 :] = BLUE, YELLOW
    return rgb_HWC


def corners(rgb_HWC: Rgb) -> str:
    """The colours of the four corners, as RG/BY."""
    H, W, _ = rgb_HWC.shape
    found = [rgb_HWC[y, x].astype(int) for y in (H // 8, H - H // 8) for x in (W // 8, W - W // 8)]
    names = [min(COLOURS, key=lambda name: int(np.abs(pixel - COLOURS[name]).sum())) for pixel in found]
    return "".join(names[:2]) + "/" + "".join(names[2:])


def write_frames(
    path: Path,
    frames: Iterable[Rgb],
    codec: str = "libx264",
    fps: int = 30,
    format: str | None = None,
    pixels: str = "yuv420p",
    context: Mapping[str, Any] = MappingProxyType({}),
    times: list[float] | None = None,
    sound: float = 0.0,
    late: int = 0,
    apart: bool = False,
    **options: str,
) -> Path:
    """Frames at `fps` or `times`, `late` ones after the beginning; with seconds of silence, that come `apart` in the file."""
    with av.open(str(path), "w", format=format, options={"max_interleave_delta": "1"} if apart else {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        silent = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        first, *rest = frames
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], pixels
        base = stream.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        packets = []
        for i, rgb_HWC in enumerate([first, *rest]):
            frame = av.VideoFrame.from_ndarray(rgb_HWC, format="rgba" if rgb_HWC.shape[2] == 4 else "rgb24")
            frame.pts, frame.time_base = round(1000 * times[i]) if times else i + late, base
            packets += stream.encode(frame)
        packets += stream.encode()
        if silent is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, round(8000 * sound)), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            quiet = [*silent.encode(silence), *silent.encode()]
            packets = [*quiet, *packets] if apart else [*packets, *quiet]
        container.mux(packets)
    return path


def remux(source: Path, path: Path, keep: Callable[[Any], bool] = bool, shift: float = 0.0, format: str | None = None) -> Path:
    """The packets for which `keep` holds, later by `shift` seconds."""
    with av.open(str(source)) as read, av.open(str(path), "w", format=format) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None and packet.pts is not None and keep(packet):
                packet.pts, packet.dts = (value + round(shift / packet.time_base) for value in (packet.pts, packet.dts))
                packet.stream = stream
                written.mux(packet)
    return path


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The file with another display matrix: what is at (x, y) is shown at (a x + c y, b x + d y)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    """The file with other bytes in the place of some."""
    content = path.read_bytes()
    assert old and old in content
    path.write_bytes(content.replace(old, new))
    return path


def shortened(path: Path, share: float) -> Path:
    """The beginning of the file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def animation(path: Path, duration: int = 100, cover: bool = False, **more: Any) -> Path:
    """Five frames, the first one quadrants; behind a cover for viewers that show no animations."""
    frames = [Image.fromarray(quadrants()), *(Image.new("RGB", (64, 48), (40 * i, 0, 0)) for i in range(4))]
    if cover:
        frames, more = [Image.new("RGB", (64, 48)), *frames], {"default_image": True}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, **more)
    return path


def gray(level: int, height: int = 48, width: int = 64) -> Rgb:
    return np.full((height, width, 3), level, np.uint8)


def saved(path: Path, image: Image.Image | None = None, **more: Any) -> Path:
    (image or Image.fromarray(quadrants())).save(path, **more)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def of_colours(path: Path, rgb_HWC: Rgb, primaries: int, transfer: int) -> Path:
    """A picture that says what kind of colours it holds."""
    content = saved(path, Image.fromarray(rgb_HWC), quality=95).read_bytes()
    if path.suffix == ".png":
        place = content.index(b"IDAT") - 4
        content = content[:place] + chunk(b"cICP", bytes([primaries, transfer, 0, 1])) + content[place:]
    else:
        place = content.index(b"colrnclx") + 8
        content = content[:place] + bytes([0, primaries, 0, transfer]) + content[place + 4 :]
    path.write_bytes(content)
    return path


def clips_of(path: Path | str, cut: Cut, **part: Any) -> list[Clip]:
    return list(read_clips(Entry(1, str(path), ("x",), **part), cut))


def frames_of(path: Path, size: tuple[int, int] = (32, 96), fps: float = 10.0, **part: Any) -> list[Rgb]:
    """All frames that `prepare` takes."""
    return [rgb_HWC for clip in clips_of(path, Cut(8, fps, (size,), step=1, least=1), **part) for rgb_HWC in clip.rgb_FHWC]


def numbers(path: Path, **part: Any) -> list[int]:
    return [number_of(rgb_HWC) for rgb_HWC in frames_of(path, **part)]
