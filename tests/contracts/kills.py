"""A process that is killed before each of the steps in which it changes a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = """
import json, os, shutil, signal, sys
EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "open", "os.truncate", "shutil.rmtree",
    "shutil.copyfile"}
folder, code, strides = sys.argv[1], compile(sys.argv[2], "act", "exec"), json.loads(sys.argv[3])
exec(code, {"path": shutil.copytree(folder, folder + " warm")})  # imports and their files come first
n, copies = 0, []
while True:
    copies.append(shutil.copytree(folder, f"{folder} {n}"))
    pid = os.fork()
    if pid == 0:
        steps_left = n
        def hook(event, args):
            global steps_left
            if event in EVENTS and not (event == "open" and (args[2] & os.O_ACCMODE) == os.O_RDONLY):
                steps_left -= 1
                if steps_left < 0: os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        exec(code, {"path": copies[-1]})
        os._exit(0)
    if os.waitpid(pid, 0)[1] == 0: break
    n += strides[0] if n < 40 else strides[1]
print(json.dumps(copies))
"""


def killed_at_each_step(folder: Path, act: str, strides: Sequence[int] = (1, 7)) -> list[Path]:
    """Copies of `folder`, each changed by `act` (code that changes the folder `path`) until it was killed: in
    the order of the steps. The last one's was not. strides: how many steps are passed over from one to the
    next, up to the 40th step and after it."""
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), act, json.dumps(list(strides))]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    return [Path(copy) for copy in json.loads(run.stdout.splitlines()[-1])]
