"""Feetech protocol 0: packets and registers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulna.drivers.servos.feetech_protocol import REGISTERS, decode, encode, packet, packets
from ulna.drivers.servos.serial_port import ReplySizes


@given(st.integers(0, 253), st.integers(0, 255), st.binary(max_size=100), st.binary(max_size=40))
def test_a_packet_is_found_whole_behind_rubbish(servo: int, code: int, data: bytes, rubbish: bytes) -> None:
    wire = packet(servo, code, data)
    assert packets(wire) == ([(servo, code, data)], len(wire))
    matches, end = packets(rubbish.replace(b"\xff", b"\xfe") + wire)
    assert matches == [(servo, code, data)]
    assert end == len(rubbish) + len(wire)


@given(st.binary(max_size=200))
def test_rubbish_never_breaks_the_decoder(data: bytes) -> None:
    matches, end = packets(data)
    assert 0 <= end <= len(data)
    for match in matches:
        assert packet(*match) in data


@given(st.integers(0, 253), st.binary(min_size=2, max_size=8), st.integers(0, 13), st.integers(1, 255))
def test_one_wrong_byte_is_never_an_answer_of_the_same_servo(
    servo: int, data: bytes, at: int, flip: int
) -> None:
    wire = bytearray(packet(servo, 0, data))
    wire[at % len(wire)] ^= flip
    assert (servo, 0, data) not in packets(wire)[0]


@given(st.sampled_from(sorted(REGISTERS)), st.data())
def test_registers_hold_what_was_written(name: str, data: st.DataObject) -> None:
    r = REGISTERS[name]
    bits = 8 * r.size if r.sign_bit is None else r.sign_bit
    low = 0 if r.sign_bit is None else 1 - (1 << bits)
    value = data.draw(st.integers(low, (1 << bits) - 1))
    assert decode(r, encode(r, value)) == value
    for beyond in (low - 1, 1 << bits):
        with pytest.raises(ValueError, match=str(beyond)):
            encode(r, beyond)


def test_a_lost_reply_is_not_asked_for_again_in_the_same_size() -> None:
    sizes = ReplySizes()
    assert sizes.choose(2) == 2
    sizes.note_lost(2)
    assert sizes.choose(2) == 3
    sizes.note_lost(3)
    assert sizes.choose(2) == 4
    assert sizes.choose(3) == 4
    assert sizes.choose(5) == 5
