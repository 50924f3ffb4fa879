"""Videos and captions -> shards: decode, cut, tokenise, write; by any number of processes, and able to go on after a kill.

A shard holds the clips of a fixed range of the manifest's rows and appears whole, so a shard that is there is done: starting
again redoes at most the one that was being made. Process r of n makes shards r, r + n, ...; the one that finds all of them
done writes rejected.csv. Files are decoded by threads ahead of the tokenizer, but clips are batched in the manifest's order,
so that the same codes come out however often the work was broken off.
"""

import csv
import hashlib
import io
import json
import math
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lumos.config import read_json
from lumos.data.clips import Cut, expected_lengths, nearest_size, read_clips
from lumos.data.manifest import Entry, is_url, read_manifest
from lumos.data.shards import (
    CODES,
    PIXELS,
    PREPARED,
    ShardReader,
    code_type,
    open_shards,
    pack_codes,
    pack_picture,
    shard_summary,
    write_shard,
)
from lumos.files import PARTIAL, write_text
from lumos.media.pixels import clips_to_pixels
from lumos.media.source import one_line, read_header
from lumos.ranks import Ranks
from lumos.tokenizer.compression import latent_frames
from lumos.tokenizer.model import VideoTokenizer
from lumos.weights import fingerprint

DECODED_AHEAD = 8  # clips of one file, decoded in one go
LONGEST_DRY_LOOK = 2000  # files whose headers a dry run reads
# files that a killed process left half written; whatever else lies in the folder is not ours to delete
LEFTOVER = re.compile(rf"\.(\d{{6}}\.parquet|prepare\.json|rejected\.csv){PARTIAL}")
# Number of the manifest's row; a row of a shard and its clip's pixels; or else, at the end of an input, why it is rejected.
Made = tuple[int, dict[str, Any] | None, NDArray[np.uint8] | None, str]


@dataclass(frozen=True)
class PrepareConfig:
    """What the shards hold: with other settings they are others."""

    cut: Cut
    mirror: str = "marked"  # add mirrored copies of no clips ("none"), of rows that say that they may be mirrored, or of "all"
    rows: int = 256  # of the manifest, in a shard
    batch: int = 16  # clips tokenised at once


def prepare_shards(
    manifest: Path,
    out: Path,
    config: PrepareConfig,
    tokenizer: VideoTokenizer | None,
    ranks: Ranks,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
    name: str = "",
    workers: int = 2,
) -> dict[str, Any]:
    """Make this process's shards (every `world`-th from `rank` on) that are not there yet, and tell what the folder holds.
    Without tokenizer: picture shards. workers: threads that decode.

    Raises ValueError for a manifest without a usable row, or a folder that was begun with other settings.
    """
    entries = read_manifest(manifest)
    problems = [entry for entry in entries if entry.problem]
    if len(problems) == len(entries):
        raise ValueError(f"{manifest} must have a row that can be used, got none of {len(entries)}: {entries[0].problem}")
    parts = [entries[first : first + config.rows] for first in range(0, len(entries), config.rows)]
    maker = _Maker(config, tokenizer, ranks.device, workers)
    if entries[0].stored >= 0:
        maker.stored = ShardReader(open_shards(manifest), ["clip"], 2**28)
    _begin(out, parts, config, maker.mark, name)
    if problems:
        say(f"{len(problems)} of {len(entries)} rows cannot be used, the first is row {problems[0].row}: {problems[0].problem}")

    to_do = [number for number in range(ranks.rank, len(parts), ranks.world) if not shard_path(out, number).exists()]
    rows_all, rows_done = sum(len(parts[number]) for number in to_do), count(1)
    started, frames, clips = time.monotonic(), 0, 0
    for position, number in enumerate(to_do, 1):
        rows, rejected = maker.make(parts[number], lambda: progress(next(rows_done), rows_all) if progress else None)
        write_shard(shard_path(out, number), PIXELS if tokenizer is None else CODES, maker.mark, rows, rejected)
        clips, frames = clips + len(rows), frames + sum(row["frames"] for row in rows)
        rate = clips / max(time.monotonic() - started, 1e-9)
        why = f" (the first: {rejected[0]['reason']})" if rejected else ""
        say(f"shard {position} of {len(to_do)}: {len(rows)} clips, {len(rejected)} rejected{why}, {rate:.1f} clips/s")
    made = {"clips_made": clips, "frames_made": frames, "seconds": round(time.monotonic() - started, 3)}
    if missing := sum(not shard_path(out, number).exists() for number in range(len(parts))):
        return {"shards": str(out), "finished": False, "missing_shards": missing, **made}
    return {"shards": str(out), "finished": True, **_finish(out, len(parts)), **made}


def dry_run(manifest: Path, config: PrepareConfig, tokenizer: VideoTokenizer | None) -> dict[str, Any]:
    """What `prepare_shards` would do, by the headers of the files."""
    entries = read_manifest(manifest)
    problems = [f"row {entry.row}: {entry.problem}" for entry in entries if entry.problem]
    looked = [entry for entry in entries if not entry.problem and not is_url(entry.path)][:LONGEST_DRY_LOOK]
    stored = open_shards(manifest) if entries[0].stored >= 0 else None
    seconds, unreadable, clips, ids, codes = 0.0, list[str](), 0, 0, 0
    for entry in looked:
        try:
            if stored is None:
                header = read_header(entry.path)
                width, height, length = header.width, header.height, header.seconds
            else:
                frames, height, width = stored.sizes_N3[entry.stored].tolist()
                length = frames / stored.fps
        except (ValueError, OSError) as error:
            unreadable.append(f"row {entry.row}: {one_line(error)}")
            continue
        length = max(0.0, min(length, entry.end or math.inf) - (entry.start or 0.0))
        lengths = expected_lengths(length, config.cut) * (2 if tokenizer and _mirrored(config, entry) else 1)
        clips, seconds = clips + len(lengths), seconds + length
        if tokenizer:
            rows, columns = (side // tokenizer.spatial for side in nearest_size(width, height, config.cut.sizes))
            T = sum(latent_frames(frames, tokenizer.temporal) for frames in lengths)
            ids, codes = ids + T * (rows * (columns + 1) + 4), codes + T * rows * columns
    document = {"rows": len(entries), "problems": len(problems), "unreadable": len(unreadable), "looked_at": len(looked)}
    document |= {"shards": -(-len(entries) // config.rows), "clips": clips}
    document |= {"ids": ids, "bytes": code_type(tokenizer.codebook_size).itemsize * codes} if tokenizer else {}
    return {**document, "hours": round(seconds / 3600, 4), "first_problems": [*problems, *unreadable][:20]}


def shard_path(out: Path, number: int) -> Path:
    return out / f"{number:06}.parquet"


class _Maker:
    """Rows of the manifest -> rows of a shard."""

    stored: ShardReader | None = None  # clips of picture shards

    def __init__(self, config: PrepareConfig, tokenizer: VideoTokenizer | None, device: torch.device, workers: int) -> None:
        self.config, self.device, self.workers = config, device, workers
        self.mark = "" if tokenizer is None else fingerprint(tokenizer)
        self.tokenizer = None if tokenizer is None else tokenizer.to(device).eval()

    def make(self, entries: Sequence[Entry], done: Callable[[], None]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(clips, rejected inputs) of a shard, in the manifest's order. An input is taken whole or rejected."""
        reasons = {entry.row: entry.problem for entry in entries}
        rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        waiting: dict[tuple[int, ...], list[tuple[dict[str, Any], NDArray[np.uint8]]]] = defaultdict(list)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as threads:
            for number, row, rgb_FHWC, reason in _in_order(entries, self._read, threads, 2 * self.workers):
                if row is None:
                    reasons[number] = reason
                    done()
                    continue
                rows[number].append(row)
                if rgb_FHWC is not None:
                    same = waiting[rgb_FHWC.shape]
                    same.append((row, rgb_FHWC))
                    if len(same) == self.config.batch:
                        self._tokenise(same)
            for same in filter(None, waiting.values()):
                self._tokenise(same)
        kept = [row for entry in entries if not reasons[entry.row] for row in rows[entry.row]]
        rejected = [entry for entry in entries if reasons[entry.row]]
        return kept, [{"row": entry.row, "path": entry.path, "reason": reasons[entry.row]} for entry in rejected]

    def _read(self, entry: Entry) -> Iterator[Made]:
        reason = entry.problem
        source = entry.path if entry.stored < 0 else f"{entry.path}#{entry.stored}"
        facts = {"captions": list(entry.captions), "fps": self.config.cut.fps, "source": source, "tokenizer": self.mark}
        try:
            for clip in read_clips(entry, self.config.cut, self.stored) if not reason else ():
                F, height, width, _ = clip.rgb_FHWC.shape
                row = {**facts, "start": clip.start, "frames": F, "mirrored": False}
                if self.tokenizer is None:
                    mirror = entry.mirror or self.config.mirror == "all"
                    row |= {"F": F, "height": height, "width": width, "mirror": mirror}
                    yield entry.row, {**row, "picture": pack_picture(clip.rgb_FHWC)}, None, ""
                    continue
                yield entry.row, row, clip.rgb_FHWC, ""
                if _mirrored(self.config, entry):
                    yield entry.row, {**row, "mirrored": True}, clip.rgb_FHWC[:, :, ::-1], ""
        except Exception as error:  # one strange file never ends a run
            reason = one_line(error)
        yield entry.row, None, None, reason

    @torch.no_grad()
    def _tokenise(self, same: list[tuple[dict[str, Any], NDArray[np.uint8]]]) -> None:
        """Add codes to the rows of a batch of clips, and empty it."""
        assert self.tokenizer is not None
        device, codebook = self.device, self.tokenizer.codebook_size
        # bfloat16 halves the time where the hardware has it, and moves a few codes in a hundred to their neighbours.
        fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        rgb_BFHWC = torch.from_numpy(np.stack([rgb_FHWC for _, rgb_FHWC in same]))
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            codes_BTHW = self.tokenizer.encode(clips_to_pixels(rgb_BFHWC.to(device, non_blocking=True)))
        for (row, _), codes_THW in zip(same, codes_BTHW.cpu(), strict=True):
            row |= {"codes": pack_codes(codes_THW, codebook), **dict(zip("THW", codes_THW.shape, strict=True))}
        same.clear()


def _mirrored(config: PrepareConfig, entry: Entry) -> bool:
    return config.mirror == "all" or (config.mirror == "marked" and entry.mirror)


def _in_order(
    entries: Sequence[Entry], read: Callable[[Entry], Iterator[Made]], threads: ThreadPoolExecutor, ahead: int
) -> Iterator[Made]:
    """What `read` makes of every entry, in order, while threads read on, in `ahead` entries at once."""
    streams: deque[Iterator[Made]] = deque()
    for entry in entries:
        streams.append(_read_ahead(read(entry), threads))
        if len(streams) == ahead:
            yield from streams.popleft()
    for stream in streams:
        yield from stream


def _read_ahead(made: Iterator[Made], threads: ThreadPoolExecutor) -> Iterator[Made]:
    """The same, read by a thread from now on: never more than DECODED_AHEAD further than was taken."""
    future = threads.submit(lambda: list(islice(made, DECODED_AHEAD)))

    def taken() -> Iterator[Made]:
        nonlocal future
        while some := future.result():
            future = threads.submit(lambda: list(islice(made, DECODED_AHEAD)))
            yield from some

    return taken()


def _begin(out: Path, parts: Sequence[Sequence[Entry]], config: PrepareConfig, mark: str, name: str) -> None:
    """Write down what this folder is made from, or check that what is there was made from the same.

    What a look at the files told does not count; rows of shards that are not there may have changed: rejected ones are mended so.
    """
    rows = [repr([replace(entry, problem="") for entry in part]) for part in parts]
    digests = [hashlib.sha256(row.encode()).hexdigest()[:16] for row in rows]
    settings = {"manifest": digests, "tokenizer": mark, "shards": len(parts), "config": asdict(config), "name": name}
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    before = read_json(out / PREPARED) if (out / PREPARED).exists() else {}
    if not before and not all(path.name.startswith(".") for path in out.iterdir()):
        raise FileExistsError(f"{out} must be a new or empty folder, got one that holds something else; choose another")
    made_from, then = before.get("manifest"), before.get("config", {})
    now, then = json.loads(json.dumps({**asdict(config.cut), **asdict(config)})), {**then.get("cut", {}), **then}
    changed = [f"{key} = {then.get(key)}" for key in now if key != "cut" and then.get(key) != now[key]]
    if not changed and before.get("tokenizer") != mark:
        changed = ["tokenizer"]
    differ = [i for i, digest in enumerate(digests) if made_from and made_from[i : i + 1] != [digest]]
    if not changed and (len(made_from or []) != len(parts) or any(shard_path(out, i).exists() for i in differ)):
        changed = ["manifest"]
    if before and changed:
        raise ValueError(f"{out} was begun with another {', '.join(changed)}; choose a new folder")
    if made_from != digests:
        write_text(out / PREPARED, json.dumps(settings, indent=1))


def _finish(out: Path, shards: int) -> dict[str, Any]:
    """Write rejected.csv from what the shards say, clear up, and count."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["row", "path", "reason", "shard"])
    writer.writeheader()
    clips = rejected = 0
    for path in (shard_path(out, number) for number in range(shards)):
        kept, reasons = shard_summary(path)
        writer.writerows({**reason, "shard": path.name} for reason in reasons)
        clips, rejected = clips + kept, rejected + len(reasons)
    write_text(out / "rejected.csv", text.getvalue())
    for path in out.iterdir():
        if LEFTOVER.fullmatch(path.name):  # of a process that was killed
            path.unlink(missing_ok=True)
    if not clips:
        return {"clips": 0, "videos": 0, "images": 0, "rejected": rejected}
    index = open_shards(out)
    images = int((index.sizes_N3[:, 0] == 1).sum())
    document = {"clips": clips, "videos": clips - images, "images": images, "rejected": rejected}
    return document | ({"codes": int(index.sizes_N3.prod(1).sum())} if index.form == CODES else {})
