"""Damaged and hostile files for everything that reads files: each is read, or refused in one line of our own, and soon.

    python -m research.fuzz                       # 10,000 inputs, the same every time
    python -m research.fuzz media shards --inputs 2000 --seed 1

A small good example of each kind is edited (bytes and cuts anywhere; fields of JSON to values that nobody meant) and read again.
Whatever else happens, such as another exception, a crash or 20 seconds without an end, is a fault, shown with the least edit.
"""

import argparse
import asyncio
import copy
import functools
import json
import logging
import operator
import pickle
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from fastapi import Request
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from lumos.config import read_json
from lumos.data.manifest import read_manifest
from lumos.data.shards import CODES, ShardReader, open_shards, pack_codes, unpack_codes, write_shard
from lumos.diffusion.sampler import SamplerConfig
from lumos.media.source import timed_pictures
from lumos.media.video import write_video
from lumos.model.adapter import merge_adapter
from lumos.model.transformer import LUMOS_1B, ModelConfig, Transformer
from lumos.model_folder import FolderConfig, VideoConfig, load_model, save_model
from lumos.published.archive import read_archive
from lumos.published.import_tokens import read_record, rebuild
from lumos.published.official import config_from_official, config_to_official
from lumos.sequence.text import train_text_tokenizer
from lumos.sequence.token_file import About, Tokens, load_tokens, save_tokens
from lumos.sequence.vocabulary import SENTENCE, small_vocabulary
from lumos.serving.request import RequestError, read_body
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer
from lumos.training.checkpoint import CHECKPOINT, STATE, read_state
from lumos.training.lora import LoraSettings, add_adapter, save_adapter, split
from lumos.weights import fingerprint
from research.mutants import FORK, in_child

SECONDS = 20  # for one input
OURS = (ValueError, OSError, FileNotFoundError, NotADirectoryError, IsADirectoryError, RequestError)
HOSTILE: list[Any] = [None, True, 0, -1, 1.5, 2**31, 10**400, float("nan"), float("inf"), "", "\ud800", "{0}", "x" * 10**5]
HOSTILE += [[], {}, [[]], [1] * 20_000]
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na red circle\r\n'
    b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'
)
Reader = Callable[[Path], object]  # reads what lies in a folder
Edit = tuple[int, int, bytes, Any]  # number of the file; of the byte or field in it (modulo how many there are); bytes; a value


def write_examples(place: Path) -> dict[str, Reader]:
    """A folder of good files for each kind, and what reads it."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = VideoTokenizer(TokenizerConfig((4, 4), (8, 8), (1, 1), (8, 8), (1, 1)))
    tokenizer.initialise(generator)
    text = train_text_tokenizer(["a red circle moves to the right"], 60)
    vocabulary = small_vocabulary(text.size, tokenizer.codebook_size)
    model = Transformer(ModelConfig(vocabulary.size, layers=1, width=32, heads=1, kv_heads=1, head_width=32, ffn=32))
    model.initialise(generator)
    adapted, lora = copy.deepcopy(model), LoraSettings(rank=2)
    add_adapter(adapted, lora, 0)
    codes = torch.randint(tokenizer.codebook_size, (1, 2, 4, 4), generator=generator)
    row = {"codes": pack_codes(codes[0]), "T": 2, "H": 4, "W": 4, "captions": ["a"], "fps": 8.0, "frames": 5, "source": "a"}
    pixels = torch.rand(3, 5, 32, 32, generator=generator) * 2 - 1
    body = {"prompt": "a", "seconds": 1, "size": "64x32", "seed": 1, "steps": 2, "input_reference": {"file_id": "a"}}
    record = {"token": rebuild([*SENTENCE, 500], codes[0, :1], 1, 1), "id": 5}
    texts = {
        "tables/a.csv": "path,caption,start,end,mirror\na.mp4,red,0.5,2,yes\nb.mp4,blue,,,\n",
        "tables/a.jsonl": '{"path": "a.mp4", "captions": ["red"], "start": 1, "mirror": true}\n',
        "shards/prepare.json": json.dumps({"shards": 1, "cut": {"fps": 8}}),
        f"checkpoints/{STATE}": json.dumps({"format": CHECKPOINT, "step": 1, "seconds": 1.5, "config": {"a": {"b": 1}}}),
        "released/config.json": json.dumps(config_to_official(LUMOS_1B)),
        "bodies/a.json": json.dumps(body),
        "forms/a": FORM.decode(),
    }
    for name in ("media", "tokens", "pickles", "archives", *(name.partition("/")[0] for name in texts)):
        (place / name).mkdir(exist_ok=True)
    for name, content in texts.items():
        (place / name).write_text(content, newline="")
    write_shard(place / "shards/0.parquet", CODES, "t", [row | {"start": 0.0, "mirrored": False, "tokenizer": "t"}] * 3, [])
    config = FolderConfig(model.config, vocabulary, VideoConfig(32, 32, 5, 8, 64, 2, 2), SamplerConfig(steps=1))
    save_model(place / "weights", config, model.state_dict(), text, tokenizer)
    save_adapter(place / "adapters", lora, split(adapted.state_dict(), lora)[1], "tiny")
    save_tokens(place / "tokens/a", Tokens(codes, About(("a",), (0,), 8, 0, fingerprint(tokenizer))))
    for name in ("a.mp4", "a.gif", "a.webp", "a.png"):
        write_video(place / "media" / name, pixels[:, :1] if name == "a.png" else pixels, 8)
    (place / "pickles/a.pkl").write_bytes(pickle.dumps(record))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), place / "archives/a.jit")
    (place / "checkpoints").rename(place / "step_00000001")
    (place / "checkpoints").symlink_to(place / "step_00000001")
    return {
        "tables": lambda folder: [read_manifest(path) for path in folder.iterdir()],
        "shards": read_shards,
        "weights": load_model,
        "adapters": lambda folder: merge_adapter(copy.deepcopy(model), folder),
        "checkpoints": lambda folder: read_state(folder.resolve(), check_sums=False),
        "tokens": lambda folder: load_tokens(folder / "a", tokenizer, tokenizer.codebook_size),
        "released": lambda folder: config_from_official(read_json(folder / "config.json"), folder),
        "media": lambda folder: [len(list(timed_pictures(path))) for path in folder.iterdir()],
        "pickles": lambda folder: read_record(folder / "a.pkl"),
        "archives": lambda folder: read_archive(folder / "a.jit"),
        "bodies": lambda folder: read_request(folder / "a.json", "application/json"),
        "forms": lambda folder: read_request(folder / "a", "multipart/form-data; boundary=x"),
    }


def read_shards(folder: Path) -> None:
    reader = ShardReader(open_shards(folder), ["codes", "T", "H", "W", "captions", "fps"])
    for number in range(len(reader.index)):
        row = reader.row(number)
        unpack_codes(row["codes"], row["T"], row["H"], row["W"], codebook=16)


def read_request(path: Path, kind: str) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": path.read_bytes(), "more_body": False}

    async def read() -> None:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", kind.encode())]}
        async with read_body(Request(scope, receive)):
            pass

    asyncio.run(read())


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value inside a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places_in(inner, (*path, key))


def edited(content: bytes, edit: Edit) -> bytes:
    """A file with one fault: a field of JSON replaced or taken out, or bytes replaced, put in or cut off."""
    _, where, piece, value = edit
    if value == "bytes" or content[:1] != b"{":
        at = where % max(1, len(content))
        return content[:at] + piece + (content[at + len(piece) * (len(piece) % 3) :] if piece else b"")
    document = json.loads(content)
    places = list(places_in(document))
    *outer, last = places[where % len(places)]
    inside = functools.reduce(operator.getitem, outer, document)
    if value == "gone":
        del inside[last]
    else:
        inside[last] = value
    return json.dumps(document).encode()


def fuzz(kind: str, inputs: int, number: int) -> int:
    """Damage the files of one kind, again and again; the exit status."""
    warnings.simplefilter("ignore")
    logging.disable()
    refused = 0

    def late(*_: object) -> None:
        raise AssertionError(f"no end after {SECONDS} seconds")

    signal.signal(signal.SIGALRM, late)
    with tempfile.TemporaryDirectory() as name:
        read, folder = write_examples(Path(name))[kind], Path(name) / kind
        whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        numbers, values = st.integers(0, 2**20), st.sampled_from(["bytes", "gone", *HOSTILE])

        @seed(number)
        @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.tuples(numbers, numbers, st.binary(max_size=8), values))
        def check(edit: Edit) -> None:
            nonlocal refused
            path = list(whole)[edit[0] % len(whole)]
            path.write_bytes(edited(whole[path], edit))
            signal.alarm(SECONDS)
            try:
                read(folder)
            except Exception as error:
                if type(error) not in OURS or "\n" in str(error):
                    raise
                refused += 1
            finally:
                signal.alarm(0)
                path.write_bytes(whole[path])

        try:
            read(folder)
            check()
        except BaseException:
            print(f"{kind}: a fault\n{traceback.format_exc()}", flush=True)
            return 1
    print(f"{kind}: {inputs} inputs, {refused} of them refused", flush=True)
    return 0


def main() -> int:
    kinds = ["tables", "shards", "weights", "adapters", "checkpoints", "tokens", "released", "media", "pickles", "archives"]
    kinds += ["bodies", "forms"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=kinds, help=f"of {', '.join(kinds)} (default: all)")
    parser.add_argument("--inputs", type=int, default=10_000, help="for all kinds together (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    share = -(-args.inputs // len(args.kinds))
    with ProcessPoolExecutor(args.processes, FORK) as pool:  # a process for each kind: a crash is a fault as well
        jobs = {kind: pool.submit(in_child, 1800, fuzz, kind, share, args.seed) for kind in args.kinds}
    failed = [kind for kind, job in jobs.items() if job.result() != 0]
    print(f"faults in {', '.join(failed)}" if failed else f"{share * len(jobs)} inputs, no fault")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
