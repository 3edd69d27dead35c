"""An arm that is only a file: joints that are at once where they are sent. Its driver is named in a robot's
file as `contracts.paper_arm`; the file tells it how hot it is, and shows whoever looks where it is."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ulna.drivers.arm import (
    ArmHealth,
    ArmState,
    DeviceError,
    Joints,
    Strain,
    check_first,
    check_target,
    limit_target,
)
from ulna.drivers.sample import Sample

N = 3
JOINTS = Joints(
    ("a", "b", "c"), ("rad",) * N, np.full(N, -2.0), np.full(N, 2.0), np.full(N, 4.0), np.full(N, 1.0)
)


@dataclass(frozen=True)
class Config:
    """The fields of `[arms.NAME]` with this driver."""

    file: str
    """A line is added for each command. The same with `.told` holds, in JSON, `heat_c`, `load`, `broken`,
    `stuck`, `silent`."""
    watchdog_s: float = 0.5
    """s"""


class PaperArm:
    def __init__(self, name: str, config: Config) -> None:
        self.name, self.joints, self._file = name, JOINTS, Path(config.file)
        self.watchdog_s, self.max_first_step = config.watchdog_s, 0.5
        self._q, self._seq = np.full(N, 0.3), 0
        self._state, self._first = ArmState.CLOSED, True

    def open(self) -> None:
        if self._told().get("broken"):
            raise DeviceError(f"{self.name} is torn")
        self._state = ArmState.TORQUE_OFF

    def close(self) -> None:
        self._write("closed")
        self._state = ArmState.CLOSED

    def read(self) -> Sample:
        now = time.monotonic_ns()
        self._seq += 1
        return Sample(self._q.copy(), now, now, self._seq, np.ones(N, bool))

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        target = check_target(target, self.joints)
        if self._state is not ArmState.ACTIVE:
            raise DeviceError(f"{self.name} is {self._state.value}: enable it")
        if self._told().get("silent"):
            raise DeviceError(f"{self.name} does not answer")
        if self._first:
            check_first(target, self._q, self.max_first_step, self.joints)
            self._first = False
        sent = limit_target(target, self._q, 1.0, self.joints)
        if not self._told().get("stuck"):
            self._q = sent
        self._write(sent.tolist())
        return sent

    def hold(self) -> None: ...

    def stop(self) -> None:
        self._state = ArmState.STOPPED

    def enable(self) -> None:
        self._state, self._first = ArmState.ACTIVE, True

    def disable(self) -> None:
        self._write("limp")
        self._state = ArmState.TORQUE_OFF

    def faults(self) -> tuple[str, ...]:
        return ()

    def health(self) -> ArmHealth:
        return ArmHealth(self._state, 0.0, 100.0)

    def strain(self) -> Strain:
        told = self._told()
        load = np.full(N, told.get("load", 0.0))
        return Strain(load, np.full(N, told.get("heat_c", 30.0)), np.full(N, 70.0))

    def _told(self) -> dict[str, float]:
        file = self._file.with_suffix(".told")
        return json.loads(file.read_text()) if file.exists() else {}

    def _write(self, what: object) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps([time.monotonic_ns(), what]) + "\n")


def make(name: str, config: Config) -> PaperArm:
    return PaperArm(name, config)


def robot_file(folder: Path, *arms: str, more: str = "") -> Path:
    """The file of a robot of such arms."""
    path = folder / "paper.toml"
    tables = "".join(
        f'[arms.{arm}]\ndriver = "contracts.paper_arm"\nfile = "{folder / arm}.log"\n' for arm in arms
    )
    path.write_text(f'name = "paper"\ncontrol_hz = 20.0\n{tables}{more}')
    return path


def tell(folder: Path, arm: str, **values: float) -> None:
    """What the arm is like from now on."""
    fresh = folder / f"{arm}.fresh"
    fresh.write_text(json.dumps(values))
    fresh.replace(folder / f"{arm}.told")


def sent(folder: Path, arm: str) -> list[tuple[int, object]]:
    """(When, what) for all that the driver was told, oldest first."""
    file = folder / f"{arm}.log"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(t, what) for t, what in map(json.loads, lines)]
