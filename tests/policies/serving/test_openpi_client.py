"""openpi's own client, as it comes from the package index, against our server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from contracts.policy import Linear

from ulna.policies.serving.access import Access
from ulna.policies.serving.server import PolicyServer

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ulna" / "openpi-client-0.1.2"
# it needs numpy < 2, which we have not, so it lives in an environment of its own; it imports
# typing_extensions without declaring it
NEEDS = ["openpi-client==0.1.2", "numpy<2", "typing_extensions"]

SCRIPT = """
import sys
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from openpi_client.action_chunk_broker import ActionChunkBroker
KEY = "k" * 32
policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), api_key=KEY)
assert policy.get_server_metadata()["checkpoint"] == "abc"
state = {"observation.state": np.array([1, -1], np.float32), "prompt": "lift the cube"}
reply = policy.infer(state)
assert reply["actions"].tolist() == [[1, -1], [2, -2], [3, -3], [4, -4]], reply
assert reply["server_timing"]["infer_ms"] > 0
try:
    policy.infer({"observation/state": state["observation.state"]})
    raise SystemExit("a bad request was not refused")
except RuntimeError as error:
    assert "lacks observation.state" in str(error), error
broker = ActionChunkBroker(
    WebsocketClientPolicy(f"ws://127.0.0.1:{sys.argv[1]}/policy", None, api_key=KEY), action_horizon=3
)
taken = [broker.infer(state)["actions"].tolist() for _ in range(5)]
assert taken == [[1, -1], [2, -2], [3, -3], [1, -1], [2, -2]], taken
try:
    WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), api_key="wrong" * 5)
    raise SystemExit("a wrong key was not refused")
except Exception as error:
    assert "403" in str(error), error
print("stock client satisfied with numpy", np.__version__)
"""


def client_python() -> Path:
    """Its interpreter, built once and kept; skips where it cannot be built."""
    python = CACHE / "bin" / "python"
    if not python.exists() or not (CACHE / ".complete").exists():
        uv = Path(sys.executable).parent / "uv"
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, CACHE],
            [uv, "pip", "install", "--quiet", "--python", python, *NEEDS],
        ):
            try:
                process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                pytest.skip(f"the stock client's environment cannot be built: {error}")
            if process.returncode:
                pytest.skip(
                    f"the stock client's environment cannot be built: {process.stderr.strip()[-200:]}"
                )
        (CACHE / ".complete").touch()
    return python


def test_the_stock_openpi_client_works_against_our_server() -> None:
    python = client_python()
    with PolicyServer(Linear(), port=0, access=Access(["k" * 32])).background() as server:
        process = subprocess.run(
            [python, "-c", SCRIPT, str(server.port)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
            check=False,
        )
    assert process.returncode == 0, process.stderr
    assert "stock client satisfied with numpy 1." in process.stdout
    assert np.__version__.startswith("2."), "while ours is another"
