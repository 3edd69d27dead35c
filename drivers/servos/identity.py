"""Giving servos their ids: who answers on a bus that nobody has set up yet, and writing id and speed into
one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ..arm import DeviceError
from .bus import BusError, ServoBus
from .group import Family, ServoGroup

FACTORY_ID = 1  # Feetech's STS3215 table; Robotis e-Manual
LIKELY_IDS = range(8)  # asked by themselves when there is silence: not every firmware answers a broadcast
FEW_IDS = range(31)  # arms count from 1; a broadcast ping of a Dynamixel takes 3 ms an id
ALL_IDS = range(253)
READS, MOST_GARBLED = 4, 1  # a line garbles an answer now and then; two servos at once garble nearly all
APPEAR_S = 1.0  # within which a servo must answer at its new id or speed
UNEVEN_V = 0.8  # between servos of one kind: more is lost in a bad plug or a thin cable
LOW_V = 6.0  # below it a servo of 7.4 V is on a supply of 5 V


@dataclass(frozen=True)
class Answer:
    """A servo that answers: at which speed (bit/s), with which id and model number."""

    baud: int
    id: int
    model: int


@dataclass(frozen=True)
class Look:
    """Who answers on a bus. clash: several servos answer at once with one id (or the line is bad)."""

    answers: tuple[Answer, ...]
    clash: bool

    @property
    def alone(self) -> Answer | None:
        """The only servo on the bus."""
        return self.answers[0] if len(self.answers) == 1 and not self.clash else None


def look(bus: ServoBus, family: Family, bauds: Collection[int], thorough: bool = False) -> Look:
    """Who answers at each of `bauds`; the speed is then as before. thorough: ask all ids where that takes
    seconds, not those alone that are usual. The port is opened where it is not. Nothing is written.
    BusError with `gone`: there is no port."""
    bus.open()
    ids = ALL_IDS if thorough or family.protocol == "feetech" else FEW_IDS
    before, answers, clash = bus.baud, list[Answer](), False
    try:
        for baud in bauds:
            bus.set_baud(baud)
            models, is_garbled = _scan(bus, ids)
            if not models and baud in (family.factory_baud, before):
                models, _ = _scan(bus, LIKELY_IDS)
            clash |= is_garbled or any(_answers_garbled(bus, servo) for servo in models)
            answers += [Answer(baud, servo, model) for servo, model in sorted(models.items())]
    finally:
        bus.set_baud(before)
    return Look(tuple(answers), clash)


def _scan(bus: ServoBus, ids: Sequence[int]) -> tuple[dict[int, int], bool]:
    """Model by id of those that answer, and whether there was, twice, nothing but a garbled answer."""
    for _ in range(2):
        corrupt = bus.stats.corrupt
        models = bus.scan(ids)
        if models or bus.stats.corrupt == corrupt:
            return models, False
    return {}, True


def _answers_garbled(bus: ServoBus, servo: int) -> bool:
    """Whether several servos answer as `servo`. Their models may be equal; where they stand is not."""
    corrupt = bus.stats.corrupt
    for _ in range(READS):
        bus.read(["present_position", "present_temperature"], [servo], retries=0)
    if bus.stats.corrupt == corrupt:
        return False
    bus.close()  # else the bus grows patient with who is no one servo
    bus.open()
    return bus.stats.corrupt - corrupt > MOST_GARBLED


def assign(bus: ServoBus, family: Family, present: Answer, servo: int, baud: int) -> None:
    """Make `present`, the only servo on the open bus, answer as `servo` at `baud`: its torque goes off, then
    id and speed are written and read back. The bus is then at `baud`. BusError: it did not take them; nothing
    is lost, `look` finds it again."""
    locks = "lock" in bus.registers
    bus.set_baud(present.baud)
    bus.write_checked("torque_enable", present.id, 0)
    if locks:
        bus.write_checked("lock", present.id, 0)
    try:
        if present.id != servo:
            _switch(bus, "id", present.id, servo, servo, present.baud)
        if present.baud != baud:
            _switch(bus, "baud_rate", servo, family.bauds[baud], servo, baud)
    finally:
        if locks:
            with contextlib.suppress(BusError):  # an error above says more
                bus.write_checked("lock", servo if bus.scan([servo]) else present.id, 1)
    contents = bus.read(["id", "baud_rate"], [servo], retries=3)
    if not contents.valid[0] or contents.values[0].tolist() != [servo, family.bauds[baud]]:
        raise BusError(
            f"the servo on {bus.port} does not keep id {servo} and {baud} baud: leave it and try again"
        )


def _switch(bus: ServoBus, register: str, asked: int, value: int, servo: int, baud: int) -> None:
    """Write a register that changes where the servo answers: as `servo` at `baud` from then on. Its
    confirmation may come from either place, or not at all."""
    old_baud, end = bus.baud, time.monotonic() + APPEAR_S
    while True:
        bus.set_baud(old_baud)
        refusal = ""
        try:
            bus.write_checked(register, asked, value, retries=0)
        except BusError as error:
            if error.gone:
                raise
            refusal = str(error)
        bus.set_baud(baud)
        if bus.scan([servo]):
            return
        if time.monotonic() > end:
            raise BusError(
                f"the servo on {bus.port} does not answer as {servo} at {baud} baud. {refusal}".strip()
            )


def check_supply(group: ServoGroup) -> tuple[np.ndarray, str]:
    """The supply that each servo measures, `(J,)` V, and a remark on it, "" when there is nothing to say.
    DeviceError: a servo gets a voltage that it does not take."""
    volts = group.values("present_voltage") / 10
    low, high = (group.values(register) / 10 for register in group.family.supply)
    for j in np.flatnonzero((volts < low) | (volts > high)):
        raise DeviceError(
            f"{group.name(int(j))} measures {volts[j]:.1f} V and takes {low[j]:.1f} to {high[j]:.1f} V: cut "
            "the power, and look at the power supply (5, 7.4 and 12 V variants look alike) and the plugs"
        )
    same = high == high[0]
    if float(np.ptp(volts[same])) > UNEVEN_V:
        j = int(np.argmin(np.where(same, volts, np.inf)))
        return volts, f"{group.name(j)} gets {np.ptp(volts[same]):.1f} V less than another: look at its plugs"
    if group.family.protocol == "feetech" and volts.max() < LOW_V:
        return volts, "a 5 V supply, as in the usual kits: enough, though weaker than 7.4 V"
    return volts, ""
