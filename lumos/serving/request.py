"""What a client sends (a JSON object, or a form with perhaps files) -> one checked VideoRequest, or an error in words.

VideoBody holds the fields of OpenAI's video API (prompt, model, seconds, size, input_reference) and our own, with the rules that
each keeps by itself; `asked_for` checks what depends on the model and fills in its defaults. Nothing is silently changed.
"""

import json
import re
import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

from fastapi import Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from lumos.known_words import in_known_words, size_note
from lumos.sequence.prompt_template import PromptReader
from lumos.serving.config import ServeConfig
from lumos.serving.errors import RequestError, invalid, quoted, refusing
from lumos.tokenizer.compression import check_keyframe, check_sides, frame_at, latent_frames

if TYPE_CHECKING:
    from lumos.serving.service import Service

MOST_SEED = 2**32 - 1
MOST_FRAMES = 10**6  # of any server
FILES = ("input_reference", "last_image")  # fields that may be a file
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
    keyframes: tuple[int, ...] = ()  # later frames that pictures are given of
    note: str = ""  # what was done to them so that they fit, and to the prompt

    def can_batch_with(self, other: "VideoRequest") -> bool:
        """Whether both can be made in one pass: nothing given, and alike in all but prompt and seed."""
        mine, others = (replace(each, prompt="", seed=0, note="") for each in (self, other))
        return not (self.given or self.keyframes) and mine == others


def _with_words(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("must have words; say what to show, for example a red circle moves")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", prompt):
        raise ValueError("must not hold control characters; leave them out")
    return prompt


def _number(given: Any) -> Any:  # which OpenAI's API sends as text
    with suppress(ValueError):
        return float(given) if isinstance(given, str) else given
    return given


@dataclass(frozen=True)
class Decoded:
    """What a file to start from is: a video or a picture, how many frames are kept (1 + 4k), and what made them fit."""

    is_video: bool
    frames: int
    note: str


class VideoBody(BaseModel):
    """What POST /v1/videos takes."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Annotated[str, AfterValidator(_with_words)] = Field(max_length=2000, description="what to show")
    model: str | None = Field(None, max_length=200, description="name of the served weights; leave it out")
    seconds: Annotated[float | None, BeforeValidator(_number)] = Field(
        None, gt=0, le=3600, description="length; taken to the nearest 1 + 4k frames"
    )
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT, multiples of 32; default the model's own")
    frames: int | None = Field(None, le=MOST_FRAMES, description="length in frames, 1 + 4k, given ones included; 1 is an image")
    seed: int | None = Field(None, ge=0, le=MOST_SEED, description="the same seed gives the same video; default random")
    steps: int | None = Field(None, ge=1, description="denoising steps of every 4 frames; more is slower")
    guidance: float | None = Field(None, ge=0, le=100, description="how strongly to follow the prompt; 1 is no guidance")
    temperature: float | None = Field(None, ge=0.01, le=10, description="randomness; below 1 is safer and duller")
    input_reference: dict[Literal["file_id"], str] | None = Field(
        None, min_length=1, description="what to start from: the id of an upload, or of a finished video to continue"
    )
    last_image: dict[Literal["file_id"], str] | None = Field(
        None, min_length=1, description="picture that the last frame is to show; it and keyframes need weights trained with such"
    )
    keyframes: dict[str, str] = Field(
        {}, max_length=8, description="pictures that later frames are to show, {time: id}; 2s, or 16 for frame number 16"
    )


class Sentence(BaseModel):
    """What POST /v1/sessions/{id}/say takes."""

    model_config = VideoBody.model_config

    prompt: Annotated[str, AfterValidator(_with_words)] = Field(max_length=2000, description="what to show from now on")


class FrameBody(BaseModel):
    """What POST /v1/sessions/{id}/back takes."""

    model_config = VideoBody.model_config

    frame: int = Field(ge=0, description="number of the first frame that is made anew: 0, or 1 + 4k")


def body_schema() -> dict[str, Any]:
    """The request body of POST /v1/videos for the OpenAPI document: JSON, or a form with a file in it."""
    schema = VideoBody.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "a file, or an id"}
    form = {**schema, "properties": {**schema["properties"], **dict.fromkeys(FILES, file)}}
    return {"required": True, "content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}}


@asynccontextmanager
async def asked_for(
    request: Request, service: "Service", is_session: bool = False
) -> AsyncIterator[tuple[VideoRequest, dict[int, Path], str | None]]:
    """What a body asks for; files of the frames that it gives, by number of the first, there inside only; the video continued."""
    async with read_body(request) as (body, sent), AsyncExitStack() as files:
        for name in ("frames", "seconds", "last_image") if is_session else ():
            if getattr(body, name) is not None or name in sent:
                raise RequestError(400, f"a session has no length and no last frame; leave {name} out", name)
        wanted = _complete(body, service.config, service.about, service.prompts)
        starts: dict[int, Path] = {}
        continued = None
        for field, time, source in _sources(body, sent):
            at = 0
            if field != "input_reference":
                with refusing(field):
                    at = frame_at(time or str(wanted.frames - 1), wanted.fps)
                    check_keyframe(at, wanted.given, wanted.frames)
                    if at in starts:
                        raise ValueError(f"a frame may have one keyframe, got two for frame {at}; leave one out")
            with refusing(field, "unusable_file"):
                file = _file_of(service, source, field) if isinstance(source, str) else source
                decoding = service.uploads.decoded(file, (wanted.height, wanted.width, wanted.fps))
                found, starts[at] = await files.enter_async_context(decoding)
                if found.is_video and (at or is_session):
                    raise ValueError(f"{field} must be a picture here, got a video; send one frame of it")
            if at:
                wanted = replace(wanted, keyframes=(*wanted.keyframes, at))
            else:
                wanted = _start_from(wanted, found, body, service.config)
                continued = str(source) if source in service.store.known else None
            wanted = replace(wanted, note="; ".join(filter(None, (wanted.note, found.note))))
        yield wanted, starts, continued


def _sources(body: VideoBody, files: Mapping[str, BinaryIO]) -> list[tuple[str, str, str | BinaryIO]]:
    """Field, time ("" of the first and the last frame) and id or file of all that gives frames, what it starts from first."""
    given: dict[str, str | BinaryIO] = {name: ref["file_id"] for name in FILES if (ref := getattr(body, name))}
    given |= files
    times = [("keyframes", time, id) for time, id in body.keyframes.items()]
    return [*((name, "", given[name]) for name in FILES if name in given), *times]


def _file_of(service: "Service", id: str, field: str) -> Path:
    """The file of an upload or a video."""
    service.uploads.make_room()
    if id in service.uploads.known:
        return service.uploads.known[id].file
    video = service.store.known.get(id)
    if video is None:
        message = "there is no such upload or video; uploads are kept for an hour, send the file again"
        raise RequestError(400, message, field, "not_found")
    if video.status != "completed":
        raise RequestError(400, "a video to go on from must be completed; wait for it", field, "not_completed")
    return service.store.folder(id) / ("video.png" if video.request.frames == 1 else "video.mp4")


@asynccontextmanager
async def read_body(request: Request) -> AsyncIterator[tuple[VideoBody, dict[str, BinaryIO]]]:
    """The fields of a body, each checked by itself, and the files in it, which are open inside only."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded" and (await request.body()).lstrip().startswith(b"{"):
        kind = "application/json"  # by curl -d without a header
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        async with read_form(request, FILES) as (texts, files):
            sent = {name: text for name, text in texts.items() if text or name == "prompt"}
            values: dict[str, Any] = {name: {"file_id": text} if name in FILES else text for name, text in sent.items()}
            with suppress(ValueError, KeyError):
                values["keyframes"] = json.loads(sent["keyframes"])
            yield _checked(values), files
    elif kind in ("application/json", ""):
        yield _checked(await request.body()), {}
    else:
        raise RequestError(400, "the body must be application/json or multipart/form-data; see /docs")


def _checked(values: bytes | dict[str, Any]) -> VideoBody:
    """The body from JSON, or from a form's texts."""
    try:
        return VideoBody.model_validate_json(values) if isinstance(values, bytes) else VideoBody.model_validate_strings(values)
    except ValidationError as error:
        raise invalid(dict(error.errors()[0]), VideoBody.model_fields) from None


@asynccontextmanager
async def read_form(request: Request, fields: Collection[str]) -> AsyncIterator[tuple[dict[str, str], dict[str, BinaryIO]]]:
    """The texts of a form, each once, and the files in those `fields` that may be one. RequestError unless the form is whole."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        form, whole = await request.form(), True
    else:
        parser = _CheckedForm(request.headers, request.stream(), max_files=len(fields), max_fields=32, max_part_size=2**18)
        try:
            form, whole = await parser.parse(), parser.ended
        except MultiPartException as error:
            raise RequestError(400, f"the form cannot be read: {error.message}") from None
    try:
        if not whole:
            raise RequestError(400, "the form was cut off before its end; send it again")
        items = form.multi_items()
        names = [name for name, _ in items]
        for name, value in items:
            if names.count(name) > 1:
                raise RequestError(400, f"{name[:40]} is given twice; send it once", name[:40])
            if isinstance(value, UploadFile) and name not in fields:
                raise RequestError(400, f"{name[:40]} must not be a file; only {' and '.join(fields)} may", name[:40])
        files = {name: value.file for name, value in items if isinstance(value, UploadFile)}
        yield {name: value for name, value in items if isinstance(value, str)}, files
    finally:
        await form.close()


class _CheckedForm(MultiPartParser):
    """The library's parser takes a form that ends too early for whole."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


def _complete(body: VideoBody, config: ServeConfig, about: Mapping[str, Any], prompts: PromptReader) -> VideoRequest:
    """Every default filled in, every rule checked; what is `given` comes later. RequestError.

    about: what the worker said of the model.
    """
    if body.model not in (None, config.weights_name):
        raise RequestError(400, f"model must be {config.weights_name}, got {quoted(body.model)}", "model", "model_not_found")
    with refusing("size"):
        width, height = _size(body.size or f"{about['width']}x{about['height']}", config, about)
    with refusing("frames" if body.seconds is None else "seconds"):
        frames = _frames(body, config, about)
    most = most_steps(config, about, height, width)
    settings = {"seed": secrets.randbelow(MOST_SEED + 1), "steps": min(about["steps"], most)}
    settings |= {name: about[name] for name in ("guidance", "temperature")}
    settings |= body.model_dump(include={"seed", "steps", "guidance", "temperature"}, exclude_none=True)
    if settings["steps"] > most:
        raise RequestError(400, f"steps must be at most {most} here, got {quoted(body.steps)}; use {most}", "steps")
    with refusing("prompt", "invalid_prompt"):
        told = in_known_words(body.prompt, prompts.text.words)
        prompts.ids(told.prompt, frames, height, width)
    other = size_note(f"{width}x{height}", f"{about['width']}x{about['height']}")
    note = "; ".join(filter(None, (told.note, other)))
    return VideoRequest(told.prompt, frames, height, width, float(about["fps"]), **settings, note=note)


def most_steps(config: ServeConfig, about: Mapping[str, Any], height: int, width: int) -> int:
    return min(config.max_steps, (height // about["spatial"]) * (width // about["spatial"]))  # a step reveals at least one code


def _size(size: str, config: ServeConfig, about: Mapping[str, Any]) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{2,5})x([0-9]{2,5})", size)
    if not match:
        raise ValueError(f"size must be WIDTHxHEIGHT, got {quoted(size)}; use for example {about['width']}x{about['height']}")
    width, height = int(match[1]), int(match[2])
    check_sides(height, width, about["size_step"])
    most = int(config.size_factor * about["width"] * about["height"])
    if width * height > most or max(width, height) > 4 * min(width, height):
        raise ValueError(f"size may have {most} pixels here and be four times as long as wide, got {size}; make it smaller")
    return width, height


def _frames(body: VideoBody, config: ServeConfig, about: Mapping[str, Any]) -> int:
    step, fps, most = about["temporal"], about["fps"], config.max_frames
    frames = min(about["frames"], most) if body.frames is None else body.frames
    if body.seconds is not None:
        if body.frames is not None:
            raise ValueError("give either frames or seconds, got both; leave one out")
        frames = 1 + step * max(0, round((body.seconds * fps - 1) / step))
    if frames > most:
        raise ValueError(f"a video may have at most {most} frames ({most / fps:.3g} s) here, got {frames} frames")
    latent_frames(frames, step)  # 1 + 4k, or a ValueError
    return frames


def _start_from(request: VideoRequest, decoded: Decoded, body: VideoBody, config: ServeConfig) -> VideoRequest:
    """The request, going on from given frames. RequestError when there is no room for more."""
    frames, given = request.frames, decoded.frames
    if decoded.is_video and body.frames is None and body.seconds is None:
        frames = min(given + ADDED, config.max_frames)
    if frames <= given:
        hint = f"use {given + ADDED}" if given + ADDED <= config.max_frames else "cut it first"
        raise RequestError(400, f"frames must be more than the {given} given ones, got {frames}; {hint}", "frames")
    return replace(request, frames=frames, given=given)
