"""The demos behind `make demo`, `demo-images`, `demo-real` and `demo-twin`: the README's own commands, one
after the other, then a report."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from .images import demo_images
from .real import demo_real
from .sim import demo_sim
from .twin import demo_twin


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ulna.robot.demos.run", description=__doc__)
    parser.add_argument("which", choices=["sim", "images", "real", "twin"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the LeRobot folder (real)")
    args = parser.parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the server is stopped
    if args.which == "sim":
        return demo_sim(args.out)
    if args.which == "images":
        return demo_images(args.out)
    if args.which == "twin":
        return demo_twin(args.out)
    if args.data is None:
        parser.error("real needs --data FOLDER")
    return demo_real(args.data, args.out)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
