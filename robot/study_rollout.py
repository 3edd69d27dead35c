"""The episodes of one arm of a study, all at once in a vector environment: one inference for all that want a
new chunk at a tick. Each is the episode that it would be alone. Beyond `robot.agent` it tells a policy what
methods need: goals, prompts, memory, what is left of the last chunk, and the delay until the new one counts.

Legend: B questions asked at once, n actions ahead, A action dimensions, T observation steps."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..datasets.features import Features
from ..policies.decoders import TemporalEnsemble
from ..policies.request import TASK, Request

if TYPE_CHECKING:
    from ..sim.planar.env import Observation, PlanarEnv

GOAL = "observation.goal"


@dataclass(frozen=True)
class Needs:
    """How a policy is asked."""

    features: Features
    """Of the policy."""
    observation_keys: tuple[str, ...]
    """What a request shows of the last T ticks."""
    condition_keys: tuple[str, ...] = ()
    """What it tells besides: `task`, `goal.<key>`, `prompt.<key>`, labels."""
    n_obs_steps: int = 1
    n_past_actions: int = 0
    """Actions sent before now that a request brings; 0: none."""
    n_action_steps: int = 1
    """Actions executed of a chunk, where the policy does not say so itself."""
    wants_previous: bool = False
    """Whether what is left of the last chunk is of use to it."""
    ensemble_decay: float | None = None
    """Ask at every tick and average all predictions with weights exp(-decay i); None: do not."""
    prompts: tuple[int, int] = (0, 0)
    """Prompts of a request, and ticks of each."""


@dataclass(frozen=True)
class Decision:
    """The answer to B questions."""

    chunk: np.ndarray
    """`(B, n, A)`, the first action for now."""
    nfe: np.ndarray
    """`(B,)` network evaluations."""
    execute: np.ndarray | None = None
    """`(B,)`, how many of the actions to execute; None: n_action_steps."""
    memory: np.ndarray | None = None
    """`(B, M)`, for the next request of the episode."""


class Decider(Protocol):
    """A trained policy as a study asks it."""

    @property
    def needs(self) -> Needs: ...

    def decide(self, request: Request) -> Decision:
        """B questions, in numpy arrays and lists of B: `seed` and `task` always, the others where they are
        known. A row's answer depends on its own row alone."""
        ...


@dataclass(frozen=True)
class Episodes:
    """What E episodes came to, each array `(E,)` in the order of the seeds."""

    success: np.ndarray
    ticks: np.ndarray
    reward: np.ndarray
    """Sum over the episode."""
    roughness: np.ndarray
    """Mean length of the second difference of the actions sent, in the action's unit."""
    info: dict[str, np.ndarray]
    """What else the environment's info said at the end, by key."""
    decisions: int
    nfe: float
    """Network evaluations a decision."""
    seconds: float
    decision_seconds: float
    """Of the inferences alone, a decision."""

    def to_json(self) -> dict[str, Any]:
        """Lists and numbers. `seconds` is `evaluation_seconds` there."""
        return {
            "success": self.success.tolist(),
            "ticks": self.ticks.tolist(),
            "reward": self.reward.tolist(),
            "roughness": self.roughness.tolist(),
            "info": {k: v.tolist() for k, v in self.info.items()},
            "decisions": self.decisions,
            "nfe": self.nfe,
            "evaluation_seconds": self.seconds,
            "decision_seconds": self.decision_seconds,
        }


class _Episode:
    """What the policy's side remembers of one episode."""

    def __init__(self, seed: int, task: str, needs: Needs, delay: int) -> None:
        self.seed, self.task, self.needs, self.delay = seed, task, needs, delay
        self.history: deque[dict[str, np.ndarray]] = deque(maxlen=needs.n_obs_steps)
        self.past: deque[np.ndarray] = deque(maxlen=max(needs.n_past_actions, 1))
        self.sent: list[np.ndarray] = []
        self.tick = self.decisions = 0
        self.chunk: np.ndarray | None = None
        self.old: np.ndarray | None = None
        self.began = self.old_began = self.execute = 0
        self.memory: np.ndarray | None = None
        self.ensemble = None if needs.ensemble_decay is None else TemporalEnsemble(needs.ensemble_decay)

    def see(self, values: dict[str, np.ndarray]) -> None:
        # before the first tick the world stood still
        while len(self.history) < self.needs.n_obs_steps - 1:
            self.history.append(values)
        self.history.append(values)

    def wants_chunk(self) -> bool:
        return self.chunk is None or self.ensemble is not None or self.tick - self.began >= self.execute

    def previous(self) -> np.ndarray | None:
        """What is left of the chunk, `(n, A)`."""
        if self.chunk is None or not self.needs.wants_previous:
            return None
        left = self.chunk[self.tick - self.began :]
        return left if len(left) else None

    def decision_seed(self) -> int:
        """As `robot.agent.PolicyAgent` has it."""
        digest = hashlib.sha256(f"{self.seed} {self.decisions}".encode()).digest()
        return int.from_bytes(digest[:6], "big")

    def answer(self, chunk_nA: np.ndarray, execute: int | None, memory: np.ndarray | None) -> None:
        self.decisions, self.memory = self.decisions + 1, memory
        self.old, self.old_began = self.chunk, self.began
        self.chunk, self.began = chunk_nA, self.tick
        most = max(len(chunk_nA) - self.delay, 1)
        steps = self.needs.n_action_steps if execute is None else int(execute)
        # a chunk is not asked for before the one before has come
        self.execute = min(max(steps, self.delay, 1), most)
        if self.ensemble is not None:
            self.ensemble.push(chunk_nA)

    def next(self) -> np.ndarray:
        """The action `(A,)` of this tick: of the last chunk before the new one has come."""
        assert self.chunk is not None
        if self.ensemble is not None:
            return self.ensemble.next()
        chunk, at = self.chunk, self.tick - self.began
        if self.old is not None and at < self.delay:
            chunk, at = self.old, self.tick - self.old_began
        return chunk[min(at, len(chunk) - 1)]

    def was_sent(self, action: np.ndarray) -> None:
        self.past.append(action)
        self.sent.append(action)
        self.tick += 1


def run_episodes(
    decider: Decider,
    env: PlanarEnv,
    seeds: Sequence[int],
    *,
    given: Mapping[str, Any] | None = None,
    delay: int = 0,
    prompts: Mapping[str, Sequence[dict[str, np.ndarray]]] | None = None,
) -> Episodes:
    """One episode of each seed in `env`, which has as many environments.

    given: arrays told in every request, by key. delay: control ticks until a chunk can be used. prompts: by
    instruction, episodes `{key: (ticks, *shape)}` with the actions, for policies that are shown some.
    ValueError where the environment does not show what the policy needs."""
    needs, began = decider.needs, time.monotonic()
    _require(needs, env, given or {}, delay)
    observation, info = env.reset(seed=list(seeds))
    episodes = [_Episode(s, str(t), needs, delay) for s, t in zip(seeds, info["task"], strict=True)]
    told = [_told(e, i, needs, observation, given or {}, prompts or {}) for i, e in enumerate(episodes)]
    running = np.ones(len(seeds), bool)
    actions = np.zeros(env.action_space.shape, np.float32)
    reward = np.zeros(len(seeds))
    evaluations, deciding = 0, 0.0
    while running.any():
        rows = np.flatnonzero(running)
        for i in rows:
            episodes[i].see({k: observation[k][i] for k in needs.observation_keys})
        asked = time.monotonic()
        for group in _alike([int(i) for i in rows if episodes[i].wants_chunk()], episodes, needs):
            decision = decider.decide(_request(group, episodes, told, needs, observation))
            evaluations += int(decision.nfe.sum())
            for j, i in enumerate(group):
                execute = None if decision.execute is None else int(decision.execute[j])
                memory = None if decision.memory is None else decision.memory[j]
                episodes[i].answer(decision.chunk[j], execute, memory)
        deciding += time.monotonic() - asked
        for i in rows:
            actions[i] = episodes[i].next()
        observation, earned, terminated, truncated, info = env.step(actions)
        sent = np.clip(actions, env.low, env.high).astype(np.float32)
        for i in rows:
            episodes[i].was_sent(sent[i])
        reward[rows] += earned[rows]
        running = ~(terminated | truncated)
    decisions = sum(e.decisions for e in episodes)
    return Episodes(
        success=np.asarray(info["success"]),
        ticks=np.array([e.tick for e in episodes]),
        reward=reward,
        roughness=np.array([_roughness(e.sent) for e in episodes]),
        info={k: np.asarray(v) for k, v in info.items() if k not in ("success", "task") and k[0] != "_"},
        decisions=decisions,
        nfe=evaluations / decisions,
        seconds=time.monotonic() - began,
        decision_seconds=deciding / decisions,
    )


def _require(needs: Needs, env: PlanarEnv, given: Mapping[str, Any], delay: int) -> None:
    for key in needs.observation_keys:
        shape = needs.features[key].shape
        if key not in env.observed or (len(env.observed[key].names),) != shape:
            raise ValueError(
                f"the policy needs {key} of shape {shape}, which {env.task_name} does not show so"
            )
    for key in needs.condition_keys:
        if not key.startswith(("goal.", "prompt.")) and key != TASK and key not in given:
            raise ValueError(f"the policy is to be told {key}: say in the arm's `given` what")
        if key.startswith("goal.") and key not in given:
            feature = needs.features.get(key.removeprefix("goal."))
            if (
                GOAL not in env.observed
                or feature is None
                or feature.shape != (len(env.observed[GOAL].names),)
            ):
                raise ValueError(
                    f"the policy is to be told {key}, and {env.task_name} shows no {GOAL} of its shape"
                )
    if delay and (needs.ensemble_decay is not None):
        raise ValueError("a delay is simulated for the slice decoder only")


def _told(
    episode: _Episode,
    row: int,
    needs: Needs,
    observation: Observation,
    given: Mapping[str, Any],
    prompts: Mapping[str, Sequence[dict[str, np.ndarray]]],
) -> dict[str, np.ndarray]:
    """What the requests of an episode say besides the observations. A goal stands still during it."""
    told: dict[str, np.ndarray] = {}
    for key, value in given.items():
        dtype = needs.features[key].dtype if key in needs.features else "float32"
        told[key] = np.asarray(value, dtype)
    for key in needs.condition_keys:
        if key.startswith("goal.") and key not in told:
            told[key] = observation[GOAL][row]
    if any(k.startswith("prompt.") for k in needs.condition_keys):
        told |= _prompts(episode, needs, prompts.get(episode.task, ()))
    return told


def _prompts(
    episode: _Episode, needs: Needs, shown: Sequence[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Drawn by the episode's seed, thinned and padded as `datasets.reading.spec.WindowSpec` says."""
    if not shown:
        raise ValueError(f"there is no demonstration of {episode.task!r} to be shown to the policy")
    count, length = needs.prompts
    order = np.resize(np.random.default_rng([episode.seed, 11]).permutation(len(shown)), count)
    keys = [k for k in needs.condition_keys if k.startswith("prompt.") and k != "prompt.mask"]
    rows: dict[str, list[np.ndarray]] = {k: [] for k in ("prompt.mask", *keys)}
    for demonstration in (shown[int(i)] for i in order):
        ticks = len(next(iter(demonstration.values())))
        step = (ticks - 1) / max(length - 1, 1) if ticks > length else 1
        at = np.minimum(np.rint(step * np.arange(length)).astype(np.int64), ticks - 1)
        rows["prompt.mask"].append(np.arange(length) < ticks)
        for key in keys:
            rows[key].append(demonstration[key.removeprefix("prompt.")][at])
    return {k: np.stack(v) for k, v in rows.items() if k in needs.condition_keys}


def _alike(asking: Sequence[int], episodes: Sequence[_Episode], needs: Needs) -> list[list[int]]:
    """The rows in groups that can be one batch: with or without a past, a memory, equally much left."""
    groups: dict[tuple[bool, bool, int], list[int]] = {}
    for i in asking:
        e, previous = episodes[i], episodes[i].previous()
        key = (_has_past(e, needs), e.memory is not None, 0 if previous is None else len(previous))
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _has_past(episode: _Episode, needs: Needs) -> bool:
    return needs.n_past_actions > 0 and len(episode.past) == needs.n_past_actions


def _request(
    rows: Sequence[int],
    episodes: Sequence[_Episode],
    told: Sequence[Mapping[str, np.ndarray]],
    needs: Needs,
    observation: Observation,
) -> Request:
    some, first = [episodes[i] for i in rows], episodes[rows[0]]
    batch: dict[str, Any] = {
        k: np.stack([np.stack([step[k] for step in e.history]) for e in some]) for k in needs.observation_keys
    }
    batch |= {k: np.stack([told[i][k] for i in rows]) for k in told[rows[0]]}
    previous = first.previous()
    return Request(
        batch,
        seed=[e.decision_seed() for e in some],
        past=np.stack([np.stack(e.past) for e in some]) if _has_past(first, needs) else None,
        task=[e.task for e in some],
        previous=None if previous is None else np.stack([e.previous() for e in some]),  # type: ignore[arg-type]
        delay=first.delay if previous is not None else None,
        memory=None if first.memory is None else np.stack([e.memory for e in some]),  # type: ignore[arg-type]
    )


def _roughness(sent: Sequence[np.ndarray]) -> float:
    if len(sent) < 3:
        return 0.0
    return float(np.linalg.norm(np.diff(np.stack(sent).astype(np.float64), n=2, axis=0), axis=1).mean())
