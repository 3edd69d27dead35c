"""An Xbox pad made with uinput, read by our driver through SDL and the kernel's evdev."""

from __future__ import annotations

import pytest
from kernel.plugs import ABS_RZ, ABS_X, ABS_Y, BTN_A, BTN_TR, Gamepad, wait_for

from ulna.drivers.arm import DeviceError
from ulna.drivers.hands.gamepad import Config, GamepadTeleoperator, make


def open_pad(**settings: object) -> GamepadTeleoperator:
    teleoperator = make("pad", Config(**settings))  # type: ignore[arg-type]
    teleoperator.open()
    teleoperator.read()  # no button is held: from now on the bumper counts
    return teleoperator


def test_a_stick_moves_the_tip_while_the_bumper_is_held() -> None:
    with Gamepad() as pad:
        teleoperator = open_pad(speed_m_s=0.2)
        try:
            pad.move(ABS_Y, -32768)
            pad.press(BTN_A)
            events: list[str] = []
            wait_for("the button", lambda: bool(events.extend(teleoperator.read().events) or events))
            assert events == ["success"]
            assert not teleoperator.read().active, "the bumper is not held"

            pad.press(BTN_TR)
            wait_for("the bumper", lambda: teleoperator.read().active)
            hand = teleoperator.read()
            assert hand.linear == pytest.approx([0.2, 0, 0], abs=1e-3)

            pad.move(ABS_Y, 0)
            pad.move(ABS_X, 32767)
            wait_for("the stick to the right", lambda: teleoperator.read().linear[1] < -0.19)
            pad.move(ABS_RZ, 255)
            wait_for("the gripper to close", lambda: teleoperator.read().gripper == 0)
        finally:
            teleoperator.close()


def test_unplugged_it_is_not_active_and_comes_back_when_it_was_let_go() -> None:
    with Gamepad() as pad:
        teleoperator = open_pad()
        try:
            pad.press(BTN_TR)
            wait_for("the bumper", lambda: teleoperator.read().active)
            pad.unplug()
            wait_for("the driver to notice", lambda: not teleoperator.read().active)
            with Gamepad() as second_pad:
                # the bumper moves until the driver has found the pad again, and is then seen to be let go and
                # held
                def is_active() -> bool:
                    second_pad.press(BTN_TR, down=False)
                    teleoperator.read()
                    second_pad.press(BTN_TR)
                    return teleoperator.read().active

                wait_for("the pad to come back", is_active)
        finally:
            teleoperator.close()


def test_without_a_pad_it_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match="there is no gamepad"):
        make("pad", Config()).open()
