"""JSON that may come from anyone: what is read here can be written again, compared and computed with."""

from __future__ import annotations

import json
import math
from typing import Any

MOST_DEPTH = 64


def loads(text: str | bytes) -> Any:
    """The value of JSON `text`. ValueError: it is no JSON, a number of it is not finite (NaN, `1e999`) or
    does not fit into 64 bits, or it is nested more than 64 deep."""
    try:
        value = json.loads(text, parse_float=_float, parse_int=_int, parse_constant=_constant)
    except RecursionError:
        raise ValueError(f"it is nested more than {MOST_DEPTH} deep") from None
    layer = [value]
    for _ in range(MOST_DEPTH):
        layer = [
            child
            for v in layer
            if isinstance(v, dict | list)
            for child in (v.values() if isinstance(v, dict) else v)
        ]
        if not layer:
            return value
    raise ValueError(f"it is nested more than {MOST_DEPTH} deep")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is not finite")
    return number


def _int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**64:
        raise ValueError(f"the number {text[:40]} has more than 64 bits")
    return number


def _constant(text: str) -> float:
    raise ValueError(f"the number {text} is not finite")
