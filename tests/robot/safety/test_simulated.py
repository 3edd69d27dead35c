"""A simulated robot whose file has `[safety]`: what it is sent, what is recorded and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulna.datasets.features import ACTION, REQUESTED
from ulna.datasets.flags import HELD, INTERVENTION, LIMITED
from ulna.datasets.store import EpisodeStore
from ulna.robot.config import Rig, load_robot
from ulna.robot.evaluate import evaluate, evaluate_at_once
from ulna.robot.loop import run_episode
from ulna.robot.record import record
from ulna.robot.safety.tally import Tally

FILE = 'name = "r"\ndriver = "sim"\nmodel = "so101"\ncontrol_hz = 20.0\n[safety]\n'


class Jumps:
    """Asks for poses far from each other."""

    tag = "jumps"
    flags = 0

    def reset(self, task: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def act(self, observation: Any) -> np.ndarray:
        return self.rng.uniform(-3, 3, 6)


class Heard:
    def __init__(self) -> None:
        self.values: list[dict[str, np.ndarray]] = []
        self.flags: list[int] = []
        self.ends: list[dict[str, Any]] = []

    def start(self, meta: Any) -> None: ...

    def tick(self, values: Any, times_ns: Any, flags: Any) -> None:
        self.values.append(dict(values))
        self.flags.append(flags.get(ACTION, 0))

    def end(self, meta: Any) -> None:
        self.ends.append(dict(meta))

    def interrupt(self, reason: str) -> None: ...


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    path = tmp_path / "r.toml"
    path.write_text(FILE)
    with load_robot(str(path), "reach") as rig:
        yield rig


def run(rig: Rig, seed: int, ticks: int = 20, agent: Any = None) -> tuple[Heard, str]:
    heard = Heard()
    assert rig.scene is not None
    rig.scene.reset(seed)
    result = run_episode(rig.robot, agent or Jumps(), [heard], task="reach", seed=seed, max_ticks=ticks)
    return heard, result.safety


def test_what_is_sent_keeps_the_limits_and_is_marked(rig: Rig) -> None:
    heard, words = run(rig, 0)
    sent = np.array([v[ACTION] for v in heard.values], np.float64)
    asked = np.array([v[REQUESTED] for v in heard.values])
    assert np.abs(asked).max() > 2
    assert (np.abs(np.diff(sent[:, :5], axis=0)) <= 1.5 / 20 + 1e-6).all()
    assert all(flags & LIMITED for flags in heard.flags)
    assert words.startswith("safety: 20 of 20 ticks limited (")
    assert heard.ends[0]["safety"]["limited"] == 20


def test_each_episode_begins_where_the_arm_is_and_is_the_same_again(rig: Rig) -> None:
    first, _ = run(rig, 3)
    run(rig, 4)
    again, words = run(rig, 3)
    assert all((a[ACTION] == b[ACTION]).all() for a, b in zip(first.values, again.values, strict=True))
    assert words.startswith("safety: 20 of 20"), "counted by episode"
    assert np.abs(again.values[0][ACTION] - again.values[0]["observation.state"]).max() < 0.05


def test_a_robot_that_does_as_it_is_told_has_nothing_to_say(rig: Rig) -> None:
    class Stays(Jumps):
        def act(self, observation: Any) -> np.ndarray:
            self.first = getattr(self, "first", observation.values["observation.state"])
            return self.first

    heard, words = run(rig, 1, agent=Stays())
    assert not any(heard.flags)
    assert words == ""
    assert "safety" not in heard.ends[0]


def test_an_intervention_and_a_limit_are_told_apart(rig: Rig) -> None:
    agent = Jumps()
    agent.flags = INTERVENTION
    heard, _ = run(rig, 2, agent=agent)
    assert all(flags & INTERVENTION and flags & LIMITED for flags in heard.flags)


def test_after_a_hold_it_goes_on_from_where_the_arm_is(rig: Rig) -> None:
    run(rig, 5)
    robot = rig.robot
    robot.hold()
    here = np.concatenate([arm.read().data for arm in robot.arms.values()])
    assert np.abs(robot.command(here + 1.0) - here).max() < 0.05


def test_what_is_not_finite_is_refused_as_ever(rig: Rig) -> None:
    with pytest.raises(ValueError, match="not finite"):
        rig.robot.command(np.array([0, 0, np.nan, 0, 0, 0]))


def test_an_evaluation_and_a_recording_say_it(rig: Rig, tmp_path: Path) -> None:
    assert str(evaluate(rig, Jumps(), 2, videos=0).safety).startswith("safety: ")
    told: list[str] = []
    record(rig, Jumps(), tmp_path / "d", 2, max_seconds=0.5, say=told.append)
    assert [line[:19] for line in told] == ["episode 1: safety: ", "episode 2: safety: "]
    assert all(e.flags(ACTION).all() for e in EpisodeStore.open(tmp_path / "d").episodes)


def test_episodes_at_once_do_not_pass_it_by(rig: Rig) -> None:
    nobody: Any = None
    with pytest.raises(ValueError, match=r"go through no safety filter.*leave out --batch"):
        evaluate_at_once(rig, nobody, 2)


def test_a_tally_says_what_was_done() -> None:
    tally = Tally()
    assert str(tally) == ""
    for _ in range(8):
        tally.count(0, ())
    tally.count(LIMITED, ("speed",))
    tally.count(LIMITED | HELD, ("table", "speed"))
    assert str(tally) == "safety: 2 of 10 ticks limited (speed 2, table 1), held in 1"
    assert tally.numbers() == {"ticks": 10, "limited": 2, "held": 1, "speed": 2, "table": 1}
