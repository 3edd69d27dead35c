"""Several views as one scene (GP3: geometry-aware policies from pictures, after VGGT, Wang et al. 2025,
arXiv 2503.11651): a transformer that attends within each view and across all of them, and learns beside the
policy how far away everything is and where the cameras are.

Legend: B batch, T = n_obs_steps, N = B·T frames, V views, P places of a feature map, C H W image, D width, K
scene tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.features import CAMERA_POSE, DEPTH, IMAGES, Feature, image_keys, state_keys
from ..backbones.post_norm import require_width, sines_of
from .feature_maps import MapEncoder
from .vector import SmallCNN, cropped, side

FINEST = 8  # pixels of depth that one place tells along each side, at most


@dataclass(frozen=True)
class GP3:
    """Each vector of an observation is one token, and all pictures of a step together are `tokens` more.
    Where `depth_weight` or `pose_weight` is above 0, training reads the cameras' depth
    (`observation.depth.<camera>`) or poses (`observation.camera_pose.<camera>`) besides, which no policy
    needs when it acts.

    Faithful: attention within views and across them by turns, a camera token for each view, depth and pose
    heads with L1 losses, no depth when it acts. Not: the features are a convolutional network's that learns
    with the policy (published: a large network that was trained for geometry; `--encoder.image Timm` has
    vision transformers, with published weights), cameras are told apart by their names rather than one being
    the reference, depth has no confidence, and words are not attended to here: they reach the policy as a
    condition. No run shows yet that the auxiliary losses help (study: gp3_views)."""

    width: int = 64
    """Of a token; a multiple of 4 and of heads."""
    image: MapEncoder = SmallCNN(crop=1.0)
    """Convolutions over the frames, with the same weights for all cameras."""
    depth: int = 2
    """Pairs of layers: one within each view, one across all."""
    heads: int = 4
    """Of attention."""
    tokens: int = 8
    """Learned questions that read the scene; each is a token of the observation."""
    depth_weight: float = 1.0
    """Weight of the mean error of depth, in m; 0: depth is not learned, and the data need none."""
    pose_weight: float = 0.0
    """Weight of the error of where the cameras are; 0: not learned."""
    of: tuple[str, ...] = ()
    """Cameras of which these are learned, such as those that measure depth; empty: all that are seen."""

    def targets(self, features: Mapping[str, Feature]) -> tuple[str, ...]:
        cameras = self._cameras(features)
        depth = [DEPTH + c for c in cameras if self.depth_weight]
        return (*depth, *(CAMERA_POSE + c for c in cameras if self.pose_weight))

    def build(self, features: dict[str, Feature]) -> GP3Encoder:
        if not image_keys(features):
            raise ValueError("GP3 is of pictures, and the policy sees none: use --encoder Encoder")
        require_width(self, self.width, self.heads)
        if self.depth < 1 or self.tokens < 1 or self.depth_weight < 0 or self.pose_weight < 0:
            raise ValueError(
                f"GP3 has depth {self.depth} and tokens {self.tokens}, which are at least 1, and weights "
                f"{self.depth_weight:g} and {self.pose_weight:g}, which are not negative"
            )
        self._cameras(features)
        return GP3Encoder(self, features)

    def _cameras(self, features: Mapping[str, Feature]) -> list[str]:
        seen = [k.removeprefix(IMAGES) for k in image_keys(features)]
        if unknown := [c for c in self.of if c not in seen]:
            raise ValueError(
                f"there is no camera {unknown[0]!r} to learn the depth of; the policy sees "
                f"{', '.join(seen) or 'none'} (--encoder.of)"
            )
        return [c for c in seen if not self.of or c in self.of]


class GP3Encoder(nn.Module):
    """Normalised observations `{key: (B, T, ...)}` to `(B, T, vectors + K, D)`; images are uint8 HWC and are
    scaled here."""

    def __init__(self, part: GP3, features: dict[str, Feature]) -> None:
        super().__init__()
        self.part, self.crop, self.width = part, part.image.crop, part.width
        self.state_keys, self.image_keys = state_keys(features), image_keys(features)
        self.tokens_per_frame = len(self.state_keys) + part.tokens
        self.states = nn.ModuleList(nn.Linear(features[k].shape[0], part.width) for k in self.state_keys)
        self.trunk, channels = part.image.trunk()
        self.project = nn.Conv2d(channels, part.width, 1)
        self.camera = nn.Parameter(0.02 * torch.randn(part.width))
        self.views = nn.Parameter(0.02 * torch.randn(len(self.image_keys), part.width))
        self.geometry = Geometry(part.width, part.depth, part.heads)
        self.read = Scene(part.width, part.heads, part.tokens)
        self.maps: list[tuple[int, int]] = []
        fine = 1
        for i, key in enumerate(self.image_keys):
            height, width = (side(n, self.crop) for n in features[key].shape[:2])
            with torch.no_grad():
                h, w = self.trunk(torch.zeros(1, 3, height, width)).shape[2:]
            self.maps.append((h, w))
            fine = max(fine, min(round(height / h), FINEST))
            table = [((r + 1) / h, (c + 1) / w) for r in range(h) for c in range(w)]
            self.register_buffer(f"places_{i}", sines_of(table, part.width), persistent=False)
        self.fine = fine
        if part.depth_weight:
            self.to_depth = nn.Linear(part.width, fine * fine)
        if part.pose_weight:
            self.to_pose = nn.Linear(part.width, 7)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        views = self._views(self._pictures(observation))
        return self._tokens(observation, views)

    def learned(
        self, observation: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what a call gives; the losses of depth and poses, weighted). targets: depth `(B, T, H, W)` in
        metres, 0 without a reading, of any size, and poses `(B, T, 7)`, by their keys."""
        depth_of = [
            F.interpolate(
                targets[k].float(), observation[i].shape[2:4], mode="nearest"
            )  # a mean would make up surfaces between near and far
            if (k := DEPTH + i.removeprefix(IMAGES)) in targets
            else None
            for i in self.image_keys
        ]
        pictures = self._pictures(observation, depth_of)
        views = self._views([p[:, :3] for p in pictures])
        losses: dict[str, Tensor] = {}
        if self.part.depth_weight:
            error, count = torch.zeros((), device=views[0].device), torch.zeros((), device=views[0].device)
            for i, picture in enumerate(pictures):
                if picture.shape[1] > 3:
                    told = self._depth(i, views[i])
                    meant = F.interpolate(picture[:, 3:], told.shape[1:], mode="nearest")[:, 0]
                    there = meant > 0
                    error = error + ((told.float() - meant).abs() * there).sum()
                    count = count + there.sum()
            losses["depth"] = self.part.depth_weight * error / count.clamp(min=1)
        if self.part.pose_weight:
            errors = [
                pose_error(self.to_pose(view[:, 0]).float(), targets[k].flatten(0, 1).float())
                for key, view in zip(self.image_keys, views, strict=True)
                if (k := CAMERA_POSE + key.removeprefix(IMAGES)) in targets
            ]
            losses["camera_pose"] = self.part.pose_weight * torch.stack(errors).mean()
        return self._tokens(observation, views), losses

    def seen_depth(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How far away it takes things to be, `(B, T, h, w)` in metres for each camera, of the cropped
        picture: for people to look at."""
        if not self.part.depth_weight:
            raise ValueError("this policy has not learned depth (--encoder.depth-weight)")
        views = self._views(self._pictures(observation))
        return {
            key: self._depth(i, views[i]).unflatten(0, observation[key].shape[:2])
            for i, key in enumerate(self.image_keys)
        }

    def _pictures(
        self, observation: Mapping[str, Tensor], more: Sequence[Tensor | None] = ()
    ) -> list[Tensor]:
        """For each view `(N, 3, H, W)` in [-1, 1], cropped, and with `more` `(B, T, H, W)` one channel more,
        cropped alike."""
        dtype = self.project.weight.dtype
        pictures = []
        for i, key in enumerate(self.image_keys):
            pixels = observation[key].permute(0, 1, 4, 2, 3).to(dtype) / 127.5 - 1.0
            if more and (channel := more[i]) is not None:
                pixels = torch.cat([pixels, channel[:, :, None].to(dtype)], dim=2)
            pictures.append(cropped(pixels, self.crop, self.training).flatten(0, 1))
        return pictures

    def _views(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """For each view `(N, 1 + P, D)`: its camera token and its places, after all layers."""
        tokens = []
        for i, picture in enumerate(pictures):
            seen = self.project(self.trunk(picture.contiguous())).flatten(2).transpose(1, 2)
            seen = seen + self.get_buffer(f"places_{i}").to(seen.dtype)
            camera = self.camera.to(seen.dtype).expand(len(seen), 1, -1)
            tokens.append(torch.cat([camera, seen], dim=1) + self.views[i].to(seen.dtype))
        return self.geometry(tokens)

    def _depth(self, i: int, view: Tensor) -> Tensor:
        """`(N, h·fine, w·fine)` in metres."""
        h, w = self.maps[i]
        cells = self.to_depth(view[:, 1:]).transpose(1, 2).unflatten(2, (h, w))
        return F.softplus(F.pixel_shuffle(cells, self.fine))[:, 0]

    def _tokens(self, observation: Mapping[str, Tensor], views: Sequence[Tensor]) -> Tensor:
        b, t = observation[self.image_keys[0]].shape[:2]
        tokens = [
            net(observation[k])[:, :, None] for k, net in zip(self.state_keys, self.states, strict=True)
        ]
        return torch.cat([*tokens, self.read(torch.cat(list(views), dim=1)).unflatten(0, (b, t))], dim=2)


class Geometry(nn.Module):
    """Views, each `(N, n, D)` with an n of its own, to views of the same sizes. Which is the first makes no
    difference: what tells them apart is in their tokens."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.within = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.across = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        sizes = [v.shape[1] for v in views]
        for within, across in zip(self.within, self.across, strict=True):
            views = across(torch.cat([within(v) for v in views], dim=1)).split(sizes, dim=1)
        return [self.norm(v) for v in views]


class Layer(nn.Module):
    """Attention of tokens `(N, n, D)` to each other, then two dense layers; norms come before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_NnD: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x_NnD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x_NnD = x_NnD + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_NnD + self.mlp(self.between(x_NnD))


class Scene(nn.Module):
    """Tokens of all views `(N, n, D)` to what learned questions find among them `(N, K, D)`, in whatever
    order they stand."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.questions = nn.Parameter(torch.randn(tokens, width) / math.sqrt(width / heads))
        self.kv, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, tokens_NnD: Tensor) -> Tensor:
        k, v = self.kv(tokens_NnD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = (
            self.questions.to(k.dtype)
            .unflatten(-1, (self.heads, -1))
            .transpose(0, 1)
            .expand(len(k), -1, -1, -1)
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(found)


def pose_error(told_N7: Tensor, meant_N7: Tensor) -> Tensor:
    """Mean distance of what a network says of poses, by element: of the position in m, and of the unit
    quaternion to the nearer of the two that are the same turn."""
    position = (told_N7[:, :3] - meant_N7[:, :3]).abs().mean()
    turn = F.normalize(told_N7[:, 3:], dim=-1)
    meant = F.normalize(meant_N7[:, 3:], dim=-1)
    apart = torch.minimum((turn - meant).abs().mean(-1), (turn + meant).abs().mean(-1))
    return position + apart.mean()
