"""What stands between a policy and a real arm: a passing validation of the very same checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..drivers.config import parse, setting

if TYPE_CHECKING:
    from ..policies.serving.metadata import Metadata


class NotValidated(ValueError):
    """The policy has no passing validation; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Bar:
    """The fields of `[validation]` in a robot's file."""

    success: float = setting(0.8, 0, 1)
    """Share of the episodes that must succeed."""
    episodes: int = setting(20, 1, 100_000)
    """At least so many."""
    on: str = ""
    """Which robot they must be on: `sim:so101`, or this robot's own name for its own twin (`ulna evaluate
    --robot FILE.toml`); empty: any."""
    task: str = ""
    """Which task they must be of; empty: any."""

    def __str__(self) -> str:
        on = f" on {self.on}" if self.on else ""
        task = f" of {self.task}" if self.task else ""
        return f"{100 * self.success:g} % of {self.episodes} episodes{task}{on}"


def bar_of(config: dict[str, Any], where: str) -> Bar:
    """Of a robot's file. DeviceError names what is wrong in it."""
    return parse(Bar, config.get("validation", {}), f"{where}, [validation]")


def require_validated(
    config: dict[str, Any], where: str, metadata: Metadata, unvalidated: str = ""
) -> dict[str, Any]:
    """What is stored with each episode on the real robot whose file `where` holds `config`: the validation
    that let the policy pass, or `unvalidated`, the reason to go without. NotValidated where neither is
    there."""
    bar = bar_of(config, where)
    of = "of its file" if config.get("validation") else "the default; [validation] in its file sets another"
    passing = [
        v
        for v in metadata.validations
        if v.episodes >= bar.episodes
        and v.success_rate >= bar.success
        and bar.on in ("", v.robot)
        and bar.task in ("", v.task)
    ]
    if passing:
        return {
            "validation": {
                **asdict(passing[0]),
                "bar": asdict(bar),
                "says": f"{passing[0]} (bar: {bar}, {of})",
            }
        }
    if unvalidated:
        return {"unvalidated": unvalidated}
    name = metadata.checkpoint[:8]
    which = f"the checkpoint {name}" if name else "this policy, whose server does not name its checkpoint,"
    found = "; ".join(map(str, metadata.validations)) or "it has none"
    raise NotValidated(
        f"{config['name']} is a real robot, and {which} has no validation that passes: {bar} ({of}); "
        f"{found}. "
        f"Run `ulna evaluate CHECKPOINT --robot {where}` where the policy was trained, or say why it may run "
        "without: --unvalidated 'REASON' is stored with what is recorded"
    )
