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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lumos.data.clips import Clip, Cut, expected_lengths, nearest_size, pack_picture, read_clips
from lumos.data.manifest import Entry, is_url, read_manifest
from lumos.data.shards import CODES, PIXELS, SETTINGS, ShardReader, open_shards, pack_codes, read_json, rejected_in
from lumos.data.shards import write_shard as write
from lumos.files import write_text
from lumos.media.source import read_header
from lumos.tokenizer.model import VideoTokenizer
from lumos.weights import fingerprint

AHEAD = 8  # clips of a file decoded in one go
LONGEST_DRY_LOOK = 2000  # files whose headers a dry run reads
# files that a killed process left half written; whatever else lies in the folder is not ours to delete
LEFTOVER = re.compile(r"\.(\d{6}\.parquet|prepare\.json|rejected\.csv)(\.\d+)+\.partial")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PrepareConfig:
    """`cut`: how clips are made. `mirror`: add mirrored copies of the clips whose row says that it may, or of all.
    `rows`: of the manifest, in a shard. `batch`: clips tokenised at once. What changes any of these changes the shards."""

    cut: Cut
    mirror: str = "marked"
    rows: int = 256
    batch: int = 16


@dataclass(frozen=True)
class Share:
    """This process's part: every `world`-th shard from `rank` on, computed on `device`, decoded by `workers` threads."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    workers: int = 2


def prepare(
    manifest: Path,
    out: Path,
    config: PrepareConfig,
    tokenizer: VideoTokenizer | None,
    share: Share,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
    name: str = "",
) -> dict[str, Any]:
    """Make this process's shards that are not there yet, and tell what the folder holds. Without tokenizer: picture shards.

    Raises ValueError for a manifest without a usable row, or a folder that was begun with other settings.
    """
    entries = read_manifest(manifest)
    usable = sum(not entry.problem for entry in entries)
    if not usable:
        raise ValueError(f"{manifest} must have a row that can be used, got none of {len(entries)}: {entries[0].problem}")
    problems = len(entries) - usable
    shards = -(-len(entries) // config.rows)
    mark = fingerprint(tokenizer) if tokenizer is not None else ""
    _begin(out, entries, config, mark, name, shards)
    if problems:
        first = next(entry for entry in entries if entry.problem)
        say(f"{problems} of {len(entries)} rows cannot be used, the first is row {first.row}: {first.problem}")

    maker = _Maker(config, tokenizer, mark, share, _reader(manifest, entries))
    mine = range(share.rank, shards, share.world)
    to_do = [number for number in mine if not shard_path(out, number).exists()]
    rows_done, rows_all = 0, sum(min(config.rows, len(entries) - number * config.rows) for number in to_do)
    started, frames, clips = time.monotonic(), 0, 0
    for position, number in enumerate(to_do, 1):

        def step(done: int, before: int = rows_done) -> None:
            if progress:
                progress(before + done, rows_all)

        part = entries[number * config.rows : (number + 1) * config.rows]
        rows, rejected = maker.make(part, step)
        write(shard_path(out, number), PIXELS if tokenizer is None else CODES, mark, rows, rejected)
        rows_done, clips, frames = rows_done + len(part), clips + len(rows), frames + sum(row["frames"] for row in rows)
        rate = clips / max(time.monotonic() - started, 1e-9)
        say(f"shard {position} of {len(to_do)}: {len(rows)} clips, {len(rejected)} rejected, {rate:.1f} clips/s")
    seconds = round(time.monotonic() - started, 3)
    made: dict[str, Any] = {"clips_made": clips, "frames_made": frames, "seconds": seconds}
    missing = [number for number in range(shards) if not shard_path(out, number).exists()]
    if missing:
        return {"shards": str(out), "finished": False, "missing_shards": len(missing), **made}
    return {"shards": str(out), "finished": True, **_finish(out, shards), **made}


def look(manifest: Path, config: PrepareConfig, latent: tuple[int, int] | None) -> dict[str, Any]:
    """What `prepare` would do, by the headers of the files. `latent`: pixels a code in time and in space, None for pictures."""
    entries = read_manifest(manifest)
    cut, problems = config.cut, [entry for entry in entries if entry.problem]
    good = [entry for entry in entries if not entry.problem]
    clips = ids = codes = 0
    seconds, unreadable = 0.0, 0
    looked = [entry for entry in good if not is_url(entry.path)][:LONGEST_DRY_LOOK]
    stored = open_shards(manifest) if any(entry.stored >= 0 for entry in entries) else None
    for entry in looked:
        try:
            if stored is not None:
                F, H, W = stored.sizes_N3[entry.stored].tolist()
                length, width, height = F / stored.fps, W, H
            else:
                header = read_header(entry.path)
                width, height = header.width, header.height
                length = max(0.0, min(header.seconds, entry.end or math.inf) - (entry.start or 0.0))
        except (ValueError, OSError):
            unreadable += 1
            continue
        mirrored = latent and (config.mirror == "all" or (config.mirror == "marked" and entry.mirror))
        lengths = expected_lengths(length, cut) * (2 if mirrored else 1)
        clips, seconds = clips + len(lengths), seconds + length
        if latent:
            rows, columns = nearest_size(width, height, cut.sizes)
            T = sum(1 + (frames - 1) // latent[0] for frames in lengths)
            H, W = rows // latent[1], columns // latent[1]
            ids, codes = ids + T * (H * (W + 1) + 4), codes + T * H * W
    document: dict[str, Any] = {
        "rows": len(entries),
        "problems": len(problems),
        "unreadable": unreadable,
        "looked_at": len(looked),
    }
    document |= {"shards": -(-len(entries) // config.rows), "clips": clips, "hours": round(seconds / 3600, 4)}
    if latent:
        document |= {"ids": ids, "bytes": 2 * codes}
    return {**document, "first_problems": [f"row {entry.row}: {entry.problem}" for entry in problems[:20]]}


def shard_path(out: Path, number: int) -> Path:
    return out / f"{number:06}.parquet"


class _Maker:
    """Rows of the manifest -> rows of a shard."""

    def __init__(
        self, config: PrepareConfig, tokenizer: VideoTokenizer | None, mark: str, share: Share, stored: ShardReader | None
    ) -> None:
        self.config, self.mark, self.share, self.stored = config, mark, share, stored
        self.encode = _encoder(tokenizer, torch.device(share.device)) if tokenizer is not None else None

    def make(self, entries: Sequence[Entry], step: Callable[[int], None]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(clips, rejected inputs) of a shard, in the manifest's order. An input is taken whole or rejected."""
        reasons = {entry.row: entry.problem for entry in entries if entry.problem}
        rows: dict[tuple[int, int, bool], dict[str, Any]] = {}
        waiting: dict[tuple[int, ...], list[tuple[dict[str, Any], Any]]] = defaultdict(list)
        with ThreadPoolExecutor(self.share.workers, thread_name_prefix="decode") as threads:
            done = 0
            good = [entry for entry in entries if not entry.problem]
            for entry, result in _in_order(good, self._read, threads, 2 * self.share.workers):
                if result is None or isinstance(result, str):
                    done += 1
                    step(done + len(reasons))
                    if result:
                        reasons[entry.row] = result
                    continue
                for clip, mirrored, number in self._with_mirrors(entry, result):
                    row = self._row(entry, clip, mirrored)
                    rows[entry.row, number, mirrored] = row
                    if self.encode is None:
                        row["picture"] = pack_picture(clip.rgb_FHWC)
                    else:
                        same = waiting[clip.rgb_FHWC.shape]
                        same.append((row, clip.rgb_FHWC))
                        if len(same) == self.config.batch:
                            self._tokenise(same)
            for same in waiting.values():
                self._tokenise(same)
        kept = [rows[key] for key in sorted(rows) if key[0] not in reasons]
        by_row = {entry.row: entry for entry in entries}
        rejected = [{"row": row, "path": by_row[row].path, "reason": reasons[row]} for row in sorted(reasons)]
        return kept, rejected

    def _read(self, entry: Entry) -> Iterator[tuple[int, Clip]]:
        return enumerate(read_clips(entry, self.config.cut, self.stored))

    def _with_mirrors(self, entry: Entry, clips: list[tuple[int, Clip]]) -> Iterator[tuple[Clip, bool, int]]:
        allowed = self.config.mirror == "all" or (self.config.mirror == "marked" and entry.mirror)
        for number, clip in clips:
            yield clip, False, number
            if allowed and self.encode is not None:
                yield Clip(np.ascontiguousarray(clip.rgb_FHWC[:, :, ::-1]), clip.start), True, number

    def _row(self, entry: Entry, clip: Clip, mirrored: bool) -> dict[str, Any]:
        F, H, W, _ = clip.rgb_FHWC.shape
        source = entry.path if entry.stored < 0 else f"{entry.path}#{entry.stored}"
        row: dict[str, Any] = {"captions": list(entry.captions), "fps": self.config.cut.fps, "frames": F, "source": source}
        row |= {"start": clip.start, "mirrored": mirrored, "tokenizer": self.mark}
        if self.encode is None:
            row |= {"F": F, "height": H, "width": W, "mirror": entry.mirror or self.config.mirror == "all"}
        return row

    def _tokenise(self, same: list[tuple[dict[str, Any], Any]]) -> None:
        if not same:
            return
        assert self.encode is not None
        codes_BTHW = self.encode(torch.from_numpy(np.stack([rgb_FHWC for _, rgb_FHWC in same])))
        for (row, _), codes_THW in zip(same, codes_BTHW, strict=True):
            row["codes"] = pack_codes(codes_THW)
            row |= dict(zip("THW", codes_THW.shape, strict=True))
        same.clear()


def _in_order(
    entries: Sequence[Entry], read: Callable[[Entry], Iterator[Any]], threads: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[Entry, list[Any] | str | None]]:
    """The items of every entry, in order, while threads read on: some items at a time, then None or what went wrong.

    `ahead` entries are read at once, each no more than AHEAD items further than was taken.
    """
    active: deque[tuple[Entry, Iterator[Any], Future[list[Any] | str]]] = deque()
    coming = iter(entries)
    while True:
        for entry in islice(coming, ahead - len(active)):
            items = read(entry)
            active.append((entry, items, threads.submit(_next_items, items)))
        if not active:
            return
        entry, items, future = active.popleft()
        result = future.result()
        if isinstance(result, str) or not result:
            yield entry, result or None
        else:
            active.appendleft((entry, items, threads.submit(_next_items, items)))
            yield entry, result


def _next_items(items: Iterator[Any]) -> list[Any] | str:
    try:
        return list(islice(items, AHEAD))
    except MemoryError:
        return "it needs more memory than there is; make it smaller first"
    except Exception as error:  # one strange file never ends a run
        return _reason(error)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"cannot read {error.filename}: {error.strerror}; check it"
    return text or type(error).__name__


def _encoder(tokenizer: VideoTokenizer, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    tokenizer = tokenizer.to(device).eval()
    # bfloat16 halves the time where the hardware has it, and moves a few codes in a hundred to their neighbours.
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()

    @torch.no_grad()
    def encode(rgb_BFHWC: torch.Tensor) -> torch.Tensor:
        pixels_BCFHW = rgb_BFHWC.to(device, non_blocking=True).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            codes_BTHW: torch.Tensor = tokenizer.encode(pixels_BCFHW)
        return codes_BTHW.cpu()

    return encode


def _reader(manifest: Path, entries: Sequence[Entry]) -> ShardReader | None:
    if not any(entry.stored >= 0 for entry in entries):
        return None
    return ShardReader(open_shards(manifest), ["picture", "F", "height", "width", "fps"], 2**28)


def _begin(out: Path, entries: Sequence[Entry], config: PrepareConfig, mark: str, name: str, shards: int) -> None:
    """Write down what this folder is made from, or check that it was begun the same way."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(repr((entry.row, entry.path, entry.captions, entry.start, entry.end, entry.mirror)).encode())
    settings = {"manifest": digest.hexdigest()[:16], "tokenizer": mark, "shards": shards, "config": asdict(config)}
    settings = json.loads(json.dumps(settings))
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    before = read_json(out / SETTINGS)
    if not before:
        if any(out.iterdir()) and not all(path.name.startswith(".") for path in out.iterdir()):
            raise FileExistsError(f"{out} must be a new or empty folder, got one that holds something else; choose another")
        write_text(out / SETTINGS, json.dumps({**settings, "name": name}, indent=1))
        return
    before.pop("name", None)
    if before != settings:
        changed = [key for key in settings if before.get(key) != settings[key]]
        if "config" in changed:
            now = settings["config"] | settings["config"]["cut"]
            then = before.get("config", {}) | before.get("config", {}).get("cut", {})
            changed = [f"{key} = {then.get(key)}" for key in now if key != "cut" and then.get(key) != now[key]] or changed
        raise ValueError(
            f"{out} was begun with another {', '.join(changed)}; give the command that began it, or choose a new folder"
        )


def _finish(out: Path, shards: int) -> dict[str, Any]:
    """Write rejected.csv from what the shards say, clear up, and count."""
    rejected = [
        {**reason, "shard": shard_path(out, number).name}
        for number in range(shards)
        for reason in rejected_in(shard_path(out, number))
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["row", "path", "reason", "shard"])
    writer.writeheader()
    writer.writerows(rejected)
    write_text(out / "rejected.csv", text.getvalue())
    for path in out.iterdir():
        if LEFTOVER.fullmatch(path.name):  # of a process that was killed
            path.unlink(missing_ok=True)
    document: dict[str, Any] = {"clips": 0, "videos": 0, "images": 0, "rejected": len(rejected)}
    try:
        index = open_shards(out)
    except ValueError:  # nothing but rejected inputs
        return document
    images = int((index.sizes_N3[:, 0] == 1).sum())
    document |= {"clips": len(index), "videos": len(index) - images, "images": images}
    if index.form == CODES:
        document["codes"] = int(index.sizes_N3.prod(1).sum())
    return document
