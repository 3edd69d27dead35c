"""Hooks by name: on the command line (`ulna serve --steer NAME --NAME.field value`) and in requests. They are
parts, so installed packages offer theirs in the entry point group `ulna.parts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..parts import GROUP, PARTS, override, part_type, parts_for
from ..plugins import PluginError, lookup
from .hook import Hook


def hook_named(name: str, settings: Mapping[str, Any] | None = None) -> Hook:
    """The hook `name`, which may be `package.module:Name`, with `settings` in place of its fields' defaults.
    ValueError in one sentence when there is none, or it cannot be made so."""
    make = lookup(GROUP, PARTS, name)
    if make is None:
        raise ValueError(
            f"there is no hook {name!r}: there are {', '.join(parts_for(Hook))}, and any other is named by "
            "package.module:Name"
        )
    part = part_type(name)
    if not issubclass(part, Hook):
        raise PluginError(f"{name} is no hook: it must be derived from Hook")
    try:
        hook = part()
    except Exception as error:
        raise PluginError(f"the hook {name} cannot be made: {type(error).__name__}: {error}") from error
    return override(hook, dict(settings or {}))


def hooks_named(names: Sequence[str], settings: Mapping[str, Any]) -> list[Hook]:
    """The hooks `names`, with fields by `NAME.field`. ValueError for a field of a hook that is not named."""
    stray = [k for k in settings if k.partition(".")[0] not in names]
    if stray:
        raise ValueError(
            f"--{stray[0]} belongs to no hook of --steer, which names {', '.join(names) or 'none'}"
        )
    return [
        hook_named(name, {k.partition(".")[2]: v for k, v in settings.items() if k.startswith(f"{name}.")})
        for name in names
    ]


def hooks_from_request(value: Any) -> list[Hook]:
    """The hooks that a request asks for, `[{"part": name, field: value}, ...]`. ValueError in one sentence. A
    stranger's request may name ours and those of installed packages, and may not import a module."""
    if not isinstance(value, list | tuple) or not all(isinstance(v, Mapping) for v in value):
        raise ValueError(f"steering is a list of hooks by part and fields, not {value!r:.60}")
    hooks = []
    for item in value:
        name = item.get("part")
        if not isinstance(name, str) or name not in parts_for(Hook):
            raise ValueError(f"there is no hook {name!r:.60}: there are {', '.join(parts_for(Hook))}")
        if not getattr(part_type(name), "by_request", True):
            raise ValueError(f"the hook {name} names files, so it is chosen by who serves: --steer {name}")
        fields = {str(k): v for k, v in item.items() if k != "part"}
        if nested := [k for k, v in fields.items() if "." in k or isinstance(v, Mapping)]:
            raise ValueError(f"the hook {name} takes plain values in a request, and {nested[0]} is none")
        hooks.append(hook_named(name, fields))
    return hooks
