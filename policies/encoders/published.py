"""What sees by weights that others trained: from a file or a folder where one is named, else from random
ones, which training says and the checkpoint records."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Published(nn.Module):
    """A network with the buffer `digest`, `(32,)` uint8: of the files that its weights began with, 0 for
    random ones."""

    def __init__(self) -> None:
        super().__init__()
        self.digest: Tensor
        self.register_buffer("digest", torch.zeros(32, dtype=torch.uint8))

    def begin(self) -> str:  # pragma: no cover
        """Take the published weights, where some are named; says in a sentence what it has. ValueError where
        they do not fit, before any is changed."""
        raise NotImplementedError

    def stamp(self, sha256: bytes) -> None:
        """Keep of what files the weights are."""
        self.digest.copy_(torch.frombuffer(bytearray(sha256), dtype=torch.uint8))

    def came_from(self) -> str:
        """SHA-256 of the files that its weights began with, in hex; `random` where there were none."""
        return bytes(self.digest.tolist()).hex() if bool(self.digest.any()) else "random"


def pretrained(policy: nn.Module) -> dict[str, str]:
    """For each such network in a policy, by its name there, what its weights began with."""
    return {n: m.came_from() for n, m in policy.named_modules() if isinstance(m, Published)}
