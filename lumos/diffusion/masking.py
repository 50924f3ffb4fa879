"""The forward process: which content of a frame is masked (paper section 3.3, AR-DF).

Content is codes and newlines, [B, T, H, W + 1]. Training hides the same places in every frame (the temporal tube); the
`random` and `diffusion-forcing` masks are the paper's comparison. Sampling hides part of every finished frame (history).
All are drawn on the CPU: the same on every device, and how many places are hidden is known without asking it.
"""

import math
from typing import Literal

import torch
from torch import Tensor

MaskKind = Literal["tube", "random", "diffusion-forcing", "nested"]
LEAST_RATIO = 0.7


def draw_ratio(shape: tuple[int, ...], generator: torch.Generator, least: float = LEAST_RATIO) -> Tensor:
    """r = max(cos(pi u / 2), least) with u uniform: one ratio per entry of `shape`, float32."""
    u = torch.rand(shape, generator=generator)
    return torch.cos(math.pi / 2 * u).clamp(min=least)


def draw_mask(
    kind: MaskKind, B: int, T: int, rows: int, columns: int, generator: torch.Generator, least: float = LEAST_RATIO
) -> Tensor:
    """Mask over content, bool [B, T, rows, columns] (True = hidden, at least one in every frame; `columns` counts the newline).

    tube: one ratio and one set of places a sample. random: one ratio a sample, places drawn anew in every frame.
    diffusion-forcing: ratio and places drawn anew in every frame. nested (ours): one order of places a sample, a ratio of
    its own for every frame, so a frame may be all hidden while its history shows a part: what sampling meets at its start.
    """
    ratio_BT = draw_ratio((B, T if kind in ("diffusion-forcing", "nested") else 1), generator, least)
    places = rows * columns
    order_BTN = torch.rand(B, 1 if kind in ("tube", "nested") else T, places, generator=generator)
    rank_BTN = order_BTN.argsort().argsort()
    count_BT1 = (ratio_BT * places).round().clamp(min=1)[..., None]
    return (rank_BTN < count_BT1).expand(B, T, places).unflatten(-1, (rows, columns))


def history_mask(B: int, rows: int, columns: int, ratio: float, generator: torch.Generator | None) -> Tensor:
    """Places of a finished frame that later frames do not see, bool [B, rows, columns]; round(ratio * n) random ones."""
    places = rows * columns
    rank_BN = torch.rand(B, places, generator=generator).argsort().argsort()
    return (rank_BN < round(ratio * places)).view(B, rows, columns)


def released_history_mask(B: int, rows: int, columns: int, ratio: float) -> Tensor:
    """The released code's history: not random, places round(i * n / m) for i < m = round(ratio * n), alike in every frame."""
    places = rows * columns
    count = round(ratio * places)
    hidden = torch.zeros(places, dtype=torch.bool)
    hidden[[round(i * places / count) for i in range(count)]] = True
    return hidden.view(1, rows, columns).repeat(B, 1, 1)
