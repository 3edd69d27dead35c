"""Serve a trained policy over WebSocket, in openpi's protocol."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from .parsing import Output, require_device, unset, use_threads
from .steering import split_hook_fields, steering

EXAMPLE = "ulna serve runs/x/flow --port 8000"
prepare = split_hook_fields


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]
    """The trained policy."""
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
    json: bool = False
    """Print one JSON object when the server is ready."""
    hook_fields: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)


def run(args: Args, out: Output) -> int:
    import logging

    from ...policies.serving.local import LocalPolicy
    from ...policies.serving.server import PolicyServer

    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port must lie in 0..65535, not {args.port}")
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    use_threads(args.threads)
    hooks = steering(args.steer, args.hook_fields)
    device = require_device(args.device)
    policy = LocalPolicy(args.checkpoint, device, args.sampling_steps or None, hooks)
    server = PolicyServer(policy, args.host, args.port)

    def ready(url: str) -> None:
        value = {
            "url": url,
            "health": url.replace("ws://", "http://") + "/healthz",
            **policy.metadata.to_json(),
        }
        out.answer(
            value,
            f"serving {policy.metadata.recipe} {policy.metadata.checkpoint[:8]} at {url} (Ctrl-C stops)",
        )

    server.run(ready)
    return 0
