"""Errors that the user can mend: their message is the whole story, and no traceback is shown."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

# by module, so that nothing heavy is imported to find out
EXPECTED = {
    "ulna.datasets.store": ("StoreError",),
    "ulna.datasets.features": ("FeatureMismatch",),
    "ulna.drivers.arm": ("DeviceError",),
    "ulna.drivers.camera": ("StaleFrame",),
    "ulna.policies.checkpoint": ("CheckpointError",),
    "ulna.policies.train.error": ("TrainingError",),
    "ulna.policies.serving.client": ("PolicyServerError",),
    "ulna.policies.serving.server": ("ServerError",),
}


class UsageError(ValueError):
    """The command line does not fit; exit code 2."""


def unknown(what: str, name: str, names: Iterable[str]) -> UsageError:
    """The error that `name` is none of `names`, with the nearest of them; what: their noun, such as
    "recipe"."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names)}"
    return UsageError(f"there is no {what} {name!r}: {hint}")


def is_expected(error: BaseException) -> bool:
    """Whether the message of `error` is meant for the user."""
    if isinstance(error, OSError | ValueError):
        return True  # every ValueError of ours is a sentence about the input
    for module, names in EXPECTED.items():
        loaded_module = sys.modules.get(module)
        if loaded_module is not None and isinstance(error, tuple(getattr(loaded_module, n) for n in names)):
            return True
    return False


def missing_package(error: BaseException) -> str:
    """The sentence on a package that is not installed, as on a robot's computer many are not; "" for any
    other error."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if not name or name.partition(".")[0] == "ulna":
        return ""
    return (
        f"this needs the package {name}, which is not installed on this computer: run it where all of Ulna "
        "is, or install the package (docs/remote.md says what a robot's computer has)"
    )
