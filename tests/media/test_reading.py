"""Every reader opens files in one way, and shows what players show; what would be read wrongly says so in one line."""

import struct
import wave
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lumos.media.picture import of_rgb
from lumos.media.source import pick, read_header, timed_pictures
from lumos.media.video import read_image, read_video
from tests.media.files import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    Rgb,
    animation,
    bars,
    corners,
    frames_of,
    numbers,
    quadrants,
    remux,
    replaced,
    shortened,
    turned,
    write_frames,
)

Maker = Callable[[Path], Path]


def levels(path: Path, fps: float = 10.0, **part: Any) -> list[int]:
    pixels_CFHW = read_video(path, fps, 48, 64, **part).pixels_CFHW
    return ((pixels_CFHW.mean(dim=(0, 2, 3)) + 1) * 127.5).round().int().tolist()


def gray(level: int, height: int = 48, width: int = 64) -> Rgb:
    return np.full((height, width, 3), level, np.uint8)


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
    "mpeg1.m1v": ("mpeg1video", {"g": "12", "bf": "2"}, "mpeg1video"),
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
    assert read_header(path)[1:3] == size[::-1], "a dry run goes by it"
    assert corners(frames_of(path, size)[0]) == expected
    footage = read_video(path, 10, *size)
    assert footage.note.startswith("turned upright") == (expected != "RG/BY") and "crop" not in footage.note


def of_two_sizes(path: Path) -> Path:
    """Interlaced MPEG-2 whose pictures become larger in mid-stream."""
    content = b""
    for height, width in ((48, 64), (96, 128)):
        part, picture = path.with_name(f"{height}.m2v"), quadrants(height, width)
        content += write_frames(part, [picture] * 5, "mpeg2video", 25, flags="+ildct+ilme", qscale="1").read_bytes()
    path.write_bytes(content)
    return path


def test_interlaced(tmp_path: Path) -> None:
    """A bar that moves from field to field is torn into a comb in the file, and has straight sides in the clips."""
    torn = []
    for i in range(25):
        torn.append(gray(40, 64, 320))
        for field in (0, 1):
            left = 6 * (2 * i + field)
            torn[-1][field::2, left : left + 20] = 200
    path = write_frames(tmp_path / "fields.mkv", torn, "mpeg2video", 25, flags="+ildct+ilme", qscale="1")

    def tear(picture: Any) -> float:
        return float(np.abs(np.diff(picture[8:-8].astype(int), axis=0)).mean())

    whole = frames_of(path, (64, 320), 25.0)
    assert len(whole) == 25 and tear(torn[7]) > 4 and max(map(tear, whole[2:-2])) < 1
    lefts = [int((frame[32, :, 0] > 120).argmax()) for frame in whole]
    assert [left for i, left in enumerate(lefts) if not -3 <= left - 12 * i <= 9] == []  # the time of one of the two fields


def two_streams(path: Path) -> Path:
    """Blue pictures, and yellow ones that players show because they are marked as the default."""
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, place in zip(streams, (Disposition(0), Disposition.default), strict=True):
            stream.height, stream.width, stream.pix_fmt, stream.disposition = 48, 64, "yuv420p", place
        for stream, colour in zip(streams, (BLUE, YELLOW), strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="rgb24")
            for i in range(5):
                frame.pts, frame.time_base = i, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def clear_video(path: Path, codec: str) -> Path:
    clear = np.dstack([quadrants(), np.full((48, 64), 255, np.uint8)])
    clear[:24, :32, 3] = 0
    return write_frames(path, [clear] * 5, codec, fps=10, pixels="yuva420p", **{"auto-alt-ref": "0"})


def with_strange_words(path: Path) -> Path:
    """Metadata that is not UTF-8, as old programs wrote it."""
    return replaced(write_frames(path, [quadrants()] * 5, fps=10), b"Lavf", b"La\xe9f")


def saved(path: Path, image: Image.Image | None = None, **more: Any) -> Path:
    (image or Image.fromarray(quadrants())).save(path, **more)
    return path


def clear_animation(path: Path) -> Path:
    frames = [Image.fromarray(np.dstack([quadrants(), np.full((48, 64), 255, np.uint8)])) for _ in range(5)]
    frames[0].paste((0, 0, 0, 0), (0, 0, 32, 24))
    frames[1].paste((0, 0, 0, 255), (0, 0, 8, 8))
    return saved(path, frames[0], save_all=True, append_images=frames[1:], duration=100, lossless=True)


def encoded(codec: str, pixels: str) -> Maker:
    return lambda path: write_frames(path, [quadrants()] * 5, codec, fps=10, pixels=pixels)


def of_two(path: Path) -> Path:
    return saved(path, save_all=True, append_images=[Image.new("RGB", (64, 48))])


def of_other_colours(path: Path) -> Path:
    """With a profile of a screen whose red is green and whose green is red."""
    words = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = words.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    return saved(path, icc_profile=swapped)


def mirrored_animation(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 2
    return animation(path, exif=exif)


def bare_gif(path: Path, *frames: tuple[int, int, int, int, str, int]) -> Path:
    """Frames of one colour (x, y, width, height, colour, what becomes of it) on a ground of the palette's green."""
    content = b"GIF89a" + struct.pack("<HHBBB", 64, 48, 0x81, 1, 0) + bytes([*RED, *GREEN, *BLUE, *YELLOW])
    for x, y, width, height, colour, disposal in frames:
        codes = [4, "RGBY".index(colour)] * (width * height) + [5]  # of three bits, the table of codes cleared each time
        data = sum(code << 3 * i for i, code in enumerate(codes)).to_bytes(3 * len(codes) // 8 + 1, "little")
        parts = b"".join(bytes([len(part)]) + part for i in range(0, len(data), 255) if (part := data[i : i + 255]))
        content += struct.pack("<3sBHBB", b"!\xf9\4", disposal << 2, 10, 0, 0)
        content += struct.pack("<BHHHHB", 0x2C, x, y, width, height, 0) + b"\2" + parts + b"\0"
    path.write_bytes(content + b";")
    return path


BLUE_CORNER, GREEN_CORNER = (0, 0, 32, 24, "B"), (32, 24, 32, 24, "G", 0)
BARE: list[tuple[list[Any], list[str]]] = [
    ([(*BLUE_CORNER, 0)], ["BW/WW"]),
    ([(*BLUE_CORNER, 1), GREEN_CORNER], ["BW/WW", "BW/WG"]),
    ([(*BLUE_CORNER, 3), GREEN_CORNER], ["BW/WW", "WW/WG"]),
    ([(0, 0, 64, 48, "Y", 0), (*BLUE_CORNER, 2), GREEN_CORNER], ["YY/YY", "BY/YY", "WY/YG"]),
    ([(0, 0, 64, 48, "Y", 0), (*BLUE_CORNER, 3), GREEN_CORNER], ["YY/YY", "BY/YY", "YY/YG"]),
]


@pytest.mark.parametrize(("frames", "expected"), BARE)
def test_what_no_frame_of_a_gif_covers_is_white(frames: Any, expected: list[str], tmp_path: Path) -> None:
    """Browsers leave it transparent, whatever colour the file names for the ground."""
    assert list(map(corners, frames_of(bare_gif(tmp_path / "a.gif", *frames), (48, 64)))) == expected


SHOWN: dict[str, tuple[Maker, str, int, str]] = {
    # name -> (maker, kind, frames at 10 per second, corners of the first)
    "deep.mkv": (encoded("libx265", "yuv420p10le"), "video", 5, "RG/BY"),
    "alpha.mkv": (encoded("ffv1", "yuva420p"), "video", 5, "RG/BY"),
    "full.webm": (encoded("libvpx-vp9", "yuv444p"), "video", 5, "RG/BY"),
    "two.mp4": (two_streams, "video", 5, "YY/YY"),
    "two.mkv": (two_streams, "video", 5, "YY/YY"),
    "clear8.webm": (lambda path: clear_video(path, "libvpx"), "video", 5, "WG/BY"),
    "clear9.webm": (lambda path: clear_video(path, "libvpx-vp9"), "video", 5, "WG/BY"),
    "words.mp4": (with_strange_words, "video", 5, "RG/BY"),
    "sizes.m2v": (of_two_sizes, "video", 4, "RG/BY"),
    "photo.png": (saved, "image", 1, "RG/BY"),
    "photo.jpg": (saved, "image", 1, "RG/BY"),
    "photo.avif": (saved, "image", 1, "RG/BY"),
    "photo.bmp": (saved, "image", 1, "RG/BY"),
    "two.mpo": (of_two, "image", 1, "RG/BY"),
    "two.tif": (of_two, "image", 1, "RG/BY"),
    "moving.webp": (lambda path: animation(path, lossless=True), "video", 5, "RG/BY"),
    "clear.webp": (clear_animation, "video", 5, "WG/BY"),
    "moving.gif": (animation, "video", 5, "RG/BY"),
    "hasty.gif": (lambda path: animation(path, 10), "video", 5, "RG/BY"),
    "hasty.png": (lambda path: animation(path, 0), "video", 5, "RG/BY"),
    "moving.png": (animation, "video", 5, "RG/BY"),
    "moving.avif": (animation, "video", 5, "RG/BY"),
    "profile.png": (of_other_colours, "image", 1, "GR/BY"),
    "profile.bad.png": (lambda path: saved(path, icc_profile=b"no profile"), "image", 1, "RG/BY"),
    "mirrored.apng": (mirrored_animation, "video", 5, "GR/YB"),
    "covered.png": (lambda path: animation(path, cover=True), "video", 5, "RG/BY"),
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
        image = read_image(path, 48, 64)
        assert corners(((image.pixels_CFHW[:, 0] + 1) * 127.5).permute(1, 2, 0).numpy()) == expected
        assert (image.note == "first of several frames") == (kind == "video" or "two" in name)


def hdr_video(path: Path, transfer: int) -> Path:
    def edit(stream: Any) -> None:
        stream.codec_context.color_trc = transfer

    params = f"log-level=none:transfer={transfer}:colorprim=9:colormatrix=9"
    return write_frames(path, [quadrants()] * 3, "libx265", edit=edit, pixels="yuv420p10le", **{"x265-params": params})


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


CORNERS = {1: ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06)), 9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046))}
CORNERS[12] = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))  # of the colours that there are, as x and y of CIE 1931


def to_xyz(primaries: int) -> Any:
    lights = np.array([(x / y, 1, (1 - x - y) / y) for x, y in CORNERS[primaries]]).T
    return lights * np.linalg.solve(lights, (0.3127 / 0.329, 1, 0.3583 / 0.329))


@pytest.mark.parametrize("primaries", [9, 12])
@pytest.mark.parametrize("name", ["a.mp4", "a.png", "a.avif"])
def test_wider_colours_are_brought_to_srgb(name: str, primaries: int, tmp_path: Path) -> None:
    """As BT.2020, and the Display P3 of screen recordings: what is read as if it were sRGB comes out pale."""
    light_HWC = (quadrants() / 255.0) ** 2.2 @ (np.linalg.inv(to_xyz(primaries)) @ to_xyz(1)).T
    rgb_HWC = (255 * light_HWC ** (1 / 2.2)).round().astype(np.uint8)

    def edit(stream: Any) -> None:
        stream.codec_context.color_primaries, stream.codec_context.color_trc = primaries, 1

    path = tmp_path / name
    if path.suffix == ".mp4":
        write_frames(path, [rgb_HWC] * 3, "libx264rgb", pixels="rgb24", edit=edit, crf="1")
    else:
        of_colours(path, rgb_HWC, primaries, 13)
    found, meant = (rgb_HWC[12::24, 16::32].astype(int) for rgb_HWC in (frames_of(path, (48, 64))[0], quadrants()))
    assert np.abs(found - meant).mean() < 6


def sound_alone(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def waves(path: Path) -> Path:
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
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
    "hlg.mp4": (lambda path: hdr_video(path, 18), "HDR"),
    "pq.mkv": (lambda path: hdr_video(path, 16), "HDR"),
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
    "sound.wav": (waves, NO_VIDEO),
    "sound.mp4": (sound_alone, "holds only sound; give a video file"),
    "list.m3u8": (playlist, NO_VIDEO),
    "ansi.ans": (of_bytes(b"\x1b[31mhello\x1b[0m\n" * 100), NO_VIDEO),
    "middle.mp4": (damaged_inside, DAMAGED),
    "half.png": (lambda path: shortened(saved(path, NOISE), 0.5), DAMAGED),
    "broken.png": (lambda path: replaced(saved(path, NOISE), path.read_bytes()[40:80], bytes(40)), f"{DAMAGED}|{NO_VIDEO}"),
    "end.jpg": (lambda path: shortened(saved(path, NOISE), 0.8), DAMAGED),
    "tiny.png": (png_of(1, 1), "at least 16x16 pixels, got 1x1"),
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


@pytest.mark.parametrize("fault", [AttributeError("no width"), TypeError("Missing"), ZeroDivisionError(), RecursionError("deep")])
def test_whatever_a_decoder_throws_is_one_line(fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(*_: Any) -> Any:
        raise fault

    path = saved(tmp_path / "a.png")
    monkeypatch.setattr("lumos.media.source.image_pictures", strange)
    for read in READERS:
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
    assert (of_rgb(ramp).note(*size) == []) == ((rows, columns) == size)


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


def test_oblong_pixels_are_squared(tmp_path: Path) -> None:
    def edit(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(3, 4)

    path = write_frames(tmp_path / "sar.mp4", [gray(50)] * 2, edit=edit)
    assert "crop" not in read_video(path, 10, 48, 48).note  # 64x48 of 3:4 pixels is a square picture
    assert read_header(path)[1:3] == (48, 48)


def test_every_kind_of_image_gives_the_same_gray(tmp_path: Path) -> None:
    plain = Image.new("L", (20, 20), 100)
    black = Image.fromarray(np.full((20, 20, 4), (0, 0, 0, 155), np.uint8))  # of that strength over white
    kinds = {mode: plain.convert(mode) for mode in ("L", "RGB", "CMYK")} | {"RGBA": black, "LA": black.convert("LA")}
    kinds |= {"P": plain.convert("RGB").quantize(4), "I;16": Image.fromarray(np.full((20, 20), 100 * 257, np.uint16))}
    for mode, image in kinds.items():
        pixels = read_image(saved(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"), image), 20, 20).pixels_CFHW
        assert pixels.shape == (3, 1, 20, 20) and ((pixels + 1) * 127.5).round().unique().tolist() == [100], mode
    clear = Image.new("P", (20, 20), 0)
    clear.putpalette([0, 0, 0, 255, 0, 0])
    assert read_image(saved(tmp_path / "a.gif", clear, transparency=0), 20, 20).pixels_CFHW.min() == 1


@pytest.mark.parametrize(("bits", "kind"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_the_transparent_colour_of_a_png_counts_in_its_own_bits(bits: int, kind: int, tmp_path: Path) -> None:
    """The left half has it; the right half is a lighter gray."""
    channels, clear, other = 1 + kind, 2**bits // 4, 2**bits // 2
    line = f"{clear:0{bits}b}" * channels * 16 + f"{other:0{bits}b}" * channels * 16
    row = b"\0" + int(line, 2).to_bytes(4 * bits * channels, "big")
    head = struct.pack(">IIBBBBB", 32, 16, bits, kind, 0, 0, 0)
    key = chunk(b"tRNS", struct.pack(">H", clear) * channels)
    data = chunk(b"IDAT", zlib.compress(row * 16)) + chunk(b"IEND", b"")
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + key + data)
    left, right = frames_of(path, (16, 32))[0][8, [4, 28], 0].tolist()
    assert left == 255 and abs(right - 255 * other / (2**bits - 1)) < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(quadrants())
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation -> the Transpose that makes such a file
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", stored, exif=exif, quality=95)
    assert corners(frames_of(path, (48, 64))[0]) == "RG/BY" and read_header(path)[1:3] == (64, 48)
    assert read_image(path, 48, 64).note == ("turned upright" if orientation > 1 else "")


def test_fine_detail_becomes_an_even_gray() -> None:
    checks = np.indices((160, 160)).sum(0) % 2 * 255
    assert np.ptp(of_rgb(checks[..., None].repeat(3, -1).astype(np.uint8)).draw(32, 32)[4:-4, 4:-4]) < 60


def test_variable_frame_rate_shows_what_a_player_shows(tmp_path: Path) -> None:
    shades, times = [20, 60, 100, 140, 180], [0, 0.1, 0.2, 1.2, 1.3]
    path = write_frames(tmp_path / "vfr.mp4", map(gray, shades), times=times, crf="1")
    nearest = [min(shades, key=lambda level: abs(level - found)) for found in levels(path)]
    assert nearest[:13] == [20, 60, *[100] * 10, 140] and 13 <= len(nearest) <= 15
