"""A model folder again, its matrices in 8 bits: about half the bytes, and loaded as any other.

Of the tokenizer the decoder's coarse layers alone: 8 bits cost nothing there, 1 dB in its fine layers, and another code in one of
seven places in the encoder (docs/lab/model.md).

python recipes/eight_bits.py RUNS/model/model RUNS/box
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lumos.model_folder import TEXT_FILE, tokenizer_files
from lumos.weights import CONFIG, Kind, in_eight_bits, load_folder, save_folder


def main(source: Path, out: Path) -> None:
    def again(folder: Path, to: Path, kind: Kind, prefix: str, files: dict[str, bytes | Path]) -> None:
        _, tensors = load_folder(folder, kind)
        save_folder(to, json.loads((folder / CONFIG).read_text("utf-8")), in_eight_bits(tensors, prefix), files)

    with TemporaryDirectory() as place:
        again(source / "tokenizer", Path(place) / "tokenizer", "tokenizer", "decoder.coarse", {})
        again(source, out, "model", "", {TEXT_FILE: source / TEXT_FILE, **tokenizer_files(Path(place) / "tokenizer")})
    print(f"{out}: {sum(path.stat().st_size for path in out.rglob('*') if path.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
