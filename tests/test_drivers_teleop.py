"""Hands on real devices: keys on a pseudo terminal, a pad that SDL itself makes, reports of a SpaceMouse."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulna.drivers import gamepad, keyboard, spacemouse
from ulna.drivers.arm import DeviceError
from ulna.drivers.config import parse
from ulna.drivers.gamepad import GamepadTeleoperator, Pad
from ulna.drivers.keyboard import KeyboardTeleoperator
from ulna.drivers.spacemouse import Puck, parse_report
from ulna.drivers.teleoperator import Hand, Teleoperator

pytestmark = pytest.mark.realtime

SOON_S = 20.0


def until(
    device: Teleoperator, wanted: Callable[[Hand], Any], meanwhile: Callable[[], object] = lambda: None
) -> Hand:
    """Reads until a hand is as `wanted`; `meanwhile` is done between two reads."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        meanwhile()
        hand = device.read()
        if wanted(hand):
            return hand
        time.sleep(0.005)
    raise AssertionError(f"not within {SOON_S} s; the last one: {device.read()}")


def check_bad_config(module: Any, table: dict[str, Any], match: str) -> None:
    with pytest.raises(DeviceError, match=match):
        module.make("hand", parse(module.Config, table, "robot.toml, [teleoperators.hand]"))


# -- keyboard ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """(the side that types, the side that is typed on)."""
    master, slave = pty.openpty()
    try:
        yield master, slave
    finally:
        for end in (master, slave):
            with contextlib.suppress(OSError):
                os.close(end)


@contextlib.contextmanager
def keys(**config: float) -> Iterator[tuple[KeyboardTeleoperator, Callable[[bytes], object]]]:
    with terminal() as (master, slave):
        device = KeyboardTeleoperator("keys", keyboard.Config(**config), slave, lambda text: None)
        device.open()
        try:
            yield device, lambda text: os.write(master, text)
        finally:
            device.close()


@pytest.mark.parametrize(
    ("key", "axis", "sign"), [("i", 0, 1), ("k", 0, -1), ("j", 1, 1), ("l", 1, -1), ("u", 2, 1), ("m", 2, -1)]
)
def test_a_repeated_key_moves_and_a_key_let_go_stops(key: str, axis: int, sign: int) -> None:
    with keys(speed_m_s=0.1) as (device, typed):
        assert not device.read().active
        hand = until(device, lambda h: h.active, lambda: typed(key.encode()))
        assert hand.linear.tolist() == [0.1 * sign * (i == axis) for i in range(3)]
        assert not hand.angular.any()
        assert hand.gripper is None
        until(device, lambda h: not h.active)
        turned = until(device, lambda h: h.active, lambda: typed(key.upper().encode()))
        assert np.count_nonzero(turned.angular) == 1
        assert not turned.linear.any()


def test_the_newest_key_counts() -> None:
    with keys() as (device, typed):
        until(device, lambda h: h.linear[0] > 0, lambda: typed(b"i"))
        hand = until(device, lambda h: h.linear[0] < 0, lambda: typed(b"k"))
        assert hand.linear[0] == -0.08


def test_space_closes_and_opens_the_gripper_and_may_do_so_for_a_while() -> None:
    with keys(gripper_s=5.0) as (device, typed):
        closing = until(device, lambda h: h.active, lambda: typed(b" "))
        assert closing.gripper == 0.0
        assert not closing.linear.any()
        until(device, lambda h: h.gripper == 1.0, lambda: (typed(b" "), time.sleep(0.02)))
    with keys(gripper_s=0.1) as (device, typed):
        until(device, lambda h: h.gripper == 0.0, lambda: typed(b" "))
        until(device, lambda h: not h.active and h.gripper is None)


def test_keys_that_waited_long_move_nothing_but_their_words_count() -> None:
    with keys(hold_s=0.05) as (device, typed):
        device.read()
        typed(b"ii i\rsfrx")
        time.sleep(0.2)
        hand = device.read()
        assert not hand.active
        assert hand.events == ("finish", "success", "failure", "again", "drop last")


def test_arrows_are_words_and_a_lone_escape_quits() -> None:
    with keys() as (device, typed):
        typed(b"\x1b[C\x1b[D\x1b[A\x1b[15~q")
        assert until(device, lambda h: h.events).events == ("finish", "again", "quit")
        typed(b"\x1b")
        assert until(device, lambda h: h.events).events == ("quit",)
        typed(b"\x1b")  # an arrow that comes in two parts
        device.read()
        typed(b"[C")
        words = until(device, lambda h: h.events).events
        assert (
            words == ("finish",) or words[0] == "quit"
        )  # the latter when we were away for longer than a split key lasts


def test_no_key_has_two_meanings() -> None:
    assert not set(keyboard.MOVES) & set(keyboard.EVENTS)


def test_the_terminal_is_put_back() -> None:
    with terminal() as (master, slave):
        before = termios.tcgetattr(slave)
        device = KeyboardTeleoperator("keys", keyboard.Config(), slave, lambda text: None)
        os.write(master, b"i")
        device.open()
        device.open()
        assert not termios.tcgetattr(slave)[3] & termios.ICANON
        assert not device.read().active  # typed before it was opened
        device.close()
        device.close()
        assert termios.tcgetattr(slave) == before
        assert not device.read().active
        device.open()
        del device  # nobody closed it
        assert termios.tcgetattr(slave) == before


def test_the_terminal_is_put_back_when_the_program_breaks_off() -> None:
    program = (
        "from ulna.drivers.keyboard import *\n"
        "device = make('keys', Config()); device.open(); print('open', flush=True); device.read(); raise SystemError"
    )
    with terminal() as (master, slave):
        before = termios.tcgetattr(slave)
        process = subprocess.run(
            [sys.executable, "-c", program], stdin=slave, capture_output=True, text=True, check=False
        )
        assert process.returncode == 1
        assert process.stdout == "open\n"
        assert keyboard.HELP in process.stderr
        assert termios.tcgetattr(slave) == before
        assert master >= 0


def test_a_terminal_that_goes_away_reads_as_let_go() -> None:
    with terminal() as (master, slave):
        device = KeyboardTeleoperator("keys", keyboard.Config(), slave, lambda text: None)
        device.open()
        until(device, lambda h: h.active, lambda: os.write(master, b"i"))
        os.close(master)
        until(device, lambda h: not h.active)
        assert not device.read().active
        device.close()


def test_standard_input_must_be_a_terminal() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(DeviceError, match="needs a terminal"):
            KeyboardTeleoperator("keys", keyboard.Config(), reading).open()
    finally:
        os.close(reading)
        os.close(writing)
    check_bad_config(keyboard, {"hold_s": 9}, "hold_s is 9")


# -- gamepad -----------------------------------------------------------------------------------------------------------------

ways = st.floats(-1, 1)
shares = st.floats(0, 1)
deadzones = st.floats(0, 0.9)


@given(ways, ways, deadzones)
def test_a_stick_is_odd_grows_has_a_middle_and_ends(a: float, b: float, deadzone: float) -> None:
    f, g = gamepad.shaped(a, deadzone), gamepad.shaped(b, deadzone)
    assert gamepad.shaped(-a, deadzone) == -f
    assert abs(f) <= 1
    assert f == 0 or np.sign(f) == np.sign(a)
    assert f == 0 if abs(a) <= deadzone else abs(f) > 0 or abs(a) - deadzone < 1e-9
    assert f <= g or a > b
    assert gamepad.shaped(1.0, deadzone) == pytest.approx(1)


@given(
    st.lists(ways, min_size=4, max_size=4),
    st.lists(shares, min_size=2, max_size=2),
    st.frozensets(st.integers(0, 14)),
)
def test_a_pad_moves_nothing_without_its_bumper_and_never_too_fast(
    sticks: list[float], triggers: list[float], pressed: frozenset[int]
) -> None:
    config = gamepad.Config(bumper="right")
    pad = Pad(np.array(sticks), np.array(triggers), pressed)
    hand = gamepad.hand_of(pad, config, 0.5)
    assert hand.active == (10 in pressed)
    assert np.linalg.norm(hand.linear) <= config.speed_m_s * (1 + 1e-9)
    assert np.abs(hand.angular).max() <= config.turn_rad_s
    if not hand.active:
        assert not hand.linear.any()
        assert not hand.angular.any()
        assert hand.gripper is None
    mirrored = gamepad.hand_of(dataclasses.replace(pad, sticks=-pad.sticks), config, 0.5)
    assert np.array_equal(mirrored.linear, -hand.linear)
    assert mirrored.angular[2] == -hand.angular[2]


def test_which_way_a_pad_moves() -> None:
    def ask(sticks: list[float], *pressed: int) -> Hand:
        return gamepad.hand_of(
            Pad(np.array(sticks), np.zeros(2), frozenset((9, *pressed))), gamepad.Config(speed_m_s=0.2)
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
    """A pad that SDL makes itself: the driver's own SDL finds, reads and loses it like one on a cable. To be made while SDL runs."""

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


def test_without_a_pad_it_says_what_to_do_and_leaves_the_process_as_it_was() -> None:
    program = (
        "import os, signal, sys, threading\n"
        "from ulna.drivers.gamepad import *\n"
        "before = dict(os.environ)\n"
        "try: make('pad', Config()).open()\n"
        "except DeviceError as error: print(error)\n"
        "assert dict(os.environ) == before and not (modules := sys.modules)['pygame'].display.get_init()\n"
        "import ulna.drivers.gamepad as g; g._load()\n"
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


# -- SpaceMouse --------------------------------------------------------------------------------------------------------------

counts = st.integers(-32768, 32767)
threes = st.tuples(counts, counts, counts)
MS = 1_000_000


@given(threes, threes, st.binary(max_size=40))
def test_reports_of_both_layouts_say_the_same(
    push: tuple[int, int, int], turn: tuple[int, int, int], rest: bytes
) -> None:
    apart = parse_report(struct.pack("<B3h", 1, *push)), parse_report(struct.pack("<B3h", 2, *turn) + rest)
    assert apart[0] is not None
    assert apart[0].push == push
    assert apart[0].turn is None
    assert apart[1] is not None
    assert apart[1].turn == turn
    assert apart[1].push is None
    both = parse_report(struct.pack("<B6h", 1, *push, *turn) + rest)
    assert both is not None
    assert both.push == push
    assert both.turn == turn


@given(st.binary(max_size=64))
def test_no_report_upsets_the_parser(report: bytes) -> None:
    puck = Puck(spacemouse.Config(dead_man="none"))
    puck.hear(report, 5)
    hand = puck.hand(5)
    assert np.abs(hand.linear).max() <= 0.15 + 1e-12
    assert np.abs(hand.angular).max() <= 1 + 1e-12


@given(threes, threes, deadzones)
def test_a_cap_is_odd_grows_has_a_middle_and_ends(
    a: tuple[int, int, int], b: tuple[int, int, int], deadzone: float
) -> None:
    f, g = spacemouse.shaped(a, deadzone), spacemouse.shaped(b, deadzone)
    order = [1, 0, 2]  # of the device's axes in the robot's, each the other way
    for i, j in enumerate(order):
        assert abs(f[i]) <= 1
        assert (
            f[i] == 0 if abs(a[j]) / 350 <= deadzone else f[i] * a[j] < 0 or abs(a[j]) / 350 - deadzone < 1e-9
        )
        assert f[i] >= g[i] or a[j] > b[j]
    negative = -a[0], -a[1], -a[2]
    assert np.array_equal(spacemouse.shaped(negative, deadzone), -f)


def test_a_cap_moves_only_while_the_button_is_held_and_stops_when_it_falls_silent() -> None:
    puck = Puck(spacemouse.Config(speed_m_s=0.1))
    ahead = struct.pack("<B3h", 1, 0, -350, 0)
    puck.hear(ahead, 0)
    assert not puck.hand(0).active
    puck.hear(b"\x03\x01\x00", 10 * MS)
    hand = puck.hand(20 * MS)
    assert hand.active
    assert hand.linear.tolist() == pytest.approx([0.1, 0, 0])
    assert hand.t_receive_ns == 10 * MS
    silent = puck.hand(300 * MS)
    assert silent.active
    assert not silent.linear.any()
    puck.hear(struct.pack("<B6h", 1, -350, 0, 0, 0, 0, -350), 310 * MS)
    hand = puck.hand(310 * MS)
    assert hand.linear.tolist() == pytest.approx([0, 0.1, 0])
    assert hand.angular.tolist() == pytest.approx([0, 0, 1])
    puck.hear(b"\x03\x00\x00", 320 * MS)
    assert not puck.hand(321 * MS).active


def test_the_right_button_closes_and_opens_the_gripper() -> None:
    puck = Puck(spacemouse.Config())
    puck.hear(b"\x03\x02\x00", 0)
    assert puck.gripper is None  # the left one is not held
    for buttons, gripper in ((1, None), (3, 0.0), (1, 0.0), (3, 1.0)):
        puck.hear(bytes((3, buttons, 0)), MS)
        hand = puck.hand(MS)
        assert hand.active
        assert hand.gripper == gripper
    loose = Puck(spacemouse.Config(dead_man="none", gripper_s=1.0))
    assert not loose.hand(MS).active
    loose.hear(struct.pack("<B3h", 1, 0, 0, -350), MS)
    assert loose.hand(2 * MS).active
    assert loose.hand(2 * MS).linear[2] > 0
    assert not loose.hand(400 * MS).active
    loose.hear(b"\x03\x02\x00", 500 * MS)
    assert loose.hand(900 * MS).active
    assert loose.hand(900 * MS).gripper == 0.0
    assert not loose.hand(1600 * MS).active


def test_without_a_spacemouse_it_says_what_to_do() -> None:
    device = spacemouse.make("puck", spacemouse.Config())
    assert not device.read().active
    with pytest.raises(DeviceError, match=r"SpaceMouse.*uaccess"):
        device.open()
    device.close()
    check_bad_config(spacemouse, {"dead_man": "right"}, "dead_man is 'right', it must be left or none")
