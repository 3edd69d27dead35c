"""What a scene looks like, as far as no physics depends on it: the table, the light, shades of the things."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np

THINGS = 8  # shades drawn, one for each thing of a scene; more of them begin again


@dataclass(frozen=True)
class Looks:
    """table: its colour. planks: the shade of each plank of its top (none: it is plain), `width` m wide and
    turned by `yaw` rad. direction: towards the light. ambient, diffuse: the share of light from everywhere
    and from there. shades: `(THINGS, 3)`, added to the hue, saturation and value of things. Colours are RGB,
    0 to 1."""

    table: tuple[float, float, float] = (0.72, 0.70, 0.66)
    planks: tuple[float, ...] = ()
    width: float = 0.06
    yaw: float = 0.0
    direction: tuple[float, float, float] = (0.4, -0.5, 1.0)
    ambient: float = 0.6  # these two are PyBullet's own
    diffuse: float = 0.35
    shades: np.ndarray = field(default_factory=lambda: np.zeros((THINGS, 3)))

    def tinted(self, colour: tuple[float, float, float], thing: int) -> list[float]:
        """RGBA of the thing of this number whose name says `colour`: red stays red."""
        h, s, v = colorsys.rgb_to_hsv(*colour)
        dh, ds, dv = self.shades[thing % THINGS]
        return [*colorsys.hsv_to_rgb((h + dh) % 1, min(max(s + ds, 0), 1), min(max(v + dv, 0), 1)), 1.0]


PLAIN = Looks()


def looks(seed: int, strength: float) -> Looks:
    """Those of an episode. strength: 0 for `PLAIN`, 1 for all the difference there is. What is drawn here is
    drawn from nothing else, so that the same seed has the same physics with any strength."""
    if not 0 <= strength <= 1:
        raise ValueError(f"looks: {strength} is not between 0 (always alike) and 1 (as different as can be)")
    if strength == 0:
        return PLAIN
    rng = np.random.default_rng([seed, 23])
    hue, pale, bright = rng.uniform(0, 1), rng.uniform(0, 0.35), rng.uniform(0.35, 0.95)
    colour = np.array(colorsys.hsv_to_rgb(hue, pale, bright))
    planks = strength * rng.uniform(0, 0.22) * rng.uniform(-1, 1, 16)
    width, yaw = rng.uniform(0.02, 0.07), rng.uniform(-np.pi, np.pi)
    around, aslant = rng.uniform(-np.pi, np.pi), rng.uniform(0, 0.9)
    light = np.array([np.sin(aslant) * np.cos(around), np.sin(aslant) * np.sin(around), np.cos(aslant)])
    ambient, diffuse = rng.uniform(0.4, 0.7), rng.uniform(0.2, 0.5)
    shades = rng.uniform(-1, 1, (THINGS, 3)) * [0.025, 0.2, 0.2]

    def mixed(plain: float | tuple[float, ...], drawn: float | np.ndarray) -> tuple[float, ...]:
        mix = (1 - strength) * np.atleast_1d(plain) + strength * np.atleast_1d(drawn)
        return tuple(float(value) for value in mix)

    r, g, b = mixed(PLAIN.table, colour)
    x, y, z = mixed(PLAIN.direction, light)
    return Looks(
        table=(r, g, b),
        planks=tuple(float(shade) for shade in planks),
        width=float(width),
        yaw=float(yaw),
        direction=(x, y, z),
        ambient=mixed(PLAIN.ambient, ambient)[0],
        diffuse=mixed(PLAIN.diffuse, diffuse)[0],
        shades=strength * shades,
    )
