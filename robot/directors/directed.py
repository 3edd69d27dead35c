"""An agent under directors: a policy, and whatever they order."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from ...datasets.features import STATE
from ...datasets.flags import DIRECTED
from ..agent import Agent, Foresees, HearsSent, Watches
from ..motion import HOMING_SPEED
from ..robot import Observation
from .director import Again, Director, End, Instruct, Moment, Order, Replace

if TYPE_CHECKING:
    from ..config import Rig


class Directed:
    """`policy` as `directors` order; where two want something in one tick, the first does. A policy that
    fails on an observation (`Exception`) fails the episode, unless a director orders something else for that
    tick.

    `with Directed(...) as agent`: the directors are open meanwhile. Ticks on the way to a new beginning have
    the flag DIRECTED. say: told what was ordered, and why."""

    def __init__(
        self,
        policy: Agent,
        directors: Sequence[Director],
        rig: Rig,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self.policy, self.directors, self._rig, self._say = policy, tuple(directors), rig, say
        names = ", ".join(type(d).__name__ for d in directors)
        self.tag = f"{policy.tag} directed by {names}"
        self._exit = contextlib.ExitStack()
        self._begin("", 0)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            for director in self.directors:
                director.open(self._rig)
                opened.callback(director.close)
            self._exit = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def reset(self, task: str, seed: int) -> None:
        self._begin(task, seed)
        self.policy.reset(task, seed)
        for director in self.directors:
            director.reset(task, seed)

    def _begin(self, task: str, seed: int) -> None:
        self._task, self._seed, self._acting = task, seed, self.policy
        self.ended, self.outcome = False, None
        self._ticks = self._begun = 0
        self._way: list[np.ndarray] = []
        self._home: np.ndarray | None = self._rig.home
        self._sent: np.ndarray | None = None
        self.flags = 0

    def act(self, observation: Observation) -> np.ndarray:
        here = observation.values[STATE].astype(np.float64)
        if self._sent is None:
            self._sent = here
            self._home = here if self._home is None else self._home
        self.flags = 0
        if self._way:
            return self._go(observation)
        moment = Moment(observation, self._ticks / self._rig.robot.control_hz, sent=self._sent)
        self._ticks += 1
        order = self._ask(moment)
        if order is None:
            try:
                return np.asarray(self._acting.act(observation), np.float64)
            except Exception as error:
                order = self._ask(Moment(observation, moment.seconds, str(error) or type(error).__name__))
                if order is None:
                    raise
        return self._obey(order, observation)

    def _ask(self, moment: Moment) -> Order | None:
        return next((o for d in self.directors if (o := d.direct(moment)) is not None), None)

    def _obey(self, order: Order, observation: Observation) -> np.ndarray:
        assert self._sent is not None
        self._say(order.why)
        self._ticks, self.flags = 0, DIRECTED
        match order:
            case End(outcome):
                self.ended, self.outcome = True, outcome
            case Again():
                assert self._home is not None
                self._way = _slowly(self._sent, self._home, self._rig.robot.control_hz)
                return self._go(observation)
            case Instruct(task):
                self._task = task
                self._acting.reset(task, self._next_seed())
            case Replace(agent):
                self._acting = agent
                agent.reset(self._task, self._next_seed())
        return self._sent

    def _go(self, observation: Observation) -> np.ndarray:
        self.flags = DIRECTED
        if isinstance(self._acting, Watches):
            self._acting.watch(observation)
        step = self._way.pop(0)
        if not self._way:
            self._acting.reset(self._task, self._next_seed())
        return step

    def _next_seed(self) -> int:
        """Each beginning draws anew."""
        self._begun += 1
        return self._seed + 1_000_003 * self._begun

    def watch(self, observation: Observation) -> None:
        """A person acts: what was ordered is off, and the policy begins its time anew."""
        self._way, self._ticks, self.flags = [], 0, 0
        if isinstance(self._acting, Watches):
            self._acting.watch(observation)

    def ahead(self) -> np.ndarray | None:
        if self.flags:
            return np.stack(self._way) if self._way else None
        return self._acting.ahead() if isinstance(self._acting, Foresees) else None

    def skip(self, ticks: int) -> None:
        if self.flags:
            del self._way[: min(ticks, len(self._way) - 1)]  # its last step is what ends it
        elif isinstance(self._acting, Foresees):
            self._acting.skip(ticks)

    def sent(self, action: np.ndarray) -> None:
        self._sent = action.astype(np.float64)
        if isinstance(self._acting, HearsSent):
            self._acting.sent(action)


def _slowly(start: np.ndarray, pose: np.ndarray, control_hz: float) -> list[np.ndarray]:
    """The commands `(A,)` from `start` to `pose`, one a tick, slow at both ends, as `motion.go_to` goes."""
    steps = max(1, round(float(np.max(np.abs(pose - start))) / HOMING_SPEED * control_hz * np.pi / 2))
    w = 0.5 - 0.5 * np.cos(np.pi * np.arange(1, steps + 1) / steps)
    return list(start + w[:, None] * (pose - start))
