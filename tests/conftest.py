"""Tests import the contracts beside them as `contracts.arm`; everything else as `ulna.…`."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# the networks of the tests are tiny: threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

# what these drive answers within milliseconds, or has failed
REAL_TIME = (
    "test_calibrate",
    "test_drivers_",
    "test_robot_motion",
    "test_robot_own_rate",
    "test_robot_people",
    "test_robot_twin",
    "test_soak",
)


@pytest.fixture(scope="module", autouse=True)
def before_what_can_wait(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where it is allowed: processor time for tests of real time first, and then for the training that runs beside them."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if request.path.name.startswith(REAL_TIME):
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, -10)
    yield
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, before)
