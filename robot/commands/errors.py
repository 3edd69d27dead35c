"""Which errors are the user's to mend: their message is the whole story, and no traceback is shown."""

from __future__ import annotations

import sys

# by module, so that nothing heavy is imported to find out
EXPECTED = {
    "ulna.robot.cli": ("UsageError",),
    "ulna.datasets.store": ("StoreError",),
    "ulna.datasets.features": ("FeatureMismatch",),
    "ulna.drivers.arm": ("DeviceError",),
    "ulna.drivers.camera": ("StaleFrame",),
    "ulna.policies.checkpoint": ("CheckpointError",),
    "ulna.policies.train.loop": ("TrainingError",),
    "ulna.policies.serving.client": ("PolicyServerError",),
    "ulna.policies.serving.server": ("ServerError",),
}


def is_expected(error: BaseException) -> bool:
    if isinstance(error, OSError | ValueError):
        return True  # every ValueError of ours is a sentence about the input
    for module, names in EXPECTED.items():
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(error, tuple(getattr(loaded, n) for n in names)):
            return True
    return False
