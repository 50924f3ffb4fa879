"""One step's objective: a batch of codes, what of it is hidden, and the gradients of the loss (AR-DF, paper section 3.3).

Everything random is drawn on the CPU from one generator, so that how many codes are masked is known without asking the
device, and the head works at masked codes alone. Samples may be split over several ranks (`Context`).
"""

import random
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lumos.data.batch import Batch
from lumos.diffusion.loss import weighted_code_loss
from lumos.diffusion.masking import draw_mask
from lumos.model.attention import Attend, dense, flex
from lumos.model.prefix import prefix
from lumos.model.rope import PLACES
from lumos.model.transformer import Transformer
from lumos.sequence.layout import HEADER, PADDING_BLOCK, Grid, clock, content_ids, content_of, pack
from lumos.sequence.vocabulary import Vocabulary
from lumos.training.config import TrainModelConfig
from lumos.training.context import Context
from lumos.training.estimate import Work
from lumos.training.parallel import ParallelConfig, Ranks

LONG_FRAME = 1024  # ids a frame from which calls without a mask are faster than one with it
ALONE = Context()


def generator_of(seed: int, rank: int, step: int) -> torch.Generator:
    """What one rank draws in one step, from these three alone: so a resumed run draws the same."""
    # A CPU generator keeps only 32 bits of its seed: numbers put side by side would lose the rank and the seed.
    return torch.Generator().manual_seed(random.Random(f"{seed}/{rank}/{step}").getrandbits(32))


class Hidden(NamedTuple):
    """A batch with everything drawn: prompts (length 0 = dropped), a window of codes_BTHW that starts at latent frame `first`,
    and which of its content is masked, mask [B, T, H, W + 1] (on the CPU)."""

    text_BS: Tensor
    length_B: Tensor
    codes_BTHW: Tensor
    mask: Tensor
    first: int

    def part(self, rows: slice) -> "Hidden":
        return Hidden(self.text_BS[rows], self.length_B[rows], self.codes_BTHW[rows], self.mask[rows], self.first)


def hide(batch: Batch, image: bool, config: TrainModelConfig, draw: torch.Generator) -> Hidden:
    """Draw the window in time, the prompts to drop, and the mask. `draw` lives on the CPU."""
    device = batch.codes_BTHW.device
    window = 1 if image else config.video.window
    latest_start = batch.codes_BTHW.shape[1] - window
    late = latest_start > 0 and float(torch.rand((), generator=draw)) < config.late_windows
    first = int(torch.randint(1, latest_start + 1, (), generator=draw)) if late else 0
    codes_BTHW = batch.codes_BTHW[:, first : first + window]
    B, T, H, W = codes_BTHW.shape
    dropped = (torch.rand(B, generator=draw) < config.drop_text).to(device, non_blocking=True)
    mask = draw_mask(config.mask, B, T, H, W + 1, draw, torch.device("cpu"), config.least_ratio)
    return Hidden(batch.text_BS, torch.where(dropped, 0, batch.length_B), codes_BTHW, mask, first)


def backward(
    model: Transformer,
    vocabulary: Vocabulary,
    batch: Hidden,
    image: bool,
    config: TrainModelConfig,
    ranks: Ranks,
    context: Context = ALONE,
) -> Tensor:
    """Gradients of the mean cross-entropy over the masked codes of all ranks and parts; returns this rank's, by latent frame.

    The loss counts `world` times, because gradients are averaged over the ranks.
    """
    B, T = batch.codes_BTHW.shape[:2]
    device = batch.codes_BTHW.device
    count_T = batch.mask[..., :-1].sum(dim=(0, 2, 3)).float().to(device, non_blocking=True)
    count = count_T.sum()
    if ranks.world > 1:
        dist.all_reduce(count)
        count /= context.size  # of whom every one counted the same samples
    loss_T = torch.zeros(T, device=device)
    size = B // config.accumulate
    for row in range(0, B, size):
        part = batch.part(slice(row, row + size))
        loss, part_T = batch_loss(model, vocabulary, part, image, config, ranks.world / count, context)
        loss.backward()
        loss_T += part_T
    return loss_T * context.size / count_T.clamp(min=1)


def batch_loss(
    model: Transformer,
    vocabulary: Vocabulary,
    batch: Hidden,
    image: bool,
    config: TrainModelConfig,
    weight: Tensor,
    context: Context = ALONE,
) -> tuple[Tensor, Tensor]:
    """Sum of the masked codes' cross-entropy times `weight`, and without weight (no gradient) by latent frame."""
    text_BS, length_B, codes_BTHW, mask, first = batch
    _, T, H, W = codes_BTHW.shape
    shape, device, slots = config.model, codes_BTHW.device, config.video.slots
    grid = Grid(H, W, places=PLACES[shape.rope], causal=shape.causal)
    content = torch.where(mask.to(device, non_blocking=True), vocabulary.mask, content_ids(vocabulary, codes_BTHW))
    seconds, fps = clock(1 if image else config.video.frames, config.video.fps)
    ids_BL, position_BL3, block_BL = pack(vocabulary, grid, text_BS, length_B, content, seconds, fps, first)
    attend = attention(block_BL, length_B, slots, grid, T, config.parallel, context)
    index_M, code_M, frame_M = masked_places(mask, slots, grid, context).to(device, non_blocking=True)
    low = device.type == "cuda" and config.parallel.precision == "bfloat16" and not config.parallel.shard
    with torch.autocast(device.type, torch.bfloat16, enabled=low):  # sharded parameters are cast as they are gathered
        hidden_BLD = model(context.share(ids_BL, vocabulary.begin), context.share(position_BL3, 0), attend)
        hidden_MD = hidden_BLD.flatten(0, 1).index_select(0, index_M)
        head = model.head[vocabulary.first_code : vocabulary.first_code + vocabulary.codes]
        loss, loss_M = weighted_code_loss(hidden_MD, head, codes_BTHW.flatten()[code_M], weight.expand(index_M.shape))
    return loss, torch.zeros(T, device=device).index_add_(0, frame_M, loss_M)


def attention(
    block_BL: Tensor, length_B: Tensor, slots: int, grid: Grid, frames: int, plan: ParallelConfig, context: Context = ALONE
) -> Attend:
    """The block rule by what is fastest for this shape and device, or as `plan.attention` says."""
    kind = plan.attention
    if kind == "auto":
        kind = "dense" if not block_BL.is_cuda else "prefix" if grid.frame_length >= LONG_FRAME and not grid.causal else "flex"
    if kind == "prefix" and grid.causal:
        raise ValueError("parallel.attention=prefix needs frames whose ids all see each other, got model.causal; use flex")
    if kind == "prefix":
        padding_B = (slots - length_B).tolist()
        own = prefix(padding_B, slots + HEADER, grid.frame_length, frames, context.rank, context.size)
    else:
        whole_BL = context.fill(block_BL, PADDING_BLOCK)
        own = (flex if kind == "flex" else dense)(context.share(block_BL, PADDING_BLOCK), whole_BL)
    return context.attend(own)


def work_of(batch: Hidden, config: TrainModelConfig, vocabulary: Vocabulary) -> Work:
    """The counts that `estimate` reckons a step's operations from."""
    B, T, H, W = batch.codes_BTHW.shape
    targets = round(int(batch.mask[..., :-1].sum()) / B)
    return Work(B, config.video.slots + HEADER, Grid(H, W).frame_length, T, targets, vocabulary.codes)


def masked_places(mask: Tensor, slots: int, grid: Grid, context: Context = ALONE) -> Tensor:
    """For every masked code that this rank holds: its index among the rank's ids (all rows in one), its index in codes_BTHW, and
    its latent frame, [3, M]. `mask` [B, T, H, W + 1] lives on the CPU."""
    T = mask.shape[1]
    L = slots + HEADER + T * grid.frame_length
    place_THW = content_of(grid, torch.arange(L)[None], slots, T)[0, ..., :-1]
    code_M = mask[..., :-1].flatten().nonzero()[:, 0]
    row_M, within_M = code_M // place_THW.numel(), code_M % place_THW.numel()
    place_M = place_THW.flatten()[within_M]
    index_M = row_M * (context.padded(L) // context.size) + place_M // context.size
    frame_M = within_M // (grid.rows * grid.columns)
    return torch.stack([index_M, code_M, frame_M])[:, place_M % context.size == context.rank]
