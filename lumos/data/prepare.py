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
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lumos.config import read_json
from lumos.data.clips import Clip, Cut, expected_lengths, nearest_size, pack_picture, read_clips
from lumos.data.manifest import Entry, is_url, read_manifest
from lumos.data.shards import CODES, PIXELS, PREPARED, ShardReader, open_shards, pack_codes, shard_summary, write_shard
from lumos.files import PARTIAL, write_text
from lumos.media.picture import Header
from lumos.media.pixels import clips_to_pixels
from lumos.media.source import one_line, read_header
from lumos.tokenizer.compression import latent_frames
from lumos.tokenizer.model import VideoTokenizer
from lumos.weights import fingerprint

DECODED_AHEAD = 8  # of one file, decoded in one go
Made = tuple[Clip, bytes | None]  # a clip and, in picture shards, its picture
LONGEST_DRY_LOOK = 2000  # files whose headers a dry run reads
# files that a killed process left half written; whatever else lies in the folder is not ours to delete
LEFTOVER = re.compile(rf"\.(\d{{6}}\.parquet|prepare\.json|rejected\.csv){PARTIAL}")


@dataclass(frozen=True)
class PrepareConfig:
    """What the shards hold: with other settings they are others."""

    cut: Cut
    mirror: str = "marked"  # add mirrored copies of no clips ("none"), of rows that say that they may be mirrored, or of "all"
    rows: int = 256  # of the manifest, in a shard
    batch: int = 16  # clips tokenised at once


@dataclass(frozen=True)
class Share:
    """This process's part of the work."""

    rank: int = 0  # it makes every `world`-th shard from `rank` on
    world: int = 1
    device: str = "cpu"  # where it tokenises
    workers: int = 2  # threads that decode


def prepare_shards(
    manifest: Path,
    out: Path,
    config: PrepareConfig,
    tokenizer: VideoTokenizer | None,
    share: Share,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
    name: str = "",
) -> dict[str, Any]:
    """Make this process's shards that are not there yet, and tell what the folder holds. Without tokenizer: picture shards.

    Raises ValueError for a manifest without a usable row, or a folder that was begun with other settings.
    """
    entries = read_manifest(manifest)
    problems = [entry for entry in entries if entry.problem]
    if len(problems) == len(entries):
        raise ValueError(f"{manifest} must have a row that can be used, got none of {len(entries)}: {entries[0].problem}")
    parts = [entries[first : first + config.rows] for first in range(0, len(entries), config.rows)]
    mark = fingerprint(tokenizer) if tokenizer is not None else ""
    _begin(out, parts, config, mark, name)
    if problems:
        first = f"the first is row {problems[0].row}: {problems[0].problem}"
        say(f"{len(problems)} of {len(entries)} rows cannot be used, {first}")

    pictures = entries[0].stored >= 0
    stored = ShardReader(open_shards(manifest), ["picture", "F", "height", "width", "fps"], 2**28) if pictures else None
    maker = _Maker(config, tokenizer, mark, share, stored)
    to_do = [number for number in range(share.rank, len(parts), share.world) if not shard_path(out, number).exists()]
    rows_done, rows_all = 0, sum(len(parts[number]) for number in to_do)
    started, frames, clips = time.monotonic(), 0, 0
    for position, number in enumerate(to_do, 1):

        def step(done: int, before: int = rows_done) -> None:
            if progress:
                progress(before + done, rows_all)

        rows, rejected = maker.make(parts[number], step)
        write_shard(shard_path(out, number), PIXELS if tokenizer is None else CODES, mark, rows, rejected)
        rows_done, clips, frames = rows_done + len(parts[number]), clips + len(rows), frames + sum(row["frames"] for row in rows)
        rate = clips / max(time.monotonic() - started, 1e-9)
        say(f"shard {position} of {len(to_do)}: {len(rows)} clips, {len(rejected)} rejected, {rate:.1f} clips/s")
    made = {"clips_made": clips, "frames_made": frames, "seconds": round(time.monotonic() - started, 3)}
    if missing := sum(not shard_path(out, number).exists() for number in range(len(parts))):
        return {"shards": str(out), "finished": False, "missing_shards": missing, **made}
    return {"shards": str(out), "finished": True, **_finish(out, len(parts)), **made}


def dry_run(manifest: Path, config: PrepareConfig, latent: tuple[int, int] | None) -> dict[str, Any]:
    """What `prepare` would do, by the headers of the files. `latent`: pixels per code in time and in space, None for pictures."""
    entries = read_manifest(manifest)
    problems = [f"row {entry.row}: {entry.problem}" for entry in entries if entry.problem]
    looked = [entry for entry in entries if not entry.problem and not is_url(entry.path)][:LONGEST_DRY_LOOK]
    stored = open_shards(manifest) if any(entry.stored >= 0 for entry in entries) else None
    clips = ids = codes = unreadable = 0
    seconds = 0.0
    for entry in looked:
        try:
            if stored is not None:
                F, height, width = stored.sizes_N3[entry.stored].tolist()
                header = Header("video", width, height, F / stored.fps)
            else:
                header = read_header(entry.path)
        except (ValueError, OSError):
            unreadable += 1
            continue
        length = max(0.0, min(header.seconds, entry.end or math.inf) - (entry.start or 0.0))
        lengths = expected_lengths(length, config.cut) * (2 if latent and _mirrored(config, entry) else 1)
        clips, seconds = clips + len(lengths), seconds + length
        if latent:
            rows, columns = (side // latent[1] for side in nearest_size(header.width, header.height, config.cut.sizes))
            T = sum(latent_frames(frames, latent[0]) for frames in lengths)
            ids, codes = ids + T * (rows * (columns + 1) + 4), codes + T * rows * columns
    document = {"rows": len(entries), "problems": len(problems), "unreadable": unreadable, "looked_at": len(looked)}
    document |= {"shards": -(-len(entries) // config.rows), "clips": clips}
    document |= {"ids": ids, "bytes": 2 * codes} if latent else {}
    return {**document, "hours": round(seconds / 3600, 4), "first_problems": problems[:20]}


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
        good = [entry for entry in entries if not entry.problem]
        done = len(reasons)
        rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        waiting: dict[tuple[int, ...], list[tuple[dict[str, Any], Any]]] = defaultdict(list)
        with ThreadPoolExecutor(self.share.workers, thread_name_prefix="decode") as threads:
            for entry, result in _in_order(good, self._read, threads, 2 * self.share.workers):
                if isinstance(result, str):
                    reasons[entry.row] = result
                if isinstance(result, str) or not result:
                    done += 1
                    step(done)
                    continue
                for clip, picture in result:
                    for mirrored in (False, True)[: 1 + (picture is None and _mirrored(self.config, entry))]:
                        row = self._row(entry, clip, picture, mirrored)
                        rows[entry.row].append(row)
                        if picture is None:
                            same = waiting[clip.rgb_FHWC.shape]
                            same.append((row, clip.rgb_FHWC[:, :, :: -1 if mirrored else 1]))
                            if len(same) == self.config.batch:
                                self._tokenise(same)
            for same in filter(None, waiting.values()):
                self._tokenise(same)
        kept = [row for number in sorted(rows) if number not in reasons for row in rows[number]]
        paths = {entry.row: entry.path for entry in entries}
        return kept, [{"row": row, "path": paths[row], "reason": reasons[row]} for row in sorted(reasons)]

    def _read(self, entry: Entry) -> Iterator[Made]:
        for clip in read_clips(entry, self.config.cut, self.stored):
            yield clip, None if self.encode else pack_picture(clip.rgb_FHWC)

    def _row(self, entry: Entry, clip: Clip, picture: bytes | None, mirrored: bool) -> dict[str, Any]:
        F, H, W, _ = clip.rgb_FHWC.shape
        source = entry.path if entry.stored < 0 else f"{entry.path}#{entry.stored}"
        row: dict[str, Any] = {"captions": list(entry.captions), "fps": self.config.cut.fps, "frames": F, "source": source}
        row |= {"start": clip.start, "mirrored": mirrored, "tokenizer": self.mark}
        if picture is not None:
            mirror = entry.mirror or self.config.mirror == "all"
            row |= {"F": F, "height": H, "width": W, "mirror": mirror, "picture": picture}
        return row

    def _tokenise(self, same: list[tuple[dict[str, Any], Any]]) -> None:
        """Add codes to the rows of a batch of clips, and empty it."""
        assert self.encode is not None
        codes_BTHW = self.encode(torch.from_numpy(np.stack([rgb_FHWC for _, rgb_FHWC in same])))
        for (row, _), codes_THW in zip(same, codes_BTHW, strict=True):
            row |= {"codes": pack_codes(codes_THW), **dict(zip("THW", codes_THW.shape, strict=True))}
        same.clear()


def _mirrored(config: PrepareConfig, entry: Entry) -> bool:
    return config.mirror == "all" or (config.mirror == "marked" and entry.mirror)


def _in_order(
    entries: Sequence[Entry], read: Callable[[Entry], Iterator[Made]], threads: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[Entry, list[Made] | str]]:
    """The clips of every entry, in order, while threads read on: some at a time, then none of them or what went wrong.

    `ahead` entries are read at once, each no more than DECODED_AHEAD clips further than was taken.
    """
    active: deque[tuple[Entry, Iterator[Made], Future[list[Made] | str]]] = deque()
    coming = iter(entries)
    while True:
        for entry in islice(coming, ahead - len(active)):
            clips = read(entry)
            active.append((entry, clips, threads.submit(_next_clips, clips)))
        if not active:
            return
        entry, clips, future = active.popleft()
        result = future.result()
        if result and not isinstance(result, str):
            active.appendleft((entry, clips, threads.submit(_next_clips, clips)))
        yield entry, result


def _next_clips(clips: Iterator[Made]) -> list[Made] | str:
    try:
        return list(islice(clips, DECODED_AHEAD))
    except Exception as error:  # one strange file never ends a run
        return one_line(error)


def _encoder(tokenizer: VideoTokenizer, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    tokenizer = tokenizer.to(device).eval()
    # bfloat16 halves the time where the hardware has it, and moves a few codes in a hundred to their neighbours.
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()

    @torch.no_grad()
    def encode(rgb_BFHWC: torch.Tensor) -> torch.Tensor:
        pixels_BCFHW = clips_to_pixels(rgb_BFHWC.to(device, non_blocking=True))
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            codes_BTHW: torch.Tensor = tokenizer.encode(pixels_BCFHW)
        return codes_BTHW.cpu()

    return encode


def _begin(out: Path, parts: Sequence[Sequence[Entry]], config: PrepareConfig, mark: str, name: str) -> None:
    """Write down what this folder is made from, or check that what is there was made from the same.

    Rows of shards that are not there may have changed: rejected ones are mended so.
    """
    digests = [_digest(part) for part in parts]
    settings = {"manifest": digests, "tokenizer": mark, "shards": len(parts), "config": asdict(config)}
    settings = json.loads(json.dumps(settings))
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    before = read_json(out / PREPARED) if (out / PREPARED).exists() else {}
    if not before and not all(path.name.startswith(".") for path in out.iterdir()):
        raise FileExistsError(f"{out} must be a new or empty folder, got one that holds something else; choose another")
    changed = [key for key in settings if before and before.get(key) != settings[key]]
    if "manifest" in changed and "shards" not in changed and isinstance(before["manifest"], list):
        done = [number for number in range(len(parts)) if shard_path(out, number).exists()]
        if all(before["manifest"][number : number + 1] == digests[number : number + 1] for number in done):
            changed.remove("manifest")
    if changed:
        if "config" in changed:
            now = settings["config"] | settings["config"]["cut"]
            then = before.get("config", {}) | before.get("config", {}).get("cut", {})
            changed = [f"{key} = {then.get(key)}" for key in now if key != "cut" and then.get(key) != now[key]] or changed
        raise ValueError(
            f"{out} was begun with another {', '.join(changed)}; give the command that began it, or choose a new folder"
        )
    if before.get("manifest") != digests:
        write_text(out / PREPARED, json.dumps({**settings, "name": name}, indent=1))


def _digest(entries: Sequence[Entry]) -> str:
    """Changes with what a manifest's rows say, not with what a look at their files tells."""
    rows = [replace(entry, problem="") for entry in entries]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


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
