"""Every planar task by its name."""

from __future__ import annotations

from collections.abc import Callable

from .catch import Catch
from .corridors import Corridors
from .cubes import Cubes
from .cue import Cue
from .env import PlanarEnv
from .fork import Fork
from .gates import Gates
from .maze import Maze
from .peg import Peg
from .places import Places
from .stages import Stages
from .trials import Trials
from .twice import Twice
from .words import Words

TASKS: dict[str, Callable[..., PlanarEnv]] = {
    "fork": Fork,
    "twice": Twice,
    "peg": Peg,
    "maze": Maze,
    "words": Words,
    "catch": Catch,
    "cue": Cue,
    "corridors": Corridors,
    "cubes": Cubes,
    "gates": Gates,
    "places": Places,
    "stages": Stages,
    "trials": Trials,
}
"""`TASKS[name](num_envs, **options)`; the options are those of the class."""
