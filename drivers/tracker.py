"""The contract of a tracker: further numbers that describe the scene, such as the pose of an object.

In simulation it is ground truth; on a real robot a marker tracker or a motion-capture client is one.
"""

from __future__ import annotations

from typing import Protocol

from .sample import Sample


class Tracker(Protocol):
    """`read().data` is `(len(names),)` float64. names: such as `cube.x`. units: one per name, SI ("1" for a
    number without unit)."""

    names: tuple[str, ...]
    units: tuple[str, ...]

    def open(self) -> None: ...

    def close(self) -> None: ...

    def read(self) -> Sample: ...
