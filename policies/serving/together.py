"""Requests that a policy answers by one inference: which may be, and each its own answer or error."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ..request import EXTENSION
from .protocol import BadRequest, ProtocolError, pack

log = logging.getLogger("ulna.serving")

FAILED = "the policy failed on this observation; the server's log says why"


class Failed(BadRequest):
    """The policy raised what is no fault of the request's; the log has it."""


def answers(policy: Any, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A reply or an error to each, computed together where that is possible. One that the policy fails on
    does not cost the others theirs."""
    failure: BaseException | None = None
    if len(requests) > 1:
        try:
            return list(policy.infer_many(requests))
        except (BadRequest, ProtocolError):
            pass  # of one of them; which one, it says when it is alone
        except Exception as error:  # noqa: BLE001  is it one of them? That one will fail alone, too
            failure = error
    results: list[Any] = []
    for request in requests:
        try:
            results.append(policy.infer(request))
        except (BadRequest, ProtocolError) as error:
            results.append(error)
        except Exception as error:  # noqa: BLE001  it is logged where the session is known
            failed = Failed(FAILED)
            failed.__cause__ = error
            results.append(failed)
    if failure is not None and not any(isinstance(r, Failed) for r in results):
        log.error("%d requests failed together, and none alone", len(requests), exc_info=failure)
    return results


def alike(request: Mapping[str, Any]) -> Hashable:
    """What requests that are computed together have in common: keys, shapes, types and options; not their
    values nor their seeds."""
    keys = tuple((k, _shape(v)) for k, v in request.items() if k != EXTENSION)
    extension = request.get(EXTENSION)
    if not isinstance(extension, Mapping):
        return keys, (), b""
    parts = tuple((k, _shape(v)) for k, v in extension.items() if k in ("previous", "memory"))
    options = {k: extension[k] for k in ("delay", "options") if k in extension}
    try:
        return keys, parts, pack(options) if options else b""
    except (TypeError, ValueError, OverflowError):
        return keys, id(request)


def _shape(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape
    if isinstance(value, Mapping):
        return tuple((k, _shape(v)) for k, v in value.items())
    if isinstance(value, list):
        return len(value), _shape(value[0]) if value else None
    return type(value)
