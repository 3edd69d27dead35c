"""`ulna train`: config files, phases, resuming without options, and progress where there is no terminal."""

from __future__ import annotations

import json
import tomllib
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from contracts.data import write_store
from rich.console import Console
from safetensors.torch import load_file

from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import read_train
from ulna.policies.train import loop
from ulna.policies.train.state import is_unfinished
from ulna.robot.cli import main
from ulna.robot.commands.lines import Lines

FILE = """
recipe = "flow"
data = "{data}"
seed = 3
observe = ["observation.state", "observation.environment_state"]
steps = 4
n-obs-steps = 1

[training]
batch_size = 8
warmup = 2
checkpoint_every = 2

[backbone]
part = "UNet1D"
widths = [16, 32]
"""
PHASES = """
[[phase]]
steps = 3

[[phase]]
learning-rate = 1e-3
training.freeze = ["encoder.*"]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("data") / "d").path


@pytest.fixture
def file(data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(FILE.format(data=data))
    return path


def train(capfd: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capfd.readouterr()
    assert main(["train", *map(str, words), "--device", "cpu", "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def refusal(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    capfd.readouterr()
    assert main(["train", *map(str, words)]) != 0
    (line,) = [w for w in capfd.readouterr().err.splitlines() if w.startswith("ulna: ")]
    return line


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """While it holds a number, a training is cut off after that many steps."""
    after: list[int] = []
    save = loop.save_state

    def cut(*args: Any) -> None:
        save(*args)
        losses = signature(save).bind(*args).arguments["losses"]
        if after and len(losses) == after[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", cut)
    return after


def test_a_config_file_trains_and_a_checkpoint_s_own_repeats_it(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = train(capfd, "--config", file, "--out", tmp_path / "a", "--horizon", "8", "--workers", "1")
    assert first["steps"] == 4
    config = tomllib.loads((tmp_path / "a" / "config.toml").read_text())
    assert (config["seed"], config["horizon"], config["n_obs_steps"], config["workers"]) == (3, 8, 1, 1)
    again = train(capfd, "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b")
    assert again["content_hash"] == first["content_hash"]
    assert tomllib.loads((tmp_path / "b" / "config.toml").read_text()) == config
    other = train(capfd, "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "c", "--seed", "4")
    assert other["content_hash"] != first["content_hash"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sede = 1", "run.toml: the recipe flow has no field sede: did you mean seed or"),
        ("batch-siz = 1", "no field batch_siz: did you mean batch_size or"),
        ("[backbone]\nwidhts = [1]", "no field backbone.widhts: did you mean backbone.widths"),
        ("steps = 'few'", "run.toml: training.steps is a int"),
        ("seed = 'x'", "--seed"),
        ("backbone = 'Transfrmer'", "backbone is one of UNet1D, Transformer"),
        ("resume = true", "run.toml: resume belongs on the command line"),
        ("phase = 3", "run.toml: phases are written [[phase]]"),
        ("steps = ", "run.toml is not TOML"),
        ("[[training.groups]]\nlearning_rate = 1", "a parameter group is a pattern"),
    ],
)
def test_a_wrong_config_file_is_one_sentence(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f'recipe = "flow"\ndata = "{data}"\n{text}\n')
    assert says in refusal(capfd, "--config", path, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()
    assert "cannot read the config file" in refusal(capfd, "--config", tmp_path / "no", "--out", "o")


def test_resuming_needs_no_option_and_names_one_that_differs(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], interrupted: list[int]
) -> None:
    out = tmp_path / "o"
    whole = train(capfd, "--config", file, "--out", tmp_path / "whole")
    interrupted.append(2)
    assert main(["train", "--config", str(file), "--out", str(out), "--device", "cpu"]) == 130
    interrupted.clear()
    resume = ["--out", out, "--resume"]
    assert "--seed was 3, not 1: " in refusal(capfd, *resume, "--seed", "1")
    assert "--training.steps was 4, not 9: " in refusal(capfd, *resume, "--steps", "9")
    assert "the recipe was flow, not act" in refusal(capfd, "act", *resume)
    line = refusal(capfd, *resume, "--observe", "observation.state", "--augment", "crop")
    assert "--augment was nothing, not crop" in line
    assert "--observe was observation.environment_state observation.state, not observation.state" in line
    line = refusal(capfd, *resume, "--backbone", "Transformer")
    assert "--backbone was UNet1D, not Transformer: " in line, "and not each field of it"
    assert train(capfd, *resume, "--seed", "3")["content_hash"] == whole["content_hash"]
    assert "already trained 4 of 4 steps: more --steps make it go on" in refusal(capfd, *resume)
    assert "no unfinished training" in refusal(capfd, "--out", tmp_path / "none", "--resume")
    assert "--resume needs --out" in refusal(capfd, "--resume")


def test_what_does_not_fit_leaves_the_folder_as_it_was(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], interrupted: list[int]
) -> None:
    out = tmp_path / "o"
    interrupted.append(2)
    assert main(["train", "--config", str(file), "--out", str(out), "--device", "cpu"]) == 130
    interrupted.clear()
    before = {p: p.read_bytes() for p in out.iterdir() if p.is_file()}
    line = refusal(capfd, "--config", file, "--out", out, "--overwrite", "--freeze", "encodr.*")
    assert "encodr.* matches no weight" in line
    assert {p: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    line = refusal(capfd, "--config", file, "--out", tmp_path / "n", "--start", tmp_path / "no")
    assert "there is no checkpoint folder" in line
    assert not (tmp_path / "n").exists()


def test_phases_begin_where_the_one_before_ended(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], interrupted: list[int]
) -> None:
    file.write_text(file.read_text() + PHASES)
    out = tmp_path / "o"
    whole = train(capfd, "--config", file, "--out", out)
    assert whole["phases"] == [str(out / "phase-1"), str(out)]
    first, last = read_train(out / "phase-1"), read_train(out)
    assert (first.steps, last.steps) == (3, 4)
    before, after = (load_file(p / "model.safetensors") for p in (out / "phase-1", out))
    for name, value in after.items():
        assert value.equal(before[name]) == name.startswith("encoder."), name
    assert "holds a trained checkpoint" in refusal(capfd, "--config", file, "--out", out)
    assert (
        train(capfd, "--config", file, "--out", out, "--overwrite")["content_hash"] == whole["content_hash"]
    )

    cut = tmp_path / "cut"
    interrupted.append(2)
    for words in (
        ["--config", str(file)],
        ["--resume"],
    ):  # cut off in the first phase, and then in the second
        first_is_complete = words == ["--resume"]
        assert main(["train", *words, "--out", str(cut), "--device", "cpu"]) == 130
        assert (cut / "phase-1" / "hash.json").exists() == first_is_complete
        assert is_unfinished(cut / "phase-1") != first_is_complete
    interrupted.clear()
    assert "--training.steps was 3, not 9: phase 1 of 2 is complete" in refusal(
        capfd, "--out", cut, "--resume", "--steps", "9"
    )
    single = ["--config", out / "config.toml", "--out", cut]
    assert "holds a training of several phases" in refusal(capfd, *single)
    resumed = train(capfd, "--out", cut, "--resume")
    assert read_train(cut).losses == last.losses
    assert resumed["steps"] == 4
    train(capfd, "--config", cut / "phases.toml", "--out", tmp_path / "again")
    assert read_train(tmp_path / "again").losses == last.losses, "begins from its own first phase"
    assert read_train(tmp_path / "again").start == read_train(cut).start


def test_a_dataset_is_opened_once(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    open_store = EpisodeStore.open

    def count(path: Any, *args: Any, **kwargs: Any) -> EpisodeStore:
        opened.append(str(path))
        return open_store(path, *args, **kwargs)

    monkeypatch.setattr(EpisodeStore, "open", count)
    file.write_text(file.read_text() + PHASES)
    train(capfd, "--config", file, "--out", tmp_path / "o")
    assert opened == [tomllib.loads(file.read_text())["data"]], "for both phases"


def test_every_phase_is_checked_before_the_first_is_trained(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text() + PHASES + "horizn = 8\n")
    says = "run.toml, phase 2: the recipe flow has no field horizn: did you mean horizon"
    assert says in refusal(capfd, "--config", file, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_training_says_how_far_it_is_where_there_is_no_terminal(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "o"), "--device", "cpu"]) == 0
    lines = [w for w in capfd.readouterr().err.splitlines() if w.startswith("training: ")]
    assert lines[-1].startswith("training: 4 of 4, loss ")
    assert lines[-1].endswith("examples/s")


def test_plain_lines_come_at_a_sensible_pace() -> None:
    now, lines = [0.0], []
    with Lines("training", Console(stderr=True), lines.append, lambda: now[0]) as bar:
        task = bar.add_task("", total=1000, note="")
        for step in range(1, 1001):
            now[0] += 0.5
            bar.update(task, completed=step, note=f"loss {1 / step:.3f}")
        assert lines[0] == "training: 20 of 1000, loss 0.050, 8:10 left", "after 10 s"
        assert len(lines) == 50
        assert lines[-1] == "training: 1000 of 1000, loss 0.001"
        lines.clear()
        quick = bar.add_task("", total=1000, note="")
        for step in range(1, 1001):
            now[0] += 0.1
            bar.update(quick, completed=step)
        assert [w.split()[1] for w in lines] == [str(n) for n in range(50, 1001, 50)], "every 5 %"
        lines.clear()
        instant = bar.add_task("", total=1000, note="")
        for step in range(1, 1001):
            bar.update(instant, completed=step)
        assert lines == ["training: 1000 of 1000"], "no flood"
        unknown = bar.add_task("", total=None, note="")
        now[0] += 11
        bar.update(unknown, completed=7)
        assert lines[-1] == "training: 7"
