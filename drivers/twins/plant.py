"""The mechanics behind a twin, in memory shared by the process of the physics and that of the protocol.

The protocol side writes `goal`, `torque`, `max_effort` and reads `position`, `velocity`, `effort`; the
physics side does the reverse. Each value is one aligned 8-byte word with one writer, so no reader sees half
of it. A position is as old as the last physics step (about 4 ms)."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np

from .. import shared_memory

FIELDS = ("position", "velocity", "effort", "goal", "torque", "max_effort", "stuck")
HEADER = 4096


class Plant:
    """J joints of one device, each `(J,)` float64 view: position rad, velocity rad/s, effort N·m (of the
    motor, signed), goal rad, torque 0 or 1, max_effort N·m, stuck 0 or 1 (a fault: the joint is blocked by
    something)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            shared_memory.hold(file.fileno())  # as long as the map is open
            self._map = mmap.mmap(file.fileno(), 0)
        header = json.loads(self._map[: self._map.find(b"\0")])
        self.names: tuple[str, ...] = tuple(header["names"])
        n = len(self.names)
        words = np.frombuffer(self._map, np.float64, len(FIELDS) * n, HEADER)
        views = {f: words[i * n : (i + 1) * n] for i, f in enumerate(FIELDS)}
        self.position, self.velocity, self.effort = views["position"], views["velocity"], views["effort"]
        self.goal, self.torque = views["goal"], views["torque"]
        self.max_effort, self.stuck = views["max_effort"], views["stuck"]

    @staticmethod
    def create(names: tuple[str, ...], position: np.ndarray, max_effort: np.ndarray) -> Plant:
        """A plant at rest at `position`, torque off. It lives until `remove`."""
        header = json.dumps({"names": list(names)}).encode()
        path, file = shared_memory.create("plant")
        try:
            os.write(file, header.ljust(HEADER, b"\0"))
            os.ftruncate(file, HEADER + 8 * len(FIELDS) * len(names))
        finally:
            os.close(file)
        plant = Plant(path)
        plant.position[:] = plant.goal[:] = position
        plant.max_effort[:] = max_effort
        return plant

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


class SimpleMechanics:
    """A plant's physics without a physics engine, for tests and benchmarks of a protocol: joints go to their
    goals at up to `max_velocity` rad/s, in a thread of 500 steps a second. `with SimpleMechanics(plant):
    ...`"""

    def __init__(self, plant: Plant, max_velocity: float = 4.7) -> None:
        self.plant, self.max_velocity = plant, max_velocity
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simple mechanics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        p, last = self.plant, time.monotonic()
        while not self._stopping.wait(0.002):
            now = time.monotonic()
            dt, last = now - last, now
            error = p.goal - p.position
            free = (p.torque > 0) & (p.stuck == 0)
            step = np.clip(error, -self.max_velocity * dt, self.max_velocity * dt) * free
            p.position[:] = p.position + step
            p.velocity[:] = step / dt
            # a blocked motor pushes as hard as it may; a free one hardly
            p.effort[:] = np.where(
                p.torque > 0, np.clip(10.0 * (error - step), -p.max_effort, p.max_effort), 0.0
            )
