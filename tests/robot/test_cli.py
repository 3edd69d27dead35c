"""The command line as a user meets it: answers, exit codes, sentences. Real parts throughout."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ulna.datasets.features import ACTION, STATE, Feature
from ulna.datasets.store import EpisodeStore
from ulna.policies.backbones.transformer import Transformer
from ulna.policies.parts import PARTS, field_help, settings
from ulna.policies.recipes.all import RECIPES
from ulna.policies.serving.client import PolicyClient, PolicyServerError
from ulna.policies.train.loop import Progress, train
from ulna.policies.train.state import STATE_FILE
from ulna.robot.cli import COMMANDS, SUBCOMMANDS, main, module_name
from ulna.robot.commands.errors import UsageError
from ulna.robot.commands.parsing import episode_list
from ulna.robot.commands.recipe_fields import with_changes
from ulna.robot.commands.serve import named
from ulna.robot.commands.train import split_overrides

COMMANDS_FOLDER = Path(__file__).parents[2] / "robot" / "commands"
TINY = ["--steps", "3", "--batch-size", "8", "--backbone.widths", "16", "32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded dataset and two checkpoints trained on it, by the commands themselves."""
    root = tmp_path_factory.mktemp("run")
    assert main(["record", "--task", "reach", "--episodes", "3", "--out", f"{root}/data"]) == 0
    for name, seed in (("flow", "0"), ("other", "1")):
        words = ["--data", f"{root}/data", "--out", f"{root}/{name}", "--seed", seed, *TINY]
        assert main(["train", "flow", *words]) == 0
    return root


def answer(capfd: pytest.CaptureFixture[str], *argv: str) -> dict:  # type: ignore[type-arg]
    capfd.readouterr()
    assert main([*argv, "--json"]) == 0
    out = capfd.readouterr().out
    assert len(out.splitlines()) == 1, "one object, and nothing else on standard output"
    return json.loads(out)


def complaint(capfd: pytest.CaptureFixture[str], *argv: str, code: int) -> str:
    capfd.readouterr()
    assert main(list(argv)) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("ulna: ")]
    return line


def test_help_is_at_hand(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capfd.readouterr().out
    assert all(c in text for c in COMMANDS)
    for command in (*(c for c in COMMANDS if c != "data"), "data info", "data import"):
        assert main([*command.split(), "--help"]) == 0
        text = capfd.readouterr().out
        assert "example:" in text
        assert f"ulna {command}" in text
    assert main(["data", "--help"]) == 0


COMMAND_LINES = [c for c in COMMANDS if c not in SUBCOMMANDS]
COMMAND_LINES += [f"{c} {s}" for c, subs in SUBCOMMANDS.items() for s in subs]


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_every_option_says_what_it_is(capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capfd.readouterr().out
    for empty in ("(default: '')", "(default: None)", "(default: )"):
        assert empty not in text
    assert "{," not in text, "a choice without a name"
    assert "{None" not in text, "a choice of Python's"
    path = Path(COMMANDS_FOLDER, *module_name(command).split(".")).with_suffix(".py")
    (args,) = (
        n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef) and n.name == "Args"
    )
    for field, after in pairwise([*args.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign) and "Suppress" not in ast.unparse(field.annotation):
            assert isinstance(after, ast.Expr), f"{command}: {ast.unparse(field.target)} has no help"


def test_choices_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def help_of(*words: str) -> str:
        assert main([*words, "--help"]) == 0
        return capfd.readouterr().out

    assert "--task reach|lift|push_t|stack|insert|sort|wipe|handover|WORDS" in help_of("record")
    assert "--agent expert|hold|leader|gamepad|spacemouse|keyboard|browser" in help_of("record")
    assert "--robot sim:panda|sim:so101|sim:so101-pair|sim:ur5e|FILE.toml" in help_of("deploy")
    assert "--device cpu|cuda|cuda:N" in help_of("serve")
    assert help_of("train").count("diffusion_unet") == 1  # of sixty names one list is enough
    text = help_of("train", "flow")
    assert "--backbone UNet1D  {UNet1D,Transformer," in text
    assert "--decoder slice  {slice,ensemble}" in text
    assert "Actions in the predicted chunk" in text


def test_every_field_of_a_recipe_says_what_it_is() -> None:
    features = {STATE: Feature((2,), "float32"), ACTION: Feature((2,), "float32")}
    for part in (*PARTS.values(),):
        fields = {f.name for f in dataclasses.fields(part)}
        assert set(field_help(part)) == fields, f"{part.__name__} has fields without a docstring"
    assert all(s.help for make in RECIPES.values() for s in settings(make(features)))


def test_every_answer_is_one_json_object(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recording = answer(
        capfd, "record", "--task", "reach", "--episodes", "1", "--out", f"{run}/more", "--cameras", "front"
    )
    assert (recording["episodes"], recording["successes"]) == (1, 1)
    info = answer(capfd, "data", "info", f"{run}/more")
    assert info["features"]["observation.images.front"]["shape"] == [96, 96, 3]
    assert info["rates"]["observation.state"]["hz"] == 20.0
    assert set(answer(capfd, "recipes")) == set(RECIPES)
    evaluation = answer(
        capfd, "evaluate", f"{run}/flow", "--task", "reach", "--episodes", "2", "--videos", "1"
    )
    assert (evaluation["episodes"], evaluation["nfe_per_decision"]) == (2, 10.0)
    assert json.loads(Path(evaluation["report"]).read_text())["outcomes"] == evaluation["outcomes"]
    assert Path(evaluation["videos"][0]).stat().st_size > 500
    expert = answer(capfd, "evaluate", "--agent", "expert", "--task", "reach", "--episodes", "2")
    assert expert["successes"] == 2
    loop = answer(
        capfd, "evaluate", "--open-loop", f"{run}/flow", "--data", f"{run}/data", "--episodes", "0,2"
    )
    assert loop["kind"] == "open-loop"
    training = answer(capfd, "train", "act", "--data", f"{run}/data", "--out", f"{run}/act", "--steps", "2")
    assert training["recipe"] == "act"


def test_serving_and_deploying_by_the_commands(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "ulna.robot.cli", "serve", f"{run}/flow", "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        deployment = answer(
            capfd, "deploy", "--server", ready["url"], "--task", "reach", "--max-seconds", "0.5"
        )
        assert deployment["checkpoint"] == ready["checkpoint"]
        assert deployment["episodes"][0]["ticks"] <= 10
        words = ["evaluate", f"{run}/flow", "--server", ready["url"], "--task", "reach", "--episodes", "1"]
        assert answer(capfd, *words)["server"] == ready["url"]
        other = complaint(capfd, "evaluate", f"{run}/other", "--server", ready["url"], code=1)
        assert "another checkpoint" in other
        argv = ["serve", f"{run}/flow", "--port", ready["url"].rsplit(":", 1)[1]]
        assert "is a server running there already" in complaint(capfd, *argv, code=1)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, "Ctrl-C is how a server is stopped"
        assert process.stdout is not None
        process.stdout.close()


def test_serving_rounded_weights(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["serve", f"{run}/flow", "--port", "0", "--quantize", "int8", "--json"]
    command = [sys.executable, "-m", "ulna.robot.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "with int8 weights its actions differ by" in process.stderr.readline()
        ready = json.loads(process.stdout.readline())
        assert (ready["quantize"], ready["validations"]) == ("int8", [])
        words = ["--server", ready["url"], "--task", "reach", "--episodes", "1"]
        assert answer(capfd, "evaluate", *words)["episodes"] == 1
        refusal = complaint(capfd, "evaluate", f"{run}/flow", *words, code=1)
        assert "so what it does is no report on that checkpoint" in refusal
    finally:
        process.kill()
        process.communicate()


def test_serving_two_models_with_a_key_and_tls(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(run / "flow", tmp_path / "flow")
    words = [f"{tmp_path}/flow", f"second={run}/other", "--port", "0", "--watch", "--tls", "--json"]
    words += ["--host", "0.0.0.0", "--key-file", f"{tmp_path}/key"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ulna.robot.cli", "serve", *words], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert set(ready["models"]) == {"flow", "second"}
        server = ready["url"].replace("0.0.0.0", "127.0.0.1")
        mark = f"#{ready['fingerprint']}"
        with pytest.raises(PolicyServerError, match="asks for a key"):
            PolicyClient(server + mark)
        monkeypatch.setenv("ULNA_KEY_FILE", f"{tmp_path}/key")
        with PolicyClient(f"{server}/second{mark}") as second:
            assert second.metadata.checkpoint == ready["models"]["second"]
        with PolicyClient(server + mark) as client:
            shapes = {k: f.shape for k, f in client.metadata.features.items() if k != ACTION}
            request = {k: np.zeros(shape, np.float32) for k, shape in shapes.items()}
            assert client.infer(request)["checkpoint"] == ready["checkpoint"]
            for file in (run / "other").iterdir():
                if file.is_file():
                    shutil.copy(file, tmp_path / "flow")
            deadline = time.monotonic() + 60
            while client.infer(request)["checkpoint"] != ready["models"]["second"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stdout is not None
        process.stdout.close()


def test_names_of_models() -> None:
    assert named(["runs/x/flow"]) == {"policy": "runs/x/flow"}
    assert named(["a=runs/x/flow"]) == {"a": "runs/x/flow"}
    assert named(["runs/x/flow", "b=runs/y/flow"]) == {"flow": "runs/x/flow", "b": "runs/y/flow"}
    with pytest.raises(UsageError, match="would both be called flow: give them names, as in one="):
        named(["runs/x/flow", "runs/y/flow"])
    with pytest.raises(ValueError, match="cannot be the name of a model"):
        named(["metrics=runs/x/flow"])


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["serve"], 2, "name a checkpoint"),
        (["serve", "x", "--host", "0.0.0.0"], 2, "add --key-file FILE"),
        (["serve", "x", "--host", "::", "--port", "0"], 2, "add --key-file FILE"),
        (["serve", "x", "--host", "0.0.0.0", "--groot-port", "5555"], 2, "or --open on a network that you"),
        (["serve", "x", "--host", "0.0.0.0", "--open", "--key-file", "k"], 2, "leave one of them out"),
        (["serve", "x", "--tls-key", "k"], 2, "name it by --tls-cert"),
        (["serve", "{run}/flow", "--tls-cert", "{run}/flow/hash.json"], 2, "as certificate and key"),
        (["serve", "{run}/flow", "--key-file", "{run}/flow/recipe.json"], 1, "is no key"),
        (["recrod"], 2, "no command 'recrod': did you mean record"),
        (["data", "inf"], 2, "did you mean info"),
        (["record", "--out", "{new}", "--task", "lfit"], 1, "no task 'lfit': did you mean lift or insert?"),
        (["record", "--out", "{new}", "--robot", "sim:so11"], 1, "did you mean sim:so101"),
        (["record", "--out", "{new}", "--agent", "exprt"], 1, "did you mean expert"),
        (["record", "--out", "{new}", "--task", "handover"], 1, "has 1: choose sim:so101-pair"),
        (["record", "--out", "{new}", "--robot", "sim:so101-pair"], 1, "has 2: choose sim:so101 or"),
        (
            [
                "record",
                "--out",
                "{new}",
                "--robot",
                "sim:so101-pair",
                "--task",
                "handover",
                "--agent",
                "keyboard",
            ],
            1,
            "a keyboard moves one arm, and sim:so101-pair has 2",
        ),
        (["record", "--out", "{new}", "--episods", "3"], 2, "no option --episods: did you mean --episodes"),
        (["record", "--cameras", "front", "wrist"], 2, "wrist after --cameras front: where it takes several"),
        (["record", "--json", "front"], 2, "does not expect front (see"),
        (["record", "--out", "{new}", "--episodes", "many"], 2, "many"),
        (["record"], 2, "--out"),
        (["record", "--out", "{run}/flow"], 1, "not empty"),
        (
            ["train", "flwo", "--data", "{run}/data", "--out", "{new}"],
            2,
            "no recipe 'flwo': did you mean flow",
        ),
        (["train", "flow", "--data", "{run}/data", "--out", "{new}", "--horizn", "8"], 2, "--horizon"),
        (["train", "flow", "--data", "{run}/data", "--out", "{new}", "--horizon", "10"], 1, "multiple of 4"),
        (
            ["train", "flow", "--data", "{run}/data", "--out", "{new}", "--steps", "few"],
            1,
            "training.steps is a int",
        ),
        (
            ["train", "flow", "--data", "{run}/data", "--out", "{new}", "--device", "tpu"],
            2,
            "no device 'tpu'",
        ),
        (["evaluate", "{run}/flow", "--device", "cuda:99"], 1, "no cuda:99 on this machine"),
        (["train", "flow", "--data", "{run}/nowhere", "--out", "{new}"], 1, "no dataset at"),
        (
            ["train", "flow", "--data", "{run}/data", "--out", "{new}", "--episodes", "0-99"],
            1,
            "episodes 0 to 2",
        ),
        (["data", "stats", "{run}/data", "--episodes", "99"], 1, "has episodes 0 to 2, not 99"),
        (
            ["train", "flow", "--data", "{run}/data", "--out", "{new}", "--tolerance", "-1"],
            2,
            "--tolerance is a time in seconds",
        ),
        (["train", "flow", "--data", "{run}/data", "--out", "{run}/flow"], 1, "--overwrite"),
        (["evaluate", "{run}/data"], 1, "not a complete Ulna checkpoint"),
        (["evaluate", "{run}/flow", "--robot", "sim:panda"], 1, "panda"),
        (["evaluate", "--open-loop", "{run}/flow"], 2, "--data"),
        (["evaluate"], 2, "name a checkpoint"),
        (["serve", "{run}/nowhere"], 1, "no checkpoint folder"),
        (["deploy", "--server", "ws://127.0.0.1:9"], 1, "ulna serve"),
        (["data", "info", "{run}"], 1, "not an Ulna episode store"),
        (["data", "import", "{run}/data", "--out", "{new}"], 1, "not a LeRobot dataset"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], argv: list[str], code: int, says: str
) -> None:
    new = tmp_path / "new"
    line = (
        complaint(capfd, *[a.format(run=run, new=new) for a in argv], code=code)
        if argv[-1] != "sim:panda"
        else ""
    )
    if not line:  # a mismatch shows both sides, on lines of their own
        assert main([a.format(run=run, new=new) for a in argv]) == code
        line = capfd.readouterr().err
    assert says in line
    assert not (new / "hash.json").exists()


def test_ctrl_c_leaves_whole_episodes(tmp_path: Path) -> None:
    out = tmp_path / "d"
    command = [
        sys.executable,
        "-m",
        "ulna.robot.cli",
        "record",
        "--task",
        "lift",
        "--episodes",
        "100000",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list((out / "episodes").glob("*")) if out.exists() else []) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; what was finished is kept" in err
    assert not list((out / "in-progress").iterdir())
    assert main(["data", "info", str(out)]) == 0


def test_a_disk_without_room_is_one_sentence_and_keeps_the_last_state(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No file may grow beyond a limit, which fails as a full disk does: in the middle of a write."""
    out = tmp_path / "f"
    words = ["train", "flow", "--data", f"{run}/data", "--out", str(out), "--checkpoint-every", "2"]
    words += ["--batch-size", "8", "--backbone.widths", "16", "32", "--steps", "5"]

    def without_room(*more: str) -> str:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            return complaint(capfd, *words, *more, code=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    line = without_room()
    assert line.startswith(f"ulna: cannot write to {out}: File too large")
    assert line.endswith("train again")
    assert {p.name for p in out.iterdir()} == {"config.toml", "tensorboard"}, "nothing half-written"

    recipe = RECIPES["flow"](EpisodeStore.open(run / "data").features)
    recipe = with_changes(
        recipe, {"checkpoint_every": "2", "batch_size": "8", "backbone.widths": "16 32", "steps": "5"}
    )

    def interrupt(p: Progress) -> None:
        if p.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, run / "data", out, device="cpu", report=interrupt)
    state = (out / STATE_FILE).read_bytes()
    assert without_room("--resume").endswith("go on with --resume")
    assert (out / STATE_FILE).read_bytes() == state
    assert main([*words, "--resume"]) == 0
    assert (out / "hash.json").exists()


def test_lists_of_episodes() -> None:
    assert episode_list("0-3,7") == [0, 1, 2, 3, 7]
    for bad in ("3-1", "a", "1,,2"):
        with pytest.raises(ValueError, match="write them like"):
            episode_list(bad)


def test_fields_of_the_recipe_are_told_from_options() -> None:
    argv = ["flow", "--data", "d", "--horizon=8", "--backbone.widths", "32", "64", "--json", "--seed", "3"]
    assert split_overrides(argv) == (
        ["flow", "--data", "d", "--json", "--seed", "3"],
        {"horizon": "8", "backbone.widths": "32 64"},
    )


def test_whole_parts_are_chosen_before_their_fields() -> None:
    recipe = RECIPES["flow"]({STATE: Feature((2,), "float32"), ACTION: Feature((2,), "float32")})
    result = with_changes(
        recipe, {"backbone.depth": "3", "backbone": "Transformer", "steps": "9", "keypoints": "4"}
    )
    assert isinstance(result.backbone, Transformer)
    assert result.backbone.depth == 3
    assert result.training.steps == 9
    assert result.encoder.image.keypoints == 4
    with pytest.raises(ValueError, match=r"--backbone\.depth or --encoder\.state\.depth"):
        with_changes(recipe, {"backbone": "Transformer", "depth": "3"})
    with pytest.raises(ValueError, match=r"no field --backbone\.depth"):
        with_changes(recipe, {"backbone.depth": "3"})


def test_help_for_training_lists_the_fields_of_a_recipe(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "act", "--help"]) == 0
    text = capfd.readouterr().out
    assert "--training.learning-rate" in text
    assert "--objective.inner.norm l1" in text


def test_a_closed_pipe_is_no_error() -> None:
    process = subprocess.run(
        f"{sys.executable} -m ulna.robot.cli recipes --json | head -c 1",
        shell=True,
        capture_output=True,
        env=os.environ,
        check=False,
    )
    assert process.stdout == b"{"
    assert b"Traceback" not in process.stderr


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ulna.robot.cli", "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    )
    script = tmp_path / "completion"
    script.write_text(done.stdout)
    ask = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tyro_ulna; echo "${COMPREPLY[@]}"'
    lines = {"ulna tr": "train", "ulna data ch": "check", "ulna evaluate x --ba": "--batch"}
    for line, word in lines.items():
        words = ["bash", "-c", ask, "bash", str(script), *line.split(" ")]
        answer = subprocess.run(words, capture_output=True, text=True, check=True)
        assert answer.stdout.split() == [word], (line, answer.stderr)


def test_threads_that_wait_sleep_unless_the_user_says_otherwise() -> None:
    code = (
        "import os; from ulna.robot.cli import main; main(['recipes']); print(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
        assert done.stdout.split()[-1] == policy
