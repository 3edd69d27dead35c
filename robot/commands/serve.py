"""Serve a trained policy over WebSocket, in openpi's protocol."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .parsing import Output, require_device, unset, use_threads
from .steering import split_hook_fields, steering

if TYPE_CHECKING:
    from ...policies.request import ServedPolicy
    from ...policies.serving.metadata import Metadata
    from ...policies.serving.wire import Wire

EXAMPLE = "ulna serve runs/x/flow --port 8000"
prepare = split_hook_fields


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]
    """The trained policy, or one that `ulna export` wrote as FILE.onnx."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for other machines. There is no key check yet: use it on a network you
    trust."""
    port: int = 8000
    """0 picks a free one."""
    device: Annotated[str, tyro.conf.arg(metavar="cpu|cuda|cuda:N")] = "cpu"
    """Where the policy runs."""
    threads: int = 1
    """Of the processor; more can be faster where nothing else runs."""
    sampling_steps: Annotated[int, unset("the recipe's")] = 0
    """Integration steps of the sampler."""
    steer: Annotated[str, unset("none", "NAMES")] = ""
    """Hooks that act while sampling, with commas: ours, an installed package's, or package.module:Name. Their
    fields are options: --steer NAME --NAME.field value."""
    lerobot_port: Annotated[int, unset("off")] = 0
    """Serve LeRobot's async clients there, too; theirs is 8080."""
    lerobot_units: Annotated[str, unset("as the policy's", "UNITS")] = ""
    """What the robot of a LeRobot client measures joints in, for a policy in radians: degrees, percent or
    radians; single joints after it, with commas: degrees,gripper=percent."""
    lerobot_calibration: Annotated[str, unset("none", "FILE")] = ""
    """LeRobot's calibration of that robot, which percent need; of several arms left=FILE,right=FILE."""
    lerobot_arm: Literal["", "so101", "koch"] = ""
    """Whose calibration it is, where that matters."""
    groot_port: Annotated[int, unset("off")] = 0
    """Serve GR00T's clients there, too; theirs is 5555."""
    groot_modality: Annotated[str, unset("by the names of the joints", "FILE")] = ""
    """GR00T's modality.json: what it calls the parts of the state and the action, and the cameras."""
    json: bool = False
    """Print one JSON object when the server is ready."""
    hook_fields: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)


def run(args: Args, out: Output) -> int:
    import logging

    from ...policies.serving.server import PolicyServer

    for option in ("port", "lerobot_port", "groot_port"):
        if not 0 <= (port := getattr(args, option)) <= 65535:
            raise ValueError(f"--{option.replace('_', '-')} must lie in 0..65535, not {port}")
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    policy = _policy(args)
    server = PolicyServer(policy, args.host, args.port, wires=_wires(args, policy.metadata))

    def ready(url: str) -> None:
        value = {
            "url": url,
            "health": url.replace("ws://", "http://") + "/healthz",
            "wires": [wire.url for wire in server.wires],
            **policy.metadata.to_json(),
        }
        out.answer(
            value,
            f"serving {policy.metadata.recipe} {policy.metadata.checkpoint[:8]} at "
            f"{', '.join([url, *value['wires']])} (Ctrl-C stops)",
        )

    server.run(ready)
    return 0


def _policy(args: Args) -> ServedPolicy:
    if args.checkpoint.endswith(".onnx"):
        from ...policies.serving.onnx_policy import OnnxPolicy

        if args.steer or args.sampling_steps or args.device != "cpu":
            raise ValueError(
                "an exported policy runs on the processor as it was exported: leave --steer, "
                "--sampling-steps and --device out, or serve its checkpoint"
            )
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1, not {args.threads}")
        return OnnxPolicy(args.checkpoint, args.threads)
    from ...policies.serving.local import LocalPolicy

    use_threads(args.threads)
    hooks = steering(args.steer, args.hook_fields)
    return LocalPolicy(args.checkpoint, require_device(args.device), args.sampling_steps or None, hooks)


def _wires(args: Args, metadata: Metadata) -> list[Wire]:
    from ..wires import groot_wire, lerobot_wire

    wires = []
    if args.lerobot_port:
        said = (args.lerobot_units, args.lerobot_calibration, args.lerobot_arm)
        wires.append(lerobot_wire(metadata, args.host, args.lerobot_port, *said))
    if args.groot_port:
        wires.append(groot_wire(metadata, args.host, args.groot_port, args.groot_modality))
    return wires
