"""Tests import the contracts beside them as `contracts.arm`; everything else as `ulna.…`."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

# the networks of the tests are tiny: threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What takes most of the suite's processor time: trainings, encodings, browsers, wheels, kills in bulk. By
# folder, file or name, so that a new test beside them is slow, too; `make test-fast` leaves these out, and
# ends any other test after a minute, so that a slow one that is missing here is noticed.
SLOW = (
    "datasets/checks/",
    "datasets/formats/",
    "datasets/reading/test_weights.py::test_training_on_a_weighted",
    "datasets/recording/",
    "datasets/test_edit.py::test_an_edit_that_is_killed",
    "drivers/hands/test_teleop_pictures.py::test_chromium",
    "policies/serving/test_openpi_client.py",
    "policies/train/",
    "robot/demos/",
    "robot/test_onlooker.py",
    "robot/test_rollout.py::test_a_checkpoint_draws",
    "robot/test_study.py::test_a_study_by",
    "robot/test_study.py::test_the_same_results",
    "robot/twin/",
    "robot/viewer/",
    "sim/test_sim.py",
    "test_packaging.py",
    "test_readme.py",
    "test_soak.py",
    "test_written_before.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow. A real-time test that fails is tried again, twice at most and later, and the
    summary names it: two cores that other work shares may leave a twin without a processor for longer than a
    driver waits for a device."""
    for item in items:
        name = f"{item.path.relative_to(TESTS).as_posix()}::{item.name}"
        if name.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("realtime"):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=3))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Take back real-time priority that a library gave threads of this process. SVT-AV1, which LeRobot
    encodes videos with, puts its caller under SCHED_FIFO 99 where it runs as root, for good: the tests after
    it, and the browsers that they start, would leave the twins no processor."""
    result = yield
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            if os.sched_getscheduler(int(thread)) == os.SCHED_FIFO:
                os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
    return result
