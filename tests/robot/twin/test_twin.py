"""Twins of whole stations, and real robots from their files: `ulna twin`, `record`, `teleoperate` with the
real drivers in between."""

from __future__ import annotations

import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.twin import ask, twin

from ulna.datasets.reading.align import align
from ulna.datasets.store import EpisodeStore
from ulna.drivers.arm import ArmState, DeviceError
from ulna.drivers.cameras.capture import CaptureCamera
from ulna.drivers.servos import so101
from ulna.drivers.twins.mjpeg import MjpegTwin, wandering_bars
from ulna.drivers.twins.plant import Plant
from ulna.robot import config as robot_config
from ulna.robot.cli import main
from ulna.robot.config import load_leaders, load_robot, read_config
from ulna.robot.motion import go_to
from ulna.robot.twin.station import LIGHT_GRIP, Station, StationConfig, devices
from ulna.sim.scene import SimScene
from ulna.sim.twin import ScriptedHand, TwinArm
from ulna.sim.world import PHYSICS_HZ

pytestmark = pytest.mark.realtime


@pytest.fixture(scope="module")
def station() -> Iterator[dict[str, Any]]:
    with twin("so101", "--scene", "lift", "--leader", "--cameras", "front", "--fps", "10") as info:
        toml = Path(info["toml"])
        patient = toml.with_name("patient.toml")  # a busy machine may leave the twin's process standing
        patient.write_text(re.sub(r'(driver = "so101.*")', r"\1\nstale_s = 1.5", toml.read_text()))
        yield {**info, "toml": str(patient)}


def post(info: dict[str, Any], order: str, body: Any = None) -> dict[str, Any]:
    return ask(info, order, body if isinstance(body, bytes) else body or {}, timeout_s=10)


def test_an_episode_is_teleoperated_through_the_real_drivers(station: dict[str, Any], tmp_path: Path) -> None:
    words = ["record", "--robot", station["toml"], "--agent", "leader", "--episodes", "1"]
    assert main([*words, "--max-seconds", "4", "--out", str(tmp_path / "d")]) == 0
    (episode,) = EpisodeStore.open(tmp_path / "d").episodes
    q, action = episode.read("observation.state"), episode.read("action")
    # the bus is read at 100 Hz, the loop runs at 20
    assert len(q) > 1.5 * len(action)
    rows = align(episode.times_ns("action")[0], *episode.times_ns("observation.state"), 10**10)
    q = q[rows]
    assert np.ptp(q, axis=0).max() > 0.3, "the leader led"
    assert np.abs(action[5:] - q[5:]).max() < 1.0, "and the follower followed"
    assert episode.attrs["agent"] == "human leader"
    assert set(episode.attrs["calibration"]) >= {"arm"}, "the arm's calibration is kept with the episode"
    capture, receive = episode.times_ns("observation.images.front")
    assert (np.diff(capture) > 0).all()
    assert (capture <= receive).all()


def test_depth_is_recorded_beside_colour(tmp_path: Path) -> None:
    words = ("so101", "--scene", "lift", "--realsense", "front", "--image-size", "160x120", "--fps", "10")
    with twin(*words) as info, load_robot(info["toml"]) as rig:
        wait_for(lambda: bool(rig.robot.observe().values["observation.depth.front"].any()))
        observation = rig.robot.observe()
        depth = observation.values["observation.depth.front"]
        assert depth.shape == (120, 160)
        assert rig.robot.features["observation.depth.front"].units == ("mm",)
        assert 250 < np.median(depth[depth > 0]) < 3000, "the table stands half a metre away"
        assert observation.times_ns["observation.depth.front"][0] <= time.monotonic_ns()


def test_a_tracker_looks_through_its_camera_whichever_are_observed(
    station: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "robot.toml"
    with MjpegTwin(wandering_bars(120, 160), size=(120, 160), fps=10) as side:
        table = (
            f'[cameras.side]\ndriver = "opencv"\ndevice = "{side.url}"\n'
            "height = 120\nwidth = 160\nfps = 10.0\n"
        )
        path.write_text(Path(station["toml"]).read_text() + "\n" + table)
        with load_robot(str(path), cameras=["side"]) as rig:
            values = rig.robot.observe().values
            assert {k for k in values if "images" in k} == {"observation.images.side"}
            assert "cube.front.u" in rig.robot.features["observation.environment_state"].names
            assert values["observation.environment_state"].shape == (6,)
        with load_robot(str(path), cameras=["side"], trackers=False) as rig:
            assert set(rig.robot.observe().values) == {"observation.state", "observation.images.side"}


def test_the_arm_goes_home_and_holds_when_nobody_commands(station: dict[str, Any]) -> None:
    with load_robot(station["toml"]) as rig:
        assert rig.home is not None
        go_to(rig.robot, rig.home)
        time.sleep(1.0)  # the watchdog is at 0.5 s
        assert np.abs(rig.robot.observe().values["observation.state"] - rig.home).max() < 0.1
        (arm,) = rig.robot.arms.values()
        assert arm.health().state is ArmState.ACTIVE
        joints = rig.scene.state["joints"]  # type: ignore[union-attr]
        assert np.abs(np.array(list(joints.values())) - rig.home).max() < 0.1, "the ground truth agrees"
        far = rig.home.copy()
        far[0] = 1.5
        rig.robot.hold()
        arm.enable()
        with pytest.raises(DeviceError, match=r"shoulder_pan.*nothing was sent"):
            arm.command(far, time.monotonic_ns())


def test_faults_are_set_and_cleared_while_it_runs(station: dict[str, Any]) -> None:
    with load_robot(station["toml"]) as rig:
        (arm,) = rig.robot.arms.values()
        post(station, "faults", {"arm": {"unplugged": True}})
        wait_for(lambda: arm.health().state is ArmState.RECONNECTING)
        with pytest.raises(DeviceError):
            arm.command(arm.read().data, time.monotonic_ns())
        assert not np.any(arm.read().valid)
        post(station, "faults", {"arm": {"unplugged": False}})
        wait_for(lambda: bool(np.all(arm.read().valid)))
        assert arm.health().state is not ArmState.ACTIVE, "the torque is the user's to give back"
        with pytest.raises(DeviceError, match="enable"):
            arm.command(arm.read().data, time.monotonic_ns())
        arm.enable()
        arm.command(arm.read().data, time.monotonic_ns())


def test_the_control_channel_refuses_in_words(station: dict[str, Any]) -> None:
    for order, body, words in (
        ("faults", {"arm": {"drob": 0.1}}, "did you mean drop"),
        ("faults", {"elbow": {}}, "device of this twin"),
        ("faults", {"arm": 3}, "not iterable"),
        ("nonsense", {}, "POST reset"),
        ("reset", {"seed": "x"}, "invalid literal"),
        ("reset", {}, "reset needs 'seed'"),
        ("power-cycle", {"device": "leadr"}, "did you mean leader"),
        ("begin", [1], "must be a JSON object"),
        ("begin", b"{bad", "Expecting property name"),
        ("reset", b'{"seed": 1e999}', "1e999 is not finite"),
        ("reset", b'{"seed": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested more than 64 deep"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(station, order, body)
        assert words in refused.value.read().decode()
        refused.value.close()
    with pytest.raises(urllib.error.HTTPError) as refused:
        post({"control": station["control"].rpartition("/")[0] + "/wrong"}, "stop")
    assert refused.value.code == 404
    refused.value.close()


def test_the_same_seed_is_the_same_scene_and_the_arm_stays(station: dict[str, Any]) -> None:
    before = post(station, "reset", {"seed": 5})
    other = post(station, "reset", {"seed": 6})
    again = post(station, "reset", {"seed": 5})
    cube = ("cube.x", "cube.y", "cube.z")
    assert [before["observation"][c] for c in cube] == pytest.approx(
        [again["observation"][c] for c in cube], abs=1e-3
    )
    assert abs(before["observation"]["cube.x"] - other["observation"]["cube.x"]) > 1e-4
    assert list(before["joints"].values()) == pytest.approx(list(again["joints"].values()), abs=0.3)


def test_the_scripted_hand_grasps_at_its_first_attempt() -> None:
    """What it shows is learned from: a cube that slips out, or a hand that opens again half-way, would be
    learned, too. The arm follows the leader once a control period, and faster than time."""
    scene = SimScene("so101", "lift", [], (96, 96), 20.0, arm_type=TwinArm)
    arm, hand = scene.arms["arm"], ScriptedHand(scene, StationConfig.noise)
    assert isinstance(arm, TwinArm)
    plant, period, at_first = arm.plant, PHYSICS_HZ // 20, 0
    try:
        for seed in range(12):
            plant.position[:] = hand.plant.position[:] = plant.goal[:] = arm.robot.home
            plant.torque[:] = 1
            plant.max_effort[-1] = so101.STALL_TORQUE * LIGHT_GRIP["gripper_torque"] / 1000
            hand.rest()
            scene.reset(seed)
            hand.begin(seed)
            attempts, closed, start, goal = 0, False, plant.goal.copy(), plant.goal.copy()
            for step in range(10 * PHYSICS_HZ):
                if step % period == 0:
                    if scene.success():
                        break
                    start, goal = goal, hand.plant.position.copy()
                    attempts += goal[-1] < 0.45 and not closed
                    closed = goal[-1] < 0.45
                plant.goal[:] = start + (step % period + 1) / period * (goal - start)
                scene.world.step()
                hand.step()
            at_first += scene.success() and attempts == 1
    finally:
        arm.close()
        hand.plant.remove()
        scene.close()
    assert at_first >= 11


def test_a_twin_leaves_nothing_behind(tmp_path: Path) -> None:
    station = Station(StationConfig("koch", "reach", ["front"]), tmp_path)
    shared = [station.world.arm.plant.path, *(ring.path for ring in station.rings.values())]
    assert all(path.exists() for path in shared)
    pids = [child.pid for child in station.children.values()]
    runner = threading.Timer(0.5, station.stop)
    runner.start()
    with station:
        station.run()
    assert not [path for path in shared if path.exists()]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_twin_that_ends_while_it_is_asked_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody steps the world, so that the question waits; and those after it find nobody there."""
    answers: list[str] = []

    def wait(url: str) -> None:
        try:
            urllib.request.urlopen(f"{url}/state", timeout=10)
        except urllib.error.HTTPError as error:
            answers.append(f"{error.code} {error.read().decode()}")

    with Station(StationConfig("koch", "reach"), tmp_path) as station:
        asking = [threading.Thread(target=wait, args=(station.info["control"],)) for _ in range(2)]
        for thread in asking:
            thread.start()
        while station.world._requests.qsize() < len(asking):
            time.sleep(0.05)
    for thread in asking:
        thread.join()
    assert len(answers) == 2
    assert all(answer.startswith("400") and "the twin has ended" in answer for answer in answers)
    assert not re.search("Traceback|ERROR", capfd.readouterr().err)
    with pytest.raises(DeviceError, match="has ended"):
        station.world.state()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (StationConfig("so1001"), "did you mean so101"),
        (StationConfig(task="lfit"), "did you mean lift"),
        (StationConfig(cameras=["fornt"]), "did you mean front"),
        (StationConfig("ur5e", hand=True), "no leader for the twin ur5e: so101 and koch have one"),
        (StationConfig(faults={"arm": {"protective_stop": True}}), "no fault 'protective_stop'"),
        (StationConfig(faults={"leader": {"drop": 0.1}}), "device of this twin: 'leader'"),
        (StationConfig("so101-leader", faults={"arm": {}}), "device of this twin: 'arm'"),
    ],
)
def test_a_twin_that_cannot_be_leaves_nothing_behind_either(
    config: StationConfig, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []

    def create(*options: Any, of: Any = Plant.create) -> Plant:
        plant = of(*options)
        paths.append(plant.path)
        return plant

    monkeypatch.setattr(Plant, "create", create)
    with pytest.raises(DeviceError, match=words):
        Station(config, tmp_path / "twin")
    assert not (tmp_path / "twin").exists()
    assert not [path for path in paths if path.exists()]


def test_a_ur_twin_may_begin_with_its_own_faults() -> None:
    assert devices(StationConfig("ur5e", faults={"arm": {"protective_stop": True}})) == ("arm",)


def test_a_camera_whose_power_is_cycled_comes_back(station: dict[str, Any]) -> None:
    with load_robot(station["toml"]) as rig:
        camera = rig.robot.cameras["front"]
        assert isinstance(camera, CaptureCamera)
        assert post(station, "power-cycle", {"device": "front"}) == {"ok": True}
        wait_for(lambda: camera.reconnects == 1)


ARM = '[arms.arm]\ndriver = "so101"\nport = "/dev/ttyNONE"\ncalibration = "c.json"\n'
LEADER = '[leaders.arm]\ndriver = "so101-leader"\nport = "/dev/ttyNONE2"\ncalibration = "l.json"\n'
HEAD = 'name = "x"\ncontrol_hz = 20.0\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + ARM + "prot = 1\n", "did you mean port"),
        (HEAD + ARM + "watchdog_s = 500\n", "0.05..5 s"),
        (HEAD + ARM + "watchdog_ms = 500\n", "did you mean watchdog_s"),
        (HEAD + ARM + 'bus_hz = "fast"\n', "of type float"),
        (HEAD + ARM.replace("so101", "so-101"), "did you mean so101"),
        (HEAD + ARM.replace('port = "/dev/ttyNONE"\n', ""), "lacks port"),
        (HEAD + ARM + ARM.replace("arms.arm", "arms.other"), "give each its own"),
        (HEAD + ARM + '[leaders.amr]\ndriver = "so101-leader"\n', "did you mean arm"),
        (HEAD + "home = [0.0]\n" + ARM, "home is"),
        (HEAD + "home = [nan, 0.0, 0.0, 0.0, 0.0, 0.0]\n" + ARM, "home: 0 is nan, which is no number"),
        (HEAD + "home = [1" + 400 * "0" + ", 0.0, 0.0, 0.0, 0.0, 0.0]\n" + ARM, "home is"),
        (HEAD + ARM + "bus_hz = 1" + 400 * "0" + "\n", r"bus_hz is inf, it must be finite"),
        (HEAD + ARM + "bus_hz = 1" + 5000 * "0" + "\n", "is not TOML"),
        (HEAD + ARM + LEADER + "prot = 1\n", "did you mean port"),
        (HEAD + ARM + LEADER.replace("so101-l", "so101_l"), "did you mean so101-leader"),
        (HEAD + ARM + "[teleoperators.gampad]\nspeed_m_s = 1.0\n", "did you mean gamepad"),
        (HEAD + ARM + "[teleoperators.gamepad]\nspeed_m_s = 9.0\n", "must lie in 0.005..2 m/s"),
        (HEAD + ARM + "[teleoperators]\ngamepad = 3\n", r"\[teleoperators.gamepad\] must be a table"),
        (HEAD + ARM + '[teleoperators.spacemouse]\ndead_man = "right"\n', "must be left or none"),
        (HEAD + "home = [9.0, 0.0, 0.0, 0.0, 0.0, 0.0]\n" + ARM, "limits of shoulder_pan"),
        (HEAD + ARM + '[trackers.cube]\ndriver = "colour"\ncameras = ["front"]\n', "camera for"),
        (HEAD + "[arms]\n", "at least one arm"),
        (HEAD + ARM + '[scene]\ndriver = "twin"\nurl = "http://elsewhere.example/x"\n', "on this computer"),
    ],
)
def test_a_wrong_robot_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "robot.toml"
    path.write_text(text)
    with pytest.raises(DeviceError, match=words):
        load_robot(str(path))


@pytest.mark.parametrize("name", ["so101", "koch", "ur5e"])
def test_the_example_files_are_right_but_for_their_ports(name: str) -> None:
    path = Path(robot_config.__file__).parent / "configs" / f"{name}.toml"
    rig = load_robot(str(path))
    assert len(rig.robot.features["action"].names) == 6
    with pytest.raises(DeviceError), rig:  # nothing of it is plugged in here
        pass


def test_what_a_robot_lacks_is_said(tmp_path: Path) -> None:
    path = tmp_path / "robot.toml"
    path.write_text(HEAD + ARM)
    assert read_config(str(path))["arms"]["arm"]["driver"] == "so101"
    with pytest.raises(DeviceError, match=r"add a table \[leaders.arm\]"):
        load_leaders(str(path))
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(DeviceError, match=r"ttyNONE|calibration"), load_robot(str(path)):
        pass


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
