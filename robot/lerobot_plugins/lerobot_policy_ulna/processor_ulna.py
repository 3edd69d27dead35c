"""The steps around an ulna policy: a batch axis and a device. Scales are the policy's own."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.processor import PolicyAction, PolicyProcessorPipeline, make_default_pre_post_processors

from .configuration_ulna import UlnaConfig


def make_ulna_pre_post_processors(
    config: UlnaConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """LeRobot's usual ones; every feature's normalisation is IDENTITY."""
    return make_default_pre_post_processors(config, dataset_stats)
