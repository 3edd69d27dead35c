"""One network that makes the weights of small ones of many sizes (HyperPPO)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES
from contracts.recipes import small

from ulna.datasets.stats import vector_stats
from ulna.policies.backbones.backbone import Head, Sizes
from ulna.policies.backbones.hyperppo import HyperPPO, HyperPPONet
from ulna.policies.backbones.small_mlp import SmallMLP
from ulna.policies.checkpoint import read_train, save_checkpoint
from ulna.policies.contexts.context import Context
from ulna.policies.hooks.hidden import Hidden
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.record import TrainingRecord
from ulna.robot.cli import main

SIZES = Sizes(action_dim=2, horizon=3, token_width=4, pooled_width=4)
PART = HyperPPO((3, 5), depth=2, acts=(5,), at_once=4, embedding=8)


def test_rows_are_shared_among_sizes_and_each_is_a_small_network() -> None:
    torch.manual_seed(0)
    net = HyperPPONet(PART, SIZES).train()
    x, t, pooled = torch.randn(7, 3, 2), torch.rand(7), torch.randn(7, 4)
    context = Context(pooled[:, None], pooled)
    state = torch.get_rng_state()
    out = net(x, t, t, context)
    torch.set_rng_state(state)
    drawn = net.draw()
    assert [len(hidden) for hidden in drawn] == [1, 2, 1, 2]
    assert {w for hidden in drawn for w in hidden} == {3, 5}
    for hidden, of in zip(drawn, torch.arange(7).tensor_split(4), strict=True):
        alone = SmallMLP(hidden).build(SIZES, Head())
        alone.load_state_dict(net.weights(hidden))
        torch.testing.assert_close(out[of], alone(x[of], t[of], t[of], context.take(of)))
    out.square().mean().backward()
    assert all(p.grad is not None for p in net.parameters()), "whatever is drawn, all weights learn"
    acts = net.eval()(x, t, t, context)
    torch.testing.assert_close(acts, net(x, t, t, replace(context, hidden=(5,))))
    assert not torch.allclose(acts, net(x, t, t, replace(context, hidden=(5, 3))))


def test_a_layer_knows_of_the_layers_beside_it() -> None:
    torch.manual_seed(0)
    net = HyperPPONet(PART, SIZES)
    with torch.no_grad():
        narrow, wide = net.generate([(5, 3), (5, 5)])
    assert narrow[0][0].shape == wide[0][0].shape == (5, 4)
    assert not torch.allclose(narrow[0][0], wide[0][0]), (
        "its inputs and outputs are the same, what follows is not"
    )


def test_the_size_that_acts_is_chosen_and_can_be_written_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = small("hyperppo")
    rng = np.random.default_rng(0)
    stats = {k: vector_stats(rng.normal(size=(20, *f.shape))) for k, f in FEATURES.items()}
    save_checkpoint(tmp_path / "all", Policy(recipe, FEATURES, stats), TrainingRecord(control_hz=20.0))
    local = LocalPolicy(tmp_path / "all")
    seen = local.drawn(0).observation

    def act(*widths: int, of: LocalPolicy = local, also: tuple[str, ...] = ()) -> np.ndarray:
        hooks = [{"part": "Hidden", "widths": list(widths)}, *({"part": name} for name in also)]
        options = {"steering": hooks} if widths else {}
        return of.infer(Request(seen, 1, options=options).to_wire())["actions"]

    assert np.array_equal(act(8, 16), act()), "as the recipe has it"
    assert not np.allclose(act(8), act())
    assert np.array_equal(act(8, also=("Ask",)), act(8)), "whatever else is asked"
    with pytest.raises(
        ValueError, match=r"no network of hidden layers 4: they are 1 to 2, each 8 or 16 wide"
    ):
        act(4)
    with pytest.raises(ValueError, match=r"regression_mlp has ResidualMLP, of one size"):
        Hidden().require(small("regression_mlp"))

    assert main(["export", str(tmp_path / "all"), "--hidden", "8", "--out", str(tmp_path / "small")]) == 0
    written = LocalPolicy(tmp_path / "small")
    assert written.policy.recipe.backbone == SmallMLP((8,))
    np.testing.assert_allclose(act(of=written), act(8), atol=1e-5)
    assert read_train(tmp_path / "small").start == local.policy.content_hash
    assert main(["export", str(tmp_path / "small"), "--hidden", "8", "--out", str(tmp_path / "again")]) != 0
