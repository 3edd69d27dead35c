"""A real robot moves by a policy that has passed a validation of the very same checkpoint, or for a reason
that is stored."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contracts.data import FEATURES, write_store
from contracts.policy import Follow
from contracts.recipes import small
from contracts.servo_arm import bench
from hypothesis import given
from hypothesis import strategies as st

from ulna.datasets.stats import compute_stats
from ulna.datasets.store import EpisodeStore
from ulna.drivers.arm import DeviceError
from ulna.policies.checkpoint import save_checkpoint
from ulna.policies.hooks.low_temperature import LowTemperature
from ulna.policies.policy import Policy
from ulna.policies.serving.client import PolicyClient, PolicyServerError
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.server import PolicyServer
from ulna.policies.serving.validations import MOST, Validation, read_validations
from ulna.policies.train.record import TrainingRecord
from ulna.robot.agent import HoldAgent
from ulna.robot.cli import main
from ulna.robot.config import load_robot, read_config
from ulna.robot.deploy import deploy
from ulna.robot.evaluate import evaluate, save_report
from ulna.robot.gate import NotValidated, require_validated
from ulna.robot.twin.own import own_twin

PASSED = Validation("sim:so101", "lift", 50, 46)
METADATA = Metadata(checkpoint="1a2b3c4d" * 8, validations=(PASSED,))
CONFIG: dict[str, Any] = {"name": "my-so101"}


def test_a_checkpoint_that_passed_may_move_a_real_robot() -> None:
    stored = require_validated(CONFIG, "my.toml", METADATA)
    assert stored["validation"]["successes"] == 46
    assert stored["validation"]["bar"] == {"success": 0.8, "episodes": 20, "on": "", "task": ""}
    assert stored["validation"]["says"].startswith("46 of 50 succeeded on sim:so101 lift (bar: 80 % of 20")
    assert "the default" in stored["validation"]["says"]


@pytest.mark.parametrize(
    "bar", [{"success": 0.95}, {"episodes": 51}, {"on": "my-so101"}, {"task": "push_t"}, {"success": 1.0}]
)
def test_one_below_the_bar_may_not_unless_somebody_says_why(bar: dict[str, Any]) -> None:
    config = CONFIG | {"validation": bar}
    with pytest.raises(NotValidated) as caught:
        require_validated(config, "my.toml", METADATA)
    for words in ("1a2b3c4d", "46 of 50", "ulna evaluate CHECKPOINT --robot my.toml", "--unvalidated"):
        assert words in str(caught.value)
    assert require_validated(config, "my.toml", METADATA, "a first try") == {"unvalidated": "a first try"}


def test_a_server_that_says_nothing_has_no_validation() -> None:
    with pytest.raises(NotValidated, match="does not name its checkpoint"):
        require_validated(CONFIG, "my.toml", Metadata())


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0, 1), st.integers(1, 60))
def test_the_bar_is_a_share_and_a_number(successes: int, n: int, share: float, least: int) -> None:
    metadata = replace(METADATA, validations=(Validation("r", "t", n, min(successes, n)),))
    passes = n >= least and min(successes, n) / n >= share
    try:
        require_validated(CONFIG | {"validation": {"success": share, "episodes": least}}, "f", metadata)
        assert passes
    except NotValidated:
        assert not passes


def test_a_bar_that_cannot_be_is_named_when_the_robot_is_read(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    text = 'name = "x"\ncontrol_hz = 20.0\n[arms.arm]\ndriver = "so101"\n[validation]\n'
    for field, words in (("success = 80", "must lie in 0..1"), ("episode = 3", "did you mean episodes")):
        path.write_text(text + field)
        with pytest.raises(DeviceError, match=words):
            read_config(str(path))


def test_reports_of_this_checkpoint_are_told_newest_first(tmp_path: Path) -> None:
    with load_robot("sim:so101", "reach") as rig:
        report = evaluate(rig, HoldAgent(), 2, videos=0)
    for i, checkpoint in enumerate(("a" * 64, "a" * 64, "b" * 64)):
        path = save_report(tmp_path, f"r{i}", replace(report, checkpoint=checkpoint, task=f"t{i}"))
        os.utime(path, (i, i))
    (tmp_path / "validation" / "broken.json").write_text("{")
    (tmp_path / "validation" / "other.json").write_text(json.dumps({"kind": "open-loop"}))
    found = read_validations(tmp_path, "a" * 64)
    assert [(v.task, v.episodes, v.successes) for v in found] == [("t1", 2, 0), ("t0", 2, 0)]
    for i in range(MOST + 5):
        save_report(tmp_path, f"many{i}", replace(report, checkpoint="a" * 64))
    assert len(read_validations(tmp_path, "a" * 64)) == MOST
    assert read_validations(tmp_path / "nowhere", "a") == ()


def test_a_server_tells_validations_that_came_while_it_runs(tmp_path: Path) -> None:
    """Also where they were taken away again."""
    stats = compute_stats(write_store(tmp_path / "data"), list(FEATURES))
    folder = tmp_path / "flow"
    save_checkpoint(folder, Policy(small("flow"), FEATURES, stats), TrainingRecord())
    policy = LocalPolicy(folder)
    with load_robot("sim:so101", "reach") as rig:
        report = evaluate(rig, HoldAgent(), 1, videos=0)
    with PolicyServer(policy, port=0).background() as server:

        def told() -> list[str]:
            with PolicyClient(server.url) as client:
                return [v.task for v in client.metadata.validations]

        assert told() == []
        save_report(folder, "r", replace(report, checkpoint=policy.metadata.checkpoint))
        assert told() == ["reach"]
        save_report(folder, "other", replace(report, checkpoint="a" * 64, task="push_t"))
        assert told() == ["reach"]
        shutil.rmtree(folder / "validation")
        assert told() == []


def test_a_policy_that_is_served_otherwise_than_it_was_evaluated_is_not_validated(tmp_path: Path) -> None:
    stats = compute_stats(write_store(tmp_path / "data"), list(FEATURES))
    folder = tmp_path / "flow"
    save_checkpoint(folder, Policy(small("flow"), FEATURES, stats), TrainingRecord())
    plain, short = LocalPolicy(folder), LocalPolicy(folder, sampling_steps=1)
    cool, cooler = (LocalPolicy(folder, hooks=[LowTemperature(scale)]) for scale in (0.5, 0.1))
    policies = (plain, short, cool, cooler)
    with load_robot("sim:so101", "reach") as rig:
        report = evaluate(rig, HoldAgent(), 1, videos=0)
    for i, policy in enumerate(policies):
        own = {"steering": list(policy.metadata.steering) or None, "sampling_steps": policy.sampling_steps}
        save_report(
            folder, f"r{i}", replace(report, checkpoint=plain.metadata.checkpoint, task=f"t{i}", **own)
        )
    assert [[v.task for v in p.metadata.validations] for p in policies] == [["t0"], ["t1"], ["t2"], ["t3"]]
    assert Metadata.from_json(json.loads(json.dumps(cool.metadata.to_json()))) == cool.metadata
    # of reports from before these were in them: the recipe's own
    save_report(folder, "r1", replace(report, checkpoint=plain.metadata.checkpoint, task="old"))
    assert [v.task for v in plain.metadata.validations] == ["old", "t0"]
    assert not short.metadata.validations


@pytest.mark.parametrize(
    "wrong", [3, [3], [{"robot": "r"}], [{"robot": "r", "task": "t", "episodes": 3, "successes": 4}]]
)
def test_validations_that_cannot_be_are_refused(wrong: Any) -> None:
    with load_robot("sim:so101", "reach") as rig:
        metadata = Follow(rig.robot.features).metadata
    good = replace(metadata, validations=(PASSED,)).to_json()
    assert Metadata.from_json(good).validations == (PASSED,)
    with pytest.raises(ValueError, match="validation"):
        Metadata.from_json(good | {"validations": wrong})


def robot(tmp_path: Path, port: Path, calibration: Path) -> str:
    path = tmp_path / "my.toml"
    path.write_text(
        f'name = "my-so101"\ncontrol_hz = 20.0\n[arms.arm]\ndriver = "so101"\nport = "{port}"\n'
        f'calibration = "{calibration}"\nstale_s = 1.5\n'
    )
    return str(path)


@pytest.mark.realtime
def test_the_gate_stands_before_the_arm_and_the_reason_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with bench("so101", tmp_path) as b:
        file = robot(tmp_path, b.link, b.calibration)
        rig = load_robot(file)
        policy = Follow(rig.robot.features)
        with PolicyServer(policy, port=0).background() as server:
            words = [
                "deploy",
                "--robot",
                file,
                "--server",
                server.url,
                "--task",
                "wave",
                "--max-seconds",
                "0.5",
            ]
            words += ["--out", str(tmp_path / "d")]
            assert main(words) == 1
            err = capfd.readouterr().err
            assert (
                "my-so101 is a real robot, and the checkpoint ffffffff has no validation that passes" in err
            )
            assert "Traceback" not in err
            assert not b.plant.torque.any(), "the arm was not touched"
            assert not (tmp_path / "d").exists()
            assert main([*words, "--unvalidated", "a first try"]) == 0
            assert "not validated: a first try" in capfd.readouterr().err
            policy.metadata = replace(policy.metadata, validations=(PASSED,))
            assert main(words) == 0
            assert "validated: 46 of 50 succeeded on sim:so101 lift" in capfd.readouterr().err
            with PolicyServer(Follow(rig.robot.features), port=0).background() as other:
                assert main([*words, "--director", "Backup", "--Backup.server", other.url]) == 1
            assert "ffffffff has no validation that passes" in capfd.readouterr().err
    first, second = EpisodeStore.open(tmp_path / "d").episodes
    assert first.attrs["unvalidated"] == "a first try"
    assert second.attrs["validation"]["successes"] == 46


def test_another_checkpoint_may_not_take_the_place_of_the_one_that_passed() -> None:
    with (
        load_robot("sim:so101") as rig,
        PolicyServer(Follow(rig.robot.features), port=0).background() as server,
    ):
        deploy(rig, server.url, 1, max_seconds=0.2, checkpoint="f" * 64)
        with pytest.raises(
            PolicyServerError, match="answers with the checkpoint ffffffff, and this run is of"
        ):
            deploy(rig, server.url, 1, max_seconds=0.2, checkpoint="1a2b3c4d" * 8)


@pytest.mark.realtime
def test_a_real_robot_is_evaluated_on_its_own_twin(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The real drivers move it; the report says whose twin it was, by the robot's name."""
    file = robot(tmp_path, Path("/dev/no-such-port"), tmp_path / "none.json")
    words = ["evaluate", "--robot", file, "--agent", "hold", "--task", "reach", "--episodes", "1", "--json"]
    assert main(words) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["robot"], report["task"], report["successes"]) == ("my-so101", "reach", 0)


SO101 = '[arms.{0}]\ndriver = "so101"\nport = "/dev/{0}"\ncalibration = "{0}.json"\n'
TOP = '[cameras.top]\ndriver = "opencv"\ndevice = "/dev/video0"\n'
UR = '[arms.a]\ndriver = "ur"\nhost = "10.0.0.1"\n'


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (UR, "no twin stands in for a UR without a model"),
        (SO101.format("a") + SO101.format("b"), "a twin has one arm, and .* has 2"),
        (SO101.format("a") + TOP, "a twin has the cameras front and wrist, and .* has top"),
    ],
)
def test_robots_that_no_twin_stands_in_for_are_told_why(tmp_path: Path, tables: str, words: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(f'name = "my"\ncontrol_hz = 20.0\n{tables}')
    with pytest.raises(DeviceError, match=words), own_twin(str(path), "lift"):
        pass
