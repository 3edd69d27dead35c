"""Experts picked by a router for each task (Sparse Diffusion Policy)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small

from ulna.datasets.features import ENVIRONMENT, STATE
from ulna.policies.backbones.experts import LEAST_GATE, TaskExperts
from ulna.policies.conditions.task import Task
from ulna.policies.parts import override
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.loop import train


def test_the_two_largest_gates_count_and_are_not_renormalised() -> None:
    torch.manual_seed(0)
    experts = TaskExperts(4, 6, 3, 2, 2)
    x, task = torch.randn(2, 5, 4), torch.tensor([0, 1])
    with torch.no_grad():
        experts.router_last_bias.copy_(torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.3, 0.6]]).log())
        experts.leave_bias.normal_()
        y, gates = experts(x, task)
        torch.testing.assert_close(gates[1, 0], torch.tensor([0.1, 0.3, 0.6]) + LEAST_GATE)

        def of(expert: int, row: int) -> torch.Tensor:
            hidden = torch.nn.functional.gelu(x[row] @ experts.enter[expert] + experts.enter_bias[expert])
            return hidden @ experts.leave[expert] + experts.leave_bias[expert]

        torch.testing.assert_close(y[0], (0.5 + LEAST_GATE) * of(0, 0) + (0.3 + LEAST_GATE) * of(2, 0))
        torch.testing.assert_close(y[1], (0.3 + LEAST_GATE) * of(1, 1) + (0.6 + LEAST_GATE) * of(2, 1))
        at_first = TaskExperts(4, 6, 3, 2, 2)(x, task)[1]
    assert torch.equal(at_first, torch.full_like(at_first, 1 / 3) + LEAST_GATE)


def test_the_loss_is_what_the_expert_leaves_unknown_of_the_task() -> None:
    """H(task | expert) = log n - I(task; expert): log 2 where experts say nothing, 0 where all."""
    task = torch.tensor([0, 0, 1, 1])
    alike = torch.full((4, 3, 2), 0.5)
    apart = torch.eye(2)[task][:, None].expand(4, 3, 2)
    for gates, nats in ((alike, math.log(2)), (apart, 0.0)):
        experts = TaskExperts(4, 4, 2, 1, 5).eval()  # of five routers three have no task
        assert experts.information(gates, task).item() == pytest.approx(nats, abs=1e-6)
    # small steps along it part the experts
    logits = (0.01 * torch.randn(4, 1, 2, generator=torch.Generator().manual_seed(0))).requires_grad_()
    experts = TaskExperts(4, 4, 2, 1, 2)
    losses = []
    for _ in range(300):
        loss = experts.information(logits.softmax(-1), task)
        losses.append(loss.item())
        (grad,) = torch.autograd.grad(loss, logits)
        logits = (logits - 20.0 * grad).detach().requires_grad_()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < 0.35


def test_a_new_task_is_learned_by_its_router_and_no_old_one_is_touched(tmp_path: Path) -> None:
    write_store(tmp_path / "old", meta={"task": "one"})
    write_store(tmp_path / "new", meta={"task": "two"})
    train(small("sparse_dp"), tmp_path / "old", tmp_path / "a", device="cpu")
    continued = {
        "training.start": str(tmp_path / "a"),
        "training.freeze": "*",
        "training.unfreeze": ["net.*router_*", "conditions.*"],
        "training.learning_rate": 1e-2,
    }
    train(override(small("sparse_dp"), continued), tmp_path / "new", tmp_path / "b", device="cpu")
    before, after = LocalPolicy(tmp_path / "a"), LocalPolicy(tmp_path / "b")
    seen = {
        STATE: np.array([0.1, 0.5, 0.2], np.float32),
        ENVIRONMENT: np.array([0.3, 0.4], np.float32),
    }

    def actions(of: LocalPolicy, task: str) -> np.ndarray:
        return of.infer(Request(seen, 1, task=task).to_wire())["actions"]

    np.testing.assert_array_equal(actions(after, "one"), actions(before, "One "))
    assert np.abs(actions(after, "two") - actions(after, "one")).max() > 1e-4
    np.testing.assert_array_equal(actions(after, "three"), actions(after, ""), "unknown is not told")
    assert Task().keys(FEATURES) == ("task",)
    full = Task(most=1).build(FEATURES, torch.nn.Identity(), 4)
    with pytest.raises(ValueError, match=r"more tasks than the 1 that .*--conditions\.Task\.most 2"):
        full.learn(["one", "two"])  # type: ignore[attr-defined, operator]
