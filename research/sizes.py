"""What does a model make at sizes and shapes of picture that it was not trained on? Judged as the paper's claims are.

    python -m research.sizes --prompts 36 --sizes 256x256,320x192,192x320

One plain moving object a prompt, 17 frames; pictures that are not square are judged with their border repeated. A line
a size at once; a table at the end. The claim "aspect" of `research.claims` trains a model on three sizes for it.
"""

import argparse
import sys
from collections.abc import Sequence

from lumos.config import PACKAGED
from lumos.evaluation.report import wilson
from lumos.evaluation.run import usual_workers, worker_pool
from lumos.generate import Generator
from research.claims import SEEN, Setting, score
from research.small_runs import FULL, claim_prompts


def _share(mark: Sequence[int]) -> str:
    """Of [right, unclear, of]: percent right, with Wilson's 95 % interval over videos of one model."""
    low, high = wilson(mark[0], mark[2])
    return f"{100 * mark[0] / mark[2]:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=PACKAGED, help=f"name of weights in the package, or a folder (default: {PACKAGED})")
    parser.add_argument("--prompts", type=int, default=96, help="of each size (default: 96)")
    parser.add_argument("--sizes", default="256x256,320x192,192x320,384x192,192x384", help="WIDTHxHEIGHT, with commas")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
    args = parser.parse_args()
    generator = Generator.from_folder(args.weights, args.device)
    rows = ["| size | " + " | ".join(SEEN) + " |", "| --- " * (1 + len(SEEN)) + "|"]
    with worker_pool(usual_workers(generator.device)) as workers:
        for size in args.sizes.split(","):
            width, height = map(int, size.split("x"))
            setting = Setting(size, size=(height, width))
            marks = score(generator, claim_prompts(args.prompts), setting, generator.config.sampler, FULL, 0, workers)
            rows.append(f"| {size} | " + " | ".join(_share(marks[name]) for name in SEEN) + " |")
            print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
