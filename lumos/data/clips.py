"""Pictures of an input -> clips of 1 + `step` k frames at one frame rate, in the size nearest in shape: uint8 rgb_FHWC.

Frames are picked by time, so variable rates come out right; `lumos.media.source` reads the files. Clips stored in picture
shards are cut the same way.
"""

import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle, groupby, islice
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

import fsspec
import numpy as np
from numpy.typing import NDArray

from lumos.data.manifest import Entry, is_url
from lumos.data.shards import ShardReader
from lumos.media.picture import Picture, Timed, of_rgb
from lumos.media.source import decoding, pick, timed_pictures

WIDEST = 8  # ratio of an input's sides; a wider one would lose nearly everything to the crop
Framed = tuple[int, float, NDArray[np.uint8]]  # number of the scene, seconds, rgb_HWC
Element = TypeVar("Element")


@dataclass(frozen=True)
class Cut:
    """How to cut inputs into clips."""

    frames: int  # of a whole clip
    fps: float
    sizes: tuple[tuple[int, int], ...]  # (height, width) buckets
    step: int = 4  # a shorter clip has 1 + `step` k frames: the tokenizer's compression in time
    least: int = 5  # frames of the shortest clip, unless the whole input is one frame
    every: float | None = None  # seconds from the start of a clip to the next; None = one after another
    scenes: float | None = None  # split where the share of pixels whose colour changes exceeds this; None = nowhere
    loop: bool = False  # a video shorter than a clip starts again, as animations do

    @property
    def hop(self) -> int:
        """Frames from the start of a clip to the start of the next."""
        return self.frames if self.every is None else max(1, round(self.every * self.fps))


class Clip(NamedTuple):
    """rgb_FHWC uint8 of one clip, and where it starts in its source, in seconds."""

    rgb_FHWC: NDArray[np.uint8]
    start: float


def read_clips(entry: Entry, cut: Cut, stored: ShardReader | None = None) -> Iterator[Clip]:
    """The clips of one input, in order. Raises ValueError or OSError, in one line, for one that cannot be read to its end."""
    with _local(entry.path) as path, decoding(entry.path):
        timed: Iterator[Timed] = timed_pictures(path, entry.start or 0.0)
        if stored is not None:
            fps, rgb_FHWC = stored.index.fps, stored.row(entry.stored)["clip"]
            timed = ((i / fps, 1 / fps, of_rgb(rgb_HWC)) for i, rgb_HWC in enumerate(rgb_FHWC))
        frames = _drawn(pick(timed, cut.fps, entry.start, entry.end), cut)
        head = list(islice(frames, max(cut.frames, 2)))
        if not head:
            raise ValueError("the video must have frames in the part asked for, got none; check start and end")
        if len(head) == 1:
            found = iter([head])
        elif cut.loop and len(head) < cut.frames:
            found = iter([list(islice(cycle(head), cut.frames))])
        else:
            scenes = groupby(chain(head, frames), key=itemgetter(0))
            found = chain.from_iterable(windows(scene, cut) for _, scene in scenes)
        first = next(found, None)
        if first is None:
            least, got = cut.least, len(head) if len(head) < cut.least else "shorter scenes"
            raise ValueError(f"a clip needs at least {least} frames at {cut.fps:g} fps, got {got}; use a longer one or --least")
        for window in chain([first], found):
            yield Clip(np.stack([rgb_HWC for _, _, rgb_HWC in window]), window[0][1])


def windows(frames: Iterable[Element], cut: Cut) -> Iterator[list[Element]]:
    """Frames of one scene -> those of each clip: whole ones `hop` frames apart, and what fits of the rest.

    The rest makes a clip if it is long enough and begins with a frame that no clip has yet.
    """
    window: list[Element] = []
    first = used = 0
    for number, frame in enumerate(frames):
        if number >= first:
            window.append(frame)
        if len(window) == cut.frames:
            yield window
            window, first, used = window[cut.hop :], first + cut.hop, number + 1
    length = 1 + (len(window) - 1) // cut.step * cut.step
    if first >= used and length >= cut.least:
        yield window[:length]


def expected_lengths(seconds: float, cut: Cut) -> list[int]:
    """Frames of each clip that a video of so many seconds makes, scenes aside; 0 seconds is an image."""
    frames = max(1, round(seconds * cut.fps))
    if frames == 1 or (cut.loop and frames < cut.frames):
        return [1 if frames == 1 else cut.frames]
    return [len(window) for window in windows(range(frames), cut)]


def nearest_size(width: float, height: float, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The (height, width) bucket whose shape is most like width:height."""
    return min(sizes, key=lambda size: abs(math.log(width / height) - math.log(size[1] / size[0])))


def _drawn(picked: Iterator[tuple[float, Picture]], cut: Cut) -> Iterator[Framed]:
    """Pictures at the size nearest to the first one's shape, each with the number of its scene."""
    shown: Picture | None = None
    size, scene = (0, 0), 0
    shares: NDArray[np.float64] | None = None
    for seconds, picture in picked:
        if shown is None:
            width, height = picture.width, picture.height
            if max(width, height) > WIDEST * min(width, height):
                raise ValueError(f"a side must be at most {WIDEST} times the other, got {width:.0f}x{height:.0f}; crop it first")
            size = nearest_size(width, height, cut.sizes)
        if picture is not shown:
            shown, rgb_HWC = picture, picture.draw(*size)
            if cut.scenes is not None:
                # Shares of 64 colours: moving things change them little, another scene much.
                colours = (rgb_HWC[::2, ::2] >> 6).astype(np.int64) @ [16, 4, 1]
                before, shares = shares, np.bincount(colours.ravel(), minlength=64) / colours.size
                scene += before is not None and bool(0.5 * np.abs(shares - before).sum() > cut.scenes)
        yield scene, seconds, rgb_HWC


@contextmanager
def _local(path: str) -> Iterator[Path]:
    """A URL's content as a local file for as long as it is needed; a local path as it is."""
    if not is_url(path):
        yield Path(path)
        return
    with TemporaryDirectory(prefix="lumos-") as folder:
        copy = Path(folder) / (path.rpartition("/")[2][-80:] or "video")
        try:
            with fsspec.open(path, "rb") as remote, open(copy, "wb") as local:
                shutil.copyfileobj(remote, local, 2**22)
        except Exception as error:  # every fsspec file system has errors of its own
            raise OSError(f"cannot fetch {path} ({type(error).__name__}: {error}); check the URL, or try again later") from error
        yield copy
