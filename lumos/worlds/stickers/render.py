"""Scenes of stickers to pixels, batched, on the device that holds the stickers' pictures.

`pack` turns scenes into two small tensors (cheap, for worker processes); `render` looks every pixel up in the pictures of its
stickers, made smaller first where they are drawn small, so that nothing flickers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from lumos.worlds.shapes.motion import Law, law, state
from lumos.worlds.shapes.render import MOST_THINGS, SLOPES, PackedScenes
from lumos.worlds.stickers.scene import GROUNDS, Scene

SMALLER = 4  # sizes in which pictures are kept: each half as large as the one before
_LAW = len(Law())


class Pictures(NamedTuple):
    """The stickers' frames on a device, in uint8, colours already multiplied by their opacity."""

    frames: Tensor  # [K, 4, S, S] of all stickers, one after another
    first_N: Tensor  # number of a sticker's first frame
    count_N: Tensor  # how many it has; they repeat
    fps: float

    def to(self, device: torch.device) -> "Pictures":
        return Pictures(self.frames.to(device), self.first_N.to(device), self.count_N.to(device), self.fps)


def pack(scenes: Sequence[Scene]) -> PackedScenes:
    """The tensors that `render` needs, on the CPU. Of each sticker: number, radius, mirrored, start, x, y, law."""
    unseen = [0.0] * (6 + _LAW)
    objects, grounds = [], []
    for scene in scenes:
        for each in scene.things:
            moved = law(each.motion, each.speed, each.reach, each.phase)
            objects.append([each.sticker, each.radius, each.mirrored, each.start, each.x, each.y, *moved])
        objects += [unseen] * (MOST_THINGS - len(scene.things))
        ground = scene.ground
        grounds.append([*GROUNDS[ground.colour], *GROUNDS[ground.other or ground.colour], *SLOPES[ground.gradient]])
    objects_BNP = torch.tensor(objects, dtype=torch.float32).view(len(scenes), MOST_THINGS, len(unseen))
    return PackedScenes(objects_BNP, torch.tensor(grounds, dtype=torch.float32))


@torch.no_grad()
def render(packed: PackedScenes, pictures: Pictures, frames: int, size: int = 256, fps: float = 12.0) -> Tensor:
    """Clips of packed scenes, on their device: pixels_BCFHW in [-1, 1], RGB."""
    device = packed.objects_BNP.device
    seconds_F = torch.arange(frames, device=device) / fps
    at = (torch.arange(size, device=device) + 0.5) / size
    one, other, across, down = packed.background_BP[..., None, None].split([3, 3, 1, 1], dim=1)
    share_BHW = across[:, 0] * at[None, :] + down[:, 0] * at[:, None]
    ground_BCHW = (one + (other - one) * share_BHW[:, None]) / 255
    clips_BFCHW = ground_BCHW[:, None].repeat(1, frames, 1, 1, 1)
    for number in range(MOST_THINGS):
        seen_B = packed.objects_BNP[:, number, 1] > 0
        if bool(seen_B.any()):
            clips_BFCHW[seen_B] = _over(clips_BFCHW[seen_B], packed.objects_BNP[seen_B, number], pictures, seconds_F, size)
    return (clips_BFCHW * 2 - 1).clamp(-1, 1).transpose(1, 2)


def _over(clips_BFCHW: Tensor, objects_BP: Tensor, pictures: Pictures, seconds_F: Tensor, size: int) -> Tensor:
    """One sticker drawn over every clip."""
    sticker, radius, mirrored, start, x, y, *rest = objects_BP[..., None].unbind(1)  # each [B, 1]
    moved = state(Law(*rest), x, y, seconds_F, torch)  # type: ignore[arg-type] # tensors in place of numbers
    count = pictures.count_N[sticker.long()]
    frame_BF = pictures.first_N[sticker.long()] + ((seconds_F + start) * pictures.fps + 1e-4).long() % count
    half_BF = radius * moved.scale
    at = (torch.arange(size, device=x.device) + 0.5) / size
    across = (at - (moved.x + moved.orbit_x)[..., None]) / half_BF[..., None]  # -1 to 1 inside the sticker's square
    along = (at - (moved.y + moved.orbit_y)[..., None]) / half_BF[..., None]
    cos, sin = torch.cos(moved.turn), torch.sin(moved.turn)
    u = cos[..., None, None] * across[..., None, :] + sin[..., None, None] * along[..., :, None]
    v = cos[..., None, None] * along[..., :, None] - sin[..., None, None] * across[..., None, :]
    grid_KHW2 = torch.stack([u * (1 - 2 * mirrored)[..., None, None], v.expand_as(u)], dim=-1).flatten(0, 1)
    side = pictures.frames.shape[-1]
    shrink_K = (side / (2 * half_BF.expand(-1, len(seconds_F)) * size)).flatten()
    level_K = (shrink_K.clamp(min=1).log2() + 0.5).long().clamp(max=SMALLER - 1)
    drawn_K4HW = clips_BFCHW.new_empty(len(grid_KHW2), 4, size, size)
    for level in range(SMALLER):
        which = (level_K == level).nonzero()[:, 0]
        if len(which):
            images = pictures.frames[frame_BF.flatten()[which]].float() / 255
            images = avg_pool2d(images, 2**level) if level else images
            drawn_K4HW[which] = grid_sample(images, grid_KHW2[which], padding_mode="zeros", align_corners=False)
    colour, opacity = drawn_K4HW.unflatten(0, clips_BFCHW.shape[:2]).split([3, 1], dim=2)
    return colour + (1 - opacity) * clips_BFCHW
