"""Plans of states, the return that is asked for, and asking for several things at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, Feature, Features
from ulna.datasets.reading.extras import discounted
from ulna.datasets.reading.windows import Windows
from ulna.datasets.stats import compute_stats, vector_stats
from ulna.policies.conditions.label import Label
from ulna.policies.conditions.returns import Return
from ulna.policies.hooks.ask import Ask, Compose
from ulna.policies.hooks.inpaint import Inpaint
from ulna.policies.hooks.low_temperature import LowTemperature
from ulna.policies.inverse_dynamics import InverseDynamics
from ulna.policies.objectives.objective import Path as Levels
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.pred import Pred
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.solvers.ddim import DDIM
from ulna.policies.train.data import tensors, window_spec
from ulna.policies.train.loop import train

KINDS: Features = {**FEATURES, "observation.label": Feature((1,), "int64")}


def told(*conditions: object, **changes: object) -> Policy:
    """A small flow policy that is told what the conditions say."""
    torch.manual_seed(0)
    base = override(small("flow"), {"backbone": "ResidualMLP", "backbone.width": 32, "sampling_steps": 1})
    rng = np.random.default_rng(0)
    stats = {k: vector_stats(rng.normal(size=(20, *f.shape))) for k, f in KINDS.items()}
    return Policy(override(base, {"conditions": conditions, **changes}), KINDS, stats).eval()


def seen(rows: int = 2, **more: Any) -> dict[str, Any]:
    values = {STATE: torch.full((rows, 2, 3), 0.3), ENVIRONMENT: torch.full((rows, 2, 2), 0.1)}
    return {**values, "observation.label": torch.zeros(rows, 2, 1, dtype=torch.long), **more}


def test_actions_are_read_out_of_the_plan_by_what_leads_from_state_to_state(tmp_path: Path) -> None:
    """An action is the state it leads to, and the inverse model says so: the plan is what is done."""
    store = write_store(tmp_path / "d")
    recipe = override(small("decision_diffuser"), {"codec.depth": 0, "codec.of": (ENVIRONMENT, STATE)})
    windows = Windows(store, window_spec(recipe, FEATURES))
    stats = compute_stats(store, list(FEATURES))
    stats |= recipe.codec.fit(windows, FEATURES, 0)
    policy = Policy(recipe, FEATURES, stats)
    batch = tensors(windows.batch(np.array([0, 3])), "cpu")
    batch[ACTION] = batch[f"future.{STATE}"]
    codec: Any = policy.codec
    plan = codec.encode(batch[ACTION], batch)
    assert plan.shape == (2, recipe.horizon, 5)
    assert plan.abs().max() <= 1 + 1e-5
    with torch.no_grad():  # of change as the network sees it to action as it gives it
        codec.inverse[0].weight.zero_()
        codec.inverse[0].weight[:, 7:] = torch.diag(codec.affine.scale / codec.first.scale[2:])
        codec.inverse[0].bias.copy_(
            codec.affine.offset - codec.affine.scale * codec.first.offset[2:] / codec.first.scale[2:]
        )
    torch.testing.assert_close(codec.decode(plan, batch), batch[ACTION], atol=1e-5, rtol=1e-5)
    assert codec.losses(batch[ACTION], batch)["inverse dynamics"] < 1e-9
    assert codec.losses(batch[ACTION] + 0.1, batch)["inverse dynamics"] > 1e-3
    with pytest.raises(ValueError, match="a hook that holds it to actions does not fit InverseDynamics"):
        codec.encode_past(batch[ACTION][:, :1], {STATE: batch[STATE]})
    with pytest.raises(ValueError, match="set n_past_actions to 0"):
        InverseDynamics().fit(windows, FEATURES, 1)


def test_a_return_is_what_comes_discounted_and_may_be_left_out_of_a_request(tmp_path: Path) -> None:
    assert discounted(np.array([0, 2, 0, 1], np.float32), 0.5).tolist() == [1.125, 2.25, 0.5, 1.0]
    store = write_store(tmp_path / "d")  # the first of two episodes succeeded
    recipe = small("decision_diffuser")
    windows = Windows(store, window_spec(recipe, FEATURES))
    returns = windows.batch(np.array([0, 19, 20]))["return"]
    np.testing.assert_allclose(returns, [[0.99**19], [1.0], [0.0]], rtol=1e-6)
    train(recipe, tmp_path / "d", tmp_path / "p", device="cpu")
    local = LocalPolicy(tmp_path / "p")
    assert local.metadata.optional == {"return": Feature((1,), "float32")}
    known = {STATE: np.zeros(3, np.float32), ENVIRONMENT: np.zeros(2, np.float32)}

    def reply(ask: float | None) -> dict[str, Any]:
        asked = {} if ask is None else {"return": np.array([ask], np.float32)}
        return local.infer(Request(known | asked, 1).to_wire())

    actions = {ask: reply(ask) for ask in (None, 0.9, 0.1)}
    np.testing.assert_array_equal(actions[None]["actions"], actions[0.9]["actions"])
    assert np.abs(actions[0.1]["actions"] - actions[0.9]["actions"]).max() > 1e-6
    with pytest.raises(ValueError, match="does not fit InverseDynamics"):
        local.decide(Request({k: torch.zeros(1, 1, *v.shape) for k, v in known.items()}, 1,
            torch.zeros(1, 0, 3)), (Inpaint(),), 2)  # fmt: skip


def test_a_hook_asks_for_something_else_and_for_several_things_at_once() -> None:
    policy = told(Label(kinds=3), Return())

    def chunk(*hooks: Any, **more: Any) -> torch.Tensor:
        return policy.sample(Request(seen(**more), 5), hooks).chunk

    label = torch.full((2, 2, 1), 2)
    asked = chunk(Ask(set=("observation.label=2", "return=0.4")))
    told_so = chunk(**{"observation.label": label, "return": torch.full((2, 1), 0.4)})
    assert torch.equal(asked, told_so)
    left_out = chunk(Ask(leave_out=("return",)), **{"return": torch.full((2, 1), 0.4)})
    assert torch.equal(left_out, chunk())

    # of each the other's default, as a request says it; what each adds to nothing told is added up
    one, two = chunk(Ask(set=("observation.label=1",))), chunk(Ask(set=("observation.label=2",)))
    free = chunk(Compose(asks=("observation.label=1",), weight=0.0))
    both = policy.sample(Request(seen(), 5), (Compose(("observation.label=1", "observation.label=2"), 1.5),))
    torch.testing.assert_close(both.chunk, free + 1.5 * (one - free) + 1.5 * (two - free), atol=1e-5, rtol=0)
    assert both.nfe.tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"KEY=NUMBER, such as return=0\.5, not 'return'"):
        Ask(set=("return",))


def test_low_temperature_draws_less_of_the_noise() -> None:
    policy = told(Return())
    cold, warm = (
        torch.stack(
            [policy.sample(Request(seen(), seed), (LowTemperature(s),), 3).chunk for seed in range(8)]
        )
        for s in (0.0, 1.0)
    )
    assert cold.std(0).max() == 0
    assert warm.std(0).min() > 0
    a, field = torch.zeros(1, 4, 2), _Field()
    ordinary, half = (DDIM(1.0, noise=n).step(field, a, 0, None) for n in (1.0, 0.5))  # type: ignore[arg-type]
    assert half.std == 0.5 * ordinary.std > 0  # type: ignore[operator]
    assert torch.equal(half.mean, ordinary.mean)


class _Field:
    path = Levels.of([0.0, 0.6, 1.0], [1.0, 0.8, 0.0])

    def __call__(self, a: torch.Tensor, i: int) -> Pred:
        return Pred.from_x(a, self.path.alpha[i], self.path.sigma[i], torch.ones_like(a))
