"""Policies that LeRobot trained, on standard input and output: a script for the environment that LeRobot
lives in, which needs nothing of Ulna. `lerobot_arm` starts it and asks.

A message is an .npz archive behind its length in eight bytes, little endian. `order` is `load` (`checkpoint`,
its folder; `device`; `changes`, fields of the policy's config as JSON), answered by a number and what the
policy is; `decide` (`policy`, that number; observations `(B, n_obs_steps, ...)` by key, pictures uint8 HWC;
`seed` `(B,)`; `task` `(B,)`), answered by `actions` `(B, n, A)`, the first for now, and `seconds`; or `drop`
(`policy`). An answer with `error` is a sentence instead."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from typing import Any, BinaryIO

import numpy as np


def write_message(stream: BinaryIO, values: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    data = buffer.getvalue()
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def read_message(stream: BinaryIO) -> dict[str, np.ndarray] | None:
    """None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    with np.load(io.BytesIO(stream.read(int.from_bytes(head, "little"))), allow_pickle=False) as archive:
        return dict(archive)


class Policy:
    """A checkpoint of LeRobot, a `pretrained_model` folder."""

    def __init__(self, folder: str, device: str, changes: dict[str, Any]) -> None:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        config: Any = PreTrainedConfig.from_pretrained(folder)
        config.device = device
        for name, value in changes.items():
            if not hasattr(config, name):
                raise ValueError(f"LeRobot's {config.type} has no {name}")
            setattr(config, name, value)
        self.to_execute = int(getattr(config, "n_action_steps", 1))
        self.n_obs_steps = int(getattr(config, "n_obs_steps", 1))
        if config.type == "diffusion":  # it hands out the rest of its chunk, and does not mind how much
            config.n_action_steps = config.horizon - config.n_obs_steps + 1
        self.policy: Any = (
            get_policy_class(config.type).from_pretrained(folder, config=config).to(device).eval()
        )
        self.prepare, self.finish = make_pre_post_processors(
            config,
            pretrained_path=folder,
            preprocessor_overrides={"device_processor": {"device": device}},
        )
        self.config = config

    @property
    def nfe(self) -> int:
        """Network evaluations a decision."""
        if self.config.type == "diffusion":
            return int(self.policy.diffusion.num_inference_steps)
        return int(getattr(self.config, "num_inference_steps", None) or getattr(self.config, "num_steps", 1))

    def describe(self) -> dict[str, Any]:
        features = {k: list(f.shape) for k, f in self.config.input_features.items()}
        ensemble = getattr(self.config, "temporal_ensemble_coeff", None)
        about = {"n_obs_steps": self.n_obs_steps, "to_execute": self.to_execute, "nfe": self.nfe}
        return {
            **about,
            "type": self.config.type,
            "features": features,
            "ensemble": ensemble,
            "parameters": sum(p.numel() for p in self.policy.parameters()),
        }

    def decide(self, values: dict[str, np.ndarray]) -> dict[str, Any]:
        import torch

        began = time.perf_counter()
        seeds = values.pop("seed")
        batch: dict[str, Any] = {"task": [str(t) for t in values.pop("task")]}
        for key, value in values.items():
            tensor = torch.from_numpy(value)
            if value.dtype == np.uint8:
                tensor = tensor.movedim(-1, -3).float() / 255
            batch[key] = tensor[:, -1] if self.n_obs_steps == 1 else tensor
        self.policy.reset()  # no memory of another question's
        options = {}
        if self.config.type == "diffusion":
            # each chunk begins at noise of its own; what DDPM adds on the way is drawn for all together
            shape = (self.config.horizon, *self.config.action_feature.shape)
            rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
            options["noise"] = torch.stack(rows).to(self.config.device)
        torch.manual_seed(int(seeds[0]))
        with torch.no_grad():
            chunk = self.finish(self.policy.predict_action_chunk(self.prepare(batch), **options))
        actions = chunk.float().cpu().numpy()
        return {"actions": actions, "seconds": time.perf_counter() - began}


def answer(policies: dict[int, Policy], message: dict[str, np.ndarray]) -> dict[str, Any]:
    order = str(message.pop("order"))
    if order == "load":
        changes = json.loads(str(message["changes"]))
        number = max(policies, default=0) + 1
        policies[number] = Policy(str(message["checkpoint"]), str(message["device"]), changes)
        return {"policy": number, "about": json.dumps(policies[number].describe())}
    number = int(message.pop("policy"))
    if order == "drop":
        del policies[number]
        return {}
    return policies[number].decide(message)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what LeRobot prints is no answer
    policies: dict[int, Policy] = {}
    while (message := read_message(sys.stdin.buffer)) is not None:
        try:
            write_message(answers, answer(policies, message))
        except Exception as error:  # noqa: BLE001  (the other side says it)
            write_message(answers, {"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
