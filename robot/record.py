"""Record demonstrations into an episode store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..datasets.features import require_same
from ..datasets.store import EpisodeStore
from ..datasets.writer import EpisodeWriter
from .agent import Agent, ExpertAgent, HoldAgent
from .config import Rig, require_known
from .loop import run_episode

AGENTS = ("expert", "hold")  # teleoperators join here


@dataclass(frozen=True)
class RecordResult:
    out: Path
    episodes: int
    successes: int
    frames: int


def make_agent(name: str, rig: Rig, noise: float = 0.0, mode: str | None = None) -> Agent:
    """An agent that needs no policy."""
    require_known("agent", name, AGENTS)
    return HoldAgent() if name == "hold" else ExpertAgent(rig.scene, noise, mode)


def record(
    rig: Rig,
    agent: Agent,
    out: str | Path,
    episodes: int,
    seed: int = 0,
    only_successes: bool = False,
    report: Callable[[int, int, int], None] = lambda done, successes, frames: None,
) -> RecordResult:
    """Record `episodes` episodes with seeds `seed`, `seed + 1`, … into the store `out`, new or of the same features; one
    that is continued goes on after its highest seed.

    Every episode is kept and marked with its outcome; with `only_successes` a failed one is discarded and its seed
    spent. Seeds are stored; evaluation counts from 1000 by default, so a few hundred demonstrations are disjoint from it.
    An interrupted recording leaves its finished episodes.
    """
    robot, scene = rig.robot, rig.scene
    if scene is None:
        raise ValueError(
            "recording a real robot needs a teleoperator; only simulated robots can be recorded so far"
        )
    if (Path(out) / "ulna.json").exists():
        store = EpisodeStore.open(out)
        require_same(store.features, robot.features, f"the dataset {out}", "the robot")
        require_same(robot.features, store.features, "the robot", f"the dataset {out}")
    else:
        store = EpisodeStore.create(
            out,
            robot.features,
            robot.control_hz,
            robot.name,
            {"made_by": f"ulna {version('ulna')}", "task": scene.task.name, "randomisation": scene.xi},
        )
    recorded = [int(e.attrs["seed"]) for e in store.episodes if "seed" in e.attrs]
    seed = max(
        [seed, *(s + 1 for s in recorded)]
    )  # a dataset that is continued gets new episodes, not the same again
    kept = successes = frames = 0
    next_seed = seed
    while kept < episodes:
        if next_seed - seed >= 10 * episodes + 100:
            raise RuntimeError(
                f"only {kept} of {next_seed - seed} episodes succeeded: the agent does not solve the task"
            )
        scene.reset(next_seed)
        gate = _Gate(store, only_successes)
        result = run_episode(
            robot,
            agent,
            [gate],
            task=scene.instruction,
            seed=next_seed,
            max_ticks=round(scene.max_seconds * robot.control_hz),
            success=scene.success,
        )
        next_seed += 1
        if result.success or not only_successes:
            kept += 1
            successes += bool(result.success)
            frames += result.ticks
            report(kept, successes, frames)
    return RecordResult(Path(out), kept, successes, frames)


class _Gate(EpisodeWriter):
    """The writer, which throws a failed episode away when only successes are wanted."""

    def __init__(self, store: EpisodeStore, only_successes: bool) -> None:
        super().__init__(store)
        self.only_successes = only_successes

    def end(self, meta) -> None:  # type: ignore[no-untyped-def]
        if self.only_successes and not meta.get("success"):
            self.discard()
        else:
            super().end(meta)
