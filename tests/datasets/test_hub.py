"""Pushing to and pulling from a hub on this computer, with faults."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from contracts.lerobot_made import FRONT, LENGTHS, make_lerobot
from hub_endpoint import TOKEN, HubEndpoint, hub_here
from huggingface_hub import close_session

from ulna.datasets.episode import StoreError
from ulna.datasets.features import STATE
from ulna.datasets.hub import DATASET, MODEL, Hub, HubError, hub_name
from ulna.datasets.opened import open_dataset
from ulna.datasets.reading.windows import Windows, WindowSpec

# of huggingface_hub's way to upload with httpx
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
BIG = np.random.default_rng(0).bytes(300_000)
FILES: dict[str, Path | bytes] = {"data/a.parquet": BIG, "meta/info.json": b"{}", "README.md": b"# x\n"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubEndpoint]:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda s: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda s: None)
    with hub_here(tmp_path, monkeypatch) as hub:
        yield hub


def push(files: Mapping[str, Path | bytes] = FILES, repo: str = "ann/x", public: bool = False) -> str:
    return Hub().push(files, repo, DATASET, public, lambda f: f.startswith("data/"), ["v3.0"]).commit


def commits(hub: HubEndpoint) -> int:
    return len(hub.repos["datasets/ann/x"].order)


def test_what_is_pushed_is_pulled_and_is_private(hub: HubEndpoint) -> None:
    commit = push()
    assert [c["visibility"] for c in hub.created] == ["private"]
    assert hub.repos["datasets/ann/x"].private
    assert commits(hub) == 2  # the one of the creation, and ours
    assert hub.repos["datasets/ann/x"].tags == {"v3.0": commit}
    snapshot = Hub().pull("ann/x", DATASET)
    assert (snapshot.commit, snapshot.offline) == (commit, False)
    for name, content in FILES.items():
        assert (snapshot.path / name).read_bytes() == content
    assert Hub().kinds("ann/x") == [DATASET]
    push(public=True, repo="ann/open")
    assert hub.created[1]["visibility"] == "public"


def test_a_push_replaces_what_it_owns_and_leaves_the_rest(hub: HubEndpoint) -> None:
    push({**FILES, "data/old.parquet": b"old", "notes.md": b"by hand"})
    assert push({**FILES, "meta/info.json": b"{1}"}) == hub.repos["datasets/ann/x"].tags["v3.0"]
    files = hub.files("datasets/ann/x")
    assert set(files) == {*FILES, "notes.md", ".gitattributes"}
    assert files["meta/info.json"] == b"{1}"
    assert len(hub.uploads) == 2  # a.parquet and old.parquet, once each


def test_an_interrupted_push_goes_on_and_shows_nothing_before(hub: HubEndpoint) -> None:
    more = {**FILES, "data/b.parquet": BIG[::-1]}
    hub.faults.status["PUT /lfs-storage"] = (403, 1)  # one of the two never arrives
    with pytest.raises(HubError, match=r"may not do that.*write access"):
        push(more)
    assert commits(hub) == 1
    assert set(hub.files("datasets/ann/x")) == {".gitattributes"}
    arrived = list(hub.uploads)
    push(more)
    assert set(hub.files("datasets/ann/x")) == {*more, ".gitattributes"}
    assert len(hub.uploads) == len(set(hub.uploads)) == 2, "what had arrived was not sent again"
    assert hub.uploads[: len(arrived)] == arrived


@pytest.mark.slow
def test_a_cut_connection_is_tried_again(hub: HubEndpoint) -> None:
    hub.faults.cut_upload = 2
    push()
    assert hub.files("datasets/ann/x")["data/a.parquet"] == BIG
    large = BIG * 80
    push({"data/a.parquet": large})
    hub.faults.cut_download = 1
    assert (Hub().pull("ann/x", DATASET).path / "data/a.parquet").read_bytes() == large
    assert len(hub.ranges) == 1, "the rest only"
    assert 0 < int(hub.ranges[0].removeprefix("bytes=").rstrip("-")) <= len(large) // 2


def test_a_pull_that_breaks_off_keeps_what_has_arrived(hub: HubEndpoint) -> None:
    push()
    hub.faults.status["GET /datasets/ann/x/resolve"] = (500, 100)
    with pytest.raises(HubError, match=r"answers 500.*what has arrived is kept"):
        Hub().pull("ann/x", DATASET)
    hub.faults.status = {f"GET /datasets/ann/x/resolve/{push()}/README.md": (500, 100)}
    hub.faults.corrupt.add("data/a.parquet")  # arrives before the pull breaks off
    with pytest.raises(HubError, match="answers 500"):
        Hub().pull("ann/x", DATASET)
    hub.faults.status.clear()
    with pytest.raises(HubError, match=r"a\.parquet did not arrive"):
        Hub().pull("ann/x", DATASET)
    hub.requests.clear()
    assert (Hub().pull("ann/x", DATASET).path / "data/a.parquet").read_bytes() == BIG
    before = sum(r.startswith("GET /datasets") for r in hub.requests)
    Hub().pull("ann/x", DATASET)
    assert sum(r.startswith("GET /datasets") for r in hub.requests) == before, "nothing is fetched twice"


def test_offline_the_cache_is_used_and_it_is_said(hub: HubEndpoint, caplog: pytest.LogCaptureFixture) -> None:
    commit = push()
    Hub().pull("ann/x", DATASET)
    hub.faults.status["GET /api"] = (503, 100)
    with caplog.at_level(logging.WARNING, "ulna.datasets"):
        snapshot = Hub().pull("ann/x", DATASET)
    assert (snapshot.commit, snapshot.offline) == (commit, True)
    assert "answers 503" in caplog.text
    assert "of the cache is used" in caplog.text
    hub.stop()
    close_session()
    assert Hub().pull("ann/x", DATASET).offline
    assert Hub().kinds("ann/x") == [DATASET]
    with pytest.raises(HubError, match=r"cannot be reached.*the cache on this computer has nothing of ann/y"):
        Hub().pull("ann/y", DATASET)


def test_offline_a_part_is_not_taken_for_the_whole(hub: HubEndpoint) -> None:
    push()
    Hub().pull("ann/x", DATASET, patterns=["meta/*"])
    hub.faults.status["GET /api"] = (503, 100)
    with pytest.raises(HubError, match="only a part of ann/x"):
        Hub().pull("ann/x", DATASET)
    assert Hub().pull("ann/x", DATASET, patterns=["meta/*"]).offline


def test_a_file_whose_hash_is_wrong_does_not_stay(hub: HubEndpoint) -> None:
    push()
    hub.faults.corrupt |= {"data/a.parquet", "meta/info.json"}
    with pytest.raises(HubError, match=r"a\.parquet, info\.json did not arrive as the hub keeps it"):
        Hub().pull("ann/x", DATASET)
    snapshot = Hub().pull("ann/x", DATASET)
    assert (snapshot.path / "data/a.parquet").read_bytes() == BIG
    blob = Path(os.path.realpath(snapshot.path / "data/a.parquet"))
    blob.write_bytes(BIG[:-1] + b"x")  # a disk that lies
    with pytest.raises(HubError, match="hash differs"):
        Hub().pull("ann/x", DATASET, verify_all=True)
    assert (Hub().pull("ann/x", DATASET).path / "data/a.parquet").read_bytes() == BIG


@pytest.mark.parametrize(
    ("part", "status", "says"),
    [
        ("POST /api/repos/create", 403, "may not do that to the dataset ann/x"),
        ("POST /api/repos/create", 401, "does not take the token"),
        ("POST /api/datasets/ann/x/preupload", 401, "does not take the token|shows no dataset"),
        ("POST /api/datasets/ann/x/commit", 412, "refuses the dataset ann/x: 412"),
        ("POST /api/datasets/ann/x/commit", 503, "answers 503.*push again to go on"),
    ],
)
def test_refusals_are_one_sentence_without_the_token(
    hub: HubEndpoint, caplog: pytest.LogCaptureFixture, part: str, status: int, says: str
) -> None:
    hub.faults.status[part] = (status, 100)
    with pytest.raises(HubError, match=says) as refused:
        push()
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value) + caplog.text


def test_names_tokens_and_visibility(hub: HubEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    push(public=True)
    with pytest.raises(HubError, match="is public on the hub, and so would be what is pushed: say --public"):
        push()
    push(repo="ann/closed")
    with pytest.raises(HubError, match="is private on the hub"):
        push(repo="ann/closed", public=True)
    with pytest.raises(HubError, match="may not do that"):
        push(repo="other/x")
    for odd in ("x", "a/b/c", "../x", "a b/c"):
        with pytest.raises(HubError, match="write OWNER/NAME"):
            Hub().pull(odd, DATASET)
    with pytest.raises(HubError, match="no name of a branch"):
        hub_name("hub:ann/x@../../etc")
    assert hub_name("hub:ann/x@v1") == ("ann/x", "v1")
    assert hub_name("runs/x") is None
    with pytest.raises(HubError, match="shows no model ann/x"):
        Hub().pull("ann/x", MODEL)
    with pytest.raises(HubError, match="no such revision"):
        Hub().pull("ann/x", DATASET, "nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match=r"does not take the token|shows no"):
        Hub().pull("ann/closed", DATASET)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.utils._auth.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(HubError, match="no token for the hub: log in"):
        push()
    Hub().pull("ann/x", DATASET)  # public: without one
    with pytest.raises(HubError, match="shows no dataset ann/closed"):
        Hub().pull("ann/closed", DATASET)


@pytest.mark.slow
def test_training_windows_come_from_the_hub_file_by_file(hub: HubEndpoint, tmp_path: Path) -> None:
    folder = make_lerobot(tmp_path / "made")
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    Hub().push(files, "ann/x", DATASET, False, lambda f: False)
    hub.requests.clear()

    def fetched() -> list[str]:
        found = [
            r.partition("/resolve/")[2].partition("/")[2] for r in hub.requests if r.startswith("GET /d")
        ]
        return [f for f in found if not f.startswith("meta/")]

    store = open_dataset("hub:ann/x")
    assert [e.length for e in store.episodes] == list(LENGTHS)
    assert fetched() == []
    windows = Windows(store, WindowSpec(1, 4, keys=(STATE, FRONT)), [1], cache="ram")
    here = Windows(open_dataset(folder), WindowSpec(1, 4, keys=(STATE, FRONT)), [1], cache="ram")
    assert fetched() == ["data/chunk-000/file-000.parquet", f"videos/{FRONT}/chunk-000/file-001.mp4"]
    for key, value in windows.batch(np.arange(len(windows))).items():
        np.testing.assert_array_equal(value, here.batch(np.arange(len(here)))[key])
    hub.faults.status["GET /"] = (503, 1000)
    hub.faults.status["HEAD /"] = (503, 1000)
    again = Windows(open_dataset("hub:ann/x"), WindowSpec(1, 4, keys=(STATE, FRONT)), [1], cache="none")
    assert len(again) == LENGTHS[1]
    with pytest.raises(StoreError, match="answers 503"):
        open_dataset("hub:ann/x").episodes[0].read(FRONT)
