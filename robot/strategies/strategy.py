"""The contract of execution strategies: when to ask the policy, what to tell it of what is being executed,
and how its chunks become the one action of each control tick. Each strategy has a file of its own beside this
one. numpy only, without clocks and threads: a strategy counts control ticks, so that an episode in simulation
and one on a real arm are the same arithmetic.

A chunk is indexed by the tick of the observation that it answers: its first action is for that tick, however
late the reply comes. Ticks are those at which an action was consumed; where the robot stood still because
there was none, nothing moved on. Legend: n actions ahead, A action dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...policies.serving.metadata import Metadata


@dataclass(frozen=True)
class Reply:
    """A chunk `actions` `(n, A)`, whose first one is for the tick `asked`. execute: how many of them the
    policy wants used before it is asked again; None: as many as is usual. held: `(A,)`, what is sent again
    meanwhile where nothing is planned."""

    asked: int
    actions: np.ndarray
    execute: int | None = None
    held: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.execute is not None and self.execute < 1:
            raise ValueError(
                f"the policy wants {self.execute} actions executed: a decision is worth at least one"
            )

    def count(self, usual: int) -> int:
        """How many of its actions to use before asking again: at most those that it has."""
        return min(usual if self.execute is None else self.execute, len(self.actions))


class Plan:
    """The actions to come, by absolute tick; what `Strategy.plan` gives. This one has one row of actions:
    `actions` `(n, A)`, the first for the tick `start`, of the last reply, which was asked at `asked` and is
    to be used up to the tick `until`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all chunks: an episode begins."""
        self.start, self.actions = 0, np.zeros((0, 0), np.float32)
        self.asked, self.until = -1, 0

    def due(self, now: int, delay: int) -> bool:
        """Whether to ask with the observation of the tick `now`, where no question is open. delay: ticks that
        the reply will probably take."""
        raise NotImplementedError

    def take(self, reply: Reply, now: int) -> bool:
        """A reply has come, before the action of the tick `now`. False where it is of no use: all of its
        actions were for ticks that are over."""
        raise NotImplementedError

    def action(self, now: int) -> np.ndarray | None:
        """The action `(A,)` of the tick `now`; None where no chunk has one for it."""
        ahead = self.ahead(now)
        return ahead[0] if len(ahead) else None

    def ahead(self, now: int) -> np.ndarray:
        """`(n, A)`: all that is planned, the first for the tick `now`; n may be 0."""
        return self.actions[max(now - self.start, 0) :]

    def announced(self, now: int) -> np.ndarray:
        """`(n, A)`: the part of `ahead` that an arm may go on along where the next action is late."""
        return self.ahead(now)


@dataclass(frozen=True)
class Strategy:
    """A frozen dataclass, whose fields are options on the command line."""

    foretells: ClassVar[bool] = False
    """Whether it tells the policy how many ticks will pass until the reply is used."""

    @property
    def waits(self) -> bool:
        """Whether a tick waits for the chunk that it needs; else the policy thinks while the last chunk is
        executed."""
        return False

    def plan(self, metadata: Metadata) -> Plan:
        """For one robot and a policy that describes itself so. ValueError where they do not fit."""
        raise NotImplementedError

    def steering(self) -> list[dict[str, Any]]:
        """Hooks that the policy is to sample with, as a request has them: `{"part": name, field: value}`."""
        return []

    def options(self) -> Mapping[str, Any]:
        """`Request.options` of all its requests."""
        return {"steering": steering} if (steering := self.steering()) else {}


@dataclass(frozen=True)
class Asynchronous(Strategy):
    """The policy thinks while the last chunk is executed; a tick never waits for it."""

    patience_s: float = 3.0
    """How long the arm stands still without an answer before the run gives up, seconds."""

    def __post_init__(self) -> None:
        if not self.patience_s > 0:
            raise ValueError(f"patience_s is {self.patience_s}: it must be positive")
