"""The servos of one arm on their bus, in radians: their identity, positions, goals and torque.

No thread and no decisions: `drivers.servos.servo_arm` decides, this module translates that into registers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..arm import DeviceError, Joints
from . import dynamixel_registers, feetech_protocol
from .bus import COUNTS_PER_TURN, BusError, ServoBus
from .calibration import Scale, check_servos, load, scale

PATIENCE_S = 1.0  # for an answer that must come: a busy computer misses many deadlines of a few ms in a row
COUNTS_TURNS = 0x10  # Feetech register "phase": positions are not kept within one turn
FACTORY_AREA = 80  # Feetech: maximum_acceleration and others, behind the measured values
POSITION_MODE, MOST_IN_POSITION_MODE = 3, 1024  # Dynamixel, e-Manual on homing_offset
BESIDE_RANGE = 0.2  # rad: further outside its calibrated range no joint can stand
# Counts, 1.4 degrees. A Feetech servo reaches its goal within one turn of its count (0..4095), never across
# the end of that turn. This near to the end a little sag would send the joint all the way round.
SEAM = 16


@dataclass(frozen=True)
class Servo:
    """id: on the bus. model: the model number that must answer there. full_load: what its load register reads
    when it pushes as hard as it may for long. setup: values that registers must hold before torque goes
    on."""

    id: int
    model: int
    full_load: int = 1000
    setup: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """What differs between makes. protocol: feetech or dynamixel. models: names by model number. load: the
    register with the motor's load or current. bauds: value of the register baud_rate by speed, bit/s.
    factory_baud: at which a new servo answers, with the id 1. supply: registers with the lowest and highest
    supply that it takes, 0.1 V. hottest: the register with the temperature, °C, at which it switches itself
    off. wakes: a goal switches the torque on, so a goal
    may be sent only to a servo whose torque is known to be on."""

    protocol: str
    models: Mapping[int, str]
    load: str
    bauds: Mapping[int, int]
    factory_baud: int
    supply: tuple[str, str]
    hottest: str
    wakes: bool = False


# factory speeds: Feetech's STS3215 table; Robotis e-Manual, XL330-M288 and XL430-W250
FEETECH = Family(
    "feetech",
    feetech_protocol.MODELS,
    "present_load",
    {baud: value for value, baud in enumerate(feetech_protocol.BAUDS)},
    1_000_000,
    ("min_voltage", "max_voltage"),
    "max_temperature",
    wakes=True,
)
DYNAMIXEL = Family(
    "dynamixel",
    dynamixel_registers.MODELS,
    "present_current",
    {baud: value for value, baud in dynamixel_registers.BAUD_RATES.items()},
    57_600,
    ("min_voltage_limit", "max_voltage_limit"),
    "temperature_limit",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """position: `(J,)` rad. load: `(J,)`, with the joint's sign, 1 is the full load. answered: `(J,)` bool,
    where false the other values mean nothing. errors: `(J,)` int64, status bytes. torque: `(J,)` bool, from
    the same replies; None when it was not read. t_request_ns, t_receive_ns: monotonic."""

    position: np.ndarray
    load: np.ndarray
    answered: np.ndarray
    errors: np.ndarray
    torque: np.ndarray | None
    t_request_ns: int
    t_receive_ns: int


class ServoGroup:
    """J servos behind J joints. Methods talk to the bus; they raise `BusError` with `gone` when the port goes
    away."""

    def __init__(
        self,
        bus: ServoBus,
        family: Family,
        joints: Joints,
        servos: Sequence[Servo],
        calibration: str | Path,
        ends: Sequence[str] = ("gripper",),
    ) -> None:
        self.bus, self.family, self.servos = bus, family, tuple(servos)
        self.model_joints, self.joints, self.path, self.ends = joints, joints, calibration, tuple(ends)
        self.ids = tuple(s.id for s in servos)
        self._full = np.array([s.full_load for s in servos], np.float64)
        self._turns = np.zeros(len(servos), np.int64)
        self.scale: Scale | None = None

    def open(self) -> None:
        """Read the calibration, open the port, and check that these are the servos; nothing is written.
        DeviceError: a file, port or servo is not as it must be."""
        inverted_in_servo = self.family.protocol == "dynamixel"
        ids = dict(zip(self.model_joints.names, self.ids, strict=True))
        self.calibration = load(self.path, ids, self.family.protocol)
        self.scale = scale(self.calibration, self.model_joints, self.ends, inverted_in_servo)
        # what the arm cannot reach is no target either
        self.joints = replace(self.model_joints, lower=self.scale.lower, upper=self.scale.upper)
        self.bus.open()
        try:
            self.identify()
        except BaseException:
            self.bus.close()
            raise

    def name(self, j: int) -> str:
        return f"{self.joints.names[j]} (servo {self.ids[j]})"

    def identify(self) -> None:
        """DeviceError unless every servo answers, is of the right model, and holds the calibration's
        offsets."""
        self.check_models()
        self.check_calibration()

    def check_models(self) -> None:
        models = self._ping_all()
        silent = [self.name(j) for j, model in enumerate(models) if model is None]
        if len(silent) == len(models):
            why = self.bus.explain_silence(self.ids)
            raise DeviceError(f"no servo answers on {self.bus.port}: {why}")
        if silent:
            raise DeviceError(
                f"{', '.join(silent)} on {self.bus.port} does not answer: check its cable, and that its id "
                "was set"
            )
        for j, (model, servo) in enumerate(zip(models, self.servos, strict=True)):
            if model != servo.model:
                raise DeviceError(
                    f"{self.name(j)} on {self.bus.port} is a {self._model(model)}, but must be a "
                    f"{self._model(servo.model)}: is this the right arm (a leader and a follower may "
                    "differ), or was the wrong servo put in?"
                )

    def check_calibration(self) -> None:
        offsets = self.values("homing_offset")
        modes = None
        if self.family.protocol == "dynamixel":
            modes = self._by_joint(self.values("drive_mode") & 1)
            one_turn = self.values("operating_mode") == POSITION_MODE
            wrong = one_turn & (np.abs(offsets) > MOST_IN_POSITION_MODE)
            why = "holds a homing offset of more than a quarter turn, which it ignores in its position mode"
        else:
            wrong = (self.values("phase") & COUNTS_TURNS) != 0
            why = (
                "is set to count turns (bit 4 of its phase register), so that its angle changes with "
                "each power-up"
            )
        for j in np.flatnonzero(wrong):
            raise DeviceError(
                f"{self.name(int(j))} {why}: calibrate the arm again (ulna calibrate), which mends that"
            )
        check_servos(self.calibration, self._by_joint(offsets), modes, str(self.path))

    def _by_joint(self, values: np.ndarray) -> dict[str, int]:
        return dict(zip(self.joints.names, values.tolist(), strict=True))

    def _ping_all(self) -> list[int | None]:
        models: list[int | None] = [None] * len(self.ids)
        for _ in _tries():
            models = [m if m is not None else self.bus.ping(i) for m, i in zip(models, self.ids, strict=True)]
            if None not in models:
                break
        return models

    def _model(self, number: int | None) -> str:
        return f"{self.family.models.get(number or 0, 'servo of an unknown model')} (model number {number})"

    def values(self, register: str, which: Sequence[int] | None = None) -> np.ndarray:
        """What `register` holds in the servos of the joints `which` (default all), `(N,)` int64. BusError
        names a joint that does not answer."""
        joints = np.arange(len(self.ids)) if which is None else np.array(which, np.int64)
        values, remaining = np.zeros(len(joints), np.int64), np.arange(len(joints))
        for _ in _tries():
            replies = self.bus.read([register], [self.ids[j] for j in joints[remaining]])
            values[remaining[replies.valid]] = replies.values[replies.valid, 0]
            remaining = remaining[~replies.valid]
            if not len(remaining):
                return values
        silent = self.name(int(joints[remaining[0]]))
        raise BusError(f"{silent} on {self.bus.port} did not answer when asked for its {register}")

    def write(self, register: str, j: int, value: int) -> None:
        """Write to the servo of joint `j` and wait for its confirmation. BusError: it does not take the
        value."""
        refusal: BusError | None = None
        for _ in _tries():
            try:
                return self.bus.write_checked(register, self.ids[j], value)
            except BusError as error:
                refusal = error
                if error.gone:
                    break
        assert refusal is not None
        raise refusal

    def read_all(self) -> Reading:
        """A reading in which every joint answered, with its torque. DeviceError names a joint that does not
        answer."""
        silent = ""
        for _ in _tries():
            reading = self.read()
            if reading.answered.all():
                return reading if reading.torque is not None else replace(reading, torque=self.torque())
            silent = self.name(int(np.argmin(reading.answered)))
        raise DeviceError(f"{silent} on {self.bus.port} does not answer any more: check its cable")

    def read(self, retries: int = 1) -> Reading:
        """One exchange with all joints. Its `torque` is None unless goals switch the torque on (`wakes`)."""
        assert self.scale is not None, "open comes first"
        registers = ["present_position", self.family.load, *["torque_enable"] * self.family.wakes]
        replies = self.bus.read(registers, self.ids, retries=retries)
        counts, loads, *torque = replies.values.T
        turns = self.scale.turns(counts)
        self._turns = np.where(replies.valid, turns, self._turns)
        position = self.scale.radians(counts - turns * COUNTS_PER_TURN)
        errors = np.where(replies.valid, replies.errors, 0)
        return Reading(
            position,
            loads / self._full * np.sign(self.scale.rad_per_count),  # as a joint turns, not as its servo does
            replies.valid,
            errors,
            torque[0] != 0 if torque else None,
            replies.t_request_ns,
            replies.t_receive_ns,
        )

    def temperatures(self) -> tuple[np.ndarray, np.ndarray]:
        """(°C `(J,)`; which joints answered `(J,)` bool), from one exchange without retries."""
        replies = self.bus.read(["present_temperature"], self.ids, retries=0)
        return replies.values[:, 0].astype(np.float64), replies.valid

    def send(self, goal: np.ndarray, which: np.ndarray) -> None:
        """Send `goal` `(J,)` rad to the joints where `which` `(J,)` is true. No servo confirms it."""
        counts = self._goal_counts(goal)
        values = {self.ids[j]: int(counts[j]) for j in np.flatnonzero(which)}
        if values:
            self.bus.write("goal_position", values)

    def _goal_counts(self, goal: np.ndarray) -> np.ndarray:
        assert self.scale is not None, "open comes first"
        counts = self.scale.counts(goal) + self._turns * COUNTS_PER_TURN  # in the servo's own count of turns
        if self.family.protocol == "feetech":  # not across the end of its turn
            return np.clip(counts, SEAM, COUNTS_PER_TURN - 1 - SEAM)
        return counts

    def prepare(self) -> None:
        """Write the servos' `setup` where it differs. DeviceError: a register in EEPROM must change, for
        which the torque must be off first."""
        for register in dict.fromkeys(r for s in self.servos for r in s.setup):
            which = [j for j, s in enumerate(self.servos) if register in s.setup]
            expected = np.array([self.servos[j].setup[register] for j in which])
            different = [which[k] for k in np.flatnonzero(self.values(register, which) != expected)]
            for j in different:
                if self.bus.registers[register].eeprom and self.values("torque_enable", [j])[0]:
                    raise DeviceError(
                        f"{self.name(j)} must get another {register}, which it takes only without torque: "
                        "support the arm, call disable(), then enable()"
                    )
                self.write_setting(register, j, self.servos[j].setup[register])

    def write_setting(self, register: str, j: int, value: int) -> None:
        """Write one register, with EEPROM unlocked where needed, and read it back. BusError: the servo does
        not take it."""
        r = self.bus.registers[register]
        # Feetech does not say whether the lock guards its factory area too
        locked = "lock" in self.bus.registers and (r.eeprom or r.address >= FACTORY_AREA)
        if locked:
            self.write("lock", j, 0)
        try:
            self.write(register, j, value)
        finally:
            if locked:
                self.write("lock", j, 1)
        if (now := int(self.values(register, [j])[0])) != value:
            raise BusError(f"{self.name(j)} did not take {value} for its {register}: it says {now}")

    def torque(self) -> np.ndarray:
        """Which joints have torque, `(J,)` bool. BusError names a joint that does not answer."""
        return self.values("torque_enable") != 0

    def torque_now(self) -> tuple[np.ndarray, np.ndarray]:
        """Which joints have torque and which answered, both `(J,)` bool, from one exchange without
        retries."""
        replies = self.bus.read(["torque_enable"], self.ids, retries=0)
        return replies.values[:, 0] != 0, replies.valid

    def standing(self, which: Sequence[int]) -> Reading:
        """A reading of all joints, if the joints `which` may have torque where they stand. Nothing is
        written. DeviceError: a servo is silent, faulty or out of its range."""
        assert self.scale is not None, "open comes first"
        reading = self.read_all()
        counts = self.scale.counts(reading.position)
        for j in which:
            beyond = abs(reading.position[j] - self.scale.at_rad[j]) - self.scale.reach[j]
            mend = "move it into its range by hand, or calibrate the arm again (ulna calibrate)"
            if beyond > BESIDE_RANGE:
                raise DeviceError(
                    f"{self.name(j)} stands at {reading.position[j]:.2f} rad, {beyond:.2f} outside its "
                    f"calibrated range: the torque stays off; {mend}"
                )
            if self.family.protocol == "feetech" and not SEAM <= counts[j] < COUNTS_PER_TURN - SEAM:
                raise DeviceError(
                    f"{self.name(j)} stands where its servo's count of one turn ends ({counts[j]} of "
                    f"0..{COUNTS_PER_TURN - 1}), and might go all the "
                    f"way round: the torque stays off; {mend}"
                )
        if wrong := self.explain(reading.errors):
            raise DeviceError(f"the torque stays off: {'; '.join(wrong)}")
        return reading

    def torque_on(self, position: np.ndarray, which: Sequence[int]) -> Reading:
        """Set the goals of the joints `which` to `position` `(J,)` rad, where they stand, then their torque
        on; both are read back. Returns a reading after that. DeviceError: a joint did not follow; others may
        have torque then."""
        counts = self._goal_counts(position)
        for j in which:
            self.write("goal_position", j, int(counts[j]))
        goals = self.values("goal_position")
        for j in which:
            if abs(goals[j] - counts[j]) > 2:
                raise DeviceError(f"{self.name(j)} took {goals[j]} for its goal instead of {counts[j]}")
        for j in which:
            self.write("torque_enable", j, 1)
        on = self.torque()
        for j in which:
            if not on[j]:
                raise DeviceError(f"{self.name(j)} did not switch its torque on: cycle the arm's power")
        return self.read_all()

    def torque_off(self, which: Sequence[int] | None = None) -> list[int]:
        """Switch the torque of the joints `which` (default all) off. Returns the joints that do not confirm
        it. A servo that does not answer keeps no other one from switching off."""
        remaining = list(range(len(self.ids)) if which is None else which)
        for _ in _tries():
            self.bus.write("torque_enable", {self.ids[j]: 0 for j in remaining})
            for j in remaining:
                # a faulty servo may take it and complain all the same; a port that is gone raises below
                with contextlib.suppress(BusError):
                    self.bus.write_checked("torque_enable", self.ids[j], 0)
            replies = self.bus.read(["torque_enable"], [self.ids[j] for j in remaining])
            remaining = [j for k, j in enumerate(remaining) if not replies.valid[k] or replies.values[k, 0]]
            if not remaining:
                break
        return remaining

    def names(self, which: Iterable[int]) -> str:
        """The joints `which` and their servos, for a message."""
        return ", ".join(self.name(int(j)) for j in which)

    def explain(self, errors: np.ndarray) -> tuple[str, ...]:
        """The faults in status bytes `(J,)`, as sentences; a servo whose status is only a flag is asked for
        its faults."""
        return tuple(
            f"{self.name(int(j))}: {text}"
            for j in np.flatnonzero(errors)
            for text in self.bus.hardware_faults(self.ids[j]) or self.bus.describe(int(errors[j]))
        )


def _tries() -> Iterator[None]:
    """Attempts at an answer that must come: at least two, and new ones for `PATIENCE_S`."""
    end = time.monotonic() + PATIENCE_S
    yield
    yield
    while time.monotonic() < end:
        yield
