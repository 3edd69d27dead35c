"""Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) of texts of whole numbers: the pair of tokens
that occurs most often becomes a token, and so on. A text is written with the oldest pairs first, each
wherever it stands, from the left."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

Pairs = tuple[tuple[int, int], ...]
FEWEST = 2  # times that a pair must occur to become a token


def fitted(texts: Sequence[Sequence[int]], alphabet: int, vocabulary: int) -> Pairs:
    """The pairs, at most `vocabulary - alphabet`, the most frequent first; of equals the smaller numbers.
    Pair i is the token `alphabet + i`. Texts hold numbers below `alphabet`."""
    rows = [list(text) for text in texts]
    counts: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = defaultdict(set)
    for i, row in enumerate(rows):
        counts.update(pairwise(row))
        for pair in set(pairwise(row)):
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in counts.items()]
    heapq.heapify(heap)
    pairs: list[tuple[int, int]] = []
    while heap and len(pairs) < vocabulary - alphabet:
        n, pair = heapq.heappop(heap)
        if counts[pair] != -n:  # it has changed since, and stands in the heap as it is now, too
            continue
        if -n < FEWEST:
            break
        token = alphabet + len(pairs)
        pairs.append(pair)
        changed: set[tuple[int, int]] = set()
        for i in sorted(where[pair]):
            before = Counter(pairwise(rows[i]))
            rows[i] = _joined(rows[i], pair, token)
            after = Counter(pairwise(rows[i]))
            for p in (before - after) | (after - before):
                counts[p] += after[p] - before[p]
                (where[p].add if after[p] else where[p].discard)(i)
                changed.add(p)
        for p in changed:
            if counts[p] > 0:
                heapq.heappush(heap, (-counts[p], p))
    return tuple(pairs)


def encoded(text: Sequence[int], ranks: Mapping[tuple[int, int], int], alphabet: int) -> list[int]:
    """The tokens of a text. ranks: pair → its number."""
    row = list(text)
    while len(row) > 1:
        rank, pair = min((ranks.get(p, len(ranks)), p) for p in pairwise(row))
        if rank == len(ranks):
            break
        row = _joined(row, pair, alphabet + rank)
    return row


def decoded(tokens: Sequence[int], pairs: Pairs, alphabet: int) -> list[int]:
    """The text that the tokens write."""
    text: list[int] = []
    stack = list(reversed(tokens))
    while stack:
        token = stack.pop()
        if token < alphabet:
            text.append(token)
        else:
            first, second = pairs[token - alphabet]
            stack += [second, first]
    return text


def _joined(row: Sequence[int], pair: tuple[int, int], token: int) -> list[int]:
    out: list[int] = []
    i = 0
    while i < len(row):
        if i + 1 < len(row) and (row[i], row[i + 1]) == pair:
            out.append(token)
            i += 2
        else:
            out.append(row[i])
            i += 1
    return out
