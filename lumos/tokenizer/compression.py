"""How many pixels a code stands for, in time and in space. Without torch, so that every part of lumos can ask here."""


def latent_frames(frames: int, temporal: int) -> int:
    """Latent frames of a clip: the first frame alone, then `temporal` at a time. ValueError for a length between two."""
    if frames < 1 or (frames - 1) % temporal:
        better = 1 + temporal * -(-max(frames - 1, 0) // temporal)
        raise ValueError(f"frames must be 1 + {temporal}k, got {frames}; use {better}")
    return 1 + (frames - 1) // temporal


def pixel_frames(latent_frames: int, temporal: int) -> int:
    """The inverse: frames of so many latent frames."""
    return 1 + temporal * (latent_frames - 1) if latent_frames else 0


def check_sides(height: int, width: int, unit: int) -> None:
    """ValueError unless both sides are multiples of `unit` pixels."""
    if min(height, width) < unit or height % unit or width % unit:
        better = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise ValueError(f"height and width must be multiples of {unit}, got {height}x{width}; use {better[0]}x{better[1]}")
