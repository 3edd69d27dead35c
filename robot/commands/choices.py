"""The names that an option can have, ours and those of installed packages, for `--help`. Nothing of a package
is imported to list it."""

from __future__ import annotations


def robots() -> list[str]:
    from ..config import CONFIGS

    return [*sorted(p.stem.replace("-", ":", 1) for p in CONFIGS.glob("sim-*.toml")), "FILE.toml"]


def tasks() -> list[str]:
    """None where there is no simulator, as on a robot's computer."""
    try:
        from ...sim.tasks.all import task_names
    except ModuleNotFoundError:
        return []
    return task_names()


def tasks_or_words() -> list[str]:
    """A real robot is told in words what to do."""
    return [*tasks(), "WORDS"]


def agents() -> list[str]:
    from ..agent import AGENTS
    from ..people import people

    return [*AGENTS, *people()]


def persons() -> list[str]:
    from ..people import people

    return list(people())


EXPERT = "expert"  # of a simulated scene: a script in the place of a person


def takers() -> list[str]:
    """Who may take over from a policy."""
    return [*persons(), EXPERT]


def directors() -> list[str]:
    from ..directors.all import DIRECTORS

    return list(DIRECTORS)


def kits() -> list[str]:
    from ..setup.kit import KITS

    return list(KITS)


def twins() -> list[str]:
    from ..twin.station import KINDS

    return list(KINDS)
