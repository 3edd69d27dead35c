"""Chunks cut where the next one is there: what `async` does, and every strategy that leaves it to the policy
that a new chunk goes on from the old one."""

from __future__ import annotations

from dataclasses import dataclass

from ...policies.serving.metadata import Metadata
from .strategy import Asynchronous, Plan, Reply


@dataclass(frozen=True)
class Slicing(Asynchronous):
    """Ask for a chunk while the last one is executed, and jump to the new one when it is there, at the action
    for that tick: the baseline, which nothing keeps from jumping.

    The policy is asked again when as many ticks have passed as it wants actions executed (`n_action_steps`,
    or what the reply says), or sooner, where the chunk would else be used up before the reply is there."""

    def plan(self, metadata: Metadata) -> Plan:
        return SlicingPlan(metadata.n_action_steps)


class SlicingPlan(Plan):
    """interval: ticks from one question to the next, where the policy does not say how much to execute."""

    def __init__(self, interval: int) -> None:
        if interval < 1:
            raise ValueError(f"the policy is asked every {interval} ticks: it must be at least 1")
        self.interval = interval
        super().__init__()

    def due(self, now: int, delay: int) -> bool:
        return now >= self.until or now + delay >= self.start + len(self.actions)

    def take(self, reply: Reply, now: int) -> bool:
        if now - reply.asked >= len(reply.actions):
            return False
        self.start, self.actions = now, reply.actions[now - reply.asked :]
        self.until = reply.asked + reply.count(self.interval)
        return True
