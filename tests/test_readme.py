"""The texts keep their promises: commands exist, links lead somewhere, pages build, the walk is whole."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ulna.robot import cli
from ulna.robot.commands import parsing
from ulna.robot.commands.errors import UsageError, unknown

ROOT = Path(__file__).parents[1]
TEXTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STOPS = {"&", "|", ">", ">>", "<", ";", "&&", "||"}


def commands() -> list[tuple[str, list[str]]]:
    """(text, words after `ulna`) of every command in a block of sh."""
    lines = []
    for text in TEXTS:
        for info, body in BLOCK.findall(text.read_text()):
            if info.split(" ")[0] == "sh":
                for line in body.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    if words[:1] == ["ulna"]:
                        end = next((i for i, word in enumerate(words) if word in STOPS), len(words))
                        lines.append((text.name, words[1:end]))
    return lines


def parse(words: list[str]) -> None:
    """As `ulna` would, without running: UsageError for what does not exist."""
    if words[0].startswith("-"):
        return
    size = 2 if words[0] in cli.SUBCOMMANDS else 1
    name, rest = " ".join(words[:size]), words[size:]
    names = cli.SUBCOMMANDS[words[0]] if size == 2 else cli.COMMANDS
    if words[size - 1] not in names:
        raise unknown("command", name, names)
    module = importlib.import_module(f"ulna.robot.commands.{cli.module_name(name)}")
    parsing.parse(module, name, rest)


@pytest.mark.parametrize(
    ("text", "words"), commands(), ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60]
)
def test_every_command_in_the_texts_exists(text: str, words: list[str]) -> None:
    parse(words)


def test_a_command_that_does_not_exist_is_noticed() -> None:
    for words in (["record", "--episode", "3"], ["data", "viev", "x"], ["trian"]):
        with pytest.raises(UsageError):
            parse(words)


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_what_the_texts_import_of_ulna_exists(path: Path) -> None:
    for info, body in BLOCK.findall(path.read_text()):
        if info.split(" ")[0] == "python":
            for node in ast.walk(ast.parse(body)):
                if isinstance(node, ast.ImportFrom) and (module := node.module or "").startswith("ulna"):
                    for name in node.names:
                        assert hasattr(importlib.import_module(module), name.name), f"{module}.{name.name}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_every_link_leads_to_a_file(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target.partition("#")[0]).exists(), f"{path.name} links to {target}"


def test_every_make_target_in_the_texts_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in TEXTS:
        for target in re.findall(r"`make ([\w-]+)", path.read_text()):
            assert target in targets, f"{path.name}: make {target}"


def test_make_clean_removes_what_the_demos_write() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (removed,) = re.findall(r"^clean:\n\trm -rf (.*)$", makefile, re.MULTILINE)
    assert {*re.findall(r"^DEMO\w* \?= (\S+)$", makefile, re.MULTILINE)} <= {*removed.split()}


def test_the_pages_build(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for page in tmp_path.glob("*.html"):
        html = page.read_text()
        external = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]+)', html)
        assert not external, f"{page.name} would fetch {external[0]}"


def test_the_tables_are_those_of_the_results() -> None:
    code = (
        "import json, tables;"
        "numbers = {n: r for n in tables.NAMES if (r := tables.load(n))};"
        "studies = tables.study_tables.studies_page(tables.study_tables.load_studies());"
        "print(json.dumps([tables.readme_table(numbers), tables.measured_page(numbers), studies]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
    )
    for path, lines in zip(
        (ROOT / "README.md", ROOT / "docs" / "measured.md", ROOT / "docs" / "studies.md"),
        json.loads(run.stdout),
        strict=True,
    ):
        assert "\n".join(lines) in path.read_text(), (
            f"run `python benchmarks/tables.py`: {path.name} is older"
        )


def test_the_walk_takes_the_blocks_in_order(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    walk = tmp_path / "scripts" / "walk-readme"
    walk.write_bytes((ROOT / "scripts" / "walk-readme").read_bytes())
    (tmp_path / "README.md").write_text(
        "```sh\nA=first\nsleep 60 & JOB=$!\n```\n```toml\nno = 'shell'\n```\n"
        '```sh title="needs an arm"\nexit 3\n```\n```sh\necho $A $((1 + 1))\nkill $JOB\n```\n'
    )
    run = subprocess.run(
        ["bash", walk, tmp_path / "log"], capture_output=True, text=True, timeout=30, check=False
    )
    log = (tmp_path / "log").read_text()
    assert run.returncode == 0, log
    assert "first 2" in log
    assert "left out: title=needs an arm" in log
    assert "walked the whole README" in log
    (tmp_path / "README.md").write_text("```sh\nfalse\necho on\n```\n")
    run = subprocess.run(
        ["bash", walk, tmp_path / "log"], capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode == 1
