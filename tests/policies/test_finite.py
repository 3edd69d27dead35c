"""A checkpoint, a recipe or a request that holds NaN, infinity or text for a number is refused in a sentence,
before a robot moves."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small
from safetensors.torch import load_file

from ulna.datasets.features import ACTION
from ulna.datasets.stats import compute_stats
from ulna.policies.checkpoint import HASHED, load_checkpoint, save_checkpoint
from ulna.policies.hashed import WEIGHTS, CheckpointError, save_hashed, write_json
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.train.record import TrainingRecord


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finite")
    stats = compute_stats(write_store(folder / "data"), list(FEATURES))
    torch.manual_seed(0)
    save_checkpoint(folder / "good", Policy(small("act"), FEATURES, stats), TrainingRecord(control_hz=20.0))
    return folder / "good"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoint")


def save_again(folder: Path, weights: dict[str, torch.Tensor] | None = None, **documents: Any) -> None:
    """The checkpoint with other weights or JSON, stamped as if it had been saved so."""
    names = [f for f in (*HASHED, "train.json") if f != WEIGHTS]
    now = {name: json.loads((folder / name).read_text()) for name in names}
    for name, value in documents.items():
        now[f"{name}.json"] = value
    save_hashed(folder, weights or load_file(folder / WEIGHTS), now, HASHED)


def document(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_at_load(folder: Path, value: float) -> None:
    weights = load_file(folder / WEIGHTS)
    name = max(k for k, v in weights.items() if v.is_floating_point() and v.numel())
    weights[name].view(-1)[0] = value
    save_again(folder, weights)
    for load in (load_checkpoint, LocalPolicy):
        with pytest.raises(CheckpointError, match=f"weights that are not finite .*{name}"):
            load(folder)


def test_weights_that_give_no_finite_action_are_refused_at_the_warm_up(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_again(folder, {k: v * 1e30 if v.is_floating_point() else v for k, v in weights.items()})
    load_checkpoint(folder)
    with pytest.raises(
        CheckpointError, match="gives actions that are not finite for an observation of zeros"
    ):
        LocalPolicy(folder)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("ensemble_decay", "0.01", "ensemble_decay is '0.01', not float"),
        ("ensemble_decay", True, "ensemble_decay is True, not float"),
        ("ensemble_decay", None, "ensemble_decay is None, not float"),
        ("horizon", "8", "horizon is '8', not int"),
        ("sampling_steps", [4], r"sampling_steps is \[4\], not int"),
        ("mask_padding", 1, "mask_padding is 1, not bool"),
    ],
)
def test_a_recipe_with_another_kind_of_value_is_refused(
    folder: Path, field: str, value: Any, says: str
) -> None:
    save_again(folder, recipe=document(folder, "recipe") | {field: value})
    with pytest.raises(CheckpointError, match=f"cannot load: the recipe's Recipe.{says}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["recipe", "stats", "features", "train"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999", "1" + "0" * 400, "[" * 9000 + "]" * 9000])
def test_numbers_that_no_file_may_hold(folder: Path, name: str, number: str, monkeypatch: Any) -> None:
    """Written by hand, and the stamp with it."""
    real, at = write_json, folder.parent / "by hand"

    def by_hand(path: Path, value: Any) -> None:
        real(path, value)
        if path.name == f"{name}.json":
            path.write_text(path.read_text().replace("{", f'{{"odd": {number},', 1))

    shutil.copytree(folder, at)
    monkeypatch.setattr("ulna.policies.hashed.write_json", by_hand)
    save_again(at)
    with pytest.raises(
        CheckpointError, match=rf"{name}.json cannot be read as JSON: (the number|it is nested)"
    ):
        LocalPolicy(at)


@pytest.mark.parametrize("rate", ["20", [20], -1, 0, True])
def test_a_rate_that_is_none_is_refused(folder: Path, rate: Any) -> None:
    save_again(folder, train=document(folder, "train") | {"fps": rate})
    with pytest.raises(CheckpointError, match=r"train.json: its fps is .*not a number of ticks a second"):
        LocalPolicy(folder)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_an_option_that_is_not_finite_is_refused(text: str) -> None:
    for field in ("ensemble_decay", "training.learning_rate", "training.weight_decay"):
        with pytest.raises(ValueError, match=f"{field} is '{text}': it must be finite"):
            override(small("act"), {field: text})


def test_requests_are_looked_at_after_the_cast(saved: Path) -> None:
    policy = LocalPolicy(saved)
    good = {k: np.zeros(f.shape, f.dtype) for k, f in FEATURES.items() if k != ACTION}
    assert np.isfinite(policy.infer(Request(good, 0).to_wire())["actions"]).all()
    for key, array in good.items():
        for value in (1e308, np.nan, -np.inf):
            bad = {**good, key: np.full(array.shape, value, np.float64)}
            with pytest.raises(BadRequest, match=f"{key} holds a value that is not finite in float32"):
                policy.infer(Request(bad, 0).to_wire())


def test_what_is_finite_but_absurd_never_becomes_an_action_that_is_not(saved: Path) -> None:
    policy = LocalPolicy(saved)
    for value in (1e20, 1e30, 3e38):
        absurd = {k: np.full(f.shape, value, f.dtype) for k, f in FEATURES.items() if k != ACTION}
        with contextlib.suppress(BadRequest):
            assert np.isfinite(policy.infer(Request(absurd, 0).to_wire())["actions"]).all()


def test_one_number_for_a_list_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"backbone\.widths is a list, such as \[64\], not 64"):
        override(small("flow"), {"backbone.widths": 64})
