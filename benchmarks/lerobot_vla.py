"""Tiny vision-language-action models of LeRobot 0.6, random weights and all, and the same weights in Ulna's
recipes: for `benchmarks/vla.py` and the tests. Needs the extra `vla`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ulna.datasets.features import Feature, Features
from ulna.datasets.stats import Stats, vector_stats
from ulna.policies.adapters.language import Language
from ulna.policies.adapters.vision import SigLIP
from ulna.policies.adapters.vision_language import VisionLanguage
from ulna.policies.adapters.weights import take_published
from ulna.policies.backbones.fast_tokens import FAST
from ulna.policies.policy import Policy
from ulna.policies.recipe import Recipe
from ulna.policies.recipes.all import RECIPES
from ulna.policies.request import Request

STATE, ACTION, CAMERAS = (
    "observation.state",
    "action",
    ("observation.images.front", "observation.images.wrist"),
)
JOINTS, HORIZON, PADDED = 6, 10, 32
VOCABULARY = 300
NAMES = ("pi0", "pi05", "smolvla")
WRITER = "pi0_fast"


@dataclass(frozen=True)
class Size:
    """Of the language model, of the expert, and of the vision transformer. heads: 8, which LeRobot's pi0 has
    in its code."""

    width: int = 64
    depth: int = 2
    heads: int = 8
    kv_heads: int = 1
    head_dim: int = 16
    ffn: int = 128
    expert_width: int = 48
    expert_ffn: int = 96
    vision_width: int = 32
    vision_depth: int = 2
    side: int = 56
    patch: int = 14


SIZES = {
    "pi0": Size(),
    "pi05": Size(),
    WRITER: Size(),
    "smolvla": Size(heads=4, kv_heads=2, depth=4, expert_ffn=256, side=64, patch=16),
}


@dataclass(frozen=True)
class Pair:
    """LeRobot's policy and ours with the same weights."""

    name: str
    theirs: Any
    ours: Policy
    features: Features


@dataclass(frozen=True)
class Question:
    """What both are asked: frames uint8 `(B, H, W, 3)` by camera, states `(B, 6)`, instructions, and noise
    `(B, H, 32)`."""

    frames: dict[str, Tensor]
    state: Tensor
    tasks: list[str]
    noise: Tensor

    def request(self) -> Request:
        observation = {STATE: self.state[:, None], **{k: v[:, None] for k, v in self.frames.items()}}
        return Request(observation, 0, task=self.tasks)


def pair(name: str, folder: Any, frames: tuple[int, int] = (48, 64), seed: int = 0) -> Pair:
    """Both, the weights written by LeRobot's names to `folder` and taken from there by ours. frames: height
    and width of the cameras' pictures."""
    torch.manual_seed(seed)
    size = SIZES[name]
    theirs = (_smolvla if name == "smolvla" else _pi)(name, size)
    shaken(theirs)
    features: Features = {
        STATE: Feature((JOINTS,), "float32"),
        **{k: Feature((*frames, 3), "uint8") for k in CAMERAS},
        ACTION: Feature((JOINTS,), "float32"),
    }
    ours = Policy(our_recipe(name, size, features), features, stats()).eval()
    # tied tensors are written once
    weights = {k: v.clone().contiguous() for k, v in theirs.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"))
    take_published(ours, str(folder))
    return Pair(name, theirs.eval(), ours, features)


def stats() -> dict[str, Stats]:
    """Under which normalising by mean and deviation, or by quantiles, changes nothing."""
    rows = np.linspace(-1, 1, 1001)[:, None].repeat(JOINTS, 1)
    of_rows = vector_stats(rows)
    one, zero = np.ones(JOINTS), np.zeros(JOINTS)
    same = replace(of_rows, mean=zero, std=one, q01=-one, q99=one, min=-one, max=one)
    return {STATE: same, ACTION: same}


def our_recipe(name: str, size: Size, features: Features) -> Recipe:
    recipe = RECIPES[name](features)
    family, shuffle = ("llama", 2) if name == "smolvla" else ("gemma", 1)
    encoder, expert = recipe.encoder, recipe.backbone
    assert isinstance(encoder, VisionLanguage)
    vision = replace(
        encoder.vision,
        width=size.vision_width,
        depth=size.vision_depth,
        heads=2,
        ffn=4304 if family == "gemma" else 64,  # LeRobot's pi0 has it in its code
        patch=size.patch,
        side=size.side,
        shuffle=shuffle,
    )
    language = Language(
        family, size.width, size.depth, size.heads, size.kv_heads, size.head_dim, size.ffn, VOCABULARY
    )
    assert isinstance(vision, SigLIP)
    if isinstance(expert, FAST):
        language, expert = replace(language, gives="words"), replace(expert, vocabulary=150)
    else:
        expert = replace(expert, width=size.expert_width, ffn=size.expert_ffn)  # type: ignore[type-var]
    return replace(
        recipe,
        encoder=replace(encoder, vision=vision, language=language),
        backbone=expert,
        horizon=HORIZON,
        n_action_steps=HORIZON,
    )


def _pi(name: str, size: Size) -> nn.Module:
    """The core of pi0, pi0.5 or pi0-FAST, as its own code builds it, of other sizes."""
    from importlib import import_module

    from transformers import CONFIG_MAPPING

    module = import_module(f"lerobot.policies.{name}.modeling_{name}")
    configuration = import_module(f"lerobot.policies.{name}.configuration_{name}")
    title = {"pi0": "PI0", "pi05": "PI05", WRITER: "PI0Fast"}[name]

    def paligemma() -> Any:
        make: Any = CONFIG_MAPPING["paligemma"]
        return make(
            vision_config={
                "model_type": "siglip_vision_model",
                "hidden_size": size.vision_width,
                "num_hidden_layers": size.vision_depth,
                "num_attention_heads": 2,
                "patch_size": size.patch,
                "image_size": size.side,
            },
            text_config={"model_type": "gemma", "vocab_size": VOCABULARY},
        )

    def of(variant: str) -> Any:
        width, ffn = (size.width, size.ffn) if variant == "gemma_2b" else (size.expert_width, size.expert_ffn)
        return module.GemmaConfig(width, size.depth, ffn, size.heads, size.kv_heads, size.head_dim)

    config = getattr(configuration, f"{title}Config")(
        chunk_size=HORIZON, n_action_steps=HORIZON, image_resolution=(size.side, size.side), device="cpu"
    )
    known = {"paligemma": paligemma, "gemma": lambda **k: CONFIG_MAPPING["gemma"](**k)}
    with (
        mock.patch.object(module, "get_gemma_config", of),
        mock.patch.object(module, "CONFIG_MAPPING", known),
    ):
        core = getattr(module, f"{title}Pytorch")(config)
    model = core.paligemma_with_expert.paligemma
    # its code has the width of the projection, and the vocabulary, of the published size
    model.model.multi_modal_projector.linear = nn.Linear(size.vision_width, size.width)
    embedding = model.model.language_model.get_input_embeddings()
    embedding.weight = nn.Parameter(0.05 * torch.randn(VOCABULARY, size.width))
    if name == WRITER:  # words are written by the table that they are read by
        model.lm_head = nn.Linear(size.width, VOCABULARY, bias=False)
        model.lm_head.weight = embedding.weight
    else:
        model.lm_head = core.paligemma_with_expert.gemma_expert.lm_head = None
    return core


def _smolvla(name: str, size: Size) -> nn.Module:
    from lerobot.policies.smolvla import modeling_smolvla, smolvlm_with_expert
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from transformers import CONFIG_MAPPING

    make: Any = CONFIG_MAPPING["smolvlm"]
    config = make(
        vision_config={
            "hidden_size": size.vision_width,
            "num_hidden_layers": size.vision_depth,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "patch_size": size.patch,
            "image_size": size.side,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": size.width,
            "num_hidden_layers": size.depth,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "head_dim": size.head_dim,
            "intermediate_size": size.ffn,
            "vocab_size": VOCABULARY,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 0,
        },
        scale_factor=2,
    )
    policy = SmolVLAConfig(
        chunk_size=HORIZON,
        n_action_steps=HORIZON,
        resize_imgs_with_padding=(size.side, size.side),
        num_vlm_layers=size.depth,
        expert_width_multiplier=size.expert_width / size.width,
        device="cpu",
    )
    processor = mock.Mock()
    processor.tokenizer.fake_image_token_id = processor.tokenizer.global_image_token_id = 1
    with (
        mock.patch.object(smolvlm_with_expert.AutoConfig, "from_pretrained", return_value=config),
        mock.patch.object(smolvlm_with_expert.AutoProcessor, "from_pretrained", return_value=processor),
    ):
        return modeling_smolvla.VLAFlowMatching(policy)


def shaken(model: nn.Module) -> None:
    """Random weights everywhere, norms and biases too, which begin as ones and zeros."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 or "norm" in name:
                p.add_(0.3 * torch.randn_like(p))


def question(of: Pair, rows: int = 2, seed: int = 1, frames: tuple[int, int] = (48, 64)) -> Question:
    rng = torch.Generator().manual_seed(seed)
    pictures = {
        k: torch.randint(0, 256, (rows, *frames, 3), generator=rng, dtype=torch.uint8) for k in CAMERAS
    }
    state = torch.rand(rows, JOINTS, generator=rng) * 2 - 1
    tasks = ["push the red cube", "lift it, then put it into the left bowl"]
    noise = torch.randn(rows, HORIZON, PADDED, generator=rng)
    return Question(pictures, state, [tasks[i % 2] for i in range(rows)], noise)


def their_inputs(of: Pair, asked: Question) -> tuple[Any, ...]:
    """What LeRobot's core is given: pictures and their masks, tokens and theirs, and for pi0 and SmolVLA the
    padded state; made by the functions that its policies call."""
    from lerobot.policies.common.vla_utils import pad_vector, resize_with_pad, resize_with_pad_torch

    side = SIZES[of.name].side
    images = []
    for frames in asked.frames.values():
        pixels = frames.permute(0, 3, 1, 2).float() / 255.0
        if of.name == "smolvla":
            pixels = resize_with_pad(pixels, side, side, pad_value=0)
        elif tuple(pixels.shape[2:]) != (side, side):
            pixels = resize_with_pad_torch(pixels.permute(0, 2, 3, 1), side, side).permute(0, 3, 1, 2)
        images.append(pixels * 2.0 - 1.0)
    seen = [torch.ones(len(asked.state), dtype=torch.bool) for _ in images]
    instruction: Any = of.ours.conditions[0]
    asked_rows = zip(asked.tasks, asked.state, strict=True)
    texts = [instruction.part.text(task, s if instruction.told else None) for task, s in asked_rows]
    rows = [instruction.ids(text) for text in texts]
    most = instruction.part.most  # padded to the full length, as theirs
    tokens = torch.tensor([ids + [0] * (most - len(ids)) for ids in rows])
    mask = torch.tensor([[True] * len(ids) + [False] * (most - len(ids)) for ids in rows])
    state = () if of.name in ("pi05", WRITER) else (pad_vector(asked.state, PADDED),)
    return (images, seen, tokens, mask, *state)


def their_chunk(of: Pair, asked: Question) -> Tensor:
    """A whole decision `(B, H, 6)` of LeRobot's."""
    return their_core(of, asked, their_inputs(of, asked))


def their_core(of: Pair, asked: Question, inputs: tuple[Any, ...]) -> Tensor:
    """The same where its inputs are ready."""
    with torch.no_grad():
        return of.theirs.sample_actions(*inputs, noise=asked.noise)[..., :JOINTS]


def our_chunk(of: Pair, asked: Question) -> Tensor:
    """The same of ours, from the same noise."""
    return of.ours.sample(asked.request(), noise=lambda: asked.noise).chunk


def their_loss(of: Pair, asked: Question, words_BS: Tensor, there_BS: Tensor) -> Tensor:
    """Of LeRobot's pi0-FAST, for chunks that are written in these words; no word is 0 but the first."""
    first = torch.zeros_like(words_BS[:, :1])
    words, there = torch.cat([first, words_BS], 1), torch.cat([first == 0, there_BS], 1)
    return of.theirs.forward(*their_inputs(of, asked), words, there)["loss"]


@contextlib.contextmanager
def velocities(of: Pair) -> Iterator[list[Tensor]]:
    """What LeRobot's denoiser says at each step within."""
    heard: list[Tensor] = []
    before: Callable[..., Tensor] = of.theirs.denoise_step

    def listen(*args: Any, **kwargs: Any) -> Tensor:
        heard.append(before(*args, **kwargs))
        return heard[-1]

    with mock.patch.object(of.theirs, "denoise_step", listen):
        yield heard


def our_velocities(of: Pair, asked: Question) -> list[Tensor]:
    """What our denoiser says along the same path, by a loop of this function's own."""
    with torch.no_grad():
        context, x, said = of.ours.context(asked.request()), asked.noise, []
        for i in range(10):
            t = torch.full((len(x),), i / 10)
            said.append(of.ours.net(x, t, t, context))
            x = x + 0.1 * said[-1]
    return said
