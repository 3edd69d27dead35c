"""Diffusion Policy and its two backbones (Chi et al. 2023, arXiv 2303.04137)."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.transformer import Transformer
from ..backbones.unet1d import UNet1D
from ..encoders.vector import MLP, Encoder, ResNet18
from ..objectives.diffusion import Diffusion
from ..recipe import Recipe, Training
from ..solvers.ddim import DDIM

PAPER = "Chi et al. 2023, Diffusion Policy (arXiv 2303.04137)"


def diffusion_unet(features: Features) -> Recipe:
    """Diffusion Policy, CNN.

    Faithful: UNet widths, kernel, FiLM, ResNet18-GN with spatial softmax, eps-prediction on the
    squared-cosine schedule with 100 steps, min-max normalisation, AdamW, EMA, horizons 2/16/8, the chunk
    starting at the first observation. Not: sampled with 16 DDIM steps (100 DDPM steps: `--solver.eta 1
    --sampling-steps 100`); the time embedding takes tau instead of the step index; crop fraction 0.9
    instead of 76 of 84 pixels."""
    images = bool(image_keys(features))
    return Recipe(
        name="diffusion_unet",
        paper=PAPER,
        encoder=Encoder(state=MLP(depth=0), image=ResNet18()),
        backbone=UNet1D(
            widths=(512, 1024, 2048) if images else (256, 512, 1024), time_width=128 if images else 256
        ),
        objective=Diffusion(),
        solver=DDIM(clip=1.0),
        sampling_steps=16,
        n_past_actions=1,
        training=Training(steps=20000, batch_size=64 if images else 256),
    )


def diffusion_transformer(features: Features) -> Recipe:
    """Diffusion Policy, transformer.

    Faithful: 8 pre-LN decoder layers of width 256, 4 heads, attention dropout 0.3, causal masks, horizons
    2/10/8, AdamW (0.9, 0.95) with weight decay 1e-3. Not: dropout applies to the feed-forward layers too;
    DDIM and tau as in `diffusion_unet`."""
    images = bool(image_keys(features))
    return Recipe(
        name="diffusion_transformer",
        paper=PAPER,
        encoder=Encoder(state=MLP(depth=0), image=ResNet18()),
        backbone=Transformer(width=256, depth=8, heads=4, dropout=0.3, causal=True),
        objective=Diffusion(),
        solver=DDIM(clip=1.0),
        sampling_steps=16,
        horizon=10,
        n_past_actions=1,
        training=Training(
            steps=20000, batch_size=64 if images else 256, betas=(0.9, 0.95), weight_decay=1e-3
        ),
    )
