"""Commands that look at a dataset leave it as it is; what was cut off is named, and comes back when asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from contracts.data import FEATURES, write_store

from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main


@pytest.fixture
def cut_off(tmp_path: Path) -> Path:
    """A dataset of one episode, and of a recording that was cut off."""
    store = write_store(tmp_path / "d", (4,))
    writer = EpisodeWriter(store)
    writer.start({"task": "cut off"})
    row = {k: np.zeros(f.shape, f.dtype) for k, f in FEATURES.items()}
    writer.tick(row, dict.fromkeys(row, (0, 1)))
    writer.close()
    return store.path


def content(path: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_mtime_ns) for p in path.rglob("*"))


def test_looking_recovers_nothing_and_names_what_does(
    cut_off: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = content(cut_off)
    for words in (["info"], ["check"], ["stats"], ["view", "--rerun", str(cut_off.parent / "x.rrd")]):
        assert main(["data", words[0], str(cut_off), *words[1:]]) in (0, 1)
        assert content(cut_off) == before, words
    out = capfd.readouterr().out
    assert "1 episodes, 4 frames" in out
    assert f"not part of the data: {next((cut_off / 'in-progress').iterdir()).name}" in out
    assert f"(ulna data recover {cut_off})" in out
    assert main(["data", "recover", str(cut_off), "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["recovered"]) == 1
    assert len(EpisodeStore.open(cut_off, recover=False)) == 2


def test_whoever_changes_or_trains_on_a_dataset_recovers_it(cut_off: Path) -> None:
    assert [e.task for e in EpisodeStore.open(cut_off).episodes] == ["task 0", "cut off"]
