"""Whole runs of several processes: ended in words when one is killed, and gone on with by another number."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lumos.training import train_model as module
from lumos.training.checkpoint import latest, read_state
from lumos.training.config import TrainModelConfig
from lumos.training.parallel import ParallelConfig, finish
from lumos.training.train_model import train_model
from tests.training.toys import TOY as SMALL
from tests.training.toys import two

TOY = replace(
    SMALL,
    optim=replace(SMALL.optim, ema=0.0, schedule="constant"),
    parallel=ParallelConfig(shard=True, recompute="full", attention="prefix"),
    log_every=1,
    save_every=1,
)


class Killed(module.Clock):
    def progress(self, step: int) -> float:
        if step == 2 and self.ranks.rank == 1:
            os._exit(9)
        return super().progress(step)


def train_until_one_dies(rank: int, out: Path, tokenizer: Path) -> None:
    module.Clock = Killed  # type: ignore[misc]
    try:
        train_model(TOY, out / "run", tokenizer)
    except ValueError as error:
        (out / "said").write_text(str(error))
        os._exit(2)


@pytest.mark.slow
def test_two_train_sharded_until_one_is_killed_and_one_alone_goes_on(tmp_path: Path, tokenizer: Path) -> None:
    assert two(train_until_one_dies, tmp_path, tokenizer) == [2, 9]
    said = (tmp_path / "said").read_text()
    assert "all 2 processes of a run must go on together, but one has gone; the same command with --resume goes on" in said
    newest = latest(tmp_path / "run")
    assert newest is not None and 1 <= (step := read_state(newest)["step"]) <= 2
    before = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    folder = train_model(replace(TOY, parallel=ParallelConfig()), tmp_path / "run", tokenizer, resume=True)
    assert (folder / "model.safetensors").exists()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, step + 1), *range(step + 1, 5)] and before[0] == 1
    # the process alone has half the samples a step of the two
    assert [line["ids_per_second"] / line["samples_per_second"] for line in lines] == pytest.approx([115, 91, 115, 91])


def train_as_none_can(rank: int, out: Path, tokenizer: Path) -> None:
    """One process group for all attempts; what each of them says to this rank."""
    ranks = module.start()
    module.start, module.finish = lambda: ranks, lambda ranks: None
    short = replace(TOY, max_steps=1)
    said = {}

    def attempt(name: str, config: TrainModelConfig, run: str = "run", resume: bool = False) -> None:
        try:
            train_model(config, out / run, tokenizer, resume=resume)
            said[name] = ""
        except (ValueError, OSError, SystemExit) as error:
            said[name] = f"{type(error).__name__} {error}"

    attempt("world", replace(TOY, parallel=replace(TOY.parallel, replicas=3)))
    attempt("good", short)
    attempt("again", short)
    attempt("config", replace(short, videos=4, optim=replace(TOY.optim, lr=0.5)), resume=True)
    attempt("model", replace(short, model=replace(TOY.model, layers=2)), resume=True)
    (out / f"said {rank}").write_text(json.dumps(said))
    finish(ranks)


@pytest.mark.slow
def test_what_cannot_be_done_is_said_by_the_first_and_ends_all(tmp_path: Path, tokenizer: Path) -> None:
    assert two(train_as_none_can, tmp_path, tokenizer) == [0, 0]
    first, second = (json.loads((tmp_path / f"said {rank}").read_text()) for rank in (0, 1))
    expected = {
        "world": r"ValueError the number of processes must be a multiple of parallel\.replicas = 3, got 2; change --nproc",
        "again": r"ValueError .*run already holds a run up to step_00000001; resume it",
        "config": r"ValueError .* got optim\.lr = 0\.5 where .* has 0\.01, videos = 4 where .* has 2; use that, or a new folder",
        "model": r"ValueError .* got model\.layers = 2 where .* has 1; use that",
    }
    assert {name: bool(re.match(words, first[name])) for name, words in expected.items()} == dict.fromkeys(expected, True), first
    assert first["good"] == second["good"] == ""
    assert {second[name] for name in expected} == {"SystemExit 2"}
