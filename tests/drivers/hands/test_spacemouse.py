"""SpaceMouse: reports and what they mean."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from contracts.teleoperator import check_bad_config
from hypothesis import given
from hypothesis import strategies as st

from ulna.drivers.arm import DeviceError
from ulna.drivers.hands import spacemouse
from ulna.drivers.hands.spacemouse import Puck, parse_report

counts = st.integers(-32768, 32767)
threes = st.tuples(counts, counts, counts)
deadzones = st.floats(0, 0.9)
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
    f, g = spacemouse.deflection(a, deadzone), spacemouse.deflection(b, deadzone)
    order = [1, 0, 2]  # of the device's axes in the robot's, each the other way
    for i, j in enumerate(order):
        assert abs(f[i]) <= 1
        assert (
            f[i] == 0 if abs(a[j]) / 350 <= deadzone else f[i] * a[j] < 0 or abs(a[j]) / 350 - deadzone < 1e-9
        )
        assert f[i] >= g[i] or a[j] > b[j]
    negative = -a[0], -a[1], -a[2]
    assert np.array_equal(spacemouse.deflection(negative, deadzone), -f)


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
