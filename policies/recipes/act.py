"""Action chunking by regression (Zhao et al. 2023, arXiv 2304.13705)."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.encoder_decoder import EncoderDecoder
from ..backbones.latent import Latent
from ..backbones.transformer import Transformer
from ..codec import Absolute
from ..encoders.feature_maps import FeatureMaps
from ..encoders.vector import MLP, Encoder, ResNet18
from ..objectives.cvae import CVAE
from ..objectives.regression import Regression
from ..recipe import Recipe, Training

PAPER = "Zhao et al. 2023, ACT (arXiv 2304.13705)"


def act(features: Features) -> Recipe:
    """Action chunking with transformers, ACT (Zhao et al. 2023, arXiv 2304.13705).

    L1 regression of a chunk by a transformer over the feature maps of all cameras, trained as a conditional
    variational autoencoder, with temporal ensembling.

    Faithful: the latent of 32 and its KL weight 10, made in training of the chunk and the vectors observed,
    0 when acting; a ResNet18 a camera whose feature map gives the tokens, with two-dimensional sine positions
    at every layer; 4 encoder layers, the one decoder layer that the released code uses, width 512, 8 heads,
    3200 hidden units, dropout 0.1, post-norm; learned queries; one observation step; no crops; masked L1
    (divided by the actions that count, not by all); z-scored state and actions; ensemble weights exp(-0.01 i)
    with the oldest heaviest. Not: chunks of 20 at 20 Hz (100 at 50 Hz); the ResNets are not pretrained, have
    GroupNorm, and each camera has its own; tokens have a learned position besides, and one more tells the
    time; AdamW at 1e-4 in batches of 64 with a moving average (1e-5, 8, none).

    An ensemble decides at every tick: two arms that pass something on did so in 22 of 100 episodes, and in 95
    with `--decoder slice --n-action-steps 8` (`docs/studies.md`).

    From state alone the networks are half as wide (256, 1024 hidden units). With cameras it is made for a
    GPU; `docs/recipes.md` has a size for two cores. Without the latent: `--objective Regression`. What this
    recipe was before it was whole is `act_plain`."""
    width, ffn = (512, 3200) if image_keys(features) else (256, 1024)
    return _act(
        "act",
        encoder=FeatureMaps(width),
        backbone=Latent(EncoderDecoder(width, ffn=ffn), width, ffn=ffn),
        objective=CVAE(),
    )


def act_plain(features: Features) -> Recipe:
    """ACT without its latent (Zhao et al. 2023, arXiv 2304.13705).

    L1 regression of a chunk, temporal ensembling.

    Faithful: one observation step, learned queries attending to the observation, masked L1, z-scored state
    and actions, ensemble weights exp(-0.01 i) with the oldest heaviest. Not: no CVAE (z = 0 is what the
    released policy runs with); one token per observation (spatial softmax) instead of the ResNet's feature
    map; no transformer encoder over the observation; no pretrained weights; shorter chunks, as 20 Hz control
    is usual here, not 50 Hz."""
    return _act(
        "act_plain",
        encoder=Encoder(state=MLP(256, 1), image=ResNet18()),
        backbone=Transformer(width=256, depth=4, heads=8, dropout=0.1),
        objective=Regression("l1"),
    )


def _act(
    name: str,
    encoder: FeatureMaps | Encoder,
    backbone: Latent | Transformer,
    objective: CVAE | Regression,
) -> Recipe:
    return Recipe(
        name=name,
        paper=PAPER,
        encoder=encoder,
        backbone=backbone,
        objective=objective,
        sampling_steps=1,
        n_obs_steps=1,
        horizon=20,
        n_action_steps=1,
        decoder="ensemble",
        normalise_state="meanstd",
        codec=Absolute("meanstd"),
        mask_padding=True,
        training=Training(
            steps=10000, batch_size=64, learning_rate=1e-4, betas=(0.9, 0.999), weight_decay=1e-4
        ),
    )
