"""What it takes to add something of each kind, counted in the example package, and the table of it in
docs/adding.md. `python tests/test_additions.py` writes the table anew."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "ulna_example"
PAGE = ROOT / "docs" / "adding.md"
BEGIN, END = "<!-- table: made by tests/test_additions.py -->\n", "<!-- end -->\n"
KINDS = {
    "recipe": "mlp_flow",
    "objective": "cosine_flow",
    "backbone": "whole_chunk_mlp",
    "hook": "nudge",
    "task": "hover",
    "camera driver": "test_pattern",
    "command": "longest",
}
ONE_FILE = ("recipe", "objective", "hook", "backbone")


def files_of(module: str) -> list[Path]:
    """The module's file, and those of the package that it imports and that no other kind is about."""
    folder = EXAMPLE / "src" / "ulna_example"
    tree = ast.parse((folder / f"{module}.py").read_text())
    imports = {
        n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module
    }
    return [folder / f"{m}.py" for m in (module, *sorted(imports - set(KINDS.values())))]


def lines_of(path: Path) -> int:
    """Lines of code: without blank lines, comments and docstrings."""
    source = path.read_text()
    code: set[int] = set()
    texts: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt | ast.expr):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            is_text = isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
            (texts if is_text else code).update(lines)
    code -= texts
    text = source.splitlines()
    return sum(1 for n in code if text[n - 1].strip() and not text[n - 1].strip().startswith("#"))


def table() -> str:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    entries = [v for group in project["entry-points"].values() for v in group.values()]
    rows = ["| kind | files | lines of code | lines in `pyproject.toml` |", "|---|---|---|---|"]
    for kind, module in KINDS.items():
        files = files_of(module)
        named = sum(1 for e in entries if e.split(":")[0] == f"ulna_example.{module}")
        rows.append(f"| {kind} | {len(files)} | {sum(map(lines_of, files))} | {named} |")
    return "\n".join(rows) + "\n"


def test_the_page_says_what_the_example_package_needed() -> None:
    between = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert between == table(), "run `python tests/test_additions.py`"


@pytest.mark.parametrize("kind", ONE_FILE)
def test_a_part_or_recipe_is_one_file(kind: str) -> None:
    assert len(files_of(KINDS[kind])) == 1


if __name__ == "__main__":
    head, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(head + BEGIN + table() + END + rest.split(END)[1])
    sys.stdout.write(table())
