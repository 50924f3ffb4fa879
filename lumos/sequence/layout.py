"""Prompt ids and codes_BTHW <-> ids_BL with position_BL3 (MM-RoPE, paper section 3.2) and block_BL (the attention rule).

Every row of a batch has the same shape: `slots` places for begin + prompt + separator, filled from the right (unused places
hold padding that nothing sees), then the video header, then `latent frames` frames. So frames lie at the same places in
every row, whatever the prompt's length, and one reshape reaches their content. Positions are data: the RoPE variants of the
paper differ in what this file writes and in one table of `model/rope.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lumos.sequence.vocabulary import Vocabulary

HEADER = 3  # video start, seconds, frames per second
FRAME_HEAD = 3  # frame start, height, width
SIZE_UNIT = 32  # pixels that one step of a grid-size id stands for
PADDING_BLOCK = 2**30  # a block after every other: no query sees a padding key


# Where a frame's content lies on the axes t, h, w: at its pixels, at its latent places, or at its index in the sequence.
Places = Literal["pixel", "latent", "index"]


@dataclass(frozen=True)
class Grid:
    """One frame's codes: rows x columns, and the pixels a code covers. `places` are the positions of its content (MM-RoPE:
    pixel); `causal` makes every id a block of its own instead of a frame (the paper's comparison)."""

    rows: int
    columns: int
    temporal: int = 4
    spatial: int = 8
    places: Places = "pixel"
    causal: bool = False

    @property
    def content(self) -> int:
        """Codes and newlines of one frame."""
        return self.rows * (self.columns + 1)

    @property
    def frame_length(self) -> int:
        """Ids of one latent frame: start, two sizes, content, end."""
        return FRAME_HEAD + self.content + 1


class PackedBatch(NamedTuple):
    """ids_BL int64, position_BL3 int64 (t, h, w), block_BL int64."""

    ids_BL: Tensor
    position_BL3: Tensor
    block_BL: Tensor


class Keyframe(NamedTuple):
    """One picture per row that shows a later frame of its video."""

    codes_BHW: Tensor  # of the picture alone, as of a video's first frame
    at_B: Tensor  # pixel frame that it shows, from 1 on


def sent(value: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. Only from pinned memory does the copy not wait for all the work that the device still has."""
    return value.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value


def text_batch(vocabulary: Vocabulary, prompts: Sequence[Sequence[int]], slots: int) -> tuple[Tensor, Tensor]:
    """Prompts (text ids; an empty one = unconditional) -> right-aligned ids_BS and their lengths_B."""
    rows = [[vocabulary.begin, *prompt, vocabulary.separator] if prompt else [] for prompt in prompts]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    assert not rows or int(lengths.max()) <= slots
    padded = [[vocabulary.begin] * (slots - len(row)) + row for row in rows]
    return torch.tensor(padded, dtype=torch.int64).view(len(rows), slots), lengths


def frame_ids(vocabulary: Vocabulary, grid: Grid, content_BTHW: Tensor) -> Tensor:
    """Content ids (rows x (columns + 1), newline ids included) -> whole frames ids_BTN, N = grid.frame_length."""
    B, T = content_BTHW.shape[:2]
    sides = [vocabulary.number(side * grid.spatial // SIZE_UNIT) for side in (grid.rows, grid.columns)]
    start, *size, end = (content_BTHW.new_full((B, T, 1), id) for id in (vocabulary.frame_start, *sides, vocabulary.frame_end))
    return torch.cat([start, *size, content_BTHW.flatten(2), end], dim=2)


def content_ids(vocabulary: Vocabulary, codes_BTHW: Tensor) -> Tensor:
    """codes_BTHW -> ids with a newline after every row, [B, T, H, W + 1]."""
    newline = torch.full_like(codes_BTHW[..., :1], vocabulary.newline)
    return torch.cat([codes_BTHW + vocabulary.first_code, newline], dim=-1)


def pack(
    vocabulary: Vocabulary,
    grid: Grid,
    text_BS: Tensor,
    length_B: Tensor,
    content_BTHW: Tensor,
    seconds: int,
    fps: int,
    first_latent: int = 0,
    tail: bool = False,
    key: Keyframe | None = None,
) -> PackedBatch:
    """A whole batch: right-aligned prompts, header, frames (`content_BTHW` holds ids with newlines, masked or not).

    `first_latent` says which latent frame of its video the first one is (a window of a longer video). `tail` adds the two
    ids that end a sample; nothing sees or predicts them, so training leaves them out. T = 0 gives prompt and header alone.
    `key`: a later frame that is given before the others, a block at its true time.
    """
    B, S = text_BS.shape
    T = content_BTHW.shape[1]
    device = text_BS.device
    header = [vocabulary.video_start, vocabulary.number(seconds), vocabulary.number(fps)]
    start_B = S - length_B
    prefix = torch.arange(S + HEADER, device=device)
    positions = [(prefix - start_B[:, None]).clamp(min=0)[:, :, None].expand(B, S + HEADER, 3)]
    block_BP = torch.where(prefix < start_B[:, None], PADDING_BLOCK, prefix)
    if key is not None:
        positions.append(key_positions(grid, length_B, key.at_B))
        content_BTHW = torch.cat([content_ids(vocabulary, key.codes_BHW)[:, None], content_BTHW], dim=1)
    positions.append(frame_positions(grid, length_B, first_latent, T))
    # each id filled in by the device itself: to copy a list there would wait for all the work that it still has
    parts = [text_BS, *(text_BS.new_full((B, 1), id) for id in header), frame_ids(vocabulary, grid, content_BTHW).flatten(1)]
    ids = torch.arange(content_BTHW.shape[1] * grid.frame_length, device=device)
    frame_block = S + HEADER + (ids if grid.causal else ids // grid.frame_length)
    blocks = [block_BP, frame_block.expand(B, -1)]
    if tail:
        parts += [text_BS.new_full((B, 1), id) for id in (vocabulary.video_end, vocabulary.separator)]
        places = torch.arange(2, device=device)
        after = HEADER + (first_latent + T) * grid.frame_length
        positions.append((length_B[:, None] + after + places)[:, :, None].expand(B, 2, 3))
        blocks.append((S + HEADER + len(ids) + places).expand(B, 2))
    return PackedBatch(torch.cat(parts, dim=1), torch.cat(positions, dim=1), torch.cat(blocks, dim=1))


def frame_positions(grid: Grid, length_B: Tensor, first_latent: int, latent_frames: int) -> Tensor:
    """position_BL3 of `latent_frames` whole frames from number `first_latent` on, in rows whose prompt has length_B ids.

    Structure ids sit at their index in the sequence on all three axes; content at (4 t, 8 h, 8 w) plus the index of the
    sample's first content id (positions scaled from latent back to pixel scale); at (t, h, w) plus that, or at its own index,
    if `grid.places` says so.
    """
    device, N = length_B.device, grid.frame_length
    t = torch.arange(first_latent, first_latent + latent_frames, device=device)
    index_TN = HEADER + t[:, None] * N + torch.arange(N, device=device)
    position_TN3 = index_TN[:, :, None].repeat(1, 1, 3)
    if grid.places == "index":
        return position_TN3.flatten(0, 1) + length_B[:, None, None]
    temporal, spatial = (grid.temporal, grid.spatial) if grid.places == "pixel" else (1, 1)
    h, w = torch.arange(grid.rows, device=device), torch.arange(grid.columns + 1, device=device)
    content_TM3 = torch.cartesian_prod(temporal * t, spatial * h, spatial * w).view(latent_frames, grid.content, 3)
    position_TN3[:, FRAME_HEAD:-1] = content_TM3 + (HEADER + FRAME_HEAD)
    return position_TN3.flatten(0, 1) + length_B[:, None, None]


def key_positions(grid: Grid, length_B: Tensor, at_B: Tensor) -> Tensor:
    """position_BL3 of a frame that shows pixel frame `at_B` of its video: there in time for content, and structure ids as those
    of the latent frame that holds it."""
    position_BN3 = frame_positions(grid, length_B, 0, 1)
    latent_B = (at_B + grid.temporal - 1) // grid.temporal
    structure_BN3 = position_BN3 + (latent_B * grid.frame_length)[:, None, None]
    if grid.places == "index":
        return structure_BN3
    time_B = at_B if grid.places == "pixel" else latent_B
    content_BN3 = position_BN3 + torch.stack([time_B, 0 * time_B, 0 * time_B], dim=-1)[:, None]
    return torch.cat([structure_BN3[:, :FRAME_HEAD], content_BN3[:, FRAME_HEAD:-1], structure_BN3[:, -1:]], dim=1)


def content_of(grid: Grid, values_BLX: Tensor, slots: int, latent_frames: int) -> Tensor:
    """The frames' content out of anything per id: [B, L, ...] -> [B, T, H, W + 1, ...] (a view where possible)."""
    first = slots + HEADER
    frames = values_BLX[:, first : first + latent_frames * grid.frame_length]
    frames = frames.unflatten(1, (latent_frames, grid.frame_length))
    return frames[:, :, FRAME_HEAD:-1].unflatten(2, (grid.rows, grid.columns + 1))


def unpack(vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[list[int], Tensor, int, int]:
    """One sample's ids -> (text ids, codes_THW, seconds, fps). ValueError says what breaks the form and where."""
    row = list(ids)
    if vocabulary.video_start not in row:
        raise ValueError("a sample must hold a video start id, found none; is this another vocabulary?")
    start = row.index(vocabulary.video_start)
    text = row[1 : start - 1] if start else []
    seconds, fps = (row[start + i] - vocabulary.number_zero for i in (1, 2))
    frames: list[list[list[int]]] = []
    at = start + HEADER
    while row[at] == vocabulary.frame_start:
        columns = (row[at + 2] - vocabulary.number_zero) * 4
        rows = (row[at + 1] - vocabulary.number_zero) * 4
        content = row[at + FRAME_HEAD : at + FRAME_HEAD + rows * (columns + 1)]
        at += FRAME_HEAD + len(content) + 1
        lines = [content[r * (columns + 1) : (r + 1) * (columns + 1)] for r in range(rows)]
        if row[at - 1 : at] != [vocabulary.frame_end] or any(line[-1] != vocabulary.newline for line in lines):
            raise ValueError(
                f"latent frame {len(frames)} of a sample must be {rows} rows of {columns} codes and a newline, it is not"
            )
        frames.append([line[:-1] for line in lines])
    codes_THW = torch.tensor(frames, dtype=torch.int64) - vocabulary.first_code
    if codes_THW.numel() == 0 or int(codes_THW.min()) < 0 or int(codes_THW.max()) >= vocabulary.codes:
        raise ValueError(f"visual codes must be 0 to {vocabulary.codes - 1}, got others or none; the file is damaged")
    return text, codes_THW, seconds, fps
