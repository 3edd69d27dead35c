"""Learn from recorded episodes how much of a task is done: which of its steps. Beside `ulna detector`, which
learns only when all is. A director asks the critic while a policy runs (`ulna deploy --director Progress`),
and a training counts ticks by the progress that they led to (`ulna train --weights progress:FOLDER`).

Steps are labels of episodes: the simulated tasks stack and sort have them, for others say them by
`ulna data relabel --steps`. An episode without has one step, its task, done at the end of a success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from .bar import progress
from .errors import UsageError, unknown
from .parsing import Output, require_device, unset, use_threads, words

EXAMPLE = "ulna progress --data runs/x/data --out runs/x/progress"


@dataclass
class Args:
    data: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the dataset; its episodes have steps, or are marked as successes and failures."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the critic."""
    observe: Annotated[str, unset("all", "NAMES")] = ""
    """What it sees, with commas."""
    like: Annotated[str, unset("small networks", "RECIPE")] = ""
    """See and read as the policies of this recipe do, such as smolvla_small; `ulna recipes` lists them."""
    weights: Annotated[str, unset("random ones", "FOLDER")] = ""
    """Published weights of --like's vision-language model, which then stays as it is; a folder or hub
    name."""
    tokenizer: Annotated[str, unset("hashes of words", "FOLDER")] = ""
    """The published tokenizer that belongs to them."""
    clip: float = 1.0
    """Of how many seconds it is asked at a time; 4 frames of them are seen."""
    steps: int = 2000
    """Of its training."""
    seed: int = 0
    """Of its weights and the order of the data."""
    device: Annotated[str, unset("cpu", "cpu|cuda|cuda:N")] = "cpu"
    """Where to train."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from dataclasses import replace

    from ...datasets.opened import open_dataset
    from ...policies.learn.steps import learn_progress, spec_like
    from ...policies.progress import ProgressSpec
    from ...policies.recipes.all import recipe_function, recipe_names

    if args.steps < 1 or not args.clip > 0:
        raise UsageError("--steps is at least 1, and --clip a time in seconds above 0")
    if (args.weights or args.tokenizer) and not args.like:
        raise UsageError("--weights and --tokenizer are those of a recipe: name it with --like")
    require_device(args.device)
    use_threads(1)
    spec = ProgressSpec()
    if args.like:
        make = recipe_function(args.like)
        if make is None:
            raise unknown("recipe", args.like, recipe_names())
        spec = spec_like(make(open_dataset(args.data).features), args.weights, args.tokenizer)
    with progress("learning", args.steps) as bar:
        answer = learn_progress(
            args.data,
            args.out,
            replace(spec, clip_s=args.clip),
            words(args.observe) or None,
            args.steps,
            args.seed,
            args.device,
            progress=bar.update,
        )
    text = (
        f"{args.out}: the steps of {answer['tasks']} tasks; in {answer['held_out_episodes']} episodes that "
        f"it had not seen it counts the steps right in {answer['exact']:.0%} of the clips, with a mean "
        f"error of {answer['mae']:.1%}, where a counter of time has {answer['mae_of_a_counter']:.1%}"
    )
    out.answer(answer, text)
    return 0
