"""LeRobot's ACT and DiffusionPolicy as recipes of ours: the same parts, and their weights by our names, so
that training goes on from them.

Legend: V vectors that are observed, T = n_obs_steps, K keypoints, D width, A action dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.features import ACTION, ENVIRONMENT, STATE, Features, image_keys, state_keys
from ...datasets.stats import Stats
from ..backbones.encoder_decoder import EncoderDecoder
from ..backbones.latent import Latent
from ..backbones.unet1d import UNet1D
from ..codec import Absolute
from ..encoders.feature_maps import FeatureMaps
from ..encoders.resnet import ResNet
from ..encoders.vector import MLP, Encoder
from ..objectives.cvae import CVAE
from ..objectives.diffusion import Diffusion
from ..objectives.regression import Regression
from ..policy import Policy
from ..recipe import Recipe
from ..solvers.ddim import DDIM
from .folder import LeRobotFolder, checkpoint_folder, content_hash, read_folder
from .lerobot import Loaded, Normalisation, load, normalisation
from .names import ACT, DIFFUSION, POSTERIOR, RESNET, UNET, renamed

RECIPES = {"act": "act", "diffusion": "diffusion_unet"}
MODES = {
    "MEAN_STD": "meanstd",
    "MIN_MAX": "minmax",
    "IDENTITY": "none",
    "QUANTILES": "quantile",
    "QUANTILE10": "quantile",
}
NO_RANGE = 2e-8  # resolution of an action element: one that never moved is decoded to where it stood


class NotMapped(ValueError):
    """A policy of LeRobot is none of our recipes; the message says in one sentence where it differs."""


def mapped(source: str | Path) -> Policy:
    """The policy `lerobot:PATH` as one of ours, in evaluation mode, which gives the same actions from the
    same noise. NotMapped where the networks are not the same; CheckpointError where it cannot be loaded."""
    found, loaded, norm = _read(source)
    recipe = _recipe(found, loaded, norm)
    stats = {k: _stats(found, norm, k) for k in (*state_keys(found.features), ACTION)}
    policy = Policy(recipe, found.features, stats)
    weights = _act(policy, found, loaded, norm) if found.type == "act" else _unet(policy, found, loaded, norm)
    own = policy.state_dict()
    missing, strange = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    wrong = [k for k in weights if k in own and weights[k].shape != own[k].shape]
    if strange or wrong or any(not k.startswith("net.posterior.") for k in missing):
        name = (strange + wrong + missing)[0]
        raise NotMapped(f"the {found.type} in {found.path} has other weights than {recipe.name}: {name}")
    policy.load_state_dict({**own, **weights})
    policy.content_hash = content_hash(found.path)
    return policy.eval().requires_grad_(False)


def mapped_recipe(source: str | Path, recipe: Recipe) -> Recipe:
    """`recipe` with the parts of the policy that training begins with. NotMapped in one sentence."""
    own = _recipe(*_read(source))
    if own.name != recipe.name:
        raise NotMapped(f"{source} begins the recipe {own.name}, not {recipe.name}")
    return replace(own, training=recipe.training)


def _read(source: str | Path) -> tuple[LeRobotFolder, Loaded, Normalisation]:
    found = read_folder(checkpoint_folder(source))
    if found.type not in RECIPES:
        raise NotMapped(
            f"LeRobot's {found.type} is none of our recipes, so training cannot begin with it: "
            f"{' and '.join(RECIPES)} can; it can be served as it is"
        )
    loaded = load(found, "cpu")
    norm = normalisation(loaded)
    if norm.others:
        raise NotMapped(f"{found.path} prepares observations by {norm.others[0]}, which our recipes have not")
    turned = [e.name for es in found.elements.values() for e in es if e.scale <= 0]
    if turned:
        raise NotMapped(
            f"{turned[0]} turns the other way round in LeRobot's units: training begins without it"
        )
    return found, loaded, norm


def _recipe(found: LeRobotFolder, loaded: Loaded, norm: Normalisation) -> Recipe:
    config = loaded.config
    modes = {k: norm.modes.get(kind, "IDENTITY") for k, kind in (("state", "STATE"), ("action", "ACTION"))}
    state: Any
    state, action = (MODES[modes[k]] for k in ("state", "action"))
    codec = Absolute(action)  # type: ignore[arg-type]
    make = _act_recipe if found.type == "act" else _unet_recipe
    return replace(make(found, config), normalise_state=state, codec=codec)


def _act_recipe(found: LeRobotFolder, c: Any) -> Recipe:
    from ..recipes.act import act

    _same("pre_norm", c.pre_norm, False, "act")
    _same("feedforward_activation", c.feedforward_activation, "relu", "act")
    size = {"width": c.dim_model, "heads": c.n_heads, "ffn": c.dim_feedforward, "dropout": c.dropout}
    inner = EncoderDecoder(
        **size, encoder_depth=c.n_encoder_layers, depth=c.n_decoder_layers, bare=bool(c.use_vae)
    )
    image = ResNet(_resnet(c), dilated=bool(c.replace_final_stride_with_dilation))
    ensemble = c.temporal_ensemble_coeff
    return replace(
        act(found.features),
        encoder=FeatureMaps(c.dim_model, image),
        backbone=Latent(inner, **size, depth=c.n_vae_encoder_layers) if c.use_vae else inner,
        objective=CVAE(latent=c.latent_dim, kl_weight=float(c.kl_weight)) if c.use_vae else Regression("l1"),
        horizon=c.chunk_size,
        n_action_steps=c.n_action_steps,
        decoder="slice" if ensemble is None else "ensemble",
        ensemble_decay=0.01 if ensemble is None else float(ensemble),
    )


def _unet_recipe(found: LeRobotFolder, c: Any) -> Recipe:
    from ..recipes.diffusion import diffusion_unet

    _same("beta_schedule", c.beta_schedule, "squaredcos_cap_v2", "diffusion_unet")
    _same("n_groups", c.n_groups, 8, "diffusion_unet")
    _same("resize_shape", c.resize_shape, None, "diffusion_unet")
    if c.diffusion_step_embed_dim < 4:
        raise NotMapped("LeRobot's diffusion_step_embed_dim is too small for our UNet1D")
    image = ResNet(
        _resnet(c),
        norm="group" if c.use_group_norm else "frozen",
        keypoints=c.spatial_softmax_num_keypoints,
        crop=_crop(found.features, c.crop_shape),
    )
    clip = float(c.clip_sample_range) if c.clip_sample else 0.0
    steps = c.num_inference_steps or c.num_train_timesteps
    return replace(
        diffusion_unet(found.features),
        encoder=Encoder(MLP(depth=0), image),
        backbone=UNet1D(
            tuple(c.down_dims), c.kernel_size, 8, c.diffusion_step_embed_dim, levels=c.num_train_timesteps
        ),
        objective=Diffusion(c.num_train_timesteps, predict="x" if c.prediction_type == "sample" else "eps"),
        solver=DDIM(eta=float(c.noise_scheduler_type == "DDPM"), clip=clip),
        sampling_steps=steps,
        n_obs_steps=c.n_obs_steps,
        horizon=c.horizon,
        n_past_actions=c.n_obs_steps - 1,
        n_action_steps=c.n_action_steps,
        mask_padding=bool(c.do_mask_loss_for_padding),
    )


def _same(name: str, value: Any, ours: Any, recipe: str) -> None:
    if value != ours:
        raise NotMapped(f"LeRobot's {name} is {value}, and the recipe {recipe} knows {ours} only")


def _resnet(c: Any) -> Any:
    if c.vision_backbone not in ("resnet18", "resnet34", "resnet50"):
        raise NotMapped(f"LeRobot's vision_backbone is {c.vision_backbone}, which our ResNet is not")
    return c.vision_backbone


def _crop(features: Features, shape: Any) -> float:
    """The share of each side that is a crop of `shape` pixels, in the same place."""
    keys = image_keys(features)
    if shape is None or not keys:
        return 1.0
    height, width = features[keys[0]].shape[:2]
    share = shape[0] / height
    even = all((n - crop) % 2 == 0 for n, crop in zip((height, width), shape, strict=True))
    if not even or (round(height * share), round(width * share)) != tuple(shape):
        raise NotMapped(
            f"LeRobot's crop_shape {tuple(shape)} of pictures of {(height, width)} is no share of both sides "
            "around their centre, as our crop is"
        )
    return share


def _stats(found: LeRobotFolder, norm: Normalisation, key: str) -> Stats:
    """Statistics by which our normaliser does what LeRobot's does, in our units."""
    width = found.features[key].shape[0]
    kind = "ACTION" if key == ACTION else "ENV" if key == ENVIRONMENT else "STATE"
    mode = norm.modes.get(kind, "IDENTITY")
    of = norm.stats.get(found.keys.get(key, key), {})
    one = np.ones(width)
    if mode == "IDENTITY" or not of:
        values = {"min": -one, "max": one, "mean": 0 * one, "std": one, "q01": -one, "q99": one}
    else:
        low, high = {"QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}.get(mode, ("min", "max"))
        mean, std = of.get("mean", 0 * one), of.get("std", one)
        least, most = of.get(low, mean - std), of.get(high, mean + std)
        values = {"min": least, "max": most, "mean": mean, "std": std, "q01": least, "q99": most}
    values = {k: np.asarray(v, np.float64).reshape(width) for k, v in values.items()}
    if key in found.elements:
        scale, offset = (
            np.array([getattr(e, n) for e in found.elements[key]], np.float64) for n in ("scale", "offset")
        )
        values = {k: v * scale if k == "std" else v * scale + offset for k, v in values.items()}
    return Stats(**values, count=1, resolution=np.full(width, NO_RANGE) if key == ACTION else None)


def _shift(found: LeRobotFolder, norm: Normalisation, policy: Policy, key: str) -> Tensor:
    """What LeRobot's normaliser gives beyond ours `(W,)`: of an element that never moved in its data -1 by
    its range, where ours gives 0."""
    kind = "ENV" if key == ENVIRONMENT else "STATE"
    shift = torch.zeros(found.features[key].shape[0])
    if norm.modes.get(kind, "IDENTITY") in ("MIN_MAX", "QUANTILES", "QUANTILE10"):
        stats = policy.stats[key]
        shift[torch.from_numpy(stats.max == stats.min)] = -1.0
    return shift


def _colours(found: LeRobotFolder, norm: Normalisation, key: str) -> tuple[Tensor, Tensor]:
    """(mean, deviation) `(3, 1, 1)` that pictures are scaled by."""
    mode, of = norm.modes.get("VISUAL", "IDENTITY"), norm.stats.get(found.keys[key], {})
    if mode == "IDENTITY" or not of:
        mean, deviation = torch.zeros(3), torch.ones(3)
    elif mode == "MEAN_STD":
        mean, deviation = (
            torch.from_numpy(np.asarray(of[k], np.float32)).reshape(-1) for k in ("mean", "std")
        )
    else:
        low, high = {"QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}.get(mode, ("min", "max"))
        least, most = (torch.from_numpy(np.asarray(of[k], np.float32)).reshape(-1) for k in (low, high))
        mean, deviation = (least + most) / 2, (most - least) / 2
    if mean.numel() != 3:
        raise NotMapped(f"LeRobot scales {key} by statistics of {mean.numel()} numbers, not of 3 colours")
    return mean.reshape(3, 1, 1), deviation.reshape(3, 1, 1)


def _act(policy: Policy, found: LeRobotFolder, loaded: Loaded, norm: Normalisation) -> dict[str, Tensor]:
    theirs = {k.removeprefix("model."): v for k, v in loaded.policy.state_dict().items()}
    states, images = state_keys(found.features), image_keys(found.features)
    vae = bool(loaded.config.use_vae)
    inner = "net.inner." if vae else "net."
    weights = {inner + k: v for k, v in renamed(theirs, ACT).items()}
    d = loaded.config.dim_model
    weights[inner + "tokens_in.weight"], weights[inner + "tokens_in.bias"] = torch.eye(d), torch.zeros(d)
    weights[inner + "actions_in.weight"] = torch.zeros(d, found.features[ACTION].shape[0])
    projections = {STATE: "encoder_robot_state_input_proj", ENVIRONMENT: "encoder_env_state_input_proj"}
    if strange := [k for k in states if k not in projections]:
        raise NotMapped(f"LeRobot's act does not look at {strange[0]}, and our recipe would")
    for i, key in enumerate(states):
        w, b = (theirs[f"{projections[key]}.{n}"] for n in ("weight", "bias"))
        weights[f"encoder.states.{i}.weight"] = w
        weights[f"encoder.states.{i}.bias"] = b + w @ _shift(found, norm, policy, key)
    for j, key in enumerate(images):
        weights |= {f"encoder.trunks.{j}.{k}": v for k, v in renamed(theirs, RESNET).items()}
        weights |= _of_colours(f"encoder.trunks.{j}.0", found, norm, key)
        for n in ("weight", "bias"):
            weights[f"encoder.projections.{j}.{n}"] = theirs[f"encoder_img_feat_input_proj.{n}"]
    # of the vectors LeRobot has the state first; pictures have no learned positions
    order = [k for k in (STATE, ENVIRONMENT) if k in states]
    learned = theirs["encoder_1d_feature_pos_embed.weight"]
    rows = policy.state_dict()[inner + "token_positions"]
    positions = torch.zeros_like(rows)
    positions[0] = learned[0]
    for i, key in enumerate(states):
        positions[1 + i] = learned[1 + order.index(key)]
    weights[inner + "token_positions"] = positions
    if vae:
        for n in ("weight", "bias"):
            weights[f"net.token.{n}"] = theirs[f"encoder_latent_input_proj.{n}"]
        weights |= _posterior(weights, theirs, states, found, norm, policy)
    else:  # the latent is always 0 then, and its token as constant as that of the time
        own = policy.state_dict()
        weights |= {k: torch.zeros_like(v) for k, v in own.items() if k.startswith("net.time.")}
        weights["net.time.mlp.2.bias"] = theirs["encoder_latent_input_proj.bias"]
        weights["net.actions_in.bias"] = torch.zeros(d)
    return weights


def _posterior(
    weights: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    states: list[str],
    found: LeRobotFolder,
    norm: Normalisation,
    policy: Policy,
) -> dict[str, Tensor]:
    """The network that makes the latent in training. Ours looks at the token of the state, LeRobot's at the
    state itself: the same, where the token holds the whole state; else, and where there are more vectors,
    it begins anew."""
    w = weights["encoder.states.0.weight"].double() if states == [STATE] else None
    if w is None or torch.linalg.matrix_rank(w) < w.shape[1]:
        return {}
    prefix = "vae_encoder"
    v = theirs[f"{prefix}_robot_state_input_proj.weight"].double()
    bias = theirs[f"{prefix}_robot_state_input_proj.bias"].double()
    shift = _shift(found, norm, policy, STATE).double()
    m = v @ torch.linalg.pinv(w)
    return {
        "net.posterior.tokens_in.weight": m.float(),
        "net.posterior.tokens_in.bias": (
            bias + v @ shift - m @ weights["encoder.states.0.bias"].double()
        ).float(),
        "net.posterior.asks": theirs[f"{prefix}_cls_embed.weight"][0],
        **{f"net.posterior.{k}": x for k, x in renamed(theirs, POSTERIOR).items()},
    }


def _unet(policy: Policy, found: LeRobotFolder, loaded: Loaded, norm: Normalisation) -> dict[str, Tensor]:
    theirs = {k.removeprefix("diffusion."): v for k, v in loaded.policy.state_dict().items()}
    weights = {f"net.{k}": v for k, v in renamed(theirs, UNET).items()}
    c, states = loaded.config, state_keys(found.features)
    if not c.use_film_scale_modulation:
        for k in [k for k in weights if ".film.1." in k]:
            ones = k.endswith("bias")
            weights[k] = torch.cat([torch.full_like(weights[k], float(ones)), weights[k]])
    index, shift = condition_columns(found, policy, norm, c)
    shift = torch.nn.functional.mish(shift)  # before each linear map; of our 0 it is 0
    wide = c.diffusion_step_embed_dim
    for k in [k for k in weights if k.endswith(".film.1.weight")]:
        w = weights[k]
        weights[k] = torch.cat([w[:, :wide], w[:, wide:][:, index]], dim=1)
        weights[k.replace("weight", "bias")] = weights[k.replace("weight", "bias")] + w[:, wide:] @ shift
    if strange := [k for k in states if k not in (STATE, ENVIRONMENT)]:
        raise NotMapped(f"LeRobot's diffusion does not look at {strange[0]}, and our recipe would")
    cameras = list(c.image_features)
    for j, key in enumerate(image_keys(found.features)):
        separate = c.use_separate_rgb_encoder_per_camera
        which = f"rgb_encoder.{cameras.index(found.keys[key])}." if separate else "rgb_encoder."
        own = {k.removeprefix(which): v for k, v in theirs.items() if k.startswith(which)}
        weights |= {f"encoder.images.{j}.0.{k}": v for k, v in renamed(own, RESNET).items()}
        weights |= _of_colours(f"encoder.images.{j}.0.0", found, norm, key)
        weights |= {f"encoder.images.{j}.{k}": v for k, v in renamed(own, DIFFUSION).items()}
        weights[f"encoder.images.{j}.2.temperature"] = torch.ones(())
        # ours has all columns of the keypoints, then all rows; LeRobot's the two of each
        k = c.spatial_softmax_num_keypoints
        columns = torch.cat([torch.arange(0, 2 * k, 2), torch.arange(1, 2 * k, 2)])
        weights[f"encoder.images.{j}.3.weight"] = own["out.weight"][:, columns]
    return weights


def condition_columns(
    found: LeRobotFolder, policy: Policy, norm: Normalisation, c: Any
) -> tuple[Tensor, Tensor]:
    """(for each element of our pooled context its place in LeRobot's, what LeRobot's has beyond ours by its
    own places). LeRobot has of each step the state, the cameras as they are listed, and the environment; ours
    the vectors by name, then the cameras by name."""
    features, per_camera = found.features, 2 * c.spatial_softmax_num_keypoints
    cameras = [next(k for k, v in found.keys.items() if v == name) for name in c.image_features]
    widths = {k: features[k].shape[0] for k in (STATE, ENVIRONMENT) if k in features}
    sizes = {STATE: widths[STATE], **dict.fromkeys(cameras, per_camera)}
    sizes |= {k: w for k, w in widths.items() if k not in sizes}
    begins, shift = {}, []
    for key, size in sizes.items():
        begins[key] = sum(len(s) for s in shift)
        shift.append(_shift(found, norm, policy, key) if key in widths else torch.zeros(size))
    total, order = sum(sizes.values()), [*state_keys(features), *image_keys(features)]
    one = [begins[k] + i for k in order for i in range(sizes[k])]
    steps = range(c.n_obs_steps)
    return torch.tensor([t * total + i for t in steps for i in one]), torch.cat(shift).repeat(c.n_obs_steps)


def _of_colours(prefix: str, found: LeRobotFolder, norm: Normalisation, key: str) -> dict[str, Tensor]:
    mean, deviation = _colours(found, norm, key)
    return {f"{prefix}.mean": mean, f"{prefix}.deviation": deviation}
