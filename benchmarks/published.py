"""A published model from checkpoint folder to video file, each part timed: import, load, generate, decode, write.

    python benchmarks/published.py [1b|3b] --steps 50 --out video.mp4      (one CUDA card; --toy rehearses on the CPU)

Checkpoint, Cosmos tokenizer and text vocabulary have the published form and shapes with random weights: the picture is noise,
time and memory do not depend on it. One JSON line per part; peak memory is the card's, allocated, weights included.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from lumos.generate import Generator
from lumos.media.video import write_video
from lumos.model.transformer import LUMOS_1B, LUMOS_3B, ModelConfig
from lumos.published.import_weights import import_weights
from lumos.published.official import config_to_official, official_shapes
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import VideoTokenizer, save_tokenizer

SIZES = {"1b": LUMOS_1B, "3b": LUMOS_3B}
TOY = ModelConfig(LUMOS_1B.vocabulary, layers=2, width=16, heads=2, kv_heads=1, head_width=32, ffn=24)
TESTS = Path(__file__).parent.parent / "tests" / "published" / "test_import_weights.py"
CUDA = torch.cuda.is_available()


@contextmanager
def part(name: str, **more: object) -> Iterator[None]:
    """Time one part and print its line."""
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    yield
    if CUDA:
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0
    print(
        json.dumps({"part": name, "seconds": round(time.perf_counter() - begin, 2), "peak_gib": round(peak, 2), **more}),
        flush=True,
    )


def write_checkpoint(folder: Path, config: ModelConfig) -> None:
    """One file of random bf16 numbers under the released names, made on the card."""
    device = "cuda" if CUDA else "cpu"
    tensors = {
        name: (torch.randn(shape, device=device, dtype=torch.bfloat16) * (0.02 if len(shape) > 1 else 1)).cpu()
        for name, shape in official_shapes(config).items()
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_official(config)))


def write_text_tokenizer(file: Path) -> None:
    """The published prompt sentence with its ids and a few words more: what the tests use."""
    spec = importlib.util.spec_from_file_location("test_import_weights", TESTS)
    assert spec and spec.loader
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    tests.text_file(file)


def main() -> None:
    parser = argparse.ArgumentParser(description="A published model from checkpoint to video file, each part timed.")
    parser.add_argument("size", nargs="?", choices=SIZES, default="1b")
    parser.add_argument("--width", type=int, default=672)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--toy", action="store_true", help="toy sizes, to rehearse")
    parser.add_argument("--out", type=Path, default=Path("published.mp4"))
    args = parser.parse_args()
    width, height = (64, 32) if args.toy else (args.width, args.height)
    with TemporaryDirectory() as name:
        place = Path(name)
        with part("make a checkpoint"):
            write_checkpoint(place / "checkpoint", TOY if args.toy else SIZES[args.size])
            cosmos = VideoTokenizer(CosmosConfig(channels=8, blocks=1) if args.toy else CosmosConfig())
            cosmos.initialise(torch.Generator().manual_seed(0))
            save_tokenizer(place / "cosmos", cosmos)
            write_text_tokenizer(place / "text_tokenizer.json")
        with part("import-weights"):
            import_weights(place / "checkpoint", place / "weights", place / "text_tokenizer.json", place / "cosmos", (672, 384))
        with part("load"):
            generator = Generator.from_folder(place / "weights")
        sampler = replace(generator.config.sampler, steps=args.steps)

        def codes(steps: int) -> list[torch.Tensor]:
            record: list[torch.Tensor] = []
            stream = generator.stream(
                "A star", 25, sampler=replace(sampler, steps=steps), height=height, width=width, record=record
            )
            for _ in stream:
                pass
            return record

        with part("first video, 2 steps (compiles)"):
            codes(2)
        with part("generate and decode", size=f"{width}x{height}", frames=25, steps=args.steps):
            codes_BTHW = torch.stack(codes(args.steps), dim=1)
        with part("decode alone"):
            state = generator.tokenizer.start_stream()
            frames = [generator.tokenizer.decode_next(codes_BHW, state) for codes_BHW in codes_BTHW.unbind(1)]
        with part("write", file=args.out.name):
            write_video(args.out, torch.cat(frames, dim=2)[0].float().cpu(), 12, overwrite=True)


if __name__ == "__main__":
    main()
