"""Reinforcement learning: probabilities are those that codes were drawn with, and what is rewarded becomes likelier."""

import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import research.rewards as rewards
from lumos.diffusion.frame_model import FrameModel
from lumos.evaluation.run import worker_pool
from lumos.generate import Generator
from lumos.worlds.shapes.scene import HELD_OUT_PAIRS


def rollout(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> tuple[rewards.Policy, rewards.Rollout, list[Tensor]]:
    """Frames of two prompts, of which the first code decides the reward; and the log-probabilities of every step."""
    drawn: list[Tensor] = []
    predict = FrameModel.predict

    def kept(model: FrameModel, *rest: Tensor) -> object:
        drawn.append((guess := predict(model, *rest)).log_probability_BM.clone())  # type: ignore[arg-type]
        return guess

    settings = replace(toy.config.sampler, steps=4, guidance=2.0, guidance_until=0.5, temperature=0.7, sampler="halton")
    policy = rewards.Policy(toy, settings)
    monkeypatch.setattr(rewards, "GROUP", 4)
    monkeypatch.setattr(rewards, "reward", lambda *_: (0.0, False))
    with monkeypatch.context() as patch, worker_pool(0) as workers:
        patch.setattr(FrameModel, "predict", kept)
        tasks = [rewards.Task(text, None) for text in ("two blue stars moves", "a red circle")]  # type: ignore[arg-type]
        made = policy.sample(tasks, 5, random.Random(0), workers)
    return policy, made, drawn


@pytest.mark.parametrize("name", ["toy", "sub_toy"])
def test_a_frames_probability_is_the_one_it_was_drawn_with(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = request.getfixturevalue(name)
    policy, made, drawn = rollout(toy, monkeypatch)
    for step, wanted_BM in enumerate(drawn):
        with torch.no_grad():
            found_BM = policy.log_probability(toy.model, made, slice(0, 8), step)
        assert torch.allclose(found_BM, wanted_BM, atol=1e-4)
    assert len(drawn) == 4 and sum(each.shape[1] for each in drawn) == made.codes_BN.shape[1]


def test_what_is_rewarded_becomes_likelier(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, made, _ = rollout(toy, monkeypatch)
    found = [float(row % 4 == 1) for row in range(8)]
    made = made._replace(rewards=[worker_pool(0).submit(lambda share=share: (share, share > 0)) for share in found])
    model = deepcopy(toy.model).float().requires_grad_(True)
    told = rewards.gradients(policy, model, toy.model, made, [0, 3], keep=0.0)
    assert told["reward"] == told["right"] == 0.25 and told["apart"] < 1e-6
    with torch.no_grad():
        before, after = [], []
        for place in (before, after):
            place += [policy.log_probability(model, made, slice(0, 8), step).sum(1) for step in (0, 3)]
            for parameter in model.parameters():
                parameter -= 1e-3 * parameter.grad if parameter.grad is not None else 0.0
    gain_B = sum(after) - sum(before)  # type: ignore[operator]
    rewarded_B = torch.tensor(found) > 0
    assert gain_B[rewarded_B].mean() > 0 > gain_B[~rewarded_B].mean()


def test_frames_of_a_prompt_are_weighed_against_each_other() -> None:
    found_B = rewards.advantages(torch.tensor([1.0] * 8 + [0.0] * 4 + [1.0] * 4))
    assert torch.equal(found_B[:8], torch.zeros(8)), "where all are alike, nothing is learnt"
    assert float(found_B[8:].sum()) == pytest.approx(0, abs=1e-5) and (found_B[12:] > 0.5).all()


@pytest.mark.parametrize("image", [True, False])
def test_prompts_hold_nothing_out_of_the_test(image: bool) -> None:
    tasks = rewards.draw_tasks(random.Random(0), 40, image)
    things = [thing for task in tasks for thing in task.scene.things]
    assert len(tasks) == 40 and not {(thing.colour, thing.shape) for thing in things} & set(HELD_OUT_PAIRS)
    assert {thing.motion for thing in things} == {"still"}
