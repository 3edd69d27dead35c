"""Implicit Q-learning (Kostrikov, Nair, Levine 2021, arXiv 2110.06169) over chunks of actions, with any
recipe as the actor.

    V ← expectile of Q̄(o, A)          over the data's actions, so that none outside of them is ever asked for
    Q ← Σ γ^i r_i + γ^k V(o_{t+k})     after the k = chunk ticks that were played open loop (as QC, Li et al.
                                       2025, arXiv 2507.07969); k is less where the record ends
    π ← exp(β (Q̄ - V)) · its own loss  advantage-weighted behaviour cloning: a weight of the row

Faithful: the three losses, clipped double Q with a Polyak target, the weights' bound of 100. Not: chunks in
the place of single actions; the actor is a recipe, not a Gaussian; weights are divided by the batch's mean,
so that the recipe's gradient clipping means the same; networks and numbers of updates are reduced. An episode
that ended otherwise than by success counts as cut off (see `WindowSpec.next_after`).

With a potential p, of a progress critic, r is added γ^k p(o_{t+k}) - p(o_t), 0 the potential after success
(Ng, Harada, Russell 1999): Q and V are then less by p(o_t), and what is best stays best, however wrong p is,
as long as it says the same of the same tick. Advantages of the same data are the same in the limit; what
changes is how soon a reward at the end is felt at the beginning. It is added when a batch is learned from, so
that the data stay as they are.

Legend: B batch, H actions of a chunk, M members."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...datasets.features import ACTION
from ...datasets.reading.loader import WindowSource
from ..adapters.weights import begin
from ..caps import require_caps
from ..checkpoint import save_checkpoint
from ..conditions.task import know_tasks
from ..encoders.published import pretrained
from ..parts import recipe_to_json
from ..policy import Policy
from ..progress import load_progress, progress_of
from ..recipe import Recipe
from ..request import Request
from ..train.action_words import know_actions
from ..train.data import TrainingData, open_data, require_readable, window_spec
from ..train.error import TrainingError
from ..train.optimiser import adamw, averaged, freeze, learning_rate, set_learning_rate, warmed_up
from ..train.record import TrainingRecord
from .critic import Critic, CriticSpec, save_critic
from .learner import Target, polyak
from .loop import LearnResult, Progress, learn


@dataclass(frozen=True)
class IQL:
    """What is learned, beside the recipe of the actor, whose `training` says how many steps it takes."""

    critic: CriticSpec = CriticSpec()
    """Its networks, chunk, discount and expectile."""
    beta: float = 3.0
    """Inverse temperature of the advantages, in units of 1/reward; 0: the actor clones the behaviour."""
    most: float = 100.0
    """Bound of the weights exp(β A)."""
    learning_rate: float = 3e-4
    """Of Q and V."""
    target_rate: float = 0.005
    """Of the Polyak average of Q."""
    potential: str = ""
    """Folder of a progress critic, whose p shapes the reward; empty: none."""
    critic_first: int = 0
    """Updates of the critic alone before the actor begins; 0 in the paper, where a million follow."""


class IQLLearner:
    """A `Learner`. Batches are windows of the actor's recipe with `next_after` equal to the critic's
    chunk. potential: of each window by its `index`, and of where it leads."""

    def __init__(self, iql: IQL, policy: Policy, critic: Critic, potential: Potential | None = None) -> None:
        require_judges(critic.spec, policy.recipe)
        self.iql, self.policy, self.critic, self.potential = iql, policy, critic, potential
        self.target = copy.deepcopy(critic.q_nets).requires_grad_(False)
        self.average = copy.deepcopy(policy).requires_grad_(False)
        t = policy.recipe.training
        freeze(policy, t)
        self._optimizers = {
            "q": torch.optim.Adam(critic.q_nets.parameters(), iql.learning_rate),
            "v": torch.optim.Adam(critic.v_net.parameters(), iql.learning_rate),
            "policy": adamw(policy, t),
        }
        self.steps = iql.critic_first + t.steps

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {
            "q": self.critic.q_nets,
            "v": self.critic.v_net,
            "q_target": self.target,
            "policy": self.policy,
            "policy_average": self.average,
        }

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        return self._optimizers

    @property
    def targets(self) -> Mapping[str, Target]:
        t = self.policy.recipe.training
        follow = warmed_up(t.ema_power, t.ema_max)
        first = self.iql.critic_first

        def after_first(averages: Any, weights: Any, n: Any) -> None:
            follow(averages, weights, max(n - first, 0))

        return {
            "q_target": Target("q", polyak(self.iql.target_rate)),
            "policy_average": Target("policy", after_first),
        }

    def act(self, observation: Mapping[str, Tensor], rng: np.random.Generator) -> Tensor:
        self.average.eval()
        sampled = self.average.sample(Request(observation, seed=int(rng.integers(1 << 48))))
        r = self.policy.recipe
        return sampled.chunk[:, r.n_past_actions : r.n_past_actions + r.n_action_steps]

    def update(self, batch: Mapping[str, Any], progress: float) -> dict[str, float]:
        step = round(progress * self.steps)
        critic, spec = self.critic, self.critic.spec
        past = self.policy.recipe.n_past_actions
        action = batch[ACTION][:, past : past + spec.chunk]
        seen, after = critic.encode(batch), critic.encode({k: batch[f"next.{k}"] for k in critic.keys})
        x = torch.cat([seen, critic.encode_action(action, batch).flatten(1)], dim=-1)
        with torch.no_grad():
            believed = torch.stack([net(x) for net in self.target]).amin(0)
            goal = td_target(
                batch["reward"], batch["alive"], batch["next.ticks"], critic.v_of(after), spec.discount
            )
            if self.potential is not None:
                goal = goal + self.potential.shaping(batch, spec.discount)
        value = critic.v_of(seen)
        v_loss = expectile_loss(believed - value, spec.expectile)
        q_loss = torch.stack([(net(x) - goal).square().mean() for net in critic.q_nets]).sum()
        for name, loss in (("v", v_loss), ("q", q_loss)):
            self._optimizers[name].zero_grad()
            loss.backward()
            self._optimizers[name].step()
        advantage = believed - value.detach()
        weight = torch.exp(self.iql.beta * advantage).clamp(max=self.iql.most)
        metrics = {
            "q_loss": q_loss,
            "v_loss": v_loss,
            "value": value.mean(),
            "advantage": advantage.abs().mean(),
        }
        actor = self._actor(batch, weight, step - self.iql.critic_first)
        return {k: float(m.detach()) for k, m in metrics.items()} | actor

    def _actor(self, batch: Mapping[str, Any], weight: Tensor, step: int) -> dict[str, float]:
        """One step of weighted behaviour cloning. effective: share of the batch that the weights leave."""
        effective = float(weight.sum() ** 2 / (weight.square().sum() * len(weight)))
        if step < 0:
            return {"policy_loss": 0.0, "effective": effective}
        t, optimizer = self.policy.recipe.training, self._optimizers["policy"]
        self.policy.train()
        loss = self.policy.loss({**batch, "weight": weight / weight.mean()}, step / t.steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), t.grad_clip)
        set_learning_rate(optimizer, learning_rate(t, step))
        optimizer.step()
        return {"policy_loss": float(loss.detach()), "effective": effective}

    def save(self, out: Path, record: TrainingRecord) -> dict[str, str]:
        """The policy into `out`, the critic, with the target's Q, into its folder `critic`."""
        critic = copy.deepcopy(self.critic)
        critic.q_nets.load_state_dict(self.target.state_dict())
        policy = copy.deepcopy(self.policy)
        policy.load_state_dict(averaged(self.average, policy, policy.recipe.training))
        hashes = {"critic": save_critic(out / "critic", critic, record)}
        of_policy = replace(record, pretrained=pretrained(policy))
        return hashes | {"policy": save_checkpoint(out, policy, of_policy)}


@dataclass(frozen=True)
class Potential:
    """A number for every control tick of the episodes that are learned from, end to end."""

    of_tick: Tensor
    """`(N,)`"""
    tick: Tensor
    """`(len,)` int64: which tick each window stands at, by its `index`."""

    def shaping(self, batch: Mapping[str, Any], discount: float) -> Tensor:
        """`(B,)`: γ^k p' - p, what is added to the reward of a chunk that led k ticks ahead."""
        tick, ahead = self.tick[batch["index"]], batch["next.ticks"]
        after = batch["alive"] * self.of_tick[tick + ahead]
        return discount ** ahead.to(after.dtype) * after - self.of_tick[tick]


def potential_of(folder: str, data: TrainingData, windows: WindowSource, device: str) -> Potential:
    """By the progress critic in `folder`. windows: of `data`."""
    critic = load_progress(folder, device)
    parts: list[Any] = getattr(windows, "parts", [windows])
    of_tick, tick, before = [], [], 0
    for store, part in zip(data.stores, parts, strict=True):
        of_tick += progress_of(critic, store, [e.index for e in part.episodes])
        length = np.array([e.length for e in part.episodes], np.int64)
        tick.append(before + (np.cumsum(length) - length)[part.episode] + part.tick)
        before += int(length.sum())
    values = np.concatenate(of_tick).astype(np.float32)
    return Potential(torch.from_numpy(values).to(device), torch.from_numpy(np.concatenate(tick)).to(device))


def expectile_loss(difference_B: Tensor, expectile: float) -> Tensor:
    """L2^τ(u) = |τ - 1(u < 0)| u², of u = target - prediction: 0.5 gives the mean, towards 1 the highest."""
    share = torch.where(difference_B < 0, 1 - expectile, expectile)
    return (share * difference_B.square()).mean()


def td_target(
    reward_BH: Tensor, alive_B: Tensor, ticks_B: Tensor, next_value_B: Tensor, discount: float
) -> Tensor:
    """`(B,)`: what a chunk earned and the value of where it led.

    One that ended in success has only its rewards (alive is 0). One whose record ends within the chunk,
    because it was cut off or the time ran out, goes on beyond it: it has the rewards before its last window,
    `ticks` ahead, and the value of that, discounted by as many ticks."""
    h = reward_BH.shape[1]
    i = torch.arange(h, device=reward_BH.device)
    counts = (i < ticks_B[:, None]) | (alive_B[:, None] == 0)
    earned = (reward_BH * counts * discount ** i.to(reward_BH.dtype)).sum(1)
    return earned + alive_B * discount ** ticks_B.to(reward_BH.dtype) * next_value_B


def require_judges(spec: CriticSpec, recipe: Recipe) -> None:
    """TrainingError where the critic's windows are not part of the actor's."""
    ahead = recipe.horizon - recipe.n_past_actions
    if spec.chunk > ahead or spec.n_obs_steps > recipe.n_obs_steps:
        raise TrainingError(
            f"the critic judges {spec.chunk} actions after {spec.n_obs_steps} observations, and the windows "
            f"of {recipe.name} have {ahead} after {recipe.n_obs_steps}"
        )


def learn_iql(
    iql: IQL,
    recipe: Recipe,
    data: TrainingData | str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> LearnResult:
    """Learn a critic and the policy of `recipe` from `data`: the policy's checkpoint is `out`, the critic's
    `out/critic`. Batches and learning rates are those of `recipe.training`. TrainingError in one sentence."""
    t = recipe.training
    if t.start or t.accumulate > 1 or t.compile or t.lora or t.recompute:
        raise TrainingError("a learner takes no training.start, accumulate, compile, lora or recompute")
    if t.caps_temporal:
        raise TrainingError(
            "a learner's windows are followed by those a chunk later: it takes no caps_temporal"
        )
    data = data if isinstance(data, TrainingData) else open_data(data)
    require_caps(recipe, data.features)
    require_readable(recipe, data.tasks)
    require_judges(iql.critic, recipe)
    windows = data.windows(replace(window_spec(recipe, data.features), next_after=iql.critic.chunk))
    if not len(windows.train):
        raise TrainingError(f"{' and '.join(data.paths)} holds no windows to learn from")
    stats = windows.stats()
    torch.manual_seed(seed)
    of_policy = recipe.codec.fit(windows.train, data.features, recipe.n_past_actions)
    policy = Policy(recipe, data.features, stats | of_policy)
    begin(policy, data.tasks, weights=not resume, say=say)
    know_tasks(policy, data.tasks)
    know_actions(policy, windows.train, say)
    policy = policy.to(device)
    now = data.windows(
        replace(window_spec(recipe, data.features), horizon=iql.critic.chunk, n_past_actions=0)
    )
    critic = Critic(iql.critic, data.features, stats | Critic.fit(iql.critic, now.train, data.features))
    potential = potential_of(iql.potential, data, windows.train, device) if iql.potential else None
    learner = IQLLearner(iql, policy, critic.to(device), potential)
    identity = {"learner": asdict(iql), "recipe": recipe_to_json(recipe), "method": "iql"}
    if potential is not None:  # another critic in the same folder is another reward
        identity["potential"] = hashlib.sha256(potential.of_tick.cpu().numpy().tobytes()).hexdigest()
    return learn(
        learner,
        data,
        windows,
        out,
        steps=learner.steps,
        batch_size=t.batch_size,
        identity=identity,
        seed=seed,
        device=device,
        checkpoint_every=t.checkpoint_every,
        resume=resume,
        overwrite=overwrite,
        report=report,
    )
