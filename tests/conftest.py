"""Tests import the contracts beside them as `contracts.arm`; everything else as `ulna.…`."""

import os
import sys
from collections.abc import Iterator
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Take back real-time priority that a library gave this process. SVT-AV1, which LeRobot encodes videos with, puts
    the thread that starts it under SCHED_FIFO 99 where it runs as root, for good: the tests after it, and the
    browsers that they start, would leave the twins no processor."""
    result = yield
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return result
