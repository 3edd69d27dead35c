"""Generators of policies: Make-An-Agent (Liang et al. 2024, arXiv 2407.10973) and G.pt (Peebles et al. 2022,
arXiv 2209.12892)."""

from __future__ import annotations

from ...datasets.features import ACTION, Features, state_keys
from ..backbones.pieces import Pieces, layers_in
from ..backbones.transformer import Transformer
from ..backbones.unet1d import UNet1D
from ..codec import Absolute, state_of_action
from ..components import PrincipalComponents
from ..conditions.label import Label
from ..encoders.vector import MLP, Encoder
from ..objectives.diffusion import Diffusion
from ..recipe import Recipe, Training

METRIC = "observation.metric"  # of the policy that there is, and of the one that is wanted


def make_an_agent(features: Features) -> Recipe:
    """Make-An-Agent (Liang et al. 2024, arXiv 2407.10973): one trajectory, and the weights of a policy that
    behaves so, for tasks of which no policy has been trained. For datasets of `ulna data zoo --told
    behaviour`; `ulna generate` writes what it draws.

    Faithful: weights are diffused as a latent by a UNet with FiLM of a behaviour embedding 128 wide, which
    predicts the clean latent, 100 levels in training and 10 in use, AdamW at 1e-4, batches of 128. Not: the
    latent is the principal components of a zoo, some tens, not 2048 of an autoencoder that is learned first;
    the embedding is learned with the rest, not by contrast beforehand, and is of evenly spaced ticks of
    demonstrations that the policy learned from, not of its own first steps and those after its success; the
    policies are clones, not agents of SAC; hidden units are numbered alike. Study:
    benchmarks/generated_policies.py."""
    return Recipe(
        name="make_an_agent",
        paper="Liang et al. 2024, Make-An-Agent (arXiv 2407.10973)",
        encoder=Encoder(state=MLP(128, 2)),
        backbone=Pieces(UNet1D(widths=(64, 128), time_width=64), width=32),
        objective=Diffusion(predict="x"),
        codec=PrincipalComponents(),
        n_obs_steps=1,
        horizon=1,
        n_action_steps=1,
        training=Training(steps=4000, batch_size=128, learning_rate=1e-4, warmup=100),
    )


def g_pt(features: Features) -> Recipe:
    """G.pt (Peebles et al. 2022, arXiv 2209.12892): the weights of a policy, how well it does and how well it
    should, and the weights of one that does, in one step. For datasets of `ulna data zoo --told metric`;
    `ulna generate` writes what it draws.

    Faithful: a transformer with a token for each layer, of its noisy weights and of those that there are,
    which predicts the clean weights; both metrics are told. Not: 4 layers of width 128, not 12 of 1536;
    Diffusion Policy's transformer, whose layers attend to the metrics and the time beside the tokens; a
    layer's weights and what it starts from are one token, not two; hidden units are numbered alike in all
    policies, in the place of renumbering them at random in training; 100 levels; batches of 128. No study."""
    starts = bool(state_of_action(features, required=False))
    return Recipe(
        name="g_pt",
        paper="Peebles et al. 2022, Learning to learn with generative models of neural network checkpoints "
        "(arXiv 2209.12892)",
        encoder=Encoder(state=MLP(128, 1)),
        conditions=(Label(METRIC, drop=0.0),) if METRIC in state_keys(features) else (),
        backbone=Pieces(Transformer(width=128, depth=4), layers_in(features[ACTION].names), present=starts),
        objective=Diffusion(predict="x"),
        codec=Absolute("meanstd"),
        n_obs_steps=1,
        horizon=1,
        n_action_steps=1,
        training=Training(steps=4000, batch_size=128, learning_rate=1e-4, warmup=100),
    )
