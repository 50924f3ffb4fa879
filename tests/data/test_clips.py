"""Clips have the asked rate, length, size and orientation, whatever the file is; what cannot be read says why."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lumos.data.clips import Clip, Cut, nearest_size, read_clips, windows
from lumos.data.manifest import Entry
from lumos.data.shards import pack_picture, unpack_picture
from lumos.media.picture import Header
from lumos.media.source import read_header
from lumos.media.video import read_video, write_video

CUT = Cut(frames=5, fps=8.0, sizes=((32, 32),), least=5)


def clips_of(path: Path | str, cut: Cut = CUT, **entry: Any) -> list[Clip]:
    return list(read_clips(Entry(1, str(path), ("x",), **entry), cut))


def levels(clip: Clip) -> list[int]:
    return [round(float(frame.mean())) for frame in clip.rgb_FHWC]


def grays(count: int) -> list[int]:
    """Levels that can be told apart after H.264."""
    return [20 + 8 * i for i in range(count)]


def write_gray(path: Path, values: list[int], times: list[float] | None = None, size: tuple[int, int] = (48, 48)) -> Path:
    """Frames of one gray each, at 8 a second or at the given times."""
    times = times or [i / 8 for i in range(len(values))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for value, time in zip(values, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), value, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def near(found: list[int], expected: list[int]) -> bool:
    return len(found) == len(expected) and all(abs(a - b) <= 3 for a, b in zip(found, expected, strict=True))


def test_consecutive_clips_and_the_rest(tmp_path: Path) -> None:
    path = write_gray(tmp_path / "a.mp4", grays(18))
    first, second, third = clips_of(path)
    assert [clip.start for clip in (first, second, third)] == [0, 5 / 8, 10 / 8]
    assert near(levels(first) + levels(second) + levels(third), grays(15))
    assert first.rgb_FHWC.shape == (5, 32, 32, 3) and first.rgb_FHWC.dtype == np.uint8
    (only,) = clips_of(path, Cut(33, 8.0, ((32, 32),), least=5))
    assert near(levels(only), grays(17))  # 18 is not 1 + 4k
    (all_of_them,) = clips_of(path, Cut(33, 8.0, ((32, 32),), step=1))
    assert near(levels(all_of_them), grays(18))


def test_overlap_gaps_start_and_end(tmp_path: Path) -> None:
    path = write_gray(tmp_path / "a.mp4", grays(18))
    overlapping = clips_of(path, Cut(5, 8.0, ((32, 32),), every=0.25))
    assert [clip.start for clip in overlapping] == [i / 4 for i in range(7)]
    assert all(near(levels(clip), grays(18)[2 * i : 2 * i + 5]) for i, clip in enumerate(overlapping))
    assert [clip.start for clip in clips_of(path, Cut(5, 8.0, ((32, 32),), every=1.0))] == [0, 1]
    (part,) = clips_of(path, start=0.5, end=1.3)
    assert near(levels(part), grays(9)[4:]) and part.start == 0.5
    with pytest.raises(ValueError, match="got none; check start and end"):
        clips_of(path, start=9.0)


def test_a_short_video_and_one_of_one_frame(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 5 frames at 8 fps, got 3"):
        clips_of(write_gray(tmp_path / "short.mp4", grays(3)))
    (image,) = clips_of(write_gray(tmp_path / "one.mp4", [200]))
    assert image.rgb_FHWC.shape == (1, 32, 32, 3) and near(levels(image), [200])


def test_short_animations_start_again(tmp_path: Path) -> None:
    a, b, c = grays(3)
    looped = Cut(5, 8.0, ((32, 32),), loop=True)
    (clip,) = clips_of(write_gray(tmp_path / "short.mp4", [a, b, c]), looped)
    assert near(levels(clip), [a, b, c, a, b])
    assert len(levels(clips_of(write_gray(tmp_path / "one.mp4", [a]), looped)[0])) == 1
    long = write_gray(tmp_path / "long.mp4", grays(7))
    assert [clip.start for clip in clips_of(long, looped)] == [clip.start for clip in clips_of(long)] == [0]


def test_scenes_are_split_and_not_mixed(tmp_path: Path) -> None:
    frames = torch.cat([torch.full((3, count, 32, 32), level) for count, level in ((7, -0.8), (6, 0.9), (2, -0.2), (5, 0.5))], 1)
    path = write_video(tmp_path / "cuts.mp4", frames, 8)
    clips = clips_of(path, Cut(5, 8.0, ((32, 32),), scenes=0.5))
    assert [clip.start for clip in clips] == [0, 7 / 8, 15 / 8]
    assert all(np.ptp(levels(clip)) <= 2 for clip in clips)
    assert any(np.ptp(levels(clip)) > 20 for clip in clips_of(path))


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(64, 64, (32, 32)), (90, 50, (32, 64)), (50, 90, (64, 32)), (33, 44, (32, 32))]
)
def test_buckets_by_shape(width: int, height: int, expected: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", (width, height), "red").save(tmp_path / "a.png")
    (clip,) = clips_of(tmp_path / "a.png", Cut(5, 8.0, ((32, 32), (32, 64), (64, 32))))
    assert clip.rgb_FHWC.shape == (1, *expected, 3)
    assert np.abs(clip.rgb_FHWC.astype(int) - [255, 0, 0]).max() == 0


@given(st.floats(0.2, 5), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6))
def test_the_nearest_size_is_symmetric_in_width_and_height(ratio: float, sizes: list[tuple[int, int]]) -> None:
    found = nearest_size(ratio, 1.0, tuple(sizes))
    other = nearest_size(1.0, ratio, tuple((w, h) for h, w in sizes))
    distance = abs(np.log(ratio * found[0] / found[1]))
    assert np.isclose(distance, abs(np.log(ratio * other[1] / other[0])))
    assert all(distance <= abs(np.log(ratio * h / w)) + 1e-9 for h, w in sizes)


def corners(clip: Clip) -> list[str]:
    names = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    _, H, W, _ = clip.rgb_FHWC.shape
    picked = [clip.rgb_FHWC[0, y, x].astype(int) for y in (H // 8, H - H // 8) for x in (W // 8, W - W // 8)]
    return [min(names, key=lambda name, pixel=pixel: np.abs(np.array(names[name]) - pixel).sum()) for pixel in picked]


def quadrants(height: int = 64, width: int = 96) -> Any:
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2], rgb[: height // 2, width // 2 :] = (255, 0, 0), (0, 255, 0)
    rgb[height // 2 :, : width // 2], rgb[height // 2 :, width // 2 :] = (0, 0, 255), 255
    return rgb


def write_av(path: Path, codec: str, format: str, edit: Callable[[Any], None] = lambda stream: None, **frame_facts: Any) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options={"flags": "+ildct+ilme"} if frame_facts else {})
        stream.width, stream.height, stream.pix_fmt = 96, 64, format
        edit(stream)
        for i in range(9):
            frame = av.VideoFrame.from_ndarray(quadrants(), format="rgb24").reformat(format=format)
            frame.pts, frame.time_base = i, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


UPRIGHT = ["red", "green", "blue", "white"]


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx265", "yuv420p10le"),
        ("a.mkv", "ffv1", "yuva420p"),
        ("a.webm", "libvpx-vp9", "yuv444p"),
    ],
)
def test_codecs_and_depths(name: str, codec: str, format: str, tmp_path: Path) -> None:
    (clip,) = clips_of(write_av(tmp_path / name, codec, format))
    assert corners(clip) == UPRIGHT and clip.rgb_FHWC.shape == (5, 32, 32, 3)
    wide = clips_of(tmp_path / name, Cut(5, 8.0, ((32, 48),)))[0]
    read = read_video(tmp_path / name, 8, 32, 48).pixels_CFHW[:, 0].permute(1, 2, 0)
    assert np.abs(wide.rgb_FHWC[0] / 127.5 - 1 - read.numpy()).mean() < 0.03  # the two ways to scale agree


def test_interlaced(tmp_path: Path) -> None:
    """A bar that moves from field to field is torn into a comb in the file, and has straight sides in the clips."""
    path = tmp_path / "fields.mkv"
    torn = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = 320, 64, "yuv420p"
        for i in range(25):
            picture = np.full((64, 320, 3), 40, np.uint8)
            for field in (0, 1):
                left = 6 * (2 * i + field)
                picture[field::2, left : left + 20] = 200
            torn.append(picture)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

    def tear(picture: Any) -> float:
        return float(np.abs(np.diff(picture[8:-8].astype(int), axis=0)).mean())

    clips = clips_of(path, Cut(5, 25.0, ((64, 320),)))
    whole = [frame for clip in clips for frame in clip.rgb_FHWC]
    assert len(whole) == 25
    assert tear(torn[7]) > 4 and max(map(tear, whole[2:-2])) < 1
    lefts = [int((frame[32, :, 0] > 120).argmax()) for frame in whole]
    assert [left for i, left in enumerate(lefts) if not -3 <= left - 12 * i <= 9] == []  # the time of one of the two fields


def test_damaged_files_say_so(tmp_path: Path) -> None:
    good = write_gray(tmp_path / "a.mp4", grays(26), size=(64, 64)).read_bytes()
    (tmp_path / "text.mp4").write_text("path,caption\n" * 50)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "headless.mp4").write_bytes(good[:100])
    (tmp_path / "tailless.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (tmp_path / "folder.mp4").mkdir()
    Image.new("L", (40_000, 16)).save(tmp_path / "wide.png")
    Image.new("1", (3_000_000, 64)).save(tmp_path / "huge.png")
    (tmp_path / "huge.y4m").write_bytes(b"YUV4MPEG2 W3000000 H64 F8:1 C420\nFRAME\n" + bytes(100))
    for name, words in [
        ("text.mp4", "no readable video"),
        ("empty.mp4", "0 bytes"),
        ("headless.mp4", "no readable video"),
        ("tailless.mp4", "no readable video|cut off|damaged"),
        ("bad.png", "no readable image|damaged"),
        ("folder.mp4", "is a folder"),
        ("none.mp4", "there is no file"),
        ("wide.png", "at most 8 times the other"),
        ("huge.y4m", "no readable video|million pixels"),
        ("huge.png", "fewer pixels"),
    ]:
        with pytest.raises((ValueError, OSError), match=words) as caught:
            clips_of(tmp_path / name)
        assert "\n" not in str(caught.value), name


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/videos/a.mp4", write_gray(tmp_path / "a.mp4", grays(5)).read_bytes())
    assert near(levels(clips_of("memory://videos/a.mp4")[0]), grays(5))
    with pytest.raises(OSError, match="check the URL"):
        clips_of("memory://videos/none.mp4")

    def silent(*args: Any, **more: Any) -> Any:
        raise TimeoutError("no answer in 30 s")

    monkeypatch.setattr("fsspec.open", silent)
    with pytest.raises(OSError, match="cannot fetch memory://videos/a.mp4 .TimeoutError: no answer"):
        clips_of("memory://videos/a.mp4")
    memory.rm("/videos", recursive=True)


def test_an_unknown_protocol() -> None:
    with pytest.raises((ValueError, OSError), match="nosuch://a.mp4"):
        clips_of("nosuch://a.mp4")


def test_headers_promise_what_is_there(tmp_path: Path) -> None:
    header = read_header(write_gray(tmp_path / "a.mp4", grays(16)))
    assert (header.kind, header.seconds, header.width, header.height, header.fps) == ("video", 2.0, 48, 48, 8.0)
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png") == Header("image", 20, 30)


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 3))
def test_pictures_hold_clips(frames: int, rows: int, columns: int) -> None:
    smooth = np.linspace(0, 255, frames * rows * columns).reshape(frames, rows, columns).repeat(16, 1).repeat(16, 2)
    rgb_FHWC = smooth[..., None].repeat(3, -1).astype(np.uint8)
    again = unpack_picture(pack_picture(rgb_FHWC), *rgb_FHWC.shape[:3])
    assert again.shape == rgb_FHWC.shape and np.abs(again.astype(int) - rgb_FHWC).mean() < 4


def test_long_clips_take_several_rows_of_a_picture() -> None:
    rgb_FHWC = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(600, 2).repeat(3, 3) * 6
    again = unpack_picture(pack_picture(np.ascontiguousarray(rgb_FHWC)), *rgb_FHWC.shape[:3])
    assert np.abs(again.astype(int) - rgb_FHWC).max() <= 6
    with pytest.raises(ValueError, match="fewer --frames"):
        pack_picture(np.zeros((300, 4096, 2048, 3), np.uint8)[:, :, :, :])


@given(
    st.integers(1, 80),
    st.sampled_from([1, 2, 5, 9, 17]),
    st.sampled_from([None, 0.25, 1.0, 3.0]),
    st.sampled_from([1, 4]),
    st.integers(1, 9),
)
def test_clips_begin_a_hop_apart_and_the_rest_has_only_news(
    count: int, frames: int, every: float | None, step: int, least: int
) -> None:
    cut = Cut(frames, 8.0, ((1, 1),), step=step, least=least, every=every)
    found = list(windows(range(count), cut))
    assert all(window == list(range(window[0], window[0] + len(window))) for window in found), "frames in order"
    assert [window[0] for window in found] == [cut.hop * i for i in range(len(found))]
    *whole, rest = [*found, []]
    if found and len(found[-1]) < frames:
        *whole, rest = found
    assert all(len(window) == frames for window in whole)
    assert len(whole) == max(0, 1 + (count - frames) // cut.hop), "every whole clip is made"
    first, used = cut.hop * len(whole), {number for window in whole for number in window}
    left = count - first
    longest = 1 + (left - 1) // step * step
    if left > 0 and longest >= least and first not in used:
        assert len(rest) == longest, "a rest that is long enough and begins with a new frame is a clip"
    else:
        assert not rest
