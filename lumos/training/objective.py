"""The objective of one step (AR-DF, paper section 3.3): a batch of codes becomes gradients, and the loss by latent frame.

Everything random is drawn on the CPU from one generator. So the number of masked codes is known without asking the device, and
the head works at masked codes alone.
"""

import random
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lumos.data.batch import Batch
from lumos.diffusion.loss import code_loss
from lumos.diffusion.masking import draw_mask
from lumos.model.attention import Attend, dense, flex
from lumos.model.prefix import prefix
from lumos.model.rope import PLACES
from lumos.model.transformer import Transformer
from lumos.ranks import Ranks
from lumos.sequence.layout import HEADER, Grid, Keyframe, content_ids, content_of, pack, sent
from lumos.sequence.prompt_template import clock
from lumos.sequence.vocabulary import Vocabulary
from lumos.training.config import TrainModelConfig
from lumos.training.parallel import ParallelConfig
from lumos.training.step_cost import Work


def generator_of(seed: int, rank: int, step: int) -> torch.Generator:
    """The random numbers of one rank in one step, from these three alone: a resumed run draws the same."""
    # A CPU generator keeps only 32 bits of its seed: numbers put side by side would lose the rank and the seed.
    return torch.Generator().manual_seed(random.Random(f"{seed}/{rank}/{step}").getrandbits(32))


class MaskedBatch(NamedTuple):
    """A batch with all random choices made."""

    text_BS: Tensor
    length_B: Tensor  # on the CPU, ascending; 0 = prompt dropped
    codes_BTHW: Tensor  # a window in time of the clips
    mask: Tensor  # bool [B, T, H, W + 1] on the CPU: which content (codes and newlines) is masked
    first: int  # latent frame of the clips at which the window starts
    image: bool
    key: Keyframe | None = None  # a later frame that is given first

    @property
    def target_BTHW(self) -> Tensor:
        """The codes that have a loss, on the CPU."""
        return self.mask[..., :-1]

    def part(self, rows: slice) -> "MaskedBatch":
        key = None if self.key is None else Keyframe(*(part[rows] for part in self.key))
        parts = (value[rows] if isinstance(value, Tensor) else value for value in self)
        return MaskedBatch._make(parts)._replace(key=key)


def mask_batch(batch: Batch, config: TrainModelConfig, draw: torch.Generator) -> MaskedBatch:
    """Draw the window in time, the prompts to drop, and the mask. `draw` lives on the CPU."""
    frames = batch.codes_BTHW.shape[1]
    window = min(frames, config.video.window)
    latest_start = frames - window
    late = latest_start > 0 and float(torch.rand((), generator=draw)) < config.late_windows
    first = int(torch.randint(1, latest_start + 1, (), generator=draw)) if late else 0
    codes_BTHW = batch.codes_BTHW[:, first : first + window]
    B, T, H, W = codes_BTHW.shape
    length_B = torch.where(torch.rand(B, generator=draw) < config.drop_text, 0, batch.length_B)
    mask = draw_mask(config.mask, B, T, H, W + 1, draw, config.least_ratio)
    order_B = length_B.argsort(stable=True)  # prompts of one length side by side share calls of attention
    keyed = frames > 1 and first == 0 and float(torch.rand((), generator=draw)) < config.keyframes
    batch, key = batch._replace(codes_BTHW=codes_BTHW).rows(order_B), None
    if keyed and batch.key_BHW is not None and batch.key_at_B is not None:
        key = Keyframe(batch.key_BHW, batch.key_at_B)
    return MaskedBatch(batch.text_BS, length_B[order_B], batch.codes_BTHW, mask, first, frames == 1, key)


def backward(model: Transformer, vocabulary: Vocabulary, batch: MaskedBatch, config: TrainModelConfig, ranks: Ranks) -> Tensor:
    """Gradients of the mean cross-entropy over the masked codes of all ranks and parts; returns this rank's, by latent frame.

    The loss counts `world` times, because gradients are averaged over the ranks.
    """
    B, T = batch.codes_BTHW.shape[:2]
    device = batch.codes_BTHW.device
    count_T = sent(batch.target_BTHW.sum(dim=(0, 2, 3)).float(), device)
    count = count_T.sum()
    if ranks.world > 1:
        dist.all_reduce(count)
    loss_T = torch.zeros(T, device=device)
    size = B // config.accumulate
    for row in range(0, B, size):
        loss, part_T = batch_loss(model, vocabulary, batch.part(slice(row, row + size)), config, ranks.world / count)
        loss.backward()
        loss_T += part_T
    return loss_T / count_T.clamp(min=1)


def batch_loss(
    model: Transformer, vocabulary: Vocabulary, batch: MaskedBatch, config: TrainModelConfig, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of the targets' cross-entropy times `weight`; and without weight and gradient, by latent frame."""
    codes_BTHW, device = batch.codes_BTHW, batch.codes_BTHW.device
    # sharded parameters need no autocast: they are cast as they are gathered
    low = device.type == "cuda" and config.parallel.precision == "bfloat16" and not config.parallel.shard
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
        hidden_MD, code_M, frame_M = states_at_targets(model, vocabulary, batch, config)
        loss, loss_M = code_loss(model, vocabulary, hidden_MD, codes_BTHW.flatten()[code_M], weight.expand(code_M.shape))
    return loss, torch.zeros(codes_BTHW.shape[1], device=device).index_add_(0, frame_M, loss_M)


def states_at_targets(
    model: Transformer, vocabulary: Vocabulary, batch: MaskedBatch, config: TrainModelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the model over the batch: hidden_MD at its targets, with their index in codes_BTHW and their latent frame."""
    _, T, H, W = batch.codes_BTHW.shape
    shape, device, slots = config.model, batch.codes_BTHW.device, config.video.slots
    grid = Grid(H, W, config.video.temporal, config.video.spatial, PLACES[shape.rope], shape.causal)
    content = torch.where(sent(batch.mask, device), vocabulary.mask, content_ids(vocabulary, batch.codes_BTHW))
    seconds, fps = clock(1 if batch.image else config.video.frames, config.video.fps)
    length_B = sent(batch.length_B, device)
    frames = T + (batch.key is not None)
    packed = pack(vocabulary, grid, batch.text_BS, length_B, content, seconds, fps, batch.first, key=batch.key)
    index_M, code_M, frame_M = sent(target_places(batch.target_BTHW, slots, grid, frames - T), device)
    attend = attention(packed.block_BL, batch.length_B, slots, grid, frames, config.parallel)
    hidden_BLD = model(packed.ids_BL, packed.position_BL3, attend)
    return hidden_BLD.flatten(0, 1).index_select(0, index_M), code_M, frame_M


def attention(block_BL: Tensor, length_B: Tensor, slots: int, grid: Grid, frames: int, plan: ParallelConfig) -> Attend:
    """The block rule by what is fastest for this shape and device, or as `plan.attention` says."""
    kind = plan.attention
    if kind == "auto":
        kind = "dense" if not block_BL.is_cuda else "flex" if grid.causal or plan.takes_flex(grid.frame_length) else "prefix"
    if kind != "prefix":
        return (flex if kind == "flex" else dense)(block_BL, block_BL)
    if grid.causal:
        raise ValueError("parallel.attention=prefix needs frames whose ids all see each other, got model.causal; use flex")
    return prefix((slots - length_B).tolist(), slots + HEADER, grid.frame_length, frames)


def target_places(target_BTHW: Tensor, slots: int, grid: Grid, keys: int = 0) -> Tensor:
    """Of every target: its index among the ids of all rows, its index in codes_BTHW, and its latent frame, [3, M], on the CPU.

    keys: how many frames lie before the first.
    """
    T = target_BTHW.shape[1]
    L = slots + HEADER + (keys + T) * grid.frame_length
    place_N = content_of(grid, torch.arange(L)[None], slots, keys + T)[0, keys:, :, :-1].flatten()
    code_M = target_BTHW.flatten().nonzero()[:, 0]
    row_M, within_M = code_M // len(place_N), code_M % len(place_N)
    return torch.stack([row_M * L + place_N[within_M], code_M, within_M // (grid.rows * grid.columns)])


def work_of(batch: MaskedBatch, config: TrainModelConfig, vocabulary: Vocabulary) -> Work:
    """The counts that a step's operations are reckoned from."""
    B, T, H, W = batch.codes_BTHW.shape
    targets = round(int(batch.target_BTHW.sum()) / B)
    frames = T + (batch.key is not None)
    return Work(B, config.video.slots + HEADER, Grid(H, W).frame_length, frames, targets, vocabulary.code_rows)
