"""Edits: what they change, what they refuse, and that a kill at any step leaves every episode as it was or as
it should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from contracts.data import CAMERA, WITH_IMAGE, frame, write_store
from contracts.kills import killed_at_each_step

from ulna.datasets.edit import delete, empty_trash, relabel, restore, trash, trim, write_attrs
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, STATE, Feature, FeatureMismatch
from ulna.datasets.merge import merge, split
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.split import split_by_episode
from ulna.datasets.steps import marks, steps_of
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main

LENGTHS = (20, 13, 7)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("edit") / "mit Umlaut ä", LENGTHS, WITH_IMAGE).path


@pytest.fixture
def store(written: Path, tmp_path: Path) -> EpisodeStore:
    shutil.copytree(written, tmp_path / written.name)
    return EpisodeStore.open(tmp_path / written.name)


def test_delete_and_restore(store: EpisodeStore) -> None:
    names = [e.path.name for e in store.episodes]
    delete(store, [0, 2])
    assert [e.length for e in store.episodes] == [13]
    assert [t.name for t in trash(store)] == [names[0], names[2]]
    with EpisodeWriter(store) as writer:  # a new one does not take the number of one that may come back
        writer.start({})
        row = frame(np.random.default_rng(0), WITH_IMAGE, 0)
        writer.tick(row, dict.fromkeys(row, (0, 0)))
        writer.end({})
    assert store.episodes[-1].path.name.startswith("000003-")
    with pytest.raises(StoreError, match=r"holds no episode 7: there is 000000"):
        restore(store, ["7"])
    assert restore(store, ["2"]) == [names[2]]
    assert restore(store) == [names[0]]
    assert [e.path.name for e in store.episodes][:3] == names
    delete(store, [1])
    assert empty_trash(store) == 1
    assert not trash(store)
    with pytest.raises(StoreError, match="has episodes 0 to 2, not 3"):
        delete(store, [0, 3])
    assert len(store) == 3


def test_trim_keeps_the_stored_bytes_and_can_be_undone(store: EpisodeStore) -> None:
    before = {k: store.episodes[0].read(k) for k in WITH_IMAGE}
    times = store.episodes[0].times_ns(CAMERA)
    content = store.episodes[0].content
    assert trim(store, 0, 0.25, 0.7) == (20, 10)  # 20 Hz: ticks 5 to 14
    e = store.episodes[0]
    assert (e.length, e.attrs["trimmed_to"], len(store)) == (10, [5, 15], 3)
    for key in WITH_IMAGE:
        np.testing.assert_array_equal(e.read(key), before[key][5:15])
    np.testing.assert_array_equal(e.times_ns(CAMERA)[0], times[0][5:15])
    assert e.content != content
    assert e.task == "task 0"
    delete(store, [2])
    assert [t.replaced for t in trash(store)] == [True, False]
    assert restore(store)[0].startswith("000002-"), "what was deleted, and not what was trimmed"
    assert restore(store) == []
    assert store.episodes[0].length == 10
    restore(store, ["0"])
    assert store.episodes[0].content == content
    assert [t.name for t in trash(store)] == [store.episodes[0].path.name]  # the short version
    with pytest.raises(StoreError, match=r"runs from 0 to 0.950 s: nothing of it lies from 3 to 4 s"):
        trim(store, 0, 3, 4)
    trim(store, 0, 0.25, 0.7)
    assert trim(store, 0, 0.1, 0.2) == (10, 3)
    assert store.episodes[0].attrs["trimmed_to"] == [7, 10]  # of the rows that were recorded


def test_trim_cuts_streams_of_other_rates_by_time_and_jpeg_is_not_coded_again(tmp_path: Path) -> None:
    store = EpisodeStore.create(
        tmp_path / "d", WITH_IMAGE, 100.0, storage={CAMERA: {"codec": "jpeg", "quality": 80}}
    )
    rng = np.random.default_rng(0)
    with EpisodeWriter(store, own_rate=(CAMERA,)) as writer:
        writer.start({})
        for t in range(100):
            row = frame(rng, WITH_IMAGE, t)
            writer.tick(row, {k: (t * 10_000_000, t * 10_000_000 + 1) for k in row})
            if t % 3 == 0:
                writer.append(CAMERA, row[CAMERA], t * 10_000_000 - 5_000_000, t * 10_000_000)
        writer.end({})
    images = store.episodes[0].read(CAMERA)
    trim(store, 0, 0.1, 0.2)  # ticks 10 to 20; the image seen at 10 is that of tick 9, row 3
    e = store.episodes[0]
    assert (e.length, e.rows(CAMERA)) == (11, 4)
    np.testing.assert_array_equal(e.read(CAMERA), images[3:7])


def test_relabel_keeps_what_was_said_before_and_the_content(store: EpisodeStore) -> None:
    content = store.episodes[1].content
    relabel(store, [1], {"task": "fold „it“", "success": None, "weight": 0.5})
    e = EpisodeStore.open(store.path).episodes[1]
    assert (e.task, e.attrs["success"], e.attrs["weight"], e.content) == ("fold „it“", None, 0.5, content)
    assert e.attrs["relabelled"][0]["was"] == {"task": "task 1", "success": False, "weight": None}
    for labels, says in (
        ({"weight": -1.0}, "a weight is a number of at least 0"),
        ({"success": "yes"}, "success is true, false or none"),
        ({"colour": 1}, "labels are task, phrases, success, weight, return"),
    ):
        with pytest.raises(StoreError, match=says):
            relabel(store, [0], labels)


def test_edits_wait_for_no_one_who_writes(store: EpisodeStore) -> None:
    with (
        EpisodeWriter(EpisodeStore.open(store.path)),
        pytest.raises(StoreError, match="is being written by process"),
    ):
        delete(store, [0])
    assert len(store) == 3


def test_merge_and_split(store: EpisodeStore, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", (5,), WITH_IMAGE, {"note": "other"})
    both = merge([store, other], tmp_path / "both")
    assert [e.length for e in both.episodes] == [*LENGTHS, 5]
    np.testing.assert_array_equal(both.episodes[3].read(CAMERA), other.episodes[0].read(CAMERA))
    assert both.episodes[3].attrs["source_episode"].startswith("other/000000-")
    with pytest.raises(StoreError, match="is the same episode as"):
        merge([both, other], tmp_path / "twice")
    assert len(merge([both, other], tmp_path / "twice", same_twice=True)) == 5
    with pytest.raises(StoreError, match="exists and is not empty"):
        merge([store, other], tmp_path / "both")
    parts = split(both, {tmp_path / "a": [0, 3], tmp_path / "b": [1, 2]})
    assert [[e.length for e in p.episodes] for p in parts.values()] == [[20, 5], [13, 7]]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_merging_unequal_datasets_shows_every_difference(store: EpisodeStore, tmp_path: Path) -> None:
    features = {
        **WITH_IMAGE,
        STATE: Feature((2,), "float32", ("a", "b")),
        "observation.force": Feature((6,), "float32"),
    }
    other = EpisodeStore.create(tmp_path / "other", features, 30.0)
    with pytest.raises(FeatureMismatch) as error:
        merge([store, other], tmp_path / "both")
    for line in ("observation.state: ", "observation.force: ", "control_hz: "):
        assert line in str(error.value)
    assert not (tmp_path / "both").exists()


def test_parts_stay_where_they_are_when_episodes_come(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", (1,) * 60)
    before = split_by_episode(store.episodes, [0.8, 0.2])
    assert sorted(before[0] + before[1]) == list(range(60))
    assert 4 <= len(before[1]) <= 22
    after = split_by_episode(store.episodes[:50], [0.8, 0.2])
    assert after[1] == [i for i in before[1] if i < 50]
    assert split_by_episode(store.episodes, [0.8, 0.2], seed=1) != before
    assert all(split_by_episode(store.episodes[:2], [0.99, 0.01]))


EDITS = """
from ulna.datasets.edit import *
from ulna.datasets.merge import merge; from ulna.datasets.store import EpisodeStore
store = EpisodeStore.open(path)
"""


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        ("trim", "trim(store, 0, 0.1, 0.5)"),
        ("relabel", "relabel(store, [0], {'task': 'new'})"),
        ("delete", "delete(store, [0])"),
        ("restore", "delete(store, [0]); restore(store)"),
        (
            "merge",
            "merge([store, EpisodeStore.open(path.rsplit(maxsplit=1)[0] + ' other')], path + ' merged')",
        ),
    ],
)
def test_an_edit_that_is_killed_leaves_each_episode_as_before_or_as_after(
    tmp_path: Path, kind: str, act: str
) -> None:
    source = write_store(tmp_path / "d", (12, 5), WITH_IMAGE)
    write_store(tmp_path / "d other", (4,), WITH_IMAGE)
    first, other = source.episodes[0].content, source.episodes[1].content
    copies = killed_at_each_step(source.path, EDITS + act)
    assert len(copies) > 2
    changes = 0
    for path in copies:
        store = EpisodeStore.open(path)
        assert not list((path / "in-progress").iterdir())
        assert [e for e in store.episodes if e.content == other]
        versions = [e.content for e in store.episodes if e.content != other]
        contents = [
            json.loads((t.path / "zarr.json").read_text())["attributes"]["content"] for t in trash(store)
        ]
        assert first in versions + contents
        assert len(versions) + len(contents) <= 2
        assert len(versions) == 1 or (kind in ("delete", "restore") and contents == [first])
        for e in store.episodes:
            for key in e.streams:
                assert len(e.read(key)) == e.rows(key)
        changes += versions != [first] or store.episodes[0].task == "new"
        merge_folder = Path(f"{path} merged")
        assert not merge_folder.exists() or len(EpisodeStore.open(merge_folder)) == 3
    assert changes >= (kind != "merge")


def test_the_commands(store: EpisodeStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def ulna(*words: str) -> dict[str, object]:
        assert main(["data", *words, "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    path = str(store.path)
    name = store.episodes[1].path.name
    assert ulna("delete", path, "--episodes", "1") == {"deleted": [name], "episodes": 2}
    assert ulna("restore", path, "--list")["trash"][0]["name"] == name  # type: ignore[index]
    assert ulna("restore", path) == {"restored": [name], "episodes": 3}
    assert ulna("trim", path, "--episode", "0", "--start", "0.5")["frames"] == 10
    ulna(
        "relabel",
        path,
        "--episodes",
        "0-2",
        "--success",
        "true",
        "--task",
        "neu „x“",
        "--episode-return",
        "2",
    )
    assert {e.task for e in EpisodeStore.open(path).episodes} == {"neu „x“"}
    assert ulna("split", path, "--out", str(tmp_path / "parts"), "--parts", "train=0,1", "val=2")[
        "parts"
    ] == {
        str(tmp_path / "parts" / "train"): 2,
        str(tmp_path / "parts" / "val"): 1,
    }
    parts = str(tmp_path / "parts" / "train"), str(tmp_path / "parts" / "val")
    assert ulna("merge", *parts, "--out", str(tmp_path / "joined"))["episodes"] == 3
    assert ulna("recover", path) == {"recovered": [], "left": []}
    assert main(["data", "restore", path, "--empty"]) == 1
    assert "say --yes" in capfd.readouterr().err
    assert ulna("restore", path, "--empty", "--yes") == {"removed": 1}
    assert main(["data", "split", path, "--out", str(tmp_path / "p"), "--parts", "train=0.9"]) == 1
    assert "sum to 1" in capfd.readouterr().err
    assert not (tmp_path / "p").exists()
    assert EpisodeStore.open(path).episodes[0].read(ACTION).shape == (10, 3)


def test_an_emptied_trash_that_is_killed_brings_back_no_half_episode(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", (12, 5), WITH_IMAGE)
    name = store.episodes[0].path.name
    delete(store, [0])
    counts = []
    for path in killed_at_each_step(store.path, EDITS + "empty_trash(store)"):
        reopened = EpisodeStore.open(path)
        names = restore(reopened)
        assert names in ([], [name])
        assert [e.length for e in reopened.episodes] == [12, 5][len(names) ^ 1 :]
        assert not list((path / "in-progress").iterdir())
        counts.append(bool(names))
    assert counts[0]
    assert counts.count(False) > 3


def test_the_hint_undoes_what_was_done_and_nothing_else(
    store: EpisodeStore, capfd: pytest.CaptureFixture[str]
) -> None:
    content = [e.content for e in store.episodes]
    for words in (("delete", "--episodes", "0"), ("trim", "--episode", "0", "--start", "0.2")):
        assert main(["data", words[0], str(store.path), *words[1:]]) == 0
    hint = capfd.readouterr().out.rsplit("--episodes ", 1)[1].rstrip(")\n")
    assert main(["data", "restore", str(store.path), "--episodes", hint]) == 0
    assert [e.content for e in EpisodeStore.open(store.path).episodes] == content[1:]


def test_labels_of_two_who_edit_are_both_kept(store: EpisodeStore) -> None:
    other = EpisodeStore.open(store.path)
    assert other.episodes[0].task == store.episodes[0].task == "task 0"
    relabel(store, [0], {"task": "first"})
    relabel(other, [0], {"task": "second"})
    history = EpisodeStore.open(store.path).episodes[0].attrs["relabelled"]
    assert [h["was"]["task"] for h in history] == ["task 0", "first"]


def test_each_task_is_a_folder_and_so_is_none(store: EpisodeStore, tmp_path: Path) -> None:
    relabel(store, [1], {"task": ""})
    assert main(["data", "split", str(store.path), "--out", str(tmp_path / "out"), "--by", "task"]) == 0
    parts = {p.name: len(EpisodeStore.open(p)) for p in (tmp_path / "out").iterdir()}
    assert parts == {"task 0": 2, "task-e3b0c4": 1}


def test_parts_do_not_overlap(store: EpisodeStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="episode 1 would be in two parts"):
        split(store, {tmp_path / "a": [0, 1], tmp_path / "b": [1, 2]})
    assert main(["data", "split", str(store.path), "--out", str(tmp_path), "--parts", "a=0.5", "a=0.5"]) == 1
    assert not (tmp_path / "a").exists()


def test_trim_keeps_pictures_and_actions_together_though_pictures_come_late(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        writer.start({})
        for t in range(20):
            row = {**frame(rng, WITH_IMAGE, t), CAMERA: np.full((24, 32, 3), t, np.uint8)}
            now = t * 50_000_000
            writer.tick(row, {k: (now, now + (2_000_000 if k == CAMERA else 0)) for k in row})
        writer.end({})
    trim(store, 0, 0.25, 0.7)
    assert store.episodes[0].read(CAMERA)[:, 0, 0, 0].tolist() == list(range(5, 15))


def test_a_trim_keeps_the_labels_that_another_gave_meanwhile(store: EpisodeStore) -> None:
    assert store.episodes[0].task == "task 0"
    relabel(EpisodeStore.open(store.path), [0], {"task": "new", "success": False})
    trim(store, 0, 0.1, 0.5)
    e = EpisodeStore.open(store.path).episodes[0]
    assert (e.length, e.task, e.attrs["success"], len(e.attrs["relabelled"])) == (9, "new", False, 1)


@pytest.mark.parametrize("key", [STATE, CAMERA])
def test_a_merge_passes_no_damage_on(store: EpisodeStore, tmp_path: Path, key: str) -> None:
    file = next(p for p in (store.episodes[1].path / key / "value" / "c").rglob("*") if p.is_file())
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 4] ^= 1
    file.write_bytes(raw)
    with pytest.raises(StoreError, match=rf"episode 000001-.*{key}"):
        merge([store], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_steps_are_labelled_by_seconds_and_outlive_a_trim(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", (20, 20))
    relabel(store, [0], {"steps": [("open the box", 0.5), ("put the cube in", None)]})
    steps = steps_of(store.episodes[0])
    assert [s.words for s in steps] == ["open the box", "put the cube in"]
    done = marks(steps, store.episodes[0])
    assert done.shape == (20, 2)
    assert done[:, 0].tolist() == [False] * 10 + [True] * 10
    assert not done[:, 1].any()
    trim(store, 0, 0.4, None)
    trimmed = store.episodes[0]
    assert marks(steps_of(trimmed), trimmed)[:, 0].tolist() == [False] * 2 + [True] * 10
    with pytest.raises(StoreError, match="a step has words"):
        relabel(store, [0], {"steps": [(" ", 1.0)]})


def test_steps_that_are_none_are_refused_by_a_sentence(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", (5,))
    write_attrs(store.episodes[0].path, {"phrases": "fold it"})
    store.refresh()
    assert "phrases are no list" in store.episodes[0].damage
    write_attrs(store.episodes[0].path, {"phrases": None})
    for broken in ("open", [{"words": "a"}], [{"words": "a", "changes_ns": [2, 1]}], [{"changes_ns": []}]):
        write_attrs(store.episodes[0].path, {"steps": broken})
        store.refresh()
        assert "step" in store.episodes[0].damage
