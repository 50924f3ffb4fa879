"""A model folder again, its matrices in 8 bits: half the bytes, and loaded as any other.

python recipes/eight_bits.py RUNS/model/model RUNS/box
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lumos.model_folder import TEXT_FILE, tokenizer_files
from lumos.weights import CONFIG, Kind, in_eight_bits, load_folder, save_folder


def main(source: Path, out: Path) -> None:
    def again(folder: Path, to: Path, kind: Kind, files: dict[str, bytes | Path]) -> None:
        _, tensors = load_folder(folder, kind)
        save_folder(to, json.loads((folder / CONFIG).read_text("utf-8")), in_eight_bits(tensors), files)

    with TemporaryDirectory() as place:
        again(source / "tokenizer", Path(place) / "tokenizer", "tokenizer", {})
        again(source, out, "model", {TEXT_FILE: source / TEXT_FILE, **tokenizer_files(Path(place) / "tokenizer")})
    print(f"{out}: {sum(path.stat().st_size for path in out.rglob('*') if path.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
