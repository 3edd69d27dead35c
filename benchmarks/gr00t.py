"""Our head of GR00T beside LeRobot 0.6's own (of N1.7): the same random weights, the same tokens of a
language model. Are the answers equal, and how long does one decision take?

    python benchmarks/gr00t.py [--decisions 50]

LeRobot's vision-language half is Qwen3-VL's, ours is not, so both heads are given what our language model
makes of pictures and words; a decision is that of the head alone, 4 steps. LeRobot's is taken as it is where
it does not take turns between pictures and words (`use_alternate_vl_dit` off), as in N1 and N1.5. A tiny size
on the processor. Needs the extra `vla`. -> results/gr00t.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from lerobot_vla import ACTION, CAMERAS, JOINTS, PADDED, STATE, shaken, stats
from results import save
from torch import Tensor

from ulna.datasets.features import Feature, Features
from ulna.policies.adapters.language import Language
from ulna.policies.adapters.vision import SigLIP
from ulna.policies.adapters.vision_language import VisionLanguage
from ulna.policies.backbones.dit import DiT
from ulna.policies.contexts.read_tokens import ReadTokens
from ulna.policies.policy import Policy
from ulna.policies.recipes.gr00t import gr00t
from ulna.policies.request import Request
from ulna.policies.sampler import sample

WIDTH, HORIZON, STEPS, EMBODIMENT, LAYERS = 64, 16, 4, 1, 4
SECOND = ("vlln.", "vl_self_attention.")  # of LeRobot's head, what our context has


@dataclass(frozen=True)
class Heads:
    """LeRobot's head, our policy with the same weights, and what both are asked: the language model's tokens
    `(B, S, 64)`, states `(B, 64)` and noise `(B, 16, 32)`."""

    theirs: Any
    ours: Policy
    tokens: Tensor
    request: Request
    state: Tensor
    noise: Tensor


def pair(rows: int = 2, seed: int = 0) -> Heads:
    from lerobot.policies.groot.groot_n1_7 import GR00TN17ActionHead, GR00TN17Config

    torch.manual_seed(seed)
    shape = {"num_attention_heads": 4, "attention_head_dim": 16, "dropout": 0.2, "final_dropout": True}
    shape |= {"positional_embeddings": None}
    config = GR00TN17Config(
        backbone_embedding_dim=WIDTH,
        max_state_dim=64,
        max_action_dim=PADDED,
        action_horizon=HORIZON,
        max_seq_len=HORIZON,
        hidden_size=48,
        input_embedding_dim=64,
        use_alternate_vl_dit=False,
        max_num_embodiments=3,
        num_inference_timesteps=STEPS,
        diffusion_model_cfg={
            **shape,
            "num_layers": LAYERS,
            "norm_type": "ada_norm",
            "output_dim": 48,
            "interleave_self_attention": True,
        },
        vl_self_attention_cfg={**shape, "num_layers": 2},
    )
    theirs = GR00TN17ActionHead(config).eval()
    shaken(theirs)
    with torch.no_grad():  # those of each embodiment begin small, for a width of 1536
        for name, p in theirs.named_parameters():
            if name.endswith((".W", ".b")):
                p.normal_(std=p.shape[1] ** -0.5)
    features: Features = {
        STATE: Feature((JOINTS,), "float32"),
        **{k: Feature((48, 64, 3), "uint8") for k in CAMERAS},
        ACTION: Feature((JOINTS,), "float32"),
    }
    recipe = replace(
        gr00t(features),
        encoder=VisionLanguage(
            SigLIP(32, 2, 2, 64, patch=8, side=32, shuffle=2),
            Language("llama", WIDTH, 2, 4, 4, 16, 128, vocabulary=300, gives="tokens"),
            state=64,
        ),
        context=ReadTokens(layers=2, heads=4),
        backbone=DiT(LAYERS, 4, 16, 48, embodiments=3, embodiment=EMBODIMENT),
    )
    ours = Policy(recipe, features, stats()).eval()
    weights = theirs.state_dict()
    of_context = {k: v for k, v in weights.items() if k.startswith(SECOND)}
    ours.context_net.load_state_dict(of_context)
    ours.net.load_state_dict({k: v for k, v in weights.items() if k not in of_context})

    state = torch.rand(rows, JOINTS) * 2 - 1
    frames = {k: torch.randint(0, 256, (rows, 1, 48, 64, 3), dtype=torch.uint8) for k in CAMERAS}
    # of one length: LeRobot's attends to the padding of shorter ones
    request = Request(
        {STATE: state[:, None], **frames}, 0, task=["push the red cube", "lift the blue cube"][:rows]
    )
    heard: list[Tensor] = []
    hook = ours.context_net.vlln.register_forward_pre_hook(lambda _, given: heard.append(given[0]))  # type: ignore[union-attr]
    with torch.no_grad():
        ours.context(request)
    hook.remove()
    padded = torch.nn.functional.pad(state, (0, 64 - JOINTS))
    return Heads(theirs, ours, heard[0], request, padded, torch.randn(rows, HORIZON, PADDED))


def their_inputs(of: Heads) -> tuple[Any, Any]:
    from transformers.feature_extraction_utils import BatchFeature

    rows = len(of.state)
    seen = torch.ones(of.tokens.shape[:2], dtype=torch.bool)
    read = BatchFeature(data={"backbone_features": of.tokens, "backbone_attention_mask": seen})
    ids = torch.full((rows,), EMBODIMENT)
    return read, BatchFeature(data={"state": of.state[:, None], "embodiment_id": ids})


def their_decision(of: Heads) -> tuple[Tensor, list[Tensor]]:
    """(the chunk `(B, 16, 32)` from the noise, the velocities at its steps), by LeRobot's own code."""
    said: list[Tensor] = []
    hook = of.theirs.action_decoder.register_forward_hook(lambda *v: said.append(v[2][:, -HORIZON:]))
    plain, torch.randn = torch.randn, lambda *_, **__: of.noise  # it draws its noise itself
    try:
        chunk = of.theirs.get_action(*their_inputs(of))["action_pred"]
    finally:
        torch.randn = plain
        hook.remove()
    return chunk, said


def our_decision(of: Heads) -> tuple[Tensor, list[Tensor]]:
    policy, said = of.ours, []
    hook = policy.net.register_forward_hook(lambda *v: said.append(v[2]))
    with torch.no_grad():
        # from the tokens on, as LeRobot's is given them
        net: Any = policy.context_net
        tokens = net.vlln(of.tokens)
        for block in net.vl_self_attention["transformer_blocks"]:
            tokens = block(tokens)
        context = replace(policy.context(of.request), tokens=tokens, mask=None)
        b, h, a = of.noise.shape
        parts = (policy.net, policy.recipe.objective, policy.recipe.solver)
        chunk = sample(*parts, context, (b, h, a), STEPS, 0, noise=lambda: of.noise).chunk
    hook.remove()
    return chunk, said


def differences(of: Heads) -> dict[str, float]:
    """The largest between the two: of a decision, of the velocity at its steps, of the loss."""
    from ulna.policies.objectives.objective import Draw

    (chunk, steps), (ours, our_steps) = their_decision(of), our_decision(of)
    own = of.ours.sample(of.request, noise=lambda: of.noise).chunk  # with all that comes before the tokens
    rows, tau = len(of.state), torch.tensor([0.3, 0.8])[: len(of.state)]
    actions = torch.nn.functional.pad(torch.rand(rows, HORIZON, JOINTS) * 2 - 1, (0, PADDED - JOINTS))
    read, asked = their_inputs(of)
    asked["action"], asked["action_mask"] = actions, torch.ones_like(actions)
    plain, torch.randn = torch.randn, lambda *_, **__: of.noise
    of.theirs.sample_time = lambda *_, **__: tau
    try:
        theirs = of.theirs(read, asked)["action_loss"]
    finally:
        torch.randn = plain
    losses = of.ours.recipe.objective.losses(
        of.ours.net, actions, of.ours.context(of.request), Draw(of.noise, tau)
    )
    return {
        "of a decision": max(
            float((chunk - ours).abs().max()), float((chunk[..., :JOINTS] - own).abs().max())
        ),
        "of the velocity": max(float((a - b).abs().max()) for a, b in zip(steps, our_steps, strict=True)),
        "of the loss": float((theirs - losses.error).detach().abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--decisions", type=int, default=50, help="timed, of each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    of, one = pair(), pair(rows=1)
    off = differences(of)
    seconds: dict[str, list[float]] = {"lerobot": [], "ulna": []}
    for i in range(args.decisions + 3):
        for who, decide in (("lerobot", their_decision), ("ulna", our_decision)):
            began = time.perf_counter()
            decide(one)
            if i >= 3:
                seconds[who].append(time.perf_counter() - began)
    save(
        "gr00t",
        {
            "torch threads": 1,
            "largest differences": off,
            "decision ms, median": {w: round(1e3 * statistics.median(v), 3) for w, v in seconds.items()},
            "decision ms, least": {w: round(1e3 * min(v), 3) for w, v in seconds.items()},
        },
    )


if __name__ == "__main__":
    main()
