"""What a text-to-image diffusion model makes of a picture, as an image encoder (Stable Control
Representations: pre-trained text-to-image diffusion models as representations for control, Gupta et al. 2024,
arXiv 2405.05852; the model, Rombach et al. 2022, arXiv 2112.10752).

Legend: N frames, C H W image, S tokens of the prompt, G side of the grid of maps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.tokens import HashedPieces
from .published import Published
from .vector import found_in

LEVELS = 1000  # of noise, as these models were trained
VOCABULARY = 1 << 16  # of hashed words, where there is no text encoder


@dataclass(frozen=True)
class Architecture:
    """side: of the pictures that it sees, pixels. tokens: S. unet, vae: fields of diffusers'
    UNet2DConditionModel and AutoencoderKL."""

    side: int
    tokens: int
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]


_CROSS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
_STABLE_UNET = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": _CROSS[0],
    "up_block_types": _CROSS[1],
}
_STABLE_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
MODELS = {
    "tiny": Architecture(
        64,
        16,
        {
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
        },
        {
            "block_out_channels": (8, 16, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "norm_num_groups": 4,
            "scaling_factor": 0.18215,
        },
    ),
    "sd1": Architecture(
        256, 77, {**_STABLE_UNET, "cross_attention_dim": 768, "attention_head_dim": 8}, _STABLE_VAE
    ),
    "sd2": Architecture(
        256,
        77,
        {
            **_STABLE_UNET,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        _STABLE_VAE,
    ),
}


@dataclass(frozen=True)
class SCR:
    """Maps of a text-to-image diffusion model's U-Net, which looks once at the lightly noised picture and at
    a prompt, and is never trained; a small network that is trained makes few channels of them. Nothing is
    ever fetched: the weights are those of a folder, or random, which training says and the checkpoint
    records; the checkpoint keeps them, and the prompt as the model reads it.

    Faithful: the frozen model, its middle and early upward blocks on one grid, a small trained head. Not: one
    prompt for all pictures, where the published one is each task's (words reach a policy as a condition); the
    noise is the same for all pictures, so that equal pictures have equal maps; no cross-attention maps; the
    head is of convolutions and ends in what takes the maps (`Encoder`: where the spatial softmax finds
    points). No run shows that it helps, and from random weights nothing speaks for it (study: scr_crowd)."""

    model: Literal["tiny", "sd1", "sd2"] = "tiny"
    """Stable Diffusion 1.1 to 1.5, or 2.0 and 2.1; or a small one of the same kind, of which nobody has
    published weights, to try things out."""
    weights: str = ""
    """A folder as diffusers saves such a model, with unet, vae, text_encoder and tokenizer; of weights only
    safetensors are read. Empty: random ones."""
    prompt: str = "a photo of a robot arm"
    """What the model is told that pictures show, such as the task."""
    blocks: tuple[str, ...] = ("mid", "up0", "up1")
    """Whose maps are taken, side by side: mid, up0, up1 and so on. Later blocks are left out of the
    network."""
    noise: int = 100
    """Level of the noise, 0 (hardly any) to 999."""
    side: int = 0
    """Pixels a side to which a picture is resized, squeezed where it is no square; 0: 64 for tiny, else
    256."""
    grid: int = 16
    """Side of the grid to which all maps are resized."""
    width: int = 64
    """Channels that the head makes of them; a multiple of 8."""
    keypoints: int = 32
    """Points that the spatial softmax finds in a frame; each gives two numbers."""
    crop: float = 1.0
    """Share of each side that is seen, 0 to 1: a random window in training, else the centre; 1: all."""

    def build(self) -> tuple[nn.Module, int]:
        return found_in(*self.trunk(), self.keypoints)

    def trunk(self) -> tuple[nn.Module, int]:
        """(the network `(N, 3, H, W) -> (N, width, grid, grid)` of pixels in [-1, 1], width). ValueError says
        what does not fit."""
        return SCRTrunk(self), self.width


class SCRTrunk(Published):
    """`net` is what stays as it is, whatever the training says; `head` is trained."""

    def __init__(self, part: SCR) -> None:
        super().__init__()
        self.part = part
        model = MODELS[part.model]
        ups = [f"up{i}" for i in range(len(model.unet["up_block_types"]))]
        if not part.blocks or not {"mid", *ups}.issuperset(part.blocks):
            raise ValueError(
                f"{part.model} has the blocks mid, {', '.join(ups)}, and SCR's blocks are "
                f"{', '.join(part.blocks) or 'none'}: set --encoder.image.blocks"
            )
        coarse = 2 ** (len(model.vae["block_out_channels"]) + len(model.unet["block_out_channels"]) - 2)
        self.side = part.side or model.side
        if self.side < 1 or self.side % coarse or part.grid < 1 or part.width < 8 or part.width % 8:
            raise ValueError(
                f"SCR's side is {self.side}, which for {part.model} is a multiple of {coarse}, its grid "
                f"{part.grid}, which is at least 1, and its width {part.width}, which is a multiple of 8"
            )
        if not 0 <= part.noise < LEVELS:
            raise ValueError(f"SCR's noise is a level from 0 to {LEVELS - 1}, not {part.noise}")
        unet, vae = _created(model)
        last = max((int(b.removeprefix("up")) for b in part.blocks if b != "mid"), default=-1)
        unet.up_blocks = unet.up_blocks[: last + 1]
        unet.conv_norm_out = unet.conv_act = unet.conv_out = None
        self.scale = float(vae.config.scaling_factor)
        self.net = nn.ModuleDict({"vae": vae.encoder, "quant": vae.quant_conv, "unet": unet})
        self.net.requires_grad_(False).eval()
        self.prompt: Tensor
        self.register_buffer("prompt", hashed(part.prompt, model.tokens, model.unet["cross_attention_dim"]))
        latent = self.side // 2 ** (len(model.vae["block_out_channels"]) - 1)
        fixed = torch.Generator().manual_seed(0)
        self.noise: Tensor
        self.register_buffer(
            "noise", torch.randn(1, vae.config.latent_channels, latent, latent, generator=fixed)
        )
        self.signal = _signal(part.noise)
        channels = sum(self._channels(b) for b in part.blocks)
        self.head = nn.Sequential(
            nn.Conv2d(channels, part.width, 1),
            nn.GroupNorm(8, part.width),
            nn.ReLU(),
            nn.Conv2d(part.width, part.width, 3, padding=1),
            nn.GroupNorm(8, part.width),
            nn.ReLU(),
        )

    def train(self, mode: bool = True) -> SCRTrunk:
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        return self.head(self.maps(pixels_NCHW))

    @torch.no_grad()
    def maps(self, pixels_NCHW: Tensor) -> Tensor:
        """The frozen model's `(N, C, G, G)`."""
        unet: Any = self.net["unet"]
        size = (self.side, self.side)
        pixels = F.interpolate(pixels_NCHW, size, mode="bilinear", align_corners=False, antialias=True)
        mean = self.net["quant"](self.net["vae"](pixels)).chunk(2, dim=1)[0]
        x = self.signal**0.5 * self.scale * mean + (1 - self.signal) ** 0.5 * self.noise.to(mean.dtype)
        level = torch.full((len(x),), self.part.noise, device=x.device)
        time = unet.time_embedding(unet.time_proj(level).to(x.dtype))
        told = self.prompt.to(x.dtype).expand(len(x), -1, -1)
        x = unet.conv_in(x)
        there: list[Tensor] = [x]
        for block in unet.down_blocks:
            x, more = block(x, time, **_told(block, told))
            there += more
        x = unet.mid_block(x, time, encoder_hidden_states=told)
        maps = {"mid": x}
        for i, block in enumerate(unet.up_blocks):
            n = len(block.resnets)
            there, beside = there[:-n], tuple(there[-n:])
            x = block(x, beside, time, **_told(block, told))
            maps[f"up{i}"] = x
        grid = (self.part.grid, self.part.grid)
        resized = [
            F.interpolate(maps[b], grid, mode="bilinear", align_corners=False, antialias=True)
            for b in self.part.blocks
        ]
        return torch.cat(resized, dim=1)

    def begin(self) -> str:
        p = self.part
        if not p.weights:
            return (
                f"SCR sees by a diffusion model ({p.model}) of random weights, whose maps mean little "
                "(--encoder.image.weights names a folder of published ones)"
            )
        folder = Path(p.weights)
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder} of a diffusion model (--encoder.image.weights)")
        unet, vae, prompt = _published(folder, p.model, p.prompt)
        there = {
            **{f"unet.{k}": v for k, v in unet.state_dict().items()},
            **{f"vae.{k}": v for k, v in vae.encoder.state_dict().items()},
            **{f"quant.{k}": v for k, v in vae.quant_conv.state_dict().items()},
        }
        if prompt.shape != self.prompt.shape:
            raise ValueError(
                f"the text encoder of {folder} makes {tuple(prompt.shape)} of a prompt, and {p.model} is "
                f"told {tuple(self.prompt.shape)}: it is another model's"
            )
        here = self.net.state_dict()
        if odd := [k for k, v in here.items() if k not in there or there[k].shape != v.shape]:
            raise ValueError(
                f"the weights of {folder} do not fit {p.model}: {odd[0]} is missing or of another size"
            )
        self.net.load_state_dict({k: there[k] for k in here})
        self.prompt.copy_(prompt)
        digest = hashlib.sha256()
        for file in sorted(f for part in PARTS for f in (folder / part).glob("*.safetensors")):
            with file.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
        self.stamp(digest.digest())
        return f"SCR sees by the diffusion model of {folder}, told {p.prompt!r}"

    def _channels(self, block: str) -> int:
        unet: Any = self.net["unet"]
        of = unet.mid_block if block == "mid" else unet.up_blocks[int(block.removeprefix("up"))]
        return int(of.resnets[-1].out_channels)


PARTS = ("unet", "vae", "text_encoder")


def hashed(prompt: str, tokens: int, width: int) -> Tensor:
    """`(tokens, width)`: what a model without a text encoder is told, for each word of the prompt numbers
    that its hash draws, and for what is beyond its end those of no word."""
    ids = (HashedPieces(VOCABULARY)(prompt) + [0] * tokens)[:tokens]
    return torch.stack([torch.randn(width, generator=torch.Generator().manual_seed(i)) for i in ids])


def _created(model: Architecture) -> tuple[Any, Any]:
    """diffusers' U-Net and autoencoder of random weights."""
    # seconds, which others need not wait for
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**model.unet), AutoencoderKL(**model.vae)


def _published(folder: Path, model: str, prompt: str) -> tuple[Any, Any, Tensor]:
    """(U-Net, autoencoder, what its text encoder makes of the prompt `(S, D)`), of float32. ValueError in one
    sentence."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    found = []
    for kind, name, fields in (
        (UNet2DConditionModel, "unet", MODELS[model].unet),
        (AutoencoderKL, "vae", MODELS[model].vae),
    ):
        net, lacks = _read(folder / name, kind, torch_dtype=torch.float32)
        for field, ours in fields.items():
            theirs = net.config.get(field)
            theirs = tuple(theirs) if isinstance(theirs, list) else theirs
            if theirs != ours:
                raise ValueError(
                    f"{folder / name} is not of {model}: its {field} is {theirs}, not {ours} "
                    "(--encoder.image.model)"
                )
        if lacks:
            raise ValueError(f"{folder / name} holds no whole {name}: it lacks {lacks[0]}")
        found.append(net)
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ModuleNotFoundError:
        raise ValueError(
            "the text encoder of a diffusion model is of a package that is not installed here: "
            "pip install 'ulna[vla]'"
        ) from None
    text, lacks = _read(folder / "text_encoder", CLIPTextModel, dtype=torch.float32)
    if lacks:
        raise ValueError(f"{folder / 'text_encoder'} holds no whole text encoder: it lacks {lacks[0]}")
    ids = torch.tensor([_ids(folder / "tokenizer", CLIPTokenizer, prompt, MODELS[model].tokens)])
    with torch.no_grad():
        return *found, text.eval()(ids).last_hidden_state[0]  # type: ignore[return-value]


def _ids(folder: Path, kind: Any, prompt: str, length: int) -> list[int]:
    """The numbers of the prompt's tokens, between the marks of its beginning and end, and as many of padding
    as make `length`."""
    try:
        merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        config = folder / "tokenizer_config.json"
        more = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        padding = more.get("pad_token") or "<|endoftext|>"
        padding = padding["content"] if isinstance(padding, dict) else padding
        pairs = [tuple(line.split()) for line in merges if line and not line.startswith("#version")]
        ids = kind(vocab=vocabulary, merges=pairs)(prompt).input_ids
        ids = [*ids[: length - 1], vocabulary["<|endoftext|>"]] if len(ids) > length else ids
        return ids + [vocabulary[padding]] * (length - len(ids))
    except Exception as error:  # noqa: BLE001  a foreign file may be anything
        raise ValueError(f"{folder} holds no tokenizer that can be read: {_line(error)}") from None


def _read(folder: Path, kind: Any, **more: Any) -> tuple[Any, list[str]]:
    """(the model in the folder, of safetensors only; the names of the weights that are missing)."""
    try:
        model, info = kind.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True, **more
        )
    except Exception as error:  # noqa: BLE001  a foreign folder may be anything
        raise ValueError(
            f"{folder} holds no weights in safetensors that can be read: {_line(error)}"
        ) from None
    return model, sorted(info["missing_keys"])


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _signal(level: int) -> float:
    """The share of the picture's variance that noise of this level leaves."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, LEVELS, dtype=torch.float64)
    return float((1 - roots**2).cumprod(0)[level])


def _told(block: nn.Module, prompt: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
