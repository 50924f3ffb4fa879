"""Files that are whole or not there at all, and results files of one JSON object per line.

A file is written under a hidden name beside its own, flushed to the disk, and renamed: a kill at any moment leaves the old file
or the new one, and every fault of the disk is one line.
"""

import errno
import fcntl
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = r"(\.\d+)*\.partial"  # what `partial_of` puts behind a hidden name, as a pattern: to find what a kill has left

LOCK = ".lumos-train"
OUT_OF_MEMORY = re.compile(r"out of memory|(can't|cannot) allocate memory|ALLOC_FAILED|bad_alloc", re.IGNORECASE)


def is_memory_error(error: BaseException) -> bool:
    """Whether there was not enough memory, on a card or not: torch has several ways of saying it."""
    says_so = isinstance(error, RuntimeError | OSError) and OUT_OF_MEMORY.search(str(error))
    return isinstance(error, MemoryError) or bool(says_so)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when all went well and is gone otherwise. OSError in words."""
    partial = partial_of(path)
    try:
        with writing(path):
            yield partial
            flush(partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around all that writes a file or folder: a fault of the disk is an OSError in words that name it."""
    try:
        yield
    except Exception as error:
        said = re.search(r"os error (\d+)", str(error))  # by safetensors; others, as FFmpeg, have a number like an OSError
        code = int(said[1]) if said else getattr(error, "errno", None)
        if not isinstance(code, int) or code not in errno.errorcode:
            raise
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"no space left to write {path}; free some or choose another disk") from error
        raise OSError(f"could not write {path} ({os.strerror(code)}); choose another place") from error


def check_writable(path: Path, overwrite: bool = False) -> None:
    """Whatever can be wrong with a file to be written, found before the long work. OSError in words."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}; create it first")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; use another name or --force to replace it")
    probe = partial_of(path)
    try:  # asking for permission is unreliable (root, read-only disks); trying is not
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666))
    except OSError as error:
        raise PermissionError(f"cannot write to the folder {path.parent} ({error.strerror}); choose another one") from error
    finally:
        probe.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """The hidden name that this process and thread write `path` under."""
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.partial")


def text_of(path: Path) -> str:
    """A text file's content, without a mark at its beginning. ValueError for what is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} must be text in UTF-8, got other bytes in line {line}; save it as UTF-8") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, with the line ends that `text` has."""
    with whole_file(path) as partial:
        partial.write_text(text, "utf-8", newline="")


def flush(path: Path) -> None:
    """Wait until a file, or the list of what a folder holds, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(run: Path) -> int:
    """Keep other commands out of a run folder until the descriptor is closed or the process ends. ValueError says who has it."""
    run.mkdir(parents=True, exist_ok=True)
    file = os.open(run / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        # A lock of the process, not of the open file: worker processes do not inherit it, so it never outlives a kill.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except (BlockingIOError, PermissionError):
        who = os.read(file, 200).decode(errors="replace") or "another command"
        os.close(file)
        raise ValueError(f"{run} must have one training at a time, but {who} has it; stop that or use another folder") from None
    except OSError:  # a file system without locks
        pass
    return file


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; a last one that was cut off is dropped. ValueError for another file."""
    if not path.exists():
        return []
    try:
        return [dict(json.loads(line)) for line in path.read_text("utf-8").split("\n")[:-1]]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must have one JSON object per line, got something else ({error})") from None


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line; what an interruption has left of an earlier one goes first."""
    text = path.read_text("utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        write_text(path, text[: text.rfind("\n") + 1])
    with writing(path), open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
