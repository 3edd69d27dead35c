"""Whether this computer keeps time: scheduling, memory, disk and clock. Part of `ulna doctor`."""

from __future__ import annotations

import gc
import os
import platform
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from ...drivers.sysfs import ROOT, entries, text
from .doctor import Finding, Level

PERIOD_NS = 1_000_000


def wake_late_ms(seconds: float) -> np.ndarray:
    """How late a loop of 1 kHz wakes, `(N,)` ms. N is seconds · 1000 or fewer: periods that the loop
    overslept are skipped."""
    late = np.empty(max(1, round(seconds * 1e9 / PERIOD_NS)))
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.monotonic_ns()
        end, due, n = start + round(seconds * 1e9), start, 0
        while due < end and n < len(late):
            due += PERIOD_NS
            while (remaining_ns := due - time.monotonic_ns()) > 0:
                time.sleep(remaining_ns * 1e-9)
            now = time.monotonic_ns()
            late[n] = (now - due) * 1e-6
            due += (now - due) // PERIOD_NS * PERIOD_NS
            n += 1
    finally:
        if collecting:
            gc.enable()
    return late[:n]


def scheduling(seconds: float, root: Path = ROOT) -> list[Finding]:
    late = wake_late_ms(seconds)
    p50, p99, worst = np.percentile(late, 50), np.percentile(late, 99), late.max()
    says = f"a 1 kHz loop wakes {p50:.2f} ms late (median), {p99:.2f} ms (99 %), {worst:.1f} ms at worst"
    level: Level = "good" if p99 < 5 and worst < 50 else "advice"
    mend = (
        "" if level == "good" else "end what else runs (browser, training), and see the other findings here"
    )
    findings = [Finding("real-time", level, says, mend)]

    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    says = f"{cores} core{'s' * (cores != 1)}, load {load:.1f}"
    if cores < 4:
        mend = "arms, cameras, recorder and policy each want one: use 4 or more"
        findings.append(Finding("real-time", "advice", says, mend))
    else:
        busy = load > 0.7 * cores
        mend = "end what else runs" if busy else ""
        findings.append(Finding("real-time", "advice" if busy else "good", says, mend))

    governors = {text(cpu / "cpufreq/scaling_governor") for cpu in entries(root / "sys/devices/system/cpu")}
    governors.discard("")
    if governors and governors != {"performance"}:
        says = (
            f"the cores' clock is governed by {', '.join(sorted(governors))}: the first steps after a "
            "pause are slow"
        )
        findings.append(Finding("real-time", "advice", says, "`sudo cpupower frequency-set -g performance`"))

    version = text(root / "proc/version") or platform.version()
    kind = next((k for k in ("PREEMPT_RT", "PREEMPT_DYNAMIC", "PREEMPT") if k in version), "")
    if kind or version:
        says = f"the kernel is {kind}" if kind else "the kernel does not say how it may be interrupted"
        findings.append(Finding("real-time", "good", says))
    return [*findings, *limits()]


def limits() -> list[Finding]:
    """Findings on this user's limits for real-time priorities and locked memory."""
    priority = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    lockable = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if os.geteuid() == 0:
        return [Finding("real-time", "good", "root may use real-time priorities")]
    findings = []
    if priority == 0:
        says = "you may not use real-time priorities (RLIMIT_RTPRIO is 0)"
        mend = (
            "for arms run at 125 Hz and more: put  @realtime - rtprio 50  into "
            "/etc/security/limits.d/realtime.conf, "
            "`sudo groupadd -f realtime; sudo usermod -aG realtime $USER`, log in again"
        )
        findings.append(Finding("real-time", "advice", says, mend))
    if 0 <= lockable < 64 << 20:
        says = f"you may lock only {lockable >> 10} kB of memory (RLIMIT_MEMLOCK)"
        mend = "put  @realtime - memlock unlimited  into /etc/security/limits.d/realtime.conf"
        findings.append(Finding("real-time", "advice", says, mend))
    return findings or [Finding("real-time", "good", "you may use real-time priorities and lock memory")]


def shared_memory(folder: Path = Path("/dev/shm")) -> list[Finding]:
    """Findings on /dev/shm, through which frames go from camera processes to the control process."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        says = f"there is no {folder}: {error.strerror}"
        return [Finding("memory", "severe", says, f"`sudo mount -t tmpfs tmpfs {folder}`")]
    level: Level = "severe" if free < 64 << 20 else "advice" if free < 512 << 20 else "good"
    mend = (
        "" if level == "good" else "in a container: `docker run --shm-size=2g`; else remove old files there"
    )
    return [Finding("memory", level, f"{free / 1e6:.0f} MB free in {folder}", mend)]


def disk(folder: Path, size_mb: int = 64) -> list[Finding]:
    """Findings on the folder for datasets: free space, and measured write rate to the disk (not to its
    cache). `folder` need not exist yet. size_mb: how much to write for the measurement."""
    there = folder.absolute()
    while not there.is_dir():
        there = there.parent
    free = shutil.disk_usage(there).free
    level: Level = "severe" if free < 1e9 else "advice" if free < 20e9 else "good"
    mend = "" if level == "good" else "make room, or record to another disk"
    findings = [Finding("disk", level, f"{free / 1e9:.1f} GB free in {there}", mend)]
    if free < 4e6 * size_mb:
        return findings
    block = os.urandom(1 << 20)  # nothing that a file system could compress
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            start = time.monotonic()
            for _ in range(size_mb):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = size_mb * (1 << 20) / (time.monotonic() - start)
    except OSError as error:
        says = f"cannot write into {there}: {error.strerror}"
        return [
            *findings,
            Finding("disk", "severe", says, "choose another folder with --data, or `sudo chown $USER` it"),
        ]
    level = "severe" if rate < 10e6 else "advice" if rate < 50e6 else "good"
    mend = (
        ""
        if level == "good"
        else "record to another disk; three cameras at 640x480, 30 Hz write about 10 MB/s"
    )
    return [*findings, Finding("disk", level, f"{rate / 1e6:.0f} MB/s written there", mend)]


def clock(root: Path = ROOT) -> list[Finding]:
    folder = root / "sys/devices/system/clocksource/clocksource0"
    source = text(folder / "current_clocksource")
    if not source:
        return []
    if source in ("hpet", "acpi_pm", "jiffies", "refined-jiffies"):
        says = f"the clock source is {source}: each reading takes microseconds, and jumps are possible"
        mend = (
            "see `dmesg | grep -i tsc` for why tsc was given up; here are "
            f"{text(folder / 'available_clocksource')}"
        )
        return [Finding("clock", "advice", says, mend)]
    return [Finding("clock", "good", f"the clock source is {source}")]
