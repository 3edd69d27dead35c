"""A policy of LeRobot in the place of one of ours: its network, its pre- and post-processors and its history,
behind `Policy`, so that it is served, evaluated and steered as ours are.

Legend: B questions, T = n_obs_steps, H horizon, A action dimensions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...datasets.features import ACTION, WORDS, Feature, is_image
from ...datasets.units import Element
from ..contexts.context import Context, ContextNet
from ..hashed import CheckpointError, read_json
from ..objectives.regression import Regression
from ..policy import Policy
from ..recipe import Recipe
from ..request import TASK
from ..solvers.ddim import DDIM
from .folder import LeRobotFolder, content_hash, read_folder
from .lerobot import Loaded, chunk_of, load, takes_noise
from .parts import Denoising, DiffusersDDIM, Drawn, Shown, Theirs

DETERMINISTIC = ("act",)  # one observation, one chunk
STATE = "observation.state"


def load_lerobot(folder: Path, device: str = "cpu") -> LeRobotPolicy:
    """The policy in a folder `pretrained_model`, in evaluation mode on `device`, with `content_hash` set.
    CheckpointError in one sentence otherwise."""
    found = read_folder(folder)
    digest = content_hash(folder)
    loaded = load(found, device)
    for name, value in loaded.policy.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{folder} holds weights that are not finite ({name}): take another one")
    try:
        policy = LeRobotPolicy(found, loaded, device)
    except (RuntimeError, ValueError, KeyError, AssertionError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the {found.type} in {folder} gives no chunk for an observation of zeros: {line:.300}"
        ) from error
    policy.content_hash = digest
    return policy.eval().requires_grad_(False)


class LeRobotPolicy(Policy):
    """See above. `theirs` is LeRobot's object; the observations and actions of this one are in our units,
    where these were stated."""

    def __init__(self, found: LeRobotFolder, loaded: Loaded, device: str) -> None:
        nn.Module.__init__(self)
        self.found, self.loaded = found, loaded
        self.theirs = loaded.policy
        self.features, self.stats = dict(found.features), {}
        self.encoded_keys = self.observation_keys = tuple(k for k in found.features if k != ACTION)
        words = _hears_words(found.path)
        self.condition_keys = (TASK,) if words else ()
        self.conditions_needed = {TASK: Feature((), WORDS)} if words else {}
        self.conditions_optional = {}
        self.normalisers, self.conditions = nn.ModuleDict(), nn.ModuleList()
        self.context_net = ContextNet()
        self.content_hash = ""
        width = found.features[ACTION].shape[0]
        self.codec: Any = TheirCodec(loaded, found.elements.get(ACTION, ()), width).to(device)
        self.units = nn.ModuleDict()
        for key, elements in found.elements.items():
            if key != ACTION:
                self.units[key.replace(".", "/")] = Converted(elements).to(device)
        self.n_obs_steps = int(getattr(loaded.config, "n_obs_steps", 1))
        self.field = loaded.config.type == "diffusion"
        self.net = Denoiser(loaded.policy) if self.field else WholeChunk(loaded)
        self.recipe = self._recipe(width)

    def encode(
        self,
        observation: Mapping[str, Any],
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
        drop: bool = False,
        seed: Any = None,
    ) -> Context:
        """What the network sees of an observation `{key: (B, T, ...)}`."""
        batch = self.loaded.prepare(self._batch(observation))
        if not self.field:
            rows = len(next(v for v in batch.values() if isinstance(v, Tensor)))
            nothing = torch.zeros(rows, 1, device=self.device)
            return Shown(nothing[:, None], nothing, batch=batch)
        return Context(*_conditioning(self.loaded, batch))

    def _batch(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """As LeRobot's processors want it: its names and units, pictures float CHW in 0..1."""
        batch: dict[str, Any] = {}
        for key in self.observation_keys:
            value = observation[key].to(self.device)
            if is_image(key):
                value = value.movedim(-1, -3).float() / 255
            elif (name := key.replace(".", "/")) in self.units:
                converted: Any = self.units[name]
                value = converted.inverse(value)
            batch[self.found.keys[key]] = value[:, -1] if self.n_obs_steps == 1 else value
        task = observation.get(TASK)
        rows = len(next(iter(batch.values())))
        batch["task"] = [task] * rows if isinstance(task, str) else list(task or [""] * rows)
        return batch

    def _recipe(self, width: int) -> Recipe:
        config, kind = self.loaded.config, self.found.type
        common: dict[str, Any] = {
            "name": f"lerobot {kind}",
            "paper": f"LeRobot's {kind}",
            "backbone": Theirs(kind),
            "n_obs_steps": self.n_obs_steps,
        }
        if self.field:
            scheduler: Any = config.noise_scheduler_type
            clip = float(config.clip_sample_range) if config.clip_sample else 0.0
            diffusion: Any = self.theirs.diffusion
            past = self.n_obs_steps - 1
            return Recipe(
                **common,
                objective=Denoising(
                    tuple(diffusion.noise_scheduler.alphas_cumprod.double().tolist()), config.prediction_type
                ),
                solver=DDIM(eta=1.0, clip=clip) if scheduler == "DDPM" else DiffusersDDIM(clip),
                sampling_steps=int(diffusion.num_inference_steps),
                horizon=int(config.horizon),
                n_past_actions=past,
                n_action_steps=min(int(config.n_action_steps), int(config.horizon) - past),
            )
        blank = {
            k: torch.zeros((1, self.n_obs_steps, *f.shape), dtype=getattr(torch, f.dtype), device=self.device)
            for k, f in self.features.items()
            if k != ACTION
        }
        context: Any = self.encode(blank)
        with torch.no_grad():
            shape = chunk_of(self.loaded, context.batch).shape
        if len(shape) != 3 or shape[-1] != width:
            raise CheckpointError(
                f"the {kind} in {self.found.path} answers {tuple(shape[1:])}, and its action has {width} "
                "elements"
            )
        ensemble = getattr(config, "temporal_ensemble_coeff", None)
        deterministic = kind in DETERMINISTIC
        return Recipe(
            **common,
            objective=Regression("l1") if deterministic else Drawn(kind),
            sampling_steps=1,
            horizon=int(shape[1]),
            n_action_steps=min(int(getattr(config, "n_action_steps", shape[1])), int(shape[1])),
            decoder="slice" if ensemble is None else "ensemble",
            ensemble_decay=0.01 if ensemble is None else float(ensemble),
        )


class Converted(nn.Module):
    """LeRobot's numbers of a vector in our units, and back."""

    def __init__(self, elements: tuple[Element, ...]) -> None:
        super().__init__()
        self.scale: Tensor
        self.offset: Tensor
        for name in ("scale", "offset"):
            values = torch.tensor([getattr(e, name) for e in elements], dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset

    def inverse(self, x: Tensor) -> Tensor:
        return (x - self.offset) / self.scale


class TheirCodec(nn.Module):
    """Actions by LeRobot's post-processor. What it does to one element does not depend on the others, so its
    inverse, which hooks want, follows from what it makes of 0 and 1."""

    def __init__(self, loaded: Loaded, elements: tuple[Element, ...], width: int) -> None:
        super().__init__()
        self.loaded, self.width = loaded, width
        self.units = Converted(elements) if elements else None
        self.scale: Tensor
        self.zero: Tensor
        zero, one = (self.loaded.finish(torch.full((1, 1, width), v))[0, 0].float() for v in (0.0, 1.0))
        self.register_buffer("zero", zero.cpu(), persistent=False)
        self.register_buffer("scale", (one - zero).cpu(), persistent=False)

    def decode(self, x: Tensor, observation: Mapping[str, Any]) -> Tensor:
        """A chunk `(B, H, A)` in our units."""
        actions = self.loaded.finish(x).to(x.device).float()
        return actions if self.units is None else self.units(actions)

    def encode(self, action: Tensor, observation: Mapping[str, Any]) -> Tensor:
        """The inverse; 0 for an element that never moved."""
        theirs = action if self.units is None else self.units.inverse(action)
        moves = self.scale != 0
        return torch.where(moves, (theirs - self.zero) / torch.where(moves, self.scale, 1.0), 0.0)

    def encode_past(self, past_BdA: Tensor, observation: Mapping[str, Any]) -> Tensor:
        return self.encode(past_BdA, observation)


class WholeChunk(nn.Module):
    """A policy that is asked for whole chunks. x: noise, of which the draw follows, where it draws."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()
        self.loaded = loaded
        self.noise = takes_noise(loaded)
        for name in ("num_inference_steps", "num_steps"):
            if self.noise is not None and isinstance(n := getattr(loaded.config, name, None), int):
                self.evaluations = n

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        assert isinstance(context, Shown)
        if self.loaded.config.type in DETERMINISTIC:
            return chunk_of(self.loaded, context.batch)
        seeds = [_seed(row) for row in x]
        if self.noise is not None:
            rows = [torch.randn(self.noise, generator=torch.Generator().manual_seed(s)) for s in seeds]
            return chunk_of(self.loaded, context.batch, torch.stack(rows).to(x.device))
        chunks = []  # one by one: they draw from torch's own generator, and a row must not depend on others
        devices = [x.device] if x.is_cuda else []
        for i, seed in enumerate(seeds):
            with torch.random.fork_rng(devices):
                torch.manual_seed(seed)
                row: Any = context.take(torch.tensor([i], device=x.device))
                chunks.append(chunk_of(self.loaded, row.batch))
        return torch.cat(chunks)


class Denoiser(nn.Module):
    """The network of LeRobot's diffusion policy, told the number of the level."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.unet = policy.diffusion.unet

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.unet(x, t.round().long(), global_cond=context.pooled)


def _conditioning(loaded: Loaded, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(tokens `(B, T, D)`, pooled `(B, T·D)`) of prepared observations, by diffusion's own encoder."""
    policy: Any = loaded.policy
    seen = dict(batch)
    if images := [seen[k] for k in loaded.config.image_features]:
        seen["observation.images"] = torch.stack(images, dim=-4)
    steps = int(loaded.config.n_obs_steps)
    if steps == 1:
        seen = {k: v[:, None] if isinstance(v, Tensor) else v for k, v in seen.items()}
    pooled = policy.diffusion._prepare_global_conditioning(seen)
    return pooled.unflatten(1, (steps, -1)), pooled


def _hears_words(folder: Path) -> bool:
    """Whether a step before the network makes tokens of words."""
    steps = read_json(folder / "policy_preprocessor.json").get("steps", [])
    names = [str(s.get("registry_name") or s.get("class") or "") for s in steps if isinstance(s, dict)]
    return any("token" in n.lower() or "groot" in n.lower() for n in names)


def _seed(row: Tensor) -> int:
    """Of a draw that follows from the row's noise."""
    data = np.ascontiguousarray(row.detach().float().cpu().numpy()).tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:7], "big")
