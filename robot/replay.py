"""Recorded actions once more, on a robot: through the same command path, at the recorded rate, and how far
the joints were from where they were sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..datasets.episode import Episode, StoreError
from ..datasets.features import ACTION, STATE, FeatureMismatch, require_same
from ..datasets.reading.align import align, row_per_tick
from ..datasets.recording.recorder import Recorder
from ..datasets.store import EpisodeStore
from ..datasets.units import Restated
from .config import Rig
from .keys import Keys
from .lerobot_words import in_ours
from .loop import run_episode
from .motion import go_to
from .own_rate import OwnRate, own_rate
from .record import episode_metadata
from .robot import Observation
from .takes import Operator, Take

SLOWEST, FASTEST = 0.05, 4.0
WHOLE_EPISODE_NS = 3_600_000_000_000


@dataclass(frozen=True)
class Tracking:
    """How far a joint was from where it was sent one control period before, in its unit."""

    joint: str
    unit: str
    rms: float
    most: float
    limited: float
    """The most by which limits, or a safety filter, changed what the recording asked for."""
    recorded_rms: float | None
    """The same as `rms`, of the recording itself; None: it holds no state."""


@dataclass(frozen=True)
class Replay:
    """What came of it. success: as the scene judges; None without one. sent, reached: `(T, A)`, rad or m."""

    data: str
    episode: int
    robot: str
    speed: float
    ticks: int
    late: int
    success: bool | None
    tracking: list[Tracking]
    sent: np.ndarray = field(repr=False)
    reached: np.ndarray = field(repr=False)
    control_hz: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON types only, without the curves."""
        values = asdict(self)
        return {k: v for k, v in values.items() if k not in ("sent", "reached")}


class ReplayAgent:
    """Sends `actions` `(T, A)` one after the other, and ends the episode after the last one."""

    outcome = None

    def __init__(self, actions: np.ndarray, tag: str) -> None:
        self.actions, self.tag = actions, tag
        self.reset("", 0)

    def reset(self, task: str, seed: int) -> None:
        self._at = 0

    def act(self, observation: Observation) -> np.ndarray:
        self._at += 1
        return self.actions[self._at - 1]

    def ahead(self) -> np.ndarray | None:
        return self.actions[self._at :]

    def skip(self, ticks: int) -> None:
        """Nothing is left out: what was sent and reached is compared with the recording tick by tick."""

    @property
    def ended(self) -> bool:
        return self._at >= len(self.actions)


class _Track:
    """A subscriber that keeps what was sent and where the joints were, `(T, A)` each."""

    def __init__(self) -> None:
        self.sent, self.states = list[np.ndarray](), list[np.ndarray]()

    def start(self, meta: Mapping[str, Any]) -> None:
        pass

    def tick(self, values: Mapping[str, np.ndarray], times_ns: Any, flags: Any) -> None:
        self.sent.append(values[ACTION].astype(np.float64))
        self.states.append(values[STATE].astype(np.float64))

    def end(self, meta: Mapping[str, Any]) -> None:
        pass

    def interrupt(self, reason: str) -> None:
        pass


def replay(
    rig: Rig,
    store: EpisodeStore,
    number: int,
    speed: float = 1.0,
    recorder: Recorder | None = None,
    keys: Keys | None = None,
) -> Replay:
    """Send what was sent in episode `number` of `store`, `speed` times as fast, with straight lines between
    the recorded actions. The arm goes slowly to where the episode began; a scene is set up by the episode's
    seed. recorder, keys: as for `takes.take_episodes`; whoever quits gets the result of what ran.

    FeatureMismatch, ValueError or StoreError, both sides shown, before anything moves: the robot's joints,
    their units or its rate are not the recording's, or an action is no number."""
    robot, (episode,) = rig.robot, store.choose([number])
    actions = actions_for(rig, store, number, speed)
    seed = int(episode.attrs.get("seed", 0))
    recorded = _states(store, episode, in_ours(store.features, rig))
    if rig.scene is not None:
        rig.scene.reset(seed)
    go_to(robot, actions[0] if recorded is None else recorded[0])
    agent = ReplayAgent(_at_speed(actions, speed), f"replay of {store.path.name} {number}")
    of = {"data": str(store.path), "episode": number, "speed": speed}
    track = _Track()
    own_rows = None if recorder is None else OwnRate(recorder, own_rate(robot))
    take = Take(own_rows, Operator(keys, agent), only_successes=False)
    result = run_episode(
        robot,
        agent,
        [track, take],
        task=episode.task,
        seed=seed,
        max_ticks=len(agent.actions),
        stop=take.stop,
        meta={**episode_metadata(rig), "replay": of},
    )
    reached = np.array([*track.states[1:], robot.observe().values[STATE].astype(np.float64)])
    sent = np.array(track.sent)
    success = take.success(None if rig.scene is None else rig.scene.success())
    tracking = _tracking(robot.action_features[ACTION], agent.actions, sent, reached, actions, recorded)
    return Replay(
        str(store.path),
        number,
        robot.name,
        speed,
        result.ticks,
        result.late,
        success,
        tracking,
        sent,
        reached,
        robot.control_hz,
    )


def actions_for(rig: Rig, store: EpisodeStore, number: int, speed: float = 1.0) -> np.ndarray:
    """What was sent in episode `number`, `(T, A)` float64, after looking that this robot, which may be
    closed, can be sent it; errors as `replay`."""
    robot, (episode,) = rig.robot, store.choose([number])
    if not SLOWEST <= speed <= FASTEST:
        raise ValueError(
            f"the speed is {speed:g}, it must lie in {SLOWEST:g}..{FASTEST:g} times the recorded"
        )
    if ACTION not in store.features:
        raise StoreError(f"{store.path} holds no actions to replay; it has {', '.join(store.features)}")
    words = in_ours(store.features, rig)
    wanted = {ACTION: words.features(store.features)[ACTION]}
    require_same(robot.action_features, wanted, f"the robot {robot.name}", f"the dataset {store.path}")
    require_same(wanted, robot.action_features, f"the dataset {store.path}", f"the robot {robot.name}")
    if abs(store.control_hz - robot.control_hz) > 0.01 * store.control_hz:
        raise FeatureMismatch(
            f"the dataset {store.path} was recorded at {store.control_hz:g} Hz and the robot "
            f"{robot.name} runs at {robot.control_hz:g} Hz: set control_hz in its file to the recording's"
        )
    actions = words.values(ACTION, episode.read(ACTION)).astype(np.float64)
    if not len(actions):
        raise StoreError(f"episode {number} of {store.path} holds no actions")
    if not np.isfinite(actions).all():
        row = int(np.flatnonzero(~np.isfinite(actions).all(1))[0])
        raise StoreError(f"episode {number} of {store.path}: action {row} is no number; nothing was sent")
    joints = [arm.joints for arm in robot.arms.values()]
    lower, upper = (np.concatenate([getattr(j, end) for j in joints]) for end in ("lower", "upper"))
    outside = np.maximum(lower - actions[0], actions[0] - upper)
    if outside.max() > 0.05:
        name = robot.action_features[ACTION].names[int(outside.argmax())]
        raise ValueError(
            f"the recording begins with {name} {outside.max():.2f} beyond this robot's limits: it is of "
            "another robot, or of another calibration"
        )
    return actions


def _states(store: EpisodeStore, episode: Episode, words: Restated) -> np.ndarray | None:
    """Where the joints were at each tick of the recording, `(T, A)`, in `words`; None where it does not
    say."""
    if STATE not in store.features or store.features[STATE].shape != store.features[ACTION].shape:
        return None
    ticks, (capture, receive) = episode.times_ns(ACTION)[0], episode.times_ns(STATE)
    states = words.values(STATE, episode.read(STATE)).astype(np.float64)
    if not row_per_tick(episode.by_tick(STATE), ticks, capture, receive):
        rows = align(ticks, capture, receive, WHOLE_EPISODE_NS)
        states = states[np.maximum(rows, 0)]
    return states if np.isfinite(states).all() else None


def _at_speed(actions: np.ndarray, speed: float) -> np.ndarray:
    """`actions` `(T, A)` at `speed` times their rate, the first and the last among them."""
    if speed == 1 or len(actions) < 2:
        return actions
    last = len(actions) - 1
    at = np.append(np.arange(0, last, speed), last)
    low = np.minimum(at.astype(int), last - 1)
    share = (at - low)[:, None]
    return (1 - share) * actions[low] + share * actions[low + 1]


def _tracking(
    feature: Any,
    asked: np.ndarray,
    sent: np.ndarray,
    reached: np.ndarray,
    actions: np.ndarray,
    recorded: np.ndarray | None,
) -> list[Tracking]:
    error = reached - sent
    limited = np.abs(asked[: len(sent)] - sent).max(0)
    before = None if recorded is None or len(recorded) < 2 else recorded[1:] - actions[:-1]
    return [
        Tracking(
            name,
            unit,
            float(np.sqrt(np.mean(error[:, j] ** 2))),
            float(np.abs(error[:, j]).max()),
            float(limited[j]),
            None if before is None else float(np.sqrt(np.mean(before[:, j] ** 2))),
        )
        for j, (name, unit) in enumerate(zip(feature.names, feature.units, strict=True))
    ]
