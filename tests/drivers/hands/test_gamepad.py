"""Gamepads: what sticks mean, and a pad that SDL itself makes."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from contracts.teleoperator import SOON_S, check_bad_config, until
from hypothesis import given
from hypothesis import strategies as st

from ulna.drivers.arm import DeviceError
from ulna.drivers.hands import gamepad
from ulna.drivers.hands.gamepad import GamepadTeleoperator, Pad
from ulna.drivers.teleoperator import Hand

ways = st.floats(-1, 1)
shares = st.floats(0, 1)
deadzones = st.floats(0, 0.9)


@given(ways, ways, deadzones)
def test_a_stick_is_odd_grows_has_a_middle_and_ends(a: float, b: float, deadzone: float) -> None:
    f, g = gamepad.stick_response(a, deadzone), gamepad.stick_response(b, deadzone)
    assert gamepad.stick_response(-a, deadzone) == -f
    assert abs(f) <= 1
    assert f == 0 or np.sign(f) == np.sign(a)
    assert f == 0 if abs(a) <= deadzone else abs(f) > 0 or abs(a) - deadzone < 1e-9
    assert f <= g or a > b
    assert gamepad.stick_response(1.0, deadzone) == pytest.approx(1)


@given(
    st.lists(ways, min_size=4, max_size=4),
    st.lists(shares, min_size=2, max_size=2),
    st.frozensets(st.integers(0, 14)),
)
def test_a_pad_moves_nothing_without_its_bumper_and_never_too_fast(
    sticks: list[float], triggers: list[float], buttons: frozenset[int]
) -> None:
    config = gamepad.Config(bumper="right")
    pad = Pad(np.array(sticks), np.array(triggers), buttons)
    hand = gamepad.hand_of(pad, config, 0.5)
    assert hand.active == (10 in buttons)
    assert np.linalg.norm(hand.linear) <= config.speed_m_s * (1 + 1e-9)
    assert np.abs(hand.angular).max() <= config.turn_rad_s
    if not hand.active:
        assert not hand.linear.any()
        assert not hand.angular.any()
        assert hand.gripper is None
    mirror = gamepad.hand_of(dataclasses.replace(pad, sticks=-pad.sticks), config, 0.5)
    assert np.array_equal(mirror.linear, -hand.linear)
    assert mirror.angular[2] == -hand.angular[2]


def test_which_way_a_pad_moves() -> None:
    def ask(sticks: list[float], *buttons: int) -> Hand:
        return gamepad.hand_of(
            Pad(np.array(sticks), np.zeros(2), frozenset((9, *buttons))), gamepad.Config(speed_m_s=0.2)
        )

    assert ask([0, -1, 0, 0]).linear.tolist() == pytest.approx([0.2, 0, 0])  # ahead
    assert ask([-1, 0, 0, 0]).linear.tolist() == pytest.approx([0, 0.2, 0])  # left
    assert ask([0, 0, 0, -1]).linear.tolist() == pytest.approx([0, 0, 0.2])  # up
    assert ask([0, 0, -1, 0]).angular.tolist() == pytest.approx([0, 0, 1])  # to the left
    assert ask([0, 0, 0, 0], gamepad.UP).angular.tolist() == [0, 1, 0]
    assert ask([0, 0, 0, 0], gamepad.LEFT).angular.tolist() == [-1, 0, 0]


@given(st.none() | shares, shares, shares)
def test_one_trigger_only_closes_and_the_other_only_opens(
    before: float | None, left: float, right: float
) -> None:
    now = gamepad.opening(before, left, right)
    assert now is None or 0 <= now <= 1
    assert gamepad.opening(before, 0, 0) == before
    if before is not None and now is not None:
        assert now <= before if right >= left else now >= before
    assert gamepad.opening(before, 0, 1) == 0
    assert gamepad.opening(before, 1, 0) == 1


class VirtualPad:
    """A pad that SDL makes itself: the driver's own SDL finds, reads and loses it like one on a cable. To be
    made while SDL runs."""

    def __init__(self) -> None:
        maps = Path("/proc/self/maps").read_text()
        # PyAV brings an SDL of its own, of which this process may have both
        library = next(
            line.split()[-1] for line in maps.splitlines() if "pygame" in line and "libSDL2-2" in line
        )
        self.sdl = ctypes.CDLL(library)
        self.sdl.SDL_JoystickOpen.restype = ctypes.c_void_p
        self.sdl.SDL_JoystickSetVirtualAxis.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int16]
        self.sdl.SDL_JoystickSetVirtualButton.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint8]
        self.sdl.SDL_JoystickClose.argtypes = [ctypes.c_void_p]
        self.plug()

    def plug(self) -> None:
        self.index = self.sdl.SDL_JoystickAttachVirtual(1, 6, 15, 0)  # of type game controller
        assert self.index >= 0
        self.stick = self.sdl.SDL_JoystickOpen(self.index)
        for trigger in (4, 5):
            self.axis(trigger, -32768)

    def unplug(self) -> None:
        self.sdl.SDL_JoystickClose(self.stick)
        assert self.sdl.SDL_JoystickDetachVirtual(self.index) == 0

    def axis(self, number: int, value: int) -> None:
        self.sdl.SDL_JoystickSetVirtualAxis(self.stick, number, value)

    def press(self, number: int, down: bool = True) -> None:
        self.sdl.SDL_JoystickSetVirtualButton(self.stick, number, int(down))


@contextlib.contextmanager
def sdl() -> Iterator[None]:
    """SDL as the driver loads it, kept for the length of the block."""
    pygame = gamepad._load()
    keeper = GamepadTeleoperator("keeper", gamepad.Config())
    keeper._pygame = pygame
    gamepad._users.append(keeper)
    try:
        yield
    finally:
        keeper.close()


@pytest.mark.realtime
def test_a_pad_through_sdl() -> None:
    with sdl():
        pad = VirtualPad()
        device = gamepad.make("pad", gamepad.Config(device="virtual", speed_m_s=0.2))
        device.open()
        try:
            assert not device.read().active
            pad.axis(1, -32768)
            hand = device.read()
            assert not hand.active
            assert not hand.linear.any()
            pad.press(10)
            hand = device.read()
            assert hand.active
            assert hand.linear.tolist() == pytest.approx([0.2, 0, 0])
            assert hand.gripper is None
            assert hand.t_receive_ns <= time.monotonic_ns()
            pad.axis(5, 32767)
            assert device.read().gripper == pytest.approx(0, abs=1e-3)
            pad.axis(5, -32768)
            assert device.read().gripper == pytest.approx(0, abs=1e-3)
            pad.press(0)
            assert device.read().events == ("success",)
            assert device.read().events == ()
            pad.press(10, down=False)
            assert not device.read().active
            pad.press(10)
            assert device.read().active

            pad.unplug()
            assert not device.read().active
            pad.plug()
            pad.press(10)  # held already when it comes back
            until(device, lambda _: device._pad is not None)
            assert not device.read().active
            pad.press(10, down=False)
            device.read()
            pad.press(10)
            assert device.read().active
        finally:
            device.close()
            pad.unplug()
        assert not device.read().active


@pytest.mark.realtime
def test_one_of_two_pads_is_chosen_by_its_name() -> None:
    with sdl():
        pads = VirtualPad(), VirtualPad()
        try:
            with pytest.raises(
                DeviceError, match=r"several gamepads fit: Virtual .*; say which one with device"
            ):
                gamepad.make("pad", gamepad.Config()).open()
            with pytest.raises(DeviceError, match=r"no gamepad is called 'DualSense'; there is Virtual"):
                gamepad.make("pad", gamepad.Config(device="DualSense")).open()
        finally:
            for pad in reversed(pads):
                pad.unplug()


@pytest.mark.realtime
def test_without_a_pad_it_says_what_to_do_and_leaves_the_process_as_it_was() -> None:
    program = (
        "import os, signal, sys, threading\n"
        "from ulna.drivers.hands.gamepad import *\n"
        "before = dict(os.environ)\n"
        "try: make('pad', Config()).open()\n"
        "except DeviceError as error: print(error)\n"
        "assert dict(os.environ) == before and not (modules := sys.modules)['pygame'].display.get_init()\n"
        "import ulna.drivers.hands.gamepad as g; g._load()\n"
        "print('ready', flush=True); threading.Event().wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert "gamepad" in lines[0]
        assert "group input" in lines[0]
        assert lines[1] == "ready\n"
        process.send_signal(signal.SIGTERM)  # SDL would catch it and go on
        assert process.wait(SOON_S) == -signal.SIGTERM
    finally:
        process.kill()
        _, errors = process.communicate()
    assert errors == ""
    check_bad_config(gamepad, {"bumper": "both"}, "bumper is 'both', it must be left, right or either")
