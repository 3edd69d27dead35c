"""pi0.5 (Black et al. 2025, arXiv 2504.16054): pi0 that is told its state in words."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.action_expert import ActionExpert
from ..backbones.fast_tokens import FAST
from ..backbones.insulated import Insulated
from ..codec import Absolute, Padded
from ..conditions.instruction import Instruction
from ..contexts.cached_prefix import CachedPrefix
from ..objectives.knowledge_insulation import KnowledgeInsulation
from ..recipe import Recipe
from .pi0 import SMALL, SMALL_EXPERT, SMALL_TRAINING, pi0, writing

PAPER = "Black et al. 2025, pi0.5 (arXiv 2504.16054)"
INSULATION = "Driess et al. 2025, knowledge insulating VLAs (arXiv 2505.23705)"


def pi05(features: Features) -> Recipe:
    """The low-level policy of pi0.5 (Black et al. 2025, arXiv 2504.16054), in the size of the released
    weights.

    As `pi0`, but the state is told in words, each element as one of 256 numbers, and the level of noise by
    the norms of the expert.

    Faithful, and equal to LeRobot 0.6.1's code on the same weights to 1e-4 (`benchmarks/vla.py`): the
    networks, the text, quantile normalisation. Not: the high-level half, which writes a subtask before it
    acts, of which no code was released. Co-training with words is an option, `training.words`."""
    base = pi0(features)
    return replace(
        base,
        name="pi05",
        paper=PAPER,
        conditions=(Instruction(most=200, state=True),),
        context=CachedPrefix("unsaid"),
        backbone=ActionExpert(time="norm"),
        codec=Padded(Absolute("quantile")),
        normalise_state="quantile",
    )


def pi05_small(features: Features) -> Recipe:
    """pi0.5's parts (Black et al. 2025, arXiv 2504.16054) in a size of about two million, which trains from
    random weights. Not published: as of `pi0_small`."""
    return replace(
        pi05(features),
        name="pi05_small",
        encoder=SMALL,
        backbone=replace(SMALL_EXPERT, time="norm"),
        horizon=16,
        n_action_steps=8,
        training=SMALL_TRAINING,
    )


def pi05_ki(features: Features) -> Recipe:
    """pi0.5 with knowledge insulation (Driess et al. 2025, arXiv 2505.23705), in the size of the released
    weights.

    The flow expert learns as before, but its gradients stop at what it attends to; the language model learns
    to write the same chunk in FAST tokens, which no decision asks for.

    Faithful: where gradients stop, both losses with equal weights, tokens that the expert does not see. Not:
    the co-training with other data of pictures and words; with the words of its own data it is an option,
    `training.words`."""
    return replace(
        pi05(features),
        name="pi05_ki",
        paper=INSULATION,
        encoder=writing(pi05(features).encoder),
        backbone=Insulated(ActionExpert(time="norm"), FAST(skip=128)),
        objective=KnowledgeInsulation(),
    )


def pi05_ki_small(features: Features) -> Recipe:
    """The parts of `pi05_ki` (Driess et al. 2025, arXiv 2505.23705) in a size of about two million, which
    trains from random weights. Not published: as of `pi0_small`; the state is a token among those read."""
    return replace(
        pi05_ki(features),
        name="pi05_ki_small",
        encoder=writing(SMALL),
        conditions=(Instruction(),),
        context=CachedPrefix("among"),
        backbone=Insulated(replace(SMALL_EXPERT, time="norm"), FAST(vocabulary=512)),
        codec=Absolute("quantile"),
        horizon=16,
        n_action_steps=8,
        training=SMALL_TRAINING,
    )
