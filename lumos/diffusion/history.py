"""What of the finished frames stays in view: which slots of the cache each of them has, and for how long (paper section 3.3).

The paper keeps every slot of `window` frames. `Shortcuts` may leave masked places out, pack what is far away, and keep the
first frame when the window moves on. This file only counts; `diffusion/job.py` moves keys and values accordingly.
"""

from collections.abc import Sequence

from lumos.diffusion.sampler import Shortcuts

STRUCTURE = 4  # ids of a frame outside its content: start, two sizes, end


def visible_content(content: int, history: float, shortcuts: Shortcuts) -> int:
    """Content slots that a frame has when it becomes history; `history` is the share of them that is masked."""
    return content - round(history * content) if shortcuts.only_visible else content


def shrink(frames: Sequence[int], window: int, shortcuts: Shortcuts) -> list[int | None]:
    """Content slots of every frame in view, the oldest first, after one more has come (the last of `frames`); None = dropped.

    Packing halves every frame but the newest each time, so a frame at distance d has 1 / 2**d of its own. When `window`
    frames are history, the oldest goes, or the second oldest if the first frame is to be kept.
    """
    newest = len(frames) - 1
    kept: list[int | None] = [
        -(-count // 2) if shortcuts.pack and not (age == newest or (shortcuts.keep_first and age == 0)) else count
        for age, count in enumerate(frames)
    ]
    if len(frames) == window:
        kept[min(int(shortcuts.keep_first), newest)] = None
    return kept


def most_slots(frames: int, content: int, visible: int, window: int, shortcuts: Shortcuts) -> int:
    """The most slots that frames ever have in the cache while `frames` are made, the one in the making included."""
    whole, most, seen = content + STRUCTURE, 0, list[int]()
    for _ in range(frames):
        most = max(most, sum(count + STRUCTURE for count in seen) + whole)
        seen = [count for count in shrink([*seen, visible], window, shortcuts) if count is not None]
    return most
