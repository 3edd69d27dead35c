"""The `ulna` command.

This file imports nothing heavy: `ulna --help` must answer at once, so each command is loaded when it is
called. A command is a module of `robot.commands`, or one that an installed package offers in the entry point
group `ulna.commands`, with `Args` (a dataclass that tyro parses), `EXAMPLE` and `run(args, out) -> int`."""

from __future__ import annotations

import contextlib
import importlib
import keyword
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ..drivers.plugins import PluginError, lookup, offers
from .commands.errors import UsageError, is_expected, missing_package, unknown
from .commands.terminal import clean_streams

COMMANDS = {
    "teleoperate": "move a robot by a leader arm, a gamepad, a browser, ...",
    "record": "record demonstrations into a dataset",
    "train": "train a policy on a dataset",
    "blend": "make a policy whose weights lie between those of two",
    "generate": "make a policy of what it is to do, by a policy of policies",
    "detector": "learn from the outcomes of episodes when a task is done",
    "progress": "learn from labelled episodes how much of a task is done",
    "guard": "learn from recorded episodes which actions they support where",
    "evaluate": "measure a policy: in simulation (closed loop) or on recorded episodes (--open-loop)",
    "study": "measure a claim: arms, seeds, controls and expectations in one file",
    "serve": "serve a trained policy over the network",
    "export": "write a trained policy as one ONNX file, or for LeRobot",
    "deploy": "run a served policy on a robot",
    "collect": "improve a policy by a person's corrections, in rounds",
    "replay": "send a recorded episode's actions once more, and report how well the joints followed",
    "devices": "what is plugged in, by names that stay the same",
    "setup": "bring a new arm up: port, ids of its servos, robot file, calibration",
    "calibrate": "measure where an arm's joints are and how far they go",
    "doctor": "what on this computer would disturb a robot, and how to mend it",
    "twin": "start the other end of a device: the bytes of a real one, with physics behind them",
    "recipes": "list the policies that can be trained",
    "push": "give a dataset or a checkpoint to the Hugging Face hub, in private",
    "pull": "bring a dataset or a checkpoint from the hub",
    "data": "look at, check, edit, bring in and hand out datasets",
    "completion": "what makes a shell complete these commands with the Tab key",
}
HELP = """ulna: from demonstrations to a served policy

usage: ulna COMMAND [options]      `ulna COMMAND --help` explains one, with an example

{commands}

the main job:
  ulna record --robot sim:so101 --task lift --agent expert --episodes 100 --out runs/x/data
  ulna train flow --backbone ResidualMLP --data runs/x/data --out runs/x/flow
  ulna evaluate runs/x/flow --task lift --episodes 50
  ulna serve runs/x/flow --port 8000
  ulna deploy --robot sim:so101 --server ws://127.0.0.1:8000 --task lift --episodes 5
"""
SUBCOMMANDS = {
    "data": {
        "info": "what is in it: episodes, measured rates, tasks, features",
        "check": "what is wrong with it: gaps, frozen frames, misalignment, static or odd episodes",
        "view": "look at it in a browser, or write a rerun file",
        "stats": "statistics of every feature",
        "import": "bring in a LeRobot, Diffusion-Policy or HDF5 dataset",
        "export": "hand out as a LeRobot dataset",
        "merge": "join datasets of equal features",
        "units": "state what its numbers are called and measured in, or convert them to SI",
        "split": "part it by episodes",
        "zoo": "make one of policies, which a generator of policies learns from",
        "trim": "cut the ends off an episode",
        "delete": "move episodes to the trash",
        "restore": "take episodes out of the trash, or empty it",
        "relabel": "change task, success, weight or steps of episodes",
        "recover": "bring back what was being recorded when it was cut off",
    }
}
PLUGINS = "ulna.commands"  # entry point group of the commands of installed packages
SUBCOMMAND_EXAMPLE = {"data": "ulna data info runs/x/data"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 129 and 143 ended by SIGHUP or
    SIGTERM."""
    # Threads of torch that wait for each other soon sleep. By default they spin for milliseconds, and where
    # other work shares the cores they hold up the thread that they wait for: a small network then trains a
    # tenth as fast. It is read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # none at all costs a quarter on a quiet machine
    with clean_streams():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(_help(), end="")
            return 0 if argv else 2
        if argv[0] in ("--version", "version"):
            print(f"ulna {version('ulna')}")
            return 0
        return _run(argv)
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001  the last line of defence: said in one sentence
        first: BaseException | None = error
        # the terminal was closed, and what was said at the end went nowhere
        while isinstance(first, OSError):
            first = first.__context__
        if isinstance(first, KeyboardInterrupt):
            return _interrupted(first)
        missing = missing_package(error)
        if debug or not (missing or is_expected(error)):
            traceback.print_exc()
        with contextlib.suppress(OSError):
            print("\n".join([f"ulna: {missing or error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _interrupted(error: KeyboardInterrupt) -> int:
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(f"ulna: {str(error) or 'interrupted'}; what was finished is kept", file=sys.stderr)
    return 128 + getattr(error, "number", signal.SIGINT)


def _help() -> str:
    """Of installed packages only the metadata is read; what they offer in vain is said on standard error."""
    plugins, refusals = offers(PLUGINS, COMMANDS)
    for sentence in refusals.values():
        print(f"ulna: {sentence}", file=sys.stderr)
    texts = COMMANDS | {name: f"of the package {e.dist.name}" for name, e in plugins.items() if e.dist}
    width = max(map(len, texts))
    return HELP.format(commands="\n".join(f"  {name:{width}}  {text}" for name, text in texts.items()))


def _run(argv: list[str]) -> int:
    name, rest = argv[0], argv[1:]
    if name in SUBCOMMANDS:
        subs = SUBCOMMANDS[name]
        if not rest or rest[0] in ("-h", "--help"):
            lines = "\n".join(f"  {c:{max(map(len, subs))}}  {text}" for c, text in subs.items())
            print(
                f"usage: ulna {name} COMMAND [options]\n\n{lines}\n\nexample:\n  {SUBCOMMAND_EXAMPLE[name]}"
            )
            return 0 if rest else 2
        if rest[0] not in subs:
            raise unknown(f"command `ulna {name}`", rest[0], subs)
        name, rest = f"{name} {rest[0]}", rest[1:]
    module = _command(name)
    from .commands.parsing import Output, parse

    args = parse(module, name, rest)
    if args is None:  # --help
        return 0
    with Output(args.json) as out:
        return module.run(args, out)


def _command(name: str) -> Any:
    """The module of the command `name`. UsageError: there is none; PluginError: it cannot be used."""
    if name.split(" ")[0] in COMMANDS:
        return importlib.import_module(f".commands.{module_name(name)}", __package__)
    module = lookup(PLUGINS, {}, name)
    if module is None:
        raise unknown("command", name, [*COMMANDS, *offers(PLUGINS, COMMANDS)[0]])
    if missing := [a for a in ("Args", "EXAMPLE", "run") if not hasattr(module, a)]:
        raise PluginError(f"{name} is no command of Ulna: it lacks {missing[0]}")
    return module


def module_name(name: str) -> str:
    """`data import` → `data.import_`."""
    *folder, last = name.split(" ")
    return ".".join([*folder, f"{last}_" if keyword.iskeyword(last) else last])


if __name__ == "__main__":
    sys.exit(main())
