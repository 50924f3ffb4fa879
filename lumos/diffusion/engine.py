"""How a model is made ready for sampling on its device: precision, compiled layers, CUDA graphs, the attention kernel.

All of it but `precision` leaves the results as they are, to rounding. `prepare` is done once a model; a `Replay` wraps one
function of tensors of fixed shapes (a denoising pass over one frame) so that the card is not kept waiting for Python.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from lumos.diffusion.sampler import Guess, choose, guide
from lumos.model.quantise import Fp8, Precision, multiply, quantise
from lumos.model.transformer import Layer, ModelConfig, Transformer

LARGE = 2**28  # parameters from which on compiling layers saves more than it costs
LOGITS = 2**26  # at once; the more, the more memory
WORTH_A_GRAPH = 2**39  # operations of a pass from which on a second graph spares more than capturing it costs
WORTH_COMPILING = 64  # places; a single one would even be compiled anew


@dataclass(frozen=True)
class Compute:
    """precision: `plain` is bf16 or float32, `fp8` needs a Hopper card or newer, `int8` halves the memory of the weights.
    compile: None = for large models. graphs: None = yes; both on CUDA only. attention: the kernel that is tried first on CUDA."""

    precision: Precision = "plain"
    compile: bool | None = None
    graphs: bool | None = None
    attention: Literal["cudnn", "flash"] = "cudnn"

    @property
    def kernel(self) -> SDPBackend:
        return SDPBackend.CUDNN_ATTENTION if self.attention == "cudnn" else SDPBackend.FLASH_ATTENTION


def prepare(model: Transformer, compute: Compute, device: torch.device) -> bool:
    """Quantise the model's matrices and compile its layers as `compute` says; returns whether they were compiled.

    Raises ValueError for a precision that the device cannot compute in.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if compute.precision == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(f"fp8 needs an Ada, Hopper or newer card, got {torch.cuda.get_device_name(device)}; use int8 or plain")
    quantise(model, compute.precision)
    wanted = parameters >= LARGE if compute.compile is None else compute.compile
    if not wanted or device.type != "cuda":
        return False
    for layer in model.layers:  # two small graphs, shared by all layers; attention between them has lengths that grow
        assert isinstance(layer, Layer)
        if "before_attention" in vars(layer):  # compiled before
            continue
        layer.before_attention = torch.compile(layer.before_attention, dynamic=False)  # type: ignore[method-assign]
        layer.after_attention = torch.compile(layer.after_attention, dynamic=False)  # type: ignore[method-assign]
    return True


def guess(
    hidden_RMD: Tensor,
    head_VD: Tensor | Fp8,
    strength: float,
    temperature: float,
    uniform_BM: Tensor,
    entropy: bool = False,
    compiled: bool = False,
) -> Guess:
    """Codes drawn at M places of B samples from hidden states of R = 2 B rows (both branches of guidance) or R = B.

    Logits exist for a part of the places at a time, on the visual ids only.
    """
    draw = _compiled_draw() if compiled and uniform_BM.shape[1] >= WORTH_COMPILING else _draw
    step = max(1, LOGITS // (hidden_RMD.shape[0] * head_VD.shape[0]))
    parts = [
        draw(multiply(hidden, head_VD), strength, temperature, uniform, entropy)
        for hidden, uniform in zip(hidden_RMD.split(step, dim=1), uniform_BM.split(step, dim=1), strict=True)
    ]
    joined = [torch.cat(group, dim=1) for group in zip(*(part[: 2 + entropy] for part in parts), strict=True)]
    return Guess(*joined)


class Replay:
    """A function of one tensor, captured as a CUDA graph on its second call and replayed from then on.

    Its output is overwritten by the next call. What else the function reads or writes must stay where it is.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], enabled: bool) -> None:
        self.function, self.enabled, self.warm = function, enabled, False
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, given: Tensor) -> Tensor:
        if not self.enabled:
            return self.function(given)
        if not self.warm:  # a plain call first: it fills the caches of the libraries below, on the stream of the capture
            self.warm = True
            with _aside(given.device):
                return self.function(given)
        if self.graph is None:
            self.given, self.graph, pool = given.clone(), torch.cuda.CUDAGraph(), _keeper(given.device).pool()
            with _aside(given.device):  # not torch.cuda.graph(): it collects garbage and empties the cache each time
                self.graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    self.out = self.function(self.given)
                finally:
                    self.graph.capture_end()
        self.given.copy_(given)
        self.graph.replay()
        return self.out


def pass_operations(config: ModelConfig, ids: int, keys: int) -> float:
    """Multiplications and additions of one pass over `ids` ids (of all rows) that see `keys` keys each, without the head."""
    heads = config.heads + 2 * config.kv_heads
    matrices = config.width * (heads + config.heads) * config.head_width + 3 * config.width * config.ffn
    return 2.0 * config.layers * ids * (matrices + 2 * keys * config.heads * config.head_width)


def _draw(logits_RMV: Tensor, strength: float, temperature: float, uniform_BM: Tensor, entropy: bool) -> Guess:
    if logits_RMV.shape[0] != uniform_BM.shape[0]:
        conditional, unconditional = logits_RMV.chunk(2)
        logits_RMV = guide(conditional, unconditional, strength)
    return choose(logits_RMV, temperature, uniform_BM, entropy)


@cache
def _compiled_draw() -> Callable[..., Guess]:
    # Fused, the float32 values exist in registers alone; the number of places falls from step to step.
    return torch.compile(_draw)


@cache
def _keeper(device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph that is never replayed. It keeps alive the memory that all others use, one after another: with memory of its own
    for each, what they leave behind would pile up, for the allocator gives nothing back while a graph is captured."""
    torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with _aside(device):
        graph.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=device)
        graph.capture_end()
    return graph


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Inside, work goes to a stream of its own, after all that came before and before all that comes after."""
    current, stream = torch.cuda.current_stream(device), _side_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
