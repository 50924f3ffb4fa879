from collections.abc import Sequence

import numpy as np
import pytest

from lumos.shapes.blobs import Blob
from lumos.shapes.colours import Array
from lumos.shapes.tracks import find_tracks

RED, BLUE, MIXED = (220, 40, 40), (40, 60, 220), (130, 50, 130)
GROUND: Array = np.array([0.8, 0.8, 0.8])


def blob(frame: int, x: float, rgb: Sequence[int], touches: bool = False, area: float = 0.03) -> Blob:
    colour = np.array(rgb, dtype=float)
    squared = np.square(colour / 255)
    region = np.zeros((64, 64), dtype=bool)
    return Blob(frame, "red", 1.0, (*colour.tolist(),), 0.8, x, 0.5, area, region, squared, GROUND, 0.7, touches)  # type: ignore[arg-type]


def colours(track: Sequence[Blob]) -> set[tuple[float, ...]]:
    return {each.rgb for each in track if not each.touches}


def test_things_that_pass_each_other_keep_their_colours() -> None:
    """Where they touch, their colours are mixed and the nearest blob is the other's."""
    frames: list[list[Blob]] = []
    for number in range(17):
        way = 0.2 + 0.6 * number / 16
        near = abs(way - 0.5) < 0.16
        mixing = abs(way - 0.5) < 0.1
        frames.append([blob(number, way, MIXED if mixing else RED, near), blob(number, 1 - way, MIXED if mixing else BLUE, near)])
    tracks, specks = find_tracks(frames)
    assert len(tracks) == 2 and specks == 0
    assert sorted(map(len, map(colours, tracks))) == [1, 1] and colours(tracks[0]) != colours(tracks[1])


def test_what_shows_blurred_while_another_is_missing_is_that_other() -> None:
    still = [blob(number, 0.5, BLUE, 4 <= number <= 11) for number in range(17)]
    mover = [blob(number, 0.2 + 0.04 * number, RED, False) for number in range(17) if not 5 <= number <= 10]
    blurred = [blob(number, 0.2 + 0.04 * number, MIXED, True, area=0.012) for number in range(5, 11)]
    frames = [[each for each in (*still, *mover, *blurred) if each.frame == number] for number in range(17)]
    tracks, _ = find_tracks(frames)
    assert len(tracks) == 2
    assert sorted(len(track) for track in tracks) == [17, 17]


@pytest.mark.parametrize(("colour", "aside", "found"), [(RED, 0.0, 1), (BLUE, 0.25, 2)])
def test_parts_of_one_way_are_one_thing_if_they_look_alike(colour: Sequence[int], aside: float, found: int) -> None:
    first = [blob(number, 0.1 + 0.05 * number, RED) for number in range(7)]
    later = [blob(number, 0.1 + aside + 0.05 * number, colour) for number in range(10, 17)]
    frames = [[each for each in (*first, *later) if each.frame == number] for number in range(17)]
    tracks, _ = find_tracks(frames)
    assert len(tracks) == found


def test_two_things_alike_at_the_same_time_stay_two() -> None:
    frames = [[blob(number, 0.2, RED), blob(number, 0.7, RED)] for number in range(17)]
    tracks, specks = find_tracks(frames)
    assert [len(track) for track in tracks] == [17, 17] and specks == 0
