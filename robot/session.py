"""What a policy's side of one episode remembers: the observations it has seen, the actions sent, what is
planned, and the question that is open. The agent of one robot has one, a batch of running episodes one a row,
so that both ask the same questions and execute the answers alike.

It counts control ticks from the episode's beginning and knows no clock: how late an answer is, is told by the
tick at which it is given. What is planned is indexed by the actions that were consumed: a tick at which the
robot stood still, because no chunk had an action, does not count, so that it then goes on where it stopped.
Legend: n actions ahead, A action dimensions."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..datasets.features import ACTION, STATE, Features
from ..datasets.uvd import DEMONSTRATION, Subgoals
from ..policies.request import TASK, Request
from ..policies.serving.metadata import Metadata
from .prompts import Prompts
from .strategies.all import usual_strategy
from .strategies.strategy import Reply, Strategy

REMEMBERED = 10  # delays, of which the largest is the forecast (Black et al. 2025, arXiv 2506.07339)


class Delays:
    """How many ticks passed from a question to its answer. forecast: the most of the last ten. The very first
    answer, for which a policy may still be loading, counts only as long as there is no other."""

    def __init__(self) -> None:
        self._last: deque[int] = deque(maxlen=REMEMBERED)
        self._first: int | None = None

    def add(self, ticks: int) -> None:
        if self._first is None:
            self._first = ticks
        else:
            self._last.append(ticks)

    @property
    def forecast(self) -> int:
        return max(self._last, default=self._first or 0)


class Session:
    """Every tick: `observe`, `ask` and, where there is an answer, `answer` it; `next`, and `sent`. A question
    stays open until it is answered, be it at a later tick. Larger camera images are resized to the policy's
    by area. ValueError for a decoder that does not exist.

    goal: what the policy's conditions need beside the task and is not observed, by key; of what they may be
    told, the request has what is observed or is among it. A policy that was told subgoals (UVD) may be shown
    a demonstration in their place, `demonstration.<key>` `(L, *shape)`, observed at an episode's first tick
    or among the goal: it is told the subgoals of that one, each once the one before is reached. prompts: of
    which it is shown some in each episode. strategy: by default what the policy's decoder says.
    robot_features: by default the policy's. starved: ticks of the episode that repeated the last action,
    because no chunk had one for them; before the first answer that is where the robot stood. too_late:
    answers all of whose actions were for ticks that were over. switches: ticks at which another chunk took
    over. subgoals: those that are followed, once there are any."""

    def __init__(
        self,
        metadata: Metadata,
        goal: Mapping[str, np.ndarray] | None = None,
        strategy: Strategy | None = None,
        robot_features: Features | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        self.metadata, self._goal, self._prompts = metadata, dict(goal or {}), prompts
        shown = () if prompts is None else prompts.keys
        self._robot_features = metadata.features if robot_features is None else robot_features
        self._observed_goal = [k for k in metadata.conditions if k not in (TASK, *self._goal, *shown)]
        self._of_goal = [k.removeprefix("goal.") for k in metadata.conditions if k.startswith("goal.")]
        self._features = {k: f for k, f in metadata.features.items() if k != ACTION}
        self.strategy = usual_strategy(metadata) if strategy is None else strategy
        self._plan = self.strategy.plan(metadata)
        self._options = self.strategy.options()
        self.delays = Delays()
        self.reset("", 0)

    def reset(self, task: str, seed: int) -> None:
        """An episode begins: task is its instruction, and seed that of all its decisions. A question that was
        open is forgotten. What is known of delays stays."""
        self.task, self.seed, self.decisions = task, seed, 0
        self.tick, self.starved, self.starving, self.too_late = 0, 0, 0, 0
        self._consumed = 0
        self.switches: list[int] = []
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=self.metadata.n_obs_steps)
        self._past: deque[np.ndarray] = deque(maxlen=self.metadata.n_past_actions)
        self._memory: Any = None
        self._shown: Mapping[str, np.ndarray] | None = None
        self._open: int | None = None  # tick of the observation of the question that is open
        self._open_at = 0  # what had been consumed then
        self._coming: tuple[int, Reply] | None = None  # an answer, and from which tick on it is there
        self._last: np.ndarray | None = None
        self._watches = False
        self.subgoals: Subgoals | None = None
        self._plan.reset()

    def observe(self, values: Mapping[str, np.ndarray]) -> None:
        """The observation of this tick, by key."""
        latest = {k: _at_size(values[k], f.shape) for k, f in self._features.items()}
        # before the first tick the world stood still
        while len(self._history) < self.metadata.n_obs_steps - 1:
            self._history.append(latest)
        self._history.append(latest)
        if self._shown is None:
            self._shown = {} if self._prompts is None else self._prompts.of(self.task, self.seed)
        more = {k: values[k] for k in self.metadata.optional if k in values}
        given = {**values, **self._goal} | self._subgoal(values)
        told = (*self._observed_goal, *(k for k in self._goal if not k.startswith(DEMONSTRATION)))
        self._told = more | {k: given[k] for k in told} | dict(self._shown)
        if self._last is None:
            self._last = standing(self._robot_features, values)
        if self._coming is not None and self.tick >= self._coming[0]:
            self._take(self._coming[1])

    def _subgoal(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The goals of this tick, where there is a demonstration; and the next one's, once it is reached."""
        how, given = self.metadata.subgoals, {**values, **self._goal}
        if how is None or any(DEMONSTRATION + k not in given for k in self._of_goal):
            return {}
        if self.subgoals is None:
            self.subgoals = Subgoals({k: given[DEMONSTRATION + k] for k in self._of_goal}, how)
        return self.subgoals.goal(values)

    def ask(self) -> Request | None:
        """What to ask the policy with the observation of this tick; None where a question is open, or nothing
        has to be asked. Its observations are `(n_obs_steps, *shape)`."""
        forecast = self.delays.forecast
        if self._open is not None or not self._plan.due(self._consumed, forecast):
            return None
        self._open, self._open_at = self.tick, self._consumed
        known = {k: np.stack([step[k] for step in self._history]) for k in self._features} | self._told
        left = self._plan.ahead(self._consumed)
        return Request(
            known,
            self._decision_seed(),
            self._complete_past(),
            self.task,
            left if len(left) else None,
            min(forecast, len(left)) if self.strategy.foretells else None,
            self._memory,
            self._options,
        )

    @property
    def asked(self) -> int | None:
        """The tick of the observation of the question that is open."""
        return self._open

    @property
    def can_wait(self) -> bool:
        """Whether there is an action to repeat where no chunk has one for this tick."""
        return self._last is not None

    def answer(
        self,
        chunk_nA: np.ndarray,
        memory: Any = None,
        execute: int | None = None,
        *,
        asked: int | None = None,
        delay: int = 0,
    ) -> None:
        """The policy's chunk for the question that is open; its first action is for the tick of the question.
        memory: what it will want back. execute: use no more of its actions than this before it is asked
        again; ValueError for less than one. asked: the tick of the question that it answers; an answer to
        another than the one that is open is not used. delay: ticks from now on until it is there."""
        if self._open is None or self._coming is not None or (asked is not None and asked != self._open):
            return
        reply = Reply(self._open_at, np.asarray(chunk_nA), execute)
        self.decisions += 1
        self._memory = memory
        if delay > 0:
            self._coming = self.tick + delay, reply
        else:
            self._take(reply)

    def next(self) -> np.ndarray:
        """The action `(A,)` of this tick, and on to the next tick. LookupError where there is none, neither
        planned nor to be repeated."""
        action = self._plan.action(self._consumed)
        if action is None:
            if self._last is None:
                raise LookupError("no chunk has an action for this tick, and none was sent before")
            self.starved, self.starving = self.starved + 1, self.starving + 1
            action = self._last
        else:
            self.starving, self._consumed = 0, self._consumed + 1
        self.tick, self._last = self.tick + 1, action
        return action

    def ahead(self) -> np.ndarray | None:
        """`(n, A)`: what will be executed after the action that `next` gave last, unless another chunk comes
        first; None where nothing is planned."""
        ahead = self._plan.announced(self._consumed)
        return ahead if len(ahead) else None

    def skip(self, ticks: int) -> None:
        """So many actions of `ahead`, or all where there are fewer, were executed while nobody asked for the
        `next`."""
        gone = self._plan.announced(self._consumed)[:ticks]
        if len(gone):
            self.tick, self._consumed = self.tick + len(gone), self._consumed + len(gone)
            self._past.extend(gone)
            self._last = gone[-1]

    def watch(self, values: Mapping[str, np.ndarray]) -> None:
        """The observation of a tick in which somebody else acts, instead of `observe` to `next`. What was
        planned and asked is dropped, and it goes on from what they have sent."""
        self._open = self._coming = None
        self._plan.reset()
        self.observe(values)
        self.tick, self.starving, self._watches = self.tick + 1, 0, True

    def sent(self, action: np.ndarray) -> None:
        """What the robot made of the last action, limits applied: the past that the policy learned from."""
        self._past.append(action)
        if self._watches:
            self._last, self._watches = action, False

    def _take(self, reply: Reply) -> None:
        assert self._open is not None
        self.delays.add(self.tick - self._open)
        self._open = self._coming = None
        if self._plan.take(replace(reply, held=self._last), self._consumed):
            self.switches.append(self.tick)
        else:
            self.too_late += 1

    def _complete_past(self) -> np.ndarray | None:
        """`Request.past`, `(n_past_actions, A)` float32; None where the policy does not need it, or where the
        episode has sent fewer actions so far."""
        n = self.metadata.n_past_actions
        if not self.metadata.needs_past or len(self._past) < n:
            return None
        return np.stack(self._past).astype(np.float32)

    def _decision_seed(self) -> int:
        digest = hashlib.sha256(f"{self.seed} {self.decisions}".encode()).digest()
        return int.from_bytes(digest[:6], "big")


def can_stand(features: Features) -> bool:
    """Whether a robot's state says by which action it stays where it is."""
    return _elements(features) is not None


def standing(features: Features, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The action `(A,)` that keeps a robot where it is, by its state; None where that does not say."""
    elements = _elements(features)
    return None if elements is None or STATE not in values else np.asarray(values[STATE])[elements]


def _elements(features: Features) -> list[int] | None:
    """For each element of the action the index of the element of the state that is the same joint."""
    action, state = features.get(ACTION), features.get(STATE)
    if action is None or state is None:
        return None
    if action.names and set(action.names) <= set(state.names):
        return [state.names.index(n) for n in action.names]
    same = not action.names and not state.names and action.shape == state.shape
    return list(range(action.shape[0])) if same else None


def _at_size(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if value.ndim != 3 or value.shape == shape:
        return value
    import cv2

    return cv2.resize(value, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
