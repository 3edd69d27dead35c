"""One reading of one device, with the two times that matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """What a device said, when it was true and when we learned it.

    data: array of the device's own shape (joint positions `(J,)` float64 rad or m; image `(H, W, 3)` uint8
    RGB). t_capture_ns: when the quantity was measured, on the clock of the robot (see `drivers.clock`).
    t_receive_ns: when the bytes reached this process; never before `t_capture_ns`. seq: the device's own
    counter; two reads with equal `seq` are the same measurement. valid: per-element validity `data.shape[:1]`
    for an arm, one bool for a camera. An invalid element keeps
        its last value, so that nobody computes with NaN by accident.
    """

    data: np.ndarray
    t_capture_ns: int
    t_receive_ns: int
    seq: int
    valid: np.ndarray | bool = True


@runtime_checkable
class Backlog(Protocol):
    """What a camera, its depth or an arm also keeps that is read whether or not anybody asks."""

    def since(self, after_seq: int) -> list[Sample]:
        """Every sample with a seq above `after_seq`, oldest first, as far back as they are kept."""
        ...
