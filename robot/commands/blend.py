"""Make a policy whose weights lie between those of two of one recipe: what a policy was, and what it became
by tuning."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from .errors import UsageError
from .parsing import Output, unset

EXAMPLE = "ulna blend runs/a/flow runs/b/tuned --weight 0.5 --out runs/ab"


@dataclass
class Args:
    first: tyro.conf.Positional[str]
    """A checkpoint, such as the one that tuning began from."""
    second: tyro.conf.Positional[str]
    """Another of the same recipe, such as what tuning made of it; the result has its statistics."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Where the result goes."""
    weight: float = 0.5
    """How much of the second, from 0 to 1."""
    modules: Annotated[str, unset("none", "PATTERN:WEIGHT")] = ""
    """Weights of their own for what these patterns name, with commas: encoder.*:0,net.*:0.7; the first that
    matches counts."""
    overwrite: bool = False
    """Replace what --out holds."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...policies.blend import blend

    result = blend(
        args.first,
        args.second,
        args.out,
        args.weight,
        module_weights(args.modules),
        args.overwrite,
        lambda sentence: print(f"ulna: {sentence}", file=sys.stderr),
    )
    one, other = (h[:8] for h in result["of"])
    out.answer(
        result,
        f"{result['checkpoint']}: {1 - args.weight:g} of {one} and {args.weight:g} of {other}, "
        f"{result['between']} of {result['parameters']} weights between both, {result['content_hash'][:8]}",
    )
    return 0


def module_weights(text: str) -> list[tuple[str, float]]:
    """`encoder.*:0,net.*:0.7` as pairs. UsageError in one sentence."""
    return [_module(word) for word in text.replace(",", " ").split()]


def _module(word: str) -> tuple[str, float]:
    pattern, _, weight = word.rpartition(":")
    try:
        return pattern or word, float(weight if pattern else "")
    except ValueError:
        raise UsageError(f"--modules is written PATTERN:WEIGHT, like encoder.*:0.2, not {word!r}") from None
