"""Learn from the outcomes of recorded episodes when a task is done. Directors ask the detector while a policy
runs: `ulna deploy --director Done --Done.verifier FOLDER`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from .bar import progress
from .errors import UsageError
from .parsing import Output, unset, use_threads, words

EXAMPLE = "ulna detector --data runs/x/data --out runs/x/done"


@dataclass
class Args:
    data: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the dataset; its episodes are marked as successes and failures."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the detector."""
    observe: Annotated[str, unset("all", "NAMES")] = ""
    """What it sees, with commas."""
    steps: int = 1500
    """Of its training."""
    seed: int = 0
    """Of its weights and the order of the data."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...policies.learn.success import learn_success

    if args.steps < 1:
        raise UsageError(f"--steps is at least 1, not {args.steps}")
    use_threads(1)
    with progress("learning", args.steps) as bar:
        answer = learn_success(
            args.data,
            args.out,
            words(args.observe) or None,
            args.steps,
            args.seed,
            bar.update,
        )
    text = (
        f"{args.out}: of {answer['held_out_successes']} successes that it had not seen it finds "
        f"{answer['found']} at their end, and {answer['too_early']} too early; of "
        f"{answer['held_out_failures']} failures it takes {answer['taken_for_done']} for done"
    )
    out.answer(answer, text)
    return 0
