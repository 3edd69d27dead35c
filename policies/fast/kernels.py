"""Kernels of Triton for networks of few rows: one decision multiplies a few dozen rows with matrices of
millions of weights, so what counts is how fast the weights are read, and how many kernels follow each other.

A convolution over the chunk is a matrix product whose columns are the neighbours of each action, gathered
while it is multiplied; the columns are split among blocks, so that all of the chip reads, and the sums of the
parts are made by the kernel that follows, with bias, normalisation, activation, FiLM and residual. Products
are of three TF32 parts, which is float32's accuracy. Activations are rows `(B·H, C)`, channels last.

Legend: B batch, H actions of a chunk, R = B·H rows, C channels, S parts."""
# how a kernel is launched has no types:
# pyright: reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor, nn

BLOCK = 64  # columns that are multiplied at a time
PROGRAMS = 264  # blocks of a convolution: two for each of an H100's processors
MOST_PARTS = 16
DEEPEST = 1024  # columns that one block multiplies at once


@triton.jit
def _mish(x):
    e = tl.exp(tl.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@triton.jit
def _activated(x, NAME: tl.constexpr):
    if NAME == "mish":
        x = _mish(x)
    elif NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit(do_not_specialize=["h_in", "h_out", "stride", "taps", "parts", "parts_skip"])
def _convolve(
    x,
    w,
    w_skip,
    out,
    rows,
    n,
    c,
    h_in,
    h_out,
    stride,
    taps,
    parts,
    parts_skip,
    x_stride,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
):
    at = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    part = tl.program_id(1)
    out += part * rows * n
    pad = taps // 2
    if part >= parts:  # of the other convolution, of one tap, whose parts come after
        w = w_skip
        part -= parts
        parts = parts_skip
        taps = 1
        pad = 0
    r = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    b = r // h_out
    first = (r - b * h_out) * stride - pad
    base = b * h_in
    total = tl.zeros((WIDE, ROWS), tl.float32)
    columns = c * taps
    blocks = (columns + DEEP - 1) // DEEP
    each = (blocks + parts - 1) // parts
    for i in range(part * each, tl.minimum((part + 1) * each, blocks)):
        k = i * DEEP + tl.arange(0, DEEP)
        if ALIGNED:
            tap = (i * DEEP) // c
            channel = i * DEEP - tap * c + tl.arange(0, DEEP)
            place = first[:, None] + tap + tl.zeros((1, DEEP), tl.int32)
            ok = (place >= 0) & (place < h_in) & (r < rows)[:, None]
            weight = tl.load(w + at[:, None] * columns + k[None, :], (at < n)[:, None], 0.0)
        else:
            each_tap = k // c
            channel = k - each_tap * c
            place = first[:, None] + each_tap[None, :]
            ok = (place >= 0) & (place < h_in) & (r < rows)[:, None] & (k < columns)[None, :]
            inside = (at < n)[:, None] & (k < columns)[None, :]
            weight = tl.load(w + at[:, None] * columns + k[None, :], inside, 0.0)
        value = tl.load(x + (base[:, None] + place) * x_stride + channel[None, :], ok, 0.0)
        total = tl.dot(weight, tl.trans(value), total, input_precision="tf32x3")
    inside = (at < n)[:, None] & (r < rows)[None, :]
    tl.store(out + r[None, :] * n + at[:, None], total, inside)


@triton.jit(do_not_specialize=["rows", "add_rows"])
def _product(
    x,
    w,
    bias,
    add,
    norm_weight,
    norm_bias,
    out,
    rows,
    n,
    c,
    eps,
    x_stride,
    add_stride,
    add_rows,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    SPLIT: tl.constexpr,
    DEEP: tl.constexpr,
):
    at = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split = tl.arange(0, SPLIT)[:, None, None] * DEEP
    k = split + tl.arange(0, DEEP)[None, :, None]
    ok = (k < c) & (r < rows)[None, None, :]
    value = tl.load(x + r[None, None, :] * x_stride + k, ok, 0.0)  # (SPLIT, DEEP, ROWS)
    k_w = split + tl.arange(0, DEEP)[None, None, :]
    ok_w = (k_w < c) & (at < n)[None, :, None]
    weight = tl.load(w + at[None, :, None] * c + k_w, ok_w, 0.0)  # (SPLIT, WIDE, DEEP)
    if BEFORE == "mish":
        value = _mish(value)
    elif BEFORE == "norm":
        mean = tl.sum(tl.sum(value, 1), 0) / c
        d = tl.where(ok, value - mean[None, None, :], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(tl.sum(d * d, 1), 0) / c + eps)
        g = tl.load(norm_weight + k, k < c, 0.0)
        o = tl.load(norm_bias + k, k < c, 0.0)
        value = tl.where(ok, d * scale[None, None, :] * g + o, 0.0)
    # each part of the columns has its own warps
    total = tl.sum(tl.dot(weight, value, input_precision="tf32x3"), 0)
    inside = (at < n)[:, None] & (r < rows)[None, :]
    if BIAS:
        total += tl.load(bias + at, at < n, 0.0)[:, None]
    total = _activated(total, AFTER)
    if ADD:
        total += tl.load(add + (r % add_rows)[None, :] * add_stride + at[:, None], inside, 0.0)
    tl.store(out + r[None, :] * n + at[:, None], total, inside)


@triton.jit
def _finish(
    parts,
    bias,
    weight,
    offset,
    film,
    told,
    more,
    more_bias,
    out,
    rows,
    n,
    h,
    group,
    eps,
    film_stride,
    told_stride,
    more_stride,
    out_stride,
    PARTS: tl.constexpr,
    NORM: tl.constexpr,
    FILM: tl.constexpr,
    MORE: tl.constexpr,
    MORE_BIAS: tl.constexpr,
    FOLD: tl.constexpr,
    H: tl.constexpr,
    GROUP: tl.constexpr,
):
    b = tl.program_id(1)
    j = tl.arange(0, GROUP)
    c = tl.program_id(0) * group + j
    t = tl.arange(0, H)
    row = b * h + t
    ok_c = (j < group) & (c < n)
    ok = (t < h)[:, None] & ok_c[None, :]
    total = tl.zeros((H, GROUP), tl.float32)
    for s in tl.static_range(PARTS):
        total += tl.load(parts + (s * rows + row)[:, None] * n + c[None, :], ok, 0.0)
    total += tl.load(bias + c, ok_c, 0.0)[None, :]
    if NORM:
        count = h * group
        mean = tl.sum(tl.sum(tl.where(ok, total, 0.0), 1), 0) / count
        d = tl.where(ok, total - mean, 0.0)
        variance = tl.sum(tl.sum(d * d, 1), 0) / count
        y = d / tl.sqrt(variance + eps)
        y = y * tl.load(weight + c, ok_c, 0.0)[None, :] + tl.load(offset + c, ok_c, 0.0)[None, :]
        total = _mish(y)
    if FILM:
        film += b * film_stride + c
        told += b * told_stride + c
        scale = tl.load(film, ok_c, 0.0) + tl.load(told, ok_c, 0.0)
        shift = tl.load(film + n, ok_c, 0.0) + tl.load(told + n, ok_c, 0.0)
        total = total * scale[None, :] + shift[None, :]
    for s in tl.static_range(MORE):
        total += tl.load(more + (s * rows + row)[:, None] * more_stride + c[None, :], ok, 0.0)
    if MORE_BIAS:
        total += tl.load(more_bias + c, ok_c, 0.0)[None, :]
    place = c // (n // FOLD)
    at_out = (row[:, None] * FOLD + place[None, :]) * out_stride + (c - place * (n // FOLD))[None, :]
    tl.store(out + at_out, total, ok)


@triton.jit
def _attend(
    q,
    first,
    rest,
    mask,
    out,
    h,
    s,
    scale,
    q_stride,
    first_stride,
    rest_stride,
    value_at,
    out_stride,
    mask_b,
    FIRST: tl.constexpr,
    MASK: tl.constexpr,
    H: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
):
    b, head = tl.program_id(0), tl.program_id(1)
    i, j, d = tl.arange(0, H), tl.arange(0, S), head * D + tl.arange(0, D)
    query = tl.load(q + (b * h + i)[:, None] * q_stride + d[None, :], (i < h)[:, None], 0.0)
    at = (b * (s - FIRST) + j - FIRST)[:, None] * rest_stride + d[None, :]
    ok = ((j >= FIRST) & (j < s))[:, None]
    key = tl.load(rest + at, ok, 0.0)
    value = tl.load(rest + at + value_at, ok, 0.0)
    if FIRST:
        at = b * first_stride + d[None, :] + tl.zeros((S, 1), tl.int32)
        key += tl.load(first + at, (j == 0)[:, None], 0.0)
        value += tl.load(first + at + value_at, (j == 0)[:, None], 0.0)
    score = tl.dot(query, tl.trans(key), input_precision="tf32x3") * scale
    seen = (j < s)[None, :] & (i < H)[:, None]
    if MASK:
        seen = seen & (
            tl.load(mask + b * mask_b + i[:, None] * s + j[None, :], (i < h)[:, None] & (j < s)[None, :], 0)
            != 0
        )
    score = tl.where(seen, score, -1e30)
    share = tl.where(seen, tl.exp(score - tl.max(score, 1)[:, None]), 0.0)
    share = share / tl.maximum(tl.sum(share, 1), 1e-30)[:, None]
    tl.store(
        out + (b * h + i)[:, None] * out_stride + d[None, :],
        tl.dot(share, value, input_precision="tf32x3"),
        (i < h)[:, None],
    )


@dataclass(frozen=True)
class Parts:
    """A sum that is not summed yet, `(S, R, C)`, and what is to be added to each row, `(C,)`."""

    values: Tensor
    bias: Tensor


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    before: nn.LayerNorm | str = "",
    after: str = "",
    add: Tensor | None = None,
) -> Tensor:
    """`(R, N)`: the rows `(R, C)` times the weights `(N, C)`, plus the bias `(N,)`.

    before: a layer normalisation of the rows, or "mish". after: "mish" or "gelu", of the result; then `add`
    `(R or H, N)` is added, again for every chunk where it has H rows. Of more than `DEEPEST` columns before
    must be "" or "mish", after "" and add of R rows."""
    (rows, c), n = x.shape, len(weight)
    if c > DEEPEST:
        x = nn.functional.mish(x) if before == "mish" else x
        return finish(convolution(x, weight[:, None], bias, 1)[0], 1, add=add)
    out = x.new_empty(rows, n)
    block, wide = max(16, min(64, triton.next_power_of_2(rows))), 16
    split = max(1, min(8, triton.next_power_of_2(c) // 32))
    norm = before if isinstance(before, nn.LayerNorm) else None
    _product[(-(-n // wide), -(-rows // block))](
        x,
        weight,
        bias,
        x if add is None else add,
        x if norm is None else norm.weight,
        x if norm is None else norm.bias,
        out,
        rows,
        n,
        c,
        0.0 if norm is None else norm.eps,
        x.stride(0),
        0 if add is None else add.stride(0),
        1 if add is None else len(add),
        BEFORE=before if isinstance(before, str) else "norm",
        AFTER=after,
        BIAS=True,
        ADD=add is not None,
        ROWS=block,
        WIDE=wide,
        SPLIT=split,
        DEEP=max(16, triton.next_power_of_2(c) // split),
        num_warps=4 if c <= 256 else 8,
    )
    return out


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    length: int,
    stride: int = 1,
    skip: tuple[Tensor, Tensor] | None = None,
) -> tuple[Parts, Parts | None]:
    """A convolution over chunks of `length` rows, padded by taps // 2 rows of zeros, for `finish` to sum; and
    beside it another of one tap, from its weights `(N, 1, C)` and bias. The weights are `(N, taps, C)`."""
    (n, taps, c), h_out = weight.shape, (length + 2 * (weight.shape[1] // 2) - weight.shape[1]) // stride + 1
    rows, wide = len(x) // length * h_out, 64 if n >= 64 else 16
    block = max(16, min(64, triton.next_power_of_2(rows)))
    each = -(-taps * c // BLOCK)
    share = max(1, min(PROGRAMS // -(-n // wide), each // 2, MOST_PARTS))
    count = 1 << (share.bit_length() - 1)  # powers of 2: fewer kernels to compile
    beside = 0 if skip is None else max(1, count // taps)
    out = x.new_empty(count + beside, rows, n)
    _convolve[(-(-n // wide), count + beside, -(-rows // block))](
        x,
        weight,
        weight if skip is None else skip[0],
        out,
        rows,
        n,
        c,
        length,
        h_out,
        stride,
        taps,
        count,
        beside,
        x.stride(0),
        ALIGNED=c % BLOCK == 0,
        ROWS=block,
        WIDE=wide,
        DEEP=BLOCK,
        num_warps=4,
        num_stages=4,
    )
    return Parts(out[:count], bias), None if skip is None else Parts(out[count:], skip[1])


def finish(
    of: Parts,
    length: int,
    norm: tuple[Tensor, Tensor, float, int] | None = None,
    film: tuple[Tensor, Tensor] | None = None,
    add: Parts | Tensor | None = None,
    out: Tensor | None = None,
    fold: int = 1,
) -> Tensor:
    """`(R, C)`: the sum of the parts.

    norm: then its group normalisation over chunks of `length` rows (weight, offset, epsilon, groups) and
    Mish. film: then times and plus the halves of the sum of both, `(B or 1, 2·C)` and `(B, 2·C)`. add: then
    plus another. Written to `out` where it is given, each row as `fold` rows."""
    values, n = of.values, of.values.shape[2]
    rows = values.shape[1]
    out = values.new_empty(rows * fold, n // fold) if out is None else out
    weight, offset, eps, groups = norm or (of.bias, of.bias, 0.0, max(1, n // 64))
    group = -(-n // groups)
    more: Tensor | None
    more, more_bias, more_parts = None, None, 0
    if isinstance(add, Parts):
        more, more_bias, more_parts = add.values, add.bias, len(add.values)
    elif add is not None:
        more, more_parts = add, 1
    _finish[(-(-n // group), rows // length)](
        values,
        of.bias,
        weight,
        offset,
        *(film or (values, values)),
        values if more is None else more,
        values if more_bias is None else more_bias,
        out,
        rows,
        n,
        length,
        group,
        eps,
        film[0].stride(0) if film and len(film[0]) > 1 else 0,
        film[1].stride(0) if film else 0,
        0 if more is None else more.stride(-2),
        out.stride(0),
        PARTS=len(values),
        NORM=norm is not None,
        FILM=film is not None,
        MORE=more_parts,
        MORE_BIAS=more_bias is not None,
        FOLD=fold,
        H=triton.next_power_of_2(length),
        GROUP=triton.next_power_of_2(group),
        num_warps=8,
    )
    return out


def attend(
    q: Tensor,
    memory: Tensor,
    value_at: int,
    heads: int,
    length: int,
    first: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`(R, D)`: attention of the rows of each chunk of `length` to the rows of `memory`, whose keys begin at
    element 0 and whose values at `value_at`. first: `(B, …)` likewise, a row before them in each chunk's
    memory. mask: `(B or 1, length, S)` uint8, 0 where an action does not see."""
    batch, width = len(q) // length, q.shape[1]
    s = len(memory) // batch + (first is not None)
    out = q.new_empty(len(q), width)
    _attend[(batch, heads)](
        q,
        memory if first is None else first,
        memory,
        memory if mask is None else mask,
        out,
        length,
        s,
        (width // heads) ** -0.5,
        q.stride(0),
        0 if first is None or len(first) == 1 else first.stride(0),
        memory.stride(0),
        value_at,
        out.stride(0),
        0 if mask is None or len(mask) == 1 else mask.stride(0),
        FIRST=int(first is not None),
        MASK=mask is not None,
        H=max(16, triton.next_power_of_2(length)),
        S=max(16, triton.next_power_of_2(s)),
        D=width // heads,
        num_warps=4,
    )
    return out
