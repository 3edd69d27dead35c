"""What the tests of every teleoperator share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from ulna.drivers.arm import DeviceError
from ulna.drivers.config import parse
from ulna.drivers.teleoperator import Hand, Teleoperator

SOON_S = 20.0


def until(
    device: Teleoperator, is_met: Callable[[Hand], Any], meanwhile: Callable[[], object] = lambda: None
) -> Hand:
    """Read until `is_met(hand)`, calling `meanwhile` before each read. Returns that hand."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        meanwhile()
        hand = device.read()
        if is_met(hand):
            return hand
        time.sleep(0.005)
    raise AssertionError(f"not within {SOON_S} s; the last one: {device.read()}")


def check_bad_config(module: Any, table: dict[str, Any], match: str) -> None:
    with pytest.raises(DeviceError, match=match):
        module.make("hand", parse(module.Config, table, "robot.toml, [teleoperators.hand]"))
