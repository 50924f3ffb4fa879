"""A picture or video looks as players and browsers show it, whatever its format, and the same to every reader."""

import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lumos.media.picture import of_rgb
from lumos.media.source import read_header
from lumos.media.video import read_image, read_video
from tests.media.files import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    Maker,
    animation,
    chunk,
    corners,
    frames_of,
    gray,
    of_colours,
    quadrants,
    replaced,
    saved,
    turned,
    write_frames,
)


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


def clear_animation(path: Path) -> Path:
    frames = [Image.fromarray(np.dstack([quadrants(), np.full((48, 64), 255, np.uint8)])) for _ in range(5)]
    frames[0].paste((0, 0, 0, 0), (0, 0, 32, 24))
    frames[1].paste((0, 0, 0, 255), (0, 0, 8, 8))
    return saved(path, frames[0], save_all=True, append_images=frames[1:], duration=100, lossless=True)


def of_two(path: Path) -> Path:
    return saved(path, save_all=True, append_images=[Image.new("RGB", (64, 48))])


def of_other_colours(path: Path) -> Path:
    """With a profile of a screen whose red is green and whose green is red."""
    words = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = words.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    return saved(path, icc_profile=swapped)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


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


QUADRANTS = [quadrants()] * 5
SHOWN: dict[str, tuple[Maker, str, int, str]] = {
    # name -> (maker, kind, frames at 10 per second, corners of the first)
    "deep.mkv": (lambda path: write_frames(path, QUADRANTS, "libx265", 10, pixels="yuv420p10le"), "video", 5, "RG/BY"),
    "two.mkv": (two_streams, "video", 5, "YY/YY"),
    "clear8.webm": (lambda path: clear_video(path, "libvpx"), "video", 5, "WG/BY"),
    "clear9.webm": (lambda path: clear_video(path, "libvpx-vp9"), "video", 5, "WG/BY"),
    # metadata that is not UTF-8, as old programs wrote it
    "words.mp4": (lambda path: replaced(write_frames(path, QUADRANTS, fps=10), b"Lavf", b"La\xe9f"), "video", 5, "RG/BY"),
    "sizes.m2v": (of_two_sizes, "video", 4, "RG/BY"),
    "photo.png": (saved, "image", 1, "RG/BY"),
    "photo.avif": (saved, "image", 1, "RG/BY"),
    "photo.bmp": (saved, "image", 1, "RG/BY"),
    "two.mpo": (of_two, "image", 1, "RG/BY"),
    "two.tif": (of_two, "image", 1, "RG/BY"),
    "moving.webp": (lambda path: animation(path, lossless=True), "video", 5, "RG/BY"),
    "clear.webp": (clear_animation, "video", 5, "WG/BY"),
    "moving.gif": (animation, "video", 5, "RG/BY"),
    "hasty.gif": (lambda path: animation(path, 10), "video", 5, "RG/BY"),
    "moving.png": (animation, "video", 5, "RG/BY"),
    "moving.avif": (animation, "video", 5, "RG/BY"),
    "profile.png": (of_other_colours, "image", 1, "GR/BY"),
    "profile.bad.png": (lambda path: saved(path, icc_profile=b"no profile"), "image", 1, "RG/BY"),
    "mirrored.apng": (lambda path: animation(path, exif=exif_of(2)), "video", 5, "GR/YB"),
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
    path = tmp_path / name
    if path.suffix == ".mp4":
        context = {"color_primaries": primaries, "color_trc": 1}
        write_frames(path, [rgb_HWC] * 3, "libx264rgb", pixels="rgb24", context=context, crf="1")
    else:
        of_colours(path, rgb_HWC, primaries, 13)
    found, meant = (rgb_HWC[12::24, 16::32].astype(int) for rgb_HWC in (frames_of(path, (48, 64))[0], quadrants()))
    assert np.abs(found - meant).mean() < 6


@given(st.integers(16, 200), st.integers(16, 200), st.sampled_from([(32, 64), (64, 32), (40, 40)]))
def test_the_middle_of_a_picture_stays_in_the_middle(columns: int, rows: int, size: tuple[int, int]) -> None:
    """What is cropped is as much on one side as on the other."""
    y, x = np.mgrid[:rows, :columns]
    ramp = np.stack([255 * x / (columns - 1), 255 * y / (rows - 1), 0 * x], -1).astype(np.uint8)
    drawn = of_rgb(ramp).draw(*size).astype(float)
    assert drawn.shape == (*size, 3)
    assert np.allclose(drawn.mean((0, 1))[:2], 127.5, atol=255 / min(columns, rows) + 2)
    assert (of_rgb(ramp).note(*size) == []) == ((rows, columns) == size)


def test_oblong_pixels_are_squared(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "sar.mp4", [gray(50)] * 2, context={"sample_aspect_ratio": Fraction(3, 4)})
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
    path = saved(tmp_path / "a.jpg", stored, exif=exif_of(orientation), quality=95)
    assert corners(frames_of(path, (48, 64))[0]) == "RG/BY" and read_header(path)[1:3] == (64, 48)
    assert read_image(path, 48, 64).note == ("turned upright" if orientation > 1 else "")


def test_fine_detail_becomes_an_even_gray() -> None:
    checks = np.indices((160, 160)).sum(0) % 2 * 255
    assert np.ptp(of_rgb(checks[..., None].repeat(3, -1).astype(np.uint8)).draw(32, 32)[4:-4, 4:-4]) < 60
