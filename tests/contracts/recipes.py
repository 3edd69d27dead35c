"""Every recipe in a size that trains in a second."""

from __future__ import annotations

import numpy as np
from contracts.data import FEATURES

from ulna.datasets.features import Features
from ulna.datasets.stats import vector_stats
from ulna.policies.conditions.slow import Kept
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipe import Recipe
from ulna.policies.recipes.all import RECIPES
from ulna.policies.train.slow import kept_of

TINY_VLA = {
    "encoder.language.width": 32,
    "encoder.language.depth": 2,
    "encoder.language.heads": 2,
    "encoder.language.kv_heads": 1,
    "encoder.language.head_dim": 16,
    "encoder.language.ffn": 64,
    "encoder.language.vocabulary": 128,
    "encoder.vision.width": 32,
    "encoder.vision.depth": 1,
    "encoder.vision.heads": 2,
    "encoder.vision.ffn": 64,
    "encoder.vision.side": 32,
    "encoder.vision.patch": 8,
    "encoder.vision.shuffle": 2,
}
TINY_EXPERT = {
    **TINY_VLA,
    "backbone.width": 32,
    "backbone.ffn": 64,
    "codec.width": 8,
    "horizon": 16,
    "n_action_steps": 8,
}
TINY_DIT = {
    **TINY_VLA,
    "encoder.state": 16,
    "context.layers": 1,
    "context.heads": 2,
    "backbone.depth": 2,
    "backbone.heads": 2,
    "backbone.head_dim": 16,
    "backbone.width": 32,
    "backbone.embodiments": 2,
    "codec.width": 8,
    "n_action_steps": 8,
}
TINY_WRITER = {**TINY_VLA, "encoder.language.vocabulary": 512, "horizon": 4, "n_action_steps": 4}
TINY_FAST = TINY_WRITER | {"backbone.vocabulary": 128, "backbone.skip": 0}
TINY_INSULATED = TINY_WRITER | {
    "backbone.inner.width": 32,
    "backbone.inner.ffn": 64,
    "backbone.words.vocabulary": 128,
    "backbone.words.skip": 0,
}
SMALL = {
    "flow": {"backbone.widths": (32, 64)},
    "diffusion_unet": {"backbone.widths": (32, 64)},
    "diffusion_transformer": {"backbone.width": 32, "backbone.depth": 2},
    "act": {
        "encoder.width": 32,
        "encoder.image": "SmallCNN",
        "backbone.width": 32,
        "backbone.depth": 1,
        "backbone.ffn": 64,
        "backbone.inner.width": 32,
        "backbone.inner.ffn": 64,
        "backbone.inner.encoder_depth": 2,
        "objective.latent": 8,
    },
    "act_plain": {"backbone.width": 32, "backbone.depth": 2},
    "mip": {"backbone.width": 64, "backbone.depth": 2},
    "regression_mlp": {"backbone.width": 64, "backbone.depth": 2},
    "flow_map": {"backbone.width": 64, "backbone.depth": 2},
    "ebt": {"backbone.inner.width": 32, "backbone.inner.depth": 2, "objective.steps": 2},
    "imc": {
        "backbone.inner.width": 32,
        "backbone.inner.depth": 2,
        "backbone.components": 3,
        "objective.rounds": 3,
    },
    "ptp": {"backbone.width": 32, "backbone.depth": 2},
    "beso": {"backbone.width": 36, "backbone.depth": 2},
    "decision_diffuser": {"backbone.widths": (32, 64), "codec.width": 32, "sampling_steps": 4},
    "sparse_dp": {"backbone.width": 32, "backbone.depth": 2, "backbone.hidden": 16, "backbone.experts": 4},
    "harmodt": {
        "backbone.inner.width": 32,
        "backbone.inner.depth": 1,
        "backbone.every": 2,
        "backbone.times": 2,
    },
    "fdp": {"encoder.width": 32, "backbone.inner.width": 32, "backbone.inner.depth": 2},
    "language_conditioned": {"encoder.width": 32, "backbone.width": 32, "backbone.depth": 2},
    "lid": {
        **{f"conditions.LID.{k}": v for k, v in {"weights": "", "width": 32, "depth": 1}.items()},
        **{f"conditions.LID.{k}": v for k, v in {"heads": 2, "ffn": 64, "vocabulary": 128}.items()},
        "backbone.width": 32,
        "backbone.depth": 1,
    },
    "user_conditioned": {"backbone.width": 32, "backbone.depth": 2},
    "hyperppo": {"backbone.widths": (8, 16), "backbone.depth": 2, "backbone.acts": (8, 16)},
    "hyperzero": {"encoder.state.width": 32, "backbone.widths": (16,), "backbone.embedding": 16},
    "make_an_agent": {
        "encoder.state.width": 32,
        "backbone.inner.widths": (32, 64),
        "backbone.count": 2,
        "backbone.width": 16,
    },
    "g_pt": {"backbone.inner.width": 32, "backbone.inner.depth": 1, "backbone.width": 16},
    "dichotomy_of_control": {
        "backbone.width": 32,
        "backbone.depth": 2,
        "conditions.Dichotomy.hidden": 32,
        "conditions.Dichotomy.latent": 4,
        "conditions.Dichotomy.luck": 0.1,  # else most of the loss is what no learning lowers
    },
    "lbp": {
        "backbone.width": 32,
        "backbone.depth": 2,
        "conditions.BackwardPlan.hidden": 32,
        "conditions.BackwardPlan.width": 16,
    },
    "uvd": {"backbone.width": 32, "backbone.depth": 2, "conditions.UVD.least": 3},
    "grif": {"backbone.width": 32, "conditions.Change.hidden": 32},
    "retrieval": {
        "backbone.width": 32,
        "backbone.depth": 1,
        "conditions.Store.length": 5,
        "context.nearest": 3,
    },
    "robodual": {"backbone.inner.width": 32, "backbone.inner.depth": 1},
    "icrt": {
        "encoder.width": 16,
        "backbone.width": 32,
        "conditions.Demonstrations.length": 5,
        "context.width": 16,
        "context.depth": 2,
        "context.heads": 2,
        "context.ffn": 32,
        "context.chain": 3,
    },
    "openha": {"backbone.inner.width": 32, "backbone.inner.depth": 1, "objective.latent": 8},
    "moh": {"backbone.inner.width": 32, "backbone.inner.depth": 1},
    "ndp": {"backbone.inner.width": 32, "backbone.inner.depth": 1},
    "vq_bet": {
        "backbone.inner.width": 32,
        "backbone.inner.depth": 1,
        "backbone.feature": 32,
        "backbone.codes": 4,
        "backbone.code_width": 16,
        "backbone.hidden": 32,
    },
    "rtc_flow": {"backbone.inner.width": 32, "backbone.inner.depth": 1},
    "bc_rnn": {"backbone.width": 32, "backbone.depth": 1, "context.memory": 16, "context.chain": 3},
    "seedpolicy": {
        "encoder.state.width": 16,
        "encoder.image": "SmallCNN",
        "backbone.width": 32,
        "backbone.depth": 1,
        "context.tokens": 4,
        "context.depth": 1,
        "context.heads": 2,
        "context.chain": 2,
    },
    "aura_mem": {"backbone.width": 32, "backbone.depth": 1, "context.size": 8, "context.chain": 3},
    **{
        name: {"backbone.width": 32, "backbone.depth": 1, "context.width": 16, "context.chain": 3}
        for name in ("decision_s4", "decision_mamba", "ada")
    },
    **{name: TINY_EXPERT for name in ("pi0", "pi0_small", "pi05", "pi05_small")},
    **{name: TINY_EXPERT for name in ("smolvla", "smolvla_small")},
    **{name: TINY_WRITER for name in ("openvla", "openvla_small")},
    **{name: TINY_FAST for name in ("pi0_fast", "pi0_fast_small")},
    **{name: TINY_INSULATED for name in ("pi05_ki", "pi05_ki_small")},
    **{name: TINY_VLA | {"backbone.width": 32} for name in ("openvla_oft", "openvla_oft_small")},
    **{name: TINY_DIT for name in ("gr00t", "gr00t_small")},
    **{name: TINY_WRITER | {"context.turns": 3} for name in ("litevlp", "litevlp_small")},
    "vla_small": {
        "encoder.width": 32,
        "conditions.Sentence.weights": "",
        "conditions.Sentence.width": 32,
        "conditions.Sentence.depth": 1,
        "conditions.Sentence.heads": 2,
        "conditions.Sentence.ffn": 64,
        "conditions.Sentence.vocabulary": 128,
        "backbone.width": 32,
        "backbone.depth": 1,
    },
}


def small(name: str, features=FEATURES, **training: object) -> Recipe:  # type: ignore[no-untyped-def]
    training = {"steps": 6, "batch_size": 8, "warmup": 2, "checkpoint_every": 3, **training}
    changes = {**SMALL[name], **{f"training.{k}": v for k, v in training.items()}}
    if name == "robodual":
        changes["conditions.Slow.kept"] = slow(features)
    return override(RECIPES[name](features), changes)


def slow(features: Features) -> Kept:
    """A policy to ask, whose weights nobody trained."""
    stats = {k: vector_stats(np.eye(2, f.shape[0])) for k, f in features.items() if f.dtype == "float32"}
    sizes = {"encoder.state.width": 16, "codec": "Absolute"}
    return kept_of(Policy(override(small("regression_mlp", features), sizes), features, stats))
