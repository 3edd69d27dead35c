"""Reads parquet files of others: tables, and columns as arrays of one shape and dtype."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import Feature

MOST_BYTES = 1 << 33  # of the columns that are read of one file


def column_names(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    with _readable(path):
        return pq.read_schema(path).names


def row_count(path: Path) -> int:
    import pyarrow.parquet as pq

    with _readable(path):
        return pq.read_metadata(path).num_rows


def read(path: Path, columns: Sequence[str] | None = None, episode: int | None = None) -> Any:
    """The table in `path`, of these columns, or only its rows of one episode. Raises StoreError."""
    import pyarrow.parquet as pq

    only = None if episode is None else [("episode_index", "==", episode)]
    with _readable(path):
        _require_size(path, pq.read_metadata(path), columns)
        return pq.read_table(path, columns=None if columns is None else list(columns), filters=only)


def episode_rows(path: Path, table: Any, episode: int) -> Any:
    """The rows of one episode of a `table` that was read from `path` for several. Raises StoreError."""
    import pyarrow.compute as pc

    with _readable(path):
        return table.filter(pc.field("episode_index") == episode)


def first_value(path: Path, column: str) -> Any:
    """The first entry of a column, as pyarrow has it; None where the file has no rows. Raises StoreError."""
    import pyarrow.parquet as pq

    with _readable(path), pq.ParquetFile(path) as file:
        _require_size(path, file.metadata, [column])
        batch = next(file.iter_batches(1, columns=[column]), None)
        return None if batch is None or not len(batch) else batch.column(0)[0]


def vector(table: Any, name: str, feature: Feature, place: str) -> np.ndarray:
    """A column as `(T, *shape)` in the feature's dtype. Raises StoreError, which begins with `place`, if the
    conversion is not exact; only floats may be rounded to the declared dtype."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = table[name].combine_chunks()
    while not pa.types.is_primitive(array.type):
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            if len(pc.unique(pc.list_value_length(array))) > 1:  # type: ignore[attr-defined]
                raise StoreError(f"{place}: the rows of {name} differ in length, or some are missing")
            array = array.flatten()
        elif pa.types.is_fixed_size_list(array.type):
            array = array.flatten()
        else:
            raise StoreError(f"{place}: {name} holds {array.type}, not numbers")
    if array.null_count or len(array) != len(table) * math.prod(feature.shape):
        raise StoreError(f"{place}: {name} has not {math.prod(feature.shape)} numbers in every row")
    values = array.to_numpy(zero_copy_only=False).reshape(len(table), *feature.shape)
    with np.errstate(all="ignore"):
        cast = values.astype(feature.dtype, copy=False)
        exact = np.array_equal(cast.astype(values.dtype), values)
    if not exact and not values.dtype.kind == cast.dtype.kind == "f":
        raise StoreError(
            f"{place}: {name} holds {array.type}, which is not the {feature.dtype} of meta/info.json"
        )
    _require_finite(cast, name, place)
    return cast


def _require_finite(values: np.ndarray, name: str, place: str) -> None:
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    where = f"in row {int(np.flatnonzero(~finite)[0])}" if finite.any() else "in any row"
    spare = "" if name == "timestamp" else f"; --drop {name} leaves it out"
    raise StoreError(f"{place}: {name} is not finite {where}{spare}")


def _require_size(path: Path, metadata: Any, columns: Sequence[str] | None) -> None:
    """Raise StoreError where what is read would not fit into memory: pages of parquet may unfold without
    bound."""
    if metadata.num_rows * 8 * max(1, len(columns or ())) > MOST_BYTES:
        raise StoreError(f"{path} says it has {metadata.num_rows} rows: refused")
    size = 0
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for i in range(chunks.num_columns):
            column = chunks.column(i)
            at = f"{column.path_in_schema}."  # of a list, its name and what parquet calls its elements
            if columns is None or any(at.startswith(f"{c}.") for c in columns):
                size += max(column.total_uncompressed_size, 8 * column.num_values)
    if size > MOST_BYTES:
        raise StoreError(f"{path} would unfold to {size / 1e9:.1f} GB: refused")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{path} is not a readable parquet file ({reason}): copy it again") from None
