"""A task by its number: the policy knows the tasks of its data one by one, and no words.

Legend: B batch, D width."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.features import Features
from ..request import TASK
from ..serving.protocol import BadRequest
from .condition import ConditionNet, OfTask


@dataclass(frozen=True)
class Task(OfTask):
    """Each instruction of the data is a number, in the order in which they were learned, and has a vector of
    its own; networks with parts for each task, such as `SparseTransformer`, are told the number. One that
    the data did not have counts as not told. A training that starts from a checkpoint goes on with its
    numbers, and gives new tasks the next ones."""

    most: int = 16
    """Tasks that there is room for."""
    drop: float = 0.0
    """Share of the training rows that are not told, 0 to 1."""

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        return TaskNet(self.most, width)


class TaskNet(ConditionNet):
    n_tokens = 1

    def __init__(self, most: int, width: int) -> None:
        super().__init__()
        self.most = most
        self.known: Tensor  # of each task a digest of its words; 0: none yet
        self.register_buffer("known", torch.zeros(most, dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_forget)
        self.numbers: dict[int, int] | None = None  # of each digest, so that the device is not asked for it
        self.table = nn.Embedding(1 + most, width)

    def learn(self, tasks: Iterable[str]) -> None:
        """Give a number to each of the tasks that has none. ValueError where there is no room."""
        known = self.known.tolist()
        for number in dict.fromkeys(digest(task) for task in tasks if task.strip()):
            if number in known:
                continue
            if 0 not in known:
                raise BadRequest(
                    f"there are more tasks than the {self.most} that the policy has room for: train with "
                    f"--conditions.Task.most {2 * self.most}"
                )
            known[known.index(0)] = number
        self.known.copy_(torch.tensor(known))
        self.numbers = None

    def task(self, observation: Mapping[str, Any]) -> Tensor:
        digests = [digest(task) if task.strip() else 0 for task in observation[TASK]]
        if self.training and not {0, *self._numbers()} >= {*digests}:
            self.learn(observation[TASK])  # nobody has said before which there are
        tasks = [self._numbers().get(number, 0) for number in digests]
        return torch.tensor(tasks, device=self.known.device)

    def _numbers(self) -> dict[int, int]:
        if self.numbers is None:
            self.numbers = {number: i + 1 for i, number in enumerate(self.known.tolist()) if number}
        return self.numbers

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        task = self.task(observation)
        return self.table(task)[:, None], (task > 0)[:, None]


def _forget(net: Any, *_: Any) -> None:
    net.numbers = None


def digest(task: str) -> int:
    """63 bits of the words in lower case, above 0."""
    words = " ".join(task.lower().split())
    return 1 + int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") // 2 % ((1 << 63) - 2)


def know_tasks(policy: nn.Module, tasks: Iterable[str]) -> None:
    """Number `tasks` in the conditions of `policy` that number them."""
    for module in policy.modules():
        if isinstance(module, TaskNet):
            module.learn(tasks)
