"""Whether the task is done, as far as something can tell: the scene, or a detector that was learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..robot import Observation

if TYPE_CHECKING:
    from ..config import Rig

SCENE = "scene"  # a simulated one's, or a twin's, ground truth


def verifier(name: str, rig: Rig) -> Callable[[Observation], bool]:
    """Tells of an observation whether the task is done. name: SCENE, or the folder of a detector that
    `ulna detector` made. ValueError: there is no such thing, or it does not fit this robot."""
    if name == SCENE:
        scene = rig.scene
        if scene is None:
            raise ValueError(
                f"no scene knows when {rig.robot.name} is done: name the folder of a detector as the verifier"
            )
        return lambda observation: scene.success()
    if not Path(name).is_dir():
        raise ValueError(f"there is no verifier {name!r}: it is {SCENE}, or the folder of a detector")
    from ...policies.detector import Detector

    detector = Detector(name, rig.robot.features)
    return lambda observation: detector.is_done(observation.values)
