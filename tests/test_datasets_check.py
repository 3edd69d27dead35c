"""Checks: each fault is put in, and found where it is; what is right raises nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.data import write_store

from ulna.datasets.check import check, check_episode
from ulna.datasets.features import ACTION, IMAGES, STATE, Feature
from ulna.datasets.findings import Finding
from ulna.datasets.store import REQUESTED, EpisodeStore
from ulna.datasets.writer import EpisodeWriter
from ulna.robot.cli import main

MS = 1_000_000
CAMERA = IMAGES + "front"
FEATURES = {
    STATE: Feature((2,), "float32", ("shoulder", "elbow"), ("rad", "rad")),
    ACTION: Feature((2,), "float32", ("shoulder", "elbow"), ("rad", "rad")),
    CAMERA: Feature((48, 48, 3), "uint8"),
}
Rows = dict[str, Any]


def motion(t_s: float, seed: int) -> np.ndarray:
    """Stops and starts, as an arm does."""
    rng = np.random.default_rng(seed)
    knots = np.cumsum(rng.uniform(0.2, 0.6, 40))
    where = np.cumsum(rng.normal(0, 0.3, (41, 2)), 0)
    i = int(np.searchsorted(knots, t_s))
    begin = knots[i - 1] if i else 0.0
    u = np.clip((t_s - begin) / (knots[i] - begin) * 1.5, 0, 1)
    return where[i] + (where[i + 1] - where[i]) * (3 * u**2 - 2 * u**3)


def picture(q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:48, :48]
    blob = 150 * np.exp(-((x - 24 - 14 * q[0]) ** 2 + (y - 24 - 14 * q[1]) ** 2) / 60)
    grey = 60 + blob + rng.normal(0, 1.5, (48, 48))
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, -1)


def record(
    path: Path,
    fault: Callable[[int, int, Rows], Rows | None] = lambda e, t, r: r,
    episodes: int = 1,
    meta: Any = None,
) -> EpisodeStore:
    """25 Hz, 6 s an episode. fault: may change a row (`values`, `times`, `lag_s` of the camera), or drop it with None."""
    store = EpisodeStore.create(path, FEATURES, 25.0)
    with EpisodeWriter(store) as writer:
        for e in range(episodes):
            rng = np.random.default_rng(e)
            writer.start({"task": "x", **(meta or {})})
            for t in range(150):
                now = 10**12 + t * 40 * MS
                q = motion(t * 0.04, e).astype(np.float32)
                row = fault(e, t, {"q": q, "now": now, "seen": t * 0.04, "image": None, "asked": q})
                if row is None:
                    continue
                image = picture(motion(row["seen"], e), rng) if row["image"] is None else row["image"]
                values = {STATE: row["q"], ACTION: row["q"], REQUESTED: row["asked"], CAMERA: image}
                writer.tick(values, dict.fromkeys(values, (row["now"], row["now"] + MS)), row.get("flags"))
            writer.end({"success": True})
    return store


def found(store: EpisodeStore, name: str) -> list[Finding]:
    return [f for f in check(store) if f.check == name]


def test_good_data_raises_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = record(tmp_path / "d", episodes=9, meta={"limits": {"shoulder": [-9, 9], "elbow": [-9, 9]}})
    assert check(store) == []
    assert main(["data", "check", str(store.path)]) == 0
    assert "nothing found" in capfd.readouterr().out


def put(at: range, **changes: Any) -> Callable[[int, int, Rows], Rows | None]:
    return lambda e, t, r: {**r, **changes} if t in at else r


FROZEN = picture(np.zeros(2), np.random.default_rng(9))
FAULTS: list[tuple[str, str, Callable[[int, int, Rows], Rows | None], float | None, str]] = [
    ("gap", "severe", lambda e, t, r: None if 50 <= t < 70 else r, 49 * 0.04, "nothing for 0.840 s, 21.0 periods"),
    ("gap", "warning", lambda e, t, r: None if 50 <= t < 53 else r, 49 * 0.04, "4.0 periods"),
    ("clock", "severe", lambda e, t, r: {**r, "now": r["now"] - 3600 * 10**9 * (t >= 80)}, 79 * 0.04, "steps back by 3599.9"),
    ("clock", "severe", lambda e, t, r: {**r, "now": r["now"] + 3600 * 10**9 * (t >= 80)}, 79 * 0.04, "jumps ahead by 3600 s"),
    ("rate", "severe", lambda e, t, r: {**r, "now": 10**12 + t * 60 * MS}, None, "ran at 16.67 Hz instead of 25.00 Hz"),
    ("black", "severe", put(range(40, 60), image=np.zeros((48, 48, 3), np.uint8)), 40 * 0.04, "black for 0.80 s"),
    ("frozen", "severe", put(range(40, 70), image=FROZEN), 40 * 0.04, "the picture stands for 1.16 s while the joints move"),
    ("duplicates", "warning", lambda e, t, r: {**r, "image": FROZEN if t % 3 else picture(r["q"], np.random.default_rng(t))}, None, "repeat the one before"),
    ("static", "severe", lambda e, t, r: {**r, "q": np.zeros(2, np.float32), "asked": np.zeros(2, np.float32)}, None, "nothing moves"),
    ("short", "severe", lambda e, t, r: r if t < 4 else None, None, "it lasts 0.12 s, 4 ticks"),
    ("not sent", "warning", lambda e, t, r: {**r, "asked": r["q"] + np.array([0.3, 0], np.float32) * (t >= 75)}, 75 * 0.04, "most for shoulder: 0.3000 rad"),
    ("invalid", "warning", put(range(10, 40), flags={STATE: 8}), None, "20.0% of the rows were doubted by the device"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "severity", "fault", "at", "says"), FAULTS, ids=[f"{f[0]}-{f[4][:12]}" for f in FAULTS]
)
def test_each_fault_is_found_where_it_is(
    tmp_path: Path,
    name: str,
    severity: str,
    fault: Any,
    at: float | None,
    says: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    store = record(tmp_path / "d", fault)
    mine = [f for f in found(store, name) if says in f.message]
    assert mine, check(store)
    assert mine[0].severity == severity
    assert (mine[0].episode, mine[0].name) == (0, store.episodes[0].path.name)
    if at is not None:
        assert mine[0].start_s == pytest.approx(at, abs=0.045)
    assert mine[0] in check_episode(store, store.episodes[0])
    code = main(["data", "check", str(store.path), "--json"])
    answer = json.loads(capfd.readouterr().out)
    assert code == (1 if answer["counts"]["severe"] else 0)
    assert code == 1 or severity != "severe"


@pytest.mark.parametrize("lag_s", [-0.2, 0.1, 0.25])
def test_a_camera_that_is_late_is_measured(tmp_path: Path, lag_s: float) -> None:
    store = record(tmp_path / "d", lambda e, t, r: {**r, "seen": max(0.0, r["seen"] - lag_s)}, episodes=6)
    (finding,) = found(store, "misaligned")
    assert finding.value is not None
    assert finding.value == pytest.approx(lag_s, abs=0.03)
    assert finding.stream == CAMERA
    assert finding.severity == ("warning" if abs(lag_s) < 0.15 else "severe")
    assert ("behind" if lag_s > 0 else "ahead of") in finding.message


def test_limits_nan_and_what_the_recorder_noted(tmp_path: Path) -> None:
    meta = {"limits": {"shoulder": [-0.05, 0.05], "elbow": [-9, 9]}, "dropped": {CAMERA: 30}}
    store = record(tmp_path / "d", meta=meta)
    limit = {f.stream: f for f in found(store, "limit")}
    assert limit[ACTION].severity == "severe"
    assert limit[STATE].severity == "warning"
    assert "shoulder is beyond its limits [-0.050, 0.050]" in limit[ACTION].message
    assert found(store, "dropped")[0].severity == "severe"
    import zarr

    array: Any = zarr.open_group(str(store.episodes[0].path), mode="r+")[f"{STATE}/value"]
    array[70] = np.nan
    (nan,) = found(EpisodeStore.open(store.path), "nan")
    assert nan.start_s == pytest.approx(70 * 0.04)


def test_damage_is_named_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    store = record(tmp_path / "d", FAULTS[5][2], episodes=2)
    shard = store.episodes[0].path / CAMERA / "value" / "c" / "1" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    (store.episodes[1].path / STATE / "value" / "c" / "0" / "0").unlink()
    damaged = found(store, "damaged")
    assert {(f.episode, f.stream, f.severity) for f in damaged} == {
        (0, CAMERA, "severe"),
        (1, STATE, "severe"),
    }
    assert "frame 64 cannot be read: its checksum is wrong" in damaged[0].message
    assert damaged[0].start_s == pytest.approx(64 * 0.04)
    assert [f.episode for f in found(store, "black")] == [0, 1]


def test_an_episode_unlike_the_others_is_named(tmp_path: Path) -> None:
    def far(e: int, t: int, r: Rows) -> Rows:
        return {
            **r,
            "q": r["q"] + np.array([3, 0], np.float32) * (e == 4),
            "asked": r["q"] + np.array([3, 0], np.float32) * (e == 4),
        }

    store = record(tmp_path / "d", far, episodes=9)
    outliers = found(store, "outlier")
    assert {f.episode for f in outliers} == {4}
    assert any("start of shoulder" in f.message for f in outliers)


def test_an_interrupted_episode_and_stats(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = record(tmp_path / "d")
    with EpisodeWriter(store) as writer:
        writer.start({})
        rows = {k: np.zeros(f.shape, f.dtype) for k, f in FEATURES.items()}
        writer.tick(rows, dict.fromkeys(rows, (0, 0)))
        writer.interrupt("the cable came off")
    assert "the cable came off" in found(store, "interrupted")[0].message
    assert main(["data", "stats", str(store.path), "--episodes", "0"]) == 0
    text = capfd.readouterr().out
    assert "shoulder rad" in text
    assert "red" in text
    assert main(["data", "stats", str(write_store(tmp_path / "s").path), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["frames_per_episode"] == {"min": 13, "median": 16.5, "max": 20}
    assert main(["data", "stats", str(store.path), "--keys", "nothing"]) == 1
    assert "has no feature nothing" in capfd.readouterr().err
