"""The viewer's server without a browser: episodes with every kind of stream, and a client that asks as one
does."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from contracts.data import CAMERA

from ulna.datasets.features import ACTION, DEPTH, REQUESTED, STATE, Feature, Features
from ulna.datasets.flags import INTERVENTION, LIMITED
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

TOP, FAR = CAMERA.replace("front", "top"), DEPTH + "top"
FEATURES: Features = {
    STATE: Feature((2,), "float32", ("elbow", "grip"), ("rad", "rad")),
    ACTION: Feature((2,), "float32", ("elbow", "grip"), ("rad", "rad")),
    "observation.force": Feature(
        (4,), "float64", ("tip.x", "tip.y", "tip.z", "torque"), ("N", "N", "N", "Nm")
    ),
    TOP: Feature((25, 33, 3), "uint8"),
    FAR: Feature((24, 32), "uint16", (), ("mm",)),
}
TRUSTING = ssl.create_default_context()
TRUSTING.check_hostname, TRUSTING.verify_mode = False, ssl.CERT_NONE  # the certificate is this machine's own
TICKS, FRAMES, MS = 60, 40, 1_000_000


def frame_times_ns() -> np.ndarray:
    """A camera that began before the loop, at its own uneven rate, with a pause of half a second."""
    times = -30 * MS + np.cumsum(
        np.full(FRAMES, 33 * MS) + np.random.default_rng(1).integers(0, 5 * MS, FRAMES)
    )
    return times + np.where(np.arange(FRAMES) > 20, 500 * MS, 0)


def picture_of(row: int) -> np.ndarray:
    y, x = np.mgrid[:25, :33]
    return np.stack([x * 7, y * 9, np.full_like(x, row * 5)], axis=-1).astype(np.uint8)


def record_episodes(path: Path) -> Path:
    """Three episodes; the first alone succeeds, and a person steps in for half a second of each."""
    store = EpisodeStore.create(path, FEATURES, 20.0, "test robot")
    rng = np.random.default_rng(0)
    with EpisodeWriter(store, own_rate=(TOP, FAR)) as writer:
        for episode in range(3):
            writer.start({"task": f"task <b>{episode}</b>", "agent": "test"})
            for t in range(TICKS):
                q = np.array([np.sin(t / 9), t / 60], np.float32)
                row = {STATE: q, ACTION: q + np.float32(0.1), REQUESTED: q + np.float32(0.3)}
                row["observation.force"] = np.array([1.0, 2.0, 3.0, rng.normal()])
                at = t * 50 * MS
                flags = {ACTION: INTERVENTION if 10 <= t < 20 else LIMITED if 30 <= t < 40 else 0}
                writer.tick(row, dict.fromkeys(row, (at, at + MS)), flags)
            for row, at in enumerate(frame_times_ns().tolist()):
                writer.append(TOP, picture_of(row), at, at + MS)
                depth = (np.arange(24 * 32).reshape(24, 32) + 500 + row).astype(np.uint16)
                depth[0] = 0
                writer.append(FAR, depth, at + MS, at + 2 * MS)
            writer.end({"success": episode == 0})
    return store.path


class Client:
    """One connection at a time, with the path exactly as it is written."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.port, self.tls = parts.port, parts.scheme == "https"
        self.token = parse_qs(parts.query).get("token", [""])[0]

    def ask(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: Any = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = (
            http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=TRUSTING)
            if self.tls
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        )
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        found = reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        connection.close()
        return found

    def get(self, path: str) -> Any:
        status, _, body = self.ask(path)
        assert status == 200, (status, body)
        return json.loads(body)

    def edit(self, **edit: Any) -> tuple[int, dict[str, Any]]:
        status, _, body = self.ask("/api/edits", "POST", {"X-Ulna-Token": self.token}, json.dumps(edit))
        return status, json.loads(body)

    def video(self, episode: str, key: str) -> dict[str, Any]:
        """What is said of a video once it is made."""
        job: dict[str, Any] = {}
        for _ in range(600):
            job = self.get(f"/api/episodes/{episode}/video/{key}/state")
            if job["state"] in ("ready", "failed"):
                return job
            time.sleep(0.02)
        raise AssertionError(job)
