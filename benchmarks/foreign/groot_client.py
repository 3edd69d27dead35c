"""GR00T's wire as its own client speaks it since N1.5: a REQ socket, msgpack, arrays as .npy bytes.

Isaac GR00T's client is in its repository alone; with a checkout of it (--isaac-groot FOLDER) that one is
used, else these lines, written from the protocol.

python groot_client.py PORT REQUESTS [FOLDER]  (`state` (16,) and `image` as .npz on standard input)"""

from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

import msgpack
import numpy as np
import zmq

port, requests, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""
with np.load(io.BytesIO(sys.stdin.buffer.read())) as file:
    state, image = file["state"].astype(np.float32), file["image"]


def encode(value: Any) -> Any:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": buffer.getvalue()}


def decode(value: dict) -> Any:
    if "__ndarray_class__" in value:
        return np.load(io.BytesIO(value["as_npy"]), allow_pickle=False)
    return value


class Client:
    def __init__(self) -> None:
        self.socket = zmq.Context.instance().socket(zmq.REQ)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def call(self, endpoint: str, data: Any = None) -> Any:
        request = {"endpoint": endpoint} | ({} if data is None else {"data": data})
        self.socket.send(msgpack.packb(request, default=encode))
        reply = msgpack.unpackb(self.socket.recv(), object_hook=decode)
        if isinstance(reply, dict) and "error" in reply:
            raise RuntimeError(reply["error"])
        return reply


parts = {"left_arm": (0, 7), "left_gripper": (7, 8), "right_arm": (8, 15), "right_gripper": (15, 16)}
observation = {
    "video": {"head": image[None, None]},
    "state": {k: state[None, None, a:b] for k, (a, b) in parts.items()},
    "language": {"annotation.human.task_description": [["lift the cube"]]},
}
if folder:
    sys.path.insert(0, folder)
    from gr00t.policy.server_client import PolicyClient

    client = PolicyClient("127.0.0.1", port)
    assert client.ping()

    def ask() -> Any:
        return client.get_action(observation)[0]

    modalities = {k: v.modality_keys for k, v in client.get_modality_config().items()}
else:
    client = Client()
    assert client.call("ping")["status"] == "ok"

    def ask() -> Any:
        return client.call("get_action", {"observation": observation, "options": None})[0]

    modalities = {k: v["as_json"]["modality_keys"] for k, v in client.call("get_modality_config").items()}
ms = []
for _ in range(requests):
    began = time.perf_counter()
    action = ask()
    ms.append((time.perf_counter() - began) * 1e3)
chunk = np.concatenate([action[k][0] for k in parts], axis=1)
whose = "Isaac GR00T's" if folder else "written from the protocol"
print(json.dumps({"actions": chunk.tolist(), "modalities": modalities, "ms": ms, "client": whose}))
