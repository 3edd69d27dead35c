"""People as agents on a simulated SO-101 in PyBullet: the tip goes where the hand pushes, followers where
their leaders are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.agent import check_agent
from contracts.servo_arm import HOME, bench, until

from ulna.datasets.features import STATE
from ulna.drivers.arm import DeviceError
from ulna.drivers.sample import Sample
from ulna.drivers.teleoperator import Hand
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.twins.ur import URTwin
from ulna.drivers.twins.ur_controller import URFaults
from ulna.drivers.ur import arm as ur
from ulna.robot.cli import main
from ulna.robot.config import Rig, load_robot
from ulna.robot.kinematics import Pose, rotation, rotation_vector
from ulna.robot.loop import run_episode
from ulna.robot.people import SYNC_SPEED, TIP_SPEED, LeaderAgent, TeleoperatorAgent, agent_for

AHEAD, LEFT, UP = np.eye(3)
STILL = np.zeros(3)


class ScriptedHand:
    """A hand that does what the test says: `says` is asked at every read, with how many there were before.
    The first read, which is not counted, finds it open: one that is closed when an episode begins does not
    count."""

    def __init__(self, says: Callable[[int], Hand]) -> None:
        self.name, self.says, self.reads = "told", says, -1

    def open(self) -> None: ...

    def close(self) -> None: ...

    def read(self) -> Hand:
        self.reads += 1
        return self.says(self.reads - 1) if self.reads else Hand(False)


@pytest.fixture(scope="module")
def scene() -> Iterator[Rig]:
    with load_robot("sim:so101") as rig:
        yield rig


@pytest.fixture
def rig(scene: Rig) -> Rig:
    assert scene.sim is not None
    scene.sim.reset(0)
    return scene


def drive(
    rig: Rig, says: Callable[[int], Hand], ticks: int, **more: Any
) -> tuple[TeleoperatorAgent, Recording]:
    agent = TeleoperatorAgent(ScriptedHand(says), rig.robot, "so101", **more)
    record = Recording()
    run_episode(rig.robot, agent, [record], task="", seed=0, max_ticks=1 + ticks)
    del record.states[0], record.actions[0]  # of the read that is not counted
    return agent, record


class Recording:
    """A subscriber that keeps what was read and what was sent, `(T, J)`."""

    def __init__(self) -> None:
        self.states: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []

    def start(self, meta: Any) -> None:
        assert meta["agent"].startswith("human")

    def tick(self, values: Any, times_ns: Any, flags: Any) -> None:
        self.states.append(values[STATE].astype(float))
        self.actions.append(values["action"].astype(float))

    def end(self, meta: Any) -> None: ...

    def interrupt(self, reason: str) -> None: ...


def tip(agent: TeleoperatorAgent, q: np.ndarray) -> Pose:
    return agent.chain.forward(q)


def now(rig: Rig) -> np.ndarray:
    (arm,) = rig.robot.arms.values()
    return arm.read().data


def motion(rig: Rig, agent: TeleoperatorAgent, record: Recording) -> np.ndarray:
    return tip(agent, now(rig)).position - tip(agent, record.states[0]).position


@pytest.mark.parametrize("way", [AHEAD, -AHEAD, LEFT, -LEFT, UP, -UP])
def test_the_tip_goes_where_the_hand_pushes(rig: Rig, way: np.ndarray) -> None:
    hz = rig.robot.control_hz
    ticks = round(0.6 * hz)
    agent, record = drive(rig, lambda i: Hand(i < ticks, 0.08 * way), ticks + round(0.4 * hz))
    assert motion(rig, agent, record) == pytest.approx(0.08 * 0.6 * way, abs=0.008)
    check_agent(agent, rig.robot.observe(), 6)


def test_a_pose_moves_the_tip_by_as_much_as_the_hand_and_turns_it(rig: Rig) -> None:
    way, turn = np.array([0.03, 0.02, 0.03]), rotation(0.3 * AHEAD)
    agent, record = drive(rig, lambda i: Hand(True, displacement=way, rotation=turn), 60)
    assert motion(rig, agent, record) == pytest.approx(way, abs=0.012)
    first, last = tip(agent, record.states[0]), tip(agent, now(rig))
    assert rotation_vector(last.rotation @ first.rotation.T)[0] > 0.1


def test_a_pose_that_jumps_does_not_make_the_tip_jump(rig: Rig) -> None:
    agent, record = drive(rig, lambda i: Hand(True, displacement=0.08 * LEFT), 12)
    steps = np.diff([tip(agent, q).position for q in record.actions], axis=0)
    assert np.linalg.norm(steps, axis=1).max() <= 1.05 * TIP_SPEED / rig.robot.control_hz + 0.001


def test_nothing_moves_without_the_dead_mans_switch(rig: Rig) -> None:
    pushing = Hand(False, AHEAD, AHEAD, displacement=0.3 * AHEAD, rotation=np.eye(3), gripper=0.0)
    _, record = drive(rig, lambda i: pushing, 20)
    assert np.ptp(record.actions, axis=0).max() == 0
    assert np.abs(now(rig) - record.states[0]).max() < 0.03


def test_letting_go_stops_at_once_and_a_clutch_that_closes_elsewhere_begins_from_nothing(rig: Rig) -> None:
    def says(i: int) -> Hand:
        if i < 10:
            return Hand(True, displacement=0.003 * i * LEFT)
        if i < 20:
            return Hand(False, displacement=0.5 * LEFT)  # the hand goes elsewhere
        return Hand(True, displacement=STILL)  # and begins anew there

    agent, record = drive(rig, says, 30)
    rest = np.array(record.actions[9:])
    assert np.ptp(rest, axis=0).max() < 2e-3
    assert motion(rig, agent, record)[1] == pytest.approx(0.027, abs=0.01)


@pytest.mark.parametrize("hand", [Hand(True, displacement=0.15 * UP), Hand(True, 0.15 * UP, gripper=0.0)])
def test_a_hand_that_is_still_closed_when_an_episode_begins_must_open_first(rig: Rig, hand: Hand) -> None:
    says = hand
    agent = TeleoperatorAgent(ScriptedHand(lambda i: says), rig.robot, "so101")
    run_episode(rig.robot, agent, task="", seed=0, max_ticks=15)

    def pushed() -> float:
        actions = [agent.act(rig.robot.observe()) for _ in range(8)]
        return float(np.ptp([tip(agent, q).position[2] for q in actions]))

    agent.reset("", 1)
    assert pushed() == 0
    says = Hand(False)
    assert pushed() == 0
    says = hand
    assert pushed() > 0.02


@pytest.mark.parametrize("q", [[0, 0.9, 0.3, 0.9, 0, 0.6], [0, 1.2, 0.2, 0.6, 0, 0.6]])
def test_a_tip_below_the_table_is_not_pulled_up_and_only_pushed_inwards_slowly(
    rig: Rig, q: list[float]
) -> None:
    observation, begin = rig.robot.observe(), np.array(q, float)
    observation.values[STATE] = begin
    for way, ticks in ((STILL, 5), (-UP, 5), (AHEAD - UP, 5), (UP, 40)):
        agent = TeleoperatorAgent(ScriptedHand(lambda i, way=way: Hand(True, 2 * way)), rig.robot, "so101")
        path = [tip(agent, begin).position]
        path += [tip(agent, agent.act(observation)).position for _ in range(ticks)]
        z = np.array(path)[:, 2]
        assert z[0] < -0.02, "below the table"
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        assert steps.max() <= 1.05 * TIP_SPEED / rig.robot.control_hz + 0.001
        if way is STILL:
            assert steps.max() < 1e-3
        elif way is UP:
            assert z[-1] > 0.02
        else:
            assert z.min() > z[0] - 0.01
            assert z.max() < z[0] + 0.01


def test_an_arm_that_was_moved_while_nobody_drove_begins_where_it_was_sent(rig: Rig) -> None:
    agent = TeleoperatorAgent(ScriptedHand(lambda i: Hand(True, STILL)), rig.robot, "so101")
    agent.reset("", 0)
    first = agent.act(rig.robot.observe())
    elsewhere = first + 0.2
    agent.sent(elsewhere)
    assert agent.act(rig.robot.observe()) == pytest.approx(elsewhere, abs=1e-3)
    agent.reset("", 1)
    assert agent.act(rig.robot.observe()) == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("way", [AHEAD, -AHEAD, LEFT, UP, -UP])
def test_joints_stay_within_their_limits_and_speeds_wherever_one_pushes(rig: Rig, way: np.ndarray) -> None:
    hand = Hand(True, way * 2, 3 * way, gripper=0.0)
    agent, record = drive(rig, lambda i: hand, 80)
    joints = next(iter(rig.robot.arms.values())).joints
    actions = np.array(record.actions)
    assert np.isfinite(actions).all()
    assert (actions >= joints.lower - 1e-6).all()
    assert (actions <= joints.upper + 1e-6).all()
    most = joints.max_velocity / rig.robot.control_hz
    assert (np.abs(np.diff(actions, axis=0)) <= most + 1e-5).all()
    lowest = min(tip(agent, q).position[2] for q in actions)
    assert lowest > -0.03


def test_the_tip_comes_back_at_once_from_where_it_could_not_go(rig: Rig) -> None:
    """The goal does not run away while one pushes against the end of the reach."""
    pushed, hz = 120, rig.robot.control_hz
    agent, record = drive(
        rig, lambda i: Hand(True, (0.3 if i < pushed else -0.3) * AHEAD), pushed + round(0.5 * hz)
    )
    x = [tip(agent, q).position[0] for q in record.actions]
    assert x[-1] < x[pushed - 1] - 0.05


def test_the_workspace_holds_the_tip(rig: Rig) -> None:
    agent = TeleoperatorAgent(ScriptedHand(lambda i: Hand(False)), rig.robot, "so101")
    here = tip(agent, now(rig)).position
    box = np.array([here - 0.03, here + 0.03])
    agent, record = drive(rig, lambda i: Hand(True, 0.2 * LEFT), 40, workspace=box)
    assert motion(rig, agent, record)[1] == pytest.approx(0.03, abs=0.008)


def test_the_gripper_goes_where_it_is_asked_and_stays_when_it_is_not(rig: Rig) -> None:
    joints = next(iter(rig.robot.arms.values())).joints
    openings = [0.5, 0.5, None, 0.0, 1.0]
    per = 12
    _, record = drive(rig, lambda i: Hand(True, gripper=openings[i // per]), per * len(openings))
    span = joints.upper[-1] - joints.lower[-1]
    ends = [(record.actions[(k + 1) * per - 1][-1] - joints.lower[-1]) / span for k in range(len(openings))]
    assert ends == pytest.approx([0.5, 0.5, 0.5, 0.0, 1.0], abs=1e-3)


def test_buttons_are_told_once(rig: Rig) -> None:
    agent, _ = drive(rig, lambda i: Hand(False, events=("success",) if i == 2 else ()), 4)
    assert agent.events() == ("success",)
    assert agent.events() == ()


# -- leaders


class Leader:
    """The joints of an arm as a test sets them; it is read only."""

    def __init__(self, like: Any, q: np.ndarray) -> None:
        self.joints, self.q, self.valid = like.joints, np.array(q), True

    def read(self) -> Sample:
        return Sample(self.q.copy(), 0, 0, 0, np.full(len(self.q), self.valid))


@pytest.fixture
def pair(rig: Rig) -> tuple[Rig, Leader, LeaderAgent]:
    ((name, follower),) = rig.robot.arms.items()
    leader = Leader(follower, follower.read().data)
    return rig, leader, LeaderAgent({name: leader}, rig.robot)  # type: ignore[dict-item]


Pair = tuple[Rig, Leader, LeaderAgent]


def test_a_follower_catches_up_slowly_and_then_follows(pair: Pair) -> None:
    rig, leader, agent = pair
    hz, begin = rig.robot.control_hz, now(rig)
    leader.q[0] += 0.4
    record = Recording()
    run_episode(rig.robot, agent, [record], task="", seed=0, max_ticks=round(0.6 * hz))
    path = np.array([begin, *record.actions])
    assert np.abs(np.diff(path, axis=0)).max() <= SYNC_SPEED / hz + 1e-5
    assert record.actions[-1] == pytest.approx(leader.q, abs=1e-5)
    leader.q[0] += 0.15  # caught up with: now as fast as the arm allows
    observation = rig.robot.observe()
    assert agent.act(observation) == pytest.approx(leader.q, abs=1e-9)
    agent.reset("", 1)
    leader.q[0] += 0.3
    again = agent.act(rig.robot.observe())
    assert abs(again[0] - rig.robot.observe().values[STATE][0]) <= SYNC_SPEED / hz + 1e-4


def test_a_follower_holds_while_its_leader_cannot_be_read(pair: Pair) -> None:
    rig, leader, agent = pair
    agent.reset("", 0)
    action = agent.act(rig.robot.observe())
    agent.sent(action)
    leader.valid = False
    leader.q += 0.05
    for _ in range(5):
        assert np.array_equal(agent.act(rig.robot.observe()), action)
    leader.valid = True
    assert agent.act(rig.robot.observe()) == pytest.approx(leader.q, abs=1e-6)


def test_a_leader_that_went_far_unread_is_caught_up_with_slowly(pair: Pair) -> None:
    rig, leader, agent = pair
    agent.reset("", 0)
    action = agent.act(rig.robot.observe())
    agent.sent(action)
    leader.valid = False
    agent.act(rig.robot.observe())
    leader.q[1] += 0.5
    leader.valid = True
    step = agent.act(rig.robot.observe()) - action
    assert np.abs(step).max() <= SYNC_SPEED / rig.robot.control_hz + 1e-6


def test_a_leader_far_away_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, leader, agent = pair
    follower = next(iter(rig.robot.arms.values()))
    monkeypatch.setattr(follower, "max_first_step", 0.5)
    leader.q[2] -= 0.8
    before = now(rig)
    with pytest.raises(
        DeviceError,
        match=r"0\.\d+ rad from its follower at joint elbow_flex \(at most 0.5\): bring the leader nearer$",
    ):
        run_episode(rig.robot, agent, task="", seed=0, max_ticks=3)
    assert now(rig) == pytest.approx(before, abs=0.01)


def test_a_leader_that_is_read_late_is_not_trusted_more(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, leader, agent = pair
    monkeypatch.setattr(next(iter(rig.robot.arms.values())), "max_first_step", 0.5)
    leader.q[2] -= 0.8
    leader.valid = False
    agent.reset("", 0)
    agent.sent(agent.act(rig.robot.observe()))
    leader.valid = True
    with pytest.raises(DeviceError, match="bring the leader nearer"):
        agent.act(rig.robot.observe())


def test_a_leader_of_other_joints_is_refused(rig: Rig) -> None:
    with load_robot("sim:panda") as other:
        ((name, _),) = rig.robot.arms.items()
        stranger = next(iter(other.robot.arms.values()))
        with pytest.raises(DeviceError, match=r"has the joints panda_joint1.*its follower shoulder_pan"):
            LeaderAgent({name: stranger}, rig.robot)


# -- from a robot's file


def robot_file(path: Path, *tables: str) -> str:
    path.write_text("\n".join(['name = "mine"', "control_hz = 20", *tables]))
    return str(path)


def servo_table(table: str, driver: str, port: object, calibration: object, more: str = "") -> str:
    return f'[{table}]\ndriver = "{driver}"\nport = "{port}"\ncalibration = "{calibration}"\n{more}'


def ur_table(table: str, host: str, model: str) -> str:
    return f'[{table}]\ndriver = "ur"\nhost = "{host}"\nlink_watchdog_s = 4.0\nlost_s = 2.0' + (
        f'\nmodel = "{model}"' if model != "ur" else ""
    )


@pytest.mark.realtime
@pytest.mark.parametrize("current", [150, 0])
def test_a_koch_leaders_gripper_springs_open_while_it_leads(tmp_path: Path, current: int) -> None:
    spring = f"spring_current = {current}"
    with bench("koch_leader", tmp_path) as b:
        file = robot_file(
            tmp_path / "robot.toml",
            servo_table("arms.arm", "koch", "/dev/none", "none.json"),
            servo_table("leaders.arm", "koch-leader", b.link, b.calibration, spring),
        )
        rig = load_robot(file)
        with agent_for("leader", file, rig):
            assert b.plant.torque.tolist() == [0, 0, 0, 0, 0, float(current > 0)]
            if current:
                until(lambda: b.plant.position[5] > 1.5, "it springs open")
        assert not b.plant.torque.any(), "and lets go afterwards"


def test_the_geometry_is_that_of_the_driver_whatever_the_calibration(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as b:
        ranges = json.loads(b.calibration.read_text())
        ranges["shoulder_pan"] |= {"range_min": 2048 - 880, "range_max": 2048 + 880}  # ±1.35 rad
        b.calibration.write_text(json.dumps(ranges))
        file = robot_file(
            tmp_path / "robot.toml", servo_table("arms.arm", "so101", b.link, b.calibration, "stale_s = 1.5")
        )
        with load_robot(file) as rig, agent_for("browser", file, rig) as agent:
            assert isinstance(agent, TeleoperatorAgent)
            assert rig.robot.arms["arm"].joints.lower[0] > -1.4
            assert agent.act(rig.robot.observe()) == pytest.approx(HOME, abs=0.02)


@pytest.mark.parametrize(
    ("agent", "tables", "says"),
    [
        ("gamepad", ("koch", "koch"), r"a gamepad moves one arm, and mine has 2; use --agent leader$"),
        ("gamepad", ("ur", "ur"), r"a gamepad moves one arm, and mine has 2$"),
        (
            "gamepad",
            ("ur",),
            r'which UR \[arms.a\] is must be known .*: where it is a UR5e, say model = "ur5e" there',
        ),
        ("leader", ("ur",), r"there is no leader arm for a ur$"),
        (
            "leader",
            ("ur5e",),
            r"no leader arm for a ur; use --agent gamepad or spacemouse or keyboard or browser$",
        ),
        ("leader", ("sim",), r"no leader arm for a simulated robot; use --agent gamepad or "),
    ],
)  # fmt: skip
def test_who_cannot_move_a_robot_is_told_who_can(
    tmp_path: Path, agent: str, tables: tuple[str, ...], says: str
) -> None:
    arms = {
        name: servo_table(f"arms.{name}", driver, f"/dev/none{name}", "none.json")
        if driver == "koch"
        else ur_table(f"arms.{name}", f"10.0.0.{ord(name)}", driver)
        for name, driver in zip("ab", tables, strict=False)
    }
    file = "sim:so101" if tables == ("sim",) else robot_file(tmp_path / "robot.toml", *arms.values())
    rig = load_robot(file)
    with pytest.raises(DeviceError, match=says), agent_for(agent, file, rig):
        pass
    if rig.scene is not None:
        rig.scene.close()


@pytest.mark.parametrize("command", [["teleoperate"], ["record", "--task", "wave", "--out", "{out}"]])
def test_the_robot_is_not_opened_before_there_is_somebody_to_move_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    calibration = tmp_path / "calibration.json"
    with bench("so101", tmp_path) as b:
        b.calibration.rename(calibration)
    file = robot_file(
        tmp_path / "robot.toml",
        servo_table("arms.arm", "so101", "/dev/no-follower", calibration),
        servo_table("leaders.arm", "so101-leader", "/dev/no-leader", calibration),
    )
    words = [word.format(out=tmp_path / "data") for word in command]
    assert main([*words, "--robot", file, "--agent", "leader"]) == 1
    err = capfd.readouterr().err
    assert "/dev/no-leader" in err
    assert "/dev/no-follower" not in err


@pytest.fixture
def ur_host() -> Iterator[str]:
    """The address of a controller's twin."""
    home = np.append([-0.28, -1.58, 1.96, -1.95, -np.pi / 2, 1.29], 0.03)
    plant = Plant.create((*ur.NAMES, "gripper"), home, np.full(7, 150.0))
    host = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"
    try:
        with SimpleMechanics(plant, 3.3), URTwin(plant, host, URFaults()):
            yield host
    finally:
        plant.remove()


def straight(rig: Rig, model: str, way: np.ndarray) -> None:
    """A hand pushes the tip the `way` for 15 ticks: it goes there, along a line, and does not turn."""
    says = Hand(True, way, gripper=0.0)
    agent = TeleoperatorAgent(ScriptedHand(lambda i: says if i < 15 else Hand(False)), rig.robot, model)
    record = Recording()
    run_episode(rig.robot, agent, [record], task="", seed=0, max_ticks=20)
    begin, end = (tip(agent, q) for q in (record.states[0], record.actions[-1]))
    path = np.array([tip(agent, q).position for q in record.actions]) - begin.position
    assert path[-1] == pytest.approx(way * 15 / 20, abs=0.01)
    along = way / np.linalg.norm(way)
    # a busy machine sends some ticks late
    assert np.linalg.norm(path - np.outer(path @ along, along), axis=1).max() < 0.008
    if len(agent.chain.moving) > 5:
        assert rotation_vector(end.rotation @ begin.rotation.T) == pytest.approx(STILL, abs=0.03)
    assert now(rig) == pytest.approx(record.actions[-1], abs=0.05)


@pytest.mark.realtime
@pytest.mark.parametrize("model", ["ur5e", "ur10e"])
def test_the_tip_of_a_ur_goes_where_the_hand_pushes(tmp_path: Path, ur_host: str, model: str) -> None:
    """Through its driver, which has six joints and no gripper."""
    file = robot_file(tmp_path / "robot.toml", ur_table("arms.arm", ur_host, model))
    with agent_for("browser", file, load_robot(file)) as browser:
        assert isinstance(browser, TeleoperatorAgent)
    with load_robot(file) as rig:
        straight(rig, model, 0.15 * LEFT)


@pytest.mark.realtime
@pytest.mark.parametrize("way", [AHEAD, LEFT, UP])
def test_the_tip_of_a_koch_goes_where_the_hand_pushes(tmp_path: Path, way: np.ndarray) -> None:
    """Whose joints have the names of an SO-101's, and other senses."""
    with bench("koch", tmp_path) as b:
        b.plant.position[:] = b.plant.goal[:] = (0.0, -0.3, -0.2, -0.6, 0.0, 0.6)
        table = servo_table("arms.arm", "koch", b.link, b.calibration, "stale_s = 1.5")
        file = robot_file(tmp_path / "robot.toml", table)
        with agent_for("browser", file, load_robot(file)) as browser:
            assert isinstance(browser, TeleoperatorAgent)
        with load_robot(file) as rig:
            straight(rig, "koch", 0.06 * way)
