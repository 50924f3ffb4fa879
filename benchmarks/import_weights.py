"""How long `lumos import-weights` takes for a full-size checkpoint, and how much memory: prints one line.

The checkpoint (bf16, several shards) has the published shapes and weights made by a formula (tests/golden/check.py). It needs
about four bytes of disk a parameter, all of them given back: `python benchmarks/import_weights.py [1b|3b]`.
"""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from lumos.model.transformer import LUMOS_1B, LUMOS_3B, ModelConfig
from lumos.published.official import config_to_official, official_shapes

SIZES = {"1b": LUMOS_1B, "3b": LUMOS_3B}
SHARD = 2**30  # bytes, or one tensor more
# Linux's own record of the most memory a process had, mapped files included (getrusage would count this process as well)
CHILD = """
import sys
from lumos.cli.main import main
assert main(sys.argv[1:]) == 0
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
CHECK = Path(__file__).parent.parent / "tests" / "golden" / "check.py"


def write_checkpoint(folder: Path, config: ModelConfig) -> int:
    """A checkpoint of the released form, one shard in memory at a time; returns its bytes."""
    spec = importlib.util.spec_from_file_location("golden_check", CHECK)
    assert spec and spec.loader
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    shapes = official_shapes(config)
    for name, shape in shapes.items():
        shard[name] = check.formula_weight(name, list(shape)).bfloat16()
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD or name == list(shapes)[-1]:
            file = f"model-{len(set(places.values())) + 1:05}.safetensors"
            save_file(shard, folder / file)
            places |= dict.fromkeys(shard, file)
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config_to_official(config)))
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    size = sys.argv[1] if len(sys.argv) > 1 else "1b"
    with TemporaryDirectory() as place:
        checkpoint = Path(place) / "checkpoint"
        checkpoint.mkdir()
        written = write_checkpoint(checkpoint, SIZES[size])
        start = time.perf_counter()
        words = ["import-weights", str(checkpoint), str(Path(place) / "weights")]
        peak = subprocess.run([sys.executable, "-c", CHILD, *words], check=True, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - start
    gib = int(peak.split()[-2]) / 2**20
    print(f"import-weights {size}: {written / 2**30:.2f} GiB in {seconds:.1f} s, peak memory {gib:.2f} GiB")


if __name__ == "__main__":
    main()
