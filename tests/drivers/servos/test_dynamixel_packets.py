"""Dynamixel protocol 2.0: packets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ulna.drivers.servos.dynamixel_packets import (
    Instruction,
    chain_head,
    chain_part,
    crc16,
    cut_packet,
    decode_chain,
    encode,
    give_up_first,
)


def cut_all(data: bytes) -> list[tuple[int, int, bytes]]:
    """Every packet in a stream that has ended."""
    buffer, packets = bytearray(data), []
    while True:
        packet, _ = cut_packet(buffer)
        if packet is not None:
            packets.append((packet.id, packet.instruction, packet.parameters))
        elif not give_up_first(buffer):
            return packets


def test_packets_are_those_of_the_manual() -> None:
    # e-Manual, "DYNAMIXEL Protocol 2.0": ping, sync read, write, and their status packets
    assert encode(1, Instruction.PING).hex(" ") == "ff ff fd 00 01 03 00 01 19 4e"
    sync_read = encode(254, Instruction.SYNC_READ, bytes((0x84, 0, 4, 0, 1, 2)))
    assert sync_read.hex(" ") == "ff ff fd 00 fe 09 00 82 84 00 04 00 01 02 ce fa"
    write = encode(1, Instruction.WRITE, bytes.fromhex("74 00 00 02 00 00"))
    assert write.hex(" ") == "ff ff fd 00 01 09 00 03 74 00 00 02 00 00 ca 89"
    status = bytes.fromhex("ff ff fd 00 02 08 00 55 00 1f 08 00 00 ba be")
    assert cut_all(status) == [(2, 0x55, bytes.fromhex("00 1f 08 00 00"))]


# bytes that look like headers, often
pieces = st.sampled_from(
    [b"\xff\xff\xfd", b"\xff\xff\xfd\xfd", b"\xff\xff\xfd\x00", b"\xff", b"\xfd", b"\x00", b"\x55"]
)
nasty = st.lists(pieces, max_size=8).map(b"".join) | st.binary(max_size=40)
any_packet = st.tuples(st.integers(0, 252), st.sampled_from([0x02, 0x03, 0x55, 0x83]), nasty)


@given(st.lists(any_packet, max_size=5), st.lists(st.integers(1, 9), max_size=9))
def test_packets_survive_any_parameters_and_any_pieces(
    packets: list[tuple[int, int, bytes]], cuts: list[int]
):
    stream = b"".join(encode(*p) for p in packets)
    buffer, decoded_packets = bytearray(), []
    for n in [*cuts, len(stream)]:
        buffer += stream[:n]
        stream = stream[n:]
        while (packet := cut_packet(buffer)[0]) is not None:
            decoded_packets.append((packet.id, packet.instruction, packet.parameters))
    assert decoded_packets == packets
    assert not buffer


@given(nasty, any_packet, nasty)
def test_a_packet_is_found_between_rubbish(before: bytes, packet: tuple[int, int, bytes], after: bytes):
    # rubbish that ends in a piece of header could make another packet of ours only with a matching CRC
    assert packet in cut_all(before + b"\x00" + encode(*packet) + after)


@given(any_packet, any_packet, st.data())
def test_a_flipped_bit_costs_its_packet_alone(
    first: tuple[int, int, bytes], then: tuple[int, int, bytes], data
):
    wire = bytearray(encode(*first))
    bit = data.draw(st.integers(0, 8 * len(wire) - 1))
    wire[bit // 8] ^= 1 << bit % 8
    assert cut_all(bytes(wire) + encode(*then)) == [then]


def test_a_stuffed_packet_holds_no_header() -> None:
    wire = encode(1, 0x55, b"\xff\xff\xfd\x00\xff\xff\xfd\xfd\xff\xff\xff\xfd")
    assert wire.count(b"\xff\xff\xfd\x00") == 1
    assert wire[5] | wire[6] << 8 == len(wire) - 7


def chain_of(parts: list[tuple[int, int, bytes]], size: int) -> bytes:
    reply = chain_head(len(parts), size)
    for servo, error, data in parts:
        reply += chain_part(reply, servo, error, data)
    return reply


@given(st.integers(1, 6), st.integers(1, 8), st.data())
def test_a_chained_reply_loses_what_is_garbled_and_what_is_cut_off(count: int, size: int, data):
    parts = [
        (i + 1, data.draw(st.integers(0, 255)), data.draw(st.binary(min_size=size, max_size=size)))
        for i in range(count)
    ]
    all_answers = {servo: (error, values) for servo, error, values in parts}
    reply = chain_of(parts, size)
    assert crc16(reply[:-2]) == reply[-2] | reply[-1] << 8  # as one packet, too, it is right
    assert decode_chain(reply, count, size) == (all_answers, 0)
    # cut off anywhere: the whole ones before stand
    length = data.draw(st.integers(8, len(reply) - 1))
    answers, corrupt = decode_chain(reply[:length], count, size)
    assert answers == {i + 1: all_answers[i + 1] for i in range((length - 8) // (size + 4))}
    assert corrupt == 0
    # one flipped bit in the data of one servo costs that servo alone
    hurt = data.draw(st.integers(0, count - 1))
    bad_reply = bytearray(reply)
    bad_reply[8 + hurt * (size + 4) + 2] ^= 1 << data.draw(st.integers(0, 7))
    answers, corrupt = decode_chain(bytes(bad_reply), count, size)
    assert answers == {i: v for i, v in all_answers.items() if i != hurt + 1}
    assert corrupt == 1
