"""New servos on a bus: who answers at which speed, what happens when several do at once, and how one gets its
id and speed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from contracts.new_servos import BAUD, FAMILIES, MODELS, bench, plug

from ulna.drivers.arm import DeviceError
from ulna.drivers.servos import koch, so101
from ulna.drivers.servos.bus import BusError, ServoBus
from ulna.drivers.servos.group import Family
from ulna.drivers.servos.identity import Answer, assign, check_supply, look

pytestmark = pytest.mark.realtime


def only_one(bus: ServoBus, family: Family) -> Answer:
    """The servo that is alone on the bus. A busy machine may miss its answer."""
    for _ in range(4):
        if (answer := look(bus, family, family.bauds).alone) is not None:
            return answer
    raise AssertionError("no servo is alone")


both = pytest.mark.parametrize("protocol", ["feetech", "dynamixel"])


@both
def test_a_new_servo_alone_is_found_and_gets_its_id_and_speed(protocol: str, tmp_path: Path) -> None:
    family = FAMILIES[protocol]
    with bench(protocol, tmp_path) as (bus, twin):
        assert look(bus, family, family.bauds).answers == ()
        plug(twin, 5)
        first = only_one(bus, family)
        assert first == Answer(family.factory_baud, 1, MODELS[protocol][5])
        assign(bus, family, first, 6, BAUD)
        assert bus.baud == BAUD
        assert only_one(bus, family) == Answer(BAUD, 6, MODELS[protocol][5])
        plug(twin, 4)
        assign(bus, family, only_one(bus, family), 5, BAUD)
        plug(twin, 4, 5)
        assert [a.id for a in look(bus, family, [BAUD]).answers] == [5, 6]
        if protocol == "feetech":
            assert bus.read(["lock"], [5, 6]).values.ravel().tolist() == [1, 1], "the EEPROM is locked again"


@both
def test_what_a_servo_was_told_outlives_its_power_and_torque_does_not(protocol: str, tmp_path: Path) -> None:
    family = FAMILIES[protocol]
    with bench(protocol, tmp_path, (2,)) as (bus, twin):
        only = only_one(bus, family)
        assign(bus, family, only, 3, BAUD)
        bus.write_checked("torque_enable", 3, 1)
        assert twin.plant.torque[2] == 1
        plug(twin)
        assert twin.plant.torque[2] == 0
        plug(twin, 2)
        assert only_one(bus, family) == Answer(BAUD, 3, only.model)


@both
def test_two_servos_of_one_id_are_noticed_and_not_taken_for_one(protocol: str, tmp_path: Path) -> None:
    family = FAMILIES[protocol]
    with bench(protocol, tmp_path, (2, 3)) as (bus, twin):
        found = look(bus, family, family.bauds)
        assert found.clash
        assert found.alone is None
        plug(twin, 0, 5)  # of two models, where there are two
        assert look(bus, family, family.bauds).alone is None


@both
def test_two_servos_of_different_ids_or_speeds_are_both_found(protocol: str, tmp_path: Path) -> None:
    family = FAMILIES[protocol]
    with bench(protocol, tmp_path, (4,), ids=(1, 2, 3, 4, 20, 6)) as (bus, twin):
        only = only_one(bus, family)
        assert only.id == 20, "an id from another life is found"
        other = next(b for b in family.bauds if b not in (BAUD, family.factory_baud))
        assign(bus, family, only, 9, other)
        plug(twin, 3, 4)
        found = look(bus, family, family.bauds)
        assert {(a.baud, a.id) for a in found.answers} == {(family.factory_baud, 4), (other, 9)}
        assert not found.clash
        assert found.alone is None


def test_a_high_id_of_a_dynamixel_is_found_by_a_thorough_look(tmp_path: Path) -> None:
    family = replace(FAMILIES["dynamixel"], bauds={57_600: 1})
    with bench("dynamixel", tmp_path, (0,), ids=(200, *(1,) * 5)) as (bus, _):
        assert look(bus, family, family.bauds).answers == ()
        assert look(bus, family, family.bauds, thorough=True).answers == (Answer(57_600, 200, 1060),)


@both
def test_a_servo_that_is_pulled_meanwhile_is_told_and_found_again(protocol: str, tmp_path: Path) -> None:
    family = FAMILIES[protocol]
    with bench(protocol, tmp_path, (1,)) as (bus, twin):
        only = only_one(bus, family)
        plug(twin)
        with pytest.raises(BusError, match=r"did not|does not"):
            assign(bus, family, only, 2, BAUD)
        plug(twin, 1)
        assert only_one(bus, family) == only
        twin.faults.unplugged = True
        time.sleep(0.05)
        with pytest.raises(BusError) as gone:
            look(bus, family, family.bauds)
        assert gone.value.gone


@pytest.mark.parametrize("kind", ["so101", "koch"])
def test_the_supply_is_that_of_the_servos(kind: str, tmp_path: Path) -> None:
    module, protocol = {"so101": (so101, "feetech"), "koch": (koch, "dynamixel")}[kind]
    with bench(protocol, tmp_path, range(6), ids=(1, 2, 3, 4, 5, 6)) as (_, twin):
        group = module.make(kind, module.Config(str(tmp_path / "port"), "")).group  # type: ignore[attr-defined]
        group.bus.set_baud(FAMILIES[protocol].factory_baud)
        group.bus.open()
        try:
            volts, remark = check_supply(group)
            assert volts == pytest.approx([7.4] * 6 if kind == "so101" else [12.0] * 2 + [5.0] * 4)
            assert remark == ""
            twin.faults.voltage = 5.2
            if kind == "so101":
                assert "5 V supply" in check_supply(group)[1]
            twin.faults.voltage = 12.4
            with pytest.raises(DeviceError, match=r"servo \d\) measures 12.4 V and takes .* power supply"):
                check_supply(group)
        finally:
            group.bus.close()
