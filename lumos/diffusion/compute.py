"""How a model is made ready for sampling on its device: precision, compiled layers, CUDA graphs.

All of it but `precision` leaves the results as they are, to rounding. `prepare_model` runs once per model; a `Replay` wraps one
function of tensors of fixed shapes (a denoising pass over one frame), so that the card never waits for Python.
"""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lumos.model.quantise import Precision, quantise
from lumos.model.transformer import Layer, ModelConfig, Transformer

LARGE = 2**28  # compile layers only in models with at least this many parameters
# operations per pass above which a second CUDA graph is worth its capture, and cuDNN its plans (0.5 s for every length of prompt)
LONG_PASS = 2**39


@dataclass(frozen=True)
class Compute:
    """What a device may do to be faster."""

    # plain: bf16 or float32; fp8: needs an Ada, Hopper or newer card; int8: halves the memory of the weights
    precision: Precision = "plain"
    compile: bool | None = None  # compile layers (CUDA only); none = for large models
    graphs: bool | None = None  # replay denoising passes as CUDA graphs; none = yes
    # divide the ids of every frame among the ranks of torchrun, all of which must then be asked for the same videos
    divided: bool = False


def prepare_model(model: Transformer, compute: Compute, device: torch.device) -> bool:
    """Quantise the model's matrices and compile its layers as `compute` says; returns whether they were compiled.

    Raises ValueError for a precision that the device cannot compute in.
    """
    _ran(model).clear()  # from now on other functions compute these
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


_side_stream = cache(torch.cuda.Stream)  # of a device
_here = threading.local()  # libraries keep what they know of a shape per thread


def _ran(model: nn.Module) -> set[Hashable]:
    """The shapes that a model has computed in this thread."""
    return _here.__dict__.setdefault("of_models", WeakKeyDictionary()).setdefault(model, set())


class Replay:
    """A function of tensors, captured as a CUDA graph on its second call and replayed from then on.

    The next call overwrites its output. What else it reads or writes must stay in place. `shapes` that ran are captured at once.
    """

    def __init__(self, function: Callable[..., Any], model: nn.Module, shapes: Hashable) -> None:
        self.function, self.shapes, self.ran = function, shapes, _ran(model)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *given: Tensor) -> Any:
        device = given[0].device
        if self.graph is None and self.shapes not in self.ran:  # a plain call first, on the stream of the capture
            with _aside(device):
                out = self.function(*given)
            self.ran.add(self.shapes)
            return out
        if self.graph is None:
            self.given, graph, pool = [each.clone() for each in given], torch.cuda.CUDAGraph(), _keeper(device).pool()
            with _aside(device):  # not torch.cuda.graph(): it collects garbage and empties the cache each time
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    self.out = self.function(*self.given)
                finally:
                    graph.capture_end()
            self.graph = graph
        for place, value in zip(self.given, given, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.out


def pass_operations(config: ModelConfig, ids: int, keys: int) -> float:
    """Multiplications and additions of one pass over `ids` ids (of all rows) that see `keys` keys each, without the head."""
    heads = config.heads + 2 * config.kv_heads
    matrices = config.width * (heads + config.heads) * config.head_width + 3 * config.width * config.ffn
    return 2.0 * config.layers * ids * (matrices + 2 * keys * config.heads * config.head_width)


@cache
def _keeper(device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph that is never replayed. It keeps alive the one memory pool that all other graphs use in turn, one thread at a time.

    With a pool of its own for each, memory would pile up, since the allocator gives nothing back while a graph is captured.
    """
    torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with _aside(device):
        graph.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=device)
        graph.capture_end()
    return graph


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Run the block on a side stream, synchronised with the current one on entry and exit."""
    current, stream = torch.cuda.current_stream(device), _side_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
