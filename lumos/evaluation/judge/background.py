"""Pixels -> what stands out from the background of each frame. Nothing here knows a scene.

The background of every frame is a smooth fit, found robustly; the strength of a pixel is its distance to the nearest shade
of it, in squared colours, so that shadows have none and fading things have a part.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array
from torch import Tensor, float32, from_numpy
from torch.nn.functional import avg_pool2d

from lumos.evaluation.judge.colours import beyond_shade, brightness, length
from lumos.evaluation.judge.regions import COARSE, Blob, find_blobs

GRID = 32  # the background is fitted to this many places per side


class View(NamedTuple):
    """What is seen in a clip."""

    grid_FPC: Array  # squared colours on the grid
    ground_FPC: Array  # those of the fitted background
    strength_FHW: Array  # distance to the background, relative to its brightness
    blobs: list[list[Blob]]  # per frame


def look(pixels_CFHW: Tensor) -> View:
    """Find background and blobs in every frame. Raises ValueError for pixels of another shape."""
    if pixels_CFHW.ndim != 4 or pixels_CFHW.shape[0] != 3 or pixels_CFHW.shape[1] < 1:
        raise ValueError(f"pixels must have shape 3, F, H, W, got {list(pixels_CFHW.shape)}; give one RGB clip")
    height, width = pixels_CFHW.shape[2:]
    if height != width or height % GRID or height < 2 * GRID:
        raise ValueError(f"frames must be square, their side a multiple of 32 and at least 64, got {width}x{height}")
    squared_FCHW = ((pixels_CFHW.detach().to("cpu", float32).clamp(-1, 1) + 1) / 2).square().transpose(0, 1)
    grid_FPC = _channels_last(avg_pool2d(squared_FCHW, height // GRID)).reshape(len(squared_FCHW), -1, 3)
    coefficients_FKC = _fit_ground(grid_FPC)
    ground_FHWC = _fitted_ground(coefficients_FKC, height)
    strength_FHW = length(beyond_shade(_channels_last(squared_FCHW), ground_FHWC)) / brightness(ground_FHWC)
    coarse_FHW = avg_pool2d(from_numpy(strength_FHW), COARSE).numpy()
    colours_FHWC = _channels_last(avg_pool2d(squared_FCHW, COARSE))
    blobs = find_blobs(coarse_FHW, colours_FHWC, _fitted_ground(coefficients_FKC, height // COARSE))
    return View(grid_FPC, _basis(GRID) @ coefficients_FKC, strength_FHW, blobs)


def _channels_last(values_FCHW: Tensor) -> Array:
    return values_FCHW.permute(0, 2, 3, 1).contiguous().numpy()


def _fit_ground(grid_FPC: Array) -> Array:
    """Coefficients [F, 10, 3] of a cubic in x and y for each frame. First a plane through most of the clip's middle picture, then
    closer fits to what agrees with it: `scale` is the distance at which a place counts little."""
    basis = _basis(GRID)
    middle = np.median(grid_FPC, axis=0)
    border = np.abs(basis[:, 1:3]).max(1) > 0.9
    fitted = np.median(middle[border], axis=0)
    plane = basis[:, :3]
    fitted = plane @ _solve(plane, middle, _agreement(middle, fitted, scale=0.3))
    for scale in (0.15, 0.07, 0.05, 0.05):
        coefficients = _solve(basis, grid_FPC, _agreement(grid_FPC, fitted, scale))
        fitted = basis @ coefficients
    return coefficients.astype(np.float32)


def _agreement(seen: Array, fitted: Array, scale: float) -> Array:
    distance = length(seen - fitted) / brightness(fitted)
    return 1 / (1 + (distance / scale) ** 2) ** 2


def _solve(basis_PK: Array, target: Array, weight: Array) -> Array:
    """Weighted least squares for each frame."""
    weighted = basis_PK.T * weight[..., None, :]
    return np.linalg.solve(weighted @ basis_PK, weighted @ target)


@lru_cache(maxsize=8)
def _basis(side: int) -> Array:
    """The ten monomials in x and y, up to degree 3, at each place: [side * side, 10]."""
    y, x = (np.mgrid[:side, :side].reshape(2, -1) + 0.5) / side * 2 - 1
    powers = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))
    return np.stack([x**i * y**j for i, j in powers], axis=1).astype(np.float32)


def _fitted_ground(coefficients_FKC: Array, side: int) -> Array:
    """The fitted background, [F, side, side, 3]."""
    return (_basis(side) @ coefficients_FKC).reshape(-1, side, side, 3)
