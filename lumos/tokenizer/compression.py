"""How many pixels a code stands for, in time and in space, and which frame belongs to a time. Needs no torch."""

import re

TIME = r"[0-9]{1,6}(?:[.][0-9]{1,6}(?=s))?s?"


def latent_frames(frames: int, temporal: int) -> int:
    """Latent frames of a clip: the first frame alone, then `temporal` at a time. ValueError for a length between two."""
    if frames < 1 or (frames - 1) % temporal:
        better = 1 + temporal * -(-max(frames - 1, 0) // temporal)
        raise ValueError(f"frames must be 1 + {temporal}k, got {frames}; use {better}")
    return 1 + (frames - 1) // temporal


def pixel_frames(latent_frames: int, temporal: int) -> int:
    """The inverse: frames of so many latent frames."""
    return 1 + temporal * (latent_frames - 1) if latent_frames else 0


def frame_at(time: str, fps: float) -> int:
    """Number of the frame at a time: seconds (2s), or that number itself. ValueError for anything else."""
    if not re.fullmatch(TIME, time):
        raise ValueError(f"a time must be seconds, such as 2s, or the number of a frame, such as 16, got {time[:20]!r}")
    return round(float(time.removesuffix("s")) * (fps if time.endswith("s") else 1))


def check_keyframe(at: int, given: int, frames: int) -> None:
    """ValueError unless frame number `at` comes after the first and all `given` ones of a video of so many frames."""
    if not isinstance(at, int):
        raise ValueError(f"a keyframe's time must be the number of a frame, got {at!r:.40}")
    if frames == 1:
        raise ValueError("a video with a last image or a keyframe must have more than its first frame, got 1; use more frames")
    if not max(1, given) <= at < frames:
        rule = f"a keyframe must lie after frame {max(1, given) - 1} and at most at the last frame, {frames - 1}"
        raise ValueError(f"{rule}, got {at}; use another time or more frames")


def check_sides(height: int, width: int, unit: int) -> None:
    """ValueError unless both sides are multiples of `unit` pixels."""
    if min(height, width) < unit or height % unit or width % unit:
        better = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise ValueError(f"height and width must be multiples of {unit}, got {height}x{width}; use {better[0]}x{better[1]}")
