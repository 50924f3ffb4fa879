"""Whole runs of several processes: refused by one voice, ended in words when one is killed, gone on with by another number."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lumos.ranks import Ranks, tell_of_lost_ranks
from lumos.training import train_model as module
from lumos.training.checkpoint import latest, read_state
from lumos.training.parallel import ParallelConfig
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
        if step == 3 and self.ranks.rank == 1:  # the first checkpoint is in place, the second may be half written
            os._exit(9)
        return super().progress(step)


def train_until_one_dies(rank: int, out: Path, tokenizer: Path) -> None:
    ranks = module.start()
    module.start, module.Clock = lambda: ranks, Killed  # type: ignore[misc]  # one process group for both attempts
    said = []
    for config in (replace(TOY, parallel=replace(TOY.parallel, replicas=3)), TOY):
        try:
            train_model(config, out / "run", tokenizer)
        except (ValueError, SystemExit) as error:
            said.append(f"{type(error).__name__} {error}")
            (out / f"said {rank}").write_text(json.dumps(said))
    os._exit(2)


@pytest.mark.slow
def test_two_train_sharded_until_one_is_killed_and_one_alone_goes_on(tmp_path: Path, tokenizer: Path) -> None:
    assert two(train_until_one_dies, tmp_path, tokenizer) == [2, 9]
    first, second = (json.loads((tmp_path / f"said {rank}").read_text()) for rank in (0, 1))
    assert first[0].startswith("ValueError the number of processes must be a multiple of parallel.replicas = 3, got 2")
    assert second == ["SystemExit 2"]
    rule = "all 2 processes must go on together, but one has gone; the same command with --resume goes on"
    assert first[1].startswith(f"ValueError {rule}")
    newest = latest(tmp_path / "run")
    assert newest is not None and 1 <= (step := read_state(newest)["step"]) <= 2
    folder = train_model(replace(TOY, parallel=ParallelConfig()), tmp_path / "run", tokenizer, resume=True)
    assert (folder / "model.safetensors").exists()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, step + 1), *range(step + 1, 5)]
    # the process alone has half the samples a step of the two
    assert [line["ids_per_second"] / line["samples_per_second"] for line in lines] == pytest.approx([115, 91, 115, 91])


CLOSED = "Connection closed by peer"
LOST: list[tuple[int, Exception, type[Exception]]] = [
    (2, RuntimeError(CLOSED), ValueError),
    (2, OSError(f"could not write a checkpoint: {CLOSED}"), ValueError),
    (1, RuntimeError(CLOSED), RuntimeError),
    (2, RuntimeError("wrong shape"), RuntimeError),
]


@pytest.mark.parametrize(("world", "fault", "told"), LOST)
def test_only_a_lost_process_is_told_of_as_one(world: int, fault: Exception, told: type[Exception]) -> None:
    with pytest.raises(told), tell_of_lost_ranks(Ranks(0, world, torch.device("cpu")), "resume"):
        raise fault
