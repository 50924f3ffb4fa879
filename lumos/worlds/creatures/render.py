"""Scenes to pixels: skinned triangles, a z-buffer and a landscape in plain torch, batched, on any device.

`pack` turns scenes into small tensors, `render` those into clips. All clips of a chunk are drawn at once: bodies are posed,
their triangles become rows, and rows become samples, each kept by `amax` over (nearness, triangle) in one integer.
Colours are linear light until the last line. Samples are a grid of 2x2 per pixel; only what they show is shaded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from lumos.worlds.creatures.glb import POSES_PER_SECOND
from lumos.worlds.creatures.landscape import PLACES, TIMES, landscape
from lumos.worlds.creatures.library import Library
from lumos.worlds.creatures.scene import FOCAL, Scene
from lumos.worlds.creatures.subjects import ACTIONS

SAMPLES = 2  # per pixel and direction
NEAR = 0.05  # nothing nearer than this, in metres, is drawn
MOST_TRIANGLES = 6_000_000  # drawn at once on a card
MOST_CANDIDATES = 1 << 26  # samples put into the z-buffer at once


@dataclass(frozen=True)
class PackedScenes:
    """Scenes as tensors. B clips, N bodies in all of them."""

    whole_NI: Tensor  # clip, first vertex, vertices, first triangle, triangles, bones, first pose, poses, once
    body_NP: Tensor  # x, y, z, heading, speed, turn, phase, rate, scale
    view_BP: Tensor  # azimuth, elevation, distance, look x, y, z, circling, approach, follow, sun's azimuth
    looks_B2: Tensor  # place and time of day, by number

    def __len__(self) -> int:
        return len(self.view_BP)

    def to(self, device: torch.device | str) -> "PackedScenes":
        return PackedScenes(*(getattr(self, field.name).to(device) for field in fields(self)))


def pack(scenes: Sequence[Scene], library: Library) -> PackedScenes:
    """The tensors that `render` needs, on the CPU. ValueError if a scene has what the library has not."""
    whole, bodies, views, looks = [], [], [], []
    for clip, scene in enumerate(scenes):
        for item in scene.creatures + scene.scenery:
            body = library.bodies.get(item.file)
            if body is None or item.action not in body.gaits:
                raise ValueError(f"the library cannot show {item.file!r} do {item.action!r}; draw scenes with this library")
            gait = body.gaits[item.action]
            once = int(ACTIONS[item.action].once)
            place = (body.first_vertex, body.vertices, body.first_triangle, body.triangles, body.bones)
            whole.append((clip, *place, gait.first_pose, gait.poses, once))
            motion = (item.speed, item.turn, item.phase, item.rate, item.scale)
            bodies.append((item.x, item.y, item.z, item.heading, *motion))
        camera = scene.camera
        look = (camera.look_x, camera.look_y, camera.look_z)
        angles = (camera.azimuth, camera.elevation, camera.distance)
        views.append((*angles, *look, camera.circling, camera.approach, float(camera.follow), scene.sun))
        looks.append((list(PLACES).index(scene.place), list(TIMES).index(scene.time)))
    return PackedScenes(
        torch.tensor(whole),
        torch.tensor(bodies, dtype=torch.float32),
        torch.tensor(views, dtype=torch.float32),
        torch.tensor(looks),
    )


def render(packed: PackedScenes, library: Library, frames: int, size: int = 256, fps: float = 12.0) -> Tensor:
    """Clips of packed scenes, on the library's device: pixels_BCFHW in [-1, 1], RGB; frame n shows the scene at n / fps seconds.

    packed: on the CPU (the sizes of what is drawn are read from it).
    """
    if min(frames, size) < 1 or not fps > 0:
        raise ValueError(f"frames, size and fps must be positive, got {frames}, {size}, {fps}")
    device = library.surfaces.vertices_V3.device
    seconds_F = torch.arange(frames, device=device) / fps
    most = MOST_TRIANGLES if device.type == "cuda" else MOST_TRIANGLES // 64
    per_clip = torch.zeros(len(packed), dtype=torch.int64).index_add_(0, packed.whole_NI[:, 0], packed.whole_NI[:, 4]) * frames
    chunk_B = (per_clip + frames * size * size // 8).cumsum(0) // most  # pictures cost memory too
    clips = [
        _render(_part(packed, torch.nonzero(chunk_B == chunk)[:, 0]), library, seconds_F, size) for chunk in chunk_B.unique()
    ]
    return torch.cat(clips)


def _part(packed: PackedScenes, clips: Tensor) -> PackedScenes:
    """Neighbouring clips alone."""
    first, last = int(clips[0]), int(clips[-1])
    held = (packed.whole_NI[:, 0] >= first) & (packed.whole_NI[:, 0] <= last)
    whole_NI = packed.whole_NI[held].clone()
    whole_NI[:, 0] -= first
    return PackedScenes(whole_NI, packed.body_NP[held], packed.view_BP[first : last + 1], packed.looks_B2[first : last + 1])


def _render(packed: PackedScenes, library: Library, seconds_F: Tensor, size: int) -> Tensor:
    device, frames, clips = seconds_F.device, len(seconds_F), len(packed)
    counts = packed.whole_NI[:, 1:6].clone()
    on_device = packed.to(device)
    camera = cameras(on_device, seconds_F)
    light = landscape(on_device.looks_B2, on_device.view_BP[:, 9])
    points_MF3, normals_MF3, clip_M = _posed(on_device, library, seconds_F, int(counts[:, 1].sum()), int(counts[:, 4].sum()))
    number_T, vertex_T = _triangles(on_device, int(counts[:, 3].sum()))
    corners_T3 = library.surfaces.triangles_T3[number_T] + vertex_T[:, None]
    two_sided_T = library.surfaces.two_sided_T[number_T]

    # Bodies: what each sample shows, then its light.
    clip_T = clip_M[corners_T3[:, 0]]
    eye, axes = camera.eye_BF3[clip_M], camera.axes_BF33[clip_M]
    seen_MF3 = project(points_MF3, eye, axes, size * SAMPLES)
    buffer = _rasterize(seen_MF3, corners_T3, clip_T, two_sided_T, clips, size * SAMPLES)
    hit = buffer.nonzero()[:, 0]
    drawn = buffer[hit] & 0xFFFFFFFF
    triangle, frame = drawn // frames, drawn % frames
    corner_H3 = corners_T3[triangle]
    share_H3 = _shares(seen_MF3[corner_H3, frame[:, None]], hit, size * SAMPLES)
    paint_H3 = (library.surfaces.colours_T33[number_T[triangle]] * share_H3[..., None]).sum(1)
    normal_H3 = functional.normalize((normals_MF3[corner_H3, frame[:, None]] * share_H3[..., None]).sum(1), dim=-1)
    point_H3 = (points_MF3[corner_H3, frame[:, None]] * share_H3[..., None]).sum(1)
    clip_H = clip_T[triangle]
    lit_H3 = light.on_things(clip_H, paint_H3, normal_H3, camera.eye_BF3[clip_H, frame] - point_H3, camera.unit_B)
    pixel_H = hit // (size * SAMPLES) // SAMPLES * size + hit % (size * SAMPLES) // SAMPLES
    over = torch.zeros(clips * frames * size * size, 4, device=device)
    over.index_add_(0, pixel_H, functional.pad(lit_H3, (0, 1), value=1.0) / SAMPLES**2)

    # Shadows: bodies flattened along the light onto the ground.
    way_M13 = light.sun_B3[clip_M][:, None]
    flat_MF3 = points_MF3 - way_M13 * (points_MF3[..., 1:2] / way_M13[..., 1:2])
    shade_MF3 = project(flat_MF3, eye, axes, size)
    shadow = (_rasterize(shade_MF3, corners_T3, clip_T, two_sided_T, clips, size) > 0).float()
    shadow = shadow.view(-1, 1, size, size)
    for _ in range(2):
        shadow = functional.avg_pool2d(functional.pad(shadow, (1, 1, 1, 1), mode="replicate"), 3, 1)

    ground = light.behind(camera, seconds_F, FOCAL, shadow.view(clips, frames, size, size))
    over = over.view(clips, frames, size, size, 4)
    linear = over[..., :3] + ground * (1 - over[..., 3:])
    linear = torch.where(linear > 0.6, 0.6 + 0.4 * torch.tanh((linear - 0.6) / 0.4), linear)  # snow keeps its shades
    return (linear.clamp(0, 1) ** (1 / 2.2) * 2 - 1).permute(0, 4, 1, 2, 3).contiguous()


@dataclass(frozen=True)
class Cameras:
    """Where each clip's camera is in each frame, and its axes: right, up, and back (away from what it looks at)."""

    eye_BF3: Tensor
    axes_BF33: Tensor
    unit_B: Tensor  # the distance at first: what textures and haze are measured by


def moved(body_NP: Tensor, seconds_F: Tensor) -> tuple[Tensor, Tensor]:
    """How far each body has gone along x and z (N, F): straight on, or along an arc."""
    speed, turn = body_NP[:, 4, None], body_NP[:, 5, None] * seconds_F
    way = body_NP[:, 3, None] + turn / 2
    gone = speed * seconds_F * torch.sinc(turn / (2 * math.pi))
    return gone * torch.sin(way), gone * torch.cos(way)


def cameras(packed: PackedScenes, seconds_F: Tensor) -> Cameras:
    """The cameras at these times, on the scenes' device."""
    view = packed.view_BP[:, :, None]
    first_B = torch.searchsorted(packed.whole_NI[:, 0].contiguous(), torch.arange(len(packed), device=packed.view_BP.device))
    gone_x, gone_z = moved(packed.body_NP[first_B], seconds_F)
    look = torch.stack([view[:, 3] + view[:, 8] * gone_x, view[:, 4] + 0 * gone_x, view[:, 5] + view[:, 8] * gone_z], -1)
    azimuth, elevation = view[:, 0] + view[:, 6] * seconds_F, view[:, 1] + 0 * seconds_F
    distance = view[:, 2] * (1 - view[:, 7] * seconds_F)
    level, sin, cos = elevation.cos(), azimuth.sin(), azimuth.cos()
    back = torch.stack([level * sin, elevation.sin(), level * cos], -1)
    right = torch.stack([cos, torch.zeros_like(cos), -sin], -1)
    up = torch.linalg.cross(back, right)
    return Cameras(look + back * distance[..., None], torch.stack([right, up, back], -2), packed.view_BP[:, 2])


def project(points: Tensor, eye: Tensor, axes: Tensor, size: int) -> Tensor:
    """World places to the picture: x to the right, y down, in pixels, and 1 / depth (-1: not in front of the camera)."""
    right, up, back = ((points - eye)[..., None, :] * axes).sum(-1).unbind(-1)
    near = torch.where(back < -NEAR, -1 / back, -1.0)
    return torch.stack([size / 2 * (1 + FOCAL * right * near), size / 2 * (1 - FOCAL * up * near), near], -1)


def _posed(packed: PackedScenes, library: Library, seconds_F: Tensor, vertices: int, bones: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every body's vertices in the world and their normals, M, F, 3, and the clip of each."""
    whole, body = packed.whole_NI, packed.body_NP
    steps_N1 = (whole[:, 7, None] - 1).float()
    at_NF = (body[:, 6, None] + body[:, 7, None] * seconds_F) * POSES_PER_SECOND
    at_NF = torch.where(whole[:, 8, None] > 0, at_NF.clamp(min=0).minimum(steps_N1), at_NF % steps_N1.clamp(min=1e-6))
    pose_NF = at_NF.floor().minimum((steps_N1 - 1).clamp(min=0))
    share_NF = (at_NF - pose_NF).clamp(0, 1)
    next_NF = (pose_NF + 1).minimum(steps_N1).long()

    body_J, bone_J, first_N = _spread(whole[:, 5], bones)
    row_JF = whole[body_J, 6, None] + bone_J[:, None]
    stride_J1 = whole[body_J, 5, None]
    matrix_JF34 = torch.lerp(
        library.poses_R34[row_JF + pose_NF.long()[body_J] * stride_J1],
        library.poses_R34[row_JF + next_NF[body_J] * stride_J1],
        share_NF[body_J][..., None, None],
    )
    turned_NF = body[:, 3, None] + body[:, 5, None] * seconds_F
    sin, cos = (turned_NF.sin() * body[:, 8, None])[body_J][..., None], (turned_NF.cos() * body[:, 8, None])[body_J][..., None]
    x, y, z = matrix_JF34.unbind(2)
    gone_x, gone_z = moved(body, seconds_F)
    start = torch.stack([body[:, 0, None] + gone_x, body[:, 1, None] + 0 * gone_x, body[:, 2, None] + gone_z], -1)
    matrix_JF34 = torch.stack([cos * x + sin * z, y * body[body_J, 8, None, None], cos * z - sin * x], 2)
    matrix_JF34[..., 3] += start[body_J]

    body_M, vertex_M, _ = _spread(whole[:, 2], vertices)
    vertex_M = vertex_M + whole[body_M, 1]
    bones_M4 = library.surfaces.bones_V4[vertex_M] + first_N[body_M, None]
    skin_MF34 = torch.zeros(vertices, len(seconds_F), 3, 4, device=body.device)
    for influence in range(4):
        skin_MF34.addcmul_(
            matrix_JF34[bones_M4[:, influence]], library.surfaces.weights_V4[vertex_M, influence, None, None, None]
        )
    turn_MF33 = skin_MF34[..., :3]
    points_MF3 = (turn_MF33 * library.surfaces.vertices_V3[vertex_M, None, None]).sum(-1) + skin_MF34[..., 3]
    return points_MF3, (turn_MF33 * library.surfaces.normals_V3[vertex_M, None, None]).sum(-1), whole[body_M, 0]


def _spread(counts_N: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """counts_N items one after another: the owner of each, its number within its owner, and each owner's first."""
    first_N = counts_N.cumsum(0) - counts_N
    owner = torch.repeat_interleave(counts_N, output_size=total)
    return owner, torch.arange(total, device=counts_N.device) - first_N[owner], first_N


def _triangles(packed: PackedScenes, triangles: int) -> tuple[Tensor, Tensor]:
    """Each body's triangles: their numbers in the library, and the body's first vertex in `_posed`."""
    whole = packed.whole_NI
    body_T, number_T, _ = _spread(whole[:, 4], triangles)
    number_T = number_T + whole[body_T, 3]
    return number_T, (whole[:, 2].cumsum(0) - whole[:, 2])[body_T]


def _rasterize(seen_MF3: Tensor, corners_T3: Tensor, clip_T: Tensor, two_sided_T: Tensor, clips: int, size: int) -> Tensor:
    """The z-buffer, flat: in each sample the greatest 1 / depth (its bits, << 32) and triangle * frames + frame; 0: none."""
    frames = seen_MF3.shape[1]
    x_TF3, y_TF3, near_TF3 = seen_MF3[corners_T3].movedim(1, -1).unbind(2)
    area_TF = _cross(x_TF3, y_TF3)
    # Fronts turn against the clock; y points down here.
    shown = (near_TF3 > 0).all(-1) & ((area_TF < -1e-4) | (two_sided_T[:, None] & (area_TF > 1e-4)))
    shown &= (x_TF3.amax(-1) > 0) & (x_TF3.amin(-1) < size)
    top_TF = (y_TF3.amin(-1) - 0.5).ceil().clamp(0, size)
    rows_TF = ((y_TF3.amax(-1) - 0.5).floor().clamp(-1, size - 1) - top_TF + 1).clamp(min=0) * shown
    live_K = rows_TF.view(-1).nonzero()[:, 0]
    x_K3, y_K3, near_K3 = (values.reshape(-1, 3)[live_K] for values in (x_TF3, y_TF3, near_TF3))
    area_K, rows_K = area_TF.view(-1)[live_K], rows_TF.view(-1)[live_K].long()

    # Rows: between the edges on the left and those on the right.
    of_R, step_R, _ = _spread(rows_K, int(rows_K.sum()))
    y_R = top_TF.view(-1)[live_K][of_R] + step_R
    ahead_y_K3 = y_K3.roll(-1, 1) - y_K3
    slope_K3 = (x_K3.roll(-1, 1) - x_K3) / torch.where(ahead_y_K3 == 0, 1, ahead_y_K3)
    edge_R3 = (x_K3 + slope_K3 * (0.5 - y_K3))[of_R] + slope_K3[of_R] * y_R[:, None]
    side_R3 = (ahead_y_K3 * area_K[:, None].sign())[of_R]
    start_R = (torch.where(side_R3 < 0, edge_R3, -1.0).amax(1) - 0.501).ceil().clamp(0, size)
    stop_R = (torch.where(side_R3 > 0, edge_R3, size + 1.0).amin(1) - 0.499).floor().clamp(-1, size - 1)
    count_R = (stop_R - start_R + 1).clamp(min=0).long()

    # Samples: nearness is a plane in the picture.
    right_K, down_K = _cross(near_K3, y_K3) / area_K, _cross(x_K3, near_K3) / area_K
    base_K = near_K3[:, 0] + right_K * (0.5 - x_K3[:, 0]) + down_K * (0.5 - y_K3[:, 0])
    near_R = base_K[of_R] + down_K[of_R] * y_R
    triangle_R, frame_R = live_K[of_R] // frames, live_K[of_R] % frames
    row_R = ((clip_T[triangle_R] * frames + frame_R) * size + y_R.long()) * size
    buffer = torch.zeros(clips * frames * size * size, dtype=torch.int64, device=seen_MF3.device)
    upto_R = count_R.cumsum(0)
    for part in _slices(upto_R):
        of_P, step_P, _ = _spread(count_R[part], int(count_R[part].sum()))
        x_P = start_R[part][of_P] + step_P
        near_P = (near_R[part][of_P] + right_K[of_R[part]][of_P] * x_P).clamp(min=1e-9)
        packed_P = (near_P.view(torch.int32).long() << 32) | live_K[of_R[part]][of_P]
        buffer.scatter_reduce_(0, row_R[part][of_P] + x_P.long(), packed_P, "amax")
    return buffer


def _cross(x_3: Tensor, y_3: Tensor) -> Tensor:
    """(one to two) x (one to three), of corners whose two coordinates are given."""
    x, y = x_3 - x_3[..., :1], y_3 - y_3[..., :1]
    return x[..., 1] * y[..., 2] - x[..., 2] * y[..., 1]


def _slices(upto_R: Tensor) -> list[slice]:
    """Neighbouring rows of at most about MOST_CANDIDATES samples."""
    total = int(upto_R[-1]) if len(upto_R) else 0
    bounds = torch.tensor(range(MOST_CANDIDATES, total, MOST_CANDIDATES), dtype=torch.int64, device=upto_R.device)
    cuts = [0, *torch.searchsorted(upto_R, bounds).tolist(), len(upto_R)]
    return [slice(first, last) for first, last in pairwise(cuts) if last > first]


def _shares(seen_H33: Tensor, sample_H: Tensor, size: int) -> Tensor:
    """How much each corner of its triangle counts at a sample, true to perspective."""
    at = torch.stack([sample_H % size, sample_H // size % size], -1)[:, None] + 0.5
    away = seen_H33[..., :2] - at
    ahead, behind = away.roll(-1, 1), away.roll(-2, 1)
    areas = ahead[..., 0] * behind[..., 1] - ahead[..., 1] * behind[..., 0]
    shares = (areas / areas.sum(1, keepdim=True)).clamp(0, 1) * seen_H33[..., 2]
    return shares / shares.sum(1, keepdim=True)
