"""An ACT that LeRobot's own command trained on what we exported, through our commands: evaluated, served over
a socket, deployed to the twin of an arm, and stopped by the gate."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts.twin import twin
from lerobot_folders import policy_folder

from ulna.datasets.store import EpisodeStore
from ulna.policies.serving.client import PolicyClient
from ulna.policies.serving.local import LocalPolicy
from ulna.robot.agent import PolicyAgent
from ulna.robot.charge import Charge
from ulna.robot.cli import main
from ulna.robot.commands.execution import strategy_of
from ulna.robot.config import load_robot
from ulna.robot.directors.all import directors_named
from ulna.robot.directors.directed import Directed
from ulna.robot.evaluate import evaluate
from ulna.robot.gate import NotValidated, require_validated
from ulna.robot.study.lerobot_arm import LeRobotRunner
from ulna.robot.study.study import Arm, Demonstrations, Variant

SEEN = {  # not what only a simulator knows: a robot of this kind has no tracker
    "observation.state": {"type": "STATE", "shape": [6]},
    "observation.images.front": {"type": "VISUAL", "shape": [3, 96, 96]},
}
ACT = {
    "policy.input_features": SEEN,
    "steps": 2,
    "batch_size": 2,
    "num_workers": 0,
    "policy.pretrained_backbone_weights": None,
    "policy.chunk_size": 10,
    "policy.n_action_steps": 10,
    "policy.dim_model": 32,
    "policy.n_heads": 2,
    "policy.dim_feedforward": 32,
    "policy.n_encoder_layers": 1,
    "policy.n_vae_encoder_layers": 1,
}


FILTERED = 'name = "r"\ndriver = "sim"\nmodel = "so101"\ncontrol_hz = 20.0\n[safety]\n'


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("act", "ensemble"),
        ("act", "overlap"),
        ("diffusion", "async"),
        ("diffusion", "rtc"),
        ("diffusion", "rti"),
    ],
)
def test_strategies_directors_and_the_filter_stand_around_it(
    kind: str, strategy: str, tmp_path: Path
) -> None:
    """H6 to H8: a policy of random weights, which asks for what no arm should do."""
    folder = policy_folder(tmp_path / kind / "pretrained_model", kind, environment=6)
    (tmp_path / "r.toml").write_text(FILTERED)
    with load_robot(str(tmp_path / "r.toml"), "reach") as rig:
        policy = PolicyAgent(
            LocalPolicy(f"lerobot:{folder}"),
            rig.robot.features,
            rig.robot.control_hz,
            strategy=strategy_of(strategy, {}),
            charge=Charge.of("60"),
        )
        steps = directors_named(["Steps"], {"Steps.tasks": "reach; reach on", "Steps.seconds": "0.5"})
        with Directed(policy, steps, rig) as agent:
            report = evaluate(rig, agent, 1, videos=0)
    assert report.outcomes[0].reason is None
    assert report.outcomes[0].ticks > 10
    assert report.decisions
    assert report.safety, "the filter had something to say"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that LeRobot's training left."""
    root = tmp_path_factory.mktemp("trained")
    words = ["--task", "reach", "--episodes", "2", "--cameras", "front", "--out", f"{root}/data"]
    assert main(["record", *words]) == 0
    variant = Variant("main", "reach", {}, Demonstrations(2))
    arm = Arm("theirs", "lerobot", "act", ACT)
    assert LeRobotRunner().train(arm, variant, root / "data", root / "act", 0, "cpu").steps == 2
    return root / "act" / "lerobot"


@pytest.fixture(scope="module")
def served(trained: Path) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "ulna.robot.cli", "serve", f"act=lerobot:{trained}"]
    process = subprocess.Popen([*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def answer(capfd: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capfd.readouterr()
    code = main([*argv, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_it_is_evaluated_and_the_gate_asks_for_that(
    trained: Path, served: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    source, config = f"lerobot:{trained}", {"name": "my-so101", "validation": {"success": 0.0, "episodes": 1}}
    with PolicyClient(served["url"]) as client:
        before = client.metadata
    assert (before.recipe, before.control_hz, before.horizon) == ("lerobot act", 20.0, 10)
    assert (before.features["action"].names[0], before.features["action"].units[0]) == ("shoulder_pan", "rad")
    with pytest.raises(NotValidated, match="it has none"):
        require_validated(config, "my.toml", before)
    words = ["evaluate", source, "--task", "reach", "--episodes", "2", "--videos", "0"]
    report = answer(capfd, *words)
    assert (report["recipe"], report["checkpoint"]) == ("lerobot act", served["checkpoint"])
    place = trained / "checkpoints" / "last" / "pretrained_model" / "validation"
    assert Path(report["report"]).resolve().parent == place.resolve()
    together = answer(capfd, *words, "--batch", "2")
    for one, other in zip(together["outcomes"], report["outcomes"], strict=True):
        assert (one["seed"], one["success"], one["ticks"]) == (
            other["seed"],
            other["success"],
            other["ticks"],
        )
        # two rows of a convolution differ in their last digits from one, and physics magnifies that
        assert one["score"] == pytest.approx(other["score"], abs=0.02)
    there = answer(capfd, *words, "--server", served["url"])
    assert there["outcomes"] == report["outcomes"]
    with PolicyClient(served["url"]) as client:
        after = client.metadata
    assert after.checkpoint == before.checkpoint, "reports are no part of the hash"
    assert require_validated(config, "my.toml", after)["validation"]["episodes"] == 2


@pytest.mark.realtime
def test_it_is_deployed_to_the_twin_of_an_arm(
    served: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with twin("so101", "--scene", "reach", "--cameras", "front", "--fps", "20") as info:
        toml = Path(info["toml"])
        toml.write_text(toml.read_text().replace('driver = "so101"', 'driver = "so101"\nstale_s = 1.5'))
        words = ["--robot", str(toml), "--server", served["url"], "--task", "reach", "--episodes", "1"]
        words += ["--max-seconds", "2", "--strategy", "async", "--out", str(tmp_path / "d")]
        result = answer(capfd, "deploy", *words)
    assert result["checkpoint"] == served["checkpoint"]
    assert result["decisions"] >= 1
    (episode,) = EpisodeStore.open(tmp_path / "d").episodes
    assert episode.length == result["episodes"][0]["ticks"] > 0


def test_what_cannot_be_served_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", f"lerobot:{tmp_path}"]) in (1, 2)
    assert main(["evaluate", "lerobot:nobody/nothing", "--task", "reach"]) in (1, 2)
    assert main(["data", "units", f"lerobot:{tmp_path}", "--units", "radians"]) in (1, 2)
    err = capfd.readouterr().err
    assert err.count("holds no policy of LeRobot") == 2
    assert "fetch it with `ulna pull nobody/nothing`" in err
    assert "Traceback" not in err


def test_training_goes_on_from_it_and_gives_it_back(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, source = str(trained.parents[1] / "data"), f"lerobot:{trained}"
    words = ["train", "act", "--data", data, "--out", str(tmp_path / "act"), "--start", source]
    words += ["--steps", "1", "--batch-size", "2", "--device", "cpu", "--track", "none"]
    assert main(words) == 0
    err = capfd.readouterr().err
    assert "began with" in err
    assert "of another shape" not in err
    assert "new:" not in err
    recipe = json.loads((tmp_path / "act" / "recipe.json").read_text())
    assert (recipe["horizon"], recipe["encoder"]["width"]) == (10, 32)
    exported = answer(
        capfd, "export", str(tmp_path / "act"), "--to", "lerobot", "--out", str(tmp_path / "theirs")
    )
    assert (exported["type"], exported["why"]) == ("act", "")
    again = answer(
        capfd,
        "evaluate",
        f"lerobot:{tmp_path / 'theirs'}",
        "--task",
        "reach",
        "--episodes",
        "1",
        "--videos",
        "0",
    )
    assert again["control_hz"] == 20.0
    capfd.readouterr()
    assert main([*words[:1], "flow", *words[2:], "--overwrite"]) == 1
    assert "begins the recipe act, not flow" in capfd.readouterr().err
    assert main(["export", str(tmp_path / "act")]) == 2
    assert main(["export", str(tmp_path / "act"), "--to", "lerobot"]) == 2
