"""Every reader opens files in one way: a table per kind of strange file, each made here, with what players show of it."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lumos.data.clips import Cut, read_clips
from lumos.data.manifest import Entry
from lumos.media.picture import of_rgb
from lumos.media.source import read_header
from lumos.media.video import read_image, read_video

Rgb = np.ndarray[Any, Any]
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
    frames: list[Rgb],
    codec: str = "libx264",
    fps: int = 30,
    format: str | None = None,
    pixels: str = "yuv420p",
    edit: Callable[[Any], None] = lambda stream: None,
    **options: str,
) -> Path:
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        edit(stream)
        for i, rgb_HWC in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb_HWC, format="rgba" if rgb_HWC.shape[2] == 4 else "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source: Path, path: Path, keep: Callable[[Any], bool], shift: float = 0.0, format: str | None = None) -> Path:
    """The packets for which `keep` holds, later by `shift` seconds."""
    with av.open(str(source)) as read, av.open(str(path), "w", format=format) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None and packet.pts is not None and keep(packet):
                packet.pts, packet.dts = (value + round(shift / packet.time_base) for value in (packet.pts, packet.dts))
                packet.stream = stream
                written.mux(packet)
    return path


def frames_of(path: Path, size: tuple[int, int] = (32, 96), fps: float = 10.0, **part: Any) -> list[Rgb]:
    """All frames that `prepare` takes."""
    cut = Cut(8, fps, (size,), step=1, least=1)
    return [rgb_HWC for clip in read_clips(Entry(1, str(path), ("x",), **part), cut) for rgb_HWC in clip.rgb_FHWC]


def numbers(path: Path, **part: Any) -> list[int]:
    return [number_of(rgb_HWC) for rgb_HWC in frames_of(path, **part)]


STREAMS = {
    "b_frames.mp4": ("libx264", {"g": "100", "bf": "3"}, None),
    "open_gop.ts": ("libx264", {"x264-params": "keyint=90:bframes=3:open-gop=1"}, "mpegts"),
    "intra_refresh.ts": ("libx264", {"x264-params": "intra-refresh=1:keyint=60:bframes=0"}, "mpegts"),
    "intra_refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=60:bframes=0"}, None),
    "mpeg2.ts": ("mpeg2video", {"g": "15", "bf": "2"}, "mpegts"),
    "mpeg4.ts": ("mpeg4", {"g": "60", "bf": "2"}, "mpegts"),
    "mpeg1.mpg": ("mpeg1video", {"g": "12", "bf": "2"}, "mpeg"),  # dates one frame in 18
    "mpeg4.avi": ("mpeg4", {"g": "60", "bf": "2"}, None),
    "vp9.webm": ("libvpx-vp9", {"g": "60", "cpu-used": "8", "deadline": "realtime"}, None),
}


@pytest.fixture(scope="module", params=list(STREAMS))
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of numbered frames, 30 a second."""
    codec, options, format = STREAMS[request.param]
    return write_frames(
        tmp_path_factory.mktemp("stream") / request.param, [bars(i) for i in range(180)], codec, format=format, **options
    )


@pytest.mark.parametrize("start", [0.1, 0.6, 2.9, 5.0])
def test_a_part_is_what_a_player_shows_from_there(stream: Path, start: float) -> None:
    found = numbers(stream, start=start, end=start + 0.8)
    assert len(found) == 8
    assert all(abs(number - 30 * (start + i / 10)) < 1.1 for i, number in enumerate(found)), found


def test_a_whole_stream_has_every_third_frame(stream: Path) -> None:
    assert all(abs(number - 3 * i) <= 1 for i, number in enumerate(numbers(stream)))


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265", "mpeg4"])
def test_a_recording_that_begins_inside_a_group_of_pictures(tmp_path: Path, codec: str) -> None:
    """Time counts from the first picture that decodes whole: no still stands for what came before it."""
    options = {"x265-params": "keyint=50:scenecut=0:log-level=none"} if codec == "libx265" else {"g": "50", "sc_threshold": "0"}
    if codec.startswith("mpeg"):
        options["sc_threshold"] = "1000000000"
    whole = write_frames(tmp_path / "a.ts", [bars(i) for i in range(180)], codec, format="mpegts", **options)
    found = numbers(remux(whole, tmp_path / "b.ts", lambda packet: packet.pts > 60 * 3000, format="mpegts"))
    assert found == [100 + 3 * i for i in range(27)]


def test_a_recording_with_intra_refresh_begins_once_it_is_refreshed(tmp_path: Path) -> None:
    """Such a stream has no key frame but the first; every part of the picture is refreshed within 60 frames."""
    options = {"x264-params": "intra-refresh=1:keyint=60:bframes=0:scenecut=0"}
    whole = write_frames(tmp_path / "a.ts", [bars(i) for i in range(240)], format="mpegts", **options)
    found = numbers(remux(whole, tmp_path / "b.ts", lambda packet: packet.pts > 70 * 3000, format="mpegts"))
    assert 70 < found[0] <= 180 and found == [found[0] + 3 * i for i in range(len(found))] and found[-1] > 235


def test_start_and_end_count_on_the_files_own_timeline(tmp_path: Path) -> None:
    """As players count: pictures that begin a second after the sound are frame 30 at second 2."""
    with av.open(str(tmp_path / "late.mp4"), "w") as container:
        pictures, sound = container.add_stream("libx264", rate=30), container.add_stream("aac", rate=8000, layout="mono")
        pictures.height, pictures.width, pictures.pix_fmt = 32, 96, "yuv420p"
        for i in range(90):
            frame = av.VideoFrame.from_ndarray(bars(i), format="rgb24")
            frame.pts, frame.time_base = 30 + i, Fraction(1, 30)
            container.mux(pictures.encode(frame))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 32_000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        for encoder, frame in ((sound, silence), (sound, None), (pictures, None)):
            container.mux(encoder.encode(frame))
    assert numbers(tmp_path / "late.mp4", start=2.0, end=2.5) == [30, 33, 36, 39, 42]
    assert numbers(tmp_path / "late.mp4", start=0.5, end=1.3) == [0, 3, 6]
    assert numbers(tmp_path / "late.mp4", end=1.5) == [0, 3, 6, 9, 12]
    assert len(numbers(tmp_path / "late.mp4")) == 30


def longer_sound(path: Path) -> Path:
    """Two seconds of pictures and ten of sound."""
    with av.open(str(path), "w") as container:
        pictures, sound = container.add_stream("libx264", rate=30), container.add_stream("aac", rate=44_100, layout="mono")
        pictures.height, pictures.width, pictures.pix_fmt = 32, 96, "yuv420p"
        for i in range(60):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(bars(i), format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 441_000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44_100
        for encoder, frame in ((pictures, None), (sound, silence), (sound, None)):
            container.mux(encoder.encode(frame))
    return path


WHOLE: dict[str, Callable[[Path, Path], Path]] = {
    "begins at 8 s": lambda whole, folder: remux(whole, folder / "a.mkv", lambda packet: True, shift=8.0),
    "begins at 8 s (mp4)": lambda whole, folder: remux(whole, folder / "a.mp4", lambda packet: True, shift=8.0),
    "sound is longer": lambda whole, folder: longer_sound(folder / "a.mkv"),
    "sound is longer (flv)": lambda whole, folder: longer_sound(folder / "a.flv"),
    "sound is longer (ts)": lambda whole, folder: longer_sound(folder / "a.ts"),
}


@pytest.mark.parametrize("kind", list(WHOLE))
def test_whole_files_are_not_cut_off(kind: str, tmp_path: Path) -> None:
    whole = write_frames(tmp_path / "whole.mp4", [bars(i) for i in range(60)])
    assert numbers(WHOLE[kind](whole, tmp_path)) == [3 * i for i in range(20)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".flv", ".avi"])
def test_half_a_file_is_cut_off(suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 32, 96, 3), dtype=np.uint8)
    path = write_frames(tmp_path / f"a{suffix}", list(noise), "mpeg4" if suffix == ".avi" else "libx264")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(ValueError, match="cut off|damaged|no readable video"):
        frames_of(path)


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The file with another display matrix: what is at (x, y) is shown at (a x + c y, b x + d y)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), "RG/BY"),
        ((0, 1, -1, 0), "BR/YG"),
        ((-1, 0, 0, -1), "YB/GR"),
        ((0, -1, 1, 0), "GY/RB"),
        ((-1, 0, 0, 1), "GR/YB"),
        ((1, 0, 0, -1), "BY/RG"),
        ((0, 1, 1, 0), "RB/GY"),
        ((0, -1, -1, 0), "YG/BR"),
    ],
)
def test_turned_and_mirrored_pictures_are_shown_upright(matrix: Any, expected: str, tmp_path: Path) -> None:
    path = turned(write_frames(tmp_path / "a.mp4", [quadrants()] * 3), matrix)
    size = (64, 48) if matrix[0] == 0 else (48, 64)
    assert corners(frames_of(path, size)[0]) == expected
    footage = read_video(path, 10, *size)
    assert footage.note.startswith("turned upright") == (expected != "RG/BY") and "crop" not in footage.note


def two_streams(path: Path) -> Path:
    """Blue pictures, and yellow ones that players show because they are marked as the default."""
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        streams = []
        for default in (False, True):
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.disposition = Disposition.default if default else Disposition(0)
            streams.append(stream)
        for stream, colour in zip(streams, (BLUE, YELLOW), strict=True):
            for i in range(5):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def clear_video(path: Path, codec: str) -> Path:
    clear = np.dstack([quadrants(), np.full((48, 64), 255, np.uint8)])
    clear[:24, :32, 3] = 0
    return write_frames(path, [clear] * 5, codec, fps=10, pixels="yuva420p", **{"auto-alt-ref": "0"})


def of_two_sizes(path: Path) -> Path:
    """Interlaced MPEG-2 whose pictures become larger in mid-stream."""
    content = b""
    for height, width in ((48, 64), (96, 128)):
        part = path.with_name(f"{height}.m2v")
        write_frames(part, [quadrants(height, width)] * 5, "mpeg2video", 25, "mpeg2video", flags="+ildct+ilme", qscale="1")
        content += part.read_bytes()
    path.write_bytes(content)
    return path


def test_interlaced_pictures_of_two_sizes(tmp_path: Path) -> None:
    found = frames_of(of_two_sizes(tmp_path / "a.m2v"), (48, 64), fps=25.0)
    assert len(found) == 10 and {corners(rgb_HWC) for rgb_HWC in found} == {"RG/BY"}


def with_strange_title(path: Path) -> Path:
    """A title that is not UTF-8, as old programs wrote them."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "cafe title"
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quadrants(), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"cafe title", b"caf\xe9 title"))
    return path


def saved(path: Path, **more: Any) -> Path:
    """An image, or an animation of five frames of which the first is named by its corners."""
    Image.fromarray(quadrants()).save(path, **more)
    return path


def animation(path: Path, duration: int = 100, **more: Any) -> Path:
    frames = [Image.fromarray(quadrants()), *(Image.new("RGB", (64, 48), (40 * i, 0, 0)) for i in range(4))]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, **more)
    return path


def clear_animation(path: Path) -> Path:
    frames = [Image.fromarray(np.dstack([quadrants(), np.full((48, 64), 255, np.uint8)])) for _ in range(5)]
    frames[0].paste((0, 0, 0, 0), (0, 0, 32, 24))
    frames[1].paste((0, 0, 0, 255), (0, 0, 8, 8))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    return path


def covered(path: Path) -> Path:
    """An animated PNG whose first picture is a cover for viewers that show no animations."""
    frames = [Image.fromarray(quadrants()), *(Image.new("RGB", (64, 48), (40 * i, 0, 0)) for i in range(4))]
    Image.new("RGB", (64, 48)).save(path, save_all=True, append_images=frames, duration=100, default_image=True)
    return path


SHOWN: dict[str, tuple[Callable[[Path], Path], str, int, str]] = {
    # name -> (maker, kind, frames at 10 per second, corners of the first)
    "two.mp4": (two_streams, "video", 5, "YY/YY"),
    "two.mkv": (two_streams, "video", 5, "YY/YY"),
    "clear8.webm": (lambda path: clear_video(path, "libvpx"), "video", 5, "WG/BY"),
    "clear9.webm": (lambda path: clear_video(path, "libvpx-vp9"), "video", 5, "WG/BY"),
    "title.mp4": (with_strange_title, "video", 5, "RG/BY"),
    "sizes.m2v": (of_two_sizes, "video", 4, "RG/BY"),
    "photo.png": (saved, "image", 1, "RG/BY"),
    "photo.jpg": (saved, "image", 1, "RG/BY"),
    "photo.avif": (saved, "image", 1, "RG/BY"),
    "photo.bmp": (saved, "image", 1, "RG/BY"),
    "two.mpo": (lambda path: saved(path, save_all=True, append_images=[Image.new("RGB", (64, 48))]), "image", 1, "RG/BY"),
    "two.tif": (lambda path: saved(path, save_all=True, append_images=[Image.new("RGB", (64, 48))]), "image", 1, "RG/BY"),
    "moving.webp": (lambda path: animation(path, lossless=True), "video", 5, "RG/BY"),
    "clear.webp": (clear_animation, "video", 5, "WG/BY"),
    "moving.gif": (animation, "video", 5, "RG/BY"),
    "hasty.gif": (lambda path: animation(path, 10), "video", 5, "RG/BY"),
    "hasty.png": (lambda path: animation(path, 0), "video", 5, "RG/BY"),
    "moving.png": (animation, "video", 5, "RG/BY"),
    "moving.avif": (animation, "video", 5, "RG/BY"),
    "covered.png": (covered, "video", 5, "RG/BY"),
}


@pytest.mark.parametrize("name", list(SHOWN))
def test_one_rule_for_pictures_and_videos(name: str, tmp_path: Path) -> None:
    make, kind, count, expected = SHOWN[name]
    path = make(tmp_path / name)
    found = frames_of(path, (48, 64))
    assert (read_header(path).kind, len(found), corners(found[0])) == (kind, count, expected)
    footage = read_video(path, 10, 48, 64)
    same = ((footage.pixels_CFHW.permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy()
    assert footage.kind == kind and np.array_equal(same, np.stack(found)), "generate sees the pixels that prepare saw"
    if path.suffix in (".png", ".jpg", ".webp", ".gif", ".avif"):
        assert corners(((read_image(path, 48, 64).pixels_CFHW[:, 0] + 1) * 127.5).permute(1, 2, 0).numpy()) == expected


def hdr_video(path: Path, transfer: int) -> Path:
    def edit(stream: Any) -> None:
        stream.codec_context.color_trc = transfer

    params = f"log-level=none:transfer={transfer}:colorprim=9:colormatrix=9"
    return write_frames(path, [quadrants()] * 3, "libx265", edit=edit, pixels="yuv420p10le", **{"x265-params": params})


def hdr_image(path: Path, name: bytes, width: int, transfer: int) -> Path:
    """An image whose header says that it is HDR; Pillow does not look there."""
    Image.fromarray(quadrants()).save(path)
    content = path.read_bytes()
    if path.suffix == ".png":
        place = content.index(b"IDAT") - 4
        import zlib

        chunk = name + bytes([9, transfer, 0, 1])
        chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(content[:place] + chunk + content[place:])
    else:
        place = content.index(name) + len(name) + width
        path.write_bytes(content[:place] + transfer.to_bytes(width, "big") + content[place + width :])
    return path


def of_unknown_codec(path: Path) -> Path:
    content = write_frames(path, [quadrants()] * 3).read_bytes()
    path.write_bytes(content.replace(b"avc1", b"zzz9"))
    return path


def as_photo(path: Path) -> Path:
    """A file of the brand of photos; those of telephones are grids of tiles, each a stream."""
    content = write_frames(path, [quadrants()], format="mp4").read_bytes()
    path.write_bytes(content.replace(b"ftypisom", b"ftypheic", 1))
    return path


def without_dimensions(path: Path) -> Path:
    content = saved(path).read_bytes()
    path.write_bytes(content.replace(struct.pack("<HHI", 256, 4, 1), struct.pack("<HHI", 4096, 4, 1)))
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "hlg.mp4": (lambda path: hdr_video(path, 18), "HDR"),
    "pq.mkv": (lambda path: hdr_video(path, 16), "HDR"),
    "pq.avif": (lambda path: hdr_image(path, b"colrnclx", 2, 16), "HDR"),
    "hlg.png": (lambda path: hdr_image(path, b"cICP", 1, 18), "HDR"),
    "photo.heic": (as_photo, "HEIC"),
    "codec.mp4": (of_unknown_codec, "unknown codec"),
    "dimensions.tif": (without_dimensions, "dimensions|damaged|no picture"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_would_be_read_wrongly_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, words = REFUSED[name]
    path = make(tmp_path / name)
    for read in (frames_of, lambda path: read_video(path, 10, 48, 64)):
        with pytest.raises(ValueError, match=words) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [AttributeError("no width"), TypeError("Missing"), ZeroDivisionError(), RecursionError("deep")])
def test_whatever_a_decoder_throws_is_one_line(fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(*_: Any) -> Any:
        raise fault

    path = saved(tmp_path / "a.png")
    monkeypatch.setattr("lumos.media.source.image_pictures", strange)
    for read in (frames_of, lambda path: read_video(path, 10, 48, 64), lambda path: read_image(path, 48, 64)):
        with pytest.raises(ValueError, match=rf"a.png cannot be read .{type(fault).__name__}"):
            read(path)


@given(st.integers(16, 200), st.integers(16, 200), st.sampled_from([(32, 64), (64, 32), (40, 40)]))
def test_the_middle_of_a_picture_stays_in_the_middle(columns: int, rows: int, size: tuple[int, int]) -> None:
    """What is cropped is as much on one side as on the other."""
    y, x = np.mgrid[:rows, :columns]
    ramp = np.stack([255 * x / (columns - 1), 255 * y / (rows - 1), 0 * x], -1).astype(np.uint8)
    drawn = of_rgb(ramp).draw(*size).astype(float)
    assert drawn.shape == (*size, 3)
    assert np.allclose(drawn.mean((0, 1))[:2], 127.5, atol=255 / min(columns, rows) + 2)


def test_the_middle_of_a_video_stays_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    path = write_frames(tmp_path / "a.mp4", [wide] * 3)
    assert frames_of(path, (32, 32))[0].min() > 200
    tall = turned(write_frames(tmp_path / "b.mp4", [wide] * 3), (0, 1, -1, 0))
    assert frames_of(tall, (32, 32))[0].min() > 200
