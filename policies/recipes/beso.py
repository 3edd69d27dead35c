"""Goal-conditioned score-based policies."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.transformer import Transformer
from ..codec import Absolute
from ..conditions.goal import Goal
from ..encoders.vector import MLP, Encoder
from ..objectives.edm import EDM
from ..recipe import Recipe, Training
from ..solvers.ddim import DDIM


def beso(features: Features) -> Recipe:
    """BESO (Reuss et al. 2023, arXiv 2304.02532): imitation of play by a score model that is told a goal,
    sampled in 3 steps, and by the hook CFG with the weight lambda between play and goal.

    Faithful: EDM's preconditioning with deviation 0.5, logistic noise in [0.005, 1], 3 DDIM steps over
    log-spaced noise, goals drawn from later observations of the same episode, not told for 0.1 of the rows, a
    causal transformer over 4 observations and their actions of which the last is executed (kitchen's sizes: 6
    layers, 6 heads, attention dropout 0.3). Not: the actions of the past are drawn anew (the hook Inpaint
    holds them to what was sent); the goal is one observation of the policy's own encoder, not two; width 240,
    not 360; actions attend to observations instead of being interleaved with them; dropout in the
    feed-forward layers, too; a cosine instead of steps of the learning rate. Its
    objective and goals, with a residual MLP, do a third of the tasks in beso_words, where flow that is told
    words does four fifths."""
    images = bool(image_keys(features))
    return Recipe(
        name="beso",
        paper="Reuss et al. 2023, BESO (arXiv 2304.02532)",
        encoder=Encoder(state=MLP(128, 1)),
        conditions=(Goal(mode="future", drop=0.1),),
        backbone=Transformer(width=240, depth=6, heads=6, dropout=0.3, causal=True),
        objective=EDM(),
        codec=Absolute("minmax"),
        solver=DDIM(),
        sampling_steps=3,
        n_obs_steps=4,
        horizon=4,
        n_past_actions=3,
        n_action_steps=1,
        training=Training(
            steps=10000, batch_size=64 if images else 256, betas=(0.9, 0.95), weight_decay=1e-4
        ),
    )
