"""Where an arm is to be at a time: on straight lines through the pose of the last command and those that were
announced to follow it."""

from __future__ import annotations

import numpy as np


class Plan:
    """Times are ns on `time.monotonic_ns`, poses `(J,)`. For one thread at a time.

    A command that is followed by no other is carried on along the poses that were announced with it, for
    `patience_ns` after it came; then `is_over`."""

    def __init__(self, q: np.ndarray, t_ns: int, patience_ns: int) -> None:
        self.patience_ns = patience_ns
        self.hold(q, t_ns)

    def hold(self, q: np.ndarray, t_ns: int, brakes: bool = False) -> None:
        """Go to `q`, where the arm is or about where it comes to rest, and stay there. brakes: it has yet to
        come to rest, as soon as it can."""
        self.brakes = brakes
        self._times, self._poses = [t_ns], [q]
        self.commanded_ns: int | None = None  # None: it holds
        self.lapsed_ns: int | None = None  # since when it holds because no command came

    def command(
        self,
        start: np.ndarray,
        t_start_ns: int,
        target: np.ndarray,
        t_target_ns: int,
        ahead: np.ndarray,
        period_ns: int,
        now_ns: int,
    ) -> None:
        """From `start` at `t_start_ns` to `target`, then through `ahead` `(n, J)`, one each `period_ns`."""
        arrival_ns = max(t_target_ns, t_start_ns + 1)
        self._times = [t_start_ns, *(arrival_ns + i * period_ns for i in range(len(ahead) + 1))]
        self._poses = [start, target, *ahead]
        self.commanded_ns, self.lapsed_ns, self.brakes = now_ns, None, False

    def is_over(self, t_ns: int) -> bool:
        """Whether the next command is missing at `t_ns`."""
        return self.commanded_ns is not None and t_ns > self.commanded_ns + self.patience_ns

    def silence_ns(self, now_ns: int) -> int:
        """For how long the arm has been holding because no command came."""
        return 0 if self.lapsed_ns is None else max(now_ns - self.lapsed_ns, 0)

    def at(self, t_ns: int) -> np.ndarray:
        times, poses = self._times, self._poses
        if len(times) == 1 or t_ns >= times[-1]:
            return poses[-1]
        while len(times) > 2 and t_ns >= times[1]:  # passed for good: times only rise
            del times[0], poses[0]
        w = (t_ns - times[0]) / (times[1] - times[0])
        return poses[0] + max(w, 0.0) * (poses[1] - poses[0])
