"""A person beside a policy: they take the robot and give it back while an episode runs, and it never jumps.

Each tick has one owner. While the policy acts the person's device is only looked at; while the person acts
the policy still sees every observation and what was sent, and what it had planned is dropped (HG-DAgger,
Kelly et al. 2019). What comes after a change of hands begins where the robot was sent last: its steps
grow from `FIRST_STEP` on."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from ..datasets.features import STATE
from ..datasets.flags import INTERVENTION
from ..drivers.screen import Screen
from .agent import Agent, Buttons, Ends, Foresees, HearsSent, Intervenes, Watches
from .people import SYNC_SPEED
from .robot import Observation

FIRST_STEP = 0.02  # rad (m): the most that a joint is sent in the tick of a change; twice that in the next, …


@runtime_checkable
class Person(Protocol):
    """An agent that is a person, who may take the robot from a policy; see `robot.people`."""

    tag: str

    def reset(self, task: str, seed: int) -> None: ...

    def act(self, observation: Observation) -> np.ndarray: ...

    def asks(self) -> bool:
        """In a tick in which somebody else acts: whether the device itself asks for the robot."""
        ...

    def take(self, sent: np.ndarray) -> None:
        """The next `act` begins from where the robot was sent last, `(A,)`."""
        ...

    def sent(self, action: np.ndarray) -> None: ...


class Takeover:
    """The agent `policy`, until the person asks for the robot or somebody calls `toggle`, and again after the
    next `toggle`. Each episode begins with the policy. taken: how often a person took over, since this was
    made.

    After a change the arm goes to where its new owner wants it at up to `SYNC_SPEED`; as soon as it is there,
    it moves as they do."""

    def __init__(self, policy: Agent, person: Person, control_hz: float) -> None:
        self.policy, self.person = policy, person
        self._fastest = max(FIRST_STEP, SYNC_SPEED / control_hz)
        self.tag = f"{policy.tag} with {person.tag}"
        self.taken = 0
        self.reset("", 0)

    def reset(self, task: str, seed: int) -> None:
        self.policy.reset(task, seed)
        self.person.reset(task, seed)
        self.intervening = self._wanted = False
        self._sent: np.ndarray | None = None
        self._step: float | None = None  # the most that the next action may move a joint; None: freely

    def toggle(self) -> None:
        """From the next tick on it is the other's turn."""
        self._wanted = not self._wanted

    def act(self, observation: Observation) -> np.ndarray:
        if not self.intervening and self.person.asks():
            self._wanted = True
        if self._sent is None:
            self._sent = observation.values[STATE].astype(np.float64)
        if self._wanted != self.intervening:
            self.intervening, self._step = self._wanted, FIRST_STEP
            if self.intervening:
                self.taken += 1
                self.person.take(self._sent)
        if self.intervening:
            if isinstance(self.policy, Watches):
                self.policy.watch(observation)
            wish = self.person.act(observation)
        else:
            wish = self.policy.act(observation)
        return self._near(np.asarray(wish, np.float64))

    def _near(self, wish: np.ndarray) -> np.ndarray:
        """`wish`, or as much of the way there as the handover allows by now."""
        if self._step is None or self._sent is None or not np.isfinite(wish).all():
            return wish
        most, away = self._step, wish - self._sent
        self._step = None if np.abs(away).max() <= most else min(most + FIRST_STEP, self._fastest)
        return self._sent + np.clip(away, -most, most)

    def ahead(self) -> np.ndarray | None:
        """Of the policy, while it acts as it wants to."""
        if self.intervening or self._step is not None or not isinstance(self.policy, Foresees):
            return None
        return self.policy.ahead()

    def skip(self, ticks: int) -> None:
        if self.ahead() is not None and isinstance(self.policy, Foresees):
            self.policy.skip(ticks)

    def sent(self, action: np.ndarray) -> None:
        self._sent = action.astype(np.float64)
        if isinstance(self.policy, HearsSent):
            self.policy.sent(action)
        if self.intervening:
            self.person.sent(action)

    @property
    def flags(self) -> int:
        if self.intervening:
            return INTERVENTION
        return self.policy.flags if isinstance(self.policy, Intervenes) else 0

    @property
    def ended(self) -> bool:
        return not self.intervening and isinstance(self.policy, Ends) and self.policy.ended

    @property
    def outcome(self) -> bool | None:
        return self.policy.outcome if isinstance(self.policy, Ends) else None

    @property
    def screen(self) -> Screen | None:
        return getattr(self.person, "screen", None)

    def events(self) -> tuple[str, ...]:
        return self.person.events() if isinstance(self.person, Buttons) else ()

    def idle(self) -> tuple[str, ...]:
        return self.person.idle() if isinstance(self.person, Buttons) else ()
