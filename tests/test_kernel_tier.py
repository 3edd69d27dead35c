"""The kernel tests run in a virtual machine (`make test-kernel`); here they run when asked for, and are seen
to be skipped else."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "test-kernel"


@pytest.mark.timeout(1200)
def test_the_kernel_tests_pass() -> None:
    if not os.environ.get("ULNA_TEST_KERNEL"):
        pytest.skip("V4L2, CAN, uinput, uhid and USB: run make test-kernel, or set ULNA_TEST_KERNEL=1")
    run = subprocess.run([SCRIPT, "--no-download"], capture_output=True, text=True, check=False)
    for line in run.stdout.splitlines():
        if line.startswith("SKIPPED:"):
            pytest.skip(line)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert " passed" in run.stdout


@pytest.mark.parametrize(
    ("lacking", "says"),
    [
        ("qemu-system-x86_64", "apt-get install qemu-system-x86"),
        ("cpio", "cpio"),
        ("busybox", "busybox-static"),
    ],
)
def test_what_is_missing_is_named_and_nothing_fails(tmp_path: Path, lacking: str, says: str) -> None:
    """With a PATH that has every tool but one; the tools need not work, since the script stops before it uses
    them."""
    for tool in ("qemu-system-x86_64", "busybox", "cpio", "dpkg-deb"):
        if tool != lacking:
            (tmp_path / tool).symlink_to("/bin/true")
    run = with_path(tmp_path)
    assert run.returncode == 0
    (line,) = run.stdout.splitlines()
    assert line.startswith("SKIPPED: the kernel tests did not run:")
    assert says in line


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the virtual machine is one of x86_64")
def test_without_a_kernel_it_does_not_go_and_fetch_one_unasked(tmp_path: Path) -> None:
    for tool in ("qemu-system-x86_64", "cpio", "dpkg-deb", "busybox"):
        (tmp_path / tool).symlink_to("/bin/true")
    (tmp_path / "ldd").symlink_to("/bin/false")  # as it says of a static busybox
    run = with_path(tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert run.returncode == 0
    assert "SKIPPED" in run.stdout
    assert "there is no kernel in" in run.stdout
    assert not (tmp_path / "cache").exists()


def with_path(folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    for tool in ("bash", "env", "dirname", "uname", "find", "sort", "tail", "head", "basename"):
        path = shutil.which(tool)
        assert path
        (folder / tool).symlink_to(path)
    return subprocess.run(
        [SCRIPT, "--no-download"],
        env={"PATH": str(folder), "HOME": str(folder), **more},
        capture_output=True,
        text=True,
        check=False,
    )
