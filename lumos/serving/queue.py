"""Who is next: a bounded queue that is fair between addresses, and between the clients at one, however many requests one sends.

The next request is that of the address served longest ago, of its clients the one served longest ago, of theirs the oldest.
"""

from __future__ import annotations

from dataclasses import dataclass

from lumos.serving.request import VideoRequest


@dataclass(frozen=True)
class Client:
    """Somebody who asks: where from, and the name that they gave themselves (empty for none)."""

    address: str
    name: str = ""


@dataclass(frozen=True)
class Waiting:
    id: str
    client: Client
    request: VideoRequest


class QueueFull(Exception):
    """No room: for this client or address (`mine`), or for anybody."""

    def __init__(self, mine: bool) -> None:
        super().__init__("the queue is full")
        self.mine = mine


class FairQueue:
    """Waiting requests in order of arrival, and who was served when. Names are free, so addresses have a limit of their own."""

    def __init__(self, room: int, room_per_client: int, room_per_address: int) -> None:
        self.room, self.room_per_client, self.room_per_address = room, room_per_client, room_per_address
        self.waiting: list[Waiting] = []
        self.served: dict[str | Client, int] = {}

    def __len__(self) -> int:
        return len(self.waiting)

    def check_room(self, client: Client) -> None:
        """Raises QueueFull when `client` may not add another request."""
        here = [item.client for item in self.waiting if item.client.address == client.address]
        if here.count(client) >= self.room_per_client:
            raise QueueFull(mine=True)
        if len(self.waiting) >= self.room:
            raise QueueFull(mine=False)
        if len(here) >= self.room_per_address:
            raise QueueFull(mine=True)

    def add(self, item: Waiting) -> None:
        self.check_room(item.client)
        self.waiting.append(item)

    def remove(self, id: str) -> bool:
        """Whether it was waiting."""
        before = len(self.waiting)
        self.waiting = [item for item in self.waiting if item.id != id]
        return len(self.waiting) < before

    def next_batch(self, most: int) -> list[Waiting]:
        """Take the next request, and up to `most` - 1 others that can be made together with it, in fair order."""
        batch: list[Waiting] = []
        while len(batch) < most:
            free = [item for item in self.waiting if not batch or item.request.can_batch_with(batch[0].request)]
            if not free:
                break
            chosen = min(free, key=lambda item: [self.served.get(who, 0) for who in (item.client.address, item.client)])
            self.waiting.remove(chosen)
            self.served[chosen.client.address] = self.served[chosen.client] = max(self.served.values(), default=0) + 1
            batch.append(chosen)
        if not self.waiting:
            self.served.clear()  # nobody has been passed over, and strangers' names are not kept
        return batch

    def order(self) -> list[str]:
        """The waiting ids in the order in which they will be served one at a time, as things stand."""
        twin = FairQueue(self.room, self.room_per_client, self.room_per_address)
        twin.waiting, twin.served = list(self.waiting), dict(self.served)
        return [twin.next_batch(1)[0].id for _ in self.waiting]
