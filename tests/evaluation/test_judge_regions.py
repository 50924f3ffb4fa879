"""Boxes on a plain ground, drawn sharp or blurred, and the blobs that are found."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lumos.evaluation.judge.background import look
from lumos.evaluation.judge.regions import Blob
from lumos.worlds.shapes.palette import BACKGROUNDS, COLOURS, Rgb

Box = tuple[int, int, int, int, Rgb]  # top, bottom, left, right in pixels of 128
RED, BLUE, GRAY, WHITE, BLACK = (COLOURS[name] for name in ("red", "blue", "gray", "white", "black"))


def picture(ground: str, *boxes: Box, blur: int = 3) -> Tensor:
    """Mixed as the renderer mixes: squared values."""
    squared_CFHW = (torch.tensor(BACKGROUNDS[ground]) / 255).square()[:, None, None, None].repeat(1, 1, 128, 128)
    for top, bottom, left, right, rgb in boxes:
        squared_CFHW[:, 0, top:bottom, left:right] = (torch.tensor(rgb) / 255).square()[:, None, None]
    return avg_pool2d(squared_CFHW, blur, 1, blur // 2, count_include_pad=False).sqrt() * 2 - 1


def blobs(ground: str, *boxes: Box, blur: int = 3) -> dict[str, list[Blob]]:
    found: dict[str, list[Blob]] = {}
    for blob in look(picture(ground, *boxes, blur=blur)).blobs[0]:
        found.setdefault(blob.colour, []).append(blob)
    return found


def area(box: Box) -> float:
    return (box[1] - box[0]) * (box[3] - box[2]) / 128**2


@pytest.mark.parametrize(
    ("ground", "left", "right", "blur"),
    [("cream", "red", "green", 9), ("tan", "orange", "purple", 9), ("light blue", "yellow", "blue", 7)],
)
def test_a_blurred_edge_is_no_third_thing(ground: str, left: str, right: str, blur: int) -> None:
    found = blobs(ground, (32, 96, 32, 64, COLOURS[left]), (32, 96, 64, 96, COLOURS[right]), blur=blur)
    assert {name: len(each) for name, each in found.items()} == {left: 1, right: 1}
    assert found[left][0].touches and found[right][0].touches


def test_a_shade_of_one_colour_is_no_other_thing() -> None:
    orange = (228, 72, 46)  # just
    found = blobs("cream", (32, 96, 32, 64, RED), (32, 96, 64, 96, orange))
    assert [len(each) for each in found.values()] == [1]


def test_the_soft_edge_of_white_is_not_of_the_gray_beside_it() -> None:
    gray = (32, 96, 70, 104, GRAY)
    found = blobs("dark blue", (20, 108, 16, 70, WHITE), gray, blur=5)
    assert found["gray"][0].area == pytest.approx(area(gray), rel=0.25)


def test_what_lies_behind_a_bar_is_one_thing() -> None:
    found = blobs("cream", (40, 88, 24, 104, RED), (20, 108, 58, 70, BLUE))
    assert {name: len(each) for name, each in found.items()} == {"red": 1, "blue": 1}
    assert found["red"][0].area == pytest.approx(48 * 68 / 128**2, rel=0.1)
    assert found["red"][0].x == pytest.approx(0.5, abs=0.02)


def test_a_pale_thing_beside_a_black_one_is_seen_in_full() -> None:
    pale = (40, 76, 80, 112, (228, 232, 250))
    found = blobs("light blue", (24, 104, 16, 80, BLACK), pale)
    assert set(found) == {"black", "white"}
    assert found["white"][0].area == pytest.approx(area(pale), rel=0.12)


def test_shadows_specks_and_the_frame_s_edge() -> None:
    shadow = tuple(round(0.85 * value) for value in BACKGROUNDS["cream"])
    assert not blobs("cream", (32, 96, 32, 96, shadow), (8, 12, 8, 12, RED))  # type: ignore[arg-type]
    (alone,), (cut,) = blobs("cream", (40, 80, 40, 80, RED))["red"], blobs("cream", (40, 80, 0, 40, RED))["red"]
    assert cut.touches and not alone.touches
