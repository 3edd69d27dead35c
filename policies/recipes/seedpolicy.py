"""SeedPolicy (Gui et al. 2026, arXiv 2603.05117)."""

from __future__ import annotations

from ...datasets.features import Features
from ..backbones.transformer import Transformer
from ..contexts.sega import SEGA
from ..encoders.vector import MLP, Encoder, ResNet18
from ..objectives.diffusion import Diffusion
from ..recipe import Recipe, Training
from ..solvers.ddim import DDIM


def seedpolicy(features: Features) -> Recipe:
    """SeedPolicy (Gui et al. 2026, arXiv 2603.05117): Diffusion Policy's transformer, told by SEGA, a memory
    of 60 tokens that observations are read into and read with.

    Faithful, to the paper and its code: SEGA's six pairs of blocks of 8 heads, its tokens and their places,
    its gate without weights; 3 observations, chunks of 9 actions of which 6 are executed, eps-prediction,
    AdamW at 1e-4. Not: every weight is trained, where the released training leaves out SEGA's, and a gradient
    goes back through 4 decisions, where the released one is cut at each, so that nothing teaches its gate
    (`--training.freeze context_net.*` and `--context.backprop 1` are these); 16 DDIM steps instead of 100 of
    DDPM; each camera by its own ResNet18 and the state by one layer side by side, where theirs go through two
    layers together; a batch is 4 chains of 40 decisions, where theirs is 128 single ones whose memory goes on
    to the next batch. Not shown yet: the study `sega_cue` is to be run."""
    return Recipe(
        name="seedpolicy",
        paper="Gui et al. 2026, SeedPolicy (arXiv 2603.05117)",
        encoder=Encoder(state=MLP(256, 1), image=ResNet18()),
        context=SEGA(),
        backbone=Transformer(width=256, depth=8, heads=4, dropout=0.3, causal=True),
        objective=Diffusion(),
        solver=DDIM(clip=1.0),
        sampling_steps=16,
        n_obs_steps=3,
        horizon=9,
        n_past_actions=2,
        n_action_steps=6,
        training=Training(steps=20000, batch_size=4, betas=(0.9, 0.95), weight_decay=1e-3),
    )
