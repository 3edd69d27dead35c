"""What stands between whoever commands a robot and its arms.

Each tick the filter is asked for a position, and returns one that keeps every limit, whatever was asked. An
arm goes towards what was asked on a straight line of joint space, as fast as its limits allow; where the line
is blocked it comes to rest before that. It never turns aside.

A command is only given when a stop from there was checked, too: that no joint leaves its limits on the way to
rest, and that nothing touches. When a later one cannot be checked, the arm follows the stop that was. So it
never runs into a limit because it was too fast to stop (a backup controller, as of K. P. Wabersich and M. N.
Zeilinger, "A predictive safety filter for learning-based control", Automatica 129, 2021; D. Beckert,
A. Pereira and M. Althoff, "Online verification of multiple safety criteria for a robot trajectory", CDC
2017).

Before its limits a filter may have stages (`stage.Stage`), which a request goes through first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import combinations
from operator import le
from typing import NamedTuple

import numpy as np

from ...datasets.flags import HELD, LIMITED
from ...drivers.arm import Joints
from .arm_filter import POSITION, ArmFilter, Other
from .body import OBSTACLE, SELF, TABLE, WORKSPACE, Body
from .limits import Safety, groups
from .mover import near
from .pair import OTHER, Pair
from .stage import Measured, Stage, Stages

SPEED, ACCELERATION, NOT_FINITE, NO_TARGET = "speed", "acceleration", "not finite", "no target"
REASONS = (NOT_FINITE, NO_TARGET, POSITION, WORKSPACE, OBSTACLE, TABLE, SELF, OTHER, SPEED, ACCELERATION)
SHORTEST_S, LONGEST_S = 1e-4, 0.1  # of a tick; a longer one is gone for as long as this

Bodies = Mapping[str, Body]  # by arm; arms that are not in it have no known shape


class State(Enum):
    RUN = "run"
    HOLD = "hold"  # it was asked for nothing that it can do; it goes on with the next request
    DECEL = "decelerate"  # tripped, and not at rest yet
    STOP = "stop"  # at rest until `reset`


class Filtered(NamedTuple):
    """command, velocity: `(A,)` float64, to be reached one tick from now. flags: LIMITED, HELD, or 0.
    reasons: of `REASONS`, of a stage, or why it was tripped."""

    command: np.ndarray
    velocity: np.ndarray
    flags: int
    reasons: tuple[str, ...]
    state: State


class Filter:
    """joints: of all arms of one robot, one arm after the other, as `robot.action_features` names them.
    bodies: by arm, "" where the robot has one. stages: what a request goes through first, in this order.

    Arms, and the gripper of each, are limited for themselves. An arm waits for another only where that one is
    in its way, and where both stand is known. Pure computation."""

    def __init__(
        self, joints: Joints, safety: Safety, bodies: Bodies | None, stages: Sequence[Stage] = ()
    ) -> None:
        self.joints, self.safety = joints, safety
        self.stages = Stages(joints, safety, stages) if stages else None
        self._arms = [
            ArmFilter(joints, safety, columns, grippers, (bodies or {}).get(arm))
            for arm, (columns, grippers) in groups(joints).items()
        ]
        self._pairs = list(self._meet({arm: columns for arm, (columns, _) in groups(joints).items()}))
        self._parts = [part for arm in self._arms for part in arm.parts]
        columns = [j for part in self._parts for j in part.columns]
        in_order = columns == sorted(columns)
        self._order = None if in_order else [columns.index(j) for j in range(len(joints))]
        self._why = ""
        self.state = State.STOP
        self._stands = False  # whether it knows where the arms are

    def reset(self, q: np.ndarray, moved: np.ndarray | None = None) -> tuple[str, ...]:
        """The arms stand at `q` `(A,)`; whatever tripped the filter is over. Returns what touches there, or
        is outside its workspace, in words: it does not count until it is apart, or inside. moved: `(A,)`
        bool, the joints of the arms that this is about, while the others go on; None: all."""
        q = np.array(q, np.float64)
        if q.shape != (len(self.joints),) or not np.isfinite(q).all():
            raise ValueError(f"the filter needs where each of {', '.join(self.joints.names)} is, not {q}")
        moved = np.ones(len(q), bool) if moved is None or not self._stands else moved
        texts = [text for arm in self._arms if moved[arm.first] for text in arm.reset(q.tolist())]
        for pair, a, b in self._pairs:
            if moved[a.first] or moved[b.first]:
                texts += pair.begin(a.pose, b.pose)
        if self.stages is not None:
            self.stages.reset(q, moved)
            command, velocity = (q, np.zeros(len(q))) if moved.all() else self._now
            self._now = np.where(moved, q, command), np.where(moved, 0.0, velocity)
        self._stands, self._why, self.state = True, "", State.RUN
        return tuple(texts)

    def begin(self) -> None:
        """An episode begins: the stages begin anew, where the arms are sent now. After `reset`."""
        if self.stages is not None:
            self.stages.reset(self._now[0], np.ones(len(self.joints), bool))

    def _meet(self, columns: dict[str, list[int]]) -> Iterator[tuple[Pair, ArmFilter, ArmFilter]]:
        """Those arms that must keep off each other: whose shape is known, and where they stand."""
        for (a, first), (b, second) in combinations(zip(columns, self._arms, strict=True), 2):
            bodies = first.body, second.body
            if bodies[0] is None or bodies[1] is None or bodies[0].base is None or bodies[1].base is None:
                continue
            pair = Pair((a, b), (bodies[0], bodies[1]), (columns[a], columns[b]), self.safety)
            first.others.append(Other(pair, second, True))
            second.others.append(Other(pair, first, False))
            yield pair, first, second

    def trip(self, reason: str) -> None:
        """Slow down to rest, and stay there until `reset`. The first reason stays."""
        if self.state not in (State.DECEL, State.STOP):
            self._why, self.state = reason, State.DECEL

    def step(self, target: np.ndarray | None, dt_s: float, measured: Measured | None = None) -> Filtered:
        """The command for `dt_s` seconds from now, given that `target` `(A,)` is asked for then. None, or a
        number that is not finite: the arms slow down and hold. measured: for the stages; None: the arms are
        where they were sent."""
        if not self._stands:
            raise ValueError("the filter does not know where the arms are: reset it first")
        asked: list[float] | None = None
        if target is not None:
            target = np.asarray(target, np.float64)
            if target.shape != (len(self.joints),):
                raise ValueError(
                    f"a target has shape {target.shape}, but there are joints {', '.join(self.joints.names)}"
                )
            asked = target.tolist()
        reasons: list[str] = []
        flags = 0
        dt = min(max(dt_s, SHORTEST_S), LONGEST_S) if dt_s > 0 else SHORTEST_S
        if self.state in (State.DECEL, State.STOP):
            reasons.append(self._why)
        elif asked is None or not all(map(math.isfinite, asked)) or not dt_s > 0:
            self.state = State.HOLD
            reasons.append(NO_TARGET if asked is None else NOT_FINITE)
        else:
            self.state = State.RUN
            if self.stages is not None:
                asked, why = self.stages.step(asked, dt, self._now, measured)
                reasons += why
                if asked is None:
                    self.state = State.HOLD
        if self.state is State.RUN and asked is not None:
            for arm in self._arms:
                moves, why = arm.step(asked, dt)
                if why:
                    reasons.append(why)
                    flags |= 0 if moves else HELD
        elif dt_s > 0:
            for arm in self._arms:
                arm.halt(dt)
            flags |= HELD
            if self.state is State.DECEL and all(part.stop.duration == 0 for part in self._parts):
                self.state = State.STOP
        for pair, first, second in self._pairs:
            if pair.tight:
                pair.settle(first.pose, second.pose)
        return self._filtered(flags, reasons)

    def _filtered(self, flags: int, reasons: list[str]) -> Filtered:
        command: list[float] = []
        velocity: list[float] = []
        outside = late = fast = False
        told = self.state is State.RUN and not flags  # whether to say that it lags
        for part in self._parts:
            state = part.mover.state
            command += state.q
            velocity += state.v
            outside = outside or part.clipped
            if told and not near(part.asked, state.q, part.same):
                late = True
                fast = fast or any(map(le, part.fast, map(abs, state.v)))
        if self.state is State.RUN:
            if outside and POSITION not in reasons:
                reasons.append(POSITION)
            if late:
                reasons.append(SPEED if fast else ACCELERATION)
        if reasons:
            flags |= LIMITED
        if self._order is not None:
            command, velocity = [command[i] for i in self._order], [velocity[i] for i in self._order]
        said = tuple(dict.fromkeys(reasons)) if len(reasons) > 1 else tuple(reasons)
        filtered = Filtered(np.array(command), np.array(velocity), flags, said, self.state)
        if self.stages is not None:
            self._now = filtered.command, filtered.velocity
        return filtered
