"""HDF5 as the field writes it: Isaac Lab's recorder, robomimic without `obs`, pictures as bytes of any kind,
and files that would unfold without end."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, ENVIRONMENT, IMAGES, STATE
from ulna.datasets.formats.aloha import import_aloha
from ulna.datasets.formats.naming import Naming
from ulna.datasets.formats.robomimic import import_robomimic
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main

RNG = np.random.default_rng(0)
N = 6


def isaac_lab(path: Path, arrays: dict[str, Any] | None = None, **attributes: Any) -> dict[str, np.ndarray]:
    """One demo, as Isaac Lab's recorder writes it."""
    written: dict[str, np.ndarray] = {
        "actions": RNG.normal(size=(N, 7)).astype(np.float32),
        "processed_actions": RNG.normal(size=(N, 8)).astype(np.float32),
        "initial_state/articulation/robot/joint_position": RNG.normal(size=(1, 9)).astype(np.float32),
        "states/articulation/robot/joint_position": RNG.normal(size=(N, 9)).astype(np.float32),
        "states/rigid_object/cube_1/root_pose": RNG.normal(size=(N, 7)).astype(np.float32),
        **(
            {
                "obs/actions": RNG.normal(size=(N, 7)).astype(np.float32),
                "obs/eef_pos": RNG.normal(size=(N, 3)).astype(np.float32),
                "obs/eef_quat": RNG.normal(size=(N, 4)).astype(np.float32),
                "obs/gripper_pos": RNG.normal(size=(N, 2)).astype(np.float32),
                "obs/object": RNG.normal(size=(N, 39)).astype(np.float32),
                "obs/datagen_info/object_pose/cube_1": RNG.normal(size=(N, 4, 4)).astype(np.float32),
                "obs/table_cam": RNG.integers(0, 256, (N, 16, 24, 3), dtype=np.uint8),
            }
            if arrays is None
            else arrays
        ),
    }
    with h5py.File(path, "w") as f:
        simulator = {"dt": 0.01, "decimation": 5}
        f.create_group("data").attrs["env_args"] = json.dumps(
            {"env_name": "Isaac-Stack-Cube-Franka-IK-Rel-v0", "type": 2, "sim_args": simulator}
        )
        demo = f.create_group("data/demo_0")
        demo.attrs["num_samples"] = N
        for name, value in attributes.items():
            demo.attrs[name] = value
        for name, value in written.items():
            demo.create_dataset(name, data=value, compression="gzip")
    return written


def test_isaac_labs_recorder(tmp_path: Path) -> None:
    arrays = isaac_lab(tmp_path / "x.hdf5", success=np.True_)
    assert main(["data", "import", str(tmp_path / "x.hdf5"), "--out", str(tmp_path / "d")]) == 0
    store = EpisodeStore.open(tmp_path / "d")
    (episode,) = store.episodes
    assert store.control_hz == pytest.approx(20)
    np.testing.assert_array_equal(episode.read(ACTION), arrays["actions"])
    np.testing.assert_array_equal(episode.read("observation.actions"), arrays["obs/actions"])
    state = np.concatenate([arrays[f"obs/{k}"] for k in ("eef_pos", "eef_quat", "gripper_pos")], 1)
    np.testing.assert_array_equal(episode.read(STATE), state)
    np.testing.assert_array_equal(episode.read(ENVIRONMENT), arrays["obs/object"])
    np.testing.assert_array_equal(
        episode.read("observation.datagen_info.object_pose.cube_1"),
        arrays["obs/datagen_info/object_pose/cube_1"],
    )
    np.testing.assert_array_equal(episode.read(IMAGES + "table_cam"), arrays["obs/table_cam"])
    assert episode.attrs["success"] is True
    assert store.provenance["left_out"] == ["initial_state", "processed_actions", "states"]
    assert "Isaac Lab" in store.provenance["format"]


def test_what_the_simulator_did_comes_in_by_name(tmp_path: Path) -> None:
    arrays = isaac_lab(tmp_path / "x.hdf5")
    renames = {
        "processed_actions": ACTION,
        "states/articulation/robot/joint_position": STATE,
        "actions": "observation.commanded",
    }
    store = import_robomimic(tmp_path / "x.hdf5", tmp_path / "d", naming=Naming(renames, ["table_cam"]))
    (episode,) = store.episodes
    np.testing.assert_array_equal(episode.read(ACTION), arrays["processed_actions"])
    np.testing.assert_array_equal(episode.read(STATE), arrays["states/articulation/robot/joint_position"])
    np.testing.assert_array_equal(episode.read("observation.commanded"), arrays["actions"])
    assert IMAGES + "table_cam" not in store.features
    assert "success" not in episode.attrs or episode.attrs["success"] is None


@pytest.mark.parametrize("name", ["obs", "obs/policy"])
def test_observations_that_are_one_vector_are_the_state(tmp_path: Path, name: str) -> None:
    isaac_lab(tmp_path / "x.hdf5", {name: np.arange(N * 5, dtype=np.float32).reshape(N, 5)})
    (episode,) = import_robomimic(tmp_path / "x.hdf5", tmp_path / "d").episodes
    assert episode.read(STATE)[1].tolist() == [5, 6, 7, 8, 9]


def test_groups_of_observations_keep_their_names_apart(tmp_path: Path) -> None:
    arrays = {
        "obs/policy/joint_pos": np.zeros((N, 9), np.float32),
        "obs/critic/joint_pos": np.ones((N, 9), np.float32),
        "obs/policy/wrist_cam": np.full((N, 16, 16, 3), 7, np.uint8),
    }
    isaac_lab(tmp_path / "x.hdf5", arrays)
    store = import_robomimic(tmp_path / "x.hdf5", tmp_path / "d")
    (episode,) = store.episodes
    assert episode.read("observation.policy.joint_pos").max() == 0
    assert episode.read("observation.critic.joint_pos").min() == 1
    assert episode.read(IMAGES + "wrist_cam").max() == 7


def test_a_file_without_observations_needs_a_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as f:
        f["data/demo_0/actions"] = np.ones((N, 2))
        f["data/demo_0/states"] = np.arange(N * 3.0).reshape(N, 3)
    argv = ["data", "import", str(tmp_path / "x.hdf5"), "--out", str(tmp_path / "d"), "--fps", "20"]
    assert main(argv) == 1
    err = capfd.readouterr().err
    assert "has no observations" in err
    assert "--map states=observation.state" in err
    assert main([*argv, "--map", "states=observation.state"]) == 0
    (episode,) = EpisodeStore.open(tmp_path / "d").episodes
    assert episode.read(STATE)[1].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("value", "outcome"),
    [(True, True), (np.False_, False), (1, True), ("False", False), (np.array([1]), True), ("maybe", None)],
)
def test_the_attribute_success_is_the_outcome(tmp_path: Path, value: Any, outcome: bool | None) -> None:
    isaac_lab(tmp_path / "x.hdf5", success=value)
    with h5py.File(tmp_path / "x.hdf5", "a") as f:
        f["data/demo_0/rewards"] = np.zeros(N)  # which say no, where the attribute says nothing
    (episode,) = import_robomimic(tmp_path / "x.hdf5", tmp_path / "d").episodes
    assert episode.attrs["success"] is (False if outcome is None else outcome)


# pictures as bytes


def scene(t: int) -> np.ndarray:
    """Red on the left, blue on the right; RGB."""
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[:, :24, 0], frame[:, 24:, 2] = 200, 100 + t
    return frame


def as_aloha_does(frame: np.ndarray, ext: str = ".jpg") -> bytes:
    return cv2.imencode(ext, frame)[1].tobytes()


def as_others_do(frame: np.ndarray, ext: str = ".jpg") -> bytes:
    return cv2.imencode(ext, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes()


def fixed(file: h5py.File, at: str, rows: list[bytes]) -> None:
    file.create_dataset(at, data=np.array(rows, dtype=f"S{max(map(len, rows)) + 3}"))


def of_any_length(file: h5py.File, at: str, rows: list[bytes]) -> None:
    dataset = file.create_dataset(at, (len(rows),), h5py.vlen_dtype(np.uint8))
    for i, row in enumerate(rows):
        dataset[i] = np.frombuffer(row, np.uint8)


def padded(file: h5py.File, at: str, rows: list[bytes]) -> None:
    array = np.zeros((len(rows), max(map(len, rows)) + 9), np.uint8)
    for to, row in zip(array, rows, strict=True):
        to[: len(row)] = np.frombuffer(row, np.uint8)
    file.create_dataset(at, data=array)


def opaque(file: h5py.File, at: str, rows: list[bytes]) -> None:
    width = max(map(len, rows))
    file.create_dataset(at, data=np.array([np.void(r.ljust(width, b"\0")) for r in rows]))


Store = Callable[[h5py.File, str, list[bytes]], None]


def aloha(path: Path, store: Store, rows: list[bytes]) -> None:
    with h5py.File(path, "w") as f:
        f["action"] = f["observations/qpos"] = np.zeros((len(rows), 14), np.float32)
        store(f, "observations/images/cam_high", rows)


@pytest.mark.parametrize("store", [fixed, of_any_length, padded, opaque])
@pytest.mark.parametrize("ext", [".jpg", ".png"])
@pytest.mark.parametrize("order", ["auto", "rgb", "bgr"])
def test_aloha_pictures_are_what_their_bytes_are(tmp_path: Path, store: Store, ext: str, order: str) -> None:
    encode = as_others_do if order == "rgb" else as_aloha_does
    (tmp_path / "a").mkdir()
    aloha(tmp_path / "a/episode_0.hdf5", store, [encode(scene(t), ext) for t in range(N)])
    (tmp_path / "a/._episode_0.hdf5").write_bytes(b"litter")
    (tmp_path / "a/.DS_Store").write_bytes(b"litter")
    (tmp_path / "a/__MACOSX").mkdir()
    argv = ["data", "import", str(tmp_path / "a"), "--out", str(tmp_path / "d"), "--image-order", order]
    assert main(argv) == 0
    read = EpisodeStore.open(tmp_path / "d")
    (episode,) = read.episodes
    for t, frame in enumerate(episode.read(IMAGES + "cam_high")):
        error = np.abs(frame.astype(int) - scene(t))[:, [*range(16), *range(32, 48)]]
        assert error.max() <= (12 if ext == ".jpg" else 0), "red is red"
    note = read.provenance["image_order"]
    assert ("assumed from the layout alone" in note) if order == "auto" else (order in note)


def test_the_mark_of_alohas_tools_is_named(tmp_path: Path) -> None:
    aloha(tmp_path / "episode_0.hdf5", padded, [as_aloha_does(scene(0))] * N)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as f:
        f["compress_len"] = np.zeros((1, N))
        f.attrs["success"] = 1
    store = import_aloha(tmp_path / "episode_0.hdf5", tmp_path / "d")
    assert "their mark is there" in store.provenance["image_order"]
    assert store.provenance["left_out"] == []
    assert store.episodes[0].attrs["success"] is True


def test_pixels_may_be_swapped_too(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with h5py.File(tmp_path / "x/episode_0.hdf5", "w") as f:
        f["action"] = f["observations/qpos"] = np.zeros((N, 14), np.float32)
        f["observations/images/cam"] = np.stack([scene(t)[..., ::-1] for t in range(N)])
    (episode,) = import_aloha(tmp_path / "x", tmp_path / "d", image_order="bgr").episodes
    np.testing.assert_array_equal(episode.read(IMAGES + "cam")[3], scene(3))


def test_pictures_as_bytes_in_a_robomimic_file_are_rgb(tmp_path: Path) -> None:
    isaac_lab(tmp_path / "x.hdf5", {"obs/joint_pos": np.zeros((N, 7))})
    with h5py.File(tmp_path / "x.hdf5", "a") as f:
        of_any_length(f, "data/demo_0/obs/front", [as_others_do(scene(t), ".png") for t in range(N)])
    store = import_robomimic(tmp_path / "x.hdf5", tmp_path / "d")
    np.testing.assert_array_equal(store.episodes[0].read(IMAGES + "front")[2], scene(2))
    assert store.provenance["image_order"] == "taken for RGB"


def test_depth_of_16_bits_stays_depth(tmp_path: Path) -> None:
    depth = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48) + 300
    aloha(tmp_path / "episode_0.hdf5", fixed, [cv2.imencode(".png", depth)[1].tobytes()] * N)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as f:
        f["observations/images/cam_low"] = np.stack([depth] * N)
    store = import_aloha(tmp_path / "episode_0.hdf5", tmp_path / "d")
    assert store.provenance["pictures"][0].endswith("16 bits of grey are taken for depth in mm")
    for camera in ("cam_high", "cam_low"):
        assert store.features[f"observation.depth.{camera}"].units == ("mm",)
        np.testing.assert_array_equal(store.episodes[0].read(f"observation.depth.{camera}")[4], depth)


def test_damaged_pictures_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    good = as_aloha_does(scene(0))
    for bad in (good[:300], b"\xff\xd8\xff nothing", b""):
        aloha(tmp_path / "episode_0.hdf5", of_any_length, [good, good, bad, good])
        with pytest.raises(StoreError, match="the image of row 2"):
            import_aloha(tmp_path / "episode_0.hdf5", tmp_path / "d")
    aloha(tmp_path / "episode_0.hdf5", of_any_length, [b"\xff\xd8\xff nothing"] * 4)
    with pytest.raises(StoreError, match="the image of row 0"):
        import_aloha(tmp_path / "episode_0.hdf5", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    naming = Naming({}, ["cam_high"])
    assert len(import_aloha(tmp_path / "episode_0.hdf5", tmp_path / "d", naming=naming)) == 1


# files from enemies


def test_what_would_unfold_without_end_is_refused(tmp_path: Path) -> None:
    """Each chunk is 64 MB of zeros in 64 kB: 6 GB altogether."""
    rows = 96
    isaac_lab(tmp_path / "x.hdf5", {"obs/joint_pos": np.zeros((N, 7))})
    with h5py.File(tmp_path / "x.hdf5", "a") as f:
        del f["data/demo_0/actions"]
        f["data/demo_0/actions"] = np.zeros((rows, 2))
        shape = (rows, 4096, 5461, 3)
        bomb = f.create_dataset(
            "data/demo_0/obs/cam", shape, "u1", chunks=(1, *shape[1:]), compression="gzip"
        )
        chunk = zlib.compress(bytes(4096 * 5461 * 3), 9)
        for row in range(rows):
            bomb.id.write_direct_chunk((row, 0, 0, 0), chunk)
        del f["data/demo_0/obs/joint_pos"]
        f["data/demo_0/obs/joint_pos"] = np.zeros((rows, 7))
    with pytest.raises(StoreError, match=r"obs/cam would unfold from \d.* MB to 6.4 GB: refused"):
        import_robomimic(tmp_path / "x.hdf5", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_picture_larger_than_any_camera_is_not_decoded(tmp_path: Path) -> None:
    png = bytearray(as_aloha_does(scene(0), ".png"))
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    aloha(tmp_path / "episode_0.hdf5", fixed, [bytes(png)] * N)
    with pytest.raises(StoreError, match=r"row 0 cannot be decoded|pixels"):
        import_aloha(tmp_path / "episode_0.hdf5", tmp_path / "d")


def test_groups_without_end_are_refused(tmp_path: Path) -> None:
    isaac_lab(tmp_path / "x.hdf5")
    with h5py.File(tmp_path / "x.hdf5", "a") as f:
        f["data/demo_0/obs/round"] = f["data/demo_0"]
    with pytest.raises(StoreError, match=r"nested too deeply|more than 2000 arrays"):
        import_robomimic(tmp_path / "x.hdf5", tmp_path / "d")
