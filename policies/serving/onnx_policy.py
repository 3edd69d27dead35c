"""An exported policy as a `ServedPolicy`: onnxruntime behind, dicts of arrays in front. No torch."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ...datasets.features import ACTION
from ..request import Request
from .fitting import fit_conditions, fit_observation
from .metadata import Metadata
from .onnx_file import METADATA, SAMPLING, ExportedError, require_sealed
from .protocol import BadRequest
from .torch_noise import sampler_noise

SUFFIX = ".onnx"


class OnnxPolicy:
    """Loads the file and warms it up with one inference. ExportedError where it holds none. threads: of the
    processor.

    The same seed gives the chunk that the checkpoint gives in torch on a CPU, but for the last digits."""

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ExportedError(
                f"there is no exported policy {path} ({error.strerror}): write one with `ulna export`"
            ) from None
        require_sealed(path, data)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # it says what it cannot fold, at length
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            notes = self._session.get_modelmeta().custom_metadata_map
            self.metadata = Metadata.from_json(json.loads(notes[METADATA]))
            sampling = json.loads(notes[SAMPLING])
            self._draws, *self._shape = map(int, sampling["noise"])
            self._nfe = int(sampling["nfe"])
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ExportedError(f"{path} cannot be served by this version: {reason:.300}") from error
        self._inputs = {i.name for i in self._session.get_inputs()}
        blank = {k: np.zeros(f.shape, f.dtype) for k, f in self._asked().items()}
        try:
            self.infer(Request(blank, 0).to_wire())
        except BadRequest as error:
            raise ExportedError(f"{path} does not answer an observation of zeros: {error}") from None

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """As `LocalPolicy.infer`; of `options` only the steps that it was exported with."""
        question = Request.from_wire(request)
        steps = self.metadata.sampling_steps
        if strange := {k: v for k, v in question.options.items() if (k, v) != ("steps", steps)}:
            raise BadRequest(
                f"options.{next(iter(strange))} cannot change an exported policy: it takes {steps} steps and "
                "no hooks; serve the checkpoint"
            )
        n, features = self.metadata.n_obs_steps, self.metadata.features
        arrays = {
            k: fit_observation(k, question.observation, f, n) for k, f in features.items() if k != ACTION
        }
        arrays |= {k: np.full(f.shape, np.nan, f.dtype) for k, f in self.metadata.optional.items()}
        arrays |= fit_conditions(question.observation, self.metadata.conditions, self.metadata.optional)
        seed = secrets.randbits(48) if question.seed is None else question.seed
        feeds = {k: v[None] for k, v in arrays.items()}
        feeds["noise"] = sampler_noise(seed, self._draws, self._shape)
        (actions,) = self._session.run(["actions"], {k: v for k, v in feeds.items() if k in self._inputs})
        ahead = np.asarray(actions)[0]
        if not np.isfinite(ahead).all():
            raise BadRequest(
                "the policy gives no finite action for this observation: a value is far from all data"
            )
        return {"actions": ahead, "nfe": self._nfe, "checkpoint": self.metadata.checkpoint}

    def _asked(self) -> dict[str, Any]:
        return {k: f for k, f in (self.metadata.features | self.metadata.conditions).items() if k != ACTION}
