"""Video files -> timed pictures, through FFmpeg: the default stream, from the moment asked for, whole, upright, deinterlaced.

Decoding keeps one thread: several files are read at once instead, and with threads by frames FFmpeg hides damage.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lumos.media.picture import HDR, Header, Picture, Timed, check_size, in_srgb, of_rgb, over_white

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# What may be read: a playlist or a text file must not make the decoder open other files (or the network).
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,h264,hevc,ivf,nut,y4m,yuv4mpegpipe,mxf,dv"
HEADED = ("mov", "avi", "matroska", "flv", "mxf")  # formats whose header says how long the file is
ASF_TIMES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # what follows says it, too; FFmpeg forgets it for half a file
PHOTOS = ("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1", "avif", "avis")  # brands of photos in boxes
# libswscale's bicubic + accurate rounding + full chroma interpolation: its default darkens by a level and costs 9 dB.
ACCURATE = 0x4 | 0x40000 | 0x2000
TIMELESS = ("mpegvideo", "h264", "hevc")  # formats whose pictures follow each other at one rate
REFERRING = (2, 3)  # kinds of frames that need others: P and B
LEAP = 10.0  # seconds: by more the clock of a recording was set anew, as where two are joined; FFmpeg's own limit
RETREATS = (0.0, 4.0, 20.0)  # seconds before the moment asked for, to look for a frame to begin at

TimedFrame = tuple[float, float, "VideoFrame"]


def video_header(path: Path) -> Header:
    """What a video file promises, and how its first picture is shown. ValueError for one without pictures that can be read."""
    with _open(path) as (container, stream):
        first = next(_timed(container, stream, path, None), None)
        if first is None:
            raise ValueError(f"{path} must have frames, got none that is whole; copy it again")
        shown = _picture(first[2], stream, None, path)
        tick = float(stream.time_base or 0)
        seconds = _promised_end(container, stream)[0] - (stream.start_time or 0) * tick
        return Header("video", shown.width, shown.height, max(seconds, 0.0), float(stream.average_rate or 0), tick)


def video_pictures(path: Path, start: float) -> Iterator[Timed]:
    """Pictures in order of time from `start` seconds or a little earlier on. ValueError where the file is damaged or cut off.

    The first frame decoded after a seek may lie behind the moment asked for, or have a time that is a guess: then reading
    begins farther back, until it is a key frame from before `start`, at last at the beginning of the file.
    """
    import av
    from av.video.reformatter import VideoReformatter

    for seek in [*(start - back for back in RETREATS if start > back), None]:
        with _open(path) as (container, stream):
            frames = _timed(container, stream, path, seek)
            first = None
            with nullcontext() if seek is None else suppress(ValueError, av.FFmpegError):
                first = next(frames, None)
            trusted = first and first[0] <= start and first[2].key_frame and container.format.name != "mpeg"
            if seek is not None and not trusted:  # program streams: their times are guesses after a seek
                continue
            scaler = VideoReformatter()  # one for all frames: each would set up its filters anew
            for time, duration, frame in _deinterlaced(chain([first] if first else [], frames)):
                yield time, duration, _picture(frame, stream, scaler, path)
            return


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    import av

    options = {"format_whitelist": DEMUXERS}
    try:
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
            if container.metadata.get("major_brand") in PHOTOS:
                raise ValueError(f"{path} is a HEIC or AVIF photo, which cannot be read; convert it to .jpg")
            yield container, _stream(container, path)
    except av.FFmpegError as error:
        why = error.strerror or error
        raise ValueError(f"{path} is no picture and no readable video ({why}); copy it again or convert it to .mp4") from error


def _stream(container: InputContainer, path: Path) -> VideoStream:
    """The pictures that players show; ValueError when there are none, or ones of an impossible size."""
    from av.stream import Disposition

    best = container.streams.best("video")
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        held = "only sound" if container.streams.audio else "no pictures"
        raise ValueError(f"{path} holds {held}; give a video file")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise ValueError(f"{path} holds pictures of an unknown codec; convert it to .mp4")
    check_size(path, stream.codec_context.width, stream.codec_context.height)
    return stream


def _decoder(stream: VideoStream) -> Any:
    """The stream's decoder; of VP8 and VP9 with transparency, which FFmpeg's own ignore, libvpx."""
    import av

    context: Any = stream.codec_context
    metadata = {name.lower(): value for name, value in stream.metadata.items()}
    if metadata.get("alpha_mode") == "1" and context.name in ("vp8", "vp9"):
        context = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[context.name], "r")
    context.thread_count = 1
    return context


def _timed(container: InputContainer, stream: VideoStream, path: Path, seek: float | None) -> Iterator[TimedFrame]:
    """Every frame from the first one that decodes whole, with its time; ValueError for a damaged one after that."""
    import av

    tick, zero = float(stream.time_base or 0), (container.start_time or 0) / 1e6
    usual = 1 / float(stream.average_rate) if stream.average_rate else 0.04
    decoder = _decoder(stream)
    # In AVI files pictures have places in time, one each, and which has which is FFmpeg's guess: too late by that of the first.
    slots, delay = deque[int]() if container.format.name == "avi" else None, 0
    if seek is not None:
        delay = next(container.demux(stream)).pts or 0 if slots is not None else 0
        container.seek(round((zero + seek) / tick), stream=stream)
    end = 0.0 if seek is None else math.nan  # frames without a time of their own have none after a seek
    latest, count, reached, problem, hidden = -math.inf, 0, 0.0, None, False
    for packet in container.demux():
        if packet.pts is not None:
            reached = max(reached, float((packet.pts + (packet.duration or 0)) * (packet.time_base or 0)))
        if packet.stream.index != stream.index:
            continue
        if slots is not None and packet.dts is not None:
            slots.append(packet.dts)
        hidden = hidden or packet.is_discard  # by an edit list: decoded all the same, so that what follows is whole
        try:
            frames = decoder.decode(packet)
        except av.error.InvalidDataError as error:
            frames, problem = [], error
        half = packet.is_corrupt and container.format.name != "mpegts"  # the last one of a file that was cut off
        if count and (half or problem or any(frame.is_corrupt for frame in frames)):
            raise ValueError(f"{path} is damaged {end:.2f} s in; copy it again, or read fewer frames")
        for frame in frames:
            if slots:
                while not count and seek is not None and slots[0] < (frame.pts or 0) - delay:
                    slots.popleft()
                frame.pts = slots.popleft()
            dated = frame.pts is not None and container.format.name not in TIMELESS
            time = frame.pts * tick - zero if dated else end
            # Most decoders show something gray for frames that refer to what is not there; that of H.264 waits.
            alone = frame.pict_type not in REFERRING or hidden or decoder.name == "h264"
            if not count and (frame.is_corrupt or not alone):
                continue
            if time > end + LEAP and container.format.name.startswith("mpeg"):
                zero, time = zero + time - end, end
            if time < latest:  # program streams date few of their frames, and FFmpeg guesses the others
                time = end
            duration = frame.duration * tick if frame.duration else usual
            latest, end, count, problem = time, time + duration, count + 1, None
            yield time, duration, frame
    if problem:
        raise problem
    if seek is None and stream.frames and count >= 0.9 * stream.frames:
        return
    promised, own = _promised_end(container, stream)
    found = end if own else max(end, reached - zero)
    if found < 0.9 * (promised - zero):
        share = f"{found:.2f} of its {promised - zero:.2f} s"
        raise ValueError(f"{path} is cut off: it holds {share}; copy it again, or read fewer frames")


def _promised_end(container: InputContainer, stream: VideoStream) -> tuple[float, bool]:
    """(when the pictures or else the whole file end on the container's clock, as a header says, or 0; is it the pictures?)."""
    written = stream.metadata.get("DURATION", "")  # Matroska's statistics, 00:00:10.313000000, perhaps of a longer original
    with suppress(ValueError):
        hours, minutes, seconds = (float(part) for part in written.split(":"))
        return min(3600 * hours + 60 * minutes + seconds, (container.duration or math.inf) / 1e6), True
    if container.format.name.startswith(("mov", "avi")) and stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * (stream.time_base or 0)), True
    if container.format.name == "asf":
        with open(container.name.removeprefix("file:"), "rb") as file:
            numbers = file.read(2**16).partition(ASF_TIMES)[2][48:76]
        length, before, flags = struct.unpack("<q8xqI", numbers) if len(numbers) == 28 else (0, 0, 1)
        return 0.0 if flags & 1 else length / 1e7 - before / 1e3, False
    return (container.duration or 0) / 1e6 if container.format.name.startswith(HEADED) else 0.0, False


def _deinterlaced(timed: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
    """The same frames, all of a video made whole from the first interlaced one on."""
    interlaced = False

    def kind(item: TimedFrame) -> tuple[bool, int, int, str]:
        nonlocal interlaced
        frame = item[2]
        interlaced = interlaced or frame.interlaced_frame
        return interlaced, frame.width, frame.height, frame.format.name

    for (filtered, *_), alike in groupby(timed, kind):
        yield from (_filtered if filtered else iter)(alike)


def _filtered(timed: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
    """Frames of one size through FFmpeg's filter, which is one frame behind."""
    import av
    from av.filter import Graph

    graph: Any = None
    waiting: deque[tuple[float, float]] = deque()
    for time, duration, frame in chain(timed, [(0.0, 0.0, None)]):
        if frame is not None:
            waiting.append((time, duration))
            if graph is None:
                graph = Graph()
                source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
                graph.link_nodes(source, graph.add("bwdif", "mode=send_frame"), graph.add("buffersink")).configure()
        graph.vpush(frame)
        with suppress(av.BlockingIOError, av.EOFError):
            while waiting:
                whole = graph.vpull()
                yield *waiting.popleft(), whole


def _picture(frame: VideoFrame, stream: VideoStream, scaler: Any, path: Path) -> Picture:
    """A decoded frame, converted, scaled and turned when it is drawn."""
    found: Any = frame.side_data
    extra = {data.type.name: data for data in found}
    if frame.color_trc in HDR or "DOVI_METADATA" in extra:
        kind = HDR.get(frame.color_trc, "Dolby Vision")
        raise ValueError(f"{path} is HDR video ({kind}), which would be read in wrong colours; convert it to SDR")
    a, b, c, d = (1, 0, 0, 1)  # what is at (x, y) is shown at (a x + c y, b x + d y)
    if "DISPLAYMATRIX" in extra:
        a, b, _, c, d = np.frombuffer(extra["DISPLAYMATRIX"], np.int32)[:5].tolist()
    sideways = abs(b) > abs(a)
    down, right = (b, c) if sideways else (d, a)

    def scaled(rows: int, columns: int) -> NDArray[np.uint8]:
        high, wide = (columns, rows) if sideways else (rows, columns)
        if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
            rgb_HWC = of_rgb(over_white(frame.to_ndarray(format="rgba", interpolation=ACCURATE))).scaled(high, wide)
        else:
            rgb_HWC = scaler.reformat(frame, wide, high, format="rgb24", interpolation=ACCURATE).to_ndarray()
        upright_HWC = in_srgb(rgb_HWC.transpose(1, 0, 2) if sideways else rgb_HWC, frame.color_primaries)
        return upright_HWC[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]

    width, height = frame.width * (float(stream.sample_aspect_ratio or 0) or 1.0), float(frame.height)
    done = "turned upright" if sideways or min(down, right) < 0 else ""
    return Picture(height, width, scaled, done) if sideways else Picture(width, height, scaled, done)
