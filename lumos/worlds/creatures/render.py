"""Scenes to pixels: skinned triangles, a z-buffer and a landscape in plain torch, batched, on any device.

`pack` turns scenes into small tensors, `render` those into clips. All clips of a chunk are drawn at once: bodies are posed,
their triangles become rows, and rows become samples, each kept by `amax` over (nearness, triangle) in one integer.
Colours are linear light until the last line. Samples are a grid of 2x2 per pixel; only what they show is shaded.
"""

from collections import namedtuple
from collections.abc import Sequence
from dataclasses import astuple, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lumos.worlds.creatures.glb import POSES_PER_SECOND
from lumos.worlds.creatures.landscape import LOOKS, Cameras, landscape
from lumos.worlds.creatures.library import Library
from lumos.worlds.creatures.scene import FOCAL, Camera, Item, Scene, way
from lumos.worlds.creatures.subjects import ACTIONS

SAMPLES = 2  # per pixel and direction
NEAR = 0.05  # nothing nearer than this, in metres, is drawn
MOST_TRIANGLES = 6_000_000  # drawn at once on a card
MOST_CANDIDATES = 1 << 26  # samples put into the z-buffer at once
# Where each body's parts lie in the library: numbers, or tensors of N of them. once: 1 for what holds its last pose.
Parts = namedtuple("Parts", "clip first_vertex vertices first_triangle triangles bones first_pose poses once")


class PackedScenes(NamedTuple):
    """Scenes as tensors. B clips, N bodies in all of them."""

    parts_NI: Tensor  # as in Parts
    items_NP: Tensor  # numbers of scene.py's Item
    cameras_BP: Tensor  # those of Camera, and the sun's azimuth
    looks_B: Tensor  # place and time of day, by number in LOOKS


def pack(scenes: Sequence[Scene], library: Library) -> PackedScenes:
    """The tensors that `render` needs, on the CPU. ValueError if a scene has what the library has not."""
    parts, items, views, looks = [], [], [], []
    for clip, scene in enumerate(scenes):
        for item in scene.creatures + scene.scenery:
            body = library.bodies.get(item.file)
            if body is None or item.action not in body.gaits:
                raise ValueError(f"the library cannot show {item.file!r} do {item.action!r}; draw scenes with this library")
            gait, place = body.gaits[item.action], (body.first_vertex, body.vertices, body.first_triangle, body.triangles)
            parts.append(Parts(clip, *place, body.bones, gait.first_pose, gait.poses, int(ACTIONS[item.action].once)))
            items.append(astuple(item)[2:])
        views.append((*astuple(scene.camera), scene.sun))
        looks.append(list(LOOKS).index((scene.place, scene.time)))
    items_NP, cameras_BP = (torch.tensor(rows, dtype=torch.float32) for rows in (items, views))
    return PackedScenes(torch.tensor(parts), items_NP, cameras_BP, torch.tensor(looks))


def render(packed: PackedScenes, library: Library, frames: int, size: int = 256, fps: float = 12.0) -> Tensor:
    """Clips of packed scenes, on the library's device: pixels_BCFHW in [-1, 1], RGB; frame n shows the scene at n / fps seconds.

    packed: on the CPU (the sizes of what is drawn are read from it).
    """
    if min(frames, size) < 1 or not fps > 0:
        raise ValueError(f"frames, size and fps must be positive, got {frames}, {size}, {fps}")
    device = library.surfaces.vertices_V3.device
    seconds_F = torch.arange(frames, device=device) / fps
    most = MOST_TRIANGLES if device.type == "cuda" else MOST_TRIANGLES // 64
    parts = Parts(*packed.parts_NI.unbind(1))
    per_clip = torch.zeros(len(packed.looks_B), dtype=torch.int64).index_add_(0, parts.clip, parts.triangles) * frames
    chunk_B = (per_clip + frames * size * size // 8).cumsum(0) // most  # pictures cost memory too
    clips = []
    for chunk in chunk_B.unique():
        held_N, held_B = chunk_B[parts.clip] == chunk, chunk_B == chunk
        parts_NI = packed.parts_NI[held_N]
        parts_NI[:, 0] -= int(parts_NI[0, 0])
        part = PackedScenes(parts_NI, packed.items_NP[held_N], packed.cameras_BP[held_B], packed.looks_B[held_B])
        clips.append(_render(part, library, seconds_F, size))
    return torch.cat(clips)


def _render(packed: PackedScenes, library: Library, seconds_F: Tensor, size: int) -> Tensor:
    device, frames, clips = seconds_F.device, len(seconds_F), len(packed.looks_B)
    totals = Parts(*packed.parts_NI.sum(0).tolist())
    packed = PackedScenes(*(values.to(device) for values in packed))
    parts, items = Parts(*packed.parts_NI.unbind(1)), Item("", "", *packed.items_NP[:, :, None].unbind(1))
    camera = cameras(packed, seconds_F)
    light = landscape(packed.looks_B, packed.cameras_BP[:, -1])
    points_MF3, normals_MF3, clip_M = _posed(parts, items, library, seconds_F, totals.vertices, totals.bones)
    body_T, number_T, _ = _spread(parts.triangles, totals.triangles)
    number_T = number_T + parts.first_triangle[body_T]
    corners_T3 = library.surfaces.triangles_T3[number_T] + (parts.vertices.cumsum(0) - parts.vertices)[body_T, None]
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
    way_M13 = light.way_B3[clip_M][:, None]
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


def cameras(packed: PackedScenes, seconds_F: Tensor) -> Cameras:
    """The cameras at these times, on the scenes' device."""
    camera = Camera(*packed.cameras_BP[:, :-1, None].unbind(1))
    clip_N, clips = packed.parts_NI[:, 0].contiguous(), torch.arange(len(packed.looks_B), device=seconds_F.device)
    first = Item("", "", *packed.items_NP[torch.searchsorted(clip_N, clips), :, None].unbind(1))
    gone_x, _, gone_z = way(replace(first, x=0.0, z=0.0), seconds_F, torch)
    look = torch.broadcast_tensors(camera.follow * gone_x, camera.look_y, camera.follow * gone_z)
    azimuth, distance = camera.azimuth + camera.circling * seconds_F, camera.distance * (1 - camera.approach * seconds_F)
    sin, cos, rise, level = azimuth.sin(), azimuth.cos(), camera.elevation.sin(), camera.elevation.cos()
    back = torch.stack([level * sin, rise.expand_as(sin), level * cos], -1)
    right = torch.stack([cos, torch.zeros_like(cos), -sin], -1)
    axes = torch.stack([right, torch.linalg.cross(back, right), back], -2)
    return Cameras(torch.stack(look, -1) + back * distance[..., None], axes, camera.distance[:, 0])


def project(points: Tensor, eye: Tensor, axes: Tensor, size: int) -> Tensor:
    """World places to the picture: x to the right, y down, in pixels, and 1 / depth (-1: not in front of the camera)."""
    right, up, back = ((points - eye)[..., None, :] * axes).sum(-1).unbind(-1)
    near = torch.where(back < -NEAR, -1 / back, -1.0)
    return torch.stack([size / 2 * (1 + FOCAL * right * near), size / 2 * (1 - FOCAL * up * near), near], -1)


def _posed(
    parts: Parts, items: Item, library: Library, seconds_F: Tensor, vertices: int, bones: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Every body's vertices in the world and their normals, M, F, 3, and the clip of each."""
    last_N1 = (parts.poses[:, None] - 1).float()
    at_NF = (items.phase + items.rate * seconds_F) * POSES_PER_SECOND
    at_NF = torch.where(parts.once[:, None] > 0, at_NF.clamp(min=0).minimum(last_N1), at_NF % last_N1.clamp(min=1e-6))
    pose_NF = at_NF.floor().minimum((last_N1 - 1).clamp(min=0))
    share_NF = (at_NF - pose_NF).clamp(0, 1)
    next_NF = (pose_NF + 1).minimum(last_N1)

    body_J, bone_J, first_N = _spread(parts.bones, bones)
    row_J1, stride_J1 = (parts.first_pose[body_J] + bone_J)[:, None], parts.bones[body_J, None]
    before, after = (library.poses_R34[row_J1 + pose.long()[body_J] * stride_J1] for pose in (pose_NF, next_NF))
    x, y, z = torch.lerp(before, after, share_NF[body_J][..., None, None]).unbind(2)
    turned_NF = items.heading + items.turn * seconds_F
    sin, cos = ((turned * items.scale)[body_J][..., None] for turned in (turned_NF.sin(), turned_NF.cos()))
    matrix_JF34 = torch.stack([cos * x + sin * z, y * items.scale[body_J][..., None], cos * z - sin * x], 2)
    matrix_JF34[..., 3] += torch.stack(torch.broadcast_tensors(*way(items, seconds_F, torch)), -1)[body_J]

    body_M, vertex_M, _ = _spread(parts.vertices, vertices)
    vertex_M = vertex_M + parts.first_vertex[body_M]
    surfaces = library.surfaces
    bones_M4 = surfaces.bones_V4[vertex_M] + first_N[body_M, None]
    skin_MF34 = torch.zeros(vertices, len(seconds_F), 3, 4, device=seconds_F.device)
    for influence in range(4):
        skin_MF34.addcmul_(matrix_JF34[bones_M4[:, influence]], surfaces.weights_V4[vertex_M, influence, None, None, None])
    turn_MF33 = skin_MF34[..., :3]
    points_MF3 = (turn_MF33 * surfaces.vertices_V3[vertex_M, None, None]).sum(-1) + skin_MF34[..., 3]
    return points_MF3, (turn_MF33 * surfaces.normals_V3[vertex_M, None, None]).sum(-1), parts.clip[body_M]


def _spread(counts_N: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """counts_N items one after another: the owner of each, its number within its owner, and each owner's first."""
    first_N = counts_N.cumsum(0) - counts_N
    owner = torch.repeat_interleave(counts_N, output_size=total)
    return owner, torch.arange(total, device=counts_N.device) - first_N[owner], first_N


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
