"""Print what makes a shell complete Ulna's commands and options with the Tab key.

bash: put `source <(ulna completion bash)` into ~/.bashrc, or the output into a file that it reads.
zsh: write the output into a file `_ulna` in a folder of `fpath`."""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro

from .parsing import Output

EXAMPLE = "ulna completion bash > ~/.ulna-completion && echo 'source ~/.ulna-completion' >> ~/.bashrc"


@dataclass
class Args:
    shell: Annotated[Literal["bash", "zsh", "tcsh"], tyro.conf.Positional] = "bash"
    """Whose language the script is in."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    script = completion(args.shell)
    out.answer({"shell": args.shell, "script": script}, script.rstrip("\n"))
    return 0


def completion(shell: str) -> str:
    """The script for `shell`, of all commands but those of installed packages."""
    from ..cli import COMMANDS, SUBCOMMANDS, module_name

    def options(name: str, text: str) -> Any:
        module = importlib.import_module(f".{module_name(name)}", __package__)
        leaf = name.rpartition(" ")[2]
        return Annotated[module.Args, tyro.conf.subcommand(leaf, description=text, prefix_name=False)]

    commands: list[Any] = []
    for name, text in COMMANDS.items():
        if name in SUBCOMMANDS:
            leaves = tuple(options(f"{name} {sub}", of) for sub, of in SUBCOMMANDS[name].items())
            group = tyro.conf.subcommand(name, description=text, prefix_name=False)
            commands.append(Annotated[Union[leaves], group])  # noqa: UP007  of a number that is not fixed
        else:
            commands.append(options(name, text))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(
            Union[tuple(commands)],  # type: ignore[arg-type]  # noqa: UP007
            prog="ulna",
            args=["--tyro-print-completion", shell],
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    lines = printed.getvalue().splitlines()
    # the descriptions of options stand in a line of Python; bash would offer a second line of one as a word
    return "\n".join(x.replace("\\n", " ") if x.startswith("COMPLETION_SPEC") else x for x in lines) + "\n"
