"""A plan from the end to now (LBP)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import write_store

from ulna.datasets.features import ACTION, STATE, Feature, Features
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.policies.conditions.backward_plan import BackwardPlan

FEATURES: Features = {STATE: Feature((2,), "float32"), ACTION: Feature((2,), "float32")}


def test_subgoals_halve_the_way_that_is_left(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", lengths=(20,))
    windows = Windows(store, WindowSpec(1, 1, keys=(STATE,), subgoals=4))
    batch, every = windows.batch(np.array([2, 18, 19])), windows.values(STATE)
    ticks = [[19, 10, 6, 4], [19, 18, 18, 18], [19, 19, 19, 19]]
    np.testing.assert_array_equal(batch[f"subgoal.{STATE}"], every[np.array(ticks)])


def test_the_chain_goes_on_from_the_truth_or_from_itself() -> None:
    part = BackwardPlan(subgoals=3, told=1, hidden=4, width=8, noise=0.0)
    net: Any = part.build(FEATURES, torch.nn.Identity(), 5)

    class Half(torch.nn.Module):
        """Half way from a state ahead to now; the first is 8 ahead."""

        def __init__(self, first: bool) -> None:
            super().__init__()
            self.first, self.off = first, torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now = x[:, :2]
            return (now + 8 if self.first else (now + x[:, 2:4]) / 2) + self.off

    net.first, net.next = Half(True), Half(False)
    now, words = torch.zeros(2, 2), torch.zeros(2, 8)
    torch.testing.assert_close(net.plan(now, words)[0, :, 0], torch.tensor([8.0, 4.0, 2.0]))
    truth = torch.tensor([6.0, 5.0, 1.0])[None, :, None].expand(2, 3, 2)
    both = net.plan(now, words, truth, torch.tensor([True, False]))
    torch.testing.assert_close(both[:, :, 0], torch.tensor([[8.0, 4.0, 2.0], [8.0, 3.0, 2.5]]))
    (own,) = torch.autograd.grad(both[0, 2, 0], net.first.off, retain_graph=True)
    assert own == 0.25, "gradients go back along the chain"
    (forced,) = torch.autograd.grad(both[1, 2, 0], net.first.off, allow_unused=True)
    assert forced is None or forced == 0

    told = {STATE: torch.zeros(2, 1, 2), "task": ["go", ""]}
    tokens, mask = net.train()(told)
    assert tokens.shape == (2, 1, 5)
    assert mask[:, 0].tolist() == [True, False]
    tokens.sum().backward()
    assert net.first.off.grad is None, "what the policy learns does not move the plan"
    loss = net.losses({**told, f"subgoal.{STATE}": truth})["plan"]
    assert loss.item() in (pytest.approx((4 + 1 + 1) / 3), pytest.approx((4 + 4 + 2.25) / 3))
