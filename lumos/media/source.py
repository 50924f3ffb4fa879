"""A file -> timed pictures, upright, deinterlaced, over white: the one place where pictures and videos are opened.

`prepare`, `generate --image` and `--video`, and the server all read with it, so that a model sees the pixels it was trained on.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from lumos.media.ffmpeg import video_header, video_pictures
from lumos.media.picture import Header, Timed
from lumos.media.pillow import image_header, image_pictures

Shown = TypeVar("Shown")
_Timed = tuple[float, float, Shown]  # from, until, what


def read_header(path: str | Path) -> Header:
    """Whether a file is an image or a video, and what else it says of itself. Errors as in `timed_pictures`."""
    path = readable_file(path)
    with decoding(path):
        return image_header(path) or video_header(path)


def timed_pictures(path: str | Path, start: float = 0.0) -> Iterator[Timed]:
    """A file's pictures in order of time, from `start` seconds or a little earlier on; a photo is one.

    Raises FileNotFoundError, and ValueError or OSError in one line for what cannot be read, is damaged, or is cut off.
    """
    path = readable_file(path)
    yield from image_pictures(path, start) if image_header(path) else video_pictures(path, start)


@contextmanager
def decoding(path: str | Path) -> Iterator[None]:
    """Around all that reads and draws pictures: whatever a decoder throws becomes one line that names the file."""
    try:
        yield
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}); convert it") from error


def pick(
    timed: Iterable[_Timed[Shown]], fps: float, start: float | None = None, end: float | None = None, most: int | None = None
) -> Iterator[tuple[float, Shown]]:
    """(seconds, what is shown) at start, start + 1 / fps, ... until the last one, or `end`, is over; at most `most` of them.

    It begins with the first item at the earliest; without `start`, seconds count from that. Times are rounded in most
    files, so an item counts as shown up to half an interval early, and equal rates give every item exactly once.
    """
    coming = iter(timed)
    shown = next(coming, None)
    if shown is None:
        return
    begin = shown[0] if start is None else max(start, shown[0])
    zero = begin if start is None else 0.0
    limit = math.inf if most is None else most
    if end is not None:
        limit = min(limit, max(1.0, math.floor((end - begin) * fps + 1e-6)) if end > begin else 0.0)
    count = 0
    while shown is not None and count < limit:
        (time, duration, item), after = shown, next(coming, None)
        over, lasting = (time + duration, duration) if after is None else (after[0], max(after[0] - time, 0.0))
        while count < limit and begin + count / fps < over - min(1 / fps, lasting) / 2:
            yield begin - zero + count / fps, item
            count += 1
        shown = after


def one_line(error: Exception) -> str:
    """What went wrong with an input, in words and without line ends."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is; make it smaller first"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"cannot read {error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


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
