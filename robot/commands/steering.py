"""`--steer NAME[,NAME...] --NAME.field value`: hooks that act while sampling, with their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .errors import UsageError
from .parsing import words


def split_hook_fields(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """(the rest, `{"hook_fields": {"NAME.field": value}}`) of `--NAME.field value`, which begin with a
    capital, as parts do; may be a command's `prepare`."""
    rest, hook_fields = split_fields(argv, lambda name: name[:1].isupper() and "." in name)
    return rest, {"hook_fields": hook_fields}


def split_fields(argv: list[str], ours: Callable[[str], bool]) -> tuple[list[str], dict[str, str]]:
    """(the rest, the values by `NAME.field`) of the options `--NAME.field value` or `--NAME.field=value` that
    are `ours`. UsageError where one has no value."""
    rest: list[str] = []
    values: dict[str, str] = {}
    i = 0
    while i < len(argv):
        name, equals, value = argv[i].removeprefix("--").partition("=")
        i += 1
        if not (argv[i - 1].startswith("--") and ours(name)):
            rest.append(argv[i - 1])
            continue
        if not equals:
            if i == len(argv) or argv[i].startswith("--"):
                raise UsageError(f"--{name} needs a value")
            value = argv[i]
            i += 1
        part, _, field = name.partition(".")
        values[f"{part}.{field.replace('-', '_')}"] = value
    return rest, values


def steering(steer: str, hook_fields: Mapping[str, Any]) -> list[Any]:
    """The hooks of `--steer`. UsageError or ValueError in one sentence."""
    from ...policies.hooks.all import hooks_named

    return hooks_named(words(steer), hook_fields)
