"""Dynamixel protocol 2.0 packets: bytes in, checked packets out. Shared by the driver and by the servos of
its twin.

`FF FF FD 00 | id | length, 2 | instruction | parameters, stuffed | CRC-16, 2`, little endian; the length
counts from the instruction to the CRC (Robotis e-Manual, "DYNAMIXEL Protocol 2.0")."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

HEADER = b"\xff\xff\xfd\x00"
OVERHEAD = 10  # bytes of an instruction without parameters; a status has one more, for its error
STATUS_OVERHEAD = OVERHEAD + 1
CHAIN_HEAD, CHAIN_OVERHEAD = 8, 4  # bytes of a fast sync read's reply: before all data, beside each servo's
BROADCAST = 0xFE
ALERT = 0x80  # in a status' error: the servo's hardware error status is not 0


class Instruction(IntEnum):
    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REBOOT = 0x08
    STATUS = 0x55
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83
    FAST_SYNC_READ = 0x8A


def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x8005 if crc & 0x8000 else 0)
        entries.append(crc & 0xFFFF)
    return tuple(entries)


_CRC = _table()


def crc16(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """x¹⁶ + x¹⁵ + x² + 1, most significant bit first, starting at 0; `crc` continues an earlier one."""
    for byte in data:
        crc = (crc << 8 & 0xFF00) ^ _CRC[crc >> 8 ^ byte]
    return crc


def stuff(body: bytes) -> bytes:
    """Within a packet no header may appear: FF FF FD becomes FF FF FD FD."""
    return body.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")


def unstuff(body: bytes) -> bytes:
    return body.replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")


@dataclass(frozen=True, slots=True)
class Packet:
    """parameters: without stuffing; those of a status begin with its error byte. wire: the whole packet as it
    was on the line."""

    id: int
    instruction: int
    parameters: bytes
    wire: bytes


def encode(servo: int, instruction: int, parameters: bytes = b"") -> bytes:
    body = stuff(bytes((instruction,)) + parameters)
    packet = HEADER + struct.pack("<BH", servo, len(body) + 2) + body
    return packet + struct.pack("<H", crc16(packet))


def cut_packet(buffer: bytearray, longest: int = 1024) -> tuple[Packet | None, int]:
    """Cut the first packet off `buffer`, and the rubbish before it. Returns the packet, None when there is no
    whole one yet, and the number of garbled packets dropped.

    Only the CRC tells a packet. Where it fails, only one byte is dropped, so that a whole packet behind a
    garbled one is still found. longest: bytes of the longest packet to expect; a larger length is garbled,
    and its end is not waited for."""
    corrupt = 0
    while True:
        start = buffer.find(HEADER)
        if start < 0:  # its beginning may be here already
            del buffer[: max(0, len(buffer) - len(HEADER) + 1)]
            return None, corrupt
        del buffer[:start]
        if len(buffer) < 7:
            return None, corrupt
        servo, length = struct.unpack_from("<BH", buffer, 4)
        end = 7 + length
        if 3 <= length <= longest - 7:
            if len(buffer) < end:
                return None, corrupt
            wire = bytes(buffer[:end])
            if crc16(wire[:-2]) == wire[-2] | wire[-1] << 8:
                del buffer[:end]
                return Packet(servo, wire[7], unstuff(wire[8:-2]), wire), corrupt
        corrupt += 1
        del buffer[0]


def give_up_first(buffer: bytearray) -> bool:
    """When no more bytes will come: drop the start of a packet that waits for its end, so that `cut_packet`
    looks behind it. False: `buffer` is empty."""
    del buffer[:1]
    return bool(buffer)


def chain_length(count: int, size: int) -> int:
    """Bytes of a fast sync read's reply from `count` servos of `size` bytes each."""
    return CHAIN_HEAD + count * (size + CHAIN_OVERHEAD)


def chain_head(count: int, size: int) -> bytes:
    """What the first servo of a fast sync read sends before its own part."""
    length = chain_length(count, size) - 7
    return HEADER + struct.pack("<BHB", BROADCAST, length, Instruction.STATUS)


def chain_part(reply: bytes, servo: int, error: int, data: bytes) -> bytes:
    """What one servo adds to a fast sync read's reply. reply: what came before it, which its CRC covers.
    Nothing is stuffed here."""
    part = bytes((error, servo)) + data
    return part + struct.pack("<H", crc16(part, crc16(reply)))


def decode_chain(reply: bytes, count: int, size: int) -> tuple[dict[int, tuple[int, bytes]], int]:
    """Error and data by id from a fast sync read's reply, and the number of garbled parts.

    Each part ends with the CRC of the whole reply up to there. Behind a garbled part the check goes on from
    the CRC that its servo sent, because the next servo went on from that as well. So a flipped bit in a
    servo's data costs that servo alone; one in its CRC costs the next servo, too."""
    head = chain_head(count, size)
    start = reply.find(head)
    if start < 0:
        return {}, 0
    answers: dict[int, tuple[int, bytes]] = {}
    corrupt, crc, at, step = 0, crc16(head), start + len(head), size + CHAIN_OVERHEAD
    for _ in range(count):
        part = reply[at : at + step]
        if len(part) < step:
            break
        crc_sent = part[-2] | part[-1] << 8
        if crc16(part[:-2], crc) == crc_sent:
            answers[part[1]] = (part[0], part[2:-2])
        else:
            corrupt += 1
        crc = crc16(part[-2:], crc_sent)
        at += step
    return answers, corrupt
