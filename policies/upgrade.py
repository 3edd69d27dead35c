"""Recipes as older versions of Ulna saved them, in today's words, so that their checkpoints open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CODECS = {"absolute": "Absolute", "relative": "Relative", "delta": "Delta"}
BACKBONES_OF_OLD = ("UNet1D", "Transformer")


def upgraded(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON of one part, `{"part": name, field: value, ...}`, in today's fields. ValueError where what it
    asks for is no more."""
    if part.get("part") in BACKBONES_OF_OLD and "two_times" in part:
        if part["two_times"]:
            raise ValueError(
                "the recipe's backbone was told two times by hand, which its objective never used: train anew"
            )
        return {k: v for k, v in part.items() if k != "two_times"}
    if part.get("part") == "Diffusion":
        return {k: v for k, v in part.items() if k not in ("sampler", "clip")}
    if part.get("part") == "Recipe":
        named = {**part, "name": "act_plain"} if _is_plain_act(part) else part
        return named if "solver" in part else _recipe(named)
    return part


def _is_plain_act(recipe: Mapping[str, Any]) -> bool:
    """Up to November 2026 `act` was what `act_plain` is."""
    parts = {"encoder": "Encoder", "backbone": "Transformer", "objective": "Regression"}
    return recipe.get("name") == "act" and all(
        isinstance(of := recipe.get(field), Mapping) and of.get("part") == name
        for field, name in parts.items()
    )


def _recipe(old: Mapping[str, Any]) -> dict[str, Any]:
    """Up to November 2026 objectives held their samplers, and codecs and hooks were fields."""
    new = dict(old)
    objective = old.get("objective")
    diffusion = objective if isinstance(objective, Mapping) and objective.get("part") == "Diffusion" else {}
    eta = 1.0 if diffusion.get("sampler") == "ddpm" else 0.0
    clip = float(diffusion.get("clip", 1.0)) if diffusion else 0.0
    new["solver"] = {"part": "DDIM", "eta": eta, "clip": clip}
    space = new.pop("action_space", "absolute")
    if space not in CODECS:
        raise ValueError(f"the recipe's action_space is {space!r}, which no version of Ulna had")
    new["codec"] = {"part": CODECS[space], "normalise": new.pop("normalise_action", "minmax")}
    if space == "delta":
        new["codec"]["normalise_last"] = old.get("normalise_state", "minmax")
    new["steering"] = [{"part": "Inpaint"}] if new.pop("inpaint_past", False) else []
    return new
