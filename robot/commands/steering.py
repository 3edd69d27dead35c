"""`--steer NAME[,NAME...] --NAME.field value`: hooks that act while sampling, with their fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import UsageError
from .parsing import words


def split_hook_fields(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """(the rest, `{"hook_fields": {"NAME.field": value}}`) of `--NAME.field value` or `--NAME.field=value`,
    which begin with a capital, as parts do; may be a command's `prepare`."""
    rest: list[str] = []
    hook_fields: dict[str, str] = {}
    i = 0
    while i < len(argv):
        name, equals, value = argv[i].removeprefix("--").partition("=")
        i += 1
        if not (argv[i - 1].startswith("--") and name[:1].isupper() and "." in name):
            rest.append(argv[i - 1])
            continue
        if not equals:
            if i == len(argv) or argv[i].startswith("--"):
                raise UsageError(f"--{name} needs a value")
            value = argv[i]
            i += 1
        part, _, field = name.partition(".")
        hook_fields[f"{part}.{field.replace('-', '_')}"] = value
    return rest, {"hook_fields": hook_fields}


def steering(steer: str, hook_fields: Mapping[str, Any]) -> list[Any]:
    """The hooks of `--steer`. UsageError or ValueError in one sentence."""
    from ...policies.hooks.all import hooks_named

    return hooks_named(words(steer), hook_fields)
