"""Where benchmarks put their numbers: JSON under benchmarks/results/, with the machine, commit and
command."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ulna.robot.report.report import commit, machine

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict[str, Any]:
    """What `save` wrote under this name."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def save(name: str, numbers: dict[str, Any]) -> None:
    """Write `results/NAME.json` and print it."""
    result = {
        **numbers,
        "machine": machine(),
        "commit": commit(),
        # where things lay on that machine is nobody's business
        "command": " ".join(["python", *(Path(a).name if a.startswith("/") else a for a in sys.argv)]),
        "date": datetime.now(UTC).date().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
