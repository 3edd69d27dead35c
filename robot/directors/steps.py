"""One instruction after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...datasets.steps import parts
from ...drivers.config import setting
from ..robot import Observation
from .director import End, Instruct, Moment, Order
from .verifier import verifier

if TYPE_CHECKING:
    from ..config import Rig


@dataclass
class Steps:
    """The policy is told each of `tasks` in turn, for `seconds`, or until the verifier of the step says that
    it is done; after the last one the episode ends. For policies that are told in words what to do."""

    tasks: str = ""
    """Instructions, with semicolons between: `open the box; put the cube in`."""
    seconds: float = setting(0.0, 0, 3600, "s")
    """The longest that a step may take; 0: until its verifier says that it is done."""
    verifiers: str = ""
    """One a step, with semicolons: folders of detectors."""

    def open(self, rig: Rig) -> None:
        self._tasks = parts(self.tasks)
        names = parts(self.verifiers)
        if not self._tasks:
            raise ValueError("Steps needs instructions: --Steps.tasks 'open the box; put the cube in'")
        if names and len(names) != len(self._tasks):
            raise ValueError(
                f"Steps has {len(self._tasks)} tasks and {len(names)} verifiers: give one a task"
            )
        if not names and not self.seconds:
            raise ValueError("Steps must know when a step is over: give --Steps.seconds or --Steps.verifiers")
        self._are_done: list[Callable[[Observation], bool]] = [verifier(name, rig) for name in names]
        self._at = -1

    def close(self) -> None:
        pass

    def reset(self, task: str, seed: int) -> None:
        self._at = -1  # before the first step

    def direct(self, moment: Moment) -> Order | None:
        if self._at >= 0:
            done = bool(self._are_done) and self._are_done[self._at](moment.observation)
            if not done and not (self.seconds and moment.seconds >= self.seconds):
                return None
            if self._are_done and not done:
                return End(False, f"step {self._at + 1} was not done after {moment.seconds:g} s")
            if self._at + 1 == len(self._tasks):
                return End(True if done else None, "the last step is over")
        self._at += 1
        task = self._tasks[self._at]
        return Instruct(task, f"step {self._at + 1} of {len(self._tasks)}: {task}")
