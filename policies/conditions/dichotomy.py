"""What of the future is one's own doing (Dichotomy of Control, Yang et al. 2022, arXiv 2210.13435).

Legend: B batch, Z width of the latent, J draws, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...datasets.features import ACTION, Features, state_keys
from .condition import RETURN, ConditionNet


@dataclass(frozen=True)
class Dichotomy:
    """A latent of what comes, from which luck is kept out. In training it is drawn from the chunk that was
    done, what was seen after it, and the return; a prior learns to foresee it from what is seen now, and a
    value what return it means. When acting, of many draws of the prior that of the highest value is told.

    Luck is what return and outcome say beyond what is seen and done: a critic learns to tell them from the
    latent (InfoNCE), and the latent learns to tell the critic nothing. Else the value of a latent is what was
    earned, and who takes the best asks for luck. Faithful: the four losses, a prior that is trained, draws of
    it by value. Not: a chunk and its outcome in the place of each action and the next state; fixed draws, so
    that a decision is a function of its seed; vectors only."""

    ahead: int = 16
    """Ticks of the outcome: as many as the recipe's horizon."""
    latent: int = 8
    """Z, width of the latent."""
    hidden: int = 128
    """Of each network's hidden layers."""
    discount: float = 1.0
    """γ of the return for each tick, above 0 and up to 1."""
    draws: int = 100
    """Of the prior, of which one is told when acting."""
    kl: float = 0.03
    """Weight of the latent's divergence from the prior."""
    luck: float = 10.0
    """Weight of what the critic may not be told, against the value's 1; 0: luck is not kept out."""
    drop: float = 0.0
    """Share of the training rows that are not told, 0 to 1."""

    def needs(self) -> dict[str, Any]:
        return {"next_after": self.ahead, "discounted_return": self.discount}

    def keys(self, features: Features) -> tuple[str, ...]:
        if not state_keys(features):
            raise ValueError("Dichotomy reads vectors, and the data has none")
        return ()

    def hides(self, features: Features) -> tuple[str, ...]:
        return ()

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if self.draws < 1 or self.latent < 1 or self.kl < 0 or self.luck < 0:
            raise ValueError(
                "Dichotomy has at least 1 draw and a latent of at least 1, and no negative weight"
            )
        keys = tuple(state_keys(features))
        seen = sum(features[k].shape[0] for k in keys)
        return DichotomyNet(self, keys, seen, features[ACTION].shape[0], width)


class DichotomyNet(ConditionNet):
    n_tokens = 1
    learns_from_future = True

    def __init__(self, part: Dichotomy, keys: tuple[str, ...], seen: int, action: int, width: int) -> None:
        super().__init__()
        self.part, self.keys, z = part, keys, part.latent
        done, outcome = part.ahead * action, seen + 1
        self.posterior = self._net(seen + done + outcome, 2 * z)
        self.prior = self._net(seen, 2 * z)
        self.value = self._net(seen + z, 1)
        self.critic = self._net(seen + done + z, part.hidden)
        self.critic_of_outcome = self._net(outcome, part.hidden)
        self.leave = nn.Sequential(nn.Linear(z, width), nn.Mish(), nn.Linear(width, width))
        self.draws: Tensor
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("draws", torch.randn(part.draws, z, generator=rng), persistent=False)

    def _net(self, inputs: int, outputs: int) -> nn.Module:
        h = self.part.hidden
        return nn.Sequential(
            nn.Linear(inputs, h), nn.Mish(), nn.Linear(h, h), nn.Mish(), nn.Linear(h, outputs)
        )

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        seen = self._seen(observation)
        z = self._drawn(seen, observation)[0] if self.training else self.best(seen)
        return self.leave(z)[:, None], torch.ones(len(z), 1, dtype=torch.bool, device=z.device)

    def best(self, seen_BS: Tensor) -> Tensor:
        """Of the draws of the prior the one of the highest value, `(B, Z)`."""
        mean, log_deviation = self.prior(seen_BS).chunk(2, dim=-1)
        z_BJZ = mean[:, None] + log_deviation.exp()[:, None] * self.draws
        each = seen_BS[:, None].expand(-1, len(self.draws), -1)
        best = self.value(torch.cat([each, z_BJZ], dim=-1))[..., 0].argmax(1)
        return z_BJZ.gather(1, best[:, None, None].expand(-1, 1, z_BJZ.shape[-1]))[:, 0]

    def losses(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        seen = self._seen(observation)
        z, mean, log_deviation = self._drawn(seen, observation)
        prior_mean, prior_log = self.prior(seen).chunk(2, dim=-1)
        kl = (
            prior_log
            - log_deviation
            + (log_deviation.exp() ** 2 + (mean - prior_mean) ** 2) / (2 * (2 * prior_log).exp())
            - 0.5
        )
        value = self.value(torch.cat([seen, z], dim=-1))
        losses = {
            "kl": self.part.kl * kl.sum(-1).mean(),
            "value": ((value - _worth(observation[RETURN])) ** 2).mean(),
        }
        if self.part.luck:
            losses["luck"] = self.part.luck * self._told_of_luck(seen, z, observation)
        return losses

    def _told_of_luck(self, seen: Tensor, z: Tensor, observation: Mapping[str, Any]) -> Tensor:
        """The critic's loss: each row's outcome among those of all rows. What is seen and done it may use as
        it likes; the latent's gradient is turned round."""
        asks = self.critic(torch.cat([seen, self._done(observation), _Reversed.apply(z)], dim=-1))  # type: ignore[list-item]
        answers = self.critic_of_outcome(self._outcome(observation))
        logits = asks @ answers.T / self.part.hidden**0.5
        return nn.functional.cross_entropy(logits, torch.arange(len(z), device=z.device))

    def _drawn(self, seen: Tensor, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """(a latent of what came, its mean and the logarithm of its deviation), `(B, Z)` each."""
        future = torch.cat([seen, self._done(observation), self._outcome(observation)], dim=-1)
        mean, log_deviation = self.posterior(future).chunk(2, dim=-1)
        return mean + log_deviation.exp() * torch.randn_like(mean), mean, log_deviation

    def _seen(self, observation: Mapping[str, Any]) -> Tensor:
        return torch.cat([observation[k][:, -1] for k in self.keys], dim=-1)

    def _done(self, observation: Mapping[str, Any]) -> Tensor:
        """What was done of the outcome's ticks, 0 beyond the episode's end."""
        action = observation[ACTION] * observation["mask"][..., None]
        if action.shape[1] != self.part.ahead:
            raise ValueError(
                f"Dichotomy's ahead is {self.part.ahead}, and a chunk has {action.shape[1]} actions: set "
                f"--conditions.Dichotomy.ahead {action.shape[1]}"
            )
        return _standard(action.flatten(1))

    def _outcome(self, observation: Mapping[str, Any]) -> Tensor:
        after = [observation[f"next.{k}"][:, -1] for k in self.keys]
        return _standard(torch.cat([*after, observation[RETURN]], dim=-1))


def _worth(return_B1: Tensor) -> Tensor:
    """A return as the value learns it, against which the other losses weigh: less the rows' mean, and in
    units of their deviation where that is above 1. Which draw is the best stays the same."""
    return (return_B1 - return_B1.mean()) / return_B1.std(unbiased=False).clamp(min=1.0)


def _standard(x_BN: Tensor) -> Tensor:
    """Of mean 0 and deviation 1 over the rows: what only training sees comes in units of its own."""
    return (x_BN - x_BN.mean(0)) / (x_BN.std(0, unbiased=False) + 1e-3)


class _Reversed(torch.autograd.Function):
    """The same, and the gradient with the other sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return cast(Tensor, -grads[0])
