"""Arms whose drivers live in a control process: the contract, and what the two processes do when one of them
is late or gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.arm import check_arm
from contracts.paper_arm import Config, N, make, robot_file, sent, tell
from contracts.servo_arm import bench, until

from ulna.datasets.features import STATE
from ulna.datasets.flags import LIMITED
from ulna.drivers.arm import ArmState, Calibrated, DeviceError, joints_of
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.sample import Backlog
from ulna.policies.serving.metadata import Metadata
from ulna.robot.agent import PolicyAgent
from ulna.robot.config import Rig, load_robot, read_config
from ulna.robot.control import process
from ulna.robot.control.limb import Limb
from ulna.robot.control.memory import Memory
from ulna.robot.control.plan import Plan
from ulna.robot.control.ticker import Ticker
from ulna.robot.loop import run_episode
from ulna.robot.robot import Robot
from ulna.robot.safety.filter import Filter
from ulna.robot.safety.limits import Safety
from ulna.robot.safety.stages.smoothing import smoothing_of
from ulna.robot.safety.stages.tank import Tanks, tank_of
from ulna.robot.strategies.all import strategy_named

pytestmark = pytest.mark.realtime


@pytest.mark.parametrize("kind", ["so101", "koch"])
def test_the_contract(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b:
        file = tmp_path / "robot.toml"
        model = 'model = "so101"\n' if kind == "koch" else ""
        file.write_text(
            f'name = "cell"\ncontrol_hz = 20.0\n[arms.arm]\ndriver = "{kind}"\nport = "{b.link}"\n'
            f'calibration = "{b.calibration}"\nstale_s = 1.5\n{model}'
        )
        (arm,) = load_robot(str(file)).robot.arms.values()
        assert isinstance(arm, Backlog)
        assert isinstance(arm, Calibrated)
        check_arm(arm, MonotonicClock())
        assert set(arm.calibration) == set(arm.joints.names)


@pytest.fixture
def paper(tmp_path: Path) -> Iterator[Rig]:
    with load_robot(str(robot_file(tmp_path, "arm"))) as rig:
        yield rig


def poses(folder: Path, arm: str = "arm") -> np.ndarray:
    """All that was sent, `(n, 4)`: time in s, and three joints."""
    rows = [[t * 1e-9, *q] for t, q in sent(folder, arm) if isinstance(q, list)]
    return np.array(rows).reshape(-1, 4)


def test_commands_are_sent_on_the_way_at_the_control_rate_and_what_is_sent_is_answered(
    paper: Rig, tmp_path: Path
) -> None:
    robot = paper.robot
    clock, answers = robot.clock, []
    due = clock.now_ns()
    for i in range(20):
        answers.append((due + robot.period_ns, robot.command(np.array([0.3 + 0.01 * i, 0.3, 0.3]))))
        due += robot.period_ns
        clock.sleep_until(due)
    rows = poses(tmp_path)
    rows = rows[(rows[:, 0] > answers[0][0] * 1e-9) & (rows[:, 0] < due * 1e-9)]
    assert len(rows) > 3 * len(answers), "more often than it was commanded"
    assert np.abs(np.diff(rows[:, 1])).max() < 0.02, "in small steps"
    asked = np.array([0.3 + 0.01 * i for i in range(20)])
    told = np.array([q[0] for _, q in answers])
    assert np.abs(told - asked).max() < 0.03, "what is answered is what will be sent"
    at = np.interp([t * 1e-9 for t, _ in answers[:-2]], rows[:, 0], rows[:, 1])
    assert np.abs(at - told[:-2]).max() < 0.02


def test_the_arm_goes_on_along_what_was_announced_and_then_holds(paper: Rig, tmp_path: Path) -> None:
    robot = paper.robot
    ahead = np.array([[0.3 + 0.02 * i, 0.3, 0.3] for i in range(1, 7)])
    for _ in range(3):
        robot.command(np.array([0.3, 0.3, 0.3]))
        time.sleep(0.05)
    robot.command(np.array([0.3, 0.3, 0.3]), ahead)
    time.sleep(1.2)  # nobody commands: a policy that thinks for long
    rows = poses(tmp_path)
    assert rows[-1, 1] == pytest.approx(0.42, abs=0.02)
    assert np.abs(np.diff(rows[:, 1])).max() < 0.02
    pauses = np.diff(rows[:, 0])
    assert np.median(pauses) < 0.02, "it was sent all the while"


class Ramp:
    """A policy by which every joint turns at 0.4 rad/s."""

    def __init__(self, robot: Robot) -> None:
        self.metadata = Metadata("ramp", robot.features, 1, 16, n_action_steps=8)

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"actions": request[STATE][-1] + 0.02 * np.arange(1, 17, dtype=np.float32)[:, None], "nfe": 1}


class Stalls:
    """A subscriber that writes to a disk which takes its time once."""

    def __init__(self) -> None:
        self.ticks, self.began_s, self.ended_s = 0, 0.0, 0.0

    def start(self, meta: Mapping[str, Any]) -> None: ...

    def tick(self, values: Any, times_ns: Any, flags: Any) -> None:
        self.ticks += 1
        if self.ticks == 12:
            self.began_s = time.monotonic()
            time.sleep(0.4)
            self.ended_s = time.monotonic()

    def end(self, meta: Mapping[str, Any]) -> None: ...

    def interrupt(self, reason: str) -> None: ...


@pytest.mark.parametrize("strategy", ["async", "receding"])
def test_after_a_stall_the_arm_does_not_go_back(paper: Rig, tmp_path: Path, strategy: str) -> None:
    robot, stalls = paper.robot, Stalls()
    agent = PolicyAgent(Ramp(robot), robot.features, strategy=strategy_named(strategy))
    try:
        run_episode(robot, agent, [stalls], task="", seed=0, max_ticks=24)
    finally:
        agent.close()
    rows = poses(tmp_path)
    in_stall = rows[(rows[:, 0] > stalls.began_s) & (rows[:, 0] < stalls.ended_s)]
    assert np.ptp(in_stall[:, 1]) > 0.05, "it went on meanwhile"
    back = np.max(np.maximum.accumulate(rows[:, 1]) - rows[:, 1])
    assert back < 0.03, "a tick and a half"
    assert rows[-1, 1] - in_stall[-1, 1] > 0.1, "and afterwards"


def test_a_late_command_is_told(paper: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    q = np.array([0.3, 0.3, 0.3])
    paper.robot.command(q)
    time.sleep(1.8)
    paper.robot.command(q)
    assert "no command came for 1." in capfd.readouterr().err
    assert paper.robot.command_flags
    paper.robot.command(q)
    assert not paper.robot.command_flags


def test_several_arms_are_moved_together_and_refused_together(tmp_path: Path) -> None:
    with load_robot(str(robot_file(tmp_path, "left", "right"))) as rig:
        robot = rig.robot
        q = np.full(6, 0.3)
        answers = []
        for i in range(10):
            answers.append(robot.command(q + 0.01 * i))
            time.sleep(0.05)
        assert answers[-1].shape == (6,)
        for arm in ("left", "right"):
            assert poses(tmp_path, arm)[-1, 1] > 0.35
        robot.arms["right"].stop()
        n = len(poses(tmp_path, "left"))
        with pytest.raises(DeviceError, match=r"right is stopped.*enable"):
            robot.command(q)
        robot.hold()
        time.sleep(0.1)
        left = poses(tmp_path, "left")[n:]
        assert np.abs(np.diff(left[:, 1])).max(initial=0.0) < 0.02, "the other one holds"


@pytest.fixture
def ticking(tmp_path: Path) -> Iterator[tuple[Ticker, Tanks]]:
    """The ticks of two arms that take commands, here and at times that the test says; their tanks."""
    memory, limbs = Memory([N, N]), []
    for i, name in enumerate(("left", "right")):
        driver = make(name, Config(str(tmp_path / f"{name}.log")))
        limbs.append(Limb(name, driver, memory.arms[i], slice(N * i, N * i + N), Plan(np.zeros(N), 0, 0)))
    joints = joints_of({limb.name: limb.driver for limb in limbs})
    safety = Safety.of({}, joints)
    tanks = tank_of({"stiffness": 1.0, "damping": 0.0}, joints, safety, {}, "tank")
    stages = [smoothing_of({"floor": 3.0}, joints, safety, {}, "smoothing"), tanks]
    ticker = Ticker(limbs, memory, 0.01, lambda joints, free: Filter(joints, safety, None, stages))
    for limb in limbs:
        limb.driver.open()
        limb.driver.enable()
        limb.is_open = True
        ticker.start_at(limb)
    yield ticker, tanks
    memory.close()


def test_an_arm_that_starts_again_leaves_the_other_one_its_motion(ticking: tuple[Ticker, Tanks]) -> None:
    ticker, tanks = ticking
    left, right = ticker.limbs
    due, went = time.monotonic_ns() + 100_000_000, []  # ahead: a busy machine is not late
    ticker.tick(due)
    for i in range(30):
        if i % 5 == 0:
            goal = np.array([0.3 + 0.01 * i + 0.05, 0.3, 0.3])
            ticker.command({"left": goal}, due + 50_000_000, {"left": np.zeros((0, N))}, 50_000_000)
        if i == 22:
            spent = tanks.each["left"].energy
            ticker.start_at(right)
            assert tanks.each["left"].energy == spent < 1.0
        due += 10_000_000
        ticker.tick(due)
        went.append(left.asked[0])
    steps = np.diff(went) / 0.01
    assert steps.max() > 0.9, "rad/s"
    assert np.abs(np.diff(steps)).max() / 0.01 < 10.5, "rad/s²"


def test_a_tick_that_waits_for_the_end_of_a_park_sends_nothing(ticking: tuple[Ticker, Tanks]) -> None:
    ticker, _ = ticking
    with ThreadPoolExecutor() as pool:
        with ticker._lock:
            tick = pool.submit(ticker.tick, time.monotonic_ns())
            time.sleep(0.05)
            for limb in ticker.limbs:
                ticker.parked(limb.name)
        tick.result(10)


def test_a_first_command_that_is_far_is_refused(paper: Rig, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="nothing was sent"):
        paper.robot.command(np.array([1.5, 0.3, 0.3]))
    paper.robot.command(np.array([0.4, 0.3, 0.3]))


def test_what_a_driver_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    tell(tmp_path, "arm", broken=1)
    with pytest.raises(DeviceError, match="arm is torn"), load_robot(str(robot_file(tmp_path, "arm"))):
        pass
    for text, words in (
        ("[control]\nrate = 5\n", "20..500 Hz"),
        ("[control]\nrat = 5\n", "did you mean rate"),
        ("[safety]\nrest = [9.0, 0.0, 0.0]\n", "outside its limits"),
    ):
        with pytest.raises(DeviceError, match=words):
            load_robot(str(robot_file(tmp_path, "arm", more=text)))


def test_a_rate_that_the_bus_cannot_do_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "robot.toml"
    arm = '[arms.arm]\ndriver = "so101"\nport = "/dev/ttyNONE"\ncalibration = "c.json"\n'
    path.write_text(f'name = "x"\ncontrol_hz = 20.0\n{arm}[control]\nrate = 200\n')
    with pytest.raises(DeviceError, match=r"rate is 200 Hz, more than \[arms.arm\] bus_hz = 100"):
        load_robot(str(path))


def test_a_killed_control_process_is_replaced_and_readings_count_on(
    paper: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    (arm,) = paper.robot.arms.values()
    host = paper.robot.host
    assert host is not None
    before, dead = arm.read(), host.pid
    assert dead is not None
    os.kill(dead, signal.SIGKILL)
    until(lambda: host.pid not in (None, dead) and not host.down, "there is another one", 60)
    until(lambda: bool(np.all(arm.read().valid)) and arm.read().seq > before.seq, "it is read", 60)
    said = capfd.readouterr().err
    assert "SIGKILL" in said
    assert "another control process holds the arms" in said
    arm.enable()
    paper.robot.command(arm.read().data)


def test_a_hot_arm_goes_slowly_and_a_hotter_one_stops(
    paper: Rig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (arm,) = paper.robot.arms.values()
    tell(tmp_path, "arm", heat_c=62.0)
    until(lambda: bool(arm.faults()), "it is told")
    assert "62 °C" in arm.faults()[0]
    start, answer = time.monotonic(), np.zeros(3)
    while (t := time.monotonic() - start) < 1.0:
        answer = paper.robot.command(np.array([0.3 + 1.0 * t, 0.3, 0.3]))
        assert t < 0.1 or paper.robot.command_flags & LIMITED
        time.sleep(0.05)
    went = poses(tmp_path)[-1, 1] - 0.3
    assert went < 0.45
    assert abs(answer[0] - 0.3 - went) < 0.05, "what is answered is what is sent"
    assert "warm" in str(paper.robot.tally)
    tell(tmp_path, "arm", heat_c=68.0)
    until(lambda: "68 °C" in " ".join(arm.faults()), "it is told")
    with pytest.raises(DeviceError, match=r"68 °C.*holds"):
        paper.robot.command(np.array([0.5, 0.3, 0.3]))
    until(lambda: "goes slowly" in capfd.readouterr().err, "it is said")


def test_an_arm_that_does_not_follow_is_stopped(paper: Rig, tmp_path: Path) -> None:
    tell(tmp_path, "arm", stuck=1)
    q = np.array([0.3, 0.3, 0.3])

    def refused() -> bool:
        q[0] = min(q[0] + 0.05, 1.2)
        try:
            paper.robot.command(q)
        except DeviceError as error:
            return "from where it was sent" in str(error)
        return False

    until(refused, "it is noticed")


def test_closing_puts_an_arm_down_where_it_got_its_torque(tmp_path: Path) -> None:
    with load_robot(str(robot_file(tmp_path, "arm"))) as rig:
        for i in range(10):
            rig.robot.command(np.array([0.3 + 0.03 * i, 0.3, 0.3]))
            time.sleep(0.05)
        assert poses(tmp_path)[-1, 1] > 0.5
    *_, before, (_, last), (_, end) = sent(tmp_path, "arm")
    assert (last, end) == ("limp", "closed")
    assert np.abs(np.array(before[1]) - 0.3).max() < 0.05  # type: ignore[arg-type]


def test_an_arm_that_is_silent_for_a_moment_is_put_down_all_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with load_robot(str(robot_file(tmp_path, "arm"))) as rig:
        rig.robot.command(np.array([0.4, 0.3, 0.3]))
        tell(tmp_path, "arm", silent=1)
        threading.Timer(1.0, tell, (tmp_path, "arm"), {"silent": 0}).start()
    assert [what for _, what in sent(tmp_path, "arm")][-2:] == ["limp", "closed"]
    assert "could not" not in capfd.readouterr().err


def test_an_arm_that_drops_out_late_on_its_way_down_is_put_down_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PATIENCE_S", 0.3)
    setup = {"robot": "paper", "config": read_config(str(robot_file(tmp_path, "arm"))), "rate_hz": 100.0}
    memory = Memory([N])
    control = process.Control({**setup, "rests": {"arm": [0.3] * N}, "began": {}, "lay": []}, memory)
    thread = threading.Thread(target=control.ticker.run)
    thread.start()
    control.open("arm")
    control.enable("arm")
    up, nothing = np.array([0.75, 0.3, 0.3]), np.zeros((0, N))
    control.ticker.command({"arm": up}, time.monotonic_ns() + 400_000_000, {"arm": nothing}, 50_000_000)
    time.sleep(0.6)
    for after_s, silent in ((0.8, 1), (0.9, 0)):
        threading.Timer(after_s, tell, (tmp_path, "arm"), {"silent": silent}).start()
    assert control.park() == {"notes": []}
    control.ticker.stop()
    thread.join()
    memory.close()
    assert sent(tmp_path, "arm")[-1][1] == "limp"


def test_an_arm_that_a_person_stopped_is_not_moved_and_keeps_its_torque(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with load_robot(str(robot_file(tmp_path, "arm"))) as rig:
        (arm,) = rig.robot.arms.values()
        arm.stop()
        assert arm.health().state is ArmState.STOPPED
        n = len(sent(tmp_path, "arm"))
    assert sent(tmp_path, "arm")[n:] == []
    assert "could not be put down" in capfd.readouterr().err


def test_the_control_process_has_the_stages_of_the_file(tmp_path: Path) -> None:
    tank = "[safety.tank]\nstiffness = 400.0\nbegin = 0.2\n"
    with load_robot(str(robot_file(tmp_path, "arm", more=tank))) as rig:
        robot = rig.robot
        first = robot.command(np.full(3, 0.3))
        for k in range(40):
            robot.command(first + 0.02 * k)
            time.sleep(0.05)
        assert "tank" in str(robot.tally)
        assert robot.command_flags & LIMITED
        empty = poses(tmp_path)[-1, 1:]
        assert np.abs(empty - first).max() < 0.5
        robot.begin()
        for _ in range(10):
            robot.command(first + 0.8)
            time.sleep(0.05)
        assert (poses(tmp_path)[-1, 1:] > empty + 0.005).all(), "an episode begins with a full tank"
    wrong = robot_file(tmp_path, "arm", more="[safety.tank]\nbegin = 0.2\n")
    with pytest.raises(DeviceError, match=r"\[safety.tank\] lacks stiffness"), load_robot(str(wrong)):
        pass
