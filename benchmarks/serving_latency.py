"""Round trip of a request to a policy that costs nothing, beside plain websockets echoing the same bytes.

python benchmarks/serving_latency.py
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import results
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from ulna.policies.serving.client import PolicyClient
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.protocol import pack
from ulna.policies.serving.server import PolicyServer

REQUESTS = 1000
CHUNK = np.zeros((16, 7), np.float32)


class Null:
    metadata = Metadata()

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"actions": CHUNK, "nfe": 0}


def timed(call: Callable[[], object]) -> dict[str, float]:
    for _ in range(50):
        call()
    ms = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        call()
        ms.append((time.perf_counter() - began) * 1e3)
    return {"p50_ms": round(float(np.median(ms)), 3), "p99_ms": round(float(np.percentile(ms, 99)), 3)}


if __name__ == "__main__":
    state = {"observation.state": np.zeros(7, np.float32)}
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    images = {**state, "observation.images.front": image, "observation.images.wrist": image}
    rows: dict[str, Any] = {}

    def answer(connection: ServerConnection) -> None:
        for _ in connection:
            connection.send(CHUNK.tobytes())

    with serve(answer, "127.0.0.1", 0, compression=None) as plain:
        echo = threading.Thread(target=plain.serve_forever)
        echo.start()
        with PolicyServer(Null(), port=0).background() as server, PolicyClient(server.url) as client:
            port = plain.socket.getsockname()[1]
            with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as bare:
                for name, observation in (("state", state), ("state and two 224x224 images", images)):
                    data = pack(observation)

                    def ours(observation: dict[str, Any] = observation) -> object:
                        return client.infer(observation)

                    def theirs(data: bytes = data) -> object:
                        bare.send(data)
                        return bare.recv()

                    rows[name] = {"bytes": len(data), "ulna": timed(ours), "plain_websockets": timed(theirs)}
        plain.shutdown()
        echo.join()
    results.save("serving_latency", {"requests": REQUESTS, **rows})
