"""How things of the shapes world move: every motion is one set of coefficients (`Law`) of one formula in time.

`law` turns a motion's name, speed and reach into coefficients; `state` is the formula, for numbers, arrays and tensors. Places
are fractions of the frame (x to the right, y down), time is in seconds.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

HALF = math.sqrt(0.5)
STRAIGHT: tuple[str, ...] = ("left", "right", "up", "down")
DIAGONAL: tuple[str, ...] = ("up left", "up right", "down left", "down right")
DIRECTIONS = dict(zip(STRAIGHT, ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)), strict=True))
DIRECTIONS |= dict(zip(DIAGONAL, ((-HALF, -HALF), (HALF, -HALF), (-HALF, HALF), (HALF, HALF)), strict=True))
# Motions that leave a thing where it is.
IN_PLACE: tuple[str, ...] = ("still", "growing", "shrinking", "spinning", "fading in", "fading out", "blinking")
MOTIONS: tuple[str, ...] = (*DIRECTIONS, "circling", "bouncing", *IN_PLACE)
SPEEDS: tuple[str, ...] = ("slowly", "normally", "quickly")

TRAVEL = {"slowly": 0.14, "normally": 0.27, "quickly": 0.44}  # straight: frame widths a second
CIRCLES = {"slowly": 0.25, "normally": 0.45, "quickly": 0.75}  # circling: rounds a second
HOPS = {"slowly": 0.65, "normally": 1.0, "quickly": 1.6}  # bouncing: hops a second
TURNS = {"slowly": 0.18, "normally": 0.34, "quickly": 0.56}  # spinning: turns a second, clear at 8 fps for six-fold symmetry
CHANGE = {"slowly": 2.2, "normally": 1.5, "quickly": 0.8}  # growing, shrinking, fading: seconds from start to end
BLINKS = {"slowly": 0.6, "normally": 1.0, "quickly": 1.6}  # blinks a second
SMALLEST = 0.5  # growing starts, and shrinking ends, at this fraction of the size


class Law(NamedTuple):
    """Coefficients of the motion formula; the defaults stand still."""

    velocity_x: float = 0.0  # frame widths a second
    velocity_y: float = 0.0  # frame heights a second
    travel_seconds: float = 0.0  # then it rests
    orbit: float = 0.0  # radius of the circle, in shorter sides of the frame
    orbit_rate: float = 0.0  # radians a second, clockwise
    orbit_phase: float = 0.0  # radians at time 0: 0 is right of the centre, pi / 2 below it
    hop: float = 0.0  # height, in frame heights
    hop_rate: float = 0.0  # hops a second
    scale_start: float = 1.0
    scale_end: float = 1.0
    opacity_start: float = 1.0
    opacity_end: float = 1.0
    change_seconds: float = 1.0  # from the start to the end of scale and opacity
    spin_rate: float = 0.0  # radians a second, clockwise
    blink: float = 0.0  # 1 for things that blink
    blink_rate: float = 0.0  # blinks a second


class State(NamedTuple):
    """Where and how a thing is at one moment, or at several: numbers, arrays or tensors."""

    x: Any  # without circling: fraction of the frame's width
    y: Any  # and height
    orbit_x: Any  # from the circle's middle: fractions of the frame's shorter side
    orbit_y: Any
    scale: Any  # of the thing's radius
    turn: Any  # clockwise radians added to the thing's angle
    opacity: Any  # 0 is unseen


def law(motion: str, speed: str, reach: float, phase: float) -> Law:
    """The coefficients of a motion. reach: how far a straight motion goes before it rests, a circle's radius, or a hop's height;
    fractions of the frame. phase: degrees on the circle at time 0."""
    if motion in DIRECTIONS:
        x, y = DIRECTIONS[motion]
        return Law(velocity_x=x * TRAVEL[speed], velocity_y=y * TRAVEL[speed], travel_seconds=reach / TRAVEL[speed])
    laws = {
        "still": Law(),
        "circling": Law(orbit=reach, orbit_rate=math.tau * CIRCLES[speed], orbit_phase=math.radians(phase)),
        "bouncing": Law(hop=reach, hop_rate=HOPS[speed]),
        "growing": Law(scale_start=SMALLEST, change_seconds=CHANGE[speed]),
        "shrinking": Law(scale_end=SMALLEST, change_seconds=CHANGE[speed]),
        "spinning": Law(spin_rate=math.tau * TURNS[speed]),
        "fading in": Law(opacity_start=0.0, change_seconds=CHANGE[speed]),
        "fading out": Law(opacity_end=0.0, change_seconds=CHANGE[speed]),
        "blinking": Law(blink=1.0, blink_rate=BLINKS[speed]),
    }
    return laws[motion]


def state(law: Any, x: Any, y: Any, seconds: Any, of: ModuleType = np) -> State:
    """The formula: the state at a time of a thing that starts (or hops, or circles around) at x, y.

    of: numpy for numbers and arrays, torch for tensors.
    """
    travelled = of.minimum(seconds, law.travel_seconds)
    angle = law.orbit_phase + law.orbit_rate * seconds
    hop = law.hop_rate * seconds % 1.0
    change = ease(of.clip(seconds / law.change_seconds, 0, 1))
    lit = ease(of.clip(0.5 + 1.2 * of.cos(math.tau * law.blink_rate * seconds), 0, 1))
    return State(
        x=x + law.velocity_x * travelled,
        y=y + law.velocity_y * travelled - law.hop * 4 * hop * (1 - hop),
        orbit_x=law.orbit * of.cos(angle),
        orbit_y=law.orbit * of.sin(angle),
        scale=law.scale_start + (law.scale_end - law.scale_start) * change,
        turn=law.spin_rate * seconds,
        opacity=(law.opacity_start + (law.opacity_end - law.opacity_start) * change) * (1 - law.blink * (1 - lit)),
    )


def ease(share: Any) -> Any:
    """0 to 1 for 0 to 1, slow at both ends."""
    return share * share * (3 - 2 * share)
