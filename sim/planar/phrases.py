"""Many ways to say one instruction, and which of them training never hears.

A sentence is a form, filled with a name of the colour and a way to say the direction. Fixed before any policy
was trained; of the names that are kept back a sentence encoder takes some for another colour, and they stay.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

STREAM = 29  # tells the draw of a phrase from others of the same seed

FORMS = (
    "push the {colour} puck {way}",
    "move the {colour} disc {way}",
    "slide the {colour} one {way}",
    "shove the {colour} puck {way}",
    "the {colour} puck goes {way}",
    "please push the {colour} disc {way}",
    "nudge {colour} {way}",
    "take the {colour} puck and push it {way}",
    "I want the {colour} one moved {way}",
    "{way} with the {colour} puck",
    "push {colour} {way}",
    "the {colour} disc, {way}",
)
OTHER_FORMS = (
    "could you shift the {colour} puck {way}",
    "get the {colour} disc over {way}",
    "send the {colour} piece {way}, please",
    "bring the {colour} thing {way}",
    "drive the {colour} puck {way}",
    "make the {colour} one go {way}",
)
NAMES = {
    "red": ("red", "scarlet", "ruby", "cherry red", "tomato red", "brick red", "maroon", "blood red"),
    "green": ("green", "emerald", "lime", "olive", "forest green", "grass green", "mint", "jade"),
    "blue": ("blue", "navy", "cobalt", "azure", "sky blue", "sapphire", "royal blue", "indigo"),
    "yellow": (
        *("yellow", "golden", "lemon", "amber", "canary yellow", "banana yellow", "mustard", "sunny yellow"),
    ),
}
OTHER_NAMES = {
    "red": ("crimson", "vermilion", "rose red", "wine red"),
    "green": ("moss green", "leaf green", "fern", "sea green"),
    "blue": ("ultramarine", "cerulean", "denim", "ocean blue"),
    "yellow": ("saffron", "gold", "corn", "butter yellow"),
}
WAYS = {
    "left": ("left", "to the left", "leftwards"),
    "right": ("right", "to the right", "rightwards"),
    "up": ("up", "upwards", "to the top"),
    "down": ("down", "downwards", "to the bottom"),
}

PHRASES: Mapping[str, tuple[tuple[str, ...], Mapping[str, tuple[str, ...]]]] = {
    "plain": (("push the {colour} puck {way}",), {colour: (colour,) for colour in NAMES}),
    "heard": (FORMS, NAMES),
    "held-out": (OTHER_FORMS, NAMES),
    "unheard": (OTHER_FORMS, OTHER_NAMES),
}
"""Forms and names by kind: one sentence for all; those to train on; sentences that training never hears, of
names that it does; and of names that it never hears."""


def phrase(kind: str, seed: int, colour: str, direction: str) -> str:
    """The instruction of the episode of `seed`. kind: of `PHRASES`."""
    forms, names = PHRASES[kind]
    if kind == "plain":
        return forms[0].format(colour=colour, way=direction)
    rng = np.random.default_rng([seed, STREAM])
    form, name, way = (
        options[rng.integers(len(options))] for options in (forms, names[colour], WAYS[direction])
    )
    return form.format(colour=name, way=way)
