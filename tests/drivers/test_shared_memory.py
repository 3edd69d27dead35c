"""What a killed process left in shared memory goes when the next of its kind is made; what is in use
stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ulna.drivers import shared_memory
from ulna.drivers.cameras.frame_ring import FrameRing
from ulna.drivers.twins.plant import Plant

MAKE = {
    "frames": "from ulna.drivers.cameras.frame_ring import FrameRing as F; x = F.create(4, 4)",
    "plant": "import numpy as np; from ulna.drivers.twins.plant import Plant as P; "
    "x = P.create(('a',), np.zeros(1), np.ones(1))",
}


@pytest.mark.parametrize("kind", MAKE)
def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "OPENING_S", 0.0)
    script = f"{MAKE[kind]}; print(x.path, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        mine = FrameRing.create(4, 4) if kind == "frames" else Plant.create(("a",), np.zeros(1), np.ones(1))
        try:
            assert left.exists(), "its process lives"
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert left in shared_memory.sweep(kind)
            assert mine.path.exists()
        finally:
            mine.remove()


def test_a_new_file_that_nobody_has_opened_yet_stays() -> None:
    path, file = shared_memory.create("frames")
    try:
        os.close(file)
        assert path not in shared_memory.sweep("frames")
        long_ago = time.time() - 2 * shared_memory.OPENING_S
        os.utime(path, (long_ago, long_ago))
        assert path in shared_memory.sweep("frames")
    finally:
        path.unlink(missing_ok=True)
