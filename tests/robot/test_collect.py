"""Rounds of correction by the command, in simulation with a script as the person."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ulna.datasets.features import ACTION
from ulna.datasets.flags import INTERVENTION
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import read_train
from ulna.robot.agent import HoldAgent
from ulna.robot.cli import main
from ulna.robot.collect import CollectError, collect
from ulna.robot.config import load_robot
from ulna.robot.loop import run_episode
from ulna.robot.rehearsal import ExpertPerson
from ulna.robot.takeover import Takeover

TINY = ["--steps", "3", "--batch-size", "8", "--backbone.widths", "16", "32", "--track", "none"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("collect")
    assert main(["record", "--task", "reach", "--episodes", "3", "--out", f"{root}/data"]) == 0
    assert main(["train", "flow", "--data", f"{root}/data", "--out", f"{root}/flow", *TINY]) == 0
    return root


def test_rounds_leave_attempts_and_policies_and_go_on_where_they_stopped(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["collect", f"{trained}/flow", "--task", "reach", "--takeover", "expert", "--out", f"{trained}/c"]
    words += ["--episodes", "2", "--steps", "2", "--json"]
    capfd.readouterr()
    assert main([*words, "--rounds", "1"]) == 0
    answer = json.loads(capfd.readouterr().out)
    (first,) = answer["rounds"]
    assert answer["checkpoint"] == first["learned"] == f"{trained}/c/round-1"
    assert (first["attempts"], first["successes"]) == (2, 2), "the expert finishes what the policy cannot"
    assert first["taken_over"] >= 1
    store = EpisodeStore.open(f"{trained}/c/corrections-1")
    flags = [e.flags(ACTION) & INTERVENTION != 0 for e in store.episodes]
    assert first["person_share"] == pytest.approx(np.concatenate(flags).mean())
    assert read_train(f"{trained}/c/round-1").steps == 2
    before = Path(f"{trained}/c/round-1/hash.json").stat().st_mtime_ns
    assert main([*words, "--rounds", "1"]) == 0, "nothing is done twice"
    assert json.loads(capfd.readouterr().out) == answer
    assert Path(f"{trained}/c/round-1/hash.json").stat().st_mtime_ns == before


def test_pictures_are_as_large_as_those_that_the_policy_learned_from(tmp_path: Path) -> None:
    words = ["--task", "reach", "--cameras", "front", "--image-size", "40x32", "--out", f"{tmp_path}/data"]
    assert main(["record", *words, "--episodes", "2"]) == 0
    words = ["--data", f"{tmp_path}/data", "--observe", "observation.state,observation.images.front"]
    assert main(["train", "flow", *words, "--out", f"{tmp_path}/flow", *TINY]) == 0
    words = ["--task", "reach", "--takeover", "expert", "--out", f"{tmp_path}/c", "--rounds", "1"]
    assert main(["collect", f"{tmp_path}/flow", *words, "--episodes", "1", "--steps", "2"]) == 0
    recorded = EpisodeStore.open(f"{tmp_path}/c/corrections-1").features["observation.images.front"]
    assert recorded.shape == (32, 40, 3)
    assert read_train(f"{tmp_path}/c/round-1").steps == 2, "and both are learned from"


def test_a_round_without_corrections_is_the_last(trained: Path, tmp_path: Path) -> None:
    def record(url: str, folder: Path, attempts: int, seed: int, size: object) -> None:
        words = ["--task", "reach", "--episodes", str(attempts), "--seed", str(seed), "--out", str(folder)]
        assert main(["record", *words]) == 0

    (only,) = collect(trained / "flow", tmp_path / "out", 3, 2, record, steps=2)
    assert (only.taken_over, only.learned, only.alone) == (0, "", 2)


def test_what_cannot_be_done_is_said_before_anybody_works(trained: Path, tmp_path: Path) -> None:
    def never(url: str, folder: Path, attempts: int, seed: int, size: object) -> None:
        raise AssertionError

    with pytest.raises(CollectError, match="is it a checkpoint"):
        collect(tmp_path, tmp_path / "out", 1, 1, never)
    part = trained / "part"
    words = ["--data", f"{trained}/data", "--out", str(part), "--episodes", "0-1", *TINY]
    assert main(["train", "flow", *words]) == 0
    with pytest.raises(CollectError, match="part them with `ulna data split`"):
        collect(part, tmp_path / "out", 1, 1, never)
    config = part / "config.toml"
    text = config.read_text().replace(str(trained / "data"), "/nowhere").replace("episodes = [0, 1]\n", "")
    config.write_text(text)
    with pytest.raises(CollectError, match="trained on /nowhere, which is not here"):
        collect(part, tmp_path / "out", 1, 1, never)
    assert not (tmp_path / "out").exists()


def test_the_scripted_person_helps_where_nothing_gets_on_and_only_there() -> None:
    with load_robot("sim:so101", "reach") as rig:
        assert rig.sim is not None
        for agent, helped in ((HoldAgent(), True), (ExpertPerson(rig.sim, 20.0), False)):
            shared = Takeover(agent, ExpertPerson(rig.sim, 20.0), 20.0)
            rig.sim.reset(3)
            result = run_episode(rig.robot, shared, task="", seed=3, max_ticks=200, success=rig.sim.success)
            assert result.success is True
            assert (shared.taken == 1) is helped
