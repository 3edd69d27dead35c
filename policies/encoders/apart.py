"""Two groups of observations, each with an encoder and a token of its own: what a policy is to rely on, and
the rest.

Legend: B batch, T = n_obs_steps, D width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...datasets.features import STATE, Feature, image_keys, state_keys
from .vector import MLP, ImageEncoder, SmallCNN, StateEncoder


@dataclass(frozen=True)
class Apart:
    """Of each step two tokens of one width: the observations `first`, and all others. For networks that tell
    them apart, such as `Factorised`; and for `drop`, by which any network learns to do without the others
    (modality drop-out)."""

    first: tuple[str, ...] = (STATE,)
    """Names of the observations of the first token; an observation of LeRobot's begins with
    `observation.`."""
    width: int = 128
    """Of each token."""
    state: StateEncoder = MLP(128, 1)
    """Encoder of the vectors of each group together."""
    image: ImageEncoder = SmallCNN()
    """Encoder of each camera's frames, with weights of its own for each camera."""
    drop: float = 0.0
    """Share of the training rows in which the second token says nothing, 0 to 1."""

    def build(self, features: dict[str, Feature]) -> ApartEncoder:
        from .vector import Encoder

        keys = [*state_keys(features), *image_keys(features)]
        if unknown := [k for k in self.first if k not in keys]:
            raise ValueError(
                f"what the policy is to rely on is {unknown[0]}, and it sees {', '.join(keys)}: choose from "
                "them (--encoder.first)"
            )
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop is a share from 0 to 1, not {self.drop}")
        others = [k for k in keys if k not in self.first]
        if not (self.first and others):
            raise ValueError(
                f"the observations are {', '.join(keys)}: --encoder.first names some of them and not all"
            )
        part = Encoder(self.state, self.image)
        return ApartEncoder(
            self,
            part.build({k: features[k] for k in keys if k in self.first}),
            part.build({k: features[k] for k in others}),
        )


class ApartEncoder(nn.Module):
    """Normalised observations `{key: (B, T, ...)}` to `(B, T, 2, D)`."""

    tokens_per_frame = 2

    def __init__(self, part: Apart, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.drop, self.width = part.drop, part.width
        self.groups = nn.ModuleList([first, second])
        self.project = nn.ModuleList(
            nn.Linear(group.width, part.width)  # type: ignore[arg-type]
            for group in self.groups
        )
        self.nothing = nn.Parameter(torch.zeros(part.width))

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        first, second = (
            project(group(observation)) for group, project in zip(self.groups, self.project, strict=True)
        )
        if self.training and self.drop:
            rows = torch.rand(len(second), device=second.device) < self.drop
            second = torch.where(rows[:, None, None], self.nothing.to(second.dtype), second)
        return torch.stack([first, second], dim=2)
