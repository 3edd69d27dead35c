"""The wire and the server, over real sockets."""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from contracts.policy import Linear
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from websockets.sync.client import connect
from websockets.sync.server import serve

from ulna.datasets.features import Feature
from ulna.policies.request import Request
from ulna.policies.serving.client import PolicyClient, PolicyServerError
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.protocol import ProtocolError, pack, unpack
from ulna.policies.serving.server import PolicyServer, ServerError

arrays = hnp.arrays(
    st.sampled_from(["<f4", "<f8", "|u1", "<i8", "|b1", "<f2", "<U3"]),
    hnp.array_shapes(min_dims=0, min_side=0),
)


@given(
    st.dictionaries(
        st.text(max_size=9), arrays | st.integers(-(2**63), 2**63) | st.text(max_size=9), max_size=4
    )
)
def test_messages_round_trip(message: dict[str, Any]) -> None:
    back = unpack(pack(message))
    assert list(back) == list(message)
    for key, value in message.items():
        if isinstance(value, np.ndarray):
            assert back[key].dtype == value.dtype
            assert back[key].shape == value.shape
            assert back[key].tobytes() == value.tobytes()
        else:
            assert back[key] == value


def test_arrays_have_openpis_bytes() -> None:
    expected = bytes.fromhex(
        "84 c40b5f5f6e6461727261795f5f c3 c40464617461 c408 0000803f00000040"
        "c4056474797065 a33c6634 c4057368617065 91 02"
    )
    assert pack(np.array([1, 2], np.float32)) == expected
    scalar = unpack(pack(np.float32(1.5)))
    assert scalar == np.float32(1.5)
    assert scalar.dtype == np.float32
    assert pack(np.float64(1.5)) == pack(1.5), "a float64 is a float"
    with pytest.raises(ValueError, match="read-only"):
        unpack(expected)[0] = 1


@given(st.binary(max_size=200))
def test_any_bytes_either_decode_or_are_refused_in_one_way(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        unpack(data)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        ({b"__ndarray__": True, b"data": b"12345678", b"dtype": "|O", b"shape": [1]}, "object"),
        (
            {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [1 << 40]},
            "cannot have 4 bytes",
        ),
        ({b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [-1]}, "whole numbers"),
        ({b"__ndarray__": True, b"dtype": "<f4", b"shape": [1]}, "lacks its data"),
        ({b"__ndarray__": True, b"data": b"12", b"dtype": "bogus", b"shape": [1]}, "dtype"),
        ({b"__ndarray__": True, b"data": bytes(8), b"dtype": None, b"shape": [1]}, "dtype"),
        ({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}, "scalar"),
        ({b"__npgeneric__": True, b"data": [1, 2], b"dtype": "<f4"}, "scalar"),
    ],
)
def test_arrays_that_lie_are_refused(array: dict[bytes, Any], says: str) -> None:
    import msgpack

    with pytest.raises(ProtocolError, match=says):
        unpack(bytes(msgpack.packb({"x": array}) or b""))
    with pytest.raises(ProtocolError, match="not allowed"):
        pack({"x": np.array([object()])})


@pytest.mark.parametrize("empty", [b"\x80", b"\x90"])
def test_a_small_message_cannot_become_a_large_object(empty: bytes) -> None:
    n = 70_000
    with pytest.raises(ProtocolError, match="maps and lists"):
        unpack(b"\xdd" + n.to_bytes(4, "big") + empty * n)


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with PolicyServer(Linear(), port=0, max_message_bytes=100_000).background() as running:
        yield running


def metadata(width: int) -> Metadata:
    return Metadata("flow", {"action": Feature((width,), "float32")}, horizon=16, control_hz=20.0)


STATE = {"observation.state": np.array([1, -1], np.float32)}


def test_a_client_gets_its_actions(server: PolicyServer) -> None:
    with PolicyClient(server.url) as client:
        assert client.metadata.checkpoint == "abc"
        reply = client.infer(Request(STATE, seed=7).to_wire())
        np.testing.assert_array_equal(reply["actions"], [[1, -1], [2, -2], [3, -3], [4, -4]])
        assert (reply["nfe"], reply["seed"]) == (3, 7)
        assert reply["policy_timing"]["infer_ms"] <= reply["server_timing"]["infer_ms"]
        assert "prev_total_ms" not in reply["server_timing"]
        again = client.infer(STATE)
        assert again["server_timing"]["prev_total_ms"] > 0
        assert again["seed"] == -1


def test_a_request_that_does_not_fit_costs_one_sentence_and_not_the_connection(server: PolicyServer) -> None:
    with PolicyClient(server.url) as client:
        with pytest.raises(PolicyServerError, match=r"lacks observation.state: the policy wants"):
            client.infer({"state": STATE["observation.state"]})
        with pytest.raises(PolicyServerError, match="seed must be a whole number"):
            client.infer(Request(STATE, seed=-3).to_wire())
        numpy_seed: Any = np.int64(3)
        assert client.infer(Request(STATE, numpy_seed).to_wire())["seed"] == 3
        with pytest.raises(PolicyServerError, match="log says why") as caught:
            client.infer({**STATE, "fail": True})
        assert "secret" not in str(caught.value)
        assert len(client.infer(STATE)["actions"]) == 4


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("text", "binary msgpack messages, not text"),
        (b"\xc1\xff\x00", "not msgpack"),
        (b"", "not msgpack"),
        (pack([1, 2]), "a map of observations, not a list"),
        (b"\x81\x01\x02", "not msgpack"),
        (pack({"observation.state": "?"}), "the policy failed"),
        (pack({**STATE, "odd": True}), "answer cannot be sent"),
        (pack({"_rt": {"seed": b"x" * 90_000}}), "seed must be a whole number"),
    ],
    ids=["text", "bytes", "empty", "list", "int key", "policy fails", "odd answer", "long seed"],
)
def test_malformed_messages_are_answered_and_others_unharmed(
    server: PolicyServer, message: str | bytes, says: str
) -> None:
    with PolicyClient(server.url) as other, connect(server.url, proxy=None) as bad:
        bad.recv()
        bad.send(message)
        answer = bad.recv(timeout=10)
        assert isinstance(answer, str)
        assert says in answer
        assert len(answer) <= 1000
        assert "Traceback" not in answer
        bad.send(pack(STATE))
        assert isinstance(bad.recv(timeout=10), bytes), "the same connection goes on"
        assert len(other.infer(STATE)["actions"]) == 4


def test_an_oversized_message_is_refused_and_others_unharmed(server: PolicyServer) -> None:
    with PolicyClient(server.url) as other, PolicyClient(server.url) as big:
        with pytest.raises(PolicyServerError, match="too large"):
            big.infer({**STATE, "observation.images.x": np.zeros(200_000, np.uint8)})
        assert len(other.infer(STATE)["actions"]) == 4


def test_the_server_answers_health_while_a_policy_thinks(server: PolicyServer) -> None:
    policy = server.policy
    assert isinstance(policy, Linear)
    policy.gate.clear()
    got: list[dict[str, Any]] = []
    with PolicyClient(server.url) as slow:
        thread = threading.Thread(target=lambda: got.append(slow.infer({**STATE, "slow": True})))
        thread.start()
        assert policy.waiting.wait(10)
        url = server.url.replace("ws://", "http://") + "/healthz"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            assert answer.read() == b"OK\n"
        with PolicyClient(server.url) as other:
            assert other.metadata.checkpoint == "abc"
        assert not got, "still thinking"
        policy.gate.set()
        thread.join(20)
    assert len(got[0]["actions"]) == 4


def test_a_port_in_use_is_one_sentence(server: PolicyServer) -> None:
    second = PolicyServer(Linear(), port=server.port).background()
    with pytest.raises(ServerError, match=r"cannot listen on 127.0.0.1:\d+.*another --port"), second:
        pass


def test_an_address_of_another_machine_is_not_called_a_port_in_use() -> None:
    with (
        pytest.raises(ServerError, match="of this machine"),
        PolicyServer(Linear(), "192.0.2.7", 0).background(),
    ):
        pass


def test_nobody_there_and_nonsense_addresses() -> None:
    with pytest.raises(PolicyServerError, match="ulna serve"):
        PolicyClient("ws://127.0.0.1:9", connect_timeout_s=0.3)
    with pytest.raises(PolicyServerError, match="ws://HOST:PORT"):
        PolicyClient("ftp://127.0.0.1", connect_timeout_s=0.3)


@pytest.mark.parametrize(
    ("replies", "says"),
    [
        ([pack({})], "closed the connection"),
        ([pack({}), b"\xc1"], "sent garbage"),
        ([pack({}), pack([1])], "answered with a list"),
        ([pack({}), pack({"actions": "none"})], "without an array of actions"),
        ([pack({}), pack({"actions": np.full((2, 2), np.nan)})], "not finite"),
        (
            [pack(metadata(3).to_json()), pack({"actions": np.zeros((2, 2))})],
            "2 action dimensions, not 3",
        ),
        ([pack(7)], "did not introduce itself"),
        ([pack({"features": None})], "not Ulna's"),
        ([pack({"features": {"action": {"shape": []}}})], "not Ulna's"),
        ([pack(metadata(3).to_json() | {"horizon": "16"})], "not Ulna's: its horizon cannot be '16'"),
    ],
)
def test_a_server_that_dies_or_talks_nonsense_is_one_sentence(replies: list[bytes], says: str) -> None:
    def talk(connection: Any) -> None:
        connection.send(replies[0])
        if len(replies) > 1:
            connection.recv()
            connection.send(replies[1])
            connection.recv()
        time.sleep(0)

    with serve(talk, "127.0.0.1", 0) as fake:
        thread = threading.Thread(target=fake.serve_forever)
        thread.start()
        try:
            url = f"ws://127.0.0.1:{fake.socket.getsockname()[1]}"
            with pytest.raises(PolicyServerError, match=says), PolicyClient(url) as client:
                client.infer(STATE)
        finally:
            fake.shutdown()
            thread.join()


def test_a_server_that_never_answers_times_out() -> None:
    release = threading.Event()

    def talk(connection: Any) -> None:
        connection.send(pack({}))
        release.wait(20)

    with serve(talk, "127.0.0.1", 0) as fake:
        thread = threading.Thread(target=fake.serve_forever)
        thread.start()
        try:
            client = PolicyClient(f"ws://127.0.0.1:{fake.socket.getsockname()[1]}", timeout_s=0.2)
            with pytest.raises(PolicyServerError, match=r"did not answer within 0.2 s"):
                client.infer(STATE)
        finally:
            release.set()
            fake.shutdown()
            thread.join()


def test_a_frozen_server_cannot_hold_the_client_for_ever() -> None:
    """Nobody reads: once the kernel's buffers are full, sending itself blocks."""
    frozen, thaw = threading.Event(), threading.Event()

    def talk(connection: Any) -> None:
        connection.send(pack({}))
        with connection.protocol_mutex:  # the thread that reads the socket needs it
            frozen.set()
            thaw.wait(30)

    with serve(talk, "127.0.0.1", 0) as fake:
        thread = threading.Thread(target=fake.serve_forever)
        thread.start()
        try:
            client = PolicyClient(f"ws://127.0.0.1:{fake.socket.getsockname()[1]}", timeout_s=0.5)
            assert frozen.wait(10)
            caught: list[Exception] = []

            def ask() -> None:
                try:
                    client.infer({"observation.images.x": np.zeros(32 << 20, np.uint8)})
                except PolicyServerError as error:
                    caught.append(error)

            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            asking.join(20)
            assert "took no message for 0.5 s" in str(caught)
        finally:
            thaw.set()
            fake.shutdown()
            thread.join()


def test_a_client_may_be_idle_for_longer_than_its_timeout(server: PolicyServer) -> None:
    with PolicyClient(server.url, timeout_s=0.3) as client:
        client.infer(STATE)
        time.sleep(0.7)
        assert len(client.infer(STATE)["actions"]) == 4
