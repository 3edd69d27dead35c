"""Whether an arm falls: how far its tip moves after its torque went."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from contracts.twin import ask

from ulna.robot.kinematics import tip_chain

MOST_MM = 5.0
SETTLED_S = 0.6  # in which a twin that is let go would have moved further


class Fall:
    """Watches the twin `info` in a `with` block, by its control channel."""

    def __init__(self, info: dict[str, Any], model: str = "so101") -> None:
        self._info = info
        self._chain = tip_chain(model, tuple(self.state()["joints"]))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.highest_m, self.lowest_m = 0.0, np.inf  # of the tip, while there was torque
        self.poses: list[tuple[float, list[float]]] = []  # s, and where the joints were
        self.let_go_at: np.ndarray | None = None  # tip when some joint had torque for the last time

    def state(self) -> dict[str, Any]:
        return ask(self._info, "state", timeout_s=20)

    def tip(self, state: dict[str, Any] | None = None) -> np.ndarray:
        """`(3,)` m, by the ground truth."""
        joints = (state or self.state())["joints"]
        return self._chain.forward(np.array(list(joints.values()))).position

    def has_torque(self) -> bool:
        return any(self.state()["torque"])

    def moved_mm(self) -> float:
        """By how far the tip has moved since the torque went; waits until it would have fallen."""
        until(lambda: not self.has_torque(), "the torque goes")
        time.sleep(SETTLED_S)
        assert self.let_go_at is not None, "it had torque"
        return 1000 * float(np.linalg.norm(self.tip() - self.let_go_at))

    def speeds(self, window_s: float) -> np.ndarray:
        """`(N, J)` rad/s, of the poses so far, each over `window_s`."""
        t, q = zip(*self.poses, strict=True)
        return speeds(np.array(t), np.array(q), window_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(0.01):
            try:
                state = self.state()
            except OSError:
                continue
            tip = self.tip(state)
            if any(state["torque"]):
                self.let_go_at = tip
                self.highest_m = max(self.highest_m, float(tip[2]))
                self.lowest_m = min(self.lowest_m, float(tip[2]))
                self.poses.append((time.monotonic(), list(state["joints"].values())))


def speeds(t: np.ndarray, q: np.ndarray, window_s: float) -> np.ndarray:
    """`(N, J)` rad/s of joints that were at `q` `(M, J)` rad at `t` `(M,)` s, each over `window_s`."""
    grid = np.arange(t[0], t[-1], window_s)
    at = np.stack([np.interp(grid, t, joint) for joint in q.T], axis=1)
    return np.diff(at, axis=0) / window_s


def until(is_met: Callable[[], bool], why: str, timeout_s: float = 60.0) -> None:
    """Wait until `is_met`, as long as a busy machine may take."""
    end = time.monotonic() + timeout_s
    while not is_met():
        assert time.monotonic() < end, why
        time.sleep(0.02)
