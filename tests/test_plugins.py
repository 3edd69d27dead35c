"""What an installed package adds: the example package is installed and used as a customer would, from
outside of the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROBOT = """
name = "bench"
control_hz = 20
[arms.arm]
driver = "ur"
host = "127.0.0.1"
[cameras.front]
driver = "test-pattern"
height = 48
width = 64
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the example."""
    root = tmp_path_factory.mktemp("plugins")
    source = root / "ulna_example"
    shutil.copytree(ROOT / "examples" / "ulna_example", source)  # a build leaves files beside what it builds
    command = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--offline"]
    command += ["--no-deps", "--no-build-isolation", "--python", sys.executable, "--target"]
    subprocess.run([*command, str(root / "site"), str(source)], check=True, capture_output=True, text=True)
    return root / "site"


@pytest.fixture(scope="module")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the example's task and a checkpoint of its recipe, by the commands."""
    root = tmp_path_factory.mktemp("run")
    words = ["--robot", "sim:so101", "--task", "hover", "--agent", "expert", "--episodes", "2"]
    recorded = ulna(site, "record", *words, "--out", f"{root}/data", "--json")
    assert json.loads(recorded.stdout)["successes"] == 2, "the expert solves the task"
    small = ["--steps", "3", "--batch-size", "8", "--backbone.width", "16"]
    ulna(site, "train", "mlp_flow", "--data", f"{root}/data", "--out", f"{root}/mlp", *small)
    return root


def python(site: Path | None, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    process = subprocess.run(
        [sys.executable, *argv], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    return process


def ulna(site: Path | None, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return python(site, "-m", "ulna.robot.cli", *argv, code=code)


def package(folder: Path, name: str, entry_points: str, code: str) -> None:
    """A package in `folder` as an installer would leave it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def test_task_recipe_part_and_command_of_an_installed_package(site: Path, run: Path) -> None:
    recipe = json.loads((run / "mlp" / "recipe.json").read_text())
    assert recipe["name"] == "mlp_flow"
    assert recipe["backbone"] | {"width": 128} == {
        "part": "WholeChunkMLP",
        "package": "ulna-example",
        "width": 128,
        "depth": 2,
    }
    longest = ulna(site, "longest", f"{run}/data", "--json")
    assert json.loads(longest.stdout)["ticks"] > 5
    assert "longest" in ulna(site, "--help").stdout


def test_a_checkpoint_needs_the_package_of_its_parts(site: Path, run: Path) -> None:
    words = ["evaluate", f"{run}/mlp", "--episodes", "1", "--videos", "0"]
    assert "of 1 succeeded" in ulna(site, *words, "--task", "hover").stdout
    refusal = ulna(None, *words, "--task", "reach", code=1).stderr
    assert "the part WholeChunkMLP of the package ulna-example, which is not installed" in refusal


def test_a_driver_of_an_installed_package_keeps_the_contract(site: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text(ROBOT)
    check = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
from contracts.camera import check_camera
from ulna.drivers.clock import MonotonicClock
from ulna.robot.config import load_robot
camera = load_robot({str(tmp_path / "bench.toml")!r}).robot.cameras["front"]
assert (camera.height, camera.width) == (48, 64)
check_camera(camera, MonotonicClock())
"""
    python(site, "-c", check)
    code = f"from ulna.robot.config import load_robot; load_robot({str(tmp_path / 'bench.toml')!r})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "there is no driver for" in process.stderr, "without the package"


def test_a_package_that_fails_is_named_and_the_rest_goes_on(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    entries = "[ulna.recipes]\nbroken = broken_pkg:recipe\nflow = broken_pkg:flow\n"
    entries += "[ulna.commands]\nbroken = broken_pkg\ntrain = broken_pkg\n"
    package(tmp_path / "site", "broken_pkg", entries, "raise OSError('the licence server is away')\n")
    listing = ulna(tmp_path / "site", "recipes")
    assert {"flow", "act", "mlp_flow"} <= set(listing.stdout.splitlines())
    why = "broken (ulna.recipes: broken_pkg:recipe) of the package broken_pkg cannot be imported: OSError: "
    assert f"ulna: {why}the licence server is away" in listing.stderr
    clash = "flow (ulna.recipes: broken_pkg:flow) of the package broken_pkg is refused: Ulna has a 'flow'"
    assert clash in listing.stderr
    helped = ulna(tmp_path / "site", "--help")
    assert "longest" in helped.stdout
    assert "of the package broken_pkg" in helped.stdout
    assert "train (ulna.commands: broken_pkg) of the package broken_pkg is refused" in helped.stderr
    assert "the licence server is away" in ulna(tmp_path / "site", "broken", code=1).stderr


IN_PROCESS = """
from dataclasses import dataclass

from ulna.datasets.features import ACTION, STATE, Feature
from ulna.policies.backbones.backbone import Backbone
from ulna.policies.hooks.all import hook_named
from ulna.policies.parts import override, recipe_from_json, recipe_to_json
from ulna.policies.recipes.all import RECIPES
from ulna.sim.tasks.all import task_type

recipe = RECIPES["flow"]({STATE: Feature((2,), "float32"), ACTION: Feature((2,), "float32")})
swapped = override(recipe, {"backbone": "WholeChunkMLP", "backbone.width": "32"})
assert recipe_from_json(recipe_to_json(swapped)) == swapped
named = override(recipe, {"backbone": "ulna_example.whole_chunk_mlp:WholeChunkMLP"})
assert type(named.backbone) is type(swapped.backbone)


def sentence(function, *arguments):
    try:
        function(*arguments)
    except (ValueError, RuntimeError) as error:
        return str(error)
    raise AssertionError("not refused")


assert "part of another kind" in sentence(override, recipe, {"context": "WholeChunkMLP"})
assert "WholeChunkMLP" in sentence(override, recipe, {"backbone": "Nope"})
assert "is no part" in sentence(override, recipe, {"backbone": "ulna_example.mlp_flow:mlp_flow"})
assert task_type("ulna_example.hover:Hover").name == "hover"
assert "did you mean hover" in sentence(task_type, "hovr")
assert "No module named" in sentence(task_type, "nowhere.at_all:Task")
assert hook_named("Nudge", {"push": "0.25"}).push == 0.25
assert "is no hook" in sentence(hook_named, "ulna.policies.objectives.flow:Flow")
objective = override(recipe, {"objective": "CosineFlow"})
assert recipe_from_json(recipe_to_json(objective)) == objective
assert "there is no hook" in sentence(hook_named, "nope")

import gymnasium
import ulna.sim.gym

assert {"ulna/Hover-v0", "ulna/PushT-v0"} <= set(gymnasium.registry)
"""


def test_names_in_files_and_on_the_command_line(site: Path) -> None:
    python(site, "-c", IN_PROCESS)


def test_two_packages_of_one_name_are_both_refused(tmp_path: Path) -> None:
    for name in ("first_pkg", "second_pkg"):
        package(tmp_path, name, f"[ulna.commands]\nsame = {name}\n", "")
    refusal = ulna(tmp_path, "same", code=1).stderr
    assert "first_pkg" in refusal
    assert "second_pkg" in refusal
    assert "one name for two" in refusal


def test_the_two_readers_of_entry_points_are_one() -> None:
    drivers, policies = ((ROOT / f / "plugins.py").read_text() for f in ("drivers", "policies"))
    assert drivers == policies
