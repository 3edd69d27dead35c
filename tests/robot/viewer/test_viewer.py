"""What the viewer's server shows, asked as a browser asks it: lists, videos by range, exact frames, plots and
findings."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from contracts.data import CAMERA, WITH_IMAGE, write_store
from contracts.viewer import FAR, FRAMES, MS, TICKS, TOP, Client, frame_times_ns, picture_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.datasets.checks.check import check_episode
from ulna.datasets.features import ACTION, STATE
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.datasets.vectors import write_vector
from ulna.robot.viewer.series import decimate, numbers, panels, read_timeline, row_at, series
from ulna.robot.viewer.server import Viewer
from ulna.robot.viewer.video import KEY_FRAME_EVERY, VideoCache, time_stamps, write_video

ROOT = Path(__file__).parents[3]


def decoded(video: bytes) -> tuple[list[Any], float]:
    """(frames, duration in seconds)."""
    container: Any = av.open(io.BytesIO(video), "r")
    try:
        (stream,) = container.streams
        return list(container.decode(video=0)), float(stream.duration * stream.time_base)
    finally:
        container.close()


def test_the_page_and_its_parts_are_served(reader: Client) -> None:
    status, headers, body = reader.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'self'" in headers["content-security-policy"]
    page = body.decode()
    assert "http" not in page.replace("http-equiv", ""), "nothing comes from elsewhere"
    names = {p.name for p in (ROOT / "robot" / "viewer" / "assets").iterdir()}
    for name in names:
        status, headers, body = reader.ask(f"/assets/{name}")
        assert (status, body) == (200, (ROOT / "robot" / "viewer" / "assets" / name).read_bytes())
        if name.endswith(".js"):
            assert headers["content-type"].startswith("text/javascript")
            imports = {
                line.split('"/assets/')[1].split('"')[0]
                for line in body.decode().splitlines()
                if '"/assets/' in line
            }
            assert imports <= names


def test_the_list_and_the_header(reader: Client, same: EpisodeStore) -> None:
    listing = reader.get("/api/episodes")
    assert [(e["index"], e["task"], e["success"], e["length"]) for e in listing["episodes"]] == [
        (i, f"task <b>{i}</b>", i == 0, TICKS) for i in range(3)
    ]
    assert listing["trash"] == []
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
    assert e["limited"] == [[pytest.approx(1.5), pytest.approx(1.95)]]
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
        key_rows = np.flatnonzero([f.key_frame for f in frames])
        assert key_rows[0] == 0
        assert np.diff(key_rows).max() <= KEY_FRAME_EVERY
        if key == TOP:
            assert (frames[0].height, frames[0].width) == (26, 34), "even sides"
            for row in (0, 21, 39):
                pixels = frames[row].to_ndarray(format="rgb24")[:25, :33].astype(int)
                assert np.abs(pixels - picture_of(row)).mean() < 12


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
    inodes = {p.name: p.stat().st_ino for p in cache.iterdir()}
    assert len(inodes) == 1, "nothing half-made is left"
    with Viewer(store, cache=cache).background() as url:
        assert Client(url).get(f"/api/episodes/1/video/{TOP}/state")["state"] == "ready"
    assert {p.name: p.stat().st_ino for p in cache.iterdir()} == inodes


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

    def stop(share: float) -> None:
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
    pixels = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    assert not pixels[0].any(), "no depth is black"
    assert pixels[1:].any(axis=-1).all()
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
        answer_status, _, body = reader.ask(f"/api/episodes/0/frames/{path}")
        assert answer_status == status, path
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
    description = client.get("/api/episodes/0")
    assert "cannot be read" in next(s["error"] for s in description["streams"] if s["key"] == STATE)
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
    series = client.get("/api/episodes/0/series")
    assert series[STATE]["decimated"] is False
    np.testing.assert_allclose(series[STATE]["columns"], e.read(STATE).T, rtol=1e-5)
    assert series["observation.force"]["columns"][2][7] is None, "not a number"
    part = client.get("/api/episodes/0/series?start=1&end=2")[ACTION]["t"]
    assert part == pytest.approx(np.arange(19, 42) * 0.05), "one row beyond on either side"
    thin = client.get("/api/episodes/0/series?bins=10")[STATE]
    assert (thin["decimated"], len(thin["t"])) == (True, 20)
    assert max(thin["columns"][0]) == pytest.approx(e.read(STATE)[:, 0].max(), rel=1e-5)
    values = client.get("/api/episodes/0/values?t=1.02")
    assert values[STATE]["row"] == 20
    assert values[STATE]["values"] == pytest.approx(e.read(STATE)[20].tolist(), rel=1e-5)


def test_what_shares_a_plot(store: EpisodeStore) -> None:
    plots = panels(read_timeline(store.episodes[0], store.features).vectors)
    assert [(p["title"], p["unit"], [c["label"] for c in p["curves"]]) for p in plots] == [
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
    findings = reader.get("/api/episodes/0/findings")["findings"]
    assert findings == json.loads(json.dumps([f.to_json() for f in check_episode(same, same.episodes[0])]))
    assert any(f["check"] == "gap" and f["stream"] == TOP for f in findings)
    assert reader.get("/api/findings")["checked"] == 1
    reader.get("/api/findings?begin=1")
    summary: dict[str, Any] = {}
    for _ in range(400):
        if not (summary := reader.get("/api/findings"))["running"]:
            break
        time.sleep(0.02)
    assert set(summary["counts"]) == {e.path.name for e in same.episodes}
    assert sum(summary["counts"][same.episodes[0].path.name].values()) == len(findings)


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
