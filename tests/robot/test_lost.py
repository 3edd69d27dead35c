"""Devices that are lost in an episode: it ends, what was recorded of it is kept, and the session goes on."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from contracts.servo_arm import bench, until

from ulna.datasets.store import EpisodeStore
from ulna.drivers.arm import ArmState, CommandRefused, DeviceError
from ulna.drivers.camera import StaleFrame
from ulna.drivers.twins.mjpeg import MjpegTwin, wandering_bars
from ulna.robot.agent import HoldAgent
from ulna.robot.config import Rig, load_robot
from ulna.robot.keys import Keys
from ulna.robot.lost import is_loss, without_torque
from ulna.robot.people import LeaderFar
from ulna.robot.record import RecordResult, record

pytestmark = pytest.mark.realtime

SIZE = (120, 160)


@contextlib.contextmanager
def cell(tmp_path: Path) -> Iterator[tuple[Rig, object, MjpegTwin]]:
    """An SO-101 and a camera, both twins: the open robot, the faults of its bus, the camera."""
    with bench("so101", tmp_path) as b, MjpegTwin(wandering_bars(*SIZE), 20.0, SIZE) as camera:
        (tmp_path / "robot.toml").write_text(
            'name = "cell"\ncontrol_hz = 20.0\n'
            f'[arms.arm]\ndriver = "so101"\nport = "{b.link}"\ncalibration = "{b.calibration}"\n'
            "stale_s = 1.5\n"
            f'[cameras.front]\ndriver = "opencv"\ndevice = "{camera.url}"\n'
            f"height = {SIZE[0]}\nwidth = {SIZE[1]}\nfps = 20.0\n"
        )
        with load_robot(str(tmp_path / "robot.toml")) as rig:
            yield rig, b.twin.faults, camera


class Watched(HoldAgent):
    """Tells at its tenth tick of the first episode. seeds: of the episodes."""

    def __init__(self, at_ten: Callable[[], None]) -> None:
        self.at_ten, self.seeds, self.ticks = at_ten, list[int](), 0

    def reset(self, task: str, seed: int) -> None:
        super().reset(task, seed)
        self.seeds.append(seed)

    def act(self, observation: object) -> np.ndarray:
        self.ticks += 1
        if self.ticks == 10:
            self.at_ten()
        return super().act(observation)  # type: ignore[arg-type]


def take(rig: Rig, agent: Watched, out: Path, keys: Keys | None = None) -> RecordResult:
    return record(rig, agent, out, 2, task="x", max_seconds=2.0, reset_seconds=0.1, keys=keys)


def check(store: EpisodeStore, agent: Watched, words: str) -> None:
    """The first of three episodes broke off, with what came until then."""
    broken, *whole = store.episodes
    assert words in broken.attrs["interrupted"]
    assert broken.rows("action") >= 9
    assert [e.interrupted for e in whole] == [False, False]
    assert [e.rows("action") for e in whole] == [40, 40]
    assert [e.attrs["seed"] for e in store.episodes] == agent.seeds == [0, 1, 2]


@pytest.mark.parametrize("device", ["camera", "arm"])
def test_the_session_outlives_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    name, screen = "front" if device == "camera" else "arm", io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with cell(tmp_path) as (rig, bus, camera):
        faults = camera.faults if device == "camera" else bus

        def plug_in_again() -> None:
            until(lambda: f"waiting for {name} (" in screen.getvalue(), "it is said", 60)
            faults.unplugged = False  # type: ignore[attr-defined]

        helper = threading.Thread(target=plug_in_again)

        def unplug() -> None:
            faults.unplugged = True  # type: ignore[attr-defined]
            helper.start()

        agent = Watched(unplug)
        result = take(rig, agent, tmp_path / "d")
        helper.join()
    assert result.episodes == 2
    check(EpisodeStore.open(tmp_path / "d"), agent, name)
    assert "the episode broke off: what was recorded of it is kept" in screen.getvalue()
    assert f"{name} back" in screen.getvalue()
    assert ("gets its torque again" in screen.getvalue()) is (device == "arm")


def test_a_person_gives_the_torque_back_or_quits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    terminal, file = os.openpty()
    with cell(tmp_path) as (rig, bus, _), Keys(file) as keys:
        (arm,) = rig.robot.arms.values()
        states: list[ArmState] = []

        def person() -> None:
            until(lambda: arm.health().state is ArmState.RECONNECTING, "it is noticed")
            bus.unplugged = False  # type: ignore[attr-defined]
            until(lambda: arm.health().state is not ArmState.RECONNECTING, "it is back")
            time.sleep(0.3)
            states.append(arm.health().state)
            while arm.health().state is not ArmState.ACTIVE:
                os.write(terminal, b"\n")
                time.sleep(0.2)
            until(lambda: len(agent.seeds) == 1, "the next one waits for a person, too")
            os.write(terminal, b"q")

        helper = threading.Thread(target=person)

        def unplug() -> None:
            bus.unplugged = True  # type: ignore[attr-defined]
            helper.start()

        agent = Watched(unplug)
        result = take(rig, agent, tmp_path / "d", keys)
        helper.join()
    os.close(terminal)
    os.close(file)
    assert states != [ArmState.ACTIVE], "nobody had pressed enter yet"
    assert "press enter to give arm torque again" in capfd.readouterr().err
    assert result.episodes < 2
    assert EpisodeStore.open(tmp_path / "d").episodes[0].interrupted


def test_a_servo_that_was_silent_for_a_moment_was_lost(tmp_path: Path) -> None:
    """It may answer again before anybody asks why the command was refused."""
    with cell(tmp_path) as (rig, bus, _):
        robot = rig.robot
        (arm,) = robot.arms.values()
        q, refusals = arm.read().data, list[CommandRefused]()

        def is_refused() -> bool:
            try:
                robot.command(q)
            except CommandRefused as error:
                refusals.append(error)
            return bool(refusals)

        assert not is_refused()
        bus.dead = (3,)  # type: ignore[attr-defined]
        until(is_refused, "a command is refused", 20)
        bus.dead = ()  # type: ignore[attr-defined]
        until(lambda: not robot.troubles() and not without_torque(robot), "all is well again", 20)
        assert is_loss(refusals[0], robot, began=True)
        assert not is_loss(refusals[0], robot, began=False)


def test_what_is_no_lost_device_ends_the_session(tmp_path: Path) -> None:
    def refuse() -> None:
        raise DeviceError("the leader is too far away")

    with load_robot("sim:so101", "reach") as rig, pytest.raises(DeviceError, match="too far away"):
        record(rig, Watched(refuse), tmp_path / "d", 2)
    (episode,) = EpisodeStore.open(tmp_path / "d").episodes
    assert "too far away" in episode.attrs["interrupted"]


def test_what_a_person_must_mend_after_a_loss_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that is far from where the arm fell to, say: told, and tried again, but not for ever."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)

    class FarAway(Watched):
        refusals = 0

        def act(self, observation: object) -> np.ndarray:
            if self.ticks >= 10 and self.refusals < 2:
                self.refusals += 1
                raise DeviceError("bring the leader nearer")
            return super().act(observation)

    def lose() -> None:
        raise StaleFrame("camera front has no frame")

    agent = FarAway(lose)
    with load_robot("sim:so101", "reach") as rig:
        rig.sim.max_seconds = 0.5  # type: ignore[union-attr]
        assert record(rig, agent, tmp_path / "d", 2).episodes == 2
        assert screen.getvalue().count("bring the leader nearer") == 2
        agent.ticks, agent.refusals = 0, -9
        with pytest.raises(DeviceError, match="bring the leader nearer"):
            record(rig, agent, tmp_path / "e", 2)


def test_a_leader_that_is_too_far_is_waited_for_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scripted hand of a twin, or a person, may be further on when the loop reads it first."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)

    class LedFromFar(HoldAgent):
        refusals = 0

        def act(self, observation: object) -> np.ndarray:
            if self.refusals > 0:
                self.refusals -= 1
                raise LeaderFar("bring the leader nearer")
            return super().act(observation)  # type: ignore[arg-type]

    agent = LedFromFar()
    with load_robot("sim:so101", "reach") as rig:
        rig.sim.max_seconds = 0.2  # type: ignore[union-attr]
        agent.refusals = 2
        assert record(rig, agent, tmp_path / "d", 2, reset_seconds=0.01).episodes == 2
        assert screen.getvalue().count("the episode does not begin: bring the leader nearer") == 2
        agent.refusals = 99
        with pytest.raises(LeaderFar):
            record(rig, agent, tmp_path / "d", 1, reset_seconds=0.01)
    assert [e.attrs["seed"] for e in EpisodeStore.open(tmp_path / "d").episodes] == [0, 1]
