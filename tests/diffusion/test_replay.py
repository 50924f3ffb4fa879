"""What a card replays as CUDA graphs finds what plain passes and draws do: here a stand-in has a graph's memory, but no card."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import lumos.diffusion.frame_model as frame_model
from lumos.diffusion.frame_model import FrameModel
from lumos.diffusion.sampler import SamplerConfig
from lumos.generate import Generator
from lumos.model.transformer import Transformer
from lumos.ranks import Division

PROMPTS = ["a red circle", "two blue stars moves", "two"]  # of different lengths


class Captured:
    """In place of a CUDA graph, without a card: inputs and output keep their memory, and a name stands for one set of shapes."""

    named: ClassVar[dict[Any, list[Any]]] = {}

    def __init__(self, function: Any, model: Any, shapes: Any) -> None:
        self.function, self.named_shapes, self.given, self.out = function, shapes, None, None

    def __call__(self, *given: Tensor) -> Any:
        assert self.named.setdefault(self.named_shapes, [each.shape for each in given]) == [each.shape for each in given]
        self.given = self.given or [each.clone() for each in given]
        for place, value in zip(self.given, given, strict=True):
            place.copy_(value)
        out = self.function(*self.given)
        self.out = out if self.out is None else self.out
        for place, value in zip(*((each,) if isinstance(each, Tensor) else each for each in (self.out, out)), strict=True):
            place.copy_(value)
        return self.out


@pytest.mark.parametrize("sampler", ["halton", "paper"])
@pytest.mark.parametrize("name", ["toy", "sub_toy"])
def test_replayed_passes_and_draws_find_what_plain_ones_do(
    name: str, sampler: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card draws are of all places at once, and a frame's last pass is a replay of those before."""
    toy: Generator = request.getfixturevalue(name)
    settings = SamplerConfig(steps=4, guidance=2.0, guidance_until=0.5, sampler=sampler, temperature=0.7)  # type: ignore[arg-type]
    built: list[int] = []
    build = FrameModel._pass

    def made() -> list[Tensor]:
        record: list[Tensor] = []
        built.clear()
        toy(PROMPTS, frames=9, sampler=settings, record=record)
        return record

    monkeypatch.setattr(FrameModel, "_pass", lambda model, *rest: built.append(1) or build(model, *rest))
    plain = made()
    assert len(built) == 3 * 2, "with and without guidance"
    monkeypatch.setattr(frame_model, "Replay", Captured)
    monkeypatch.setattr(FrameModel, "_graphs", lambda model: True)
    monkeypatch.setattr(Captured, "named", {})
    assert all(torch.equal(one, other) for one, other in zip(plain, made(), strict=True)) and len(built) == 3
    assert all(torch.equal(one, other) for one, other in zip(plain, made(), strict=True))


def test_a_pass_that_ranks_divide_is_not_taken_for_one_that_ran_alone(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank would capture at once what the others first run plainly, and wait for them for ever."""
    named: list[set[Any]] = []

    def plain(function: Any, model: Any, shapes: Any) -> Any:
        named[-1].add(shapes)
        return function

    monkeypatch.setattr(frame_model, "Replay", plain)
    monkeypatch.setattr(FrameModel, "_graphs", lambda model: True)
    monkeypatch.setattr(Division, "whole", lambda ids, mine, dim: torch.cat([mine] * ids.world, dim).narrow(dim, 0, ids.count))
    for world in (1, 2):
        named.append(set())
        monkeypatch.setattr(frame_model, "divide", lambda count, is_shared, world=world: Division(count, world, 0))
        toy("a red circle", frames=5, sampler=SamplerConfig(steps=2))
    alone, divided = named
    assert alone and divided and not alone & divided


@pytest.mark.parametrize("compiled", [False, True])
def test_a_pass_works_for_what_is_asked_unless_its_layers_have_one_shape(
    compiled: bool, toy: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Tensor | None] = []
    run = Transformer.run
    monkeypatch.setattr(Transformer, "run", lambda model, *rest: asked.extend(rest[3:]) or run(model, *rest))
    plain: list[Tensor] = []
    toy("a red circle", frames=5, sampler=SamplerConfig(steps=2), record=plain)
    assert [at is None or at.shape[1] for at in asked] == [16, 11, 0, 16, 11], "of two frames, and of history"
    asked.clear()
    monkeypatch.setattr(toy, "compiled", compiled)
    again: list[Tensor] = []
    toy("a red circle", frames=5, sampler=SamplerConfig(steps=2), record=again)
    assert {at is None for at in asked} == {compiled}
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
