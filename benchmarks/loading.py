"""How long a model folder of the published shapes takes to load, and where the time goes: a JSON line for each part.

    python benchmarks/loading.py --sizes 1b,3b --place /dev/shm --out loading.jsonl      (one CUDA card, or the CPU)

Weights are random, and the text vocabulary has a few words only (the published one of 65,536 takes longer). The folder lies in
memory, or in the page cache, so that the disk is left out. Everything is loaded twice: the first time loads kernels too.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench import CELLS, Bench, make_model
from published import write_text_tokenizer

import lumos.weights
from lumos.diffusion.sampler import SamplerConfig
from lumos.generate import Generator
from lumos.model_folder import TEXT_FILE, FolderConfig, VideoConfig, load_decoder, load_model, save_model
from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import LUMOS
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer

SIZES = {"1b": CELLS["1b-384p"].model, "3b": CELLS["3b-384p"].model}


def write_folder(folder: Path, size: str, device: torch.device) -> int:
    """A whole model folder with random weights; returns its bytes."""
    tokenizer = VideoTokenizer(CosmosConfig())
    tokenizer.initialise(torch.Generator().manual_seed(0))
    write_text_tokenizer(folder.parent / TEXT_FILE)
    text = TextTokenizer.from_file(folder.parent / TEXT_FILE)
    video = VideoConfig(384, 672, frames=25, fps=12, slots=512, window=22, latest=21)
    config = FolderConfig(SIZES[size], LUMOS, video, SamplerConfig())
    save_model(folder, config, make_model(SIZES[size], device, torch.bfloat16).state_dict(), text, tokenizer)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a model folder takes to load.")
    parser.add_argument("--sizes", default="1b,3b", help="of 1b and 3b (default: both)")
    parser.add_argument("--place", type=Path, default=None, help="where the folders are written (default: temporary files)")
    parser.add_argument("--out", type=Path, default=None, help="file that gets every measurement as a JSON line")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, 0.0, args.out, 0)
    torch.zeros(1, device=device)  # the card's own start is not ours
    for size in args.sizes.split(","):
        with TemporaryDirectory(dir=args.place) as place:
            folder = Path(place) / "model"
            written = write_folder(folder, size, device)
            bench.free()
            bench.keep(what="folder", size=size, gib=round(written / 2**30, 2), device=str(device), torch=torch.__version__)
            parts = {
                "load_model": lambda folder=folder: load_model(folder, device),
                "Generator.from_folder": lambda folder=folder: Generator.from_folder(folder, device.type),
                "decoder alone": lambda folder=folder: load_decoder(folder, device),
                "tokenizer alone": lambda folder=folder: load_tokenizer(folder / "tokenizer"),
                "load_model without checksums": lambda folder=folder: load_model(folder, device),
            }
            for part, work in parts.items():
                lumos.weights.SUMS = "none" if "without" in part else "sums"
                seconds = []
                for _ in range(2):
                    seconds.append(round(bench.seconds(work), 3))
                    bench.free()
                bench.keep(what="load", size=size, part=part, seconds=seconds)


if __name__ == "__main__":
    main()
