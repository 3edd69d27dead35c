"""A small vision-language-action policy that understands sentences it was not trained on."""

from __future__ import annotations

from ...datasets.features import Features
from ..backbones.transformer import Transformer
from ..codec import Relative
from ..conditions.sentence import Sentence
from ..encoders.feature_maps import FeatureMaps
from ..encoders.vector import SmallCNN
from ..objectives.flow import Flow
from ..recipe import Recipe, Training


def vla_small(features: Features) -> Recipe:
    """A vision-language-action policy that trains on one processor core: the words by a published sentence
    encoder that stays as it is, the pictures by a small network from random weights.

    Not a published method but published parts: all-MiniLM-L6-v2 (Reimers and Gurevych 2019) makes one token
    of the instruction, convolutions make one of each place in each camera's picture, and a transformer whose
    queries are the actions crosses these tokens at every step of a flow (Lipman et al. 2023). 24 million
    weights, of which 1.5 million are trained. The published vision-language-action models begin from a model
    that has seen pictures and words together; this one has not, so that what it can tell apart in a picture,
    and what words mean there, is what its demonstrations show. Study: vla_words."""
    return Recipe(
        name="vla_small",
        paper="Reimers and Gurevych 2019, Sentence-BERT (arXiv 1908.10084); Lipman et al. 2023 (arXiv "
        "2210.02747)",
        encoder=FeatureMaps(width=128, image=SmallCNN(crop=1.0)),
        conditions=(Sentence(),),
        backbone=Transformer(width=128, depth=4, heads=4),
        objective=Flow(predict="x"),
        codec=Relative("quantile"),
        n_obs_steps=1,
        training=Training(
            steps=5000,
            batch_size=64,
            learning_rate=5e-4,
            betas=(0.9, 0.95),
            weight_decay=1e-4,
            warmup=200,
            checkpoint_every=1000,
        ),
    )
