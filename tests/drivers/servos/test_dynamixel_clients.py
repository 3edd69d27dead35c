"""The Dynamixel twin, asked by other people's clients."""

from __future__ import annotations

import time
from contextlib import contextmanager

import numpy as np
import pytest
from contracts.dynamixel import IDS, XL330, twin_of, wait_for

from ulna.drivers.servos.dynamixel_registers import REGISTERS
from ulna.drivers.twins.dynamixel import DynamixelTwin

pytestmark = pytest.mark.realtime


@contextmanager
def sdk_of(twin: DynamixelTwin):
    import dynamixel_sdk

    port = dynamixel_sdk.PortHandler(twin.port)
    assert port.openPort()
    assert port.setBaudRate(1_000_000)
    try:
        yield dynamixel_sdk, port, dynamixel_sdk.PacketHandler(2.0)
    finally:
        port.closePort()


def until_good(ask, good, times: int = 20):
    """The first good answer of a client, whose fixed timeout may be too short on a busy machine."""
    answers = []
    for _ in range(times):
        answers.append(ask())
        if good(answers[-1]):
            return answers[-1]
    raise AssertionError(f"no good answer among {answers}")


def test_the_makers_sdk_finds_real_servos() -> None:
    with twin_of() as twin, sdk_of(twin) as (sdk, port, packets):
        assert until_good(lambda: packets.ping(port, 3), lambda a: a[1] == 0) == (XL330, 0, 0)
        servos, result = until_good(
            lambda: packets.broadcastPing(port), lambda a: a[1] == 0 and len(a[0]) == 6
        )
        assert result == 0
        assert servos == {i: [XL330, 52] for i in IDS}
        for i in IDS:
            until_good(lambda: packets.write1ByteTxRx(port, i, 64, 1), lambda a: a == (0, 0))  # noqa: B023
        # goal_current -1, goal_velocity -3: stuffed on the way out and back
        header_like = [0xFF, 0xFF, 0xFD, 0xFF, 0xFF, 0xFF]
        until_good(lambda: packets.writeTxRx(port, 1, 102, 6, header_like), lambda a: a == (0, 0))
        assert (twin.register(1, "goal_current"), twin.register(1, "goal_velocity")) == (-1, -3)
        assert until_good(lambda: packets.readTxRx(port, 1, 102, 6), lambda a: a[1] == 0) == (
            header_like,
            0,
            0,
        )
        assert until_good(lambda: packets.write4ByteTxRx(port, 1, 116, 9000), lambda a: a[0] == 0) == (0, 6)
        assert until_good(lambda: packets.write1ByteTxRx(port, 1, 11, 4), lambda a: a[0] == 0) == (0, 7)

        writer = sdk.GroupSyncWrite(port, packets, 116, 4)
        for i in IDS:
            writer.addParam(i, (2000 + i).to_bytes(4, "little"))
        assert writer.txPacket() == 0
        reader = sdk.GroupSyncRead(port, packets, 132, 4)
        for i in IDS:
            reader.addParam(i)

        def has_arrived(ask) -> bool:
            return ask() == 0 and all(reader.getData(i, 132, 4) == 2000 + i for i in IDS)

        wait_for("the goals, by sync read", lambda: has_arrived(reader.txRxPacket))
        wait_for("the goals, by fast sync read", lambda: has_arrived(reader.fastSyncRead))
        twin.faults.dead = (4,)
        assert reader.txRxPacket() != 0
        # the SDK stops listening at the first silent one; on a real line those behind it say nothing, either
        assert reader.txPacket() == 0
        port.is_using = False  # it waits for us to listen
        wait_for("three replies", lambda: port.getBytesAvailable() == 3 * 15)
        time.sleep(0.05)
        assert port.getBytesAvailable() == 3 * 15
        twin.faults.dead = ()
        twin.faults.overload = (2,)
        until_good(lambda: packets.read4ByteTxRx(port, 2, 132), lambda a: a[1:] == (0, 0x80), 2000)
        until_good(lambda: packets.reboot(port, 2), lambda a: a[0] == 0)
        assert until_good(lambda: packets.read1ByteTxRx(port, 2, 70), lambda a: a[1] == 0, 200) == (0, 0, 0)
        assert until_good(lambda: packets.read1ByteTxRx(port, 2, 64), lambda a: a[1] == 0) == (0, 0, 0)


def test_rustypot_drives_it() -> None:
    import rustypot

    with twin_of() as twin:
        client = rustypot.Xl330PyController(twin.port, 1_000_000, 1.0)
        try:
            assert client.ping(2)
            client.sync_write_torque_enable(IDS, [True] * 6)
            client.sync_write_goal_position(IDS, [0.1 * i for i in IDS])
            wait_for(
                "the goals",
                lambda: np.allclose(client.sync_read_present_position(IDS), 0.1 * np.array(IDS), atol=0.002),
            )
            assert twin.plant.position.tolist() == pytest.approx([0.1 * i for i in IDS], abs=0.002)
            client.set_fast_sync_read(True)
            assert np.allclose(client.sync_read_present_position(IDS), 0.1 * np.array(IDS), atol=0.002)
            # its patience is shorter than a busy machine's pauses
            wait_for("all six", lambda: client.scan(IDS) == dict.fromkeys(IDS, XL330))
        finally:
            client.close()


def test_the_register_map_is_that_of_rustypot() -> None:
    import rustypot

    theirs = {"present_voltage": "present_input_voltage"}
    for controller in (rustypot.Xl330PyController, rustypot.Xl430PyController):
        n = 0
        for name, place in REGISTERS.items():
            other = controller.register(theirs.get(name, name))
            if other is not None:
                assert other.size == place.size, name
                n += 1
        assert n > 30
