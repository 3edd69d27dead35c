"""Keys, and how often one may be tried; TLS."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from contracts.policy import Batched

from ulna.drivers.certificate import tls_context
from ulna.policies.serving import access as access_module
from ulna.policies.serving.access import Access, is_loopback, make_key_file, read_keys
from ulna.policies.serving.client import PolicyClient, PolicyServerError
from ulna.policies.serving.server import PolicyServer

STATE = {"observation.state": np.array([1, -1], np.float32)}
KEY, OTHER = "k" * 32, "o" * 32


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with PolicyServer(Batched(), port=0, access=Access([KEY, OTHER])).background() as running:
        yield running


def status(server: PolicyServer, path: str, authorization: str = "") -> bytes:
    line = f"Authorization: {authorization}\r\n" if authorization else ""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\n{line}\r\n".encode())
        return connection.recv(2000)


def test_each_key_lets_in_by_either_scheme(server: PolicyServer) -> None:
    for key in (KEY, OTHER):
        with PolicyClient(server.url, key=key) as client:
            assert len(client.infer(STATE)["actions"]) == 1
    for word in ("Bearer", "bearer", "Api-Key"):
        assert b" 200 " in status(server, "/metrics", f"{word} {KEY}")


def test_a_wrong_key_is_one_sentence(server: PolicyServer) -> None:
    with pytest.raises(PolicyServerError, match="refused the connection: the key is none of this server's"):
        PolicyClient(server.url, key="w" * 32)
    with pytest.raises(PolicyServerError, match="this server asks for a key"):
        PolicyClient(server.url)


@pytest.mark.parametrize(
    "authorization", ["", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[1:]}", "Bearer é", "Bearer "]
)
@pytest.mark.parametrize("path", ["/metrics", "/models", "/", "/policy"])
def test_nothing_but_health_is_open(server: PolicyServer, path: str, authorization: str) -> None:
    assert b" 403 " in status(server, path, authorization)
    assert b" 200 " in status(server, "/healthz")
    assert b" 200 " in status(server, "/readyz")


def test_wrong_keys_are_tried_slowly(server: PolicyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(access_module.time, "monotonic", lambda: now[0])
    access = Access([KEY])

    def tried(key: str, address: str = "10.0.0.1") -> int:
        refusal = access.refuse(address, f"Bearer {key}")
        return refusal.status if refusal else 200

    assert [tried("w" * 16) for _ in range(7)] == [403] * 5 + [429] * 2
    assert tried(KEY) == 200, "a right one is let in, whoever else sends from there"
    assert tried(KEY, "10.0.0.2") == 200, "others are let in"
    now[0] += 2.1
    assert tried(KEY) == 200
    assert [tried("w" * 16), tried("w" * 16)] == [403, 429]
    now[0] += 100
    assert [tried("w" * 16) for _ in range(6)] == [403] * 5 + [429]
    # one household of IPv6 is one sender
    assert [tried("w" * 16, f"2001:db8::{i}") for i in range(6)] == [403] * 5 + [429]
    for i in range(10_000):
        tried("w" * 16, f"10.{i >> 8}.{i & 255}.1")
    assert len(access._tries) <= 4096


def test_a_wrong_key_many_times_is_refused_over_the_wire(server: PolicyServer) -> None:
    answers = [status(server, "/", f"Bearer {'w' * 16}")[9:12] for _ in range(8)]
    assert answers[:5] == [b"403"] * 5
    assert b"429" in answers
    assert b"Retry-After" in status(server, "/", f"Bearer {'w' * 16}") or answers[-1] == b"403"


def test_a_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "keys"
    make_key_file(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (key,) = read_keys(file)
    assert len(key) == 64
    with pytest.raises(FileExistsError):
        make_key_file(file)
    file.write_text(f"# of the lab\n{KEY}  # alice\n\n{OTHER}\n")
    assert read_keys(file) == [KEY, OTHER]
    with PolicyServer(Batched(), port=0, access=Access([OTHER, KEY])).background() as server:
        monkeypatch.setenv("ULNA_KEY_FILE", str(file))
        with PolicyClient(server.url) as client:
            assert len(client.infer(STATE)["actions"]) == 1
        monkeypatch.setenv("ULNA_KEY_FILE", str(tmp_path / "none"))
        with pytest.raises(PolicyServerError, match=r"ULNA_KEY_FILE: the key file .* cannot be read"):
            PolicyClient(server.url)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key: write one a line"),
        ("# nothing\n", "holds no key"),
        ("short\n", "at least 16"),
        ("two words that are long\n", "no spaces"),
        ("é" * 20, "letters or digits"),
    ],
)
def test_a_key_file_that_is_none_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_keys(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="it is no text"):
        read_keys(file)


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "192.168.0.2", "gpu.lab", "127.0.0.1.evil")))


# TLS


@pytest.fixture
def certified(tmp_path: Path) -> Iterator[tuple[PolicyServer, str, Path]]:
    """A server, its certificate's fingerprint, and the certificate."""
    context, fingerprint = tls_context(["127.0.0.1", "localhost"], tmp_path)
    with PolicyServer(Batched(), port=0, tls=context, access=Access([KEY])).background() as running:
        yield running, fingerprint, next(tmp_path.iterdir())


def test_tls_with_a_certificate_that_the_client_knows(certified: tuple[PolicyServer, str, Path]) -> None:
    server, fingerprint, file = certified
    assert server.url.startswith("wss://")
    image = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    for url, ca in ((f"{server.url}#{fingerprint}", None), (server.url, file)):
        with PolicyClient(url, key=KEY, ca_file=ca) as client:
            for _ in range(3):
                assert len(client.infer({**STATE, "image": image})["actions"]) == 1


def test_tls_with_one_that_it_does_not_know(certified: tuple[PolicyServer, str, Path]) -> None:
    server, fingerprint, _ = certified
    with pytest.raises(PolicyServerError, match=r"is not trusted .*#FINGERPRINT.*SSL_CERT_FILE"):
        PolicyClient(server.url, key=KEY)
    other = fingerprint.replace(fingerprint[:2], "00", 1)
    with pytest.raises(PolicyServerError, match=r"shows another certificate"):
        PolicyClient(f"{server.url}#{other}", key=KEY)
    with pytest.raises(PolicyServerError, match=r"no SHA-256 fingerprint"):
        PolicyClient(f"{server.url}#abc", key=KEY)
    with pytest.raises(PolicyServerError, match=r"cannot be read"):
        PolicyClient(server.url, key=KEY, ca_file="/nowhere.pem")


def test_a_client_that_speaks_the_other_way_is_told(certified: tuple[PolicyServer, str, Path]) -> None:
    server, fingerprint, _ = certified
    with pytest.raises(PolicyServerError, match="wss://"):
        PolicyClient(server.url.replace("wss", "ws"), key=KEY, connect_timeout_s=0.5)
    with (
        PolicyServer(Batched(), port=0).background() as plain,
        pytest.raises(PolicyServerError, match="does not speak TLS"),
    ):
        PolicyClient(plain.url.replace("ws", "wss") + f"#{fingerprint}", connect_timeout_s=0.5)


def test_a_large_message_over_tls_that_is_refused(certified: tuple[PolicyServer, str, Path]) -> None:
    server, fingerprint, _ = certified
    server.max_message_bytes = 100_000
    with PolicyClient(f"{server.url}#{fingerprint}", key=KEY) as client:
        with pytest.raises(PolicyServerError, match="too large"):
            client.infer({**STATE, "x": np.zeros(5_000_000, np.uint8)})
        assert len(client.infer(STATE)["actions"]) == 1
