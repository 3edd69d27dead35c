"""Where the viewer listens and whom it answers: the key, other sites, paths, read-only, other machines, and
the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from contracts.viewer import TOP, Client

from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main
from ulna.robot.viewer.server import Viewer, ViewerError


def test_edits_need_the_key_and_the_page_itself(client: Client, store: EpisodeStore) -> None:
    edit = json.dumps({"do": "delete", "episode": "0"})
    here = f"http://127.0.0.1:{client.port}"
    key = {"X-Ulna-Token": client.token}
    for headers, status, says in (
        ({}, 403, "open the URL that `ulna data view` printed"),
        ({"X-Ulna-Token": "guess"}, 403, "open the URL"),
        ({"Cookie": f"ulna-viewer-{client.port}={client.token}"}, 403, "open the URL"),
        ({**key, "Origin": "http://evil.example"}, 403, "another site"),
        ({**key, "Origin": "null"}, 403, "another site"),
        ({**key, "Origin": f"http://localhost:{client.port}"}, 403, "another site"),
        ({**key, "Sec-Fetch-Site": "cross-site"}, 403, "another site"),
        ({**key, "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 403, "another site"),
        ({**key, "Host": "evil.example"}, 421, "answers to localhost"),
        ({**key, "Host": f"evil.example:{client.port}"}, 421, "answers to localhost"),
        ({**key, "Host": ""}, 421, "answers to localhost"),
    ):
        answer_status, _, body = client.ask("/api/edits", "POST", headers, edit)
        assert (answer_status, says in json.loads(body)["error"]) == (status, True), headers
    assert client.ask("/api/edits?token=" + client.token, "POST", {}, edit)[0] == 403
    assert client.ask("/api/episodes", headers={"Host": "evil.example"})[0] == 421, (
        "a name made to point here"
    )
    assert client.ask("/api/episodes", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert client.ask("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})[0] == 200
    assert len(EpisodeStore.open(store.path)) == 3
    too_long = json.dumps({"do": "delete", "episode": "0", "x": "y" * 70_000})
    assert client.ask("/api/edits", "POST", key, too_long)[0] == 413
    assert client.ask("/api/edits", "POST", key, "{")[0] == 400
    assert client.ask("/api/edits", "POST", key, "[1]")[0] == 400
    for text in ("[" * 20_000 + "]" * 20_000, '{"do": "trim", "episode": "0", "start_s": 1e999}'):
        assert client.ask("/api/edits", "POST", key, text)[0] == 400
    assert client.ask("/api/edits", "GET", key)[0] == 405
    assert (
        client.ask("/api/edits", "POST", {**key, "Origin": here, "Sec-Fetch-Site": "same-origin"}, edit)[0]
        == 200
    )
    assert len(EpisodeStore.open(store.path)) == 2


def test_paths_name_no_files(reader: Client, same: EpisodeStore) -> None:
    (same.path / "secret").write_text("not for you")
    for name in (
        "..",
        "../..",
        "../secret",
        "../../secret",
        str(same.path / "secret"),
        ".",
        "\0",
        "..\\secret",
    ):
        quoted_name = quote(name, safe="")
        for path in (
            f"/assets/{quoted_name}",
            f"/assets/{name.replace(chr(0), '')}",
            f"/api/episodes/{quoted_name}",
            f"/api/episodes/{quoted_name}/thumbnail",
            f"/api/episodes/0/times/{quoted_name}",
            f"/api/episodes/0/video/{quoted_name}",
            f"/api/episodes/0/frames/{quoted_name}?t=0",
            f"/api/episodes/0/frames/observation.images.%2F{quoted_name}?t=0",
        ):
            status, _, body = reader.ask(quote(path, safe="/%?="))
            assert (status, b"not for you" in body) == (404, False), (path, status, body)
    status, refused = reader.edit(do="restore", version="../secret.1")
    assert (status, "trash" in refused["error"]) == (409, True)


def test_read_only_changes_nothing_and_needs_no_key(store: EpisodeStore, cache: Path) -> None:
    viewer = Viewer(store, read_only=True, cache=cache)
    with viewer.background() as url:
        client = Client(url)
        assert client.token == ""
        assert client.get("/api/dataset")["read_only"] is True
        client.token = viewer.token
        status, refused = client.edit(do="delete", episode="0")
        assert (status, "--read-only" in refused["error"]) == (403, True)
    assert len(EpisodeStore.open(store.path)) == 3


def test_beyond_this_machine_everything_needs_the_key_and_comes_over_tls(
    store: EpisodeStore, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for read_only in (False, True):
        with Viewer(store, "0.0.0.0", cache=cache, read_only=read_only).background() as url:
            client = Client(url)
            assert client.token
            assert url.startswith("https://")
            for path in (
                "/",
                "/assets/viewer.js",
                "/api/episodes",
                "/api/episodes/0/thumbnail",
                "/?token=guess",
            ):
                status, _, body = client.ask(path)
                assert (status, "carries a key" in json.loads(body)["error"]) == (401, True), path
            status, headers, _ = client.ask(f"/?token={client.token}", headers={"Host": "robot.lab:80"})
            cookie = headers["set-cookie"]
            assert status == 200
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
            assert "Secure" in cookie
            for name in ("ulna-viewer-1=other; ", ""):  # a viewer on another port of that machine has one too
                cookies = {"Cookie": name + cookie.split(";")[0]}
                assert client.ask("/api/episodes/0/thumbnail", headers=cookies)[0] == 200
            assert client.ask("/api/episodes", headers={"X-Ulna-Token": client.token})[0] == 200
            assert client.ask("/api/episodes", headers={"Cookie": "ulna-viewer-1=guess"})[0] == 401


def test_a_port_that_is_taken_is_said_in_a_sentence(store: EpisodeStore, cache: Path) -> None:
    viewer = Viewer(store, cache=cache)
    with (
        viewer.background(),
        pytest.raises(
            ViewerError, match=rf"cannot listen on 127.0.0.1:{viewer.port} .*Choose another --port"
        ),
    ):
        Viewer(store, port=viewer.port, cache=cache)
    with pytest.raises(ViewerError, match="choose a --host and --port of this machine"):
        Viewer(store, "203.0.113.7", cache=cache)


def test_the_command_serves_until_it_is_interrupted(store: EpisodeStore, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ulna.robot.cli", "data", "view", str(store.path), "--json"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "own cache")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        value = json.loads(process.stdout.readline())
        assert next(iter(value)) == "url"
        client = Client(value["url"])
        assert len(client.get("/api/episodes")["episodes"]) == value["episodes"] == 3
        client.video("0", TOP)
        assert len(list((tmp_path / "own cache" / "ulna" / "videos").iterdir())) == 1
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_the_command_refuses_in_one_sentence(store: EpisodeStore, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(store.path)
    for words, says in (
        ([f"{path} x"], "there is no dataset at"),
        ([path, "--episodes", "3"], "has episodes 0 to 2, not 3"),
        ([path, "--port", "70000"], "--port must lie in 0..65535"),
        ([path, "--rerun", path], "is a folder: name a file"),
    ):
        assert main(["data", "view", *words, "--no-browser"]) == 1
        assert says in capfd.readouterr().err
