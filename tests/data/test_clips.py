"""Clips have the asked rate, length and size; what cannot be cut says why."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from lumos.data.clips import Clip, Cut, _local, expected_lengths
from tests.media.files import clips_of, write_frames

SQUARE = ((32, 32),)
CUT = Cut(frames=5, fps=8.0, sizes=SQUARE, least=5)
GRAYS = [20 + 8 * i for i in range(18)]  # levels that can be told apart after H.264


def write_gray(path: Path, levels: list[int]) -> Path:
    """Frames of one gray each, 8 a second, with a point to seek to in every half second."""
    return write_frames(path, [np.full((48, 48, 3), level, np.uint8) for level in levels], fps=8, crf="1", g="4")


@pytest.fixture(scope="module")
def grays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gray(tmp_path_factory.mktemp("grays") / "a.mp4", GRAYS)


def numbers(clip: Clip) -> list[int]:
    """Which of GRAYS each frame is."""
    return [round((float(frame.mean()) - 20) / 8) for frame in clip.rgb_FHWC]


@pytest.mark.parametrize(
    ("cut", "part", "expected"),
    [
        (CUT, {}, [range(5), range(5, 10), range(10, 15)]),
        (Cut(33, 8.0, SQUARE), {}, [range(17)]),  # 18 is not 1 + 4k
        (Cut(33, 8.0, SQUARE, step=1, least=18), {}, [range(18)]),
        (Cut(5, 8.0, SQUARE, every=0.25, step=1, least=1), {}, [range(2 * i, 2 * i + 5) for i in range(7)]),
        (Cut(5, 8.0, SQUARE, every=0.01), {}, [range(i, i + 5) for i in range(14)]),  # a frame is the least
        (Cut(5, 8.0, SQUARE, every=1.0), {}, [range(5), range(8, 13)]),
        (CUT, {"start": 0.5, "end": 1.3}, [range(4, 9)]),
        (Cut(5, 8.0, SQUARE, loop=True), {"end": 0.4}, [[0, 1, 2, 0, 1]]),  # as animations start again
        (Cut(5, 8.0, SQUARE, loop=True), {"end": 0.9}, [range(5)]),
        (Cut(5, 8.0, SQUARE, loop=True), {"end": 0.1}, [[0]]),
        (CUT, {"end": 0.1}, [[0]]),  # one frame is an image
    ],
)
def test_clips_follow_each_other(cut: Cut, part: dict[str, Any], expected: list[Any], grays: Path) -> None:
    clips = clips_of(grays, cut, **part)
    assert [numbers(clip) for clip in clips] == [list(one) for one in expected]
    assert [clip.start for clip in clips] == [one[0] / 8 for one in expected]
    foretold = expected_lengths(part.get("end", len(GRAYS) / 8) - part.get("start", 0), cut)
    assert foretold == [len(one) for one in expected]
    assert all(clip.rgb_FHWC.shape[1:] == (32, 32, 3) and clip.rgb_FHWC.dtype == np.uint8 for clip in clips)


def test_too_little_for_a_clip(grays: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got none; check start and end"):
        clips_of(grays, CUT, start=9.0)
    with pytest.raises(ValueError, match="at least 5 frames at 8 fps, got 3"):
        clips_of(grays, CUT, end=0.4)
    with pytest.raises(ValueError, match="got shorter scenes"):
        clips_of(write_gray(tmp_path / "a.mp4", [20] * 3 + [100] * 3), Cut(5, 8.0, SQUARE, scenes=0.5))
    wide = write_frames(tmp_path / "wide.mkv", [np.zeros((32, 320, 3), np.uint8)] * 5)
    with pytest.raises(ValueError, match="at most 8 times the other, got 320x32"):
        clips_of(wide, CUT)


def test_scenes_are_split_and_not_mixed(tmp_path: Path) -> None:
    path = write_gray(tmp_path / "cuts.mp4", [25] * 7 + [240] * 6 + [100] * 2 + [190] * 5)
    clips = clips_of(path, Cut(5, 8.0, SQUARE, scenes=0.5))
    assert [clip.start for clip in clips] == [0, 7 / 8, 15 / 8]
    assert all(np.ptp(clip.rgb_FHWC) <= 2 for clip in clips)
    assert any(np.ptp(clip.rgb_FHWC) > 20 for clip in clips_of(path, CUT))
    moving = np.full((10, 48, 48, 3), 25, np.uint8)
    for number, frame in enumerate(moving):
        frame[20:32, 4 * number : 4 * number + 12] = 240
    clips = clips_of(write_frames(tmp_path / "moving.mp4", list(moving), fps=8), Cut(5, 8.0, SQUARE, scenes=0.5))
    assert [clip.start for clip in clips] == [0, 5 / 8], "what moves is no new scene"


def test_a_video_takes_the_size_nearest_to_its_shape(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.mp4", [np.zeros((90, 50, 3), np.uint8)] * 9, fps=8)
    (clip,) = clips_of(path, Cut(9, 8.0, ((32, 32), (32, 64), (64, 32))))
    assert clip.rgb_FHWC.shape == (9, 64, 32, 3)


def test_urls(grays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/videos/a.mp4", grays.read_bytes())
    assert numbers(clips_of("memory://videos/a.mp4", CUT)[0]) == list(range(5))
    with _local("memory://videos/a.mp4") as copy:
        assert copy.suffix == ".mp4"  # some kinds are told by it
    memory.rm("/videos", recursive=True)
    for url in ("memory://videos/none.mp4", "nosuch://a.mp4"):
        with pytest.raises(OSError, match=f"cannot fetch {url}.*check the URL"):
            clips_of(url, CUT)

    def silent(*args: Any, **more: Any) -> Any:
        raise TimeoutError("no answer in 30 s")

    monkeypatch.setattr("fsspec.open", silent)
    with pytest.raises(OSError, match="cannot fetch memory://videos/a.mp4 .TimeoutError: no answer"):
        clips_of("memory://videos/a.mp4", CUT)
