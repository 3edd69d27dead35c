"""Write a trained policy for others: as one ONNX file, which onnxruntime serves without torch, or as a folder
that LeRobot loads; or an ACT or diffusion policy of LeRobot as a checkpoint of ours, or one of the small
networks of a hyperppo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from .errors import UsageError
from .parsing import Output, unset

EXAMPLE = (
    "ulna export runs/x/flow --onnx runs/x/flow.onnx\n"
    "  ulna export runs/x/act --to lerobot --out runs/x/act-lerobot"
)


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]
    """The trained policy; with --to ulna lerobot:FOLDER."""
    onnx: Annotated[str, unset("none", "FILE")] = ""
    """The ONNX file to write: `ulna serve FILE` serves it on the processor."""
    to: Annotated[Literal["", "lerobot", "ulna"], unset("none", "lerobot|ulna")] = ""
    """Whose folder to write: LeRobot's own act or diffusion where the networks are the same, else one for its
    plug-in lerobot_policy_ulna; or ours, of LeRobot's act or diffusion."""
    out: Annotated[str, unset("none", "FOLDER")] = ""
    """The new folder, with --to or --hidden."""
    hidden: Annotated[tuple[int, ...], unset("none", "INT [INT ...]")] = ()
    """Of a hyperppo, the network with hidden layers of these widths, as a checkpoint of its own."""
    sampling_steps: Annotated[int, unset("the recipe's")] = 0
    """Integration steps of the sampler, which the ONNX file will always take."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    if sum(map(bool, (args.onnx, args.to, args.hidden))) != 1:
        raise UsageError(
            "say what to write: --onnx FILE, --to lerobot|ulna --out FOLDER, or --hidden WIDTHS --out FOLDER"
        )
    if args.onnx:
        return _onnx(args, out)
    if not args.out:
        raise UsageError("name the new folder: --out FOLDER")
    if args.sampling_steps:
        raise UsageError("--sampling-steps is of an ONNX file: a folder says itself how many steps it takes")
    if args.hidden:
        return _small(args, out)
    return _lerobot(args, out) if args.to == "lerobot" else _ours(args, out)


def _onnx(args: Args, out: Output) -> int:
    from ...policies.export.onnx import export_onnx
    from ...policies.serving.onnx_policy import SUFFIX

    if args.out:
        raise UsageError("--out is the folder of --to; the file is named with --onnx")
    if not args.onnx.endswith(SUFFIX):
        raise ValueError(f"the file is to end in {SUFFIX}, by which `ulna serve` knows it, not {args.onnx}")
    result = export_onnx(args.checkpoint, args.onnx, args.sampling_steps or None)
    out.answer(
        result,
        f"{result['path']}: {result['bytes'] / 1e6:.1f} MB, {result['calls']} calls of the network a "
        f"decision; its actions are within {result['off_by']:.1e} of their range of the checkpoint's",
    )
    return 0


def _lerobot(args: Args, out: Output) -> int:
    from ...policies.lerobot.export import export_lerobot

    result = export_lerobot(args.checkpoint, args.out)
    how = f"LeRobot's {result.type}; its actions are within {result.off_by:.1e} of their range of ours"
    if result.why:
        how = f"for LeRobot with the plug-in lerobot_policy_ulna ({result.why})"
    answer = {"path": str(result.path), "type": result.type, "off_by": result.off_by, "why": result.why}
    out.answer(answer, f"{result.path}: {how}")
    return 0


def _ours(args: Args, out: Output) -> int:
    from ...policies.lerobot.export import import_lerobot
    from ...policies.lerobot.folder import is_lerobot

    if not is_lerobot(args.checkpoint):
        raise UsageError("--to ulna is for a policy of LeRobot: name it lerobot:FOLDER")
    policy = import_lerobot(args.checkpoint, args.out)
    answer = {"path": args.out, "recipe": policy.recipe.name, "checkpoint": policy.content_hash}
    out.answer(answer, f"{args.out}: {policy.recipe.name}, {policy.content_hash[:8]}")
    return 0


def _small(args: Args, out: Output) -> int:
    from ...policies.export.small import export_small

    policy = export_small(args.checkpoint, args.hidden, args.out)
    weights = sum(p.numel() for p in policy.net.parameters())
    answer = {
        "path": args.out,
        "hidden": list(args.hidden),
        "weights": weights,
        "checkpoint": policy.content_hash,
    }
    out.answer(answer, f"{args.out}: a network of {weights} weights, {policy.content_hash[:8]}")
    return 0
