"""The contract of `drivers.servos.bus.ServoBus`, for any protocol.

A test module calls `check_bus(make_bus, twin, plant, …)` with a twin that runs under a link, its plant with
`SimpleMechanics`, torque off. Give the bus a slack of 0.1 s or so: these checks are about what is true, not
about what is fast."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest

from ulna.drivers.servos.bus import COUNTS_PER_TURN, BusError, ServoBus
from ulna.drivers.twins.plant import Plant
from ulna.drivers.twins.serial_twin import SerialTwin


def check_bus(
    make_bus: Callable[[], ServoBus], twin: SerialTwin, plant: Plant, eeprom_register: str, eeprom_value: int
) -> None:
    """Check a bus of at least three servos. eeprom_register: one that takes `eeprom_value`, which it does not
    hold yet, when the servo is not locked."""
    ids = [servo.id for servo in twin.servos]
    assert len(ids) >= 3
    bus = make_bus()
    _check_life(bus, twin, ids)
    _check_reading(bus, twin, plant, ids)
    _check_motion(bus, twin, plant, ids)
    _check_refusals(bus, ids, eeprom_register, eeprom_value)
    check_late_replies(bus, twin, ids)
    check_corruption(bus, twin, ids)
    check_dead_servo(bus, twin, ids)
    check_sleeps_while_waiting(bus, twin, ids)
    check_unplug(bus, twin, ids)
    bus.close()
    bus.close()
    assert not bus.connected


def contents(bus: ServoBus, register: str, ids: list[int]) -> np.ndarray:
    """What `register` holds in the servos `ids`, `(N,)` int64. All of them must answer."""
    replies = bus.read([register], ids, retries=3)
    assert replies.valid.all(), bus.stats
    return replies.values[:, 0]


def eventually(true: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    end = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _check_life(bus: ServoBus, twin: SerialTwin, ids: list[int]) -> None:
    bus.close()  # closing what was never opened is safe
    assert not bus.connected
    with pytest.raises(BusError) as error:
        bus.read(["present_position"], ids)
    assert error.value.gone
    bus.open()
    assert bus.connected
    model = twin.servos[0].model
    assert bus.scan([*ids, max(ids) + 1]) == {servo.id: servo.model for servo in twin.servos}
    assert bus.ping(ids[0]) == model
    assert bus.ping(max(ids) + 1) is None
    assert bus.stats.silent >= 2


def _check_reading(bus: ServoBus, twin: SerialTwin, plant: Plant, ids: list[int]) -> None:
    start_ns = time.monotonic_ns()
    replies = bus.read(["goal_position", "present_position"], ids[::-1], retries=3)
    assert start_ns <= replies.t_request_ns < replies.t_receive_ns <= time.monotonic_ns()
    assert replies.values.shape == (len(ids), 2)
    assert replies.values.dtype == np.int64
    assert replies.valid.dtype == np.bool_
    assert replies.valid.all()
    assert not replies.errors.any()
    expected = np.array(
        [
            s.zero_count + s.direction * plant.position[s.joint] * COUNTS_PER_TURN / (2 * math.pi)
            for s in twin.servos
        ]
    )
    np.testing.assert_allclose(replies.values[::-1, 1], expected % COUNTS_PER_TURN, atol=1.5)


def _check_motion(bus: ServoBus, twin: SerialTwin, plant: Plant, ids: list[int]) -> None:
    start = contents(bus, "present_position", ids)
    goals = {
        servo: int(start[i]) + (100 if start[i] < COUNTS_PER_TURN // 2 else -100)
        for i, servo in enumerate(ids)
    }
    for servo in ids:
        bus.write_checked("torque_enable", servo, 1)
    assert {servo.joint for servo in twin.servos} == set(np.flatnonzero(plant.torque))
    bus.write("goal_position", goals)
    expected = np.array(list(goals.values()))
    assert eventually(lambda: bool(np.abs(contents(bus, "present_position", ids) - expected).max() <= 2))
    np.testing.assert_array_equal(contents(bus, "goal_position", ids), expected)
    for servo in ids:
        bus.write_checked("torque_enable", servo, 0)
    assert not plant.torque.any()


def _check_refusals(bus: ServoBus, ids: list[int], eeprom_register: str, eeprom_value: int) -> None:
    with pytest.raises(ValueError, match="no_such_register"):
        bus.read(["no_such_register"], ids)
    with pytest.raises(ValueError, match="goal_position"):
        bus.write("goal_position", {ids[0]: 1 << 40})
    silent = max(ids) + 1
    with pytest.raises(BusError, match=f"{silent}.*torque_enable") as error:
        bus.write_checked("torque_enable", silent, 1)
    assert not error.value.gone
    assert bus.connected
    assert bus.registers[eeprom_register].eeprom
    assert bus.describe(0) == ()
    assert contents(bus, eeprom_register, ids[:1])[0] != eeprom_value


def check_late_replies(bus: ServoBus, twin: SerialTwin, ids: list[int]) -> None:
    """A late reply is never taken for the answer to a later request."""
    positions = contents(bus, "present_position", ids)
    positions_rad = twin.plant.position.copy()
    bus.write("goal_position", {servo: int(p) + 37 for servo, p in zip(ids, positions, strict=True)})
    for servo in ids:
        bus.write_checked("torque_enable", servo, 0)  # a goal switches a Feetech servo's torque on

    def is_back() -> bool:
        twin.plant.position[:] = positions_rad
        return bool((contents(bus, "present_position", ids) == positions).all())

    assert eventually(is_back)
    goals = contents(bus, "goal_position", ids)
    truth = {"present_position": positions, "goal_position": goals}
    np.testing.assert_array_equal(goals, positions + 37)
    n_valid = 0
    for round_ in range(4):
        first, second = (
            ("present_position", "goal_position") if round_ % 2 else ("goal_position", "present_position")
        )
        twin.faults.late, twin.faults.late_s = 1.0, 0.15 + 0.01 * round_
        replies = bus.read([first], ids[:1] if round_ % 3 else ids, retries=0)
        assert not replies.valid.any()
        twin.faults.late = 0.0
        end = time.monotonic() + 0.3
        while time.monotonic() < end:  # the late ones come in among these
            for servo in ids[:2]:
                replies = bus.read([second], [servo], retries=0)
                n_valid += int(replies.valid.sum())
                assert not replies.valid[0] or replies.values[0, 0] == truth[second][ids.index(servo)]
            replies = bus.read([second], ids, retries=0)
            np.testing.assert_array_equal(replies.values[replies.valid, 0], truth[second][replies.valid])
    assert n_valid > 20
    # one that has lain in the line for long is thrown away
    twin.faults.late = 1.0
    assert not bus.read(["present_position"], ids[:1], retries=0).valid.any()
    twin.faults.late = 0.0
    time.sleep(0.8)
    assert contents(bus, "goal_position", ids[:1])[0] == goals[0]
    # a device that is always too slow gives nothing, rather than the answer to the question before
    twin.faults.delay_s = 0.13
    for register in ["present_position", "goal_position"] * 3:
        for servo in ids[:2]:
            replies = bus.read([register], [servo], retries=1)
            assert not replies.valid[0] or replies.values[0, 0] == truth[register][ids.index(servo)]
    twin.faults.delay_s = 0.0
    time.sleep(0.3)
    for register, values in truth.items():
        np.testing.assert_array_equal(contents(bus, register, ids), values)


def check_corruption(bus: ServoBus, twin: SerialTwin, ids: list[int]) -> None:
    positions = contents(bus, "present_position", ids)
    goals = contents(bus, "goal_position", ids)
    corrupt = bus.stats.corrupt
    for servo in ids:
        twin.faults.corrupt = 1.0
        assert not bus.read(["goal_position"], [servo], retries=0).valid.any()
        twin.faults.corrupt = 0.0
        for _ in range(3):  # whatever is left of it does not shift what is read next
            assert contents(bus, "present_position", [servo])[0] == positions[ids.index(servo)]
            assert contents(bus, "goal_position", [servo])[0] == goals[ids.index(servo)]
    assert bus.stats.corrupt > corrupt
    twin.faults.corrupt = 0.05
    valid = 0.0
    for _ in range(200):
        replies = bus.read(["present_position"], ids)
        np.testing.assert_array_equal(replies.values[replies.valid, 0], positions[replies.valid])
        valid += replies.valid.mean() / 200
    twin.faults.corrupt = 0.0
    assert valid > 0.97
    assert bus.stats.retries > 0


def check_dead_servo(bus: ServoBus, twin: SerialTwin, ids: list[int]) -> None:
    positions = contents(bus, "present_position", ids)
    for dead in (0, len(ids) // 2, len(ids) - 1):
        twin.faults.dead = (ids[dead],)
        living = np.arange(len(ids)) != dead
        for _ in range(5):
            replies = bus.read(["present_position"], ids)
            np.testing.assert_array_equal(replies.valid, living)
            np.testing.assert_array_equal(replies.values[living, 0], positions[living])
            assert replies.errors[dead] == 0
        twin.faults.dead = ()
        assert eventually(lambda: bool(bus.read(["present_position"], ids).valid.all())), "it comes back"
    twin.faults.drop = 0.05
    for _ in range(40):
        replies = bus.read(["present_position"], ids, retries=2)
        np.testing.assert_array_equal(replies.values[replies.valid, 0], positions[replies.valid])
    twin.faults.drop = 0.0
    assert eventually(lambda: bool(bus.read(["present_position"], ids).valid.all()))


def check_sleeps_while_waiting(bus: ServoBus, twin: SerialTwin, ids: list[int]) -> None:
    twin.faults.dead = tuple(ids)
    start, start_cpu = time.monotonic(), time.thread_time()
    while time.monotonic() < start + 0.5:
        assert not bus.read(["present_position"], ids).valid.any()
    share = (time.thread_time() - start_cpu) / (time.monotonic() - start)
    twin.faults.dead = ()
    assert share < 0.3, "waiting for silent servos costs no processor"
    assert eventually(lambda: bool(bus.read(["present_position"], ids).valid.all()))


def _is_gone(call: Callable[[], object]) -> bool:
    """Whether `call` raises that the port is gone. Other errors come through."""
    try:
        call()
    except BusError as error:
        if not error.gone:
            raise
        return True
    return False


def check_unplug(bus: ServoBus, twin: SerialTwin, ids: list[int]) -> None:
    reconnects = bus.stats.reconnects
    twin.faults.unplugged = True
    assert eventually(lambda: _is_gone(lambda: bus.read(["present_position"], ids)))
    assert not bus.connected
    for call in (
        lambda: bus.read(["present_position"], ids),
        lambda: bus.write("goal_position", {ids[0]: 2000}),
        lambda: bus.write_checked("torque_enable", ids[0], 0),
        lambda: bus.ping(ids[0]),
        bus.open,
    ):
        assert _is_gone(call)
        assert not bus.connected
    twin.faults.unplugged = False

    assert eventually(lambda: not _is_gone(bus.open))
    assert eventually(lambda: bool(bus.read(["present_position"], ids).valid.all()))
    assert bus.connected
    assert bus.stats.reconnects == reconnects + 1
