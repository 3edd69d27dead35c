"""The vision-language seam: pictures and words through a pretrained model, or one of random weights, as what
an action expert attends to.

The model stands in the encoder; the condition `Instruction` uses its table of words, and the context
`CachedPrefix` reads with its language model, once a decision. Legend: B batch, T = n_obs_steps, K tokens of a
frame, D width of the language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.features import Feature, image_keys, state_keys
from .language import Language
from .vision import SigLIP, pictures


@dataclass(frozen=True)
class VisionLanguage:
    """Every camera through one vision transformer, whose tokens a language model reads together with
    words."""

    vision: SigLIP = SigLIP()
    """Pictures to tokens."""
    language: Language = Language()
    """What reads them."""
    state: int = 32
    """Elements of the state, padded by zeros, that the model is told; at least as many as the robot's."""
    weights: str = ""
    """Folder or hub name of published weights to begin from: of a vision-language model (PaliGemma, SmolVLM2)
    or of a whole policy (pi0, pi0.5, SmolVLA, by LeRobot or openpi). Empty: from random ones. A checkpoint of
    Ulna holds its own, and never looks there."""

    def build(self, features: dict[str, Feature]) -> VisionLanguageEncoder:
        return VisionLanguageEncoder(self, features)


class VisionLanguageEncoder(nn.Module):
    """Normalised observations `{key: (B, T, ...)}` to `(B, T, K, D)`: the tokens of each camera's picture, in
    the features' order. Where there is a state, one more holds its values as they are, padded by zeros.
    Images are uint8 HWC, of any size."""

    def __init__(self, part: VisionLanguage, features: dict[str, Feature]) -> None:
        super().__init__()
        self.part, self.width = part, part.language.width
        self.state_keys, self.image_keys = state_keys(features), image_keys(features)
        elements = sum(features[k].shape[0] for k in self.state_keys)
        if elements > part.state or part.state > self.width:
            raise ValueError(
                f"the state has {elements} elements, and the model is told {part.state} in a token of width "
                f"{self.width}: set --encoder.state between the two (published weights have 32)"
            )
        self.language = part.language.build()
        self.vision = part.vision.build(self.width) if self.image_keys else None
        self.state_width = part.state if self.state_keys else 0
        per_camera = self.vision.tokens if self.vision else 0
        self.tokens_per_frame = per_camera * len(self.image_keys) + (1 if self.state_keys else 0)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        tokens = []
        if self.vision is not None:
            tokens.append(self.seen([observation[k] for k in self.image_keys]))
        if self.state_keys:
            state = torch.cat([observation[k] for k in self.state_keys], dim=-1)
            tokens.append(F.pad(state, (0, self.width - state.shape[-1]))[:, :, None])
        return torch.cat(tokens, dim=2)

    def seen(self, frames: list[Tensor]) -> Tensor:
        """The tokens of all cameras `(B, T, K, D)`, of whose pictures the network sees all at once."""
        assert self.vision is not None
        b, t = frames[0].shape[:2]
        dtype = self.vision.projector.weight.dtype
        part = self.part.vision
        pixels = [pictures(f.flatten(0, 1), part.side, part.resize, dtype) for f in frames]
        tokens = self.vision(torch.stack(pixels, dim=1).flatten(0, 1))
        return tokens.unflatten(0, (b, t, len(frames))).flatten(2, 3)
