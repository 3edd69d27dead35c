"""Tests import the contracts beside them as `contracts.arm`; everything else as `ulna.…`."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

# the networks of the tests are tiny: threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

# without a GPU its kernels run in Triton's interpreter, which is chosen when Triton is imported
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidia0").exists() else "1")

# a shell without job control starts what it puts into the background with Ctrl-C ignored, for good
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What takes most of the suite's processor time: trainings, encodings, browsers, wheels, kills in bulk. By
# folder, file or name, so that a new test beside them is slow, too; `make test-fast` leaves these out, and
# ends any other test after a minute, so that a slow one that is missing here is noticed.
SLOW = (
    "datasets/checks/",
    "datasets/formats/",
    "datasets/reading/test_alignment.py::test_the_disk_cache_keeps",
    "datasets/reading/test_weights.py::test_a_resumed_run",
    "datasets/reading/test_weights.py::test_training_on_a_weighted",
    "datasets/reading/test_windows.py::test_windows_match_a_slow",
    "datasets/recording/",
    "datasets/test_edit.py::test_an_edit_that_is_killed",
    "datasets/test_edit.py::test_an_emptied_trash",
    "drivers/cameras/test_http_mjpeg.py::test_the_message_names",
    "drivers/hands/test_teleop_pictures.py::test_chromium",
    "drivers/servos/test_identity.py::test_a_high_id",
    "drivers/servos/test_identity.py::test_a_new_servo",
    "drivers/servos/test_identity.py::test_two_servos",
    "policies/adapters/test_equal.py",
    "policies/adapters/test_learns.py",
    "policies/adapters/test_tokens.py::test_a_checkpoint_keeps",
    "policies/adapters/test_tokens.py::test_a_published_tokenizer",
    "policies/adapters/test_tokens.py::test_nothing_of_the_extra",
    "policies/adapters/test_turns.py::test_earlier_turns",
    "policies/adapters/test_turns.py::test_without_them",
    "policies/adapters/test_weights.py::test_training_begins",
    "policies/backbones/test_dit.py::test_it_is_lerobots",
    "policies/backbones/test_horizons.py::test_every_objective",
    "policies/export/",
    "policies/fast/",
    "policies/learn/test_iql.py::test_the_actor_prefers",
    "policies/learn/test_success.py",
    "policies/lerobot/",
    "policies/serving/test_lerobot_wire.py::test_the_stock_client",
    "policies/serving/test_bounds.py::test_a_reader_of_no",
    "policies/serving/test_bounds.py::test_fuzz",
    "policies/serving/test_openpi_client.py",
    "policies/serving/test_quantised.py::test_every_recipe",
    "policies/test_act.py::test_it_learns",
    "policies/test_golden.py",
    "policies/test_memory.py",
    "policies/test_normalisers.py",
    "policies/test_sampling.py::test_sampling_with_the_ideal",
    "policies/test_solvers.py::test_a_solver_converges",
    "policies/test_vq_bet.py::test_it_goes_both",
    "policies/test_vq_bet.py::test_training_resumes",
    "policies/train/",
    "robot/control/test_controlled_arm.py",
    "robot/control/test_ends.py",
    "robot/demos/",
    "robot/doctor/test_doctor.py::test_the_command",
    "robot/report/test_report.py::test_a_closed_loop_report",
    "robot/setup/test_rehearsal.py",
    "robot/setup/test_setup.py",
    "robot/test_cli.py::test_a_closed_pipe",
    "robot/test_cli.py::test_a_wrong_command_line",
    "robot/test_cli.py::test_bash_completes",
    "robot/test_cli.py::test_ctrl_c",
    "robot/test_cli.py::test_every_answer",
    "robot/test_cli.py::test_serving_and_deploying",
    "robot/test_cli.py::test_serving_rounded",
    "robot/test_cli.py::test_serving_two",
    "robot/test_cli.py::test_threads_that_wait",
    "robot/test_collect.py::test_a_round",
    "robot/test_collect.py::test_rounds",
    "robot/test_collect.py::test_what_cannot",
    "robot/test_evaluate.py::test_deploying_through_a_server",
    "robot/test_evaluate.py::test_evaluation_reports_films",
    "robot/test_evaluate.py::test_failures_are_filmed",
    "robot/test_evaluate.py::test_people_watch",
    "robot/test_following.py",
    "robot/test_gate.py::test_a_real_robot",
    "robot/test_gate.py::test_reports_of",
    "robot/test_gate.py::test_the_gate_stands",
    "robot/test_hostile_stores.py",
    "robot/test_looking.py::test_looking_recovers",
    "robot/test_lerobot_arm.py::test_a_training",
    "robot/test_lerobot_arm.py::test_lerobot_itself",
    "robot/test_lerobot_policies.py",
    "robot/test_loop.py",
    "robot/test_lost.py",
    "robot/test_onlooker.py",
    "robot/test_own_rate.py::test_every_frame",
    "robot/test_lerobot_plugins.py",
    "robot/test_lerobot_words.py::test_a_checkpoint_in_degrees",
    "robot/test_lerobot_words.py::test_an_export_that",
    "robot/test_lerobot_words.py::test_our_words",
    "robot/test_lerobot_words.py::test_what_lerobot",
    "robot/test_record.py",
    "robot/test_replay.py",
    "robot/test_rollout.py::test_a_checkpoint_draws",
    "robot/test_rollout.py::test_pybullet",
    "robot/safety/test_simulated.py::test_an_evaluation",
    "robot/safety/test_twin.py",
    "robot/test_statement.py",
    "robot/strategies/test_commands.py",
    "robot/test_study.py",
    "robot/test_takeover.py::test_a_page",
    "robot/test_takeover.py::test_keys_take",
    "robot/test_takeover.py::test_the_scripted_hand",
    "robot/test_train.py",
    "robot/twin/",
    "robot/viewer/",
    "sim/test_manipulation.py",
    "sim/test_sim.py",
    "sim/test_t_block.py::test_overlap",
    "test_deploy_files.py::test_a_robot_is_reached",
    "test_external.py::test_a_study",
    "test_external.py::test_the_demonstrator_brings",
    "test_head_to_head.py::test_a_comparison_that",
    "test_head_to_head.py::test_every_method",
    "test_head_to_head.py::test_what_methods",
    "test_packaging.py",
    "test_plugins.py",
    "test_readme.py",
    "test_robot_computer.py",
    "test_soak.py",
    "test_written_before.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow; files with any of it come first, so that no process waits for another's last. A
    real-time test that fails is tried again, three times at most and later, any other once, and the summary
    names it: two cores that are shared may leave a twin without a processor for longer than a driver waits,
    and a test that ought not to mind may mind after all."""
    for item in items:
        name = f"{item.path.relative_to(TESTS).as_posix()}::{item.name}"
        if name.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        reruns = 3 if item.get_closest_marker("realtime") else 1
        item.add_marker(pytest.mark.flaky(reruns=reruns, reruns_delay=3))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
