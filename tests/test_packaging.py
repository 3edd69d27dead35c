"""The wheel holds everything, and the folder names shadow nobody."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("robot", "drivers", "datasets", "policies", "sim")
PLUGINS = ROOT / "robot" / "lerobot_plugins"  # a distribution of its own, which LeRobot imports


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel built from a copy of what git would commit, so that no leftover of a build is in
    it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=source, capture_output=True, check=True)
    (built,) = out.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_the_wheel_holds_every_module_and_data_file(wheel: set[str]) -> None:
    kinds = ("*.py", "*.urdf", "*.toml", "*.html", "*.js", "*.css", "*.svg", "py.typed")
    files = {p for f in FOLDERS for k in kinds for p in (ROOT / f).rglob(k) if PLUGINS not in p.parents}
    names = {f"ulna/{p.relative_to(ROOT).as_posix()}" for p in files}
    assert len(names) > 60
    assert not names - wheel


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    assert {n.split("/")[0] for n in wheel if ".dist-info/" not in n} == {"ulna"}
    assert not [n for n in wheel if n.startswith("ulna/tests")]


@pytest.mark.parametrize("how", [["-c", "import datasets"], ["-m", "ulna.robot.cli", "--version"]])
def test_datasets_from_the_repository_root_is_hugging_faces(how: list[str]) -> None:
    subprocess.run([sys.executable, *how], cwd=ROOT, check=True, capture_output=True)
    code = "import datasets; print(datasets.load_dataset.__module__)"
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.startswith("datasets.")


def test_the_lock_has_hashes_and_no_addresses() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert lock.count("--hash=sha256:") > 100
    assert "://" not in lock
    assert "opencv-python-headless" not in lock
