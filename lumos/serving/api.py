"""The page, and the HTTP API: OpenAI's video API where it has a word for something; uploads, events and metrics beside it.

Routes only: what a body may be is in request.py, every error in errors.py, the work in service.py, who may come in in access.py.
Everything a client sees is JSON, a finished file by a name of ours, or server-sent events.
"""

import base64
import json
import re
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import generate_latest

from lumos import __version__
from lumos.known_words import in_known_words
from lumos.serving.access import Access, add_login
from lumos.serving.errors import ERRORS, HANDLERS, RequestError, refusing
from lumos.serving.live import Live
from lumos.serving.queue import Client
from lumos.serving.request import FrameBody, Sentence, asked_for, body_schema, most_steps, read_form
from lumos.serving.service import Service
from lumos.serving.store import Video

HERE = FilePath(__file__).parent
FILE: dict[str, Any] = {"content": {"video/mp4": {}, "image/gif": {}, "image/png": {}}, "description": "the file"}
STREAM: dict[str, Any] = {"content": {"text/event-stream": {}}, "description": "the events"}
FORM = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
FORM_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}
SPAN = r"(\d{1,15}-(\d{1,15})?|-\d{1,15})"  # int() refuses thousands of digits
RANGES = re.compile(rf"bytes=\s*{SPAN}(\s*,\s*{SPAN})*\s*", re.IGNORECASE)
ABOUT = """Text (and an image, or the start of a video) to video. Send a request, follow its events or ask for it until its
status is `completed`, then fetch its content. With a key, send `Authorization: Bearer KEY`."""

router = APIRouter(responses=ERRORS)


def create_app(service: Service) -> Access:
    """The page and the API, behind what guards them."""
    app = FastAPIOffline(
        title="Lumos", version=__version__, description=ABOUT, favicon_url="/icon.svg", exception_handlers=HANDLERS
    )
    app.state.service = service
    app.router.routes += router.routes  # include_router makes them anew, in the first request
    add_login(app, service.config)
    return Access(app, service.config, service.metrics)


async def _service(request: Request) -> Any:
    return request.app.state.service


Variant = Literal["video", "large", "thumbnail", "spritesheet"]
Name = Annotated[str, Header(alias="X-Client-Id", max_length=64, description="who asks: keeps the queue fair, selects the list")]
Id = Annotated[str, Path(description="id of a video")]
TheService = Annotated[Service, Depends(_service)]


async def _client(request: Request, name: Name = "") -> Client:
    return Client(request.client.host if request.client else "", name)


async def _video(service: TheService, id: Id) -> Video:
    if id not in service.store.known:
        raise RequestError(404, "there is no such video; it may have been deleted, or removed after its time", code="not_found")
    return service.store.known[id]


TheClient = Annotated[Client, Depends(_client)]
TheVideo = Annotated[Video, Depends(_video)]


@router.post("/v1/videos", openapi_extra={"requestBody": body_schema()})
async def make_video(request: Request, service: TheService, client: TheClient) -> dict[str, Any]:
    service.check_room(client)  # before a file is decoded for nothing
    async with asked_for(request, service) as (wanted, starts, continued):
        return service.document(service.submit(wanted, client, starts, continued))


@router.get("/v1/videos")
async def list_videos(
    service: TheService,
    client: TheClient,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=64, description="id of the last one that is known")] = None,
) -> dict[str, Any]:
    """Those of this client, newest first."""
    digest = client.digest
    mine = [video for video in service.store.known.values() if video.client == digest]  # the oldest first
    mine = mine if order == "asc" else mine[::-1]
    ids = [None, *(video.id for video in mine)]
    if after not in ids:
        raise RequestError(400, "after must be the id of a video in this list; leave it out to start", "after")
    rest = mine[ids.index(after) :]
    shown = [service.document(video) for video in rest[:limit]]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {"object": "list", "data": shown, "first_id": first, "last_id": last, "has_more": len(rest) > limit}


@router.get("/v1/videos/{id}")
async def show_video(service: TheService, video: TheVideo) -> dict[str, Any]:
    return service.document(video)


@router.post("/v1/videos/{id}/cancel")
async def cancel_video(service: TheService, video: TheVideo) -> dict[str, Any]:
    service.cancel(video)
    return service.document(video)


@router.delete("/v1/videos/{id}")
async def delete_video(service: TheService, video: TheVideo) -> dict[str, Any]:
    """Stop making it, and forget it."""
    service.cancel(video)
    service.store.delete(video.id)
    return {"id": video.id, "object": "video.deleted", "deleted": True}


@router.get("/v1/videos/{id}/content", response_class=Response, responses={200: FILE, 206: FILE})
async def download_content(
    request: Request,
    service: TheService,
    video: TheVideo,
    format: Annotated[Literal["mp4", "gif", "png"] | None, Query(description="default mp4, png for an image")] = None,
    variant: Annotated[Variant, Query(description="as in OpenAI's API; large: sides of 512 pixels")] = "video",
    download: Annotated[bool, Query(description="as a file to be saved")] = False,
) -> Response:
    """The finished file. Range and conditional requests work."""
    if video.status != "completed":
        why = "failed" if video.status == "failed" else "not finished yet"
        raise RequestError(409, f"this video is {why}; GET /v1/videos/{video.id} says more", code="not_completed")
    usual = "png" if video.request.frames == 1 or variant == "spritesheet" else "mp4"
    ending = "png" if variant == "thumbnail" else format or usual
    file = service.store.folder(video.id) / ("thumbnail.png" if variant == "thumbnail" else f"video.{ending}")
    if file.is_file() and variant == "large":
        file = await service.enlarged(video, ending)
    if not file.is_file():
        raise RequestError(404, "the files of this video are gone; make it again", code="not_found")
    return _file_answer(request, file, f"lumos-{video.id[6:14]}.{ending}" if download else None)


def _file_answer(request: Request, file: FilePath, name: str | None = None, cache: str = "private, max-age=3600") -> Response:
    """A file as RFC 9110 wants it: conditions first, then ranges, of which unknown or broken ones count as none."""
    answer = FileResponse(file, filename=name, headers={"cache-control": cache}, stat_result=file.stat())
    given, tag = request.headers, answer.headers["etag"]
    changed = parsedate_to_datetime(answer.headers["last-modified"])

    def is_named(tags: str, date: str) -> bool | None:
        """Whether the file is one that these headers name; None when they name none."""
        if tags in given:
            return any(part.strip().removeprefix("W/") in (tag, "*") for part in given[tags].split(","))
        try:
            return changed <= parsedate_to_datetime(given[date])
        except (KeyError, ValueError, TypeError):  # what is no date counts as if it were not there
            return None

    if is_named("if-match", "if-unmodified-since") is False:
        raise RequestError(412, "the file has changed; ask for it without conditions", code="changed")
    if is_named("if-none-match", "if-modified-since"):
        return Response(status_code=304, headers={key: answer.headers[key] for key in ("etag", "last-modified", "cache-control")})
    size, ranges = file.stat().st_size, given.get("range", "")
    spans = re.findall(r"(\d*)-(\d*)", ranges) if RANGES.fullmatch(ranges) else []
    is_broken = not spans or any(first and last and int(first) > int(last) for first, last in spans)
    within = [f"{first}-{last}" for first, last in spans if (int(first) < size if first else int(last) > 0) and not is_broken]
    if not (is_broken or within or "if-range" in given):
        headers = {"content-range": f"bytes */{size}"}
        raise RequestError(416, f"the range must lie within the file's {size} bytes", code="range", headers=headers)
    asked = [(b"range", f"bytes={','.join(within)}".encode())] if within else []  # the library answers others in its own way
    request.scope["headers"] = [item for item in request.scope["headers"] if item[0] != b"range"] + asked
    return answer


LastSeen = Annotated[str, Header(alias="Last-Event-ID", max_length=20)]


@router.get("/v1/videos/{id}/events", response_class=StreamingResponse, responses={200: STREAM})
async def follow_events(request: Request, service: TheService, video: TheVideo, last: LastSeen = "") -> Response:
    """Server-sent events: status, and frames as they are made.

    `status`: the video's document. `frames`: {index, first_frame, frames: [data URLs]}; its id lets a client that lost the
    connection go on (Last-Event-ID). Ends after the status `completed` or `failed`.
    """
    seen = int(last) + 1 if last.isascii() and last.isdigit() else 0
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    if request.scope.get("is_head"):  # the stream itself would only end with the video
        return Response(media_type="text/event-stream", headers=headers)
    return StreamingResponse(_events(service, video, seen), media_type="text/event-stream", headers=headers)


async def _events(service: Service, video: Video, seen: int) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    async for word, news in service.follow(video, seen):
        if word == "frames":
            number, first, pictures = news
            data = {"index": number, "first_frame": first, "frames": [_data_url(picture) for picture in pictures]}
            yield f"event: frames\nid: {number}\ndata: {json.dumps(data)}\n\n"
        else:
            yield f"event: status\ndata: {json.dumps(service.document(news))}\n\n"


async def _live(service: TheService, id: Annotated[str, Path(description="id of a session")]) -> Live:
    if id not in service.sessions.known:
        raise RequestError(404, "there is no such session; it may have ended, begin another", code="not_found")
    return service.sessions.known[id]


TheSession = Annotated[Live, Depends(_live)]


@router.post("/v1/sessions", openapi_extra={"requestBody": body_schema()})
async def begin_session(request: Request, service: TheService, client: TheClient) -> dict[str, Any]:
    """A video without end: the fields are those of a video, but for its length and last frame. It may start from a picture."""
    service.check_loaded()
    service.sessions.check_room(client)
    async with asked_for(request, service, is_session=True) as (wanted, files, _):
        given = {at: file.read_bytes() for at, file in files.items()}  # of one picture each
    return service.sessions.open(wanted, client, service.about["temporal"], given).document()


@router.get("/v1/sessions/{id}")
async def show_session(live: TheSession) -> dict[str, Any]:
    return live.document()


@router.get("/v1/sessions/{id}/frames")
async def next_frames(
    service: TheService, live: TheSession, after: Annotated[int, Query(ge=0, description="frames that you have")] = 0
) -> dict[str, Any]:
    """The session, and the frames after those that you have as soon as they are made: `first_frame`, `pictures` (data URLs).

    At most two latent frames are made beyond these. No pictures come after 15 s, when paused, or when it has gone back.
    """
    with refusing("after"):
        first, pictures = await service.sessions.follow(live, after) or (live.frames, [])
    return {**live.document(), "first_frame": first, "pictures": [_data_url(picture) for picture in pictures]}


@router.post("/v1/sessions/{id}/say")
async def say_sentence(service: TheService, live: TheSession, said: Sentence) -> dict[str, Any]:
    """Another sentence, which holds from the next latent frame on."""
    with refusing("prompt", "invalid_prompt"):
        told = in_known_words(said.prompt, service.prompts.text.words)
        service.prompts.ids(told.prompt, service.about["frames"], live.request.height, live.request.width)
    service.sessions.say(live, told.prompt, told.note)
    return live.document()


@router.post("/v1/sessions/{id}/back")
async def go_back(service: TheService, live: TheSession, to: FrameBody) -> dict[str, Any]:
    """Make it anew from a frame on, in another way. Ask for frames to go on."""
    with refusing("frame"):
        service.sessions.back(live, to.frame)
    return live.document()


@router.post("/v1/sessions/{id}/pause")
async def pause_session(service: TheService, live: TheSession) -> dict[str, Any]:
    """Make nothing more until somebody asks for frames again."""
    service.sessions.pause(live)
    return live.document()


@router.post("/v1/sessions/{id}/fork")
async def fork_session(service: TheService, client: TheClient, live: TheSession) -> dict[str, Any]:
    """Another session that goes on from here."""
    return (await service.sessions.fork(live, client)).document()


@router.post("/v1/sessions/{id}/end")
async def end_session(service: TheService, live: TheSession) -> dict[str, Any]:
    service.sessions.end(live)
    return live.document()


@router.post("/v1/uploads", openapi_extra=FORM_BODY)
async def upload_file(request: Request, service: TheService, client: TheClient) -> dict[str, Any]:
    """Send an image or video to start from, and see it as the model will."""
    service.check_loaded()
    size = service.about["height"], service.about["width"], service.about["fps"]
    async with read_form(request, ("file",)) as (values, files):
        if not files or values:
            raise RequestError(400, "send one field, file, with an image or video in it", "file")
        with refusing("file", "unusable_file"):
            id, decoded, preview = await service.uploads.add(files["file"], size, client.address)
    shown = {"kind": "video" if decoded.is_video else "image", "frames": decoded.frames, "note": decoded.note or None}
    return {"id": id, "object": "upload", **shown, "preview": _data_url(preview)}


def _data_url(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


@router.get("/v1/models")
async def list_models(service: TheService) -> dict[str, Any]:
    return {"object": "list", "data": [await show_model(service, service.config.weights_name)]}


@router.get("/v1/models/{id}")
async def show_model(service: TheService, id: str) -> dict[str, Any]:
    config, about = service.config, service.about
    if id != config.weights_name:
        raise RequestError(404, f"there is no such model; this server has {config.weights_name}", code="model_not_found")
    steps = most_steps(config, about, about["height"], about["width"])
    limits = {"max_frames": config.max_frames, "max_steps": steps, "upload_bytes": config.upload_mb * 2**20}
    return {"id": id, "object": "model", "owned_by": "lumos", **about, **limits, "key_needed": config.api_key is not None}


@router.get("/health")
async def health(service: TheService, response: Response) -> dict[str, Any]:
    """Whether videos can be made now."""
    ready = service.loaded.is_set()
    response.status_code = 200 if ready else 503
    workers = [
        {"device": worker.device, "ready": worker.ready.is_set(), "running": bool(worker.making)} for worker in service.workers
    ]
    status, running = "ok" if ready else "starting", any(worker["running"] for worker in workers)
    return {"status": status, "waiting": len(service.queue.waiting), "running": running, "workers": workers}


@router.get("/live")
async def live() -> dict[str, Any]:
    """Whether the server runs, also while its model is loaded."""
    return {"status": "ok"}


@router.get("/metrics", response_class=Response)
async def metrics(service: TheService) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type="text/plain; version=0.0.4")


async def page_file(request: Request) -> Response:
    return _file_answer(request, HERE / (request.url.path[1:] or "page.html"), cache="no-cache")


for _name in ("", "page.css", "page.js", "stage.js", "live.js", "client.js", "icon.svg"):
    router.add_api_route(f"/{_name}", page_file, include_in_schema=False)
