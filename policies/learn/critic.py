"""A critic: how much reward a chunk of actions promises, Q(o, A), and an observation, V(o). A checkpoint of
its own kind, so that one critic serves a learner and, at test time, any policy of the same robot.

model.safetensors   the weights (of the target networks, where the learner has such)
critic.json         its kind and sizes, what was assumed of reward and time
features.json       what it sees, and the action
stats.json          statistics behind the normalisers
train.json          how it came to be (`train.record`)
hash.json           SHA-256 of the first four

It reads observations and actions in their own units and codes them by itself: policies with other codecs and
statistics can ask it. Legend: B batch, T = n_obs_steps, H actions of the chunk that is judged, A action
dimensions, M members of the ensemble, S width of the observation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...datasets.features import (
    ACTION,
    FeatureMismatch,
    Features,
    features_from_json,
    features_to_json,
    image_keys,
    require_same,
    state_keys,
)
from ...datasets.stats import Stats
from ..backbones.mlp import ResidualBlock
from ..codec import Absolute, NormaliseMode, Relative, input_normaliser
from ..hashed import WEIGHTS, CheckpointError, read_json, require_finite, save_hashed, verify_hashed
from ..train.record import TrainingRecord

HASHED = (WEIGHTS, "critic.json", "features.json", "stats.json")
CODECS = {"Absolute": Absolute, "Relative": Relative}


@dataclass(frozen=True)
class CriticSpec:
    """What a critic is, beside its features: `critic.json`. Times are in control ticks."""

    kind: str = "iql"
    """The method that learned it."""
    chunk: int = 8
    """H, actions that it judges together, the first for now."""
    n_obs_steps: int = 1
    """Observations that it sees; the newest is now."""
    codec: Literal["Absolute", "Relative"] = "Relative"
    """What an action is to it: as it is, or its difference to the state now, whose scale tells neighbouring
    actions apart."""
    normalise_action: NormaliseMode = "quantile"
    """How actions are scaled."""
    normalise_state: NormaliseMode = "minmax"
    """How vectors that are observed are scaled."""
    members: int = 2
    """M, networks of Q; the least of them is believed (clipped double Q, Fujimoto et al. 2018)."""
    width: int = 256
    """Of the hidden layers."""
    depth: int = 2
    """Residual blocks of each network."""
    discount: float = 0.99
    """Of the reward, for each tick."""
    expectile: float = 0.7
    """Of the actions' values that V is."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ValueError(f"codec is one of {', '.join(CODECS)}, not {self.codec!r}")
        if min(self.chunk, self.n_obs_steps, self.members, self.depth) < 1:
            raise ValueError("chunk, n_obs_steps, members and depth are at least 1")
        if not 0 < self.discount <= 1 or not 0 < self.expectile < 1:
            raise ValueError("discount lies in (0, 1], expectile between 0 and 1")


class Critic(nn.Module):
    """`q`, `v` and `score` of observations `{key: (B, T', *shape)}`, T' at least n_obs_steps, in their own
    units, and actions `(B, H', A)` from now on, H' at least `chunk`, in theirs.

    features: the vectors that it sees, and `action`; images are not seen, ValueError where there are no
    vectors. stats: of each, and of the codec, see `fit`."""

    def __init__(self, spec: CriticSpec, features: Features, stats: Mapping[str, Stats]) -> None:
        super().__init__()
        self.keys = tuple(state_keys(features))
        if not self.keys:
            raise ValueError(
                "a critic sees vectors, and the features hold none beside the images "
                f"{', '.join(image_keys(features)) or '(none)'}"
            )
        self.spec, self.stats = spec, dict(stats)
        self.features = {k: features[k] for k in (*self.keys, ACTION)}
        self.normalisers = nn.ModuleList(input_normaliser(stats[k], spec.normalise_state) for k in self.keys)
        codec = CODECS[spec.codec](spec.normalise_action)
        self.codec = codec.build(self.features, stats, 0)
        seen = spec.n_obs_steps * sum(int(torch.Size(features[k].shape).numel()) for k in self.keys)
        actions = spec.chunk * self.codec.width
        self.q_nets = nn.ModuleList(
            ValueMLP(seen + actions, spec.width, spec.depth) for _ in range(spec.members)
        )
        self.v_net = ValueMLP(seen, spec.width, spec.depth)
        self.content_hash = ""  # set by loading and saving

    @staticmethod
    def fit(spec: CriticSpec, windows: Any, features: Features) -> dict[str, Stats]:
        """The statistics that its codec needs beside those of the features, from windows of `chunk` actions
        from now on (`datasets.reading.loader.WindowSource`)."""
        return CODECS[spec.codec](spec.normalise_action).fit(windows, features, 0)

    def q(self, observation: Mapping[str, Tensor], action_BHA: Tensor) -> Tensor:
        """`(M, B)`."""
        return self.q_of(self.encode(observation), self.encode_action(action_BHA, observation))

    def v(self, observation: Mapping[str, Tensor]) -> Tensor:
        """`(B,)`."""
        return self.v_of(self.encode(observation))

    def score(self, observation: Mapping[str, Tensor], action_BHA: Tensor) -> Tensor:
        """`(B,)`: the least of the members' values."""
        return self.q(observation, action_BHA).amin(0)

    def encode(self, observation: Mapping[str, Tensor]) -> Tensor:
        """`(B, S)`: the newest observations, normalised, side by side."""
        parts = [
            normaliser(observation[k][:, -self.spec.n_obs_steps :]).flatten(1)
            for k, normaliser in zip(self.keys, self.normalisers, strict=True)
        ]
        return torch.cat(parts, dim=-1)

    def encode_action(self, action_BHA: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """`(B, chunk, A)`: the first actions, normalised. A gradient may pass."""
        return self.codec.encode(action_BHA[:, : self.spec.chunk], observation)

    def q_of(self, seen_BS: Tensor, coded_BHA: Tensor) -> Tensor:
        x = torch.cat([seen_BS, coded_BHA.flatten(1)], dim=-1)
        return torch.stack([net(x) for net in self.q_nets])

    def v_of(self, seen_BS: Tensor) -> Tensor:
        return self.v_net(seen_BS)


class ValueMLP(nn.Module):
    """`(B, width_in)` to `(B,)`, with layer normalisation, which keeps values bounded where there are no data
    (Ball et al. 2023, RLPD, arXiv 2302.02948). It begins at zero."""

    def __init__(self, width_in: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width_in, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, 0, 0.0) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, x)
        return self.out(self.norm(x))[..., 0]


def require_match(
    critic: Critic, features: Features, horizon: int, n_past_actions: int, n_obs_steps: int
) -> None:
    """Refuse to judge what a policy of these features and sizes does. FeatureMismatch or ValueError, with
    both sides."""
    require_same(features, critic.features, "the policy", "the critic")
    ahead = horizon - n_past_actions
    if critic.spec.chunk > ahead:
        raise FeatureMismatch(
            f"the policy and the critic differ in their chunks: the policy's has {ahead} actions from now "
            f"on, the critic judges {critic.spec.chunk}"
        )
    if critic.spec.n_obs_steps > n_obs_steps:
        raise FeatureMismatch(
            f"the policy and the critic differ in what they see: the policy has {n_obs_steps} observations, "
            f"the critic needs {critic.spec.n_obs_steps}"
        )


def save_critic(folder: str | Path, critic: Critic, record: TrainingRecord) -> str:
    """Write the checkpoint and return its content hash; an older one is replaced."""
    documents = {
        "critic.json": asdict(critic.spec),
        "features.json": features_to_json(critic.features),
        "stats.json": {k: s.to_json() for k, s in critic.stats.items()},
        "train.json": record.to_json(),
    }
    critic.content_hash = save_hashed(Path(folder), critic.state_dict(), documents, HASHED)
    return critic.content_hash


def load_critic(folder: str | Path, device: str | torch.device = "cpu") -> Critic:
    """The critic, in evaluation mode on `device`, with `content_hash` set. CheckpointError in one sentence
    otherwise."""
    folder = Path(folder)
    content_hash = verify_critic(folder)
    try:
        values = read_json(folder / "critic.json")
        if unknown := sorted(set(values) - {f.name for f in dataclasses.fields(CriticSpec)}):
            raise ValueError(f"critic.json has unknown fields: {', '.join(unknown)}")
        features = features_from_json(read_json(folder / "features.json"))
        stats = {k: Stats.from_json(v) for k, v in read_json(folder / "stats.json").items()}
        critic = Critic(CriticSpec(**values), features, stats)
        critic.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder} holds a critic that this version cannot load: {reason}") from error
    require_finite(folder, critic.state_dict())
    critic.content_hash = content_hash
    return critic.eval().requires_grad_(False).to(device)


def verify_critic(folder: str | Path) -> str:
    """The content hash, after checking that the files are there and are those that were saved."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no critic's folder {folder}: learn one, for instance by IQL")
    return verify_hashed(folder, "critic", HASHED)
