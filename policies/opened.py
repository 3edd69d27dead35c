"""A trained policy by its name: a checkpoint's folder, or `lerobot:PATH`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .checkpoint import load_checkpoint, read_train
from .hashed import STAMP, CheckpointError
from .lerobot.folder import CONFIG, checkpoint_folder, is_lerobot, is_ours
from .lerobot.policy import LeRobotPolicy, load_lerobot
from .policy import Policy


@dataclass(frozen=True)
class Opened:
    """control_hz: of the data that it was trained on; None: unknown."""

    policy: Policy
    folder: Path
    control_hz: float | None = None

    @property
    def is_ours(self) -> bool:
        return not isinstance(self.policy, LeRobotPolicy)


def open_policy(source: str | Path, device: str = "cpu") -> Opened:
    """The policy, in evaluation mode on `device`. CheckpointError in one sentence where there is none."""
    folder = checkpoint_folder(source)
    if not is_lerobot(source):
        _require_ours(folder)
    if not is_lerobot(source) or is_ours(folder):
        return Opened(load_checkpoint(folder, device), folder, read_train(folder).control_hz)
    policy = load_lerobot(folder, device)
    return Opened(policy, folder, policy.found.control_hz)


def _require_ours(folder: Path) -> None:
    if not (folder / STAMP).is_file() and (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is a policy of LeRobot: name it lerobot:{folder}")
