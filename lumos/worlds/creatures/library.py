"""All models at once: a folder or zip of GLB files becomes one set of flat tensors, and what scenes must know of each body.

Models are made alike here: they look along z, stand on the ground (y = 0), and are as long in metres as subjects.py says.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lumos.worlds.creatures.glb import MOST_BYTES, POSES_PER_SECOND, Floats, Mesh, Surface, read_glb
from lumos.worlds.creatures.subjects import ACTIONS, GLIDING, SUBJECTS, Subject, actions, is_hidden


class Gait(NamedTuple):
    """One action of a body: rows of `poses` and the speed at which its feet do not slide."""

    first_pose: int
    poses: int
    seconds: float
    speed: float  # metres per second
    reach: float  # how far a part is from the middle, over the ground, at most
    top: float  # the highest that a part is


@dataclass(frozen=True)
class Body:
    """Where a model's parts lie in the library, its size in metres, and what it can do."""

    first_vertex: int
    vertices: int
    first_triangle: int
    triangles: int
    bones: int
    wide: float
    high: float
    long: float
    gaits: dict[str, Gait]  # by action

    @property
    def size(self) -> float:
        return max(self.wide, self.high, self.long)


@dataclass(frozen=True)
class Library:
    """All models on one device, with R rows of bones' matrices."""

    surfaces: Surface  # the models' one after another; bones and vertices are counted within each
    poses_R34: Tensor  # per model, per animation, per pose, per bone
    bodies: dict[str, Body]  # by file, as in subjects.py

    def to(self, device: torch.device | str) -> "Library":
        surfaces = Surface(*(values.to(device) for values in self.surfaces))
        return replace(self, surfaces=surfaces, poses_R34=self.poses_R34.to(device))


def load_library(source: Path) -> Library:
    """The library of a folder or zip with the files that subjects.py names; those that are not there are left out.

    ValueError for a file that cannot be read, naming it, and if there is none.
    """
    bodies: dict[str, Body] = {}
    surfaces: list[Surface] = []
    rows: list[Floats] = []
    vertex = triangle = row = 0
    for name, content in _files(source):
        try:
            mesh = read_glb(content, lambda animation: bool(actions(animation)), is_hidden)
        except ValueError as error:
            raise ValueError(f"{source} {name}.glb: {error}") from None
        bodies[name], poses = _body(mesh, SUBJECTS[name], vertex, triangle, row)
        if not bodies[name].gaits:
            raise ValueError(f"{source} {name}.glb: none of its animations is known; see subjects.py")
        surfaces.append(mesh.surface)
        rows.append(poses)
        vertex, triangle, row = vertex + bodies[name].vertices, triangle + bodies[name].triangles, row + len(poses)
    if not bodies:
        raise ValueError(f"{source} has none of the creatures' GLB files; examples/creatures.md says where they are had")
    whole = Surface(*(torch.from_numpy(np.concatenate(column)) for column in zip(*surfaces, strict=True)))
    return Library(whole, torch.from_numpy(np.concatenate(rows)), bodies)


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name without ".glb" and content of each file that belongs to a subject."""
    try:
        root = source if source.is_dir() else zipfile.Path(source)
        for name in SUBJECTS:
            path = root / f"{name}.glb"
            if path.is_file():
                with path.open("rb") as file:
                    yield name, file.read(MOST_BYTES + 1)  # a zip may hold much more than its size; glb.py refuses the rest
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"creatures come from a folder or a zip of GLB files, got {source} ({error})") from None


def _body(mesh: Mesh, subject: Subject, vertex: int, triangle: int, row: int) -> tuple[Body, Floats]:
    """The body and its pose rows, scaled to metres, and moved so that it stands on the ground."""
    surface = mesh.surface
    still = ("stand",) if subject.kind in ("plant", "cover", "vehicle") else ()  # at rest, all others stretch out their arms
    shown = [(action, poses) for name, poses in mesh.poses.items() for action in (actions(name) if name else still)]
    shown = [(action, poses) for action, poses in shown if not (subject.kind == "fish" and action == "fall")]
    calm = dict(reversed(shown)).get("stand", shown[0][1]) if shown else mesh.poses[""]
    points = _posed(surface, calm[0])
    low, high = points.min(0), points.max(0)
    scale = subject.metres / float((high - low).max())
    shift = np.array([-(low[0] + high[0]) / 2, -low[1], -(low[2] + high[2]) / 2], np.float32)
    feet = points[:, 1] < low[1] + 0.06 * (high - low)[1]
    gaits: dict[str, Gait] = {}
    rows: list[Floats] = []
    for action, poses in shown:
        if action in gaits:
            continue
        moved = poses.copy()
        moved[..., 3] += shift
        moved *= scale
        if action == "flop":  # high over its swimming place
            moved[..., 1, 3] -= min(_posed(surface, pose)[:, 1].min() for pose in moved)
        pace = ACTIONS[action].pace
        pace = -GLIDING[subject.name] if pace > 0 and subject.name in GLIDING else pace
        speed = _speed(surface, feet, moved) if pace > 0 else -pace * subject.metres
        extent = np.stack([_posed(surface, pose, slice(None, None, 5)) for pose in moved[:: max(1, len(moved) // 12)]])
        lift = extent[..., 1].min(1).max() / (high - low)[1] / scale
        reach, top = float(np.hypot(extent[..., 0], extent[..., 2]).max()), float(extent[..., 1].max())
        # Some jumps only start, some falls lead out of the picture.
        if (action in ("jump", "leap") and lift < 0.1) or (ACTIONS[action].once and reach > 1.1 * subject.metres):
            continue
        gaits[action] = Gait(row, len(poses), (len(poses) - 1) / POSES_PER_SECOND, speed, reach, top)
        rows.append(moved.reshape(-1, 3, 4))
        row += len(rows[-1])
    wide, tall, long = (float(extent) for extent in (high - low) * scale)
    counts = vertex, len(surface.vertices_V3), triangle, len(surface.triangles_T3), mesh.poses[""].shape[1]
    return Body(*counts, wide, tall, long, gaits), np.concatenate(rows or [mesh.poses[""][0]])


def _posed(surface: Surface, pose_J34: Floats, some: Any = slice(None)) -> Floats:
    """The vertices, or some of them, in one pose."""
    matrices = (pose_J34[surface.bones_V4[some]] * surface.weights_V4[some][:, :, None, None]).sum(1)
    return np.asarray((matrices[:, :, :3] @ surface.vertices_V3[some][:, :, None])[:, :, 0] + matrices[:, :, 3])


def _speed(surface: Surface, feet: Any, poses: Floats) -> float:
    """How fast the ground passes under the feet, in metres per second: the speed at which they go backwards."""
    points = np.stack([_posed(surface, pose, feet) for pose in poses])
    floor = np.median(points[..., 1].min(1))
    touching = points[:-1, :, 1] < floor + 0.1 * np.ptp(points[..., 1])
    back = (points[:-1, :, 2] - points[1:, :, 2]) * POSES_PER_SECOND
    return float(np.median(back[touching & (back > 0.15 * back.max())]))
