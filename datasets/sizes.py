"""What shapes and types arrays of a dataset may have, checked before memory is taken for one."""

from __future__ import annotations

from math import prod
from typing import Any

ITEM_BYTES = {
    "bool": 1,
    **{f"{sign}int{8 * n}": n for sign in ("", "u") for n in (1, 2, 4, 8)},
    **{f"float{8 * n}": n for n in (2, 4, 8)},
}
MOST_DIMENSIONS = 8
MOST_ROWS = 1 << 28  # of one stream of one episode: three days at 1 kHz
MOST_ROW_BYTES = 1 << 28  # a picture of 8192 × 8192 has 200 MB
MOST_BYTES = 1 << 30  # of a stream of vectors of one episode, and of one chunk of any array


def dtype_of(value: Any) -> str:
    """`value`, which must be the name of a type of numbers."""
    if not isinstance(value, str) or value not in ITEM_BYTES:
        raise ValueError(f"there is no type of numbers {str(value)[:40]!r}: there is {', '.join(ITEM_BYTES)}")
    return value


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape `value`, a list of whole numbers from 0 on."""
    if (
        not isinstance(value, list | tuple)
        or len(value) > MOST_DIMENSIONS
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
    ):
        raise ValueError(
            f"a shape is a list of up to {MOST_DIMENSIONS} whole numbers from 0 on, not {str(value)[:60]}"
        )
    return tuple(value)


def count_of(value: Any, what: str) -> int:
    """`value`, which must be a whole number from 0 on and no more than an episode can have rows."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_ROWS:
        raise ValueError(f"{what} is {str(value)[:40]!r}, no whole number in 0..{MOST_ROWS}")
    return value


def require_row(shape: tuple[int, ...], dtype: str) -> None:
    """Raise ValueError where one row of this shape is larger than any that is recorded."""
    if (size := prod(shape) * ITEM_BYTES[dtype]) > MOST_ROW_BYTES:
        raise ValueError(f"a row of {shape} {dtype} would take {size} bytes, more than {MOST_ROW_BYTES}")
