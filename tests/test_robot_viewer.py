"""The viewer's server, asked as a browser asks it: videos by range, exact frames, plots, edits; and who is turned away."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import av
import cv2
import numpy as np
import pytest
from contracts.data import CAMERA, WITH_IMAGE, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.datasets.check import check_episode
from ulna.datasets.edit import relabel, trash, trim
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, DEPTH, REQUESTED, STATE, Feature, Features
from ulna.datasets.flags import INTERVENTION
from ulna.datasets.store import EpisodeStore
from ulna.datasets.vectors import write_vector
from ulna.datasets.writer import EpisodeWriter
from ulna.robot.cli import main
from ulna.robot.rerun_export import write_rrd
from ulna.robot.viewer import Viewer, ViewerError
from ulna.robot.viewer_series import decimate, numbers, panels, read_timeline, row_at, series
from ulna.robot.viewer_video import KEY_FRAME_EVERY, VideoCache, time_stamps, write_video

ROOT = Path(__file__).parents[1]
TOP, FAR = CAMERA.replace("front", "top"), DEPTH + "top"
FEATURES: Features = {
    STATE: Feature((2,), "float32", ("elbow", "grip"), ("rad", "rad")),
    ACTION: Feature((2,), "float32", ("elbow", "grip"), ("rad", "rad")),
    "observation.force": Feature(
        (4,), "float64", ("tip.x", "tip.y", "tip.z", "torque"), ("N", "N", "N", "Nm")
    ),
    TOP: Feature((25, 33, 3), "uint8"),
    FAR: Feature((24, 32), "uint16", (), ("mm",)),
}
TICKS, FRAMES, MS = 60, 40, 1_000_000


def frame_times_ns() -> np.ndarray:
    """A camera that began before the loop, at its own uneven rate, with a pause of half a second."""
    times = -30 * MS + np.cumsum(
        np.full(FRAMES, 33 * MS) + np.random.default_rng(1).integers(0, 5 * MS, FRAMES)
    )
    return times + np.where(np.arange(FRAMES) > 20, 500 * MS, 0)


def picture_of(row: int) -> np.ndarray:
    y, x = np.mgrid[:25, :33]
    return np.stack([x * 7, y * 9, np.full_like(x, row * 5)], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = EpisodeStore.create(tmp_path_factory.mktemp("viewer") / "Ä b", FEATURES, 20.0, "test robot")
    rng = np.random.default_rng(0)
    with EpisodeWriter(store, own_rate=(TOP, FAR)) as writer:
        for episode in range(3):
            writer.start({"task": f"task <b>{episode}</b>", "agent": "test"})
            for t in range(TICKS):
                q = np.array([np.sin(t / 9), t / 60], np.float32)
                row = {STATE: q, ACTION: q + np.float32(0.1), REQUESTED: q + np.float32(0.3)}
                row["observation.force"] = np.array([1.0, 2.0, 3.0, rng.normal()])
                at = t * 50 * MS
                flags = {ACTION: INTERVENTION if 10 <= t < 20 else 0}
                writer.tick(row, dict.fromkeys(row, (at, at + MS)), flags)
            for row, at in enumerate(frame_times_ns().tolist()):
                writer.append(TOP, picture_of(row), at, at + MS)
                depth = (np.arange(24 * 32).reshape(24, 32) + 500 + row).astype(np.uint16)
                depth[0] = 0
                writer.append(FAR, depth, at + MS, at + 2 * MS)
            writer.end({"success": episode == 0})
    return store.path


@pytest.fixture
def store(recorded: Path, tmp_path: Path) -> EpisodeStore:
    shutil.copytree(recorded, tmp_path / recorded.name)
    return EpisodeStore.open(tmp_path / recorded.name)


class Client:
    """One connection at a time, with the path exactly as it is written."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.port = parts.port
        self.token = parse_qs(parts.query).get("token", [""])[0]

    def ask(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: Any = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        found = reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        connection.close()
        return found

    def get(self, path: str) -> Any:
        status, _, body = self.ask(path)
        assert status == 200, (status, body)
        return json.loads(body)

    def edit(self, **edit: Any) -> tuple[int, dict[str, Any]]:
        status, _, body = self.ask("/api/edits", "POST", {"X-Ulna-Token": self.token}, json.dumps(edit))
        return status, json.loads(body)

    def video(self, episode: str, key: str) -> dict[str, Any]:
        """What is said of a video once it is made."""
        job: dict[str, Any] = {}
        for _ in range(600):
            job = self.get(f"/api/episodes/{episode}/video/{key}/state")
            if job["state"] in ("ready", "failed"):
                return job
            time.sleep(0.02)
        raise AssertionError(job)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "videos"


def decoded(video: bytes) -> tuple[list[Any], float]:
    """(frames, duration in seconds)."""
    container: Any = av.open(io.BytesIO(video), "r")
    try:
        (stream,) = container.streams
        return list(container.decode(video=0)), float(stream.duration * stream.time_base)
    finally:
        container.close()


@pytest.fixture(scope="module")
def reader(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A viewer of episodes that no test changes."""
    with Viewer(
        EpisodeStore.open(recorded), cache=tmp_path_factory.mktemp("cache") / "videos"
    ).background() as url:
        yield Client(url)


@pytest.fixture(scope="module")
def same(recorded: Path) -> EpisodeStore:
    """The store behind `reader`."""
    return EpisodeStore.open(recorded)


@pytest.fixture
def client(store: EpisodeStore, cache: Path) -> Iterator[Client]:
    with Viewer(store, cache=cache).background() as url:
        yield Client(url)


def test_the_page_and_its_parts_are_served(reader: Client) -> None:
    status, headers, body = reader.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'self'" in headers["content-security-policy"]
    page = body.decode()
    assert "http" not in page.replace("http-equiv", ""), "nothing comes from elsewhere"
    names = {p.name for p in (ROOT / "robot" / "assets").iterdir()}
    for name in names:
        status, headers, body = reader.ask(f"/assets/{name}")
        assert (status, body) == (200, (ROOT / "robot" / "assets" / name).read_bytes())
        if name.endswith(".js"):
            assert headers["content-type"].startswith("text/javascript")
            used = {
                line.split('"/assets/')[1].split('"')[0]
                for line in body.decode().splitlines()
                if '"/assets/' in line
            }
            assert used <= names


def test_the_list_and_the_header(reader: Client, same: EpisodeStore) -> None:
    listed = reader.get("/api/episodes")
    assert [(e["index"], e["task"], e["success"], e["length"]) for e in listed["episodes"]] == [
        (i, f"task <b>{i}</b>", i == 0, TICKS) for i in range(3)
    ]
    assert listed["trash"] == []
    dataset = reader.get("/api/dataset")
    assert (dataset["name"], dataset["episodes"], dataset["fps"], dataset["hz"][ACTION]) == (
        "Ä b",
        3,
        20.0,
        20.0,
    )
    assert 25 < dataset["hz"][TOP] < 31
    for which in ("1", same.episodes[1].path.name):
        assert reader.get(f"/api/episodes/{which}")["index"] == 1
    status, _, body = reader.ask("/api/episodes/7")
    assert (status, json.loads(body)["error"]) == (
        404, "there is no episode 7 here: it may have been deleted meanwhile",
    )  # fmt: skip


def test_an_episode_is_described_on_its_own_time_line(reader: Client) -> None:
    e = reader.get("/api/episodes/0")
    assert (
        e["start_s"] == pytest.approx(frame_times_ns()[0] * 1e-9)
        if frame_times_ns()[0] < 0
        else e["start_s"] == 0
    )
    assert e["last_tick_s"] == pytest.approx((TICKS - 1) * 0.05)
    assert e["interventions"] == [[pytest.approx(0.5), pytest.approx(0.95)]]
    streams = {s["key"]: s for s in e["streams"]}
    assert (streams[TOP]["rows"], streams[TOP]["kind"], streams[FAR]["kind"]) == (FRAMES, "image", "depth")
    assert streams[FAR]["unit"] == "mm"
    assert 500 <= streams[FAR]["near_far"][0] < streams[FAR]["near_far"][1] <= 1400
    _, _, body = reader.ask(f"/api/episodes/0/times/{TOP}")
    np.testing.assert_allclose(np.frombuffer(body, "<f8"), frame_times_ns() * 1e-9, atol=1e-12)


def test_a_video_has_every_frame_at_its_capture_time(reader: Client) -> None:
    for key in (TOP, FAR):
        job = reader.video("0", key)
        assert job["state"] == "ready", job
        first = frame_times_ns()[0] + (MS if key == FAR else 0)
        assert job["start_s"] == pytest.approx(first * 1e-9)
        status, headers, body = reader.ask(f"/api/episodes/0/video/{key}")
        assert (status, headers["content-type"]) == (200, "video/mp4")
        frames, duration = decoded(body)
        assert len(frames) == FRAMES
        times = (frame_times_ns() - frame_times_ns()[0]) * 1e-9
        np.testing.assert_allclose([f.time for f in frames], times, atol=1e-6)
        assert times[-1] < duration < times[-1] + 0.1
        keyed = np.flatnonzero([f.key_frame for f in frames])
        assert keyed[0] == 0
        assert np.diff(keyed).max() <= KEY_FRAME_EVERY
        if key == TOP:
            assert (frames[0].height, frames[0].width) == (26, 34), "even sides"
            for row in (0, 21, 39):
                shown = frames[row].to_ndarray(format="rgb24")[:25, :33].astype(int)
                assert np.abs(shown - picture_of(row)).mean() < 12


def test_a_video_is_read_by_range(reader: Client) -> None:
    path = f"/api/episodes/0/video/{TOP}"
    reader.video("0", TOP)
    _, whole, body = reader.ask(path)
    assert whole["accept-ranges"] == "bytes"
    status, headers, part = reader.ask(path, headers={"Range": "bytes=10-99"})
    assert (status, headers["content-range"], part) == (206, f"bytes 10-99/{len(body)}", body[10:100])
    status, _, part = reader.ask(path, headers={"Range": "bytes=-7"})
    assert (status, part) == (206, body[-7:])
    status, headers, _ = reader.ask(path, headers={"Range": f"bytes={len(body)}-"})
    assert (status, headers["content-range"]) == (416, f"bytes */{len(body)}")
    this, other = {"If-Range": whole["etag"]}, {"If-Range": '"another"'}
    assert reader.ask(path, headers={"Range": "bytes=0-3", **this})[0] == 206
    assert reader.ask(path, headers={"Range": "bytes=0-3", **other})[2] == body
    status, headers, nothing = reader.ask(path, "HEAD")
    assert (status, int(headers["content-length"]), nothing) == (200, len(body), b"")
    assert body.index(b"moov") < body.index(b"mdat"), "the index lies in front"


def test_a_video_is_made_once_and_says_how_far_it_is(store: EpisodeStore, cache: Path) -> None:
    with Viewer(store, cache=cache).background() as url:
        client = Client(url)
        status, headers, body = client.ask(f"/api/episodes/1/video/{TOP}")
        assert (status, headers["retry-after"]) == (503, "1")
        assert "is being made" in json.loads(body)["error"]
        client.video("1", TOP)
    made = {p.name: p.stat().st_ino for p in cache.iterdir()}
    assert len(made) == 1, "nothing half-made is left"
    with Viewer(store, cache=cache).background() as url:
        assert Client(url).get(f"/api/episodes/1/video/{TOP}/state")["state"] == "ready"
    assert {p.name: p.stat().st_ino for p in cache.iterdir()} == made


def test_the_cache_is_bounded_and_a_video_that_nobody_wants_makes_way(
    store: EpisodeStore, cache: Path
) -> None:
    times = frame_times_ns() * 1e-9

    def ready(videos: VideoCache, episode: int) -> None:
        while videos.ask(store.episodes[episode], TOP, times).state != "ready":
            time.sleep(0.01)

    videos = VideoCache(cache, limit_bytes=1)
    ready(videos, 0)
    ready(videos, 1)
    videos.close()
    assert len(list(cache.iterdir())) == 1, "the older one was dropped to make room"

    def stop(done: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_video(cache / "x.mp4", store.episodes[0], TOP, times, stop)


def test_frames_are_exact(reader: Client, same: EpisodeStore) -> None:
    times = frame_times_ns() * 1e-9
    for t, row in ((times[5], 5), (times[5] - 1e-3, 4), (times[6] - 1e-5, 5), (-9.0, 0), (99.0, FRAMES - 1)):
        status, headers, body = reader.ask(f"/api/episodes/0/frames/{TOP}?t={t}")
        assert (status, headers["content-type"], headers["x-row"]) == (200, "image/png", str(row))
        decoded = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        np.testing.assert_array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), picture_of(row))
    _, _, body = reader.ask(f"/api/episodes/0/frames/{FAR}?row=3&as=raw")
    depth = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(depth, same.episodes[0].read_frames(FAR, [3])[0])
    _, _, body = reader.ask(f"/api/episodes/0/frames/{FAR}?row=3")
    shown = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert not shown[0].any(), "no depth is black"
    assert shown[1:].any(axis=-1).all()
    content = same.episodes[0].content
    _, headers, _ = reader.ask(f"/api/episodes/0/frames/{TOP}?row=1&as=jpeg&v={content}")
    assert (headers["content-type"], "immutable" in headers["cache-control"]) == ("image/jpeg", True)
    assert reader.ask(f"/api/episodes/0/frames/{TOP}?row=1&v=older")[1]["cache-control"] == "no-store"
    for path, status in (
        (f"{TOP}?row=40", 404),
        (f"{ACTION}?t=0", 404),
        ("observation.images.none?t=0", 404),
        (f"{TOP}?t=nan", 400),
        (f"{TOP}?t=soon", 400),
        (f"{TOP}?t=0&as=gif", 400),
    ):
        found, _, body = reader.ask(f"/api/episodes/0/frames/{path}")
        assert found == status, path
        assert json.loads(body)["error"]


def test_thumbnails(reader: Client, tmp_path: Path, cache: Path) -> None:
    status, headers, body = reader.ask("/api/episodes/0/thumbnail")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    small = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert small is not None
    assert small.shape[:2] == (25, 33)
    blind = write_store(tmp_path / "blind", (20,))
    with Viewer(blind, cache=cache).background() as url:
        status, headers, body = Client(url).ask("/api/episodes/0/thumbnail")
        assert (status, headers["content-type"]) == (200, "image/svg+xml")
        assert b"polyline" in body


def test_a_damaged_stream_keeps_nothing_else_from_being_shown(client: Client, store: EpisodeStore) -> None:
    e = store.episodes[0]
    (shard,) = [p for p in (e.path / TOP / "value" / "c").rglob("*") if p.is_file()]
    data = bytearray(shard.read_bytes())
    start, size = np.frombuffer(data[-(64 * 16 + 4) : -4], "<u8").reshape(64, 2)[30].tolist()
    data[start + size // 2] ^= 255
    shard.write_bytes(data)
    shutil.rmtree(e.path / STATE / "value" / "c")
    shown = client.get("/api/episodes/0")
    assert "cannot be read" in next(s["error"] for s in shown["streams"] if s["key"] == STATE)
    assert client.get("/api/episodes/0/series")[ACTION]["columns"]
    status, _, body = client.ask(f"/api/episodes/0/frames/{TOP}?row=30")
    assert status == 409
    assert "frame 30 cannot be read" in json.loads(body)["error"]
    assert client.ask(f"/api/episodes/0/frames/{TOP}?row=29")[0] == 200
    assert client.video("0", TOP)["state"] == "ready"
    frames, _ = decoded(client.ask(f"/api/episodes/0/video/{TOP}")[2])
    assert len(frames) == FRAMES, "the frame before stands in for it"
    assert client.get("/api/episodes/0/findings")["findings"]


def test_plots_get_every_row_or_the_extremes_of_each_bin(client: Client, store: EpisodeStore) -> None:
    e = store.episodes[0]
    force = e.read("observation.force").copy()
    force[7, 2] = np.nan
    write_vector(e.path / "observation.force" / "value", force)
    found = client.get("/api/episodes/0/series")
    assert found[STATE]["decimated"] is False
    np.testing.assert_allclose(found[STATE]["columns"], e.read(STATE).T, rtol=1e-5)
    assert found["observation.force"]["columns"][2][7] is None, "not a number"
    part = client.get("/api/episodes/0/series?start=1&end=2")[ACTION]["t"]
    assert part == pytest.approx(np.arange(19, 42) * 0.05), "one row beyond on either side"
    thin = client.get("/api/episodes/0/series?bins=10")[STATE]
    assert (thin["decimated"], len(thin["t"])) == (True, 20)
    assert max(thin["columns"][0]) == pytest.approx(e.read(STATE)[:, 0].max(), rel=1e-5)
    values = client.get("/api/episodes/0/values?t=1.02")
    assert values[STATE]["row"] == 20
    assert values[STATE]["values"] == pytest.approx(e.read(STATE)[20].tolist(), rel=1e-5)


def test_what_shares_a_plot(store: EpisodeStore) -> None:
    found = panels(read_timeline(store.episodes[0], store.features).vectors)
    assert [(p["title"], p["unit"], [c["label"] for c in p["curves"]]) for p in found] == [
        ("elbow", "rad", ["measured", "sent", "requested"]),
        ("grip", "rad", ["measured", "sent", "requested"]),
        ("tip", "N", ["x", "y", "z"]),
        ("torque", "Nm", ["torque"]),
    ]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 400),
    bins=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
def test_decimation_loses_no_peak(rows: int, bins: int, seed: int) -> None:
    rows = max(rows, bins)
    rng = np.random.default_rng(seed)
    t, values = np.sort(rng.uniform(0, 9, rows)), rng.normal(size=(rows, 2))
    times, thin = decimate(t, values, bins)
    assert (np.diff(times) >= 0).all()
    np.testing.assert_array_equal(thin.min(0), values.min(0))
    np.testing.assert_array_equal(thin.max(0), values.max(0))
    assert set(thin[:, 0]) <= set(values[:, 0])


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=50))
def test_time_stamps_of_a_video_only_go_on(seconds: list[float]) -> None:
    stamps = time_stamps(np.array(seconds))
    assert stamps[0] == 0
    assert (np.diff(stamps) > 0).all()
    if (np.diff(seconds) > 2e-6).all():
        np.testing.assert_allclose(stamps * 1e-6, np.array(seconds) - seconds[0], atol=1e-6)


def test_small_numbers_keep_their_digits() -> None:
    assert numbers(np.array([1.23456789e-5, -3e-6])) == pytest.approx([1.234568e-5, -3e-6], rel=1e-6)
    assert numbers(np.array([np.inf, 2.0])) == [None, 2.0]
    assert numbers(np.zeros(2)) == [0.0, 0.0]
    assert row_at(np.array([0.0, 1.0]), 1.0 - 1e-9) == 1


def test_findings_are_those_of_the_checks(reader: Client, same: EpisodeStore) -> None:
    found = reader.get("/api/episodes/0/findings")["findings"]
    assert found == json.loads(json.dumps([f.to_json() for f in check_episode(same, same.episodes[0])]))
    assert any(f["check"] == "gap" and f["stream"] == TOP for f in found)
    assert reader.get("/api/findings")["checked"] == 1
    reader.get("/api/findings?begin=1")
    summary: dict[str, Any] = {}
    for _ in range(400):
        if not (summary := reader.get("/api/findings"))["running"]:
            break
        time.sleep(0.02)
    assert set(summary["counts"]) == {e.path.name for e in same.episodes}
    assert sum(summary["counts"][same.episodes[0].path.name].values()) == len(found)


def test_delete_label_and_review_change_the_store_and_can_be_undone(
    client: Client, store: EpisodeStore
) -> None:
    names = [e.path.name for e in store.episodes]

    def on_disk() -> EpisodeStore:
        return EpisodeStore.open(store.path)

    status, done = client.edit(do="delete", episode=names[1])
    assert (status, done["said"]) == (200, "Episode 1 is in the trash.")
    assert [e.path.name for e in on_disk().episodes] == [names[0], names[2]]
    assert [(t["episode"], t["replaced"]) for t in client.get("/api/episodes")["trash"]] == [
        (names[1], False)
    ]
    assert client.edit(**done["undo"])[1]["episode"] == names[1]
    assert [e.path.name for e in on_disk().episodes] == names

    status, done = client.edit(do="relabel", episode=names[1], labels={"success": True, "task": "neu „x“"})
    assert (on_disk().episodes[1].attrs["success"], on_disk().episodes[1].task) == (True, "neu „x“")
    assert done["said"] == "Episode 1 is marked as a success, now of task “neu „x“”."
    client.edit(**done["undo"])
    assert (on_disk().episodes[1].attrs["success"], on_disk().episodes[1].task) == (False, "task <b>1</b>")
    _, done = client.edit(do="relabel", episode=names[1], labels={"weight": 0.5})
    client.edit(**done["undo"])
    assert on_disk().episodes[1].attrs["weight"] == 1.0, "what a missing weight means"

    _, done = client.edit(do="review", episode=names[2])
    assert [e["reviewed"] for e in client.get("/api/episodes")["episodes"]] == [False, False, True]
    client.edit(**done["undo"])
    assert [e["reviewed"] for e in client.get("/api/episodes")["episodes"]] == [False, False, False]


def test_trims_are_undone_one_by_one(client: Client, store: EpisodeStore) -> None:
    name, content = store.episodes[0].path.name, store.episodes[0].content
    _, first = client.edit(do="trim", episode=name, content=content, start_s=0.5, end_s=2.0)
    assert first["said"] == f"Episode 0: 31 of {TICKS} frames kept."
    once = EpisodeStore.open(store.path).episodes[0].content
    status, refused = client.edit(do="trim", episode=name, content=content, start_s=0.5, end_s=2.0)
    assert (status, refused["error"]) == (
        409, "Episode 0 was changed meanwhile: look at it again before you edit it.",
    )  # fmt: skip
    _, second = client.edit(do="trim", episode=name, content=once, start_s=0.5, end_s=None)
    assert EpisodeStore.open(store.path).episodes[0].length == 21
    _, again = client.edit(**second["undo"])
    assert EpisodeStore.open(store.path).episodes[0].content == once
    assert client.edit(**first["undo"])[0] == 200
    assert EpisodeStore.open(store.path).episodes[0].content == content
    assert len(trash(store)) == 2
    assert client.edit(**again["undo"])[0] == 200, "an undo can be undone"
    assert EpisodeStore.open(store.path).episodes[0].length == 21
    status, refused = client.edit(do="restore", version="nothing.1")
    assert (status, "not in the trash any more" in refused["error"]) == (409, True)
    status, refused = client.edit(do="trim", episode=name, start_s=50, end_s=60)
    assert (status, "nothing of it lies from 50 to 60 s" in refused["error"]) == (409, True)
    status, unchanged = client.edit(do="trim", episode=name, start_s=0, end_s=60)
    assert (status, unchanged["undo"]) == (200, None)


def test_who_else_writes_is_named_and_nothing_changes(client: Client, store: EpisodeStore) -> None:
    with EpisodeWriter(EpisodeStore.open(store.path)):
        status, refused = client.edit(do="delete", episode="0")
    assert status == 409
    assert "is being written by process" in refused["error"]
    assert len(EpisodeStore.open(store.path)) == 3


@pytest.mark.parametrize(
    ("edit", "status", "says"),
    [
        ({"do": "explode", "episode": "0"}, 400, "an edit is one of delete, restore, trim, relabel, review"),
        ({"do": "delete", "episode": "9"}, 404, "there is no episode 9 here"),
        ({"do": "delete"}, 404, "there is no episode None here"),
        ({"do": "trim", "episode": "0", "start_s": "soon"}, 400, "a time is a number of seconds"),
        (
            {"do": "relabel", "episode": "0", "labels": {"weight": -1}},
            409,
            "a weight is a number of at least 0",
        ),
        ({"do": "relabel", "episode": "0", "labels": {"colour": 1}}, 409, "labels are task, success, weight"),
        ({"do": "relabel", "episode": "0"}, 409, "labels are task, success, weight"),
    ],
)
def test_edits_that_are_none(reader: Client, edit: dict[str, Any], status: int, says: str) -> None:
    found, body = reader.edit(**edit)
    assert found == status
    assert says in body["error"]


def test_the_page_follows_what_others_do(client: Client, store: EpisodeStore) -> None:
    before = client.get("/api/revision")
    assert client.get("/api/revision") == before
    relabel(store, [2], {"success": True})
    after = client.get("/api/revision")
    assert after != before
    assert client.get("/api/episodes")["episodes"][2]["success"] is True
    trim(store, 0, 0.5, None)
    assert client.get("/api/episodes/0")["length"] == 50
    assert client.get("/api/episodes/0/series")[ACTION]["t"][0] == 0


def test_only_chosen_episodes_are_shown(store: EpisodeStore, cache: Path) -> None:
    names = [e.path.name for e in store.episodes]
    with Viewer(store, only=[0, 2], cache=cache).background() as url:
        client = Client(url)
        assert [e["name"] for e in client.get("/api/episodes")["episodes"]] == [names[0], names[2]]
        assert client.ask(f"/api/episodes/{names[1]}")[0] == 404
        assert client.edit(do="delete", episode=names[1])[0] == 404
    with pytest.raises(StoreError, match="has episodes 0 to 2, not 5"):
        Viewer(store, only=[5], cache=cache)


def test_edits_need_the_key_and_the_page_itself(client: Client, store: EpisodeStore) -> None:
    edit = json.dumps({"do": "delete", "episode": "0"})
    here = f"http://127.0.0.1:{client.port}"
    key = {"X-Ulna-Token": client.token}
    for headers, status, says in (
        ({}, 403, "open the URL that `ulna data view` printed"),
        ({"X-Ulna-Token": "guess"}, 403, "open the URL"),
        ({"Cookie": f"ulna-view-{client.port}={client.token}"}, 403, "open the URL"),
        ({**key, "Origin": "http://evil.example"}, 403, "another site"),
        ({**key, "Origin": "null"}, 403, "another site"),
        ({**key, "Origin": f"http://localhost:{client.port}"}, 403, "another site"),
        ({**key, "Sec-Fetch-Site": "cross-site"}, 403, "another site"),
        ({**key, "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 403, "another site"),
        ({**key, "Host": "evil.example"}, 421, "answers to localhost"),
        ({**key, "Host": f"evil.example:{client.port}"}, 421, "answers to localhost"),
        ({**key, "Host": ""}, 421, "answers to localhost"),
    ):
        found, _, body = client.ask("/api/edits", "POST", headers, edit)
        assert (found, says in json.loads(body)["error"]) == (status, True), headers
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
        coded = quote(name, safe="")
        for path in (
            f"/assets/{coded}",
            f"/assets/{name.replace(chr(0), '')}",
            f"/api/episodes/{coded}",
            f"/api/episodes/{coded}/thumbnail",
            f"/api/episodes/0/times/{coded}",
            f"/api/episodes/0/video/{coded}",
            f"/api/episodes/0/frames/{coded}?t=0",
            f"/api/episodes/0/frames/observation.images.%2F{coded}?t=0",
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


def test_beyond_this_machine_everything_needs_the_key(store: EpisodeStore, cache: Path) -> None:
    for read_only in (False, True):
        with Viewer(store, "0.0.0.0", cache=cache, read_only=read_only).background() as url:
            client = Client(url)
            assert client.token
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
            for name in ("ulna-view-1=other; ", ""):  # a viewer on another port of that machine has one too
                carried = {"Cookie": name + cookie.split(";")[0]}
                assert client.ask("/api/episodes/0/thumbnail", headers=carried)[0] == 200
            assert client.ask("/api/episodes", headers={"X-Ulna-Token": client.token})[0] == 200
            assert client.ask("/api/episodes", headers={"Cookie": "ulna-view-1=guess"})[0] == 401


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


def test_rerun_reads_back_every_stream_at_its_capture_times(
    store: EpisodeStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import rerun as rr

    out = tmp_path / "new" / "out.rrd"
    assert main(["data", "view", str(store.path), "--rerun", str(out), "--episodes", "0,2", "--json"]) == 0
    rows = 4 * TICKS + 2 * FRAMES
    assert json.loads(capfd.readouterr().out) == {"rrd": str(out), "episodes": 2, "rows": 2 * rows}
    assert [p.name for p in out.parent.iterdir()] == ["out.rrd"]
    reader = rr.chunk.RrdReader(out)
    recordings = reader.recordings()
    assert [r.recording_id for r in recordings] == [store.episodes[i].path.name for i in (0, 2)]
    assert len(reader.blueprints()) == 1
    found: dict[str, list[Any]] = {}
    for chunk in reader.stream(store=recordings[1]):
        batch = chunk.to_record_batch()
        if "time" in batch.schema.names:
            found.setdefault(chunk.entity_path, []).append(batch)

    def column(entity: str, name: str) -> list[Any]:
        batches = sorted(found[entity], key=lambda b: b.column("time")[0].value)
        return [v for b in batches for v in b.column(name)]

    e = store.episodes[2]
    for key, name in ((STATE, "state"), (ACTION, "action"), (REQUESTED, "action.requested")):
        for c, joint in enumerate(("elbow", "grip")):
            values = [v.as_py()[0] for v in column(f"/{name}/{joint}", "Scalars:scalars")]
            np.testing.assert_array_equal(values, e.read(key)[:, c].astype(np.float64))
            assert [v.value for v in column(f"/{name}/{joint}", "time")] == e.times_ns(key)[0].tolist()
            assert [v.value for v in column(f"/{name}/{joint}", "received")] == e.times_ns(key)[1].tolist()
    assert [v.value for v in column("/images/top", "time")] == frame_times_ns().tolist()
    blobs = [bytes(v.as_py()[0]) for v in column("/images/top", "EncodedImage:blob")]
    shown = cv2.imdecode(np.frombuffer(blobs[20], np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert np.abs(cv2.cvtColor(shown, cv2.COLOR_BGR2RGB).astype(int) - picture_of(20)).mean() < 8
    blobs = [bytes(v.as_py()[0]) for v in column("/depth/top", "EncodedDepthImage:blob")]
    depth = cv2.imdecode(np.frombuffer(blobs[20], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(depth, e.read_frames(FAR, [20])[0])
    assert column("/depth/top", "EncodedDepthImage:meter")[0].as_py() == [pytest.approx(0.001)]


def test_rerun_leaves_nothing_when_a_stream_is_damaged(store: EpisodeStore, tmp_path: Path) -> None:
    shutil.rmtree(store.episodes[1].path / STATE / "value" / "c")
    with pytest.raises(StoreError, match=r"episode 1: .*cannot be read"):
        write_rrd(store, tmp_path / "o" / "x.rrd")
    assert list((tmp_path / "o").iterdir()) == []


def test_series_of_streams_without_rows(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    with EpisodeWriter(store, own_rate=(STATE, CAMERA)) as writer:
        writer.start({})
        for t in range(3):
            row = {k: np.zeros(f.shape, f.dtype) for k, f in WITH_IMAGE.items() if k not in (STATE, CAMERA)}
            writer.tick(row, dict.fromkeys(row, (t * MS, t * MS)))
        writer.end({})
    timeline = read_timeline(store.episodes[0], store.features)
    assert series(timeline, 0, 1, 100)[STATE]["t"] == []
    with Viewer(store, cache=tmp_path / "c").background() as url:
        client = Client(url)
        assert client.get("/api/episodes/0")["length"] == 3
        assert client.video("0", CAMERA)["said"] == f"no video of {CAMERA}: it has no frames"
        assert client.ask(f"/api/episodes/0/frames/{CAMERA}?t=0")[0] == 404
        assert client.get("/api/episodes/0/values?t=0")[ACTION]["row"] == 0
