"""The matrices of a network, those of its linear layers, convolutions and attention, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
KINDS: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), ("weight",)),
    nn.MultiheadAttention: ATTENTION,  # its output is a linear layer of its own
}


class Matrix(NamedTuple):
    """A parameter `(rows, ...)` of which a row makes one output: flattened, a matrix. module_name: of the
    module that holds it under `name`."""

    module: nn.Module
    module_name: str
    name: str

    @property
    def full_name(self) -> str:
        """In the network's state."""
        return f"{self.module_name}.{self.name}" if self.module_name else self.name

    @property
    def value(self) -> Tensor:
        return getattr(self.module, self.name)


def matrices(network: nn.Module) -> Iterator[Matrix]:
    """Those of `network`, in its order. Not among them: transposed convolutions, whose rows are inputs,
    recurrent layers, whose weights their kernels hold together, and tables (embeddings)."""
    for module_name, module in network.named_modules():
        names = next((of for kind, of in KINDS.items() if isinstance(module, kind)), ())
        for name in names:
            if isinstance(getattr(module, name, None), Tensor):
                yield Matrix(module, module_name, name)
