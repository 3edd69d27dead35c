"""Tests import the contracts beside them as `contracts.arm`; everything else as `ulna.…`."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# the networks of the tests are tiny: threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A real-time test that fails is tried again, twice at most and later, and the summary names it: two
    cores that other work shares may leave a twin without a processor for longer than a driver waits for a
    device."""
    for item in items:
        if item.get_closest_marker("realtime"):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=3))
