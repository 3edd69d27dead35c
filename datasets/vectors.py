"""Writes arrays of one chunk without zarr: joints, actions, times and flags of an episode.

zarr takes some milliseconds to create an array and half a second to import, too long for a recorder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .codec import CRC, with_crc


def write_vector(folder: Path, values: np.ndarray) -> None:
    """`values` `(T, ...)` as the zarr v3 array `folder`: one chunk, blosc with zstd, CRC-32C."""
    from numcodecs.blosc import Blosc

    size = values.dtype.itemsize
    little = {"name": "bytes", "configuration": {"endian": "little"}} if size > 1 else {"name": "bytes"}
    blosc = {"typesize": size, "cname": "zstd", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}
    array = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(values.shape),
        "data_type": values.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [max(1, n) for n in values.shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0 if values.dtype.kind != "b" else False,
        "codecs": [little, {"name": "blosc", "configuration": blosc}, CRC],
        "attributes": {},
        "storage_transformers": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zarr.json").write_text(json.dumps(array, indent=1))
    if values.size:
        chunk = folder.joinpath("c", *("0" for _ in values.shape))
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(with_crc(Blosc("zstd", 5, Blosc.SHUFFLE).encode(np.ascontiguousarray(values))))
