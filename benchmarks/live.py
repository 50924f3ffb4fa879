"""20 live sessions on one server, whose readers read, stall, vanish in the middle of a request, or flood it with sentences.

python benchmarks/live.py [--weights NAME] [--sessions 20] [--seconds 60]

Prints: answers by status, the slowest /health, frames a second of all readers together, memory before, during and after, and how
many sessions are left when nobody has asked for a while. Exit code 1 if a promise is broken.
"""

import argparse
import asyncio
import collections
import json
import sys
import tempfile
import time
from pathlib import Path

import httpx2 as httpx
from serving import PROMPTS, Server, watch_health

from lumos.config import PACKAGED

KINDS = ("reads", "stalls", "vanishes", "floods")
LONG = 2000 * "\U0001f98a"  # said once in a flood: too long, and answered 400
IDLE = 5  # seconds after which a session that nobody reads ends
Ends = collections.Counter[str]


async def live(server: Server, number: int, seconds: float, ends: Ends) -> int:
    """One client and its session; frames that it has read."""
    kind, until, after = KINDS[number % len(KINDS)], time.monotonic() + seconds, 0
    async with httpx.AsyncClient(base_url=server.url, headers={"X-Client-Id": f"client {number}"}, timeout=120) as http:

        async def ask(method: str, path: str, **sent: object) -> httpx.Response:
            answer = await http.request(method, path, **sent)
            ends[f"{kind}: {answer.status_code}"] += 1
            return answer

        asked = {"prompt": PROMPTS[number % len(PROMPTS)], "steps": 4}
        session = "/v1/sessions/" + (await ask("POST", "/v1/sessions", json=asked)).json()["id"]
        while time.monotonic() < until:
            if kind == "vanishes":
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(f"GET {session}/frames?after={after} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                await writer.drain()
                await asyncio.sleep(1)
                writer.transport.abort()
                continue
            if kind == "floods":
                for turn in range(20):
                    await ask("POST", session + "/say", json={"prompt": PROMPTS[turn % len(PROMPTS)] if turn else LONG})
            answer = await ask("GET", session + "/frames", params={"after": after})
            if answer.status_code != 200:
                break
            if kind == "stalls":
                await asyncio.sleep(IDLE * 0.8)
            else:
                after += len(answer.json()["pictures"])
    return after if kind in ("reads", "floods") else 0


async def measure(server: Server, sessions: int, seconds: float) -> dict[str, object]:
    ends: Ends = collections.Counter()
    memory = [server.memory()]
    with watch_health(server) as health:
        begin = time.monotonic()
        clients = [asyncio.create_task(live(server, number, seconds, ends)) for number in range(sessions)]
        await asyncio.sleep(seconds * 0.8)
        memory.append(await asyncio.to_thread(server.memory))
        read = sum(await asyncio.gather(*clients))
        rate = read / (time.monotonic() - begin)
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        await asyncio.sleep(IDLE + 20)  # a request that its reader has left waits for at most half of IDLE
        [left] = [
            line.split()[1] for line in (await http.get("/metrics")).text.splitlines() if line.startswith("lumos_sessions ")
        ]
    memory.append(server.memory())
    return {
        "answers": dict(sorted(ends.items())),
        "slowest /health, ms": round(1000 * max(health)),
        "frames a second, all readers": round(rate, 1),
        "memory before, during, after, MiB": [round(size / 2**20) for size in memory],
        "sessions left": float(left),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", default=PACKAGED)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        server = Server(args.weights, Path(place), options=("--session-idle", str(IDLE)))
        try:
            found = asyncio.run(measure(server, args.sessions, args.seconds))
        finally:
            code = server.stop()
    print(json.dumps(found, indent=1))
    bad = [end for end in found["answers"] if end[-3:] not in ("200", "400", "404", "429", "503")]  # type: ignore[attr-defined]
    return int(bool(bad) or found["sessions left"] != 0 or code != 0)


if __name__ == "__main__":
    sys.exit(main())
