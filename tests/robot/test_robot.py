"""A robot and the file it comes from: features, two arms in one, sentences for what is wrong, holding and
closing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE
from ulna.drivers.arm import DeviceError
from ulna.robot.agent import HoldAgent
from ulna.robot.config import Rig, load_robot
from ulna.robot.loop import run_episode
from ulna.robot.robot import Robot


@pytest.mark.parametrize("name", ["sim:so101", "sim:panda"])
def test_features_come_from_the_devices(name: str) -> None:
    with load_robot(name, "lift", ["front"]) as rig:
        robot = rig.robot
        observation = robot.observe("lift it")
        for key, feature in robot.observation_features.items():
            assert observation.values[key].shape == feature.shape
            assert observation.values[key].dtype == feature.dtype
            capture, receive = observation.times_ns[key]
            assert 0 <= capture <= receive <= robot.clock.now_ns()
        assert robot.features[ACTION] == robot.features[STATE]
        assert robot.features[STATE].names[-1] == "gripper"
        assert robot.features[ENVIRONMENT].names[0] == "cube.x"
        with pytest.raises(ValueError, match="joint gripper is not finite; nothing was sent"):
            robot.command(np.array([0.0] * (len(robot.features[ACTION].names) - 1) + [np.inf]))
        with pytest.raises(ValueError, match="has joints"):
            robot.command(np.zeros(3))


def test_two_arms_are_one_robot() -> None:
    with load_robot("sim:so101", "reach") as rig:
        arm = rig.robot.arms["arm"]
        both = Robot("two", {"left": arm, "right": arm}, {}, {}, rig.robot.clock, 20.0)
        assert both.features[ACTION].names[:2] == ("left.shoulder_pan", "left.shoulder_lift")
        assert both.features[ACTION].names[6] == "right.shoulder_pan"
        assert both.observe().values[STATE].shape == (12,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "name = 'x'\ndriver = 'sim'\nmodel = 'so101'\ncontrol_hz = 20\ncolour = 1",
            "no field .*'colour': there is cameras",
        ),
        ("name = 'x'\ndriver = 'smi'\nmodel = 'so101'\ncontrol_hz = 20", "driver .*'smi'.*did you mean sim"),
        ("name = 'x'\ndriver = 'sim'\nmodel = 'so11'\ncontrol_hz = 20", "'so11': did you mean so101"),
        (
            "name = 'x'\ndriver = 'sim'\nmodel = 'so101'\ncontrol_hz = 900",
            "control_hz is 900, it must lie in 1..240",
        ),
        ("name = 'x'\ndriver = 'sim'\nmodel = 'so101'", "lacks control_hz"),
        (
            "name = 3\ndriver = 'sim'\nmodel = 'so101'\ncontrol_hz = 20",
            "name is 3, which is of the wrong type",
        ),
        ("name = ", "is not TOML"),
    ],
)
def test_a_robot_file_that_is_wrong_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "robot.toml"
    path.write_text(text)
    with pytest.raises(DeviceError, match=says):
        load_robot(str(path))


def test_unknown_robots_and_cameras_have_neighbours() -> None:
    with pytest.raises(DeviceError, match="did you mean sim:so101"):
        load_robot("sim:so11")
    with pytest.raises(DeviceError, match="did you mean front"):
        load_robot("sim:so101", cameras=["frnt"])
    with pytest.raises(DeviceError, match="cannot read"):
        load_robot("nowhere.toml")


def test_a_robot_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = 'mine'\ndriver = 'sim'\nmodel = 'so101'\ncontrol_hz = 40.0\n")
    with load_robot(str(path), "reach") as rig:
        assert (rig.robot.name, rig.robot.period_ns) == ("mine", 25_000_000)
        result = run_episode(rig.robot, HoldAgent(), task="", seed=0, max_ticks=8)
        assert result.ticks == 8
        assert rig.robot.clock.now_ns() == 200_000_000


def test_every_arm_holds_though_one_cannot() -> None:
    holders: list[str] = []
    with load_robot("sim:so101", "reach") as left, load_robot("sim:so101", "reach") as right:

        def broken() -> None:
            raise DeviceError("unplugged")

        for rig, hold in ((left, lambda: holders.append("left")), (right, broken)):
            rig.robot.arms["arm"].hold = hold  # type: ignore[method-assign]
        for order in (("left", "right"), ("right", "left")):
            arms = {"left": left.robot.arms["arm"], "right": right.robot.arms["arm"]}
            both = Robot("two", {n: arms[n] for n in order}, {}, {}, left.robot.clock, 20.0)
            with pytest.raises(DeviceError, match="unplugged"):
                both.hold()
    assert holders == ["left", "left"]


def test_a_rig_closes_what_it_opened() -> None:
    rig = load_robot("sim:so101", "reach", ["front"])
    with rig:
        rig.robot.observe()
    assert isinstance(rig, Rig)
    assert rig.sim is not None
    assert rig.sim.world.client < 0


@pytest.mark.parametrize("failure", [DeviceError("gone"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_whatever_fails_to_close_keeps_no_arm_and_no_camera_open(failure: BaseException) -> None:
    with load_robot("sim:so101", "reach", ["front"]) as rig:
        closed: list[str] = []

        class Device:
            """Closes, and fails at it; what else is asked of it, the real one does."""

            def __init__(self, name: str, real: Any) -> None:
                self.name, self.real = name, real

            def __getattr__(self, what: str) -> Any:
                return getattr(self.real, what)

            def close(self) -> None:
                closed.append(self.name)
                raise failure

        real = rig.robot
        arm: Any = Device("arm", real.arms["arm"])
        camera: Any = Device("camera", real.cameras["front"])
        robot = Robot("r", {"arm": arm}, {"front": camera}, {}, real.clock, 20.0)
        with pytest.raises(type(failure)):
            robot.close()
        assert closed == ["arm", "camera"], "arms first"
