"""What an evaluation measured, in closed or in open loop, and as the JSON that `ulna evaluate` prints and
leaves in the checkpoint.

Keys on disk are those of the fields, but for the names in `KEYS`. Unknown keys are ignored when reading, and
what is None is left out when writing, so that reports of older and newer versions can be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from ..statistics import wilson

KEYS = {"n_ticks": "frames", "n_actions_ahead": "horizon", "control_hz": "fps"}  # of open loop: field -> key


@dataclass(frozen=True)
class Outcome:
    """One episode in closed loop. ticks: how long it took. score: the scene's, 0 to 1. late: ticks that were
    not done in time. dropped: rows that a recording lost, by stream. reason: why the episode broke off, where
    the policy failed in it."""

    seed: int
    success: bool
    ticks: int
    score: float
    late: int | None = None
    dropped: dict[str, int] | None = None
    reason: str | None = None


def worst_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Failures before successes, else in their order: what one looks at first."""
    return sorted(outcomes, key=lambda o: o.success)


@dataclass(frozen=True)
class EpisodeTrace:
    """What a plot needs of one episode: by tick, the action sent and the state, in the robot's units."""

    seed: int
    action: list[list[float]]
    state: list[list[float]]


@dataclass(frozen=True)
class Latency:
    """Percentiles of the time that a decision took, ms."""

    p50: float
    p99: float

    @staticmethod
    def of(latencies_s: Sequence[float]) -> Latency:
        p50, p99 = np.percentile(np.asarray(latencies_s) * 1e3, [50, 99])
        return Latency(float(p50), float(p99))


@dataclass(frozen=True)
class ClosedLoop:
    """Episodes of an agent in a scene that judges them. The fields with None are not known of every agent."""

    task: str
    robot: str
    agent: str
    """Its tag."""
    joints: list[str]
    units: list[str]
    control_hz: float
    outcomes: list[Outcome]
    """At least one, in the order of their seeds."""
    filmed: list[Outcome] = field(default_factory=list)
    """Episodes that were run again for the camera, failures first. Empty where those of `outcomes` were
    filmed."""
    traces: list[EpisodeTrace] = field(default_factory=list)
    """Of the episodes that were filmed."""
    videos: list[str] = field(default_factory=list)
    """Their files, `seed-N.mp4`."""
    seconds: float | None = None
    versions: dict[str, str] | None = None
    checkpoint: str | None = None
    """Content hash of the policy's."""
    recipe: str | None = None
    decisions: int | None = None
    """How many chunks the policy was asked for."""
    nfe_per_decision: float | None = None
    latency_ms: Latency | None = None
    server: str | None = None
    """Address of the server that answered; None: the policy ran in this process."""
    late_ticks: int | None = None
    ticks: int | None = None
    batch: int | None = None
    """How many episodes ran at once; None: one at a time."""
    processes: int | None = None
    """Among how many their physics was shared."""
    strategy: dict[str, Any] | None = None
    """How chunks were asked for and executed, where that was chosen: its name and fields."""
    charged: str | None = None
    """What a decision cost in simulated time; None: nothing."""
    directors: list[dict[str, Any]] | None = None
    """Who stood above it, by name and fields; None: nobody."""
    steering: list[dict[str, Any]] | None = None
    """Hooks that acted on every draw beside the recipe's, by part and fields."""
    sampling_steps: int | None = None
    """Of the sampler."""
    shown: str | None = None
    """The demonstrations that the policy was shown when it acted, in words."""
    starved: int | None = None
    """Ticks for which no chunk had an action; None: there were none."""
    safety: str | None = None
    """What the safety filter did in them, in words."""

    @property
    def episodes(self) -> int:
        return len(self.outcomes)

    @property
    def first_seed(self) -> int:
        return self.outcomes[0].seed

    @property
    def successes(self) -> int:
        return sum(o.success for o in self.outcomes)

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes

    @property
    def wilson_95(self) -> tuple[float, float]:
        """95 % interval of the success rate."""
        return wilson(self.successes, self.episodes)

    def to_json(self) -> dict[str, Any]:
        return _without_none(
            {
                "kind": "closed-loop",
                "episodes": self.episodes,
                "first_seed": self.first_seed,
                "successes": self.successes,
                "success_rate": self.success_rate,
                "wilson_95": list(self.wilson_95),
                **_without_none(asdict(self)),
                "outcomes": [_without_none(asdict(o)) for o in self.outcomes],
                "filmed": [_without_none(asdict(o)) for o in self.filmed] or None,
            }
        )

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> ClosedLoop:
        """The inverse, for reports of older versions, too. ValueError where it is something else."""
        with _reading("closed-loop", d):
            latency = d.get("latency_ms")
            parts = {
                "outcomes": [Outcome(**_own_fields(Outcome, o)) for o in d["outcomes"]],
                "filmed": [Outcome(**_own_fields(Outcome, o)) for o in d.get("filmed", ())],
                "traces": [EpisodeTrace(**_own_fields(EpisodeTrace, t)) for t in d.get("traces", ())],
                "latency_ms": None if latency is None else Latency(**_own_fields(Latency, latency)),
            }
            return ClosedLoop(**{**_own_fields(ClosedLoop, d), **parts})


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval [low, high]."""

    mean: float
    bootstrap_95: list[float]


@dataclass(frozen=True)
class Comparison:
    """The policy's error minus a baseline's, paired by tick, with its 95 % interval [low, high]. better: the
    whole interval lies below zero."""

    difference: float
    bootstrap_95: list[float]
    better: bool


@dataclass(frozen=True)
class PredictedChunk:
    """actions `(n, A)`, predicted at tick `at` of the episode."""

    at: int
    actions: list[list[float]]


@dataclass(frozen=True)
class ChunksTrace:
    """What a plot needs of one episode: its recorded actions `(T, A)`, and the policy's chunks along the
    way."""

    episode: int
    recorded: list[list[float]]
    chunks: list[PredictedChunk]


@dataclass(frozen=True)
class OpenLoop:
    """A policy's predictions beside what was recorded. Errors are mean absolute errors by predictor (`policy`
    and the baselines); relative ones in standard deviations of a joint. H = n_actions_ahead, A joints."""

    data: str
    recipe: str
    checkpoint: str
    episodes: list[int]
    n_ticks: int
    """How many ticks were predicted from."""
    every: int
    """Every how many-th tick of an episode was used."""
    n_actions_ahead: int
    control_hz: float
    """Of the dataset."""
    nfe_per_decision: float
    block_s: float
    """Length of the blocks of the bootstrap."""
    joints: list[str]
    units: list[str]
    relative_error: dict[str, Estimate]
    comparisons: dict[str, Comparison]
    """By baseline."""
    per_joint: dict[str, list[float]]
    """`(A,)`, in the joints' units."""
    per_joint_difference: dict[str, list[list[float]]]
    """By baseline `(A, 3)`: the difference to it, low, high."""
    per_step: dict[str, list[float]]
    """`(H,)`, relative."""
    per_step_95: dict[str, list[list[float]]]
    """`(H, 2)`: low, high."""
    per_joint_and_step: dict[str, list[list[float]]]
    """`(H, A)`, in the joints' units."""
    trace: ChunksTrace

    def to_json(self) -> dict[str, Any]:
        return {"kind": "open-loop"} | {KEYS.get(name, name): value for name, value in asdict(self).items()}

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> OpenLoop:
        """The inverse, for reports of older versions, too. ValueError where it is something else."""
        with _reading("open-loop", d):
            values = {f.name: d[KEYS.get(f.name, f.name)] for f in fields(OpenLoop)}
            relative, comparisons, trace = (values[k] for k in ("relative_error", "comparisons", "trace"))
            chunks = [PredictedChunk(**_own_fields(PredictedChunk, c)) for c in trace["chunks"]]
            parts = {
                "relative_error": {n: Estimate(**_own_fields(Estimate, e)) for n, e in relative.items()},
                "comparisons": {n: Comparison(**_own_fields(Comparison, c)) for n, c in comparisons.items()},
                "trace": ChunksTrace(trace["episode"], trace["recorded"], chunks),
            }
            return OpenLoop(**{**values, **parts})


@contextlib.contextmanager
def _reading(kind: str, d: Mapping[str, Any]) -> Iterator[None]:
    """Turns the error on a field that is missing or of another type into a ValueError of one sentence."""
    if d.get("kind") != kind:
        raise ValueError(f"this is no {kind} report: its kind is {d.get('kind')!r}")
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no {kind} report: {error!r}") from None


def _own_fields(cls: type, d: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: d[f.name] for f in fields(cls) if f.name in d}


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
