"""The same weights under LeRobot's names and ours, as patterns: `{}` stands for what both have in one place,
`#` for a number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Pairs = Sequence[tuple[str, str]]

_LAYER = (
    ("self_attn.{}", "attention.{}"),
    ("linear1.{}", "forth.net.0.{}"),
    ("linear2.{}", "forth.net.3.{}"),
    ("norm1.{}", "norm.{}"),
    ("norm2.{}", "forth.norm.{}"),
)
_DECODER_LAYER = (
    ("self_attn.{}", "own.{}"),
    ("multihead_attn.{}", "cross.{}"),
    ("linear1.{}", "forth.net.0.{}"),
    ("linear2.{}", "forth.net.3.{}"),
    ("norm1.{}", "norms.0.{}"),
    ("norm2.{}", "norms.1.{}"),
    ("norm3.{}", "forth.norm.{}"),
)
ACT: Pairs = (
    *((f"encoder.layers.#.{a}", f"encoder.#.{b}") for a, b in _LAYER),
    *((f"decoder.layers.#.{a}", f"decoder.#.{b}") for a, b in _DECODER_LAYER),
    ("decoder.norm.{}", "norm.{}"),
    ("decoder_pos_embed.weight", "queries"),
    ("action_head.{}", "out.{}"),
)
POSTERIOR: Pairs = (
    *((f"vae_encoder.layers.#.{a}", f"layers.#.{b}") for a, b in _LAYER),
    ("vae_encoder_action_input_proj.{}", "actions_in.{}"),
    ("vae_encoder_latent_output_proj.{}", "out.{}"),
)
# torchvision's children: LeRobot's ACT has them by name, its diffusion by their order
_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
RESNET: Pairs = (
    *((f"backbone.{name}.{{}}", f"{i + 1}.{{}}") for i, name in enumerate(_CHILDREN)),
    *((f"backbone.{i}.{{}}", f"{i + 1}.{{}}") for i in range(len(_CHILDREN))),
)
DIFFUSION: Pairs = (("pool.nets.{}", "1.{}"), ("out.{}", "3.{}"))
_BLOCK = (
    ("conv1.block.{}", "first.{}"),
    ("conv2.block.{}", "second.{}"),
    ("cond_encoder.{}", "film.{}"),
    ("residual_conv.{}", "skip.{}"),
)
UNET: Pairs = (
    *((f"unet.down_modules.#.#.{a}", f"down.#.#.{b}") for a, b in _BLOCK),
    *((f"unet.mid_modules.#.{a}", f"middle.#.{b}") for a, b in _BLOCK),
    *((f"unet.up_modules.#.#.{a}", f"up.#.#.{b}") for a, b in _BLOCK),
    ("unet.down_modules.#.2.{}", "down.#.2.{}"),
    ("unet.up_modules.#.2.{}", "up.#.2.{}"),
    ("unet.final_conv.0.block.{}", "out.0.{}"),
    ("unet.final_conv.1.{}", "out.1.{}"),
    ("unet.diffusion_step_encoder.1.{}", "time.mlp.0.{}"),
    ("unet.diffusion_step_encoder.3.{}", "time.mlp.2.{}"),
)
DROPPED = ("num_batches_tracked",)  # of batch norms that stay as they are


def renamed(weights: Mapping[str, Tensor], pairs: Pairs, back: bool = False) -> dict[str, Tensor]:
    """Those of LeRobot's `weights` that `pairs` name, by our names. back: ours, by LeRobot's; where two pairs
    name one of ours, the last counts."""
    rules = [(b, a) if back else (a, b) for a, b in pairs]
    compiled = [(re.compile(_pattern(a)), b) for a, b in rules]
    result = {}
    for name, value in weights.items():
        if name.endswith(DROPPED):
            continue
        for pattern, target in compiled:
            if match := pattern.fullmatch(name):
                parts = iter(match.groups())
                result[re.sub(r"#|\{\}", lambda _, parts=parts: next(parts), target)] = value
                break
    return result


def _pattern(text: str) -> str:
    return re.escape(text).replace(r"\#", r"(\d+)").replace(r"\{\}", "(.+)")
