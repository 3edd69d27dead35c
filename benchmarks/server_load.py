"""One policy server under load, each part in this order and in one run: clients in processes of their own, a
policy that answers any number of requests in 20 ms.

python benchmarks/server_load.py [PART ...]

throughput    8 clients that ask in a loop, beside the same policy one request at a time
flood         one client alone, and beside 1, 8 and 50 that ask in a loop; one at a time for comparison; and
              the same clients at a server that reads no request and answers each 20 ms later, which is what
              they and the machine take by themselves: all share its processors
hostile       one client alone, and beside senders of messages that are large once they are decoded
memory        resident memory of the server under each kind of hostile message, and of partial frames
swap          requests that fail while a model is replaced ten times under 8 clients

With parts named, the others' numbers stay as they were; `measured` says when each was.

Times are those that the client measures; `at_server_p99_ms` is the server's own, from a request's arrival to
its reply.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import results
from websockets.sync.client import ClientConnection, connect

from ulna.robot.report.report import commit

SECONDS = 5.0  # of each measurement
SERVER = """
import sys, threading, time
import numpy as np
from ulna.datasets.features import ACTION, Feature
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.models import Models
from ulna.policies.serving.server import PolicyServer

class Constant:
    def __init__(self, folder):
        self.metadata = Metadata(features={ACTION: Feature((7,), "float32")}, horizon=16, checkpoint=folder)
    def infer(self, request):
        time.sleep(0.02)
        return {"actions": np.zeros((16, 7), np.float32), "nfe": 1, "checkpoint": self.metadata.checkpoint}

class Together(Constant):
    def infer_many(self, requests):
        return [self.infer(requests[0])] * len(requests)

load = Together if sys.argv[1] == "together" else Constant
models = Models({"policy": load("first")}, load)
PolicyServer(models, port=0).run(lambda url: print(url, flush=True))
"""
STATE = {"observation.state": np.zeros(14, np.float32)}


TIMER = """
import asyncio, numpy as np
from ulna.datasets.features import ACTION, Feature
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.protocol import pack
from ulna.policies.serving.websocket import Connection, Room

METADATA = Metadata(features={ACTION: Feature((7,), "float32")}, horizon=16, checkpoint="first")
REPLY = pack({"actions": np.zeros((16, 7), np.float32), "nfe": 1, "checkpoint": "first"})

class Timer:
    def __init__(self, connection):
        self.connection = connection
    def asked(self, head):
        return None
    def opened(self):
        self.connection.send(pack(METADATA.to_json()))
    def received(self, message, size):
        asyncio.get_running_loop().call_later(0.02, self.answer, size)
        return True
    def answer(self, size):
        self.connection.send(REPLY)
        self.connection.release(size)
    def closed(self, reason):
        pass

async def main():
    room = Room(1 << 28, 256)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(room, 1 << 26, Timer), "127.0.0.1", 0)
    print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


class Server:
    """In a process of its own. kind: together, alone or timer."""

    def __init__(self, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", TIMER if kind == "timer" else SERVER, kind],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self.port = int(self.url.rpartition(":")[2])

    def resident_mb(self) -> float:
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return round(int(pages) * os.sysconf("SC_PAGESIZE") / 1e6, 1)

    def load(self, name: str) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/models",
            json.dumps({"name": "policy", "path": name}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).close()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def served(kind: str) -> Iterator[Server]:
    server = Server(kind)
    try:
        yield server
    finally:
        server.close()


def ask(url: str, seconds: float, pause_s: float, ready: Any, out: Any) -> None:
    """In a client's process: milliseconds of each request as it measures them and as the server does, and
    errors."""
    from ulna.policies.serving.client import PolicyClient, PolicyServerError

    ms, at_server, errors = [], [], 0
    with PolicyClient(url, timeout_s=60.0) as client:
        client.infer(STATE)
        ready.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            try:
                reply = client.infer(STATE)
                ms.append((time.perf_counter() - began) * 1e3)
                if "server_timing" in reply:
                    at_server.append(reply["server_timing"]["infer_ms"])
            except PolicyServerError:
                errors += 1
            if pause_s:
                time.sleep(pause_s * random.uniform(0.5, 1.5))
    out.put((ms, at_server, errors))


def flood(url: str, clients: int, stop: Any, ready: Any) -> None:
    """In one process: clients that ask in a loop, each in a thread."""
    from ulna.policies.serving.client import PolicyClient

    def loop() -> None:
        with contextlib.suppress(ConnectionError), PolicyClient(url, timeout_s=60.0) as client:
            while not stop.is_set():
                client.infer(STATE)

    threads = [threading.Thread(target=loop) for _ in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    for thread in threads:
        thread.join()


SPAWN = multiprocessing.get_context("spawn")


def measured(
    url: str,
    clients: int,
    pause_s: float = 0.0,
    floods: int = 0,
    beside: Callable[[], object] | None = None,
    during: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """What `clients` clients measure. floods: others that ask in a loop. beside: something that runs in a
    thread of this process until it is over, called again and again. during: called once meanwhile."""
    stop, out = SPAWN.Event(), SPAWN.Queue()
    ready = SPAWN.Barrier(clients + 1 + (floods > 0))
    flooding = [SPAWN.Process(target=flood, args=(url, floods, stop, ready))] if floods else []
    asking = [SPAWN.Process(target=ask, args=(url, SECONDS, pause_s, ready, out)) for _ in range(clients)]
    for process in (*flooding, *asking):
        process.start()
    ready.wait()
    over = threading.Event()

    def again() -> None:
        while beside is not None and not over.is_set():
            beside()

    thread = threading.Thread(target=again)
    thread.start()
    during()
    found = [out.get() for _ in asking]
    over.set()
    stop.set()
    thread.join()
    for process in (*flooding, *asking):
        process.join()
    ms = [value for values, _, _ in found for value in values]
    at_server = [value for _, values, _ in found for value in values]
    return {
        "requests_per_s": round(len(ms) / SECONDS, 1),
        "p50_ms": round(float(np.median(ms)), 1),
        "p99_ms": round(float(np.percentile(ms, 99)), 1),
        **({"at_server_p99_ms": round(float(np.percentile(at_server, 99)), 1)} if at_server else {}),
        "errors": sum(errors for _, _, errors in found),
    }


def partly(n: int, length: int) -> bytes:
    """The beginning of a message's one frame, `n` bytes of `length`."""
    return b"\x82\xff" + length.to_bytes(8, "big") + bytes(4 + n)


def many(value: bytes, n: int) -> bytes:
    return b"\xdd" + n.to_bytes(4, "big") + value * n


def hostile_messages() -> dict[str, bytes]:
    return {
        "16 MiB of empty ext types": many(b"\xc7\x00\x00", (16 << 20) // 3),
        "16 MiB of timestamps": many(b"\xd6\xff\x00\x00\x00\x00", (16 << 20) // 6),
        "16 MiB of two-character strings": many(b"\xa2ab", (16 << 20) // 3),
        "16 MiB of empty maps": many(b"\x80", 16 << 20),
        "a map of 60,000 keys": msgpack.packb({str(i): i for i in range(60_000)}) or b"",
        "60,000 numbers": msgpack.packb(list(range(60_000))) or b"",
        "16 MiB of random bytes": random.Random(0).randbytes(16 << 20),
    }


def opened(url: str) -> Any:
    """A context manager of a plain connection."""
    return connect(url, compression=None, proxy=None, ping_interval=None, close_timeout=0.1)


def answered(connection: ClientConnection, message: bytes) -> float:
    """Seconds until the message is answered."""
    began = time.monotonic()
    connection.send(message)
    connection.recv()
    return time.monotonic() - began


def throughput() -> dict[str, Any]:
    rows = {}
    for kind in ("together", "alone"):
        with served(kind) as server:
            rows["batched" if kind == "together" else "one at a time"] = measured(server.url, 8)
    return rows


FLOODS = (
    # server's kind, what it is called, how many flood, pauses of the one client
    ("together", "batched", (0, 1, 8, 50), (0.0, 0.08)),
    ("timer", "nothing but a timer", (0, 50), (0.0, 0.08)),
    ("alone", "one at a time", (0, 1, 8), (0.0,)),
)


def floods() -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for kind, called, numbers, pauses in FLOODS:
        rows[called] = {}
        with served(kind) as server:
            for pause_s in pauses:
                row = {f"{n} floods": measured(server.url, 1, pause_s, n) for n in numbers}
                if 50 in numbers:
                    row["p99_ratio_with_50"] = round(
                        row["50 floods"]["p99_ms"] / row["0 floods"]["p99_ms"], 2
                    )
                rows[called]["asks ten times a second" if pause_s else "asks in a loop"] = row
    return rows


def hostile() -> tuple[dict[str, Any], dict[str, Any]]:
    rows: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    with served("together") as server:
        measured(server.url, 1)
        memory["at rest"] = server.resident_mb()
        rows["alone"] = measured(server.url, 1)
        for name, message in hostile_messages().items():
            with opened(server.url) as connection:
                connection.recv()
                rows[f"beside {name}"], memory[name] = _beside(server, connection, message)
        with contextlib.ExitStack() as stack:
            partial = [stack.enter_context(opened(server.url)) for _ in range(10)]
            for connection in partial:
                with contextlib.suppress(OSError):  # some are ended to make place
                    connection.socket.sendall(partly(48 << 20, 64 << 20))
            time.sleep(1)
            memory["ten partial frames of 48 MiB"] = server.resident_mb()
            rows["beside ten partial frames of 48 MiB"] = measured(server.url, 1)
        time.sleep(2)
        memory["afterwards"] = server.resident_mb()
    return rows, memory


def _beside(server: Server, connection: ClientConnection, message: bytes) -> tuple[dict[str, Any], float]:
    """(what one client measures beside it, MB at most)"""
    seconds: list[float] = []
    peak = 0.0

    def send() -> None:
        nonlocal peak
        seconds.append(answered(connection, message))
        peak = max(peak, server.resident_mb())

    row = measured(server.url, 1, beside=send)
    return {**row, "answered_in_s": round(float(np.median(seconds)), 3)}, peak


def swap() -> dict[str, Any]:
    with served("together") as server:

        def ten_times() -> None:
            for i in range(10):
                time.sleep(SECONDS / 12)
                server.load(f"version {i}")

        return measured(server.url, 8, during=ten_times)


PARTS = ("throughput", "flood", "hostile", "swap")


def main(parts: Sequence[str]) -> None:
    rows: dict[str, Any] = {} if set(parts) >= set(PARTS) else results.load("server_load")
    rows |= {"policy": "any number of requests in 20 ms", "seconds_a_measurement": SECONDS}
    if "throughput" in parts:
        rows["throughput, 8 clients"] = throughput()
    if "flood" in parts:
        rows["one client beside floods"] = floods()
    if "hostile" in parts:
        rows["one client beside hostile messages"], rows["server_resident_mb"] = hostile()
    if "swap" in parts:
        rows["ten swaps under 8 clients"] = swap()
    now = {"commit": commit(), "date": datetime.now(UTC).date().isoformat()}
    rows["measured"] = {**rows.get("measured", {}), **dict.fromkeys(parts, now)}
    results.save("server_load", rows)


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - set(PARTS):
        sys.exit(f"there is no part {', '.join(sorted(unknown))}: there is {', '.join(PARTS)}")
    main(sys.argv[1:] or PARTS)
