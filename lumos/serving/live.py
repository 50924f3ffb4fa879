"""Sessions: videos that are watched while they are made, and told on the way what to show.

The worker makes a latent frame of each session that wants one, in turn with those of a video. That is while a reader waits, at
most two ahead of what that reader has: a session that nobody reads stands still, and ends after a while.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lumos.serving.config import ServeConfig
from lumos.serving.errors import RequestError
from lumos.serving.queue import Client
from lumos.serving.request import VideoRequest
from lumos.serving.store import new_id
from lumos.tokenizer.compression import latent_frames, pixel_frames

if TYPE_CHECKING:
    from lumos.serving.pool import Worker

AHEAD = 2  # latent frames that are made beyond those that a reader has
ENDED = ("ended", "this session was ended")
IDLE = ("idle", "nobody asked for frames of this session, so it was ended; begin another")
Part = tuple[int, list[bytes]]  # number of the first frame, WebP pictures


@dataclass(eq=False)
class Live:
    """A session, as its readers see it."""

    id: str
    client: Client
    worker: "Worker"  # that holds it
    request: VideoRequest
    temporal: int  # frames per latent frame
    sentences: list[tuple[int, str]]  # first frame of each
    note: str  # what the model does not know of the newest one
    frames: int = 0  # made so far
    wanted: int = 0  # frames up to which more may be made
    parts: deque[Part] = field(default_factory=lambda: deque(maxlen=AHEAD + 1))  # the newest
    back: int | None = None  # frames to keep, and what is said then: the worker is told with its next latent frame
    said: str | None = None
    busy: bool = False  # a latent frame is being made
    over: tuple[str, str] | None = None  # why it has ended
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)  # set, and replaced, whenever there is something new

    def tell(self) -> None:
        self.news.set()
        self.news = asyncio.Event()

    def document(self) -> dict[str, Any]:
        """What a client sees of it. A sentence without a frame holds from the next one on."""
        asked, later = self.request, [(None, self.said)] if self.said else []
        status = "ended" if self.over else "making" if self.busy or self.frames < self.wanted else "paused"
        return {
            "id": self.id,
            "object": "session",
            "status": status,
            "frames": self.frames,
            "sentences": [{"frame": frame, "prompt": prompt} for frame, prompt in [*self.sentences, *later]],
            "note": self.note or None,
            "keyframes": sorted(asked.keyframes),
            "size": f"{asked.width}x{asked.height}",
            **{name: getattr(asked, name) for name in ("fps", "seed", "steps", "guidance", "temperature")},
            "error": {"code": self.over[0], "message": self.over[1]} if self.over else None,
        }


class Sessions:
    """All sessions of a server. `freest`: the worker for another one, which it then stays with."""

    def __init__(self, config: ServeConfig, freest: Callable[[], "Worker"]) -> None:
        self.config, self.freest = config, freest
        self.known: dict[str, Live] = {}

    def open(self, request: VideoRequest, client: Client, temporal: int, given: Mapping[int, bytes] | None = None) -> Live:
        """Begin a session. given: files of its given frames, by number of the first. RequestError when there are enough."""
        self.check_room(client)
        first = [(request.given, request.prompt)]
        live = Live(new_id("session"), client, self.freest(), request, temporal, first, request.note)
        live.worker.send("open", live.id, request, given or {})
        return self._add(live)

    async def fork(self, source: Live, client: Client) -> Live:
        """Another session that goes on from here. RequestError when there are enough, or the source has ended meanwhile."""
        while source.busy:
            await source.news.wait()
        if source.over:
            raise RequestError(404, source.over[1], code="not_found")
        self.check_room(client)
        live = replace(source, id=new_id("session"), client=client, wanted=0, timers={}, news=asyncio.Event())
        live.parts = source.parts.copy()
        live.worker.send("fork", live.id, source.id)
        return self._add(live)

    async def follow(self, live: Live, after: int) -> Part | None:
        """What comes after so many frames, as soon as it is made; None when that takes long, or the session stands or has ended.

        ValueError for a number of frames that ends within a latent frame.
        """
        pause = min(15.0, self.config.session_idle / 2)
        latent = latent_frames(after, live.temporal) if after else 0
        if after > live.frames:  # it has gone back behind this reader, for whom nothing is to be made
            return None
        live.wanted = pixel_frames(latent + AHEAD, live.temporal)
        self._touch(live)
        self._ask(live.worker)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                while not (part := next((part for part in live.parts if part[0] >= after), None)):
                    if after > live.frames or live.over or not live.wanted:
                        return None
                    await live.news.wait()
                return part
        return None

    def say(self, live: Live, prompt: str, note: str = "") -> None:
        self._touch(live)
        live.said, live.note = prompt, note
        live.tell()

    def back(self, live: Live, frame: int) -> None:
        """Make all from frame number `frame` on anew. ValueError for one that no latent frame starts with."""
        least = live.request.given
        if not least <= frame <= live.frames:
            raise ValueError(f"frame must be {least} to the {live.frames} that were made, got {frame}")
        if frame:
            latent_frames(frame, live.temporal)
        self._touch(live)
        live.back, live.said, live.frames, live.wanted = frame, None, frame, 0
        live.parts = deque((part for part in live.parts if part[0] < frame), maxlen=live.parts.maxlen)
        live.sentences = [sentence for sentence in live.sentences if sentence[0] <= frame]
        live.note = "" if live.sentences[1:] else live.request.note
        live.tell()

    def pause(self, live: Live) -> None:
        """Make nothing more until a reader asks for frames again."""
        self._touch(live)
        live.wanted = 0
        live.tell()

    def end(self, live: Live, reason: tuple[str, str] = ENDED) -> None:
        if live.over:
            return
        live.over = reason
        del self.known[live.id]
        for timer in live.timers.values():
            timer.cancel()
        live.worker.send("end", live.id)
        live.tell()

    def lose(self, worker: "Worker", reason: tuple[str, str]) -> None:
        """A worker has stopped, and with it all sessions that it held."""
        for live in [live for live in self.known.values() if live.worker is worker]:
            self.end(live, reason)

    def heard(self, worker: "Worker", id: str, made: Part | None, news: Any) -> None:
        """The worker has made a latent frame (news: all sentences) or could not (news: why)."""
        if live := self.known.get(id):
            live.busy = False
            if "hung" in live.timers:
                live.timers["hung"].cancel()
            if made is None:
                self.end(live, news)
            elif live.back is None:  # otherwise it is one that has been taken back meanwhile
                live.parts.append(made)
                live.frames, live.sentences = made[0] + len(made[1]), news
            live.tell()
        self._ask(worker)

    def _ask(self, worker: "Worker") -> None:
        """Once the worker has made what it was asked for, ask for a latent frame of every session that wants one."""
        mine = [live for live in self.known.values() if live.worker is worker]
        wanted = [live for live in mine if live.frames < live.wanted]
        if not wanted or any(live.busy for live in mine):
            return
        worker.send("next", [(live.id, live.back, live.said) for live in wanted])
        for live in wanted:
            live.busy, live.back, live.said = True, None, None
            live.timers["hung"] = asyncio.get_running_loop().call_later(self.config.time_limit, worker.kill)

    def _touch(self, live: Live) -> None:
        if "idle" in live.timers:
            live.timers["idle"].cancel()
        live.timers["idle"] = asyncio.get_running_loop().call_later(self.config.session_idle, self.end, live, IDLE)

    def _add(self, live: Live) -> Live:
        self.known[live.id] = live
        self._touch(live)
        return live

    def check_room(self, client: Client) -> None:
        """RequestError when there are enough sessions."""
        config = self.config
        here = [live.client for live in self.known.values() if live.client.address == client.address]
        mine, most = here.count(client), config.per_address(config.sessions, config.sessions_per_client)
        if len(self.known) >= config.sessions and mine < config.sessions_per_client:
            raise RequestError(503, "all sessions are taken", code="sessions_full", retry=60)
        if mine >= config.sessions_per_client or len(here) >= most:
            raise RequestError(429, "you have enough sessions; end one", code="too_many_sessions", retry=60)
