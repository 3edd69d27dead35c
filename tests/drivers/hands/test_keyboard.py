"""Keys, on a pseudo terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from contracts.teleoperator import check_bad_config, until

from ulna.drivers.arm import DeviceError
from ulna.drivers.hands import keyboard
from ulna.drivers.hands.keyboard import KeyboardTeleoperator

pytestmark = pytest.mark.realtime


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
    with keys(speed_m_s=0.1) as (device, type_keys):
        assert not device.read().active
        hand = until(device, lambda h: h.active, lambda: type_keys(key.encode()))
        assert hand.linear.tolist() == [0.1 * sign * (i == axis) for i in range(3)]
        assert not hand.angular.any()
        assert hand.gripper is None
        until(device, lambda h: not h.active)
        turn = until(device, lambda h: h.active, lambda: type_keys(key.upper().encode()))
        assert np.count_nonzero(turn.angular) == 1
        assert not turn.linear.any()


def test_the_newest_key_counts() -> None:
    with keys() as (device, type_keys):
        until(device, lambda h: h.linear[0] > 0, lambda: type_keys(b"i"))
        hand = until(device, lambda h: h.linear[0] < 0, lambda: type_keys(b"k"))
        assert hand.linear[0] == -0.08


def test_space_closes_and_opens_the_gripper_and_may_do_so_for_a_while() -> None:
    with keys(gripper_s=5.0) as (device, type_keys):
        closing = until(device, lambda h: h.active, lambda: type_keys(b" "))
        assert closing.gripper == 0.0
        assert not closing.linear.any()
        until(device, lambda h: h.gripper == 1.0, lambda: (type_keys(b" "), time.sleep(0.02)))
    with keys(gripper_s=0.1) as (device, type_keys):
        until(device, lambda h: h.gripper == 0.0, lambda: type_keys(b" "))
        until(device, lambda h: not h.active and h.gripper is None)


def test_keys_that_waited_long_move_nothing_but_their_words_count() -> None:
    with keys(hold_s=0.05) as (device, type_keys):
        device.read()
        type_keys(b"ii i\rsfrx")
        time.sleep(0.2)
        hand = device.read()
        assert not hand.active
        assert hand.events == ("finish", "success", "failure", "again", "drop last")


def test_arrows_are_words_and_a_lone_escape_quits() -> None:
    with keys() as (device, type_keys):
        type_keys(b"\x1b[C\x1b[D\x1b[A\x1b[15~q")
        assert until(device, lambda h: h.events).events == ("finish", "again", "quit")
        type_keys(b"\x1b")
        assert until(device, lambda h: h.events).events == ("quit",)
        type_keys(b"\x1b")  # an arrow that comes in two parts
        device.read()
        type_keys(b"[C")
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
        "from ulna.drivers.hands.keyboard import *\n"
        "device = make('keys', Config()); device.open(); print('open', flush=True); device.read(); "
        "raise SystemError"
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
