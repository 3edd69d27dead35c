"""The contract of a director: whoever stands above the policy and decides, tick by tick, what an episode is
made of. It never computes an action; it ends the episode, has the policy begin again, tells it something else
to do, or puts another in its place (H8 of the policy grid)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..agent import Agent
from ..robot import Observation

if TYPE_CHECKING:
    from ..config import Rig


@dataclass(frozen=True)
class Moment:
    """What a director decides by. seconds: since the policy began, in this episode or after the last order.
    failure: why the policy gives no action for this tick, "" where it does. sent: `(A,)`, what was sent at
    the tick before, or where the joints were; None where nobody knows."""

    observation: Observation
    seconds: float
    failure: str = ""
    sent: np.ndarray | None = None


@dataclass(frozen=True)
class End:
    """The episode is over. outcome: whether the task was done, as far as the director can tell."""

    outcome: bool | None
    why: str


@dataclass(frozen=True)
class Again:
    """The arm goes slowly to where episodes begin, and the policy begins anew, in the same episode."""

    why: str


@dataclass(frozen=True)
class Instruct:
    """The policy is told another instruction, and begins anew from here."""

    task: str
    why: str


@dataclass(frozen=True)
class Replace:
    """Another agent acts until the episode ends."""

    agent: Agent
    why: str


Order = End | Again | Instruct | Replace


class Director(Protocol):
    """Directors are dataclasses; their fields are options, `--director Retry --Retry.attempts 3`. `direct` is
    on the robot's loop: it does not wait."""

    def open(self, rig: Rig) -> None:
        """Before the first episode. ValueError or DeviceError in one sentence: it cannot direct this
        robot."""
        ...

    def close(self) -> None: ...

    def reset(self, task: str, seed: int) -> None:
        """An episode begins."""
        ...

    def direct(self, moment: Moment) -> Order | None:
        """What is to happen now; None: nothing else than before."""
        ...
