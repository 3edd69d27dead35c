"""Beginning from published weights: a folder of safetensors and JSON, or a repository of the hub, whose names
become ours. Never a pickle.

Known: pi0, pi0.5 and SmolVLA by LeRobot, pi0 and pi0.5 by openpi (PyTorch), and for the vision-language half
alone PaliGemma and SmolVLM2 by transformers, in their older and newer names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..conditions.tokenized import TokenizedNet
from ..encoders.published import Published
from .tokens import VisionLanguageError, published_file
from .vision_language import VisionLanguageEncoder

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# of the vision-language half, after `model.` is taken off
_MODEL = (
    (r"(?:vision_tower\.)?vision_model\.embeddings\.(.+)", r"encoder.vision.\1"),
    (r"(?:vision_tower\.)?vision_model\.encoder\.(layers\..+)", r"encoder.vision.\1"),
    (r"(?:vision_tower\.)?vision_model\.(post_layernorm\..+)", r"encoder.vision.\1"),
    (r"multi_modal_projector\.linear\.(.+)", r"encoder.vision.projector.\1"),
    (r"connector\.modality_projection\.proj\.(.+)", r"encoder.vision.projector.\1"),
    (
        r"(?:language_model|text_model)\.(?:model\.)?((?:embed_tokens|layers|norm)\..+)",
        r"encoder.language.\1",
    ),
    (r"(?:language_model\.)?lm_head\.weight", "encoder.language.embed_tokens.weight"),
)
_POLICY = (
    (r"paligemma_with_expert\.gemma_expert\.model\.((?:layers|norm)\..+)", r"net.\1"),
    (r"vlm_with_expert\.lm_expert\.((?:layers|norm)\..+)", r"net.\1"),
    (r"(action_(?:in|out)_proj\..+)", r"net.\1"),
    (r"(?:action_)?time_mlp_(in|out)\.(.+)", r"net.time_\1.\2"),
)


def our_name(name: str) -> str | None:
    """What a published weight is called in a policy; None for one that no policy here has."""
    name = name.removeprefix("model.")
    if name.startswith("state_proj."):
        return name  # it is the network's or the context's
    for pattern, ours in _POLICY:
        if found := re.fullmatch(pattern, name):
            return found.expand(ours)
    name = re.sub(r"^(paligemma_with_expert\.paligemma|vlm_with_expert\.vlm)\.", "", name)
    name = name.removeprefix("model.")
    for pattern, ours in _MODEL:
        if found := re.fullmatch(pattern, name):
            return found.expand(ours)
    return None


def begin(policy: nn.Module, tasks: Iterable[str], weights: bool, say: Callable[[str], None]) -> None:
    """What a training begins with that a checkpoint holds itself: a published tokenizer or sentence encoder,
    by which each of `tasks` must be readable, and where `weights` says so published weights of what sees.
    Does nothing for policies of neither. ValueError in one sentence."""
    sights = [m for m in policy.modules() if isinstance(m, Published)] if weights else []
    for sentence in dict.fromkeys(trunk.begin() for trunk in sights):  # one for all cameras
        say(sentence)
    for module in policy.modules():
        if isinstance(module, TokenizedNet):
            if sentence := module.begin():
                say(sentence)
            for task in tasks:
                module.require(task)
    encoder = getattr(policy, "encoder", None)
    if weights and isinstance(encoder, VisionLanguageEncoder) and encoder.part.weights:
        say(take_published(policy, encoder.part.weights))


def take_published(policy: nn.Module, name: str) -> str:
    """Put the published weights of the folder or hub repository `name` into the policy; says in a sentence
    which. VisionLanguageError where they do not fit, before any is changed."""
    here = policy.state_dict()
    taken: dict[str, Tensor] = {}
    for file in weight_files(name):
        try:
            with safe_open(file, "pt") as published:
                for key in published.keys():  # noqa: SIM118  it is no map
                    if (ours := _place(our_name(key), here)) is None:
                        continue
                    if ours in taken and "lm_head" in key:  # tied to the table
                        continue
                    taken[ours] = published.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise VisionLanguageError(f"{file} holds no weights that can be read: {error}") from None
    for key, value in taken.items():
        if value.shape != here[key].shape:
            raise VisionLanguageError(
                f"the weights of {name} do not fit: {key} is {tuple(value.shape)} there and "
                f"{tuple(here[key].shape)} here; give the recipe their sizes"
            )
    halves = {h: [k for k in here if k.startswith(f"{h}.")] for h in ("encoder", "net")}
    missing = {h: [k for k in keys if k not in taken] for h, keys in halves.items()}
    if missing["encoder"]:
        raise VisionLanguageError(
            f"the weights of {name} lack {_some(missing['encoder'])}: they are of another kind of model"
        )
    if 0 < len(missing["net"]) < len(halves["net"]):
        raise VisionLanguageError(
            f"the weights of {name} lack {_some(missing['net'])} of the action expert: they are of another "
            "recipe"
        )
    policy.load_state_dict({**here, **{k: v.to(here[k].dtype) for k, v in taken.items()}})
    what = (
        "the vision-language model" if missing["net"] else "the vision-language model and the action expert"
    )
    return f"began with {what} of {name}, {len(taken)} weights"


def weight_files(name: str) -> list[Path]:
    """Of the folder or hub repository `name`: one file, or those that its index names."""
    try:
        return [published_file(name, WEIGHTS)]
    except VisionLanguageError as error:
        try:
            index = published_file(name, INDEX)
        except VisionLanguageError:
            raise error from None
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if not files or any(not isinstance(f, str) or Path(f).name != f for f in files):
            raise ValueError("it names files elsewhere")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VisionLanguageError(f"{index} is no index of weights: {error}") from None
    return [published_file(name, f) for f in files]


def _place(name: str | None, here: Iterable[str]) -> str | None:
    if name is not None and name.startswith("state_proj."):
        name = next((k for k in (f"net.{name}", f"context_net.{name}") if k in here), None)
    return name if name is not None and name in here else None


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
