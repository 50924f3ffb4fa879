"""Precision and card must fit; layers are compiled where that is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn.attention import SDPBackend

from lumos.diffusion import frame_model, sampler
from lumos.diffusion.compute import Compute, Replay, prepare_model
from lumos.diffusion.sampler import SamplerConfig
from lumos.generate import Generator
from lumos.model.transformer import ModelConfig, Transformer


def test_the_model_is_prepared_for_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(ModelConfig(100, 1, 32, 1, 1, 32, 32))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(ValueError, match="fp8 needs an Ada, Hopper or newer card, got A100; use int8"):
        prepare_model(model, Compute(precision="fp8"), torch.device("cuda"))
    assert prepare_model(model, Compute(precision="int8", compile=True), torch.device("cpu")) is False
    asked = [(Compute(compile=wanted), vars(model.layers[0])) for wanted in (None, False, True)]
    found = [(prepare_model(model, compute, torch.device("cuda")), "after_attention" in names) for compute, names in asked]
    assert found == [(False, False), (False, False), (True, True)], "a small model only where asked"


def test_shapes_that_ran_before_are_forgotten_where_others_compute_them() -> None:
    """Only what has run can be captured at once, and quantised weights have not."""
    model, other = (Transformer(ModelConfig(100, 1, 32, 1, 1, 32, 32)) for _ in range(2))
    for each in (model, other):
        Replay(torch.neg, each, "shapes").ran.add("shapes")
    prepare_model(model, Compute(precision="int8"), torch.device("cpu"))
    assert Replay(torch.neg, model, "shapes").ran == set()
    assert Replay(torch.neg, other, "shapes").ran == {"shapes"}


def test_only_long_passes_wait_for_cudnn_to_plan_them(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SDPBackend] = []

    @contextmanager
    def noted(device: torch.device, first: SDPBackend) -> Iterator[None]:
        asked.append(first)
        yield

    for module in (frame_model, sampler):
        monkeypatch.setattr(module, "fastest", noted)
    toy("a red circle", frames=5, sampler=SamplerConfig(steps=2))
    assert set(asked) == {SDPBackend.FLASH_ATTENTION}
    asked.clear()
    monkeypatch.setattr(frame_model, "LONG_PASS", 0.0)
    toy("a red circle", frames=5, sampler=SamplerConfig(steps=2))
    assert asked[0] == SDPBackend.FLASH_ATTENTION and set(asked[1:]) == {SDPBackend.CUDNN_ATTENTION}, (
        "of the prompt, and of frames"
    )
