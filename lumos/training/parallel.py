"""How a model is spread over processes (ranks) and GPUs, and what of a step is compiled, kept or computed again.

Outside the model: `build` makes it on the meta device, sets recomputation, compilation and sharding (FSDP2), and fills it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch._functorch.config as functorch_config
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from lumos.config import Whole
from lumos.model.transformer import ModelConfig, Transformer
from lumos.ranks import Ranks, ensure_group

LONG_FRAME = 1024  # ids
Recompute = Literal["off", "selective", "full"]


@dataclass(frozen=True)
class ParallelConfig:
    """How the work is done, never what is learned."""

    # spread parameters, gradients and optimiser state over all ranks (FSDP2: bf16 in use, float32 at rest); false: every rank
    # holds all, and gradients are averaged
    shard: bool = False
    replicas: Whole = 1  # groups of ranks that each hold everything, spread inside the group
    recompute: Recompute = "off"  # what the backward pass computes again: nothing, all but attention, everything
    attention: Literal["auto", "flex", "prefix", "dense"] = "auto"  # by mask, by prefixes, or by which is faster here
    compile: Literal["off", "static", "dynamic"] = "static"  # on CUDA; dynamic: for batches of many shapes
    precision: Literal["bfloat16", "float32"] = "bfloat16"  # of what is computed on CUDA

    def __post_init__(self) -> None:
        if self.replicas > 1 and not self.shard:
            raise ValueError(f"parallel.replicas must be 1 without parallel.shard, got {self.replicas}; set parallel.shard=true")

    def takes_flex(self, frame: int) -> bool:
        """Whether frames of so many ids attend by FlexAttention on a card: long ones are faster one by one, without a mask."""
        return self.attention == "flex" or (self.attention == "auto" and frame < LONG_FRAME)

    def check(self, world: int) -> None:
        """ValueError when `world` ranks cannot be divided like this."""
        if world % self.replicas:
            raise ValueError(f"the number of processes must be a multiple of parallel.replicas = {self.replicas}, got {world}")


@torch.no_grad()
def build(
    config: ModelConfig, plan: ParallelConfig, ranks: Ranks, seed: int, weights: Mapping[str, Tensor] | None = None
) -> Transformer:
    """A model on this rank's device, spread as planned, with `weights`, or new ones: the same for any number of ranks."""
    plan.check(ranks.world)
    with torch.device("meta"):
        model = Transformer(config)
    for layer in model.layers:
        _compile_and_recompute(layer, plan, ranks.device)
    if plan.shard:
        _shard(model, plan, ranks)
    model.to_empty(device=ranks.device)
    model.make_tables(ranks.device)
    generator = torch.Generator(ranks.device).manual_seed(seed)
    for name, parameter in model.named_parameters():  # one at a time
        if weights is not None:
            value = weights[name].to(ranks.device, parameter.dtype)
        else:
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device=ranks.device)
            model.initialise_one(name, value, generator)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        local(parameter).copy_(local(value))
    return model


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be spread over ranks."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over ranks; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients down to a norm of at most `largest`; returns their norm before, over all ranks' parts."""
    return whole(torch.nn.utils.clip_grad_norm_(parameters, largest))


def _compile_and_recompute(layer: Any, plan: ParallelConfig, device: torch.device) -> None:
    # Attention stays out of both: it is a kernel of its own, and `selective` keeps its output.
    before, after = layer.before_attention, layer.after_attention
    if plan.compile != "off" and device.type == "cuda":
        # Inputs of matrices that follow from what is kept anyway (behind norms, silu(gate) * up) are made again in the backward
        # pass: three tenths less is kept, for under a hundredth of the time by count of the bytes moved.
        functorch_config.ban_recompute_materialized_backward = False
        dynamic = False if plan.compile == "static" else None  # None: from the second shape on
        before, after = torch.compile(before, dynamic=dynamic), torch.compile(after, dynamic=dynamic)
    if plan.recompute == "selective":
        before, after = _computed_again(partial(_with_a_value_of_its_own, before)), _computed_again(after)
    layer.before_attention, layer.after_attention = before, after
    if plan.recompute == "full":
        layer.forward = _computed_again(layer.forward)


def _computed_again(function: Callable[..., Any]) -> Callable[..., Any]:
    # nothing in a layer is random
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)


def _with_a_value_of_its_own(before: Callable[..., Any], *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As a view, the value would keep queries and keys from before their norms alive."""
    query, key, value = before(*inputs)
    return query, key, value.contiguous()


def _shard(model: Transformer, plan: ParallelConfig, ranks: Ranks) -> None:
    ensure_group(ranks)
    groups = (plan.replicas, ranks.world // plan.replicas) if plan.replicas > 1 else (ranks.world,)
    mesh = init_device_mesh(ranks.device.type, groups, mesh_dim_names=("replicas", "shard")[-len(groups) :])
    kind = torch.bfloat16 if plan.precision == "bfloat16" and ranks.device.type == "cuda" else torch.float32
    # The rotation's cosines go through the layers as arguments and stay float32.
    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # embedding, last norm and head: the loss uses the head after the forward pass, so they stay until the backward pass ends
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def average_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Replace every gradient by its mean over the ranks, as one transfer. Call between backward and clipping."""
    if ranks.world == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    # a parameter that is unused in this rank's batch may be used in another's
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    dist.all_reduce(flat)
    flat /= ranks.world
    for p, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        p.grad = part.view(p.shape)
