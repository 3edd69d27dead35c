"""`--strategy NAME --strategy.FIELD value`: how a policy's chunks are asked for and executed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .errors import UsageError, unknown
from .steering import split_fields, split_hook_fields

if TYPE_CHECKING:
    from ..strategies.strategy import Strategy

PREFIX = "strategy."


def strategies() -> list[str]:
    """Their names, as `CHOICES` wants them."""
    from ..strategies.all import STRATEGIES

    return list(STRATEGIES)


def split_all_fields(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """(the rest, `strategy_fields` of `--strategy.FIELD value` by FIELD, and `hook_fields` of hooks and
    directors); may be a command's `prepare`."""
    rest, hook_fields = split_hook_fields(argv)
    rest, values = split_fields(rest, lambda name: name.startswith(PREFIX))
    return rest, hook_fields | {"strategy_fields": {k.removeprefix(PREFIX): v for k, v in values.items()}}


def strategy_of(name: str, strategy_fields: Mapping[str, str]) -> Strategy | None:
    """What `--strategy` and its fields say; None: as the policy is usually run. UsageError or ValueError in
    one sentence."""
    from ..strategies.all import STRATEGIES, strategy_named

    if not name:
        if strategy_fields:
            raise UsageError(f"--{PREFIX}{next(iter(strategy_fields))} belongs to no --strategy: name one")
        return None
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return strategy_named(name, strategy_fields)


def strategies_help(rest: Any = None) -> str:
    """Every strategy with its fields and their defaults; may be a command's `more_help`."""
    from ..strategies.all import STRATEGIES

    lines = ["strategies (--strategy NAME), and their fields (--strategy.FIELD VALUE):"]
    for name, kind in STRATEGIES.items():
        says = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        lines += textwrap.wrap(f"{name}: {says}", 98, initial_indent="  ", subsequent_indent="      ")
        if own := [f"{f.name} {f.default}" for f in fields(kind)]:
            lines.append(f"      fields: {', '.join(own)}")
    return "\n".join(lines)
