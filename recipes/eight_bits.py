"""A model folder again, its matrices in 8 bits: about half the bytes, and loaded as any other.

Of the tokenizer the decoder's coarse layers alone: 8 bits cost nothing there, 1 dB in its fine layers, and another code in one of
seven places in the encoder (docs/lab/model.md).

python recipes/eight_bits.py RUNS/model/model RUNS/box
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from lumos.model.quantise import to_int8
from lumos.model_folder import TEXT_FILE, tokenizer_files
from lumos.sequence.text import WORDS_FILE
from lumos.weights import CONFIG, SCALE, Kind, load_folder, save_folder


def in_eight_bits(tensors: Mapping[str, Tensor], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Matrices and kernels as int8 with a scale for each row, what `load_folder` makes bf16 again; the rest in bf16.

    prefix: of the names that this is for; the others stay in bf16, too.
    """
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not name.startswith(prefix):
            yield name, tensor.to(torch.bfloat16)
            continue
        values, scale_D1 = to_int8(tensor.flatten(1))
        yield name, values.view(tensor.shape)
        yield name + SCALE, scale_D1[:, 0]


def main(source: Path, out: Path) -> None:
    def again(folder: Path, to: Path, kind: Kind, prefix: str, files: dict[str, bytes | Path]) -> None:
        _, tensors = load_folder(folder, kind)
        save_folder(to, json.loads((folder / CONFIG).read_text("utf-8")), in_eight_bits(tensors, prefix), files)

    with TemporaryDirectory() as place:
        again(source / "tokenizer", Path(place) / "tokenizer", "tokenizer", "decoder.coarse", {})
        text = {name: source / name for name in (TEXT_FILE, WORDS_FILE) if (source / name).is_file()}
        again(source, out, "model", "", text | tokenizer_files(Path(place) / "tokenizer"))
    print(f"{out}: {sum(path.stat().st_size for path in out.rglob('*') if path.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
