"""What a client sends (a JSON object, or a form with perhaps a file) -> one checked VideoRequest, or an error in words.

FIELDS are those of OpenAI's video API (prompt, model, seconds, size, input_reference) and our own; the table holds their rules
and describes them in the OpenAPI document. Nothing is silently changed.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from lumos.serving.config import ServeConfig

MOST_SEED = 2**32 - 1
ADDED = 16  # frames that a given video is continued by unless the client says how many


@dataclass(frozen=True)
class VideoRequest:
    """One video to make, complete: what waits in the queue, what is stored, and what the worker gets."""

    prompt: str
    frames: int  # of the result, given ones included
    height: int  # in pixels, as the width
    width: int
    fps: float
    seed: int
    steps: int  # of every latent frame
    guidance: float
    temperature: float
    given: int = 0  # frames at the beginning that come from a file or another video
    note: str = ""  # what was done to them so that they fit

    def can_batch_with(self, other: VideoRequest) -> bool:
        """Whether both can be made in one pass: nothing given, and alike in all but prompt and seed."""
        return not (self.given or other.given) and replace(self, prompt="", seed=0) == replace(other, prompt="", seed=0)


class RequestError(Exception):
    """An answer with an error: HTTP status, message, the field that is wrong, and a word for programs."""

    def __init__(self, status: int, message: str, field: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.code = status, message, field, code
        self.headers: dict[str, str] = {}


@dataclass(frozen=True)
class Field:
    """A field that a client may send. Limits are of the number, or of how many letters a text has."""

    kind: Any
    help: str
    least: float | None = None
    most: float | None = None


FIELDS = {
    "prompt": Field(str, "what to show", 1, 2000),
    "model": Field(str, "name of the served weights; leave it out", 0, 200),
    "seconds": Field(float, "length; taken to the nearest 1 + 4k frames", 0.001, 3600),
    "size": Field(str, "WIDTHxHEIGHT, multiples of 32; default the model's own", 0, 20),
    "frames": Field(int, "length in frames, 1 + 4k, given ones included; 1 is an image"),
    "seed": Field(int, "the same seed gives the same video; default random", 0, MOST_SEED),
    "steps": Field(int, "denoising steps of every 4 frames; more is slower", 1),
    "guidance": Field(float, "how strongly to follow the prompt; 1 is no guidance", 0, 100),
    "temperature": Field(float, "randomness; below 1 is safer and duller", 0.01, 10),
    "input_reference": Field(dict, "what to start from: the id of an upload, or of a finished video to continue"),
}
NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?")
KINDS = {str: ("text", "string"), int: ("a whole number", "integer"), float: ("a number", "number")}


def body_schema() -> dict[str, Any]:
    """The request body of POST /v1/videos for the OpenAPI document: JSON, or a form with a file in it."""
    properties: dict[str, Any] = {}
    for name, field in FIELDS.items():
        least, most = ("minLength", "maxLength") if field.kind is str else ("minimum", "maximum")
        limits = {key: limit for key, limit in ((least, field.least), (most, field.most)) if limit is not None}
        properties[name] = {"type": KINDS.get(field.kind, ("", "object"))[1], "description": field.help, **limits}
    reference = {"type": "object", "properties": {"file_id": {"type": "string"}}, "required": ["file_id"]}
    file = {"type": "string", "format": "binary", "description": "image or video to start from, or an id"}
    shared = {"type": "object", "required": ["prompt"], "additionalProperties": False}
    forms = {
        "application/json": {**properties, "input_reference": {**reference, "description": FIELDS["input_reference"].help}},
        "multipart/form-data": {**properties, "input_reference": file},
    }
    return {"required": True, "content": {kind: {"schema": {**shared, "properties": f}} for kind, f in forms.items()}}


async def read_body(request: Request) -> tuple[dict[str, Any], BinaryIO | None]:
    """The fields of a body, each checked by itself, and the file in it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        values, file = await read_form(request, "input_reference")
        return check_fields({name: _from_text(name, text) for name, text in values.items() if text or name == "prompt"}), file
    if kind not in ("application/json", ""):
        raise RequestError(400, "the body must be application/json or multipart/form-data; see /docs")
    return check_fields(_from_json(await request.body())), None


async def read_form(request: Request, file_field: str) -> tuple[dict[str, str], BinaryIO | None]:
    """The fields of a form, each once, and the file in the field that may be one. RequestError unless the form is whole."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        items: list[tuple[str, Any]] = parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    else:
        parser = _Form(request.headers, request.stream(), max_files=1, max_fields=32, max_part_size=2**18)
        try:
            items = (await parser.parse()).multi_items()
        except MultiPartException as error:
            if isinstance(error, RequestError):  # not about the form, but about how it came (access.py)
                raise
            raise RequestError(400, f"the form cannot be read: {error.message}") from None
        if not parser.ended:
            raise RequestError(400, "the form was cut off before its end; send it again")
    values: dict[str, str] = {}
    file: BinaryIO | None = None
    for name, value in items:
        if name in values or (file is not None and name == file_field):
            raise RequestError(400, f"{name[:40]} is given twice; send it once", name[:40])
        if not isinstance(value, UploadFile):
            values[name] = value
        elif name == file_field:
            file = value.file
        else:
            raise RequestError(400, f"{name[:40]} must not be a file; only {file_field} may", name[:40])
    return values, file


class _Form(MultiPartParser):
    """The library's parser takes a form that ends too early for whole."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


def check_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Known fields with values of the right kind and range, null ones left out. Raises RequestError."""
    for name in values:
        if name not in FIELDS:
            raise RequestError(400, f"unknown field {quoted(name)}; known: {', '.join(FIELDS)}", None, "unknown_field")
    found = {name: _checked(name, value) for name, value in values.items() if value is not None}
    if "prompt" not in found:
        raise RequestError(400, "prompt is missing; say what to show", "prompt")
    return found


def complete(found: Mapping[str, Any], config: ServeConfig, about: Mapping[str, Any]) -> VideoRequest:
    """Every default filled in, every rule checked that needs no model; what is `given` comes later. Raises RequestError.

    about: what the worker said of the model.
    """
    if found.get("model") not in (None, config.weights_name):
        message = f"model must be {config.weights_name}, got {quoted(found['model'])}; leave it out"
        raise RequestError(400, message, "model", "model_not_found")
    width, height = _size(found.get("size"), config, about)
    steps, usual = found.get("steps"), int(about["steps"])
    most = min(config.max_steps, (height // about["spatial"]) * (width // about["spatial"]))
    if steps is not None and steps > most:
        raise RequestError(400, f"steps must be at most {most} here, got {quoted(steps)}; use {min(usual, most)}", "steps")
    return VideoRequest(
        prompt=found["prompt"],
        frames=_frames(found, config, about),
        height=height,
        width=width,
        fps=float(about["fps"]),
        seed=found.get("seed", secrets.randbelow(MOST_SEED + 1)),
        steps=min(usual, most) if steps is None else steps,
        guidance=float(found.get("guidance", about["guidance"])),
        temperature=float(found.get("temperature", about["temperature"])),
    )


def start_from(
    request: VideoRequest, given: int, note: str, is_video: bool, found: Mapping[str, Any], config: ServeConfig
) -> VideoRequest:
    """The request, going on from `given` frames. Raises RequestError when there is no room for more."""
    frames = request.frames
    if is_video and "frames" not in found and "seconds" not in found:
        frames = min(given + ADDED, config.max_frames)
    if frames <= given:
        hint = f"use {given + ADDED}" if given + ADDED <= config.max_frames else "cut it first"
        raise RequestError(400, f"frames must be more than the {given} given ones, got {frames}; {hint}", "frames")
    return replace(request, frames=frames, given=given, note=note)


def quoted(value: Any) -> str:
    """A stranger's value as it is shown in an error."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _from_json(body: bytes) -> dict[str, Any]:
    def no_constant(word: str) -> float:
        raise ValueError(f"{word} is no number in JSON")

    try:
        values = json.loads(body, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, json.JSONDecodeError) else "not valid JSON"
        raise RequestError(400, f"the body must be a JSON object ({why}); see /docs") from None
    if not isinstance(values, dict):
        raise RequestError(400, 'the body must be a JSON object, for example {"prompt": "a red circle"}; see /docs')
    return values


def _from_text(name: str, text: str) -> Any:
    """The value of a form's field, in which numbers are text. What is not one is refused by `_checked`."""
    kind = FIELDS[name].kind if name in FIELDS else str
    if kind is dict:
        return {"file_id": text}
    if kind is int and re.fullmatch(r"-?[0-9]{1,20}", text):
        return int(text)
    return float(text) if kind is float and NUMBER.fullmatch(text) else text


def _checked(name: str, value: Any) -> Any:
    field: Field = FIELDS[name]
    if field.kind is dict:
        if not isinstance(value, dict) or set(value) != {"file_id"} or not isinstance(value["file_id"], str):
            raise RequestError(400, f'{name} must be {{"file_id": ID}} of an upload or video, got {quoted(value)}', name)
        return value["file_id"]
    if name == "seconds" and isinstance(value, str) and NUMBER.fullmatch(value):  # OpenAI's API sends them as text
        value = float(value)
    kinds = (int, float) if field.kind is float else (field.kind,)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise RequestError(400, f"{name} must be {KINDS[field.kind][0]}, got {quoted(value)}", name)
    if name == "prompt":
        _check_prompt(str(value))
    amount, unit = (len(value), " letters") if isinstance(value, str) else (value, "")
    if field.least is not None and not amount >= field.least:
        raise RequestError(400, f"{name} must be at least {field.least:g}{unit}, got {quoted(amount)}", name)
    if field.most is not None and not amount <= field.most:
        raise RequestError(400, f"{name} must be at most {field.most:.10g}{unit}, got {quoted(amount)}", name)
    return value


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise RequestError(400, "prompt must have words; say what to show, for example a red circle moves", "prompt")
    if re.search(r"[\ud800-\udfff]", prompt):
        raise RequestError(400, "prompt must be valid Unicode, got half of a surrogate pair", "prompt")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", prompt):
        raise RequestError(400, "prompt must not hold control characters; leave them out", "prompt")


def _size(size: str | None, config: ServeConfig, about: Mapping[str, Any]) -> tuple[int, int]:
    if size is None:
        return int(about["width"]), int(about["height"])
    usual, step = f"{about['width']}x{about['height']}", about["size_step"]
    most = int(config.size_factor * about["width"] * about["height"])
    match = re.fullmatch(r"([0-9]{2,5})x([0-9]{2,5})", size)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    rule = ""
    if not match:
        rule = "WIDTHxHEIGHT"
    elif min(width, height) < step or width % step or height % step:
        rule = f"multiples of {step}, at least {step}"
    elif width * height > most:
        rule = f"at most {most} pixels here"
    elif max(width, height) > 4 * min(width, height):
        rule = "at most four times as long as wide"
    if rule:
        raise RequestError(400, f"size must be {rule}, got {quoted(size)}; use for example {usual}", "size")
    return width, height


def _frames(found: Mapping[str, Any], config: ServeConfig, about: Mapping[str, Any]) -> int:
    if "frames" in found and "seconds" in found:
        raise RequestError(400, "give either frames or seconds, got both; leave one out", "seconds")
    step, most = about["temporal"], config.max_frames
    if "seconds" in found:
        frames = 1 + step * max(0, round((found["seconds"] * about["fps"] - 1) / step))
    else:
        frames = found.get("frames", min(about["frames"], most))
    if frames < 1 or frames % step != 1:
        near = min(max(1, (frames + 1) // step * step + 1), most)
        raise RequestError(400, f"frames must be 1 + {step}k, got {quoted(frames)}; use {near}", "frames")
    if frames > most:
        longest = f"{most} frames ({most / about['fps']:.3g} s)"
        field = "seconds" if "seconds" in found else "frames"
        raise RequestError(400, f"a video may have at most {longest} here, got {quoted(frames)} frames", field)
    return int(frames)
