"""Rounded weights, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, WITH_IMAGE, write_store
from contracts.recipes import SMALL, small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ulna.policies.policy import Policy
from ulna.policies.quantised import GROUP, Int4, Int8, quantise
from ulna.policies.request import TASK, Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.quantised import quantised
from ulna.policies.train.data import open_data, window_spec
from ulna.policies.train.loop import train
from ulna.robot.cli import main

SLOW = (HealthCheck.too_slow,)  # a busy machine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("q")
    data = open_data(write_store(folder / "d", features=WITH_IMAGE).path)
    return train(small("flow", WITH_IMAGE), data, folder / "p", device="cpu").checkpoint


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(st.integers(1, 5), st.integers(1, 150), st.integers(1, 3), st.integers(0, 1 << 30))
def test_a_weight_comes_back_to_within_half_a_step(rows: int, inputs: int, kernel: int, seed: int) -> None:
    weight = torch.randn(rows, inputs, kernel, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    for form, most, group in ((Int8(weight), 127, inputs * kernel), (Int4(weight), 7, GROUP)):
        back = form(*form.right_inverse(weight))
        assert back.shape == weight.shape
        flat, off = weight.flatten(1), (back - weight).abs().flatten(1)
        for first in range(0, flat.shape[1], group):
            step = flat[:, first : first + group].abs().amax(1, keepdim=True) / most
            assert bool((off[:, first : first + group] <= step / 2 + 1e-6).all())
        assert bool((back[0] == 0).all())


def test_matrices_take_a_quarter_or_an_eighth() -> None:
    for kind, most in (("int8", 0.27), ("int4", 0.15)):
        net = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 1, bias=False)).requires_grad_(False)
        x, before = torch.randn(3, 256), [p.clone() for p in net.parameters()]
        y = net(x)
        memory = quantise(net, kind)  # type: ignore[arg-type]
        assert memory.before == sum(p.nbytes for p in before)
        assert memory.after < most * memory.before
        assert memory.matrices == 2
        assert 0 < (net(x) - y).abs().max() < (0.1 if kind == "int8" else 1.0)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_recipe_can_be_rounded(name: str, tmp_path: Path) -> None:
    recipe = small(name)
    data = open_data(write_store(tmp_path / "d").path)
    windows = data.windows(window_spec(recipe, data.features))
    stats = windows.stats() | recipe.codec.fit(windows.train, data.features, recipe.n_past_actions)
    policy = Policy(recipe, FEATURES, stats).eval().requires_grad_(False)
    memory = quantise(policy, "int8")
    assert memory.matrices
    assert memory.after < memory.before
    n = recipe.n_obs_steps
    observation: dict[str, Any] = {
        k: torch.zeros(1, n, *f.shape) for k, f in FEATURES.items() if k != "action"
    }
    for key in policy.condition_keys:
        if key == TASK:
            observation[key] = ["lift it"]
        elif key in policy.conditions_needed:
            told = policy.conditions_needed[key]
            observation[key] = torch.zeros(1, *told.shape, dtype=getattr(torch, told.dtype))
    past = torch.zeros(1, recipe.n_past_actions, 3) if recipe.needs_past else None
    assert policy.sample(Request(observation, 0, past)).chunk.isfinite().all()


def test_a_served_policy_says_what_rounding_costs(checkpoint: Path) -> None:
    local = LocalPolicy(checkpoint)
    plain = local.infer(local.drawn(3).to_wire())["actions"]
    np.testing.assert_array_equal(local.infer(local.drawn(3).to_wire())["actions"], plain)
    loss = quantised(local, "int8")
    rounded = local.infer(local.drawn(3).to_wire())["actions"]
    assert np.abs(rounded - plain).max() > 0
    assert 0 < loss.mean < loss.largest < 0.2
    assert loss.memory.after < 0.5 * loss.memory.before
    assert "with int8 weights its actions differ by" in loss.sentence
    worse = quantised(LocalPolicy(checkpoint), "int4")
    assert worse.mean > loss.mean
    assert worse.memory.after < loss.memory.after
    # what was validated is the policy with its own weights
    (checkpoint / "validation").mkdir(exist_ok=True)
    assert local.metadata.quantize == "int8"
    assert local.metadata.validations == ()
    assert Metadata.from_json(local.metadata.to_json()).quantize == "int8"
    assert LocalPolicy(checkpoint).metadata.quantize == ""


def test_what_cannot_be_rounded_is_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["serve", str(checkpoint), "--port", "0"]
    processor = "--quantize is for the processor: leave --device cuda out"
    for more, sentence in (
        (["--quantize", "int2"], "int2"),
        (["--quantize", "int8", "--device", "cuda"], processor),
    ):
        assert main([*line, *more]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["serve", "x.onnx", "--quantize", "int8"]) == 1
    assert "leave --steer, --sampling-steps, --quantize, --prompt and --device out" in capsys.readouterr().err
