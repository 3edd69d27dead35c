"""Small policies of LeRobot in folders as its training saves them, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SMALL: dict[str, dict[str, Any]] = {
    "act": {
        "chunk_size": 8,
        "n_action_steps": 4,
        "dim_model": 32,
        "n_heads": 2,
        "dim_feedforward": 48,
        "n_encoder_layers": 2,
        "n_vae_encoder_layers": 1,
        "latent_dim": 4,
    },
    "diffusion": {
        "horizon": 8,
        "n_action_steps": 4,
        "down_dims": (16, 32),
        "diffusion_step_embed_dim": 16,
        "num_train_timesteps": 20,
        "spatial_softmax_num_keypoints": 4,
        "use_group_norm": True,
    },
    "vqbet": {
        "n_obs_steps": 3,
        "crop_shape": None,
        "action_chunk_size": 4,
        "n_action_pred_token": 2,
        "vqvae_n_embed": 4,
        "vqvae_embedding_dim": 16,
        "vqvae_enc_hidden_dim": 16,
        "gpt_n_layer": 1,
        "gpt_n_head": 2,
        "gpt_hidden_dim": 32,
        "gpt_input_dim": 32,
        "gpt_output_dim": 32,
        "spatial_softmax_num_keypoints": 4,
    },
}


def policy_folder(
    folder: Path,
    kind: str,
    *,
    cameras: tuple[str, ...] = (),
    environment: int = 3,
    size: int = 64,
    dataset: Path | None = None,
    still: bool = False,
    **settings: Any,
) -> Path:
    """A policy of `JOINTS` with random weights and statistics. dataset: whose names and units it was trained
    with; made here, in radians, where it is None. still: whether the third joint never moved, and stood at
    0.5."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    torch.manual_seed(0)
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}
    if environment:
        inputs["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (environment,))
    for name in cameras:
        inputs[f"observation.images.{name}"] = PolicyFeature(FeatureType.VISUAL, (3, size, size))
    options = {**SMALL[kind], "pretrained_backbone_weights": None, **settings}
    config = make_policy_config(kind, device="cpu", push_to_hub=False, **options)
    config.input_features = inputs
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (6,))}
    policy: Any = get_policy_class(kind)(config).eval()
    if kind == "vqbet":
        policy.vqbet.action_head.vqvae_model.discretized.fill_(True)
    rng = np.random.default_rng(0)
    stats = {k: _stats(rng, f.shape) for k, f in (inputs | config.output_features).items()}
    if still:
        for name, values in stats.items():
            if name in ("action", "observation.state"):
                for of, value in values.items():
                    value[2] = 0.0 if of == "std" else 0.5
    prepare, finish = make_pre_post_processors(config, dataset_stats=stats)
    folder.mkdir(parents=True, exist_ok=True)
    policy.save_pretrained(folder)
    prepare.save_pretrained(folder)
    finish.save_pretrained(folder)
    root = dataset or _described(folder.parent / "dataset", inputs)
    (folder / "train_config.json").write_text(
        json.dumps({"dataset": {"repo_id": "ulna/x", "root": str(root)}, "steps": 1})
    )
    return folder


def _stats(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    size = (3, 1, 1) if len(shape) == 3 else shape
    centre, half = (torch.tensor(rng.uniform(low, 1, size), dtype=torch.float32) for low in (-1, 0.2))
    if len(shape) == 3:
        centre = centre.abs()
    values = {"mean": centre, "std": half / 2, "min": centre - half, "max": centre + half}
    values |= {"q01": centre - half, "q99": centre + half}
    return {k: v.clone() for k, v in values.items()}


def _described(root: Path, inputs: dict[str, Any], units: str = "rad") -> Path:
    """The `meta/info.json` of a dataset that we exported."""
    vector = {"names": list(JOINTS), "info": {"units": [units] * 6}}
    features = {k: {"dtype": "float32", "shape": [6], **vector} for k in ("observation.state", "action")}
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta" / "info.json").write_text(
        json.dumps({"fps": 20, "robot_type": "so101", "features": features})
    )
    return root
