"""What is written reads back, with true timing, whole or not at all."""

import errno
import math
import os
import resource
import sys
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
from lumos.media.video import check_output, read_image, read_video, write_video
from lumos.weights import save_folder


def smooth(frames: int = 17, height: int = 64, width: int = 96) -> Tensor:
    """A moving gradient [3, F, H, W] without sharp edges."""
    t = torch.linspace(0, 3, frames).view(1, -1, 1, 1)
    y = torch.linspace(-1, 1, height).view(1, 1, -1, 1)
    x = torch.linspace(-1, 1, width).view(1, 1, 1, -1)
    c = torch.arange(3.0).view(3, 1, 1, 1)
    return 0.8 * torch.sin(2 * x + 0.7 * y * (c + 1) + t + c)


@pytest.mark.parametrize(("suffix", "least"), [(".mp4", 38), (".gif", 28), (".webp", 30)])
def test_a_written_video_reads_back(tmp_path: Path, suffix: str, least: float) -> None:
    pixels = smooth()
    footage = read_video(write_video(tmp_path / f"clip{suffix}", pixels[None], 8), 8, 64, 96)
    assert footage.pixels_CFHW.shape == pixels.shape and footage.note == ""
    error = footage.pixels_CFHW - pixels
    assert -10 * math.log10((error / 2).square().mean().item()) > least
    assert error.mean(dim=(1, 2, 3)).abs().max() < 0.01, "no channel is darker or brighter"


@given(
    frames=st.integers(1, 20),
    fps=st.sampled_from([1, 6.5, 8, 12, 23.976, 24, 25, 30, 50]),
    suffix=st.sampled_from([".mp4", ".gif"]),
)
def test_frame_count_order_and_rate_are_exact(
    tmp_path_factory: pytest.TempPathFactory, frames: int, fps: float, suffix: str
) -> None:
    numbered = (torch.arange(frames) / frames * 2 - 1).view(1, -1, 1, 1).expand(3, frames, 32, 32)
    path = write_video(tmp_path_factory.mktemp("rates") / f"a{suffix}", numbered, fps)
    found = (read_video(path, fps, 32, 32).pixels_CFHW.mean(dim=(0, 2, 3)) + 1) / 2 * frames
    assert found.round().int().tolist() == list(range(frames))
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([i / fps for i in range(frames)], abs=0.0001 if suffix == ".mp4" else 0.006)


@pytest.mark.parametrize("suffix", list(video.WRITERS))
def test_the_same_pixels_give_the_same_file(tmp_path: Path, suffix: str) -> None:
    assert len({write_video(tmp_path / f"{i}{suffix}", smooth(30), 8).read_bytes() for i in range(4)}) == 1


@pytest.mark.parametrize(("suffix", "tick"), [(".gif", 10), (".webp", 1)])
def test_animations_loop_forever_with_true_timing(tmp_path: Path, suffix: str, tick: int) -> None:
    durations = []
    with Image.open(write_video(tmp_path / f"a{suffix}", smooth(9), 12)) as image:
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    assert len(durations) == 9 and abs(sum(durations) - 9 * 1000 / 12) <= tick


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
        (tmp_path / "no" / "a.mp4", FileNotFoundError, "create it first"),
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
    check_output(taken, overwrite=True)
    assert taken.read_bytes() == b"mine" and sorted(os.listdir(tmp_path)) == ["folder.mp4", "taken.mp4"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no"), av.error.OSError(errno.ENOSPC, "no"), OSError(errno.EIO, "no"), RuntimeError("bug")]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(partial: Path, rgb_FHWC: Any, fps: float) -> None:
        partial.write_bytes(b"half")
        raise error

    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    monkeypatch.setitem(video.WRITERS, ".mp4", fail)
    full = getattr(error, "errno", None) == errno.ENOSPC
    with pytest.raises((OSError, RuntimeError), match=f"no space left to write {path}" if full else "could not|bug"):
        write_video(path, smooth(2), 8, overwrite=True)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


def test_a_really_full_disk_is_noticed(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the writing libraries must report it, not swallow it."""
    pixels = torch.rand(3, 9, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, usual[1]))
    try:
        with pytest.raises(OSError, match=r"could not write .*/model \(File too large\)"):
            save_folder(tmp_path / "model", {}, {"a": pixels})
        for suffix in video.WRITERS:
            with pytest.raises(OSError, match=r"could not write .* \(File too large\); choose another place"):
                write_video(tmp_path / f"a{suffix}", pixels, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
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
    sheet = np.asarray(contact_sheet(reds, ["a red square", "the same " * 20, ""], columns=5))
    assert (sheet == (255, 0, 0)).all(-1).sum() == 3 * 5 * 32 * 32 and (sheet[0] == 255).all()
    assert (sheet < 128).all(-1).any(), "captions are printed in dark ink"
    images = np.asarray(contact_sheet(reds[:, :, :1], ["a", "b", "c"], columns=2))
    assert (images == (255, 0, 0)).all(-1).sum() == 3 * 32 * 32
    with pytest.raises(ValueError, match="captions must be as many as samples, got 1 for 3"):
        contact_sheet(reds, ["a"])


def test_png_is_an_image_or_a_contact_sheet(tmp_path: Path) -> None:
    footage = read_image(write_video(tmp_path / "one.png", smooth(1), 8), 64, 96)
    assert (footage.pixels_CFHW - smooth(1)).abs().max() <= 1 / 255 + 1e-6 and footage.note == ""
    with Image.open(write_video(tmp_path / "sheet.png", smooth(17), 8)) as sheet:
        assert sheet.width > 5 * 96
