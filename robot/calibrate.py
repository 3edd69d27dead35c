"""Calibrating an arm of bus servos: sweep first, then centre.

A servo's count wraps once a turn. Centring a joint where somebody guesses its middle to be can leave that
wrap inside its travel; so the joints are moved through all of their travel first, counted on past the wrap,
and then the middle of what was seen becomes the middle of the count. No terminal here:
`robot.commands.calibrate` draws it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..drivers.arm import DeviceError
from ..drivers.servos.bus import COUNTS_PER_TURN
from ..drivers.servos.calibration import MIDDLE, SHORTEST, Calibration, JointCalibration, half_turn
from ..drivers.servos.group import COUNTS_TURNS, POSITION_MODE, ServoGroup

# a hand may turn a joint by half a turn in that time, and then nobody knows which way
LONGEST_SILENCE_S = 0.5
BESIDE = 136  # counts, 12 degrees: further outside its travel no joint can stand
HELD_STILL = 60  # counts, 5 degrees: what a joint may move while its new offset is checked
EXTENDED = 4  # Dynamixel: count turns, so that the whole homing offset counts


class Sweep:
    """The positions of J joints, followed past the wrap of their counts. low, high, now: `(J,)` int64 counts,
    on from the first reading without a wrap."""

    def __init__(self, counts: np.ndarray, t_ns: int) -> None:
        self.now = np.array(counts, np.int64)
        self.low, self.high = self.now.copy(), self.now.copy()
        self._t_ns = np.full(len(counts), t_ns, np.int64)

    def see(self, counts: np.ndarray, valid: np.ndarray, t_ns: int) -> np.ndarray:
        """Take a reading `(J,)`. Returns `(J,)` bool: joints that were silent for too long, whose sweep began
        anew."""
        # the short way: no joint does half a turn between two readings
        step = half_turn(counts - self.now)
        self.now = np.where(valid, self.now + step, self.now)
        restarted = valid & (t_ns - self._t_ns > LONGEST_SILENCE_S * 1e9)
        self.low = np.where(restarted, self.now, np.minimum(self.low, self.now))
        self.high = np.where(restarted, self.now, np.maximum(self.high, self.now))
        self._t_ns = np.where(valid, t_ns, self._t_ns)
        return restarted


def centre(low: int, high: int, now: int, offset: int, protocol: str) -> tuple[int, int, int]:
    """The homing offset that puts the middle of the sweep `low..high` on 2047, and the two ends as read with
    that offset, all in counts. low, high, now: as read with the present `offset`.

    A joint that turns all the way round has no middle: where it stands `now` becomes the middle, and its
    range is the whole turn. protocol: a Feetech servo subtracts its offset, and keeps at most 2047 of either
    sign; a Dynamixel adds it."""
    sign = -1 if protocol == "feetech" else 1
    round_and_round = high - low >= COUNTS_PER_TURN - 1
    new = half_turn(offset + sign * (MIDDLE - (now if round_and_round else (low + high) // 2)))
    if protocol == "feetech" and new == -COUNTS_PER_TURN // 2:
        new = 2047  # half a turn has no place in the register: one count beside the middle, then
    if round_and_round:
        return new, 0, COUNTS_PER_TURN - 1
    # the low end, as read with the new offset, is within the turn: that is what the middle is for
    at = (low + sign * (new - offset)) % COUNTS_PER_TURN
    return new, at, at + high - low


@dataclass(frozen=True, slots=True)
class Progress:
    """now, low, high: counts `(J,)` from the middle of each joint's travel so far: where it is, and the ends.
    place: `(J,)` counts, where it is by a count of its own that no sweep shifts. enough: `(J,)` bool, swept
    far enough for a calibration. notes: what happened at this reading."""

    now: np.ndarray
    low: np.ndarray
    high: np.ndarray
    place: np.ndarray
    enough: np.ndarray
    notes: tuple[str, ...]


class Calibrator:
    """One arm under calibration: `start`, `look` again and again while a hand moves it, `finish`; or `start`
    and `adopt`. Before `finish` and `adopt`, only the torque (off) and how positions are counted are written.
    drive_modes: 1 for joints that count backwards."""

    def __init__(self, group: ServoGroup, drive_modes: Mapping[str, int] | None = None) -> None:
        self.group = group
        self.drive_modes = dict(drive_modes or {})
        self._sweep: Sweep | None = None

    def start(self) -> None:
        """Open the bus, check the servos' models, switch their torque off. DeviceError: a servo is missing,
        of another model, or keeps its torque."""
        g = self.group
        g.bus.open()
        g.check_models()
        if stiff := g.torque_off():
            raise DeviceError(
                f"the torque of {g.names(stiff)} does not go off: cut the arm's power, and begin again"
            )
        if g.family.protocol == "feetech":
            for j, phase in enumerate(g.values("phase").tolist()):
                if phase & COUNTS_TURNS:
                    g.write_setting("phase", j, phase & ~COUNTS_TURNS)
        else:
            for j, mode in enumerate(g.values("operating_mode").tolist()):
                if mode == POSITION_MODE:  # in which a homing offset above a quarter turn is ignored
                    g.write_setting("operating_mode", j, EXTENDED)
            for j, (name, mode) in enumerate(
                zip(g.joints.names, g.values("drive_mode").tolist(), strict=True)
            ):
                new_mode = mode & ~1 | self.drive_modes.get(name, mode & 1)
                if new_mode != mode:
                    g.write_setting("drive_mode", j, new_mode)
                self.drive_modes[name] = new_mode & 1
        self._offsets = g.values("homing_offset")
        self._sweep = Sweep(g.values("present_position"), time.monotonic_ns())

    def look(self) -> Progress:
        """Read every joint once. BusError with `gone`: the cable came out."""
        sweep, g = self._started(), self.group
        replies = g.bus.read(["present_position"], g.ids)
        restarted = sweep.see(replies.values[:, 0], replies.valid, replies.t_receive_ns)
        notes = [
            f"{g.name(int(j))} was silent: move it through all of its travel again"
            for j in np.flatnonzero(restarted)
        ]
        notes += [
            f"{g.name(int(j))} does not answer: check its cable" for j in np.flatnonzero(~replies.valid)
        ]
        middle = (sweep.low + sweep.high) // 2
        enough = sweep.high - sweep.low >= SHORTEST
        now, low, high = (counts - middle for counts in (sweep.now, sweep.low, sweep.high))
        return Progress(now, low, high, sweep.now, enough, tuple(notes))

    def finish(self) -> Calibration:
        """Work out the offsets, write them into the servos, and see that they took them. DeviceError: a joint
        was hardly moved (nothing is written then), or a servo does not take its offset."""
        sweep, g = self._started(), self.group
        for j in np.flatnonzero(sweep.high - sweep.low < SHORTEST):
            degrees = (sweep.high[j] - sweep.low[j]) * 360 / COUNTS_PER_TURN
            raise DeviceError(
                f"{g.name(int(j))} was moved by {degrees:.0f} degrees only: nothing was written; "
                "move each joint through all of its travel"
            )
        calibration: Calibration = {}
        for j, name in enumerate(g.joints.names):
            low, high, now = int(sweep.low[j]), int(sweep.high[j]), int(sweep.now[j])
            offset, low, high = centre(low, high, now, int(self._offsets[j]), g.family.protocol)
            calibration[name] = JointCalibration(g.ids[j], self.drive_modes.get(name, 0), offset, low, high)
        self._write_all(calibration)
        return calibration

    def adopt(self, calibration: Calibration) -> None:
        """Instead of `finish`: write a calibration that was worked out elsewhere into the servos.
        DeviceError: a joint stands where it could not by it (nothing is written then), or a servo does not
        take its offset."""
        sweep, g, sign = self._started(), self.group, self._sign
        for j, c in enumerate(calibration.values()):
            now = int(sweep.now[j]) + sign * (c.homing_offset - int(self._offsets[j]))
            beyond = abs(half_turn(now - (c.range_min + c.range_max) // 2)) - (c.range_max - c.range_min) // 2
            if beyond > BESIDE:
                raise DeviceError(
                    f"by this calibration {g.name(j)} stands {beyond * 360 / COUNTS_PER_TURN:.0f} degrees "
                    "outside its travel: nothing was written; where it is this arm's, calibrate it by hand"
                )
        self._write_all(calibration)

    def _write_all(self, calibration: Calibration) -> None:
        try:
            for j, c in enumerate(calibration.values()):
                self._write(j, c)
        except DeviceError as error:
            raise DeviceError(
                f"{error}; some servos may be calibrated and others not: calibrate the arm again"
            ) from None

    @property
    def _sign(self) -> int:
        """Of the homing offset in what a servo reports."""
        return -1 if self.group.family.protocol == "feetech" else 1

    def _write(self, j: int, c: JointCalibration) -> None:
        g, sign = self.group, self._sign
        before = int(g.values("present_position", [j])[0])
        g.write_setting("homing_offset", j, c.homing_offset)
        g.write_setting("min_position_limit", j, c.range_min)
        g.write_setting("max_position_limit", j, c.range_max)
        # where it is now must be where it was, by the new count
        expected = before + sign * (c.homing_offset - int(self._offsets[j]))
        now = int(g.values("present_position", [j])[0])
        if abs(half_turn(now - expected)) > HELD_STILL:
            raise DeviceError(
                f"{g.name(j)} says {now % COUNTS_PER_TURN} with its new offset, and should say "
                f"{expected % COUNTS_PER_TURN}: hold the arm still at the end"
            )

    def close(self) -> None:
        self.group.bus.close()

    def _started(self) -> Sweep:
        if self._sweep is None:
            raise RuntimeError("start comes first")
        return self._sweep
