"""List the policies that can be trained, with their papers and parts."""

from __future__ import annotations

import sys
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
    from ...policies.encoders.vector import Encoder
    from ...policies.parts import recipe_to_json
    from ...policies.recipes.all import RECIPES, all_recipes

    features = {STATE: Feature((6,), "float32"), ACTION: Feature((6,), "float32")}
    if args.images:
        features[IMAGES + "front"] = Feature((96, 96, 3), "uint8")
    functions, problems = all_recipes()
    recipes = {}
    for name, function in functions.items():
        try:
            recipes[name] = function(features)
        except Exception as error:  # a package's: the others are listed all the same
            if name in RECIPES:
                raise
            problems.append(f"the recipe {name} of an installed package fails: {error!r}")
    for sentence in problems:
        print(f"ulna: {sentence}", file=sys.stderr)
    lines = []
    for name, r in recipes.items():
        summary = ((functions[name].__doc__ or "").strip().splitlines() or [""])[0]
        encoder = r.encoder
        if isinstance(encoder, Encoder):  # its parts, of which one is not used
            encoder = encoder.image if args.images else encoder.state
        parts = [encoder, r.context, r.backbone, r.objective]
        part_names = " × ".join(type(p).__name__ for p in parts)
        lines.append(
            f"{name}\n  {summary}\n  {part_names}, {r.sampling_steps} steps, {r.decoder} decoder\n  {r.paper}"
        )
    out.answer({name: recipe_to_json(r) for name, r in recipes.items()}, "\n".join(lines))
    return 0
