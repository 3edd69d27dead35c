"""What a kind of arm must do, what its training gives, and how its policy is executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...drivers.arm import DeviceError
from ..charge import Charge
from ..strategies.all import strategy_named
from ..strategies.strategy import Strategy
from .study import EXECUTION, Arm, StudyError, Variant

if TYPE_CHECKING:
    from ..rollout import Decider


@dataclass(frozen=True)
class Trained:
    """checkpoint: its folder. seconds: of training, with those before an interruption left out."""

    checkpoint: Path
    content_hash: str
    parameters: int
    seconds: float
    steps: int
    final_loss: float


class Runner(Protocol):
    """A kind of arm."""

    def check(self, arm: Arm, sharing: Sequence[Arm], features: Mapping[str, Any]) -> None:
        """ValueError where the settings of the arm do not fit, or those of the arms that share its
        training."""
        ...

    def train(self, arm: Arm, variant: Variant, data: Path, out: Path, seed: int, device: str) -> Trained:
        """Train, go on with what was interrupted, or take what is trained already, in the folder `out`."""
        ...

    def decider(self, checkpoint: Path, settings: Mapping[str, Any], device: str) -> Decider:
        """The policy in the folder `checkpoint`, run with `settings` (keys of `study.RUN_TIME`) in place of
        its own."""
        ...


def execution(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Strategy | None, Charge]:
    """(the settings of an arm that are its recipe's, its strategy, what a decision costs). ValueError where
    `strategy`, its fields, `latency` or `prompts` do not fit."""
    own = {k: v for k, v in settings.items() if k.split(".")[0] in EXECUTION}
    rest = {k: v for k, v in settings.items() if k not in own}
    latency, name, prompts = own.pop("latency", 0), own.pop("strategy", None), own.pop("prompts", 0)
    if type(prompts) is not int or prompts < 0:
        raise StudyError(f"prompts is how many demonstrations are shown, from 0, not {prompts!r}")
    charge = Charge.of(str(latency))
    if charge.ms is None:
        raise StudyError("latency: what is measured differs between runs: name milliseconds, or MS/nfe")
    fields = {k.partition(".")[2]: v for k, v in own.items()}
    if name is None:
        if fields:
            raise StudyError(f"strategy.{next(iter(fields))} belongs to no strategy: name one")
        return rest, None, charge
    try:
        return rest, strategy_named(str(name), fields), charge
    except DeviceError as error:
        raise StudyError(str(error)) from None
