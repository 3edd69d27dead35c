"""The client: deadlines, connections that are lost and made again, replies that are not for this robot."""

from __future__ import annotations

import contextlib
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from contracts.policy import Batched, Linear
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve
from websockets.utils import accept_key

from ulna.datasets.features import ACTION, Feature
from ulna.policies.request import EXTENSION, Request
from ulna.policies.serving.client import PolicyClient, PolicyServerError
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.protocol import ProtocolError, pack, unpack
from ulna.policies.serving.server import PolicyServer

STATE = {"observation.state": np.array([1, -1], np.float32)}


def metadata(*names: str) -> Metadata:
    return Metadata("flow", {ACTION: Feature((len(names),), "float32", names)}, checkpoint="c" * 64)


@contextlib.contextmanager
def fake(talk: Callable[[ServerConnection], None], port: int = 0, **more: Any) -> Iterator[str]:
    with serve(talk, "127.0.0.1", port, **more) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_reply_that_drips_is_late_at_the_requests_deadline() -> None:
    """Each byte comes in time, the whole does not."""
    over = threading.Event()

    def talk(connection: ServerConnection) -> None:
        connection.send(pack(metadata("a", "b").to_json()))
        connection.recv()
        reply = pack({"actions": np.zeros((50, 2), np.float32)})
        head = b"\x82\x7e" + len(reply).to_bytes(2, "big")
        for byte in head + reply:
            if over.wait(0.02):
                return
            with contextlib.suppress(OSError):
                connection.socket.send(bytes([byte]))

    with fake(talk) as url, PolicyClient(url, timeout_s=0.3) as client:
        began = time.monotonic()
        with pytest.raises(PolicyServerError, match=r"did not answer within 0.3 s"):
            client.infer(STATE)
        assert time.monotonic() - began < 5, "the whole reply takes 9 s"
        over.set()


def test_a_late_reply_is_not_taken_for_the_next_one() -> None:
    policy = Linear()
    with PolicyServer(policy, port=0).background() as server, PolicyClient(server.url, 0.3) as client:
        policy.gate.clear()
        with pytest.raises(PolicyServerError, match="did not answer within"):
            client.infer({**STATE, "slow": True})
        policy.gate.set()
        np.testing.assert_array_equal(
            client.infer({"observation.state": np.array([5, 5], np.float32)})["actions"][0], 5
        )


def test_the_server_computes_nothing_that_nobody_waits_for() -> None:
    policy = Batched()
    with (
        PolicyServer(policy, port=0).background() as server,
        PolicyClient(server.url) as holding,
        connect(server.url, proxy=None) as hasty,
    ):
        hasty.recv(20)
        policy.gate.clear()
        thread = threading.Thread(target=lambda: holding.infer({**STATE, "who": 1}))
        thread.start()
        assert policy.busy.wait(20)
        hasty.send(pack(Request({**STATE, "who": 2}, deadline_ms=200.0).to_wire()))
        assert "deadline of 200 ms passed before its turn" in str(hasty.recv(20))
        policy.gate.set()
        thread.join(20)
        holding.infer({**STATE, "who": 3})
    assert policy.batches == [[1], [3]]


@pytest.mark.parametrize("deadline", ["1", 0, -1, True, math.nan, math.inf, [1]])
def test_a_deadline_is_milliseconds(deadline: Any) -> None:
    with pytest.raises(ProtocolError, match=r"_rt.deadline_ms must be milliseconds from now"):
        Request.from_wire({EXTENSION: {"deadline_ms": deadline}})
    assert Request.from_wire(Request(STATE, deadline_ms=7.5).to_wire()).deadline_ms == 7.5


def test_clocks_may_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes over the wire are durations: a client of another year is served alike."""
    requests: list[Any] = []

    def talk(connection: ServerConnection) -> None:
        connection.send(pack(metadata("a", "b").to_json()))
        for message in connection:
            assert isinstance(message, bytes)
            requests.append(unpack(message))
            connection.send(pack({"actions": np.zeros((1, 2), np.float32)}))

    real = time.time
    with fake(talk) as url:
        for years in (-20, 0, 20):
            monkeypatch.setattr(time, "time", lambda years=years: real() + years * 3e7)
            with PolicyClient(url, timeout_s=5.0) as client:
                client.infer(STATE)
    assert [r[EXTENSION] for r in requests] == [{"deadline_ms": 5000.0}] * 3


def test_a_strangers_server_is_told_nothing_that_it_may_not_know() -> None:
    requests: list[Any] = []

    def talk(connection: ServerConnection) -> None:
        connection.send(pack({}))
        for message in connection:
            assert isinstance(message, bytes)
            requests.append(unpack(message))
            connection.send(pack({"actions": np.zeros((1, 2), np.float32)}))

    with fake(talk) as url, PolicyClient(url) as client:
        client.infer(STATE)
    assert set(requests[0]) == {"observation.state"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_server_that_comes_back_is_asked_again() -> None:
    port = free_port()
    with PolicyServer(Batched(), port=port).background() as server:
        client = PolicyClient(server.url, reconnect_s=20.0)
        client.infer(STATE)
    back = threading.Event()

    def later() -> None:
        time.sleep(0.3)
        with PolicyServer(Batched(checkpoint="new"), port=port).background():
            back.wait(20)

    thread = threading.Thread(target=later)
    thread.start()
    assert client.infer(STATE)["checkpoint"] == "new"
    assert client.metadata.checkpoint == "new"
    back.set()
    thread.join()
    client.close()


def test_one_that_does_not_come_back_is_one_sentence() -> None:
    with PolicyServer(Batched(), port=0).background() as server:
        client = PolicyClient(server.url, reconnect_s=0.1)
    with pytest.raises(PolicyServerError, match=r"stopped or died; no policy server answers at ws://"):
        client.infer(STATE)
    with pytest.raises(PolicyServerError, match=r"no policy server answers"):
        client.infer(STATE)


def test_a_server_that_comes_back_with_another_robots_policy_is_refused_with_both_sides() -> None:
    port = free_port()
    with PolicyServer(Batched(), port=port).background() as server:
        client = PolicyClient(server.url)
    other = Batched()
    other.metadata = metadata("x", "y", "z")
    with PolicyServer(other, port=port).background(), pytest.raises(PolicyServerError) as caught:
        client.infer(STATE)
    client.close()
    assert "another policy: action as float32 (3,) of x, y, z, where" in str(caught.value)
    assert "this run began with action as float32 (2,)" in str(caught.value)


def test_a_chunk_of_another_checkpoint_is_refused_with_both_sides_where_one_was_named() -> None:
    with PolicyServer(Batched(checkpoint="served"), port=0).background() as server:
        with PolicyClient(server.url, checkpoint="served") as client:
            client.infer(STATE)
        with pytest.raises(PolicyServerError, match="the checkpoint served, and this run is of validate"):
            PolicyClient(server.url, checkpoint="validated")


def test_a_lost_connection_asks_once_more_and_not_for_ever() -> None:
    asked = []

    def talk(connection: ServerConnection) -> None:
        connection.send(pack(metadata("a", "b").to_json()))
        asked.append(connection.recv())

    with fake(talk) as url, PolicyClient(url) as client:
        with pytest.raises(PolicyServerError, match="stopped or died"):
            client.infer(STATE)
        assert len(asked) == 2


def test_a_request_is_late_at_its_deadline_also_where_it_connects_again() -> None:
    """The second connection is made slowly, and then nobody speaks."""
    met, over = [], threading.Event()

    def shake(connection: ServerConnection, head: object) -> None:
        met.append(head)
        over.wait(0.9 * (len(met) > 1))

    def talk(connection: ServerConnection) -> None:
        if len(met) == 1:
            connection.send(pack(metadata("a", "b").to_json()))
            connection.recv()
        else:
            over.wait(20)

    with fake(talk, process_request=shake) as url, PolicyClient(url, timeout_s=1.0) as client:
        began = time.monotonic()
        with pytest.raises(PolicyServerError):
            client.infer(STATE)
        took = time.monotonic() - began
        over.set()
    assert len(met) == 2
    assert took < 1.6, "not once more from the handshake on"


@contextlib.contextmanager
def raw(*answers: bytes) -> Iterator[str]:
    """A server that answers the handshake and what follows it in one packet each, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(4096)
                    key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
                    connection.sendall(
                        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        b"Sec-WebSocket-Accept: " + accept_key(key).encode() + b"\r\n\r\n" + answers[0]
                    )
                    for answer in answers[1:]:
                        connection.recv(1 << 20)
                        connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def message(data: bytes, opcode: int = 2) -> bytes:
    size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + size + data


INTRODUCTION = message(pack(metadata("a", "b").to_json()))
GOODBYE = message(b"\x03\xe8", 8)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([GOODBYE], "closed the connection"),
        ([INTRODUCTION + GOODBYE], "closed the connection"),
        ([INTRODUCTION], "closed the connection"),
        ([INTRODUCTION, message(b"out of order", 1) + GOODBYE], "says: out of order"),
        ([INTRODUCTION, message(b"out of order", 1)], "says: out of order"),
        ([INTRODUCTION, b""], "closed the connection"),
        ([INTRODUCTION, b"\x82\x7f" + bytes(8)[:3]], "closed the connection"),
        ([INTRODUCTION, b"\xf2\x00"], "sent garbage"),
        ([INTRODUCTION, message(pack([1])) + message(pack([1]))], "answered with a list"),
        ([b"\x82\x7f" + (1 << 40).to_bytes(8, "big")], "sent garbage"),
    ],
)
def test_however_a_connection_ends_it_is_one_sentence_and_soon(answers: list[bytes], says: str) -> None:
    with (
        raw(*answers) as url,
        pytest.raises(PolicyServerError, match=says),
        PolicyClient(url, timeout_s=5.0, connect_timeout_s=0.5, reconnect_s=0.2) as client,
    ):
        client.infer({**STATE, "x": np.zeros(100_000, np.uint8)})


def test_an_answer_that_nobody_asked_for_is_garbage() -> None:
    def talk(connection: ServerConnection) -> None:
        connection.send(pack(metadata("a", "b").to_json()))
        connection.send(pack({"actions": np.ones((1, 2), np.float32)}))
        for _ in connection:
            connection.send(pack({"actions": np.zeros((1, 2), np.float32)}))

    with fake(talk) as url, PolicyClient(url) as client:
        time.sleep(0.05)
        with pytest.raises(PolicyServerError, match="sent garbage"):
            client.infer(STATE)


def test_the_client_has_no_thread_of_its_own_and_loads_no_torch() -> None:
    script = (
        "import sys, threading\nfrom ulna.policies.serving.client import PolicyClient\n"
        "client = PolicyClient(sys.argv[1])\n"
        "assert threading.active_count() == 1\nassert 'torch' not in sys.modules\n"
        "assert 'prometheus_client' not in sys.modules\n"
    )
    with PolicyServer(Batched(), port=0).background() as server:
        subprocess.run([sys.executable, "-c", script, server.url], check=True, timeout=60)
