"""A client of GR00T's servers that others wrote: inspect-robots-unitree-g1, whose arrays are msgpack-numpy's.

python groot_g1_client.py PORT REQUESTS  (`state` (16,) and `image` as .npz on standard input)"""

from __future__ import annotations

import io
import json
import sys
import time

import numpy as np
from inspect_robots.scene import Scene
from inspect_robots.types import Observation
from inspect_robots_unitree_g1.policy import Gr00tPolicy

port, requests = int(sys.argv[1]), int(sys.argv[2])
with np.load(io.BytesIO(sys.stdin.buffer.read())) as file:
    state, image = file["state"], file["image"]
parts = {"left_arm": (0, 7), "left_gripper": (7, 8), "right_arm": (8, 15), "right_gripper": (15, 16)}
policy = Gr00tPolicy(
    host="127.0.0.1",
    port=port,
    image_key="video.head",
    state_keys={f"state.{k}": ("packed", *v) for k, v in parts.items()},
    action_keys={f"action.{k}": ("packed", *v) for k, v in parts.items()},
    action_horizon=16,
)
policy.reset(Scene("trial", "lift the cube"))
observation = Observation(images={"head_cam": image}, state={"joint_pos": state})
ms = []
for _ in range(requests):
    began = time.perf_counter()
    chunk = policy.act(observation)
    ms.append((time.perf_counter() - began) * 1e3)
print(json.dumps({"actions": [a.data.tolist() for a in chunk.actions], "ms": ms, "numpy": np.__version__}))
