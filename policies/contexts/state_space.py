"""State-space layers: of a sequence one after the other with a state of fixed size, or all at once, with the
same result.

Legend: S steps of a sequence, B batch, D width, E inner width, N numbers of the state per channel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = math.log(1e-2), math.log(1.0)
"""Logarithms of the least and the most time between decisions that a channel begins with: what it sees lasts
one decision to a few hundred. (The published 1e-3 to 1e-1 are for sequences of thousands.)"""


class StateSpace(nn.Module):
    """A layer over sequences, whose state is a vector of `state` numbers that begins at zero."""

    state: int

    def forward(self, u_SBD: Tensor) -> Tensor:
        """The whole of a sequence `(S, B, D)`, from an empty state."""
        raise NotImplementedError

    def step(self, u_BD: Tensor, state_BM: Tensor) -> tuple[Tensor, Tensor]:
        """One step `(B, D)`, and the state `(B, state)` after it."""
        raise NotImplementedError


class S4D(StateSpace):
    """A linear system of each channel with a diagonal of complex poles (Gu et al. 2022, arXiv 2206.11893:
    S4D-Lin), held between steps: by FFT convolution, or as a recurrence."""

    def __init__(self, width: int, poles: int) -> None:
        super().__init__()
        self.width, self.poles, self.state = width, poles, 2 * width * poles
        self.log_decay = nn.Parameter(torch.full((width, poles), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(poles).float().repeat(width, 1))
        self.log_step = nn.Parameter(torch.empty(width).uniform_(*STEPS))
        self.c = nn.Parameter(torch.randn(width, poles, 2) / math.sqrt(2 * poles))
        self.skip = nn.Parameter(torch.randn(width))

    def discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """(the exponent of a pole in one step, by how much an input enters the state, how the state is read),
        each `(D, N)` complex."""
        a = torch.complex(-torch.exp(self.log_decay), self.frequency)
        power = a * torch.exp(self.log_step)[:, None]
        return power, (torch.exp(power) - 1) / a, torch.view_as_complex(self.c.contiguous())

    def forward(self, u_SBD: Tensor) -> Tensor:
        s = len(u_SBD)
        power, enter, c = self.discrete()
        ahead = torch.arange(s, device=u_SBD.device)
        kernel_SD = 2 * torch.einsum("dn,dns->sd", c * enter, torch.exp(power[..., None] * ahead)).real
        # twice as long, so that the end does not run into the beginning
        spectrum = torch.fft.rfft(u_SBD, 2 * s, dim=0) * torch.fft.rfft(kernel_SD, 2 * s, dim=0)[:, None]
        return torch.fft.irfft(spectrum, 2 * s, dim=0)[:s] + self.skip * u_SBD

    def step(self, u_BD: Tensor, state_BM: Tensor) -> tuple[Tensor, Tensor]:
        power, enter, c = self.discrete()
        before = torch.view_as_complex(state_BM.unflatten(1, (self.width, self.poles, 2)).contiguous())
        now = torch.exp(power) * before + enter * u_BD[..., None]
        y = 2 * (c * now).sum(-1).real + self.skip * u_BD
        return y, torch.view_as_real(now).flatten(1)


class S4Block(StateSpace):
    """S4D behind a norm, a gate after it, added to what came."""

    def __init__(self, width: int, poles: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), S4D(width, poles)
        self.out = nn.Sequential(nn.GELU(), nn.Linear(width, 2 * width), nn.GLU())
        self.state = self.inner.state

    def forward(self, u_SBD: Tensor) -> Tensor:
        return u_SBD + self.out(self.inner(self.norm(u_SBD)))

    def step(self, u_BD: Tensor, state_BM: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.inner.step(self.norm(u_BD), state_BM)
        return u_BD + self.out(y), state


class Mamba(StateSpace):
    """A selective state space (Gu and Dao 2023, arXiv 2312.00752), which chooses by what it sees what enters
    its state and for how long: by a scan of logarithmic depth, or as a recurrence. In plain torch."""

    def __init__(self, width: int, poles: int, taps: int = 4) -> None:
        super().__init__()
        inner, rank = 2 * width, max(1, width // 16)
        self.inner, self.poles, self.taps, self.rank = inner, poles, taps, rank
        self.state = inner * (taps - 1 + poles)
        self.enter, self.out = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.conv = nn.Conv1d(inner, inner, taps, groups=inner)
        self.select = nn.Linear(inner, rank + 2 * poles, bias=False)
        self.dt = nn.Linear(rank, inner)
        # the softplus of this bias gives them
        step = torch.exp(torch.empty(inner).uniform_(*STEPS))
        self.dt.bias.data.copy_(torch.log(torch.expm1(step)))
        self.log_a = nn.Parameter(torch.log(torch.arange(1, poles + 1).float()).repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))

    def forward(self, u_SBD: Tensor) -> Tensor:
        x, gate = self.enter(u_SBD).chunk(2, dim=-1)
        padded = F.pad(x.permute(1, 2, 0), (self.taps - 1, 0))
        x = F.silu(self.conv(padded)).permute(2, 0, 1)
        keep, add, read = self._selected(x)
        return self._read(scan(keep, add), read, x, gate)

    def step(self, u_BD: Tensor, state_BM: Tensor) -> tuple[Tensor, Tensor]:
        recent, before = state_BM.split([self.inner * (self.taps - 1), self.inner * self.poles], dim=1)
        x, gate = self.enter(u_BD).chunk(2, dim=-1)
        recent = torch.cat([recent.unflatten(1, (self.inner, -1)), x[..., None]], dim=2)
        x = F.silu(self.conv(recent)[..., 0])
        keep, add, read = self._selected(x)
        now = keep * before.unflatten(1, (self.inner, -1)) + add
        return self._read(now, read, x, gate), torch.cat([recent[..., 1:].flatten(1), now.flatten(1)], dim=1)

    def _selected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(what is kept of the state, what is added to it, both `(..., E, N)`, how it is read `(..., N)`)."""
        dt, b, c = self.select(x).split([self.rank, self.poles, self.poles], dim=-1)
        dt = F.softplus(self.dt(dt))[..., None]
        return torch.exp(-dt * torch.exp(self.log_a)), dt * b[..., None, :] * x[..., None], c

    def _read(self, state: Tensor, read: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        y = (state * read[..., None, :]).sum(-1) + self.skip * x
        return self.out(y * F.silu(gate))


def scan(keep: Tensor, add: Tensor) -> Tensor:
    """h of h_s = keep_s h_{s-1} + add_s along the first axis, from nothing before it, in log2(S) steps
    (Hillis and Steele 1986)."""
    reach = 1
    while reach < len(add):
        add = torch.cat([add[:reach], add[reach:] + keep[reach:] * add[:-reach]])
        keep = torch.cat([keep[:reach], keep[reach:] * keep[:-reach]])
        reach *= 2
    return add
