"""Write a trained policy for others: as one ONNX file, which onnxruntime serves without torch, or as a folder
that LeRobot loads."""

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
    """The trained policy."""
    onnx: Annotated[str, unset("none", "FILE")] = ""
    """The ONNX file to write: `ulna serve FILE` serves it on the processor."""
    to: Annotated[Literal["", "lerobot"], unset("none")] = ""
    """Whose folder to write: LeRobot's own act or diffusion where the networks are the same, else one for its
    plug-in lerobot_policy_ulna."""
    out: Annotated[str, unset("none", "FOLDER")] = ""
    """The new folder, with --to."""
    sampling_steps: Annotated[int, unset("the recipe's")] = 0
    """Integration steps of the sampler, which the ONNX file will always take."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    if bool(args.onnx) == bool(args.to):
        raise UsageError("say what to write: --onnx FILE, or --to lerobot --out FOLDER")
    return _onnx(args, out) if args.onnx else _lerobot(args, out)


def _onnx(args: Args, out: Output) -> int:
    from ...policies.export.onnx import export_onnx
    from ...policies.serving.onnx_policy import SUFFIX

    if args.out:
        raise UsageError("--out is the folder of --to lerobot; the file is named with --onnx")
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

    if not args.out:
        raise UsageError("name the new folder: --to lerobot --out FOLDER")
    if args.sampling_steps:
        raise UsageError("--sampling-steps is of an ONNX file: LeRobot's config says how many steps it takes")
    result = export_lerobot(args.checkpoint, args.out)
    how = f"LeRobot's {result.type}; its actions are within {result.off_by:.1e} of their range of ours"
    if result.why:
        how = f"for LeRobot with the plug-in lerobot_policy_ulna ({result.why})"
    answer = {"path": str(result.path), "type": result.type, "off_by": result.off_by, "why": result.why}
    out.answer(answer, f"{result.path}: {how}")
    return 0
