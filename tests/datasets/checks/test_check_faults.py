"""Every check against the fault that it is for, put into recordings that have none; and recordings without
any."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ulna.datasets.checks.advice import ADVICE
from ulna.datasets.checks.check import Finding, check, check_episode
from ulna.datasets.features import ACTION, DEPTH, IMAGES, REQUESTED, STATE, Feature
from ulna.datasets.flags import AFTER_DROP, INVALID, STALE
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main

CAMERA, DEEP = IMAGES + "front", DEPTH + "front"
NAMES, UNITS = ("base", "elbow"), ("rad", "rad")
FEATURES = {
    STATE: Feature((2,), "float32", NAMES, UNITS),
    ACTION: Feature((2,), "float32", NAMES, UNITS),
    CAMERA: Feature((48, 64, 3), "uint8"),
}
MS = 1_000_000
FPS = 25
Rows = dict[str, dict[str, Any]]


def recording(episode: int, seconds: float = 6.0, lag_s: float = 0.0) -> Rows:
    """An arm of two joints that stops and starts, seen by a noisy camera. `lag_s`: the images show it that
    much too late."""
    rng = np.random.default_rng(episode)
    count = round(seconds * FPS)
    t = np.arange(count) / FPS
    knots = rng.uniform(-1, 1, (int(seconds / 0.5) + 3, 2)).repeat(2, axis=0)  # goes, then stands
    knots[:2] = 0  # every episode begins at home

    def where(at: np.ndarray) -> np.ndarray:
        place = np.clip(at / 0.5, 0, len(knots) - 2)
        i = place.astype(int)
        u = (place - i)[:, None]
        return knots[i] + (knots[i + 1] - knots[i]) * (3 * u**2 - 2 * u**3)

    state = where(t).astype(np.float32)
    images = np.empty((count, 48, 64, 3), np.uint8)
    for k, (a, b) in enumerate(where(t - lag_s)):
        image = np.full((48, 64, 3), 90, np.uint8)
        elbow = 32 + 14 * np.sin(a), 44 - 14 * np.cos(a)
        hand = elbow[0] + 14 * np.sin(a + b), elbow[1] - 14 * np.cos(a + b)
        points = np.array([[32, 44], elbow, hand]) * 16
        cv2.polylines(image, [points.astype(np.int32)], False, (220, 200, 60), 5, cv2.LINE_AA, 4)
        images[k] = np.clip(image + rng.normal(0, 2, image.shape), 0, 255)
    times = (t * 1e9).round().astype(np.int64)
    return {
        key: {"values": v, "capture": times.copy(), "receive": times + MS, "flags": np.zeros(count, int)}
        for key, v in ((STATE, state), (ACTION, state.copy()), (REQUESTED, state.copy()), (CAMERA, images))
    }


def store_of(path: Path, episodes: list[Rows], meta: dict[str, Any] | None = None) -> EpisodeStore:
    features = dict(FEATURES)
    if episodes and DEEP in episodes[0]:
        features[DEEP] = Feature((24, 32), "uint16", (), ("mm",))
    store = EpisodeStore.create(path, features, FPS)
    with EpisodeWriter(store) as writer:
        for rows in episodes:
            writer.start({"task": "wave", **(meta or {})})
            for key, r in rows.items():
                for value, c, n, f in zip(r["values"], r["capture"], r["receive"], r["flags"], strict=True):
                    writer.append(key, value, int(c), int(n), int(f))
            writer.end({})
    return store


def found(store: EpisodeStore, name: str) -> list[Finding]:
    return [f for f in check(store) if f.check == name]


def keep(rows: Rows, key: str, which: np.ndarray) -> None:
    rows[key] = {k: v[which] for k, v in rows[key].items()}


def between(rows: Rows, key: str, start_s: float, end_s: float) -> np.ndarray:
    t = rows[key]["capture"] * 1e-9
    return (t >= start_s) & (t < end_s)


def gap(r: Rows) -> None:
    for key in list(r):
        keep(r, key, ~between(r, key, 2.0, 2.3))


def camera_ends(r: Rows) -> None:
    keep(r, CAMERA, ~between(r, CAMERA, 5.0, 9.0))


def clock_set(r: Rows) -> None:
    r[CAMERA]["receive"] += 1000 * MS
    r[CAMERA]["capture"] += np.where(between(r, CAMERA, 3.0, 9.0), 300 * MS, 0)


def clock_back(r: Rows) -> None:
    r[STATE]["capture"] -= np.where(between(r, STATE, 3.0, 9.0), 200 * MS, 0)


def other_clock(r: Rows) -> None:
    for part in ("capture", "receive"):
        r[CAMERA][part] += 10**15


def slow_loop(r: Rows) -> None:
    for rows in r.values():
        for part in ("capture", "receive"):
            rows[part] = (rows[part] * 1.25).astype(np.int64)


def trembling(r: Rows) -> None:
    shift = np.where(np.arange(len(r[ACTION]["capture"])) % 4 == 1, 18 * MS, 0)
    for key in (ACTION, REQUESTED):
        r[key]["capture"] += shift
        r[key]["receive"] += shift


def frozen(r: Rows) -> None:
    rows = np.flatnonzero(between(r, CAMERA, 2.0, 3.5))
    r[CAMERA]["values"][rows] = r[CAMERA]["values"][rows[0]]


def black(r: Rows) -> None:
    r[CAMERA]["values"][between(r, CAMERA, 2.0, 2.2)] //= 40


def white(r: Rows) -> None:
    r[CAMERA]["values"][between(r, CAMERA, 2.0, 3.0)] = 255


def one_colour(r: Rows) -> None:
    r[CAMERA]["values"][between(r, CAMERA, 2.0, 3.0)] = (0, 140, 0)


def half_rate(r: Rows) -> None:
    r[CAMERA]["values"][1::2] = r[CAMERA]["values"][::2]


def static(r: Rows) -> None:
    for key in (STATE, ACTION, REQUESTED):
        r[key]["values"][:] = r[key]["values"][0]


def pause(r: Rows) -> None:
    for key in (STATE, ACTION, REQUESTED):
        here = np.flatnonzero(between(r, key, 1.5, 5.0))
        r[key]["values"][here] = r[key]["values"][here[0]]


def short(r: Rows) -> None:
    for key in list(r):
        keep(r, key, between(r, key, 0.0, 0.5))


def clipped(r: Rows) -> None:
    r[ACTION]["values"] = np.clip(r[ACTION]["values"], -0.2, 0.2)


def wrong_reading(r: Rows) -> None:
    r[STATE]["values"][50, 1] += 2.0


def beyond_limits(r: Rows) -> None:
    r[ACTION]["values"][60:64, 0] = 1.5


def coarse_reading(r: Rows) -> None:
    r[STATE]["values"] = r[STATE]["values"][np.arange(len(r[STATE]["values"])) // 4 * 4]


def marked(bit: int, key: str, rows: slice) -> Callable[[Rows], None]:
    def mark(r: Rows) -> None:
        r[key]["flags"][rows] |= bit

    return mark


FAULTS: list[tuple[Callable[[Rows], None], str, str, str, tuple[float, float], str]] = [
    (gap, "gap", "warning", ACTION, (1.96, 2.32), "nothing for 3[46]0 ms, where a row comes every 40.0 ms"),
    (camera_ends, "gap", "severe", CAMERA, (4.96, 5.96), "nothing in the last 1000 ms"),
    (clock_set, "clock", "severe", CAMERA, (2.9, 3.4), r"jumps by \+300 ms"),
    (clock_back, "clock", "severe", STATE, (2.7, 3.1), "step back 1 times, by up to 160.0 ms"),
    (other_clock, "clock", "severe", CAMERA, (0.0, 5.96), "never meet"),
    (slow_loop, "rate", "severe", ACTION, (0.0, 7.45), "ran at 20.00 Hz, nominal is 25 Hz"),
    (trembling, "jitter", "warning", ACTION, (0.0, 5.98), "differ from 40.0 ms"),
    (frozen, "frozen", "severe", CAMERA, (1.96, 3.52), r"stands still for 1.4\d s"),
    (black, "black", "warning", CAMERA, (1.96, 2.24), "5 of 150 frames"),
    (white, "overexposed", "severe", CAMERA, (1.96, 3.04), "25 of 150 frames"),
    (one_colour, "flat", "severe", CAMERA, (1.96, 3.04), "25 of 150 frames"),
    (half_rate, "duplicates", "warning", CAMERA, (0.0, 5.96),
     r"about 1[1-5][\d.]* new images a second, not 25"),
    (static, "static", "severe", STATE, (0.0, 5.96), "nothing moves"),
    (pause, "idle", "warning", STATE, (0.9, 5.1), r"no joint moves for 4\.0 s"),
    (short, "short", "warning", "", (0.0, 0.5), "it lasts 0.48 s, 13 ticks"),
    (clipped, "clipped", "severe", ACTION, (0.0, 5.96), r"base \d+% by up to 0\.\d+ rad"),
    (wrong_reading, "jump", "warning", STATE, (1.96, 2.04),
     r"elbow jumps by 2[.\d]* rad from one row to the next .2 such steps"),
    (beyond_limits, "limits", "severe", ACTION, (2.4, 2.52),
     "base is at 1.5 rad, its limits are -1.1 to 1.1 .4 rows"),
    (coarse_reading, "held", "info", STATE, (0.0, 5.96),
     r"2 of 2 readings change only every 4\.0 rows, at about 6\.2 Hz"),
    (marked(STALE, STATE, slice(10, 60)), "stale", "warning", STATE, (0.0, 5.96), "50 of 150 rows"),
    (marked(INVALID, STATE, slice(50, 53)), "invalid", "warning", STATE, (2.0, 2.08), "doubted 3 of 150"),
    (marked(AFTER_DROP, CAMERA, slice(50, 51)), "dropped", "warning", CAMERA, (2.0, 2.0), "at 1 places"),
]  # fmt: skip


def test_a_gripper_that_holds_something_is_no_limit(tmp_path: Path) -> None:
    features = {key: Feature((2,), "float32", ("base", "gripper"), ("rad", "rad")) for key in (STATE, ACTION)}
    store = EpisodeStore.create(tmp_path / "d", features, FPS)
    with EpisodeWriter(store) as writer:
        writer.start({"task": "grip", "limits": {"base": [-1.1, 1.1], "gripper": [0.0, 1.5]}})
        for t in range(100):
            asked = np.array([0.5 * np.sin(t / 8), max(0.0, 1.0 - t / 20)], np.float32)
            sent = np.maximum(asked, np.array([-1.1, 0.4], np.float32))  # the cube is as wide as 0.4
            values = {STATE: sent, ACTION: sent, REQUESTED: asked}
            writer.tick(values, dict.fromkeys(values, (t * 40 * MS, t * 40 * MS)))
        writer.end({"success": True})
    assert found(store, "clipped") == []
    (it,) = found(store, "held-back")
    assert (it.severity, it.stream) == ("info", ACTION)
    assert it.message.startswith("gripper 8")


@pytest.mark.parametrize(
    ("ticks", "severity", "says"), [(6, "info", "only later"), (12, "severe", "otherwise")]
)
def test_what_limits_made_a_little_later_is_no_fault(
    tmp_path: Path, ticks: int, severity: str, says: str
) -> None:
    features = {key: Feature((1,), "float32", ("base",), ("rad",)) for key in (STATE, ACTION)}
    store = EpisodeStore.create(tmp_path / "d", features, FPS)
    with EpisodeWriter(store) as writer:
        writer.start({"task": "swing", "limits": {"base": [-1.1, 1.1]}})
        for t in range(150):
            asked, sent = (np.array([np.sin(x / 8)], np.float32) for x in (t, max(t - ticks, 0)))
            values = {STATE: sent, ACTION: sent, REQUESTED: asked}
            writer.tick(values, dict.fromkeys(values, (t * 40 * MS, t * 40 * MS)))
        writer.end({"success": True})
    (it,) = found(store, "clipped")
    assert it.severity == severity
    assert says in it.message


@pytest.mark.parametrize(("harm", "name", "severity", "stream", "span_s", "says"), FAULTS)
def test_a_fault_is_found_where_it_is_and_in_no_other_episode(
    tmp_path: Path,
    harm: Callable[[Rows], None],
    name: str,
    severity: str,
    stream: str,
    span_s: tuple[float, float],
    says: str,
) -> None:
    episodes = [recording(0), recording(1)]
    harm(episodes[1])
    limits = {n: [-1.1, 1.1] for n in NAMES}
    store = store_of(tmp_path / "d", episodes, {"limits": limits})
    every = check(store)
    assert [f for f in every if f.episode == 0] == []
    (it,) = [f for f in every if f.check == name and f.stream == stream]
    assert (it.severity, it.episode, it.name) == (severity, 1, store.episodes[1].path.name)
    assert span_s[0] - 1e-6 <= it.start_s <= it.end_s <= span_s[1] + 1e-6
    assert re.search(says, it.message), it.message
    assert it in check_episode(store, store.episodes[1])
    assert json.loads(json.dumps(it.to_json(), allow_nan=False))["check"] == name


def test_recordings_without_faults_have_no_findings(tmp_path: Path) -> None:
    store = store_of(
        tmp_path / "d", [recording(i) for i in range(8)], {"limits": {n: [-1.1, 1.1] for n in NAMES}}
    )
    assert check(store) == []
    assert check(store, fast=True) == []
    assert check(EpisodeStore.create(tmp_path / "empty", FEATURES, FPS)) == []


def test_a_simulated_camera_that_repeats_itself_while_nothing_moves_is_not_frozen(tmp_path: Path) -> None:
    rows = recording(0)
    pause(rows)
    here = np.flatnonzero(between(rows, CAMERA, 1.5, 5.0))
    rows[CAMERA]["values"][here] = rows[CAMERA]["values"][here[0]]
    store = store_of(tmp_path / "d", [rows])
    assert not found(store, "frozen")
    assert not found(store, "duplicates")


@pytest.mark.parametrize("lag_s", [-0.15, 0.15, 0.3])
def test_the_lag_of_a_camera_is_measured_over_all_episodes(tmp_path: Path, lag_s: float) -> None:
    store = store_of(tmp_path / "d", [recording(i, lag_s=lag_s) for i in range(5)])
    (it,) = found(store, "misaligned")
    assert (it.episode, it.stream) == (-1, CAMERA)
    assert it.value == pytest.approx(lag_s, abs=0.02)
    assert ("after" if lag_s > 0 else "before") in it.message
    assert it.severity == ("severe" if lag_s > 0.25 else "warning")


def test_one_episode_whose_camera_lags_is_named(tmp_path: Path) -> None:
    store = store_of(tmp_path / "d", [recording(i, lag_s=0.3 if i == 3 else 0.0) for i in range(8)])
    (it,) = found(store, "misaligned")
    assert it.episode == 3
    assert it.value == pytest.approx(0.3, abs=0.05)


def test_images_that_have_nothing_to_do_with_the_joints_have_no_lag(tmp_path: Path) -> None:
    episodes = [recording(i) for i in range(5)]
    for i, rows in enumerate(episodes):
        rows[CAMERA] = recording(100 + i)[CAMERA]
    assert not found(store_of(tmp_path / "d", episodes), "misaligned")


def test_an_episode_unlike_the_others_is_said_to_be_so_with_what_and_by_how_much(tmp_path: Path) -> None:
    episodes = [recording(i, seconds=14.0 if i == 2 else 6.0) for i in range(9)]
    brighter = episodes[5][CAMERA]["values"].astype(int) + 60
    episodes[5][CAMERA]["values"] = np.clip(brighter, 0, 255).astype(np.uint8)
    odd = {f.episode: f.message for f in found(store_of(tmp_path / "d", episodes), "outlier")}
    assert set(odd) == {2, 5}
    assert "length is 2.3 times what is usual" in odd[2]
    assert f"brightness of {CAMERA} is 1" in odd[5]
    few = store_of(tmp_path / "few", episodes[:7])
    assert not found(few, "outlier"), "of seven nobody can say what is usual"


def test_damage_is_a_finding_that_names_the_stream_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    episodes = [recording(i) for i in range(4)]
    frozen(episodes[0])
    store = store_of(tmp_path / "d", episodes)
    first, second, third, fourth = (e.path for e in store.episodes)
    (shard,) = [p for p in (first / CAMERA / "value" / "c" / "0").rglob("*") if p.is_file()]
    raw = bytearray(shard.read_bytes())
    raw[5000] ^= 255
    shard.write_bytes(raw)
    (chunk,) = [p for p in (second / STATE / "value" / "c").rglob("*") if p.is_file()]
    chunk.write_bytes(b"nothing of the kind")
    shutil.rmtree(third / CAMERA)
    (fourth / "zarr.json").write_text("{")
    every = check(EpisodeStore.open(store.path))
    messages = {(f.episode, f.stream): f.message for f in every if f.check == "damaged"}
    assert set(messages) == {(0, CAMERA), (1, STATE), (3, "")}
    assert "1 of 150 frames cannot be read" in messages[0, CAMERA]
    assert "checksum" in messages[0, CAMERA]
    assert "zarr.json" in messages[3, ""]
    assert [(f.episode, f.stream) for f in every if f.check == "missing"] == [(2, CAMERA)]
    assert [f.episode for f in every if f.check == "frozen"] == [0]
    assert [f.episode for f in check(EpisodeStore.open(store.path), [2])] == [2]


def test_nan_a_foreign_shape_and_an_interrupted_episode_are_found(tmp_path: Path) -> None:
    import zarr

    store = store_of(tmp_path / "d", [recording(0), recording(1), recording(2)], {})
    group: Any = zarr.open_group(str(store.episodes[0].path), mode="r+")
    values = group[f"{ACTION}/value"]
    values[70:72, 1] = np.nan
    header = json.loads((store.path / "ulna.json").read_text())
    header["features"][STATE]["shape"], header["features"][STATE]["names"] = [3], ["base", "elbow", "hand"]
    (store.path / "ulna.json").write_text(json.dumps(header))
    attrs = store.episodes[2].path / "zarr.json"
    group = json.loads(attrs.read_text())
    group["attributes"] |= {"interrupted": "killed", "dropped": {CAMERA: 30}}
    attrs.write_text(json.dumps(group))
    every = check(EpisodeStore.open(store.path))
    (nan,) = [f for f in every if f.check == "nan"]
    assert (nan.episode, nan.stream, nan.start_s, nan.end_s) == (0, ACTION, 2.8, 2.84)
    assert "elbow" in nan.message
    assert [f.episode for f in every if f.check == "features"] == [0, 1, 2]
    (interruption,) = [f for f in every if f.check == "interrupted"]
    assert (interruption.episode, "killed" in interruption.message) == (2, True)
    (loss,) = [f for f in every if f.check == "dropped"]
    assert (loss.severity, "30 rows were lost" in loss.message) == ("severe", True)


def test_depth_without_readings_is_found(tmp_path: Path) -> None:
    rows = recording(0)
    deep = np.random.default_rng(0).integers(500, 900, (150, 24, 32)).astype(np.uint16)
    deep[50:70] = 0
    rows[DEEP] = {**rows[CAMERA], "values": deep}
    (it,) = found(store_of(tmp_path / "d", [rows]), "empty")
    assert (it.stream, it.severity) == (DEEP, "severe")
    assert (it.start_s, it.end_s) == pytest.approx((2.0, 2.8), abs=0.05)


def test_the_command_prints_one_object_and_fails_when_something_is_severe(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = [recording(0), recording(1)], [recording(0), recording(1)]
    frozen(bad[1])
    black(bad[0])
    store_of(tmp_path / "good", good)
    store_of(tmp_path / "bad", bad)
    assert main(["data", "check", str(tmp_path / "good")]) == 0
    assert "2 episodes: 0 severe, 0 warning, 0 info" in capfd.readouterr().out
    assert main(["data", "check", str(tmp_path / "bad")]) == 1
    text = capfd.readouterr().out
    assert "episode 1 (000001-" in text
    assert ADVICE["frozen"] in text
    assert (
        main(["data", "check", str(tmp_path / "bad"), "--json", "--severity", "severe", "--episodes", "1"])
        == 1
    )
    answer = json.loads(capfd.readouterr().out)
    assert answer["counts"] == {"severe": 1, "warning": 0, "info": 0}
    assert [f["check"] for f in answer["findings"]] == ["frozen"]
    assert main(["data", "check", str(tmp_path / "bad"), "--fast", "--episodes", "0"]) == 0
    assert main(["data", "check", str(tmp_path / "bad"), "--episodes", "7"]) == 1
    assert "episodes 0 to 1, not 7" in capfd.readouterr().err


def test_every_kind_of_finding_is_explained() -> None:
    text = (Path(__file__).parents[3] / "docs" / "checks.md").read_text()
    assert [name for name in ADVICE if f"`{name}`" not in text] == []
    assert {name for _, name, *_ in FAULTS} <= set(ADVICE)
