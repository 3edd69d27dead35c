"""A policy as one ONNX file: encoder, network and the whole sampling loop in a graph that any ONNX runtime
runs.

Inputs: `noise` `(M, 1, H, A)` standard normal, and the observations by key, each `(1, n_obs_steps, *shape)`;
conditions `(1, *shape)`, NaN where one that may be left out is not told.
Output: `actions` `(1, n, A)`, the first for now, in the action's units. The three networks (observations to
context, one call of the backbone, chunk to actions) are PyTorch's own export; the loop around the second is
written here from `program`, an ONNX Loop, so that its size does not grow with the steps.

The file's `metadata_props` hold, as JSON, `ulna.metadata` (`Metadata`), `ulna.stats` and `ulna.sampling` (the
noise's M, H and A; network evaluations), and at its very end `ulna.sha256` of all bytes before.

Legend: M noise draws, K calls, R rows, H horizon, A action dimensions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..contexts.context import Context
from ..lerobot.policy import LeRobotPolicy
from ..policy import Policy
from ..request import TASK, Request
from ..serving.local import LocalPolicy
from ..serving.onnx_file import METADATA, SAMPLING, STATS, sealed
from .program import NotExportable, Program, program_of

TOLERANCE = 1e-3  # of an action's range, between torch and the exported file, at which an export is refused


def export_onnx(folder: str | Path, out: str | Path, steps: int | None = None) -> dict[str, Any]:
    """Write the policy of the checkpoint `folder` to the file `out`, and say what it is (JSON types): its
    size, and how far its actions are from torch's, relative to their range. steps: of the sampler, the
    recipe's by default. NotExportable says why a policy cannot be; CheckpointError where there is none."""
    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} to")
    local = LocalPolicy(folder, sampling_steps=steps)
    policy = local.policy
    if isinstance(policy, LeRobotPolicy):
        raise NotExportable(
            f"{policy.recipe.name} is LeRobot's: begin one of ours from it with `ulna train --start`, and "
            "export that"
        )
    _require_exportable(policy)
    program = program_of(policy, local.sampling_steps)
    keys = (*policy.observation_keys, *(k for k in policy.condition_keys if k not in policy.observation_keys))
    observation = _drawn(local, keys, 0)
    with _quietly():
        model = _graph(policy, program, observation)
    nfe = int(len(program.s) * getattr(policy.net, "evaluations", 1))
    notes = {
        METADATA: local.metadata.to_json(),
        STATS: {k: s.to_json() for k, s in policy.stats.items()},
        SAMPLING: {"noise": [program.noises, policy.recipe.horizon, policy.codec.width], "nfe": nfe},
    }
    for name, value in notes.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, json.dumps(value)
    data = sealed(model.SerializeToString())
    off = max(_difference(data, local, program, _drawn(local, keys, seed), seed) for seed in range(3))
    if not off <= TOLERANCE:
        raise NotExportable(
            f"{folder} cannot be exported: its actions would be off by {off:.2g} of their range"
        )
    new = out.with_name(f".{out.name}")
    new.write_bytes(data)
    os.replace(new, out)
    return {
        "path": str(out),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "calls": len(program.s),
        "off_by": off,
        "checkpoint": local.metadata.checkpoint,
    }


def _require_exportable(policy: Policy) -> None:
    recipe, output = policy.recipe, policy.recipe.objective.needs.output
    reasons = {
        "its network gives an energy, whose gradient no ONNX graph takes": output == "energy",
        "its network gives several chunks, of which its sampler draws one": output == "mixture",
        "its network gives codes, which its sampler draws": output == "codes",
        "its network writes tokens, one after the other": output == "tokens",
        "hooks steer its sampling": bool(recipe.steering),
        "it carries a memory from decision to decision": policy.memory_width > 0,
        "it is told what to do in words, which torch encodes": TASK in policy.condition_keys,
        "it is shown demonstrations": any(k.startswith("prompt.") for k in policy.condition_keys),
        "it wants the last command, which the first decision of an episode does not have": recipe.needs_past,
    }
    for reason, applies in reasons.items():
        if applies:
            raise NotExportable(f"{recipe.name} cannot be exported: {reason}")


class _Encode(nn.Module):
    """Observations to the tensors of their context."""

    def __init__(self, policy: Policy, keys: Sequence[str]) -> None:
        super().__init__()
        self.policy, self.keys = policy, keys

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        context = self.policy.encode(dict(zip(self.keys, values, strict=True)))
        return tuple(_parts(context).values())


class _Call(nn.Module):
    """One call of the backbone."""

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, x: Tensor, s: Tensor, t: Tensor, *parts: Tensor) -> Tensor:
        context: dict[str, Any] = dict(zip(self.names, parts, strict=True))
        return self.net(x, s, t, Context(**context)).float()


class _Decode(nn.Module):
    """A normalised chunk to the actions ahead."""

    def __init__(self, policy: Policy, keys: Sequence[str]) -> None:
        super().__init__()
        self.policy, self.keys = policy, keys

    def forward(self, x: Tensor, *values: Tensor) -> Tensor:
        observation = dict(zip(self.keys, values, strict=True))
        return self.policy.codec.decode(x, observation)[:, self.policy.recipe.n_past_actions :].float()


def _parts(context: Context) -> dict[str, Tensor]:
    values = {f.name: getattr(context, f.name) for f in fields(context)}
    return {k: v for k, v in values.items() if v is not None}


def _graph(policy: Policy, program: Program, observation: Mapping[str, Tensor]) -> Any:
    """The whole, as an ONNX model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    keys, values = list(observation), list(observation.values())
    encode = _Encode(policy, keys)
    with torch.no_grad():
        parts = _parts(policy.encode(dict(observation)))
    h, a = policy.recipe.horizon, policy.codec.width
    x, time = torch.zeros(1, h, a), torch.zeros(1)
    first = _exported(encode, values, keys, [f"context.{n}" for n in parts], "encode.")
    call = _exported(
        _Call(policy.net, list(parts)),
        [x, time, time.clone(), *parts.values()],
        ["call.x", "call.s", "call.t", *(f"context.{n}" for n in parts)],
        ["call.answer"],
        "call.",
    )
    last = _exported(_Decode(policy, keys), [x, *values], ["decode.x", *keys], ["actions"], "decode.")

    m, k, rows = program.noises, len(program.s), program.asked.shape[1]
    constants = {
        "loop.asked": program.asked.astype(np.float32),
        "loop.clipped": program.clipped.astype(np.float32),
        "loop.s": program.s.astype(np.float32),
        "loop.t": program.t.astype(np.float32),
        "loop.lowest": program.lowest.astype(np.float32),
        "loop.highest": program.highest.astype(np.float32),
        "loop.chunk": program.chunk.astype(np.float32)[None],
        "loop.calls": np.array(k, np.int64),
        "loop.go": np.array(True),
        "loop.empty": np.zeros((rows - m, h * a), np.float32),
        "loop.flat": np.array([m, h * a], np.int64),
        "loop.row": np.array([1, h * a], np.int64),
        "loop.one": np.array([1], np.int64),
        "loop.shape": np.array([1, h, a], np.int64),
        "loop.first": np.array([[m]], np.int64),
        "loop.stride": np.array([[2]], np.int64),
    }

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, list(inputs), [output], name=output, **attributes)

    body = [
        # one row each of the tables, by the number of the call
        *(node("Gather", [f"loop.{n}", "body.i"], f"body.{n}") for n in ("asked", "s", "t")),
        node("Unsqueeze", ["body.asked", "zero"], "body.weights"),
        node("MatMul", ["body.weights", "body.values"], "body.flat"),
        node("Reshape", ["body.flat", "loop.shape"], "call.x"),
        node("Reshape", ["body.s", "loop.one"], "call.s"),
        node("Reshape", ["body.t", "loop.one"], "call.t"),
        *call.graph.node,
        node("Reshape", ["call.answer", "loop.row"], "body.answer"),
        node("Mul", ["body.i", "loop.stride"], "body.offset"),
        node("Add", ["body.offset", "loop.first"], "body.place"),
        node("ScatterND", ["body.values", "body.place", "body.answer"], "body.answered"),
    ]
    after = "body.answered"
    if program.clips:
        after = "body.clipped.values"
        body += [
            *(node("Gather", [f"loop.{n}", "body.i"], f"body.{n}") for n in ("clipped", "lowest", "highest")),
            node("Unsqueeze", ["body.clipped", "zero"], "body.clipped.weights"),
            node("MatMul", ["body.clipped.weights", "body.answered"], "body.clipped.flat"),
            node("Max", ["body.clipped.flat", "body.lowest"], "body.clipped.above"),
            node("Min", ["body.clipped.above", "body.highest"], "body.clipped.within"),
            node("Add", ["body.place", "one"], "body.clipped.place"),
            node("ScatterND", ["body.answered", "body.clipped.place", "body.clipped.within"], after),
        ]
    body.append(node("Identity", ["body.go"], "body.on"))
    constants |= {"zero": np.array([0], np.int64), "one": np.array([[1]], np.int64)}
    value = helper.make_tensor_value_info
    loop = helper.make_graph(
        body,
        "step",
        [
            value("body.i", TensorProto.INT64, []),
            value("body.go", TensorProto.BOOL, []),
            value("body.values", TensorProto.FLOAT, [rows, h * a]),
        ],
        [value("body.on", TensorProto.BOOL, []), value(after, TensorProto.FLOAT, [rows, h * a])],
    )
    nodes = [
        *first.graph.node,
        node("Reshape", ["noise", "loop.flat"], "loop.noise"),
        node("Concat", ["loop.noise", "loop.empty"], "loop.begin", axis=0),
        node("Loop", ["loop.calls", "loop.go", "loop.begin"], "loop.end", body=loop),
        node("MatMul", ["loop.chunk", "loop.end"], "loop.result"),
        node("Reshape", ["loop.result", "loop.shape"], "decode.x"),
        *last.graph.node,
    ]
    weights = [w for part in (first, call, last) for w in part.graph.initializer]
    graph = helper.make_graph(
        nodes,
        policy.recipe.name,
        [value("noise", TensorProto.FLOAT, [m, 1, h, a]), *_inputs(first, last, keys)],
        list(last.graph.output),
        [*weights, *(numpy_helper.from_array(v, n) for n, v in constants.items())],
    )
    imports = {o.domain: max(o.version, 1) for part in (first, call, last) for o in part.opset_import}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(d, v) for d, v in imports.items()],
        producer_name="ulna",
        ir_version=max(p.ir_version for p in (first, call, last)),
    )
    onnx.checker.check_model(model)
    return model


def _inputs(first: Any, last: Any, keys: Sequence[str]) -> list[Any]:
    known = {i.name: i for part in (last, first) for i in part.graph.input}
    return [known[k] for k in keys]


def _exported(
    module: nn.Module, values: Sequence[Tensor], inputs: Sequence[str], outputs: Sequence[str], prefix: str
) -> Any:
    """PyTorch's export of a module, every other name of it under `prefix`."""
    from onnx import inliner

    try:
        program = torch.onnx.export(
            module.eval(),
            tuple(values),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except Exception as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [""])[0]
        raise NotExportable(f"PyTorch cannot export its {prefix[:-1]} part: {reason[:300]}") from error
    assert program is not None
    model = program.model_proto
    if model.functions:
        model = inliner.inline_local_functions(model)
    kept = {*inputs, *outputs}
    named = {i.name for i in model.graph.input} | {o.name for o in model.graph.output}
    assert named <= kept, named
    _rename(model.graph, prefix, kept)
    return model


def _rename(graph: Any, prefix: str, kept: set[str]) -> None:
    """In place, subgraphs and all."""

    def new(name: str) -> str:
        return name if not name or name in kept else prefix + name

    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new(value.name)
    for node in graph.node:
        node.name = prefix + node.name
        for names in (node.input, node.output):
            names[:] = [new(n) for n in names]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, prefix, kept)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """PyTorch's exporter speaks to its own developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _drawn(local: LocalPolicy, keys: Sequence[str], seed: int) -> dict[str, Tensor]:
    """An observation within what the policy has seen, `(1, T, *shape)`, or `(1, *shape)` of a goal. What may
    be left out is NaN, as nobody told it, but ones for odd seeds."""
    told = 1 if seed % 2 else np.nan
    optional = {k: np.full(f.shape, told, f.dtype) for k, f in local.metadata.optional.items()}
    values = {**optional, **local.drawn(seed).observation}
    return {k: torch.from_numpy(np.asarray(values[k]))[None] for k in keys}


def _difference(
    data: bytes, local: LocalPolicy, program: Program, observation: Mapping[str, Tensor], seed: int
) -> float:
    """The largest, of the range of each action."""
    import onnxruntime

    from ..sampler import Noise

    policy = local.policy
    shape = (1, policy.recipe.horizon, policy.codec.width)
    draw = Noise([seed], shape, 1, torch.device("cpu"))
    noise = torch.stack([draw.step() for _ in range(program.noises)])
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    feeds = {"noise": noise.numpy(), **{k: v.numpy() for k, v in observation.items()}}
    wanted = {i.name for i in session.get_inputs()}
    actions = session.run(["actions"], {k: v for k, v in feeds.items() if k in wanted})[0]
    sampled = policy.sample(Request(dict(observation), seed), (), local.sampling_steps)
    expected = sampled.chunk[:, local.metadata.n_past_actions :].numpy()
    span = np.maximum(policy.stats["action"].max - policy.stats["action"].min, 1e-6)
    return float(np.max(np.abs(actions - expected) / span))
