"""Who is next: a bounded queue that is fair between addresses, and between the clients at one, however many requests one sends.

The next video is one of the address served longest ago, of its clients the one served longest ago, of theirs the oldest.
"""

import asyncio
import hashlib
import time
from dataclasses import dataclass, field

from lumos.serving.errors import RequestError
from lumos.serving.store import Video


@dataclass(frozen=True)
class Client:
    """Somebody who asks: where from, and the name that they gave themselves (empty for none)."""

    address: str
    name: str = ""

    @property
    def digest(self) -> str:
        """What a client's videos are found again by: of the name if there is one, else of the address."""
        return hashlib.sha256((f"name {self.name}" if self.name else f"address {self.address}").encode()).hexdigest()


@dataclass(eq=False)
class Job:
    """A video that is not finished, and what is kept of it only until then."""

    video: Video
    client: Client
    queued: float = field(default_factory=time.monotonic)
    frames: list[tuple[int, list[bytes]]] = field(default_factory=list)  # number of the first, its WebP pictures
    news: asyncio.Event = field(default_factory=asyncio.Event)  # set, and replaced, whenever there is something new

    def tell(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class FairQueue:
    """Waiting jobs in order of arrival, and who was served when. Names are free, so addresses have a limit of their own."""

    def __init__(self, room: int, room_per_client: int, room_per_address: int) -> None:
        self.room, self.room_per_client, self.room_per_address = room, room_per_client, room_per_address
        self.waiting: list[Job] = []
        self.served: dict[str | Client, int] = {}  # address or client -> number of the turn in which it was served last

    def check_room(self, client: Client, seconds: int) -> None:
        """RequestError when `client` may not add another job, with the seconds until there may be room."""
        here = [job.client for job in self.waiting if job.client.address == client.address]
        if len(self.waiting) >= self.room and here.count(client) < self.room_per_client:
            raise RequestError(503, "the queue is full", code="queue_full", retry=seconds)
        if here.count(client) >= self.room_per_client or len(here) >= self.room_per_address:
            raise RequestError(429, "you have enough requests waiting", code="too_many_waiting", retry=seconds)

    def order(self) -> list[Job]:
        """Everything that waits, in the order in which it will be served one at a time, as things stand."""
        left, served, ordered = list(self.waiting), dict(self.served), []
        while left:
            job = min(left, key=lambda job: [served.get(who, 0) for who in (job.client.address, job.client)])
            served[job.client.address] = served[job.client] = max(served.values(), default=0) + 1
            left.remove(job)
            ordered.append(job)
        return ordered

    def next_batch(self, most: int) -> list[Job]:
        """Take the next job, and up to `most` - 1 others that can be made together with it, in fair order."""
        first, *others = self.order()
        batch = [first, *(job for job in others if job.video.request.can_batch_with(first.video.request))][:most]
        for job in batch:
            self.waiting.remove(job)
            self.served[job.client.address] = self.served[job.client] = max(self.served.values(), default=0) + 1
        if not self.waiting:
            self.served.clear()  # nobody has been passed over, and strangers' names are not kept
        return batch
