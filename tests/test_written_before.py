"""Stores and checkpoints written by Ulna at 2b94086 (November 2026), before its modules were moved, open
unchanged."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from contracts.data import FEATURES, WITH_IMAGE

from ulna.datasets.episode import Episode
from ulna.datasets.features import ACTION, is_frames
from ulna.datasets.store import EpisodeStore
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy

ARCHIVE = Path(__file__).parent / "data" / "written_at_2b94086.zip"
TWENTY_STEPS = ARCHIVE.with_name("written_at_2b94086_20_steps.json")
with zipfile.ZipFile(ARCHIVE) as _archive:
    EXPECTED = json.loads(_archive.read("expected.json"))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def digest(episode: Episode) -> str:
    """Of every value and time of every stream, in the order of their names."""
    h = hashlib.sha256()
    for key in sorted(episode.streams):
        h.update(key.encode())
        rows = episode.rows(key)
        values = episode.read_frames(key, range(rows)) if is_frames(key) else episode.read(key)
        for array in (values, *episode.times_ns(key)):
            h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()


@pytest.mark.parametrize("name", EXPECTED["stores"])
def test_a_store_written_before_reads_the_same(name: str, before: Path) -> None:
    store = EpisodeStore.open(before / f"store_{name}")
    assert [{"task": e.task, "length": e.length, "sha256": digest(e)} for e in store.episodes] == EXPECTED[
        "stores"
    ][name]


@pytest.mark.parametrize("name", EXPECTED["checkpoints"])
def test_a_checkpoint_written_before_gives_the_same_actions(name: str, before: Path) -> None:
    rng = np.random.default_rng(3)
    observation = {
        key: rng.integers(0, 255, f.shape).astype(f.dtype)
        if f.dtype == "uint8"
        else rng.normal(size=f.shape).astype(f.dtype) * 0.3
        for key, f in (WITH_IMAGE if name.endswith("image") else FEATURES).items()
        if key != ACTION
    }
    expected = EXPECTED["checkpoints"][name]
    steps, actions = None, expected["actions"]
    if name.startswith("diffusion"):
        # their 16 steps landed beside their levels then (see policies/test_golden.py); 20 did not
        steps, actions = 20, json.loads(TWENTY_STEPS.read_text())[name]
    reply = LocalPolicy(before / name, sampling_steps=steps).infer(
        Request(observation, expected["seed"]).to_wire()
    )
    np.testing.assert_allclose(reply["actions"], actions, atol=2e-5)
    assert reply["checkpoint"] == expected["checkpoint"]
    assert reply["nfe"] == (steps or expected["nfe"])
