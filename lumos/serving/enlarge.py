"""A finished video's file -> the same with longer sides, to be saved; a process of its own (processes.py), as it needs torch."""

from pathlib import Path

from lumos.media.video import read_video, write_video


def run(source: Path, target: Path, height: int, width: int, fps: float) -> None:
    write_video(target, read_video(source, fps, height, width).pixels_CFHW, fps, overwrite=True)
