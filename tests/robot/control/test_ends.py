"""However a run ends, the arm is put down before its torque goes: real processes, signals and terminals
against a twin with physics."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.falls import MOST_MM, Fall, until
from contracts.twin import ENVIRONMENT, ask, twin

from ulna.drivers.arm import ArmState, DeviceError
from ulna.policies.serving.client import PolicyServerError
from ulna.robot.agent import HoldAgent
from ulna.robot.config import Rig, load_robot
from ulna.robot.deploy import deploy
from ulna.robot.ends import Ended
from ulna.robot.loop import run_episode
from ulna.robot.motion import go_to

pytestmark = pytest.mark.realtime

UP_M = 0.06  # the tip of the twin's home pose is at 0.073 m, and it would fall from there


@pytest.fixture(scope="module")
def station() -> Iterator[dict[str, Any]]:
    words = ("--scene", "lift", "--cameras", "front", "--fps", "10", "--image-size", "64x64")
    with twin("so101", *words) as info:
        toml = Path(info["toml"])
        patient = toml.with_name("patient.toml")  # a busy machine may leave the twin's process standing
        patient.write_text(re.sub(r'(driver = "so101")', r"\1\nstale_s = 2.0", toml.read_text()))
        info = {**info, "toml": str(patient)}
        resting = Fall(info)
        until(lambda: abs(resting.tip()[2] - (time.sleep(0.2), resting.tip()[2])[1]) < 1e-4, "it lies")
        yield info


@pytest.fixture(autouse=True)
def sound(station: dict[str, Any]) -> Iterator[None]:
    yield
    ask(station, "faults", {"arm": {"unplugged": False, "overload": []}, "front": {"stalled": False}})


def run(rig: Rig, **options: Any) -> None:
    run_episode(
        rig.robot,
        options.pop("agent", HoldAgent()),
        options.pop("subscribers", ()),
        task="",
        seed=0,
        max_ticks=options.pop("max_ticks", 1000),
        **options,
    )


class Acts(HoldAgent):
    """Holds, and at its fifth tick does something."""

    def __init__(self, at_five: Callable[[np.ndarray], np.ndarray]) -> None:
        self.at_five, self.ticks = at_five, 0

    def act(self, observation: Any) -> np.ndarray:
        self.ticks += 1
        q = super().act(observation)
        return self.at_five(q) if self.ticks == 5 else q


class Disk:
    """A recorder whose disk is full."""

    ticks = 0

    def start(self, meta: Any) -> None: ...

    def tick(self, values: Any, times_ns: Any, flags: Any) -> None:
        self.ticks += 1
        if self.ticks == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    def end(self, meta: Any) -> None: ...

    def interrupt(self, reason: str) -> None: ...


def stop_at_once() -> Callable[[], bool]:
    ticks = iter(range(10**9))
    return lambda: next(ticks) > 5


def raise_(error: BaseException) -> Callable[[np.ndarray], np.ndarray]:
    def do(q: np.ndarray) -> np.ndarray:
        raise error

    return do


def lose_the_camera(info: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    def do(q: np.ndarray) -> np.ndarray:
        ask(info, "faults", {"front": {"stalled": True}})
        return q

    return do


INSIDE: dict[str, Callable[[Rig, dict[str, Any]], None]] = {
    "success": lambda rig, info: run(rig, success=stop_at_once()),
    "the longest time": lambda rig, info: run(rig, max_ticks=5),
    "quit": lambda rig, info: run(rig, stop=stop_at_once()),
    "not a number": lambda rig, info: run(rig, agent=Acts(lambda q: q * np.nan)),
    "a wrong shape": lambda rig, info: run(rig, agent=Acts(lambda q: q[:-1])),
    "a full disk": lambda rig, info: run(rig, subscribers=[Disk()]),
    "a defect": lambda rig, info: run(rig, agent=Acts(raise_(ZeroDivisionError()))),
    "Ctrl-C": lambda rig, info: run(rig, agent=Acts(raise_(KeyboardInterrupt()))),
    "a lost camera": lambda rig, info: run(rig, agent=Acts(lose_the_camera(info))),
}


@pytest.mark.parametrize("end", INSIDE)
def test_a_run_that_ends_inside_puts_the_arm_down(station: dict[str, Any], end: str) -> None:
    with Fall(station) as fall:
        with (
            contextlib.suppress(ValueError, OSError, ArithmeticError, RuntimeError, KeyboardInterrupt),
            load_robot(station["toml"]) as rig,
        ):
            assert rig.home is not None
            go_to(rig.robot, rig.home)
            INSIDE[end](rig, station)
        assert fall.highest_m > UP_M
        assert fall.moved_mm() < MOST_MM


SERVER = """
import os, sys
import numpy as np
from contracts.policy import Follow
from ulna.datasets.features import ACTION, STATE, Feature
from ulna.policies.serving.server import PolicyServer

names, units = {names}, {units}
features = {{k: Feature((6,), "float32", names, units) for k in (STATE, ACTION)}}
rng = np.random.default_rng(0)

class Fails(Follow):
    def infer(self, request):
        answer = super().infer(request)
        return answer if len(self.requests) < 3 else {answer}

with PolicyServer(Fails(features), port=0).background() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
ANSWERS = {
    "its death": "os.kill(os.getpid(), 9)",
    "not a number": '{"actions": np.full((8, 6), np.nan, np.float32)}',
    "another robot's": '{"actions": np.zeros((8, 7), np.float32)}',
    "nothing": "{}",
}


@contextlib.contextmanager
def serving(rig: Rig, answer: str) -> Iterator[str]:
    """The address of a server in a process of its own, which gives this `answer` after two good ones."""
    feature = rig.robot.features["action"]
    code = SERVER.format(names=feature.names, units=feature.units, answer=answer)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_server_that_fails_ends_with_the_arm_put_down(station: dict[str, Any], answer: str) -> None:
    with (
        Fall(station) as fall,
        load_robot(station["toml"], trackers=False) as rig,
        serving(rig, ANSWERS[answer]) as url,
        pytest.raises((PolicyServerError, ValueError)),
    ):
        deploy(rig, url, 1, task="x", max_seconds=20)
    assert fall.highest_m > UP_M
    assert fall.moved_mm() < MOST_MM


HOSTILE = {
    "jumps": "rng.uniform(-2, 2, (8, 6))",
    "shaking": "np.tile([[0.5], [-0.5]], (4, 6))",
    "into the table": "np.tile([0.3, 1.7, 1.0, 1.5, 0, 0], (8, 1))",
}


@pytest.mark.parametrize("actions", HOSTILE)
def test_a_hostile_server_cannot_hurt_the_arm(
    station: dict[str, Any], actions: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real arm did 4.5 to 6.1 rad/s at such commands, and its tip ended in the table."""
    with Fall(station) as fall, load_robot(station["toml"], trackers=False) as rig:
        with serving(rig, f'{{"actions": np.float32({HOSTILE[actions]})}}') as url:
            result = deploy(rig, url, 1, task="x", max_seconds=6)
        (episode,) = result["episodes"]
        assert episode["ticks"] > 50
        # of the joints, and of the gripper; the bus is written every 10 ms, a busy machine later
        assert (np.abs(fall.speeds(0.2)).max(0) < 1.3 * np.array([1.5] * 5 + [3.0])).all()
        assert fall.lowest_m > -0.002
    assert "limited" in capfd.readouterr().err or "limited" in str(episode)
    assert fall.moved_mm() < MOST_MM


# processes of their own


# the terminal is its own, so that ^C there is a signal
LOGIN = """
import os, sys
os.login_tty(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, "-m", "ulna.robot.cli", *sys.argv[2:]])
"""


class Run:
    """`ulna record` on the twin in a process of its own, at a terminal of its own."""

    def __init__(self, info: dict[str, Any], out: Path, *words: str) -> None:
        self.terminal, slave = pty.openpty()
        command = [sys.executable, "-c", LOGIN, str(slave), "record", "--robot", info["toml"]]
        command += ["--out", str(out), "--agent", "hold", "--task", "x", "--episodes", "1"]
        self.process = subprocess.Popen(
            [*command, "--max-seconds", "60", *words], env=ENVIRONMENT, pass_fds=(slave,)
        )
        os.close(slave)
        self.said, self.leaving = b"", threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while not self.leaving.is_set():
                if select.select([self.terminal], [], [], 0.05)[0]:
                    self.said += os.read(self.terminal, 4096)

    def hang_up(self) -> None:
        """Close the terminal, as whoever closes its window."""
        self.leaving.set()
        self._reader.join()
        os.close(self.terminal)

    @property
    def control(self) -> int:
        """The control process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(c) for c in children if "robot.control" in Path(f"/proc/{c}/cmdline").read_text())

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        if not self.leaving.is_set():
            self.hang_up()


@contextlib.contextmanager
def running(info: dict[str, Any], tmp_path: Path, fall: Fall, *words: str) -> Iterator[Run]:
    """A run whose episode has begun, its arm up."""
    it = Run(info, tmp_path / "d", *words)
    try:
        until(lambda: fall.highest_m > UP_M or it.process.poll() is not None, "the arm is up")
        time.sleep(1.0)
        assert it.process.poll() is None, it.said[-2000:]
        yield it
    finally:
        it.end()


def twice(it: Run) -> None:
    os.write(it.terminal, b"\x03")
    until(lambda: b"put down" in it.said, "it is said")
    os.write(it.terminal, b"\x03")


def stop_and_go_on(it: Run) -> None:
    it.process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)
    it.process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    it.process.send_signal(signal.SIGTERM)


SIGNALS: dict[str, tuple[Callable[[Run], Any], int]] = {
    "Ctrl-C": (lambda it: os.write(it.terminal, b"\x03"), 130),
    "Ctrl-C twice": (twice, 130),
    "SIGTERM": (lambda it: it.process.send_signal(signal.SIGTERM), 143),
    "SIGHUP": (Run.hang_up, 129),
    "q": (lambda it: os.write(it.terminal, b"q"), 0),
    "SIGKILL": (lambda it: it.process.kill(), -9),
    "SIGSTOP": (stop_and_go_on, 143),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_with_the_arm_put_down(station: dict[str, Any], tmp_path: Path, name: str) -> None:
    send, code = SIGNALS[name]
    with Fall(station) as fall, running(station, tmp_path, fall) as it:
        send(it)
        until(lambda: it.process.poll() is not None, "it ends", 90)
        assert it.process.returncode == code, it.said[-2000:]
        assert fall.moved_mm() < MOST_MM


def test_a_run_that_is_stopped_holds_the_arm_meanwhile(station: dict[str, Any], tmp_path: Path) -> None:
    with Fall(station) as fall, running(station, tmp_path, fall) as it:
        it.process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        before = fall.tip()
        time.sleep(4.0)
        assert fall.has_torque()
        assert np.linalg.norm(fall.tip() - before) < 0.002
        it.process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        assert it.process.poll() is None, "it goes on"
        assert fall.has_torque()


def test_a_control_process_that_is_killed_is_replaced(station: dict[str, Any], tmp_path: Path) -> None:
    with Fall(station) as fall, running(station, tmp_path, fall) as it:
        before = fall.tip()
        os.kill(it.control, signal.SIGKILL)
        until(lambda: b"another control process holds" in it.said, "there is another one")
        assert np.linalg.norm(fall.tip() - before) < 0.005, "without a jump"
        it.process.send_signal(signal.SIGTERM)
        until(lambda: it.process.poll() is not None, "it ends", 90)
        assert fall.moved_mm() < MOST_MM


def test_an_arm_that_cannot_be_put_down_keeps_its_torque_and_that_is_said(
    station: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    fall = Fall(station)
    with load_robot(station["toml"]) as rig:
        (arm,) = rig.robot.arms.values()
        assert rig.home is not None
        go_to(rig.robot, rig.home)
        ask(station, "faults", {"arm": {"unplugged": True}})
        until(lambda: arm.health().state is ArmState.RECONNECTING, "it is noticed")
        with pytest.raises(DeviceError):
            run(rig)
    said = capfd.readouterr().err
    assert "could not be put down" in said
    assert "cut its power" in said
    assert fall.has_torque()
    ask(station, "faults", {"arm": {"unplugged": False}})
    until(lambda: Path(station["ports"]["arm"]).exists(), "it is plugged in again")
    with load_robot(station["toml"]):  # the next run puts it down
        pass
    assert not fall.has_torque()


def test_an_overloaded_servo_leaves_the_others_their_torque(
    station: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with load_robot(station["toml"]) as rig:
        (arm,) = rig.robot.arms.values()
        assert rig.home is not None
        go_to(rig.robot, rig.home)
        ask(station, "faults", {"arm": {"overload": [5]}})  # the wrist's roll
        until(lambda: arm.health().state is ArmState.STOPPED, "it is noticed")
        with pytest.raises(DeviceError, match="overload"):
            run(rig)
    assert "could not be put down" in capfd.readouterr().err
    assert ask(station, "state")["torque"] == [True, True, True, True, False, True]
    ask(station, "faults", {"arm": {"overload": []}})
    ask(station, "power-cycle", {"device": "arm"})  # as it was told
    until(lambda: not any(ask(station, "state")["torque"]), "its power was cut")


def test_a_twin_that_is_gone_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    with twin("so101", "--scene", "lift") as info, load_robot(info["toml"]) as rig:
        scene = rig.scene
        assert scene is not None
        ask(info, "stop", {})
        with pytest.raises(DeviceError):
            run(rig, success=scene.success)
    assert "could not be put down" in capfd.readouterr().err


def test_signals_that_ask_for_an_end_are_heard_where_a_robot_is_open() -> None:
    from ulna.robot.ends import asked_to_end, hurried_by_signals

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Ended, match="SIGTERM") as ended, asked_to_end():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.number == signal.SIGTERM
    hurried = threading.Event()
    with hurried_by_signals(hurried.set):
        signal.raise_signal(signal.SIGINT)
        assert hurried.wait(10)
    assert signal.getsignal(signal.SIGTERM) is before
