"""A SpaceMouse Compact made with uhid, read by our driver from the kernel's hidraw node."""

from __future__ import annotations

import time

import pytest
from kernel.plugs import SpaceMouse, wait_for

from ulna.drivers.arm import DeviceError
from ulna.drivers.hands.spacemouse import Config, SpaceMouseTeleoperator, make
from ulna.drivers.teleoperator import Hand


def push(mouse: SpaceMouse, teleoperator: SpaceMouseTeleoperator, x: int, y: int, z: int) -> Hand:
    """Read a moment after the report, which a real one repeats as long as the cap is out of its middle."""
    mouse.push(x, y, z)
    time.sleep(0.02)
    return teleoperator.read()


def test_the_cap_moves_the_tip_while_the_button_is_held_until_it_is_unplugged() -> None:
    with SpaceMouse() as mouse:
        teleoperator = make("cap", Config(speed_m_s=0.2, timeout_s=5))
        teleoperator.open()
        try:
            assert not push(mouse, teleoperator, 0, -350, 0).active, "the button is not held"
            mouse.press(1)
            wait_for("the button", lambda: push(mouse, teleoperator, 0, -350, 0).active)
            # away from the person is ahead, and the device's z is down
            assert push(mouse, teleoperator, 0, -350, 0).linear == pytest.approx([0.2, 0, 0], abs=1e-6)
            wait_for("up", lambda: push(mouse, teleoperator, 0, 0, -350).linear[2] > 0.19)
            mouse.unplug()
            wait_for("the driver to notice", lambda: not teleoperator.read().active)
            with SpaceMouse() as second_mouse:

                def is_active() -> bool:
                    second_mouse.press(0)
                    teleoperator.read()
                    second_mouse.press(1)
                    return push(second_mouse, teleoperator, 0, -350, 0).active

                wait_for("it to come back", is_active)
        finally:
            teleoperator.close()


def test_without_one_it_says_so() -> None:
    with pytest.raises(DeviceError):
        make("cap", Config()).open()
