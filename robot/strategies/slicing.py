"""Chunks cut where the next one is there: what `async` does, and every strategy that leaves it to the policy
that a new chunk goes on from the old one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...policies.serving.metadata import Metadata
from .strategy import Asynchronous, Plan, Reply


@dataclass(frozen=True)
class Slicing(Asynchronous):
    """Ask for a chunk while the last one is executed, and jump to the new one when it is there, at the action
    for that tick: the baseline, which nothing keeps from jumping.

    blend: for so many ticks what is sent fades from the old chunk, or from where the arm stands, to the new
    one, along a minimum-jerk curve (Flash and Hogan 1985). Of a jump, whose acceleration changes by twice as
    much at once, 3 ticks make changes of 0.3 times; they cost half as many ticks of delay, in which two plans
    are mixed.

    The policy is asked again when as many ticks have passed as it wants actions executed (`n_action_steps`,
    or what the reply says), or sooner, where the chunk would else be used up before the reply is there."""

    blend: int = 0
    """Ticks over which a new chunk replaces the old one, from 0: at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blend < 0:
            raise ValueError(f"blend is {self.blend}: it is a number of ticks from 0")

    def plan(self, metadata: Metadata) -> Plan:
        return SlicingPlan(metadata.n_action_steps, self.blend)


class SlicingPlan(Plan):
    """interval: ticks from one question to the next, where the policy does not say how much to execute.
    blend: ticks over which a new chunk replaces the old one."""

    def __init__(self, interval: int, blend: int = 0) -> None:
        if interval < 1:
            raise ValueError(f"the policy is asked every {interval} ticks: it must be at least 1")
        self.interval, self.blend = interval, blend
        super().__init__()

    def due(self, now: int, delay: int) -> bool:
        return now >= self.until or now + delay >= self.start + len(self.actions)

    def take(self, reply: Reply, now: int) -> bool:
        if now - reply.asked >= len(reply.actions):
            return False
        old = self.ahead(now)
        if not len(old) and reply.held is not None:
            old = reply.held[None]
        self.start, self.actions = now, self._faded(old, reply.actions[now - reply.asked :])
        self.until = reply.asked + reply.count(self.interval)
        return True

    def _faded(self, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        """`new` `(n, A)`, whose first actions come from `old` `(m, A)`; where that ends sooner, they are as
        far from `new` as it was in its last tick."""
        n = min(self.blend, len(new))
        if not n or not len(old):
            return new
        shared = np.minimum(np.arange(n), len(old) - 1)
        away = old[shared] - new[shared]
        x = np.arange(1, n + 1) / (self.blend + 1)
        left = 1 - x**3 * (10 - 15 * x + 6 * x**2)
        return np.concatenate([new[:n] + left[:, None] * away, new[n:]]).astype(new.dtype)
