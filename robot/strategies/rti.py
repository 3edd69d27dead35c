"""Real-time iteration (RTI-DP, Duan et al. 2025, arXiv 2508.05396)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...policies.serving.metadata import Metadata
from .slicing import Slicing, SlicingPlan
from .strategy import Plan


@dataclass(frozen=True)
class RTI(Slicing):
    """Begin each chunk from what is left of the last one and take only the last steps of the sampler: so few
    evaluations that the policy can be asked at every tick. The hook is `policies.hooks.rti.RTI`."""

    steps: int = 3
    """Last steps of the sampler that are taken; the first chunk of an episode takes all."""
    noise: bool = False
    """Draw fresh noise onto the last chunk before; published: none."""
    every: int = 1
    """Ticks from one question to the next, where the policy does not say how much to execute."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.every < 1:
            raise ValueError("steps and every are at least 1")

    def plan(self, metadata: Metadata) -> Plan:
        return SlicingPlan(self.every, self.blend)

    def steering(self) -> list[dict[str, Any]]:
        return [{"part": "RTI", "steps": self.steps, "noise": self.noise}]
