"""LeRobot's policies as arms of studies: with a stand-in for its command, and whole."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulna.robot.study.lerobot_arm import LOG, PYTHON, LeRobotRunner, exported, processor_seconds, step_seconds
from ulna.robot.study.study import Arm, Demonstrations, StudyError, Variant, read_study
from ulna.robot.study.work import Work, run_all

VARIANT = Variant("main", "catch", {}, Demonstrations(2))
STUDY = """
claim = "theirs runs here"
seeds = 1
episodes = 2
[task]
name = "catch"
[demonstrations]
count = 2
[common]
backbone = "ResidualMLP"
[arms.theirs]
lerobot = "diffusion"
steps = 2
batch_size = 4
"policy.horizon" = 8
"policy.n_action_steps" = 4
"policy.down_dims" = [16, 32]
"policy.num_inference_steps" = 4
[arms.faster]
of = "theirs"
sampling_steps = 2
solver = "DDIM"
n_action_steps = 6
[arms.late]
of = "theirs"
strategy = "async"
latency = 100
"""
# takes LeRobot's options, and does what its command does as seen from outside
STAND_IN = """#!{python}
import sys, time, pathlib
options = dict(w[2:].split("=", 1) for w in sys.argv if w.startswith("--"))
print("num_total_params=1234 (1K)")
{before}
print("Start offline training on a fixed dataset", flush=True)
print("step:1 loss:0.500 grdn:1.0 lr:1e-4 updt_s:0.200 data_s:0.050", flush=True)
folder = pathlib.Path(options["output_dir"]) / "checkpoints"
for step in {steps}:
    made = folder / f"{{step:06d}}"
    (made / "pretrained_model").mkdir(parents=True)
    (made / "pretrained_model" / "config.json").write_text('{{"type": "' + options["policy.type"] + '"}}')
    (folder / "last").unlink(missing_ok=True)
    (folder / "last").symlink_to(made.name)
{after}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "x.toml"
    file.write_text(STUDY)
    work = Work(file, tmp_path / "work")
    return work.record(work.study.variants["main"])


def stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str = "(1, 2)", before: str = "", after: str = ""
) -> None:
    file = tmp_path / "lerobot-python"
    file.write_text(STAND_IN.format(python=sys.executable, steps=steps, before=before, after=after))
    file.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(file))


def arm(**settings: Any) -> Arm:
    return Arm("theirs", "lerobot", "act", {"steps": 50, **settings})


def test_a_training_is_ended_after_its_seconds_of_the_processor(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, after="while True: pass")
    out = tmp_path / "out"
    trained = LeRobotRunner().train(arm(seconds=1.0), VARIANT, data, out, 3, "cpu")
    assert (trained.steps, trained.parameters, trained.final_loss) == (2, 1234, 0.5)
    assert trained.seconds >= 1
    assert [p.name for p in sorted((out / "lerobot" / "checkpoints").iterdir())] == ["000002", "last"]
    # what is trained is not trained again
    monkeypatch.setenv(PYTHON, "/nowhere")
    assert LeRobotRunner().train(arm(seconds=1.0), VARIANT, data, out, 3, "cpu") == trained
    (out / "trained.json").unlink()  # but one that was killed is
    with pytest.raises(StudyError, match=f"cannot start /nowhere, which {PYTHON} names"):
        LeRobotRunner().train(arm(seconds=1.0), VARIANT, data, out, 3, "cpu")


def test_a_folder_may_be_relative(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    assert LeRobotRunner().train(arm(), VARIANT, data, out, 3, "cpu").steps == 2
    assert [p.name for p in sorted((out / "lerobot" / "checkpoints").iterdir())] == ["000002", "last"]


def test_what_still_runs_is_not_begun_beside_itself(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill of the study alone: LeRobot's process then still holds the lock."""
    import fcntl

    stand_in(tmp_path, monkeypatch)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / LOG).with_suffix(".lock").open("w") as held:
        held.write("4711")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StudyError, match="still runs, as process 4711: end it, or wait"):
            LeRobotRunner().train(arm(), VARIANT, data, tmp_path / "out", 0, "cpu")
    assert LeRobotRunner().train(arm(), VARIANT, data, tmp_path / "out", 0, "cpu").steps == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": "()"}, "saved no checkpoint in .* give it more seconds or fewer steps"),
        ({"before": "sys.exit('ValueError: the horizon should be even')"}, "failed: ValueError: the horizon"),
        (
            {"before": "sys.exit(\"ModuleNotFoundError: No module named 'lerobot'\")"},
            f"No module named 'lerobot': name the Python of its environment in {PYTHON}",
        ),
    ],
)
def test_a_training_that_fails_says_why(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], sentence: str
) -> None:
    stand_in(tmp_path, monkeypatch, **options)
    with pytest.raises(StudyError, match=sentence) as error:
        LeRobotRunner().train(arm(), VARIANT, data, tmp_path / "out", 0, "cpu")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "trained.json").exists()


def test_its_options_are_the_commands(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, before="print(sys.argv)")
    settings = {"policy.down_dims": [16, 32], "policy.use_vae": False, "batch_size": 4}
    LeRobotRunner().train(arm(**settings), VARIANT, data, tmp_path / "out", 7, "cpu")
    log = (tmp_path / "out" / LOG).read_text()
    for option in (
        "'-m', 'lerobot.scripts.lerobot_train'",
        "--policy.type=act",
        "--policy.down_dims=[16, 32]",
        "--policy.use_vae=false",
        "--policy.push_to_hub=false",
        "--batch_size=4",
        "--seed=7",
        "--steps=50",
        "--save_freq=5",
        f"--dataset.root={exported(data)}",
    ):
        assert option in log
    assert step_seconds(log) == [0.25]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "catch"', 'name = "peg"', "observation.environment_state, one number"),
        ('name = "catch"', 'name = "fork"', "needs pictures or observation.environment_state"),
        ("steps = 2\n", "steps = 0\n", "steps is a number above 0"),
        ("batch_size = 4", "seconds = true", "seconds is a number above 0"),
        ("batch_size = 4", "seed = 4", "seed is not the arm's to choose"),
        ("batch_size = 4", 'data = {weights = "success"}', "learns from all that was recorded"),
        ('solver = "DDIM"', 'solver = "Heun"', "faster|DDPM or DDIM"),
        ('solver = "DDIM"', 'steering = "CFG"', "takes no steering when it runs"),
        ('lerobot = "diffusion"', 'lerobot = "act"', "LeRobot's act takes no sampling_steps"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    assert old in STUDY
    file = tmp_path / "x.toml"
    file.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(StudyError, match=sentence):
        Work(file, tmp_path / "work").begin()
    assert not (tmp_path / "work").exists()


def test_what_all_arms_share_is_for_recipes(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(STUDY + '[arms.ours]\nrecipe = "flow"\n')
    study = read_study(file)
    assert "backbone" in study.arms["ours"].settings
    assert "backbone" not in study.arms["theirs"].settings


def test_lerobot_itself(tmp_path: Path) -> None:
    """Trained by its own command on what we exported, and run by our executor."""
    from ulna.policies.request import Request

    file = tmp_path / "x.toml"
    file.write_text(STUDY)
    work = Work(file, tmp_path / "work")
    work.begin()
    run_all(work, 1)
    found = {r["arm"]: r for r in work.results()}
    assert {n: r["nfe_per_decision"] for n, r in found.items()} == {"theirs": 4, "faster": 2, "late": 4}
    assert found["theirs"]["steps"] == 2
    assert found["theirs"]["parameters"] > 1000
    assert found["late"]["metrics"]["starved"] >= 1
    assert len({r["checkpoint"] for r in found.values()}) == 1
    checkpoint = tmp_path / "work" / "main" / "theirs" / "seed-0"
    policy = LeRobotRunner().decider(checkpoint, {"n_action_steps": 6}, "cpu")
    m = policy.metadata
    assert (m.n_obs_steps, m.n_actions_ahead, m.n_action_steps, m.recipe) == (2, 7, 6, "lerobot diffusion")
    seen = {k: np.zeros((2, *f.shape), f.dtype) for k, f in m.features.items() if k != "action"}
    answers = policy.decide([Request(seen, seed) for seed in (1, 1, 2)])
    assert answers.chunks.shape == (3, 7, *m.features["action"].shape)
    # the commands that it learned from bound what it gives
    rows = json.loads((exported(tmp_path / "work" / "main" / "data") / "meta" / "stats.json").read_text())
    low, high = (np.array(rows["action"][k]) for k in ("min", "max"))
    assert (answers.chunks >= low - 1e-3).all()
    assert (answers.chunks <= high + 1e-3).all()
    # from the same noise, but what is drawn on the way is not the same
    again = policy.decide([Request(seen, seed) for seed in (1, 1, 2)])
    np.testing.assert_array_equal(again.chunks, answers.chunks)


def test_the_processor_s_time_of_a_process_is_that_of_its_children_too() -> None:
    spin = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    nest = f"""import subprocess, sys, time
subprocess.run([sys.executable, '-c', {spin!r}])
print(flush=True)
time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", nest], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = processor_seconds(process.pid)
        time.sleep(0.3)  # sleeping costs nothing
        assert 0.3 <= used <= processor_seconds(process.pid) < used + 0.2
        process.kill()
    assert processor_seconds(process.pid) == 0.0
