"""One policy server under load, each part in this order and in one run: clients in processes of their own, a
policy that answers any number of requests in 20 ms.

python benchmarks/server_load.py

throughput    8 clients that ask in a loop, beside the same policy one request at a time
flood         one client alone, and beside 1, 8 and 50 that ask in a loop; one at a time for comparison
hostile       one client alone, and beside senders of messages that are large once they are decoded
memory        resident memory of the server under each kind of hostile message, and of partial frames
swap          requests that fail while a model is replaced ten times under 8 clients
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
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import results
from websockets.sync.client import ClientConnection, connect

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


class Server:
    """In a process of its own. kind: together or alone."""

    def __init__(self, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, kind], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
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
    """In a client's process: milliseconds of each request, and errors."""
    from ulna.policies.serving.client import PolicyClient, PolicyServerError

    ms, errors = [], 0
    with PolicyClient(url, timeout_s=60.0) as client:
        client.infer(STATE)
        ready.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            try:
                client.infer(STATE)
                ms.append((time.perf_counter() - began) * 1e3)
            except PolicyServerError:
                errors += 1
            if pause_s:
                time.sleep(pause_s * random.uniform(0.5, 1.5))
    out.put((ms, errors))


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
    ms = [value for values, _ in found for value in values]
    return {
        "requests_per_s": round(len(ms) / SECONDS, 1),
        "p50_ms": round(float(np.median(ms)), 1),
        "p99_ms": round(float(np.percentile(ms, 99)), 1),
        "errors": sum(errors for _, errors in found),
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


def opened(url: str) -> ClientConnection:
    connection = connect(url, compression=None, proxy=None)
    connection.recv()
    return connection


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


def floods() -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for kind, numbers in (("together", (0, 1, 8, 50)), ("alone", (0, 1, 8))):
        with served(kind) as server:
            for name, pause_s in (("asks in a loop", 0.0), ("asks ten times a second", 0.08)):
                if kind == "alone" and pause_s:
                    continue
                row = rows.setdefault("batched" if kind == "together" else "one at a time", {})
                row[name] = {f"{n} floods": measured(server.url, 1, pause_s, n) for n in numbers}
    for row in rows["batched"].values():
        row["p99_ratio_with_50"] = round(row["50 floods"]["p99_ms"] / row["0 floods"]["p99_ms"], 2)
    return rows


def hostile() -> tuple[dict[str, Any], dict[str, Any]]:
    rows: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    with served("together") as server:
        measured(server.url, 1)
        memory["at rest"] = server.resident_mb()
        rows["alone"] = measured(server.url, 1)
        for name, message in hostile_messages().items():
            connection = opened(server.url)
            seconds: list[float] = []
            peak = [0.0]

            def send(
                connection: ClientConnection = connection,
                message: bytes = message,
                seconds: list[float] = seconds,
                peak: list[float] = peak,
            ) -> None:
                seconds.append(answered(connection, message))
                peak[0] = max(peak[0], server.resident_mb())

            rows[f"beside {name}"] = {
                **measured(server.url, 1, beside=send),
                "answered_in_s": round(float(np.median(seconds)), 3),
            }
            memory[name] = peak[0]
            connection.close()
        partial = [opened(server.url) for _ in range(10)]
        for connection in partial:
            with contextlib.suppress(OSError):  # some are ended to make place
                connection.socket.sendall(partly(48 << 20, 64 << 20))
        time.sleep(1)
        memory["ten partial frames of 48 MiB"] = server.resident_mb()
        rows["beside ten partial frames of 48 MiB"] = measured(server.url, 1)
        for connection in partial:
            connection.close()
        time.sleep(2)
        memory["afterwards"] = server.resident_mb()
    return rows, memory


def swap() -> dict[str, Any]:
    with served("together") as server:

        def ten_times() -> None:
            for i in range(10):
                time.sleep(SECONDS / 12)
                server.load(f"version {i}")

        return measured(server.url, 8, during=ten_times)


def main(parts: Sequence[str]) -> None:
    rows: dict[str, Any] = {"policy": "any number of requests in 20 ms", "seconds_a_measurement": SECONDS}
    if "throughput" in parts:
        rows["throughput, 8 clients"] = throughput()
    if "flood" in parts:
        rows["one client beside floods"] = floods()
    if "hostile" in parts:
        rows["one client beside hostile messages"], rows["server_resident_mb"] = hostile()
    if "swap" in parts:
        rows["ten swaps under 8 clients"] = swap()
    results.save("server_load", rows)


if __name__ == "__main__":
    main(sys.argv[1:] or ("throughput", "flood", "hostile", "swap"))
