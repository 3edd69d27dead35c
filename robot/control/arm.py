"""An arm whose driver lives in a control process: the contract of `drivers.arm.Arm` over shared memory and
orders."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...drivers.arm import Arm, ArmHealth, ArmState, Calibrated, DeviceError, Joints, check_target, falls
from ...drivers.sample import Backlog, Sample
from .host import Host
from .memory import Words, invalid

SILENT_S = 0.5  # without a tick of the control process a reading is not valid any more


class ControlledArm:
    """The arm `name` of `host`. `close` puts it down first."""

    def __init__(self, name: str, host: Host) -> None:
        driver = host.drivers[name]
        self.name, self.host = name, host
        self.joints: Joints = driver.joints  # of the model; from `open` on within the calibrated ranges
        self.watchdog_s, self.max_first_step = driver.watchdog_s, driver.max_first_step
        self.falls = falls(driver)
        self._index = list(host.drivers).index(name)
        self._is_open = False
        self._info: dict[str, Any] = {}

    def open(self) -> None:
        if self._is_open:
            return
        self._info = self.host.open(self.name)
        joints = self._info["joints"]
        bounds = ("lower", "upper", "max_velocity", "max_effort")
        self.joints = replace(self.joints, **{f: np.array(joints[f]) for f in bounds})
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self.host.close(self.name)

    def enable(self) -> None:
        self.host.enable(self.name)

    def disable(self) -> None:
        self.host.disable(self.name)

    def read(self) -> Sample:
        memory = self.host.memory
        sample = None if memory is None else memory.arms[self._index].sample()
        if memory is None or sample is None:
            raise DeviceError(f"{self.name} was never open: open it before reading")
        if not self._is_open or self.host.down or memory.silent_s(Words.CONTROL) > SILENT_S:
            return invalid(sample)
        return sample

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        target = check_target(target, self.joints)
        sent, _, _ = self.host.command({self.name: target}, t_target_ns)
        return sent[self.name]

    def hold(self) -> None:
        if self._is_open:
            with contextlib.suppress(DeviceError):  # without a control process its motors hold it
                self.host.hold([self.name])

    def stop(self) -> None:
        if self._is_open:
            self.host.stop([self.name])

    def faults(self) -> tuple[str, ...]:
        return self._health()[1]

    def health(self) -> ArmHealth:
        return self._health()[0]

    def _health(self) -> tuple[ArmHealth, tuple[str, ...]]:
        memory = self.host.memory
        if memory is None or not self._is_open:
            return ArmHealth(ArmState.CLOSED, float("inf"), 0.0), ()
        health, faults = memory.arms[self._index].health()
        if self.host.down:
            down = self.host.down
            return replace(health, state=ArmState.RECONNECTING, rate_hz=0.0, message=down), (down,)
        return health, faults


class _Marked:
    """Its positions depend on a calibration."""

    _info: dict[str, Any]

    @property
    def calibration(self) -> Mapping[str, Mapping[str, int]]:
        return self._info["calibration"]


class _Kept:
    """Its older readings are kept."""

    host: Host
    _index: int

    def since(self, after_seq: int) -> list[Sample]:
        """Its readings of about the last second with a seq above `after_seq`, oldest first."""
        memory = self.host.memory
        return [] if memory is None else memory.arms[self._index].since(after_seq)


class _CalibratedArm(_Marked, ControlledArm): ...


class _KeptArm(_Kept, ControlledArm): ...


class _CalibratedKeptArm(_Marked, _Kept, ControlledArm): ...


# by whether the driver is `Calibrated`, and whether it is a `Backlog`
_KINDS: dict[tuple[bool, bool], type[ControlledArm]] = {
    (False, False): ControlledArm,
    (True, False): _CalibratedArm,
    (False, True): _KeptArm,
    (True, True): _CalibratedKeptArm,
}


def controlled(host: Host) -> dict[str, Arm]:
    """The arms of `host`, closed, by name."""
    return {
        name: _KINDS[isinstance(driver, Calibrated), isinstance(driver, Backlog)](name, host)
        for name, driver in host.drivers.items()
    }
