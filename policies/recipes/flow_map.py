"""Flow maps as behaviour cloning."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.mlp import ResidualMLP
from ..codec import Absolute, Relative
from ..encoders.vector import MLP, Encoder
from ..objectives.flow_map import FlowMap
from ..recipe import Recipe, Training


def flow_map(features: Features) -> Recipe:
    images = bool(image_keys(features))
    return Recipe(
        name="flow_map",
        paper="Boffi et al. 2025, flow maps by self-distillation (arXiv 2505.18825)",
        encoder=Encoder(state=MLP(128, 1)),
        backbone=ResidualMLP(),
        objective=FlowMap(),
        sampling_steps=1,
        codec=Relative("quantile") if images else Absolute("minmax"),
        training=Training(
            steps=2500,
            batch_size=64 if images else 128,
            learning_rate=1e-3,
            betas=(0.9, 0.95),
            weight_decay=1e-4,
            warmup=100,
        ),
    )
