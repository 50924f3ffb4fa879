"""Pixels -> what stands out from the background of each frame. Nothing here knows a scene.

The background of every frame is a smooth fit, found robustly; the strength of a pixel is its distance to the nearest shade
of it, in squared colours, so that shadows have none and fading things have a part.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lumos.evaluation.judge.colours import SHADE, Array
from lumos.evaluation.judge.regions import COARSE, Blob, find_blobs


@dataclass
class View:
    """What is seen in a clip."""

    grid_FPC: Array  # squared colours, on a grid of 32x32 places
    ground_FPC: Array  # those of the fitted background
    squared_FHWC: Array  # squared colours, on the coarse grid
    strength_FHW: Array  # distance to the background, relative to its brightness
    residue_FP: Array  # how far each place of the grid is from the fit
    blobs: list[list[Blob]]  # by frame


def look(pixels_CFHW: Tensor) -> View:
    """Find background and blobs in every frame. Raises ValueError for pixels of another shape."""
    if pixels_CFHW.ndim != 4 or pixels_CFHW.shape[0] != 3 or pixels_CFHW.shape[1] < 1:
        raise ValueError(f"pixels must have shape 3, F, H, W, got {list(pixels_CFHW.shape)}; give one RGB clip")
    height, width = pixels_CFHW.shape[2:]
    if height != width or height % 32 or height < 64:
        raise ValueError(
            f"frames must be square, their side a multiple of 32 and at least 64, got {width}x{height}; crop and resize them"
        )
    values = ((pixels_CFHW.detach().to("cpu", torch.float32).clamp(-1, 1) + 1) / 2).permute(1, 0, 2, 3).numpy()
    squared_FCHW = values * values
    grid_FPC = _pool(squared_FCHW, height // 32).reshape(len(values), 3, -1).transpose(0, 2, 1)
    coefficients, residue_FP = _fit_ground(grid_FPC)
    strength_FHW = _strength(squared_FCHW, _ground(coefficients, height))
    squared_FHWC = _pool(squared_FCHW, COARSE).transpose(0, 2, 3, 1)
    ground_FHWC = _ground(coefficients, height // COARSE).transpose(0, 2, 3, 1)
    blobs = find_blobs(_pool(strength_FHW, COARSE), squared_FHWC, ground_FHWC)
    return View(grid_FPC, _basis(32) @ coefficients, squared_FHWC, strength_FHW, residue_FP, blobs)


def _fit_ground(grid_FPC: Array) -> tuple[Array, Array]:
    """Coefficients [F, 10, 3] of a cubic in x and y for each frame, and the distance of each place to it.

    First a plane through most of the clip's middle picture, then closer fits to what agrees with it.
    """
    basis = _basis(32)
    middle = np.median(grid_FPC, axis=0)
    border = np.abs(basis[:, 1:3]).max(1) > 0.9
    fitted = np.median(middle[border], axis=0)
    for terms, scale in ((3, 0.5), (3, 0.3), (3, 0.2), (3, 0.12), (6, 0.1), (6, 0.07), (10, 0.05), (10, 0.05)):
        distance = np.linalg.norm(middle - fitted, axis=1) / _brightness(fitted)
        weight = (1 + 2 * border) / (1 + (distance / scale) ** 2) ** 2
        fitted = basis[:, :terms] @ _solve(basis[None, :, :terms], middle[None], weight[None])[0]
    fitted = np.repeat(fitted[None], len(grid_FPC), axis=0)
    for scale in (0.15, 0.07, 0.05, 0.05):
        distance = np.linalg.norm(grid_FPC - fitted, axis=2) / _brightness(fitted)
        coefficients = _solve(basis[None], grid_FPC, 1 / (1 + (distance / scale) ** 2) ** 2)
        fitted = basis @ coefficients
    distance = np.linalg.norm(grid_FPC - fitted, axis=2) / _brightness(fitted)
    return coefficients.astype(np.float32), distance


def _solve(basis: Array, target: Array, weight: Array) -> Array:
    """Weighted least squares, slightly drawn to small curvature."""
    weighted = basis.transpose(0, 2, 1) * weight[:, None]
    ridge = np.diag([1e-6] * 3 + [1e-3] * 3 + [1e-2] * 4)[: basis.shape[2], : basis.shape[2]]
    total = weight.sum(1)[:, None, None]
    return np.linalg.solve(weighted @ basis + ridge * total, weighted @ target)


POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))  # of x and y: all up to degree 3


@lru_cache(maxsize=8)
def _powers(side: int) -> Array:
    """1, x, x^2 and x^3 of each row or column, x from -1 to 1: [side, 4]."""
    return (((np.arange(side) + 0.5) / side * 2 - 1)[:, None] ** np.arange(4)).astype(np.float32)


@lru_cache(maxsize=8)
def _basis(side: int) -> Array:
    """The ten monomials at each place, [side * side, 10]."""
    powers = _powers(side)
    return np.stack([np.outer(powers[:, y], powers[:, x]).ravel() for x, y in POWERS], axis=1)


def _ground(coefficients: Array, side: int) -> Array:
    """The fitted background, [F, 3, side, side]: rows times coefficients times columns, which is far less work than `_basis`."""
    table = np.zeros((len(coefficients), 3, 4, 4), dtype=np.float32)
    for number, (x, y) in enumerate(POWERS):
        table[:, :, y, x] = coefficients[:, number]
    return _powers(side) @ table @ _powers(side).T


def _brightness(squared: Array) -> Array:
    return np.linalg.norm(squared, axis=-1) + 0.1


def _strength(squared_FCHW: Array, ground_FCHW: Array) -> Array:
    """Distance of each pixel to the nearest shade of its background, relative to the background's brightness."""
    power = np.einsum("fchw,fchw->fhw", ground_FCHW, ground_FCHW)
    shade = np.einsum("fchw,fchw->fhw", squared_FCHW, ground_FCHW) / np.maximum(power, 1e-6)
    np.clip(shade, *SHADE, out=shade)
    away = squared_FCHW - shade[:, None] * ground_FCHW
    return np.sqrt(np.einsum("fchw,fchw->fhw", away, away)) / (np.sqrt(power) + 0.1)


def _pool(values: Array, by: int) -> Array:
    """Means over blocks of `by` x `by` pixels of the last two axes."""
    parts = [values[..., row::by, column::by] for row in range(by) for column in range(by)]
    return sum(parts[1:], start=parts[0]) / np.float32(by * by)
