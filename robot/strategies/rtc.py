"""Real-time chunking: a new chunk is drawn so that it goes on from the one that is executed meanwhile. The
drawing is the policy's, by a hook that the request switches on; no server needs to be told beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .slicing import Slicing


@dataclass(frozen=True)
class RTC(Slicing):
    """Guide the sampling of every chunk towards what is left of the last one: fully on the ticks that will
    have passed when it is used, and less and less on those after them (Black et al. 2025, arXiv 2506.07339).
    For any checkpoint of flow matching or diffusion as it is; the hook is `policies.hooks.rtc.RTC`."""

    foretells: ClassVar[bool] = True
    beta: float = 5.0
    """Most weight of the guidance."""
    jacobian: Literal["true", "identity"] = "true"
    """Guide by the true vector-Jacobian product, or take the network's Jacobian for the identity, as LeRobot
    does: no backward pass."""

    def steering(self) -> list[dict[str, Any]]:
        return [{"part": "RTC", "beta": self.beta, "jacobian": self.jacobian}]


@dataclass(frozen=True)
class TrainedRTC(Slicing):
    """Give the policy the actions that will be executed meanwhile as the beginning of its chunk, as it was
    trained to take them (Black et al. 2025, arXiv 2512.05964): the recipe `rtc_flow`, or the objective
    `Prefixed`. The hook is `policies.hooks.prefix.Prefix`."""

    foretells: ClassVar[bool] = True

    def steering(self) -> list[dict[str, Any]]:
        return [{"part": "Prefix"}]
