import errno
import math
import os
import subprocess
import sys
import wave
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
from PIL import Image
from torch import Tensor

from lumos.media import video
from lumos.media.sheet import contact_sheet
from lumos.media.source import pick
from lumos.media.video import check_output, read_image, read_video, write_video

TOP_LEFT = [1.0, -1.0, -1.0]  # red


def smooth(frames: int = 17, height: int = 64, width: int = 96) -> Tensor:
    """A moving gradient [3, F, H, W] without sharp edges."""
    t = torch.linspace(0, 3, frames).view(1, -1, 1, 1)
    y = torch.linspace(-1, 1, height).view(1, 1, -1, 1)
    x = torch.linspace(-1, 1, width).view(1, 1, 1, -1)
    c = torch.arange(3.0).view(3, 1, 1, 1)
    return 0.8 * torch.sin(2 * x + 0.7 * y * (c + 1) + t + c)


def numbered(frames: int, size: int = 32) -> Tensor:
    """Frame i is gray of level i / frames: frames can be told apart."""
    return (torch.arange(frames) / frames * 2 - 1).view(1, -1, 1, 1).expand(3, frames, size, size)


def numbers(pixels_CFHW: Tensor, frames: int) -> list[int]:
    return ((pixels_CFHW.mean(dim=(0, 2, 3)) + 1) / 2 * frames).round().int().tolist()


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(((a - b) / 2).square().mean().item())


def quadrants(height: int = 40, width: int = 60) -> np.ndarray[Any, Any]:
    """Red at the top left, green at the top right, blue and white below."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2] = (255, 0, 0)
    rgb[: height // 2, width // 2 :] = (0, 255, 0)
    rgb[height // 2 :, : width // 2] = (0, 0, 255)
    rgb[height // 2 :, width // 2 :] = 255
    return rgb


def write_av(path: Path, times: list[float], levels: list[int], edit: Callable[[Any], None] = lambda stream: None) -> Path:
    """A video whose frames of gray `levels` appear at `times` (seconds)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        edit(stream)
        for time, level in zip(times, levels, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("suffix", "least"), [(".mp4", 38), (".gif", 28)])
def test_a_written_video_reads_back(tmp_path: Path, suffix: str, least: float) -> None:
    pixels = smooth()
    clip = read_video(write_video(tmp_path / f"clip{suffix}", pixels, 8), 8, 64, 96)
    assert clip.pixels_CFHW.shape == pixels.shape
    assert clip.pixels_CFHW.dtype == torch.float32
    assert clip.note == ""
    assert psnr(clip.pixels_CFHW, pixels) > least
    assert (clip.pixels_CFHW - pixels).mean(dim=(1, 2, 3)).abs().max() < 0.01, "no channel is darker or brighter"


@given(
    frames=st.integers(1, 20),
    fps=st.sampled_from([1, 6.5, 8, 12, 23.976, 24, 25, 30, 50]),
    suffix=st.sampled_from([".mp4", ".gif"]),
)
def test_frame_count_order_and_rate_are_exact(
    tmp_path_factory: pytest.TempPathFactory, frames: int, fps: float, suffix: str
) -> None:
    path = write_video(tmp_path_factory.mktemp("rates") / f"a{suffix}", numbered(frames), fps)
    clip = read_video(path, fps, 32, 32)
    assert numbers(clip.pixels_CFHW, frames) == list(range(frames))
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    tick = 0.0001 if suffix == ".mp4" else 0.006
    assert times == pytest.approx([i / fps for i in range(frames)], abs=tick)


@pytest.mark.parametrize("suffix", list(video.WRITERS))
def test_the_same_pixels_give_the_same_file(tmp_path: Path, suffix: str) -> None:
    files = {write_video(tmp_path / f"{i}{suffix}", smooth(30), 8).read_bytes() for i in range(4)}
    assert len(files) == 1


def test_gif_and_webp_loop_forever_with_true_timing(tmp_path: Path) -> None:
    for suffix, tick in ((".gif", 10), (".webp", 1)):
        with Image.open(write_video(tmp_path / f"a{suffix}", smooth(9), 12)) as image:
            durations = []
            for i in range(image.n_frames):
                image.seek(i)
                image.load()
                durations.append(image.info["duration"])
            assert image.info["loop"] == 0
        assert len(durations) == 9
        assert abs(sum(durations) - 9 * 1000 / 12) <= tick


def test_png_is_an_image_or_a_contact_sheet(tmp_path: Path) -> None:
    image = write_video(tmp_path / "one.png", smooth(1), 8)
    clip = read_image(image, 64, 96)
    assert (clip.pixels_CFHW - smooth(1)).abs().max() <= 1 / 255 + 1e-6
    assert clip.note == ""
    with Image.open(write_video(tmp_path / "sheet.png", smooth(17), 8)) as sheet:
        assert sheet.width > 5 * 96


def test_reading_at_another_rate_and_size_and_saying_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(30, 64), 30)
    clip = read_video(path, 10, 16, 32)
    assert clip.pixels_CFHW.shape == (3, 10, 16, 32)
    assert numbers(clip.pixels_CFHW, 30) == list(range(0, 30, 3))
    assert clip.note == "center-cropped 64x64 to 64x32, resized to 32x16, 30 -> 10 fps"
    assert numbers(read_video(path, 60, 64, 64).pixels_CFHW, 30) == [i // 2 for i in range(60)]
    assert numbers(read_video(path, 10, 64, 64, max_frames=4).pixels_CFHW, 30) == [0, 3, 6, 9]
    assert numbers(read_video(path, 10, 64, 64, start=0.5).pixels_CFHW, 30) == [15, 18, 21, 24, 27]
    with pytest.raises(ValueError, match=r"start must lie within .*a\.mp4, got 1\.5 s"):
        read_video(path, 10, 64, 64, start=1.5)


def test_variable_frame_rate_shows_what_a_player_shows(tmp_path: Path) -> None:
    levels = [20, 60, 100, 140, 180]
    path = write_av(tmp_path / "vfr.mp4", [0, 0.1, 0.2, 1.2, 1.3], levels)
    gray = (read_video(path, 10, 48, 64).pixels_CFHW.mean(dim=(0, 2, 3)) + 1) * 127.5
    nearest = [min(levels, key=lambda level: abs(level - g)) for g in gray.tolist()]
    assert nearest[:13] == [20, 60, *[100] * 10, 140]
    assert 13 <= len(nearest) <= 15


@given(
    rate=st.sampled_from([5, 8, 12, 24, 25, 29.97, 30, 60]), fps=st.sampled_from([1, 8, 12, 24, 30]), frames=st.integers(1, 80)
)
def test_pick_gives_evenly_spaced_frames(rate: float, fps: float, frames: int) -> None:
    timed = [(round(i / rate, 3), 1 / rate, i) for i in range(frames)]
    picked = [item for _, item in pick(timed, fps)]
    assert picked[0] == 0
    assert picked == sorted(picked)
    assert abs(len(picked) - frames / rate * fps) <= 1
    for i, item in enumerate(picked):
        assert abs(item / rate - i / fps) <= 1 / rate + 0.001
    assert [item for _, item in pick(timed, fps, most=3)] == picked[:3]
    if rate == fps:
        assert picked == list(range(frames))


def test_pick_does_not_read_past_the_limit() -> None:
    def endless() -> Any:
        i = 0
        while True:
            assert i < 10, "read further than needed"
            yield i / 8, 1 / 8, i
            i += 1

    assert [item for _, item in pick(endless(), 8, most=5)] == [0, 1, 2, 3, 4]
    assert [item for _, item in pick(endless(), 8, 0.25, 0.75)] == [2, 3, 4, 5]


def test_oblong_pixels_are_squared(tmp_path: Path) -> None:
    path = write_av(
        tmp_path / "sar.mp4", [0, 0.1], [50, 50], lambda s: setattr(s.codec_context, "sample_aspect_ratio", Fraction(3, 4))
    )
    assert "crop" not in read_video(path, 10, 48, 48).note  # 64x48 of 3:4 pixels is a square picture


def image_file(tmp_path: Path, image: Image.Image, name: str = "a.png", **options: Any) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_every_kind_of_image_gives_the_same_gray(tmp_path: Path) -> None:
    gray = Image.new("L", (20, 20), 100)
    kinds = {
        "L": gray,
        "RGB": gray.convert("RGB"),
        "P": gray.convert("RGB").quantize(4),
        "CMYK": gray.convert("CMYK"),
        "I;16": Image.fromarray(np.full((20, 20), 100 * 257, np.uint16)),
        "RGBA": Image.fromarray(np.full((20, 20, 4), (0, 0, 0, 155), np.uint8)),  # black of that strength over white
        "LA": Image.fromarray(np.full((20, 20, 4), (0, 0, 0, 155), np.uint8)).convert("LA"),
    }
    for mode, image in kinds.items():
        path = image_file(tmp_path, image, "a.tiff" if mode == "CMYK" else "a.png")
        pixels = read_image(path, 20, 20).pixels_CFHW
        assert pixels.shape == (3, 1, 20, 20)
        assert ((pixels + 1) * 127.5).round().unique().tolist() == [100], mode


def test_transparent_palette_is_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    path = image_file(tmp_path, image, "a.gif", transparency=0)
    assert read_image(path, 20, 20).pixels_CFHW.min() == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(quadrants())
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation -> the Transpose that makes such a file
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    clip = read_image(image_file(tmp_path, stored, "a.jpg", exif=exif, quality=95), 40, 60)
    assert torch.allclose(clip.pixels_CFHW[:, 0, 5, 5], torch.tensor(TOP_LEFT), atol=0.1)
    assert torch.allclose(clip.pixels_CFHW[:, 0, -5, -5], torch.ones(3), atol=0.1)


@given(columns=st.integers(16, 200), rows=st.integers(16, 200))
def test_a_photo_of_any_shape_is_fitted_about_its_centre(
    tmp_path_factory: pytest.TempPathFactory, columns: int, rows: int
) -> None:
    rgb = np.zeros((rows, columns, 3), np.uint8)
    rgb[:, : columns // 2] = 255
    path = image_file(tmp_path_factory.mktemp("photo"), Image.fromarray(rgb))
    clip = read_image(path, 32, 64)
    assert clip.pixels_CFHW.shape == (3, 1, 32, 64)
    assert clip.pixels_CFHW[..., 0].min() > 0.9 and clip.pixels_CFHW[..., -1].max() < -0.9
    assert (clip.note == "") == ((columns, rows) == (64, 32))


def bad_files(tmp_path: Path) -> dict[str, Path]:
    files = {
        name: tmp_path / name
        for name in ("empty.mp4", "text.mp4", "half.mp4", "half.mkv", "cut.mp4", "sound.wav", "list.m3u8", "ansi.ans")
    }
    files["empty.mp4"].touch()
    files["text.mp4"].write_text("this is a text, not a film\n" * 50)
    whole = write_video(tmp_path / "whole.mp4", smooth(60), 8).read_bytes()
    files["half.mp4"].write_bytes(whole[: len(whole) // 2])  # the index is there (faststart), half the frames are not
    with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(tmp_path / "whole.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    matroska = (tmp_path / "whole.mkv").read_bytes()
    files["half.mkv"].write_bytes(matroska[: len(matroska) // 2])
    files["cut.mp4"].write_bytes(whole[:500])
    with wave.open(str(files["sound.wav"]), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    files["list.m3u8"].write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path / 'whole.mp4'}\n#EXT-X-ENDLIST\n")
    files["ansi.ans"].write_text("\x1b[31mhello\x1b[0m\n" * 100)
    return files


def test_what_is_no_video_is_one_clear_line(tmp_path: Path) -> None:
    for name, path in bad_files(tmp_path).items():
        with pytest.raises(ValueError) as caught:
            read_video(path, 8, 32, 32)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(FileNotFoundError, match="no file"):
        read_video(tmp_path / "nothing.mp4", 8, 32, 32)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_video(tmp_path, 8, 32, 32)


def test_sound_alone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="holds only sound; give a video file"):
        read_video(path, 8, 32, 32)


def test_the_whole_part_of_a_cut_file_can_be_read(tmp_path: Path) -> None:
    path = bad_files(tmp_path)["half.mp4"]
    clip = read_video(path, 8, 64, 96, max_frames=5)
    assert psnr(clip.pixels_CFHW, smooth(60)[:, :5]) > 35


def test_what_is_no_image_is_one_clear_line(tmp_path: Path) -> None:
    files = bad_files(tmp_path)
    png = image_file(
        tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    ).read_bytes()
    files["cut.png"] = tmp_path / "cut.png"
    files["cut.png"].write_bytes(png[: len(png) // 2])
    files["broken.png"] = tmp_path / "broken.png"
    files["broken.png"].write_bytes(png[:40] + b"\0" * 40 + png[80:])
    files["jpeg.jpg"] = image_file(tmp_path, Image.new("RGB", (64, 64), "red"), "jpeg.jpg")
    files["jpeg.jpg"].write_bytes(files["jpeg.jpg"].read_bytes()[:-300])
    files["float.tiff"] = image_file(tmp_path, Image.fromarray(np.zeros((20, 20), np.float32)), "float.tiff")
    for name, path in files.items():
        with pytest.raises(ValueError) as caught:
            read_image(path, 32, 32)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name


def png_header(columns: int, rows: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_absurd_sizes_are_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for columns, rows, words in [
        (1, 1, "at least 16x16 pixels, got 1x1"),
        (1000, 2, "got 1000x2"),
        (12000, 12000, "at most"),
        (60000, 60000, "fewer pixels"),
    ]:
        path.write_bytes(png_header(columns, rows))
        with pytest.raises(ValueError, match=words):
            read_image(path, 32, 32)
    small = tmp_path / "small.mp4"
    write_video(small, smooth(3, 8, 8), 8)
    with pytest.raises(ValueError, match="at least 16x16 pixels, got 8x8; use a larger"):
        read_video(small, 8, 32, 32)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_wrong_rates_are_refused(tmp_path: Path, value: float) -> None:
    path = write_video(tmp_path / "a.gif", smooth(2), 8)
    with pytest.raises(ValueError, match="fps must be 0.001 to 1000"):
        read_video(path, value, 32, 32)
    with pytest.raises(ValueError, match="fps must be 0.001 to 1000"):
        write_video(tmp_path / "b.gif", smooth(2), value)


def test_wrong_outputs_are_refused_before_the_work(tmp_path: Path) -> None:
    taken = tmp_path / "taken.mp4"
    taken.write_bytes(b"mine")
    (tmp_path / "folder.mp4").mkdir()
    cases: list[tuple[Path, type[Exception], str]] = [
        (tmp_path / "a.avi", ValueError, r"must end in \.mp4, \.gif, \.webp, \.png, got 'a\.avi'"),
        (tmp_path / "a", ValueError, "must end in"),
        (tmp_path / "no" / "a.mp4", FileNotFoundError, "create it first"),
        (taken / "a.mp4", FileNotFoundError, "there is no folder"),
        (tmp_path / "folder.mp4", IsADirectoryError, "is a folder"),
        (taken, FileExistsError, "exists; use another name or --force"),
        (Path("/proc/a.mp4"), PermissionError, "cannot write to the folder /proc"),
    ]
    for path, kind, words in cases:
        if path.parent == Path("/proc") and not sys.platform.startswith("linux"):
            continue
        for function in (check_output, lambda path: write_video(path, smooth(2), 8)):
            with pytest.raises(kind, match=words):
                function(path)
    assert taken.read_bytes() == b"mine"
    check_output(taken, overwrite=True)
    assert taken.read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["folder.mp4", "taken.mp4"]


@pytest.mark.parametrize("suffix", list(video.WRITERS))
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    errors = [OSError(errno.ENOSPC, "no"), av.error.OSError(errno.ENOSPC, "no"), OSError(errno.EIO, "no"), RuntimeError("bug")]
    for error in errors:

        def fail(partial: Path, rgb_FHWC: Any, fps: float, error: Exception = error) -> None:
            partial.write_bytes(b"half")
            raise error

        monkeypatch.setitem(video.WRITERS, suffix, fail)
        with pytest.raises(type(error) if isinstance(error, RuntimeError) else OSError) as caught:
            write_video(path, smooth(2), 8, overwrite=True)
        if getattr(error, "errno", None) == errno.ENOSPC:
            assert str(caught.value).startswith(f"no space left to write {path}")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == [path.name]


def test_a_really_full_disk_is_noticed(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the writing libraries must report it, not swallow it."""
    script = """
import resource, sys, torch
from lumos.media.video import WRITERS, write_video
pixels = torch.rand(3, 9, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
for suffix in WRITERS:
    try:
        write_video(sys.argv[1] + suffix, pixels, 8)
    except OSError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    expected = [f"could not write {tmp_path / 'a'}{suffix} (File too large); choose another place" for suffix in video.WRITERS]
    assert done.stdout.splitlines() == expected
    assert os.listdir(tmp_path) == []


def test_shapes_a_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.mp4 must have even sides, got 33x32"):
        write_video(tmp_path / "a.mp4", smooth(2, 32, 33), 8)
    with pytest.raises(ValueError, match="at most 50 fps, got 60"):
        write_video(tmp_path / "a.gif", smooth(2), 60)
    for wrong in (smooth()[:1], smooth()[:, 0], smooth()[:, :0]):
        with pytest.raises(ValueError, match="pixels must have shape"):
            write_video(tmp_path / "a.gif", wrong, 8)
    assert os.listdir(tmp_path) == []


def test_contact_sheet_shows_every_sample_and_caption() -> None:
    reds = torch.full((3, 3, 17, 32, 32), -1.0)
    reds[:, 0] = 1.0
    sheet = np.asarray(contact_sheet(reds, ["a red square", "the same " * 20, ""], columns=5, scale=2))
    assert (sheet == (255, 0, 0)).all(-1).sum() == 3 * 5 * 64 * 64
    assert (sheet[0] == 255).all()
    assert (sheet < 128).all(-1).any(), "captions are printed in dark ink"
    images = np.asarray(contact_sheet(reds[:, :, :1], ["a", "b", "c"], columns=2))
    assert (images == (255, 0, 0)).all(-1).sum() == 3 * 32 * 32
    with pytest.raises(ValueError, match="captions must be as many as samples, got 1 for 3"):
        contact_sheet(reds, ["a"])
