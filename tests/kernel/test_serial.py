"""A Feetech bus behind a USB adapter: the kernel's cdc-acm driver, our driver above it, our twin below."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernel.plugs import SerialAdapter, wait_for

from ulna.drivers.devices import serial_ports
from ulna.drivers.servos.bus import BusError
from ulna.drivers.servos.feetech import FeetechBus
from ulna.drivers.twins.feetech import FeetechTwin
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.twins.serial_twin import TwinServo

SERVOS = (1, 2, 3, 4, 5, 6)


@pytest.fixture
def plant() -> Iterator[Plant]:
    plant = Plant.create(tuple("abcdef"), np.linspace(-0.5, 0.5, 6), np.full(6, 2.0))
    yield plant
    plant.remove()


@pytest.fixture
def adapter(plant: Plant) -> Iterator[SerialAdapter]:
    servos = [TwinServo(i + 1, 777, i, 2048) for i in range(6)]
    with SimpleMechanics(plant), FeetechTwin(plant, servos) as twin, SerialAdapter() as adapter:
        adapter.carry(twin.port)
        yield adapter


def counts(plant: Plant) -> np.ndarray:
    return np.round(2048 + plant.position * 4096 / (2 * np.pi))


def test_a_bus_over_usb_is_read_commanded_unplugged_and_replugged(
    adapter: SerialAdapter, plant: Plant
) -> None:
    bus = FeetechBus(str(adapter.BY_ID), slack_s=0.5)
    bus.open()
    try:
        wait_for("servos to answer", lambda: bus.ping(6) == 777)
        replies = bus.read(["present_position"], SERVOS, retries=3)
        assert replies.valid.all()
        np.testing.assert_allclose(replies.values[:, 0], counts(plant), atol=2)

        bus.write_checked("torque_enable", 3, 1)
        bus.write("goal_position", {3: 2300})
        wait_for("servo 3 at its goal", lambda: abs(counts(plant)[2] - 2300) <= 3)

        adapter.unplug()
        with pytest.raises(BusError) as error:
            bus.read(["present_position"], SERVOS)
        assert error.value.gone
        assert not bus.connected
        with pytest.raises(BusError, match="there is no port"):
            bus.open()

        adapter.plug_in()
        bus.open()
        wait_for("servos to answer again", lambda: bool(bus.read(["present_position"], SERVOS).valid.all()))
        assert bus.stats.reconnects == 1
    finally:
        bus.close()


def test_the_adapter_is_known_by_a_name_that_outlives_replugging(adapter: SerialAdapter) -> None:
    for _ in range(2):
        (port,) = serial_ports()
        assert port.name == str(adapter.BY_ID)
        assert port.device == "/dev/ttyACM0"
        assert port.usb is not None
        assert (port.usb.vendor, port.usb.product, port.usb.serial) == (
            adapter.VENDOR,
            adapter.PRODUCT,
            adapter.SERIAL,
        )
        assert port.usb.speed_mbps == 480
        assert port.problem == ""
        adapter.unplug()
        assert serial_ports() == []
        adapter.plug_in()
