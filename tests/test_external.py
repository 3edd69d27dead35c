"""Environments of another Python as tasks (`benchmarks/external.py`): a small one that is written here, run
by this Python; and the demonstrator of gym-pusht."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulna.policies.request import Request
from ulna.policies.serving.batch import Answers
from ulna.policies.serving.metadata import Metadata
from ulna.robot.rollout import env_features, rollout
from ulna.robot.study.demonstrations import gather_demonstrations
from ulna.robot.study.study import StudyError
from ulna.robot.study.work import Work

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import external
import foreign_samples
import pusht_expert
from external import ExternalEnv, PickPlace, PushT

# a point on a line is to come to 0; an odd seed's expert goes the wrong way
LINE = """
import numpy as np
from gymnasium import Env
from gymnasium.spaces import Box

ABOUT = {
    "task_name": "line",
    "instruction": "come to nought",
    "control_hz": 10.0,
    "max_ticks": 8,
    "observed": {"observation.state": (("x",), ("m",)), "observation.environment_state": (("goal",), ("m",))},
    "action": (("step",), ("m",)),
}


class Line(Env):
    action_space = Box(-0.5, 0.5, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed_given, self.x, self.nearest = seed, float(self.np_random.uniform(1, 2)), np.inf
        print("this is no answer")
        return self.seen(), {"success": False, "nearest": self.x}

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(f"{action} is no action")
        self.x += float(action[0])
        self.nearest = min(self.nearest, abs(self.x))
        success = abs(self.x) < 0.1
        info = {"success": success, "nearest": self.nearest, "way": "left"}
        return self.seen(), -abs(self.x), success, False, info

    def seen(self):
        return {"observation.state": [self.x], "observation.environment_state": [0.0]}

    def expert(self):
        return [self.x if self.seed_given % 2 else -self.x]


make = Line
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    file = tmp_path / "line_env.py"
    file.write_text(LINE)
    return file


class LineEnv(ExternalEnv):
    """What a study's task may name: a class with an expert."""

    file = Path()

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, Path(sys.executable), self.file)

    def expert(self, seeds: list[int], noise: float = 0.0) -> LineEnv:
        return self

    def act(self, observation: Any) -> np.ndarray:
        rows = np.zeros((self.num_envs, 1))
        for indices, share in self.foreign:
            rows[list(indices)] = share.expert(indices)
        return rows


@pytest.fixture
def env(task: Path) -> Iterator[ExternalEnv]:
    env = ExternalEnv(3, Path(sys.executable), task)
    yield env
    env.close()


def test_rows_are_those_of_their_environments(env: ExternalEnv) -> None:
    first, info = env.reset(seed=[4, 5, 6])
    starts = [
        np.random.Generator(np.random.PCG64(np.random.SeedSequence(s))).uniform(1, 2) for s in (4, 5, 6)
    ]
    np.testing.assert_allclose(first["observation.state"][:, 0], starts, rtol=1e-6)
    assert (info["success"].tolist(), set(info["task"])) == ([False] * 3, {"come to nought"})
    seen, reward, _, _, info = env.step(np.array([[-0.2], [-9.0], [0.0]]))  # which is cut to the limits
    np.testing.assert_allclose(seen["observation.state"][:, 0], starts + np.array([-0.2, -0.5, 0]), rtol=1e-6)
    np.testing.assert_allclose(info["sent"], [[-0.2], [-0.5], [0.0]], rtol=1e-6)
    np.testing.assert_allclose(info["nearest"], -reward)
    assert "way" not in info  # numbers alone
    assert (env.control_hz, env.max_ticks, env.task_name) == (10.0, 8, "line")
    features = env_features(env)
    assert features["observation.state"].units == ("m",)
    assert features["action"].names == ("step",)


def test_an_episode_ends_and_depends_on_its_seed_alone(env: ExternalEnv) -> None:
    first, _ = env.reset(seed=[4, 5, 6])
    ends = []
    for _ in range(8):
        _, _, terminated, truncated, _ = env.step(np.zeros((3, 1)))
        ends.append((terminated.any(), truncated.all()))
    assert ends == [(False, False)] * 7 + [(False, True)]
    still, reward, *_ = env.step(np.full((3, 1), 0.5))
    np.testing.assert_array_equal(still["observation.state"], first["observation.state"])
    assert not reward.any()
    again, _ = env.reset(seed=[6, 5, 4], options={"reset_mask": np.array([True, False, True])})
    np.testing.assert_array_equal(again["observation.state"], first["observation.state"][[2, 1, 0]])


class Stepper:
    """A `Decider` that goes to 0 in steps of 0.5 at most."""

    def __init__(self, env: ExternalEnv) -> None:
        self.metadata = Metadata(recipe="stepper", features=env_features(env), control_hz=env.control_hz)

    def decide(self, requests: Sequence[Request]) -> Answers:
        x = np.array([r.observation["observation.state"][-1] for r in requests])
        return Answers(-x[:, None].astype(np.float32), np.ones(len(requests), int))


def test_a_policy_is_rolled_out(env: ExternalEnv) -> None:
    found = rollout(Stepper(env), env, range(5))
    assert found.successes == 5
    assert all(i["nearest"] < 0.1 for i in found.infos)
    assert all(2 <= o.ticks <= 5 for o in found.outcomes)


def test_demonstrations_are_those_that_succeed(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LineEnv, "file", task)
    demos = gather_demonstrations(LineEnv, 0, 5, only_successes=True)
    assert [d.seed for d in demos] == [0, 2, 4, 6, 8]
    assert all(d.success and d.terminated for d in demos)
    assert len(gather_demonstrations(LineEnv, 0, 5)) == 5  # failures included
    task.write_text(LINE.replace("self.x if self.seed_given % 2 else -self.x", "self.x"))
    with pytest.raises(StudyError, match="the expert succeeded at 0 of 8 seeds: too few for 2"):
        gather_demonstrations(LineEnv, 0, 2, only_successes=True)


STUDY = """
claim = "a line is walked"
seeds = 1
episodes = 2
[task]
name = "test_external_line:LineEnv"
[demonstrations]
count = 3
[arms.flow]
recipe = "flow"
"training.steps" = 2
"""


def test_a_study_runs_on_it(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LineEnv, "file", task)
    monkeypatch.setitem(sys.modules, "test_external_line", sys.modules[__name__])
    file = tmp_path / "line.toml"
    file.write_text(STUDY)
    work = Work(file, tmp_path / "work")
    work.begin()
    (job,) = work.jobs
    work.run(job, lambda *_: None)
    (result,) = work.results()
    assert len(result["outcomes"]) == 2
    assert result["metrics"]["nearest"] > 0
    from ulna.datasets.store import EpisodeStore

    assert [e.attrs["seed"] for e in EpisodeStore.open(tmp_path / "work/main/data").episodes] == [0, 2, 4]


def test_what_fails_there_is_said_here(task: Path, tmp_path: Path) -> None:
    python = Path(sys.executable)
    with pytest.raises(StudyError, match="cannot start /nowhere for line_env"):
        ExternalEnv(2, Path("/nowhere"), task)
    task.write_text("import a_package_that_is_not_there")
    with pytest.raises(StudyError, match="line_env: ModuleNotFoundError: No module named"):
        ExternalEnv(2, python, task)
    task.write_text(LINE.replace("self.x += float(action[0])", "raise SystemExit(3)"))
    env = ExternalEnv(1, python, task)
    env.reset(seed=[0])
    with pytest.raises(StudyError, match="the process with line_env has died"):
        env.step(np.zeros((1, 1)))
    env.close()
    with pytest.raises(ValueError, match="0 environments"):
        ExternalEnv(0, python, task)


@pytest.mark.parametrize(("make", "name"), [(PushT, "pusht"), (PickPlace, "metaworld")])
def test_an_environment_that_is_not_made_is_named(
    make: Callable[[int], ExternalEnv], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_samples, "RUNS", tmp_path)
    with pytest.raises(StudyError, match=f"make it with `python benchmarks/external.py {name}`") as refused:
        make(1)
    assert external.TOOLS[name].packages[0] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_pose_of_a_t_is_read_off_its_corners() -> None:
    for yaw in (-3.0, 0.4, 2.0):
        corners = np.array([200.0, 300.0]) + pusht_expert.CORNERS @ pusht_expert.rotation2(yaw).T
        centre, found = pusht_expert.pose_of(corners)
        np.testing.assert_allclose([*centre, found], [200, 300, yaw], atol=1e-9)


def test_the_demonstrator_brings_a_t_home() -> None:
    """In a model of gym-pusht: the agent gets a quarter nearer to its target in a period, and the T gives way
    to it along the contact's normal."""
    turn = pusht_expert.rotation2
    for seed in range(3):
        rng = np.random.default_rng(seed)
        agent, centre, yaw = rng.uniform(60, 450, 2), rng.uniform(170, 340, 2), rng.uniform(-np.pi, np.pi)
        expert = pusht_expert.PushTExpert()
        for _ in range(300):
            target = expert.act(agent, centre + pusht_expert.CORNERS @ turn(yaw).T)
            for _ in range(10):
                agent = agent + 0.04 * (target - agent)
                own = (agent - centre) @ turn(yaw)
                deep = pusht_expert.RADIUS - float(pusht_expert.distance(own))
                if 0 < deep < pusht_expert.RADIUS:
                    normal = -expert._outward(own)
                    place = own - deep * normal + pusht_expert.RADIUS * normal
                    moment = place[0] * normal[1] - place[1] * normal[0]
                    share = deep / (1 + moment**2 / pusht_expert.INERTIA)
                    centre, yaw = (
                        centre + turn(yaw) @ normal * share,
                        yaw + share * moment / pusht_expert.INERTIA,
                    )
        away = np.linalg.norm(centre - pusht_expert.GOAL)
        askew = abs((yaw - pusht_expert.GOAL_YAW + np.pi) % (2 * np.pi) - np.pi)
        assert (away, askew) < (3.0, 0.1), (seed, away, askew)
        assert askew < 0.05
