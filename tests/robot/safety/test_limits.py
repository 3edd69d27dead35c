"""`[safety]` of a robot's file: what it means, and what contradicts the robot."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulna.drivers.arm import DeviceError, Joints
from ulna.drivers.servos import koch
from ulna.robot.config import load_robot, read_config
from ulna.robot.safety.arms import filter_for
from ulna.robot.safety.limits import ARM, RAD_GRIPPER, SLIDE, Safety
from ulna.sim.robots import ROBOTS

SO101 = ROBOTS["so101"]()
SIM = 'name = "r"\ndriver = "sim"\nmodel = "{model}"\ncontrol_hz = 20.0\n'
REAL = 'name = "r"\ncontrol_hz = 20.0\n[arms.arm]\ndriver = "so101"\nport = "p"\ncalibration = "c"\n'


def so101(table: str) -> Any:
    """The filter of an SO-101 with this text in `[safety]`."""
    return filter_for({"model": "so101", **tomllib.loads(f"[safety]\n{table}")}, SO101.joints)


def two_arms() -> Joints:
    j = SO101.joints
    both = [np.tile(x, 2) for x in (j.lower, j.upper, j.max_velocity, j.max_effort)]
    return Joints(tuple(f"{a}.{n}" for a in ("left", "right") for n in j.names), j.units * 2, *both)


def test_without_a_table_the_defaults_hold_and_it_is_said() -> None:
    filter_, texts = filter_for({"model": "so101"}, SO101.joints)
    safety = filter_.safety
    assert [*safety.speed] == [ARM[0]] * 5 + [RAD_GRIPPER[0]]
    assert [*safety.acceleration] == [ARM[1]] * 5 + [RAD_GRIPPER[1]]
    assert [*safety.jerk] == [ARM[2]] * 5 + [RAD_GRIPPER[2]]
    assert safety.table == {"": 0.0}
    assert texts == (
        "no table [safety] in the robot's file: its arms keep to 1.5 rad/s, 10 rad/s², the table at 0 m",
    )


def test_a_table_is_taken_as_it_is() -> None:
    filter_, texts = so101(
        "speed = 2\nacceleration = 8.0\njerk = 100.0\ntable = -0.01\nself_collision = false\n"
        "workspace = [[0.05, -0.3, 0.0], [0.4, 0.3, 0.4]]\nrest = [0.0, -0.6, 0.7, 1.2, 0.0, 0.6]\n"
        "[safety.joints.wrist_roll]\nspeed = 3.0\n[safety.joints.gripper]\nacceleration = 5.0\njerk = 90.0\n"
    )
    safety = filter_.safety
    assert [*safety.speed] == [2, 2, 2, 2, 3, 3]
    assert [*safety.acceleration] == [8, 8, 8, 8, 8, 5]
    assert [*safety.jerk] == [100, 100, 100, 100, 100, 90]
    assert safety.table == {"": -0.01}
    assert safety.self_distance < 0
    assert safety.rest == pytest.approx(SO101.home)
    assert texts == ()


def test_a_slow_arm_keeps_its_own_speed_and_a_slide_has_limits_of_its_own() -> None:
    panda = ROBOTS["panda"]().joints
    safety = Safety.of({}, panda)
    assert [*safety.speed] == [1.5] * 7 + [SLIDE[0]]
    assert safety.jerk[7] == SLIDE[2]
    slow = Joints(panda.names, panda.units, panda.lower, panda.upper, np.full(8, 0.1), panda.max_effort)
    assert [*Safety.of({}, slow).speed] == [0.1] * 8


def test_by_arm() -> None:
    config = tomllib.loads(
        "[safety]\ntable = {left = 0.01, right = false}\n"
        "workspace = {left = [[0, 0, 0.1], [1, 1, 1]]}\n"
        "[safety.joints.gripper]\nspeed = 1.0\n[safety.joints.'left.wrist_roll']\nspeed = 4.0\n"
    )
    safety = Safety.of(config, two_arms())
    assert safety.table == {"left": 0.01}
    assert list(safety.workspace) == ["left"]
    assert Safety.of({"safety": {"table": {"left": 0.01}}}, two_arms()).table == {"left": 0.01, "right": 0.0}
    assert [safety.speed[5], safety.speed[11], safety.speed[4], safety.speed[10]] == [1.0, 1.0, 4.0, 1.5]
    assert Safety.of({"safety": {"table": 0.02}}, two_arms()).table == {"left": 0.02, "right": 0.02}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("speed = 6.0", "the speed of shoulder_pan is 6 rad/s, and it goes at most 4.7 rad/s"),
        ("speed = 0.0", "speed is 0.0, it must lie in 0.01..20 rad/s"),
        ("speed = -1.0", "must lie in"),
        ('speed = "fast"', "speed is 'fast', it must be of type float"),
        ("speed = nan", "must be finite"),
        ("speeed = 1.0", "there is no field in .* 'speeed': did you mean speed"),
        ("acceleration = 0.5", "shoulder_pan takes 3.0 s to stop"),
        ("jerk = 2.0", "takes 5.2 s to stop"),
        ("table = 0.5", "the table is 0.5 m above the arm's base, and its second joint is at 0.117 m"),
        ("table = true", "table is true: give its height in m, or false"),
        ('table = "oak"', "table is 'oak'"),
        ("table = {left = 0.0}", "this robot has one arm"),
        ("workspace = [0.1, 0.2]", r"workspace is \(0.1, 0.2\): give its corners"),
        ("workspace = [[0, 0, 0], [1, 1, -1]]", "workspace goes from 0 to -1 m along z"),
        ("workspace = [[2, 2, 0], [3, 3, 1]]", "the workspace begins 2.*, and the arm reaches 0.42 m"),
        ("workspace = [[0, 0, -0.5], [1, 1, -0.1]]", "ends at -0.1 m, which is under the table at 0 m"),
        ("rest = [0.0]", "rest is .*, it must be a position for each of shoulder_pan"),
        ("rest = [0, 0, 0, 0, 0, true]", "it must be a position for each"),
        ("rest = [9, 0, 0, 0, 0, 0]", "rest has shoulder_pan at 9 rad, outside its limits -1.92 to 1.92"),
        ("rest = [0, 0.9, 0.5, 0.6, 0, 0.6]", "at rest is .* in the table"),
        ("rest = [0.0, -1.74, 1.69, 1.65, 0.0, 0.0]", "at rest is .* in .*: choose a rest pose"),
        (
            "rest = [0.0, -0.6, 0.7, 1.2, 0.0, 0.6]\nworkspace = [[0.3, 0.0, 0.0], [0.4, 0.3, 0.4]]",
            "rest has the tip outside the workspace",
        ),
        ("[safety.joints.elbow]\nspeed = 1.0", "no joint for .*'elbow': did you mean elbow_flex"),
        ("[safety.joints.gripper]\nspeed = 9.0", "the speed of gripper is 9 rad/s"),
        ("[safety.joints.gripper]\nsped = 1.0", "'sped': did you mean speed"),
        ("joints = 3", "joints is 3, it must be of type dict"),
        ("[safety.joints]\ngripper = 3", "must be a table"),
        ("tracking_error = 0.0", "tracking_error is 0.0, it must lie in"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(table: str, sentence: str) -> None:
    with pytest.raises(DeviceError, match=sentence) as caught:
        so101(table)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("[safety]") or "[safety]" in str(caught.value)


def test_by_arm_an_unknown_one_is_named() -> None:
    with pytest.raises(DeviceError, match=r"no arm for .*table.* 'lefd': did you mean left"):
        Safety.of({"safety": {"table": {"lefd": 0.0}}}, two_arms())
    with pytest.raises(DeviceError, match="table of left is 'x'"):
        Safety.of({"safety": {"table": {"left": "x"}}}, two_arms())


def test_an_arm_of_unknown_shape_is_limited_all_the_same() -> None:
    for driver, hint in (("ur", 'model = "ur3e"'), ("my-arm", "(my-arm)")):
        config = {"arms": {"arm": {"driver": driver}}, "safety": {}}
        filter_, texts = filter_for(config, SO101.joints)
        assert len(texts) == 1
        assert "is not known: neither table nor workspace nor self-collision is checked" in texts[0]
        assert hint in texts[0]
        filter_.reset(np.zeros(6))
        assert np.abs(filter_.step(np.full(6, 1.0), 0.01).command).max() < 0.01


def test_a_koch_and_a_ur_have_shapes() -> None:
    for table, joints in (
        ({"driver": "koch"}, koch.JOINTS),
        ({"driver": "so101"}, SO101.joints),
    ):
        filter_, texts = filter_for({"arms": {"arm": table}, "safety": {}}, joints)
        assert texts == ()
        filter_.reset(np.zeros(6))


@pytest.mark.parametrize("text", [SIM.format(model="so101"), REAL])
def test_a_robot_file_may_have_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text + "\n[safety]\nspeed = 1.0\n")
    assert read_config(str(path))["safety"] == {"speed": 1.0}
    path.write_text("safety = 3\n" + text)
    with pytest.raises(DeviceError, match="safety is 3, which is of the wrong type"):
        read_config(str(path))


@pytest.mark.parametrize("model", ["so101", "panda", "ur5e"])
def test_a_simulated_robot_has_the_filter_where_its_file_says_so(tmp_path: Path, model: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(SIM.format(model=model))
    with load_robot(str(path)) as rig:
        assert rig.robot.filter is None
    path.write_text(SIM.format(model=model) + "[safety]\n")
    with load_robot(str(path)) as rig:
        assert rig.robot.filter is not None
        assert not rig.robot.filter.reset(ROBOTS[model]().home), "it touches nothing at home"
    path.write_text(SIM.format(model=model) + "[safety]\nspeed = 19.0\n")
    with pytest.raises(DeviceError, match=r"r\.toml, \[safety\]: the speed of "):
        load_robot(str(path))


def test_a_simulated_pair_has_two_of_its_robots_bodies(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(SIM.format(model="so101-pair") + "[safety]\ntable = { left = 0.0, right = false }\n")
    with load_robot(str(path), "handover") as rig:
        assert rig.robot.filter is not None
        assert not rig.robot.filter.reset(np.tile(SO101.home, 2)), "it touches nothing at home"
        assert rig.robot.joints.names == tuple(
            f"{a}.{n}" for a in ("left", "right") for n in SO101.joints.names
        )
    path.write_text(SIM.format(model="so101-pair") + "[safety]\ntable = { middle = 0.0 }\n")
    with pytest.raises(DeviceError, match="middle"):
        load_robot(str(path), "handover")


def test_two_arms_have_a_body_each() -> None:
    config = {
        "arms": {"left": {"driver": "so101"}, "right": {"driver": "so101"}},
        "safety": {
            "table": {"left": 0.0, "right": False},
            "bases": {"left": [0, 0, 0, 0], "right": [0, 1, 0, 0]},
        },
    }
    filter_, texts = filter_for(config, two_arms())
    assert texts == ()
    assert filter_.reset(np.tile(SO101.home, 2)) == ()
    down = np.tile(SO101.home + np.array([0.42, 0.7, 0.0, -0.7, 0.0, 0.0]), 2)
    step = [filter_.step(down, 0.01) for _ in range(300)][-1]
    assert step.reasons == ("table",)
    assert step.command[6:] == pytest.approx(down[6:], abs=1e-6)
    assert np.abs(step.command[:6] - down[:6]).max() > 0.05


def test_one_arm_of_two_may_have_no_shape() -> None:
    config = {"arms": {"left": {"driver": "so101"}, "right": {"driver": "mine"}}, "safety": {}}
    filter_, texts = filter_for(config, two_arms())
    assert len(texts) == 1
    assert texts[0].startswith("the shape of the arm right (mine) is not known")
    assert filter_.reset(np.tile(SO101.home, 2)) == ()
