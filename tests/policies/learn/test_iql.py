"""Implicit Q-learning on a chain whose values are known, on windows of real stores, and its run as a
whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, WITH_IMAGE, write_store
from contracts.recipes import small
from torch import Tensor

from ulna.datasets.features import ACTION, STATE, Feature
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.stats import vector_stats
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.learn.critic import Critic, CriticSpec, load_critic
from ulna.policies.learn.iql import IQL, IQLLearner, Potential, expectile_loss, learn_iql, td_target
from ulna.policies.learn.learner import move_targets
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipe import Recipe
from ulna.policies.recipes.all import RECIPES
from ulna.policies.train.data import open_data, tensors, window_spec
from ulna.policies.train.error import TrainingError

GAMMA = 0.9
CHAIN = {STATE: Feature((3,), "float32"), ACTION: Feature((1,), "float32")}
SMALL = CriticSpec(chunk=2, codec="Absolute", normalise_action="minmax", width=32, depth=1, discount=GAMMA)


def recipe(features=CHAIN, **training: object) -> Recipe:  # type: ignore[no-untyped-def]
    changes = {
        "backbone": "ResidualMLP",
        "backbone.width": 32,
        "backbone.depth": 1,
        "horizon": 2,
        "n_action_steps": 2,
        "n_obs_steps": 1,
        "codec": "Absolute",
        "sampling_steps": 2,
    }
    training = {"steps": 8, "batch_size": 8, "warmup": 2, "checkpoint_every": 3, **training}
    return override(RECIPES["flow"](features), changes | {f"training.{k}": v for k, v in training.items()})


def chain() -> dict[str, Tensor]:
    """Three states in a row. The action 1 goes on, and from the last one to success; -1 stays. Each action
    once in each state; a chunk of one action, padded."""
    states = torch.eye(3).repeat_interleave(2, 0)[:, None]
    right = torch.tensor([False, True] * 3)
    place = torch.arange(3).repeat_interleave(2)
    to = (place + right.long()).clamp(max=2)
    success = right & (place == 2)
    return {
        STATE: states,
        f"next.{STATE}": torch.eye(3)[to][:, None],
        ACTION: torch.where(right, 1.0, -1.0)[:, None, None],
        "mask": torch.ones(6, 1, dtype=torch.bool),
        "reward": success.float()[:, None],
        "alive": 1 - success.float(),
        "next.ticks": torch.where(success, 0, 1),
    }


def chain_learner(expectile: float, **fields: object) -> IQLLearner:
    torch.manual_seed(0)
    batch = chain()
    stats = {k: vector_stats(batch[k].reshape(6, -1).double().numpy()) for k in (STATE, ACTION)}
    r = override(recipe(), {"horizon": 1, "n_action_steps": 1})
    spec = replace(SMALL, chunk=1, expectile=expectile)
    iql = IQL(spec, learning_rate=1e-2, target_rate=0.2, **fields)  # type: ignore[arg-type]
    return IQLLearner(iql, Policy(r, CHAIN, stats), Critic(spec, CHAIN, stats))


PHI = np.array([0.3, -0.4, 0.5], np.float32)  # a potential that knows nothing


def potential() -> Potential:
    """Each row of the chain stands at an even tick, and where it leads to follows."""
    batch = chain()
    states = torch.stack([batch[STATE], batch[f"next.{STATE}"]], 1).flatten(1, 2)
    return Potential((states @ torch.from_numpy(PHI)).flatten(), 2 * torch.arange(6))


@pytest.mark.parametrize(("expectile", "shaped"), [(0.5, False), (0.9, False), (0.9, True)])
def test_values_on_a_chain(expectile: float, shaped: bool) -> None:
    """Of two actions that are as frequent, the expectile τ is τ·higher + (1 - τ)·lower; so V(last) = τ +
    (1 - τ)·γ·V(last), and one before V = τ·γ·V(after) + (1 - τ)·γ·V. At 0.5 it is the behaviour's value.
    With a potential all are less by it, and nothing else is changed."""
    learner = chain_learner(expectile, critic_first=250)
    learner.potential = potential() if shaped else None
    batch, values, after = {**chain(), "index": torch.arange(6)}, [], 1 / GAMMA
    for _ in range(3):
        after = expectile * GAMMA * after / (1 - (1 - expectile) * GAMMA)
        values.insert(0, after)
    for step in range(250):
        learner.update(batch, step / learner.steps)
        move_targets(learner, step)
    with torch.no_grad():
        found = learner.critic.v({STATE: torch.eye(3)[:, None]}).numpy() + (PHI if shaped else 0)
    np.testing.assert_allclose(found, values, atol=0.03)
    if expectile == 0.9:
        assert np.all(np.abs(found - [GAMMA**2, GAMMA, 1]) < np.abs(np.array([0.608, 0.744, 0.909]) - found))


def test_the_actor_prefers_what_the_critic_prefers() -> None:
    """Half of the data stay, half go on: a clone does either, the weighted one goes on."""
    chunks = {}
    for beta in (0.0, 30.0):
        learner = chain_learner(0.9, beta=beta, critic_first=80)
        t = override(learner.policy.recipe, {"training.steps": 150, "training.learning_rate": 1e-2})
        learner = IQLLearner(learner.iql, Policy(t, CHAIN, learner.policy.stats), learner.critic)
        batch = {k: torch.cat([v] * 4) for k, v in chain().items()}
        for step in range(230):
            torch.manual_seed(step)
            learner.update(batch, step / learner.steps)
            move_targets(learner, step)
        states = torch.eye(3).repeat(40, 1)[:, None]
        with torch.no_grad():
            chunks[beta] = learner.act({STATE: states}, np.random.default_rng(0))
    assert chunks[0.0].shape == (120, 1, 1)
    assert 0.3 < float((chunks[0.0] > 0).float().mean()) < 0.7
    assert float((chunks[30.0] > 0).float().mean()) > 0.8


@pytest.mark.parametrize("name", ["imc", "act", "openha", "pi05_ki"])
@pytest.mark.parametrize("without", ["weight", "mask", "valid"])
def test_a_row_that_does_not_count_teaches_nothing(name: str, without: str, tmp_path: Path) -> None:
    """By its weight, or because no action of it is real or valid: neither its chunk, nor what an objective
    learns beside the chunks, such as gates and words."""
    features = WITH_IMAGE if name in ("act", "pi05_ki") else FEATURES
    write_store(tmp_path / "d", features=features)
    r, data = replace(small(name, features), mask_padding=without == "mask"), open_data(tmp_path / "d")
    windows = data.windows(window_spec(r, data.features))
    torch.manual_seed(0)
    policy = Policy(r, data.features, windows.stats())
    batch = tensors(windows.train.batch(np.array([3, 12])), "cpu")
    if without == "weight":
        batch["weight"] = torch.tensor([2.0, 0.0])
    else:
        batch[without][1] = False
    losses = []
    for shift in (0.0, 1.0):
        torch.manual_seed(0)
        only = torch.tensor([0.0, shift])[:, None, None]
        other = {STATE: batch[STATE] + only, ACTION: torch.lerp(batch[ACTION], -2 * batch[ACTION], only)}
        losses.append(policy.loss({**batch, **other}).detach())
    torch.testing.assert_close(losses[1], losses[0])


def test_expectile_loss() -> None:
    u = torch.tensor([2.0, -1.0])
    assert float(expectile_loss(u, 0.5)) == pytest.approx(0.5 * (4 + 1) / 2)
    assert float(expectile_loss(u, 0.9)) == pytest.approx((0.9 * 4 + 0.1 * 1) / 2)


def test_targets_at_the_end_of_a_success_and_of_a_record_that_was_cut_off(tmp_path: Path) -> None:
    """Windows of an episode of 6 ticks that succeeded and of one of 5 that did not, chunks of 3."""
    store = write_store(tmp_path / "data", (6, 5))
    windows = Windows(store, WindowSpec(1, 3, keys=(STATE,), next_after=3))
    batch = {k: torch.from_numpy(v) for k, v in windows.batch(np.arange(11)).items()}
    g, v = GAMMA, 10.0
    targets = td_target(batch["reward"], batch["alive"], batch["next.ticks"], torch.full((11,), v), g)
    # success at tick 5: the value of the next window as long as it is reached, then the reward alone
    success = [g**3 * v, g**3 * v, g**3 * v, g**2, g, 1]
    # cut off after tick 4: the value of the last window, as far ahead as it is
    cut_off = [g**3 * v, g**3 * v, g**2 * v, g * v, v]
    np.testing.assert_allclose(targets, success + cut_off, rtol=1e-6)


def test_rewards_after_a_record_that_was_cut_off_do_not_count_twice() -> None:
    """The reward of the last window is in its value."""
    reward = torch.tensor([[0.0, 1.0, 0.0]])
    args = (reward, torch.tensor([1.0]), torch.tensor([1]), torch.tensor([2.0]), GAMMA)
    assert float(td_target(*args)) == pytest.approx(GAMMA * 2.0)


def test_an_update_is_deterministic() -> None:
    results = []
    for _ in range(2):
        learner, metrics = chain_learner(0.7), {}
        for step in range(5):
            torch.manual_seed(step)
            metrics = learner.update(chain(), step / learner.steps)
            move_targets(learner, step)
        results.append((metrics, {n: m.state_dict() for n, m in learner.modules.items()}))
    assert results[0][0] == results[1][0]
    for name, state in results[0][1].items():
        assert all(torch.equal(v, results[1][1][name][k]) for k, v in state.items()), name


def test_targets_follow_by_name_and_nothing_else_does() -> None:
    learner = chain_learner(0.7)
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in learner.modules.items()}
    torch.manual_seed(0)
    learner.update(chain(), 0.0)
    moved = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in learner.modules.items()}
    assert all(torch.equal(v, before["q_target"][k]) for k, v in moved["q_target"].items())
    move_targets(learner, 0)
    for k, v in learner.target.state_dict().items():
        torch.testing.assert_close(v, 0.8 * before["q_target"][k] + 0.2 * moved["q"][k])
    assert all(torch.equal(v, moved["v"][k]) for k, v in learner.critic.v_net.state_dict().items())


class Killed(Exception):
    pass


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    write_store(tmp_path / "data", (12, 9, 7))
    r, iql = recipe(FEATURES), IQL(replace(SMALL, codec="Relative"), critic_first=2)
    whole = learn_iql(iql, r, tmp_path / "data", tmp_path / "whole")

    def killed(progress: object) -> None:
        if progress.step == 7:  # type: ignore[attr-defined]
            raise Killed

    with pytest.raises(Killed):
        learn_iql(iql, r, tmp_path / "data", tmp_path / "broken", report=killed)
    with pytest.raises(TrainingError, match=r"^learner.beta was 3.0, not 1.0: "):
        learn_iql(replace(iql, beta=1.0), r, tmp_path / "data", tmp_path / "broken", resume=True)
    with pytest.raises(TrainingError, match="unfinished"):
        learn_iql(iql, r, tmp_path / "data", tmp_path / "broken")
    resumed = learn_iql(iql, r, tmp_path / "data", tmp_path / "broken", resume=True)
    assert resumed.history == whole.history
    assert len(whole.history["q_loss"]) == 10
    assert resumed.content_hashes == whole.content_hashes
    assert load_checkpoint(tmp_path / "whole").content_hash == whole.content_hashes["policy"]
    assert load_critic(tmp_path / "whole/critic").content_hash == whole.content_hashes["critic"]
    with pytest.raises(TrainingError, match="trained checkpoint"):
        learn_iql(iql, r, tmp_path / "data", tmp_path / "whole")


def test_a_critic_of_longer_chunks_than_the_actor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"judges 3 actions after 1 .* have 2 after 1"):
        learn_iql(IQL(replace(SMALL, chunk=3)), recipe(), write_store(tmp_path / "d").path, tmp_path / "out")
