"""How a checkpoint came to be: the record that training leaves in it as `train.json`. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

KEYS = {"control_hz": "fps", "n_windows": "frames"}  # field -> key on disk, where they differ


@dataclass(frozen=True)
class TrainingRecord:
    """What an older record lacks has the default."""

    data: str = ""
    """The datasets' folders."""
    data_content: str = ""
    """SHA-256 of the episodes that were trained on."""
    options: dict[str, Any] = field(default_factory=dict)
    """The `DataOptions` that decide what is trained on."""
    augment: list[str] = field(default_factory=list)
    start: str = ""
    """Content hash of the checkpoint that training began from; empty where there was none."""
    pretrained: dict[str, str] = field(default_factory=dict)
    """For each network of timm in the policy, by its name there, the SHA-256 of the file whose weights it
    began with, or `random`."""
    blend: dict[str, Any] = field(default_factory=dict)
    """Where the weights lie between those of two checkpoints (`policies.blend`); the other fields are then
    the second's. Empty for what was trained."""
    generated: dict[str, Any] = field(default_factory=dict)
    """Which generator drew the weights, of what (`policies.generate`); the other fields are then those of the
    checkpoint that it is like. Empty for what was trained."""
    validation_losses: dict[str, float] = field(default_factory=dict)
    """By optimiser step; empty without held-out episodes."""
    robot: str = ""
    control_hz: float | None = None
    tasks: list[str] = field(default_factory=list)
    episodes: list[list[int]] = field(default_factory=list)
    """Numbers of the episodes, for each dataset; on disk, of a single dataset only the numbers."""
    n_windows: int = 0
    """How many windows there were to train on, one a control tick."""
    seed: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    """By optimiser step."""
    seconds: float = 0.0
    """Of this run; less than the whole where training was resumed."""
    examples_per_s: float = 0.0
    parameters: int = 0
    device: str = ""
    processes: int = 1
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """By package."""

    @property
    def n_episodes(self) -> int:
        return sum(len(numbers) for numbers in self.episodes)

    def to_json(self) -> dict[str, Any]:
        values = {KEYS.get(name, name): value for name, value in asdict(self).items()}
        return values | {"episodes": self.episodes[0] if len(self.episodes) == 1 else self.episodes}

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> TrainingRecord:
        """The inverse; unknown keys are ignored. Raises ValueError where a value is none that training
        writes."""
        names = {f.name: KEYS.get(f.name, f.name) for f in fields(TrainingRecord)}
        values = {name: d[key] for name, key in names.items() if key in d}
        rate = values.get("control_hz")
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0):
            raise ValueError(f"its fps is {rate!r:.60}, not a number of ticks a second")
        episodes = values.get("episodes", [])
        if not isinstance(episodes, list):
            raise ValueError(f"its episodes are {episodes!r:.60}, no list")  # noqa: TRY004  a file said it
        if episodes and not isinstance(episodes[0], list):
            episodes = [episodes]
        return TrainingRecord(**{**values, "episodes": episodes})
