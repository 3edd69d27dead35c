"""What a sender that means harm can make the server spend: values, bytes, connections, seconds."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from contracts.policy import Linear
from hypothesis import given
from hypothesis import strategies as st

from ulna.policies.request import Request
from ulna.policies.serving import websocket
from ulna.policies.serving.client import PolicyClient
from ulna.policies.serving.protocol import (
    MAX_ELEMENTS,
    MAX_TEXT_BYTES,
    ProtocolError,
    TooManyElements,
    pack,
    unpack,
)
from ulna.policies.serving.server import PolicyServer

STATE = {"observation.state": np.array([1, -1], np.float32)}
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

# what may be in a message beside arrays
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=30,
)

# reading


@given(plain)
def test_whatever_msgpack_writes_is_read_as_msgpack_reads_it(value: Any) -> None:
    data = msgpack.packb(value)
    assert data is not None
    assert repr(unpack(data)) == repr(msgpack.unpackb(data)), "repr, since a nan is not itself"


@given(st.binary(max_size=300))
def test_what_is_read_is_what_msgpack_reads(data: bytes) -> None:
    try:
        value = unpack(data)
    except ProtocolError:
        return
    if not isinstance(value, np.ndarray | np.generic):
        assert repr(value) == repr(msgpack.unpackb(data))


def many(value: bytes, n: int) -> bytes:
    return b"\xdd" + n.to_bytes(4, "big") + value * n


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (many(b"\xd4\x00\x00", 5 << 20), "extension type"),
        (many(b"\xc7\x00\x00", 5 << 20), "extension type"),
        (many(b"\xd6\xff\x00\x00\x00\x00", 1 << 20), "extension type"),
        (many(b"\xa2ab", 5 << 20), "65536 values"),
        (many(b"\x01", 16 << 20), "65536 values"),
        (many(b"\x90", 16 << 20), "65536 values"),
        (many(b"\xc4\x00", 8 << 20), "65536 values"),
        (msgpack.packb({str(i): i for i in range(60_000)}), "65536 values"),
        (b"\x91" * 100 + b"\x01", "32 maps and lists deep"),
        (b"\x81\xa1a" * 100 + b"\x01", "32 maps and lists deep"),
        (b"\xdd\xff\xff\xff\xff", "ends too early"),
        (b"\xdf\xff\xff\xff\xff" + b"\x01" * 99, "ends too early"),
        (b"\xc6\xff\xff\xff\xff", "ends too early"),
        (many(msgpack.packb("x" * 60_000) or b"", 40), "bytes of text"),
        (b"\xc1", "byte c1"),
        (b"\xa2\xff\xff", "not UTF-8"),
        (b"\x01\x02", "1 bytes follow its end"),
    ],
)
def test_a_hostile_message_is_refused_at_the_first_value_too_many(data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        unpack(data)


def test_reading_stops_where_it_is_told_to() -> None:
    data = many(b"\x01", 1000)
    assert len(unpack(data, 1001)) == 1000
    with pytest.raises(TooManyElements, match="may hold 500 values"):
        unpack(data, 500)
    # copies count, too: bytes outside of arrays
    with pytest.raises(TooManyElements):
        unpack(pack({"x": bytes(3 << 20)}), 500)
    assert len(unpack(pack({"x": np.zeros(3 << 20, np.uint8)}), 500)["x"]) == 3 << 20


def test_a_large_array_is_a_view_of_its_message_and_a_small_one_is_not() -> None:
    data = pack({"image": np.arange(100_000, dtype=np.uint8), "state": np.zeros(3, np.float32)})
    message = unpack(memoryview(data))
    assert np.shares_memory(message["image"], np.frombuffer(data, np.uint8))
    assert not np.shares_memory(message["state"], np.frombuffer(data, np.uint8))
    assert message["state"].flags.aligned
    assert not message["image"].flags.writeable


def test_arrays_are_read_whatever_the_order_of_their_keys() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    parts = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<f4", b"shape": [2, 3]}
    for keys in (parts, reversed(parts), sorted(parts, reverse=True)):
        data = msgpack.packb({k: parts[k] for k in keys})
        assert data is not None
        np.testing.assert_array_equal(unpack(data), array)
    with pytest.raises(ProtocolError, match="keys are text, not 1"):
        unpack(b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x00\x01\x02\x03\x04")


def test_a_message_that_ends_anywhere_too_early_is_refused() -> None:
    data = pack({"image": np.zeros((2, 300, 3), np.uint8), "state": np.zeros(3, ">f4"), "task": "lift"})
    assert unpack(data)["image"].shape == (2, 300, 3)
    for end in range(len(data)):
        with pytest.raises(ProtocolError, match="it ends too early"):
            unpack(data[:end])


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [("<U0", [1 << 40], b""), ("|S0", [1 << 40], b""), ("<f4", [1 << 62, 0], b""), ("<f4", [0] * 17, b""),
     ("<U99999999999", [1], b"x"), ("f4,f4", [1], b"x" * 8), ("i4," * 100, [1], b""), ("<f4", [-1, 0], b"")],
)  # fmt: skip
def test_an_array_takes_no_more_than_its_bytes(dtype: str, shape: list[int], data: bytes) -> None:
    lie = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    with pytest.raises(ProtocolError):
        unpack(msgpack.packb(lie) or b"")


LONG = [np.arange(1000, dtype=np.float32)] * 5000  # numpy takes a minute to write it


@pytest.mark.parametrize(
    "request_",
    [
        {"_rt": {"seed": LONG}},
        {"_rt": {"delay": LONG}},
        {"_rt": {"deadline_ms": LONG}},
        {"_rt": {"options": LONG}},
        {"_rt": {"options": {"steps": LONG}}},
        {"_rt": {"options": {"steering": [{"part": LONG}]}}},
        {"_rt": {"options": {"steering": [{"part": "x" * 1000}]}}},
        {"_rt": {"options": {str(i): i for i in range(500)}}},
        {b"x" * (1 << 20): 1},
    ],
)
def test_a_sentence_about_a_long_value_is_short_and_soon_made(request_: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        Request.from_wire(request_)
    assert len(str(caught.value)) < 300


def test_options_are_what_one_writes_by_hand() -> None:
    options = {"steps": np.int64(5), "steering": [{"part": "CFG", "weight": 2.0, "of": [1, 2, [3]]}]}
    assert Request.from_wire({"_rt": {"options": options}}).options == options


# connections


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with PolicyServer(
        Linear(), port=0, max_message_bytes=1 << 20, max_held_bytes=4 << 20, max_connections=12
    ).background() as running:
        yield running


def raw(server: PolicyServer, opened: bool = True) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    if opened:
        connection.sendall(HANDSHAKE)
        got = b""
        while b"\r\n\r\n" not in got:
            got += connection.recv(4096)
        assert got.startswith(b"HTTP/1.1 101")
    return connection


def frame(payload: bytes, opcode: int = 2, last: bool = True, length: int | None = None) -> bytes:
    """As a client sends it, masked by zeros. length: what its head says."""
    n = len(payload) if length is None else length
    size = bytes([0x80 | n]) if n < 126 else bytes([0xFF]) + n.to_bytes(8, "big")
    return bytes([opcode | 0x80 * last]) + size + bytes(4) + payload


def end(connection: socket.socket) -> tuple[int, str]:
    """Code and reason of the close frame that comes, other frames left out."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    while data:
        opcode, n = data[0] & 15, data[1]
        at = 2
        if n == 126:
            n, at = int.from_bytes(data[2:4], "big"), 4
        if opcode == 8:
            return struct.unpack("!H", data[at : at + 2])[0], data[at + 2 : at + n].decode()
        data = data[at + n :]
    return 0, ""


def works(server: PolicyServer) -> None:
    with PolicyClient(server.url) as client:
        assert len(client.infer(STATE)["actions"]) == 4


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_partial_messages_share_one_memory(server: PolicyServer) -> None:
    """Whoever has most unfinished makes place; a client that asks for little is not touched."""
    with PolicyClient(server.url) as good:
        holders = [raw(server) for _ in range(8)]
        for i, holder in enumerate(holders):
            holder.sendall(frame(bytes(900_000 - i), length=1 << 20))
            until(lambda n=900_000 - i: n in [c.unfinished for c in list(server.room.connections)])
            assert server.room.held <= 4 << 20
        assert len(good.infer(STATE)["actions"]) == 4
        assert sum(c.unfinished > 0 for c in list(server.room.connections)) == 4
        code, reason = end(holders[0])
        assert (code, "memory for messages is full" in reason) == (1013, True)
        for holder in holders:
            holder.close()
    until(lambda: server.room.held == 0)


def test_memory_that_has_not_arrived_is_not_taken(server: PolicyServer) -> None:
    holder = raw(server)
    holder.sendall(frame(b"12345", length=1 << 20))
    until(lambda: server.room.held == 5)
    holder.close()
    until(lambda: server.room.held == 0)


def test_a_message_that_drips_is_ended(server: PolicyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "GRACE_S", 0.2)
    dripping, silent, idle = raw(server), raw(server, opened=False), raw(server)
    dripping.sendall(frame(b"12345", length=1000))
    silent.sendall(b"GET / HT")
    assert end(dripping) == (1008, "the message took too long to arrive")
    assert b"408" in silent.recv(100)
    idle.sendall(frame(b"", opcode=9))
    got = b""
    while not got.endswith(b"\x8a\x00"):
        got += idle.recv(4096)
        assert got, "whoever sends nothing may stay"
    for connection in (dripping, silent, idle):
        connection.close()
    works(server)


def test_a_reader_of_no_replies_is_ended(server: PolicyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "GRACE_S", 0.3)
    connection = raw(server)
    connection.settimeout(0.5)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.suppress(OSError):  # either it blocks or it is reset
        for _ in range(10_000):
            connection.sendall(frame(pack({"_rt": {"seed": bytes(1000)}})) * 100)  # its error is as long
    until(lambda: not server.room.connections)
    connection.close()
    works(server)


@pytest.mark.parametrize(
    ("flood", "code"),
    [
        (frame(b"", opcode=9) * 5000, 1008),
        (frame(b"", last=False) + frame(b"", opcode=0, last=False) * 5000, 1008),
        (frame(b"", last=False) + frame(b"", last=True), 1002),
        (frame(b"", opcode=0), 1002),
        (frame(b"x" * 126, opcode=9), 1002),
        (frame(b"", opcode=3), 1002),
        (b"\xf2\x80\x00\x00\x00\x00", 1002),
        (b"\x82\x05hello", 1002),
        (frame(b"", length=1 << 40), 1009),
        (frame(b"x", last=False) + frame(b"", opcode=0, length=1 << 20), 1009),
    ],
    ids=[
        *("pings", "fragments", "no end", "no beginning", "long ping", "opcode", "reserved"),
        *("no mask", "too large", "too large in pieces"),
    ],
)
def test_frames_against_the_protocol_end_their_connection(
    server: PolicyServer, flood: bytes, code: int
) -> None:
    with PolicyClient(server.url) as other:
        connection = raw(server)
        connection.sendall(flood)
        assert end(connection)[0] == code
        connection.close()
        assert len(other.infer(STATE)["actions"]) == 4
    until(lambda: server.room.held == 0)


def test_a_message_in_pieces_with_pings_between_is_one_message(server: PolicyServer) -> None:
    data = pack(STATE)
    connection = raw(server)
    pieces = [data[i : i + 7] for i in range(0, len(data), 7)]
    connection.sendall(frame(pieces[0], last=False))
    for piece in pieces[1:-1]:
        connection.sendall(frame(b"hi", opcode=9) + frame(piece, opcode=0, last=False))
    connection.sendall(frame(pieces[-1], opcode=0))
    got = b""
    while b"actions" not in got:
        got += connection.recv(4096)
    connection.close()


def test_small_messages_are_read_a_few_at_a_time(server: PolicyServer) -> None:
    """5,000 in one packet, each answered, while another is served."""
    flood = raw(server)
    with PolicyClient(server.url) as other:
        flood.sendall(frame(b"\xc1") * 5000)
        assert len(other.infer(STATE)["actions"]) == 4
        got = 0
        while got < 5000:
            got += flood.recv(1 << 20).count(b"no value begins")
    flood.close()


def test_whoever_has_said_nothing_makes_place_for_others(server: PolicyServer) -> None:
    silent = [raw(server, opened=False) for _ in range(30)]
    works(server)
    assert len(server.room.connections) <= 12
    for connection in silent:
        connection.close()
    clients = [PolicyClient(server.url) for _ in range(10)]
    works(server)
    for client in clients:
        client.close()


def test_more_connections_than_there_may_be_are_refused(server: PolicyServer) -> None:
    clients = [PolicyClient(server.url) for _ in range(12)]
    with socket.create_connection(("127.0.0.1", server.port)) as one_more:
        assert b"503" in one_more.recv(100)
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5000, 431),
        (b"GET / HTTP/1.1\r\n\r\n", 426),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"POST /models HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"POST /models HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 200),
        (HANDSHAKE.replace(b"13", b"8"), 426),
        (HANDSHAKE.replace(b"AAAA", b"?"), 426),
    ],
)
def test_what_is_no_websocket_gets_an_http_answer(server: PolicyServer, request_: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request_)
        assert connection.recv(100).startswith(b"HTTP/1.1 %d" % status)


def resident() -> int:
    pages = Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def hostile(rng: random.Random) -> bytes:
    """A message that is broken, large where it is decoded, or both."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 200))
    if kind == 1:
        data = bytearray(pack({**STATE, "x": np.zeros(50)}))
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if kind == 2:
        value = rng.choice([b"\x80", b"\x90", b"\xa1x", b"\xd4\0\0", b"\xd6\xff\0\0\0\0"])
        return many(value, rng.choice([600, 6000, 100_000]))
    if kind == 3:
        return b"\x91" * rng.randrange(1, 3000)
    if kind == 4:
        return pack({"x": ["é" * 1000] * 300})
    return pack(STATE)[: rng.randrange(1, 60)]


def test_fuzz_closes_nothing_and_takes_no_memory() -> None:
    rng = random.Random(0)
    with (
        PolicyServer(Linear(), port=0).background() as server,
        PolicyClient(server.url) as good,
    ):
        connection = raw(server)
        before, n = resident(), 0
        for i in range(500):
            connection.sendall(frame(hostile(rng), opcode=rng.choice([1, 2, 2, 2])))
            if i % 100 == 99:
                connection.sendall(frame(b"ping %d" % i, opcode=9))
                got = b""
                while b"ping %d" % i not in got:
                    got += connection.recv(1 << 20)
                    assert got, "it was closed"
                n += 1
                assert len(good.infer(STATE)["actions"]) == 4
        assert n == 5
        assert resident() - before < 100 << 20
        connection.close()


def test_limits_are_what_the_notes_say() -> None:
    assert (MAX_ELEMENTS, MAX_TEXT_BYTES) == (1 << 16, 1 << 20)
