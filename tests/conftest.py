"""Tests import the contracts beside them as `contracts.arm`; everything else as `ulna.…`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# the networks of the tests are tiny: threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
