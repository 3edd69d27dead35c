"""What installed packages add to our tables, by entry points such as those of the group `ulna.recipes`.

Listing their names imports nothing: an entry is imported when it is asked for by name, or when all objects
are asked for. A name of ours is never replaced. An object of a package without entry points is named by
`package.module:Name`. The same file stands in `drivers` and in `policies`, which share no code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

# `package.module:Name`, or `package.module` where the module itself is meant
REFERENCE = re.compile(r"[^\W\d]\w*(\.\w+)*:\w+(\.\w+)*|[^\W\d]\w*(\.\w+)+")


class PluginError(ValueError):
    """What a package offers cannot be used; the message is one sentence that names it, its package and
    why."""


def offers(group: str, own: Iterable[str]) -> tuple[dict[str, EntryPoint], dict[str, str]]:
    """(entries, refusals), both by name. entries: what packages offer in `group`; none of it is imported.
    refusals: a sentence on each name that is refused, since it is in `own` or two packages offer it."""
    own = set(own)
    by_name: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        by_name.setdefault(entry.name, []).append(entry)
    refusals = {}
    for name, entries in sorted(by_name.items()):
        who = " and ".join(_description(e) for e in entries)
        if name in own:
            refusals[name] = f"{who} is refused: Ulna has a {name!r} of its own, so it needs another name"
        elif len(entries) > 1:
            refusals[name] = f"{who} are refused: one name for two; uninstall one of the packages"
    return {n: e[0] for n, e in sorted(by_name.items()) if n not in refusals}, refusals


def load(entry: EntryPoint) -> Any:
    """The object that `entry` names. PluginError when its import fails, in whatever way."""
    try:
        return entry.load()
    except Exception as error:
        why = str(error).strip().splitlines()[:1]
        raise PluginError(
            f"{_description(entry)} cannot be imported: {': '.join([type(error).__name__, *why])}"
        ) from error


def offer(group: str, own: Iterable[str], name: str) -> Any:
    """What a package offers by `name` in `group`, None when none does. PluginError: it cannot be used."""
    entries, refusals = offers(group, own)
    if name in refusals:
        raise PluginError(refusals[name])
    return load(entries[name]) if name in entries else None


def look_up(group: str, own: Mapping[str, Any], name: str) -> Any:
    """`own[name]`, or what a package offers by `name`, or the object that `package.module:Name` refers to;
    None when there is no such name. PluginError: it is there and cannot be used."""
    if name in own:
        return own[name]
    plugin = offer(group, own, name)
    if plugin is None and REFERENCE.fullmatch(name):
        return load(EntryPoint(name, name, group))
    return plugin


def everything(group: str, own: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(`own` and all that packages offer in `group`, by name; a sentence on each that cannot be used)."""
    entries, refusals = offers(group, own)
    objects, problems = dict(own), list(refusals.values())
    for name, entry in entries.items():
        try:
            objects[name] = load(entry)
        except PluginError as error:
            problems.append(str(error))
    return objects, problems


def _description(entry: EntryPoint) -> str:
    if entry.dist is None:
        return f"{entry.value} ({entry.group})"
    return f"{entry.name} ({entry.group}: {entry.value}) of the package {entry.dist.name}"
