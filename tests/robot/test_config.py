"""Numbers of a robot file that no robot can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from ulna.drivers.arm import DeviceError
from ulna.robot.config import read_config

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
