"""Replay buffers (Diffusion Policy, UMI), robomimic and ALOHA files in: every value, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc

from ulna.datasets.checks.check import check
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, ENVIRONMENT, IMAGES, STATE
from ulna.datasets.formats.aloha import import_aloha
from ulna.datasets.formats.replay_buffer import import_replay_buffer
from ulna.datasets.formats.robomimic import import_robomimic
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main

RNG = np.random.default_rng(0)


def buffer(path: Path, arrays: dict[str, np.ndarray], ends: list[int], **options: Any) -> Path:
    group: Any = zarr.open_group(str(path), mode="w", zarr_format=2)
    for key, value in arrays.items():
        chunks = (7, *value.shape[1:])
        group.create_array(
            f"data/{key}", data=value, chunks=chunks, compressors=options.get(key, Blosc("zstd", 5, 2))
        )
    group.create_array("meta/episode_ends", data=np.array(ends, np.int64), compressors=None)
    return path


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(folder.suffix + ".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for f in sorted(folder.rglob("*")):
            if f.is_file():
                file.write(f, f.relative_to(folder))
    return path


@pytest.mark.parametrize("as_zip", [False, True])
def test_push_t_as_diffusion_policy_has_it(tmp_path: Path, as_zip: bool) -> None:
    arrays = {
        "img": RNG.integers(0, 256, (20, 24, 32, 3)).astype(np.float32),
        "state": RNG.normal(size=(20, 5)).astype(np.float32),
        "action": RNG.normal(size=(20, 2)).astype(np.float32),
        "keypoint": RNG.normal(size=(20, 9, 2)).astype(np.float32),
        "n_contacts": RNG.integers(0, 5, (20, 1)).astype(np.float32),
    }
    source = buffer(tmp_path / "pusht replay ü.zarr", arrays, [8, 8, 20])
    source = zipped(source) if as_zip else source
    assert (
        main(
            [
                "data",
                "import",
                str(source),
                "--out",
                str(tmp_path / "d"),
                "--fps",
                "10",
                "--task",
                "push",
                "--json",
            ]
        )
        == 0
    )
    store = EpisodeStore.open(tmp_path / "d")
    assert [e.length for e in store.episodes] == [8, 12]
    assert store.provenance["empty_episodes_left_out"] == 1
    assert store.provenance["times"] == "row / fps"
    for e, (a, b) in zip(store.episodes, ((0, 8), (8, 20)), strict=True):
        np.testing.assert_array_equal(e.read(IMAGES + "img"), arrays["img"][a:b].astype(np.uint8))
        np.testing.assert_array_equal(e.read(STATE), arrays["state"][a:b])
        np.testing.assert_array_equal(e.read(ACTION), arrays["action"][a:b])
        np.testing.assert_array_equal(e.read("observation.keypoint"), arrays["keypoint"][a:b])
        assert e.times_ns(STATE)[0].tolist() == [i * 10**8 for i in range(b - a)]
        assert e.task == "push"


def test_umi_with_jpeg_xl_in_a_zip(tmp_path: Path) -> None:
    from imagecodecs.numcodecs import Jpegxl, register_codecs

    register_codecs(verbose=False)
    arrays = {
        "camera0_rgb": np.repeat(RNG.integers(0, 256, (9, 3, 4, 3), dtype=np.uint8), 8, 1).repeat(8, 2),
        "robot0_eef_pos": RNG.normal(size=(9, 3)).astype(np.float32),
        "robot0_eef_rot_axis_angle": RNG.normal(size=(9, 3)).astype(np.float32),
        "robot0_gripper_width": RNG.random((9, 1)).astype(np.float32),
        "robot0_demo_start_pose": RNG.normal(size=(9, 6)),
    }
    group: Any = zarr.open_group(str(tmp_path / "r.zarr"), mode="w", zarr_format=2)
    for key, value in arrays.items():
        codec: Any = Jpegxl(lossless=True) if key == "camera0_rgb" else Blosc()
        group.create_array(f"data/{key}", data=value, chunks=(1, *value.shape[1:]), compressors=codec)
    group.create_array("meta/episode_ends", data=np.array([4, 9]), compressors=None)
    source = zipped(tmp_path / "r.zarr")
    with pytest.raises(StoreError, match="does not say how many rows a second has: give --fps"):
        import_replay_buffer(source, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    store = import_replay_buffer(source, tmp_path / "d", control_hz=59.94)
    state = np.concatenate(
        [arrays[f"robot0_{k}"] for k in ("eef_pos", "eef_rot_axis_angle", "gripper_width")], 1
    )
    for e, (a, b) in zip(store.episodes, ((0, 4), (4, 9)), strict=True):
        np.testing.assert_array_equal(e.read(STATE), state[a:b])
        np.testing.assert_array_equal(e.read(ACTION), state[[*range(a + 1, b), b - 1]])
        np.testing.assert_array_equal(e.read(IMAGES + "camera0_rgb"), arrays["camera0_rgb"][a:b])
        np.testing.assert_array_equal(
            e.read("observation.robot0_demo_start_pose"), arrays["robot0_demo_start_pose"][a:b]
        )
    assert store.features[STATE].names[-1] == "robot0_width"
    assert store.features[ACTION].units[-1] == "m"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-2, 12), min_size=1, max_size=5))
def test_episode_ends_are_taken_only_if_they_can_be_true(
    tmp_path_factory: pytest.TempPathFactory, ends: list[int]
) -> None:
    tmp = tmp_path_factory.mktemp("ends")
    action = np.arange(10, dtype=np.float32)[:, None]
    source = buffer(tmp / "b.zarr", {"action": action}, ends)
    if ends[0] < 0 or sorted(ends) != ends or ends[-1] > 10:
        with pytest.raises(StoreError, match="its episode_ends must grow up to the 10 rows"):
            import_replay_buffer(source, tmp / "d", control_hz=10)
        return
    if not any(ends):
        with pytest.raises(StoreError, match="holds no episode with a row"):
            import_replay_buffer(source, tmp / "d", control_hz=10)
        return
    store = import_replay_buffer(source, tmp / "d", control_hz=10)
    lengths = [b - a for a, b in zip([0, *ends], ends, strict=False) if b > a]
    assert [e.length for e in store.episodes] == lengths


@pytest.mark.parametrize("as_zip", [False, True])
def test_chunks_that_are_gone_are_told_with_their_episodes(
    tmp_path: Path, as_zip: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    arrays = {"action": np.ones((30, 2)), "img": np.full((30, 8, 8, 3), 200, np.uint8)}
    source = buffer(tmp_path / "r.zarr", arrays, [10, 20, 30])
    (source / "data/action/2.0").unlink()  # rows 14 to 20
    (source / "data/img/4.0.0.0").unlink()  # the last two
    source = zipped(source) if as_zip else source
    assert main(["data", "import", str(source), "--out", str(tmp_path / "d"), "--fps", "10"]) == 0
    import_output = capfd.readouterr().out
    notes = [e.attrs.get("notes") for e in EpisodeStore.open(tmp_path / "d").episodes]
    action, img = (
        f"chunks of {k} are not in the source and read as {v}" for k, v in (("action", 0.0), ("img", 0))
    )
    assert notes == [None, [action], [action, img]]
    findings = [
        (f.episode, f.message) for f in check(EpisodeStore.open(tmp_path / "d")) if f.check == "noted"
    ]
    assert findings == [(1, action), (2, action), (2, img)]
    assert main(["data", "info", str(tmp_path / "d")]) == 0
    for text in (import_output, capfd.readouterr().out):
        assert f"{action}: episodes 1, 2\n" in text
        assert f"{img}: episodes 2\n" in text


def test_whole_buffers_in_shards_have_no_gaps(tmp_path: Path) -> None:
    group: Any = zarr.open_group(str(tmp_path / "r.zarr"), mode="w", zarr_format=3)
    group.create_array("data/action", data=np.ones((15, 4)), chunks=(2, 2), shards=(4, 4))
    group.create_array("meta/episode_ends", data=np.array([7, 15]))
    store = import_replay_buffer(tmp_path / "r.zarr", tmp_path / "d", control_hz=10)
    assert [e.attrs.get("notes") for e in store.episodes] == [None, None]
    (tmp_path / "r.zarr/data/action/c/3/0").unlink()
    store = import_replay_buffer(tmp_path / "r.zarr", tmp_path / "gap", control_hz=10)
    assert ["notes" in e.attrs for e in store.episodes] == [False, True]


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("bombed",)


def test_nothing_is_unpickled_unpacked_or_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {"action": np.ones((10, 2), np.float32)}

    def refused(source: Path, says: str) -> None:
        with pytest.raises(StoreError, match=says):
            import_replay_buffer(source, tmp_path / "out", control_hz=10)
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "bombed").exists()

    objects = buffer(tmp_path / "objects.zarr", arrays, [10])
    (objects / "data" / "evil").mkdir()
    array_meta = {
        "zarr_format": 2,
        "shape": [10],
        "chunks": [10],
        "dtype": "|O",
        "compressor": None,
        "fill_value": None,
    }
    array_meta |= {"order": "C", "filters": [{"id": "pickle", "protocol": 5}]}
    (objects / "data" / "evil" / ".zarray").write_text(json.dumps(array_meta))
    (objects / "data" / "evil" / "0").write_bytes(pickle.dumps(np.array([Bomb()] * 10, object)))
    refused(objects, "data/evil holds Python objects, which could run anything")
    refused(zipped(objects), "holds Python objects")
    huge = buffer(tmp_path / "huge.zarr", arrays, [10])
    path = huge / "data" / "action" / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chunks": [10**9, 2], "shape": [10**12, 2]}))
    refused(huge, "which is no robot's data")
    odd = buffer(tmp_path / "odd.zarr", arrays, [10])
    path = odd / "data" / "action" / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), "compressor": {"id": "mystery"}}))
    refused(odd, "is stored with mystery")
    with_link = buffer(tmp_path / "linked.zarr", arrays, [10])
    (with_link / "data" / "action" / "9.9").symlink_to("/etc/hostname")
    refused(with_link, "is a link, which could lead out of the folder")
    slip = zipped(buffer(tmp_path / "slip.zarr", arrays, [10]))
    with zipfile.ZipFile(slip, "a") as file:
        file.writestr("../../escaped", b"x")
    import_replay_buffer(slip, tmp_path / "ok", control_hz=10)
    assert not (tmp_path.parent / "escaped").exists()
    assert not (tmp_path.parent.parent / "escaped").exists()
    short_zip = zipped(buffer(tmp_path / "cut.zarr", arrays, [10]))
    short_zip.write_bytes(short_zip.read_bytes()[:300])
    refused(short_zip, "cannot be read as a replay buffer")
    broken = buffer(tmp_path / "damaged.zarr", arrays, [10])
    next(p for p in (broken / "data" / "action").iterdir() if p.name[0].isdigit()).write_bytes(b"\x00" * 8)
    refused(broken, "rows 0 to 10 of action cannot be read")
    refused(
        buffer(tmp_path / "x.zarr", {"other": np.zeros((3, 1))}, [3]),
        "has no action; it has other: name it with --map NAME=action",
    )
    fractions = {**arrays, "img": np.full((10, 4, 4, 3), 0.5, np.float32)}
    refused(buffer(tmp_path / "f.zarr", fractions, [10]), "no whole numbers from 0 to 255")


def robomimic(path: Path, demos: int = 11, **changes: Any) -> dict[str, np.ndarray]:
    arrays_by_episode = {}
    with h5py.File(path, "w") as f:
        data = f.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        for i in range(demos):
            n = 5 + i
            g = data.create_group(f"demo_{i}")
            arrays = {
                "actions": RNG.normal(size=(n, 7)),
                "rewards": np.arange(n) == (n - 1 if i % 2 == 0 else n),
                "dones": np.zeros(n, np.int64),
                "obs/agentview_image": RNG.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8),
                "obs/robot0_eef_pos": RNG.normal(size=(n, 3)),
                "obs/robot0_eef_quat": RNG.normal(size=(n, 4)),
                "obs/robot0_gripper_qpos": RNG.normal(size=(n, 2)),
                "obs/robot0_joint_pos": RNG.normal(size=(n, 7)),
                "obs/object": RNG.normal(size=(n, 10)),
                **{k: v(n) for k, v in changes.items()},
            }
            for k, v in arrays.items():
                g.create_dataset(k, data=v)
                arrays_by_episode[f"{i}/{k}"] = v
    return arrays_by_episode


def test_robomimic(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "low dim ü.hdf5"
    arrays_by_episode = robomimic(source)
    args = [
        "data",
        "import",
        str(source),
        "--out",
        str(tmp_path / "d"),
        "--map",
        "agentview_image=observation.images.front",
    ]
    assert main(args) == 0
    store = EpisodeStore.open(tmp_path / "d")
    assert store.control_hz == 20
    assert [e.attrs["source_episode"] for e in store.episodes] == [f"demo_{i}" for i in range(11)]
    for i, e in enumerate(store.episodes):
        np.testing.assert_array_equal(e.read(ACTION), arrays_by_episode[f"{i}/actions"])
        np.testing.assert_array_equal(e.read(IMAGES + "front"), arrays_by_episode[f"{i}/obs/agentview_image"])
        np.testing.assert_array_equal(e.read(ENVIRONMENT), arrays_by_episode[f"{i}/obs/object"])
        np.testing.assert_array_equal(
            e.read("observation.robot0_joint_pos"), arrays_by_episode[f"{i}/obs/robot0_joint_pos"]
        )
        state = [arrays_by_episode[f"{i}/obs/robot0_{k}"] for k in ("eef_pos", "eef_quat", "gripper_qpos")]
        np.testing.assert_allclose(e.read(STATE), np.concatenate(state, 1), rtol=1e-6)
        assert e.attrs["success"] is (i % 2 == 0)
    assert store.provenance["left_out"] == ["dones", "rewards"]
    assert "  left_out: dones, rewards\n" in capfd.readouterr().out


def test_a_killed_import_leaves_nothing_for_long(tmp_path: Path) -> None:
    robomimic(tmp_path / "x.hdf5", 2)
    code = (
        "import os, sys; from ulna.datasets.formats.robomimic import import_robomimic\n"
        "import_robomimic(*sys.argv[1:], progress=lambda done, total: os.kill(os.getpid(), 9))"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "x.hdf5"), str(tmp_path / "d")]
    assert subprocess.run(run, check=False, timeout=120).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2, "it was killed in the midst"
    assert len(import_robomimic(tmp_path / "x.hdf5", tmp_path / "d")) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "x.hdf5"]


def test_two_imports_to_one_place_do_not_harm_each_other(tmp_path: Path) -> None:
    def another(count: int, total: int) -> None:
        if count == 1:
            import_robomimic(tmp_path / "x.hdf5", tmp_path / "d")

    robomimic(tmp_path / "x.hdf5", 2)
    with pytest.raises(StoreError, match=r"cannot write to .*d: Directory not empty"):
        import_robomimic(tmp_path / "x.hdf5", tmp_path / "d", progress=another)
    assert len(EpisodeStore.open(tmp_path / "d")) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "x.hdf5"]


@pytest.mark.parametrize("compress", [False, True])
def test_aloha(tmp_path: Path, compress: bool) -> None:
    folder = tmp_path / "aloha"
    folder.mkdir()
    arrays_by_episode = {}
    y, x = np.mgrid[:48, :64]
    for i in (0, 1, 2, 10):
        n = 4 + i
        with h5py.File(folder / f"episode_{i}.hdf5", "w") as f:
            f.attrs["sim"] = False
            for k in ("action", "observations/qpos", "observations/qvel", "observations/effort"):
                arrays_by_episode[f"{i}/{k}"] = RNG.normal(size=(n, 14)).astype(np.float32)
                f.create_dataset(k, data=arrays_by_episode[f"{i}/{k}"])
            frames = np.stack(
                [np.stack([2 * x, 3 * y, np.full_like(x, 9 * t)], -1) for t in range(n)]
            ).astype(np.uint8)
            arrays_by_episode[f"{i}/frames"] = frames
            if compress:
                jpegs = [cv2.imencode(".jpg", fr)[1].ravel() for fr in frames]
                rows = np.zeros((n, max(map(len, jpegs)) + 5), np.uint8)
                for row, c in zip(rows, jpegs, strict=True):
                    row[: len(c)] = c
                f.create_dataset("observations/images/cam_high", data=rows)
                f.create_dataset("compress_len", data=[[len(c) for c in jpegs]])
            else:
                f.create_dataset("observations/images/cam_high", data=frames)
            f.create_dataset("base_action", data=np.zeros((n, 2)))
    assert main(["data", "import", str(folder), "--out", str(tmp_path / "d"), "--task", "tie"]) == 0
    store = EpisodeStore.open(tmp_path / "d")
    assert (store.control_hz, store.provenance["left_out"]) == (50, ["base_action"])
    assert store.features[ACTION].names[7] == "right_waist"
    for e, i in zip(store.episodes, (0, 1, 2, 10), strict=True):
        np.testing.assert_array_equal(e.read(STATE), arrays_by_episode[f"{i}/observations/qpos"])
        np.testing.assert_array_equal(
            e.read("observation.effort"), arrays_by_episode[f"{i}/observations/effort"]
        )
        error = e.read(IMAGES + "cam_high").astype(int) - arrays_by_episode[f"{i}/frames"]
        assert np.abs(error).max() <= (12 if compress else 0)


def test_hdf5_that_is_not_what_it_should_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(source: Path, says: str) -> None:
        assert main(["data", "import", str(source), "--out", str(tmp_path / "out")]) == 1
        error = capfd.readouterr().err
        assert says in error
        assert len(error.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()

    robomimic(tmp_path / "good.hdf5", 1)
    for pair in ("object", "object=", "=x"):
        assert main(
            ["data", "import", str(tmp_path / "good.hdf5"), "--out", str(tmp_path / "out"), "--map", pair]
        )
        assert "--map is written NAME=FEATURE, with commas" in capfd.readouterr().err
    (tmp_path / "text.hdf5").write_text("no")
    refused(tmp_path / "text.hdf5", "is no dataset that is known here")
    with h5py.File(tmp_path / "empty.hdf5", "w") as f:
        f.create_group("other")
    refused(tmp_path / "empty.hdf5", "neither data/demo_0 (robomimic) nor observations/qpos (ALOHA)")
    robomimic(tmp_path / "short.hdf5", 2, **{"obs/robot0_eef_pos": lambda n: np.zeros((n - 1, 3))})
    refused(tmp_path / "short.hdf5", "demo_0 has 5 actions but other rows of observation.state")
    robomimic(tmp_path / "linked.hdf5", 1)
    robomimic(tmp_path / "secret.hdf5", 1)
    with h5py.File(tmp_path / "linked.hdf5", "a") as f:
        del f["data/demo_0/obs/object"]
        f["data/demo_0/obs/object"] = h5py.ExternalLink(
            str(tmp_path / "secret.hdf5"), "/data/demo_0/obs/object"
        )
    refused(tmp_path / "linked.hdf5", "object points to another file")
    with h5py.File(tmp_path / "linked.hdf5", "a") as f:  # by a detour
        del f["data/demo_0/obs/object"]
        f["ext"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "/data")
        f["data/demo_0/obs/object"] = h5py.SoftLink("/ext/demo_0/obs/object")
    refused(tmp_path / "linked.hdf5", "points to another file")
    with h5py.File(tmp_path / "linked.hdf5", "a") as f:
        del f["data/demo_0/obs/object"]
        layout = h5py.VirtualLayout((5, 10), "f8")
        layout[:] = h5py.VirtualSource(
            str(tmp_path / "secret.hdf5"), "/data/demo_0/obs/object", shape=(5, 10)
        )
        f.create_virtual_dataset("data/demo_0/obs/object", layout)
    refused(tmp_path / "linked.hdf5", "lies in another file: refused")
    robomimic(tmp_path / "wide.hdf5", 2, **{"obs/robot0_joint_pos": lambda n: np.zeros((n, n))})
    refused(tmp_path / "wide.hdf5", "has rows of (6,), the first episode of (5,)")
    robomimic(tmp_path / "shaped.hdf5", 1, rewards=lambda n: np.full(n, 0.1), dones=lambda n: np.ones(n))
    assert (
        import_robomimic(tmp_path / "shaped.hdf5", tmp_path / "shaped").episodes[0].attrs["success"] is None
    )
    whole = (tmp_path / "secret.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"cut.hdf5"):
        import_robomimic(tmp_path / "cut.hdf5", tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(StoreError, match=r"holds no \.hdf5 file"):
        import_aloha(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["data", "observations"])
@pytest.mark.parametrize("value", [1.0, np.zeros((3, 2))])
def test_hdf5_with_arrays_where_groups_belong(
    tmp_path: Path, name: str, value: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "odd.hdf5", "w") as f:
        f[name] = value
    assert main(["data", "import", str(tmp_path / "odd.hdf5"), "--out", str(tmp_path / "out")]) == 1
    error = capfd.readouterr().err
    assert "neither data/demo_0 (robomimic) nor observations/qpos (ALOHA)" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("chunks", [(10, 3), None])
def test_hdf5_that_was_never_written_is_not_zeros(tmp_path: Path, chunks: Any) -> None:
    robomimic(tmp_path / "cut.hdf5", 2)
    with h5py.File(tmp_path / "cut.hdf5", "a") as f:
        actions = f.create_dataset("data/demo_2/actions", (40, 3), "f8", chunks=chunks)
        if chunks:
            actions[:20] = 1
        f["data/demo_2/obs/robot0_eef_pos"] = np.zeros((40, 3))
    says = f"{'2 of 4' if chunks else '1 of 1'} parts of /data/demo_2/actions were never written"
    with pytest.raises(StoreError, match=says):
        import_robomimic(tmp_path / "cut.hdf5", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def aloha(path: Path, heights: list[int]) -> None:
    n = len(heights)
    jpegs = [cv2.imencode(".jpg", np.zeros((h, 16, 3), np.uint8))[1].ravel() for h in heights]
    rows = np.zeros((n, 1000), np.uint8)
    for row, code in zip(rows, jpegs, strict=True):
        row[: len(code)] = code
    with h5py.File(path, "w") as f:
        f["action"] = f["observations/qpos"] = np.zeros((n, 14), np.float32)
        f["observations/images/cam"] = rows


def test_aloha_with_images_of_two_sizes_or_no_rows(tmp_path: Path) -> None:
    folder = tmp_path / "al"
    folder.mkdir()
    aloha(folder / "episode_0.hdf5", [16] * 4)
    aloha(folder / "episode_1.hdf5", [16, 24, 16])
    says = (
        "episode_1.hdf5: /observations/images/cam: the image of row 1 is colour of 16×24 pixels, "
        "not colour of 16×16"
    )
    for size in (None, (8, 8)):  # resizing hides nothing
        with pytest.raises(StoreError, match=says):
            import_aloha(folder, tmp_path / "out", image_size=size)
    for name in ("episode_1.hdf5", "episode_0.hdf5"):
        aloha(folder / name, [])
        with pytest.raises(StoreError, match=rf"{name}: /\S+ is empty"):
            import_aloha(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_litter_of_macos_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "aloha"
    folder.mkdir()
    with h5py.File(folder / "episode_0.hdf5", "w") as f:
        f.create_dataset("action", data=np.ones((3, 14)))
        f.create_dataset("observations/qpos", data=np.ones((3, 14)))
    (folder / "._episode_0.hdf5").write_bytes(b"\x00\x05\x16\x07")
    assert main(["data", "import", str(folder), "--out", str(tmp_path / "a")]) == 0
    assert len(EpisodeStore.open(tmp_path / "a")) == 1


@pytest.mark.parametrize("top", ["", "b.zarr/"])
def test_a_zip_that_macos_made(tmp_path: Path, top: str) -> None:
    arrays = {"action": np.ones((10, 2), np.float32), "img": np.full((10, 8, 8, 3), 7, np.uint8)}
    source = buffer(tmp_path / "b.zarr", arrays, [4, 10])
    (source / "data/._img").write_bytes(b"\x00")
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as file:
        for f in sorted(p for p in source.rglob("*") if p.is_file()):
            name = f.relative_to(source)
            file.write(f, f"{top}{name}")
            file.writestr(f"__MACOSX/{top}{name.with_name('._' + name.name)}", b"\x00\x05\x16\x07\xff")
        file.writestr(f"{top}data/action/._.zarray", b"\x00\x05\x16\x07\xff")
    assert main(["data", "import", str(path), "--out", str(tmp_path / "d"), "--fps", "10"]) == 0
    store = EpisodeStore.open(tmp_path / "d")
    assert [e.length for e in store.episodes] == [4, 6]
    assert [e.attrs.get("notes") for e in store.episodes] == [None, None]
    assert len(import_replay_buffer(source, tmp_path / "f", control_hz=10)) == 2


def test_arrays_are_joined_and_left_out_in_every_format(tmp_path: Path) -> None:
    arrays = {k: RNG.normal(size=(6, 2)).astype(np.float32) for k in ("q_1", "q_2", "u_1", "u_2", "junk")}
    source = buffer(tmp_path / "b.zarr", arrays, [6])
    maps = ["--map", "q_*=observation.state", "--map", "u_*=action", "--drop", "observation.ju*"]
    command = ["data", "import", str(source), "--out", str(tmp_path / "d"), "--fps", "10"]
    assert main([*command, *maps]) == 0
    store = EpisodeStore.open(tmp_path / "d")
    assert set(store.features) == {STATE, ACTION}
    joined = np.concatenate([arrays["u_1"], arrays["u_2"]], 1)
    np.testing.assert_array_equal(store.episodes[0].read(ACTION), joined)
    assert store.features[ACTION].names == ("u_1.0", "u_1.1", "u_2.0", "u_2.1")
    robomimic(tmp_path / "r.hdf5", 2)
    drops = ["--drop", "object,agentview_image", "--map", "robot0_joint_pos=observation.state"]
    assert main(["data", "import", str(tmp_path / "r.hdf5"), "--out", str(tmp_path / "h"), *drops]) == 0
    features = EpisodeStore.open(tmp_path / "h").features
    assert features[STATE].shape == (7,)
    assert set(features) == {
        *(STATE, ACTION, "observation.robot0_eef_pos", "observation.robot0_eef_quat"),
        "observation.robot0_gripper_qpos",
    }


# what would unfold without end


def test_a_chunk_that_says_it_is_huge_is_not_decoded(tmp_path: Path) -> None:
    """Of a few bytes, by each codec's own header."""
    import numcodecs
    from imagecodecs import jpegxl_encode, png_encode
    from imagecodecs.numcodecs import Jpegxl, Png, register_codecs

    register_codecs(verbose=False)
    frames = np.zeros((4, 16, 24, 3), np.uint8)
    zeros = bytes(64 << 20)
    wide = np.zeros((3000, 5000, 3), np.uint8)
    bombs: dict[str, tuple[Any, Any]] = {
        "zstd": (numcodecs.Zstd(), numcodecs.Zstd(9).encode(zeros)),
        "lz4": (numcodecs.LZ4(), (1 << 30).to_bytes(4, "little") + b"\x1f"),
        "blosc": (Blosc("zstd"), Blosc("zstd", 9).encode(zeros)),
        "jpegxl": (Jpegxl(), jpegxl_encode(wide, effort=1)),
        "png": (Png(), png_encode(wide, 1)),
    }
    for name, (codec, chunk) in bombs.items():
        group: Any = zarr.open_group(str(tmp_path / f"{name}.zarr"), mode="w", zarr_format=2)
        group.create_array("data/img", data=frames, chunks=(1, 16, 24, 3), compressors=codec)
        group.create_array("data/action", data=np.zeros((4, 2)), chunks=(4, 2))
        group.create_array("meta/episode_ends", data=np.array([4]), compressors=None)
        good = import_replay_buffer(tmp_path / f"{name}.zarr", tmp_path / f"{name} good", control_hz=10)
        np.testing.assert_array_equal(good.episodes[0].read(IMAGES + "img"), frames)
        (tmp_path / f"{name}.zarr/data/img/2.0.0.0").write_bytes(bytes(chunk))
        for source in (tmp_path / f"{name}.zarr", zipped(tmp_path / f"{name}.zarr")):
            with pytest.raises(StoreError, match=r"the chunk data/img/2.0.0.0 would unfold to \d{8,} bytes"):
                import_replay_buffer(source, tmp_path / "out", control_hz=10)
            assert not (tmp_path / "out").exists()


def test_zips_and_arrays_that_unfold_to_more_than_they_can_be(tmp_path: Path) -> None:
    source = buffer(tmp_path / "b.zarr", {"action": np.ones((10, 2), np.float32)}, [10])
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            file.write(path, path.relative_to(source))
        for i in range(17):
            file.writestr(f"data/action/{i + 7}.0", bytes(64 << 20))
    with pytest.raises(StoreError, match=r"bomb.zip would unfold from 1.\d MB to 1.1 GB: refused"):
        import_replay_buffer(tmp_path / "bomb.zip", tmp_path / "out", control_hz=10)
    path = source / "data" / "action" / ".zarray"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "shape": [1 << 30, 2]}))
    (source / "meta/episode_ends/0").write_bytes(np.array([1 << 30], np.int64).tobytes())
    with pytest.raises(StoreError, match=r"action would unfold from 0.0 MB to 8.6 GB: refused"):
        import_replay_buffer(source, tmp_path / "out", control_hz=10)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"shape": ' + "[" * 100_000, "nested too deeply|absurd"),
        ('{"shape": [1e999], "chunks": [1], "dtype": "<f4"}', "cannot be read|no robot's data|absurd"),
        ('{"shape": [-5], "chunks": [1], "dtype": "<f4"}', "no robot's data"),
        ('{"shape": "10", "chunks": [1], "dtype": "<f4"}', "cannot be read"),
        ("[]", "JSON object|cannot be read"),
        ("{" + " " * (2 << 20) + "}", "too long|would unpack"),
    ],
)
@pytest.mark.parametrize("as_zip", [False, True])
def test_absurd_descriptions_are_one_sentence(tmp_path: Path, text: str, says: str, as_zip: bool) -> None:
    source = buffer(tmp_path / "b.zarr", {"action": np.ones((10, 2), np.float32)}, [10])
    (source / "data/action/.zarray").write_text(text)
    with pytest.raises(StoreError, match=says):
        import_replay_buffer(zipped(source) if as_zip else source, tmp_path / "out", control_hz=10)


def test_a_pipe_in_a_buffer_is_not_waited_for(tmp_path: Path) -> None:
    source = buffer(tmp_path / "b.zarr", {"action": np.ones((10, 2), np.float32)}, [10])
    (source / "data/action/1.0").unlink()
    os.mkfifo(source / "data/action/1.0")
    with pytest.raises(StoreError, match=r"data/action/1.0 is no regular file"):
        import_replay_buffer(source, tmp_path / "out", control_hz=10)


@pytest.mark.parametrize("location", ["start", "end"])
def test_chunks_in_shards_are_measured_too(tmp_path: Path, location: Any) -> None:
    from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec

    frames = np.arange(4 * 16 * 24 * 3, dtype=np.uint8).reshape(4, 16, 24, 3)
    group: Any = zarr.open_group(str(tmp_path / "r.zarr"), mode="w", zarr_format=3)
    inner: Any = [BytesCodec(), ZstdCodec()]
    shards: Any = ShardingCodec(chunk_shape=(1, 16, 24, 3), codecs=inner, index_location=location)
    img = group.create_array(
        "data/img", shape=frames.shape, chunks=(4, 16, 24, 3), dtype="u1", serializer=shards, compressors=None
    )
    img[:] = frames
    group.create_array("data/action", data=np.ones((4, 2)), chunks=(4, 2))
    group.create_array("meta/episode_ends", data=np.array([4]))
    store = import_replay_buffer(tmp_path / "r.zarr", tmp_path / "d", control_hz=10)
    np.testing.assert_array_equal(store.episodes[0].read(IMAGES + "img"), frames)
    assert len(import_replay_buffer(zipped(tmp_path / "r.zarr"), tmp_path / "z", control_hz=10)) == 1
    shard = tmp_path / "r.zarr/data/img/c/0/0/0/0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:37])
    with pytest.raises(StoreError, match=r"img cannot be read"):
        import_replay_buffer(tmp_path / "r.zarr", tmp_path / "out", control_hz=10)
    data = bytearray(whole)
    at = data.find(b"\x28\xb5\x2f\xfd")  # a frame that says it holds 4 GB
    data[at + 4 : at + 9] = bytes([0xA0]) + (0xFFFFFFFF).to_bytes(4, "little")
    shard.write_bytes(data)
    for source in (tmp_path / "r.zarr", zipped(tmp_path / "r.zarr")):
        with pytest.raises(StoreError, match=r"a chunk in data/img/c/0/0/0/0 would unfold to 4294967295"):
            import_replay_buffer(source, tmp_path / "out", control_hz=10)
