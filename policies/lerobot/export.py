"""Between our checkpoints and LeRobot's folders. A checkpoint goes as LeRobot's own ACT or diffusion policy,
where the networks are the same, else as a policy of the type `ulna`, which the plug-in lerobot_policy_ulna
brings there; an ACT or diffusion policy of LeRobot comes as a checkpoint.

Legend: D width, K keypoints, T = n_obs_steps."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.features import ACTION, ENVIRONMENT, STATE, Feature, image_keys, is_image, state_keys
from ...datasets.layout import require_new
from ...datasets.making import making
from ..backbones.encoder_decoder import EncoderDecoder
from ..backbones.latent import Latent
from ..backbones.unet1d import UNet1D
from ..checkpoint import HASHED, load_checkpoint, read_train, save_checkpoint
from ..codec import Absolute, Affine
from ..encoders.feature_maps import FeatureMaps
from ..encoders.resnet import ResNet
from ..encoders.vector import MLP, Encoder
from ..hashed import STAMP, write_json
from ..objectives.cvae import CVAE
from ..objectives.diffusion import Diffusion
from ..objectives.regression import Regression
from ..policy import Policy
from ..recipe import Recipe
from ..request import Request
from ..solvers.ddim import DDIM
from ..train.record import TrainingRecord
from .folder import CONFIG, DESCRIBED, OURS, LeRobotFolder, checkpoint_folder, read_folder
from .lerobot import Normalisation, save, save_processors
from .mapped import condition_columns, mapped
from .names import ACT, DIFFUSION, POSTERIOR, RESNET, UNET, renamed
from .policy import load_lerobot

TOLERANCE = 1e-4  # of an action's range, within which LeRobot's own policy gives what ours gives


@dataclasses.dataclass(frozen=True)
class Exported:
    """type: `act`, `diffusion` or `ulna`. off_by: how far LeRobot's actions are from ours, of their range,
    from the same noise; 0 for `ulna`, which is the checkpoint itself. why: what kept it from being LeRobot's
    own."""

    path: Path
    type: str
    off_by: float = 0.0
    why: str = ""


class _Unlike(ValueError):
    """LeRobot has no such policy."""


def export_lerobot(folder: str | Path, out: str | Path) -> Exported:
    """Write the checkpoint `folder` as the new folder `out`, whole or not at all. CheckpointError or
    StoreError in one sentence."""
    out = Path(out)
    require_new(out)
    folder = checkpoint_folder(folder)
    policy, record = load_checkpoint(folder), read_train(folder)
    try:
        with making(out) as work:
            kind, config, weights = _native(policy)
            config["pictures"] = {
                k: (f.shape[2], *f.shape[:2]) for k, f in policy.features.items() if is_image(k)
            }
            save(work, kind, config, weights, _statistics(policy))
            _dataset(work, policy, record.control_hz, record.robot)
            off = _difference(policy, work)
            if not off <= TOLERANCE:
                raise _Unlike(f"LeRobot's {kind} is off by {off:.2g} of an action's range")
        return Exported(out, kind, off)
    except _Unlike as unlike:
        with making(out) as work:
            _whole(Path(folder), policy, work)
        return Exported(out, OURS, why=str(unlike))


def import_lerobot(source: str | Path, out: str | Path) -> Policy:
    """Write LeRobot's policy `lerobot:PATH` as a checkpoint of ours into the new folder `out`, whole or not
    at all. NotMapped, CheckpointError or StoreError in one sentence."""
    out = Path(out)
    require_new(out)
    policy, found = mapped(source), read_folder(checkpoint_folder(source))
    start = policy.content_hash
    parameters = sum(p.numel() for p in policy.parameters())
    record = TrainingRecord(
        start=start, robot=found.robot, control_hz=found.control_hz, parameters=parameters
    )
    with making(out) as work:
        save_checkpoint(work, policy, record)
    return policy


def _whole(folder: Path, policy: Policy, out: Path) -> None:
    """The checkpoint's own files beside LeRobot's: a config.json of the type `ulna`, and processors that
    leave numbers as they are."""
    for name in (*HASHED, STAMP, "train.json"):
        shutil.copyfile(folder / name, out / name)
    recipe = policy.recipe
    names: dict[str, Any] = {}
    for key, f in policy.features.items():
        kind = "ACTION" if key == ACTION else "VISUAL" if is_image(key) else "STATE"
        shape = [f.shape[2], *f.shape[:2]] if is_image(key) else list(f.shape)
        names[key] = {"type": "ENV" if key == ENVIRONMENT else kind, "shape": shape}
    document = {
        "type": OURS,
        "n_obs_steps": recipe.n_obs_steps,
        "input_features": {k: names[k] for k in policy.observation_keys},
        "output_features": {ACTION: names[ACTION]},
        "horizon": recipe.horizon,
        "n_past_actions": recipe.n_past_actions,
        "n_action_steps": recipe.n_action_steps,
        "device": "cpu",
    }
    write_json(out / CONFIG, document)
    save_processors(out, document["input_features"], document["output_features"])


def _native(policy: Policy) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(LeRobot's type, fields of its config, its weights). _Unlike says in a few words what LeRobot has
    not."""
    r = policy.recipe
    for condition, what in (
        (bool(r.conditions), "is told what to do"),
        (bool(r.steering), "is steered while it samples"),
        (not isinstance(r.codec, Absolute), "gives differences, not targets"),
        (policy.context_net.memory_width > 0, "carries a memory"),
        (bool(set(state_keys(policy.features)) - {STATE, ENVIRONMENT}), "sees other vectors"),
        (STATE not in policy.observation_keys, "does not see the arm's state"),
    ):
        if condition:
            raise _Unlike(f"{r.name} {what}, which LeRobot's act and diffusion do not")
    sizes = {policy.features[k].shape for k in image_keys(policy.features)}
    if len(sizes) > 1 or not (sizes or ENVIRONMENT in policy.features):
        raise _Unlike("LeRobot's policies want pictures of one size, or the environment's state")
    backbone = r.backbone
    inner = backbone.inner if isinstance(backbone, Latent) else None
    if isinstance(inner, EncoderDecoder) and isinstance(r.encoder, FeatureMaps):
        return "act", *_act(policy, r, inner)
    if isinstance(backbone, UNet1D) and isinstance(r.encoder, Encoder):
        return "diffusion", *_diffusion(policy, r, backbone)
    raise _Unlike(f"{r.name} is of parts that LeRobot's act and diffusion have not")


def _act(policy: Policy, r: Recipe, net: EncoderDecoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    outer, objective, encoder = r.backbone, r.objective, r.encoder
    assert isinstance(outer, Latent)
    assert isinstance(encoder, FeatureMaps)
    images = image_keys(policy.features)
    image = encoder.image
    if not net.bare:
        raise _Unlike("its EncoderDecoder has a token of the time, and learned positions of pictures' tokens")
    if not isinstance(objective, CVAE) or objective.inner != Regression("l1"):
        raise _Unlike("LeRobot's act learns by absolute errors with a latent (CVAE)")
    if images and not (isinstance(image, ResNet) and image.norm == "frozen" and image.crop == 1):
        raise _Unlike("LeRobot's act looks at pictures by a ResNet of frozen norms (--encoder.image ResNet)")
    if r.n_obs_steps != 1 or r.n_past_actions or r.normalise_state == "quantile":
        raise _Unlike("LeRobot's act sees one observation, and its chunk begins now")
    same = [getattr(net, n) == getattr(outer, n) for n in ("width", "heads", "ffn", "dropout")]
    if not all(same) or net.width != encoder.width:
        raise _Unlike("LeRobot's act has one width, one number of heads and one dropout")
    config = {
        "chunk_size": r.horizon,
        "n_action_steps": 1 if r.decoder == "ensemble" else r.n_action_steps,
        "temporal_ensemble_coeff": r.ensemble_decay if r.decoder == "ensemble" else None,
        "dim_model": net.width,
        "n_heads": net.heads,
        "dim_feedforward": net.ffn,
        "dropout": net.dropout,
        "n_encoder_layers": net.encoder_depth,
        "n_decoder_layers": net.depth,
        "n_vae_encoder_layers": outer.depth,
        "latent_dim": objective.latent,
        "kl_weight": objective.kl_weight,
        "use_vae": True,
    }
    if isinstance(image, ResNet):
        config |= {"vision_backbone": image.name, "replace_final_stride_with_dilation": image.dilated}
    own = {k: v.detach().clone() for k, v in policy.state_dict().items()}
    inner = _within(own, "net.inner.")
    theirs = renamed(inner, ACT, back=True)
    t, b = inner["tokens_in.weight"], inner["tokens_in.bias"]

    def joined(prefix: str) -> dict[str, Tensor]:
        """A layer of ours and the one after it, as one."""
        w = own[f"{prefix}.weight"]
        return {
            "weight": torch.einsum("ij,j...->i...", t, w),
            "bias": t @ own[f"{prefix}.bias"] + b,
        }

    states = state_keys(policy.features)
    names = {STATE: "encoder_robot_state_input_proj", ENVIRONMENT: "encoder_env_state_input_proj"}
    for i, key in enumerate(states):
        theirs |= {f"{names[key]}.{n}": v for n, v in joined(f"encoder.states.{i}").items()}
    theirs |= {f"encoder_latent_input_proj.{n}": v for n, v in joined("net.token").items()}
    positions = inner["token_positions"]
    order = [0, *(1 + states.index(k) for k in (STATE, ENVIRONMENT) if k in states)]
    theirs["encoder_1d_feature_pos_embed.weight"] = positions[order]
    if images:
        trunks = [_within(own, f"encoder.trunks.{j}.") for j in range(len(images))]
        projections = [joined(f"encoder.projections.{j}") for j in range(len(images))]
        if not all(_equal(trunks[0], other) for other in trunks[1:]) or not all(
            _equal(projections[0], other) for other in projections[1:]
        ):
            raise _Unlike("LeRobot's act has one ResNet for all cameras, and here each has learned its own")
        named = {k: v for k, v in renamed(trunks[0], _by_name(RESNET), back=True).items()}
        theirs |= named
        theirs |= {f"encoder_img_feat_input_proj.{n}": v for n, v in projections[0].items()}
    posterior = _within(own, "net.posterior.")
    theirs |= renamed(posterior, POSTERIOR, back=True)
    theirs["vae_encoder_cls_embed.weight"] = posterior["asks"][None]
    i = states.index(STATE)
    w, bias = own[f"encoder.states.{i}.weight"], own[f"encoder.states.{i}.bias"]
    theirs["vae_encoder_robot_state_input_proj.weight"] = posterior["tokens_in.weight"] @ w
    theirs["vae_encoder_robot_state_input_proj.bias"] = (
        posterior["tokens_in.weight"] @ bias + posterior["tokens_in.bias"]
    )
    return config, {f"model.{k}": v for k, v in theirs.items()}


def _diffusion(policy: Policy, r: Recipe, net: UNet1D) -> tuple[dict[str, Any], dict[str, Tensor]]:
    encoder, objective, solver = r.encoder, r.objective, r.solver
    assert isinstance(encoder, Encoder)
    images, image = image_keys(policy.features), encoder.image
    if not isinstance(objective, Diffusion) or objective.schedule != "squaredcos_cap_v2":
        raise _Unlike("LeRobot's diffusion is denoised on the squared-cosine schedule (Diffusion)")
    if objective.predict == "v":
        raise _Unlike(
            "LeRobot's diffusion predicts the noise or the clean chunk (--objective.predict eps or x)"
        )
    if net.levels != objective.train_steps or net.groups != 8:
        raise _Unlike(
            f"LeRobot's diffusion tells its network the number of the level (--backbone.levels "
            f"{objective.train_steps}), and here it is told a time"
        )
    if not isinstance(solver, DDIM) or solver.eta not in (0, 1) or encoder.state != MLP(depth=0):
        raise _Unlike("LeRobot's diffusion samples by DDPM or DDIM, from the state as it is")
    if images and not isinstance(image, ResNet):
        raise _Unlike("LeRobot's diffusion looks at pictures by a ResNet with a layer after its keypoints")
    if r.n_past_actions != r.n_obs_steps - 1 or r.decoder != "slice":
        raise _Unlike("LeRobot's diffusion begins its chunk at the first observation, and runs it by slices")
    if (solver.eta, r.sampling_steps) != (1, objective.train_steps):
        raise _Unlike(
            "LeRobot spaces fewer sampling steps otherwise: --solver.eta 1 and all of them are alike"
        )
    if r.horizon % 2 ** len(net.widths):
        raise _Unlike(f"LeRobot wants a horizon that is a multiple of {2 ** len(net.widths)}")
    config: dict[str, Any] = {
        "n_obs_steps": r.n_obs_steps,
        "horizon": r.horizon,
        "n_action_steps": r.n_action_steps,
        "down_dims": tuple(net.widths),
        "kernel_size": net.kernel,
        "diffusion_step_embed_dim": net.time_width,
        "num_train_timesteps": objective.train_steps,
        "prediction_type": "sample" if objective.predict == "x" else "epsilon",
        "clip_sample": bool(solver.clip),
        "clip_sample_range": solver.clip or 1.0,
        "do_mask_loss_for_padding": r.mask_padding,
    }
    own = {k: v.detach().clone() for k, v in policy.state_dict().items()}
    keypoints = 0
    if images and isinstance(image, ResNet):
        keypoints = image.keypoints
        height, width = policy.features[images[0]].shape[:2]
        crop = (round(height * image.crop), round(width * image.crop))
        config |= {
            "vision_backbone": image.name,
            "use_group_norm": image.norm == "group",
            "spatial_softmax_num_keypoints": keypoints,
            "crop_shape": None if crop == (height, width) else crop,
        }
        if image.dilated:
            raise _Unlike("LeRobot's diffusion does not dilate its ResNet")
    theirs = renamed(_within(own, "net."), UNET, back=True)
    found = _folder_of(policy)
    columns = _Columns(n_obs_steps=r.n_obs_steps, keypoints=keypoints, images=tuple(images))
    index, _ = condition_columns(found, policy, Normalisation({}, {}), columns)
    inverse, wide = torch.argsort(index), net.time_width
    for k in [k for k in theirs if k.endswith("cond_encoder.1.weight")]:
        theirs[k] = torch.cat([theirs[k][:, :wide], theirs[k][:, wide:][:, inverse]], dim=1)
    for j in range(len(images)):
        of = _within(own, f"encoder.images.{j}.")
        if abs(float(of["2.temperature"]) - 1) > 1e-6:  # LeRobot's is 1: the map before it takes it up
            of["1.weight"], of["1.bias"] = (of[n] / of["2.temperature"] for n in ("1.weight", "1.bias"))
        order = torch.stack([torch.arange(keypoints), torch.arange(keypoints) + keypoints], 1).flatten()
        of["3.weight"] = of["3.weight"][:, order]
        each = renamed(_within(of, "0."), _by_number(RESNET), back=True)
        each |= renamed(of, DIFFUSION, back=True)
        theirs |= {f"rgb_encoder.{j}.{k}": v for k, v in each.items()}
    return config, {f"diffusion.{k}": v for k, v in theirs.items()}


@dataclasses.dataclass(frozen=True)
class _Columns:
    """What `condition_columns` asks of LeRobot's config."""

    n_obs_steps: int
    keypoints: int
    images: tuple[str, ...]

    @property
    def image_features(self) -> tuple[str, ...]:
        return self.images

    @property
    def spatial_softmax_num_keypoints(self) -> int:
        return self.keypoints


def _folder_of(policy: Policy) -> LeRobotFolder:
    keys = {k: k for k in policy.observation_keys}
    return LeRobotFolder(Path(), "", {}, policy.features, keys)


def _by_name(pairs: Any) -> Any:
    return [p for p in pairs if not p[0].split(".")[1].isdigit()]


def _by_number(pairs: Any) -> Any:
    return [p for p in pairs if p[0].split(".")[1].isdigit()]


def _within(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items() if not k.startswith("0."))


def _statistics(policy: Policy) -> dict[str, dict[str, Any]]:
    """Of each feature the mean and deviation by which LeRobot does what our normalisers do; of pictures those
    of their colours."""
    stats: dict[str, dict[str, Any]] = {}
    pairs: list[tuple[str, Affine]] = [(k, policy.normaliser(k)) for k in state_keys(policy.features)]
    for key, affine in (*pairs, (ACTION, policy.codec.affine)):
        scale, offset = (v.double().numpy() for v in (affine.scale, affine.offset))
        stats[key] = {"mean": -offset / scale, "std": 1 / scale}
    own = policy.state_dict()
    for j, key in enumerate(image_keys(policy.features)):
        for prefix in (f"encoder.trunks.{j}.0", f"encoder.images.{j}.0.0"):
            if f"{prefix}.mean" in own:
                mean, deviation = (own[f"{prefix}.{n}"].double().numpy() for n in ("mean", "deviation"))
                stats[key] = {"mean": mean, "std": deviation}
    return stats


def _dataset(out: Path, policy: Policy, control_hz: float | None, robot: str) -> None:
    """What LeRobot's form has no place for, names, units and the rate, in a file beside."""
    features: dict[str, Any] = {}
    for key in (STATE, ACTION):
        f: Feature = policy.features[key]
        features[key] = {"dtype": f.dtype, "shape": list(f.shape), "names": list(f.names) or None}
        if any(f.units):
            features[key]["info"] = {"units": list(f.units)}
    info = {"fps": control_hz, "robot_type": robot or None, "features": features}
    write_json(out / DESCRIBED, {**info, "checkpoint": policy.content_hash})


def _difference(policy: Policy, out: Path) -> float:
    """The largest over some observations, of the range of each action."""
    theirs = load_lerobot(out)
    worst = 0.0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        observation: dict[str, Any] = {}
        for key in policy.observation_keys:
            f = policy.features[key]
            shape = (1, policy.recipe.n_obs_steps, *f.shape)
            if is_image(key):
                value = rng.integers(0, 256, shape).astype(np.uint8)
            else:
                s = policy.stats[key]
                value = rng.uniform(s.min, np.maximum(s.max, s.min), shape).astype(f.dtype)
            observation[key] = torch.from_numpy(value)
        chunks = []
        for p in (policy, theirs):
            draw = torch.Generator().manual_seed(seed)
            shape = (1, p.recipe.horizon, policy.features[ACTION].shape[0])
            noise = lambda shape=shape, draw=draw: torch.randn(shape, generator=draw)
            chunks.append(p.sample(Request(observation, seed), noise=noise).chunk.double())
        s = policy.stats[ACTION]
        span = torch.from_numpy(np.maximum(s.max - s.min, 1e-6))
        ours, other = (c[:, -min(len(chunks[0][0]), len(chunks[1][0])) :] for c in chunks)
        worst = max(worst, float(((ours - other).abs() / span).max()))
    return worst
