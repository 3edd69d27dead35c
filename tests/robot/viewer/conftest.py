"""Recorded episodes and a viewer of them, for every test of the viewer's server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from contracts.viewer import Client, record_episodes

from ulna.datasets.store import EpisodeStore
from ulna.robot.viewer.server import Viewer


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_episodes(tmp_path_factory.mktemp("viewer") / "Ä b")


@pytest.fixture
def store(recorded: Path, tmp_path: Path) -> EpisodeStore:
    shutil.copytree(recorded, tmp_path / recorded.name)
    return EpisodeStore.open(tmp_path / recorded.name)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "videos"


@pytest.fixture(scope="module")
def reader(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A viewer of episodes that no test changes."""
    with Viewer(
        EpisodeStore.open(recorded), cache=tmp_path_factory.mktemp("cache") / "videos"
    ).background() as url:
        yield Client(url)


@pytest.fixture(scope="module")
def same(recorded: Path) -> EpisodeStore:
    """The store behind `reader`."""
    return EpisodeStore.open(recorded)


@pytest.fixture
def client(store: EpisodeStore, cache: Path) -> Iterator[Client]:
    with Viewer(store, cache=cache).background() as url:
        yield Client(url)
