"""Words and changes in one space (GRIF)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small

from ulna.datasets.features import ENVIRONMENT, STATE
from ulna.datasets.reading.windows import Windows
from ulna.datasets.stats import compute_stats
from ulna.policies.conditions.change import Change, alignment
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.train.data import tensors, window_spec


def test_alignment_is_a_choice_among_rows_of_other_kinds() -> None:
    z, one = torch.eye(3), torch.tensor(1.0)
    every = torch.ones(3, dtype=torch.bool)
    three = alignment(z, z, torch.tensor([0, 1, 2]), every, one)
    assert three.item() == pytest.approx(math.log(math.e + 2) - 1, abs=1e-6)
    # the first two say the same, so neither is a wrong answer to the other
    two = alignment(z, z, torch.tensor([0, 0, 2]), every, one)
    of_two, of_three = math.log(math.e + 1) - 1, math.log(math.e + 2) - 1
    assert two.item() == pytest.approx((2 * of_two + of_three) / 3, abs=1e-6)
    cold = alignment(z, z, torch.tensor([0, 1, 2]), every, torch.tensor(0.01))
    assert cold.item() == pytest.approx(0, abs=1e-6)
    some = alignment(z, z.flip(0), torch.tensor([0, 1, 2]), torch.tensor([False, True, False]), one)
    assert some.item() == pytest.approx(0, abs=1e-6), "nobody else counts"


def test_a_policy_is_told_by_words_or_by_a_start_and_a_goal(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d")
    recipe = override(small("grif"), {"conditions.Change.by_words": 1.0})
    windows = Windows(store, window_spec(recipe, FEATURES))
    policy = Policy(recipe, FEATURES, compute_stats(store, list(FEATURES)) | recipe.codec.fit(
        windows, FEATURES, 0))  # fmt: skip
    batch = tensors(windows.batch(np.array([3, 25])), "cpu")
    np.testing.assert_array_equal(batch[f"start.{STATE}"], windows.batch(np.array([0, 20]))[STATE][:, -1])
    told = {k: batch[k] for k in (*policy.observation_keys, *policy.condition_keys)}
    by_words = {k: v for k, v in told.items() if not k.startswith(("goal.", "start."))}
    by_goal = {**{k: v for k, v in told.items() if not k.startswith("start.")}, "task": ["", ""]}
    at_start = {f"start.{k}": batch[k][:, -1] for k in (STATE, ENVIRONMENT)}

    def pooled(told: dict[str, object], drop: bool = False) -> torch.Tensor:
        with torch.no_grad():
            return policy.encode(told, drop=drop).pooled

    policy.eval()
    assert torch.equal(pooled(told), pooled(by_words)), "where both are said, the words count"
    assert not torch.allclose(pooled(by_goal), pooled(by_words))
    assert torch.equal(pooled(by_goal), pooled({**by_goal, **at_start})), "the start else is now"
    assert not torch.allclose(pooled(by_goal), pooled({**told, "task": ["", ""]}))
    nothing = {**by_words, "task": ["", ""]}
    assert torch.equal(pooled(nothing), pooled(told, drop=True))

    # words and changes of one episode come together, and a row without words is nobody's answer
    policy.train()
    optimizer = torch.optim.Adam(policy.conditions.parameters(), 1e-2)
    first = policy.learned_losses(batch)["alignment"].item()
    for _ in range(30):
        optimizer.zero_grad()
        policy.learned_losses(batch)["alignment"].backward()
        optimizer.step()
    assert first > 0.3
    assert policy.learned_losses(batch)["alignment"].item() < 0.05
    silent = policy.learned_losses({**batch, "task": ["", "task 1"]})["alignment"]
    assert silent.item() == 0, "nobody to tell it from"
    assert recipe.conditions[0] == Change(hidden=32, by_words=1.0)
