"""Checkpoints that all ranks write together while training goes on: RUN/checkpoints/step_00001000/, safetensors and state.json.

torch.distributed.checkpoint splits the tensors among the ranks and puts them together again for any other number of ranks.
A folder is written under another name and renamed when every rank is done, so a kill at any moment leaves the last whole one.
"""

import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from lumos.files import flush
from lumos.training import checkpoint
from lumos.training.optim import Ema
from lumos.training.parallel import Ranks, agree, ensure_group, local
from lumos.weights import some_of

NAME = re.compile(r"step_(\d+)")
STATE = "state.json"
FORMAT = "lumos shared checkpoint 1"


def find(run: Path, resume: bool) -> Path | None:
    """The checkpoint a run starts from: None for a fresh run. Raises ValueError when a run would be overwritten."""
    path = latest(run)
    if path is not None and not resume:
        raise ValueError(f"{run} already holds a run up to {path.name}; resume it (--resume) or choose another folder")
    if path is None and (old := checkpoint.latest(run)) is not None:
        raise ValueError(f"{run} must hold checkpoints in folders, got {old.name} of an earlier version; use a new folder")
    return path


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None when there is none."""
    return next(reversed(_all(run)), None)


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run, "step" among it. ValueError for a damaged one."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
        if state["format"] != FORMAT:
            raise ValueError(f"{path} must be of format {FORMAT!r}, got {state['format']!r}; give a folder that lumos saved")
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to go on from an earlier one") from error
    return state


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> dict[str, Tensor]:
    """Weights, optimiser state and average by name, as they lie on this rank."""
    found = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        found |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    return found | ({} if ema is None else {f"ema/{name}": value for name, value in ema.average.items()})


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, ranks: Ranks) -> None:
    """Fill model, optimiser and average, however they are spread now. Every rank must call it. ValueError for another model's."""
    ensure_group(ranks)
    with _quiet():
        reader = dcp.HuggingFaceStorageReader(str(path))
        try:
            saved: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
        except Exception as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to go on from an earlier one") from error
        parameters = dict(model.named_parameters())
        for name, entry in saved.items():
            kind, _, rest = name.partition("/")
            parameter, _, key = rest.rpartition("/")
            if kind == "optimizer" and parameter in parameters:
                like = parameters[parameter]
                fused = any(group.get("fused") for group in optimizer.param_groups)
                shape, dtype = entry.size, entry.properties.dtype
                optimizer.state[like][key] = (
                    torch.zeros_like(like, dtype=dtype)
                    if shape == like.shape
                    else torch.zeros(shape, dtype=dtype, device=like.device if fused else "cpu")
                )
        wanted = tensors_of(model, optimizer, ema)
        _check(wanted, saved, path)
        try:
            dcp.load(wanted, storage_reader=reader)
        except Exception as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to go on from an earlier one") from error


class Saver:
    """Writes checkpoints of one run in the background, one at a time; the newest `keep` stay. Every rank has one.

    step: of the checkpoint that the run goes on from.
    """

    def __init__(self, run: Path, ranks: Ranks, keep: int, step: int | None = None) -> None:
        self.run, self.ranks, self.keep = run, ranks, keep
        self._step = step  # the newest one; asking the disk instead would answer ranks differently
        ensure_group(ranks)
        # what checkpoints say to each other must not get between the messages of the training
        self.group = dist.new_group(backend="gloo") if ranks.world > 1 else None
        self._done = threading.Event()
        self._done.set()
        self._failure: BaseException | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Copy the tensors and begin to write; waits for the checkpoint before. Every rank must call it, with the same state.

        OSError when there is no room for it, or when the one before could not be written.
        """
        self.wait()
        if step == self._step:
            return
        self._step = step
        path = self.run / "checkpoints" / f"step_{step:08d}"
        partial = path.with_name(f"{path.name}.partial")
        if self.ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / STATE).write_text(json.dumps({**state, "step": step, "format": FORMAT}, allow_nan=False))
        self._check_room(tensors)
        self._done.clear()
        with _quiet():
            writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
            future = dcp.async_save(dict(tensors), storage_writer=writer, process_group=self.group)
        assert isinstance(future, Future)
        future.add_done_callback(lambda future: self._finish(future, partial, path))

    def wait(self) -> None:
        """Until the last checkpoint is in place. OSError when it could not be written."""
        self._done.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise OSError(f"could not write a checkpoint into {self.run}: {_first_line(failure)}; free some space and resume")

    def _check_room(self, tensors: Mapping[str, Tensor]) -> None:
        mine = sum(local(tensor).nbytes for tensor in tensors.values())
        total = mine * (1 if all(local(t) is t for t in tensors.values()) else self.ranks.world)
        self.run.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.run).free
        # of the process with the least; also: no rank goes on before the first one has made the folder
        lacks, free_less = agree((float(total > free), -float(free)), self.ranks)
        if lacks:
            if not self.ranks.is_main:
                raise SystemExit(2)
            size, room = f"{total / 2**30:.2f} GiB", f"{-free_less / 2**30:.2f} GiB"
            raise OSError(f"{self.run} must have room for a checkpoint of {size}, got {room}; free some space")

    def _finish(self, future: "Future[Any]", partial: Path, path: Path) -> None:
        try:
            future.result()
            if self.ranks.is_main:
                for file in (*partial.iterdir(), partial):
                    flush(file)
                os.replace(partial, path)
                flush(path.parent)
                for old in _all(self.run)[: -self.keep]:
                    shutil.rmtree(old)
                for leftover in path.parent.glob("step_" + 8 * "[0-9]" + ".partial"):  # of a kill; other names are not ours
                    shutil.rmtree(leftover)
        except BaseException as error:  # told by `wait`, in the thread that trains
            self._failure = error
        finally:
            self._done.set()


def _check(wanted: Mapping[str, Tensor], saved: Mapping[str, Any], where: Path) -> None:
    missing, unknown = [n for n in wanted if n not in saved], [n for n in saved if n not in wanted]
    if missing or unknown:
        parts = [f"lacks {some_of(missing)}"] if missing else []
        parts += [f"has the unknown {some_of(unknown)}"] if unknown else []
        raise ValueError(f"{where} is of another model: it {' and '.join(parts)}; resume it with its own preset")
    for name, tensor in wanted.items():
        if tensor.shape != saved[name].size:
            raise ValueError(
                f"{where} is of another model: {name} must have shape {list(tensor.shape)}, got {list(saved[name].size)}; "
                "resume it with its own preset"
            )


def _all(run: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in (run / "checkpoints").glob("*") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def _first_line(error: BaseException) -> str:
    failures = getattr(error, "failures", None)  # of every rank
    if failures:
        error = next(iter(failures.values()))[0]
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, about how it saves
        yield
