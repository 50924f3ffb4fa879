"""The page, and the HTTP API: OpenAI's video API where it has a word for something; uploads, events and metrics beside it.

Routes only: what a body may be is in request.py, every error in errors.py, the work in service.py, who may come in in access.py.
Everything a client sees is JSON, a finished file by a name of ours, or server-sent events.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path as FilePath
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import FastAPI, Header, Path, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline

from lumos import __version__
from lumos.serving.access import App, add_login
from lumos.serving.config import ServeConfig
from lumos.serving.errors import ERRORS, add_errors
from lumos.serving.metrics import Metrics
from lumos.serving.queue import Client
from lumos.serving.request import RequestError, body_schema, complete, read_body, read_form, start_from
from lumos.serving.service import Service, WorkerUnavailable
from lumos.serving.store import Video
from lumos.serving.uploads import Uploads

HERE = FilePath(__file__).parent
PAGE_FILES = {
    **dict.fromkeys(("page.js", "stage.js", "client.js"), "text/javascript"),
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}
MEDIA = {"mp4": "video/mp4", "gif": "image/gif", "png": "image/png"}
FORM = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
RANGES = re.compile(r"bytes=\s*(\d+-\d*|-\d+)(\s*,\s*(\d+-\d*|-\d+))*\s*", re.IGNORECASE)
ABOUT = """Text (and an image, or the start of a video) to video. Send a request, follow its events or ask for it until its
status is `completed`, then fetch its content. With a key, send `Authorization: Bearer KEY`."""

Id = Annotated[str, Path(max_length=64, description="id of a video")]
Name = Annotated[str, Header(alias="X-Client-Id", max_length=64, description="who asks: keeps the queue fair, selects the list")]


def create_app(config: ServeConfig, service: Service) -> App:
    """The page and the API, counted. They are served behind Access only."""
    app = FastAPIOffline(title="Lumos", version=__version__, description=ABOUT, favicon_url="/icon.svg", responses=ERRORS)
    uploads, metrics = Uploads(service.store, config), Metrics(service)
    add_errors(app, service)
    _add_videos(app, config, service, uploads)
    _add_finished(app, service)
    _add_about(app, config, service, metrics)
    _add_page(app)
    add_login(app, config)
    return metrics.around(app)


def _add_videos(app: FastAPI, config: ServeConfig, service: Service, uploads: Uploads) -> None:
    request_body = {"requestBody": body_schema()}

    @app.post("/v1/videos", summary="Make a video", openapi_extra=request_body)
    async def create(request: Request, name: Name = "") -> dict[str, Any]:
        client, digest = _client(request, name)
        if not service.ready:
            raise WorkerUnavailable
        service.queue.check_room(client)  # before a file is decoded for nothing
        found, file = await read_body(request)
        try:
            video = await _submit(config, service, uploads, found, file, client, digest)
        finally:
            if file:
                file.close()
        return video.document(service.position(video.id))

    @app.get("/v1/videos", summary="The videos of this client, newest first")
    async def index(
        request: Request,
        name: Name = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: Annotated[str | None, Query(max_length=64, description="id of the last one that is known")] = None,
    ) -> dict[str, Any]:
        _, digest = _client(request, name)
        mine = [video for video in service.store.known.values() if video.client == digest]
        mine.sort(key=lambda video: (video.created_at, video.number), reverse=order == "desc")
        ids = [video.id for video in mine]
        if after is not None and after not in ids:
            raise RequestError(400, "after must be the id of a video in this list; leave it out to start", "after")
        first = ids.index(after) + 1 if after is not None else 0
        shown = [video.document(service.position(video.id)) for video in mine[first : first + limit]]
        ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
        return {"object": "list", "data": shown, **ends, "has_more": first + limit < len(mine)}

    @app.get("/v1/videos/{id}", summary="Status of a video")
    async def show(id: Id) -> dict[str, Any]:
        return _known(service, id).document(service.position(id))

    @app.post("/v1/videos/{id}/cancel", summary="Stop making a video")
    async def cancel(id: Id) -> dict[str, Any]:
        video = _known(service, id)
        service.cancel(id)
        return video.document()

    @app.delete("/v1/videos/{id}", summary="Stop making a video and forget it")
    async def delete(id: Id) -> dict[str, Any]:
        _known(service, id)
        service.delete(id)
        return {"id": id, "object": "video.deleted", "deleted": True}

    @app.post(
        "/v1/uploads",
        summary="Send an image or video to start from, and see it as the model will",
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}},
    )
    async def upload(request: Request) -> dict[str, Any]:
        if not service.ready:
            raise WorkerUnavailable
        values, file = await read_form(request, "file")
        if file is None or values:
            raise RequestError(400, "send one field, file, with an image or video in it", "file")
        about = service.about
        try:
            kept = await uploads.add(file, (about["height"], about["width"], about["fps"]), _client(request, "")[0].address)
        except ValueError as error:
            raise RequestError(400, str(error), "file", "unusable_file") from None
        finally:
            file.close()
        kind, note = "video" if kept.decoded.is_video else "image", kept.decoded.note or None
        shown = {"kind": kind, "frames": kept.decoded.frames, "note": note, "preview": _data_url(kept.preview)}
        return {"id": kept.id, "object": "upload", **shown}


def _add_finished(app: FastAPI, service: Service) -> None:
    files: dict[str, Any] = {"content": {kind: {} for kind in MEDIA.values()}, "description": "the file"}

    @app.get(
        "/v1/videos/{id}/content",
        summary="The finished file (range and conditional requests work)",
        response_class=Response,
        responses={200: files, 206: {**files, "description": "a part of it"}},
    )
    async def content(
        request: Request,
        id: Id,
        format: Annotated[Literal["mp4", "gif", "png"] | None, Query(description="default mp4, png for an image")] = None,
        variant: Annotated[Literal["video", "thumbnail", "spritesheet"], Query(description="as in OpenAI's API")] = "video",
        download: Annotated[bool, Query(description="as a file to be saved")] = False,
    ) -> Response:
        video = _known(service, id)
        if video.status != "completed":
            why = "failed" if video.status == "failed" else "not finished yet"
            raise RequestError(409, f"this video is {why}; GET /v1/videos/{id} says more", code="not_completed")
        usual = "png" if video.request.frames == 1 or variant == "spritesheet" else "mp4"
        ending = "png" if variant == "thumbnail" else format or usual
        file = service.store.folder(id) / ("thumbnail.png" if variant == "thumbnail" else f"video.{ending}")
        if not file.is_file():
            raise RequestError(404, "the files of this video are gone; make it again", code="not_found")
        return _file_answer(request, file, MEDIA[ending], f"lumos-{id[6:14]}.{ending}" if download else None)

    @app.get(
        "/v1/videos/{id}/events",
        summary="Server-sent events: status, and frames as they are made",
        description="`status`: the video's document. `frames`: {index, first_frame, frames: [data URLs]}; its id lets a client "
        "that lost the connection go on (Last-Event-ID). Ends after the status `completed` or `failed`.",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "the events"}},
    )
    async def events(
        request: Request, id: Id, last: Annotated[str, Header(alias="Last-Event-ID", max_length=20)] = ""
    ) -> Response:
        _known(service, id)
        seen = int(last) + 1 if last.isascii() and last.isdigit() else 0
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        if request.scope.get("is_head"):  # the stream itself would only end with the video
            return Response(media_type="text/event-stream", headers=headers)
        return StreamingResponse(_events(service, id, seen), media_type="text/event-stream", headers=headers)


def _add_about(app: FastAPI, config: ServeConfig, service: Service, metrics: Metrics) -> None:
    @app.get("/v1/models", summary="What is served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model()]}

    @app.get("/v1/models/{id}", summary="What is served, by its name")
    async def one_model(id: str) -> dict[str, Any]:
        if id != config.weights_name:
            raise RequestError(404, f"there is no such model; this server has {config.weights_name}", code="model_not_found")
        return model()

    def model() -> dict[str, Any]:
        limits = {"max_frames": config.max_frames, "max_steps": config.max_steps, "upload_bytes": config.upload_bytes}
        signs_out = {"key_needed": config.api_key is not None}
        return {"id": config.weights_name, "object": "model", "owned_by": "lumos", **service.about, **limits, **signs_out}

    @app.get("/health", summary="Whether videos can be made now")
    async def health(response: Response) -> dict[str, Any]:
        response.status_code = 200 if service.ready else 503
        state = {"waiting": len(service.queue), "running": service.running is not None}
        return {"status": "ok" if service.ready else "starting", **state}

    @app.get("/live", summary="Whether the server runs, also while its model is loaded")
    async def live() -> dict[str, Any]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    def add(path: str, file: str, kind: str) -> None:
        @app.get(path, include_in_schema=False)
        async def page_file(request: Request) -> Response:
            return _file_answer(request, HERE / file, kind, None, "no-cache")

    add("/", "page.html", "text/html")
    for file, kind in PAGE_FILES.items():
        add(f"/{file}", file, kind)


async def _submit(
    config: ServeConfig,
    service: Service,
    uploads: Uploads,
    found: dict[str, Any],
    file: BinaryIO | None,
    client: Client,
    digest: str,
) -> Video:
    request = complete(found, config, service.about)
    source: FilePath | BinaryIO | None = file
    continued = None
    if "input_reference" in found:
        source, continued = _referred(service, uploads, found["input_reference"])
    try:
        await service.check(request)
    except ValueError as error:
        raise RequestError(400, str(error), "prompt", "invalid_prompt") from None
    if source is None:
        return service.submit(request, client, digest, None)
    try:
        async with uploads.decoded(source, (request.height, request.width, request.fps)) as (decoded, start):
            request = start_from(request, decoded.frames, decoded.note, decoded.is_video, found, config)
            return service.submit(request, client, digest, start, continued)
    except ValueError as error:
        raise RequestError(400, str(error), "input_reference", "unusable_file") from None


def _referred(service: Service, uploads: Uploads, id: str) -> tuple[FilePath, str | None]:
    if id in uploads.known:
        return uploads.known[id].file, None
    video = service.store.known.get(id)
    if video is None:
        message = "there is no such upload or video; uploads are kept for an hour, send the file again"
        raise RequestError(400, message, "input_reference", "not_found")
    if video.status != "completed":
        raise RequestError(400, "a video to continue must be completed; wait for it", "input_reference", "not_completed")
    return service.store.folder(id) / ("video.png" if video.request.frames == 1 else "video.mp4"), id


def _file_answer(request: Request, file: FilePath, kind: str, name: str | None, cache: str = "private, max-age=3600") -> Response:
    """A file as RFC 9110 wants it: conditions first, then ranges, of which unknown or broken ones count as none."""
    answer = FileResponse(file, media_type=kind, filename=name, headers={"cache-control": cache}, stat_result=file.stat())
    given, tag = request.headers, answer.headers["etag"]
    changed = parsedate_to_datetime(answer.headers["last-modified"])

    def names(header: str) -> bool:
        return any(part.strip().removeprefix("W/") in (tag, "*") for part in given[header].split(","))

    def is_newer(header: str) -> bool:
        try:
            return changed > parsedate_to_datetime(given[header])
        except (ValueError, TypeError):  # no date: as if it were not there
            return header == "if-modified-since"

    if not names("if-match") if "if-match" in given else "if-unmodified-since" in given and is_newer("if-unmodified-since"):
        raise RequestError(412, "the file has changed; ask for it without conditions", code="changed")
    if names("if-none-match") if "if-none-match" in given else "if-modified-since" in given and not is_newer("if-modified-since"):
        return Response(status_code=304, headers={key: answer.headers[key] for key in ("etag", "last-modified", "cache-control")})
    size, ranges = file.stat().st_size, given.get("range", "")
    if not RANGES.fullmatch(ranges):
        request.scope["headers"] = [item for item in request.scope["headers"] if item[0] != b"range"]
    elif "if-range" not in given and all(
        int(first) >= size if first else int(last) == 0 for first, last in re.findall(r"(\d*)-(\d*)", ranges)
    ):
        error = RequestError(416, f"the range must lie within the file's {size} bytes", code="range")
        error.headers = {"content-range": f"bytes */{size}"}
        raise error
    return answer


async def _events(service: Service, id: str, seen: int) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    async for word, news in service.follow(id, seen):
        if word == "frames":
            number, first, pictures = news
            data = {"index": number, "first_frame": first, "frames": [_data_url(picture) for picture in pictures]}
            yield f"event: frames\nid: {number}\ndata: {json.dumps(data)}\n\n"
        elif word == "status":
            yield f"event: status\ndata: {json.dumps(news.document(service.position(id)))}\n\n"
        else:
            yield ": still here\n\n"


def _known(service: Service, id: str) -> Video:
    if id not in service.store.known:
        raise RequestError(404, "there is no such video; it may have been deleted, or removed after its time", code="not_found")
    return service.store.known[id]


def _client(request: Request, name: str) -> tuple[Client, str]:
    """Who asks, and the digest by which their videos are found again: of their name if they gave one, else of the address."""
    address = request.client.host if request.client else ""
    return Client(address, name), hashlib.sha256((f"name {name}" if name else f"address {address}").encode()).hexdigest()


def _data_url(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"
