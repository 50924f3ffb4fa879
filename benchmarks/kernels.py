"""Where the time of a training step goes: kernels, by their names, to parts of the step."""

import time
from collections.abc import Callable
from typing import Any

import torch

from lumos.diffusion.loss import weighted_code_loss
from lumos.model.transformer import ModelConfig
from lumos.training import step_cost
from lumos.training.step_cost import Work


def profiled(step: Callable[[], None], model: ModelConfig, work: Work, device: torch.device) -> dict[str, Any]:
    """Milliseconds of device time by part in one step, the rates that they mean, and the longest kernels."""
    began = time.perf_counter()
    kernels = kernels_of(step, device)
    seconds = time.perf_counter() - began
    parts = dict.fromkeys(("attention", "matrices", "head", "sharding", "optimiser", "rest"), 0.0)
    longest: dict[str, list[float]] = {}
    for name, spent in kernels:
        parts[part_of(name)] += spent
        known = longest.setdefault(name[:90], [0.0, 0])
        known[0], known[1] = known[0] + spent, known[1] + 1
    for name, spent in kernels_of(head_alone(model, work, device), device):  # the same kernels once more, on their own
        parts[part_of(name)] -= spent
        parts["head"] += spent
    count = step_cost.flops(model, work)
    # attention's backward pass computes the scores once more; what full recomputation does twice is not counted
    operations = {"attention": count.attention * 3.5 / 3, "matrices": count.matrices, "head": count.head}
    return {
        "seconds_with_profiler": round(seconds, 4),
        "milliseconds": {name: round(value, 1) for name, value in parts.items()},
        "tflops": {name: round(flops / parts[name] / 1e9, 1) for name, flops in operations.items() if parts[name] > 0},
        "longest": sorted(((round(spent, 1), int(times), name) for name, (spent, times) in longest.items()), reverse=True)[:14],
    }


def kernels_of(run: Callable[[], None], device: torch.device) -> list[tuple[str, float]]:
    """Name and milliseconds of every kernel."""
    from torch.profiler import ProfilerActivity, profile

    on_card = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]) as seen:
        run()
        wait(device)
    events = list(seen.events() or ())
    operators = [event for event in events if event.device_type.name == "CPU"]
    if not on_card:  # operators are their own kernels
        return [(event.name, event.self_cpu_time_total / 1000) for event in operators]
    named = {event.name for event in operators}  # what is named as on the CPU is a mark, no kernel
    kernels = [(event.name, event.time_range.elapsed_us() / 1000) for event in events if event.device_type.name == "CUDA"]
    return [(name, spent) for name, spent in kernels if name not in named]


def head_alone(model: ModelConfig, work: Work, device: torch.device) -> Callable[[], None]:
    """The loss of a step and its gradients, warmed up."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    M = work.targets * work.samples
    hidden_MD = torch.randn(M, model.width, device=device, dtype=kind).requires_grad_()
    head_VD = torch.randn(work.codes, model.width, device=device, dtype=kind).requires_grad_()
    target_M, weight_M = torch.randint(work.codes, (M,), device=device), torch.full((M,), 1 / M, device=device)

    def run() -> None:
        weighted_code_loss(hidden_MD, head_VD, target_M, weight_M)[0].backward()
        hidden_MD.grad = head_VD.grad = None

    run()
    wait(device)
    return run


def part_of(kernel: str) -> str:
    """Which part of a step a kernel belongs to, by its name."""
    name = kernel.lower()
    words = {
        "attention": ("fmha", "flash", "sdpa", "flex", "attention"),
        "rest": ("triton",),  # names of fused kernels hold those of products beside them
        "matrices": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "::mm", "addmm"),
        "sharding": ("nccl", "memcpy", "chunk_cat", "split_with_sizes", "fsdp"),
        "optimiser": ("adam", "multi_tensor", "foreach"),
    }
    return next((part for part, found in words.items() if any(word in name for word in found)), "rest")


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
