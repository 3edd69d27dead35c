"""The containers and units of deploy/: what they copy, run and name exists."""

from __future__ import annotations

import configparser
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ulna.robot import cli
from ulna.robot.commands import parsing

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
ULNA = "/opt/ulna/bin/ulna"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
UNITS = sorted(DEPLOY.glob("*.service"))
ENVIRONMENTS = sorted(DEPLOY.glob("*.env"))


def require_command(words: list[str]) -> None:
    """`ulna WORDS` is a command with these options."""
    name, rest = words[0], words[1:]
    assert name in cli.COMMANDS
    module = cli._command(name)
    parsing.parse(module, name, rest)  # UsageError for what does not exist


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def environment(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_there_are_one_of_each_for_server_and_robot() -> None:
    names = [p.name for p in (*DOCKERFILES, *UNITS, *ENVIRONMENTS)]
    assert sorted(names) == sorted(
        [f"{who}.{kind}" for who in ("server", "robot") for kind in ("Dockerfile", "env")]
        + ["ulna-server.service", "ulna-robot.service"]
    )


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_an_image_copies_what_exists_and_runs_a_command(path: Path) -> None:
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions(path)} <= known
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    for name, rest in instructions(path):
        if name == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(fnmatch.fnmatch(source, pattern) for pattern in let_in), f"{source} is ignored"
        elif name == "RUN":
            for lock in re.findall(r"-r (\S+)", rest):
                assert (ROOT / lock).exists()
            if "-r requirements.lock" in rest:  # it is whole, without what pyproject.toml overrides
                assert "--no-deps" in rest, "pip misses a requirement of a requirement there"
    copied = {s for n, r in instructions(path) if n == "COPY" for s in r.split()[:-1]}
    assert {"robot", "drivers", "datasets", "policies", "sim", "pyproject.toml"} <= copied
    settings = dict(instructions(path))
    assert json.loads(settings["ENTRYPOINT"]) == [ULNA]
    words = json.loads(settings["CMD"])
    require_command(["deploy"] if words[-1] == "--help" else words)
    assert settings["USER"] == "ulna", "not root"


def test_the_commands_in_the_comments_exist_too() -> None:
    text = (DEPLOY / "robot.Dockerfile").read_text()
    (words,) = re.findall(r"^# +(deploy .*)$", text, re.MULTILINE)
    require_command(shlex.split(words))


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_a_unit_runs_a_command_with_its_environment(path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(path)
    service = unit["Service"]
    file = DEPLOY / Path(service["EnvironmentFile"]).name
    program, *words = service["ExecStart"].split()
    assert program == ULNA
    for word in words[1:]:
        assert word.startswith("$")
        require_command([words[0], *shlex.split(environment(file)[word[1:]])])
    assert f"/etc/ulna/{file.name}:" in file.read_text().splitlines()[0]


def test_nothing_moves_an_arm_from_boot_on() -> None:
    robot = (DEPLOY / "ulna-robot.service").read_text()
    assert "[Install]\n" not in robot
    assert "Restart=no" in robot
    assert "KillSignal=SIGINT" in robot
    assert "[Install]\n" in (DEPLOY / "ulna-server.service").read_text()


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_systemd_takes_a_unit(path: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not on this computer")
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace(ULNA, sys.executable))
    run = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert path.name not in run.stderr, run.stderr


@pytest.mark.realtime
def test_a_robot_is_reached_through_a_wire_that_delays(tmp_path: Path) -> None:
    """The trial of docs/remote.md, one short case."""
    trial = ROOT / "benchmarks" / "remote_trial.py"
    allowed = os.geteuid() == 0 and shutil.which("ip") and Path("/dev/net/tun").exists()
    if not allowed:
        pytest.skip("network namespaces need root, ip and /dev/net/tun")
    command = [sys.executable, str(trial), "--only", "5ms", "--seconds", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    if "cannot make a network namespace" in run.stderr:
        pytest.skip(run.stderr.strip().splitlines()[-1])
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stderr.partition("5ms ")[2].splitlines()[0])
    assert result["ticks"] == 20
    assert result["packets"] > 20
    assert result["decision_ms"]["p50"] >= 10, "there and back"
