"""Round trip of a request to a policy that costs nothing: Ulna's server and openpi's own, each asked by
Ulna's client and by openpi's stock client, in turns, each in a process of its own.

python benchmarks/serving_latency.py --openpi CLONE

CLONE is a clone of github.com/Physical-Intelligence/openpi, of which only the server's file is run, in the
environment of the stock client (`tests/policies/serving/test_openpi_client.py` makes it). What is not there
is left out, and the result says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import results

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ulna" / "openpi-client-0.1.2"
SERVER = "src/openpi/serving/websocket_policy_server.py"
ROUNDS, REQUESTS, WARM = 6, 200, 20

ULNA_SERVER = """
import sys, numpy as np
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.server import PolicyServer
class Null:
    metadata = Metadata()
    def infer(self, request):
        return {"actions": np.zeros((16, 7), np.float32), "nfe": 0}
PolicyServer(Null(), port=0).run(lambda url: print(url.rpartition(":")[2], flush=True))
"""
OPENPI_SERVER = """
import socket, sys, numpy as np
scope = {"__name__": "openpi_server"}
exec(compile(sys.stdin.read(), "websocket_policy_server.py", "exec"), scope)
class Null:
    def infer(self, obs):
        return {"actions": np.zeros((16, 7), np.float32)}
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
print(port, flush=True)
scope["WebsocketPolicyServer"](Null(), "127.0.0.1", port).serve_forever()
"""
CLIENT = """
import json, sys, time, numpy as np
port, requests, warm, images = map(int, sys.argv[1:])
observation = {"observation.state": np.zeros(7, np.float32)}
if images:
    image = np.random.RandomState(0).randint(0, 256, (224, 224, 3)).astype(np.uint8)
    observation.update({"observation.images.front": image, "observation.images.wrist": image.copy()})
ms = []
for i in range(warm + requests):
    began = time.perf_counter()
    client.infer(observation)
    ms.append((time.perf_counter() - began) * 1e3)
print(json.dumps(ms[warm:]))
"""
ULNA_CLIENT = "from ulna.policies.serving.client import PolicyClient\nimport sys\n" + CLIENT.replace(
    "ms = []", 'client = PolicyClient(f"ws://127.0.0.1:{port}")\nms = []'
)
STOCK_CLIENT = "from openpi_client.websocket_client_policy import WebsocketClientPolicy\n" + CLIENT.replace(
    "ms = []", 'client = WebsocketClientPolicy("127.0.0.1", port)\nms = []'
)


def started(python: Path, script: str, feed: str = "") -> tuple[subprocess.Popen[str], int]:
    """A server and its port."""
    process = subprocess.Popen(
        [python, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=2, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(feed)
    process.stdin.close()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a server did not start; it says why above")
    return process, int(line)


def asked(python: Path, script: str, port: int, images: bool) -> list[float]:
    """Milliseconds of each round trip."""
    words = [python, "-c", script, str(port), str(REQUESTS), str(WARM), str(int(images))]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    while True:
        process = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        if process.returncode == 0:
            return json.loads(process.stdout)
        if "ConnectionRefused" not in process.stderr:  # openpi's server does not say when it listens
            raise SystemExit(process.stderr)


def row(ms: list[float]) -> dict[str, float]:
    return {"p50_ms": round(float(np.median(ms)), 3), "p99_ms": round(float(np.percentile(ms, 99)), 3)}


def openpi_server(clone: str) -> str:
    """The source of its server; empty where there is none."""
    if not clone:
        return ""
    found = subprocess.run(
        ["git", "-C", clone, "show", f"HEAD:{SERVER}"], capture_output=True, text=True, check=False
    )
    return found.stdout if found.returncode == 0 else ""


def main(clone: str) -> Mapping[str, Any]:
    ours, theirs = Path(sys.executable), CACHE / "bin" / "python"
    clients = {"ulna's client": (ours, ULNA_CLIENT)}
    servers = {"ulna": started(ours, ULNA_SERVER)}
    absent = []
    if theirs.exists():
        clients["stock openpi-client 0.1.2"] = (theirs, STOCK_CLIENT)
    else:
        absent.append("the stock client: run tests/policies/serving/test_openpi_client.py once")
    if (source := openpi_server(clone)) and theirs.exists():
        servers["openpi"] = started(theirs, OPENPI_SERVER, source)
    else:
        absent.append("openpi's server: give --openpi CLONE")
    ms: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
    try:
        for _ in range(ROUNDS):
            for server, (_, port) in servers.items():
                for client, (python, script) in clients.items():
                    for images in (False, True):
                        ms[server, client, images] += asked(python, script, port, images)
    finally:
        for process, _ in servers.values():
            process.terminate()
            process.wait()
    rows: dict[str, Any] = {"rounds": ROUNDS, "requests_a_round": REQUESTS, "absent": absent}
    for (server, client, images), values in ms.items():
        what = "state and two 224x224 images" if images else "state"
        rows.setdefault(what, {})[f"{client} to {server}'s server"] = row(values)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--openpi", default="", help="a clone of openpi's repository")
    results.save("serving_latency", dict(main(parser.parse_args().openpi)))
