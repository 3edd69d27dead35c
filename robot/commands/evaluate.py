"""Measure a policy. Closed loop: success over fixed seeds in simulation, with its Wilson interval. Open loop:
its predictions on recorded episodes, against holding still and extrapolating. The report is written into the
checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .bar import progress
from .choices import directors, robots, tasks
from .errors import UsageError
from .execution import split_all_fields, strategies, strategies_help, strategy_of
from .parsing import Output, episode_list, require_device, unset, use_threads, words
from .steering import steering

if TYPE_CHECKING:
    from ...policies.serving.metadata import Metadata

EXAMPLE = (
    "ulna evaluate runs/x/flow --task lift --episodes 50 --seed 1000 [--server ws://127.0.0.1:8000]\n"
    "  ulna evaluate --open-loop runs/x/flow --data runs/x/data --episodes 10,11"
)
CHOICES = {"robot": robots, "task": tasks, "strategy": strategies, "director": directors}
prepare, more_help = split_all_fields, strategies_help
OF_THE_CLOSED_LOOP = (
    *("robot", "task", "seed", "agent", "strategy", "latency", "prompt", "prompt_episodes", "director"),
    *("videos", "batch", "processes"),
)


@dataclass
class Args:
    checkpoint: Annotated[str, tyro.conf.Positional, unset("none")] = ""
    """The trained policy, a folder, or lerobot:FOLDER, which LeRobot trained; may be left out with --server
    or --agent."""
    episodes: Annotated[str, unset("50 in closed loop")] = ""
    """Closed loop: how many (50). Open loop: which, like 10,11."""
    robot: str = "sim:so101"
    """A simulated one, or a robot's TOML file: then its own twin is started, and the real drivers move it.
    What is found counts for `ulna deploy` on that robot."""
    task: str = "lift"
    """The scene."""
    seed: int = 1000
    """Seed of the first episode."""
    server: Annotated[str, unset("none; run the checkpoint here", "URL")] = ""
    """Ask the policy server at this ws:// address instead of running the checkpoint here."""
    agent: Annotated[str, unset("none; the policy", "expert|hold")] = ""
    """Evaluate this instead of a policy."""
    open_loop: bool = False
    """Compare with recorded episodes instead of acting."""
    data: Annotated[str, unset("none", "FOLDER")] = ""
    """Open loop: the dataset."""
    every: int = 5
    """Open loop: use every n-th tick."""
    sampling_steps: Annotated[int, unset("the recipe's")] = 0
    """Integration steps of the sampler. Not with --server."""
    steer: Annotated[str, unset("none", "NAMES")] = ""
    """Hooks that act while sampling, with commas; their fields are options: --steer NAME --NAME.field value.
    Not with --server."""
    strategy: Annotated[str, unset("receding; ensemble, each tick waiting, where the recipe says so")] = ""
    """How chunks are asked for and executed, as in `ulna deploy`."""
    latency: Annotated[str, unset("none; the world waits for the policy", "MS|MS/nfe|measured")] = ""
    """Charge a decision's time in simulation: its answer is there so much later. Milliseconds, for the whole
    or each network evaluation; or as long as it took. The report has its own name."""
    prompt: Annotated[str, unset("none", "FOLDER")] = ""
    """A dataset, for a policy that is shown demonstrations of its task when it acts: it is shown those of the
    same task, in words."""
    prompt_episodes: Annotated[str, unset("those of the task")] = ""
    """Which of its episodes instead, like 3,7, whatever their task."""
    director: Annotated[str, unset("none")] = ""
    """Who stands above the policy, with commas, as in `ulna deploy`."""
    videos: int = 3
    """How many episodes to film, into the checkpoint's validation folder: failures first, run once more."""
    batch: int = 1
    """Run up to so many episodes at once, with one inference for all: the same episodes, 5 times faster
    where a decision takes 0.1 s, no faster where it takes 5 ms. Simulated robots only, and not with
    --server."""
    processes: int = 1
    """With --batch: among how many processes their physics is shared; each takes seconds to start."""
    device: Annotated[str, tyro.conf.arg(metavar="cpu|cuda|cuda:N")] = "cpu"
    """Where the policy runs. Not with --server."""
    threads: int = 1
    """Of the processor; more can be faster where nothing else runs. Not with --server."""
    json: bool = False
    """Print one JSON object."""
    hook_fields: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)
    strategy_fields: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)


def run(args: Args, out: Output) -> int:
    if args.open_loop:
        _require_unset(args, OF_THE_CLOSED_LOOP, "is of the closed loop: leave out --open-loop")
        return _open_loop(args, out)
    _require_unset(args, ("data", "every"), "is of the open loop: add --open-loop")
    from ..agent import PolicyAgent, make_agent
    from ..charge import Charge
    from ..config import load_robot
    from ..directors.all import directors_named
    from ..directors.directed import Directed
    from ..evaluate import evaluate, evaluate_at_once, save_report
    from ..lerobot_words import for_robot
    from ..prompts import prompts_for

    try:
        episodes = int(args.episodes or 50)
    except ValueError:
        raise UsageError(f"--episodes is a number in closed loop, not {args.episodes!r}") from None
    if args.batch < 1 or args.processes < 1:
        raise UsageError("--batch and --processes are at least 1")
    if args.batch > 1 and (args.agent or args.server):
        raise UsageError("--batch is for a checkpoint that runs here: leave out --agent and --server")
    if args.agent and args.checkpoint:
        raise UsageError(
            f"{args.agent} acts instead of a policy, which is no report on {args.checkpoint}: leave out the "
            "checkpoint or --agent"
        )
    if args.agent and (args.strategy or args.latency):
        raise UsageError("--strategy and --latency concern a policy: leave out --agent")
    if args.agent and (args.prompt or args.prompt_episodes):
        raise UsageError("--prompt concerns a policy: leave out --agent")
    strategy = strategy_of(args.strategy, args.strategy_fields)
    charge = Charge.of(args.latency) if args.latency else Charge()
    if args.batch > 1 and charge.ms is None:
        raise UsageError(
            "--latency measured is measured one at a time: leave out --batch, or name milliseconds"
        )
    if args.batch > 1 and args.director:
        raise UsageError("--director is for episodes one at a time: leave out --batch")
    above = directors_named(words(args.director), _fields(args, args.director))
    policy = None if args.agent else _served_policy(args)
    try:
        cameras = [] if policy is None else policy.metadata.cameras
        with (
            contextlib.ExitStack() as stack,
            load_robot(_twin_of(args, policy, stack), args.task, cameras) as rig,
            progress("evaluating", episodes) as bar,
        ):

            def report(count: int, successes: int, total: int) -> None:
                bar.update(count, note=f"{successes} succeeded")

            folder = _folder(args) / "validation" if args.checkpoint else None
            # a report on the checkpoint alone is not overwritten by one with anything beside it
            how = [w for w in (args.strategy, args.latency) if w]
            how += ["shown"] if args.prompt else []
            how += [] if policy is None else [str(hook.get("part")) for hook in policy.metadata.steering]
            how += [f"{args.sampling_steps}-steps"] if args.sampling_steps else []
            how += words(args.director)
            name = "-".join([args.task, rig.robot.name, *how]).replace(":", "-").replace("/", "-")
            film = folder / name if folder and args.videos else None
            prompts = None
            if policy is not None:
                shown = episode_list(args.prompt_episodes) if args.prompt_episodes else None
                prompts = prompts_for(for_robot(policy, rig).metadata, args.prompt, shown)
            if policy is not None and args.batch > 1:
                result = evaluate_at_once(
                    rig,
                    policy,
                    episodes,
                    args.seed,
                    args.batch,
                    args.processes,
                    args.task,
                    film,
                    args.videos,
                    report,
                    strategy,
                    charge,
                    prompts,
                )
            else:
                agent = (
                    make_agent(args.agent, rig)
                    if policy is None
                    else PolicyAgent(
                        for_robot(policy, rig),
                        rig.robot.features,
                        rig.robot.control_hz,
                        strategy=strategy,
                        charge=charge,
                        prompts=prompts,
                    )
                )
                if above:
                    agent = stack.enter_context(Directed(agent, above, rig))
                result = evaluate(rig, agent, episodes, args.seed, film, args.videos, report)
    finally:
        if args.server and policy is not None:
            policy.close()
    result = replace(result, server=args.server or None)
    answer = result.to_json()
    if args.checkpoint:
        answer["report"] = str(save_report(_folder(args), name, result))
    low, high = result.wilson_95
    failed = [str(o.seed) for o in result.outcomes if not o.success]
    text = (
        f"{result.agent} on {args.robot} {args.task}: {result.successes} of {episodes} succeeded "
        f"({100 * result.success_rate:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
    )
    if result.batch:
        text += f"\n{result.batch} at once, {result.seconds:.0f} s"
    if result.strategy is not None or result.charged is not None:
        name = "the usual strategy" if result.strategy is None else f"the strategy {result.strategy['name']}"
        text += f"\nby {name}, a decision charged {result.charged or 'nothing'}"
    if result.shown:
        text += f"\nshown {result.shown}"
    if result.starved:
        text += f"\n{result.starved} ticks had no action and repeated the last one"
    if result.safety:
        text += f"\n{result.safety}"
    if broken := [o for o in result.outcomes if o.reason]:
        text += f"\nbroken off by the policy: {len(broken)}, first seed {broken[0].seed}: {broken[0].reason}"
    if failed:
        text += f"\nfailed seeds: {', '.join(failed)}"
    if (ms := result.latency_ms) is not None:
        text += (
            f"\n{result.nfe_per_decision:g} network evaluations a decision, "
            f"latency p50 {ms.p50:.1f} ms, p99 {ms.p99:.1f} ms"
        )
    out.answer(answer, text)
    return 0


def _require_unset(args: Args, names: Iterable[str], reason: str) -> None:
    """UsageError where one of the options `names` is not as it is by default."""
    if given := [n for n in names if getattr(args, n) != getattr(Args, n)]:
        raise UsageError(f"--{given[0].replace('_', '-')} {reason}")


def _fields(args: Args, names: str) -> dict[str, str]:
    """The options `--NAME.field` of those that `names` lists."""
    listed = words(names)
    return {k: v for k, v in args.hook_fields.items() if k.partition(".")[0] in listed}


def _twin_of(args: Args, policy: Any, stack: contextlib.ExitStack) -> str:
    """The robot to evaluate on: of a real one that has no scene its twin's file, for the length of
    `stack`."""
    from ...datasets.features import ENVIRONMENT
    from ..config import read_config

    config = read_config(args.robot)
    if "arms" not in config or "scene" in config:
        return args.robot
    from ..twin.own import own_twin

    needed: list[str] | None = [] if policy is None else policy.metadata.cameras
    if policy is not None and ENVIRONMENT in policy.metadata.features:
        needed = None  # what trackers see
    return stack.enter_context(own_twin(args.robot, args.task, needed))


def _served_policy(args: Args) -> Any:
    if args.server:
        if args.steer or len(_fields(args, args.director)) < len(args.hook_fields):
            raise UsageError("--steer acts where the policy runs: give it to `ulna serve`")
        runs = "is of where the policy runs: leave out --server, or give it to `ulna serve`"
        _require_unset(args, ("sampling_steps", "device", "threads"), runs)
        from ...policies.serving.client import PolicyClient

        client = PolicyClient(args.server)
        if args.checkpoint:
            _require_same_checkpoint(args.checkpoint, client.metadata, args.server)
        return client
    if not args.checkpoint:
        raise UsageError("name a checkpoint, a --server, or an --agent to evaluate")
    from ...policies.serving.local import LocalPolicy

    use_threads(args.threads)
    of_directors = _fields(args, args.director)
    hooks = steering(args.steer, {k: v for k, v in args.hook_fields.items() if k not in of_directors})
    return LocalPolicy(args.checkpoint, require_device(args.device), args.sampling_steps or None, hooks)


def _folder(args: Args) -> Path:
    from ...policies.lerobot.folder import checkpoint_folder

    return checkpoint_folder(args.checkpoint)


def _require_same_checkpoint(folder: str, metadata: Metadata, server: str) -> None:
    """A report must not be written into a checkpoint that was not the one measured."""
    from ...policies.lerobot.folder import named_hash

    if named_hash(folder) != metadata.checkpoint:
        raise ValueError(f"the server at {server} serves another checkpoint than {folder}")
    if metadata.quantize:
        raise ValueError(
            f"the server at {server} rounds the weights of {folder} (--quantize {metadata.quantize}), "
            "so what it does is no report on that checkpoint: evaluate without naming it"
        )


def _open_loop(args: Args, out: Output) -> int:
    from ..evaluate import save_report
    from ..openloop import open_loop

    if not args.data or not args.episodes:
        raise UsageError("open loop needs --data and --episodes, such as --data runs/x/data --episodes 10,11")
    policy = _served_policy(args)
    with progress("evaluating") as bar:
        result = open_loop(
            policy,
            args.data,
            episode_list(args.episodes),
            args.every,
            bar.update,
        )
    answer = result.to_json()
    if args.checkpoint:
        answer["report"] = str(save_report(_folder(args), "open-loop", result))
    lines = [f"{result.recipe} on episodes {args.episodes} of {args.data}, {result.n_ticks} ticks:"]
    for name, e in result.relative_error.items():
        low, high = e.bootstrap_95
        lines.append(f"  {name:12} {e.mean:.3f} of a joint's spread (95 % {low:.3f} to {high:.3f})")
    for name, c in result.comparisons.items():
        low, high = c.bootstrap_95
        verdict = "better" if c.better else "NOT shown to be better"
        lines.append(f"  policy - {name}: {c.difference:+.3f} (95 % {low:+.3f} to {high:+.3f}): {verdict}")
    out.answer(answer, "\n".join(lines))
    return 0
