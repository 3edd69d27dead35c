"""Pieces of a card: the header that the hub reads, and tables. Words of others are no markup in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...datasets.features import Features


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML header; every value is written as JSON, which YAML contains. Empty values are left out."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value]
    return "\n".join(["---", *lines, "---"])


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    lines += [" | ".join(plain(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def plain(value: Any) -> str:
    """`value` on one line, with nothing that Markdown or HTML would take for its own."""
    text = re.sub(r"\s+", " ", str(value))
    return re.sub(r"([\\`*_{}\[\]<>|~#])", r"\\\1", text)


def tag(text: str) -> str:
    """A word that the hub takes for a tag; "" where nothing is left of `text`."""
    return re.sub(r"[^\w.-]+", "-", text.lower()).strip("-")[:40]


def feature_table(features: Features) -> str:
    """Names, shapes and units."""
    rows = []
    for key, f in features.items():
        units = list(dict.fromkeys(u for u in f.units if u))
        each = f.units if len(units) > 1 else ()
        names = [f"{n} ({u})" if u else n for n, u in zip(f.names, each, strict=True)] if each else f.names
        unit = "by element" if each else units[0] if units else "not stated"
        shape = "×".join(map(str, f.shape)) or "1"
        is_picture = len(f.shape) > 1
        rows.append((key, f.dtype, shape, ", ".join(names), "pixels" if is_picture else unit))
    return table(("feature", "dtype", "shape", "names", "unit"), rows)
