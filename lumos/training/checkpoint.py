"""Checkpoints that all ranks write together while training goes on: RUN/checkpoints/step_00001000/.

A folder holds tensors (safetensors), state.json and SHA256SUMS. torch.distributed.checkpoint splits the tensors among the ranks
and puts them together again for any other number of ranks. A folder is written under another name and renamed when every rank is
done, so a kill at any moment leaves the last whole one.
"""

import hashlib
import json
import os
import re
import reprlib
import shutil
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from lumos.config import Range, read_json, read_value
from lumos.files import flush, lock
from lumos.ranks import Ranks, ensure_group, together
from lumos.training.learner import Learner
from lumos.weights import check_names

STATE, SUMS = "state.json", "SHA256SUMS"
CHECKPOINT = "lumos checkpoint 2"
FOLDER = re.compile(r"step_(\d{8,})")
# What a resumed run may change: budget, logging, how the work is split up, and what a run that diverges needs.
FREE = re.compile(
    r"(max_steps|max_seconds|log_every|sample_every|evaluate_every|evaluation_clips|save_every|keep|spike|patience|accumulate"
    r"|workers|compile|sampler|parallel)(\..*)?|optim\.(lr|warmup_steps)|(worlds|loader)\.workers|loader\.(ahead|cache_mib)"
)


def all_of(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [(int(match[1]), path) for path in (run / "checkpoints").glob("*") if (match := FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None when there is none."""
    return next(reversed(all_of(run)), None)


def read_state(path: Path, check_sums: bool = True) -> dict[str, Any]:
    """A checkpoint's step, seconds and config. ValueError for a damaged or edited one (tensors too, with `check_sums`)."""
    try:
        state = read_json(path / STATE)
        if state.get("format") != CHECKPOINT:
            raise ValueError(f"its format is {reprlib.repr(state.get('format'))} and not {CHECKPOINT!r}")
        read_value(Annotated[float, Range(0, 1e12)], state.get("seconds"), "seconds")
        step, config = state.get("step"), state.get("config")
        if type(step) is not int or path.name != f"step_{step:08d}" or type(config) is not dict:
            raise ValueError("its step or config is not its own")
        if check_sums and _sums(path) != (path / SUMS).read_text():
            raise ValueError("a checksum does not match")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({_first_line(error)}); delete it to go on from an earlier one") from error
    return state


def load(path: Path, learner: Learner) -> None:
    """Fill everything, however it is spread now. Every rank must call it. ValueError for another model's checkpoint."""
    reader = dcp.HuggingFaceStorageReader(str(path))
    with warnings.catch_warnings(action="ignore"):  # the library's own, about how it saves
        saved: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
        _make_moments(saved, learner)
        wanted = learner.tensors()
        check_names({name: torch.empty(entry.size, device="meta") for name, entry in saved.items()}, wanted, path)
        dcp.load(wanted, storage_reader=reader)


def check_same(saved: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """ValueError, naming every setting that differs, when a resumed run would train something else than it began."""
    then = dict(_flat(saved))
    differing = [
        f"{name} = {value} where {where} has {then[name]}"
        for name, value in _flat(now)
        if then.get(name, value) != value and not FREE.fullmatch(name)
    ]
    if differing:
        raise ValueError(f"a resumed run must keep its config, got {', '.join(differing)}; use that, or a new folder")


class Checkpoints:
    """The checkpoints of one run: the one it goes on from, and those that it leaves, written in the background, one at a time.

    Every rank has one. `record`: what a resumed run must share with its beginning. ValueError where another command has the
    folder, a run would be overwritten, or a resumed run would train something else than it began.
    """

    def __init__(self, run: Path, resume: bool, record: dict[str, Any], ranks: Ranks, keep: int) -> None:
        self.run, self.record, self.ranks, self.keep = run, json.loads(json.dumps(record)), ranks, keep
        self.lock = lock(run) if ranks.is_main else None
        self.path, self.step, self.seconds = latest(run), 0, 0.0
        self.began = f"{run} holds no run to go on with, so this one is new; " if resume else ""  # to be told
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        if self.path is None:
            return
        if not resume:
            raise ValueError(f"{run} already holds a run up to {self.path.name}; resume it (--resume) or choose another folder")
        state = read_state(self.path, check_sums=ranks.is_main)
        check_same(state["config"], self.record, self.path)
        self.step, self.seconds = state["step"], state["seconds"]
        self.began = f"from step {self.step} on; "

    def start(self, learner: Learner) -> int:
        """Fill the learner with what the run has learnt so far; returns the step it is at. Every rank must call it."""
        ensure_group(self.ranks)
        # what checkpoints say to each other must not get between the messages of the training
        self.group = dist.new_group(backend="gloo") if self.ranks.world > 1 else None
        if self.path is not None:
            load(self.path, learner)
        return self.step

    def save(self, step: int, seconds: float, learner: Learner) -> None:
        """Copy the tensors and begin to write; waits for the checkpoint before. Every rank must call it.

        OSError when the one before could not be written.
        """
        self.wait()
        if step == self.step and self.path is not None:
            return
        path = self.run / "checkpoints" / f"step_{step:08d}"
        partial = path.with_name(f"{path.name}.partial")
        with together(self.ranks):
            if self.ranks.is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        self.path, self.step = path, step  # asking the disk instead would answer ranks differently
        state = {"format": CHECKPOINT, "step": step, "seconds": seconds, "config": self.record}
        with warnings.catch_warnings(action="ignore"):
            writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
            tensors_written = dcp.async_save(dict(learner.tensors()), storage_writer=writer, process_group=self.group)
        assert isinstance(tensors_written, Future)
        self._written = self._thread.submit(self._finish, tensors_written, partial, path, state)

    def wait(self) -> None:
        """Until the last checkpoint is in place. OSError when it could not be written."""
        failure = self._written.exception() if self._written else None
        self._written = None
        if failure is not None:
            raise OSError(f"could not write a checkpoint into {self.run}: {_first_line(failure)}; free some space and resume")

    def close(self) -> None:
        """Wait, and let other commands have the folder."""
        self.wait()
        if self.lock is not None:
            os.close(self.lock)

    def _finish(self, tensors_written: "Future[Any]", partial: Path, path: Path, state: dict[str, Any]) -> None:
        try:
            tensors_written.result()
            if not self.ranks.is_main:
                return
            (partial / STATE).write_text(json.dumps(state, allow_nan=False))
            (partial / SUMS).write_text(_sums(partial))
            for file in (*partial.iterdir(), partial):
                flush(file)
            os.replace(partial, path)
            flush(path.parent)
            # of a kill; other names are not ours
            leftovers = path.parent.glob("step_" + 8 * "[0-9]" + ".partial")
            for old in (*all_of(self.run)[: -self.keep], *leftovers):
                shutil.rmtree(old)
        finally:
            if self.ranks.is_main:  # what a full disk has of it
                shutil.rmtree(partial, ignore_errors=True)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their dotted names, as --set calls them."""
    for name, value in values.items():
        yield from _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def _sums(folder: Path) -> str:
    """Checksums of a folder's files, in the form that `sha256sum --check` reads."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name != SUMS:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines)


def _make_moments(names: Iterable[str], learner: Learner) -> None:
    """An optimiser that has taken no step has no moments that could be filled: it takes one, before everything is filled."""
    moved = {name.split("/")[1] for name in names if name.startswith("optimizer/")}
    for name, parameter in learner.module.named_parameters():
        parameter.grad = torch.zeros_like(parameter) if name in moved else None
    learner.optimizer.step()
    learner.optimizer.zero_grad()


def _first_line(error: BaseException) -> str:
    failures = getattr(error, "failures", {})  # of every rank
    error = next((failure for failure, _ in failures.values()), error)
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
