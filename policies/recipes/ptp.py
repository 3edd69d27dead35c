"""Past-token prediction (Torne et al. 2025, arXiv 2505.09561)."""

from __future__ import annotations

from ...datasets.features import Features
from ..backbones.transformer import Transformer
from ..encoders.vector import MLP, Encoder, ResNet18
from ..objectives.diffusion import Diffusion
from ..recipe import Recipe, Training
from ..solvers.ddim import DDIM


def ptp(features: Features) -> Recipe:
    """Past-token prediction: a policy of long context that also learns the actions before now.

    Faithful: 16 observations, chunks of 32 actions of which 15 lie before now, all of them in the loss, one
    action executed; the causal transformer of Diffusion Policy (8 layers of width 256, 4 heads),
    eps-prediction, AdamW (1e-4, betas 0.9 and 0.95, weight decay 1e-3), batches of 64. Not: 16 DDIM steps
    instead of 100 of DDPM; dropout, time embedding and crops as in `diffusion_transformer`.

    The paper's arms: `--loss-on-past false` is the same policy without past tokens in the loss;
    `--steer PastVerification` adds self-verification when acting. From images it trains in stages: a policy
    of short context first (`--n-obs-steps 2 --n-past-actions 1 --horizon 16`), then this one with
    `--training.start` at its checkpoint, `--training.freeze encoder.*` and `--training.cache-encodings true`.
    Not shown yet: the study `ptp_twice` is to be run."""
    return Recipe(
        name="ptp",
        paper="Torne et al. 2025, Learning Long-Context Diffusion Policies via Past-Token Prediction "
        "(arXiv 2505.09561)",
        encoder=Encoder(state=MLP(depth=0), image=ResNet18()),
        backbone=Transformer(width=256, depth=8, heads=4, dropout=0.3, causal=True),
        objective=Diffusion(),
        solver=DDIM(clip=1.0),
        sampling_steps=16,
        n_obs_steps=16,
        horizon=32,
        n_past_actions=15,
        n_action_steps=1,
        training=Training(steps=20000, batch_size=64, betas=(0.9, 0.95), weight_decay=1e-3, warmup=1000),
    )
