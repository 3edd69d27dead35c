"""Chunks of actions as few whole numbers, FAST (Pertsch et al. 2025, arXiv 2501.09747): the cosine transform
of each action over the chunk, rounded, its slow parts first, written shorter by byte-pair encoding, which is
fitted on data.

Faithful: the orthonormal transform, the rounding of `scale` times its coefficients, the order by frequency,
then by action, byte pairs. Not: the alphabet is every value that a chunk within `reach` can have, where the
released tokeniser has only those between the least and the greatest of its data.

Legend: N chunks, H horizon, A action dimensions."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import plain_json
from .byte_pairs import Pairs, decoded, encoded, fitted

SCALE = 10.0  # the paper's
VOCABULARY = 1024  # the paper's


@dataclass(frozen=True)
class ActionTokens:
    """A tokeniser of chunks `(H, A)` of actions scaled to about [-1, 1], as a codec (`policies.codec`) gives
    them. A file of it is JSON."""

    horizon: int
    width: int
    scale: float = SCALE
    """How finely coefficients are rounded: to 1 / scale."""
    reach: float = 1.0
    """Actions up to this size are within `error`; coefficients beyond it are cut."""
    pairs: Pairs = ()
    """Of tokens that become one, the oldest first."""

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.width < 1 or not self.scale > 0 or not 0 < self.reach < math.inf:
            raise ValueError(
                f"tokens need a horizon and a width of at least 1, a scale and a reach above 0, not "
                f"{self.horizon}, {self.width}, {self.scale:g} and {self.reach:g}"
            )
        for i, pair in enumerate(self.pairs):
            if not all(0 <= t < self.alphabet + i for t in pair):
                raise ValueError(f"pair {i} of the tokens is {list(pair)}: there are only those before it")

    @staticmethod
    def fit(
        chunks_NHA: np.ndarray,
        vocabulary: int = VOCABULARY,
        scale: float = SCALE,
        reach: float | None = None,
    ) -> ActionTokens:
        """The tokeniser of at most `vocabulary` tokens for chunks like these, all the same for the same
        chunks. reach: None: theirs, at least 1. ValueError where they are not finite, or the vocabulary is
        smaller than the alphabet."""
        if chunks_NHA.ndim != 3 or not len(chunks_NHA) or not np.isfinite(chunks_NHA).all():
            raise ValueError(f"tokens are fitted on finite chunks (N, H, A), not on {chunks_NHA.shape}")
        _, h, a = chunks_NHA.shape
        reach = float(max(1.0, np.abs(chunks_NHA).max())) if reach is None else reach
        bare = ActionTokens(h, a, scale, reach)
        if vocabulary < bare.alphabet:
            raise ValueError(
                f"a vocabulary of {vocabulary} is smaller than the {bare.alphabet} values of a coefficient: "
                "take a larger one, or a smaller scale"
            )
        texts = [bare.letters(chunk) for chunk in chunks_NHA]
        return ActionTokens(h, a, scale, bare.reach, fitted(texts, bare.alphabet, vocabulary))

    @property
    def most(self) -> int:
        """The largest coefficient, rounded: of a chunk that is `reach` all the time."""
        return round(self.scale * self.reach * math.sqrt(self.horizon))

    @property
    def alphabet(self) -> int:
        """Tokens of single coefficients, which come first."""
        return 2 * self.most + 1

    @property
    def vocabulary(self) -> int:
        return self.alphabet + len(self.pairs)

    @cached_property
    def lengths(self) -> list[int]:
        """Of each token, how many coefficients it writes."""
        lengths = [1] * self.alphabet
        for a, b in self.pairs:
            lengths.append(lengths[a] + lengths[b])
        return lengths

    @property
    def error(self) -> float:
        """How far, at most, a decoded action is from one within `reach`."""
        return float(np.abs(self._basis).sum(0).max()) * (0.5 / self.scale)

    def encode(self, chunk_HA: np.ndarray) -> list[int]:
        """The tokens of a chunk. ValueError for another shape, or values that are not finite."""
        return encoded(self.letters(chunk_HA), self._ranks, self.alphabet)

    def decode(self, tokens: Sequence[int]) -> np.ndarray:
        """The chunk `(H, A)` float32. ValueError where the tokens do not write one chunk, as those
        that a network made up may not."""
        if odd := [t for t in tokens if not 0 <= t < self.vocabulary]:
            raise ValueError(f"there is no token {odd[0]}: there are {self.vocabulary}")
        letters = decoded(tokens, self.pairs, self.alphabet)
        if len(letters) != self.horizon * self.width:
            raise ValueError(
                f"these tokens write {len(letters)} coefficients, a chunk has {self.horizon} x {self.width}"
            )
        coefficients = (np.array(letters) - self.most) / self.scale
        return (self._basis.T @ coefficients.reshape(self.horizon, self.width)).astype(np.float32)

    def letters(self, chunk_HA: np.ndarray) -> list[int]:
        """Rounded coefficients as numbers from 0, those of the slowest cosine first."""
        chunk = np.asarray(chunk_HA, np.float64)
        if chunk.shape != (self.horizon, self.width) or not np.isfinite(chunk).all():
            raise ValueError(
                f"a chunk is finite and {(self.horizon, self.width)}, as the tokens are, not {chunk.shape}"
            )
        coefficients = np.rint(self.scale * (self._basis @ chunk)).clip(-self.most, self.most)
        return (coefficients.astype(np.int64) + self.most).ravel().tolist()

    @cached_property
    def _basis(self) -> np.ndarray:
        """`(H, H)`, the orthonormal cosines (DCT-II), a row each."""
        h = self.horizon
        k, t = np.arange(h)[:, None], np.arange(h)[None]
        basis = np.sqrt(2 / h) * np.cos(np.pi * (t + 0.5) * k / h)
        basis[0] /= math.sqrt(2)
        return basis

    @cached_property
    def _ranks(self) -> dict[tuple[int, int], int]:
        return {pair: i for i, pair in enumerate(self.pairs)}

    def to_json(self) -> dict[str, Any]:
        fields = {k: getattr(self, k) for k in ("horizon", "width", "scale", "reach")}
        return {"kind": "action tokens", **fields, "pairs": [list(p) for p in self.pairs]}

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> ActionTokens:
        """The inverse. ValueError says what does not fit."""
        try:
            if d["kind"] != "action tokens":
                raise ValueError(f"it holds {d['kind']!r:.40}")
            whole = [d[k] for k in ("horizon", "width")] + [t for pair in d["pairs"] for t in pair]
            if any(type(v) is not int for v in whole) or any(len(pair) != 2 for pair in d["pairs"]):
                raise ValueError("its sizes and pairs are whole numbers")
            pairs = tuple((a, b) for a, b in d["pairs"])
            return ActionTokens(d["horizon"], d["width"], float(d["scale"]), float(d["reach"]), pairs)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it holds no action tokens: {error}") from None

    def save(self, path: Path) -> None:
        """By one rename: there is the whole file or none."""
        new = path.with_name(f".{path.name}")
        new.write_text(json.dumps(self.to_json(), allow_nan=False) + "\n")
        os.replace(new, path)

    @staticmethod
    def load(path: Path) -> ActionTokens:
        """ValueError in one sentence where the file holds none."""
        try:
            value = plain_json.loads(path.read_bytes())
            if not isinstance(value, dict):
                raise ValueError("it holds no JSON object")  # noqa: TRY004  a file said it
            return ActionTokens.from_json(value)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as action tokens: {error}") from None
