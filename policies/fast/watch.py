"""Whether a computation on a device can be repeated as a CUDA graph: one run of it is watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)  # the processor must know a value
PLACES = ("index", "index_put", "index_put_", "_index_put_impl_")
COPIES = ("_to_copy", "copy_")


def watched[T](run: Callable[[], T], device: torch.device, *, draws: bool, grad: bool) -> tuple[T, str]:
    """(what `run` gives, why a CUDA graph of it would not repeat it; "" where it would).

    It would not where the processor waits for a value of the device, or gives it one of its own. draws:
    torch's own generator of the device may be drawn from; every other one would stay where it was when the
    graph was made. grad: gradients may be asked for."""
    calls, operations = _Calls(device, grad), _Operations(device, draws)
    with calls, operations:
        result = run()
    return result, calls.reason or operations.reason


class _Operations(TorchDispatchMode):
    def __init__(self, device: torch.device, draws: bool) -> None:
        super().__init__()
        self.device, self.draws, self.reason = device, draws, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.reason:
            self.reason = self._reason(func, args, kwargs or {}, tree_leaves(out))
        return out

    def _reason(self, func: Any, args: Any, kwargs: Any, gives: list[Any]) -> str:
        given = tree_leaves((args, kwargs))
        tensors = [v for v in given if isinstance(v, Tensor)]
        there = {v.device.type == self.device.type for v in tensors}
        name = func.overloadpacket.__name__
        if name in PLACES:  # a mask's count of rows is read, whole numbers stay where they are
            masks = any(v.dtype in (torch.bool, torch.uint8) for v in tensors[1:])
            return f"{name} reads a value" if masks or len(there) > 1 else ""
        if True in there and any(tag in func.tags for tag in READS):
            return f"{name} reads a value"
        if torch.Tag.nondeterministic_seeded in func.tags and _chance(func, args, kwargs) > 0:
            generator = [v for v in given if isinstance(v, torch.Generator)]
            there = {v.device.type == self.device.type for v in gives if isinstance(v, Tensor)}
            if generator or not self.draws or False in there:
                return f"{name} draws numbers"
        if name in COPIES:
            ends = {v.device.type for v in (*given[:2], *gives) if isinstance(v, Tensor) and v.numel()}
            if len(ends) > 1:
                return f"{name} goes between processor and device"
        return ""


class _Calls(TorchFunctionMode):
    def __init__(self, device: torch.device, grad: bool) -> None:
        super().__init__()
        self.device, self.grad, self.reason = device, grad, ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and isinstance(out, Tensor):
            new = not (args and isinstance(args[0], Tensor))
            if new and out.device.type == self.device.type and out.device.type != "cpu":
                self.reason = self.reason or "torch.tensor goes between processor and device"
        if not self.grad and func is torch._C._set_grad_enabled and args and args[0]:
            self.reason = self.reason or "a gradient is asked for"
        return out


def _chance(func: Any, args: Any, kwargs: Any) -> float:
    """Of the dropout within an attention; 1 for other operations that draw."""
    names = [a.name for a in func._schema.arguments]
    if "dropout_p" not in names:
        return 1.0
    at = names.index("dropout_p")
    return float(args[at] if at < len(args) else kwargs.get("dropout_p", 0.0))
