"""Who is next: a bounded queue that is fair between clients, however many requests one of them sends.

The next request is that of the address served longest ago, of its clients the one served longest ago, of theirs the oldest.
"""

from __future__ import annotations

from dataclasses import dataclass

from lumos.serving.record import Asked


@dataclass(frozen=True)
class Client:
    """Somebody who asks: where from, and the name that they gave themselves (empty for none)."""

    address: str
    name: str = ""


@dataclass(frozen=True)
class Waiting:
    id: str
    client: Client
    asked: Asked


class Full(Exception):
    """No room: for this client (`mine`), or for anybody."""

    def __init__(self, mine: bool) -> None:
        super().__init__("the queue is full")
        self.mine = mine


class FairQueue:
    """Waiting requests in order of arrival, and when whom was served last."""

    def __init__(self, room: int, room_per_client: int) -> None:
        self.room, self.room_per_client = room, room_per_client
        self.waiting: list[Waiting] = []
        self.served: dict[Client, int] = {}
        self.clock = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def check_room(self, client: Client) -> None:
        """Raises Full when `client` may not add another request."""
        if sum(item.client == client for item in self.waiting) >= self.room_per_client:
            raise Full(mine=True)
        if len(self.waiting) >= self.room:
            raise Full(mine=False)

    def add(self, item: Waiting) -> None:
        self.check_room(item.client)
        self.waiting.append(item)

    def remove(self, id: str) -> bool:
        """Whether it was waiting."""
        before = len(self.waiting)
        self.waiting = [item for item in self.waiting if item.id != id]
        return len(self.waiting) < before

    def next_batch(self, most: int, batches_repeat: bool = False) -> list[Waiting]:
        """Take the next request, and up to `most` - 1 others that can be made together with it, in fair order.

        batches_repeat: whether a seed gives the same video in any batch (worker.py finds out); if not, it is made alone.
        """
        batch: list[Waiting] = []
        while len(batch) < most:
            free = [item for item in self.waiting if not batch or item.asked.agrees(batch[0].asked, batches_repeat)]
            if not free:
                break
            chosen = min(free, key=lambda item: (self._address_served(item.client), self.served.get(item.client, 0)))
            self.waiting.remove(chosen)
            self.clock += 1
            self.served[chosen.client] = self.clock
            batch.append(chosen)
        if not self.waiting:
            self.served.clear()  # nobody has been passed over, and strangers' names are not kept
        return batch

    def order(self) -> list[str]:
        """The waiting ids in the order in which they will be served one at a time, as things stand."""
        twin = FairQueue(self.room, self.room_per_client)
        twin.waiting, twin.served, twin.clock = list(self.waiting), dict(self.served), self.clock
        return [twin.next_batch(1)[0].id for _ in self.waiting]

    def _address_served(self, client: Client) -> int:
        return max((when for other, when in self.served.items() if other.address == client.address), default=0)
