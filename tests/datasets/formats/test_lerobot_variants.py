"""LeRobot folders as other tools, other versions, other machines and enemies write them."""

from __future__ import annotations

import json
import resource
import shutil
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, DEPTH, IMAGES, REWARD, STATE
from ulna.datasets.formats.lerobot import import_lerobot
from ulna.datasets.formats.naming import Naming
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main

FPS, ROWS, SIZE = 10, 4, (24, 32)
CAMERA = IMAGES + "top"


def video(
    path: Path,
    frames: int = ROWS,
    size: tuple[int, int] = SIZE,
    codec: str = "libx264",
    pixels: str = "yuv420p",
) -> Path:
    """Frame i has the value 20 (i + 1), or of depth 300 + 100 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "mp4" if codec == "libx264" else "matroska"
    with av.open(str(path), "w", format=form) as out:
        stream: Any = out.add_stream(codec, rate=Fraction(FPS))
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        for i in range(frames):
            deep = pixels.startswith("gray1")
            picture = np.full(size if deep else (*size, 3), 300 + 100 * i if deep else 20 * (i + 1))
            frame: Any = picture.astype(np.uint16 if deep else np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray16le" if deep else "rgb24")))
        out.mux(stream.encode())
    return path


def png(picture: np.ndarray) -> dict[str, Any]:
    return {"bytes": cv2.imencode(".png", picture)[1].tobytes(), "path": None}


def vector(*names: str, dtype: str = "float32", width: int = 2) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [len(names) or width], "names": list(names) or None}


def folder(
    root: Path,
    features: dict[str, dict[str, Any]] | None = None,
    columns: dict[str, Any] | None = None,
    version: str = "v2.1",
    episodes: int = 2,
    **info: Any,
) -> Path:
    """A folder with one vector of state, of action and a camera, or the `features`. columns: values that are
    not made up, a list of rows for every episode."""
    if features is None:
        camera = {"dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
        features = {STATE: vector(), ACTION: vector(), CAMERA: camera}
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    for e in range(episodes):
        table: dict[str, Any] = {
            "timestamp": np.arange(ROWS, dtype=np.float32) / FPS,
            "episode_index": np.full(ROWS, e),
            "task_index": np.zeros(ROWS, np.int64),
        }
        for name, f in features.items():
            if f["dtype"] == "video":
                video(root / f"videos/chunk-000/{name}/episode_{e:06d}.mp4")
            elif f["dtype"] == "image":
                table[name] = [png(np.full((*SIZE, 3), 10 * i, np.uint8)) for i in range(ROWS)]
            elif f["dtype"] == "string":
                table[name] = ["words"] * ROWS
            else:
                width = f["shape"][0]
                table[name] = list(np.arange(ROWS * width, dtype=f["dtype"]).reshape(ROWS, width))
        table |= columns or {}
        pq.write_table(pa.table(table), root / f"data/chunk-000/episode_{e:06d}.parquet")
    header = {
        "codebase_version": version,
        "robot_type": "two joints",
        "fps": FPS,
        "total_episodes": episodes,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
        **info,
    }
    (root / "meta/info.json").write_text(json.dumps(header))
    lines = [json.dumps({"episode_index": e, "tasks": ["do"], "length": ROWS}) for e in range(episodes)]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "do"}) + "\n")
    return root


STILL = {"dtype": "image", "shape": [*SIZE, 3], "names": ["height", "width", "channel"]}
VECTORS = {STATE: vector(), ACTION: vector()}


def run(*argv: object) -> int:
    return main(["data", "import", *map(str, argv)])


def refused(source: Path, says: str, **options: Any) -> str:
    """Import fails in one sentence with these words, and nothing is left. The sentence."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(StoreError) as error:
        import_lerobot(source, source.parent / "out", **options)
    assert says in str(error.value)
    assert sorted(source.parent.iterdir()) == before
    return str(error.value)


# -- versions and names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "noted"), [("v2.0", "v2.0"), ("2.0", "v2.0"), ("v2.1.0", "v2.1")])
def test_v20_has_its_statistics_elsewhere(tmp_path: Path, version: str, noted: str) -> None:
    source = folder(tmp_path / "s", version=version)
    (source / "meta/stats.json").write_text('{"action": {"mean": [NaN, 1.0]}}')
    (source / "meta/episodes.jsonl").unlink()
    store = import_lerobot(source, tmp_path / "d")
    assert [e.length for e in store.episodes] == [ROWS, ROWS]
    assert store.provenance["format"] == f"lerobot {noted}"


def test_openpi_as_its_converter_for_libero_writes_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    features = {"image": STILL, "wrist_image": STILL, "state": vector(width=8), "actions": vector(width=7)}
    assert run(folder(tmp_path / "s", features), "--out", tmp_path / "d") == 0
    store = EpisodeStore.open(tmp_path / "d")
    assert set(store.features) == {IMAGES + "image", IMAGES + "wrist_image", STATE, ACTION}
    assert store.features[STATE].shape == (8,)
    assert (
        store.episodes[0].read(IMAGES + "wrist_image")[:, 3, 3] == [[0] * 3, [10] * 3, [20] * 3, [30] * 3]
    ).all()
    assert "convention: openpi (actions, state)" in capfd.readouterr().out


def test_actions_in_parts_and_cameras_of_one_last_name(tmp_path: Path) -> None:
    features = {
        "observation.left.image": STILL,
        "observation.right.image": STILL,
        "action.gripper": vector(width=1),
        "action.arm": vector("a", "b", "c"),
        "next.reward": vector(width=1),
        "language": {"dtype": "string", "shape": [1], "names": None},
    }
    store = import_lerobot(folder(tmp_path / "s", features), tmp_path / "d")
    assert set(store.features) == {IMAGES + "left_image", IMAGES + "right_image", ACTION, REWARD}
    assert store.features[ACTION].names == ("arm.a", "arm.b", "arm.c", "gripper")
    np.testing.assert_array_equal(store.episodes[0].read(ACTION)[1], [3, 4, 5, 1])
    assert store.provenance["joined"] == {ACTION: "action.arm + action.gripper"}
    assert store.provenance["left_out"] == ["language"]


def test_gr00t_names_its_slices_and_tasks(tmp_path: Path) -> None:
    note = "annotation.human.action.task_description"
    features = {
        STATE: vector("motor_0", "motor_1", "motor_2"),
        ACTION: vector("x", "y", "z"),
        note: vector(dtype="int64", width=1),
        "annotation.human.validity": vector(dtype="int64", width=1),
    }
    source = folder(tmp_path / "s", features, {note: [[1]] * ROWS}, version="v2.0")
    slices = {"arm": {"start": 0, "end": 2}, "hand": {"start": 2, "end": 3}}
    annotation = {"human.action.task_description": {}, "human.validity": {}}
    modality = {"state": slices, "action": slices, "video": {}, "annotation": annotation}
    (source / "meta/modality.json").write_text(json.dumps(modality))
    tasks = [json.dumps({"task_index": i, "task": t}) for i, t in enumerate(("valid", "pick the pear"))]
    (source / "meta/tasks.jsonl").write_text("\n".join(tasks))
    store = import_lerobot(source, tmp_path / "d")
    assert store.features[STATE].names == ("arm.0", "arm.1", "hand")
    assert store.features[ACTION].names == ("x", "y", "z"), "those that say something stay"
    assert store.episodes[0].task == "pick the pear"
    assert store.provenance["convention"] == ["GR00T (meta/modality.json)"]
    assert store.provenance["task"] == f"as {note} says"
    (source / "meta/modality.json").write_text(json.dumps({"state": {"arm": {"start": 0, "end": 9}}}))
    refused(source, "state.arm is 0…9, but observation.state has 3 elements")


def test_gr00t_names_other_columns(tmp_path: Path) -> None:
    features = {"joints": vector(width=3), "hand": vector(width=1), "command": vector(width=2)}
    source = folder(tmp_path / "s", features, version="v2.0")
    state = {
        "hand": {"start": 0, "end": 1, "original_key": "hand"},
        "arm": {"start": 0, "end": 3, "original_key": "joints"},
    }
    action = {"arm": {"start": 0, "end": 2, "original_key": "command"}}
    (source / "meta/modality.json").write_text(json.dumps({"state": state, "action": action}))
    store = import_lerobot(source, tmp_path / "d")
    assert store.features[STATE].names == ("hand", "arm.0", "arm.1", "arm.2")
    np.testing.assert_array_equal(store.episodes[0].read(STATE)[1], [1, 3, 4, 5])
    np.testing.assert_array_equal(store.episodes[0].read(ACTION)[1], [2, 3])


def test_a_camera_that_only_info_json_names_stays_out(tmp_path: Path) -> None:
    """GR00T's demonstrations say `egoview` in info.json; the others have `ego_view` alone."""
    camera = {"dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channel"]}
    source = folder(tmp_path / "s", {**VECTORS, CAMERA: camera, IMAGES + "old": camera}, version="v2.0")
    shutil.rmtree(source / f"videos/chunk-000/{IMAGES}old")
    refused(source, "is missing")  # where nothing else names the videos, it was lost
    (source / "meta/modality.json").write_text(json.dumps({"video": {"top": {"original_key": CAMERA}}}))
    store = import_lerobot(source, tmp_path / "d")
    assert set(store.features) == {STATE, ACTION, CAMERA}
    assert f"{IMAGES}old: no video of it is there" in store.provenance["pictures"][0]
    assert store.provenance["left_out"] == [f"{IMAGES}old"]
    (source / f"videos/chunk-000/{CAMERA}/episode_000000.mp4").unlink()
    refused(source, "is missing")
    (source / "meta/modality.json").write_text(json.dumps({"video": {CAMERA: {}, f"{IMAGES}old": {}}}))
    refused(source, "is missing")


@pytest.mark.parametrize("first_s", [1 / FPS, -3 / FPS])
def test_rows_that_count_from_another_second_than_their_video(tmp_path: Path, first_s: float) -> None:
    """GR00T's demonstrations count rows from one period on."""
    at = first_s + np.arange(ROWS) / FPS
    store = import_lerobot(folder(tmp_path / "s", columns={"timestamp": at}), tmp_path / "d")
    for episode in store.episodes:
        colours = episode.read(CAMERA).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(colours, 20 * np.arange(1, ROWS + 1), atol=2)
        np.testing.assert_allclose(episode.times_ns(ACTION)[0], at * 1e9, atol=1)
        assert "each row gets the frame of its number" in episode.attrs["notes"][0]


def test_rows_whose_times_only_begin_elsewhere_do_not_fit_another_number_of_frames(tmp_path: Path) -> None:
    source = folder(tmp_path / "s", columns={"timestamp": (1 + np.arange(ROWS)) / FPS})
    video(source / f"videos/chunk-000/{CAMERA}/episode_000000.mp4", frames=ROWS - 1)
    store = import_lerobot(source, tmp_path / "d", skip_broken=True)
    assert len(store.episodes) == 1
    video(source / f"videos/chunk-000/{CAMERA}/episode_000000.mp4", frames=ROWS + 1)  # these times do
    episode = import_lerobot(source, tmp_path / "e").episodes[0]
    assert episode.read(CAMERA)[0].mean() == pytest.approx(40, abs=2)


def test_words_in_a_column_are_the_task_where_there_is_no_other(tmp_path: Path) -> None:
    words = {"dtype": "string", "shape": [1], "names": None}
    source = folder(tmp_path / "s", {**VECTORS, "language_instruction": words})
    assert import_lerobot(source, tmp_path / "d").episodes[0].task == "do"
    (source / "meta/tasks.jsonl").unlink()
    assert import_lerobot(source, tmp_path / "e").episodes[0].task == "words"


def test_map_and_drop_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    features = {**VECTORS, "observation.effort": vector(), "q": vector(), CAMERA: STILL}
    source = folder(tmp_path / "s", features, {"observation.effort": [[np.nan, 0.0]] * ROWS})
    assert run(source, "--out", tmp_path / "d") == 1
    message = "episodes 0, 1 cannot be imported: observation.effort is not finite in any row; --drop"
    assert message in capfd.readouterr().err
    more = ("--map", "q=observation.joints", f"--map={CAMERA}={IMAGES}front", "--drop", "observation.effort")
    assert run(source, "--out", tmp_path / "d", *more, "--drop", "next.*,observation.eff*") == 1
    assert "nothing that --drop next.* names" in capfd.readouterr().err
    assert run(source, "--out", tmp_path / "d", *more) == 0
    assert set(EpisodeStore.open(tmp_path / "d").features) == {
        STATE,
        ACTION,
        IMAGES + "front",
        "observation.joints",
    }
    assert run(source, "--out", tmp_path / "e", "--map") == 2
    assert "--map needs a value" in capfd.readouterr().err


# -- text --------------------------------------------------------------------------------------------------


def test_text_as_editors_and_other_tools_leave_it(tmp_path: Path) -> None:
    source = folder(tmp_path / "s")
    info = source / "meta/info.json"
    info.write_bytes(b"\xef\xbb\xbf" + info.read_bytes().replace(b", ", b",\r\n  "))
    words = "lift\u2028it, \x85 slowly"
    pretty = json.dumps({"task_index": 0, "task": words}, indent=2, ensure_ascii=False)
    (source / "meta/tasks.jsonl").write_bytes(f"\ufeff{pretty}\r\n\r\n  \t\n".encode())
    lines = (source / "meta/episodes.jsonl").read_text()
    (source / "meta/episodes.jsonl").write_bytes(lines.replace("\n", "\r\n \r\n").encode("utf-16"))
    store = import_lerobot(source, tmp_path / "d")
    assert [e.task for e in store.episodes] == [words, words]
    as_list = [json.loads(line) for line in lines.splitlines()]
    (source / "meta/episodes.jsonl").write_text(json.dumps(as_list, indent=4))
    assert len(import_lerobot(source, tmp_path / "e")) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"task_index": 0,\n "task": }', "is no JSON: Expecting value in line 2"),
        (b'{"task_index": 0, "task": "\xff"}', "is no text in UTF-8: byte 27"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"task_index": 1e999, "task": ""}', "task_index must be a whole number from 0 on, not inf"),
        (b'{"task_index": -1, "task": ""}', "task_index must be a whole number from 0 on, not -1"),
        (b'"do"', "must hold JSON objects, not 'do'"),
        (b'{"task": "do"}', "'task_index'"),
    ],
)
def test_text_that_cannot_be_used_is_one_sentence(tmp_path: Path, text: bytes, says: str) -> None:
    source = folder(tmp_path / "s", VECTORS, episodes=1)
    (source / "meta/tasks.jsonl").write_bytes(text)
    assert "\n" not in refused(source, says)


# -- pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["video", "image"])
def test_depth_keeps_its_sixteen_bits(tmp_path: Path, kind: str) -> None:
    said = {"dtype": kind, "shape": [*SIZE, 1], "names": None}
    stills = [png(np.full(SIZE, 300 + 100 * i, np.uint16)) for i in range(ROWS)]
    source = folder(tmp_path / "s", {**VECTORS, CAMERA: said}, {CAMERA: stills} if kind == "image" else {})
    if kind == "video":
        for e in range(2):
            video(source / f"videos/chunk-000/{CAMERA}/episode_{e:06d}.mp4", codec="ffv1", pixels="gray16le")
    store = import_lerobot(source, tmp_path / "d")
    feature = store.features[DEPTH + "top"]
    assert (feature.shape, feature.dtype, feature.units) == (SIZE, "uint16", ("mm",))
    assert store.episodes[1].read(DEPTH + "top")[:, 5, 5].tolist() == [300, 400, 500, 600]
    assert store.provenance["pictures"] == [f"{CAMERA}: 16 bits of grey are taken for depth in mm"]
    small = import_lerobot(source, tmp_path / "e", image_size=(12, 16))
    assert set(np.unique(small.episodes[0].read(DEPTH + "top"))) == {300, 400, 500, 600}


def test_arrays_that_are_called_like_pictures_stay_out(tmp_path: Path) -> None:
    odd = {"observation.images.mask": vector(), "observation.depth.far": vector()}
    odd |= {"action_is_pad": vector(width=1), "extra": vector()}  # nor what is neither observed nor done
    store = import_lerobot(folder(tmp_path / "s", {**VECTORS, **odd}), tmp_path / "d")
    assert store.provenance["left_out"] == list(odd)


def test_depth_codes_of_unknown_steps_stay_out_and_are_told(tmp_path: Path) -> None:
    source = folder(tmp_path / "s", episodes=1)
    path = source / f"videos/chunk-000/{CAMERA}/episode_000000.mp4"
    video(path, codec="ffv1", pixels="gray12le")
    store = import_lerobot(source, tmp_path / "d")
    assert store.provenance["left_out"] == [CAMERA]
    assert "whose steps are unknown" in store.provenance["pictures"][0]


@pytest.mark.parametrize("kind", ["video", "image"])
@pytest.mark.parametrize(
    ("shape", "names", "is_told"),
    [
        ([3, *SIZE], ["channels", "height", "width"], False),
        ([3, *SIZE], ["c", "h", "w"], False),
        ([3, *SIZE], None, False),
        ([*SIZE, 3], ["height", "width", "rgb"], False),
        ([*SIZE, 3], ["channels", "height", "width"], True),
        ([*SIZE[::-1], 3], ["height", "width", "channels"], True),
        ([48, 64, 3], None, True),
        ([3], None, True),
    ],
)
def test_pixels_decide_how_large_pictures_are(
    tmp_path: Path, kind: str, shape: list[int], names: Any, is_told: bool
) -> None:
    said = {"dtype": kind, "shape": shape, "names": names}
    store = import_lerobot(folder(tmp_path / "s", {**VECTORS, CAMERA: said}, episodes=1), tmp_path / "d")
    assert store.features[CAMERA].shape == (*SIZE, 3)
    assert store.episodes[0].read(CAMERA).shape == (ROWS, *SIZE, 3)
    remarks = store.provenance.get("pictures", [])
    assert [f"its pixels are {SIZE[1]}×{SIZE[0]}" in r for r in remarks] == [True] * is_told


def test_an_episode_with_pictures_of_another_size_is_told(tmp_path: Path) -> None:
    source = folder(tmp_path / "s")
    video(source / f"videos/chunk-000/{CAMERA}/episode_000001.mp4", size=(48, 64))
    refused(source, "pictures of observation.images.top are colour of 64×48 pixels, those of the first")
    assert len(import_lerobot(source, tmp_path / "d", image_size=(16, 16))) == 2


# -- broken in the middle ----------------------------------------------------------------------------------


def test_all_that_is_broken_is_told_at_once_and_may_stay_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "s", episodes=6)
    videos = source / f"videos/chunk-000/{CAMERA}"
    video(videos / "episode_000001.mp4", frames=ROWS - 1)
    video(videos / "episode_000002.mp4", frames=ROWS + 2)
    (videos / "episode_000003.mp4").unlink()
    whole = (videos / "episode_000004.mp4").read_bytes()
    (videos / "episode_000004.mp4").write_bytes(whole[: len(whole) // 2])
    (source / "data/chunk-000/episode_000005.parquet").write_bytes(b"PAR1")
    message = refused(source, "4 of 6 episodes cannot be imported (the rest comes in with --skip-broken):\n")
    for says in (
        "1: the video",
        "fewer frames than the 4 rows",
        "3: the file",
        "is missing",
        "4: the video",
        "5: ",
    ):
        assert says in message
    assert run(source, "--out", tmp_path / "d", "--skip-broken") == 0
    told = capfd.readouterr().out
    store = EpisodeStore.open(tmp_path / "d")
    assert [e.attrs["source_episode"] for e in store.episodes] == [0, 2]
    assert [line.split(":")[0] for line in store.provenance["stayed_out"]] == [
        f"episode {i}" for i in (1, 3, 4, 5)
    ]
    assert "stayed_out: \n    episode 1: the video" in told
    assert f"the video of {CAMERA} has 6 frames for 4 rows: others are lost: episodes 1" in told


def test_what_only_decoding_shows_is_told_at_once_too(tmp_path: Path) -> None:
    stills = [png(np.zeros((*SIZE, 3), np.uint8)) for _ in range(ROWS)]
    source = folder(tmp_path / "s", {**VECTORS, CAMERA: STILL}, {CAMERA: stills}, episodes=3)
    for e in (0, 2):
        path = source / f"data/chunk-000/episode_{e:06d}.parquet"
        cut = [*stills[:2], {"bytes": stills[0]["bytes"][:30], "path": None}, stills[3]]
        table = pq.read_table(path)
        at = table.column_names.index(CAMERA)
        pq.write_table(table.set_column(at, CAMERA, pa.array(cut, table.schema.field(CAMERA).type)), path)
    refused(source, "episodes 0, 2 cannot be imported: the image of row 2")
    store = import_lerobot(source, tmp_path / "d", skip_broken=True)
    assert [e.attrs["source_episode"] for e in store.episodes] == [1]
    assert store.provenance["stayed_out"][0].startswith("episodes 0, 2: the image of row 2")


def test_images_in_files_of_their_own_are_told(tmp_path: Path) -> None:
    lost = [{"bytes": None, "path": f"images/{i}.png"} for i in range(ROWS)]
    source = folder(tmp_path / "s", {**VECTORS, CAMERA: STILL}, {CAMERA: lost}, episodes=1)
    refused(source, "the image of row 0 lies in a file of its own, images/0.png")


def test_without_its_videos_a_folder_comes_in_without_its_cameras(tmp_path: Path) -> None:
    source = folder(tmp_path / "s")
    shutil.rmtree(source / "videos")
    refused(source, "is missing; without the videos it comes in with --drop 'observation.images.top'")
    refused(source, "none of 2 episodes can be imported", skip_broken=True)
    store = import_lerobot(source, tmp_path / "d", naming=Naming(drops=["observation.images.*"]))
    assert set(store.features) == {STATE, ACTION}


# -- pointers and litter -----------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("pattern", ["meta/info.json", "meta/*.jsonl", "**/*.parquet", "**/*.mp4"])
def test_pointers_of_git_lfs_are_called_so(tmp_path: Path, pattern: str) -> None:
    source = folder(tmp_path / "s")
    for path in list(source.glob(pattern)):
        path.write_bytes(POINTER)
    refused(source, "is a pointer of Git LFS and not the file itself: run `git lfs pull`")


def test_other_formats_know_pointers_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "aloha").mkdir()
    for path in (tmp_path / "x.hdf5", tmp_path / "x.zarr.zip", tmp_path / "aloha/episode_0.hdf5"):
        path.write_bytes(POINTER)
        source = path.parent if path.parent != tmp_path else path
        assert run(source, "--out", tmp_path / "d") == 1
        assert "is a pointer of Git LFS" in capfd.readouterr().err


def litter(root: Path) -> None:
    for path in [p for p in root.rglob("*") if not p.name.startswith("._")]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\x00")
    (root / "__MACOSX/meta/episodes").mkdir(parents=True)
    (root / "__MACOSX/meta/episodes/._file-000.parquet").write_bytes(b"\x00")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / name).write_bytes(b"\x00")


def as_v30(root: Path) -> Path:
    """A folder of v2.1 as v3.0, one table for all; without cameras."""
    tables = [pq.read_table(p) for p in sorted((root / "data").glob("**/*.parquet"))]
    shutil.rmtree(root / "data")
    for place, table in (
        ("data/chunk-000/file-000", pa.concat_tables(tables)),
        (
            "meta/episodes/chunk-000/file-000",
            pa.table(
                {
                    "episode_index": np.arange(len(tables)),
                    "length": [len(t) for t in tables],
                    "data/chunk_index": np.zeros(len(tables), np.int64),
                    "data/file_index": np.zeros(len(tables), np.int64),
                }
            ),
        ),
        ("meta/tasks", pa.table({"task_index": [0], "task": ["do"]})),
    ):
        path = root / f"{place}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    path = root / "meta/info.json"
    data_path = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info = json.loads(path.read_text()) | {"codebase_version": "v3.0", "data_path": data_path}
    path.write_text(json.dumps(info))
    return root


def test_litter_of_other_systems_is_passed_over(tmp_path: Path) -> None:
    two = folder(tmp_path / "two", VECTORS)
    three = as_v30(folder(tmp_path / "three", VECTORS))
    for source in (two, three):
        litter(source)
        assert [e.length for e in import_lerobot(source, tmp_path / f"{source.name}.d").episodes] == [
            ROWS
        ] * 2


# -- enemies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("/etc/{episode_index}.parquet", "leads out of the folder: refused"),
        ("../{episode_index}.parquet", "leads out of the folder: refused"),
        ("data/{episode_index:0400000000d}.parquet", "can be filled in"),
        ("data/{episode_index:>99999}", "can be filled in"),
        ("data/{episode_index.__class__}", "can be filled in"),
        ("data/{0}", "can be filled in"),
        ("data/{episode_index!r}", "can be filled in"),
        ("data/{episode_index:{episode_chunk}}", "can be filled in"),
        ("data/{", "which is no path"),
        (["data"], "which is no path"),
        ("x" * 5000, "which is no path"),
    ],
)
@pytest.mark.parametrize("which", ["data_path", "video_path"])
def test_paths_are_plain_and_lead_down(tmp_path: Path, which: str, template: Any, says: str) -> None:
    source = folder(tmp_path / "s", episodes=1, **{which: template})
    assert "\n" not in refused(source, says)


def test_a_feature_that_is_called_like_a_path_leads_nowhere(tmp_path: Path) -> None:
    source = folder(tmp_path / "s", VECTORS, episodes=1)
    path = source / "meta/info.json"
    info = json.loads(path.read_text())
    said = {"dtype": "video", "shape": [*SIZE, 3], "names": None}
    info["features"]["observation.images.a/../../../../secret"] = said
    path.write_text(json.dumps(info))
    refused(source, "leads out of the folder: refused")


@pytest.mark.parametrize(
    "what",
    ["meta/info.json", "meta/tasks.jsonl", "meta", "data", "data/chunk-000/episode_000000.parquet", "videos"],
)
def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, what: str) -> None:
    source = folder(tmp_path / "s", episodes=1)
    (tmp_path / "elsewhere").mkdir()
    (source / what).rename(tmp_path / "elsewhere/thing")
    (source / what).symlink_to(tmp_path / "elsewhere/thing")
    refused(source, "leads out of the folder")


def test_a_folder_in_the_cache_of_hugging_face_comes_in(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--me--lift/snapshots/0123abcd"
    folder(snapshot)
    blobs = tmp_path / "datasets--me--lift/blobs"
    blobs.mkdir()
    for i, path in enumerate([p for p in snapshot.rglob("*") if p.is_file()]):
        path.rename(blobs / f"{i}")
        up = "/".join([".."] * (len(path.relative_to(snapshot).parts) + 1))
        path.symlink_to(f"{up}/blobs/{i}")
    assert len(import_lerobot(snapshot, tmp_path / "d")) == 2
    (tmp_path / "link").symlink_to(snapshot)
    assert len(import_lerobot(tmp_path / "link", tmp_path / "e")) == 2
    (blobs / "0").rename(tmp_path / "out")
    (blobs / "0").symlink_to(tmp_path / "out")
    with pytest.raises(StoreError, match="leads out of the folder"):
        import_lerobot(snapshot, tmp_path / "f")


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"total_episodes": 1e10}, "says it has 10000000000 episodes, but 1 parquet files lie in its data/"),
        ({"total_episodes": 1e999}, "total_episodes must be a whole number from 0 on, not inf"),
        ({"total_episodes": -3}, "total_episodes must be a whole number from 0 on, not -3"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 1e999}, "fps is inf"),
        ({"fps": "fast"}, "cannot be used"),
        ({"features": []}, "names 0 features"),
        (
            {"features": {ACTION: {"dtype": "float32", "shape": [1e999]}}},
            "a number of its shape must be a whole",
        ),
        ({"features": {ACTION: {"dtype": "float32", "shape": [10**9, 10**9]}}}, "its shape is"),
        ({"features": {ACTION: "vector"}}, "cannot be used"),
        ({"chunks_size": 1.5}, "chunks_size must be a whole number"),
        ({"codebase_version": "v" + "9" * 5000}, "has LeRobot format v9999"),
    ],
)
def test_numbers_that_cannot_be_are_one_sentence(tmp_path: Path, info: dict[str, Any], says: str) -> None:
    source = folder(tmp_path / "s", VECTORS, episodes=1)
    (source / "meta/episodes.jsonl").unlink()
    path = source / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | info))
    begin = time.monotonic()
    message = refused(source, says)
    assert "\n" not in message
    assert len(message) < 600
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("length", 10**15, "has 4 rows, but meta/ says 1000000000000000"),
        ("length", -1, "length must be a whole number from 0 on"),
        ("data/file_index", 10**15, "is missing"),
        ("episode_index", -1, "episode_index must be a whole number from 0 on"),
    ],
)
def test_the_list_of_v30_is_not_believed(tmp_path: Path, column: str, value: int, says: str) -> None:
    source = as_v30(folder(tmp_path / "s", VECTORS, episodes=1))
    path = source / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array([value])), path)
    refused(source, says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"notes": 5}', "ulna/attributes: notes cannot be '5'"),
        ('{"success": "yes"}', "ulna/attributes: success cannot be 'yes'"),
        ("[1]", "ulna/attributes must hold JSON objects"),
        ("[" * 100_000, "list of episodes in"),
        ('{"seed": 1e999}', "must be JSON"),
    ],
)
def test_attributes_as_of_our_own_export_are_not_believed(tmp_path: Path, text: str, says: str) -> None:
    source = as_v30(folder(tmp_path / "s", VECTORS, episodes=1))
    path = source / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).append_column("ulna/attributes", pa.array([text])), path)
    assert "\n" not in refused(source, says)


def test_pictures_far_larger_than_declared_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    source = folder(
        tmp_path / "s",
        {**VECTORS, CAMERA: STILL},
        {CAMERA: [png(np.zeros((6000, 6000, 3), np.uint8))] * ROWS},
        episodes=1,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(source, "have 6000×6000 pixels, where meta/info.json says 32×24: refused")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    film = folder(tmp_path / "film", episodes=1)
    video(film / f"videos/chunk-000/{CAMERA}/episode_000000.mp4", 1, (4096, 4224))
    refused(film, "have 4224×4096 pixels, where meta/info.json says 32×24: refused")


def test_a_video_that_is_a_list_of_other_files_is_not_followed(tmp_path: Path) -> None:
    source = folder(tmp_path / "s", episodes=1)
    film = source / f"videos/chunk-000/{CAMERA}/episode_000000.mp4"
    film.rename(tmp_path / "secret.mp4")
    for text in (
        f"ffconcat version 1.0\nfile '{tmp_path / 'secret.mp4'}'\n",
        "ffconcat version 1.0\nfile secret.mp4\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path / 'secret.mp4'}\n#EXT-X-ENDLIST\n",
    ):
        film.write_text(text)
        (film.parent / "secret.mp4").write_bytes((tmp_path / "secret.mp4").read_bytes())
        refused(source, "cannot be decoded")


def test_a_table_that_unfolds_without_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(tmp_path / "s", VECTORS, episodes=1)
    (source / "meta/episodes.jsonl").unlink()
    path = source / "data/chunk-000/episode_000000.parquet"
    zeros = np.zeros(1 << 20, np.float32)
    pq.write_table(pa.table({"timestamp": zeros, STATE: zeros, ACTION: zeros}), path)
    assert path.stat().st_size < 1 << 16
    monkeypatch.setattr("ulna.datasets.formats.parquet.MOST_BYTES", 1 << 24)
    refused(source, "says it has 1048576 rows: refused")
