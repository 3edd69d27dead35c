"""Masks over one network's weights, one for each task (HarmoDT)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.data import write_store
from contracts.recipes import small

from ulna.policies.backbones.backbone import Head, Sizes
from ulna.policies.backbones.energy import Energy
from ulna.policies.backbones.harmodt import HarmoDT, densities, exchanged
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.contexts.context import Context
from ulna.policies.parts import override
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train


def test_small_matrices_are_denser() -> None:
    assert densities([(10, 10), (10, 30)], 0.5) == pytest.approx(
        [2 / 3, 4 / 9]
    )  # 20 and 40 of 60 parts of 200
    assert densities([(2, 2), (20, 20)], 0.8) == pytest.approx([1.0, (0.8 * 404 - 4) / 400])
    assert densities([(3, 3), (4, 4)], 1.0) == [1.0, 1.0]


def test_what_a_task_needs_least_leaves_and_what_tasks_agree_about_comes() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()
    g = torch.tensor([[3.0, 1.0, 2.0, 1.0, -1.0], [1.0, -0.9, 2.0, 4.0, 2.0]])
    # the mean is 2, 0.05, 2, 2.5, 0.5; the mean times g of the first 6, 0.05, 4, 2.5, -0.5: entry 1, about
    # which they disagree, leaves, and entry 3 comes. Of the second -0.045 for entry 1; 2 and 1 for 0 and 4
    assert exchanged(mask, g, 0.2, 10.0).int().tolist() == [[1, 0, 1, 1, 0], [1, 0, 1, 1, 0]]
    assert exchanged(mask, g, 0.0, 10.0).equal(mask)
    assert exchanged(mask, g, 1.0, 10.0).sum(1).tolist() == [3, 3], "as many come as leave"
    # without the others importance alone decides
    apart = torch.tensor([[0.1, -3.0], [0.2, 3.1]])
    only = torch.ones(2, 2).bool()
    assert exchanged(only, apart, 0.5, 10.0).equal(only), "nobody can come where all are there"


def test_each_row_is_computed_with_the_weights_of_its_task_and_teaches_those() -> None:
    torch.manual_seed(0)
    part = HarmoDT(ResidualMLP(8, 1, 4), 0.5, share=0.2, every=2, times=1, most=2)
    net: Any = part.build(Sizes(2, 3, 4, 4), Head()).train()
    x, t, pooled = torch.randn(5, 3, 2), torch.zeros(5), torch.randn(5, 4)
    task = torch.tensor([2, 1, 0, 2, 1])
    context = Context(pooled[:, None], pooled, task=task)
    out = net(x, t, t, context)
    for i in range(5):
        alone: Any = part.build(Sizes(2, 3, 4, 4), Head())
        alone.load_state_dict(net.state_dict())
        with torch.no_grad():
            for name in alone.masked if task[i] else []:
                alone.inner.get_parameter(name).mul_(net.mask(name)[task[i] - 1])
            row = alone.inner(x[i : i + 1], t[:1], t[:1], context.take(torch.tensor([i])))
        torch.testing.assert_close(out[i : i + 1], row)
    out[1].sum().backward()
    first = net.inner.enter.weight.grad
    assert not first[~net.mask("enter.weight")[0]].any()
    assert first.any()
    before = {n: net.mask(n).clone() for n in net.masked}
    net(x, t, t, context).square().sum().backward()  # the second call
    moved = {n: int((net.mask(n) != before[n]).sum()) for n in net.masked}
    assert sum(moved.values()) > 0
    assert all(net.mask(n).flatten(1).sum(1).equal(before[n].flatten(1).sum(1)) for n in net.masked)
    after = {n: net.mask(n).clone() for n in net.masked}
    for _ in range(4):
        net(x, t, t, context).square().sum().backward()
    assert all(net.mask(n).equal(after[n]) for n in net.masked), "after `times` they stay"
    with pytest.raises(ValueError, match=r"3 tasks and masks for 2: train with --backbone\.most 6"):
        net(x, t, t, Context(pooled[:, None], pooled, task=task + 1))
    with pytest.raises(ValueError, match="nothing besides"):
        HarmoDT(Energy(ResidualMLP())).build(Sizes(2, 3, 4, 4), Head("energy"))


def test_what_would_compute_with_other_weights_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "d", meta={"task": "one"})
    for change in ({"training.recompute": True}, {"training.lora": ["net.*"]}):
        with pytest.raises(TrainingError, match="does not go with HarmoDT"):
            train(override(small("harmodt"), change), tmp_path / "d", tmp_path / "out", device="cpu")
