"""What every command shares: parsing its `Args`, and keeping standard output for the answer."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from types import ModuleType
from typing import Annotated, Any, Self, get_type_hints

import tyro

from .errors import UsageError
from .terminal import clean


def parse(module: ModuleType, name: str, argv: Sequence[str]) -> Any:
    """The command's `Args`, or None after --help. UsageError in one sentence, with the nearest option."""
    if {"-h", "--help"} & set(argv):
        _show_choices(module)
    description = f"{(module.__doc__ or '').strip()}\n\nexample:\n  {module.EXAMPLE}"
    # a command may take arguments of its own kind out first (`train`: the recipe's fields)
    rest, extra = module.prepare(list(argv)) if hasattr(module, "prepare") else (list(argv), {})
    return parse_options(module, name, rest, extra, description)


def parse_options(
    module: ModuleType, name: str, rest: Sequence[str], extra: dict[str, Any], description: str = ""
) -> Any:
    """The module's `Args` of the words `rest`, with the fields `extra` besides; see `parse`."""
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
    outputs: list[str] = []
    try:
        with _collect(outputs):
            args = tyro.cli(
                module.Args, args=list(rest), prog=f"ulna {name}", description=description, config=config
            )
        return replace(args, **extra)
    except SystemExit as stop:
        text = "".join(outputs)
        if not stop.code:
            more = module.more_help(rest) if hasattr(module, "more_help") else ""
            print(text.rstrip() + "\n" + (f"\n{more}\n" if more else ""), end="")
            return None
        raise UsageError(_sentence(name, text, rest, module)) from None


def unset(meaning: str, metavar: str | None = None) -> Any:
    """For `Annotated[str, unset("all")] = ""`: `--help` says what it means to leave the option out, instead
    of showing the empty value. metavar: how its values are written."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {meaning})", metavar=metavar)


def _show_choices(module: ModuleType) -> None:
    """Let `--help` list the values of the options in the command's `CHOICES`. They depend on the packages
    that are installed, so they are looked for only when somebody asks."""
    hints = get_type_hints(module.Args, include_extras=True)
    with Output(as_json=False):  # PyBullet greets on standard output
        choices = {name: names() for name, names in getattr(module, "CHOICES", {}).items()}
    for name, names in choices.items():
        metavar = tyro.conf.arg(metavar="|".join(names))
        module.Args.__annotations__[name] = Annotated[hints[name], metavar]


def _sentence(name: str, text: str, argv: Sequence[str], module: ModuleType) -> str:
    """tyro draws a box around its complaint; we want the complaint."""
    options = [f"--{f.name.replace('_', '-')}" for f in fields(module.Args)]
    flags = [a.split("=")[0] for a in argv if a.startswith("--")]
    for option in flags:
        if option.replace("_", "-") not in options:
            near = difflib.get_close_matches(option, options, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(options)}"
            return f"`ulna {name}` has no option {option}: {hint}"
    words = re.sub(r"[╭╮╰╯│─]+|-{4,}", " ", re.sub(r"\x1b\[[0-9;]*m", "", text))
    words = re.sub(r"\s+", " ", words).strip()
    if stray := re.search(r"Unrecognized options: ([^\s,]+)", words):
        return _stray(name, stray[1], argv)
    words = re.sub(r"^Parsing error |For full helptext.*$|^Required options ", "", words).strip()
    return f"{words or 'the options do not fit'} (see `ulna {name} --help`)"


def _stray(name: str, word: str, argv: Sequence[str]) -> str:
    """What to say of a word that belongs to no option."""
    at = argv.index(word) if word in argv else 0
    said = ""
    if at > 1 and argv[at - 2].startswith("--") and not argv[at - 1].startswith("-"):
        option, value = argv[at - 2], argv[at - 1]
        said = f" after {option} {value}: where it takes several they go with commas, {value},{word}"
    return f"`ulna {name}` does not expect {word}{said} (see `ulna {name} --help`)"


@contextlib.contextmanager
def _collect(into: list[str]) -> Iterator[None]:
    import io

    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer), contextlib.redirect_stderr(buffer):
        try:
            yield
        finally:
            into.append(buffer.getvalue())


class Output:
    """Standard output is for the answer alone: with --json one object, else text. Everything else that is
    printed meanwhile, by us or by C libraries, goes to standard error."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def __enter__(self) -> Self:
        sys.stdout.flush()
        self._saved = os.dup(1)
        os.dup2(2, 1)
        self._stdout, sys.stdout = sys.stdout, sys.stderr
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout = self._stdout
        os.dup2(self._saved, 1)
        os.close(self._saved)

    def answer(self, value: dict[str, Any], text: str) -> None:
        """Print the command's answer: `value` with --json, `text` without."""
        line = _json(value) if self.as_json else clean(text)
        os.write(self._saved, (line + "\n").encode())


def _json(value: dict[str, Any]) -> str:
    """One line of JSON, without control characters; what is not finite becomes null."""
    try:
        line = json.dumps(value, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(value), allow_nan=False)
    return line.replace("\x7f", "\\u007f")  # the only one that `json` leaves as it is


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def episode_list(text: str) -> list[int]:
    """`0-9,12` → [0, …, 9, 12]."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise UsageError(f"{text!r} is not a list of episodes: write them like 0-9,12")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(numbers))


def words(text: str) -> list[str]:
    """`front, wrist` → ["front", "wrist"]."""
    return [w.strip() for w in text.split(",") if w.strip()]


def size_of(text: str) -> tuple[int, int] | None:
    """`320x240` → (240, 320)."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if match is None or not min(int(match[1]), int(match[2])):
        raise ValueError(f"--image-size is width x height in pixels, like 320x240, not {text!r}")
    return int(match[2]), int(match[1])


def pairs(option: str, text: str, of: str) -> dict[str, str]:
    """`a=b,c=d` → {"a": "b", "c": "d"}. UsageError names `option` and says with `of` how a pair is
    written."""
    parts = [p.partition("=") for p in words(text)]
    if any(not (old and new) for old, _, new in parts):
        raise UsageError(f"{option} is written {of}, with commas between several")
    return {old.strip(): new.strip() for old, _, new in parts}


def page_options(agent: str, phone: bool) -> dict[str, Any]:
    """Fields of the browser teleoperator's `Config` for `--phone`. UsageError where the agent has no page."""
    if phone and agent != "browser":
        raise UsageError(f"--phone lets a phone open the page of --agent browser, and the agent is {agent}")
    return {"host": "0.0.0.0"} if phone else {}


def require_device(name: str) -> str:
    """`name`, where it is `cpu`, or a `cuda` or `cuda:N` that this machine has. Else UsageError or
    ValueError."""
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise UsageError(f"there is no device {name!r}: it is cpu, cuda, or one of several like cuda:1")
    if name != "cpu":
        import torch

        if int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise ValueError(f"there is no {name} on this machine: use --device cpu")
    return name


def use_threads(n: int) -> None:
    """How many threads torch computes with in this process. One answers a small policy at batch 1 in 40 ms on
    a quiet machine and on a busy one; two need 26 ms on a quiet one, but seconds at times (p99 7 s) when
    another process holds a core, because they spin while they wait for each other."""
    if n < 1:
        raise ValueError(f"--threads must be at least 1, not {n}")
    import torch

    torch.set_num_threads(n)
