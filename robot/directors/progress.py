"""Go by how much of the task is done."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...datasets.steps import parts
from ...drivers.config import setting
from .director import Again, End, Instruct, Moment, Order

if TYPE_CHECKING:
    from ...policies.progress import Answer
    from ..config import Rig


@dataclass
class Progress:
    """A progress critic (`ulna progress`) marks the steps of the task after each of its clips. The episode
    ends as a success when twice in a row at least `enough` of them are done. Where no more are done than ever
    before for `stall` seconds, the arm goes home and the policy begins anew; after the last of `attempts` the
    episode ends as a failure.

    No tick waits for the critic: it thinks in a thread during the next clip, and its word counts from that
    one's end. A real robot's clip that ends before that is left out; a simulation waits."""

    critic: str = ""
    """Folder that `ulna progress` made."""
    steps: str = ""
    """The steps of the task, with semicolons between; empty: the critic's own for the episode's task."""
    enough: float = setting(0.95, 0.01, 1)
    """Share of the steps that counts as done."""
    stall: float = setting(0.0, 0, 3600, "s")
    """The longest without progress; 0: for ever."""
    attempts: int = setting(1, 1, 100)
    """How many in all."""
    instruct: bool = False
    """Tell the policy the first step that is pending, in the place of the task."""

    def open(self, rig: Rig) -> None:
        from ...policies.progress import load_progress

        if not self.critic:
            raise ValueError("Progress needs a critic: --Progress.critic FOLDER, from `ulna progress`")
        self._critic = load_progress(self.critic)
        self._critic.require_robot(rig.robot.features)
        self._hz, self._waits = rig.robot.control_hz, not rig.realtime
        self._stride = self._critic.spec.stride(self._hz)
        self._thinking = ThreadPoolExecutor(1, thread_name_prefix="progress")

    def close(self) -> None:
        self._thinking.shutdown(cancel_futures=True)

    def reset(self, task: str, seed: int) -> None:
        self._task, self._attempt = task, 1
        self._plan = parts(self.steps) or self._critic.plan(task)
        self._begin()

    def _begin(self) -> None:
        """An attempt: nothing is done yet, as far as is known."""
        from ...policies.progress import Answer

        self._answer = Answer.pending(self._plan)
        self._asked: Future[Answer] | None = None
        self._frames: list[dict[str, np.ndarray]] = []
        self._tick = self._risen = 0
        self._best, self._told = 0.0, ""
        self._was_enough = False

    def direct(self, moment: Moment) -> Order | None:
        if moment.failure:
            return None
        values = moment.observation.values
        if self._tick % self._stride == 0:
            self._frames.append({k: np.array(values[k]) for k in self._critic.features})
        self._tick += 1
        order = self._after_clip() if len(self._frames) == self._critic.spec.frames else None
        return order or self._instruction()

    def _after_clip(self) -> Order | None:
        clip = {k: np.stack([f[k] for f in self._frames]) for k in self._critic.features}
        self._frames = []
        asked, first = self._asked, self._asked is None
        if asked is not None:
            if not (self._waits or asked.done()):
                return None
            self._answer = asked.result()
        self._asked = self._thinking.submit(self._critic.revise, clip, self._task, self._answer)
        return None if first else self._judge(self._answer)

    def _judge(self, answer: Answer) -> Order | None:
        if answer.p > self._best:
            self._best, self._risen = answer.p, self._tick
        before, self._was_enough = self._was_enough, answer.p >= self.enough
        done = f"{sum(answer.done)} of {len(answer.done)} steps are done"
        if before and self._was_enough:
            return End(True, f"{done}, by {self.critic}")
        still = (self._tick - self._risen) / self._hz
        if not self.stall or self._was_enough or still < self.stall:
            return None
        why = f"attempt {self._attempt} of {self.attempts} stalls: {done}, no progress for {still:g} s"
        if self._attempt >= self.attempts:
            return End(False, why)
        self._attempt += 1
        self._begin()
        return Again(f"{why}; again from the beginning")

    def _instruction(self) -> Order | None:
        step = self._answer.next
        if not self.instruct or not step or step == self._told:
            return None
        self._told = step
        return Instruct(step, f"{sum(self._answer.done)} of {len(self._answer.done)} steps are done: {step}")
