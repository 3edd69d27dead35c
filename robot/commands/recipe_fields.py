"""The fields of a recipe as options: their help, and short names for those that are clear."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap
from collections.abc import Collection, Mapping
from typing import Any

from .errors import UsageError


def fields_help(name: str) -> str:
    """The fields of the recipe `name`, where there is one: each with its value, its choices and its help."""
    from ...datasets.features import ACTION, STATE, Feature
    from ...policies.parts import settings, takes_parts
    from ...policies.recipes.all import recipe_function, recipe_names

    make = recipe_function(name) if name else None
    if make is None:
        return f"recipes: {', '.join(recipe_names())}\n`ulna train RECIPE --help` lists the fields of one"
    recipe = make({STATE: Feature((6,), "float32"), ACTION: Feature((6,), "float32")})
    lines = [f"fields of {recipe.name}, where a name that is clear without its part may go without it:"]
    for setting in settings(recipe):
        value = setting.value
        if takes_parts(setting.kind):
            parts = value if isinstance(value, tuple) else (value,)
            text = " ".join(type(p).__name__ for p in parts if p is not None) or "none"
        else:
            text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        choices = f"  {{{','.join(setting.choices)}}}" if len(setting.choices) > 1 else ""
        lines.append(f"  --{setting.name.replace('_', '-')} {text}{choices}")
        lines += textwrap.wrap(setting.help, 98, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines.append("a part as a whole is replaced by its name, such as --encoder.image ResNet18")
    return "\n".join(lines)


def with_changes(
    recipe: Any, changes: Mapping[str, Any], source: str = "", options: Collection[str] = ()
) -> Any:
    """`recipe` with the fields replaced that a command line names, or the file `source`. Whole parts first,
    outer before inner: which fields there are, and which short names are clear, is only known once the parts
    are chosen. options: what else there is, to suggest."""
    from ...policies.parts import override, settings, takes_parts

    # the recipe's own fields at once, since they may only fit each other when all are set
    own = {n: v for n, v in changes.items() if n in {f.name for f in dataclasses.fields(recipe)}}
    rest = {}
    try:
        recipe = override(recipe, own)
        for name in sorted(set(changes) - set(own), key=lambda n: n.count(".")):
            if any(s.name == name and takes_parts(s.kind) for s in settings(recipe)):
                recipe = override(recipe, {name: changes[name]})
            else:
                rest[name] = changes[name]
        return override(recipe, full_names(recipe, rest, not source, options))
    except ValueError as error:
        if not source:
            raise
        raise UsageError(f"{source}: {error}") from error


def full_names(
    recipe: Any, changes: Mapping[str, Any], dashes: bool = True, options: Collection[str] = ()
) -> dict[str, Any]:
    """Short names made long where only one field ends so: `steps` is `training.steps`. dashes: complain of
    them as a command line has them, not as a file. options: what else there is, to suggest."""
    from ...policies.parts import leaves

    fields = leaves(recipe)
    result = {}
    for name, value in changes.items():
        if name in fields:
            result[name] = value
            continue
        ends = [n for n in fields if n.endswith(f".{name}")]
        # the training's own field wins over a part's of the same name
        ends = [n for n in ends if n.startswith("training.")] or ends
        if len(ends) == 1:
            result[ends[0]] = value
            continue
        near = ends or difflib.get_close_matches(name, [*_names(fields), *options], 3, 0.5)
        wrong, *suggestions = (f"--{n.replace('_', '-')}" if dashes else n for n in (name, *near))
        hint = (
            f"did you mean {' or '.join(suggestions)}?"
            if suggestions
            else "`ulna recipes --json` shows its fields"
        )
        raise UsageError(f"the recipe {recipe.name} has no field {wrong}: {hint}")
    return result


def _names(fields: dict[str, Any]) -> list[str]:
    return sorted({*fields, *(n.rsplit(".", 1)[-1] for n in fields)})
