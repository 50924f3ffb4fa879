"""What a training step costs, by arithmetic alone: floating-point operations, memory by part, ids a second, and what fits.

In: a model's shape, a batch's shape, the GPUs. The same counts give the MFU that training reports. Memory follows what FSDP2
and `parallel.py` keep alive; `docs/training.md` has the formulas, `docs/performance.md` measured peaks beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

from lumos.model.transformer import ModelConfig
from lumos.model_folder import VideoConfig
from lumos.sequence.layout import HEADER, Grid
from lumos.training.parallel import ParallelConfig, Recompute

GIB = 2**30
LOGITS = 2**27  # of one chunk, as in diffusion/loss.py
MODES: Sequence[Recompute] = get_args(Recompute)


@dataclass(frozen=True)
class Card:
    """Peak of large dense bf16 products; what training reaches in matrices, with everything around them, and in attention with
    heads of width 64 and of 128 (TFLOP/s); memory in GiB."""

    peak: float
    matrices: float
    attention: float
    wide_attention: float
    memory: float


# Published dense bf16 peaks. What is reached was measured on the H200 (docs/performance.md: three rates fit nine cases), and is
# scaled by peak for the others.
CARDS = {
    "H200": Card(989, 470, 440, 630, 139.8),
    "H100": Card(989, 470, 440, 630, 79.1),
    "A100": Card(312, 148, 139, 199, 79.1),
    "H20": Card(148, 70, 66, 94, 95.0),
}


@dataclass(frozen=True)
class Work:
    """A step of one GPU: `samples` rows of `text` places and `frames` frames of `frame` ids,
    `targets` of whose codes are masked, cross-entropy over `codes`."""

    samples: int
    text: int
    frame: int
    frames: int
    targets: int
    codes: int

    @property
    def ids(self) -> int:
        """Ids of one sample."""
        return self.text + self.frame * self.frames

    @property
    def visible(self) -> int:
        """(query, key) pairs of one sample that the block rule lets see each other."""
        text = self.text * (self.text + 1) // 2
        return text + sum(self.frame * (self.text + (t + 1) * self.frame) for t in range(self.frames))


def work(video: VideoConfig, frames: int, samples: int, codes: int, masked: float = 1.0) -> Work:
    """The work of `samples` videos of `frames` latent frames, `masked` of whose codes are targets."""
    grid = Grid(video.height // 8, video.width // 8)
    return Work(
        samples, video.slots + HEADER, grid.frame_length, frames, round(masked * frames * grid.rows * grid.columns), codes
    )


class Flops(NamedTuple):
    """Floating-point operations of a step's forward and backward pass, nothing counted twice."""

    matrices: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.matrices + self.attention + self.head


def parameters(model: ModelConfig) -> tuple[int, int]:
    """(of one layer, of all that lies outside the layers)."""
    D, K = model.width, model.head_width
    attention = D * (model.heads + 2 * model.kv_heads) * K + D * model.heads * K
    layer = attention + 3 * D * model.ffn + 2 * D + 4 * K
    return layer, 2 * model.vocabulary * D + D


def flops(model: ModelConfig, work: Work) -> Flops:
    """Multiply and add are two; the backward pass is twice the forward. Attention counts visible pairs only."""
    D, K = model.width, model.head_width
    matrices = D * (model.heads + 2 * model.kv_heads) * K + D * model.heads * K + 3 * D * model.ffn
    return Flops(
        6.0 * matrices * model.layers * work.ids * work.samples,
        12.0 * work.visible * model.heads * K * model.layers * work.samples,
        6.0 * work.targets * work.samples * D * work.codes,
    )


class Memory(NamedTuple):
    """Bytes on one GPU at the moment of a step that needs most. `gathered`: weights in bf16 and buffers of their gradients."""

    parameters: float
    gradients: float
    optimiser: float
    activations: float
    logits: float
    gathered: float

    @property
    def total(self) -> float:
        return sum(self)


@dataclass(frozen=True)
class Spread:
    """How a model lies on `gpus`: as in ParallelConfig. `average`: a moving average of the weights is kept."""

    gpus: int = 1
    shard: bool = True
    replicas: int = 1
    average: bool = False
    compiled: bool = True

    @classmethod
    def of(cls, plan: ParallelConfig, gpus: int, average: bool = False) -> "Spread":
        return cls(gpus, plan.shard, plan.replicas, average, plan.compile != "off")


class Kept(NamedTuple):
    """Numbers of two bytes an id: what a layer keeps for its backward pass, and what that pass adds when it needs most."""

    kept: float
    added: float


def kept(model: ModelConfig, recompute: Recompute, spread: Spread) -> Kept:
    """What one layer holds of an id on the GPU that has it, by what its compiled (or plain) operators save."""
    D, N, G, K, F = model.width, model.heads, model.kv_heads, model.head_width, model.ffn
    layer_input = D if spread.shard else 2 * D  # the residual stream: float32 under autocast
    before = (N + 2 * G) * K + 4 * (N + G) + 2  # query, key, value before their norms; the norms' means and deviations
    # queries, keys, outputs by frame and put together, log-sums
    attended = N * K + G * K + 2 * N * K + 2 * N
    after = D + 2 * F + 2  # the sum after attention; gate and up
    if not spread.compiled:  # inputs of the matrices behind both norms, silu(gate), its product with up
        before, after = before + D, after + D + 2 * F
    # At its widest, in SwiGLU: the output's gradient, the product's, and gate's and up's.
    backward = D + 3 * F
    if recompute == "off":
        return Kept(layer_input + before + attended + after, backward)
    if recompute == "selective":
        return Kept(layer_input + attended + G * K, after + backward)
    return Kept(layer_input, before + attended + after + backward)


def memory(model: ModelConfig, work: Work, recompute: Recompute, spread: Spread) -> Memory:
    """Peak memory of a step by part: float32 weights, gradients and AdamW moments, spread over the GPUs when sharded, and what
    the forward pass keeps in bf16. The peak is at the loss, in one of the layers that go backward, or at the end."""
    layer, outside = parameters(model)
    everything = layer * model.layers + outside
    share = everything / (spread.gpus // spread.replicas if spread.shard else 1)
    moments = (12 if spread.average else 8) * share
    D = model.width
    ids, targets = work.samples * work.ids, work.samples * work.targets
    one = kept(model, recompute, spread)
    chunk = min(targets, max(1, LOGITS // work.codes))
    logits = 4 * chunk * work.codes + 6 * work.codes * D + 4 * targets * D
    if spread.shard:
        # two layers gathered in bf16, one's gradients, their float32 buffer and the one before; at last what lies outside
        layers_at_work, weights = (2 * 2 + 2 + 4 + 4) * layer, 2 * outside
        last = (6 if spread.gpus > 1 else 4) * outside + 4 * layer
    else:  # autocast makes bf16 copies of matrices, which compiled layers make again when they go backward
        layers_at_work, weights = 2 * layer, 0 if spread.compiled else 2 * layer * model.layers
        last = 4 * everything if spread.gpus > 1 else 0  # all gradients in one piece, to be averaged
    inside = layer * model.layers / everything
    head_gradient = (2 if spread.shard else 4) * outside / 2
    first, all_layers = 2 * ids * (one.kept + one.added), 2 * ids * (one.kept * model.layers + one.added)
    moments_of_a_step = (
        Memory(4 * share, 0, moments, 2 * ids * (one.kept * model.layers + 3 * D), logits, weights),
        Memory(4 * share, 0, moments, all_layers, 0, weights + head_gradient + layers_at_work),
        Memory(4 * share, 4 * share * inside, moments, first, 0, weights + head_gradient + layers_at_work),
        Memory(4 * share, 4 * share, moments, 0, 0, last),
    )
    return max(moments_of_a_step, key=lambda moment: moment.total)


def seconds(model: ModelConfig, work: Work, recompute: Recompute, card: Card, spread: Spread) -> float:
    """Time of a step: operations, those done twice included, at the rates that the card reaches, and AdamW's memory traffic."""
    count = flops(model, work)
    again = {"off": 0.0, "selective": 1 / 3, "full": 1 / 3}[recompute]
    attention_again = 1 / 3 if recompute == "full" else 0.0
    matrices = (count.matrices * (1 + again) + count.head) / card.matrices
    rate = card.wide_attention if model.head_width >= 128 else card.attention
    attention = count.attention * (1 + attention_again) * 3.5 / 3 / rate  # its backward computes scores again
    layer, outside = parameters(model)
    update = 32 * (layer * model.layers + outside) / (spread.gpus if spread.shard else 1) / 4e12
    return (matrices + attention) / 1e12 + update


class Fit(NamedTuple):
    """One line of the estimate: a recomputation mode, its memory, whether it fits, and its speed on the whole of the GPUs."""

    recompute: Recompute
    memory: Memory
    fits: bool
    ids_per_second: float
    mfu: float


RESERVE = 0.94  # of a card's memory that a run may use: the rest is the driver's, NCCL's and lost between blocks


def fits(model: ModelConfig, work: Work, gibibytes: float, card: Card, spread: Spread) -> list[Fit]:
    """Every recomputation mode, fastest first. `gibibytes` of memory are on each GPU."""
    rows = []
    for mode in MODES:
        need, time = memory(model, work, mode, spread), seconds(model, work, mode, card, spread)
        mfu = flops(model, work).total / time / (card.peak * 1e12)
        fit = need.total <= RESERVE * gibibytes * GIB
        rows.append(Fit(mode, need, fit, work.ids * work.samples * spread.gpus / time, mfu))
    return rows


def advice(model: ModelConfig, work: Work, recompute: Recompute, spread: Spread, gibibytes: float) -> str:
    """What to change so that a step fits: the first of recomputation, fewer samples at a time, sharding, more GPUs."""

    def fits_with(work: Work, mode: Recompute, spread: Spread) -> bool:
        return memory(model, work, mode, spread).total <= RESERVE * gibibytes * GIB

    for mode in MODES[MODES.index(recompute) + 1 :]:
        if fits_with(work, mode, spread):
            return f"use --set parallel.recompute={mode}"
    if fits_with(replace(work, samples=1), "full", spread):
        return "use --set parallel.recompute=full and a larger accumulate, or fewer samples"
    if not spread.shard and fits_with(replace(work, samples=1), "full", replace(spread, shard=True)):
        return "use --set parallel.shard=true with parallel.recompute=full and one sample at a time"
    for gpus in (2, 4, 8, 16, 32, 64):
        if gpus > spread.gpus and fits_with(replace(work, samples=1), "full", replace(spread, gpus=gpus, shard=True, replicas=1)):
            return f"use at least {gpus} GPUs with parallel.shard=true, parallel.recompute=full and one sample at a time"
    return "use shorter or smaller videos"


def card_named(name: str) -> Card | None:
    """The card that a device calls itself after, as "NVIDIA H200"; None for one that is not in the table."""
    return next((card for key, card in CARDS.items() if key in name.split()[-1] or key in name.split()), None)
