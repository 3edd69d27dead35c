"""Experts in the place of a feed-forward layer, chosen by one router for each task (Sparse Diffusion Policy,
Wang et al. 2024, arXiv 2407.01531).

Legend: B batch, S tokens, D width, E experts, N routers, F hidden width of an expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST_GATE = 1e-4
FIRST_CALLS, MOMENTUM = 100, 0.99  # of the running table: a mean over the first calls, then a moving one


class TaskExperts(nn.Module):
    """`(B, S, D)` to `(B, S, D)`: the sum of the `top` experts with the largest gates, each times its gate,
    which is not renormalised. Gates are the softmax of the router of the row's task, which begins at zero:
    all experts alike. Every expert is computed, and those that are not chosen count nothing: this saves no
    arithmetic, but says which weights a task needs."""

    def __init__(self, width: int, hidden: int, experts: int, top: int, routers: int) -> None:
        super().__init__()
        self.top = top
        bound = width**-0.5
        self.enter = nn.Parameter(torch.empty(experts, width, hidden).uniform_(-bound, bound))
        self.enter_bias = nn.Parameter(torch.zeros(experts, hidden))
        bound = hidden**-0.5
        self.leave = nn.Parameter(torch.empty(experts, hidden, width).uniform_(-bound, bound))
        self.leave_bias = nn.Parameter(torch.zeros(experts, width))
        inner, bound = max(width // 4, 1), width**-0.5
        self.router_first = nn.Parameter(torch.empty(routers, width, inner).uniform_(-bound, bound))
        self.router_first_bias = nn.Parameter(torch.zeros(routers, inner))
        self.router_last = nn.Parameter(torch.zeros(routers, inner, experts))
        self.router_last_bias = nn.Parameter(torch.zeros(routers, experts))
        self.joint: Tensor  # running P(task, expert), each row the task's, divided by their number
        self.register_buffer("joint", torch.zeros(routers, experts))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(routers))

    def forward(self, x_BSD: Tensor, task_B: Tensor) -> tuple[Tensor, Tensor]:
        """(the sum, the gates `(B, S, E)` before any is left out)."""
        h = torch.einsum("bsd,bdf->bsf", x_BSD, self.router_first[task_B])
        h = nn.functional.gelu(h + self.router_first_bias[task_B][:, None])
        logits = torch.einsum("bsf,bfe->bse", h, self.router_last[task_B])
        gates = (logits + self.router_last_bias[task_B][:, None]).softmax(-1) + LEAST_GATE
        chosen = gates >= gates.topk(self.top, dim=-1).values[..., -1:]
        # of gates that are equal, as all are at first, the first ones
        chosen = chosen & (chosen.cumsum(-1) <= self.top)
        hidden = torch.einsum("bsd,edf->bsef", x_BSD, self.enter) + self.enter_bias
        hidden = nn.functional.gelu(hidden) * (gates * chosen)[..., None]
        out = torch.einsum("bsef,efd->bsd", hidden, self.leave)
        return out + (gates * chosen) @ self.leave_bias, gates

    def information(self, gates_BSE: Tensor, task_B: Tensor) -> Tensor:
        """What, made small, makes the mutual information of task and expert large: the batch's share of -I
        as a linear function of its gates, by the running table, which moves on in training. A table, since a
        batch has too few rows of a task."""
        n = len(self.joint)
        mean_BE = gates_BSE.float().mean(1)
        mean_BE = mean_BE / mean_BE.sum(-1, keepdim=True)
        one_BN = nn.functional.one_hot(task_B, n).to(mean_BE)
        count_N = one_BN.sum(0)
        present = count_N > 0
        rows_NE = (one_BN.T @ mean_BE) / count_N.clamp(min=1)[:, None]
        with torch.no_grad():
            calls = self.calls + present
            share = torch.where(calls <= FIRST_CALLS, 1 / calls.clamp(min=1), 1 - MOMENTUM)[:, None]
            table = torch.where(present[:, None], self.joint + share * (rows_NE - self.joint), self.joint)
            if self.training:
                self.joint.copy_(table)
                self.calls.copy_(calls)
            known = (calls > 0).to(table)[:, None]
            joint = known * table / known.sum().clamp(min=1)
            marginal = joint.sum(0, keepdim=True)
            slope = (marginal + 1e-9).log() - (joint + 1e-9).log()
        return (rows_NE * slope * present[:, None]).sum() / known.sum().clamp(min=1)
