"""Several models by name, one taking another's place, what is counted, and how a server stops."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.policy import Batched

from ulna.datasets.features import ACTION, Feature
from ulna.policies.serving.client import PolicyClient, PolicyServerError
from ulna.policies.serving.models import Models, NoModel, Refused
from ulna.policies.serving.server import PolicyServer

STATE = {"observation.state": np.array([1, -1], np.float32)}
FULL = {ACTION: Feature((2,), "float32", ("a", "b"))}


def load(folder: str) -> Batched:
    """A folder's policy is what its file `name` says; a name of `broken` cannot be loaded."""
    name = (Path(folder) / "name").read_text()
    if name == "broken":
        raise ValueError(f"{folder} is not as it was saved")
    policy = Batched(0.002, checkpoint=name)
    if name == "wide":
        policy.metadata = replace(policy.metadata, features={ACTION: Feature((3,), "float32")})
    return policy


def folder_of(path: Path, name: str) -> str:
    path.mkdir(exist_ok=True)
    (path / "name").write_text(name)
    return str(path)


def http(server: PolicyServer, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    if body is not None:
        request.data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.headers.setdefault("Content-type", "application/json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_address_names_the_model(tmp_path: Path) -> None:
    folders = {n: folder_of(tmp_path / n, n) for n in ("one", "other")}
    with PolicyServer(Models.loaded(folders, load), port=0).background() as server:
        for path, name in (("", "one"), ("/", "one"), ("/one", "one"), ("/other", "other")):
            with PolicyClient(server.url + path) as client:
                assert client.metadata.checkpoint == name
                assert client.infer(STATE)["checkpoint"] == name
        with pytest.raises(PolicyServerError, match="there is no model 'third' here: there is one, other"):
            PolicyClient(server.url + "/third")
        assert set(json.loads(http(server, "/models")[1])) == {"one", "other"}


@pytest.mark.parametrize("name", ["healthz", "models", "", "a/b", "a b", "é", "-x", "x" * 65])
def test_a_name_that_no_address_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a model"):
        Models({name: Batched()})


def test_a_swap_under_load_drops_no_request(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", "v0")
    replies: list[str] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        with PolicyClient(url) as client:
            while not stop.is_set():
                replies.append(client.infer(STATE)["checkpoint"])

    def more(n: int) -> None:
        goal = len(replies) + n
        until(lambda: len(replies) > goal)

    with PolicyServer(Models.loaded({"m": folder}, load), port=0).background() as server:
        threads = [threading.Thread(target=ask, args=(server.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version in ("v1", "v2", "v3"):
            more(20)
            folder_of(tmp_path / "m", version)
            status, answer = http(server, "/models", {"name": "m", "path": folder})
            assert (status, json.loads(answer)["checkpoint"]) == (200, version)
        more(20)
        stop.set()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        errors = server.metrics.text({}).decode()
    assert list(dict.fromkeys(replies)) == ["v0", "v1", "v2", "v3"], "one after the other"
    assert "ulna_errors_total{" not in errors


@pytest.mark.parametrize(
    ("name", "says"),
    [("broken", "m was not loaded: .* is not as it was saved"), ("wide", "cannot take the place of m")],
)
def test_what_cannot_be_loaded_leaves_what_is_served(tmp_path: Path, name: str, says: str) -> None:
    models = Models.loaded({"m": folder_of(tmp_path / "m", "v0")}, load)
    with PolicyServer(models, port=0).background() as server, PolicyClient(server.url) as client:
        bad = folder_of(tmp_path / "bad", name)
        with pytest.raises(Refused, match=says) as caught:
            models.load("m", bad)
        assert http(server, "/models", {"name": "m", "path": bad}) == (409, f"{caught.value}\n")
        assert client.infer(STATE)["checkpoint"] == "v0"
        if name == "wide":
            assert "float32 (2,)" in str(caught.value)
            assert "float32 (3,)" in str(caught.value)


def test_a_new_name_is_added(tmp_path: Path) -> None:
    models = Models.loaded({"m": folder_of(tmp_path / "m", "v0")}, load)
    with PolicyServer(models, port=0).background() as server:
        wide = folder_of(tmp_path / "wide", "wide")
        assert http(server, "/models", {"name": "wide", "path": wide})[0] == 200
        with PolicyClient(f"{server.url}/wide") as client:
            assert client.metadata.features[ACTION].shape == (3,)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        ({"name": "m"}, {}, 400),
        ({"name": 1, "path": []}, {}, 400),
        ({"name": "m", "path": "x"}, {"Content-type": "text/plain"}, 415),
        ({"name": "m", "path": "x"}, {"Origin": "http://elsewhere"}, 415),
        ({"name": "healthz", "path": "x"}, {}, 409),
        ({"name": "m", "path": "/nowhere"}, {}, 409),
    ],
)
def test_an_order_that_does_not_fit_is_one_sentence(
    tmp_path: Path, body: Any, headers: dict[str, str], status: int
) -> None:
    models = Models.loaded({"m": folder_of(tmp_path / "m", "v0")}, load)
    with PolicyServer(models, port=0).background() as server:
        code, answer = http(server, "/models", body, **headers)
        assert code == status
        assert answer.count("\n") == 1
        assert "Traceback" not in answer


def test_a_folder_that_changes_is_loaded_again_once_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    models = Models.loaded({"m": folder_of(folder, "v0")}, load)
    assert models.changed() == models.changed() == []
    folder_of(folder, "version one")
    assert models.changed() == [], "it may be half written"
    assert models.changed() == ["m"]
    assert models.changed() == models.changed() == [], "each change is named once"
    shutil.rmtree(folder)
    assert models.changed() == models.changed() == [], "the old one is served on"
    folder_of(folder, "version three")
    assert [models.changed(), models.changed()] == [[], ["m"]]


def test_watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulna.policies.serving.server.WATCH_S", 0.02)
    folder = folder_of(tmp_path / "m", "v0")
    models = Models.loaded({"m": folder}, load)
    with (
        PolicyServer(models, port=0, watch=True).background() as server,
        PolicyClient(server.url) as client,
        PolicyClient(server.url, checkpoint="v0") as faithful,
    ):
        folder_of(tmp_path / "m", "broken")
        until(lambda: 'result="refused"' in http(server, "/metrics")[1])
        assert faithful.infer(STATE)["checkpoint"] == "v0"
        folder_of(tmp_path / "m", "version two")
        until(lambda: client.infer(STATE)["checkpoint"] == "version two")
        with pytest.raises(PolicyServerError, match="the checkpoint version , and this run is of v0"):
            faithful.infer(STATE)


def test_what_is_counted(tmp_path: Path) -> None:
    with PolicyServer(Batched(), port=0).background() as server, PolicyClient(server.url) as client:
        for _ in range(3):
            client.infer(STATE)
        with pytest.raises(PolicyServerError, match="lacks"):
            client.infer({"x": 1})
        with pytest.raises(PolicyServerError, match="log says why"):
            client.infer({**STATE, "fail": True})
        with pytest.raises(PolicyServerError, match="seed"):
            client.infer({"_rt": {"seed": -1}})
        status, text = http(server, "/metrics")
    assert status == 200
    for line in (
        'ulna_requests_total{model="policy"} 3.0',
        'ulna_errors_total{kind="bad request"} 1.0',
        'ulna_errors_total{kind="failed"} 1.0',
        'ulna_errors_total{kind="protocol"} 1.0',
        'ulna_request_seconds_count{model="policy"} 3.0',
        'ulna_batch_size_bucket{le="1.0"} 5.0',
        "ulna_nfe_count 3.0",
        "ulna_connections 2.0",
        f'checkpoint="{"b" * 64}"',
    ):
        assert line in text, line


def test_a_failing_policy_is_logged_once_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ulna.serving")
    with PolicyServer(Batched(), port=0).background() as server:
        with PolicyClient(server.url) as client:
            for _ in range(5):
                with pytest.raises(PolicyServerError):
                    client.infer({**STATE, "fail": True})
        until(lambda: "5 requests, 5 errors" in caplog.text)
    assert caplog.text.count("the policy failed") == 1
    assert "a secret of the server" in caplog.text


def test_openpis_batch_is_one_reply_of_many() -> None:
    policy = Batched()
    with PolicyServer(policy, port=0).background() as server, PolicyClient(server.url) as client:
        channel = client._channel
        assert channel is not None

        def ask(message: Any) -> Any:
            from ulna.policies.serving.protocol import pack, unpack

            channel.send(pack(message), time.monotonic() + 20)
            reply = channel.receive(time.monotonic() + 20)
            return reply if isinstance(reply, str) else unpack(reply)

        many = [{"observation.state": np.array([i, -i], np.float32)} for i in range(5)]
        reply = ask({"batch": many})
        np.testing.assert_array_equal(reply["actions"][:, 0, 0], range(5))
        assert reply["actions"].shape == (5, 1, 2)
        assert reply["checkpoint"] == "b" * 64
        assert "batch is a list of 1 to 64 requests" in ask({"batch": []})
        assert "batch is a list of 1 to 64 requests" in ask({"batch": many * 20})
        assert "map of observations, not a int" in ask({"batch": [1]})
        assert "lacks observation.state" in ask({"batch": [many[0], {"x": 1}]})
        assert len(ask({"batch": np.zeros(2), **STATE})["actions"]) == 1, "beside other keys it is none"


SERVE = """
import sys, time
from contracts.policy import Batched
from ulna.policies.serving.server import PolicyServer
PolicyServer(Batched(0.5), port=0).run(lambda url: print(url, flush=True))
print("over", flush=True)
"""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_was_accepted_be_answered(stop: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    with process:
        url = process.stdout.readline().strip()
        got: list[Any] = []
        with PolicyClient(url, reconnect_s=0.1) as client, PolicyClient(url, reconnect_s=0.1) as second:
            thread = threading.Thread(target=lambda: got.append(client.infer(STATE)))
            thread.start()
            time.sleep(0.15)
            process.send_signal(stop)
            time.sleep(0.1)
            with pytest.raises(PolicyServerError, match=r"the server is stopping|stopped or died"):
                second.infer(STATE)
            thread.join(20)
            assert len(got[0]["actions"]) == 1
        assert process.wait(20) == 0
        assert process.stdout.read() == "over\n"


def test_a_server_that_stops_says_so() -> None:
    policy = Batched()
    with PolicyServer(policy, port=0).background() as server, PolicyClient(server.url) as client:
        policy.gate.clear()
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(client.infer(STATE)))
        thread.start()
        assert policy.busy.wait(20)
        assert http(server, "/readyz") == (200, "OK\n")
        server.stop_accepting()
        assert http(server, "/healthz")[0] == 200
        assert http(server, "/readyz")[0] == 503
        with pytest.raises(PolicyServerError, match="the server is stopping and takes no new requests"):
            PolicyClient(server.url, connect_timeout_s=0.1)
        policy.gate.set()
        thread.join(20)
    assert len(got[0]["actions"]) == 1


def test_no_model_is_a_bad_request() -> None:
    with pytest.raises(NoModel):
        Models({"a": Batched()})["b"]
