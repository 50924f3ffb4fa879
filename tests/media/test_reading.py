"""Which frames of a file are read, at which time, and what would be read wrongly says so in one line."""

import struct
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lumos.media.source import pick, timed_pictures
from lumos.media.video import read_image, read_video
from tests.media.files import (
    Maker,
    bars,
    chunk,
    frames_of,
    gray,
    numbers,
    of_colours,
    quadrants,
    remux,
    replaced,
    saved,
    shortened,
    write_frames,
)


def levels(path: Path, fps: float = 10.0, **part: Any) -> list[int]:
    pixels_CFHW = read_video(path, fps, 48, 64, **part).pixels_CFHW
    return ((pixels_CFHW.mean(dim=(0, 2, 3)) + 1) * 127.5).round().int().tolist()


STREAMS = {
    "b_frames.mp4": ("libx264", {"g": "100", "bf": "3"}, None),
    "open_gop.ts": ("libx264", {"x264-params": "keyint=90:bframes=3:open-gop=1"}, "mpegts"),
    "intra_refresh.ts": ("libx264", {"x264-params": "intra-refresh=1:keyint=60:bframes=0"}, "mpegts"),
    "intra_refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=60:bframes=0"}, None),
    "mpeg2.ts": ("mpeg2video", {"g": "15", "bf": "2"}, "mpegts"),
    "mpeg4.ts": ("mpeg4", {"g": "60", "bf": "2"}, "mpegts"),
    "mpeg1.mpg": ("mpeg1video", {"g": "12", "bf": "2"}, "mpeg"),  # dates one frame in 18
    "mpeg4.avi": ("mpeg4", {"g": "60", "bf": "2"}, None),  # dates no frame, as those below
    "mpeg2.avi": ("mpeg2video", {"g": "15", "bf": "2"}, None),  # groups that begin with frames of the one before
    "h264.avi": ("libx264", {"g": "60", "bf": "3"}, None),
    "mpeg2.m2v": ("mpeg2video", {"g": "15", "bf": "2"}, "mpeg2video"),
    "h264.264": ("libx264", {"g": "60", "bf": "3"}, "h264"),
    "vp9.webm": ("libvpx-vp9", {"g": "60", "cpu-used": "8", "deadline": "realtime"}, None),
}


@pytest.fixture(scope="module", params=list(STREAMS))
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of numbered frames, 30 a second."""
    codec, options, format = STREAMS[request.param]
    path = tmp_path_factory.mktemp("stream") / request.param
    return write_frames(path, [bars(i) for i in range(180)], codec, format=format, **options)


@pytest.mark.parametrize("start", [0.1, 0.6, 2.9, 5.0])
def test_a_part_is_what_a_player_shows_from_there(stream: Path, start: float) -> None:
    found = numbers(stream, start=start, end=start + 0.8)
    assert found == [round(30 * start) + 3 * i for i in range(8)]


def test_a_whole_stream_has_every_third_frame(stream: Path) -> None:
    assert numbers(stream) == list(range(0, 180, 3))
    assert [round(30 * time) for time, *_ in timed_pictures(stream)] == list(range(180))


def test_a_part_is_not_searched_from_the_beginning(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.mp4", [bars(i) for i in range(120)], g="15")
    assert 2.5 < next(timed_pictures(path, 3.0))[0] <= 3.0


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265", "mpeg4"])
def test_a_recording_that_begins_inside_a_group_of_pictures(tmp_path: Path, codec: str) -> None:
    """Time counts from the first picture that decodes whole: no still stands for what came before it."""
    plain = {"g": "50", "sc_threshold": "1000000000" if codec.startswith("mpeg") else "0"}
    options = {"x265-params": "keyint=50:scenecut=0:log-level=none"} if codec == "libx265" else plain
    whole = write_frames(tmp_path / "a.ts", [bars(i) for i in range(180)], codec, format="mpegts", **options)
    found = numbers(remux(whole, tmp_path / "b.ts", lambda packet: packet.pts > 60 * 3000, format="mpegts"))
    assert found == [100 + 3 * i for i in range(27)]


def test_a_recording_with_intra_refresh_begins_once_it_is_refreshed(tmp_path: Path) -> None:
    """Such a stream has no key frame but the first; every part of the picture is refreshed within 60 frames."""
    options = {"x264-params": "intra-refresh=1:keyint=60:bframes=0:scenecut=0"}
    whole = write_frames(tmp_path / "a.ts", [bars(i) for i in range(240)], format="mpegts", **options)
    found = numbers(remux(whole, tmp_path / "b.ts", lambda packet: packet.pts > 70 * 3000, format="mpegts"))
    assert 70 < found[0] <= 180 and found == [found[0] + 3 * i for i in range(len(found))] and found[-1] > 235


def test_an_edit_list_may_begin_inside_a_group_of_pictures(tmp_path: Path) -> None:
    """What it hides is decoded all the same, so the first picture shown is whole, though it refers to others."""
    whole = write_frames(tmp_path / "a.mp4", [bars(i) for i in range(60)], "mpeg4", g="60", sc_threshold="1000000000")
    assert numbers(remux(whole, tmp_path / "b.mp4", shift=-0.5)) == list(range(15, 60, 3))


def test_joined_recordings_follow_each_other(tmp_path: Path) -> None:
    """Where the clock leaps by an hour, no still stands for that hour."""
    first = write_frames(tmp_path / "a.ts", [bars(i) for i in range(60)], format="mpegts")
    second = remux(first, tmp_path / "b.ts", shift=3600, format="mpegts")
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert numbers(first) == [*range(0, 60, 3)] * 2


def test_start_and_end_count_on_the_files_own_timeline(tmp_path: Path) -> None:
    """As players count: pictures that begin a second after the sound are frame 30 at second 2."""
    late = write_frames(tmp_path / "late.mp4", [bars(i) for i in range(90)], late=30, sound=4)
    assert numbers(late, start=2.0, end=2.5) == [30, 33, 36, 39, 42]
    assert numbers(late, start=0.5, end=1.3) == [0, 3, 6]
    assert numbers(late, end=1.5) == [0, 3, 6, 9, 12]
    assert len(numbers(late)) == 30


@pytest.mark.parametrize(
    ("name", "shift", "sound"), [("a.mkv", 8, 0), ("a.mp4", 8, 0), ("a.mkv", 0, 10), ("a.flv", 0, 10), ("a.ts", 0, 10)]
)
def test_whole_files_are_not_cut_off(name: str, shift: float, sound: float, tmp_path: Path) -> None:
    """Neither those that begin late nor those whose sound is longer."""
    path = write_frames(tmp_path / ("whole.mp4" if shift else name), [bars(i) for i in range(60)], sound=sound)
    assert numbers(remux(path, tmp_path / name, shift=shift) if shift else path) == [3 * i for i in range(20)]


def test_statistics_of_a_longer_original_do_not_count(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.mkv", [bars(i) for i in range(60)])
    assert numbers(replaced(path, b"00:00:02.", b"00:00:09.")) == [3 * i for i in range(20)]


@pytest.mark.parametrize("name", ["a.mkv", "sound.mkv", "a.flv", "a.avi", "a.mp4", "a.ivf"])
def test_half_a_file_is_cut_off_but_what_is_there_can_be_read(name: str, tmp_path: Path) -> None:
    """Also where the sound, which comes first, is whole."""
    noise = np.random.default_rng(0).integers(0, 255, (90, 48, 64, 3), dtype=np.uint8)
    codec = {"a.avi": "mpeg4", "a.ivf": "libvpx"}.get(name, "libx264")
    sound = 3.0 if name == "sound.mkv" else 0.0
    path = write_frames(tmp_path / name, noise, codec, sound=sound, apart=True)
    whole = read_video(path, 30, 48, 64, 5).pixels_CFHW
    shortened(path, 0.6)
    with pytest.raises(ValueError, match="cut off|damaged|no readable video"):
        frames_of(path)
    if name != "a.mp4":  # whose index comes last
        assert torch.equal(read_video(path, 30, 48, 64, 5).pixels_CFHW, whole)


@pytest.mark.parametrize(("name", "codec"), [("a.wmv", "wmv2"), ("a.mxf", "mpeg2video")])
def test_half_a_file_is_cut_off_also_between_two_pictures(name: str, codec: str, tmp_path: Path) -> None:
    path = write_frames(tmp_path / name, [bars(i) for i in range(60)], codec, 25)
    assert len(numbers(path)) == 24
    with pytest.raises(ValueError, match="cut off|damaged"):
        numbers(shortened(path, 0.5))


def sound_alone(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def playlist(path: Path) -> Path:
    write_frames(path.with_name("whole.mp4"), [gray(9)] * 9)
    path.write_text(f"#EXTM3U\n#EXTINF:1,\n{path.with_name('whole.mp4')}\n#EXT-X-ENDLIST\n")
    return path


def damaged_inside(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8)
    content = write_frames(path, noise, g="10").read_bytes()
    return replaced(path, content[len(content) // 2 :][:5000], bytes(5000))


def of_bytes(content: bytes) -> Maker:
    def make(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return make


def png_of(columns: int, rows: int) -> Maker:
    head = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return of_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


VIDEO, NO_VIDEO, DAMAGED = [quadrants()] * 3, "no picture and no readable video", "is damaged"
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
TAGS = struct.pack("<HHI", 256, 4, 1), struct.pack("<HHI", 4096, 4, 1)
WHITE = struct.pack("<HHIH", 262, 3, 1, 1), struct.pack("<HHIH", 262, 3, 1, 0)
REFUSED: dict[str, tuple[Maker, str]] = {
    "hlg.mp4": (lambda path: write_frames(path, VIDEO, context={"color_trc": 18}), "HDR"),
    "pq.mkv": (lambda path: write_frames(path, VIDEO, "libx265", pixels="yuv420p10le", context={"color_trc": 16}), "HDR"),
    "pq.avif": (lambda path: of_colours(path, quadrants(), 9, 16), "HDR"),
    "hlg.png": (lambda path: of_colours(path, quadrants(), 9, 18), "HDR"),
    # the brand of photos; those of telephones are grids of tiles, each a stream
    "photo.heic": (lambda path: replaced(write_frames(path, VIDEO, format="mp4"), b"ftypisom", b"ftypheic"), "HEIC"),
    "codec.mp4": (lambda path: replaced(write_frames(path, VIDEO), b"avc1", b"zzz9"), "unknown codec"),
    "dimensions.tif": (lambda path: replaced(saved(path), *TAGS), "dimensions|damaged|no picture"),
    "float.tiff": (lambda path: saved(path, Image.fromarray(np.zeros((20, 20), np.float32))), "32-bit"),
    "whole.tiff": (lambda path: saved(path, Image.fromarray(np.zeros((20, 20), np.int32))), "32-bit"),
    "inverted.tiff": (lambda path: replaced(saved(path, Image.fromarray(np.ones((20, 20), np.uint16))), *WHITE), "is white"),
    "empty.mp4": (of_bytes(b""), "0 bytes"),
    "text.mp4": (of_bytes(b"this is a text, not a film\n" * 50), NO_VIDEO),
    "head.mp4": (lambda path: shortened(write_frames(path, VIDEO), 0.1), NO_VIDEO),
    "sound.mp4": (sound_alone, "holds only sound; give a video file"),
    "list.m3u8": (playlist, NO_VIDEO),
    "ansi.ans": (of_bytes(b"\x1b[31mhello\x1b[0m\n" * 100), NO_VIDEO),
    "middle.mp4": (damaged_inside, DAMAGED),
    "half.png": (lambda path: shortened(saved(path, NOISE), 0.5), DAMAGED),
    "broken.png": (lambda path: replaced(saved(path, NOISE), path.read_bytes()[40:80], bytes(40)), f"{DAMAGED}|{NO_VIDEO}"),
    "end.jpg": (lambda path: shortened(saved(path, NOISE), 0.8), DAMAGED),
    "flat.png": (png_of(1000, 2), "got 1000x2"),
    "tiny.mp4": (lambda path: write_frames(path, [gray(9, 8, 8)] * 3), "at least 16x16 pixels, got 8x8; use a larger"),
    "large.png": (png_of(12_000, 12_000), "at most 134 million pixels"),
    "huge.png": (png_of(60_000, 60_000), "fewer pixels"),
    "huge.y4m": (of_bytes(b"YUV4MPEG2 W3000000 H64 F8:1 C420\nFRAME\n" + bytes(100)), f"{NO_VIDEO}|million pixels"),
}
READERS = (frames_of, lambda path: read_video(path, 10, 48, 64), lambda path: read_image(path, 48, 64))


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_would_be_read_wrongly_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, words = REFUSED[name]
    path = make(tmp_path / name)
    for read in READERS:
        with pytest.raises(ValueError, match=f"{words}|no readable image") as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for read in READERS:
        with pytest.raises(FileNotFoundError, match="there is no file"):
            read(tmp_path / "nothing.mp4")
        with pytest.raises(IsADirectoryError, match="is a folder"):
            read(tmp_path)


def test_whatever_a_decoder_throws_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png")
    monkeypatch.setattr("lumos.media.source.image_pictures", Mock(side_effect=Exception("odd")))
    for read in READERS:
        with pytest.raises(ValueError, match="a.png cannot be read .Exception: odd"):
            read(path)


def test_reading_at_another_rate_and_size_and_saying_so(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.mp4", [gray(8 * i) for i in range(30)], crf="1")
    footage = read_video(path, 10, 16, 32)
    assert footage.pixels_CFHW.shape == (3, 10, 16, 32) and footage.pixels_CFHW.dtype == torch.float32
    assert footage.note == "center-cropped 64x48 to 64x32, resized to 32x16, 30 -> 10 fps"

    def found(**part: Any) -> list[int]:
        return [round(level / 8) for level in levels(path, **part)]

    assert found() == list(range(0, 30, 3)) and found(fps=60) == [i // 2 for i in range(60)]
    assert found(max_frames=4) == [0, 3, 6, 9] and found(start=0.5) == [15, 18, 21, 24, 27]
    with pytest.raises(ValueError, match=r"start must lie within .*a\.mp4, got 1\.5 s"):
        found(start=1.5)
    with pytest.raises(ValueError, match="start must be 0 to"):
        found(start=-1)


def test_pick_does_not_read_past_the_limit() -> None:
    def endless() -> Any:
        for i in range(10):
            yield i / 8, 1 / 8, i
        raise AssertionError("read further than needed")

    assert [item for _, item in pick(endless(), 8, most=5)] == [0, 1, 2, 3, 4]
    assert [item for _, item in pick(endless(), 8, 0.25, 0.75)] == [2, 3, 4, 5]
    late = [(8.0, 0.1, "a")]
    assert [*pick(late, 10)] == [(0.0, "a")] and [*pick(late, 10, 2.0)] == [(8.0, "a")], "without start, from the first"


def test_variable_frame_rate_shows_what_a_player_shows(tmp_path: Path) -> None:
    shades, times = [20, 60, 100, 140, 180], [0, 0.1, 0.2, 1.2, 1.3]
    path = write_frames(tmp_path / "vfr.mp4", map(gray, shades), times=times, crf="1")
    nearest = [min(shades, key=lambda level: abs(level - found)) for found in levels(path)]
    assert nearest[:13] == [20, 60, *[100] * 10, 140] and 13 <= len(nearest) <= 15
