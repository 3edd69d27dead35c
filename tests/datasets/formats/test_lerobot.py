"""LeRobot folders in: v2.1 made here by hand, v3.0 by LeRobot's own writer, and the real one where it lies
beside."""

from __future__ import annotations

import json
import shutil
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

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, DEPTH, IMAGES, REWARD, STATE
from ulna.datasets.formats.lerobot import import_lerobot
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main

CAMERA = IMAGES + "top"
FPS = 10
REAL = Path(__file__).parents[4] / "shared" / "data" / "g1_bottle"


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
        (lambda s: (s / "meta/info.json").write_text("{"), "info.json is no JSON: .* in line 1"),
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
            "episode 1 .*action is not finite in row 3",
        ),
        (lambda s: version(s, "v1.6"), "v1.6; v2.0, v2.1 and v3.0 can be read"),
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
        lerobot_set = LeRobotDataset.create("test/set", FPS, features, root=root, video_backend="pyav")
        rng = np.random.default_rng(0)
        for n, task in ((7, "push"), (5, "pull")):
            for i in range(n):
                image = np.full((48, 64, 3), 30, np.uint8)
                image[:, : 5 * i] = 220
                vectors = rng.normal(size=(2, 2)).astype(np.float32)
                lerobot_set.add_frame({STATE: vectors[0], ACTION: vectors[1], CAMERA: image, "task": task})
            lerobot_set.save_episode()
        lerobot_set.finalize()
        yield root, LeRobotDataset("test/set", root=root, video_backend="pyav")


def test_v30_gives_the_rows_that_lerobot_gives(v30: Any, tmp_path: Path) -> None:
    root, lerobot_rows = v30
    store = import_lerobot(root, tmp_path / "d")
    assert [e.length for e in store.episodes] == [7, 5]
    assert [e.task for e in store.episodes] == ["push", "pull"]
    our_rows = {k: np.concatenate([e.read(k) for e in store.episodes]) for k in (STATE, ACTION, CAMERA)}
    assert len(lerobot_rows) == 12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(12):
            row = lerobot_rows[i]
            np.testing.assert_array_equal(our_rows[STATE][i], row[STATE].numpy())
            np.testing.assert_array_equal(our_rows[ACTION][i], row[ACTION].numpy())
            their_image = row[CAMERA].permute(1, 2, 0).numpy() * 255
            assert np.abs(our_rows[CAMERA][i] - their_image).max() < 1.01


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


def edit_info(source: Path, **changes: Any) -> None:
    path = source / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_column(source: Path, column: str, values: Any, episode: int = 1) -> None:
    path = source / f"data/chunk-000/episode_{episode:06d}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values)), path)


TIMES = np.arange(9) / FPS
AT_MOST_8 = json.dumps({"episode_index": 1, "tasks": [], "length": 8})


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (
            lambda s: edit_column(s, "timestamp", [0.0, np.nan, *TIMES[2:]]),
            "timestamp is not finite in row 1",
        ),
        (
            lambda s: edit_column(s, "timestamp", TIMES[[0, 2, 1, *range(3, 9)]]),
            "timestamp of row 2 is not after",
        ),
        (
            lambda s: edit_column(s, "timestamp", TIMES - np.arange(9) * 0.02),
            r"rows 2 and 3 both fall on the frame at 0.200 s.*not those of its video",
        ),
        (lambda s: edit_column(s, "timestamp", TIMES + 3600), "no frame for row 0 at 3600"),
        (lambda s: edit_column(s, ACTION, [[0.0]] + [[0.0, 1.0]] * 8), "rows of action differ in length"),
        (
            lambda s: edit_column(s, ACTION, [None] + [[0.0, 1.0]] * 8),
            "rows of action differ in length, or some",
        ),
        (lambda s: edit_column(s, ACTION, [[None, 1.0]] * 9), "action has not 2 numbers in every row"),
        (lambda s: edit_column(s, ACTION, ["up"] * 9), "action holds string, not numbers"),
        (lambda s: edit_column(s, ACTION, [[2**53 + 1, 0]] * 9), "holds int64, which is not the float32"),
        (lambda s: (s / "meta/episodes.jsonl").write_text(AT_MOST_8), "has 9 rows, but meta/ says 8"),
        (lambda s: (s / "meta/episodes.jsonl").write_text("{}"), "list of episodes in .* cannot be used"),
        (lambda s: (s / "meta/tasks.jsonl").write_text("{"), "tasks of .* cannot be read"),
        (
            lambda s: edit_column(s, "task_index", [None, *[0] * 8]),
            "task_index has not 1 numbers in every row",
        ),
        (lambda s: edit_info(s, fps=0), "fps is 0"),
        (lambda s: edit_info(s, video_path=None), "video_path is 'None', which is no path"),
        (lambda s: edit_info(s, features={STATE: A2}), "has no action; it has observation.state"),
        (lambda s: edit_info(s, features={ACTION: {}}), "feature in meta/info.json cannot be understood"),
        (
            lambda s: edit_info(
                s, features={ACTION: {"dtype": "float32", "shape": [2]}, "observation.a/../b": A2}
            ),
            "has no column observation.a/../b",
        ),
    ],
)
def test_rows_that_lie_are_named_and_nothing_is_left(tmp_path: Path, harm: Any, says: str) -> None:
    source = make_v21(tmp_path / "src")
    harm(source)
    with pytest.raises(StoreError, match=says) as error:
        import_lerobot(source, tmp_path / "d")
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


A2 = {"dtype": "float32", "shape": [2]}


def test_a_task_that_changes_within_an_episode_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = make_v21(tmp_path / "src")
    edit_column(source, "task_index", [1] * 4 + [0] * 5)
    assert main(["data", "import", str(source), "--out", str(tmp_path / "d")]) == 0
    note = "the task changes within the episode, and only the first is kept, not 'do 0'"
    assert f"{note}: episodes 1\n" in capfd.readouterr().out
    episodes = EpisodeStore.open(tmp_path / "d").episodes
    assert [(e.task, e.attrs.get("notes")) for e in episodes] == [("do 0", None), ("do 1", [note])]


def test_an_interrupted_import_leaves_nothing(tmp_path: Path) -> None:
    def stop(count: int, total: int) -> None:
        raise KeyboardInterrupt

    source = make_v21(tmp_path / "src")
    with pytest.raises(KeyboardInterrupt):
        import_lerobot(source, tmp_path / "d", progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_only_the_chosen_episodes_need_to_be_whole(tmp_path: Path) -> None:
    source = make_v21(tmp_path / "src")
    (source / "data/chunk-000/episode_000001.parquet").unlink()
    (tmp_path / "d").mkdir()  # an empty folder is as good as none
    assert [e.length for e in import_lerobot(source, tmp_path / "d", episodes=[0]).episodes] == [6]


def test_features_find_their_place(tmp_path: Path) -> None:
    """Other names and kinds: an image outside observation.images., positions as names, matrices, depth,
    rewards."""
    source = make_v21(tmp_path / "src")
    for i, n in enumerate((6, 9)):
        path = source / f"data/chunk-000/episode_{i:06d}.parquet"
        table = pq.read_table(path)
        matrix = np.arange(n * 6, dtype=np.int64).reshape(n, 2, 3)
        table = table.append_column("observation.matrix", pa.array(matrix.tolist()))
        table = table.append_column("observation.gripper", pa.array(np.arange(n) % 2 == 0))
        pq.write_table(table.append_column("next.reward", pa.array(np.zeros(n))), path)
    info = json.loads((source / "meta/info.json").read_text())
    features = info["features"]
    edit_info(
        source,
        video_path=info["video_path"].replace("{video_key}", CAMERA),
        features={
            STATE: features[STATE],
            ACTION: {**features[ACTION], "names": {"turn": 1, "lift": 0}},
            "observation.image": {
                "dtype": "video",
                "shape": [3, 48, 64],
                "names": ["channels", "height", "width"],
            },
            "observation.images.depth": {
                "dtype": "video",
                "shape": [48, 64, 1],
                "info": {"is_depth_map": True},
            },
            "observation.matrix": {"dtype": "int64", "shape": [2, 3], "names": None},
            "observation.gripper": {"dtype": "bool", "shape": [1], "names": None},
            "observation.note": {"dtype": "string", "shape": [1], "names": None},
            "next.reward": {"dtype": "float64", "shape": [1], "names": None},
        },
    )
    store = import_lerobot(source, tmp_path / "d")
    assert store.features[IMAGES + "image"].shape == (48, 64, 3)
    assert store.features[ACTION].names == ("lift", "turn")
    assert store.provenance["renamed"] == {"observation.image": IMAGES + "image"}
    assert store.provenance["left_out"] == ["observation.images.depth", "observation.note"]
    assert store.features[REWARD].dtype == "float64"
    np.testing.assert_array_equal(
        store.episodes[1].read("observation.matrix"), np.arange(54, dtype=np.int64).reshape(9, 2, 3)
    )
    gripper = store.episodes[0].read("observation.gripper")
    assert gripper.dtype == np.bool_
    assert gripper.ravel().tolist() == [True, False] * 3
    assert {e.attrs["agent"] for e in store.episodes} == {""}, "LeRobot does not say who acted"


def test_an_episode_of_v30_does_not_borrow_frames_of_the_next(v30: Any, tmp_path: Path) -> None:
    """As LeRobot's own metadata says it when an encoder dropped two frames: the next episode begins two
    frames earlier."""
    root, _ = v30
    source = tmp_path / "src"
    shutil.copytree(root, source)
    (path,) = (source / "meta/episodes").glob("**/*.parquet")
    table = pq.read_table(path)
    for part, values in (("to_timestamp", [0.5, 1.2]), ("from_timestamp", [0.0, 0.5])):
        name = f"videos/{CAMERA}/{part}"
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)
    with pytest.raises(
        StoreError, match=r"episode 0 .*no frame for row 5 at 0.500 s; it has fewer frames than the 7"
    ):
        import_lerobot(source, tmp_path / "d")


def test_v30_with_images_in_its_tables(v30: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's own
        from lerobot.datasets import LeRobotDataset

        image = {"dtype": "image", "shape": (24, 32, 3), "names": ["height", "width", "channels"]}
        lerobot_set = LeRobotDataset.create(
            "test/stills",
            FPS,
            {ACTION: {"dtype": "float32", "shape": (1,), "names": ["x"]}, CAMERA: image},
            root=tmp_path / "src",
            use_videos=False,
        )
        images = np.random.default_rng(0).integers(0, 256, (2, 4, 24, 32, 3), dtype=np.uint8)
        for episode in images:
            for i, frame in enumerate(episode):
                lerobot_set.add_frame({ACTION: np.array([i], np.float32), CAMERA: frame, "task": "look"})
            lerobot_set.save_episode()
        lerobot_set.finalize()
    store = import_lerobot(tmp_path / "src", tmp_path / "d")
    for episode, frames in zip(store.episodes, images, strict=True):
        np.testing.assert_array_equal(episode.read(CAMERA), frames)
        np.testing.assert_array_equal(episode.read(ACTION), np.arange(4, dtype=np.float32)[:, None])
    small = import_lerobot(tmp_path / "src", tmp_path / "small", image_size=(12, 16), episodes=[1])
    half_size = images[1].reshape(4, 12, 2, 16, 2, 3).mean(axis=(2, 4))
    assert np.abs(small.episodes[0].read(CAMERA) - half_size).max() <= 0.5 + 1e-9


def test_depth_images_by_lerobot_itself(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's own
        from lerobot.datasets import LeRobotDataset

        depth = {"dtype": "image", "shape": (24, 32, 1), "names": ["height", "width", "channels"]}
        features = {
            ACTION: {"dtype": "float32", "shape": (1,), "names": ["x"]},
            CAMERA: {**depth, "info": {"is_depth_map": True}},
        }
        lerobot_set = LeRobotDataset.create("test/deep", FPS, features, root=tmp_path / "s", use_videos=False)
        for i in range(4):
            picture = np.full((24, 32, 1), 300 + 500 * i, np.uint16)
            lerobot_set.add_frame({ACTION: np.array([i], np.float32), CAMERA: picture, "task": "look"})
        lerobot_set.save_episode()
        lerobot_set.finalize()
    store = import_lerobot(tmp_path / "s", tmp_path / "d")
    assert store.features[DEPTH + "top"].units == ("mm",)
    assert store.episodes[0].read(DEPTH + "top")[:, 0, 0].tolist() == [300, 800, 1300, 1800]
    assert "pictures" not in store.provenance, "LeRobot says the unit itself"
