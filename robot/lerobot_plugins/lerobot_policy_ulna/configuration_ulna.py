"""`--policy.type=ulna` and its options; `config.json` of a policy folder, beside the files of Ulna's own
checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import LRSchedulerConfig


@PreTrainedConfig.register_subclass("ulna")
@dataclass
class UlnaConfig(PreTrainedConfig):
    recipe: str = "flow"
    """Of a policy to be trained here: a recipe of `ulna recipes`."""
    settings: dict[str, str] = field(default_factory=dict)
    """Fields of that recipe: {"backbone.width": "128"}."""
    units: str = "degrees"
    """What LeRobot's side has joints in, where those of an SO-101 or Koch are in degrees, percent or radians
    (see `--robot.units`); a checkpoint in radians is translated. Of a policy to be trained here: what its
    dataset has them in, where that does not say."""
    calibration: str = ""
    """File in LeRobot's form, which percent need."""
    arm: str = ""
    """so101 or koch, where drive modes are to be known."""
    sampling_steps: int = 0
    """Of the sampler; 0: the recipe's."""
    seed: int = 0
    """Of what is drawn."""
    horizon: int = 0
    """Actions in a chunk, those before now included; this and the next two are the recipe's."""
    n_past_actions: int = 0
    """Those before now."""
    n_action_steps: int = 0
    """Actions executed of a chunk."""
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(
            ("VISUAL", "STATE", "ENV", "ACTION"), NormalizationMode.IDENTITY
        )
    )
    """The policy does it itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.horizon:
            self.follow(recipe_of(self))

    def follow(self, recipe: Any) -> None:
        """Take over what LeRobot needs to know of `recipe`."""
        self.n_obs_steps, self.horizon = recipe.n_obs_steps, recipe.horizon
        self.n_past_actions, self.n_action_steps = recipe.n_past_actions, recipe.n_action_steps

    @property
    def observation_delta_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(-self.n_past_actions, self.horizon - self.n_past_actions))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        of = recipe_of(self).training
        return AdamWConfig(
            lr=of.learning_rate,
            betas=of.betas,
            weight_decay=of.weight_decay,
            grad_clip_norm=of.grad_clip,
        )

    def get_scheduler_preset(self) -> LRSchedulerConfig | None:
        return None

    def validate_features(self) -> None:
        if not self.output_features or "action" not in self.output_features:
            raise ValueError("an ulna policy gives an action, and the dataset has none")


def recipe_of(config: UlnaConfig, features: Any = None) -> Any:
    """The recipe that `config` names, for `features` (by default a state alone). ValueError in one
    sentence."""
    from ulna.datasets.features import ACTION, STATE, Feature
    from ulna.drivers.config import require_known
    from ulna.policies.parts import override
    from ulna.policies.recipes.all import recipe_function, recipe_names

    if (make := recipe_function(config.recipe)) is None:
        require_known("recipe", config.recipe, recipe_names())
    assert make is not None
    some = {k: Feature((1,), "float32", ("joint",), ("rad",)) for k in (STATE, ACTION)}
    # differences have scales of their own, which only `ulna train` measures
    return override(make(some if features is None else features), {"codec": "Absolute", **config.settings})
