"""Strategies and latencies on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from contracts.recipes import small

from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.server import PolicyServer
from ulna.policies.train.loop import train
from ulna.robot.cli import main
from ulna.robot.config import load_robot
from ulna.robot.report.evaluation import ClosedLoop


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strategies")
    with load_robot("sim:so101", "reach") as rig:
        features = rig.robot.features
    store = EpisodeStore.create(folder / "data", features, 20.0, "sim:so101")
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        writer.start({"task": "reach"})
        for t in range(20):
            values = {k: rng.normal(size=f.shape).astype(np.float32) for k, f in features.items()}
            writer.tick(values, dict.fromkeys(values, (t * 50_000_000, t * 50_000_000)))
        writer.end({"success": True})
    return train(small("flow", features), folder / "data", folder / "flow", track=()).checkpoint


def test_evaluations_that_are_charged(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One at a time and many at once are the same episodes, and the report has its own name."""
    command = ["evaluate", str(checkpoint), "--task", "reach", "--episodes", "2", "--videos", "0", "--json"]
    how = ["--strategy", "rtc", "--strategy.jacobian=identity", "--latency", "10/nfe"]
    answers = []
    for batch in ("1", "2"):
        assert main([*command, *how, "--batch", batch]) == 0
        answers.append(json.loads(capfd.readouterr().out))
    one, many = answers
    assert one["outcomes"] == many["outcomes"]
    assert one["starved"] == many["starved"] == 2 * 2, "100 ms before the first chunk of each episode"
    assert one["strategy"]["name"] == "rtc"
    assert one["strategy"]["jacobian"] == "identity"
    assert one["charged"] == "10 ms a network evaluation"
    assert Path(one["report"]).name == "reach-sim-so101-rtc-10-nfe.json"
    assert ClosedLoop.from_json(one).strategy == one["strategy"]
    assert main([*command, "--latency", "measured"]) == 0
    measured = json.loads(capfd.readouterr().out)
    assert measured["charged"] == "measured"
    assert "strategy" not in measured


def test_a_report_with_anything_beside_the_checkpoint_has_its_own_name(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(checkpoint), "--task", "reach", "--episodes", "1", "--videos", "0", "--json"]
    how = ["--steer", "RTC", "--RTC.beta", "3", "--sampling-steps", "2", "--director", "Retry"]
    assert main([*command, *how]) == 0
    report = json.loads(capfd.readouterr().out)
    assert Path(report["report"]).name == "reach-sim-so101-RTC-2-steps-Retry.json"
    (hook,) = report["steering"]
    assert (hook["part"], hook["beta"], report["sampling_steps"]) == ("RTC", 3, 2)
    assert main([*command, "--agent", "expert"]) == 2
    assert "is no report on" in capfd.readouterr().err


def test_deploying_with_a_strategy(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A server that was told nothing answers a guided request; a refusal is one sentence."""
    with PolicyServer(LocalPolicy(checkpoint), port=0).background() as server:
        command = ["deploy", "--server", server.url, "--task", "reach", "--max-seconds", "2"]
        assert main([*command, "--strategy", "rtc", "--json"]) == 0
        answer = json.loads(capfd.readouterr().out)
        fields = {"beta": 5.0, "jacobian": "true", "patience_s": 3.0, "blend": 0}
        assert answer["strategy"] == {"name": "rtc"} | fields
        assert answer["decisions"] > 1
        assert answer["starved"] >= 1, "it thinks while the world goes on"
        assert answer["delay_ticks"] >= 1
        assert main([*command, "--strategy", "rtc-trained"]) == 1
        assert "was not trained to go on from some: train the recipe rtc_flow" in capfd.readouterr().err
        assert main([*command, "--json"]) == 0
        answer = json.loads(capfd.readouterr().out)
        assert (answer["strategy"], answer["starved"]) == ({"name": "receding"}, 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["deploy", "--strategy", "rct"], "there is no strategy 'rct': did you mean"),
        (["deploy", "--strategy", "rtc", "--strategy.gamma", "1"], "no field of the strategy rtc: 'gamma'"),
        (["deploy", "--strategy", "rtc", "--strategy.beta", "x"], "--strategy.beta is a number, not 'x'"),
        (["deploy", "--strategy", "rtc", "--strategy.beta"], "--strategy.beta needs a value"),
        (["deploy", "--strategy.beta", "1"], "--strategy.beta belongs to no --strategy: name one"),
        (["evaluate", "x", "--latency", "soon"], "a latency is milliseconds, MS/nfe for each"),
        (["evaluate", "x", "--latency", "-5"], "latency"),
        (["evaluate", "x", "--latency", "measured", "--batch", "2"], "measured one at a time"),
        (["evaluate", "--agent", "hold", "--strategy", "rtc"], "concern a policy: leave out --agent"),
        *(
            (["evaluate", "x", "--open-loop", option, value], f"{option} is of the closed loop")
            for option, value in [
                *(("--latency", "5"), ("--agent", "expert"), ("--director", "Retry"), ("--batch", "4")),
                *(("--robot", "sim:panda"), ("--task", "reach"), ("--prompt-episodes", "1")),
            ]
        ),
        (["evaluate", "x", "--data", "y"], "--data is of the open loop: add --open-loop"),
        *(
            (["evaluate", "--server", "ws://127.0.0.1:9", option, value], f"{option} is of where the policy")
            for option, value in [("--sampling-steps", "4"), ("--device", "cuda"), ("--threads", "2")]
        ),
    ],
)
def test_a_wrong_word_is_one_sentence(words: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words) in (1, 2)
    err = capfd.readouterr().err.strip()
    assert says in err
    assert err.count("\n") == 0
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["deploy", "evaluate"])
def test_strategies_are_listed(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capfd.readouterr().out
    assert "--strategy receding|async|ensemble|overlap|rtc|rtc-trained|rti" in text
    assert "fields: patience_s 3.0, blend 0, beta 5.0, jacobian true" in text
