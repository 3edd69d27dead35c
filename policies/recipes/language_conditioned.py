"""Language-conditioned imitation (Stepputtis et al. 2020, arXiv 2010.12083)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import ENVIRONMENT, STATE, Features, image_keys
from ..conditions.words import Words
from ..contexts.focus import Focus
from ..contexts.stack import Stack
from ..encoders.feature_maps import FeatureMaps
from ..encoders.objects import Objects
from ..encoders.vector import MLP, Encoder, SmallCNN
from ..recipe import Recipe
from .mip import regression_mlp


def language_conditioned(features: Features) -> Recipe:
    """Language-conditioned imitation (Stepputtis et al. 2020, arXiv 2010.12083): the sentence attends to what
    is seen, and a controller acts on what it found, all learned together by a squared error.

    Faithful: attention by the sentence over objects, one head; the controller sees the joints, the words and
    what was attended to, nothing else. Not: objects are positions, or places of a picture's feature map, in
    the place of an object detector's regions; words by hashes in the place of GloVe and a recurrent network;
    a chunk in the place of a recurrent controller's weights of basis functions (`--backbone NeuralDynamics`
    has such). Where nothing can be taken apart, as without `observation.environment_state` and cameras,
    there is nothing to attend to, and the words are simply told. Study: words_attention."""
    images = bool(image_keys(features))
    apart = images or {STATE, ENVIRONMENT} <= features.keys()
    encoder = FeatureMaps(width=64, image=SmallCNN(crop=1.0)) if images else Objects(size=_size(features))
    return replace(
        regression_mlp(features),
        name="language_conditioned",
        paper="Stepputtis et al. 2020, Language-conditioned imitation learning (arXiv 2010.12083)",
        encoder=encoder if apart else Encoder(state=MLP(128, 1)),
        conditions=(Words(),),
        context=Focus() if apart else Stack(),
    )


def _size(features: Features) -> int:
    """Elements of an object: x and y, where they come in twos, else x, y and z, else all of them."""
    elements = features[ENVIRONMENT].shape[0] if ENVIRONMENT in features else 1
    return next((n for n in (2, 3) if elements % n == 0), elements)
