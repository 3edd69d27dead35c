"""LeRobot folders in: v2.1 made here by hand, v3.0 by LeRobot's own writer, and the real one where it lies beside."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulna.datasets.features import ACTION, IMAGES, STATE
from ulna.datasets.lerobot import import_lerobot
from ulna.datasets.store import StoreError

CAMERA = IMAGES + "top"
FPS = 10
REAL = Path(__file__).parents[2] / "shared" / "data" / "g1_bottle"


def video(path: Path, frames: int, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=Fraction(FPS))
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i in range(frames):
            image = np.full((48, 64, 3), shade, np.uint8)
            image[:, : 4 + 4 * i] = 250
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())


def make_v21(root: Path, lengths: tuple[int, ...] = (6, 9), names: Any = None) -> Path:
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    for i, n in enumerate(lengths):
        rng = np.random.default_rng(i)
        times = np.arange(n, dtype=np.float32) / FPS + np.float32(0.001)  # a recorder with times of its own
        table = pa.table(
            {
                STATE: list(rng.normal(size=(n, 2)).astype(np.float32)),
                ACTION: list(rng.normal(size=(n, 2)).astype(np.float32)),
                "timestamp": times,
                "episode_index": np.full(n, i),
                "task_index": np.full(n, i % 2),
                "next.success": np.arange(n) == (n - 1 if i == 0 else -1),
            }
        )
        pq.write_table(table, root / f"data/chunk-000/episode_{i:06d}.parquet")
        video(root / f"videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4", n, 40 * i)
    vector = {"dtype": "float32", "shape": [2], "names": names or [["left", "right"]]}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "two joints",
        "fps": FPS,
        "total_episodes": len(lengths),
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            STATE: vector,
            ACTION: vector,
            CAMERA: {"dtype": "video", "shape": [48, 64, 3], "names": None},
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    tasks = [json.dumps({"task_index": k, "task": f"do {k}"}) for k in range(2)]
    (root / "meta/tasks.jsonl").write_text("\n".join(tasks))
    return root


def decode(path: Path) -> list[np.ndarray]:
    container = av.open(str(path))
    try:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    finally:
        container.close()


@pytest.mark.parametrize("names", [["left", "right"], [["left", "right"]], {"motors": ["left", "right"]}])
def test_v21_comes_in_with_its_times_names_tasks_and_pixels(tmp_path: Path, names: Any) -> None:
    source = make_v21(tmp_path / "src", names=names)
    store = import_lerobot(source, tmp_path / "d")
    assert store.features[STATE].names == ("left", "right")
    assert [e.length for e in store.episodes] == [6, 9]
    assert [e.task for e in store.episodes] == ["do 0", "do 1"]
    assert [e.attrs["success"] for e in store.episodes] == [True, False]
    for i, episode in enumerate(store.episodes):
        table = pq.read_table(source / f"data/chunk-000/episode_{i:06d}.parquet").to_pydict()
        np.testing.assert_array_equal(episode.read(ACTION), np.array(table[ACTION], np.float32))
        capture, _ = episode.times_ns(STATE)
        np.testing.assert_array_equal(capture, [round(float(t) * 1e9) for t in table["timestamp"]])
        np.testing.assert_array_equal(
            episode.read(CAMERA), decode(source / f"videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4")
        )
    small = import_lerobot(source, tmp_path / "small", image_size=(24, 32), episodes=[1])
    assert small.features[CAMERA].shape == (24, 32, 3)
    assert [e.length for e in small.episodes] == [9]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda s: (s / "meta/info.json").unlink(), "no meta/info.json"),
        (lambda s: (s / "meta/info.json").write_text("{"), "cannot be used"),
        (
            lambda s: (s / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1 nonsense"),
            "not a readable parquet",
        ),
        (
            lambda s: (s / "data/chunk-000/episode_000001.parquet").unlink(),
            "episode 1: the file .* is missing",
        ),
        (
            lambda s: video(s / f"videos/chunk-000/{CAMERA}/episode_000001.mp4", 5, 0),
            "no frame for row 5.*fewer frames than the 9",
        ),
        (
            lambda s: (s / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").write_bytes(b"not a video"),
            "cannot be decoded",
        ),
        (
            lambda s: nan(s / "data/chunk-000/episode_000001.parquet"),
            "episode 1 .*action is not finite in frame 3",
        ),
        (lambda s: version(s, "v1.6"), "v1.6; v2.1 and v3.0"),
    ],
)
def test_damage_is_one_sentence_and_leaves_nothing(tmp_path: Path, harm: Any, says: str) -> None:
    source = make_v21(tmp_path / "src")
    harm(source)
    with pytest.raises(StoreError, match=says):
        import_lerobot(source, tmp_path / "d")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def nan(path: Path) -> None:
    table = pq.read_table(path)
    action = np.array(table[ACTION].to_pylist(), np.float32)
    action[3, 1] = np.nan
    at = table.column_names.index(ACTION)
    pq.write_table(table.set_column(at, ACTION, pa.array(list(action))), path)


def version(source: Path, text: str) -> None:
    info = json.loads((source / "meta/info.json").read_text())
    (source / "meta/info.json").write_text(json.dumps({**info, "codebase_version": text}))


def test_places_that_do_not_fit(tmp_path: Path) -> None:
    source = make_v21(tmp_path / "src")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="is empty"):
        import_lerobot(tmp_path / "empty", tmp_path / "d")
    with pytest.raises(StoreError, match="no folder"):
        import_lerobot(tmp_path / "nowhere", tmp_path / "d")
    with pytest.raises(StoreError, match="no episode 5"):
        import_lerobot(source, tmp_path / "d", episodes=[5])
    with pytest.raises(StoreError, match="not empty"):
        import_lerobot(source, source)


@pytest.fixture(scope="module")
def v30(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two episodes in one video file, by LeRobot itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's own imports and encoder
        from lerobot.datasets import LeRobotDataset

        root = tmp_path_factory.mktemp("v30") / "set"
        vector = {"dtype": "float32", "shape": (2,), "names": ["left", "right"]}
        features = {
            STATE: vector,
            ACTION: vector,
            CAMERA: {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channels"]},
        }
        made = LeRobotDataset.create("test/set", FPS, features, root=root, video_backend="pyav")
        rng = np.random.default_rng(0)
        for n, task in ((7, "push"), (5, "pull")):
            for i in range(n):
                image = np.full((48, 64, 3), 30, np.uint8)
                image[:, : 5 * i] = 220
                vectors = rng.normal(size=(2, 2)).astype(np.float32)
                made.add_frame({STATE: vectors[0], ACTION: vectors[1], CAMERA: image, "task": task})
            made.save_episode()
        made.finalize()
        yield root, LeRobotDataset("test/set", root=root, video_backend="pyav")


def test_v30_gives_the_rows_that_lerobot_gives(v30: Any, tmp_path: Path) -> None:
    root, theirs = v30
    store = import_lerobot(root, tmp_path / "d")
    assert [e.length for e in store.episodes] == [7, 5]
    assert [e.task for e in store.episodes] == ["push", "pull"]
    ours = {k: np.concatenate([e.read(k) for e in store.episodes]) for k in (STATE, ACTION, CAMERA)}
    assert len(theirs) == 12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(12):
            row = theirs[i]
            np.testing.assert_array_equal(ours[STATE][i], row[STATE].numpy())
            np.testing.assert_array_equal(ours[ACTION][i], row[ACTION].numpy())
            their_image = row[CAMERA].permute(1, 2, 0).numpy() * 255
            assert np.abs(ours[CAMERA][i] - their_image).max() < 1.01


@pytest.mark.skipif(not REAL.is_dir(), reason="the real teleoperation data does not lie beside this checkout")
def test_the_real_recording_comes_in_pixel_for_pixel(tmp_path: Path) -> None:
    store = import_lerobot(REAL, tmp_path / "d", episodes=[3])
    (episode,) = store.episodes
    camera = IMAGES + "cam_high"
    assert store.features[STATE].shape == (26,)
    assert episode.task == "Pick up the yellow bottle on the table."
    frames = decode(REAL / f"videos/chunk-000/{camera}/episode_000003.mp4")
    assert episode.length == len(frames) == 267
    for i in (0, 63, 64, 150, 266):
        np.testing.assert_array_equal(episode.read(camera, i, i + 1)[0], frames[i])
