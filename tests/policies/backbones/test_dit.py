"""GR00T's transformer: whose weights learn, and that it is LeRobot's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from contracts.recipes import small
from contracts.vla import FEATURES, noise_for, observation, policy

from ulna.datasets.features import ACTION
from ulna.policies.policy import Policy
from ulna.policies.recipe import Training
from ulna.policies.request import Request
from ulna.policies.train.optimiser import freeze

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))


def batch(of: Policy) -> dict[str, object]:
    h = of.recipe.horizon
    given = {ACTION: torch.rand(2, h, 3), "mask": torch.ones(2, h, dtype=torch.bool)}
    return {**observation(2), "task": ["lift", "push"], **given}


@pytest.mark.parametrize(("patterns", "learns"), [(("encoder.*",), False), (("encoder.language.*",), True)])
def test_a_frozen_model_has_no_gradients(patterns: tuple[str, ...], learns: bool) -> None:
    of = policy("gr00t_small").train()
    freeze(of, Training(freeze=patterns))
    of.loss(batch(of)).backward()
    assert all(p.grad is None for p in of.encoder.language.parameters())  # type: ignore[union-attr]
    vision = list(of.encoder.vision.parameters())  # type: ignore[union-attr]
    assert all((p.grad is not None) == learns for p in vision)
    for half in (of.net, of.context_net):
        assert all(p.grad is not None for p in half.parameters())


def test_the_recipe_freezes_the_language_model() -> None:
    assert small("gr00t", FEATURES).training.freeze == ("encoder.language.*",)


def test_each_embodiment_has_weights_of_its_own() -> None:
    of, other = policy("gr00t_small"), policy("gr00t_small", changes={"backbone.embodiment": 1})
    other.load_state_dict(of.state_dict())
    request, noise = Request(observation(), 0, task=["lift"]), noise_for(of)
    first, second = (p.sample(request, noise=lambda: noise).chunk for p in (of, other))
    assert not torch.allclose(first, second)
    of.loss(batch(of)).backward()
    own = {k: p.grad for k, p in of.net.named_parameters() if k.endswith((".W", ".b"))}
    assert len(own) == 14
    for name, grad in own.items():
        assert grad is not None
        assert grad[0].any(), name
        assert not grad[1].any(), name


def test_a_state_may_be_left_untold_in_training_only() -> None:
    of = policy("gr00t_small", changes={"backbone.state_dropout": 1.0})
    context = of.context(Request(observation(), 0, task=["lift"]))
    x, t = noise_for(of), torch.full((1,), 0.5)
    told = of.net(x, t, t, context)
    assert not torch.equal(told, of.train().net(x, t, t, context))


def test_it_is_lerobots() -> None:
    pytest.importorskip("transformers", reason="LeRobot's own needs the extra vla")
    from gr00t import differences, pair, their_decision

    both = pair()
    assert their_decision(both)[1][0].std() > 0.1
    off = differences(both)
    assert max(off.values()) < 1e-4, off
