"""openpi's stock client, as it comes from the package index.

python openpi_trial.py PORT REQUESTS  (the observation as .npz on standard input)"""

from __future__ import annotations

import io
import json
import sys
import time

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, requests = int(sys.argv[1]), int(sys.argv[2])
with np.load(io.BytesIO(sys.stdin.buffer.read())) as file:
    observation = {k: file[k] for k in file.files} | {"prompt": "lift the cube"}
policy = WebsocketClientPolicy("127.0.0.1", port)
ms = []
for _ in range(requests):
    began = time.perf_counter()
    reply = policy.infer(observation)
    ms.append((time.perf_counter() - began) * 1e3)
broker = ActionChunkBroker(WebsocketClientPolicy("127.0.0.1", port), action_horizon=4)
taken = [broker.infer(observation)["actions"].tolist() for _ in range(4)]
try:
    policy.infer({"observation/state": np.zeros(2)})
    refused = ""
except RuntimeError as error:
    refused = str(error).splitlines()[-1]
print(
    json.dumps(
        {
            "actions": np.asarray(reply["actions"]).tolist(),
            "broker": taken,
            "refused": refused,
            "ms": ms,
            "numpy": np.__version__,
        }
    )
)
