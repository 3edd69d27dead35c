"""What a decision costs in simulated time, where the world would else stand still until the policy has
answered: `ulna evaluate --latency`."""

from __future__ import annotations

import math
from dataclasses import dataclass

HELP = "milliseconds, MS/nfe for each network evaluation, or measured"


@dataclass(frozen=True)
class Charge:
    """ms: of a decision, or of each of its network evaluations where `per_evaluation`; None: as long as it
    took on this machine."""

    ms: float | None = 0.0
    per_evaluation: bool = False

    def __post_init__(self) -> None:
        if self.ms is not None and not 0 <= self.ms < math.inf:
            raise ValueError(f"a latency of {self.ms:g} ms cannot be: it must be 0 or more")

    @staticmethod
    def of(text: str) -> Charge:
        """Of `150`, `10/nfe` or `measured`. ValueError for other text."""
        if text.strip().lower() == "measured":
            return Charge(None)
        number, slash, unit = text.strip().lower().removesuffix("ms").partition("/")
        try:
            if slash and unit != "nfe":
                raise ValueError
            return Charge(float(number.removesuffix("ms")), bool(slash))
        except ValueError:
            raise ValueError(f"a latency is {HELP}, not {text!r}") from None

    def ticks(self, seconds: float, nfe: int, control_hz: float) -> int:
        """Ticks that pass until a decision is there which took `seconds` and `nfe` network evaluations: it is
        used at the first tick that does not begin before."""
        if self.ms is not None:
            seconds = self.ms * 1e-3 * (nfe if self.per_evaluation else 1)
        return math.ceil(seconds * control_hz - 1e-9)

    def __str__(self) -> str:
        if self.ms is None:
            return "measured"
        return f"{self.ms:g} ms{' a network evaluation' if self.per_evaluation else ''}"


FREE = Charge()
