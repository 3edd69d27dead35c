"""The contract of `drivers.arm.Arm`, for any implementation.

A test module calls `check_arm(arm, clock)` with an arm that is built and closed, and its clock.
"""

from __future__ import annotations

import numpy as np
import pytest

from ulna.drivers.arm import Arm, ArmState, DeviceError
from ulna.drivers.clock import Clock

PERIOD_NS = 50_000_000


def drive(arm: Arm, clock: Clock, target: np.ndarray, ticks: int) -> np.ndarray:
    """Command `target` for `ticks` control periods; the last target sent."""
    setpoint = arm.read().data
    for _ in range(ticks):
        due = clock.now_ns() + PERIOD_NS
        setpoint = arm.command(target, due)
        clock.sleep_until(due)
    return setpoint


def check_arm(arm: Arm, clock: Clock) -> None:
    _check_life(arm, clock)
    _check_reading(arm, clock)
    _check_motion_and_limits(arm, clock)
    _check_early_commands(arm, clock)
    _check_refusals(arm, clock)
    _check_watchdog(arm, clock)
    _check_stop_latches(arm, clock)
    arm.disable()
    arm.close()
    arm.close()


def _check_life(arm: Arm, clock: Clock) -> None:
    arm.close()  # closing what was never opened is safe
    arm.open()
    with pytest.raises(DeviceError, match="enable"):
        arm.command(arm.read().data, 0)
    _check_first_command(arm, clock)
    arm.enable()
    assert arm.faults() == ()
    assert arm.health().state is ArmState.ACTIVE
    joints = arm.joints
    assert len(joints.names) == len(set(joints.names)) == len(joints.units) == len(joints)
    assert set(joints.units) <= {"rad", "m"}
    assert (joints.lower < joints.upper).all()
    assert (joints.max_velocity > 0).all()
    assert (joints.max_effort > 0).all()


def _check_first_command(arm: Arm, clock: Clock) -> None:
    if not np.isfinite(arm.max_first_step):
        return  # a simulated arm may be thrown across
    arm.enable()
    position = arm.read().data
    far = position.copy()
    far[0] += (1 if position[0] < np.mean([arm.joints.lower[0], arm.joints.upper[0]]) else -1) * (
        arm.max_first_step + 0.1
    )
    with pytest.raises(DeviceError, match=f"{arm.joints.names[0]}.*nothing was sent"):
        arm.command(far, clock.now_ns() + PERIOD_NS)
    clock.sleep_until(clock.now_ns() + 2 * PERIOD_NS)
    assert np.abs(arm.read().data - position).max() < 0.02


def _check_reading(arm: Arm, clock: Clock) -> None:
    first = arm.read()
    assert first.data.shape == (len(arm.joints),)
    assert first.data.dtype == np.float64
    assert np.asarray(first.valid).shape == (len(arm.joints),)
    assert first.t_capture_ns <= first.t_receive_ns <= clock.now_ns()
    clock.sleep_until(clock.now_ns() + PERIOD_NS)
    second = arm.read()
    assert second.seq > first.seq
    assert second.t_capture_ns > first.t_capture_ns
    since = getattr(arm, "since", None)
    if since is not None:  # every reading, each once, that read gave among them
        readings = since(first.seq)
        assert [s.seq for s in readings] == list(range(first.seq + 1, readings[-1].seq + 1))
        assert (np.diff([s.t_capture_ns for s in readings]) > 0).all()
        (same,) = (s for s in readings if s.seq == second.seq)
        assert (same.t_capture_ns, same.t_receive_ns) == (second.t_capture_ns, second.t_receive_ns)
        np.testing.assert_array_equal(same.data, second.data)


def _check_motion_and_limits(arm: Arm, clock: Clock) -> None:
    start = arm.read().data
    goal = start.copy()
    goal[0] += 0.2
    drive(arm, clock, goal, 30)
    assert abs(arm.read().data[0] - goal[0]) < 0.02, "the arm goes where it is told"
    # one period allows no more than max_velocity, whatever is asked
    due = clock.now_ns() + PERIOD_NS
    last_setpoint = arm.command(arm.read().data, due)
    clock.sleep_until(due)
    setpoint = arm.command(arm.joints.upper + 10.0, clock.now_ns() + PERIOD_NS)
    assert (setpoint - last_setpoint <= arm.joints.max_velocity * PERIOD_NS * 1e-9 + 1e-9).all()
    last = drive(arm, clock, np.where(np.arange(len(start)) == 0, 100.0, start), 80)
    assert last[0] == pytest.approx(arm.joints.upper[0])
    assert arm.read().data[0] <= arm.joints.upper[0] + 0.02, "limits are always on"
    drive(arm, clock, start, 80)


def _check_early_commands(arm: Arm, clock: Clock) -> None:
    """Commands that come faster than their targets fall due must not add up to more than `max_velocity`."""
    start = arm.read().data
    goal, setpoint, start_ns = start.copy(), start, clock.now_ns()
    goal[0] = arm.joints.upper[0]
    for _ in range(10):
        setpoint = arm.command(goal, clock.now_ns() + PERIOD_NS)
        clock.sleep_until(clock.now_ns() + PERIOD_NS // 10)
    limit = arm.joints.max_velocity[0] * (clock.now_ns() - start_ns + PERIOD_NS) * 1e-9
    assert setpoint[0] - start[0] <= limit + 0.02
    drive(arm, clock, start, 40)


def _check_refusals(arm: Arm, clock: Clock) -> None:
    target = arm.read().data
    bad = target.copy()
    bad[-1] = np.nan
    with pytest.raises(ValueError, match=arm.joints.names[-1]):
        arm.command(bad, clock.now_ns() + PERIOD_NS)
    with pytest.raises(ValueError, match="shape"):
        arm.command(target[:-1], clock.now_ns() + PERIOD_NS)
    clock.sleep_until(clock.now_ns() + PERIOD_NS)
    assert np.abs(arm.read().data - target).max() < 0.02, "a refused command moves nothing"


def _check_watchdog(arm: Arm, clock: Clock) -> None:
    goal = arm.read().data.copy()
    goal[0] += 0.5
    # a target far in the future, and then silence: the arm must not go on without its commander
    arm.command(goal, clock.now_ns() + round(20 * arm.watchdog_s * 1e9))
    clock.sleep_until(clock.now_ns() + round(0.5 * arm.watchdog_s * 1e9))
    underway = arm.read().data[0]
    clock.sleep_until(clock.now_ns() + round(arm.watchdog_s * 1e9))
    rest = arm.read().data
    assert goal[0] - 0.5 < underway < rest[0] < goal[0] - 0.1
    clock.sleep_until(clock.now_ns() + round(4 * arm.watchdog_s * 1e9))
    assert np.abs(arm.read().data - rest).max() < 0.01


def _check_stop_latches(arm: Arm, clock: Clock) -> None:
    arm.stop()
    position = arm.read().data
    with pytest.raises(DeviceError, match="enable"):
        arm.command(position, clock.now_ns() + PERIOD_NS)
    clock.sleep_until(clock.now_ns() + 5 * PERIOD_NS)
    assert np.abs(arm.read().data - position).max() < 0.02
    arm.enable()
    arm.command(arm.read().data, clock.now_ns() + PERIOD_NS)
