"""All contact with LeRobot's policies: its classes and its pre- and post-processors, loaded from a folder.

LeRobot 0.6. Seconds go by until it is imported; types that need packages which are not installed say so."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
    batch = dict(batch)
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
