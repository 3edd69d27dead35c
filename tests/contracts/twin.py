"""A device twin as users start it, and whoever asks its control channel."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def twin(*words: str) -> Iterator[dict[str, Any]]:
    """`ulna twin WORDS` for the length of a `with` block; what it says of itself."""
    command = [sys.executable, "-m", "ulna.robot.cli", "twin", *words, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(20)


def ask(info: dict[str, Any], name: str, body: Any = None, timeout_s: float = 60) -> dict[str, Any]:
    """What the twin's control channel answers: a question, or an order with a `body` (JSON, or bytes)."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{info['control']}/{name}", data)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_s) as reply:
        return json.loads(reply.read())
