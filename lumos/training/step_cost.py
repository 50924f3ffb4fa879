"""What a training step costs, by arithmetic alone: floating-point operations, memory by part, ids per second, and what fits.

In: a model's shape, a batch's shape, the GPUs. The same counts give the MFU that training reports. Memory follows what FSDP2
and `parallel.py` keep alive; `docs/training.md` has the formulas, `docs/performance.md` measured peaks beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

from lumos.diffusion.loss import LOGITS
from lumos.model.transformer import ModelConfig
from lumos.model_folder import VideoConfig
from lumos.sequence.layout import HEADER, Grid
from lumos.training.config import TrainModelConfig
from lumos.training.parallel import ParallelConfig, Recompute

MODES: Sequence[Recompute] = get_args(Recompute)
RESERVE = 0.94  # share of a card's memory that a run may use


class Card(NamedTuple):
    """A GPU."""

    peak: float  # TFLOP/s of large dense bf16 products, as published
    memory: float  # GiB
    bandwidth: float  # TB/s of its memory that kernels reach: five sixths of what is published


CARDS = {"H200": Card(989, 139.8, 4.0), "H100": Card(989, 79.1, 2.8), "A100": Card(312, 79.1, 1.7), "H20": Card(148, 95.0, 3.3)}
# Shares of the peak that training reaches on the H200 (docs/performance.md: they and PASSES fit ten cases): in matrix products;
# in attention without a mask by heads of width 64, and of width 128; and in FlexAttention.
MATRICES, ATTENTION, WIDE_ATTENTION, FLEX = 615 / 989, 446 / 989, 596 / 989, 150 / 989
PASSES = 13.3  # how often what layers keep goes through the card's memory in element-wise work


@dataclass(frozen=True)
class Work:
    """A step of one GPU."""

    samples: int
    text: int  # places of a sample for its prompt and header
    frame: int  # ids of a latent frame
    frames: int  # latent frames
    targets: int  # masked codes of a sample
    codes: int  # that the cross-entropy is over

    @property
    def ids(self) -> int:
        """Ids of one sample."""
        return self.text + self.frame * self.frames

    @property
    def visible(self) -> int:
        """(query, key) pairs of one sample that the block rule lets see each other."""
        pairs_of_frames = self.frame**2 * self.frames * (self.frames + 1) // 2
        return self.text * (self.text + 1) // 2 + self.text * self.frame * self.frames + pairs_of_frames


def work_of_videos(video: VideoConfig, frames: int, samples: int, codes: int, masked: float = 1.0) -> Work:
    """The work of `samples` videos of `frames` latent frames, `masked` of whose codes are targets."""
    grid = Grid(video.height // video.spatial, video.width // video.spatial)
    targets = round(masked * frames * grid.rows * grid.columns)
    return Work(samples, video.slots + HEADER, grid.frame_length, frames, targets, codes)


def works_of(config: TrainModelConfig, codes: int) -> dict[str, Work]:
    """What a GPU computes at a time in a step of a run, by kind of step."""
    works = {}
    if config.image_every != 1:
        works["videos"] = work_of_videos(config.video, config.video.window, config.videos // config.accumulate, codes)
    if config.image_every:
        works["images"] = work_of_videos(config.video, 1, config.images // config.accumulate, codes)
    return works


class Flops(NamedTuple):
    """Floating-point operations of a step's forward and backward pass, nothing counted twice."""

    matrices: float
    attention: float
    head: float


def parameters(model: ModelConfig) -> tuple[int, int]:
    """(of one layer, of all that lies outside the layers)."""
    return _matrices(model) + 2 * model.width + 4 * model.head_width, (2 * model.vocabulary + 1) * model.width


def _matrices(model: ModelConfig) -> int:
    return model.width * (2 * (model.heads + model.kv_heads) * model.head_width + 3 * model.ffn)


def flops(model: ModelConfig, work: Work) -> Flops:
    """Multiply and add are two; the backward pass is twice the forward. Attention counts visible pairs only."""
    return Flops(
        matrices=6.0 * _matrices(model) * model.layers * work.ids * work.samples,
        attention=12.0 * work.visible * model.heads * model.head_width * model.layers * work.samples,
        head=6.0 * work.targets * work.samples * model.width * work.codes,
    )


def kept(model: ModelConfig, plan: ParallelConfig) -> tuple[int, int]:
    """Numbers of two bytes per id: what a layer keeps for its backward pass, and what that pass adds when it needs most."""
    D, N, G, K, F = model.width, model.heads, model.kv_heads, model.head_width, model.ffn
    layer_input = D if plan.shard else 2 * D  # the residual stream: float32 under autocast
    before = (N + 2 * G) * K + 4 * (N + G) + 2  # query, key, value before their norms; the norms' means and deviations
    attended = (3 * N + G) * K + 2 * N  # queries, keys, outputs by frame and put together, log-sums
    after = D + 2 * F + 2  # the sum after attention; gate and up
    if plan.compile == "off":  # inputs of the matrices behind both norms, silu(gate), its product with up
        before, after = before + D, after + D + 2 * F
    backward = D + 3 * F  # at its widest, in SwiGLU: the output's gradient, the product's, gate's and up's
    if plan.recompute == "off":
        return layer_input + before + attended + after, backward
    if plan.recompute == "selective":
        return layer_input + attended + G * K, after + backward  # the value has memory of its own
    return layer_input, before + attended + after + backward


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one GPU at one moment of a step."""

    parameters: float  # float32
    optimiser: float  # AdamW's moments, and the moving average
    gradients: float = 0
    activations: float = 0
    logits: float = 0
    gathered: float = 0  # weights in bf16, and buffers of their gradients

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def step_memory(model: ModelConfig, work: Work, plan: ParallelConfig, gpus: int = 1, moments: int = 8) -> StepMemory:
    """A step's peak: at the loss, as layers go backward, or at the end. `moments`: see `TrainModelConfig`."""
    layer, outside = parameters(model)
    everything = layer * model.layers + outside
    own = everything / (gpus // plan.replicas if plan.shard else 1)  # parameters that this GPU keeps
    state = StepMemory(parameters=4 * own, optimiser=moments * own)
    ids, targets = work.samples * work.ids, work.samples * work.targets
    stays, added = kept(model, plan)
    chunk = min(targets, max(1, LOGITS // work.codes))
    logits = 4 * chunk * work.codes + 6 * work.codes * model.width + 4 * targets * model.width
    # what lies outside the layers in bf16, the head's gradient; two layers in bf16, gradients of one, their buffer and one before
    gathered = 3 * outside + (14 if plan.shard else 2) * layer
    trained = own if moments else 0.0  # adapters are small
    peaks = (
        replace(state, activations=2 * ids * (stays * model.layers + 3 * model.width), logits=logits, gathered=2 * outside),
        replace(state, activations=2 * ids * (stays * model.layers + added), gathered=gathered),
        replace(
            state,
            gradients=4 * trained * layer * model.layers / everything,
            activations=2 * ids * (stays + added),
            gathered=gathered,
        ),
        # without sharding all gradients are put in one piece, to be averaged
        replace(state, gradients=4 * trained, gathered=4 * (outside if plan.shard or gpus == 1 else everything)),
    )
    return max(peaks, key=lambda peak: peak.total)


def step_seconds(model: ModelConfig, work: Work, plan: ParallelConfig, card: Card, gpus: int = 1) -> float:
    """Time of a step: operations, those done twice included, at the rates that the card reaches, and what goes through its memory
    for element-wise work and AdamW."""
    count, layer, outside = flops(model, work), *parameters(model)
    again = 1 if plan.recompute == "off" else 4 / 3
    matrices = count.matrices * again + count.head
    attention = count.attention * (4 / 3 if plan.recompute == "full" else 1) * 3.5 / 3  # its backward computes scores again
    reached = FLEX if plan.takes_flex(work.frame) else WIDE_ATTENTION if model.head_width >= 128 else ATTENTION
    moved = PASSES * 2 * kept(model, replace(plan, recompute="off"))[0] * model.layers * work.ids * work.samples * again
    moved += 32 * (layer * model.layers + outside) / (gpus if plan.shard else 1)
    return (matrices / MATRICES + attention / reached) / (card.peak * 1e12) + moved / (card.bandwidth * 1e12)


def fits(need: StepMemory, gibibytes: float) -> bool:
    """Whether a step fits into a card's memory. The driver, NCCL and gaps between blocks take what RESERVE leaves."""
    return need.total <= RESERVE * gibibytes * 2**30


def advice(model: ModelConfig, work: Work, plan: ParallelConfig, gpus: int, moments: int, gibibytes: float) -> str:
    """What to change so that a step fits: the first of recomputation, fewer samples at a time, sharding over more GPUs."""
    one, sharded = replace(work, samples=1), replace(plan, recompute="full", shard=True, replicas=1)
    words = "parallel.shard=true, parallel.recompute=full and one sample at a time (accumulate)"
    tries = [(f"--set parallel.recompute={mode}", work, replace(plan, recompute=mode), gpus) for mode in MODES]
    tries += [(f"at least {more} GPUs with {words}", one, sharded, more) for more in (gpus, 2, 4, 8, 16, 32, 64) if more >= gpus]
    found = (said for said, less, other, n in tries if fits(step_memory(model, less, other, n, moments), gibibytes))
    return f"use {next(found, 'shorter or smaller videos')}"


def card_named(name: str) -> Card | None:
    """The card that a device calls itself after, as "NVIDIA H200"; None for one that is not in the table."""
    return next((card for key, card in CARDS.items() if key in name.split()[-1] or key in name.split()), None)
