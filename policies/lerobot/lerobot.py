"""All contact with LeRobot's policies: its classes and its pre- and post-processors, loaded from a folder.

LeRobot 0.6. Seconds go by until it is imported; types that need packages which are not installed say so."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..hashed import CheckpointError
from .folder import CONFIG, LeRobotFolder

# types that give no chunk for an observation, and why
REFUSED = {
    "tdmpc": "plans from its last plan, which a server that keeps nothing of its clients does not have",
    "gaussian_actor": "gives single actions, and learns while it acts",
}
# types whose networks load from what is saved, every weight by its name
STRICT = ("act", "diffusion", "vqbet")
VLA = ("pi0", "pi05", "pi0_fast", "smolvla", "groot", "xvla", "multi_task_dit")


@dataclass(frozen=True)
class Loaded:
    """policy: LeRobot's, in evaluation mode. prepare: a batch of observations `(B, T, ...)`, pictures float
    CHW in 0..1, to what the network sees. finish: chunks `(B, H, A)` to the action's units."""

    config: Any
    policy: nn.Module
    prepare: Callable[[dict[str, Any]], dict[str, Any]]
    finish: Callable[[Tensor], Tensor]


def load(found: LeRobotFolder, device: str) -> Loaded:
    """CheckpointError in one sentence where it cannot be loaded here."""
    if found.type in REFUSED:
        raise CheckpointError(f"LeRobot's {found.type} is not served: it {REFUSED[found.type]}")
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        from lerobot.utils.import_utils import register_third_party_plugins
    except ImportError as error:
        raise CheckpointError(
            f"{found.path} is a policy of LeRobot, which this environment cannot import ({error}): serve it "
            "where Ulna is installed whole"
        ) from None
    if found.type not in PreTrainedConfig.get_known_choices():
        with _quietly():
            register_third_party_plugins()
    if found.type not in PreTrainedConfig.get_known_choices():
        raise CheckpointError(
            f"LeRobot knows no policy {found.type}, which {found.path / CONFIG} names: install the plug-in "
            f"lerobot_policy_{found.type}"
        )
    try:
        with _quietly():
            config: Any = PreTrainedConfig.from_pretrained(found.path, local_files_only=True)
            config.device = device
            for name in ("pretrained_backbone_weights", "compile_model"):
                if hasattr(config, name):  # its weights are in the folder: none are to be fetched
                    setattr(config, name, False if name == "compile_model" else None)
            policy = get_policy_class(config.type).from_pretrained(
                found.path, config=config, strict=config.type in STRICT, local_files_only=True
            )
            prepare, finish = make_pre_post_processors(
                config,
                pretrained_path=str(found.path),
                preprocessor_overrides={"device_processor": {"device": device}},
            )
    except ImportError as error:
        extra = "install `ulna[vla]`" if found.type in VLA else "install it"
        raise CheckpointError(
            f"LeRobot's {found.type} needs a package more: {_line(error)}; {extra}"
        ) from None
    except (Exception, SystemExit) as error:
        raise CheckpointError(
            f"{found.path} holds a {found.type} that LeRobot cannot load: {_line(error)}"
        ) from error
    return Loaded(config, policy.to(device).eval().requires_grad_(False), prepare, finish)


def chunk_of(loaded: Loaded, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
    """The whole chunks `(B, n, A)`, normalised, of prepared observations. Those that keep a history in queues
    have them filled with the one that is asked about, and nothing of another question's."""
    policy: Any = loaded.policy
    policy.reset()
    batch = {k: v for k, v in batch.items() if v is not None}  # a transition has all keys
    queues = getattr(policy, "_queues", None)
    steps = int(getattr(loaded.config, "n_obs_steps", 1))
    if isinstance(queues, Mapping) and (steps > 1 or loaded.config.type in ("vqbet", "multi_task_dit")):
        if images := [batch[k] for k in loaded.config.image_features]:
            batch["observation.images"] = torch.stack(images, dim=-4)
        for name, queue in queues.items():
            if isinstance(value := batch.get(name), Tensor):
                queue.extend(value.unbind(1))
    given = {} if noise is None else {"noise": noise}
    return policy.predict_action_chunk(batch, **given)


def save(
    folder: Path,
    kind: str,
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    stats: dict[str, dict[str, Any]],
) -> None:
    """Write a policy of LeRobot's own: `kind`, `act` or `diffusion`, the fields of its config, its weights by
    its names, and the mean and deviation by which it normalises each feature. ValueError where LeRobot
    refuses them."""
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    inputs: dict[str, Any] = {}
    for key, of in stats.items():
        name = (
            "VISUAL"
            if key in settings["pictures"]
            else "ENV"
            if key.endswith("environment_state")
            else "STATE"
        )
        shape = settings["pictures"].get(key, of["mean"].shape)
        inputs[key] = PolicyFeature(FeatureType["ACTION" if key == "action" else name], tuple(shape))
    options = {k: v for k, v in settings.items() if k != "pictures"}
    with _quietly():
        config: Any = make_policy_config(
            kind, device="cpu", push_to_hub=False, pretrained_backbone_weights=None, **options
        )
        config.output_features = {"action": inputs.pop("action")}
        config.input_features = inputs
        config.normalization_mapping = dict.fromkeys(
            ("VISUAL", "STATE", "ENV", "ACTION"), NormalizationMode.MEAN_STD
        )
        policy = get_policy_class(kind)(config)
        missing, strange = policy.load_state_dict(dict(weights), strict=False)
        if strange or not all(k.endswith(UNSAVED) for k in missing):
            raise ValueError(f"LeRobot's {kind} has other weights: {[*strange, *missing][0]}")
        policy.save_pretrained(folder)
        for pipeline in make_pre_post_processors(config, dataset_stats=stats):
            pipeline.save_pretrained(folder)


def save_processors(folder: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Write steps before and after a network that add the batch's axis and leave numbers as they are. inputs,
    outputs: features as in config.json."""
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.factory import make_policy_config
    from lerobot.processor import make_default_pre_post_processors

    def features(of: Mapping[str, Any]) -> dict[str, Any]:
        return {k: PolicyFeature(FeatureType[f["type"]], tuple(f["shape"])) for k, f in of.items()}

    with _quietly():
        config: Any = make_policy_config("act", device="cpu", push_to_hub=False)
        config.input_features, config.output_features = features(inputs), features(outputs)
        config.normalization_mapping = dict.fromkeys(FeatureType.__members__, NormalizationMode.IDENTITY)
        for pipeline in make_default_pre_post_processors(config, None):
            pipeline.save_pretrained(folder)


UNSAVED = ("num_batches_tracked", "pos_grid", "vae_encoder_pos_enc")  # buffers that are no weights


@dataclass(frozen=True)
class Normalisation:
    """What a policy's processors do to numbers. modes: by the kind of a feature (STATE, ENV, VISUAL,
    ACTION), LeRobot's name of how. stats: by feature, its statistics. others: names of steps that do
    something else."""

    modes: dict[str, str]
    stats: dict[str, dict[str, Any]]
    others: tuple[str, ...] = ()


PLAIN = ("NormalizerProcessorStep", "AddBatchDimensionProcessorStep", "DeviceProcessorStep")


def normalisation(loaded: Loaded) -> Normalisation:
    """Of the steps before the network."""
    modes: dict[str, str] = {}
    stats: dict[str, dict[str, Any]] = {}
    others: list[str] = []
    steps: Any = loaded.prepare
    for step in steps.steps:
        name = type(step).__name__
        if name == PLAIN[0]:
            modes = {kind.value: mode.value for kind, mode in step.norm_map.items()}
            for key, value in step.state_dict().items():
                feature, _, statistic = key.rpartition(".")
                stats.setdefault(feature, {})[statistic] = value.double().numpy()
        elif name not in PLAIN and not (name == "RenameObservationsProcessorStep" and not step.rename_map):
            others.append(name)
    return Normalisation(modes, stats, tuple(others))


def takes_noise(loaded: Loaded) -> tuple[int, int] | None:
    """`(H, A)` of the noise that chunks can be drawn from; None where the policy draws for itself."""
    policy: Any = loaded.policy
    parameters = inspect.signature(policy.predict_action_chunk).parameters
    shape = [getattr(loaded.config, name, None) for name in ("chunk_size", "max_action_dim")]
    given = "noise" in parameters or loaded.config.type in ("pi0", "pi05")
    if not given or not all(isinstance(n, int) for n in shape):
        return None
    return shape[0], shape[1]  # type: ignore[return-value]


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """LeRobot speaks to its own users, by the root logger and on standard output."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.disable(level)
