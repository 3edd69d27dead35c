"""Slots: a picture as a few things, each of which took the places that it explains best (Slot Attention,
Locatello et al. 2020, arXiv 2006.15055; as what a policy sees, SBOCR, Chapin et al., Spotlighting
Task-Relevant Features).

Legend: B batch, T = n_obs_steps, N = B·T frames, P places of a feature map, K slots of a picture, D width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.features import Feature, image_keys, state_keys
from .feature_maps import MapEncoder
from .vector import SmallCNN, cropped

EPS = 1e-8  # of the share of all places that a slot has, which may be next to none


@dataclass(frozen=True)
class Slots:
    """Each vector of an observation is one token, and each camera's picture is as many as it has slots. Slots
    begin as draws of one learned normal distribution and compete for the places of the feature map over
    several rounds. Which of them takes what is chance, so the tokens are what as many learned questions find
    among them, and do not depend on their order. A policy that acts has one draw, which the checkpoint
    keeps.

    Faithful to what was published: competition by a softmax over the slots, the mean of what each has taken,
    a gated recurrent unit and a residual layer; no place in an order for a slot. Not: the features are a
    convolutional network's that learns with the policy (published: DINOv2's, frozen; `--encoder.image Timm`
    has vision transformers), the slots are not taught to reconstruct them first, nor do they begin as the
    last picture's ended. No run shows yet that they help (study: slots_crowd)."""

    width: int = 64
    """Of a token and of a slot; a multiple of 4."""
    image: MapEncoder = SmallCNN(crop=1.0)
    """Convolutions over each camera's frames, with weights of their own for each camera."""
    slots: int = 7
    """Of a picture."""
    rounds: int = 3
    """In which they compete."""
    competition: bool = True
    """Without, each slot begins as a learned question of its own and attends to all places, whatever the
    others do: attention pooling, by the same network. The control."""

    def build(self, features: dict[str, Feature]) -> SlotsEncoder:
        if not image_keys(features):
            raise ValueError("Slots are of pictures, and the policy sees none: use --encoder Encoder")
        if self.slots < 1 or self.rounds < 1 or self.width < 4 or self.width % 4:
            raise ValueError(
                f"Slots has slots {self.slots} and rounds {self.rounds}, which are at least 1, and the width "
                f"{self.width}, which is a multiple of 4"
            )
        return SlotsEncoder(self, features)


class SlotsEncoder(nn.Module):
    """Normalised observations `{key: (B, T, ...)}` to `(B, T, vectors + cameras·K, D)`; images are uint8 HWC
    and are scaled here."""

    def __init__(self, part: Slots, features: dict[str, Feature]) -> None:
        super().__init__()
        self.state_keys, self.image_keys = state_keys(features), image_keys(features)
        self.crop, self.width = part.image.crop, part.width
        self.tokens_per_frame = len(self.state_keys) + part.slots * len(self.image_keys)
        self.states = nn.ModuleList(nn.Linear(features[k].shape[0], part.width) for k in self.state_keys)
        self.trunks, self.sights = nn.ModuleList(), nn.ModuleList()
        for _ in self.image_keys:
            trunk, channels = part.image.trunk()
            self.trunks.append(trunk)
            self.sights.append(Sight(part, channels))

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        tokens = [
            net(observation[k])[:, :, None] for k, net in zip(self.state_keys, self.states, strict=True)
        ]
        dtype = tokens[0].dtype if tokens else torch.float32
        for key, trunk, sight in zip(self.image_keys, self.trunks, self.sights, strict=True):
            b, t = observation[key].shape[:2]
            pixels = observation[key].permute(0, 1, 4, 2, 3).to(dtype) / 127.5 - 1.0
            seen = trunk(cropped(pixels, self.crop, self.training).flatten(0, 1))
            tokens.append(sight(seen).unflatten(0, (b, t)))
        return torch.cat(tokens, dim=2)


class Sight(nn.Module):
    """A feature map `(N, C, h, w)` to the tokens of its slots `(N, K, D)`."""

    def __init__(self, part: Slots, channels: int) -> None:
        super().__init__()
        width = part.width
        self.project, self.place = nn.Conv2d(channels, width, 1), nn.Linear(2, width)
        self.prepare = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.attention = SlotAttention(width, part.rounds, part.competition)
        self.competition = part.competition
        self.mean = nn.Parameter(torch.randn(1 if part.competition else part.slots, width))
        if part.competition:
            self.log_deviation = nn.Parameter(torch.zeros(width))
        self.drawn: Tensor
        self.register_buffer("drawn", torch.randn(part.slots, width))
        self.questions = nn.Parameter(torch.randn(part.slots, width))
        self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, map_NCHW: Tensor) -> Tensor:
        places = self.places(map_NCHW)
        return self.read(self.attention(places, self.begun(len(places)).to(places.dtype)))

    def places(self, map_NCHW: Tensor) -> Tensor:
        """`(N, P, D)`: what each place shows, and where it lies."""
        seen = self.project(map_NCHW)
        rows, columns = (
            torch.linspace(-1, 1, n, device=seen.device, dtype=seen.dtype) for n in seen.shape[2:]
        )
        where = self.place(torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1))
        return self.prepare((seen.permute(0, 2, 3, 1) + where).flatten(1, 2))

    def begun(self, n: int) -> Tensor:
        """The slots `(n, K, D)` before the first round: in training drawn anew for each frame."""
        if not self.competition:
            return self.mean.expand(n, -1, -1)
        drawn = self.drawn.expand(n, -1, -1)
        return self.mean + self.log_deviation.exp() * (torch.randn_like(drawn) if self.training else drawn)

    def read(self, slots_NKD: Tensor) -> Tensor:
        """`(N, K, D)`: what the questions find among the slots, in whatever order those stand."""
        questions = self.questions.to(slots_NKD.dtype).expand(len(slots_NKD), -1, -1)
        return F.scaled_dot_product_attention(questions, self.key(slots_NKD), self.value(slots_NKD))


class SlotAttention(nn.Module):
    """Places `(N, P, D)` and slots as they begin `(N, K, D)` to slots `(N, K, D)`."""

    def __init__(self, width: int, rounds: int, competition: bool) -> None:
        super().__init__()
        self.rounds, self.competition = rounds, competition
        self.normal_places, self.normal_slots = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.gate = nn.GRUCell(width, width)
        self.more = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, places_NPD: Tensor, slots_NKD: Tensor) -> Tensor:
        normal = self.normal_places(places_NPD)
        keys, values, slots = self.key(normal), self.value(normal), slots_NKD
        for _ in range(self.rounds):
            share = self.shares(keys, slots)
            mean = (share / (share.sum(-1, keepdim=True) + EPS)) @ values
            slots = self.gate(mean.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.more(slots)
        return slots

    def shares(self, keys_NPD: Tensor, slots_NKD: Tensor) -> Tensor:
        """How much of each place each slot takes, `(N, K, P)`: over the slots of a place they sum to 1, or
        without competition over the places of a slot."""
        query = self.query(self.normal_slots(slots_NKD))
        fit = query @ keys_NPD.transpose(1, 2) / keys_NPD.shape[-1] ** 0.5
        return fit.softmax(1 if self.competition else 2)
