"""Edits asked of the viewer's server: what they do to the store on disk, how they are undone, and what is
refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contracts.viewer import TICKS, Client

from ulna.datasets.edit import relabel, trash, trim
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.robot.viewer.server import Viewer


def test_delete_label_and_review_change_the_store_and_can_be_undone(
    client: Client, store: EpisodeStore
) -> None:
    names = [e.path.name for e in store.episodes]

    def on_disk() -> EpisodeStore:
        return EpisodeStore.open(store.path)

    status, answer = client.edit(do="delete", episode=names[1])
    assert (status, answer["said"]) == (200, "Episode 1 is in the trash.")
    assert [e.path.name for e in on_disk().episodes] == [names[0], names[2]]
    assert [(t["episode"], t["replaced"]) for t in client.get("/api/episodes")["trash"]] == [
        (names[1], False)
    ]
    assert client.edit(**answer["undo"])[1]["episode"] == names[1]
    assert [e.path.name for e in on_disk().episodes] == names

    status, answer = client.edit(do="relabel", episode=names[1], labels={"success": True, "task": "neu „x“"})
    assert (on_disk().episodes[1].attrs["success"], on_disk().episodes[1].task) == (True, "neu „x“")
    assert answer["said"] == "Episode 1 is marked as a success, now of task “neu „x“”."
    client.edit(**answer["undo"])
    assert (on_disk().episodes[1].attrs["success"], on_disk().episodes[1].task) == (False, "task <b>1</b>")
    _, answer = client.edit(do="relabel", episode=names[1], labels={"weight": 0.5})
    client.edit(**answer["undo"])
    assert on_disk().episodes[1].attrs["weight"] == 1.0, "what a missing weight means"

    _, answer = client.edit(do="review", episode=names[2])
    assert [e["reviewed"] for e in client.get("/api/episodes")["episodes"]] == [False, False, True]
    client.edit(**answer["undo"])
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
    status, answer = client.edit(do="trim", episode=name, start_s=0, end_s=60)
    assert (status, answer["undo"]) == (200, None)


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
        (
            {"do": "relabel", "episode": "0", "labels": {"colour": 1}},
            409,
            "labels are task, phrases, success, weight",
        ),
        ({"do": "relabel", "episode": "0"}, 409, "labels are task, phrases, success, weight"),
    ],
)
def test_edits_that_are_none(reader: Client, edit: dict[str, Any], status: int, says: str) -> None:
    answer_status, body = reader.edit(**edit)
    assert answer_status == status
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
