"""Hooks that can be switched on by name (`ulna serve --steer`). Ours so far need to know something of each
request and are switched on by a recipe (`inpaint_past`); installed packages add theirs in the entry point
group `ulna.hooks`."""

from __future__ import annotations

from collections.abc import Callable

from ..plugins import PluginError, look_up, offers
from .hook import Hook

GROUP = "ulna.hooks"
HOOKS: dict[str, Callable[[], Hook]] = {}


def hook_named(name: str) -> Hook:
    """The hook `name`, which may be `package.module:Name`, made without arguments. ValueError in one sentence
    when there is none, or it cannot be made so."""
    make = look_up(GROUP, HOOKS, name)
    if make is None:
        names = [*HOOKS, *offers(GROUP, HOOKS)[0]]
        raise ValueError(
            f"there is no hook {name!r}: installed packages offer {', '.join(names) or 'none'}, and any "
            "other is named by package.module:Name"
        )
    try:
        hook = make()
    except Exception as error:
        raise PluginError(f"the hook {name} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(hook, Hook):
        raise PluginError(f"{name} makes no hook: it must give an object of a subclass of Hook")
    return hook
