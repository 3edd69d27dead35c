"""Policies between two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contracts.data import write_store
from contracts.recipes import small
from safetensors.torch import load_file

from ulna.policies.blend import blend
from ulna.policies.checkpoint import CheckpointError, load_checkpoint, read_train
from ulna.policies.parts import override
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.data import TrainingData, open_data
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train
from ulna.robot.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return open_data(write_store(tmp_path_factory.mktemp("data") / "d").path)


@pytest.fixture(scope="module")
def two(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy, and what tuning made of it."""
    folder = tmp_path_factory.mktemp("two")
    first = train(small("flow"), data, folder / "first", device="cpu").checkpoint
    recipe = small("flow", start=str(first), learning_rate=1e-2)
    return first, train(recipe, data, folder / "second", device="cpu").checkpoint


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_weights_lie_between_those_of_two(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = map(weights, two)
    notes: list[str] = []
    for w in (0.0, 0.25, 1.0):
        blend(*two, tmp_path / f"{w}", w, say=notes.append)
        for name, value in weights(tmp_path / f"{w}").items():
            torch.testing.assert_close(value, (1 - w) * a[name] + w * b[name])
    assert all(torch.equal(v, a[n]) for n, v in weights(tmp_path / "0.0").items())
    assert all(torch.equal(v, b[n]) for n, v in weights(tmp_path / "1.0").items())
    assert not notes, "one began from the other"
    record = read_train(tmp_path / "0.25")
    assert record.blend["of"] == [load_checkpoint(f).content_hash for f in two]
    assert record.blend["weight"] == 0.25
    assert LocalPolicy(tmp_path / "0.25").metadata.recipe == "flow"
    again = blend(two[0], tmp_path / "0.25", tmp_path / "again", 0.5, say=notes.append)
    assert again["between"] == again["parameters"]
    assert not notes, "it came from it, too"


def test_modules_have_weights_of_their_own(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = map(weights, two)
    line = ["blend", *map(str, two), "--out", str(tmp_path / "c"), "--weight", "0.5"]
    assert main([*line, "--modules", "net.out.*:1,net.*:0"]) == 0
    for name, value in weights(tmp_path / "c").items():
        if name.startswith("net."):
            assert torch.equal(value, (b if name.startswith("net.out.") else a)[name]), name
        else:
            torch.testing.assert_close(value, (a[name] + b[name]) / 2)


def test_what_cannot_be_blended_is_said_in_one_sentence(
    data: TrainingData, two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two
    wider = override(small("flow"), {"backbone.widths": (32, 96)})
    wide = train(wider, data, tmp_path / "wide", device="cpu").checkpoint
    act = train(small("regression_mlp"), data, tmp_path / "other", device="cpu").checkpoint
    out = tmp_path / "c"
    with pytest.raises(TrainingError, match=r"backbone.widths of one flow is 32 64, of the other 32 96"):
        blend(first, wide, out, 0.5)
    with pytest.raises(TrainingError, match="cannot be blended: the objective of one flow is Flow"):
        blend(first, act, out, 0.5)
    with pytest.raises(TrainingError, match=r"to 1, not 1\.5"):
        blend(first, second, out, 1.5)
    with pytest.raises(TrainingError, match=r"--modules nt\.\* matches no weight: did you mean net"):
        blend(first, second, out, 0.5, [("nt.*", 0.5)])
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        blend(first, tmp_path / "none", out, 0.5)
    line = ["blend", str(first), str(second), "--out", str(out)]
    assert main([*line, "--modules", "net.*"]) == 2
    assert "is written PATTERN:WEIGHT" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(TrainingError, match="holds a trained checkpoint: choose another --out"):
        blend(first, second, second, 0.5)
    assert main([*line, "--overwrite"]) == 0
    assert main([*line, "--overwrite"]) == 0


def test_what_was_trained_apart_is_warned_of(
    data: TrainingData, two: tuple[Path, Path], tmp_path: Path
) -> None:
    apart = train(small("flow"), data, tmp_path / "apart", seed=1, device="cpu").checkpoint
    notes: list[str] = []
    blend(two[0], apart, tmp_path / "c", 0.5, say=notes.append)
    assert len(notes) == 1
    assert "was not trained from" in notes[0]
