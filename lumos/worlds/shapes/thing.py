"""One object of the shapes world: its looks, where it starts and how it moves."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lumos.worlds.shapes.motion import MOTIONS, SPEEDS, State, law, state
from lumos.worlds.shapes.palette import COLOURS

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "pentagon", "hexagon", "crescent", "diamond")
SIZES = {"small": 0.105, "medium": 0.15, "large": 0.21}  # radius, in shorter sides of the frame
TEXTURES = ("plain", "stripes", "dots", "checks")
SPINNERS = ("square", "triangle", "star", "heart", "cross", "pentagon", "crescent", "diamond")  # shapes whose turning shows
REACH = 1.18  # no point of a shape is farther from its centre than this many radii


@dataclass(frozen=True)
class Thing:
    """One object. x, y: centre at time 0 (circling: centre of the circle; bouncing: on the ground), fractions of the frame."""

    shape: Annotated[str, Literal[SHAPES]]
    colour: Annotated[str, Literal[tuple(COLOURS)]]
    size: Annotated[str, Literal[tuple(SIZES)]]
    texture: Annotated[str, Literal[TEXTURES]]
    x: float
    y: float
    motion: Annotated[str, Literal[MOTIONS]] = "still"
    speed: Annotated[str, Literal[SPEEDS]] = "normally"
    reach: float = 0.0  # straight: way until it rests; circling: radius; bouncing: height; fractions of the frame
    angle: float = 0.0  # degrees, clockwise, at time 0
    phase: float = 0.0  # circling: degrees on the circle at time 0

    def at(self, seconds: Any) -> State:
        """Place, scale, turn and opacity at a time or at an array of times."""
        return state(law(self.motion, self.speed, self.reach, self.phase), self.x, self.y, seconds)
