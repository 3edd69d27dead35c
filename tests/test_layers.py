"""Who may import whom, and what the control computer must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("robot", "drivers", "datasets", "policies", "sim")
PLUGINS = ROOT / "robot" / "lerobot_plugins"  # a distribution of its own, which LeRobot imports
MAY_IMPORT = {
    "drivers": set(),
    "datasets": set(),
    "sim": {"drivers"},
    "policies": {"datasets"},
    "robot": {"drivers", "datasets", "policies", "sim"},
}
# what `robot` may import of `policies` and `sim` when it is loaded; the rest only inside a function, when
# asked for
CONTROL_SIDE = {
    "policies.serving.client",
    "policies.serving.metadata",
    "policies.request",
    "drivers",
    "datasets",
}
HEAVY = {"torch", "lerobot", "transformers", "diffusers", "accelerate", "torchvision", "pybullet"}


def modules() -> list[tuple[str, Path]]:
    return [(f, p) for f in FOLDERS for p in sorted((ROOT / f).rglob("*.py")) if PLUGINS not in p.parents]


def imported_from(node: ast.ImportFrom, package: list[str]) -> str:
    """The absolute module of `from … import`, in a file of `package`."""
    base = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*base, *(node.module or "").split(".")]).strip(".")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(absolute module, whether it is imported when the file is) of each import; relative ones start with
    `ulna.`."""
    tree = ast.parse(path.read_text())
    package = ["ulna", *path.relative_to(ROOT).parts[:-1]]
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if function or typing_only:
            inside.update(ast.walk(node))
    pairs = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            pairs += [(alias.name, node not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            pairs.append((imported_from(node, package), node not in inside))
    return pairs


@pytest.mark.parametrize(
    ("folder", "path"), modules(), ids=lambda v: str(v.relative_to(ROOT)) if isinstance(v, Path) else v
)
def test_arrows(folder: str, path: Path) -> None:
    for module, _ in imports(path):
        parts = module.split(".")
        assert parts[0] not in FOLDERS or parts[0] == "datasets", (
            f"{path}: write `from ..{module}`, not `{module}`"
        )
        if parts[0] == "ulna" and len(parts) > 1 and parts[1] != folder:
            assert parts[1] in MAY_IMPORT[folder], f"{folder} may not import {parts[1]} ({path})"


@pytest.mark.parametrize(
    "path", [p for f, p in modules() if f == "robot"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_robot_loads_only_the_control_side(path: Path) -> None:
    for module, at_load in imports(path):
        if at_load and module.startswith(("ulna.policies", "ulna.sim")):
            assert module.removeprefix("ulna.") in CONTROL_SIDE, f"{path} imports {module} when it is loaded"


def test_the_five_folders_have_no_init() -> None:
    assert not [f for f in FOLDERS if (ROOT / f / "__init__.py").exists()]


def import_graph(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """By module of ours, the modules of ours that it imports, be it inside a function or for types alone."""
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        package = module.split(".")[:-1]
        graph[module] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = imported_from(node, package)
                graph[module] |= {base, *(f"{base}.{a.name}" for a in node.names)}
            elif isinstance(node, ast.Import):
                graph[module] |= {alias.name for alias in node.names}
        graph[module] &= trees.keys() - {module}
    return graph


def test_no_import_goes_in_a_circle() -> None:
    trees = {
        ".".join(["ulna", *p.relative_to(ROOT).with_suffix("").parts]): ast.parse(p.read_text())
        for _, p in modules()
    }
    graph = import_graph(trees)
    assert sum(map(len, graph.values())) > len(graph), "the graph was read"
    TopologicalSorter(graph).prepare()  # CycleError names a circle


def test_a_circle_would_be_found() -> None:
    inside = ast.parse("def f():\n    from . import a\n")
    graph = import_graph({"ulna.x.a": ast.parse("from .b import f"), "ulna.x.b": inside})
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


def test_contact_with_lerobot_stands_in_one_file_a_folder() -> None:
    touching = [p.name for _, p in modules() if any(m.split(".")[0] == "lerobot" for m, _ in imports(p))]
    assert set(touching) <= {"lerobot.py"}


LIGHT = [
    *(
        f"ulna.{'.'.join(p.relative_to(ROOT).with_suffix('').parts)}"
        for p in sorted((ROOT / "drivers").rglob("*.py"))
        if "twins" not in p.parts
    ),
    "ulna.policies.serving.client",
    "ulna.policies.serving.metadata",
    "ulna.policies.request",
    "ulna.robot.control.process",
    "ulna.robot.robot",
    "ulna.robot.agent",
    "ulna.robot.loop",
    "ulna.robot.deploy",
    "ulna.robot.cli",
]


def test_the_control_computer_loads_neither_torch_nor_lerobot() -> None:
    """All in one process, one after the other: whoever loads something heavy first is named."""
    code = (
        "import importlib, sys\n"
        f"heavy = {sorted(HEAVY)}\n"
        f"for module in {LIGHT}:\n"
        "    importlib.import_module(module)\n"
        "    loaded = [name for name in heavy if name in sys.modules]\n"
        "    assert not loaded, f'{module} loads {loaded}'\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr
