"""Many episodes of a policy at once: one inference for all that need a new chunk. Each episode is the one
that an agent of its own would have, whatever runs beside it.

Legend: B questions asked at once, n actions ahead, A action dimensions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..datasets.features import ACTION, Feature, Features
from ..datasets.uvd import DEMONSTRATION
from ..policies.request import TASK, Request
from ..policies.serving.metadata import Metadata
from .charge import FREE, Charge
from .prompts import PROMPT, SHOW_SOME, Prompts
from .report.evaluation import EpisodeTrace, Outcome
from .session import Session
from .statistics import wilson

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from ..policies.serving.batch import Answers
    from .strategies.strategy import Strategy

GOAL = "observation.goal"  # of an environment: where it is to lead, in the coordinates of another observation


class Decider(Protocol):
    """A policy that answers many questions at once."""

    @property
    def metadata(self) -> Metadata: ...

    def decide(self, requests: Sequence[Request]) -> Answers:
        """One answer to each, which does not depend on the others. All are of one `Request.kind`."""
        ...


@dataclass(frozen=True)
class Rollout:
    """What B episodes and their decisions came to."""

    outcomes: list[Outcome]
    """In the order of the seeds."""
    infos: list[dict[str, Any]]
    """By episode, what the environment's info said of it at its end."""
    decisions: int
    """Chunks that were drawn, over all episodes."""
    inferences: int
    """Calls of the policy that drew them."""
    nfe_per_decision: float
    seconds: float
    traces: list[EpisodeTrace] = field(default_factory=list)
    """Of the first episodes, as many as were asked for."""
    starved: int = 0
    """Ticks, over all episodes, for which no chunk had an action, so that the last one was repeated."""
    too_late: int = 0
    """Answers all of whose actions were for ticks that were over."""
    writes: float | None = None
    """Share of decisions that wrote to the memory, of a policy whose memory is written now and then."""

    @property
    def successes(self) -> int:
        return sum(o.success for o in self.outcomes)

    @property
    def success_rate(self) -> float:
        return self.successes / len(self.outcomes)

    @property
    def wilson_95(self) -> tuple[float, float]:
        """95 % interval of the success rate."""
        return wilson(self.successes, len(self.outcomes))


class _Episode:
    """One that is running in a row of the environment."""

    def __init__(self, number: int, seed: int, task: str, session: Session) -> None:
        self.number, self.seed, self.ticks = number, seed, 0
        self.session = session
        self.session.reset(task, seed)
        self.trace: list[tuple[np.ndarray, np.ndarray]] = []


def rollout(
    policy: Decider,
    env: VectorEnv[Any, Any, Any],
    seeds: Sequence[int],
    *,
    traces: int = 0,
    progress: Callable[[int, int, int], None] = lambda finished, successes, episodes: None,
    strategy: Strategy | None = None,
    charge: Charge = FREE,
    prompts: Prompts | None = None,
) -> Rollout:
    """One episode of each seed in `env`, whose environments must not reset themselves
    (`AutoresetMode.DISABLED`); a row that is done takes the next seed.

    info of `env`: `success` `(N,)`, `task` `(N,)`, and where it has them `score` and `sent`, the actions as
    the limits allowed them; else actions are cut to the action space. FeatureMismatch or ValueError where the
    environment is not one of the policy's. traces: of how many of the first episodes joints and commands are
    kept. Where the policy is told a goal `goal.KEY`, it is what the environment shows under this name, else
    its `observation.goal`; what is optional need not be shown; where it is told subgoals, the environment may
    show a demonstration in their place (see `Session`). prompts: of which it is shown some of each episode's
    task. progress: called with how many episodes have ended, how many of them succeeded, and their number.

    strategy: how chunks are asked for and executed, by default as the policy's decoder says. charge: what a
    decision costs in simulated time; ValueError for what has to be measured, one decision at a time, and
    where nobody says at what rate the environment runs."""
    if not seeds:
        raise ValueError("roll out at least one episode")
    _require_fit(policy.metadata, env)
    if charge.ms is None:
        raise ValueError("how long a decision takes is measured one at a time: charge milliseconds instead")
    hz = float(getattr(env, "control_hz", None) or policy.metadata.control_hz or 0.0)
    if charge.ms and not hz:
        raise ValueError("a latency is charged in control ticks, and nobody says at what rate they come")
    goals, features = _goal_sources(policy.metadata, env, prompts), env_features(env)
    began = time.monotonic()
    n = env.num_envs
    reset: Callable[..., tuple[Any, dict[str, Any]]] = env.reset  # gymnasium's own type has one seed only
    space: Any = env.single_action_space
    waiting = deque(enumerate(int(s) for s in seeds))
    # rows beyond the number of episodes are reset, as the environment demands, and then left alone
    row_seeds = [int(seeds[i]) if i < len(seeds) else int(seeds[0]) for i in range(n)]
    observation, info = reset(seed=row_seeds)
    running: dict[int, _Episode] = {}

    def admit(rows: Sequence[int]) -> None:
        for row in rows:
            number, seed = waiting.popleft()
            session = Session(policy.metadata, strategy=strategy, robot_features=features, prompts=prompts)
            running[row] = _Episode(number, seed, str(info["task"][row]), session)

    admit(range(min(n, len(seeds))))
    actions = np.tile(np.clip(np.zeros(space.shape), space.low, space.high), (n, 1))
    ends: dict[int, tuple[Outcome, dict[str, Any], list[tuple[np.ndarray, np.ndarray]]]] = {}
    decisions, inferences, evaluations, successes, starved, too_late = 0, 0, 0, 0, 0, 0
    wrote: list[np.ndarray] = []
    while running:
        asked: dict[int, Request] = {}
        for row, episode in running.items():
            values = {k: v[row] for k, v in observation.items()}
            values |= {key: values[source] for key, source in goals.items()}
            episode.session.observe(values)
            if (request := episode.session.ask()) is not None:
                asked[row] = request
        # at its beginning an episode asks without a past, without a memory, ...: a batch of its own
        for kind in {r.kind for r in asked.values()}:
            rows = [row for row, r in asked.items() if r.kind == kind]
            answers = policy.decide([asked[row] for row in rows])
            memory, execute = answers.memory, answers.execute
            for i, row in enumerate(rows):
                session = running[row].session
                delay = charge.ticks(0.0, int(answers.nfe[i]), hz) if session.can_wait else 0
                session.answer(
                    answers.chunks[i],
                    None if memory is None else memory[i],
                    None if execute is None else int(execute[i]),
                    delay=delay,
                )
            decisions, inferences = decisions + len(rows), inferences + 1
            evaluations += int(answers.nfe.sum())
            if answers.wrote is not None:
                wrote.append(answers.wrote)
        for row, episode in running.items():
            actions[row] = episode.session.next()
        state = observation.get("observation.state")
        observation, _, terminated, truncated, info = env.step(actions)
        sent = info["sent"] if "sent" in info else np.clip(actions, space.low, space.high)
        for row, episode in list(running.items()):
            episode.session.sent(np.asarray(sent[row], np.float32))
            episode.ticks += 1
            if episode.number < traces and state is not None:
                episode.trace.append((np.array(sent[row]), np.array(state[row])))
            if terminated[row] or truncated[row]:
                del running[row]
                final = {k: _plain(v[row]) for k, v in info.items() if not k.startswith("_")}
                success = bool(final["success"])
                score = float(final.get("score", success))
                outcome = Outcome(episode.seed, success, episode.ticks, score)
                ends[episode.number] = outcome, final, episode.trace
                successes += success
                starved, too_late = starved + episode.session.starved, too_late + episode.session.too_late
                progress(len(ends), successes, len(seeds))
        free = [row for row in range(n) if row not in running][: len(waiting)]
        if free and waiting:
            mask = np.zeros(n, bool)
            mask[free] = True
            for row, (_, seed) in zip(free, waiting, strict=False):
                row_seeds[row] = seed
            observation, info = reset(seed=row_seeds, options={"reset_mask": mask})
            admit(free)
    return Rollout(
        [ends[i][0] for i in range(len(seeds))],
        [ends[i][1] for i in range(len(seeds))],
        decisions,
        inferences,
        evaluations / decisions,
        time.monotonic() - began,
        [_trace(ends[i][0].seed, ends[i][2]) for i in range(min(traces, len(seeds)))],
        starved,
        too_late,
        float(np.concatenate(wrote).mean()) if wrote else None,
    )


def env_features(env: VectorEnv[Any, Any, Any]) -> Features:
    """What is observed and commanded in `env`, with the names and units that it gives: `observed[key]` and
    `action`, each with `names` and `units`."""
    observed: Mapping[str, Any] = getattr(env, "observed", {})
    space: Any = env.single_observation_space
    features = {
        k: _feature(tuple(s.shape), str(np.dtype(s.dtype)), observed.get(k)) for k, s in space.spaces.items()
    }
    action: Any = env.single_action_space
    features[ACTION] = _feature(tuple(action.shape), "float32", getattr(env, "action", None))
    return features


def _feature(shape: tuple[int, ...], dtype: str, elements: Any) -> Feature:
    if elements is None:
        return Feature(shape, dtype)
    return Feature(shape, dtype, tuple(elements.names), tuple(elements.units))


def _require_fit(metadata: Metadata, env: VectorEnv[Any, Any, Any]) -> None:
    from ..datasets.features import is_image, require_same

    offered = env_features(env)
    vectors = {k: f for k, f in metadata.features.items() if not is_image(k)}
    # environments of others give neither names nor units, and nothing moves but numbers
    require_same(offered, vectors, "the environment", "the policy", stated=False)
    if missing := [k for k in metadata.features if k not in offered]:
        raise ValueError(f"the policy needs {missing[0]}, which the environment does not show")
    rate, own = metadata.control_hz, getattr(env, "control_hz", None)
    if rate and own and abs(own - rate) > 0.01 * rate:
        raise ValueError(f"the policy was trained on {rate:g} Hz data and the environment runs at {own:g} Hz")


def _goal_sources(
    metadata: Metadata, env: VectorEnv[Any, Any, Any], prompts: Prompts | None
) -> dict[str, str]:
    """By each condition that the policy is to be told, the observation that says it. ValueError where the
    environment shows none of its shape."""
    offered, sources = env_features(env), {}
    for key, feature in (metadata.conditions | metadata.optional).items():
        shown = prompts is not None and key in prompts.keys
        if key == TASK or shown or (metadata.subgoals and key.replace("goal.", DEMONSTRATION, 1) in offered):
            continue
        sources[key] = GOAL if key.startswith("goal.") and key not in offered else key
        shown = offered.get(sources[key])
        if shown is None and key in metadata.optional:
            del sources[key]
        elif shown is None and key.startswith(PROMPT):
            raise ValueError(SHOW_SOME)
        elif shown is None or shown.shape != feature.shape:
            what = "does not show" if shown is None else f"shows as {shown.shape} in {sources[key]}"
            raise ValueError(f"the policy is to be told {key} {feature.shape}, which the environment {what}")
    return sources


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _trace(seed: int, rows: list[tuple[np.ndarray, np.ndarray]]) -> EpisodeTrace:
    action, state = (np.stack(column).round(5).tolist() for column in zip(*rows, strict=True))
    return EpisodeTrace(seed, action, state)
