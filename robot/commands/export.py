"""Write a trained policy as one ONNX file, which onnxruntime serves without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from .parsing import Output, unset

EXAMPLE = "ulna export runs/x/flow --onnx runs/x/flow.onnx"


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]
    """The trained policy."""
    onnx: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """The file to write: `ulna serve FILE` serves it on the processor."""
    sampling_steps: Annotated[int, unset("the recipe's")] = 0
    """Integration steps of the sampler, which the file will always take."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...policies.export.onnx import export_onnx
    from ...policies.serving.onnx_policy import SUFFIX

    if not args.onnx.endswith(SUFFIX):
        raise ValueError(f"the file is to end in {SUFFIX}, by which `ulna serve` knows it, not {args.onnx}")
    result = export_onnx(args.checkpoint, args.onnx, args.sampling_steps or None)
    out.answer(
        result,
        f"{result['path']}: {result['bytes'] / 1e6:.1f} MB, {result['calls']} calls of the network a "
        f"decision; its actions are within {result['off_by']:.1e} of their range of the checkpoint's",
    )
    return 0
