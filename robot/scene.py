"""The surroundings of the robot, where a program can set them up anew and judge them: a simulated scene, or a
twin's.

A real robot has none: people set the scene up, and say whether the task was done.
"""

from __future__ import annotations

import http.client
import json
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any, Protocol

from ..datasets.features import ACTION
from ..datasets.flags import INTERVENTION
from ..drivers.arm import DeviceError

POLL_S = 0.03


class Scene(Protocol):
    """task_name and xi (its randomisation) are stored with recordings; instruction and max_seconds are those
    of the present episode."""

    instruction: str
    max_seconds: float
    xi: dict[str, float]

    @property
    def task_name(self) -> str: ...

    def reset(self, seed: int) -> None:
        """Set the scene of `seed` up."""
        ...

    def success(self) -> bool:
        """Whether the task was done at some time since the reset. Never blocks."""
        ...

    def score(self) -> float:
        """How much of it is done now, 0 to 1. Never blocks."""
        ...

    def close(self) -> None: ...


class RemoteScene:
    """A twin's scene, through its control channel (`ulna twin` prints the address). The twin is asked in a
    thread of its own, so `success` is up to `POLL_S` old. `begin` and `rest` are for the scripted hand at the
    leader."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise DeviceError(f"[scene] url is {url!r}: a twin's control channel is http on this computer")
        self.url, self._host, self._port = url, parts.hostname, parts.port or 80
        self._token = parts.path.strip("/")
        self._lock = threading.Lock()
        self._state = self.ask("GET", "state")
        self.instruction, self.max_seconds = self._state["instruction"], float(self._state["max_seconds"])
        self.xi: dict[str, float] = dict(self._state["randomisation"])
        self._stopping = threading.Event()
        self._failed = ""
        threading.Thread(target=self._poll, name="scene", daemon=True).start()

    @property
    def task_name(self) -> str:
        return self._state["task"]

    @property
    def state(self) -> dict[str, Any]:
        """The newest ground truth that the twin gave."""
        return self._state

    def reset(self, seed: int) -> None:
        state = self.ask("POST", "reset", {"seed": seed})
        with self._lock:
            self._state = state
        self.instruction, self.max_seconds = state["instruction"], float(state["max_seconds"])

    def begin(self) -> None:
        self.ask("POST", "begin")

    def rest(self) -> None:
        self.ask("POST", "rest")

    def success(self) -> bool:
        if self._failed:
            raise DeviceError(self._failed)
        return bool(self._state["success"])

    def score(self) -> float:
        return float(self._state["score"])

    def close(self) -> None:
        self._stopping.set()

    def ask(self, method: str, order: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The twin's answer to an order. DeviceError: the twin is gone, or refuses."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=5)
        try:
            body = None if payload is None else json.dumps(payload)
            connection.request(method, f"/{self._token}/{order}", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            answer = json.loads(reply.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DeviceError(
                f"no twin answers at {self.url} ({error}): is `ulna twin` still running?"
            ) from None
        finally:
            connection.close()
        if reply.status != 200:
            raise DeviceError(f"the twin at {self.url} refuses {order}: {answer.get('error')}")
        return answer

    def _poll(self) -> None:
        while not self._stopping.wait(POLL_S):
            before = self._state
            try:
                state = self.ask("GET", "state")
            except DeviceError as error:
                self._failed = str(error)
                return
            with self._lock:
                if self._state is before:  # else a reset came between question and answer
                    self._state = state


class Correction:
    """A subscriber of the episode loop that makes the scripted hand at a twin's leader begin where a person
    takes over from a policy, and rest where they give back."""

    def __init__(self, scene: RemoteScene) -> None:
        self.scene, self._acts = scene, False

    def start(self, meta: Mapping[str, Any]) -> None:
        self._acts = False

    def tick(self, values: Any, times_ns: Any, flags: Mapping[str, int]) -> None:
        acts = bool(flags.get(ACTION, 0) & INTERVENTION)
        if acts != self._acts:
            self._acts = acts
            self.scene.begin() if acts else self.scene.rest()

    def end(self, meta: Mapping[str, Any]) -> None:
        self.scene.rest()

    def interrupt(self, reason: str) -> None:
        self.scene.rest()


class Demonstration:
    """A subscriber of the episode loop that makes the scripted hand at a twin's leader begin and rest."""

    def __init__(self, scene: RemoteScene) -> None:
        self.scene = scene

    def start(self, meta: Mapping[str, Any]) -> None:
        self.scene.begin()

    def tick(self, values: Any, times_ns: Any, flags: Any) -> None:
        pass

    def end(self, meta: Mapping[str, Any]) -> None:
        self.scene.rest()

    def interrupt(self, reason: str) -> None:
        self.scene.rest()
