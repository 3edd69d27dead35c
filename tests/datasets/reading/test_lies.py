"""Episodes whose labels and arrays do not agree are refused before memory is taken for what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from contracts.data import CAMERA, WITH_IMAGE, write_store

from ulna.datasets.checks.check import check
from ulna.datasets.episode import StoreError
from ulna.datasets.features import STATE
from ulna.datasets.reading.spec import WindowSpec
from ulna.datasets.reading.windows import Windows
from ulna.datasets.stats import compute_stats
from ulna.datasets.store import EpisodeStore


def say(file: Path, **changes: Any) -> None:
    document = json.loads(file.read_text())
    for key, value in changes.items():
        (document["attributes"] if key in document["attributes"] else document)[key] = value
    file.write_text(json.dumps(document))


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return write_store(tmp_path / "d", (5, 4), WITH_IMAGE)


@pytest.mark.parametrize("length", [1 << 28, 4, 6, 0])
def test_a_length_that_is_not_that_of_the_actions(store: EpisodeStore, length: int) -> None:
    say(store.episodes[0].path / "zarr.json", length=length)
    store = EpisodeStore.open(store.path)
    for read in (
        lambda: Windows(store, WindowSpec(1, 1, keys=(STATE,))),
        lambda: compute_stats(store, [STATE]),
    ):
        with pytest.raises(StoreError, match=f"has 5 actions and says {length}: run `ulna data check`"):
            read()
    (finding,) = [f for f in check(store) if f.check == "damaged"]
    assert (finding.episode, finding.severity) == (0, "severe")
    assert finding.message == f"{length} ticks were said, 5 are there"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        (STATE, {"data_type": "float64"}),
        (STATE, {"shape": [5, 300_000]}),
        (CAMERA, {"shape": [5, 4096, 4096, 3]}),
        (CAMERA, {"data_type": "uint16"}),
    ],
)
def test_streams_that_hold_another_kind_of_row(
    store: EpisodeStore, key: str, changes: dict[str, Any]
) -> None:
    say(store.episodes[0].path / key / "value" / "zarr.json", **changes)
    with pytest.raises(StoreError, match=f"{key} holds .*the dataset's features say"):
        Windows(EpisodeStore.open(store.path), WindowSpec(1, 1, keys=(key,)))
