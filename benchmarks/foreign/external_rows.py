"""Gymnasium environments on standard input and output: a script for the environment of other packages that
they live in, which needs numpy alone. `external.py` starts it and asks.

    python external_rows.py MESSAGES TASK

MESSAGES: the file whose `read_message` and `write_message` say how a message is laid out, an .npz archive
behind its length. TASK: a file with `ABOUT` and `make`, see `pusht_env.py`. `order` is `about`, answered by
`about`, JSON; `reset` (`index` and `seed` `(k,)`); `step` (`index`, `action` `(k, A)`); both are answered by
`reward`, `terminated`, `truncated`, observations and `info.NAME`, `(k, ...)` each; or `expert` (`index`),
answered by `action` `(k, A)`. An answer with `error` is a sentence instead."""

from __future__ import annotations

import json
import os
import runpy
import sys

import numpy as np


class Rows:
    """Environments of a task, made when they are first reset."""

    def __init__(self, about, make):
        self.about, self.make = about, make
        self.envs, self.ticks = {}, {}

    def describe(self):
        space = self.env(0).action_space
        limits = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"about": json.dumps({**self.about, **limits})}

    def env(self, index):
        if index not in self.envs:
            self.envs[index] = self.make()
        return self.envs[index]

    def reset(self, indices, seeds):
        rows = []
        for i, seed in zip(indices, seeds):  # noqa: B905  (they may be of an older Python)
            observation, info = self.env(int(i)).reset(seed=int(seed))
            self.ticks[int(i)] = 0
            rows.append((observation, 0.0, False, False, info))
        return stacked(rows)

    def step(self, indices, actions):
        rows = []
        for i, action in zip(indices, actions):  # noqa: B905
            env = self.envs[int(i)]
            observation, reward, terminated, truncated, info = env.step(action.astype(env.action_space.dtype))
            self.ticks[int(i)] += 1
            over = truncated or self.ticks[int(i)] >= self.about["max_ticks"]
            rows.append((observation, reward, terminated, over, info))
        return stacked(rows)

    def expert(self, indices):
        return {"action": np.stack([np.asarray(self.envs[int(i)].expert(), float) for i in indices])}


def stacked(rows):
    """Of the rows that `step` of an environment gives; numbers of their info only."""
    observations, rewards, terminated, truncated, infos = zip(*rows)  # noqa: B905
    numbers = [k for k, v in infos[0].items() if isinstance(v, (bool, int, float, np.bool_, np.number))]
    return {
        **{k: np.stack([np.asarray(o[k], np.float32) for o in observations]) for k in observations[0]},
        **{f"info.{k}": np.array([float(i[k]) for i in infos]) for k in numbers},
        "reward": np.array(rewards, float),
        "terminated": np.array(terminated, bool),
        "truncated": np.array(truncated, bool),
    }


def answer(rows, message):
    order = str(message["order"])
    if order == "about":
        return rows.describe()
    if order == "reset":
        return rows.reset(message["index"], message["seed"])
    if order == "step":
        return rows.step(message["index"], message["action"])
    return rows.expert(message["index"])


def main():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what they print is no answer
    messages, task = sys.argv[1:]
    codec, rows = runpy.run_path(messages), None
    while (message := codec["read_message"](sys.stdin.buffer)) is not None:
        try:
            if rows is None:
                task = runpy.run_path(task)
                rows = Rows(task["ABOUT"], task["make"])
            codec["write_message"](answers, answer(rows, message))
        except Exception as error:  # noqa: BLE001  (the other side says it)
            codec["write_message"](answers, {"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
