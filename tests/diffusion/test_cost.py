"""What a video costs is known beforehand: memory is told before the work, operations are those that are computed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import lumos.diffusion.cost as costs
import lumos.diffusion.draw as drawing
from lumos.diffusion.sampler import SamplerConfig
from lumos.generate import Generator
from lumos.sequence.layout import Grid

SAMPLER = SamplerConfig(steps=3, guidance=2.0)
PICTURE = torch.zeros(3, 32, 32)


def test_too_little_memory_is_told_before_the_work(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = toy.cost(1, 9, 32, 32).bytes
    assert toy.cost(4, 9, 32, 32).bytes > 3 * needed < toy.cost(1, 9, 256, 256).bytes
    assert toy.cost(1, 9, 32, 32, replace(SAMPLER, window=1)).bytes < needed
    monkeypatch.setattr(costs, "free_memory", lambda device: needed)
    toy("a red circle", frames=9)
    with pytest.raises(ValueError, match="GiB of memory"):
        toy("a red circle", frames=9, keyframes={8: PICTURE})
    with pytest.raises(ValueError, match=r"needs about .* GiB of memory .* use fewer prompts"):
        toy(["a red circle"] * 4, frames=9)


def test_operations_are_counted_as_the_model_computes_them(toy: Generator) -> None:
    """By hand, one frame of an image without guidance: every matrix of a layer, attention, and the head where it is asked."""
    config = toy.model.config
    settings = SamplerConfig(steps=1, guidance=1.0)
    ids, keys = 24, 12 + 3 + 24
    matrices = sum(parameter.numel() for parameter in toy.model.layers[0].parameters() if parameter.shape[0] > 1 < parameter.ndim)
    layer = 2 * ids * matrices + 4 * ids * keys * config.heads * config.head_width
    head = 2 * 16 * config.width * 64
    assert toy.cost(1, 1, 32, 32, settings).operations == 2 * config.layers * layer + head  # the second makes it history
    spec = replace(toy._spec(Grid(4, 4), 1), keyframes={4: PICTURE})  # a frame more to see
    more = config.layers * 4 * ids * 24 * config.heads * config.head_width
    assert toy._cost(spec, 0, 1, settings).operations == 2 * (config.layers * layer + more) + head


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": 1.0},
        {"first": 2.0, "guidance_until": 0.5},
        {"sampler": "halton", "guidance_until": 0.5},
        {"sampler": "random"},
    ],
)
def test_logits_are_counted_as_the_sampler_asks_for_them(
    toy: Generator, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    made: list[int] = []
    draw, config, settings = drawing.draw_codes, toy.model.config, SamplerConfig(**{"steps": 5, "guidance": 2.0} | changes)

    def counted(hidden_RMD: Tensor, head_VD: Tensor, *rest: Any) -> Any:
        made.append(2 * hidden_RMD.shape[0] * hidden_RMD.shape[1] * head_VD.numel())
        return draw(hidden_RMD, head_VD, *rest)

    monkeypatch.setattr(drawing, "draw_codes", counted)
    toy(["a red circle", "two blue stars moves", "two"], frames=9, sampler=settings)
    spec, slots = toy._spec(toy._grid(32, 32), 9), toy.config.video.slots
    with_head, without = (costs.generation_cost(config, spec, 0, slots, codes, 3, 4, settings).operations for codes in (64, 0))
    assert with_head - without == sum(made)
