"""When replies go out, in which order, and whom they keep from being heard."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import pytest
from contracts.policy import Batched, Linear

from ulna.policies.serving import dispatcher as dispatching
from ulna.policies.serving.access import Access
from ulna.policies.serving.client import PolicyClient
from ulna.policies.serving.dispatcher import Dispatcher
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.models import Models
from ulna.policies.serving.protocol import pack, unpack
from ulna.policies.serving.server import PolicyServer

STATE = {"observation.state": np.array([1, -1], np.float32)}
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, BINARY, PING, PONG = 1, 2, 9, 10


def opened(server: PolicyServer) -> socket.socket:
    """A connection that has read its introduction."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(HANDSHAKE)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(1)
    assert received(connection)[0] == BINARY
    return connection


def sent(connection: socket.socket, payload: bytes, opcode: int = BINARY) -> None:
    """A frame as a client sends it, masked by zeros."""
    n = len(payload)
    size = bytes([0x80 | n]) if n < 126 else b"\xfe" + n.to_bytes(2, "big")
    connection.sendall(bytes([0x80 | opcode]) + size + bytes(4) + payload)


def received(connection: socket.socket, begun: bytes = b"") -> tuple[int, bytes]:
    """Opcode and payload of the next frame, of which `begun` is read already."""

    def exactly(n: int) -> bytes:
        got = bytearray()
        while len(got) < n:
            piece = connection.recv(n - len(got))
            assert piece, "the server closed the connection"
            got += piece
        return bytes(got)

    head = begun or exactly(2)
    n = head[1]
    if n >= 126:
        n = int.from_bytes(exactly(2 if n == 126 else 8), "big")
    return head[0] & 15, exactly(n)


def test_a_lone_reply_does_not_wait_for_the_loop() -> None:
    """The loop is held up in the middle of another's request, and the reply comes all the same."""
    policy, held_up, go_on = Linear(), threading.Event(), threading.Event()

    class Slow(Access):
        def refuse(self, address: str, authorization: str | None) -> Any:
            if policy.waiting.is_set():
                held_up.set()
                assert go_on.wait(20)
            return super().refuse(address, authorization)

    policy.gate.clear()
    replies = []
    with (
        PolicyServer(policy, port=0, access=Slow()).background() as server,
        PolicyClient(server.url) as client,
    ):
        asking = threading.Thread(target=lambda: replies.append(client.infer({**STATE, "slow": True})))
        asking.start()
        assert policy.waiting.wait(20)
        with socket.create_connection(("127.0.0.1", server.port)) as other:
            other.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert held_up.wait(20)
            policy.gate.set()
            asking.join(10)
            assert len(replies) == 1
            go_on.set()
            assert other.recv(4096).startswith(b"HTTP/1.1 200")
        assert client.infer(STATE)["server_timing"]["prev_total_ms"] > 0


def test_a_reply_that_is_not_taken_at_once_stays_whole() -> None:
    """It is more than the kernel takes at once, and the server has a ping to answer meanwhile."""
    actions = np.arange(4 << 20, dtype=np.float32).reshape(-1, 2)

    class Large:
        metadata = Metadata()

        def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
            return {"actions": actions}

    with PolicyServer(Large(), port=0).background() as server, opened(server) as connection:
        for _ in range(2):
            sent(connection, pack(STATE))
            begun = connection.recv(2)  # it is being written
            assert len(begun) == 2
            sent(connection, b"hi", PING)
            opcode, reply = received(connection, begun)
            assert opcode == BINARY
            np.testing.assert_array_equal(unpack(reply)["actions"], actions)
            assert received(connection) == (PONG, b"hi")


def test_replies_keep_the_order_of_the_requests() -> None:
    policy = Linear()
    policy.gate.clear()
    with PolicyServer(policy, port=0).background() as server, opened(server) as connection:
        sent(connection, pack({**STATE, "slow": True}))
        sent(connection, b"\xc1")
        sent(connection, pack({**STATE, "fail": True}))
        assert policy.waiting.wait(20)
        policy.gate.set()
        assert [received(connection)[0] for _ in range(3)] == [BINARY, TEXT, TEXT]


# of a batch


def dispatched(
    policy: Batched,
    work: Callable[[Dispatcher], Awaitable[Any]],
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    dispatcher = Dispatcher(Models({"policy": policy}))

    async def main() -> None:
        dispatcher.start()
        await work(dispatcher)

    try:
        asyncio.run(asyncio.wait_for(main(), 30), loop_factory=None if loop is None else lambda: loop)
    finally:
        policy.gate.set()
        dispatcher.close()


def ask(dispatcher: Dispatcher, name: str, told: list[str]) -> None:
    """In `told` once it is answered."""
    dispatcher.put(name, {**STATE, "who": name}, "", None, lambda result: told.append(name))


async def acquainted(dispatcher: Dispatcher, policy: Batched, names: list[str]) -> list[str]:
    """Names that are told: each is answered once, and then asks again while the worker is busy."""
    told: list[str] = []
    for name in names:
        await dispatcher.submit(name, {**STATE, "who": name})
    policy.busy.clear()
    policy.gate.clear()
    ask(dispatcher, "first", [])
    while not policy.busy.is_set():
        await asyncio.sleep(0)
    for name in names:
        ask(dispatcher, name, told)
    return told


@pytest.fixture
def nobody_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only whoever asks for the first time asks seldom; and a batch on which the machine stalled makes the
    next ones no smaller."""
    monkeypatch.setattr(dispatching, "QUICK_S", 1e6)
    monkeypatch.setattr(dispatching, "STRETCH", 1e9)


@pytest.mark.usefixtures("nobody_is_slow")
def test_whoever_asks_while_many_replies_go_out_is_heard_before_the_last_one() -> None:
    policy, names = Batched(), [str(i) for i in range(8)]

    async def work(dispatcher: Dispatcher) -> None:
        told = await acquainted(dispatcher, policy, names)
        policy.gate.set()
        while not told:
            await asyncio.sleep(0)
        assert len(told) < len(names), "this is where the loop reads"
        policy.gate.clear()
        policy.busy.clear()
        ask(dispatcher, "seldom", told)
        assert len(told) < len(names)
        while not policy.busy.is_set():
            await asyncio.sleep(0.001)
        assert policy.batches[-1] == ["seldom"]
        policy.gate.set()
        await dispatcher.drain()
        assert told == [*names, "seldom"]

    dispatched(policy, work)


class Standing(asyncio.SelectorEventLoop):
    """Time goes on by `pass_s` only: what comes in time here does so on any machine."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    async def pass_s(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(3):  # what is due, and what that asks for
            await asyncio.sleep(0)


def repeated(policy: Batched, loop: Standing, n_in_time: int) -> list[list[str]]:
    """What is computed together where eight have asked at once, and then so many of them do again, 3 ms after
    one another."""
    names = [str(i) for i in range(8)]

    async def work(dispatcher: Dispatcher) -> None:
        told = await acquainted(dispatcher, policy, names)
        policy.gate.set()
        while len(told) < len(names):
            await asyncio.sleep(0)
        policy.batches.clear()
        for name in names[:n_in_time]:
            ask(dispatcher, name, told)
            await loop.pass_s(0.003)
        await loop.pass_s(dispatching.GAP_S)
        while len(told) < len(names) + n_in_time:
            await loop.pass_s(0.001)

    dispatched(policy, work, loop)
    return policy.batches


@pytest.mark.usefixtures("nobody_is_slow")
@pytest.mark.parametrize("n", [8, 5])
def test_those_who_come_one_after_another_are_waited_for(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They need 21 ms, more than one is waited for; the batch goes 5 ms after the last of those who come."""
    monkeypatch.setattr(dispatching, "PATIENCE", 1e9)
    assert repeated(Batched(), Standing(), n)[0] == [str(i) for i in range(n)]


@pytest.mark.usefixtures("nobody_is_slow")
def test_nobody_is_waited_for_longer_than_a_part_of_what_computing_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatching, "PATIENCE", 0.0)
    assert repeated(Batched(), Standing(), 5)[0] == ["0"]
