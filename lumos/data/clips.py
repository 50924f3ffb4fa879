"""Video and image files -> clips of 1 + 4k frames at one frame rate, in size buckets by shape: uint8 rgb_FHWC.

Frames are picked by time (so variable rates come out right), deinterlaced where the file says so, turned upright, scaled to
cover the bucket nearest in shape, and cropped in the middle. Animated WebP, GIF and PNG are read with Pillow; neither they nor
the pictures stored in shards need PyAV.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lumos.data.manifest import Entry, is_url
from lumos.data.shards import ShardReader
from lumos.media.video import (
    ACCURATE,
    DEMUXERS,
    IMAGE_FORMATS,
    check_size,
    fit,
    image_rgb,
    pick,
    pixel_aspect_of,
    readable_file,
    timed_frames,
    turned_upright,
    upright_image,
    video_stream,
)

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

Array = np.ndarray[Any, Any]
MOST_RATIO = 8  # of an input's sides: a wider one would lose nearly everything to the crop


@dataclass(frozen=True)
class Cut:
    """How to cut: clips of `frames` frames (the rest of a video: 1 + `step` k of them, if that is `least` or
    more) at `fps`; `sizes`: (height, width) buckets; `every`: seconds between the starts of clips, None = one after another;
    `scenes`: split where the share of pixels whose colour changes exceeds this, None = nowhere; `loop`: a video shorter than
    a clip starts again, as animations do."""

    frames: int
    fps: float
    sizes: tuple[tuple[int, int], ...]
    step: int = 4
    least: int = 5
    every: float | None = None
    scenes: float | None = None
    loop: bool = False


class Clip(NamedTuple):
    """rgb_FHWC uint8 of one clip, and where it starts in its source, in seconds."""

    rgb_FHWC: Array
    start: float


class Shown(NamedTuple):
    """A frame as it will be shown: its shape, and how to get its pixels at a size (rgb_HWC)."""

    width: float
    height: float
    draw: Callable[[int, int], Array]


def read_clips(entry: Entry, cut: Cut, stored: ShardReader | None = None) -> Iterator[Clip]:
    """The clips of one input, in order. Raises ValueError or OSError, in one line, for one that cannot be read to its end."""
    start = entry.start or 0.0
    limit = None if entry.end is None else max(1, math.floor((entry.end - start) * cut.fps + 1e-6))
    if entry.stored >= 0:
        assert stored is not None, "an input of a picture shard comes with its reader"
        frames = _stored_frames(stored.row(entry.stored))
        yield from _cut(pick(frames, cut.fps, start, limit), cut, start)
        return
    with _local(entry.path) as path:
        readable_file(path)
        count = _images_in(path)
        if count == 1:
            rgb_HWC, _ = upright_image(path)
            yield from _cut(iter([_whole(rgb_HWC)]), cut, 0.0)
        elif count:
            yield from _cut(pick(_animation(path), cut.fps, start, limit), cut, start)
        else:
            with _decoded(path, start) as timed:
                yield from _cut(pick(timed, cut.fps, start, limit), cut, start)


def nearest_size(width: float, height: float, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The (height, width) bucket whose shape is most like width:height."""
    return min(sizes, key=lambda size: abs(math.log(width / height) - math.log(size[1] / size[0])))


def promised(entry: Entry) -> tuple[float, float, float]:
    """(seconds, width, height) as the header of a local file promises; 0 seconds for an image. For --dry-run."""
    path = readable_file(entry.path)
    count = _images_in(path)
    if count:
        from PIL import Image

        with Image.open(path, formats=IMAGE_FORMATS) as image:
            width, height = image.size
            seconds = 0.0 if count == 1 else count * _seconds_shown(image)
    else:
        import av

        try:
            with av.open(f"file:{path}", options={"format_whitelist": DEMUXERS}) as container:
                stream = video_stream(container, path)
                seconds = float(container.duration or 0) / 1e6
                width, height = stream.width, stream.height
        except av.FFmpegError as error:
            raise unreadable(path, error) from error
    return max(0.0, min(seconds, entry.end or math.inf) - (entry.start or 0.0)), width, height


def pack_picture(rgb_FHWC: Array) -> bytes:
    """A clip as one WebP picture, its frames side by side in rows: small, and readable without PyAV."""
    from PIL import Image

    F, H, W, _ = rgb_FHWC.shape
    columns = min(F, LARGEST_SIDE // W)
    rows = math.ceil(F / columns)
    if rows * H > LARGEST_SIDE:
        raise ValueError(
            f"a stored clip must fit into {LARGEST_SIDE} pixels a side, got {F} frames of {W}x{H}; use fewer --frames"
        )
    filled = np.concatenate([rgb_FHWC, np.repeat(rgb_FHWC[-1:], rows * columns - F, 0)])
    sheet = filled.reshape(rows, columns, H, W, 3).transpose(0, 2, 1, 3, 4).reshape(rows * H, columns * W, 3)
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "WEBP", quality=QUALITY, method=4)
    return content.getvalue()


def unpack_picture(content: bytes, F: int, H: int, W: int) -> Array:
    """The inverse of `pack_picture`, but for what WebP loses: rgb_FHWC."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
        sheet = np.asarray(image.convert("RGB"))
    columns = sheet.shape[1] // W
    tiles = sheet.reshape(-1, H, columns, W, 3).transpose(0, 2, 1, 3, 4).reshape(-1, H, W, 3)
    return np.ascontiguousarray(tiles[:F])


LARGEST_SIDE = 16_383  # of a WebP picture
QUALITY = 92


def _cut(frames: Iterator[Shown], cut: Cut, start: float) -> Iterator[Clip]:
    """Collect drawn frames into clips. `first`: number of the frame that the buffer starts with."""
    step = cut.frames if cut.every is None else max(1, round(cut.every * cut.fps))
    size: tuple[int, int] | None = None
    buffer: list[Array] = []
    shown: Shown | None = None
    scene: Array | None = None
    first, number, count, fresh = 0, 0, 0, True
    for frame in frames:
        if frame is not shown:
            if size is None:
                _check_shape(frame)
                size = nearest_size(frame.width, frame.height, cut.sizes)
            shown, drawn = frame, frame.draw(*size)
            if cut.scenes is not None:
                before, scene = scene, _colours(drawn)
                if before is not None and 0.5 * np.abs(scene - before).sum() > cut.scenes:
                    for clip in _rest(buffer, cut, start, first, fresh):
                        count += 1
                        yield clip
                    buffer, first, fresh = [], number, True
        if number >= first:  # behind a gap, when clips start farther apart than they are long
            buffer.append(drawn)
        number += 1
        if len(buffer) == cut.frames:
            count += 1
            yield Clip(np.stack(buffer), start + first / cut.fps)
            buffer, first, fresh = buffer[step:], first + step, cut.every is None
    if number == 0:
        raise ValueError("the video must have frames in the part asked for, got none; check start and end")
    if number == 1:  # an image, or a video of one frame
        yield Clip(np.stack(buffer), start)
        return
    if cut.loop and not count and number < cut.frames and first == 0:
        count = 1
        yield Clip(np.stack([buffer[i % number] for i in range(cut.frames)]), start)
        return
    for clip in _rest(buffer, cut, start, first, fresh):
        count += 1
        yield clip
    if not count:
        raise ValueError(
            f"a video must have at least {cut.least} frames at {cut.fps:g} fps, got {number}; use a longer one or --least"
        )


def _rest(buffer: list[Array], cut: Cut, start: float, first: int, fresh: bool) -> Iterator[Clip]:
    """What is left of a video or scene, unless it is too short or (`fresh` is False) was all in the clip before."""
    frames = 1 + (len(buffer) - 1) // cut.step * cut.step
    if buffer and fresh and frames >= cut.least:
        yield Clip(np.stack(buffer[:frames]), start + first / cut.fps)


def _colours(rgb_HWC: Array) -> Array:
    """Shares of 64 colours: moving things change them little, another scene much."""
    bins = (rgb_HWC[::2, ::2] >> 6).astype(np.int64)
    counts = np.bincount((bins[..., 0] * 16 + bins[..., 1] * 4 + bins[..., 2]).ravel(), minlength=64)
    return counts / counts.sum()


def _check_shape(frame: Shown) -> None:
    if max(frame.width, frame.height) > MOST_RATIO * min(frame.width, frame.height):
        raise ValueError(
            f"one side must be at most {MOST_RATIO} times the other, got {frame.width:.0f}x{frame.height:.0f}; crop it first"
        )


@contextmanager
def _local(path: str) -> Iterator[Path]:
    """A URL's content as a local file for as long as it is needed; a local path as it is."""
    if not is_url(path):
        yield Path(path)
        return
    import fsspec

    with TemporaryDirectory(prefix="lumos-") as folder:
        copy = Path(folder) / (path.rpartition("/")[2][-80:] or "video")
        try:
            with fsspec.open(path, "rb") as remote, open(copy, "wb") as local:
                while block := remote.read(2**22):
                    local.write(block)
        except ImportError as error:
            raise ValueError(f"{path} needs a package to be read ({error}); install it") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no file {path}; check the URL") from error
        except Exception as error:  # every fsspec file system has errors of its own
            raise OSError(f"cannot fetch {path} ({type(error).__name__}: {error}); try again later") from error
        yield copy


def _images_in(path: Path) -> int:
    """How many frames Pillow sees in a file; 0 for a file that is no image, 1 for a bad one (reading it says why)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                return 1 if image.format == "TIFF" else int(getattr(image, "n_frames", 1))
    except UnidentifiedImageError:
        return 0
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return 1


def _animation(path: Path) -> Iterator[tuple[float, float, Shown]]:
    """The frames of an animated WebP, GIF or PNG."""
    from PIL import Image

    time = 0.0
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            check_size(path, *image.size)
            for number in range(int(getattr(image, "n_frames", 1))):
                image.seek(number)
                image.load()
                duration = _seconds_shown(image)
                yield time, duration, _picture(image.copy(), path)
                time += duration
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{path} is damaged {time:.2f} s in ({error}); copy it again") from error


def _seconds_shown(image: Any) -> float:
    return float(image.info.get("duration") or 100) / 1000  # what browsers take when a file says 0


def _stored_frames(row: dict[str, Any]) -> Iterator[tuple[float, float, Shown]]:
    """The frames of a row of a picture shard."""
    rgb_FHWC = unpack_picture(row["picture"], row["F"], row["height"], row["width"])
    for number, rgb_HWC in enumerate(rgb_FHWC):
        yield number / row["fps"], 1 / row["fps"], _whole(rgb_HWC)


@contextmanager
def _decoded(path: Path, start: float) -> Iterator[Iterator[tuple[float, float, Shown]]]:
    """The frames of a video file, through FFmpeg."""
    import av
    from av.video.reformatter import VideoReformatter

    try:
        with av.open(f"file:{path}", options={"format_whitelist": DEMUXERS}) as container:
            stream = video_stream(container, path)
            stream.codec_context.thread_count = 1  # several files are read at once instead
            timed = _progressive(timed_frames(container, stream, start, path), stream)
            scaler = VideoReformatter()  # one for all frames: each would set up its filters anew
            yield ((time, duration, _frame(frame, stream, scaler)) for time, duration, frame in timed)
    except av.FFmpegError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ValueError:
    """What to say of a file that FFmpeg gives up on."""
    why = getattr(error, "strerror", None) or error
    return ValueError(f"{path} is no readable video ({why}); copy it again or convert it to .mp4")


def _progressive(
    timed: Iterator[tuple[float, float, "VideoFrame"]], stream: "VideoStream"
) -> Iterator[tuple[float, float, "VideoFrame"]]:
    """The same frames, those of interlaced video made whole by FFmpeg's filter (which is one frame behind)."""
    from av.filter import Graph

    graph: Graph | None = None
    waiting: list[tuple[float, float]] = []
    for time, duration, frame in timed:
        if graph is None and not frame.interlaced_frame:
            yield time, duration, frame
            continue
        if graph is None:
            graph = Graph()
            graph.link_nodes(
                graph.add_buffer(template=stream), graph.add("bwdif", "mode=send_frame"), graph.add("buffersink")
            ).configure()
        waiting.append((time, duration))
        graph.vpush(frame)
        yield from _pulled(graph, waiting)
    if graph is not None:
        graph.vpush(None)
        yield from _pulled(graph, waiting)


def _pulled(graph: Any, waiting: list[tuple[float, float]]) -> Iterator[tuple[float, float, "VideoFrame"]]:
    import av

    while waiting:
        try:
            frame = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield *waiting.pop(0), frame


def _picture(image: Any, path: Path) -> Shown:
    """An image of Pillow's, converted when it is drawn: of an animation, few are."""
    return Shown(image.width, image.height, lambda height, width: _whole(image_rgb(image, path)).draw(height, width))


def _whole(rgb_HWC: Array) -> Shown:
    """A picture that is there already."""

    def draw(height: int, width: int) -> Array:
        if rgb_HWC.shape[:2] == (height, width):
            return rgb_HWC
        return fit(rgb_HWC, height, width, 1.0)[0].permute(1, 2, 0).numpy()

    return Shown(rgb_HWC.shape[1], rgb_HWC.shape[0], draw)


def _frame(frame: "VideoFrame", stream: "VideoStream", scaler: "VideoReformatter") -> Shown:
    """A decoded frame, converted and scaled in one go when it is drawn."""
    turns, aspect = round(frame.rotation / 90) % 4, pixel_aspect_of(stream, frame)
    width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)

    def draw(rows: int, columns: int) -> Array:
        if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
            return fit(turned_upright(frame)[0], rows, columns, aspect)[0].permute(1, 2, 0).numpy()
        scale = max(columns / (width * aspect), rows / height)  # covers the asked shape
        wide, high = max(columns, round(width * aspect * scale)), max(rows, round(height * scale))
        sides = (high, wide) if turns % 2 else (wide, high)
        rgb_HWC = scaler.reformat(frame, *sides, format="rgb24", interpolation=ACCURATE).to_ndarray()
        top, left = (high - rows) // 2, (wide - columns) // 2
        return np.ascontiguousarray(np.rot90(rgb_HWC, turns)[top : top + rows, left : left + columns])

    return Shown(width * aspect, height, draw)
