"""The HTTP API: OpenAI's video API where it has a word for something, and uploads, events, cancelling and metrics beside it.

Routes only: what a body may be is in body.py and ask.py, every error in errors.py, the work in engine.py, who may come in in
guard.py. Everything a client sees is JSON, a finished file by a name of ours, or server-sent events.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Annotated, BinaryIO, Literal

from fastapi import FastAPI, Header, Path, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline

from lumos import __version__
from lumos.serving import ask
from lumos.serving.ask import Refused, VideoRequest
from lumos.serving.body import read_form, read_request
from lumos.serving.config import ServeConfig
from lumos.serving.engine import Engine, Unready
from lumos.serving.errors import ERRORS, add_errors, errors
from lumos.serving.fair import Client
from lumos.serving.guard import App
from lumos.serving.metrics import Metrics
from lumos.serving.openapi import described, video_body
from lumos.serving.record import Record
from lumos.serving.uploads import Uploads

MEDIA = {"mp4": "video/mp4", "gif": "image/gif", "png": "image/png"}
ABOUT = """Text (and an image, or the start of a video) to video. Send a request, follow its events or ask for it until its
status is `completed`, then fetch its content. With a key, send `Authorization: Bearer KEY`."""

Id = Annotated[str, Path(max_length=64, description="id of a video")]
Name = Annotated[str, Header(alias="X-Client-Id", max_length=64, description="who asks: keeps the queue fair, selects the list")]


def create_app(config: ServeConfig, engine: Engine) -> App:
    """The routes of the API, counted. They are served behind a Guard only."""
    app = FastAPIOffline(title="Lumos", version=__version__, description=ABOUT)
    app.openapi = lambda: described(app)  # type: ignore[method-assign]
    uploads = Uploads(engine.store.uploads, engine.store.scratch, config)
    metrics = Metrics(engine)
    add_errors(app, engine)
    _add_videos(app, config, engine, uploads)
    _add_finished(app, engine)
    _add_service(app, config, engine, uploads, metrics)
    return metrics.around(app)


def _add_videos(app: FastAPI, config: ServeConfig, engine: Engine, uploads: Uploads) -> None:
    @app.post(
        "/v1/videos",
        summary="Make a video",
        responses=errors(408, 413, 429, 503),
        openapi_extra={"requestBody": video_body()},
    )
    async def create(request: Request, name: Name = "") -> JSONResponse:
        client, digest = _client(request, name)
        if not engine.ready:
            raise Unready
        engine.queue.check_room(client)  # before a file is decoded for nothing
        try:
            asked, source = await read_request(request)
            record = await _submit(config, engine, uploads, asked, source, client, digest)
        finally:
            await request.close()
        return JSONResponse(record.document(engine.position(record.id)))

    @app.get("/v1/videos", summary="The videos of this client, newest first", responses=errors())
    async def index(
        request: Request,
        name: Name = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: Annotated[str | None, Query(max_length=64)] = None,
    ) -> JSONResponse:
        _, digest = _client(request, name)
        mine = [record for record in engine.store.records.values() if record.client == digest]
        mine.sort(key=lambda record: record.created_at, reverse=order == "desc")
        ids = [record.id for record in mine]
        first = ids.index(after) + 1 if after in ids else 0
        shown = [record.document(engine.position(record.id)) for record in mine[first : first + limit]]
        ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
        return JSONResponse({"object": "list", "data": shown, **ends, "has_more": first + limit < len(mine)})

    @app.get("/v1/videos/{id}", summary="How far is it?", responses=errors(404))
    async def show(id: Id) -> JSONResponse:
        return JSONResponse(_known(engine, id).document(engine.position(id)))

    @app.post("/v1/videos/{id}/cancel", summary="Stop making it", responses=errors(404))
    async def cancel(id: Id) -> JSONResponse:
        record = _known(engine, id)
        engine.cancel(id)
        return JSONResponse(record.document())

    @app.delete("/v1/videos/{id}", summary="Stop making it and forget it", responses=errors(404))
    async def delete(id: Id) -> JSONResponse:
        _known(engine, id)
        engine.delete(id)
        return JSONResponse({"id": id, "object": "video.deleted", "deleted": True})


def _add_finished(app: FastAPI, engine: Engine) -> None:
    files = {"content": {kind: {} for kind in MEDIA.values()}, "description": "the file"}

    @app.get(
        "/v1/videos/{id}/content",
        summary="The finished file (range requests work)",
        response_class=Response,
        responses={200: files, 206: {**files, "description": "a part of it"}, **errors(404, 409, 416)},
    )
    async def content(
        id: Id,
        format: Annotated[Literal["mp4", "gif", "png"] | None, Query(description="default mp4, png for an image")] = None,
        variant: Annotated[Literal["video", "thumbnail", "spritesheet"], Query(description="as in OpenAI's API")] = "video",
        download: Annotated[bool, Query(description="as a file to be saved")] = False,
    ) -> Response:
        record = _known(engine, id)
        if record.status != "completed":
            why = "failed" if record.status == "failed" else "not finished yet"
            raise Refused(409, f"this video is {why}; GET /v1/videos/{id} says more", code="not_completed")
        usual = "png" if record.asked.frames == 1 or variant == "spritesheet" else "mp4"
        ending = format or usual
        name = "thumbnail.png" if variant == "thumbnail" else f"video.{ending}"
        file = engine.store.folder(id) / name
        if not file.is_file():
            raise Refused(404, "the files of this video are gone; make it again", code="not_found")
        shown = f"lumos-{id[6:14]}.{name.rpartition('.')[2]}" if download else None
        headers = {"cache-control": "private, max-age=3600"}
        return FileResponse(file, media_type=MEDIA[name.rpartition(".")[2]], filename=shown, headers=headers)

    @app.get(
        "/v1/videos/{id}/events",
        summary="Server-sent events: status, and frames as they are made",
        description="`status`: the video's document. `frames`: {index, first_frame, frames: [data URLs]}; its id lets a client "
        "that lost the connection go on (Last-Event-ID). Ends after the status `completed` or `failed`.",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "the events"}, **errors(404)},
    )
    async def events(id: Id, last: Annotated[str, Header(alias="Last-Event-ID", max_length=20)] = "") -> StreamingResponse:
        _known(engine, id)
        seen = int(last) + 1 if last.isascii() and last.isdigit() else 0
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(_events(engine, id, seen), media_type="text/event-stream", headers=headers)


def _add_service(app: FastAPI, config: ServeConfig, engine: Engine, uploads: Uploads, metrics: Metrics) -> None:
    file = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}

    @app.post(
        "/v1/uploads",
        summary="Send an image or video to start from, and see it as the model will",
        responses=errors(408, 413, 503),
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": file}}}},
    )
    async def upload(request: Request) -> JSONResponse:
        if not engine.ready:
            raise Unready
        try:
            values, found = await read_form(request, "file")
            if found is None or values:
                raise Refused(400, "send one field, file, with an image or video in it", "file")
            kept = await uploads.add(found, _own_size(engine))
        except ValueError as error:
            raise Refused(400, str(error), "file", "unusable_file") from None
        finally:
            await request.close()
        decoded = kept.decoded
        return JSONResponse(
            {
                "id": kept.id,
                "object": "upload",
                "kind": decoded.kind,
                "frames": decoded.frames,
                "note": decoded.note or None,
                "preview": _data_url(kept.preview),
            }
        )

    @app.get("/v1/models", summary="What is served", responses=errors())
    async def models() -> JSONResponse:
        limits = {"max_frames": config.max_frames, "max_steps": config.max_steps, "upload_bytes": config.upload_bytes}
        model = {"id": config.weights_name, "object": "model", "owned_by": "lumos", **engine.about, **limits}
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/health", summary="Is it well?", responses={503: ERRORS[503]})
    async def health() -> JSONResponse:
        waiting = len(engine.queue)
        state = {"status": "ok" if engine.ready else "starting", "waiting": waiting, "running": engine.running is not None}
        return JSONResponse(state, 200 if engine.ready else 503)

    @app.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "the metrics"}, **errors()},
    )
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


async def _submit(
    config: ServeConfig,
    engine: Engine,
    uploads: Uploads,
    request: VideoRequest,
    file: BinaryIO | None,
    client: Client,
    digest: str,
) -> Record:
    asked = ask.complete(request, config, engine.about)
    source: FilePath | BinaryIO | None = file
    continued = None
    if request.input_reference:
        source, continued = _referred(engine, uploads, request.input_reference.file_id)
    start, remove = None, None
    try:
        await engine.check(asked)
        if source is not None:
            decoded, start, remove = await uploads.start(source, (asked.height, asked.width, asked.fps))
            frames = ask.length_with_given(request, asked, decoded.frames, decoded.kind, config)
            asked = replace(asked, given=decoded.frames, note=decoded.note, frames=frames)
        return engine.submit(asked, client, digest, start, continued)
    except ValueError as error:
        field = "input_reference" if source is not None and start is None and "prompt" not in str(error) else "prompt"
        raise Refused(400, str(error), field, "unusable_file" if field == "input_reference" else "invalid_prompt") from None
    finally:
        if remove:
            remove()


def _referred(engine: Engine, uploads: Uploads, id: str) -> tuple[FilePath, str | None]:
    if id in uploads.known:
        return uploads.known[id].file, None
    record = engine.store.records.get(id)
    if record is None:
        message = "there is no such upload or video; uploads are kept for an hour, send the file again"
        raise Refused(400, message, "input_reference", "not_found")
    if record.status != "completed":
        raise Refused(400, "a video to continue must be completed; wait for it", "input_reference", "not_completed")
    return engine.store.folder(id) / ("video.png" if record.asked.frames == 1 else "video.mp4"), id


async def _events(engine: Engine, id: str, seen: int) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    async for word, news in engine.follow(id, seen):
        if word == "frames":
            number, first, pictures = news
            data = {"index": number, "first_frame": first, "frames": [_data_url(picture) for picture in pictures]}
            yield f"event: frames\nid: {number}\ndata: {json.dumps(data)}\n\n"
        elif word == "status":
            yield f"event: status\ndata: {json.dumps(news.document(engine.position(id)))}\n\n"
        else:
            yield ": still here\n\n"


def _known(engine: Engine, id: str) -> Record:
    if id not in engine.store.records:
        raise Refused(404, "there is no such video; it may have been deleted, or removed after its time", code="not_found")
    return engine.store.records[id]


def _client(request: Request, name: str) -> tuple[Client, str]:
    """Who asks, and the digest by which their videos are found again: of their name if they gave one, else of the address."""
    address = request.client.host if request.client else ""
    return Client(address, name), hashlib.sha256((f"name {name}" if name else f"address {address}").encode()).hexdigest()


def _own_size(engine: Engine) -> tuple[int, int, float]:
    return engine.about["height"], engine.about["width"], float(engine.about["fps"])


def _data_url(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"
