"""Numbers of a robot file: those that no robot can have, and how much a simulated one's scenes differ."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from ulna.drivers.arm import DeviceError
from ulna.drivers.cameras.capture import CaptureCamera
from ulna.robot.config import CONFIGS, load_robot, read_config
from ulna.sim.robots import ROBOTS

REAL = """
name = "bench"
control_hz = 50
home = [0.0, {home}]
[arms.arm]
driver = "ur"
watchdog_s = {watchdog}
ranges = [[0.0, {deep}]]
"""


@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("where", ["home", "watchdog", "deep"])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, where: str, value: str) -> None:
    path = tmp_path / "bench.toml"
    numbers = {"home": "0.0", "watchdog": "0.5", "deep": "1.0"}
    path.write_text(REAL.format(**{**numbers, where: value}))
    places = {"home": "home: 1", "watchdog": "arms: arm: watchdog_s", "deep": "arms: arm: ranges: 0: 1"}
    with pytest.raises(
        DeviceError, match=f"bench.toml: {places[where]} is .*no number that a robot can have"
    ):
        read_config(str(path))


@pytest.mark.parametrize("rate", ["nan", "inf", "0", "-1"])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: str) -> None:
    path = tmp_path / "sim.toml"
    path.write_text(f'name = "s"\ndriver = "sim"\nmodel = "so101"\ncontrol_hz = {rate}\n')
    with pytest.raises(DeviceError, match="control_hz is"):
        read_config(str(path))


def test_a_file_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    for text in ("a = " + "[" * 20_000 + "]" * 20_000, "[" + ".".join("a" * 5000) + "]\nb = 1"):
        path.write_text(text)
        with pytest.raises(DeviceError, match=r"is nested too deeply|is not TOML"):
            read_config(str(path))


def test_a_simulated_robot_s_file_says_how_much_its_scenes_differ(tmp_path: Path) -> None:
    text = (CONFIGS / "sim-so101.toml").read_text()
    file = tmp_path / "robot.toml"

    def cubes(randomisation: str) -> tuple[np.ndarray, dict[str, float]]:
        file.write_text(f"{text}\n[randomisation]\n{randomisation}\n")
        with load_robot(str(file), "lift") as rig:
            assert rig.sim is not None
            seen = []
            for seed in range(20):
                rig.sim.reset(seed)
                seen.append(rig.sim.task.observe()[:2])
            return np.array(seen), rig.sim.xi

    (whole, xi), (half, of_half) = cubes(""), cubes("spread = 0.5")
    centre = ROBOTS["so101"]().centre
    np.testing.assert_allclose(half - centre, 0.5 * (whole - centre), atol=1e-6)
    assert of_half == {**xi, "spread": 0.5}
    for wrong, sentence in (
        ("sprad = 0.5", "no randomisation of lift 'sprad': did you mean spread"),
        ("spread = -1", r"\[randomisation\]: spread is -1, it must be a number from 0"),
        ('spread = "wide"', "spread is 'wide', it must be a number"),
    ):
        with pytest.raises(DeviceError, match=sentence):
            cubes(wrong)


def test_a_camera_s_frames_are_no_older_than_the_file_allows(tmp_path: Path) -> None:
    path = tmp_path / "bench.toml"
    camera = (
        '[cameras.top]\ndriver = "opencv"\ndevice = "http://10.0.0.1"\nheight = 48\nwidth = 64\nfps = {}\n'
    )
    arm = 'name = "bench"\ncontrol_hz = 20\n[arms.arm]\ndriver = "ur"\nhost = "10.0.0.1"\n'
    path.write_text(arm + camera.format(30.0) + "[safety]\nstale_s = 0.3\n")
    (top,) = load_robot(str(path)).robot.cameras.values()
    assert isinstance(top, CaptureCamera)
    assert top.max_age_s == 0.3
    path.write_text(arm + camera.format(2.0))
    with pytest.raises(DeviceError, match=r"\[cameras.top\]: at 2 fps a frame is older than .*stale_s = 0.5"):
        load_robot(str(path))


@pytest.mark.parametrize(
    ("hz", "watchdog", "stale", "words"),
    [
        (20, 0.5, 0.5, ""),
        (2, 0.5, 0.5, "0.77 s, and is 0.5"),
        (2, 1.0, 1.0, ""),
        (20, 0.05, 0.5, "is 0.05"),
        (20, 0.5, 0.09, "is 0.09"),
    ],
)
def test_an_arm_is_patient_from_one_command_to_the_next(
    tmp_path: Path, hz: int, watchdog: float, stale: float, words: str
) -> None:
    path = tmp_path / "bench.toml"
    arm = f'[arms.a]\ndriver = "ur"\nhost = "10.0.0.1"\nwatchdog_s = {watchdog}\n'
    path.write_text(f'name = "bench"\ncontrol_hz = {hz}\n{arm}[safety]\nstale_s = {stale}\n')
    with pytest.raises(DeviceError, match=words) if words else contextlib.nullcontext():
        load_robot(str(path))
