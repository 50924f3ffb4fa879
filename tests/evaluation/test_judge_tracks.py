from collections.abc import Sequence

import numpy as np
import pytest

from lumos.evaluation.judge.colours import Array
from lumos.evaluation.judge.regions import Blob
from lumos.evaluation.judge.tracks import find_tracks

RED, BLUE, MIXED, HAZE = (220, 40, 40), (40, 60, 220), (130, 50, 130), (200, 90, 90)
NAMES = {RED: "red", BLUE: "blue", MIXED: "purple", HAZE: "pink"}
GROUND: Array = np.array([0.8, 0.8, 0.8])


def blob(frame: int, x: float, rgb: Sequence[int], touches: bool = False, area: float = 0.03, strength: float = 0.8) -> Blob:
    colour, name = np.array(rgb, dtype=float), NAMES.get((*rgb,), "red")
    squared = np.square(colour / 255)
    region = np.zeros((64, 64), dtype=bool)
    return Blob(frame, name, 1.0, (*colour.tolist(),), strength, x, 0.5, area, region, squared, GROUND, strength, touches)  # type: ignore[arg-type]


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


def names(track: Sequence[Blob]) -> set[str]:
    return {each.colour for each in track}


@pytest.mark.parametrize("where", [range(4), range(5, 9), range(12, 17)])
def test_things_that_touch_are_told_apart_by_colour(where: range) -> None:
    # at the frames of `where` each is where the other was, so that the way alone would exchange them
    frames = []
    for frame in range(17):
        left, right = (0.95, 0.06) if frame in where else (0.06, 0.95)
        touching = where[0] - 1 <= frame <= where[-1] + 1
        frames.append([blob(frame, left, RED, touching), blob(frame, right, BLUE, touching)])
    tracks, specks = find_tracks(frames)
    assert sorted(map(names, tracks), key=str) == [{"blue"}, {"red"}]
    assert [len(track) for track in tracks] == [17, 17] and not specks


def test_a_thing_that_passes_behind_another_is_one_thing_whatever_haze_there_is() -> None:
    frames = [[blob(frame, 0.5, BLUE, 3 <= frame <= 9)] for frame in range(17)]
    for frame in range(17):
        left, right = 0.2 + 0.04 * frame, 0.42 + 0.04 * frame
        frames[frame].append(blob(frame, left if frame < 5 else right, RED, 2 < frame < 9))
        if 1 <= frame <= 8:  # where it will come out, then where it went in
            frames[frame].append(blob(frame, 0.62 if frame < 5 else 0.38, HAZE, True, 0.01, 0.3))
    tracks, _ = find_tracks(frames)
    assert sorted(map(colours, tracks), key=str) == [{tuple(map(float, RED))}, {tuple(map(float, BLUE))}]
    assert [len(track) for track in tracks] == [17, 17]


def test_what_is_seen_as_one_with_another_has_no_place_of_its_own() -> None:
    frames = [[blob(frame, 0.5, RED, frame in (5, 9))] for frame in range(17)]
    for frame in range(17):
        if 6 <= frame <= 8:
            frames[frame] = [blob(frame, 0.54, RED, False, 0.08)]  # both
        else:
            frames[frame].append(blob(frame, 0.3 + 0.03 * frame, BLUE, frame in (5, 9)))
    red, blue = find_tracks(frames)[0]
    assert {each.frame for each in red} == {each.frame for each in blue} == set(range(17)) - {6, 7, 8}


def test_a_whole_thing_in_front_of_one_that_is_not_seen_touches_it() -> None:
    frames = [[blob(frame, 0.5, RED, frame in (5, 9))] for frame in range(17)]
    for frame in (*range(6), *range(9, 17)):
        frames[frame].append(blob(frame, 0.3 + 0.03 * frame, BLUE, frame in (5, 9)))
    far = [blob(frame, 0.95, HAZE, False) for frame in range(17)]
    red, blue, pink = find_tracks([[*found, far[frame]] for frame, found in enumerate(frames)])[0]
    assert len(red) == 17 and names(blue) == {"blue"} and names(pink) == {"pink"}
    assert [each.frame for each in red if each.touches] == [5, 6, 7, 8, 9]
    assert not any(each.touches for each in pink)
