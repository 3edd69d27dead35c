"""What may change a request before the limits see it: stages, in the order of the robot's file.

A stage is asked for nothing but where the arms may go next. What it returns goes on through the limits of the
filter, which have the last word: a stage can make an arm slower, or send it elsewhere, and cannot make it
break a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from ...drivers.arm import Joints
from ...drivers.sample import Sample
from .limits import Safety, groups
from .mover import stopping_distance


class Measured(NamedTuple):
    """q: `(A,)` where the arms were read to be. times_ns: `(A,)` int64, when each joint was."""

    q: np.ndarray
    times_ns: np.ndarray

    @staticmethod
    def of(samples: Sequence[Sample]) -> Measured:
        """samples: of each arm, in order."""
        times = [sample.t_capture_ns for sample in samples]
        return Measured(
            np.concatenate([sample.data for sample in samples]),
            np.repeat(np.array(times, np.int64), [len(sample.data) for sample in samples]),
        )


class Seen(NamedTuple):
    """What a stage knows, all `(A,)`. q, times_ns: the newest reading of the arms and when it was captured;
    it may be the same for several ticks, since a control process runs the filter up to one control period
    ahead. command, velocity: what the filter sends the arms for now, and with which speed they then go."""

    q: np.ndarray
    times_ns: np.ndarray
    command: np.ndarray
    velocity: np.ndarray


class Stage(Protocol):
    """One file in `stages/`, named as it is published. It keeps what it must remember between ticks."""

    def reset(self, q: np.ndarray, moved: np.ndarray) -> None:
        """The arms whose joints are `moved`, `(A,)` bool, stand at `q` `(A,)`; what was before is over for
        them. At first that is all of them."""
        ...

    def step(self, asked: np.ndarray, seen: Seen, dt_s: float) -> tuple[np.ndarray | None, str]:
        """What may be asked for instead of `asked` `(A,)` `dt_s` seconds from now, and why it differs, in a
        word or two; `asked` itself and "" where it may be as it is. None: nothing may, the arms brake.

        `asked` is finite, within the joints' limits, and no further from `seen.command` than a joint gets in
        one tick and the stop after it. It must not be written to. It is not called while the filter itself
        brakes or holds."""
        ...


@runtime_checkable
class Rechecked(Protocol):
    """A stage whose promise a later one could break."""

    def breaks(self, asked: np.ndarray, seen: Seen, dt_s: float) -> str:
        """Why `asked`, which later stages changed, may not be, or "". Where it may not, the arms brake."""
        ...


class Stages:
    """stages: of one filter, in order. joints: of all its arms."""

    def __init__(self, joints: Joints, safety: Safety, stages: Sequence[Stage]) -> None:
        self.each = tuple(stages)
        self._time_ns = 0  # of ticks, where nobody measures
        self._lower, self._upper = joints.lower, joints.upper
        self._speed = safety.speed
        limits = zip(safety.speed, safety.acceleration, safety.jerk, strict=True)
        self._to_stop = np.array([stopping_distance(float(v), float(a), float(j)) for v, a, j in limits])
        self._parts = [
            np.array(part)
            for columns, grippers in groups(joints).values()
            for part in ([j for j in columns if j not in grippers], *([g] for g in grippers))
            if part
        ]

    def reset(self, q: np.ndarray, moved: np.ndarray) -> None:
        for stage in self.each:
            stage.reset(q, moved)

    def step(
        self, asked: list[float], dt_s: float, now: tuple[np.ndarray, np.ndarray], measured: Measured | None
    ) -> tuple[list[float] | None, list[str]]:
        """What the limits are asked for, None where the arms brake, and why. asked: finite. now: `command`
        and `velocity` of `Seen`. measured: None: the arms are where they were sent."""
        command, velocity = now
        self._time_ns += round(dt_s * 1e9)
        if measured is None:
            measured = Measured(command, np.full(len(command), self._time_ns))
        seen = Seen(*measured, command, velocity)
        first = wanted = self._within_reach(np.array(asked), command, dt_s)
        reasons: list[str] = []
        changed: list[int] = []
        for k, stage in enumerate(self.each):
            allowed, why = stage.step(wanted, seen, dt_s)
            if why:
                reasons.append(why)
                changed.append(k)
            if allowed is None:
                return None, reasons
            wanted = allowed
        for k, stage in enumerate(self.each):
            if changed and k < changed[-1] and isinstance(stage, Rechecked):
                why = stage.breaks(wanted, seen, dt_s)
                if why:
                    return None, [*reasons, why]
        if wanted is first:
            return asked, reasons
        if not np.isfinite(wanted).all():
            return None, [*reasons, "not finite"]
        return wanted.tolist(), reasons

    def _within_reach(self, asked: np.ndarray, command: np.ndarray, dt_s: float) -> np.ndarray:
        """On the way of each arm, and each gripper, to what was asked, as far as the limits of speed let it
        get before it could stop."""
        asked = np.minimum(np.maximum(asked, self._lower), self._upper)
        away = asked - command
        over = np.abs(away) / (self._speed * dt_s + self._to_stop)
        if over.max() <= 1:
            return asked
        for part in self._parts:
            if (share := over[part].max()) > 1:
                asked[part] = command[part] + away[part] / share
        return asked
