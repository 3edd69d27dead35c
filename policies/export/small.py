"""One of the networks that a `HyperPPO` generates as a checkpoint of its own, without what generates it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...datasets.layout import require_new
from ...datasets.making import making
from ..backbones.hyperppo import HyperPPO, HyperPPONet
from ..backbones.small_mlp import SmallMLP
from ..checkpoint import load_checkpoint, read_train, save_checkpoint
from ..hooks.hidden import Hidden
from ..policy import Policy
from .program import NotExportable


def export_small(folder: str | Path, hidden: tuple[int, ...], out: str | Path) -> Policy:
    """Write the policy of the checkpoint `folder` whose network has these hidden layers into the new folder
    `out`, whole or not at all. NotExportable, ValueError, CheckpointError or StoreError in one sentence."""
    out = Path(out)
    require_new(out)
    policy, record = load_checkpoint(folder), read_train(folder)
    recipe, net = policy.recipe, policy.net
    if not isinstance(recipe.backbone, HyperPPO) or not isinstance(net, HyperPPONet):
        raise NotExportable(
            f"{folder} has a {type(recipe.backbone).__name__}, which is of one size: --hidden is for the "
            "backbone HyperPPO"
        )
    recipe.backbone.require(hidden)
    steering = tuple(hook for hook in recipe.steering if not isinstance(hook, Hidden))
    small = Policy(
        replace(recipe, backbone=SmallMLP(hidden), steering=steering), policy.features, policy.stats
    )
    rest = {n: v for n, v in policy.state_dict().items() if not n.startswith("net.")}
    small.load_state_dict(rest | {f"net.{n}": v for n, v in net.weights(hidden).items()})
    parameters = sum(p.numel() for p in small.parameters())
    with making(out) as work:
        save_checkpoint(work, small, replace(record, start=policy.content_hash, parameters=parameters))
    return small
