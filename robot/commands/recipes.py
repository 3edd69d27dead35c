"""List the policies that can be trained, with their papers and parts."""

from __future__ import annotations

from dataclasses import dataclass

from .parsing import Output

EXAMPLE = "ulna recipes"


@dataclass
class Args:
    images: bool = False
    """Show the parts chosen for camera images; for state only otherwise."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...datasets.features import ACTION, IMAGES, STATE, Feature
    from ...policies.recipe import recipe_to_json
    from ...policies.recipes.all import RECIPES

    features = {STATE: Feature((6,), "float32"), ACTION: Feature((6,), "float32")}
    if args.images:
        features[IMAGES + "front"] = Feature((96, 96, 3), "uint8")
    recipes = {name: make(features) for name, make in RECIPES.items()}
    lines = []
    for name, r in recipes.items():
        about = (RECIPES[name].__doc__ or "").strip().splitlines()[0]
        parts = [r.encoder.image if args.images else r.encoder.state, r.context, r.backbone, r.objective]
        named = " × ".join(type(p).__name__ for p in parts)
        lines.append(
            f"{name}\n  {about}\n  {named}, {r.sampling_steps} steps, {r.decoder} decoder\n  {r.paper}"
        )
    out.answer({name: recipe_to_json(r) for name, r in recipes.items()}, "\n".join(lines))
    return 0
