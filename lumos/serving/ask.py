"""What a client sends (JSON or a form) -> a checked request, or an error in words.

Fields are those of OpenAI's video API (prompt, model, seconds, size, input_reference) and our own (frames, seed, steps, guidance,
temperature). Every rule that needs no model is checked here; nothing is silently changed.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lumos.serving.config import ServeConfig
from lumos.serving.record import Asked

MOST_LETTERS = 2000
MOST_SEED = 2**32 - 1
CONTINUE = 16  # frames added to a given video unless the client says how many

WHOLE, NUMBERS = ("frames", "seed", "steps"), ("guidance", "temperature")
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Refused(Exception):
    """An answer with an error: HTTP status, message, and the field that is wrong."""

    def __init__(self, status: int, message: str, field: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.code = status, message, field, code


class Reference(BaseModel):
    """What to start from: the id of an upload, or of a finished video."""

    model_config = ConfigDict(extra="forbid")
    file_id: str = Field(max_length=64, description="id of an upload, or of a finished video to continue")


class VideoRequest(BaseModel):
    """A video (or an image, with frames=1) to make."""

    model_config = ConfigDict(extra="forbid")
    prompt: str = Field(min_length=1, max_length=MOST_LETTERS, description="what to show")
    model: str | None = Field(None, max_length=200, description="name of the served weights; leave it out")
    seconds: str | Number | None = Field(None, description="length; taken to the nearest 1 + 4k frames", examples=["2"])
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT, multiples of 32; default the model's own")
    frames: Whole | None = Field(None, description="length in frames, 1 + 4k, given ones included; 1 is an image")
    seed: Whole | None = Field(None, ge=0, le=MOST_SEED, description="the same seed gives the same video; default random")
    steps: Whole | None = Field(None, ge=1, description="denoising steps of every 4 frames; more is slower")
    guidance: Number | None = Field(None, ge=0, le=100, description="how strongly to follow the prompt; 1 is no guidance")
    temperature: Number | None = Field(None, ge=0.01, le=10, description="randomness; below 1 is safer and duller")
    input_reference: Reference | None = Field(None, description="what to start from; in a form, an image or video file")

    @field_validator("prompt")
    @classmethod
    def _readable(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must have words; say what to show, for example a red circle moves to the right")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ValueError("must be valid Unicode, got half of a surrogate pair; send the letter whole") from None
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", prompt):
            raise ValueError("must not hold control characters; leave them out")
        return prompt


def from_json(body: bytes) -> VideoRequest:
    """A request from a JSON body. Raises Refused."""

    def no_constant(word: str) -> float:
        raise ValueError(f"{word} is no number in JSON")

    try:
        values = json.loads(body, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, json.JSONDecodeError) else "not valid JSON"
        raise Refused(400, f"the body must be a JSON object ({why}); see /docs") from None
    if not isinstance(values, dict):
        raise Refused(400, 'the body must be a JSON object, for example {"prompt": "a red circle"}; see /docs')
    return _checked(values)


def from_form(values: Mapping[str, str]) -> VideoRequest:
    """A request from the words of a form, in which numbers are text and an empty field is one left out. Raises Refused."""
    found: dict[str, Any] = {}
    for name, text in values.items():
        if not text and name != "prompt":
            continue
        kind: Any = int if name in WHOLE else float if name in NUMBERS else str
        try:
            found[name] = {"file_id": text} if name == "input_reference" else kind(text)
        except ValueError:
            raise Refused(400, f"{name} must be a {'whole ' if kind is int else ''}number, got {_short(text)}", name) from None
    return _checked(found)


def complete(request: VideoRequest, config: ServeConfig, about: Mapping[str, Any]) -> Asked:
    """Every default filled in, every rule checked that needs no model; `given` is filled in later. Raises Refused."""
    if request.model not in (None, config.weights_name):
        known = config.weights_name
        raise Refused(400, f"model must be {known}, got {_short(request.model)}; leave it out", "model", "model_not_found")
    width, height = _size(request.size, config, about)
    frames = _frames(request, config, about)
    steps = about["steps"] if request.steps is None else request.steps
    most = min(config.max_steps, (height // 8) * (width // 8))
    if steps > most:
        if request.steps is not None:
            raise Refused(400, f"steps must be at most {most} here, got {_short(steps)}; use {about['steps']}", "steps")
        steps = most
    return Asked(
        prompt=request.prompt,
        frames=frames,
        height=height,
        width=width,
        fps=float(about["fps"]),
        seed=secrets.randbelow(MOST_SEED + 1) if request.seed is None else request.seed,
        seed_given=request.seed is not None,
        steps=steps,
        guidance=float(about["guidance"]) if request.guidance is None else request.guidance,
        temperature=float(about["temperature"]) if request.temperature is None else request.temperature,
    )


def length_with_given(request: VideoRequest, asked: Asked, given: int, kind: str, config: ServeConfig) -> int:
    """Frames of a result that starts with `given` ones. Raises Refused when there is no room for more."""
    if request.frames is None and request.seconds is None:
        frames = given + CONTINUE if kind == "video" else asked.frames
        frames = min(frames, config.max_frames)
    else:
        frames = asked.frames
    if frames <= given:
        hint = f"use {given + CONTINUE}" if given + CONTINUE <= config.max_frames else "cut it first"
        raise Refused(400, f"frames must be more than the {given} given ones, got {frames}; {hint}", "frames")
    return frames


def _checked(values: Mapping[str, Any]) -> VideoRequest:
    try:
        return VideoRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"][:1]) or "body"
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = ", ".join(VideoRequest.model_fields)
            raise Refused(400, f"unknown field {_short(name)}; known: {known}", None, "unknown_field") from None
        if first["type"] == "missing":
            message = "is missing; say what to show" if name == "prompt" else "is incomplete"
        raise Refused(400, f"{name}: {message[:1].lower()}{message[1:]}", name) from None


def _size(size: str | None, config: ServeConfig, about: Mapping[str, Any]) -> tuple[int, int]:
    if size is None:
        return int(about["width"]), int(about["height"])
    match = re.fullmatch(r"([0-9]{2,5})x([0-9]{2,5})", size)
    usual = f"{about['width']}x{about['height']}"
    if not match:
        raise Refused(400, f"size must be WIDTHxHEIGHT, got {_short(size)}; use for example {usual}", "size")
    width, height = int(match[1]), int(match[2])
    if min(width, height) < 32 or width % 32 or height % 32:
        raise Refused(400, f"size must be multiples of 32, at least 32, got {size}; use for example {usual}", "size")
    most = int(config.size_factor * about["width"] * about["height"])
    if width * height > most:
        raise Refused(400, f"size must have at most {most} pixels here, got {width * height}; use for example {usual}", "size")
    if max(width, height) > 4 * min(width, height):
        raise Refused(400, f"size must be at most four times as long as wide, got {size}; use for example {usual}", "size")
    return width, height


def _frames(request: VideoRequest, config: ServeConfig, about: Mapping[str, Any]) -> int:
    if request.frames is not None and request.seconds is not None:
        raise Refused(400, "give either frames or seconds, got both; leave one out", "seconds")
    if request.seconds is not None:
        try:
            seconds = float(request.seconds)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= 3600:
            raise Refused(400, f"seconds must be a number above 0, got {_short(request.seconds)}; use for example 2", "seconds")
        frames = 1 + 4 * max(0, round((seconds * about["fps"] - 1) / 4))
    else:
        frames = about["frames"] if request.frames is None else request.frames
    if request.frames is not None and (frames < 1 or frames % 4 != 1):
        near = min(max(1, (frames + 1) // 4 * 4 + 1), config.max_frames)
        raise Refused(400, f"frames must be 1 + 4k, got {_short(frames)}; use {near}", "frames")
    if frames > config.max_frames:
        longest = f"{config.max_frames} frames ({config.max_frames / about['fps']:.3g} s)"
        field = "seconds" if request.frames is None else "frames"
        raise Refused(400, f"a video may have at most {longest} here, got {_short(frames)} frames", field)
    return int(frames)


def _short(value: Any) -> str:
    """A stranger's value as it is quoted in an error."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
