"""What training says when it cannot."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrainingError(ValueError):
    """The run cannot start or go on; the message is one sentence."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`: did you mean …?` with the nearest of `names`, else what there is."""
    names = list(names)
    near = difflib.get_close_matches(name, names, 3, 0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names[:8])}"
