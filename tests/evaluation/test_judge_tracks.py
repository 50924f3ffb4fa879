from collections.abc import Sequence

import numpy as np

from lumos.evaluation.judge.colours import to_lab
from lumos.evaluation.judge.regions import Blob
from lumos.evaluation.judge.tracks import find_tracks

RED, BLUE, MIXED, PALE = (220, 40, 40), (40, 60, 220), (130, 50, 130), (212, 180, 180)
NAMES = {RED: "red", BLUE: "blue", MIXED: "purple", PALE: "red"}


def blob(frame: int, x: float, rgb: Sequence[int], touches: bool = False, area: float = 0.03, strength: float = 0.8) -> Blob:
    squared = np.square(np.array(rgb) / 255)
    region, ground = np.zeros((64, 64), dtype=bool), np.full(3, 0.8)
    return Blob(frame, NAMES[(*rgb,)], strength, strength, x, 0.5, area, region, squared, ground, to_lab(squared), touches)  # type: ignore[index]


def found(*blobs: Blob, frames: int = 17) -> tuple[list[set[str]], int]:
    """Colours of each track, where it touches nothing, and what is left over."""
    tracks, specks = find_tracks([[each for each in blobs if each.frame == frame] for frame in range(frames)])
    return [{each.colour for each in track if not each.touches} for track in tracks], specks


def test_things_that_pass_each_other_keep_their_colours() -> None:
    """Where they touch, their colours are mixed and the nearest blob is the other's."""
    blobs = []
    for frame in range(17):
        way = 0.2 + 0.6 * frame / 16
        near, mixing = abs(way - 0.5) < 0.16, abs(way - 0.5) < 0.1
        blobs += [blob(frame, way, MIXED if mixing else RED, near), blob(frame, 1 - way, MIXED if mixing else BLUE, near)]
    assert found(*blobs) == ([{"red"}, {"blue"}], 0)


def test_one_pair_that_fits_is_likelier_than_two_that_fit_half() -> None:
    """A red thing jumps over another one; that the two move on together would be less way in sum, as one touches something."""
    still = [blob(frame, 0.5, RED, touches=True) for frame in range(8)]
    other = [blob(frame, 0.3 if frame < 4 else 0.72, RED) for frame in range(8)]
    tracks, _ = find_tracks([list(pair) for pair in zip(still, other, strict=True)])
    assert {each.x for each in tracks[0]} == {0.5}


def test_what_was_hidden_may_come_out_far_from_where_it_went_in() -> None:
    blobs = [blob(frame, 0.1 if frame < 8 else 0.8, RED, touches=frame == 7) for frame in range(17)]
    assert len(found(*blobs)[0]) == 1
    assert len(found(*(blob(each.frame, each.x, RED) for each in blobs))[0]) == 2


def test_a_thing_that_fades_is_compared_with_when_it_was_as_faint() -> None:
    """Two things blink in turns, at half the distance between them."""
    blobs = []
    for frame in range(17):
        faint = frame % 4 in (2, 3)
        blobs += [blob(frame, 0.5, PALE if faint else RED, strength=0.2 if faint else 0.8), blob(frame, 0.58, BLUE)]
    assert found(*blobs) == ([{"red"}, {"blue"}], 0)


def test_parts_of_one_way_are_one_thing_if_they_look_alike() -> None:
    for rgb, x, count in ((RED, 0.68, 1), (BLUE, 0.68, 2), (RED, 0.95, 2)):
        later = [blob(frame, x, rgb) for frame in range(10, 17)]
        assert len(found(*(blob(frame, 0.2, RED) for frame in range(7)), *later)[0]) == count


def test_two_things_alike_at_the_same_time_stay_two() -> None:
    blobs = [blob(frame, x, RED) for frame in range(17) for x in (0.2, 0.7)]
    assert found(*blobs) == ([{"red"}, {"red"}], 0)


def test_pieces_at_an_edge_and_haze_are_no_things() -> None:
    whole = [blob(frame, 0.3, RED) for frame in range(17)]
    for piece, specks in (
        ([blob(frame, 0.7, BLUE, True) for frame in range(6)], 6),
        ([blob(frame, 0.7, BLUE) for frame in range(2)], 2),
        ([blob(frame, 0.7, BLUE, strength=0.05) for frame in range(17)], 0),
    ):
        assert found(*whole, *piece) == ([{"red"}], specks)
    glow = [blob(frame, 0.7, BLUE, strength=0.4) for frame in range(17)]
    assert len(found(*(blob(frame, 0.3, RED, strength=9.0) for frame in range(17)), *glow)[0]) == 1
    assert len(found(*whole, *glow)[0]) == 2
